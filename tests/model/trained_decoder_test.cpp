#include "model/trained_decoder.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "support/compare.hpp"

// The trained models in models/ against their goldens.

namespace mla::test {
namespace {

void expect_close(const RowMajorMatrix& actual, const RowMajorMatrix& expected, float tolerance,
                  const std::string& what) {
  ASSERT_EQ(actual.rows(), expected.rows()) << what;
  ASSERT_EQ(actual.cols(), expected.cols()) << what;
  const float difference = (actual - expected).cwiseAbs().maxCoeff();
  EXPECT_LE(difference, tolerance) << what;
  ::testing::Test::RecordProperty("largest_difference_" + what, std::to_string(difference));
}

// Logits of the last n tokens of a prompt, with a float32 cache.
RowMajorMatrix last_logits(const DecoderModel& model, std::span<const TokenId> tokens, Index n,
                           const DecoderOptions& options) {
  DecoderState<float> state(model.config());
  RowMajorMatrix logits(n, model.vocab_size());
  Context context;
  model.forward(tokens, state, logits, context, options);
  return logits;
}

TEST(TrainedDecoder, LogitsAreTheGoldens) {
  const Goldens goldens(kModel);
  for (const Mode mode : {Mode::automatic, Mode::absorbed, Mode::decompressed}) {
    for (const std::string prompt : kPrompts) {
      const bool all = goldens.contains(prompt + ".logits");
      const RowMajorMatrix expected = goldens.matrix(prompt + (all ? ".logits" : ".logits_last16"));
      const RowMajorMatrix logits =
          last_logits(trained_model(), goldens.prompt(prompt), expected.rows(), {.mode = mode});
      expect_close(logits, expected, kLogitTolerance,
                   prompt + "_mode" + std::to_string(static_cast<int>(mode)));
    }
  }
}

}  // namespace
}  // namespace mla::test
