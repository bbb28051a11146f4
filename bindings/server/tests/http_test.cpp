// The server over HTTP, by a client's eyes.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "http_server.hpp"
#include "requests.hpp"
#include "responses.hpp"
#include "server_fixture.hpp"
#include "support/random.hpp"
#include "support/safetensors_writer.hpp"

namespace mla::test {
namespace {

using Json = nlohmann::json;
using server::ChatFormat;
using server::HttpOptions;
using server::HttpServer;

constexpr const char* kName = "tiny-shakespeare-v3";

/// A running server on a port of its own.
class TestServer {
 public:
  explicit TestServer(const HttpOptions& http = {}, const SchedulerOptions& options = {})
      : context_(gate_),
        scheduler_(trained_model(), trained_tokenizer(), context_, options),
        http_(scheduler_, trained_tokenizer(), trained_model().max_position_embeddings(),
              with_name(http)),
        thread_([this] { http_.run(); }) {}
  ~TestServer() {
    gate_.set_open(true);
    scheduler_.stop();
    http_.stop();
    thread_.join();
  }

  GateExecutor& gate() { return gate_; }
  Scheduler& scheduler() { return scheduler_; }
  int port() const { return http_.port(); }

  httplib::Client client() const {
    httplib::Client client("127.0.0.1", port());
    client.set_read_timeout(300);
    return client;
  }
  httplib::Result post(const std::string& path, const Json& body) const {
    return client().Post(path, body.dump(), "application/json");
  }
  Json posted(const std::string& path, const Json& body) const {
    const auto result = post(path, body);
    if (!result) {
      ADD_FAILURE() << "no answer: " << to_string(result.error());
      return {};
    }
    EXPECT_EQ(result->status, 200) << result->body;
    EXPECT_EQ(result->get_header_value("Content-Type"), "application/json");
    return Json::parse(result->body);
  }

 private:
  static HttpOptions with_name(HttpOptions options) {
    options.port = 0;
    options.model = kName;
    if (!options.chat_format.chat_template && options.chat_format.refusal.empty())
      options.chat_format = ChatFormat::load(kModel);
    return options;
  }

