#include "mla/baseline/key_value_cache.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

#include "baseline/grouped_query_layer.hpp"

namespace mla {
namespace {

using test::positions_from;
using test::Random;

const GroupedQueryConfig kConfig = {.hidden_size = 8,
                                    .num_attention_heads = 6,
                                    .num_key_value_heads = 3,
                                    .head_dim = 6,
                                    .v_head_dim = 5};

MatrixView<const float> rows_of(const RowMajorMatrix& m, Index first, Index count) {
  return MatrixView<const float>(m.data(), m.rows(), m.cols()).row_range(first, count);
}

struct Tokens {
  explicit Tokens(Index count, std::uint64_t seed = 1)
      : keys(Random(seed).matrix(count, 18)), values(Random(seed + 1).matrix(count, 15)) {}

  template <class T>
  void append_to(KeyValueCache<T>& cache, Index first, Index count) const {
    cache.append(rows_of(keys, first, count), rows_of(values, first, count),
                 positions_from(cache.next_position(), count));
  }

  RowMajorMatrix keys;    // [tokens, 3 * 6]
  RowMajorMatrix values;  // [tokens, 3 * 5]
};

template <class T>
class KeyValueCacheOf : public testing::Test {};
using CacheTypes = testing::Types<float, bfloat16, float16>;
TYPED_TEST_SUITE(KeyValueCacheOf, CacheTypes);

template <class T>
void expect_holds(const KeyValueCache<T>& cache, const Tokens& tokens, Index count) {
  ASSERT_EQ(cache.size(), count);
  for (Index i = 0; i < count; ++i)
    for (Index h = 0; h < 3; ++h) {
      for (Index c = 0; c < 6; ++c)
        ASSERT_EQ(cache.key(i, h)[c], T(tokens.keys(i, h * 6 + c))) << i << " " << h << " " << c;
      for (Index c = 0; c < 5; ++c) ASSERT_EQ(cache.value(i, h)[c], T(tokens.values(i, h * 5 + c)));
    }
}

TYPED_TEST(KeyValueCacheOf, HoldsWhatWasAppendedRoundedToItsType) {
  const Tokens tokens(130);
  KeyValueCache<TypeParam> cache(kConfig);
  Index first = 0;
  for (Index count : {1, 62, 0, 1, 1, 64, 1}) {
    tokens.append_to(cache, first, count);
    first += count;
    expect_holds(cache, tokens, first);
  }
}

TYPED_TEST(KeyValueCacheOf, GivesKernelsTheSameKeysAndValues) {
  const Tokens tokens(70);
  KeyValueCache<TypeParam> cache(kConfig);
  tokens.append_to(cache, 0, 70);
  for (Index h = 0; h < 3; ++h) {
    const simd::KeyValueRows rows = cache.head(h, 66);
    EXPECT_EQ(rows.layout, cache.head_row());
    EXPECT_EQ(rows.count, 66);
    EXPECT_EQ(rows.key_width + rows.tail_width, 6);
    EXPECT_EQ(rows.value_width, 5);
    EXPECT_EQ(rows.page_rows % simd::kTileKeys, 0);
    for (Index i = 0; i < rows.count; ++i) {
      const auto* row = reinterpret_cast<const TypeParam*>(rows.row_of(i));
      EXPECT_EQ(row + rows.key_offset, cache.key(i, h));
      EXPECT_EQ(row + rows.value_offset, cache.value(i, h));
    }
  }
}

TYPED_TEST(KeyValueCacheOf, TruncateThenAppendEqualsNeverHavingAppended) {
  const Tokens tokens(130), others(130, 9);
  for (Index kept : {0, 1, 63, 64, 65, 129, 130}) {
    KeyValueCache<TypeParam> cache(kConfig);
    tokens.append_to(cache, 0, kept);
    others.append_to(cache, kept, 130 - kept);
    cache.truncate(kept);
    EXPECT_EQ(cache.next_position(), kept);
    tokens.append_to(cache, kept, 130 - kept);
    expect_holds(cache, tokens, 130);
  }
}

TYPED_TEST(KeyValueCacheOf, BytesAreKeysAndValuesInPagesOf64Tokens) {
  const Tokens tokens(65);
  constexpr std::size_t kRow = 3 * (6 + 5) * sizeof(TypeParam);
  KeyValueCache<TypeParam> cache(kConfig);
  EXPECT_EQ(cache.bytes_per_token(), kRow);
  EXPECT_EQ(cache.bytes_used(), 0u);
  EXPECT_EQ(cache.bytes_allocated(), 0u);
  tokens.append_to(cache, 0, 1);
  EXPECT_EQ(cache.bytes_used(), kRow);
  EXPECT_EQ(cache.bytes_allocated(), 64 * (kRow + sizeof(Index)));
  tokens.append_to(cache, 1, 64);
  EXPECT_EQ(cache.bytes_used(), 65 * kRow);
  EXPECT_EQ(cache.bytes_allocated(), 128 * (kRow + sizeof(Index)));
  cache.truncate(64);
  EXPECT_EQ(cache.bytes_used(), 64 * kRow);
  EXPECT_EQ(cache.bytes_allocated(), 128 * (kRow + sizeof(Index)));
  cache.shrink_to_fit();
  EXPECT_EQ(cache.bytes_allocated(), 64 * (kRow + sizeof(Index)));
  cache.clear();
  cache.shrink_to_fit();
  EXPECT_EQ(cache.bytes_allocated(), 0u);
}

TEST(KeyValueCache, AppendWithinTheReserveMovesNothing) {
  const Tokens tokens(200);
  KeyValueCache<float> cache(kConfig);
  cache.reserve(200);
  const std::size_t bytes = cache.bytes_allocated();
  tokens.append_to(cache, 0, 1);
  const float* first = cache.key(0, 0);
  tokens.append_to(cache, 1, 199);
  EXPECT_EQ(cache.key(0, 0), first);
  EXPECT_EQ(cache.bytes_allocated(), bytes);
  cache.reserve(1);
  EXPECT_EQ(cache.bytes_allocated(), bytes);
}

TEST(KeyValueCache, AnAppendThatThrowsChangesNothing) {
  const Tokens tokens(70);
  KeyValueCache<float> cache(kConfig);
  tokens.append_to(cache, 0, 10);
  const auto keys = rows_of(tokens.keys, 10, 2), values = rows_of(tokens.values, 10, 2);
  const std::vector<Index> good = {10, 11}, falling = {12, 11}, old = {9, 10}, one = {10};
  EXPECT_THROW(cache.append(keys.col_range(0, 17), values, good), std::invalid_argument);
  EXPECT_THROW(cache.append(keys, values.col_range(0, 14), good), std::invalid_argument);
  EXPECT_THROW(cache.append(keys, values.row_range(0, 1), good), std::invalid_argument);
  EXPECT_THROW(cache.append(keys, values, one), std::invalid_argument);
  EXPECT_THROW(cache.append(keys, values, falling), std::invalid_argument);
  EXPECT_THROW(cache.append(keys, values, old), std::invalid_argument);
  EXPECT_THROW(cache.truncate(11), std::invalid_argument);
  EXPECT_THROW(cache.truncate(-1), std::invalid_argument);
  expect_holds(cache, tokens, 10);
  EXPECT_EQ(cache.next_position(), 10);
  cache.append(keys, values, good);
  expect_holds(cache, tokens, 12);
}

TEST(KeyValueCache, RefusesAConfigurationThatDoesNotFit) {
  GroupedQueryConfig config = kConfig;
  config.num_key_value_heads = 4;
  EXPECT_THROW(KeyValueCache<float>{config}, std::invalid_argument);
}

}  // namespace
}  // namespace mla
