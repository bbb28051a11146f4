// mla-server MODEL_DIR: a model behind the API that clients already speak. See docs/server.md.

#include <pthread.h>
#include <signal.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <mla/model/decoder_model.hpp>
#include <mla/model/draft_lookup.hpp>
#include <mla/model/generation_options.hpp>
#include <mla/text/tokenizer.hpp>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "http_server.hpp"
#include "programs/command_line.hpp"
#include "programs/files.hpp"
#include "programs/model_options.hpp"
#include "programs/processors.hpp"
#include "programs/run_program.hpp"
#include "scheduler.hpp"

namespace {

using mla::Index;

constexpr const char* kName = "mla-server";

std::string usage() {
  return "usage: mla-server MODEL_DIR\n"
         "  --host HOST             address to listen on (127.0.0.1: this machine only)\n"
         "  --port N                0: any that is free (8080)\n"
         "  --api-key-file FILE     clients must send the key in FILE; also MLA_API_KEY in the "
         "environment\n"
         "  --model-name NAME       what clients call the model (the directory's name)\n"
         "  --chat-template FILE    in Jinja, in place of the model's own\n"
         "  --max-choices N         texts that are written at the same time (16)\n"
         "  --max-waiting N         prompts that may wait; more are refused with 429 (64)\n"
         "  --chunk-tokens N        of prompts that are read at a time, between the tokens of "
         "others (256)\n"
         "  --lookup N              draft what followed the last N tokens of a text where they "
         "were "
         "before (0: no drafts)\n"
         "  --drafts N              at most N drafts at a time (4)\n"
         "  --prefix-cache-mib N    kept of prompts for others that begin alike (1024; 0: none)\n"
         "  --max-body-bytes N      of a request (8388608)\n"
         "  --max-connections N     served at the same time (256)\n"
         "  --time-limit SECONDS    for an answer (600)\n"
         "  --io-limit SECONDS      for a client that neither sends nor reads (30)\n" +
         mla::programs::model_usage() +
         "  --version               print the version, and nothing else\n"
         "Ctrl-C or SIGTERM ends it. Exit status: 0 ended so, 1 failed, 2 wrong usage.\n";
}

struct Options {
  mla::programs::ModelOptions model;
  mla::server::SchedulerOptions scheduler;
  mla::server::HttpOptions http;
  std::string chat_template;  // empty: the model's
};

// One line, without its end.
std::string read_key(const std::string& path) {
  std::string key = mla::programs::read_file(path);
  while (!key.empty() && (key.back() == '\n' || key.back() == '\r')) key.pop_back();
  if (key.empty() || key.find('\n') != key.npos)
    mla::throw_runtime(path, ": must have one line, the key");
  return key;
}

Options parse(const std::vector<std::string>& words) {
  const auto names = mla::programs::with_model_options(
      {"--host", "--port", "--api-key-file", "--model-name", "--chat-template", "--max-choices",
       "--lookup", "--drafts", "--max-waiting", "--chunk-tokens", "--prefix-cache-mib",
       "--max-body-bytes", "--max-connections", "--time-limit", "--io-limit"});
  const mla::programs::CommandLine line(words, names, {});
  mla::require(line.rest().size() == 1, "one MODEL_DIR is needed, got ", line.rest().size());
  Options options;
  options.model = mla::programs::parse_model_options(line, line.rest()[0]);
  options.http.host = line.text("--host").value_or(options.http.host);
  options.http.port = line.number("--port", options.http.port, 0);
  mla::require(options.http.port <= 65535, "--port must be at most 65535, got ", options.http.port);
  if (const char* const key = std::getenv("MLA_API_KEY")) options.http.api_key = key;
  if (const auto path = line.text("--api-key-file")) options.http.api_key = read_key(*path);
  const auto directory = std::filesystem::path(options.model.directory).lexically_normal();
  options.http.model =
      (directory.has_filename() ? directory : directory.parent_path()).filename().string();
  options.http.model = line.text("--model-name").value_or(options.http.model);
  options.chat_template = line.text("--chat-template").value_or("");
  auto& scheduler = options.scheduler;
  scheduler.max_choices = line.number("--max-choices", scheduler.max_choices, Index{1});
  scheduler.max_waiting = line.number("--max-waiting", scheduler.max_waiting, Index{1});
  scheduler.chunk_tokens = line.number("--chunk-tokens", scheduler.chunk_tokens, Index{1});
  scheduler.lookup = line.number("--lookup", scheduler.lookup, Index{0});
  mla::require(scheduler.lookup <= mla::DraftLookup::kLongestMatch, "--lookup must be at most ",
               mla::DraftLookup::kLongestMatch, ", got ", scheduler.lookup);
  mla::require(scheduler.lookup > 0 || !line.has("--drafts"), "--drafts needs --lookup");
  scheduler.draft_tokens = line.number("--drafts", scheduler.draft_tokens, Index{1});
  mla::require(scheduler.draft_tokens <= mla::GenerationOptions::kMostDrafts,
               "--drafts must be at most ", mla::GenerationOptions::kMostDrafts, ", got ",
               scheduler.draft_tokens);
  constexpr std::size_t kMib = 1 << 20;
  const auto mib = line.number("--prefix-cache-mib", std::size_t{1024});
  mla::require(mib <= (std::size_t{1} << 30), "--prefix-cache-mib must be at most 2^30, got ", mib);
  scheduler.prefix_cache_bytes = mib * kMib;
  scheduler.cache = options.model.cache;
  scheduler.mode = options.model.mode;
  auto& http = options.http;
  http.max_body_bytes = line.number("--max-body-bytes", http.max_body_bytes, std::size_t{1});
  http.max_connections = line.number("--max-connections", http.max_connections, std::size_t{1});
  mla::require(http.max_connections <= 10000, "--max-connections must be at most 10000, got ",
               http.max_connections);
  const auto seconds = [&](std::string_view name, std::chrono::seconds otherwise) {
    const long count = line.number<long>(name, otherwise.count(), 1);
    mla::require(count <= 1'000'000, name, " must be at most 1000000, got ", count);
    return std::chrono::seconds(count);
  };
  http.time_limit = seconds("--time-limit", http.time_limit);
  http.io_limit = seconds("--io-limit", http.io_limit);
  return options;
}

// Waits for Ctrl-C and SIGTERM, which all other threads leave to this one.
class Signals {
 public:
  Signals() {
    ::sigemptyset(&set_);
    ::sigaddset(&set_, SIGINT);
    ::sigaddset(&set_, SIGTERM);
    ::pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  }
  void wait() const noexcept {
    int signal = 0;
    ::sigwait(&set_, &signal);
  }

