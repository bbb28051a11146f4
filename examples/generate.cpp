// mla-generate MODEL_DIR: continues a text, or answers the turns of a chat, straight from the files
// of a model as they were downloaded. See docs/generate.md.

#include <unistd.h>

#include <array>
#include <cstdio>
#include <iostream>
#include <mla/model/decoder_model.hpp>
#include <mla/model/decoder_state.hpp>
#include <mla/model/generate.hpp>
#include <mla/model/sampler.hpp>
#include <mla/text/streaming_decoder.hpp>
#include <mla/text/tokenizer.hpp>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "programs/chat.hpp"
#include "programs/command_line.hpp"
#include "programs/files.hpp"
#include "programs/model_options.hpp"
#include "programs/processors.hpp"
#include "programs/progress.hpp"
#include "programs/run_program.hpp"
#include "programs/token_ids.hpp"

namespace {

using mla::Index;
using mla::TokenId;

constexpr const char* kName = "mla-generate";
std::string usage() {
  return "usage: mla-generate MODEL_DIR --prompt TEXT | --prompt-file FILE | --prompt-ids 1,2,3 | "
         "--chat\n"
         "  --prompt-file FILE      the text in FILE, - for standard input\n"
         "  --prompt-ids IDS        token ids as they are: no BOS is added\n"
         "  --chat                  answers each line of standard input, by the model's chat "
         "template\n"
         "  --system TEXT           of a chat: what comes before its turns\n"
         "  --thinking on|off       of a chat: enable_thinking of the template, where it has that\n"
         "  --max-tokens N          at most N new tokens (128; of a chat: per answer)\n"
         "  --temperature T         0: always the most likely token. Default 0, but 1 with one of "
         "these:\n"
         "  --top-k N               only the N most likely tokens (0: all)\n"
         "  --top-p P               only the fewest most likely tokens that reach P together (1)\n"
         "  --min-p P               only tokens at least P times as likely as the best (0)\n"
         "  --repetition-penalty R  above 1: tokens of the text so far are less likely (1)\n"
         "  --seed N                another sample (0); the same seed gives the same text\n"
         "  --window N              each token sees the first ones and the last N only: the text "
         "goes "
         "on for ever\n"
         "  --keep N                how many first ones (4)\n"
         "  --speculative           draft by multi-token prediction; greedy text stays the same\n" +
         mla::programs::model_usage() +
         "  --ids                   print token ids, one a line, in place of text\n"
         "  --stats                 print speed, cache size and accepted drafts to standard error\n"
         "  --version               print the version, and nothing else\n"
         "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n";
}

struct Options {
  mla::programs::ModelOptions model;
  std::optional<std::string> prompt, prompt_file;
  std::optional<std::vector<TokenId>> prompt_ids;
  Index max_tokens = 128;
  mla::SamplerOptions sampler;
  mla::SlidingWindow window;
  bool speculative = false, ids = false, stats = false, chat = false;
  std::optional<std::string> system, thinking;
};

mla::SamplerOptions parse_sampler(const mla::programs::CommandLine& line) {
  const bool samples = line.has("--top-k") || line.has("--top-p") || line.has("--min-p");
  mla::SamplerOptions options;
  options.temperature = line.number("--temperature", samples ? 1.0 : 0.0);
  options.top_k = line.number("--top-k", options.top_k, Index{0});
  options.top_p = line.number("--top-p", options.top_p);
  options.min_p = line.number("--min-p", options.min_p);
  options.repetition_penalty = line.number("--repetition-penalty", options.repetition_penalty);
  options.seed = line.number("--seed", options.seed);
  options.validate();
  return options;
}

void parse_chat(const mla::programs::CommandLine& line, Options& options) {
  options.system = line.text("--system");
  options.thinking = line.text("--thinking");
  mla::require(!options.thinking || *options.thinking == "on" || *options.thinking == "off",
               "--thinking must be on or off, got ", options.thinking.value_or(""));
  for (const char* option : {"--system", "--thinking"})
    mla::require(options.chat || !line.text(option), option, " is for --chat");
  mla::require(!options.chat || !line.has("--ids"), "--ids is not for --chat");
}

Options parse(const std::vector<std::string>& words) {
  const auto names = mla::programs::with_model_options(
      {"--prompt", "--prompt-file", "--prompt-ids", "--max-tokens", "--temperature", "--top-k",
       "--top-p", "--min-p", "--repetition-penalty", "--seed", "--window", "--keep", "--system",
       "--thinking"});
  constexpr std::array<std::string_view, 4> kFlags = {"--speculative", "--ids", "--stats",
                                                      "--chat"};
  const mla::programs::CommandLine line(words, names, kFlags);
  mla::require(line.rest().size() == 1, "one MODEL_DIR is needed, got ", line.rest().size());
  Options options;
  options.model = mla::programs::parse_model_options(line, line.rest()[0]);
  options.prompt = line.text("--prompt");
  options.prompt_file = line.text("--prompt-file");
  if (const auto ids = line.text("--prompt-ids")) {
    options.prompt_ids = mla::programs::parse_token_ids(*ids, "--prompt-ids");
    mla::require(!options.prompt_ids->empty(), "--prompt-ids has no ids");
  }
  options.chat = line.has("--chat");
  const int prompts = options.prompt.has_value() + options.prompt_file.has_value() +
                      options.prompt_ids.has_value() + options.chat;
  mla::require(prompts == 1,
               "one of --prompt, --prompt-file, --prompt-ids and --chat is needed, got ", prompts);
  parse_chat(line, options);
  options.max_tokens = line.number("--max-tokens", options.max_tokens, Index{0});
  options.sampler = parse_sampler(line);
  options.window.rows = line.number("--window", Index{0}, Index{0});
  mla::require(options.window || !line.has("--keep"), "--keep needs --window");
  if (options.window) options.window.keep = line.number("--keep", Index{4}, Index{0});
  mla::require(!options.chat || !options.window, "--window is not for --chat");
  options.speculative = line.has("--speculative");
  options.ids = line.has("--ids");
  options.stats = line.has("--stats");
  return options;
}

// Writes tokens as they come, as ids or as whole characters.
class Writer {
 public:
  // Without a tokenizer: ids.
  explicit Writer(const mla::Tokenizer* tokenizer) {
    if (tokenizer) decoder_.emplace(*tokenizer);
  }