  GateExecutor gate_;
  Context context_;
  Scheduler scheduler_;
  HttpServer http_;
  std::thread thread_;
};

Json completion_body(const std::string& prompt, Index max_tokens) {
  return {{"model", kName}, {"prompt", prompt}, {"max_tokens", max_tokens}, {"temperature", 0}};
}
Json chat_body(const std::string& text, Index max_tokens) {
  return {{"model", kName},
          {"messages", {{{"role", "user"}, {"content", text}}}},
          {"max_completion_tokens", max_tokens},
          {"temperature", 0}};
}

/// The events of a stream, without the last, [DONE].
std::vector<Json> events_of(const std::string& body) {
  std::vector<Json> events;
  bool done = false;
  for (std::size_t at = 0; at < body.size();) {
    const std::size_t end = body.find("\n\n", at);
    EXPECT_EQ(body.substr(at, 6), "data: ");
    if (end == body.npos) break;
    const std::string data = body.substr(at + 6, end - at - 6);
    EXPECT_FALSE(done) << "an event after the end";
    done = data == "[DONE]";
    if (!done) events.push_back(Json::parse(data));
    at = end + 2;
  }
  EXPECT_TRUE(done);
  return events;
}

TEST(HttpServer, CompletesATextGreedilyAsTheGoldens) {
  const TestServer server;
  const Goldens goldens(kModel);
  for (const std::string name : {"short", "medium"}) {
    const auto prompt = goldens.prompt(name);
    const auto greedy = goldens.integers(name + ".greedy");
    Json body = completion_body("", 64);
    body["prompt"] = std::vector<TokenId>(prompt.begin(), prompt.end());
    const Json answer = server.posted("/v1/completions", body);
    EXPECT_EQ(answer.at("choices").at(0).at("text"), trained_tokenizer().decode(greedy));
    EXPECT_EQ(answer.at("choices").at(0).at("finish_reason"), "length");
    EXPECT_EQ(answer.at("choices").at(0).at("logprobs"), nullptr);
    EXPECT_EQ(answer.at("object"), "text_completion");
    EXPECT_EQ(answer.at("model"), kName);
    EXPECT_EQ(answer.at("usage").at("prompt_tokens"), prompt.size());
    EXPECT_EQ(answer.at("usage").at("completion_tokens"), 64);
    EXPECT_EQ(answer.at("usage").at("total_tokens"), prompt.size() + 64);
    EXPECT_EQ(answer.at("usage").at("prompt_tokens_details").at("cached_tokens"), 0);
  }
}

TEST(HttpServer, ChatsInTheModelsFormat) {
  const TestServer server;
  const Json answer = server.posted("/v1/chat/completions", chat_body("Who is Romeo?", 20));
  const Prompt prompt = prompt_of("User: Who is Romeo?\n\nAssistant:", 20);
  const ExpectedText expected = expected_text(prompt, 0, {});
  const Json& choice = answer.at("choices").at(0);
  EXPECT_EQ(choice.at("message").at("role"), "assistant");
  EXPECT_EQ(choice.at("message").at("content"), expected.text);
  EXPECT_EQ(choice.at("finish_reason"), "length");
  EXPECT_EQ(answer.at("object"), "chat.completion");
  EXPECT_EQ(answer.at("usage").at("prompt_tokens"), prompt.tokens.size());
}

TEST(HttpServer, StreamsTheSameTextInPieces) {
  const TestServer server;
  for (const bool chat : {false, true}) {
    Json body = chat ? chat_body("Hi", 30) : completion_body("ROMEO:", 30);
    const std::string path = chat ? "/v1/chat/completions" : "/v1/completions";
    const Json whole = server.posted(path, body);
    body["stream"] = true;
    body["stream_options"] = {{"include_usage", true}};
    body["logprobs"] = chat ? Json(true) : Json(0);
    const auto result = server.post(path, body);
    ASSERT_TRUE(result);
    EXPECT_EQ(result->get_header_value("Content-Type"), "text/event-stream");
    std::vector<Json> events = events_of(result->body);
    const Json usage = events.back();
    events.pop_back();
    EXPECT_TRUE(usage.at("choices").empty());
    EXPECT_EQ(usage.at("usage"), whole.at("usage"));
    std::string text;
    std::size_t reports = 0, finishes = 0;
    for (const Json& event : events) {
      EXPECT_EQ(event.at("id"), usage.at("id"));
      const Json& choice = event.at("choices").at(0);
      text += chat ? choice.at("delta").value("content", "") : choice.at("text").get<std::string>();
      if (!choice.at("logprobs").is_null())
        reports += choice.at("logprobs").at(chat ? "content" : "tokens").size();
      finishes += choice.at("finish_reason") == "length";
    }
    const Json& choice = whole.at("choices").at(0);
    EXPECT_EQ(Json(text), chat ? choice.at("message").at("content") : choice.at("text"));
    EXPECT_EQ(reports, 30U);
    EXPECT_EQ(finishes, 1U);
    if (chat) {
      EXPECT_EQ(events[0].at("choices").at(0).at("delta").at("role"), "assistant");
    }
    EXPECT_GT(events.size(), 10U);
  }
}

TEST(HttpServer, GivesSeveralChoicesOfSeveralPrompts) {
  const TestServer server;
  Json body = completion_body("", 12);
  body["prompt"] = {"ROMEO:", "JULIET:"};
  body["n"] = 3;
  body["temperature"] = 0.9;
  body["top_p"] = 0.9;
  body["seed"] = 77;
  for (const bool stream : {false, true}) {
    std::vector<std::string> texts(6);
    if (stream) {
      body["stream"] = true;
      const std::vector<Json> events = events_of(server.post("/v1/completions", body)->body);
      for (const Json& event : events)
        texts.at(event.at("choices").at(0).at("index").get<std::size_t>()) +=
            event.at("choices").at(0).at("text").get<std::string>();
    } else {
      const Json answer = server.posted("/v1/completions", body);
      for (const Json& choice : answer.at("choices"))
        texts.at(choice.at("index").get<std::size_t>()) = choice.at("text");
    }
    for (Index i = 0; i < 6; ++i) {
      Prompt prompt = prompt_of(i < 3 ? "ROMEO:" : "JULIET:", 12, 0.9);
      prompt.sampling.top_p = 0.9;
      prompt.sampling.seed = 77;
      EXPECT_EQ(texts[static_cast<std::size_t>(i)], expected_text(prompt, i % 3, {}).text) << i;
    }
  }
}

TEST(HttpServer, EndsATextBeforeAStopString) {
  const TestServer server;
  Prompt prompt = prompt_of("ROMEO:", 60);
  const std::string plain = expected_text(prompt, 0, {}).text;
  const std::string stop = plain.substr(20, 7);
  prompt.stop = {stop};
  for (const Json& value : {Json(stop), Json{"never there", stop}}) {
    Json body = completion_body("ROMEO:", 60);
    body["stop"] = value;
    const Json answer = server.posted("/v1/completions", body);
    EXPECT_EQ(answer.at("choices").at(0).at("text"), expected_text(prompt, 0, {}).text);
    EXPECT_EQ(answer.at("choices").at(0).at("finish_reason"), "stop");
    EXPECT_LT(answer.at("usage").at("completion_tokens"), 60);
  }
}

TEST(HttpServer, SaysLogProbabilitiesInTheFormOfEachEndpoint) {
  const TestServer server;
  Json body = completion_body("ROMEO:", 4);
  body["logprobs"] = 2;
  const Json text = server.posted("/v1/completions", body).at("choices").at(0);
  const Json& logprobs = text.at("logprobs");
  std::string joined;
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(logprobs.at("text_offset").at(i), joined.size());
    const std::string token = logprobs.at("tokens").at(i);
    EXPECT_LE(logprobs.at("token_logprobs").at(i), 0.0);
    // Greedy: the chosen token is the best one.
    EXPECT_EQ(logprobs.at("top_logprobs").at(i).at(token), logprobs.at("token_logprobs").at(i));
    EXPECT_EQ(logprobs.at("top_logprobs").at(i).size(), 2U);
    joined += token;
  }
  EXPECT_EQ(Json(joined), text.at("text"));

