// Contexts and errors.

#include "context.hpp"

#include <array>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>

#include "mla/simd/isa.hpp"
#include "mla/simd/kernels.hpp"
#include "mla/version.hpp"
#include "programs/processors.hpp"

namespace mla::c {
namespace {

/// The caller's threads.
class CallerExecutor final : public Executor {
 public:
  CallerExecutor(Index threads, mla_parallel_for function, void* user)
      : threads_(threads), parallel_for_(function), user_(user) {}

  Index concurrency() const noexcept override { return threads_; }

 private:
  void run(Index tasks, const Body& body) override {
    const auto call = [](void* data, std::int64_t task, std::int64_t worker) {
      (*static_cast<const Body*>(data))(task, worker);
    };
    parallel_for_(user_, tasks, call, const_cast<Body*>(&body));
  }

  Index threads_;
  mla_parallel_for parallel_for_;
  void* user_;
};

// Outlives every call of its thread, and needs no memory to keep a message.
thread_local std::array<char, 1024> last_error = {};

mla_context_options default_context_options() {
  mla_context_options options = {};
  options.threads = 1;
  options.arithmetic = "float32";
  return options;
}

std::unique_ptr<Executor> make_executor(const mla_context_options& options) {
  constexpr int kMaxThreads = 1024;
  require(options.threads >= 0 && options.threads <= kMaxThreads, "threads must be from 0 to ",
          kMaxThreads, ", got ", options.threads);
  if (options.parallel_for) {
    require(options.threads >= 1, "threads must say how many parallel_for has, got 0");
    return std::make_unique<CallerExecutor>(options.threads, options.parallel_for, options.user);
  }
  const int threads = options.threads > 0 ? options.threads : programs::available_cores();
  if (threads > 1) return std::make_unique<EigenExecutor>(threads);
  return std::make_unique<SerialExecutor>();
}

const simd::Kernels& kernels_of(const mla_context_options& options) {
  const std::string_view name = text_or(options.arithmetic, "float32");
  const bool bfloat16 = name == simd::name_of(Arithmetic::bfloat16);
  require(bfloat16 || name == simd::name_of(Arithmetic::float32),
          "arithmetic must be float32 or bfloat16, got ", name);
  const Arithmetic arithmetic = bfloat16 ? Arithmetic::bfloat16 : Arithmetic::float32;
  if (!options.isa) return simd::kernels(arithmetic);
  const auto isa = simd::isa_from_name(options.isa);
  require(isa.has_value(), "isa ", options.isa, " does not exist");
  require(simd::is_supported(*isa), "this machine has no ", options.isa);
  return simd::kernels_for(*isa, arithmetic);
}

}  // namespace

mla_status fail(mla_status status, std::string_view message) noexcept {
  const std::size_t size = std::min(message.size(), last_error.size() - 1);
  std::copy_n(message.data(), size, last_error.begin());
  last_error[size] = '\0';
  return status;
}

}  // namespace mla::c

extern "C" {

std::int32_t mla_abi_version(void) { return MLA_ABI_VERSION; }
const char* mla_library_version(void) { return MLA_VERSION; }

const char* mla_status_text(mla_status status) {
  switch (status) {
    case MLA_OK:
      return "ok";
    case MLA_INVALID_ARGUMENT:
      return "invalid argument";
    case MLA_RUNTIME_ERROR:
      return "runtime error";
    case MLA_OUT_OF_MEMORY:
      return "out of memory";
    case MLA_BUSY:
      return "busy";
    case MLA_BUFFER_TOO_SMALL:
      return "buffer too small";
    case MLA_INTERNAL_ERROR:
      return "internal error";
  }
  return "no such status";
}

const char* mla_last_error(void) { return mla::c::last_error.data(); }

void mla_context_options_init(mla_context_options* options, std::size_t size) {
  mla::c::write_options(mla::c::default_context_options(), options, size);
}

mla_status mla_context_new(const mla_context_options* options, mla_context** context) {
  return mla::c::guarded([&] {
    const mla_context_options all =
        mla::c::read_options("mla_context_options", options, mla::c::default_context_options());
    const mla::simd::Kernels& kernels = mla::c::kernels_of(all);
    mla::c::make(context, mla::c::make_executor(all), kernels);
  });
}

void mla_context_destroy(mla_context* context) { mla::c::destroy(context); }

std::int32_t mla_context_threads(const mla_context* context) {
  const mla_context* const found = mla::c::object_or_null(context);
  return found ? static_cast<std::int32_t>(found->executor->concurrency()) : 0;
}

// Names in the library's tables are literals, which end in NUL.
const char* mla_context_isa(const mla_context* context) {
  const mla_context* const found = mla::c::object_or_null(context);
  return found ? mla::simd::name_of(found->context.kernels().isa).data() : nullptr;
}

const char* mla_context_arithmetic(const mla_context* context) {
  const mla_context* const found = mla::c::object_or_null(context);
  if (!found) return nullptr;
  return mla::simd::name_of(found->context.kernels().of(mla::WeightFormat::bfloat16).arithmetic)
      .data();
}

}  // extern "C"
