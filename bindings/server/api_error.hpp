#ifndef MLA_SERVER_API_ERROR_HPP_
#define MLA_SERVER_API_ERROR_HPP_

#include <stdexcept>
#include <string>
#include <utility>

#include "mla/core/error.hpp"

namespace mla::server {

/// What a client is told in place of an answer: an HTTP status, and the fields of the API's own
/// error object.
class ApiError : public std::runtime_error {
 public:
  ApiError(int status, std::string type, const std::string& message, std::string param = {},
           std::string code = {})
      : std::runtime_error(message),
        status_(status),
        type_(std::move(type)),
        param_(std::move(param)),
        code_(std::move(code)) {}

  int status() const noexcept { return status_; }
  const std::string& type() const noexcept { return type_; }
  const std::string& param() const noexcept { return param_; }  ///< a field; may be empty
  const std::string& code() const noexcept { return code_; }    ///< may be empty

 private:
  int status_;
  std::string type_, param_, code_;
};

/// 400: field `param` is not as it must be. `parts` are the message, as for require().
template <class... Parts>
[[noreturn]] void refuse(const std::string& param, const Parts&... parts) {
  throw ApiError(400, "invalid_request_error",
                 mla::detail::message_of({mla::detail::MessagePart(parts)...}), param);
}

inline ApiError time_limit_error() {
  return {504, "server_error", "the time limit is over", {}, "timeout"};
}

}  // namespace mla::server

#endif  // MLA_SERVER_API_ERROR_HPP_
