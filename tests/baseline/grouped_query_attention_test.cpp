#include "mla/baseline/grouped_query_attention.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "baseline/grouped_query_layer.hpp"
#include "mla/attention/multihead_latent_attention.hpp"
#include "support/message_of.hpp"

namespace mla {
namespace {

using test::GroupedQueryLayer;
using test::positions_from;
using test::Random;

// No width is a multiple of a lane count; keys and values differ in width.
GroupedQueryConfig small_config(Index num_key_value_heads) {
  return {.hidden_size = 52,
          .num_attention_heads = 8,
          .num_key_value_heads = num_key_value_heads,
          .head_dim = 34,
          .v_head_dim = 18,
          .rope_theta = 10000.0};
}

std::vector<const simd::Kernels*> all_kernels() {
  std::vector<const simd::Kernels*> tables;
  for (simd::Isa isa : simd::kAllIsas)
    if (simd::is_supported(isa)) tables.push_back(&simd::kernels_for(isa));
  return tables;
}

// float32: rounding of dot products of some 50 terms, 6e-8 each. bfloat16: queries, keys,
// probabilities and values may each be rounded to 8 bits, an error of 2^-9. float16: to 11 bits.
template <class T>
constexpr double kTolerance = std::is_same_v<T, float>      ? 1e-6
                              : std::is_same_v<T, bfloat16> ? 4 * 0x1p-9
                                                            : 4 * 0x1p-12;

template <class T>
void expect_near_reference(const GroupedQueryConfig& config, Index tokens) {
  const GroupedQueryLayer layer(config);
  const GroupedQueryAttention attention = layer.attention();
  const RowMajorMatrix x = Random(7).matrix(tokens, config.hidden_size);
  std::vector<Index> positions = positions_from(0, tokens);
  for (std::size_t t = 5; t < positions.size(); ++t) positions[t] += 37;  // a gap
  const test::MatrixD expected = layer.reference(x, positions);
  for (const simd::Kernels* kernels : all_kernels()) {
    KeyValueCache<T> cache(config);
    Context context(*kernels);
    RowMajorMatrix out(tokens, config.hidden_size);
    attention.forward(x, cache, out, context, positions);
    EXPECT_LT(test::relative_error(out, expected), kTolerance<T>)
        << name_of(kernels->isa) << " " << name_of(cache.format()) << ", " << tokens << " tokens, "
        << config.num_key_value_heads << " K/V heads";
    EXPECT_EQ(cache.size(), tokens);
  }
}

constexpr Index kTokens[] = {1, 15, 17, 63, 64, 65, 129};

template <class T>
class GroupedQueryAttentionOf : public testing::Test {};
using CacheTypes = testing::Types<float, bfloat16, float16>;
TYPED_TEST_SUITE(GroupedQueryAttentionOf, CacheTypes);

TYPED_TEST(GroupedQueryAttentionOf, MultiHeadIsTheReference) {
  for (Index tokens : kTokens) expect_near_reference<TypeParam>(small_config(8), tokens);
}

TYPED_TEST(GroupedQueryAttentionOf, FourQueryHeadsAKeyHeadIsTheReference) {
  for (Index tokens : kTokens) expect_near_reference<TypeParam>(small_config(2), tokens);
}

TYPED_TEST(GroupedQueryAttentionOf, MultiQueryIsTheReference) {
  for (Index tokens : kTokens) expect_near_reference<TypeParam>(small_config(1), tokens);
}

TYPED_TEST(GroupedQueryAttentionOf, RotaryVariantsAreTheReference) {
  GroupedQueryConfig config = small_config(2);
  config.v_head_dim.reset();
  for (bool interleave : {false, true})
    for (Index rotary_dim : {0, 2, 16, 34}) {
      config.rope_interleave = interleave;
      config.rotary_dim = rotary_dim;
      expect_near_reference<TypeParam>(config, 17);
    }
}

// The output of `attention` for x, in calls of the given numbers of tokens.
template <class T>
RowMajorMatrix in_chunks(const GroupedQueryAttention& attention, const RowMajorMatrix& x,
                         const std::vector<Index>& chunks, Context& context) {
  KeyValueCache<T> cache(attention.config());
  RowMajorMatrix out(x.rows(), x.cols());
  Index first = 0;
  for (Index tokens : chunks) {
    attention.forward(x.middleRows(first, tokens), cache, out.middleRows(first, tokens), context);
    first += tokens;
  }
  EXPECT_EQ(first, x.rows());
  return out;
}

TYPED_TEST(GroupedQueryAttentionOf, AnySplitIntoCallsGivesTheSameBits) {
  for (Index key_value_heads : {8, 2, 1}) {
    const GroupedQueryLayer layer(small_config(key_value_heads));
    const GroupedQueryAttention attention = layer.attention();
    const RowMajorMatrix x = Random(3).matrix(131, layer.config.hidden_size);
    for (const simd::Kernels* kernels : all_kernels()) {
      Context context(*kernels);
      const RowMajorMatrix whole = in_chunks<TypeParam>(attention, x, {131}, context);
      const RowMajorMatrix chunked =
          in_chunks<TypeParam>(attention, x, {1, 15, 0, 48, 1, 33, 33}, context);
      const RowMajorMatrix one_by_one =
          in_chunks<TypeParam>(attention, x, std::vector<Index>(131, 1), context);
      EXPECT_EQ(whole, chunked) << name_of(kernels->isa);
      EXPECT_EQ(whole, one_by_one) << name_of(kernels->isa);
    }
  }
}

// Runs tasks last to first, as several workers.
class ReversedExecutor final : public Executor {
 public:
  Index concurrency() const noexcept override { return 3; }