  body = chat_body("Hi", 4);
  body["logprobs"] = true;
  body["top_logprobs"] = 3;
  const Json chat = server.posted("/v1/chat/completions", body).at("choices").at(0);
  const Json& content = chat.at("logprobs").at("content");
  ASSERT_EQ(content.size(), 4U);
  std::string bytes;
  for (const Json& token : content) {
    EXPECT_EQ(token.at("top_logprobs").size(), 3U);
    EXPECT_EQ(token.at("top_logprobs").at(0).at("logprob"), token.at("logprob"));
    for (const Json& byte : token.at("bytes")) bytes += static_cast<char>(byte.get<int>());
  }
  EXPECT_EQ(Json(bytes), chat.at("message").at("content"));
}

TEST(HttpServer, ListsItsModelAndTokenizes) {
  const TestServer server;
  const auto get = [&](const std::string& path) {
    const auto result = server.client().Get(path);
    EXPECT_EQ(result->status, 200);
    return Json::parse(result->body);
  };
  const Json models = get("/v1/models");
  EXPECT_EQ(models.at("object"), "list");
  EXPECT_EQ(models.at("data").at(0).at("id"), kName);
  EXPECT_EQ(get(std::string("/v1/models/") + kName), models.at("data").at(0));
  EXPECT_EQ(server.client().Get("/v1/models/other")->status, 404);
  const Json tokens = server.posted("/v1/tokenize", {{"text", "ROMEO:"}});
  EXPECT_EQ(tokens.at("tokens"), Json(trained_tokenizer().encode("ROMEO:")));
  EXPECT_EQ(tokens.at("count"), tokens.at("tokens").size());
  EXPECT_EQ(
      server.posted("/v1/tokenize", {{"text", "x"}, {"add_special_tokens", false}}).at("tokens"),
      Json(trained_tokenizer().encode("x", false)));
  const Json messages = chat_body("Hi", 1).at("messages");
  EXPECT_EQ(server.posted("/v1/tokenize", {{"messages", messages}}).at("tokens"),
            Json(trained_tokenizer().encode("User: Hi\n\nAssistant:", true)));
  const auto page = server.client().Get("/");
  EXPECT_EQ(page->status, 200);
  EXPECT_NE(page->body.find("</html>"), std::string::npos);
  EXPECT_EQ(page->body.find("http"), page->body.npos) << "the page needs nothing from outside";
}

TEST(HttpServer, CountsForPrometheus) {
  const TestServer server;
  server.posted("/v1/completions", completion_body("ROMEO:", 5));
  wait_until([&] {
    const std::string health = server.client().Get("/health")->body;
    return Json::parse(health).at("running_choices") == 0;
  });
  const auto result = server.client().Get("/metrics");
  EXPECT_EQ(result->get_header_value("Content-Type"), "text/plain; version=0.0.4");
  const auto has = [&](const std::string& line) {
    EXPECT_NE(result->body.find("\n" + line + "\n"), std::string::npos)
        << line << " in " << result->body;
  };
  has("mla_prompts_finished_total 1");
  has("mla_generated_tokens_total 5");
  has("# TYPE mla_first_token_seconds histogram");
  has("mla_first_token_seconds_bucket{le=\"+Inf\"} 1");
  has("mla_first_token_seconds_count 1");
  has("mla_running_choices 0");
}

TEST(HttpServer, AsksForItsKey) {
  HttpOptions options;
  options.api_key = "secret";
  const TestServer server(options);
  const auto status = [&](const std::string& path, const char* header) {
    httplib::Headers headers;
    if (header) headers.emplace("Authorization", header);
    const auto result = server.client().Get(path, headers);
    if (result->status == 401) {
      EXPECT_EQ(Json::parse(result->body).at("error").at("code"), "invalid_api_key");
    }
    return result->status;
  };
  for (const char* const wrong : {(const char*)nullptr, "secret", "Bearer secre", "Bearer secrett",
                                  "Bearer ", "Basic secret"})
    EXPECT_EQ(status("/v1/models", wrong), 401) << (wrong ? wrong : "none");
  EXPECT_EQ(status("/metrics", nullptr), 401);
  EXPECT_EQ(status("/v1/models", "Bearer secret"), 200);
  EXPECT_EQ(status("/health", nullptr), 200);
  EXPECT_EQ(status("/", nullptr), 200);
}

// Every error has the API's form and names the field.
TEST(HttpServer, NamesTheFieldThatIsNotAsItMustBe) {
  const TestServer server;
  const auto refuses = [&](const std::string& path, const std::string& body, int status,
                           const Json& param, const std::string& message) {
    const auto result = server.client().Post(path, body, "application/json");
    ASSERT_TRUE(result);
    EXPECT_EQ(result->status, status) << body;
    const Json error = Json::parse(result->body).at("error");
    EXPECT_EQ(error.at("param"), param) << body;
    EXPECT_NE(error.at("message").get<std::string>().find(message), std::string::npos)
        << error.at("message") << " for " << body;
    EXPECT_EQ(error.at("type"), status < 500 ? "invalid_request_error" : "server_error");
  };
  const std::string completions = "/v1/completions", chat = "/v1/chat/completions";
  refuses(completions, "", 400, nullptr, "the body");
  refuses(completions, "{", 400, nullptr, "the body");
  refuses(completions, "[1]", 400, nullptr, "must be a JSON object");
  refuses(completions, std::string(200, '['), 400, nullptr, "deeper than 64");
  refuses(completions, "{\"model\":1,\"model\":2}", 400, nullptr, "twice");
  refuses(completions, "{\"model\":\"\xff\"}", 400, nullptr, "the body");
  refuses(completions, "{}", 400, "model", "model is missing");
  refuses(completions, R"({"model":"gpt-4"})", 404, "model", "does not exist");
  const auto with = [&](const std::string& path, const char* change, const char* param,
                        const std::string& message) {
    Json body = path == chat ? chat_body("Hi", 2) : completion_body("x", 2);
    body.update(Json::parse(change));
    refuses(path, body.dump(), 400, param, message);
  };
  with(completions, R"({"prompt":7})", "prompt", "prompt must be a string");
  with(completions, R"({"prompt":[]})", "prompt", "prompt must be a string");
  with(completions, R"({"prompt":[1.5]})", "prompt", "prompt must be a string");
  with(completions, R"({"prompt":[[1],7]})", "prompt", "prompt must be a string");
  with(completions, R"({"prompt":[-1]})", "prompt", "must be an integer");
  with(completions, R"({"prompt":[5000]})", "prompt", "token 5000 is not in the vocabulary");
  with(completions, R"({"prompt":[99999999999]})", "prompt", "no token");
  with(completions, R"({"prompt":null})", "prompt", "prompt is missing");
  with(completions, R"({"max_tokens":0})", "max_tokens", "from 1");
  with(completions, R"({"max_tokens":"5"})", "max_tokens", "must be an integer");
  with(completions, R"({"temperature":-1})", "temperature", "temperature must be 0 or more");
  with(completions, R"({"temperature":"hot"})", "temperature", "must be a number");
  with(completions, R"({"top_p":0})", "top_p", "top_p must be above 0");
  with(completions, R"({"n":0})", "n", "from 1");
  with(completions, R"({"n":17})", "n", "n must be from 1 to 16");
  with(completions, R"({"stream":1})", "stream", "true or false");
  with(completions, R"({"stream_options":{"x":1}})", "stream_options.x", "unknown field");
  with(completions, R"({"stop":""})", "stop", "from 1 to 1024 bytes");
  with(completions, R"({"stop":[1]})", "stop", "stop must be a string");
  with(completions, R"({"seed":1.5})", "seed", "seed must be an integer");
  with(completions, R"({"logprobs":21})", "logprobs", "from 0 to 20");
  with(completions, R"({"echo":true})", "echo", "not supported");
  with(completions, R"({"best_of":2})", "best_of", "not supported");
  with(completions, R"({"presence_penalty":1})", "presence_penalty", "not supported");
  with(completions, R"({"logit_bias":{"5":1}})", "logit_bias", "not supported");
  with(completions, R"({"nonsense":true})", "nonsense", "unknown field");
  with(chat, R"({"messages":"Hi"})", "messages", "must be an array");
  with(chat, R"({"messages":[]})", "messages", "must be an array");
  with(chat, R"({"messages":[5]})", "messages[0]", "must be an object");
  with(chat, R"({"messages":[{"role":"robot","content":"x"}]})", "messages[0]", "role must be");
  with(chat, R"({"messages":[{"role":"user"}]})", "messages[0]", "content is missing");
  with(chat, R"({"messages":[{"role":"user","content":5}]})", "messages[0]", "must be a text");
  with(chat, R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})", "messages[0]",
       "parts of type text only");
  with(chat, R"({"messages":[{"role":"user","content":"x","tool_calls":[1]}]})", "messages[0]",
       "tool_calls");
  with(chat, R"({"tools":[{"type":"function"}]})", "tools", "not supported");
  with(chat, R"({"response_format":{"type":"json_object"}})", "response_format", "not supported");
  with(chat, R"({"top_logprobs":2})", "top_logprobs", "needs logprobs");
  refuses("/v1/tokenize", "{}", 400, "text", "text is missing");
  refuses("/v1/tokenize", R"({"text":"a","messages":[]})", 400, "text", "either");
  Json longer = completion_body("", 2);
  longer["prompt"] = std::vector<int>(300, 5);
  const auto result = server.post(completions, longer);
  EXPECT_EQ(result->status, 400);
  EXPECT_EQ(Json::parse(result->body).at("error").at("code"), "context_length_exceeded");
  // The server is as before.
  server.posted(completions, completion_body("x", 2));
}

