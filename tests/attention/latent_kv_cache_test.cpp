#include "mla/attention/latent_kv_cache.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "support/cache_types.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

// Appends random rows at the positions.
template <class T>
void append(LatentKVCache<T>& cache, const std::vector<Index>& positions, Random& random) {
  const auto rows =
      random_matrix(static_cast<Index>(positions.size()), cache.layout().width(), random);
  cache.append({rows.data(), rows.rows(), rows.cols()}, positions);
}

template <class T>
class LatentKVCacheOf : public ::testing::Test {};
TYPED_TEST_SUITE(LatentKVCacheOf, CacheTypes, TypeNames);

TYPED_TEST(LatentKVCacheOf, KeepsRowsRoundedToItsElementType) {
  LatentKVCache<TypeParam> cache(small_config());
  Random random(1);
  const auto rows = random_matrix(130, cache.layout().width(), random);
  cache.append({rows.data(), 130, rows.cols()}, consecutive(0, 130));
  ASSERT_EQ(cache.size(), 130);
  for (Index i = 0; i < 130; ++i)
    for (Index c = 0; c < rows.cols(); ++c)
      ASSERT_EQ(cache.row(i)[c], TypeParam(rows(i, c))) << i << " " << c;
}

TYPED_TEST(LatentKVCacheOf, TruncateThenAppendEqualsNeverHavingAppended) {
  for (Index keep : {0, 1, 63, 64, 65, 127, 129}) {
    LatentKVCache<TypeParam> truncated(small_config()), straight(small_config());
    Random random(2), same(2), other(3);
    append(truncated, consecutive(0, keep), random);
    append(straight, consecutive(0, keep), same);
    append(truncated, consecutive(keep + 5, 140), other);  // a rejected draft, with a gap
    truncated.truncate(keep);
    ASSERT_EQ(CacheContents(truncated), CacheContents(straight)) << keep;
    append(truncated, consecutive(keep, 70), random);
    append(straight, consecutive(keep, 70), same);
    ASSERT_EQ(CacheContents(truncated), CacheContents(straight)) << keep;
  }
}

TYPED_TEST(LatentKVCacheOf, RowsNeverMoveWhenOthersAreAppended) {
  LatentKVCache<TypeParam> cache(small_config());
  Random random(4);
  std::vector<const TypeParam*> rows;
  for (Index i = 0; i < 1000; ++i) {
    append(cache, {i}, random);
    rows.push_back(cache.row(i));
  }
  for (Index i = 0; i < 1000; ++i) ASSERT_EQ(cache.row(i), rows[static_cast<std::size_t>(i)]);
}

TYPED_TEST(LatentKVCacheOf, CountsItsBytes) {
  LatentKVCache<TypeParam> cache(AttentionConfig::deepseek_v3());
  EXPECT_EQ(cache.bytes_per_token(), 576 * sizeof(TypeParam));
  EXPECT_EQ(cache.bytes_used(), 0u);
  EXPECT_EQ(cache.bytes_allocated(), 0u);
  Random random(5);
  append(cache, consecutive(0, 65), random);
  EXPECT_EQ(cache.bytes_used(), 65 * 576 * sizeof(TypeParam));
  // Two pages of 64 rows, and 8 bytes for each position that there is room for.
  const std::size_t pages = 128 * 576 * sizeof(TypeParam);
  EXPECT_GE(cache.bytes_allocated(), pages + 65 * 8);
  EXPECT_LE(cache.bytes_allocated(), pages + 128 * 8);
}

TYPED_TEST(LatentKVCacheOf, ReserveMakesRoomAndChangesNothingElse) {
  LatentKVCache<TypeParam> cache(small_config());
  Random random(6);
  append(cache, consecutive(0, 3), random);
  const CacheContents before(cache);
  const TypeParam* row = cache.row(0);
  cache.reserve(1000);
  EXPECT_EQ(CacheContents(cache), before);
  EXPECT_EQ(cache.row(0), row);
  EXPECT_GE(cache.rows().capacity(), 1000);
  const std::size_t bytes = cache.bytes_allocated();
  append(cache, consecutive(3, 997), random);
  EXPECT_EQ(cache.bytes_allocated(), bytes);
  cache.reserve(10);  // never takes away
  EXPECT_EQ(cache.size(), 1000);
}

