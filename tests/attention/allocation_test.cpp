// What forward() allocates, and what happens when it cannot.
#include <gtest/gtest.h>

#include <functional>
#include <new>
#include <utility>
#include <vector>

#include "mla/attention/absorbed_attention.hpp"
#include "mla/attention/decompressed_attention.hpp"
#include "mla/attention/flash_mla.hpp"
#include "mla/attention/merge_attention.hpp"
#include "support/cache_types.hpp"
#include "support/checked_cache.hpp"
#include "support/counting_operator_new.hpp"
#include "support/executors.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

template <class T>
class Allocation : public ::testing::Test {
 protected:
  // Decodes 70 tokens, across the boundary of a page, after a prompt and one step to warm up.
  void expect_decoding_allocates_nothing(const AttentionConfig& config, AttentionForm mode,
                                         bool split) {
    TestLayer layer(config, {.split = split});
    Context context;
    LatentKVCache<T> cache(config);
    cache.reserve(200);
    RowMajorMatrix out(1, config.hidden_size);
    const RowMajorMatrix steps = layer.input(70);
    run(layer, layer.input(20), cache, context, {.mode = mode});
    layer.layer.forward(steps.row(0), cache, out, context, {.mode = mode});
    const AllocationCount allocations;
    for (Index t = 1; t < 70; ++t)
      layer.layer.forward(steps.row(t), cache, out, context, {.mode = mode});
    EXPECT_EQ(allocations.count(), 0) << "mode " << static_cast<int>(mode);
    EXPECT_EQ(cache.size(), 90);
  }
};
TYPED_TEST_SUITE(Allocation, CacheTypes, TypeNames);

TYPED_TEST(Allocation, ADecodingStepAllocatesNothingAfterTheFirst) {
  for (AttentionForm mode :
       {AttentionForm::absorbed, AttentionForm::decompressed, AttentionForm::automatic}) {
    this->expect_decoding_allocates_nothing(small_config(), mode, false);
    this->expect_decoding_allocates_nothing(AttentionConfig::lesson(48, 4, 24, 20, 8), mode, true);
    AttentionConfig sparse = small_config();
    sparse.indexer = {.type = IndexerType::full, .heads = 5, .head_dim = 14, .topk = 9};
    this->expect_decoding_allocates_nothing(sparse, mode, false);
    // Scratch memory of several blocks.
    this->expect_decoding_allocates_nothing(make_config(40, 30, 0, 300, 20, 10, 20), mode, false);
  }
}

// 128 heads have the most scratch memory; the kernels cut a sequence into parts of 1024 keys.
TYPED_TEST(Allocation, ADecodingStepAllocatesNothingOverALongReservedCache) {
  TestLayer layer(make_config(16, 128, 0, 20, 4, 2, 4));
  Context context;
  LatentKVCache<TypeParam> cache(layer.config());
  cache.reserve(4200);
  const RowMajorMatrix x = layer.input(1);
  RowMajorMatrix out(1, x.cols());
  std::vector<float> row(static_cast<std::size_t>(layer.config().cache_row_width()), 0.5f);
  const auto fill_to = [&](Index tokens) {
    while (cache.size() < tokens) {
      const Index position = cache.next_position();
      cache.append({row.data(), 1, std::ssize(row)}, {&position, 1});
    }
  };
  const ForwardOptions absorbed = {.mode = AttentionForm::absorbed};
  layer.layer.forward(x, cache, out, context, absorbed);
  for (Index tokens : {1023, 2047, 3072, 4100}) {
    fill_to(tokens);
    const AllocationCount allocations;
    for (int i = 0; i < 3; ++i) layer.layer.forward(x, cache, out, context, absorbed);
    EXPECT_EQ(allocations.count(), 0) << tokens;
  }
}

