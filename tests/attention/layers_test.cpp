// What the layer is made of and runs on: Linear, RmsNorm, SoftmaxRows, CachedTokens, Context.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "mla/attention/absorbed_attention.hpp"
#include "mla/attention/decompressed_attention.hpp"
#include "mla/attention/latent_kv_cache.hpp"
#include "mla/attention/merge_attention.hpp"
#include "mla/ops/linear.hpp"
#include "mla/ops/rms_norm.hpp"
#include "support/compare.hpp"
#include "support/executors.hpp"
#include "support/isas.hpp"
#include "support/kernel_oracle.hpp"
#include "support/random.hpp"

namespace mla::test {
namespace {

template <StorageElement T>
void expect_linear(Index tokens, Index in, Index out_features, Context& context) {
  Random random(static_cast<std::uint64_t>(in + out_features));
  const GuardedMatrix<float> x(tokens, in, random);
  const std::vector<T> weight = random_elements<T>(out_features * in, random);
  const std::vector<T> bias = random_elements<T>(out_features, random);
  GuardedMatrix<float> out(tokens, out_features);
  const Linear linear({weight.data(), out_features, in}, {bias.data(), 1, out_features});
  EXPECT_EQ(linear.in_features(), in);
  EXPECT_EQ(linear.out_features(), out_features);
  linear.forward(x.view(), out.view(), context);
  for (Index t = 0; t < tokens; ++t)
    for (Index o = 0; o < out_features; ++o) {
      const Expected dot = expected_dot(
          in, [&](Index i) { return x.at(t, i); },
          [&](Index i) {
            return static_cast<double>(
                static_cast<float>(weight[static_cast<std::size_t>(o * in + i)]));
          });
      const double shift =
          static_cast<double>(static_cast<float>(bias[static_cast<std::size_t>(o)]));
      // One more rounding for the bias.
      const double bound = dot.bound_of(arithmetic_for<T>(context.kernels())) +
                           0x1p-24 * (std::abs(dot.value) + std::abs(shift));
      ASSERT_NEAR(out.at(t, o), dot.value + shift, bound) << in << " " << out_features;
    }
  ASSERT_TRUE(out.gaps_are_untouched());
}

class LinearLayer : public EveryIsa {};
MLA_FOR_EVERY_ISA(LinearLayer);

TEST_P(LinearLayer, AddsTheBiasToTheProductInEveryType) {
  ThreadExecutor threads(3);
  Context context(threads, kernels());
  for (Index out_features : {1, 63, 64, 65, 129, 200}) {  // tasks are of 64 features
    expect_linear<float>(3, 17, out_features, context);
    expect_linear<bfloat16>(3, 17, out_features, context);
    expect_linear<float16>(3, 17, out_features, context);
  }
}

TEST(Linear, SeesWeightMemoryThatChangesAfterwards) {
  std::vector<bfloat16> weight = {bfloat16(1.0f), bfloat16(2.0f)};
  const Linear linear(WeightView(weight.data(), 1, 2));
  const float x[] = {10.0f, 1.0f};
  float out = 0.0f;
  Context context;
  linear.forward({x, 1, 2}, {&out, 1, 1}, context);
  EXPECT_EQ(out, 12.0f);
  weight[1] = bfloat16(3.0f);
  linear.forward({x, 1, 2}, {&out, 1, 1}, context);
  EXPECT_EQ(out, 13.0f);
}

TEST(Linear, RefusesABiasOfAnotherSize) {
  const std::vector<float> memory(12);
  EXPECT_TRUE(refuses(
      [&] {
        Linear({memory.data(), 3, 4}, {memory.data(), 1, 4});
      },
      {"bias", "[1, 3]", "[1, 4]"}));
}

TEST(Linear, IsEmptyByDefault) {
  EXPECT_FALSE(Linear());
  EXPECT_FALSE(Linear(WeightView()));
}

template <StorageElement T>
void expect_rms_norm(Context& context) {
  Random random(5);
  const std::vector<T> weight = random_elements<T>(37, random, 0.3, 1.0);
  const RmsNorm norm({weight.data(), 1, 37}, 1e-5);
  EXPECT_TRUE(norm);
  GuardedMatrix<float> x(4, 37, random);
  const GuardedMatrix<float> before = x;
  norm.forward(x.view(), context);
  for (Index t = 0; t < 4; ++t) {
    double squares = 0.0;
    for (Index i = 0; i < 37; ++i) squares += before.at(t, i) * before.at(t, i);
    for (Index i = 0; i < 37; ++i) {
      const double expected =
          before.at(t, i) / std::sqrt(squares / 37.0 + static_cast<double>(1e-5f)) *
          static_cast<double>(static_cast<float>(weight[static_cast<std::size_t>(i)]));
      // 37 squares in at least 4 lanes, then half a dozen operations.
      ASSERT_NEAR(x.at(t, i), expected, 16.0 * 0x1p-24 * std::abs(expected));
    }
  }
  ASSERT_TRUE(x.gaps_are_untouched());
}

class RmsNormLayer : public EveryIsa {};
MLA_FOR_EVERY_ISA(RmsNormLayer);

TEST_P(RmsNormLayer, NormalisesStridedRowsInPlaceWithWeightsOfEveryType) {
  Context context(kernels());
  expect_rms_norm<float>(context);
  expect_rms_norm<bfloat16>(context);
  expect_rms_norm<float16>(context);
}

TEST(RmsNorm, EpsIsAddedToTheMeanSquare) {
  const float weight[] = {1.0f, 1.0f};
  float x[] = {1e-3f, 1e-3f};  // mean square 1e-6
  Context context;
  RmsNorm({weight, 1, 2}, 1e-6).forward({x, 1, 2}, context);
  // 1 / sqrt(2), to the rounding of three operations. eps 1e-5 would give 0.30.
  EXPECT_NEAR(x[0], 0.70710678f, 2e-7f);
}

TEST(SoftmaxRows, ARowThatSawNoKeyIsZeroNotNaN) {
  Workspace workspace;
  const Workspace::Scope scope(workspace);
  GuardedMatrix<float> out(3, 2);
  const SoftmaxRows softmax(out.view(), workspace);
  softmax.start(0, 3);
  *softmax.state(1).sum = 4.0f;
  softmax.state(1).out[1] = 6.0f;
  for (Index r = 0; r < 3; ++r) softmax.finish(r, out.view().row(r));
  EXPECT_EQ(out.at(0, 0), 0.0);
  EXPECT_EQ(out.at(1, 1), 1.5);
  EXPECT_EQ(out.at(2, 1), 0.0);
  EXPECT_TRUE(out.gaps_are_untouched());
}

TEST(SoftmaxRows, MergingPartsEqualsHavingSeenAllKeysAtOnce) {
  Workspace workspace;
  const Workspace::Scope scope(workspace);
  GuardedMatrix<float> out(8, 2);  // two queries, four parts each; rows 0, 2, 4, 6 are the first
  const SoftmaxRows softmax(out.view(), workspace);
  softmax.start(0, 8);
  const auto see = [&](Index row, float maximum, float sum, float value) {
    *softmax.state(row).maximum = maximum;
    *softmax.state(row).sum = sum;
    softmax.state(row).out[0] = value;
  };
  see(0, 3.0f, 1.5f, 6.0f);     // weight 2^-2 against the largest maximum
  see(4, 5.0f, 2.0f, 1.0f);     // weight 1; row 2 saw nothing
  see(6, -400.0f, 1.0f, 9.0f);  // weight 2^-405: nothing is left of it
  float merged[2] = {-1.0f, -1.0f};
  softmax.merge(0, 2, 4, merged);
  EXPECT_FLOAT_EQ(merged[0], (0.25f * 6.0f + 1.0f) / (0.25f * 1.5f + 2.0f));
  EXPECT_EQ(merged[1], 0.0f);
  softmax.merge(1, 2, 4, merged);  // saw nothing at all
  EXPECT_EQ(merged[0], 0.0f);
}

TEST(SoftmaxRows, TheLogSumExpIsNaturalAndThatOfNothingIsMinusInfinity) {
  EXPECT_EQ((SoftmaxRows::Total{-std::numeric_limits<float>::infinity(), 0.0f}.log_sum_exp()),
            -std::numeric_limits<float>::infinity());
  for (float maximum : {-433.0f, 0.0f, 433.0f}) {
    const double exact = (static_cast<double>(maximum) + 1.5) * std::numbers::ln2;
    // Half of the last digit.
    EXPECT_NEAR((SoftmaxRows::Total{maximum, 2.82842708f}.log_sum_exp()), exact,
                std::abs(exact) * 0x1p-24);
  }
}

TEST(CachedTokens, SeeTheKeysBeforeThemAndThemselves) {
  LatentKVCache<float> cache(AttentionConfig::lesson(8, 1, 4, 4, 2));
  const std::vector<float> rows(5 * 6);
  const Index positions[] = {0, 1, 2, 3, 4};
  cache.append({rows.data(), 5, 6}, positions);
  const auto visible = [&](Index tokens, Index uncached) {
    const CachedTokens share = {&cache, 0, tokens, uncached};
    std::vector<Index> keys;
    for (Index i = 0; i < tokens; ++i) keys.push_back(share.visible(i));
    return keys;
  };
  EXPECT_EQ(visible(3, 0), (std::vector<Index>{3, 4, 5}));
  EXPECT_EQ(visible(3, 1), (std::vector<Index>{4, 5, 5}));
  EXPECT_EQ(visible(3, 3), (std::vector<Index>{5, 5, 5}));  // the cache ends before them
  EXPECT_EQ(visible(7, 0), (std::vector<Index>{0, 0, 1, 2, 3, 4, 5}));  // begins after two
}

#ifndef _OPENMP
TEST(Context, OfAFileWithoutOpenMpRunsOnTheCallingThread) {
  EXPECT_EQ(Context().executor().concurrency(), 1);
  EXPECT_EQ(Context(simd::kernels()).executor().concurrency(), 1);
}
#endif

}  // namespace
}  // namespace mla::test
