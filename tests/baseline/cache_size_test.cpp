#include <gtest/gtest.h>

#include "baseline/grouped_query_layer.hpp"
#include "mla/attention/latent_kv_cache.hpp"
#include "mla/baseline/key_value_cache.hpp"

// What the published models cache, from the caches themselves. kB and GB are 10^3 and 10^9 bytes,
// as in the DeepSeek-V3 insights paper (Zhao et al. 2025, table 1).

namespace mla {
namespace {

void append_page(LatentKVCache<bfloat16>& cache, const AttentionConfig& config) {
  const RowMajorMatrix rows = RowMajorMatrix::Zero(64, config.cache_row_width());
  cache.append({rows.data(), rows.rows(), rows.cols()}, test::positions_from(0, 64));
}

void append_page(KeyValueCache<bfloat16>& cache, const GroupedQueryConfig& config) {
  const Index heads = config.num_key_value_heads;
  const RowMajorMatrix keys = RowMajorMatrix::Zero(64, heads * config.head_dim);
  const RowMajorMatrix values = RowMajorMatrix::Zero(64, heads * config.value_dim());
  cache.append({keys.data(), keys.rows(), keys.cols()},
               {values.data(), values.rows(), values.cols()}, test::positions_from(0, 64));
}

// Bytes that one token takes in one layer, from a bfloat16 cache that holds a page of tokens.
template <class Cache, class Config>
Index measured_bytes_per_token(const Config& config) {
  Cache cache(config);
  append_page(cache, config);
  // 8 bytes beside each row are its position.
  EXPECT_EQ(cache.bytes_allocated(), cache.bytes_used() + 64 * sizeof(Index));
  EXPECT_EQ(cache.bytes_used(), 64 * cache.bytes_per_token());
  return static_cast<Index>(cache.bytes_used()) / 64;
}

Index bytes_per_token(const AttentionConfig& config) {
  return measured_bytes_per_token<LatentKVCache<bfloat16>>(config);
}
Index bytes_per_token(const GroupedQueryConfig& config) {
  return measured_bytes_per_token<KeyValueCache<bfloat16>>(config);
}

GroupedQueryConfig heads(Index hidden_size, Index heads, Index key_value_heads, Index head_dim) {
  return {.hidden_size = hidden_size,
          .num_attention_heads = heads,
          .num_key_value_heads = key_value_heads,
          .head_dim = head_dim};
}

TEST(CacheSize, DeepSeekV3Takes70272BytesATokenIn61Layers) {
  EXPECT_EQ(61 * bytes_per_token(AttentionConfig::deepseek_v3()), 70'272);
}

TEST(CacheSize, Qwen25With72BTakes327680BytesATokenIn80Layers) {
  EXPECT_EQ(80 * bytes_per_token(heads(8192, 64, 8, 128)), 327'680);
}

TEST(CacheSize, Llama31With405BTakes516096BytesATokenIn126Layers) {
  EXPECT_EQ(126 * bytes_per_token(heads(16384, 128, 8, 128)), 516'096);
}

TEST(CacheSize, Gpt3Takes9660MBFor2048TokensIn96Layers) {
  EXPECT_EQ(2048 * 96 * bytes_per_token(heads(12288, 96, 96, 128)), 9'663'676'416);
}

TEST(CacheSize, OtherModelsOfTheFamilyCacheTheSameRow) {
  EXPECT_EQ(27 * bytes_per_token(AttentionConfig::deepseek_v2_lite()), 31'104);
  EXPECT_EQ(61 * bytes_per_token(AttentionConfig::kimi_k2()), 70'272);
}

TEST(CacheSize, DeepSeekV3sOwnHeadsAsMhaWouldTake71TimesAsMuch) {
  const AttentionConfig v3 = AttentionConfig::deepseek_v3();
  const Index latent = bytes_per_token(v3);
  EXPECT_EQ(bytes_per_token(GroupedQueryConfig::heads_of(v3, 128)), 128 * (192 + 128) * 2);
  EXPECT_EQ(bytes_per_token(GroupedQueryConfig::heads_of(v3, 128)) / latent, 71);
  // As few as 2.25 K/V heads of 128 would take as little (DeepSeek-V2, section 2.1.4).
  EXPECT_EQ(4 * latent, 9 * bytes_per_token(heads(7168, 128, 1, 128)));
}

// The lesson divides 2 * n_embd, what MHA caches, by kv_lora_rank.
TEST(CacheSize, LessonsFourTimesLeavesOutItsRotaryKeys) {
  const AttentionConfig lesson = AttentionConfig::lesson();
  const Index mha = bytes_per_token(heads(256, 8, 8, 32));
  EXPECT_EQ(mha, 2 * 256 * 2);
  EXPECT_EQ(mha / (lesson.kv_lora_rank * 2), 4);
  // A rotary key of 64 for each of 8 heads: 512 elements beside a latent of 128.
  const Index cached = bytes_per_token(lesson);
  EXPECT_EQ(cached, (128 + 8 * 64) * 2);
  EXPECT_EQ(4 * cached, 5 * mha);  // 1.25 times as much as MHA

  AttentionConfig shared = lesson;  // one rotary key for all heads, as DeepSeek
  shared.rope_key_per_head = false;
  EXPECT_EQ(3 * mha, 8 * bytes_per_token(shared));  // 2.7 times less
}

TEST(CacheSize, LessonsSixteenTimesLeavesOutItsRotaryKeys) {
  const AttentionConfig lesson = AttentionConfig::lesson(4096, 32, 512, 1536);
  const Index mha = bytes_per_token(heads(4096, 32, 32, 128));
  EXPECT_EQ(mha / (lesson.kv_lora_rank * 2), 16);
  // With n_head 32: 2048 elements of rotary keys beside a latent of 512.
  EXPECT_EQ(5 * mha, 16 * bytes_per_token(lesson));  // 3.2 times less than MHA

  AttentionConfig shared = lesson;
  shared.rope_key_per_head = false;
  EXPECT_EQ(9 * mha, 128 * bytes_per_token(shared));  // 14.2 times less
}

}  // namespace
}  // namespace mla
