#include "mla/ops/rope.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "support/compare.hpp"

namespace mla::test {
namespace {

// theta^(-2i / dim) in extended precision.
long double exact_inv_freq(long double theta, Index dim, Index pair) {
  return std::pow(theta, -2.0L * static_cast<long double>(pair) / static_cast<long double>(dim));
}

void expect_inv_freq(const std::vector<double>& actual, const std::vector<long double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i)
    // A few roundings of double: positions of 10^7 times this stay far below float32's 6e-8.
    EXPECT_NEAR(static_cast<double>(actual[i] / expected[i]), 1.0, 2e-15) << "pair " << i;
}

// YaRN by the meaning of its parameters, not by the published closed form: a pair that makes more
// than beta_fast turns within the original length keeps its frequency, one that makes fewer than
// beta_slow has it divided by factor, and pairs between mix both along a straight line.
std::vector<long double> yarn_inv_freq(Index dim, long double theta, const RopeScaling& scaling) {
  const auto turns = [&](Index pair) {
    return static_cast<long double>(scaling.original_max_position_embeddings) *
           exact_inv_freq(theta, dim, pair) / (2.0L * std::numbers::pi_v<long double>);
  };
  Index last_fast = 0;  // the last pair with at least beta_fast turns, or the first of all
  while (turns(last_fast + 1) >= static_cast<long double>(scaling.beta_fast)) ++last_fast;
  Index first_slow = 0;  // the first pair with at most beta_slow turns
  while (turns(first_slow) > static_cast<long double>(scaling.beta_slow)) ++first_slow;
  first_slow = std::min(first_slow, dim - 1);
  const long double ramp_length =
      first_slow == last_fast ? 0.001L : static_cast<long double>(first_slow - last_fast);

  std::vector<long double> inv_freq;
  for (Index pair = 0; pair < dim / 2; ++pair) {
    const long double slow =
        std::clamp(static_cast<long double>(pair - last_fast) / ramp_length, 0.0L, 1.0L);
    const long double f = exact_inv_freq(theta, dim, pair);
    inv_freq.push_back((1.0L - slow) * f + slow * f / static_cast<long double>(scaling.factor));
  }
  return inv_freq;
}

TEST(Rope, FrequenciesArePowersOfTheta) {
  for (Index dim : {2, 6, 32, 64, 130})
    for (double theta : {1.5, 10000.0, 50000.0, 8e6}) {
      std::vector<long double> expected;
      for (Index i = 0; i < dim / 2; ++i)
        expected.push_back(exact_inv_freq(static_cast<long double>(theta), dim, i));
      expect_inv_freq(RotaryEmbedding(dim, theta, {}).inv_freq(), expected);
    }
}

// In float32 the angle of position 100,000 is off by up to 0.004.
TEST(Rope, AnglesStayExactAtPositionsOfMillions) {
  const RotaryEmbedding rotary(64, 10000.0, {});
  const std::vector<Index> positions = {0, 1, 4095, 100'000, 163'839, 1'048'575, 10'000'019};
  std::vector<float> cos_memory(positions.size() * 32), sin_memory(positions.size() * 32);
  const MatrixView<float> cos(cos_memory.data(), static_cast<Index>(positions.size()), 32);
  const MatrixView<float> sin(sin_memory.data(), static_cast<Index>(positions.size()), 32);
  rotary.tables(positions, cos, sin);
  for (std::size_t t = 0; t < positions.size(); ++t)
    for (Index i = 0; i < 32; ++i) {
      const long double angle =
          static_cast<long double>(positions[t]) * exact_inv_freq(10000.0L, 64, i);
      // Rounding the result to float32 is 3e-8; the double angle of 10^7 adds 4e-9.
      const auto row = static_cast<Index>(t);
      ASSERT_NEAR(static_cast<double>(cos(row, i)), static_cast<double>(std::cos(angle)), 4e-8)
          << "position " << positions[t] << " pair " << i;
      ASSERT_NEAR(static_cast<double>(sin(row, i)), static_cast<double>(std::sin(angle)), 4e-8)
          << "position " << positions[t] << " pair " << i;
    }
}

TEST(Rope, YarnKeepsFastPairsAndStretchesSlowOnes) {
  const RopeScaling deepseek = {RopeScalingType::yarn, 40.0, 4096, 32.0, 1.0, 1.0, 1.0};
  expect_inv_freq(RotaryEmbedding(64, 10000.0, deepseek).inv_freq(),
                  yarn_inv_freq(64, 10000.0L, deepseek));
  // Kimi K2: both betas are 1, so the ramp is one pair wide.
  const RopeScaling kimi = {RopeScalingType::yarn, 32.0, 4096, 1.0, 1.0, 1.0, 1.0};
  expect_inv_freq(RotaryEmbedding(64, 50000.0, kimi).inv_freq(), yarn_inv_freq(64, 50000.0L, kimi));
  // A short original length, where no pair is fast, and dims that are no power of two.
  for (Index length : {8, 32, 100, 4096})
    for (Index dim : {2, 10, 32, 66}) {
      const RopeScaling scaling = {RopeScalingType::yarn, 4.0, length, 32.0, 1.0, 1.0, 0.0};
      expect_inv_freq(RotaryEmbedding(dim, 10000.0, scaling).inv_freq(),
                      yarn_inv_freq(dim, 10000.0L, scaling));
    }
}

// The reference code clamps the ramp's end to dim - 1, though there are dim / 2 pairs only: then no
// pair is stretched by all of factor. The last, pair 31, has gone (31 - low) / (high - low) of it.
TEST(Rope, YarnsRampMayEndBeyondTheLastPair) {
  const auto expect_last = [](const RopeScaling& scaling, long double low, long double high) {
    const auto inv_freq = RotaryEmbedding(64, 10000.0, scaling).inv_freq();
    expect_inv_freq(inv_freq, yarn_inv_freq(64, 10000.0L, scaling));
    const long double ramp = (31.0L - low) / (high - low);
    const long double expected =
        exact_inv_freq(10000.0L, 64, 31) * (1.0L - ramp + ramp / 40.0L);  // factor 40
    EXPECT_NEAR(inv_freq.back() / static_cast<double>(expected), 1.0, 2e-15);
  };
  // 64 ln(65536 / (2 pi 32)) / (2 ln 10000) = 20.1 rounded down; 32.1 with 1 for 32, rounded up.
  expect_last({RopeScalingType::yarn, 40.0, 65536, 32.0, 1.0, 1.0, 1.0}, 20.0L, 33.0L);
  // 9.6 rounded down; 65.6 is above dim - 1.
  expect_last({RopeScalingType::yarn, 40.0, 1'000'000'000, 1e7, 1.0, 1.0, 1.0}, 9.0L, 63.0L);
}

TEST(Rope, YarnScalesCosAndSinByTheQuotientOfBothMscales) {
  const double one = 0.1 * std::log(40.0) + 1.0, other = 0.0707 * std::log(40.0) + 1.0;
  RopeScaling scaling = {RopeScalingType::yarn, 40.0, 4096, 32.0, 1.0, 1.0, 0.707};
  const RotaryEmbedding rotary(64, 10000.0, scaling);
  EXPECT_DOUBLE_EQ(rotary.cos_sin_scale(), one / other);
  float cos[32], sin[32];
  const Index position[] = {0};
  rotary.tables(position, {cos, 1, 32}, {sin, 1, 32});
  EXPECT_EQ(cos[0], static_cast<float>(one / other));

  scaling.mscale_all_dim = 1.0;  // DeepSeek-V3: they cancel
  EXPECT_EQ(RotaryEmbedding(64, 10000.0, scaling).cos_sin_scale(), 1.0);
  scaling.mscale_all_dim = 0.0;  // an absent key: mscale alone counts
  EXPECT_DOUBLE_EQ(RotaryEmbedding(64, 10000.0, scaling).cos_sin_scale(), one);
}

TEST(Rope, YarnMultipliesTheSoftmaxScaleByMscaleAllDimSquared) {
  // 0.1 * ln(40) + 1 = 1.3688879..., squared, over the root of 192.
  EXPECT_NEAR(softmax_scale(AttentionConfig::deepseek_v3()), 0.13523377, 1e-8);
  // 0.0707 * ln(40) + 1 = 1.2608038...
  EXPECT_NEAR(softmax_scale(AttentionConfig::deepseek_v2_lite()), 0.11472138, 1e-8);
  AttentionConfig config;
  EXPECT_DOUBLE_EQ(softmax_scale(config), 1.0 / std::sqrt(192.0));
  config.rope_scaling = {RopeScalingType::yarn, 40.0, 4096, 32.0, 1.0, 0.5, 0.0};
  EXPECT_DOUBLE_EQ(softmax_scale(config), 1.0 / std::sqrt(192.0));  // mscale does not matter here
  config.rope_scaling.type = RopeScalingType::linear;
  config.rope_scaling.mscale_all_dim = 1.0;
  EXPECT_DOUBLE_EQ(softmax_scale(config), 1.0 / std::sqrt(192.0));  // nor does it but for YaRN
}

TEST(Rope, YarnWithoutStretchingIsPlain) {
  const RopeScaling scaling = {RopeScalingType::yarn, 1.0, 4096, 32.0, 1.0, 1.0, 0.5};
  const RotaryEmbedding rotary(64, 10000.0, scaling);
  EXPECT_EQ(rotary.inv_freq(), RotaryEmbedding(64, 10000.0, {}).inv_freq());
  EXPECT_EQ(rotary.cos_sin_scale(), 1.0);
  EXPECT_EQ(rope_softmax_multiplier(scaling), 1.0);
}

TEST(Rope, LinearScalingDividesEveryFrequency) {
  std::vector<long double> expected;
  for (Index i = 0; i < 16; ++i) expected.push_back(exact_inv_freq(10000.0L, 32, i) / 8.0L);
  const RotaryEmbedding rotary(32, 10000.0, {RopeScalingType::linear, 8.0});
  expect_inv_freq(rotary.inv_freq(), expected);
  EXPECT_EQ(rotary.cos_sin_scale(), 1.0);
}

// NTK-aware scaling stretches the slowest pair by exactly factor and leaves the fastest one.
TEST(Rope, NtkScalingStretchesTheSlowestPairByFactorAndLeavesTheFastest) {
  const Index dim = 32;
  const auto inv_freq = RotaryEmbedding(dim, 10000.0, {RopeScalingType::ntk, 8.0}).inv_freq();
  EXPECT_DOUBLE_EQ(inv_freq.front(), 1.0);
  EXPECT_NEAR(inv_freq.back() * 8.0 / static_cast<double>(exact_inv_freq(10000.0L, dim, 15)), 1.0,
              1e-14);
  for (std::size_t i = 1; i < inv_freq.size(); ++i)  // still a geometric series
    EXPECT_NEAR(inv_freq[i] / inv_freq[i - 1], inv_freq[1], 1e-14);
}

TEST(Rope, DynamicScalingBeginsBeyondTheTrainedLength) {
  const RopeScaling scaling = {RopeScalingType::dynamic, 2.0};
  const auto plain = RotaryEmbedding(32, 10000.0, {}).inv_freq();
  EXPECT_EQ(RotaryEmbedding(32, 10000.0, scaling, 2048, 2048).inv_freq(), plain);
  // At three times the length: factor * 3 - (factor - 1) = 5 times slower in the slowest pair.
  const auto stretched = RotaryEmbedding(32, 10000.0, scaling, 2048, 3 * 2048).inv_freq();
  EXPECT_NEAR(stretched.back() * 5.0 / plain.back(), 1.0, 1e-14);
  EXPECT_EQ(stretched.front(), 1.0);
  EXPECT_TRUE(refuses([&] { RotaryEmbedding(32, 10000.0, scaling, 0, 100); },
                      {"max_position_embeddings", "0"}));
}

TEST(Rope, RefusesDimsWithoutPairsAndScalingThatDoesNotFit) {
  EXPECT_TRUE(refuses([] { RotaryEmbedding(63, 10000.0, {}); }, {"even", "63"}));
  EXPECT_TRUE(refuses([] { RotaryEmbedding(0, 10000.0, {}); }, {"even", "0"}));
  EXPECT_TRUE(refuses([] { RotaryEmbedding((1 << 24) + 2, 1e4, {}); }, {"16777218"}));
  EXPECT_TRUE(refuses(
      [] {
        RotaryEmbedding(64, 10000.0, {RopeScalingType::linear, 0.25});
      },
      {"rope_scaling.factor", "0.25"}));
}

}  // namespace
}  // namespace mla::test
