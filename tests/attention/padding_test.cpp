// Attention masks and position ids.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "attention/tolerances.hpp"
#include "support/modes.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

using Mask = std::vector<std::uint8_t>;

// Rows of `matrix` whose mask is `wanted`.
template <class Matrix>
Matrix rows_where(const Matrix& matrix, const Mask& mask, int wanted) {
  Matrix rows(matrix.rows(), matrix.cols());
  Index count = 0;
  for (Index t = 0; t < matrix.rows(); ++t)
    if (mask[static_cast<std::size_t>(t)] == wanted) rows.row(count++) = matrix.row(t);
  return rows.topRows(count);
}

std::vector<Index> where(const std::vector<Index>& positions, const Mask& mask) {
  std::vector<Index> kept;
  for (std::size_t t = 0; t < mask.size(); ++t)
    if (mask[t]) kept.push_back(positions[t]);
  return kept;
}

// What a padding token holds must not matter.
void spoil_padding(RowMajorMatrix& x, const Mask& mask) {
  for (std::size_t t = 0; t < mask.size(); ++t)
    if (!mask[t]) x.row(static_cast<Index>(t)).setConstant(std::numeric_limits<float>::quiet_NaN());
}

class Padding : public EveryIsaAndMode {
 protected:
  // Real tokens are the reference's, padding is exactly 0, and the cache has the real tokens only.
  void expect_masked_reference(const Mask& mask, const char* what) {
    const auto tokens = static_cast<Index>(mask.size());
    TestLayer layer(small_config());
    RowMajorMatrix x = layer.input(tokens);
    const std::vector<Index> positions = consecutive(0, tokens);
    const DoubleMatrix expected = reference_output(layer, x, positions, mask);
    spoil_padding(x, mask);
    Context context(kernels());
    LatentKVCache<float> cache(layer.config());
    const auto out = run(layer, x, cache, context, {.mode = mode(), .attention_mask = mask});
    EXPECT_TRUE(close(rows_where(out, mask, 1), rows_where(expected, mask, 1), kFloat32Tolerance))
        << what;
    const RowMajorMatrix padding = rows_where(out, mask, 0);
    EXPECT_TRUE(same_bits(padding, RowMajorMatrix::Zero(padding.rows(), padding.cols()))) << what;
    const auto cached = cache.positions();
    EXPECT_EQ(std::vector<Index>(cached.begin(), cached.end()), where(positions, mask)) << what;
  }
};

MLA_FOR_EVERY_ISA_AND_MODE(Padding);

TEST_P(Padding, OnTheLeftIsTheReferenceWithAMask) {
  for (std::size_t padding : {1, 15, 16, 17, 63, 64, 65, 129}) {
    Mask mask(150, 1);
    std::fill_n(mask.begin(), padding, std::uint8_t{0});
    expect_masked_reference(mask, ("left " + std::to_string(padding)).c_str());
  }
}

TEST_P(Padding, OnTheRightIsTheReferenceWithAMask) {
  for (std::size_t real : {1, 17, 64, 149}) {
    Mask mask(150, 0);
    std::fill_n(mask.begin(), real, std::uint8_t{1});
    expect_masked_reference(mask, ("right " + std::to_string(real)).c_str());
  }
}

TEST_P(Padding, HolesAreTheReferenceWithAMask) {
  Mask one(130, 1);
  one[64] = 0;
  expect_masked_reference(one, "one hole");
  Random random(2);
  for (double share : {0.1, 0.5, 0.95}) {
    Mask mask(200, 1);
    for (auto& m : mask) m = random.chance(share) ? 0 : 1;
    mask[100] = 1;
    expect_masked_reference(mask, ("random " + std::to_string(share)).c_str());
  }
}

TEST_P(Padding, AWholeSequenceOfPaddingGivesZerosAndAnEmptyCache) {
  expect_masked_reference(Mask(1, 0), "one token");
  expect_masked_reference(Mask(70, 0), "a page and more");
}

TEST_P(Padding, AMaskOfOnesEqualsNoMask) {
  TestLayer layer(small_config());
  const RowMajorMatrix x = layer.input(70);
  Context context(kernels());
  const Mask mask(70, 1);
  EXPECT_TRUE(
      same_bits(run_fresh<float>(layer, x, context, {.mode = mode(), .attention_mask = mask}),
                run_fresh<float>(layer, x, context, options())));
}

