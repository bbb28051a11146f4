#include "http_server.hpp"

#include <arpa/inet.h>
#include <dirent.h>
#include <httplib.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <cstdlib>
#include <ctime>
#include <mutex>
#include <random>
#include <span>
#include <stdexcept>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/version.hpp"

#include "page.hpp"
#include "requests.hpp"
#include "responses.hpp"

namespace mla::server {
namespace {

using Json = nlohmann::json;

constexpr const char* kJson = "application/json";

void answer(httplib::Response& response, const ApiError& error) {
  response.status = error.status();
  response.set_content(dump(error_json(error)), kJson);
}

/// The socket of a connection, which the HTTP library does not tell: the one with this peer. -1 if
/// there is none.
int socket_of(const httplib::Request& request) {
  DIR* const directory = ::opendir("/proc/self/fd");
  if (!directory) return -1;
  int found = -1;
  while (const dirent* const entry = ::readdir(directory)) {
    const int descriptor = std::atoi(entry->d_name);
    sockaddr_storage peer = {};
    socklen_t size = sizeof(peer);
    if (::getpeername(descriptor, reinterpret_cast<sockaddr*>(&peer), &size) != 0) continue;
    char address[INET6_ADDRSTRLEN] = {};
    int port = -1;
    if (peer.ss_family == AF_INET) {
      const auto& ipv4 = reinterpret_cast<const sockaddr_in&>(peer);
      port = ntohs(ipv4.sin_port);
      ::inet_ntop(AF_INET, &ipv4.sin_addr, address, sizeof(address));
    } else if (peer.ss_family == AF_INET6) {
      const auto& ipv6 = reinterpret_cast<const sockaddr_in6&>(peer);
      port = ntohs(ipv6.sin6_port);
      ::inet_ntop(AF_INET6, &ipv6.sin6_addr, address, sizeof(address));
    }
    if (port == request.remote_port && request.remote_addr == address) found = descriptor;
  }
  ::closedir(directory);
  return found;
}

/// Whether the client is there, as far as its side of the connection tells.
class Connection {
 public:
  explicit Connection(const httplib::Request& request) : socket_(socket_of(request)) {}