 private:
  void run(Index tasks, const Body& body) override {
    for (Index task = tasks; task-- > 0;) body(task, task % 3);
  }
};

TYPED_TEST(GroupedQueryAttentionOf, OrderOfTasksDoesNotMatter) {
  const GroupedQueryLayer layer(small_config(2));
  const RowMajorMatrix x = Random(3).matrix(70, layer.config.hidden_size);
  ReversedExecutor reversed;
  for (const simd::Kernels* kernels : all_kernels()) {
    Context serial(*kernels), other(reversed, *kernels);
    EXPECT_EQ(in_chunks<TypeParam>(layer.attention(), x, {70}, serial),
              in_chunks<TypeParam>(layer.attention(), x, {70}, other));
  }
}

TYPED_TEST(GroupedQueryAttentionOf, TruncateThenForwardEqualsNeverHavingAppended) {
  const GroupedQueryLayer layer(small_config(2));
  const GroupedQueryAttention attention = layer.attention();
  const RowMajorMatrix x = Random(4).matrix(130, layer.config.hidden_size);
  const RowMajorMatrix rejected = Random(5).matrix(70, layer.config.hidden_size);
  KeyValueCache<TypeParam> cache(layer.config), expected_cache(layer.config);
  const RowMajorMatrix expected = attention.forward(x, expected_cache);

  RowMajorMatrix out(x.rows(), x.cols());
  out.topRows(60) = attention.forward(x.topRows(60), cache);
  attention.forward(rejected, cache);
  cache.truncate(60);
  out.bottomRows(70) = attention.forward(x.bottomRows(70), cache);
  EXPECT_EQ(out, expected);

  cache.clear();
  EXPECT_EQ(attention.forward(x, cache), expected);
}

TEST(GroupedQueryAttention, OutputMayBeTheInput) {
  const GroupedQueryLayer layer(small_config(2));
  RowMajorMatrix x = Random(6).matrix(20, layer.config.hidden_size);
  KeyValueCache<float> cache(layer.config), other(layer.config);
  const RowMajorMatrix expected = layer.attention().forward(x, other);
  Context context;
  layer.attention().forward(x, cache, x, context);
  EXPECT_EQ(x, expected);
}

TEST(GroupedQueryAttention, TakesRowsOfAWiderMatrix) {
  const GroupedQueryLayer layer(small_config(8));
  const RowMajorMatrix wide = Random(6).matrix(20, layer.config.hidden_size + 9);
  const auto x = wide.middleCols(4, layer.config.hidden_size);
  KeyValueCache<float> cache(layer.config), other(layer.config);
  EXPECT_EQ(layer.attention().forward(x, cache),
            layer.attention().forward(RowMajorMatrix(x), other));
}

// MLA with an identity for the down projection, and tokens that its norm leaves as they are, is
// MHA: kv_b_proj by head is [k_proj without rotation; v_proj], the rotary key is the same for all
// heads. Shows that the two layers that a benchmark compares do the same work.
TEST(GroupedQueryAttention, MultiHeadEqualsLatentAttentionDecompressedByHand) {
  AttentionConfig mla;
  mla.hidden_size = mla.kv_lora_rank = 40;
  mla.num_attention_heads = 6;
  mla.q_lora_rank = 0;
  mla.qk_nope_head_dim = 12;
  mla.qk_rope_head_dim = 10;
  mla.v_head_dim = 14;
  mla.kv_a_layernorm_eps = 0.0;
  mla.rope_scaling = {RopeScalingType::yarn, 40.0, 16, 32.0, 1.0, 1.0, 1.0};
  const Index nope = mla.qk_nope_head_dim, rope = mla.qk_rope_head_dim, v = mla.v_head_dim;
  const Index hidden = mla.hidden_size, d = nope + rope;
  const GroupedQueryConfig mha = GroupedQueryConfig::heads_of(mla, mla.num_attention_heads);

  Random random(8);
  const float scale = 0.3f;
  const RowMajorMatrix rope_key = random.matrix(rope, hidden, scale);
  const RowMajorMatrix kv_b = random.matrix(mha.num_attention_heads * (nope + v), hidden, scale);
  const RowMajorMatrix q = random.matrix(mha.num_attention_heads * d, hidden, scale);
  const RowMajorMatrix o = random.matrix(hidden, mha.num_attention_heads * v, scale);
  RowMajorMatrix kv_a(hidden + rope, hidden);
  kv_a << RowMajorMatrix::Identity(hidden, hidden), rope_key;
  const RowMajorMatrix ones = RowMajorMatrix::Ones(1, hidden);
  AttentionWeights latent;
  latent.q_proj = test::view(q);
  latent.kv_a_proj_with_mqa = test::view(kv_a);
  latent.kv_a_layernorm = test::view(ones);
  latent.kv_b_proj = test::view(kv_b);
  latent.o_proj = test::view(o);

  RowMajorMatrix heads_q(q.rows(), hidden), heads_k(q.rows(), hidden);
  RowMajorMatrix heads_v(mha.num_attention_heads * v, hidden);
  for (Index h = 0; h < mha.num_attention_heads; ++h) {
    heads_q.middleRows(h * d, d) << q.middleRows(h * d + nope, rope), q.middleRows(h * d, nope);
    heads_k.middleRows(h * d, d) << rope_key, kv_b.middleRows(h * (nope + v), nope);
    heads_v.middleRows(h * v, v) = kv_b.middleRows(h * (nope + v) + nope, v);
  }
  const GroupedQueryWeights plain = {.q_proj = test::view(heads_q),
                                     .k_proj = test::view(heads_k),
                                     .v_proj = test::view(heads_v),
                                     .o_proj = latent.o_proj};

  RowMajorMatrix x = random.matrix(70, hidden);
  for (Index t = 0; t < x.rows(); ++t)
    x.row(t) *= std::sqrt(static_cast<float>(hidden)) / x.row(t).norm();
  LatentKVCache<float> latent_cache(mla);
  KeyValueCache<float> cache(mha);
  const RowMajorMatrix expected = MultiheadLatentAttention(mla, latent).forward(x, latent_cache);
  const RowMajorMatrix out = GroupedQueryAttention(mha, plain).forward(x, cache);
  // float32 both, by different ways: 1e-6 each.
  EXPECT_LT(test::relative_error(out, expected.cast<double>()), 4e-6);
  EXPECT_LT(latent_cache.bytes_used() * 4, cache.bytes_used());
}

void expect_has(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), text.npos) << text << "\nlacks: " << part;
}