TEST(HttpServer, AnswersWrongHttpInTheApisForm) {
  HttpOptions options;
  options.max_body_bytes = 1000;
  const TestServer server(options);
  const auto error = [](const httplib::Result& result) {
    return Json::parse(result->body).at("error");
  };
  auto result = server.client().Get("/v1/nothing");
  EXPECT_EQ(result->status, 404);
  EXPECT_EQ(error(result).at("code"), "unknown_url");
  result = server.client().Get("/v1/completions");
  EXPECT_EQ(result->status, 404);
  result = server.client().Post("/v1/completions", completion_body("x", 1).dump(), "text/plain");
  EXPECT_EQ(result->status, 415);
  EXPECT_EQ(error(result).at("type"), "invalid_request_error");
  result = server.post("/v1/completions", completion_body(std::string(2000, 'x'), 1));
  EXPECT_EQ(result->status, 413);
  EXPECT_NE(error(result).at("message").get<std::string>().find("1000 bytes"), std::string::npos);
}

TEST(HttpServer, Says429WhenTheQueueIsFullAnd504WhenTheTimeIsOver) {
  HttpOptions options;
  options.time_limit = std::chrono::seconds(1);
  TestServer server(options, {.max_choices = 1, .max_waiting = 1});
  server.gate().set_open(false);
  std::vector<std::thread> clients;
  std::atomic<int> late{0};
  const auto client = [&] {
    const auto result = server.post("/v1/completions", completion_body("ROMEO:", 5));
    late += result->status == 504 && Json::parse(result->body).at("error").at("code") == "timeout";
  };
  clients.emplace_back(client);
  server.gate().wait_for_arrival();
  clients.emplace_back(client);
  wait_until([&] { return server.scheduler().statistics().prompts_accepted == 2; });
  const auto full = server.post("/v1/completions", completion_body("ROMEO:", 5));
  EXPECT_EQ(full->status, 429);
  EXPECT_EQ(Json::parse(full->body).at("error").at("code"), "queue_full");
  for (std::thread& thread : clients) thread.join();
  EXPECT_EQ(late, 2);
  server.gate().set_open(true);
  server.posted("/v1/completions", completion_body("ROMEO:", 5));
}

