// Everything that a caller can get wrong is refused with names and numbers, and changes nothing.
#include <gtest/gtest.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <vector>

#include "support/executors.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

// Two sequences of 3 and 2 cached tokens, about to compute 2 and 1 more.
class BadInput : public ::testing::Test {
 protected:
  BadInput() : layer_(small_config()), first_(layer_.config()), second_(layer_.config()) {
    run(layer_, layer_.input(3), first_, context_);
    run(layer_, layer_.input(2), second_, context_);
    x_ = layer_.input(3);
    out_ = RowMajorMatrix::Constant(3, x_.cols(), 7.0f);
    batch_ = {{&first_, 2}, {&second_, 1}};
  }

  // The call throws std::invalid_argument with `parts`; caches and output are as they were.
  void expect_refused(std::initializer_list<const char*> parts,
                      const ForwardOptions& options = {}) {
    const CacheContents first(first_), second(second_);
    const RowMajorMatrix out = out_;
    EXPECT_TRUE(refuses([&] { layer_.layer.forward(x_, batch_, out_, context_, options); }, parts));
    EXPECT_EQ(CacheContents(first_), first);
    EXPECT_EQ(CacheContents(second_), second);
    EXPECT_TRUE(same_bits(out_, out));
  }
  void expect_positions_refused(std::vector<Index> positions,
                                std::initializer_list<const char*> parts) {
    expect_refused(parts, {.position_ids = positions});
  }
  void expect_mask_refused(std::vector<std::uint8_t> mask,
                           std::initializer_list<const char*> parts) {
    expect_refused(parts, {.attention_mask = mask});
  }

  TestLayer layer_;
  LatentKVCache<float> first_, second_;
  std::vector<Sequence> batch_;
  RowMajorMatrix x_, out_;
  Context context_;
};

TEST_F(BadInput, IsNotWhatTheOtherTestsStartFrom) {
  const std::vector<Index> positions = {3, 8, 2};
  const std::vector<std::uint8_t> mask = {1, 0, 1};
  layer_.layer.forward(x_, batch_, out_, context_,
                       {.position_ids = positions, .attention_mask = mask});
  EXPECT_EQ(first_.size(), 4);
  EXPECT_EQ(second_.size(), 3);
}

TEST_F(BadInput, HiddenStatesOfAnotherSize) {
  x_ = RowMajorMatrix::Zero(3, 47);
  expect_refused({"x ", "hidden_size 48", "47"});
}

TEST_F(BadInput, OutputOfAnotherShape) {
  out_ = RowMajorMatrix::Zero(2, 48);
  expect_refused({"out ", "[3, 48]", "[2, 48]"});
  out_ = RowMajorMatrix::Zero(3, 49);
  expect_refused({"out ", "[3, 48]", "[3, 49]"});
}

TEST_F(BadInput, BatchThatHasMoreOrFewerTokensThanX) {
  batch_[1].tokens = 2;
  expect_refused({"batch", "4 tokens", "3 rows"});
  batch_[1].tokens = 0;
  expect_refused({"batch", "2 tokens", "3 rows"});
  batch_.clear();
  expect_refused({"batch", "0 tokens", "3 rows"});
}

TEST_F(BadInput, NegativeTokens) {
  batch_[0].tokens = 4;
  batch_[1].tokens = -1;
  expect_refused({"sequence 1", "-1 tokens"});
}

// Four times 2^62 is 0 in 64 bits: a sum would let such numbers pass.
TEST_F(BadInput, TokensWhoseSumCouldOverflow) {
  batch_[0].tokens = Index{1} << 62;
  expect_refused({"sequence 0", "4611686018427387904 tokens"});
}

TEST_F(BadInput, PositionsTooFarToRotateExactly) {
  expect_positions_refused({4, 5, std::numeric_limits<Index>::max()},
                           {"position_ids", "at most", "9223372036854775807"});
}

TEST_F(BadInput, RoomForANumberOfTokensThatCannotBe) {
  EXPECT_THROW(first_.reserve(-1000), std::invalid_argument);
  EXPECT_THROW(first_.reserve(std::numeric_limits<Index>::max()), std::invalid_argument);
}

TEST_F(BadInput, TheSameCacheTwice) {
  batch_[1].cache = &first_;
  expect_refused({"sequences 0 and 1", "same cache"});
}

TEST_F(BadInput, NoCache) {
  batch_[1].cache = nullptr;
  expect_refused({"sequence 1", "no cache"});
}

TEST_F(BadInput, CacheOfAnotherConfig) {
  AttentionConfig other = small_config();
  other.kv_lora_rank = 35;
  LatentKVCache<float> narrow(other);
  batch_[1].cache = &narrow;
  expect_refused({"sequence 1", "35 + 10", "36 + 10"});
  other = small_config();
  other.rope_key_per_head = true;
  LatentKVCache<float> wide(other);
  batch_[0].cache = &wide;
  batch_[1].cache = &second_;
  expect_refused({"sequence 0", "36 + 30", "36 + 10"});
}