TEST(GroupedQueryAttention, WrongWeightsAreNamedWithBothShapes) {
  const GroupedQueryLayer layer(small_config(2));
  const RowMajorMatrix wrong = RowMajorMatrix::Zero(3, 5);
  const auto error_with = [&](WeightView GroupedQueryWeights::*tensor, const WeightView& weight) {
    GroupedQueryWeights weights = layer.weights();
    weights.*tensor = weight;
    return test::message_of([&] { GroupedQueryAttention(layer.config, weights); });
  };
  using Weights = GroupedQueryWeights;
  expect_has(error_with(&Weights::q_proj, test::view(wrong)),
             "tensor q_proj must have shape [272, 52], got [3, 5]");
  expect_has(error_with(&Weights::k_proj, test::view(wrong)),
             "tensor k_proj must have shape [68, 52], got [3, 5]");
  expect_has(error_with(&Weights::v_proj, test::view(wrong)),
             "tensor v_proj must have shape [36, 52], got [3, 5]");
  expect_has(error_with(&Weights::o_proj, test::view(wrong)),
             "tensor o_proj must have shape [52, 144], got [3, 5]");
  expect_has(error_with(&Weights::q_proj_bias, test::view(wrong)),
             "tensor q_proj_bias must have shape [1, 272], got [3, 5]");
  expect_has(error_with(&Weights::o_proj_bias, test::view(wrong)),
             "tensor o_proj_bias must have shape [1, 52], got [3, 5]");
  expect_has(error_with(&Weights::v_proj, {}), "tensor v_proj is missing, expected [36, 52]");
}

