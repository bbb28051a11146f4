#ifndef MLA_SERVER_HTTP_SERVER_HPP_
#define MLA_SERVER_HTTP_SERVER_HPP_

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

#include "mla/text/tokenizer.hpp"

#include "chat_format.hpp"
#include "scheduler.hpp"

namespace mla::server {

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 8080;      ///< 0: any that is free
  std::string api_key;  ///< empty: none is asked for
  std::string model;    ///< the name that requests must ask for
  ChatFormat chat_format = {};
  std::size_t max_body_bytes = 8u << 20;
  std::size_t max_connections = 256;     ///< served at the same time; others wait
  std::chrono::seconds time_limit{600};  ///< for an answer, from its request on
  std::chrono::seconds io_limit{30};     ///< for a client that neither sends nor reads
};

/// The API over HTTP/1.1.
class HttpServer {
 public:
  /// Opens the port. Both must outlive the server. Throws std::runtime_error when that fails.
  HttpServer(Scheduler& scheduler, const Tokenizer& tokenizer, Index max_position_embeddings,
             const HttpOptions& options);
  ~HttpServer();

  int port() const noexcept;
  /// Serves until stop(), which any thread may call.
  void run();
  void stop();

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace mla::server

#endif  // MLA_SERVER_HTTP_SERVER_HPP_