// Left-padded prompts of a batch, one of which is nothing but padding, then a decoding step.
TEST_P(Padding, APaddedBatchEqualsItsSequencesWithoutPadding) {
  TestLayer layer(small_config());
  constexpr Index kWidth = 70;
  const Index real[] = {70, 3, 0, 64};
  Context context(kernels());
  std::vector<LatentKVCache<float>> caches, alone;
  for (int s = 0; s < 4; ++s) {
    caches.emplace_back(layer.config());
    alone.emplace_back(layer.config());
  }
  RowMajorMatrix x = layer.input(4 * kWidth);
  Mask mask(4 * kWidth, 1);
  std::vector<Sequence> batch;
  for (std::size_t s = 0; s < 4; ++s) {
    std::fill_n(mask.begin() + static_cast<Index>(s) * kWidth, kWidth - real[s], std::uint8_t{0});
    batch.push_back({&caches[s], kWidth});
  }
  spoil_padding(x, mask);
  RowMajorMatrix out(4 * kWidth, x.cols());
  layer.layer.forward(x, batch, out, context, {.mode = mode(), .attention_mask = mask});
  for (std::size_t s = 0; s < 4; ++s) {
    const Index first = static_cast<Index>(s) * kWidth + kWidth - real[s];
    const auto positions = consecutive(kWidth - real[s], real[s]);
    const auto expected = run(layer, x.middleRows(first, real[s]), alone[s], context,
                              {.mode = mode(), .position_ids = positions});
    EXPECT_TRUE(same_bits(out.middleRows(first, real[s]), expected)) << s;
    EXPECT_EQ(CacheContents(caches[s]), CacheContents(alone[s])) << s;
    batch[s].tokens = 1;
  }
  const RowMajorMatrix step = layer.input(4);
  RowMajorMatrix step_out(4, x.cols());
  layer.layer.forward(step, batch, step_out, context, options());
  for (Index s = 0; s < 4; ++s)
    EXPECT_TRUE(
        same_bits(step_out.row(s),
                  run(layer, step.row(s), alone[static_cast<std::size_t>(s)], context, options())));
}

TEST_P(Padding, MaskedChunksEqualOneCall) {
  TestLayer layer(small_config());
  const RowMajorMatrix x = layer.input(150);
  const std::vector<Index> positions = with_gaps(150, 9, layer.random);
  Mask mask(150, 1);
  for (auto& m : mask) m = layer.random.chance(0.3) ? 0 : 1;
  Context context(kernels());
  const auto expected = run_fresh<float>(
      layer, x, context, {.mode = mode(), .position_ids = positions, .attention_mask = mask});
  LatentKVCache<float> cache(layer.config());
  for (std::size_t first = 0; first < 150; first += 25) {
    const auto out =
        run(layer, x.middleRows(static_cast<Index>(first), 25), cache, context,
            {.mode = mode(),
             .position_ids = std::span<const Index>(positions).subspan(first, 25),
             .attention_mask = std::span<const std::uint8_t>(mask).subspan(first, 25)});
    EXPECT_TRUE(same_bits(out, expected.middleRows(static_cast<Index>(first), 25))) << first;
  }
}

class Positions : public ::testing::Test {
 protected:
  Context context_;
};

TEST_F(Positions, FollowTheLastCachedOneWhereNoneAreGiven) {
  TestLayer layer(small_config());
  const RowMajorMatrix prompt = layer.input(3), x = layer.input(2);
  const std::vector<Index> gaps = {4, 10, 1000}, next = {1001, 1002};
  LatentKVCache<float> implied(layer.config()), given(layer.config());
  run(layer, prompt, implied, context_, {.position_ids = gaps});
  run(layer, prompt, given, context_, {.position_ids = gaps});
  EXPECT_TRUE(same_bits(run(layer, x, implied, context_),
                        run(layer, x, given, context_, {.position_ids = next})));
  EXPECT_EQ(CacheContents(implied), CacheContents(given));
}

TEST_F(Positions, OfAHundredThousandAndMoreKeepTheTolerance) {
  AttentionConfig config = small_config();
  for (bool yarn : {false, true}) {
    if (yarn) config.rope_scaling = AttentionConfig::deepseek_v3().rope_scaling;
    TestLayer layer(config);
    const RowMajorMatrix x = layer.input(40);
    std::vector<Index> positions = with_gaps(40, 5000, layer.random);
    for (Index& p : positions) p += 100'000;
    for (AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed})
      EXPECT_TRUE(
          close(run_fresh<float>(layer, x, context_, {.mode = mode, .position_ids = positions}),
                reference_output(layer, x, positions), kFloat32Tolerance));
  }
}

TEST_F(Positions, GapsMatterAndACommonOffsetDoesNot) {
  TestLayer layer(small_config());
  const RowMajorMatrix x = layer.input(40);
  const std::vector<Index> shifted = consecutive(1'000'000, 40);
  const std::vector<Index> gaps = with_gaps(40, 20, layer.random);
  const DoubleMatrix plain = run_fresh<float>(layer, x, context_).cast<double>();
  // Both are rounded, so twice the tolerance; cos and sin of other angles round differently too.
  EXPECT_TRUE(close(run_fresh<float>(layer, x, context_, {.position_ids = shifted}), plain,
                    2.0 * kFloat32Tolerance));
  EXPECT_GT(relative_error(run_fresh<float>(layer, x, context_, {.position_ids = gaps}), plain),
            0.05);
}

}  // namespace
}  // namespace mla::test