TEST(GroupedQueryConfig, WrongFieldsAreNamed) {
  const auto error_with = [](auto field, auto value) {
    GroupedQueryConfig config = small_config(2);
    config.*field = value;
    return test::message_of([&] { config.validate(); });
  };
  using Config = GroupedQueryConfig;
  expect_has(error_with(&Config::hidden_size, 0), "hidden_size must be between 1 and");
  expect_has(error_with(&Config::num_attention_heads, -1), "num_attention_heads must be between");
  expect_has(error_with(&Config::num_key_value_heads, 0), "num_key_value_heads must be between");
  expect_has(error_with(&Config::num_key_value_heads, 3),
             "num_attention_heads must be a multiple of num_key_value_heads, got 8 and 3");
  expect_has(error_with(&Config::head_dim, Index{1} << 40), "head_dim must be between");
  expect_has(error_with(&Config::head_dim, 33), "head_dim, all of it rotated, must be even");
  expect_has(error_with(&Config::v_head_dim, 0), "v_head_dim must be between");
  expect_has(error_with(&Config::rotary_dim, 36),
             "rotary_dim must be even and at most head_dim 34, got 36");
  expect_has(error_with(&Config::rotary_dim, 7), "rotary_dim must be even");
  expect_has(error_with(&Config::rope_theta, 0.0), "rope_theta must be above 1, got 0");
  expect_has(error_with(&Config::rope_theta, std::nan("")), "rope_theta must be above 1");
}

