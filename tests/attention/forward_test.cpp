// What may be given to forward(), and how layers with different conventions relate.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

#include "support/modes.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

class Forward : public EveryIsaAndMode {};
MLA_FOR_EVERY_ISA_AND_MODE(Forward);

TEST_P(Forward, TakesColumnMajorInputAndBlocksOfLargerMatrices) {
  TestLayer layer(small_config());
  const RowMajorMatrix x = layer.input(17);
  Context context(kernels());
  const RowMajorMatrix expected = run_fresh<float>(layer, x, context, options());

  const Eigen::MatrixXf column_major = x;
  EXPECT_TRUE(same_bits(run_fresh<float>(layer, column_major, context, options()), expected));

  RowMajorMatrix large = RowMajorMatrix::Constant(20, 60, std::numeric_limits<float>::quiet_NaN());
  large.block(2, 5, 17, 48) = x;
  EXPECT_TRUE(
      same_bits(run_fresh<float>(layer, large.block(2, 5, 17, 48), context, options()), expected));
}

TEST_P(Forward, WritesIntoABlockAndNowhereElse) {
  TestLayer layer(small_config());
  const RowMajorMatrix x = layer.input(17);
  Context context(kernels());
  const RowMajorMatrix expected = run_fresh<float>(layer, x, context, options());
  RowMajorMatrix large = RowMajorMatrix::Constant(20, 60, 7.0f);
  LatentKVCache<float> cache(layer.config());
  layer.layer.forward(x, cache, large.block(2, 5, 17, 48), context, options());
  EXPECT_TRUE(same_bits(large.block(2, 5, 17, 48), expected));
  large.block(2, 5, 17, 48).setConstant(7.0f);
  EXPECT_TRUE(same_bits(large, RowMajorMatrix::Constant(20, 60, 7.0f)));
}

TEST_P(Forward, NoTokensAtAllIsACallThatDoesNothing) {
  TestLayer layer(make_config(150, 3, 70, 80, 24, 10, 28));
  Context context(kernels());
  LatentKVCache<float> empty(layer.config()), used(layer.config());
  run(layer, layer.input(3), used, context, options());
  const CacheContents before(used);
  run(layer, RowMajorMatrix(0, 150), empty, context, options());
  run(layer, RowMajorMatrix(0, 150), used, context, options());
  EXPECT_EQ(empty.size(), 0);
  EXPECT_EQ(CacheContents(used), before);
  RowMajorMatrix out(0, 150);
  layer.layer.forward(RowMajorMatrix(0, 150), std::vector<Sequence>(), out, context, options());
}

TEST_P(Forward, WithItsOwnMemoryGivesTheSame) {
  TestLayer layer(small_config());
  const RowMajorMatrix x = layer.input(17);
  LatentKVCache<float> cache(layer.config());
  Context context;
  EXPECT_TRUE(same_bits(layer.layer.forward(x, cache, options()),
                        run_fresh<float>(layer, x, context, options())));
}

// Weights are used where they are, as a mapped checkpoint needs it.
// Also with padding and positions of one's own.
TEST_P(Forward, AppendingLeavesTheCacheThatForwardLeaves) {
  TestLayer layer(small_config());
  Context context(kernels());
  LatentKVCache<bfloat16> forwarded(layer.config()), appended(layer.config());
  const std::vector<std::uint8_t> mask = {0, 1, 1, 0, 1, 1, 0};
  const std::vector<Index> positions = {20, 21, 25, 26, 30, 31, 40};
  for (const ForwardOptions& options :
       {ForwardOptions{}, ForwardOptions{.attention_mask = mask},
        ForwardOptions{.position_ids = positions, .attention_mask = mask}}) {
    const RowMajorMatrix x = layer.input(7);
    run(layer, x, forwarded, context, options);
    layer.layer.append(x, appended, context, options);
    EXPECT_EQ(CacheContents(appended), CacheContents(forwarded));
  }
  layer.layer.append(layer.input(0), appended, context);
  EXPECT_EQ(CacheContents(appended), CacheContents(forwarded));
  const RowMajorMatrix narrow = layer.input(2).leftCols(47);
  EXPECT_TRUE(refuses([&] { layer.layer.append(narrow, appended, context); }, {"48", "47"}));
}