  bool closed() const noexcept {
    if (socket_ < 0) return false;
    char byte = 0;
    const ssize_t bytes = ::recv(socket_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return bytes == 0 || (bytes < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
  }

 private:
  int socket_;
};

/// Compares every character, wherever the first difference is.
bool same_secret(std::string_view a, std::string_view b) noexcept {
  unsigned char difference = a.size() != b.size();
  for (std::size_t i = 0; i < a.size(); ++i)
    difference |= static_cast<unsigned char>(a[i] ^ b[b.empty() ? 0 : i % b.size()]);
  return difference == 0;
}

/// The completions of a request: cancelled together when nobody takes the rest.
class Completions {
 public:
  Completions(Scheduler& scheduler, std::vector<Prompt>& prompts, Clock::time_point deadline)
      : deadline_(deadline) {
    try {
      for (Prompt& prompt : prompts) all_.push_back(scheduler.submit(prompt, deadline));
    } catch (...) {
      cancel();
      throw;
    }
  }
  Completions(const Completions&) = delete;
  Completions& operator=(const Completions&) = delete;
  ~Completions() { cancel(); }

  /// Waits for the next piece of any prompt and passes it to take(prompt, piece). False when all
  /// are done. Throws ApiError where one failed.
  template <class Take>
  bool next(const Take& take) {
    constexpr std::chrono::milliseconds kPatience{50};
    // The scheduler looks between its rounds only.
    if (Clock::now() >= deadline_) throw time_limit_error();
    bool any = false;
    for (std::size_t p = 0; p < all_.size(); ++p) {
      // The first that is not done is worth waiting for; of the others what is there.
      if (all_[p]->done()) continue;
      const auto piece = all_[p]->next(any ? std::chrono::milliseconds(0) : kPatience);
      any = true;
      if (piece) take(p, *piece);
    }
    return any;
  }

  Usage usage() const {
    Usage sum;
    for (const auto& one : all_) {
      const Usage usage = one->usage();
      sum.prompt_tokens += usage.prompt_tokens;
      sum.cached_tokens += usage.cached_tokens;
      sum.completion_tokens += usage.completion_tokens;
    }
    return sum;
  }

 private:
  void cancel() noexcept {
    for (const auto& one : all_) one->cancel();
  }

  std::vector<std::shared_ptr<Completion>> all_;
  Clock::time_point deadline_;
};

/// All of a streaming answer that outlives the handler of its request.
struct Stream {
  Stream(CompletionRequest&& from, Scheduler& scheduler, Clock::time_point deadline,
         const Tokenizer& tokenizer, std::string id, const std::string& model, Connection client)
      : request(std::move(from)),
        writer(request, tokenizer, std::move(id), model, std::time(nullptr)),
        completions(scheduler, request.prompts, deadline),
        connection(client) {}

  CompletionRequest request;
  CompletionWriter writer;
  Completions completions;
  Connection connection;
  bool begun = false;
};

std::string event_text(const Json& json) { return "data: " + dump(json) + "\n\n"; }

/// Writes what there is of an answer as server-sent events. False: the connection is to be closed.
bool write_events(Stream& stream, httplib::DataSink& sink) {
  const auto write = [&](const std::string& text) { return sink.write(text.data(), text.size()); };
  if (stream.connection.closed()) return false;
  std::string text;
  bool more = true;
  try {
    if (!std::exchange(stream.begun, true))
      for (const Json& chunk : stream.writer.begin()) text += event_text(chunk);
    more = stream.completions.next([&](std::size_t p, const Piece& piece) {
      text += event_text(stream.writer.chunk(p, piece));
    });
    if (!more) {
      for (const Json& chunk : stream.writer.end(stream.completions.usage()))
        text += event_text(chunk);
      text += "data: [DONE]\n\n";
    }
  } catch (const ApiError& error) {
    more = false;
    text += event_text(error_json(error));
  }
  if (!text.empty() && !write(text)) return false;
  if (!more) sink.done();
  return true;
}

}  // namespace

class HttpServer::Implementation {
 public:
  Implementation(Scheduler& scheduler, const Tokenizer& tokenizer, Index max_position_embeddings,
                 const HttpOptions& options)
      : scheduler_(scheduler),
        tokenizer_(tokenizer),
        max_position_embeddings_(max_position_embeddings),
        options_(options),
        started_(std::time(nullptr)) {
    set_limits();
    set_errors();
    set_routes();
    bind();
  }

  int port() const noexcept { return port_; }

  void run() {
    {
      const std::lock_guard lock(mutex_);
      if (stopped_) return;
      started_running_ = true;
    }
    const bool served = server_.listen_after_bind();
    ended_ = true;
    const std::lock_guard lock(mutex_);
    if (!served && !stopped_) throw_runtime("cannot serve any more");
  }

  // The HTTP library can be stopped once, and only while it runs.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      if (std::exchange(stopped_, true) || !started_running_) return;
    }
    constexpr std::chrono::milliseconds kPause{1};
    while (!server_.is_running() && !ended_) std::this_thread::sleep_for(kPause);
    if (!ended_) server_.stop();
  }

 private:
  using Handler = void (Implementation::*)(const httplib::Request&, httplib::Response&);

  void set_limits() {
    const std::size_t threads = options_.max_connections;
    server_.new_task_queue = [threads] { return new httplib::ThreadPool(threads); };
    server_.set_payload_max_length(options_.max_body_bytes);
    server_.set_read_timeout(options_.io_limit);
    server_.set_write_timeout(options_.io_limit);
    server_.set_keep_alive_max_count(1000);
    server_.set_tcp_nodelay(true);  // tokens are small
    server_.set_socket_options([this](int socket) {
      const int yes = 1;
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
      listening_ = socket;
    });
  }

