#ifndef MLA_CORE_ERROR_HPP_
#define MLA_CORE_ERROR_HPP_

#include "mla/core/compiler.hpp"

#include <sstream>
#include <stdexcept>
#include <string>

// Errors are found once, at the public boundary, and thrown with the field, the tensor and both
// numbers in the message. std::invalid_argument: the caller passed something that does not fit.
// std::runtime_error: a file or the system did not deliver.

namespace mla {

namespace detail {

template <class... Parts>
std::string concatenate(const Parts&... parts) {
  std::ostringstream text;
  text.precision(9);
  (text << ... << parts);
  return text.str();
}

}  // namespace detail

/// Throws std::invalid_argument with `parts` written one after the other.
template <class... Parts>
[[noreturn]] void throw_invalid(const Parts&... parts) {
  throw std::invalid_argument(detail::concatenate(parts...));
}

/// Throws std::runtime_error with `parts` written one after the other.
template <class... Parts>
[[noreturn]] void throw_runtime(const Parts&... parts) {
  throw std::runtime_error(detail::concatenate(parts...));
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
