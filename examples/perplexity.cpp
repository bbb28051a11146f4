// mla-perplexity MODEL_DIR FILE: how well a model predicts a text, in nats a token. The text is cut
// into windows of 256 tokens, each scored alone: BOS and its first 255 tokens predict all 256.

#include <unistd.h>

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <mla/model/decoder_model.hpp>
#include <mla/model/decoder_state.hpp>
#include <mla/text/tokenizer.hpp>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "programs/command_line.hpp"
#include "programs/files.hpp"
#include "programs/model_options.hpp"
#include "programs/processors.hpp"
#include "programs/progress.hpp"
#include "programs/run_program.hpp"
#include "programs/token_ids.hpp"

namespace {

using mla::Index;
using mla::RowMajorMatrix;
using mla::TokenId;

constexpr const char* kName = "mla-perplexity";
std::string usage() {
  return "usage: mla-perplexity MODEL_DIR FILE | --ids-from IDS\n"
         "  FILE                    a text, - for standard input; read as one string, without BOS\n"
         "  --ids-from IDS          token ids in place of a text: a file of numbers, or a tensor\n"
         "                          (I32, I64) as goldens.safetensors:validation.input_ids\n"
         "  --tokens N              only the first N tokens, and of them whole windows\n"
         "  --window N              tokens per window (256, or the model's context if shorter)\n" +
         mla::programs::model_usage() +
         "  --version               print the version, and nothing else\n"
         "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n";
}

struct Options {
  mla::programs::ModelOptions model;
  std::optional<std::string> file;
  std::optional<mla::programs::TokenIdSource> ids_from;
  std::optional<Index> tokens, window;
};

std::optional<Index> positive(const mla::programs::CommandLine& line, const char* name) {
  if (!line.has(name)) return std::nullopt;
  return line.number(name, Index{0}, Index{1});
}

Options parse(const std::vector<std::string>& words) {
  const auto names = mla::programs::with_model_options({"--ids-from", "--tokens", "--window"});
  const mla::programs::CommandLine line(words, names, {});
  Options options;
  if (const auto source = line.text("--ids-from"))
    options.ids_from = mla::programs::parse_token_id_source(*source);
  const std::size_t wanted = options.ids_from ? 1 : 2;
  mla::require(line.rest().size() == wanted, "MODEL_DIR and either FILE or --ids-from are needed");
  options.model = mla::programs::parse_model_options(line, line.rest()[0]);
  if (!options.ids_from) options.file = line.rest()[1];
  options.tokens = positive(line, "--tokens");
  options.window = positive(line, "--window");
  return options;
}

struct Text {
  TokenId bos;
  std::vector<TokenId> tokens;
};

Text read_text(const Options& options, const mla::ModelConfig& config) {
  std::optional<TokenId> bos = config.bos_token_id;
  std::vector<TokenId> tokens;
  if (options.ids_from) {
    tokens = mla::programs::read_token_ids(*options.ids_from);
  } else {
    const auto tokenizer = mla::programs::load_tokenizer(options.model.directory, config);
    if (tokenizer.bos_id()) bos = tokenizer.bos_id();
    const std::string text = mla::programs::read_file(*options.file);
    try {
      tokens = tokenizer.encode(text, false);
    } catch (const std::invalid_argument& error) {
      mla::throw_runtime(*options.file, ": ", error.what());
    }
  }
  if (!bos) mla::throw_runtime(options.model.directory, ": the model has no bos_token_id");
  if (options.tokens && *options.tokens < std::ssize(tokens))
    tokens.resize(static_cast<std::size_t>(*options.tokens));
  return {*bos, std::move(tokens)};
}

// Nats of `token` by logits [vocab_size].
double surprise(const Eigen::Ref<const Eigen::RowVectorXf>& logits, TokenId token) {
  const double peak = static_cast<double>(logits.maxCoeff());
  const double sum = (logits.cast<double>().array() - peak).exp().sum();
  return peak + std::log(sum) - static_cast<double>(logits(token));
}

// Scores windows with the same memory.
class Scorer {
 public:
  Scorer(const mla::DecoderModel& model, const Options& options, TokenId bos, Index window)
      : model_(model),
        machine_(options.model),
        mode_(options.model.mode),
        state_(model.config(), options.model.cache),
        input_(static_cast<std::size_t>(window), bos),
        hidden_(window, model.hidden_size()),
        logits_(std::min(window, kRows), model.vocab_size()) {
    state_.reserve(window);
  }