 private:
  sigset_t set_ = {};
};

void run(Options options) {
  const mla::DecoderModel model = mla::programs::load_model(options.model);
  const mla::Tokenizer tokenizer =
      mla::programs::load_tokenizer(options.model.directory, model.config());
  if (options.model.threads == 0)
    options.model.threads = mla::programs::default_threads(model.hidden_size());
  options.http.chat_format =
      mla::server::ChatFormat::load(options.model.directory, options.chat_template);
  const Signals signals;
  mla::programs::Machine machine(options.model);
  mla::server::Scheduler scheduler(model, tokenizer, machine.context(), options.scheduler);
  mla::server::HttpServer server(scheduler, tokenizer, model.max_position_embeddings(),
                                 options.http);
  mla::programs::complain(kName, describe(options.model));
  const mla::server::ChatFormat& chat = options.http.chat_format;
  if (chat.plain)
    mla::programs::complain(kName, "no chat template, so chats are plain: User: ... Assistant:");
  if (!chat.chat_template) mla::programs::complain(kName, "no chats: " + chat.refusal);
  mla::programs::complain(kName, options.http.model + " on http://" + options.http.host + ":" +
                                     std::to_string(server.port()));
  std::thread ending([&] {
    signals.wait();
    scheduler.stop();
    server.stop();
  });
  server.run();
  ending.join();
}

}  // namespace

int main(int argc, char** argv) {
  return mla::programs::run_program(kName, usage(), argc, argv, parse, run);
}