// Over a prefix that other sequences see too, and the sequence's own cache.
TYPED_TEST(Allocation, AttentionOverTwoPartsAndMergingThemAllocatesNothingAfterTheFirst) {
  for (const AttentionConfig& config :
       {small_config(), AttentionConfig::lesson(48, 4, 24, 20, 8)}) {
    TestLayer layer(config, {.split = config.rope_key_per_head});
    const LatentDecompression decompression(config, layer.weights.views());
    const AbsorbedAttention absorbed(config, 0.1);
    const DecompressedAttention decompressed(config, 0.1, decompression);
    Context context;
    LatentKVCache<TypeParam> prefix(config), own(config);
    run(layer, layer.input(70), prefix, context);
    run(layer, layer.input(10), own, context);
    const CachedTokens before = CachedTokens::after(prefix, 0, 2);
    const CachedTokens last = CachedTokens::ending_in(own, 0, 2);
    const Index heads = config.num_attention_heads;
    const auto step = [&](const auto& attention, Index key_width, Index value_width) {
      const Workspace::Scope scope(context.workspace());
      const auto take = [&](Index cols) {
        const auto matrix = context.workspace().template take_matrix<float>(2, cols);
        std::fill_n(matrix.data, 2 * cols, 0.5f);
        return matrix;
      };
      const auto queries = take(heads * key_width);
      const auto values = take(heads * value_width), log_sum_exp = take(heads);
      const auto more_values = take(heads * value_width), more_log_sum_exp = take(heads);
      attention.forward({&last, 1}, queries, values, context, log_sum_exp);
      attention.forward({&before, 1}, queries, more_values, context, more_log_sum_exp);
      merge_attention(more_values, more_log_sum_exp, values, log_sum_exp);
    };
    const auto both = [&] {
      step(absorbed, config.kv_lora_rank + config.qk_rope_head_dim, config.kv_lora_rank);
      step(decompressed, config.qk_head_dim(), config.v_head_dim);
    };
    both();
    const AllocationCount allocations;
    for (int i = 0; i < 3; ++i) both();
    EXPECT_EQ(allocations.count(), 0);
  }
}

TYPED_TEST(Allocation, CallsThatGrowLittleByLittleDoNotPileUpMemory) {
  TestLayer layer(make_config(40, 16, 0, 30, 20, 10, 20));
  Context little_by_little, at_once;
  const RowMajorMatrix x = layer.input(200);
  RowMajorMatrix out(200, x.cols());
  for (Index tokens = 1; tokens <= 200; ++tokens) {
    LatentKVCache<TypeParam> cache(layer.config());
    layer.layer.forward(x.topRows(tokens), cache, out.topRows(tokens), little_by_little);
  }
  LatentKVCache<TypeParam> cache(layer.config());
  layer.layer.forward(x, cache, out, at_once);
  EXPECT_LT(little_by_little.workspace().bytes_allocated(),
            4 * at_once.workspace().bytes_allocated());
}

TYPED_TEST(Allocation, ABatchedMaskedStepAllocatesNothingAfterTheFirst) {
  TestLayer layer(small_config());
  BackwardExecutor executor;  // anything but the one that is built in
  Context context(executor);
  std::vector<LatentKVCache<TypeParam>> caches;
  for (int s = 0; s < 3; ++s) caches.emplace_back(layer.config()).reserve(100);
  const std::vector<Sequence> batch = {{&caches[0], 2}, {&caches[1], 0}, {&caches[2], 1}};
  const std::vector<std::uint8_t> mask = {0, 1, 1};
  const RowMajorMatrix x = layer.input(3);
  RowMajorMatrix out(3, x.cols());
  const auto step = [&] { layer.layer.forward(x, batch, out, context, {.attention_mask = mask}); };
  step();
  const AllocationCount allocations;
  for (int i = 0; i < 70; ++i) step();
  EXPECT_EQ(allocations.count(), 0);
}

TYPED_TEST(Allocation, ASmallerCallThanBeforeAllocatesNothing) {
  TestLayer layer(small_config());
  Context context;
  const RowMajorMatrix x = layer.input(100);
  RowMajorMatrix out(100, x.cols());
  for (AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
    LatentKVCache<TypeParam> cache(layer.config());
    cache.reserve(1000);
    layer.layer.forward(x, cache, out, context, {.mode = mode});
    const AllocationCount allocations;
    for (Index tokens : {99, 64, 1, 17})
      layer.layer.forward(x.topRows(tokens), cache, out.topRows(tokens), context, {.mode = mode});
    EXPECT_EQ(allocations.count(), 0);
  }
}

// Every allocation of a first call fails once. The caches stay as they were, nothing leaks, and the
// same objects compute the right result afterwards.
TYPED_TEST(Allocation, AFailureAnywhereLeavesTheCachesAsTheyWere) {
  TestLayer layer(make_config(64, 8, 0, 100, 32, 16, 32));
  const RowMajorMatrix history = layer.input(60), x = layer.input(210);
  std::vector<std::uint8_t> mask(210, 1);
  mask[3] = 0;
  for (AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
    Context context;
    LatentKVCache<TypeParam> a(layer.config()), b(layer.config());
    run(layer, history, a, context, {.mode = mode});
    run(layer, x.topRows(140), a, context, {.mode = mode});
    RowMajorMatrix expected(210, x.cols()), out(210, x.cols());
    a.truncate(60);
    const std::vector<Sequence> batch = {{&a, 140}, {&b, 70}};
    const ForwardOptions options = {.mode = mode, .attention_mask = mask};
    layer.layer.forward(x, batch, expected, context, options);

    int failures = 0;
    for (bool failed = true; failed;) {
      Context fresh;
      a.truncate(60);
      a.shrink_to_fit();
      b.clear();
      b.shrink_to_fit();
      const CacheContents before_a(a), before_b(b);
      {
        const FailingAllocation failing(failures);
        try {
          layer.layer.forward(x, batch, out, fresh, options);
        } catch (const std::bad_alloc&) {
        }
        failed = failing.failed();
      }
      if (!failed) break;
      ++failures;
      EXPECT_EQ(CacheContents(a), before_a) << failures;
      EXPECT_EQ(CacheContents(b), before_b) << failures;
      layer.layer.forward(x, batch, out, fresh, options);
      EXPECT_TRUE(same_bits(out, expected)) << failures;
    }
    EXPECT_TRUE(same_bits(out, expected));
    EXPECT_GE(failures, 10) << "pages, positions and scratch memory are allocations";
  }
}