  // The sum of nats over `window`.
  double score(std::span<const TokenId> window) {
    std::copy(window.begin(), window.end() - 1, input_.begin() + 1);
    state_.clear();
    model_.forward_hidden(input_, state_, hidden_, machine_.context(), {.mode = mode_});
    double sum = 0.0;
    for (Index first = 0; first < hidden_.rows(); first += kRows) {
      const Index rows = std::min(kRows, hidden_.rows() - first);
      model_.head(hidden_.middleRows(first, rows), logits_.topRows(rows), machine_.context());
      for (Index t = 0; t < rows; ++t)
        sum += surprise(logits_.row(t), window[static_cast<std::size_t>(first + t)]);
    }
    return sum;
  }

 private:
  static constexpr Index kRows = 32;  // logits at a time: a vocabulary may be large

  const mla::DecoderModel& model_;
  mla::programs::Machine machine_;
  mla::AttentionForm mode_;
  mla::DecoderState state_;
  std::vector<TokenId> input_;  // [window] BOS first
  RowMajorMatrix hidden_;       // [window, hidden_size]
  RowMajorMatrix logits_;       // [kRows, vocab_size]
};

double score_all(const Options& options, const mla::DecoderModel& model, const Text& text,
                 Index window, Index windows) {
  Scorer scorer(model, options, text.bos, window);
  mla::programs::ProgressBar progress("scoring");
  double sum = 0.0;
  for (Index w = 0; w < windows; ++w) {
    sum += scorer.score(
        std::span(text.tokens)
            .subspan(static_cast<std::size_t>(w * window), static_cast<std::size_t>(window)));
    progress.show((w + 1) * window, windows * window);
  }
  return sum;
}

void check(const Text& text, const mla::ModelConfig& config, Index window) {
  mla::programs::check_usage([&] {
    mla::require(window <= config.max_position_embeddings, "--window ", window,
                 " is longer than the context of the model, ", config.max_position_embeddings);
  });
  mla::require(std::ssize(text.tokens) >= window, "the text has ", text.tokens.size(),
               " tokens, fewer than a window of ", window);
  for (const TokenId token : text.tokens)
    mla::require(token >= 0 && token < config.vocab_size, "token ", token,
                 " of the text is not in the vocabulary of ", config.vocab_size);
}

void run(Options options) {
  const mla::DecoderModel model = mla::programs::load_model(options.model);
  if (options.model.threads == 0)
    options.model.threads = mla::programs::default_threads(model.hidden_size());
  const Text text = read_text(options, model.config());
  const Index window =
      options.window.value_or(std::min<Index>(256, model.max_position_embeddings()));
  check(text, model.config(), window);
  const Index windows = std::ssize(text.tokens) / window;
  mla::programs::complain(kName, describe(options.model));
  const auto start = std::chrono::steady_clock::now();
  const double sum = score_all(options, model, text, window, windows);
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  const double tokens = static_cast<double>(windows * window), loss = sum / tokens;
  std::array<char, 160> line{};
  std::snprintf(line.data(), line.size(),
                "%.6f nats a token, perplexity %.4f, %td token%s in %td window%s of %td, "
                "%.0f tokens/s\n",
                loss, std::exp(loss), windows * window, windows * window == 1 ? "" : "s", windows,
                windows == 1 ? "" : "s", window, tokens / time.count());
  mla::programs::write_output(line.data());
}

}  // namespace

int main(int argc, char** argv) {
  return mla::programs::run_program(kName, usage(), argc, argv, parse, run);
}