TEST(GroupedQueryAttention, ACallThatThrowsLeavesTheCacheAsItWas) {
  const GroupedQueryLayer layer(small_config(2));
  const GroupedQueryAttention attention = layer.attention();
  const Index hidden = layer.config.hidden_size;
  const RowMajorMatrix x = Random(9).matrix(40, hidden);
  KeyValueCache<bfloat16> cache(layer.config), same(layer.config);
  attention.forward(x, cache);
  attention.forward(x, same);
  Context context;
  const auto error_with = [&](Index rows, Index cols, Index out_rows,
                              const std::vector<Index>& positions) {
    const RowMajorMatrix input = RowMajorMatrix::Zero(rows, cols);
    RowMajorMatrix out(out_rows, cols);
    return test::message_of([&] { attention.forward(input, cache, out, context, positions); });
  };
  expect_has(error_with(2, hidden + 1, 2, {}), "x must have hidden_size 52 columns, got 53");
  expect_has(error_with(2, hidden, 3, {}), "out must have shape [2, 52], got [3, 52]");
  expect_has(error_with(2, hidden, 2, {50}), "position_ids must have 2 elements, one per token");
  expect_has(error_with(2, hidden, 2, {39, 40}),
             "position_ids must rise: token 0 of sequence 0 has position 39 after 39");
  expect_has(error_with(2, hidden, 2, {41, 41}),
             "position_ids must rise: token 1 of sequence 0 has position 41 after 41");
  KeyValueCache<bfloat16> narrow(small_config(4));
  expect_has(test::message_of([&] { attention.forward(x, narrow); }),
             "the cache has 4 K/V heads of 34 + 18 elements (key + value), this layer needs 2");
  GroupedQueryConfig turned = layer.config;
  turned.rope_theta = 20000.0;
  KeyValueCache<bfloat16> other(turned);
  expect_has(test::message_of([&] { attention.forward(x, other); }),
             "the cache was made with rope_theta 20000, this layer has ");

  EXPECT_EQ(cache.size(), 40);
  EXPECT_EQ(narrow.size(), 0);
  const RowMajorMatrix next = Random(10).matrix(3, hidden);
  EXPECT_EQ(attention.forward(next, cache), attention.forward(next, same));
}

// Breaks at the n-th request: in a projection, in the attention or at the very end. Says that it
// has four threads, for which there are more tasks.
class BreakingExecutor final : public Executor {
 public:
  explicit BreakingExecutor(int requests) : requests_(requests) {}
  Index concurrency() const noexcept override { return 4; }

 private:
  void run(Index tasks, const Body& body) override {
    if (requests_-- == 0) throw std::runtime_error("no more threads");
    for (Index task = 0; task < tasks; ++task) body(task, 0);
  }
  int requests_;
};

TEST(GroupedQueryAttention, AnExecutorThatThrowsLeavesTheCacheAsItWas) {
  GroupedQueryConfig config = small_config(4);
  config.hidden_size = 70;  // every projection is several tasks
  const GroupedQueryLayer layer(config);
  const GroupedQueryAttention attention = layer.attention();
  const RowMajorMatrix x = Random(9).matrix(40, config.hidden_size);
  const RowMajorMatrix next = Random(10).matrix(30, config.hidden_size);
  KeyValueCache<float> cache(config), same(config);
  attention.forward(x, cache);
  attention.forward(x, same);
  const RowMajorMatrix expected = attention.forward(next, same);

  int requests = 0;
  for (bool broken = true; broken; ++requests) {
    BreakingExecutor executor(requests);
    Context context(executor);
    RowMajorMatrix out(next.rows(), next.cols());
    try {
      attention.forward(next, cache, out, context);
      broken = false;
      EXPECT_EQ(out, expected);
    } catch (const std::runtime_error&) {
      EXPECT_EQ(cache.size(), 40) << "after " << requests << " requests";
      EXPECT_EQ(cache.positions().size(), 40u);
    }
  }
  EXPECT_EQ(requests, 6);  // q, k, v, attention, o, and the one that succeeds
}

}  // namespace
}  // namespace mla