TYPED_TEST(Allocation, AFailureInReserveOrAppendLeavesTheCacheAsItWas) {
  Random random(3);
  const auto rows = random_matrix(200, small_config().cache_row_width(), random);
  const auto positions = consecutive(0, 200);
  const auto part = [&](Index first, Index count) {
    return MatrixView<const float>(rows.data(), 200, rows.cols()).row_range(first, count);
  };
  for (int failures = 0;; ++failures) {
    LatentKVCache<TypeParam> cache(small_config());
    cache.append(part(0, 60), std::span(positions).first(60));
    const CacheContents before(cache);
    bool failed = false;
    {
      const FailingAllocation failing(failures);
      try {
        cache.append(part(60, 140), std::span(positions).subspan(60));
      } catch (const std::bad_alloc&) {
      }
      failed = failing.failed();
    }
    if (failed) {
      ASSERT_EQ(CacheContents(cache), before) << failures;
      cache.append(part(60, 140), std::span(positions).subspan(60));
    }
    ASSERT_EQ(cache.size(), 200);
    ASSERT_EQ(cache.row(199)[45], TypeParam(rows(199, 45)));
    if (!failed) break;
  }
}

TEST(QuantisedAllocation, ADecodingStepAllocatesNothingAfterTheFirst) {
  TestLayer layer(make_config(40, 16, 0, 300, 20, 10, 20));
  for (const CacheFormat format : kQuantised)
    for (const Mode mode : {Mode::absorbed, Mode::decompressed}) {
      Context context;
      LatentCache cache(layer.config(), format);
      cache.reserve(200);
      run(layer, layer.input(60), cache, context, {.mode = mode});
      const RowMajorMatrix x = layer.input(1);
      RowMajorMatrix out(1, x.cols());
      layer.layer.forward(x, cache, out, context, {.mode = mode});
      const AllocationCount allocations;
      for (int i = 0; i < 70; ++i) layer.layer.forward(x, cache, out, context, {.mode = mode});
      EXPECT_EQ(allocations.count(), 0) << name_of(format);
    }
}

TEST(QuantisedAllocation, AFailedAllocationLeavesTheCachesAsTheyWere) {
  TestLayer layer(make_config(64, 8, 0, 100, 32, 16, 32));
  const RowMajorMatrix x = layer.input(210);
  for (const CacheFormat format : kQuantised)
    for (const Mode mode : {Mode::absorbed, Mode::decompressed}) {
      RowMajorMatrix expected(210, x.cols()), out(210, x.cols());
      LatentCache a(layer.config(), format), b(layer.config(), CacheFormat::float32);
      const std::vector<Sequence> batch = {{&a, 140}, {&b, 70}};
      Context context;
      layer.layer.forward(x, batch, expected, context, {.mode = mode});
      const auto forget = [&] {
        for (LatentCache* cache : {&a, &b}) {
          cache->clear();
          cache->shrink_to_fit();
        }
      };
      forget();
      const int failures = fail_each_allocation(
          [&] {
            Context fresh;
            try {
              layer.layer.forward(x, batch, out, fresh, {.mode = mode});
            } catch (const std::bad_alloc&) {
              EXPECT_EQ(a.size(), 0);
              EXPECT_EQ(b.size(), 0);
              forget();  // pages that were reserved
              throw;
            }
          },
          [] {});
      EXPECT_GE(failures, 10);
      EXPECT_TRUE(same_bits(out, expected));
    }
}