  void push(TokenId token) {
    mla::programs::write_output(decoder_ ? decoder_->push(token) : std::to_string(token) + "\n");
  }

  // A terminal's next line is not for the prompt of the shell.
  void finish() {
    if (!decoder_) return;
    mla::programs::write_output(decoder_->finish());
    if (::isatty(STDOUT_FILENO) == 1) mla::programs::write_output("\n");
  }

 private:
  std::optional<mla::StreamingDecoder> decoder_;
};

std::vector<TokenId> read_prompt(const Options& options, const mla::Tokenizer* tokenizer) {
  if (options.prompt_ids) return *options.prompt_ids;
  if (options.prompt) return tokenizer->encode(*options.prompt);
  const std::string text = mla::programs::read_file(*options.prompt_file);
  try {
    return tokenizer->encode(text);
  } catch (const std::invalid_argument& error) {
    mla::throw_runtime(*options.prompt_file, ": ", error.what());
  }
}

void check_prompt(const std::vector<TokenId>& prompt, const mla::ModelConfig& config,
                  const mla::SlidingWindow& window) {
  mla::require(!prompt.empty(), "the prompt is empty");
  mla::require_window(window, config.max_position_embeddings);
  mla::require(window || std::ssize(prompt) <= config.max_position_embeddings, "the prompt has ",
               prompt.size(), " tokens, but the context of the model only ",
               config.max_position_embeddings);
  for (const TokenId token : prompt)
    mla::require(token >= 0 && token < config.vocab_size, "token ", token,
                 " of the prompt is not in the vocabulary of ", config.vocab_size);
}

// If every head's key and value of the same tokens were cached.
double multi_head_bytes(const mla::DecoderState& state, const mla::AttentionConfig& config) {
  const Index predicted = state.prediction() ? state.prediction()->size() : 0;
  const Index head = config.qk_head_dim() + config.v_head_dim;
  return static_cast<double>((state.layers() * state.size() + predicted) *
                             config.num_attention_heads *
                             mla::row_layout(state.format(), head, 0).bytes);
}

void print_stats(const mla::GenerationResult& result, const mla::DecoderState& state,
                 const mla::AttentionConfig& config) {
  const auto per_second = [](Index tokens, double seconds) {
    return seconds > 0.0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  const auto print = [&](const char* name, Index tokens, double seconds) {
    std::fprintf(stderr, "%s %6td tokens  %9.1f ms  %9.1f tokens/s\n", name, tokens, 1e3 * seconds,
                 per_second(tokens, seconds));
  };
  print("prefill", result.prompt_tokens, result.prefill_seconds);
  print("decode ", result.generated_tokens, result.decode_seconds);
  const double latent = static_cast<double>(state.bytes_used());
  const double multi_head = multi_head_bytes(state, config);
  std::fprintf(stderr, "cache   %6td tokens  MLA %.0f bytes  MHA %.0f bytes  %.1f times, %s\n",
               state.size(), latent, multi_head, latent > 0.0 ? multi_head / latent : 0.0,
               std::string(name_of(state.format())).c_str());
  if (result.drafted_tokens > 0)
    std::fprintf(stderr, "drafts  %6td tokens  %td accepted, %.1f %%\n", result.drafted_tokens,
                 result.accepted_tokens, 100.0 * result.acceptance());
}

// Continues the text in `state`; its new tokens go to `writer` and to the end of `seen`.
void generate(const Options& options, const mla::DecoderModel& model,
              std::span<const TokenId> prompt, mla::DecoderState& state, mla::Sampler& sampler,
              mla::Context& context, Writer& writer, std::vector<TokenId>& seen) {
  mla::programs::ProgressBar progress("reading the prompt");
  mla::GenerationOptions generation;
  generation.max_tokens = options.max_tokens;
  generation.speculative = options.speculative;
  generation.window = options.window;
  generation.prefill_mode = generation.decode_mode = options.model.mode;
  generation.chunk_tokens = 64;  // often enough to see progress
  generation.on_prefill = [&](Index done, Index all) {
    done < all ? progress.show(done, all) : progress.erase();
    return true;
  };
  generation.on_token = [&](TokenId token) {
    writer.push(token);
    seen.push_back(token);
    return true;
  };
  const auto result = mla::generate(model, state, prompt, sampler, context, generation);
  writer.finish();
  if (result.stop == mla::StopReason::context_full)
    mla::programs::complain(
        kName,
        "the context of " + std::to_string(model.max_position_embeddings()) + " tokens is full");
  // The text ends in no line break of its own, and both may go to the same place.
  if (options.stats && !options.ids && ::isatty(STDOUT_FILENO) == 0) std::fputc('\n', stderr);
  if (options.stats) print_stats(result, state, model.config().attention);
}

// Answers one line after the other.
void chat(const Options& options, const mla::DecoderModel& model, const mla::Tokenizer& tokenizer) {
  mla::ChatOptions variables;
  if (options.thinking) {
    const char* const value = *options.thinking == "on" ? "true" : "false";
    variables.variables = {{"enable_thinking", value}, {"thinking", value}};
  }
  mla::programs::Chat turns(options.model.directory, tokenizer, variables);
  if (options.system) turns.add("system", *options.system);
  mla::programs::Machine machine(options.model);
  mla::DecoderState state(model.config(), options.model.cache);
  mla::Sampler sampler(model.vocab_size(), options.sampler);
  mla::programs::complain(kName, describe(options.model));
  std::vector<TokenId> seen;
  for (std::string line; std::getline(std::cin, line);) {
    turns.add("user", line);
    const std::vector<TokenId> prompt = turns.continue_from(state, seen);
    seen.resize(static_cast<std::size_t>(state.size()));
    seen.insert(seen.end(), prompt.begin(), prompt.end());
    const auto answer = std::ssize(seen);
    Writer writer(&tokenizer);
    generate(options, model, prompt, state, sampler, machine.context(), writer, seen);
    if (::isatty(STDOUT_FILENO) == 0) mla::programs::write_output("\n");
    turns.add("assistant",
              tokenizer.decode(std::span(seen).subspan(static_cast<std::size_t>(answer))));
  }
}

void run(Options options) {
  const mla::DecoderModel model = mla::programs::load_model(options.model);
  if (options.model.threads == 0)
    options.model.threads = mla::programs::default_threads(model.hidden_size());
  std::optional<mla::Tokenizer> tokenizer;
  if (!options.prompt_ids || !options.ids)
    tokenizer = mla::programs::load_tokenizer(options.model.directory, model.config());
  if (options.chat) return chat(options, model, *tokenizer);
  const auto prompt = read_prompt(options, tokenizer ? &*tokenizer : nullptr);
  check_prompt(prompt, model.config(), options.window);
  mla::programs::complain(kName, describe(options.model));
  mla::programs::Machine machine(options.model);
  mla::DecoderState state(model.config(), options.model.cache);
  mla::Sampler sampler(model.vocab_size(), options.sampler);
  Writer writer(options.ids ? nullptr : &*tokenizer);
  std::vector<TokenId> seen;
  generate(options, model, prompt, state, sampler, machine.context(), writer, seen);
}

}  // namespace

int main(int argc, char** argv) {
  return mla::programs::run_program(kName, usage(), argc, argv, parse, run);
}
