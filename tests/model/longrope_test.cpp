// LongRoPE's factors are chosen once for a text, by the context that its state was made for.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "mla/model/decoder_model.hpp"
#include "mla/model/decoder_snapshot.hpp"
#include "model/synthetic_checkpoint.hpp"
#include "support/compare.hpp"
#include "support/message_of.hpp"

namespace mla::test {
namespace {

constexpr Index kOriginal = 48;  // of the model below

const DecoderModel& longrope_model() {
  static const DecoderModel model =
      DecoderModel::load(std::filesystem::path(MLA_TEST_DATA) / "models" / "minicpm3-longrope");
  return model;
}

RowMajorMatrix logits_of(const std::vector<TokenId>& tokens, Index context_tokens,
                         const std::vector<Index>& ends) {
  DecoderState state(longrope_model().config(), CacheFormat::float32, context_tokens);
  RowMajorMatrix logits(std::ssize(tokens), longrope_model().vocab_size());
  Context context;
  Index first = 0;
  for (const Index end : ends) {
    auto rows = logits.middleRows(first, end - first);
    longrope_model().forward(std::span(tokens).subspan(static_cast<std::size_t>(first),
                                                       static_cast<std::size_t>(end - first)),
                             state, rows, context, {.mode = AttentionForm::absorbed});
    first = end;
  }
  return logits;
}

// A text that crosses the original length is one of long factors from its first token on, however
// it is cut into calls.
TEST(Longrope, CutsIntoCallsChangeNoBitOnEitherSideOfTheOriginalLength) {
  const auto tokens = random_tokens(70, longrope_model().vocab_size(), 5);
  EXPECT_TRUE(same_bits(logits_of(tokens, 0, {70}), logits_of(tokens, 0, {1, 40, 48, 49, 50, 70})));
  const std::vector<TokenId> few(tokens.begin(), tokens.begin() + kOriginal);
  const RowMajorMatrix brief = logits_of(few, kOriginal, {kOriginal});
  EXPECT_TRUE(same_bits(brief, logits_of(few, kOriginal, {7, kOriginal})));
  const RowMajorMatrix lengthy = logits_of(few, kOriginal + 1, {kOriginal});
  EXPECT_TRUE(same_bits(lengthy, logits_of(tokens, 0, {70}).topRows(kOriginal)));
  EXPECT_GT((brief - lengthy).cwiseAbs().maxCoeff(), 0.1f);
}

TEST(Longrope, AShortAndALongTextGoTogetherInOneCall) {
  const auto tokens = random_tokens(30, longrope_model().vocab_size(), 6);
  DecoderState brief(longrope_model().config(), CacheFormat::float32, kOriginal);
  DecoderState lengthy(longrope_model().config());
  RowMajorMatrix logits(60, longrope_model().vocab_size());
  Context context;
  const std::vector<TextStep> batch = {{&brief, tokens, 30}, {&lengthy, tokens, 30}};
  longrope_model().forward(batch, logits, context, {.mode = AttentionForm::absorbed});
  EXPECT_TRUE(same_bits(RowMajorMatrix(logits.topRows(30)), logits_of(tokens, kOriginal, {30})));
  EXPECT_TRUE(same_bits(RowMajorMatrix(logits.bottomRows(30)), logits_of(tokens, 0, {30})));
}

TEST(Longrope, ATextCannotOutgrowItsContext) {
  const auto tokens = random_tokens(kOriginal + 1, longrope_model().vocab_size(), 7);
  EXPECT_EQ(message_of([&] {
              logits_of(tokens, kOriginal, {kOriginal, kOriginal + 1});
            }),
            "a text of 48 + 1 tokens is longer than the context that its state was made for, 48");
  const ModelConfig& config = longrope_model().config();
  EXPECT_EQ(message_of([&] { DecoderState(config, CacheFormat::float32, 193); }),
            "context_tokens must be between 1 and max_position_embeddings 192, got 193");
}

TEST(Longrope, ASnapshotOfTheOtherFactorsIsRefused) {
  const TemporaryDirectory directory;
  const ModelConfig& config = longrope_model().config();
  DecoderState brief(config, CacheFormat::float32, kOriginal), lengthy(config);
  const auto tokens = random_tokens(9, longrope_model().vocab_size(), 8);
  longrope_model().forward(tokens, brief);
  save_snapshot(directory / "state", config, brief);
  EXPECT_TRUE(fails_naming([&] { restore_snapshot(directory / "state", config, lengthy); },
                           {"rope_scaling.long_context is false in the snapshot, but true here"}));
  DecoderState again(config, CacheFormat::float32, kOriginal - 1);
  restore_snapshot(directory / "state", config, again);
  EXPECT_EQ(again.size(), 9);
}

}  // namespace
}  // namespace mla::test