/// A connection whose bytes the test writes itself.
class RawConnection {
 public:
  explicit RawConnection(int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }
  RawConnection(const RawConnection&) = delete;
  RawConnection& operator=(const RawConnection&) = delete;
  ~RawConnection() { ::close(socket_); }

  void send(const std::string& bytes) const {
    std::size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t count = ::send(socket_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (count <= 0) return;
      sent += static_cast<std::size_t>(count);
    }
  }
  void send_request(const std::string& path, const Json& body) const {
    const std::string text = body.dump();
    send("POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" +
         "Content-Length: " + std::to_string(text.size()) + "\r\n\r\n" + text);
  }
  std::size_t receive() const {
    char bytes[256];
    const ssize_t count = ::recv(socket_, bytes, sizeof(bytes), 0);
    return count < 0 ? 0 : static_cast<std::size_t>(count);
  }

 private:
  int socket_;
};

TEST(HttpServer, CancelsWhenTheClientGoes) {
  TestServer server({}, {.max_choices = 2});
  std::uint64_t cancelled = 0;
  for (const bool stream : {true, false}) {
    server.gate().set_open(false);
    {
      Json body = completion_body("ROMEO:", 200);
      body["stream"] = stream;
      const RawConnection client(server.port());
      client.send_request("/v1/completions", body);
      server.gate().wait_for_arrival();
      if (stream) {
        EXPECT_GT(client.receive(), 0U);  // the header of the answer
      }
    }
    // Only once the server has seen that the client is gone can the text go on.
    ++cancelled;
    wait_until([&] {
      server.gate().set_open(true);
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      server.gate().set_open(false);
      const auto statistics = server.scheduler().statistics();
      EXPECT_EQ(statistics.prompts_finished, 0U);
      return statistics.prompts_cancelled == cancelled || statistics.prompts_finished > 0;
    });
  }
  server.gate().set_open(true);
  wait_until([&] { return server.scheduler().statistics().running_choices == 0; });
  EXPECT_EQ(server.scheduler().statistics().cache_bytes, 0U);
}

