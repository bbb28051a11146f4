#ifndef MLA_SUPPORT_MESSAGE_OF_HPP_
#define MLA_SUPPORT_MESSAGE_OF_HPP_

#include <stdexcept>
#include <string>

namespace mla::test {

/// The message of the std::invalid_argument that `call` throws.
std::string message_of(const auto& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace mla::test

#endif  // MLA_SUPPORT_MESSAGE_OF_HPP_
