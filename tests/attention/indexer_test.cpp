// Sparse attention: what an indexer selects, and attention to it.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "attention/tolerances.hpp"
#include "mla/attention/index_selection.hpp"
#include "mla/attention/multihead_latent_attention.hpp"
#include "mla/io/cache_snapshot.hpp"
#include "support/compare.hpp"
#include "support/executors.hpp"
#include "support/isas.hpp"
#include "support/message_of.hpp"
#include "support/random.hpp"
#include "support/safetensors_writer.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

constexpr CacheFormat kRowFormats[] = {CacheFormat::float32, CacheFormat::bfloat16,
                                       CacheFormat::float16, CacheFormat::int8,
                                       CacheFormat::fp8,     CacheFormat::int4};

AttentionConfig sparse_config(Index topk, bool interleave = false) {
  AttentionConfig config = small_config();
  config.indexer = {.type = IndexerType::full,
                    .heads = 5,
                    .head_dim = 14,
                    .topk = topk,
                    .rope_interleave = interleave};
  return config;
}

AttentionConfig without_indexer(AttentionConfig config) {
  config.indexer = {};
  return config;
}

// ---- the best rows

std::vector<Index> top_rows(const std::vector<float>& scores, Index count) {
  std::vector<Index> rows(static_cast<std::size_t>(count));
  std::vector<std::uint32_t> keys(static_cast<std::size_t>(TopRows::scratch(std::ssize(scores))));
  TopRows::select(scores, count, rows.data(), keys.data());
  return rows;
}

std::vector<Index> sorted_top_rows(const std::vector<float>& scores, Index count) {
  std::vector<Index> rows = consecutive(0, std::ssize(scores));
  std::ranges::stable_sort(rows, std::ranges::greater(),
                           [&](Index row) { return scores[static_cast<std::size_t>(row)]; });
  rows.resize(static_cast<std::size_t>(count));
  std::ranges::sort(rows);
  return rows;
}

TEST(TopRows, AreThoseThatSortingFinds) {
  Random random(1);
  for (int round = 0; round < 600; ++round) {
    const Index size = random.integer(1, 400), kind = random.integer(0, 3);
    std::vector<float> scores;
    for (Index i = 0; i < size; ++i) {
      const double x = random.unit();
      // Apart, in a few values, zeros of both signs, or apart in the last bits only.
      scores.push_back(static_cast<float>(kind == 0   ? x
                                          : kind == 1 ? std::floor(2.0 * x) / 4.0
                                          : kind == 2 ? (x > 0.0 ? 0.0 : -0.0)
                                                      : 1.0 + 1e-6 * x));
    }
    const Index count = random.integer(0, size);
    ASSERT_EQ(top_rows(scores, count), sorted_top_rows(scores, count))
        << "kind " << kind << ", " << count << " of " << size;
  }
}

TEST(TopRows, TakesTheEarlierOfEqualScores) {
  EXPECT_EQ(top_rows({1, 2, 1, 2, 1}, 3), (std::vector<Index>{0, 1, 3}));
  EXPECT_EQ(top_rows({0.0f, -0.0f, 0.0f, -0.0f}, 2), (std::vector<Index>{0, 1}));
  EXPECT_EQ(top_rows(std::vector<float>(70, -1.5f), 3), (std::vector<Index>{0, 1, 2}));
}

TEST(TopRows, ShowsNaNAndOrdersInfinities) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(top_rows({1, nan, inf, -inf, -nan}, 3), (std::vector<Index>{1, 2, 4}));
  EXPECT_EQ(top_rows({-inf, -3, inf, 2}, 3), (std::vector<Index>{1, 2, 3}));
}

// ---- a layer

class IndexedAttention : public EveryIsa {};
MLA_FOR_EVERY_ISA(IndexedAttention);