TEST(QuantisedAllocation, AFailureWhileRowsOfFlashMlaComeInLeavesTheCacheAsItWas) {
  const AttentionConfig config = make_config(32, 2, 0, 512, 16, 64, 16);
  std::vector<std::byte> memory(static_cast<std::size_t>(3 * kFlashMlaPageBytes));
  const std::byte* pages[3];
  Random random(8);
  const RowMajorMatrix rows = random_matrix(150, 576, random);
  for (Index t = 0; t < 150; ++t)
    encode_flash_mla_row(rows.row(t).data(), Fp8Scale::largest,
                         memory.data() + t * kFlashMlaRowBytes);
  for (std::size_t p = 0; p < 3; ++p) pages[p] = memory.data() + p * kFlashMlaPageBytes;
  const std::vector<Index> positions = consecutive(0, 150);
  for (const CacheFormat format : {CacheFormat::fp8, CacheFormat::int8, CacheFormat::float32}) {
    LatentCache cache(config, format);
    const int failures = fail_each_allocation(
        [&] {
          try {
            import_flash_mla(pages, positions, cache);
          } catch (const std::bad_alloc&) {
            EXPECT_EQ(cache.size(), 0);
            cache = LatentCache(config, format);  // gives back what was reserved
            throw;
          }
        },
        [] {});
    EXPECT_GE(failures, 4) << name_of(format);
    EXPECT_EQ(cache.size(), 150);
  }
}

TEST(Construction, AFailureAnywhereThrowsAndLeaksNothing) {
  TestLayer layer(small_config(), {.biases = true});
  const int failures = fail_each_allocation(
      [&] { MultiheadLatentAttention(layer.config(), layer.weights.views()); }, [] {});
  EXPECT_GE(failures, 5);
}

TEST(CacheAllocation, MemoryIsFreeAgainWhenTheLastOwnerIsGone) {
  const long alive = allocations_alive;
  {
    Checked text = text_of(300);
    std::vector<Checked> forks;
    for (const Index at : {300, 299, 128, 0}) forks.push_back(text.fork(at));
    forks[0] = forks[1].fork(70);
    text = std::move(forks[2]);
  }
  EXPECT_EQ(allocations_alive, alive);
}

// Sink and window: the same two pages of slack for ever, and not one allocation.
TEST(CacheAllocation, SlidingAllocatesNothing) {
  Checked text = text_of(4 + 300);
  const SlidingWindow window = {.keep = 4, .rows = 300};
  Random random(4);
  const RowMajorMatrix row = random_matrix(1, kWidth, random);
  const auto step = [&] {
    text.cache.slide(window, text.cache.size());
    const Index position = text.cache.next_position();
    text.cache.append({row.data(), 1, kWidth}, {&position, 1});
  };
  for (int i = 0; i < 200; ++i) step();
  const std::size_t bytes = text.cache.bytes_allocated();
  const AllocationCount allocations;
  for (int i = 0; i < 5000; ++i) step();
  EXPECT_EQ(allocations.count(), 0);
  EXPECT_EQ(text.cache.bytes_allocated(), bytes);
  EXPECT_LE(bytes, (304u / 64 + 4) * text.cache.rows().page_bytes());
  EXPECT_EQ(text.cache.size(), 304);
  EXPECT_EQ(text.cache.positions(), consecutive(0, 304));
  EXPECT_EQ(text.cache.offset(), -5200);
}

TEST(CacheAllocation, WithoutMemoryTheTextIsAsItWas) {
  const auto each_fails = [](const std::function<void(Checked&)>& change) {
    Checked text = text_of(200);
    text.evict({70, 71});
    const Checked fork = text.fork(190);  // what is changed is shared
    const int failures = fail_each_allocation(
        [&] {
          LatentCache cache = text.cache.fork(text.size());
          Checked all = {std::move(cache), {}};
          try {
            change(all);
          } catch (const std::bad_alloc&) {
            EXPECT_EQ(CacheContents(all.cache), CacheContents(text.cache));
            throw;
          }
        },
        [&] {
          text.check("text");
          fork.check("fork");
        });
    EXPECT_GT(failures, 2);
  };
  std::vector<Index> scattered;
  for (Index row = 0; row < 190; row += 7) scattered.push_back(row);
  const std::vector<float> rows(static_cast<std::size_t>(100 * kWidth));
  each_fails([&](Checked& text) { text.cache.evict(scattered); });
  each_fails([&](Checked& text) { text.cache.evict(30, 90); });
  each_fails([&](Checked& text) { text.cache.shift(30, 9); });
  each_fails([&](Checked& text) { text.cache.slide({.keep = 4, .rows = 90}, 198); });
  each_fails([&](Checked& text) {
    text.cache.append({rows.data(), 100, kWidth}, consecutive(500, 100));
  });
  each_fails([&](Checked& text) { text.cache.rebase(small_config()); });
}

}  // namespace
}  // namespace mla::test
