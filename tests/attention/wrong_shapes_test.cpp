// Every class that takes views refuses every wrong shape, before it reads or writes anything: views
// are of memory that is just as large as they say, for the address sanitizer to see.

#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "mla/attention/absorbed_attention.hpp"
#include "mla/attention/decompressed_attention.hpp"
#include "mla/attention/low_rank.hpp"
#include "mla/ops/embedding.hpp"
#include "mla/ops/head.hpp"
#include "mla/ops/mlp.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"
#include "support/wrong_shapes.hpp"

namespace mla::test {
namespace {

class WrongShapes : public ::testing::TestWithParam<bool> {
 protected:
  using Views = ExactViews::Views;
  MatrixView<float> view(Index rows, Index cols) { return views_.make(rows, cols); }
  void expect_only(const std::vector<std::pair<Index, Index>>& shapes,
                   const std::function<void(const Views&)>& call) {
    views_.expect_only(shapes, call);
  }

  AttentionConfig config() const {
    return GetParam() ? AttentionConfig::lesson(48, 4, 24, 20, 8) : small_config();
  }

  ExactViews views_;
  Context context_;
};
INSTANTIATE_TEST_SUITE_P(RotaryKeys, WrongShapes, ::testing::Bool(), [](const auto& per_head) {
  return per_head.param ? "PerHead" : "Shared";
});

TEST_P(WrongShapes, OfBothFormsOfAttention) {
  const AttentionConfig c = config();
  TestLayer layer(c, {.split = c.rope_key_per_head});
  const LatentDecompression decompression(c, layer.weights.views());
  LatentCache cache(c, CacheFormat::bfloat16);
  run(layer, layer.input(9), cache, context_);
  const Index heads = c.num_attention_heads, rank = c.kv_lora_rank;
  const CachedTokens last = CachedTokens::ending_in(cache, 0, 3);
  expect_only({{3, heads * (rank + c.qk_rope_head_dim)}, {3, heads * rank}, {3, heads}},
              [&](const Views& v) {
                AbsorbedAttention(c, 0.1).forward({&last, 1}, v[0], v[1], context_, v[2]);
              });
  expect_only({{3, heads * c.qk_head_dim()}, {3, heads * c.v_head_dim}, {3, heads}},
              [&](const Views& v) {
                DecompressedAttention(c, 0.1, decompression)
                    .forward({&last, 1}, v[0], v[1], context_, v[2]);
              });

  // Shares that the call does not have, and caches of another layer.
  const auto refuses = [&](const CachedTokens& share) {
    const auto queries = view(3, heads * (rank + c.qk_rope_head_dim)),
               values = view(3, heads * rank);
    EXPECT_THROW(AbsorbedAttention(c, 0.1).forward({&share, 1}, queries, values, context_),
                 std::invalid_argument);
    const auto heads_in = view(3, heads * c.qk_head_dim()), out = view(3, heads * c.v_head_dim);
    EXPECT_THROW(
        DecompressedAttention(c, 0.1, decompression).forward({&share, 1}, heads_in, out, context_),
        std::invalid_argument);
  };
  AttentionConfig wider = c;
  wider.kv_lora_rank += 1;
  const LatentCache other(wider);
  refuses({.cache = nullptr, .tokens = 3});
  refuses({.cache = &cache, .tokens = 4});
  refuses({.cache = &cache, .first_token = 1, .tokens = 3});
  refuses({.cache = &cache, .first_token = -1, .tokens = 3});
  refuses({.cache = &cache, .tokens = -1});
  refuses({.cache = &cache, .tokens = 3, .uncached = 4});
  refuses({.cache = &cache, .tokens = 3, .uncached = -1});
  refuses({.cache = &other, .tokens = 3});
}

TEST_P(WrongShapes, OfTheLowRankProjections) {
  const AttentionConfig c = config();
  TestLayer layer(c, {.split = c.rope_key_per_head});
  const AttentionWeights& weights = layer.weights.views();
  const LowRankQuery query(c, weights);
  const LatentCompression compression(c, weights);
  const LatentDecompression decompression(c, weights);
  const Index heads = c.num_attention_heads, rank = c.kv_lora_rank, pairs = c.qk_rope_head_dim / 2;
  expect_only({{3, c.hidden_size}, {3, pairs}, {3, pairs}, {3, heads * c.qk_head_dim()}},
              [&](const Views& v) {
                query.forward(v[0], {v[1], v[2]}, v[3], context_);
              });
  expect_only({{3, c.hidden_size}, {3, pairs}, {3, pairs}, {3, c.cache_row_width()}},
              [&](const Views& v) {
                compression.forward(v[0], {v[1], v[2]}, v[3], context_);
              });
  expect_only({{3, heads * c.qk_head_dim()}, {3, heads * (rank + c.qk_rope_head_dim)}},
              [&](const Views& v) { decompression.absorb(v[0], v[1], context_); });
  expect_only({{3, heads * rank}, {3, heads * c.v_head_dim}},
              [&](const Views& v) { decompression.project_values(v[0], v[1], context_); });
}

TEST_P(WrongShapes, OfWhatIsNotAttention) {
  Random random(1);
  const RowMajorMatrix weight = random_matrix(5, 7, random), down = random_matrix(7, 5, random);
  const std::vector<float> norm(7, 1.0f);
  const Linear linear{WeightView(weight)};
  expect_only({{3, 7}, {3, 5}}, [&](const Views& v) { linear.forward(v[0], v[1], context_); });
  const RmsNorm rms_norm(WeightView(norm), 1e-6);
  expect_only({{3, 7}}, [&](const Views& v) { rms_norm.forward(v[0], context_); });
  const Mlp mlp({WeightView(weight), WeightView(weight), WeightView(down)}, 7, 5);
  expect_only({{3, 7}, {3, 7}}, [&](const Views& v) { mlp.forward(v[0], v[1], context_); });
  const Head head(rms_norm, WeightView(weight));
  expect_only({{3, 7}, {3, 5}}, [&](const Views& v) { head.forward(v[0], v[1], context_); });
  const Embedding embedding{WeightView(weight)};
  const std::vector<TokenId> tokens = {0, 4, 2};
  EXPECT_NO_THROW(embedding.forward(tokens, view(3, 7), context_));
  for (const auto& [rows, cols] : {std::pair{2, 7}, {4, 7}, {3, 6}, {3, 8}})
    EXPECT_THROW(embedding.forward(tokens, view(rows, cols), context_), std::invalid_argument);
  const RotaryEmbedding rotary(8, 10000.0, {});
  const std::vector<Index> positions = {0, 5, 9};
  expect_only({{3, 4}, {3, 4}}, [&](const Views& v) { rotary.tables(positions, v[0], v[1]); });
}

TEST(MovedFrom, ALayerSaysSo) {
  TestLayer layer(small_config());
  MultiheadLatentAttention moved(layer.config(), layer.weights.views());
  const MultiheadLatentAttention there(std::move(moved));
  LatentCache cache(layer.config());
  Context context;
  const RowMajorMatrix x = layer.input(2);
  RowMajorMatrix out(2, x.cols());
  EXPECT_NO_THROW(there.forward(x, cache, out, context));
  EXPECT_THROW(moved.forward(x, cache, out, context),  // NOLINT(bugprone-use-after-move)
               std::invalid_argument);
}

class NoThreads final : public Executor {
 public:
  Index concurrency() const noexcept override { return 0; }

 private:
  void run(Index, const Body&) override {}
};

TEST(ContextErrors, AnExecutorWithoutThreadsIsRefused) {
  NoThreads executor;
  EXPECT_THROW(Context{executor}, std::invalid_argument);
}

}  // namespace
}  // namespace mla::test