TEST_P(IndexedAttention, IsAttentionToWhatTheReferenceSelects) {
  for (const bool interleave : {false, true})
    for (const Index topk : {1, 8, 40}) {
      AttentionConfig config = sparse_config(topk, interleave);
      config.rope_scaling = short_yarn(1.0, 1.0);
      TestLayer layer(config, {}, 3);
      const Index tokens = 70;
      const RowMajorMatrix x = layer.input(tokens);
      const DoubleMatrix expected = reference_output(layer, x, consecutive(0, tokens));
      Context context(kernels());
      for (const AttentionForm mode :
           {AttentionForm::absorbed, AttentionForm::decompressed, AttentionForm::automatic}) {
        LatentCache cache(config);
        EXPECT_TRUE(
            close(run(layer, x, cache, context, {.mode = mode}), expected, kFloat32Tolerance))
            << "topk " << topk << ", mode " << static_cast<int>(mode);
      }
    }
}

// [tokens] the rows that each token sees, for a text on a fresh cache.
std::vector<std::vector<Index>> selections_of(const TestLayer& layer, const RowMajorMatrix& x,
                                              const IndexKeyFormat& format, Context& context) {
  LatentCache cache(layer.config(), CacheFormat::float32, format);
  LatentCache* const caches[] = {&cache};
  const Sequence sequence = {&cache, x.rows()};
  const Workspace::Scope scope(context.workspace());
  const CallPlan plan = layer.layer.plan(x.rows(), std::span(&sequence, 1), {}, context);
  IndexSelection selection(layer.config(), plan, context.workspace());
  RowMajorMatrix out(x.rows(), x.cols());
  layer.layer.forward(plan, caches, view_of(x), mutable_view_of(out), context, {}, &selection);
  EXPECT_TRUE(selection.selected());
  std::vector<std::vector<Index>> rows;
  for (Index t = 0; t < x.rows(); ++t) {
    const auto list = selection.rows_of(t);
    rows.emplace_back(list.begin(), list.end());
    if (list.empty()) rows.back() = consecutive(0, t + 1);
  }
  return rows;
}

TEST_P(IndexedAttention, SelectsWhatTheReferenceSelects) {
  TestLayer layer(sparse_config(11), {}, 9);
  const Index tokens = 150;
  const RowMajorMatrix x = layer.input(tokens);
  const std::vector<std::uint8_t> expected = reference_selection(layer, x, consecutive(0, tokens));
  Context context(kernels());
  const auto same_sets = [&](const IndexKeyFormat& format) {
    const auto actual = selections_of(layer, x, format, context);
    Index same = 0;
    for (Index t = 0; t < tokens; ++t) {
      std::vector<Index> rows;
      for (Index s = 0; s <= t; ++s)
        if (expected[static_cast<std::size_t>(t * tokens + s)]) rows.push_back(s);
      same += rows == actual[static_cast<std::size_t>(t)];
    }
    return same;
  };
  EXPECT_EQ(same_sets({14, CacheFormat::float32}), tokens);
  // Rounded keys choose others where scores are close: rarely.
  EXPECT_GE(same_sets({14, CacheFormat::bfloat16}), tokens * 8 / 10);
  EXPECT_GE(same_sets({14, CacheFormat::float16}), tokens * 9 / 10);
  EXPECT_GE(same_sets({14, CacheFormat::fp8}), tokens / 4);
}

TEST_P(IndexedAttention, WithinTopkIsTheLayerWithoutAnIndexer) {
  const Index topk = 33;
  TestLayer sparse(sparse_config(topk)), dense(without_indexer(sparse.config()));
  const RowMajorMatrix x = sparse.input(topk + 1);
  Context context(kernels());
  for (const CacheFormat format : kRowFormats)
    for (const AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
      LatentCache cache(sparse.config(), format), dense_cache(dense.config(), format);
      const RowMajorMatrix out = run(sparse, x, cache, context, {.mode = mode});
      const RowMajorMatrix expected = run(dense, x, dense_cache, context, {.mode = mode});
      EXPECT_TRUE(same_bits(out.topRows(topk), expected.topRows(topk))) << name_of(format);
      EXPECT_FALSE(same_bits(out.bottomRows(1), expected.bottomRows(1))) << name_of(format);
    }
  LatentCache cache(sparse.config()), dense_cache(dense.config());
  EXPECT_TRUE(same_bits(run(sparse, x.topRows(topk), cache, context),
                        run(dense, x.topRows(topk), dense_cache, context)));
}