TEST(HttpServer, OutlivesGarbageAndClientsThatVanish) {
  const TestServer server;
  Random random(12);
  const Json good = completion_body("ROMEO:", 8);
  const std::string expected =
      server.posted("/v1/completions", good).at("choices").at(0).at("text");
  for (int round = 0; round < 150; ++round) {
    const RawConnection client(server.port());
    std::string bytes;
    switch (random.integer(0, 3)) {
      case 0:  // no HTTP at all
        for (Index i = random.integer(1, 400); i > 0; --i)
          bytes += static_cast<char>(random.integer(0, 255));
        client.send(bytes + "\r\n\r\n");
        break;
      case 1:  // a header that promises more than comes
        client.send(
            "POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n"
            "Content-Length: 100\r\n\r\n{\"model");
        break;
      case 2: {  // a request with changed bytes
        bytes = good.dump();
        for (Index i = random.integer(1, 3); i > 0; --i)
          bytes[static_cast<std::size_t>(random.integer(0, std::ssize(bytes) - 1))] =
              static_cast<char>(random.integer(0, 255));
        client.send(
            "POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n"
            "Content-Length: " +
            std::to_string(bytes.size()) + "\r\n\r\n" + bytes);
        if (random.chance(0.5)) client.receive();
        break;
      }
      default:  // a client that asks and leaves
        client.send_request("/v1/completions", completion_body("JULIET:", 100));
    }
  }
  EXPECT_EQ(server.posted("/v1/completions", good).at("choices").at(0).at("text"), expected);
}