TEST_P(Forward, SeesWeightMemoryThatChangesAfterwards) {
  TestLayer layer(small_config());
  const RowMajorMatrix x = layer.input(17);
  Context context(kernels());
  const RowMajorMatrix before = run_fresh<float>(layer, x, context, options());
  const WeightView& o_proj = layer.weights.views().o_proj;
  auto* weights = static_cast<float*>(const_cast<void*>(o_proj.data));
  for (Index i = 0; i < o_proj.rows * o_proj.cols; ++i) weights[i] *= 2.0f;
  EXPECT_TRUE(same_bits(run_fresh<float>(layer, x, context, options()), 2.0f * before));
}

// The same model, its rotary rows stored as halves and not as pairs (many ports do so).
TEST_P(Forward, AHalfSplitLayerIsTheInterleavedOneWithPermutedRotaryRows) {
  AttentionConfig config = make_config(48, 3, 0, 36, 12, 10, 14);
  TestLayer interleaved(config);
  config.rope_interleave = false;
  TestLayer split(config);  // the same seed: the same weights, to be permuted
  const auto permute = [&](const WeightView& to, const WeightView& from, Index first_row) {
    for (Index i = 0; i < 10; ++i)
      std::memcpy(const_cast<float*>(to.as<float>().row(first_row + i / 2 + i % 2 * 5)),
                  from.as<float>().row(first_row + i),
                  static_cast<std::size_t>(from.cols) * sizeof(float));
  };
  const AttentionWeights &to = split.weights.views(), &from = interleaved.weights.views();
  for (Index h = 0; h < 3; ++h) permute(to.q_proj, from.q_proj, h * 22 + 12);
  permute(to.kv_a_proj_with_mqa, from.kv_a_proj_with_mqa, 36);

  const RowMajorMatrix x = interleaved.input(100);
  Context context(kernels());
  const auto expected = run_fresh<float>(interleaved, x, context, options()).cast<double>().eval();
  // The same products, added in another order: twice the tolerance against the reference.
  EXPECT_TRUE(close(run_fresh<float>(split, x, context, options()), expected, 8e-6));
  config.rope_interleave = true;
  const MultiheadLatentAttention wrong(config, to);
  LatentKVCache<float> cache(config);
  EXPECT_GT(relative_error(wrong.forward(x, cache, options()), expected), 0.05);
}

// Fused and separate storage of the same numbers is the same layer.
TEST_P(Forward, SplitWeightsEqualTheirFusedForm) {
  TestLayer fused(AttentionConfig::lesson(48, 4, 24, 20, 8));
  const AttentionWeights& w = fused.weights.views();
  AttentionWeights parts = w;
  std::vector<std::vector<float>> memory;
  // From each group of `group` rows, `count` rows from row `first` on.
  const auto take = [&](const WeightView& from, Index group, Index first, Index count) {
    std::vector<float>& rows = memory.emplace_back();
    for (Index r = 0; r < from.rows; ++r)
      if (r % group >= first && r % group < first + count)
        rows.insert(rows.end(), from.as<float>().row(r), from.as<float>().row(r) + from.cols);
    return WeightView(rows.data(), from.rows / group * count, from.cols);
  };
  parts.q_b_proj = parts.kv_a_proj_with_mqa = parts.kv_b_proj = {};
  parts.q_b_nope_proj = take(w.q_b_proj, 12 + 8, 0, 12);
  parts.q_b_rope_proj = take(w.q_b_proj, 12 + 8, 12, 8);
  parts.kv_a_proj = take(w.kv_a_proj_with_mqa, 24 + 32, 0, 24);
  parts.k_rope_proj = take(w.kv_a_proj_with_mqa, 24 + 32, 24, 32);
  parts.k_b_proj = take(w.kv_b_proj, 24, 0, 12);
  parts.v_b_proj = take(w.kv_b_proj, 24, 12, 12);
  const MultiheadLatentAttention split(fused.config(), parts);
  const RowMajorMatrix x = fused.input(70);
  Context context(kernels());
  LatentKVCache<float> cache(fused.config());
  RowMajorMatrix out(70, 48);
  split.forward(x, cache, out, context, options());
  EXPECT_TRUE(same_bits(out, run_fresh<float>(fused, x, context, options())));
}

}  // namespace
}  // namespace mla::test