  void bind() {
    port_ = options_.port == 0 ? server_.bind_to_any_port(options_.host)
            : server_.bind_to_port(options_.host, options_.port) ? options_.port
                                                                 : -1;
    if (port_ <= 0)
      throw_runtime("cannot listen on ", options_.host, " port ", options_.port,
                    ": is it in use, and the host one of this machine?");
    ::listen(listening_, 256);  // the HTTP library lets 5 wait
  }

  // What the HTTP library refuses, and what handlers throw, in the API's form.
  void set_errors() {
    const auto give_form = [this](const httplib::Request& request, httplib::Response& response) {
      if (response.body.empty()) answer(response, error_of_status(request, response.status));
    };
    server_.set_error_handler(httplib::Server::Handler(give_form));
    server_.set_exception_handler([](const httplib::Request&, httplib::Response& response,
                                     const std::exception_ptr& exception) {
      try {
        std::rethrow_exception(exception);
      } catch (const ApiError& error) {
        answer(response, error);
      } catch (const std::bad_alloc&) {
        answer(response, {503, "server_error", "not enough memory"});
      } catch (const std::exception& error) {
        answer(response, {500, "server_error", error.what()});
      }
    });
  }

  ApiError error_of_status(const httplib::Request& request, int status) const {
    const char* const type = "invalid_request_error";
    if (status == 413)
      return {413, type,
              mla::detail::message_of({"the body may have ", options_.max_body_bytes, " bytes"})};
    if (status == 404)
      return {404,
              type,
              "there is no " + request.method + " " + request.path.substr(0, 200),
              {},
              "unknown_url"};
    if (status < 500) return {status, type, "the request is no HTTP that this server understands"};
    return {status, "server_error", "the server failed"};
  }

  void check(const httplib::Request& request) const {
    const bool open = request.path == "/" || request.path == "/health";
    if (!options_.api_key.empty() && !open) {
      constexpr std::string_view kScheme = "Bearer ";
      const std::string given = request.get_header_value("Authorization");
      const bool bearer = std::string_view(given).starts_with(kScheme);
      if (!bearer || !same_secret(options_.api_key, std::string_view(given).substr(kScheme.size())))
        throw ApiError(401, "invalid_request_error", "the API key is missing or wrong", {},
                       "invalid_api_key");
    }
    // A web page of somebody else's may send other types without asking this server first.
    if (request.method == "POST" &&
        !std::string_view(request.get_header_value("Content-Type")).starts_with(kJson))
      throw ApiError(415, "invalid_request_error", "the Content-Type must be application/json");
  }

  void set_routes() {
    server_.Get("/", handler(&Implementation::page));
    server_.Get("/health", handler(&Implementation::health));
    server_.Get("/metrics", handler(&Implementation::metrics));
    server_.Get("/v1/models", handler(&Implementation::models));
    server_.Get(R"(/v1/models/(.+))", handler(&Implementation::model));
    server_.Post("/v1/completions", handler(&Implementation::completions));
    server_.Post("/v1/chat/completions", handler(&Implementation::chat_completions));
    server_.Post("/v1/tokenize", handler(&Implementation::tokenize));
  }

  httplib::Server::Handler handler(Handler function) {
    return [this, function](const httplib::Request& request, httplib::Response& response) {
      check(request);
      (this->*function)(request, response);
    };
  }

  void page(const httplib::Request&, httplib::Response& response) {
    response.set_header("Content-Security-Policy",
                        "default-src 'none'; script-src 'unsafe-inline'; style-src "
                        "'unsafe-inline'; connect-src 'self'");
    response.set_content(kPage, "text/html; charset=utf-8");
  }

