// mla-generate MODEL_DIR: continues a text, or answers the turns of a chat, straight from the files
// of a model as they were downloaded. See docs/generate.md.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <iostream>
#include <mla/model/decoder_model.hpp>
#include <mla/model/decoder_state.hpp>
#include <mla/model/draft_lookup.hpp>
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
#include "programs/statistics.hpp"
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
         "  --speculative           draft by multi-token prediction; greedy text stays the same\n"
         "  --lookup N              draft what followed the last N tokens where they were before, "
         "if they were\n"
         "  --drafts N              at most N drafts at a time (1; with --lookup alone 4)\n" +
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
  Index lookup = 0, drafts = 1;
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

void parse_drafts(const mla::programs::CommandLine& line, Options& options) {
  options.speculative = line.has("--speculative");
  options.lookup = line.number("--lookup", Index{0}, Index{1});
  mla::require(options.lookup <= mla::DraftLookup::kLongestMatch, "--lookup must be at most ",
               mla::DraftLookup::kLongestMatch, ", got ", options.lookup);
  mla::require(options.speculative || options.lookup > 0 || !line.has("--drafts"),
               "--drafts needs --speculative or --lookup");
  options.drafts = line.number("--drafts", Index{options.speculative ? 1 : 4}, Index{1});
  mla::require(options.drafts <= mla::GenerationOptions::kMostDrafts, "--drafts must be at most ",
               mla::GenerationOptions::kMostDrafts, ", got ", options.drafts);
}

Options parse(const std::vector<std::string>& words) {
  const auto names = mla::programs::with_model_options(
      {"--prompt", "--prompt-file", "--prompt-ids", "--max-tokens", "--temperature", "--top-k",
       "--top-p", "--min-p", "--repetition-penalty", "--seed", "--window", "--keep", "--system",
       "--thinking", "--lookup", "--drafts"});
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
  parse_drafts(line, options);
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

// Continues the text in `state`; its new tokens go to `writer` and to the end of `seen`.
void generate(const Options& options, const mla::DecoderModel& model,
              std::span<const TokenId> prompt, mla::DecoderState& state, mla::Sampler& sampler,
              mla::Context& context, Writer& writer, std::vector<TokenId>& seen) {
  mla::programs::ProgressBar progress("reading the prompt");
  mla::GenerationOptions generation;
  generation.max_tokens = options.max_tokens;
  generation.speculative = options.speculative;
  generation.lookup = options.lookup;
  generation.draft_tokens = options.drafts;
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
  const std::vector<mla::GenerationTask<mla::Sampler>> task = {
      {&state, prompt, &sampler, generation,
       std::span(seen).first(std::min(seen.size(), static_cast<std::size_t>(state.size())))}};
  const auto result = mla::generate(model, task, context).front();
  writer.finish();
  if (result.stop == mla::StopReason::context_full)
    mla::programs::complain(
        kName,
        "the context of " + std::to_string(model.max_position_embeddings()) + " tokens is full");
  // The text ends in no line break of its own, and both may go to the same place.
  if (options.stats && !options.ids && ::isatty(STDOUT_FILENO) == 0) std::fputc('\n', stderr);
  if (options.stats) mla::programs::print_statistics(result, state, model.config().attention);
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