// Rows as wide as this layer's, whose keys were turned by other angles.
TEST_F(BadInput, CacheOfALayerThatRotatesOtherwise) {
  const auto expect = [&](auto change, std::initializer_list<const char*> parts) {
    AttentionConfig other = small_config();
    change(other);
    LatentKVCache<float> cache(other);
    batch_[1].cache = &cache;
    expect_refused(parts);
  };
  expect([](auto& c) { c.rope_theta = 50000.0; },
         {"the cache of sequence 1 was made with rope_theta 50000, this layer has 1"});
  expect([](auto& c) { c.rope_interleave = false; },
         {"sequence 1", "rope_interleave false", "true"});
  expect([](auto& c) { c.rope_scaling = {.type = RopeScalingType::linear, .factor = 2.0}; },
         {"sequence 1", "rope_scaling.type linear", "none"});

  AttentionConfig yarn = small_config();
  yarn.rope_scaling = {.type = RopeScalingType::yarn, .factor = 4.0};
  TestLayer layer(yarn);
  yarn.rope_scaling.beta_fast = 16.0;
  LatentCache cache(yarn);
  EXPECT_TRUE(refuses([&] { run(layer, layer.input(1), cache, context_); },
                      {"sequence 0", "rope_scaling.beta_fast 16", "32"}));
  EXPECT_EQ(cache.size(), 0);
  // Fields that the type does not read may differ.
  AttentionConfig same = small_config();
  same.rope_scaling.factor = 7.0;
  EXPECT_TRUE(LatentCache(small_config()).fits(same));
}

TEST_F(BadInput, PositionsThatDoNotRise) {
  expect_positions_refused({2, 3, 2}, {"position_ids", "token 0 of sequence 0", "2 after 2"});
  expect_positions_refused({3, 3, 2}, {"position_ids", "token 1 of sequence 0", "3 after 3"});
  expect_positions_refused({9, 8, 2}, {"position_ids", "token 1 of sequence 0", "8 after 9"});
  expect_positions_refused({3, 4, 1}, {"position_ids", "token 0 of sequence 1", "1 after 1"});
}

TEST_F(BadInput, NegativePositions) {
  expect_positions_refused({-1, 4, 2}, {"position_ids", "sequence 0", "-1"});
  LatentKVCache<float> fresh(layer_.config());
  batch_[0].cache = &fresh;
  expect_positions_refused({-1, 0, 2}, {"position_ids", "sequence 0", "-1"});
  expect_positions_refused({std::numeric_limits<Index>::min(), 0, 2}, {"position_ids", "-922337"});
}

TEST_F(BadInput, PositionsOfAnotherLength) {
  expect_positions_refused({3, 4}, {"position_ids", "3 elements", "2"});
  expect_positions_refused({3, 4, 2, 3}, {"position_ids", "3 elements", "4"});
}

TEST_F(BadInput, MaskOfAnotherLength) {
  expect_mask_refused({1, 1}, {"attention_mask", "3 elements", "2"});
  expect_mask_refused({1, 1, 1, 1}, {"attention_mask", "3 elements", "4"});
}

TEST_F(BadInput, MaskValuesOtherThanZeroAndOne) {
  expect_mask_refused({1, 2, 1}, {"attention_mask", "got 2", "token 1 of sequence 0"});
  expect_mask_refused({1, 1, 255}, {"attention_mask", "got 255", "token 0 of sequence 1"});
}

TEST_F(BadInput, ALaterSequenceLeavesTheEarlierOnesAsTheyWere) {
  expect_positions_refused({3, 4, -5}, {"sequence 1", "-5"});
  expect_mask_refused({1, 1, 9}, {"sequence 1", "got 9"});
}

TEST_F(BadInput, AConfigThatDoesNotFit) {
  AttentionConfig config = small_config();
  config.qk_rope_head_dim = 9;
  EXPECT_TRUE(refuses([&] { MultiheadLatentAttention(config, layer_.weights.views()); },
                      {"qk_rope_head_dim", "9"}));
}

// With several tasks to a call, an executor may throw at any of them.
TEST_F(BadInput, AnExecutorThatThrowsLeavesTheCachesAsTheyWere) {
  TestLayer layer(make_config(150, 3, 70, 80, 24, 10, 28));  // several tasks to a product
  for (AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
    LatentKVCache<float> a(layer.config()), b(layer.config());
    run(layer, layer.input(70), a, context_);
    const CacheContents before_a(a), before_b(b);
    const std::vector<Sequence> batch = {{&a, 2}, {&b, 60}};
    const RowMajorMatrix x = layer.input(62);
    RowMajorMatrix out(62, x.cols());
    Index failures = 0;
    for (bool failed = true; failed; ++failures) {
      FailingExecutor executor(failures);
      Context context(executor);
      try {
        layer.layer.forward(x, batch, out, context, {.mode = mode});
      } catch (const std::runtime_error&) {
        EXPECT_EQ(CacheContents(a), before_a) << failures;
        EXPECT_EQ(CacheContents(b), before_b) << failures;
      }
      failed = executor.failed();
    }
    EXPECT_GT(failures, 5);
    EXPECT_EQ(a.size(), 72);
    EXPECT_EQ(b.size(), 60);
    Context context;
    LatentKVCache<float> fresh(layer.config());
    EXPECT_TRUE(same_bits(out.bottomRows(60),
                          run(layer, x.bottomRows(60), fresh, context, {.mode = mode})));
  }
}

}  // namespace
}  // namespace mla::test