// What a server of many clients is for: all get what they would get alone.
TEST(HttpServer, GivesManyClientsAtOnceTheTextsThatTheyWouldGetAlone) {
  const SchedulerOptions options = {.max_choices = 8, .max_waiting = 64, .chunk_tokens = 32};
  const TestServer server({}, options);
  std::vector<std::thread> clients;
  for (int c = 0; c < 24; ++c)
    clients.emplace_back([&, c] {
      Random random(static_cast<std::uint64_t>(c) + 50);
      httplib::Client client = server.client();
      for (int i = 0; i < 3; ++i) {
        Prompt prompt = prompt_of(std::string(static_cast<std::size_t>(random.integer(1, 60)), 'a'),
                                  random.integer(1, 30), random.chance(0.5) ? 0.0 : 0.8);
        prompt.sampling.seed = random.bits() >> 12;
        Json body = completion_body("", prompt.max_tokens);
        body["prompt"] = prompt.tokens;
        body["temperature"] = prompt.sampling.temperature;
        body["seed"] = prompt.sampling.seed;
        body["stream"] = c % 2 == 0;
        const auto result = client.Post("/v1/completions", body.dump(), "application/json");
        if (!result) {
          ADD_FAILURE() << to_string(result.error());
          return;
        }
        std::string text;
        if (c % 2 == 0)
          for (const Json& event : events_of(result->body))
            text += event.at("choices").at(0).at("text").get<std::string>();
        else
          text = Json::parse(result->body).at("choices").at(0).at("text");
        EXPECT_EQ(text, expected_text(prompt, 0, options).text);
      }
    });
  for (std::thread& thread : clients) thread.join();
}

// Fields of every type and size: an answer or an error of the API, never anything else.
TEST(Requests, OfRandomFieldsAreReadOrRefused) {
  Random random(31);
  const ChatFormat format = ChatFormat::load(kModel);
  const server::RequestContext context = {trained_tokenizer(), kName, format, 256, 1};
  const char* const names[] = {"model",
                               "prompt",
                               "messages",
                               "max_tokens",
                               "n",
                               "stop",
                               "stream",
                               "logprobs",
                               "temperature",
                               "top_p",
                               "top_k",
                               "seed",
                               "best_of",
                               "echo",
                               "tools",
                               "min_p",
                               "user",
                               "suffix",
                               "logit_bias",
                               "text",
                               "top_logprobs",
                               "stream_options",
                               "max_completion_tokens",
                               "x"};
  const std::function<Json(int)> value = [&](int depth) -> Json {
    switch (random.integer(0, depth > 0 ? 9 : 7)) {
      case 0:
        return nullptr;
      case 1:
        return random.chance(0.5);
      case 2:
        return random.integer(-3, 70);
      case 3:
        return random.bits();
      case 4:
        return random.uniform(-2.0, 2.0);
      case 5:
        return kName;
      case 6:
        return std::string(static_cast<std::size_t>(random.integer(0, 40)), 'q');
      case 7:
        return 1e308 * random.uniform(0.0, 1.0);
      case 8: {
        Json array = Json::array();
        for (Index i = random.integer(0, 4); i > 0; --i) array.push_back(value(depth - 1));
        return array;
      }
      default: {
        Json object = Json::object();
        const char* const inner[] = {"role", "content", "type", "text", "include_usage"};
        for (Index i = random.integer(0, 3); i > 0; --i)
          object[inner[random.integer(0, 4)]] = value(depth - 1);
        return object;
      }
    }
  };
  int read = 0, refused = 0;
  for (int round = 0; round < 10'000; ++round) {
    Json body = random.chance(0.5) ? completion_body("x", 2) : chat_body("x", 2);
    for (Index i = random.integer(0, 2); i > 0; --i)
      body[names[random.integer(0, std::ssize(names) - 1)]] = value(3);
    if (random.chance(0.2)) body.erase(body.begin());
    const std::string text = body.dump();
    for (const auto& reads : {server::read_completion_request, server::read_chat_request}) {
      try {
        const server::CompletionRequest request = reads(text, context);
        EXPECT_FALSE(request.prompts.empty());
        ++read;
      } catch (const server::ApiError& error) {
        EXPECT_TRUE(error.status() == 400 || error.status() == 404) << error.what();
        EXPECT_STRNE(error.what(), "");
        ++refused;
      }
    }
  }
  EXPECT_GT(read, 1000);
  EXPECT_GT(refused, 1000);
}