TEST_P(IndexedAttention, DoesNotDependOnChunksThreadsOrBatch) {
  TestLayer layer(sparse_config(20));
  const Index tokens = 100, others = 45;
  const RowMajorMatrix x = layer.input(tokens), other_x = layer.input(others);
  Random random(5);
  Context context(kernels());
  for (const CacheFormat format : kRowFormats)
    for (const AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
      LatentCache cache(layer.config(), format);
      const RowMajorMatrix once = run(layer, x, cache, context, {.mode = mode});
      const CacheContents contents(cache);
      for (const Index threads : {2, 3}) {
        ThreadExecutor executor(threads);
        Context threaded(executor, kernels());
        LatentCache other(layer.config(), format);
        EXPECT_TRUE(same_bits(run(layer, x, other, threaded, {.mode = mode}), once));
        EXPECT_EQ(CacheContents(other), contents);
      }
      LatentCache chunked(layer.config(), format);
      for (Index first = 0; first < tokens;) {
        const Index count = std::min<Index>(random.integer(1, 40), tokens - first);
        EXPECT_TRUE(
            same_bits(run(layer, x.middleRows(first, count), chunked, context, {.mode = mode}),
                      once.middleRows(first, count)))
            << name_of(format) << ", tokens from " << first;
        first += count;
      }
      EXPECT_EQ(CacheContents(chunked), contents);

      LatentCache a(layer.config(), format), b(layer.config()), alone(layer.config());
      RowMajorMatrix both(tokens + others, x.cols()), out(tokens + others, x.cols());
      both << other_x, x;
      layer.layer.forward(both, {{&b, others}, {&a, tokens}}, out, context, {.mode = mode});
      EXPECT_TRUE(same_bits(out.bottomRows(tokens), once));
      EXPECT_TRUE(
          same_bits(out.topRows(others), run(layer, other_x, alone, context, {.mode = mode})));
    }
}

// More keys than a task scores, whose scores are equal every now and then.
TEST_P(IndexedAttention, GoesOverLongCaches) {
  AttentionConfig config = sparse_config(64);
  config.hidden_size = 16;
  TestLayer layer(config);
  const Index tokens = 2200;
  const RowMajorMatrix x = layer.input(tokens);
  static const DoubleMatrix expected =
      reference_output(layer, x, consecutive(0, tokens)).bottomRows(2);
  Context context(kernels());
  LatentCache cache(config);
  layer.layer.append(x.topRows(tokens - 2), cache, context);
  ThreadExecutor executor(3);
  Context threaded(executor, kernels());
  LatentCache fork = cache.fork(cache.size());
  const RowMajorMatrix last = run(layer, x.bottomRows(2), cache, context);
  EXPECT_TRUE(same_bits(run(layer, x.bottomRows(2), fork, threaded), last));
  EXPECT_TRUE(close(last, expected, kTinyFloat32Tolerance));
}

TEST_P(IndexedAttention, ForksAndTruncatesWithItsIndexKeys) {
  TestLayer layer(sparse_config(12));
  const RowMajorMatrix x = layer.input(100), detour = layer.input(30);
  Context context(kernels());
  for (const CacheFormat format : {CacheFormat::float32, CacheFormat::bfloat16, CacheFormat::fp8}) {
    LatentCache cache(layer.config(), format);
    const RowMajorMatrix once = run(layer, x, cache, context);
    LatentCache again(layer.config(), format);
    run(layer, x.topRows(66), again, context);
    LatentCache fork = again.fork(50);
    run(layer, detour, again, context);
    again.truncate(66);
    EXPECT_TRUE(same_bits(run(layer, x.bottomRows(34), again, context), once.bottomRows(34)));
    run(layer, x.middleRows(50, 25), fork, context);
    EXPECT_TRUE(same_bits(run(layer, x.bottomRows(25), fork, context), once.bottomRows(25)));
  }
}