  void health(const httplib::Request&, httplib::Response& response) {
    Json json = health_json(scheduler_.statistics());
    json["model"] = options_.model;
    json["version"] = MLA_VERSION;
    response.set_content(dump(json), kJson);
  }

  void metrics(const httplib::Request&, httplib::Response& response) {
    response.set_content(metrics_text(scheduler_.statistics()), "text/plain; version=0.0.4");
  }

  Json model_json() const {
    return {{"id", options_.model},
            {"object", "model"},
            {"created", started_},
            {"owned_by", "mla"},
            {"max_model_len", max_position_embeddings_}};
  }

  void models(const httplib::Request&, httplib::Response& response) {
    response.set_content(dump({{"object", "list"}, {"data", {model_json()}}}), kJson);
  }

  void model(const httplib::Request& request, httplib::Response& response) {
    if (request.matches[1].str() != options_.model)
      throw ApiError(404, "invalid_request_error", "there is no such model", "model",
                     "model_not_found");
    response.set_content(dump(model_json()), kJson);
  }

  RequestContext request_context() {
    thread_local std::random_device random;
    const std::uint64_t seed = (std::uint64_t{random()} << 32) | random();
    return {tokenizer_, options_.model, options_.chat_format, max_position_embeddings_, seed};
  }

  void tokenize(const httplib::Request& request, httplib::Response& response) {
    const std::vector<TokenId> tokens = read_tokenize_request(request.body, request_context());
    response.set_content(dump({{"tokens", tokens}, {"count", tokens.size()}}), kJson);
  }

  void completions(const httplib::Request& request, httplib::Response& response) {
    complete(read_completion_request(request.body, request_context()), request, response);
  }
  void chat_completions(const httplib::Request& request, httplib::Response& response) {
    complete(read_chat_request(request.body, request_context()), request, response);
  }

  void complete(CompletionRequest&& completion, const httplib::Request& request,
                httplib::Response& response) {
    const Clock::time_point deadline = Clock::now() + options_.time_limit;
    const bool streams = completion.stream;
    const std::string id = (completion.chat ? "chatcmpl-" : "cmpl-") + std::to_string(started_) +
                           "-" + std::to_string(next_id_++);
    const auto stream =
        std::make_shared<Stream>(std::move(completion), scheduler_, deadline, tokenizer_, id,
                                 options_.model, Connection(request));
    if (streams) {
      response.set_header("Cache-Control", "no-cache");
      response.set_header("X-Accel-Buffering", "no");  // proxies pass events on at once
      response.set_chunked_content_provider(
          "text/event-stream",
          [stream](std::size_t, httplib::DataSink& sink) { return write_events(*stream, sink); });
      return;
    }
    const auto add = [&](std::size_t p, const Piece& piece) { stream->writer.add(p, piece); };
    while (stream->completions.next(add))
      if (stream->connection.closed()) return;  // which cancels
    response.set_content(dump(stream->writer.whole(stream->completions.usage())), kJson);
  }

  Scheduler& scheduler_;
  const Tokenizer& tokenizer_;
  const Index max_position_embeddings_;
  const HttpOptions options_;
  const std::int64_t started_;
  std::atomic<std::uint64_t> next_id_{1};
  std::mutex mutex_;  // for the next two
  bool started_running_ = false, stopped_ = false;
  std::atomic<bool> ended_{false};
  httplib::Server server_;
  int listening_ = -1, port_ = -1;
};

HttpServer::HttpServer(Scheduler& scheduler, const Tokenizer& tokenizer,
                       Index max_position_embeddings, const HttpOptions& options)
    : implementation_(std::make_unique<Implementation>(scheduler, tokenizer,
                                                       max_position_embeddings, options)) {}
HttpServer::~HttpServer() = default;

int HttpServer::port() const noexcept { return implementation_->port(); }
void HttpServer::run() { implementation_->run(); }
void HttpServer::stop() { implementation_->stop(); }

}  // namespace mla::server