// What mla-generate --chat makes of the same turns.
TEST(HttpServer, ChatsByTheModelsOwnTemplate) {
  const TemporaryDirectory directory;
  for (const char* file : {"tokenizer.json", "tokenizer_config.json"})
    std::filesystem::copy(kModel / file, directory / file);
  write_file(directory / "chat_template.jinja",
             "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n"
             "{% endfor %}{% if mood is defined %}[{{ mood }}]{% endif %}"
             "{% if messages[0].content == 'no' %}{{ raise_exception('not that') }}{% endif %}");
  HttpOptions http;
  http.chat_format = ChatFormat::load(directory.path());
  EXPECT_FALSE(http.chat_format.plain);
  const TestServer server(http);
  Json body = chat_body("Who is Romeo?", 20);
  body["messages"].insert(body["messages"].begin(),
                          Json{{"role", "developer"}, {"content", "Be brief."}});
  Prompt prompt = prompt_of("", 20);
  const std::string text = "<system>Be brief.\n<user>Who is Romeo?\n";
  prompt.tokens = trained_tokenizer().encode(text, false);  // the template has no BOS
  Json answer = server.posted("/v1/chat/completions", body);
  EXPECT_EQ(answer.at("choices").at(0).at("message").at("content"),
            expected_text(prompt, 0, {}).text);
  EXPECT_EQ(answer.at("usage").at("prompt_tokens"), prompt.tokens.size());
  const Json tokens =
      server.posted("/v1/tokenize", {{"model", kName}, {"messages", body["messages"]}});
  EXPECT_EQ(tokens.at("tokens"), Json(prompt.tokens));

  body["chat_template_kwargs"] = {{"mood", "calm"}};
  prompt.tokens = trained_tokenizer().encode(text + "[calm]", false);
  answer = server.posted("/v1/chat/completions", body);
  EXPECT_EQ(answer.at("usage").at("prompt_tokens"), prompt.tokens.size());

  const auto refused = [&](const Json& request, const std::string& param, const char* part) {
    const auto result = server.post("/v1/chat/completions", request);
    ASSERT_TRUE(result);
    EXPECT_EQ(result->status, 400);
    const Json error = Json::parse(result->body).at("error");
    EXPECT_EQ(error.at("param"), param);
    EXPECT_NE(error.at("message").get<std::string>().find(part), std::string::npos)
        << error.at("message");
  };
  refused(chat_body("no", 2), "messages", "not that");
  body["chat_template_kwargs"] = 5;
  refused(body, "chat_template_kwargs", "must be an object");
  body["chat_template_kwargs"] = {{"messages", Json::array()}};
  refused(body, "chat_template_kwargs", "cannot set messages");
}

TEST(HttpServer, CompletesWhereTheTemplateIsRefused) {
  const TemporaryDirectory directory;
  write_file(directory / "chat_template.jinja", "{{ messages | shuffle }}");
  HttpOptions http;
  http.chat_format = ChatFormat::load(directory.path());
  EXPECT_FALSE(http.chat_format.chat_template.has_value());
  const TestServer server(http);
  const auto result = server.post("/v1/chat/completions", chat_body("Hi", 2));
  ASSERT_TRUE(result);
  EXPECT_EQ(result->status, 400);
  EXPECT_NE(result->body.find("shuffle"), std::string::npos) << result->body;
  EXPECT_EQ(server.posted("/v1/completions", completion_body("ROMEO:", 3))
                .at("usage")
                .at("completion_tokens"),
            3);
}

TEST(ChatFormat, IsPlainForAModelWithoutATemplateUnlessAFileIsGiven) {
  const ChatFormat plain = ChatFormat::load(kModel);
  ASSERT_TRUE(plain.plain);
  const std::vector<ChatMessage> messages = {
      {"system", "S"}, {"user", "A"}, {"assistant", "B"}, {"user", "C"}};
  EXPECT_EQ(plain.chat_template->render(messages),
            "<｜begin▁of▁sentence｜>S\n\nUser: A\n\nAssistant: B<｜end▁of▁sentence｜>User: C\n\n"
            "Assistant:");
  const TemporaryDirectory directory;
  const auto file = write_file(directory / "own.jinja", "{{ bos_token }}{{ messages[1].content }}");
  const ChatFormat given = ChatFormat::load(kModel, file.string());
  EXPECT_FALSE(given.plain);
  EXPECT_EQ(given.chat_template->render(messages), "<｜begin▁of▁sentence｜>A");
  write_file(file, "{% bogus %}");
  EXPECT_TRUE(fails_naming([&] { ChatFormat::load(kModel, file.string()); }, {"own.jinja"}));
}

}  // namespace
}  // namespace mla::test