// As if the evicted tokens had never been there, at the positions that the others have.
TEST_P(IndexedAttention, SelectsAmongWhatIsLeftOfACache) {
  TestLayer layer(sparse_config(12));
  const RowMajorMatrix x = layer.input(120), next = layer.input(5);
  Context context(kernels());
  LatentCache cache(layer.config()), left(layer.config());
  run(layer, x, cache, context);
  for (Index row = 0; row < 120; ++row) {
    if (row >= 30 && row < 75) continue;
    const Index position = row;
    const Index width = cache.layout().bytes, key_width = cache.index_keys()->layout().bytes;
    left.append_stored({cache.row(row), 1, width}, {&position, 1},
                       {cache.index_keys()->row(row), 1, key_width});
  }
  cache.evict(30, 45);
  EXPECT_EQ(cache.size(), left.size());
  EXPECT_GT(cache.segments().size(), 1u);
  const RowMajorMatrix expected = run(layer, next, left, context);
  EXPECT_TRUE(close(run(layer, next, cache, context), expected.cast<double>(), kFloat32Tolerance));
}

TEST_P(IndexedAttention, GoesOnFromASnapshot) {
  const TemporaryDirectory directory;
  TestLayer layer(sparse_config(12));
  const RowMajorMatrix x = layer.input(80);
  Context context(kernels());
  for (const CacheFormat format : {CacheFormat::float32, CacheFormat::fp8}) {
    LatentCache cache(layer.config(), format), restored(layer.config(), format);
    run(layer, x.topRows(70), cache, context);
    save_snapshot(directory / "cache", layer.config(), cache);
    restore_snapshot(directory / "cache", layer.config(), restored);
    EXPECT_TRUE(same_bits(run(layer, x.bottomRows(10), restored, context),
                          run(layer, x.bottomRows(10), cache, context)));
  }
  LatentCache other(sparse_config(13), CacheFormat::fp8);
  EXPECT_TRUE(fails_naming([&] { restore_snapshot(directory / "cache", sparse_config(13), other); },
                           {"index_topk"}));
}

// ---- layers that share a selection

TEST_P(IndexedAttention, OfAnotherLayerIsAttentionToItsRows) {
  TestLayer layer(sparse_config(12));
  AttentionConfig shared_config = layer.config();
  shared_config.indexer.type = IndexerType::shared;
  TestLayer shared(shared_config, {}, 2), dense(without_indexer(shared_config), {}, 2);
  const Index tokens = 60;
  const RowMajorMatrix x = layer.input(tokens);
  Context context(kernels());
  LatentCache cache(layer.config()), shared_cache(shared_config), dense_cache(dense.config());
  EXPECT_EQ(shared_cache.index_keys(), nullptr);

  RowMajorMatrix out(tokens, x.cols());
  {
    LatentCache* const caches[] = {&cache};
    LatentCache* const shared_caches[] = {&shared_cache};
    const Sequence sequence = {&cache, tokens};
    const Workspace::Scope scope(context.workspace());
    const CallPlan plan = layer.layer.plan(tokens, std::span(&sequence, 1),
                                           {.mode = AttentionForm::absorbed}, context);
    IndexSelection selection(layer.config(), plan, context.workspace());
    const std::string early = message_of([&] {
      shared.layer.forward(plan, shared_caches, view_of(x), mutable_view_of(out), context, {},
                           &selection);
    });
    EXPECT_NE(early.find("must come before it"), std::string::npos) << early;
    EXPECT_EQ(shared_cache.size(), 0);
    layer.layer.forward(plan, caches, view_of(x), mutable_view_of(out), context, {}, &selection);
    shared.layer.forward(plan, shared_caches, view_of(x), mutable_view_of(out), context, {},
                         &selection);
  }
  std::vector<Index> first = {0}, rows;
  for (const auto& list :
       selections_of(layer, x, index_keys_of(layer.config(), CacheFormat::float32), context)) {
    rows.insert(rows.end(), list.begin(), list.end());
    first.push_back(std::ssize(rows));
  }
  EXPECT_TRUE(same_bits(out, run(dense, x, dense_cache, context, {.selected = {first, rows}})));
}

