// mla-inspect MODEL_DIR: what a checkpoint is, whether it runs, and what memory it takes, from its
// config.json and the headers of its files alone. See docs/models.md.

#include <exception>
#include <filesystem>
#include <mla/core/error.hpp>
#include <mla/model/model_report.hpp>
#include <mla/text/chat_template.hpp>
#include <mla/text/tokenizer.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "programs/command_line.hpp"
#include "programs/files.hpp"
#include "programs/model_options.hpp"
#include "programs/model_report_text.hpp"
#include "programs/run_program.hpp"

namespace {

using mla::Index;

constexpr const char* kName = "mla-inspect";
std::string usage() {
  return "usage: mla-inspect MODEL_DIR\n"
         "Reads config.json and the headers of the files, not the weights.\n"
         "  --context N             memory for a text of N tokens (all that the model may have)\n"
         "  --tensors               a line for each kind of tensor, too\n"
         "  --json                  all of it as JSON\n"
         "  --version               print the version, and nothing else\n"
         "Exit status: 0 the model runs, 1 it is refused, which the report gives the reasons of, "
         "or there is no report, 2 wrong usage.\n";
}

struct Options {
  std::string directory;
  Index context = 0;  // 0: the model's
  bool tensors = false, json = false;
};

Options parse(const std::vector<std::string>& words) {
  constexpr std::string_view kNames[] = {"--context"};
  constexpr std::string_view kFlags[] = {"--tensors", "--json"};
  const mla::programs::CommandLine line(words, kNames, kFlags);
  mla::require(line.rest().size() == 1, "one MODEL_DIR is needed, got ", line.rest().size());
  const Index context = line.number("--context", Index{0}, Index{1});
  constexpr Index kMost = Index{1} << 32;
  mla::require(context <= kMost, "--context must be at most 2^32, got ", context);
  return {line.rest()[0], context, line.has("--tensors"), line.has("--json")};
}

mla::programs::TextReport look_at_texts(const std::string& directory,
                                        const mla::ModelReport& report) {
  mla::programs::TextReport texts;
  try {
    const mla::Tokenizer tokenizer = report.config
                                         ? mla::programs::load_tokenizer(directory, *report.config)
                                         : mla::Tokenizer{std::filesystem::path(directory)};
    texts.tokenizer = std::to_string(tokenizer.vocab_size()) + " tokens";
  } catch (const std::exception& error) {
    texts.tokenizer = error.what();
  }
  try {
    texts.chat_template = mla::ChatTemplate::load(directory) ? "yes" : "none";
  } catch (const std::exception& error) {
    texts.chat_template = error.what();
  }
  return texts;
}

void run(const Options& options) {
  const mla::ModelReport report = mla::inspect_model(options.directory);
  const auto texts = look_at_texts(options.directory, report);
  const Index context = options.context > 0 ? options.context
                        : report.config     ? report.config->max_position_embeddings
                                            : 0;
  mla::programs::write_output(options.json ? json_of(report, texts, context).dump(2) + "\n"
                                           : text_of(report, texts, context, options.tensors));
  if (!report.runs()) throw std::runtime_error("refused: " + report.refusals.front());
}

}  // namespace

int main(int argc, char** argv) {
  return mla::programs::run_program(kName, usage(), argc, argv, parse, run);
}
