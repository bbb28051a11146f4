// mla-quantise MODEL_DIR NEW_DIR: a model with weights of 8 or 4 bits, in the layouts of published
// ones (compressed-tensors), so that the next start only maps it. See docs/weights.md.

#include <cstdio>
#include <mla/io/save_checkpoint.hpp>
#include <mla/model/decoder_model.hpp>
#include <string>
#include <vector>

#include "programs/command_line.hpp"
#include "programs/model_options.hpp"
#include "programs/progress.hpp"
#include "programs/run_program.hpp"

namespace {

constexpr const char* kName = "mla-quantise";
std::string usage() {
  return "usage: mla-quantise MODEL_DIR NEW_DIR --weights int8|int4\n"
         "  NEW_DIR                 must not exist; appears when it is complete\n"
         "  --weights FORMAT        int8: a scale per row. int4: one per 32 inputs, the head int8\n"
         "  --threads N             default: all cores\n"
         "  --version               print the version, and nothing else\n"
         "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n";
}

struct Options {
  std::string from, to;
  mla::WeightFormat weights = mla::WeightFormat::int8;
  int threads = 0;
};

Options parse(const std::vector<std::string>& words) {
  constexpr std::string_view kNames[] = {"--weights", "--threads"};
  const mla::programs::CommandLine line(words, kNames, {});
  mla::require(line.rest().size() == 2, "MODEL_DIR and NEW_DIR are needed");
  const auto weights = line.text("--weights");
  mla::require(weights.has_value(), "--weights is needed: int8 or int4");
  return {line.rest()[0], line.rest()[1], mla::programs::parse_quantised(*weights),
          line.number("--threads", 0, 1)};
}

void run(const Options& options) {
  mla::programs::require_model_directory(options.from);
  mla::detail::require_new(options.to);
  // Loaded once: what no model can use is found before hours of work.
  const mla::ModelConfig config = mla::load_model_config(options.from);
  mla::load_decoder_weights(mla::Checkpoint(options.from), config);
  const mla::Checkpoint made =
      mla::programs::load_quantised(options.from, options.weights, options.threads);
  const mla::programs::ProgressClock progress("writing " + options.to);
  mla::save_checkpoint(made, options.to);
}

}  // namespace

int main(int argc, char** argv) {
  return mla::programs::run_program(kName, usage(), argc, argv, parse, run);
}