TYPED_TEST(LatentKVCacheOf, ABadAppendLeavesItAsItWas) {
  LatentKVCache<TypeParam> cache(small_config());
  Random random(7);
  append(cache, {0, 1, 10}, random);
  const CacheContents before(cache);
  const std::vector<float> memory(1000);
  const Index width = cache.layout().width();
  const auto bad = [&](Index rows, Index cols, std::vector<Index> positions) {
    return [&, rows, cols, positions] { cache.append({memory.data(), rows, cols}, positions); };
  };
  EXPECT_TRUE(refuses(bad(1, width - 1, {11}), {"46", "45"}));
  EXPECT_TRUE(refuses(bad(2, width, {11}), {"2 rows", "1 positions"}));
  EXPECT_TRUE(refuses(bad(1, width, {10}), {"rise", "10 after 10"}));
  EXPECT_TRUE(refuses(bad(2, width, {11, 11}), {"rise", "11 after 11"}));
  EXPECT_TRUE(refuses(bad(3, width, {11, 13, 12}), {"rise", "12 after 13"}));
  EXPECT_TRUE(refuses([&] { cache.truncate(4); }, {"3", "4"}));
  EXPECT_TRUE(refuses([&] { cache.truncate(-1); }, {"3", "-1"}));
  EXPECT_EQ(CacheContents(cache), before);
}

TEST(LatentKVCache, RefusesNegativePositionsFromTheStart) {
  LatentKVCache<float> cache(small_config());
  const std::vector<float> row(46);
  const Index position[] = {-1};
  EXPECT_TRUE(refuses([&] { cache.append({row.data(), 1, 46}, position); }, {"negative", "-1"}));
}

TEST(LatentKVCache, ContinuesAfterTheLastPositionNotAfterTheSize) {
  LatentKVCache<float> cache(small_config());
  EXPECT_EQ(cache.next_position(), 0);
  Random random(8);
  append(cache, {5, 100}, random);
  EXPECT_EQ(cache.next_position(), 101);
  cache.truncate(1);
  EXPECT_EQ(cache.next_position(), 6);
  cache.truncate(0);
  EXPECT_EQ(cache.next_position(), 0);
}

TEST(LatentKVCache, ClearForgetsTokensAndKeepsTheMemory) {
  LatentKVCache<float> cache(small_config());
  Random random(9);
  append(cache, consecutive(0, 200), random);
  const std::size_t bytes = cache.bytes_allocated();
  cache.clear();
  EXPECT_EQ(CacheContents(cache), CacheContents(LatentKVCache<float>(small_config())));
  EXPECT_EQ(cache.bytes_allocated(), bytes);
  cache.shrink_to_fit();
  EXPECT_EQ(cache.bytes_allocated(), 0u);
}

TEST(LatentKVCache, ShrinkKeepsTheRowsWhereTheyAre) {
  LatentKVCache<float> cache(small_config());
  Random random(10);
  append(cache, consecutive(0, 65), random);
  cache.reserve(10'000);
  const CacheContents before(cache);
  const float* row = cache.row(64);
  cache.shrink_to_fit();
  EXPECT_EQ(CacheContents(cache), before);
  EXPECT_EQ(cache.row(64), row);
  EXPECT_EQ(cache.rows().capacity(), 128);
  append(cache, consecutive(65, 100), random);
  EXPECT_EQ(cache.size(), 165);
}

TEST(LatentKVCache, IsEmptyAfterItWasMovedFrom) {
  LatentKVCache<float> cache(small_config());
  Random random(11);
  append(cache, consecutive(0, 65), random);
  const CacheContents before(cache);
  LatentKVCache<float> moved(std::move(cache));
  EXPECT_EQ(CacheContents(moved), before);
  EXPECT_EQ(cache.size(), 0);
  EXPECT_EQ(cache.next_position(), 0);
  append(cache, consecutive(0, 3), random);  // and usable
  cache = std::move(moved);
  EXPECT_EQ(CacheContents(cache), before);
  EXPECT_EQ(moved.size(), 0);
}

TEST(LatentKVCache, PagesAreAlignedToCacheLines) {
  LatentKVCache<bfloat16> cache(small_config());
  cache.reserve(500);
  for (Index page = 0; page < 8; ++page)
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(cache.rows().pages()[page]) % 64, 0u);
}

TEST(LatentKVCache, FitsConfigsWithTheSameRows) {
  const LatentKVCache<float> cache(AttentionConfig::deepseek_v3());
  auto other = AttentionConfig::deepseek_v3();
  other.num_attention_heads = 16;
  other.q_lora_rank = 0;
  EXPECT_TRUE(cache.fits(other));
  EXPECT_FALSE(cache.fits(AttentionConfig::kimi_k2()));  // keys are rotated otherwise
  other.kv_lora_rank = 448;  // rows are of 576 elements again, but differently divided
  other.qk_rope_head_dim = 128;
  EXPECT_FALSE(cache.fits(other));
  EXPECT_EQ(cache.kv_lora_rank(), 512);
  EXPECT_EQ(cache.rope_key_width(), 64);
}

TEST(LatentKVCache, RefusesAConfigThatDoesNotFit) {
  auto config = small_config();
  config.kv_lora_rank = 0;
  EXPECT_TRUE(refuses([&] { LatentKVCache<float> cache(config); }, {"kv_lora_rank", "0"}));
}

}  // namespace
}  // namespace mla::test
