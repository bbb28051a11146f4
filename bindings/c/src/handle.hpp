#ifndef MLA_BINDINGS_C_HANDLE_HPP_
#define MLA_BINDINGS_C_HANDLE_HPP_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"

#include "../mla.h"

// What all functions of mla.h share: handles that know their kind, objects in use, C++ exceptions
// as statuses, structs of options that grow.

namespace mla::c {

/// What a handle begins with. Every kind has its own, so that a handle of another kind is refused;
/// a destroyed one has none, as long as its memory is not used for something else.
enum class Kind : std::uint64_t {
  none = 0,
  context = 0x6d6c612d63747801,
  model,
  state,
  sampler,
  cancel_flag,
  tokenizer,
  text_stream,
  attention,
  cache,
};

constexpr std::string_view name_of(Kind kind) noexcept {
  switch (kind) {
    case Kind::none:
      return "nothing";
    case Kind::context:
      return "context";
    case Kind::model:
      return "model";
    case Kind::state:
      return "state";
    case Kind::sampler:
      return "sampler";
    case Kind::cancel_flag:
      return "cancel flag";
    case Kind::tokenizer:
      return "tokenizer";
    case Kind::text_stream:
      return "text stream";
    case Kind::attention:
      return "attention layer";
    case Kind::cache:
      return "cache";
  }
  __builtin_unreachable();
}

/// Base of all handles.
template <Kind kKindOfHandle>
struct Handle {
  static constexpr Kind kKind = kKindOfHandle;
  volatile Kind kind = kKind;
  mutable std::atomic<bool> in_use{false};

  Handle() = default;
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { kind = Kind::none; }
};

/// A status that no exception of the library stands for, with its message.
class Failure : public std::runtime_error {
 public:
  Failure(mla_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  mla_status status() const noexcept { return status_; }

 private:
  mla_status status_;
};

/// Keeps the message for mla_last_error(), cut to what fits.
mla_status fail(mla_status status, std::string_view message) noexcept;

/// The object of a handle. Throws std::invalid_argument for NULL, another kind, or a destroyed one.
template <class H>
H& object(H* handle) {
  require(handle != nullptr, "the ", name_of(H::kKind), " is NULL");
  require(handle->kind == H::kKind, "the handle of the ", name_of(H::kKind),
          " is of another kind or was destroyed");
  return *handle;
}

/// For getters without a status: nullptr where object() throws.
template <class H>
H* object_or_null(H* handle) noexcept {
  return handle && handle->kind == H::kKind ? handle : nullptr;
}

template <class H>
void destroy(H* handle) noexcept {
  if (object_or_null(handle)) delete handle;
}

/// Marks an object as in use for as long as it lives.
class InUse {
 public:
  /// Throws Failure where it is in use already.
  template <class H>
  explicit InUse(const H& handle) : in_use_(&handle.in_use) {
    if (!in_use_->exchange(true, std::memory_order_acquire)) return;
    in_use_ = nullptr;
    throw Failure(MLA_BUSY, detail::message_of({"the ", name_of(H::kKind),
                                                " is in use by another call, or given twice"}));
  }
  InUse(InUse&& other) noexcept : in_use_(std::exchange(other.in_use_, nullptr)) {}
  InUse& operator=(InUse&&) = delete;
  ~InUse() {
    if (in_use_) in_use_->store(false, std::memory_order_release);
  }

 private:
  std::atomic<bool>* in_use_;
};

/// Calls body(), whose exceptions become statuses.
template <class Body>
mla_status guarded(const Body& body) noexcept {
  try {
    body();
    return MLA_OK;
  } catch (const Failure& failure) {
    return fail(failure.status(), failure.what());
  } catch (const std::invalid_argument& error) {
    return fail(MLA_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return fail(MLA_OUT_OF_MEMORY, "not enough memory");
  } catch (const std::length_error&) {
    return fail(MLA_OUT_OF_MEMORY, "not enough memory");
  } catch (const std::runtime_error& error) {
    return fail(MLA_RUNTIME_ERROR, error.what());
  } catch (const std::exception& error) {
    return fail(MLA_INTERNAL_ERROR, error.what());
  } catch (...) {
    return fail(MLA_INTERNAL_ERROR, "an exception that is no std::exception");
  }
}

/// Writes a new handle through `out`. Throws std::invalid_argument where that is NULL.
template <class H, class... Arguments>
void make(H** out, Arguments&&... arguments) {
  require(out != nullptr, "the pointer for the ", name_of(H::kKind), " is NULL");
  *out = new H(std::forward<Arguments>(arguments)...);
}

/// `pointer` [count], which may be NULL where count is 0.
template <class T>
std::span<T> array(const char* name, T* pointer, std::size_t count) {
  require(pointer != nullptr || count == 0, name, " is NULL");
  require(count <= static_cast<std::size_t>(std::numeric_limits<Index>::max()) / sizeof(T), name,
          " cannot have ", count, " elements");
  return {pointer, count};
}

/// Copies `values` to the caller's memory, and says in `count` how many there are, also where they
/// do not fit, which throws Failure.
template <class T>
void write_array(const char* name, std::span<const T> values, T* out, std::size_t capacity,
                 std::size_t* count) {
  require(count != nullptr, "the pointer for the count is NULL");
  const std::span<T> room = array(name, out, capacity);
  *count = values.size();
  if (values.size() > capacity)
    throw Failure(MLA_BUFFER_TOO_SMALL, detail::message_of({name, " needs room for ", values.size(),
                                                            ", got ", capacity}));
  std::ranges::copy(values, room.begin());
}

inline const char* text(const char* name, const char* pointer) {
  require(pointer != nullptr, name, " is NULL");
  return pointer;
}
inline const char* text_or(const char* pointer, const char* otherwise) noexcept {
  return pointer ? pointer : otherwise;
}

// Structs that begin with their size. `minimum` is the part that has always been there: nobody
// passes less.

/// The caller's struct as this library knows it, `defaults` where the caller's is older or NULL.
template <class Options>
Options read_options(const char* name, const Options* given, Options defaults) {
  defaults.size = sizeof(Options);
  if (!given) return defaults;
  const std::size_t size = given->size;
  require(size >= sizeof(std::size_t) && size <= (1u << 16), name, ".size is ", size,
          ", which is not the size of a struct: call ", name, "_init first");
  const auto* const bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t i = sizeof(Options); i < size; ++i)
    require(bytes[i] == 0, name, " has a field at byte ", i,
            " that this version of the library does not know");
  std::memcpy(static_cast<void*>(&defaults), given, std::min(size, sizeof(Options)));
  defaults.size = sizeof(Options);
  return defaults;
}

/// Writes as much of `value` as the caller's struct has room for, and 0 into what it has beyond it.
template <class Options>
void write_options(Options value, Options* out, std::size_t size) {
  if (!out || size < sizeof(std::size_t)) return;
  std::memset(static_cast<void*>(out), 0, size);
  std::memcpy(static_cast<void*>(out), &value, std::min(size, sizeof(Options)));
  out->size = size;
}

/// The same for a struct whose size field the caller has set. Throws std::invalid_argument.
template <class Options>
void write_sized(const char* name, const Options& value, Options* out) {
  require(out != nullptr, name, " is NULL");
  require(out->size >= sizeof(std::size_t) && out->size <= (1u << 16), name, ".size is ", out->size,
          ", set it to sizeof(", name, ")");
  write_options(value, out, out->size);
}

}  // namespace mla::c

#endif  // MLA_BINDINGS_C_HANDLE_HPP_