// ---- what is refused

TEST(IndexedAttentionErrors, LeaveTheCache) {
  TestLayer layer(sparse_config(4));
  Context context;
  LatentCache cache(layer.config());
  run(layer, layer.input(6), cache, context);
  const CacheContents before(cache);
  const RowMajorMatrix x = layer.input(2);
  const std::vector<Index> first = {0, 1, 2}, rows = {0, 1};
  EXPECT_EQ(message_of([&] {
              run(layer, x, cache, context, {.selected = {first, rows}});
            }),
            "a layer with an indexer selects keys itself, it takes no selection");
  EXPECT_EQ(message_of([&] { run(layer, x, cache, context, {.window = {.keep = 1, .rows = 3}}); }),
            "sequence 0 has index keys, which no window slides over");
  EXPECT_EQ(message_of([&] { cache.shift(2, 1); }),
            "cannot shift a cache with index keys: they are rotated, too");
  LatentCache without(without_indexer(layer.config()));
  EXPECT_EQ(
      message_of([&] { run(layer, x, without, context); }),
      "the cache of sequence 0 has index keys of 0 numbers, the indexer of this layer needs 14");
  LatentCache other(layer.config(), CacheFormat::float32, {12, CacheFormat::float32});
  EXPECT_EQ(message_of([&] { run(layer, x, other, context); }),
            "the cache of sequence 0 has index keys of 12 numbers, the indexer of this layer needs "
            "14");
  EXPECT_EQ(CacheContents(cache), before);

  AttentionConfig shared = layer.config();
  shared.indexer.type = IndexerType::shared;
  TestLayer alone(shared);
  LatentCache shared_cache(shared);
  EXPECT_NE(message_of([&] {
              run(alone, layer.input(6), shared_cache, context);
            }).find("must come before it"),
            std::string::npos);
  EXPECT_EQ(shared_cache.size(), 0);
}

TEST(IndexerConfig, NamesTheFieldThatDoesNotFit) {
  const auto message = [](auto change) {
    AttentionConfig config = sparse_config(4);
    change(config);
    return message_of([&] { config.validate(); });
  };
  EXPECT_EQ(message([](AttentionConfig& c) { c.indexer.topk = 0; }),
            "index_topk must be between 1 and 16777216, got 0");
  EXPECT_EQ(message([](AttentionConfig& c) { c.indexer.heads = 0; }),
            "index_n_heads must be between 1 and 16777216, got 0");
  EXPECT_EQ(message([](AttentionConfig& c) { c.indexer.head_dim = 8; }),
            "index_head_dim must be at least qk_rope_head_dim 10, got 8");
  EXPECT_EQ(message([](AttentionConfig& c) { c.q_lora_rank = 0; }),
            "an indexer needs compressed queries, but q_lora_rank is 0");
  EXPECT_EQ(message([](AttentionConfig& c) { c.indexer.type = static_cast<IndexerType>(7); }),
            "indexer.type must be an IndexerType, got 7");
}

TEST(IndexerWeights, AreThereWhereTheLayerHasAnIndexer) {
  TestLayer layer(sparse_config(4));
  AttentionWeights weights = layer.weights.views();
  EXPECT_EQ(message_of([&] { weights.validate(without_indexer(layer.config())); }),
            "tensor indexer.wq_b is set, but this configuration does not use it");
  weights.indexer_k_norm_bias = {};
  EXPECT_NE(message_of([&] { weights.validate(layer.config()); }).find("indexer.k_norm_bias"),
            std::string::npos);
}

}  // namespace
}  // namespace mla::test
