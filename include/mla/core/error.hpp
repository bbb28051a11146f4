#ifndef MLA_CORE_ERROR_HPP_
#define MLA_CORE_ERROR_HPP_

#include "mla/core/compiler.hpp"

#include <concepts>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

// Errors are found once, at the public boundary, and thrown with the field, the tensor and both
// numbers in the message. std::invalid_argument: the caller passed something that does not fit.
// std::runtime_error: a file or the system did not deliver.

namespace mla {

namespace detail {

/// A piece of a message. One function writes them all: a stream in each place that throws would be
/// most of what a user's file compiles.
class MessagePart {
 public:
  // NOLINTBEGIN(google-explicit-constructor)
  MessagePart(std::string_view text) noexcept : kind_(Kind::text), text_(text) {}
  MessagePart(const std::string& text) noexcept : MessagePart(std::string_view(text)) {}
  MessagePart(const char* text) noexcept : MessagePart(std::string_view(text)) {}
  MessagePart(char) = delete;  // a text of one character is "c"
  template <std::signed_integral T>
  MessagePart(T number) noexcept : kind_(Kind::integer), integer_(number) {}
  template <std::unsigned_integral T>
  MessagePart(T number) noexcept : kind_(Kind::natural), natural_(number) {}
  template <std::floating_point T>
  MessagePart(T number) noexcept : kind_(Kind::real), real_(static_cast<double>(number)) {}
  // NOLINTEND(google-explicit-constructor)

  void write(std::ostream& out) const {
    switch (kind_) {
      case Kind::text:
        out << text_;
        return;
      case Kind::integer:
        out << integer_;
        return;
      case Kind::natural:
        out << natural_;
        return;
      case Kind::real:
        out << real_;
        return;
    }
  }

 private:
  enum class Kind { text, integer, natural, real };
  Kind kind_;
  union {
    std::string_view text_;
    long long integer_;
    unsigned long long natural_;
    double real_;
  };
};

inline std::string message_of(std::initializer_list<MessagePart> parts) {
  std::ostringstream text;
  text.precision(9);
  for (const MessagePart& part : parts) part.write(text);
  return text.str();
}

// How a part is passed: of few types, so that places which say something alike share their code.
template <class Part>
using Passed = std::conditional_t<
    std::is_floating_point_v<Part>, double,
    std::conditional_t<
        std::is_same_v<Part, char>, const Part&,
        std::conditional_t<std::is_signed_v<Part>, long long,
                           std::conditional_t<std::is_unsigned_v<Part>, unsigned long long,
                                              std::conditional_t<std::is_array_v<Part>, const char*,
                                                                 const Part&>>>>>;

template <class Error, class... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void throw_message(Parts... parts) {
  throw Error(message_of({MessagePart(parts)...}));
}

}  // namespace detail

/// Throws std::invalid_argument with `parts`, texts and numbers, written one after the other.
template <class... Parts>
[[noreturn]] void throw_invalid(const Parts&... parts) {
  detail::throw_message<std::invalid_argument, detail::Passed<Parts>...>(
      static_cast<detail::Passed<Parts>>(parts)...);
}

/// Throws std::runtime_error likewise.
template <class... Parts>
[[noreturn]] void throw_runtime(const Parts&... parts) {
  detail::throw_message<std::runtime_error, detail::Passed<Parts>...>(
      static_cast<detail::Passed<Parts>>(parts)...);
}

/// Throws std::invalid_argument unless `condition` holds. The message is built only on failure.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    throw_invalid(parts...);
}

/// `object` after its validate(rest...), which throws: for constructors that take a member from it.
template <class Object, class... Rest>
const Object& validated(const Object& object, const Rest&... rest) {
  object.validate(rest...);
  return object;
}

}  // namespace mla

#endif  // MLA_CORE_ERROR_HPP_
