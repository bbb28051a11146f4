// Attention over parts of the keys, its log-sum-exp, and what puts the parts together.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "attention/partial.hpp"
#include "mla/attention/absorbed_attention.hpp"
#include "mla/attention/decompressed_attention.hpp"
#include "support/compare.hpp"
#include "support/executors.hpp"
#include "support/kernel_oracle.hpp"
#include "support/modes.hpp"
#include "support/random.hpp"
#include "support/test_configs.hpp"

namespace mla::test {
namespace {

/// A sequence of `keys` tokens, the last `tokens` of them queries, attended to in one of the forms
/// over any part of the keys. Logits have a spread of about 2 around a center that goes from `from`
/// at the first key to `to` at the last.
template <StorageElement T>
class SplitAttention {
 public:
  SplitAttention(const AttentionConfig& config, AttentionForm mode, Index keys, Index tokens,
                 double from = 0.0, double to = 0.0)
      : config_(config),
        mode_(mode),
        random_(static_cast<std::uint64_t>(keys)),
        kv_b_(random_elements<float>(
            heads() * (config.qk_nope_head_dim + config.v_head_dim) * config.kv_lora_rank, random_,
            1.0 / std::sqrt(config.kv_lora_rank))),
        rows_(random_matrix(keys, config.cache_row_width(), random_)),
        queries_(2.0f * random_matrix(tokens, heads() * key_width(), random_)) {
    weights_.kv_b_proj = {kv_b_.data(), std::ssize(kv_b_) / config.kv_lora_rank,
                          config.kv_lora_rank};
    if (from == 0.0 && to == 0.0) return;
    // Through the first rotary element, which no value depends on.
    for (Index h = 0; h < heads(); ++h)
      queries_.col(h * key_width() + first_rope()).setConstant(static_cast<float>(300.0 / scale()));
    for (Index k = 0; k < keys; ++k)
      for (Index r = config.kv_lora_rank; r < rows_.cols(); r += config.qk_rope_head_dim)
        rows_(k, r) = static_cast<float>(
            (from + (to - from) * static_cast<double>(k) / static_cast<double>(keys - 1)) / 300.0);
  }

  Index heads() const noexcept { return config_.num_attention_heads; }
  Index keys() const noexcept { return rows_.rows(); }
  Index tokens() const noexcept { return queries_.rows(); }
  Index value_width() const noexcept {
    return absorbed() ? config_.kv_lora_rank : config_.v_head_dim;
  }

  /// Keys [first, end).
  LatentKVCache<T> cache(Index first, Index end) const {
    LatentKVCache<T> cache(config_);
    cache.append(view(rows_).row_range(first, end - first), consecutive(first, end - first));
    return cache;
  }

  /// The call: all queries, whose shares of caches are `batch`.
  void run(const std::vector<CachedTokens>& batch, Context& context, MatrixView<float> values,
           MatrixView<float> log_sum_exp) const {
    const LatentDecompression decompression(config_, weights_);
    if (mode_ == AttentionForm::absorbed)
      AbsorbedAttention(config_, scale())
          .forward(batch, view(queries_), values, context, log_sum_exp);
    else
      DecompressedAttention(config_, scale(), decompression)
          .forward(batch, view(queries_), values, context, log_sum_exp);
  }

  /// Over keys [first, end), which are in a cache of their own.
  Partial attend(Index first, Index end, Context& context) const {
    const LatentKVCache<T> part = cache(first, end);
    Partial result(tokens(), heads(), value_width());
    result.log_sum_exp.setConstant(kNaN);
    run({{&part, 0, tokens(), std::min(tokens(), keys() - end)}}, context, view(result.values),
        view(result.log_sum_exp));
    return result;
  }

  Partial attend_all(Context& context) const { return attend(0, keys(), context); }

  /// Of token t in head h over those of keys [first, end) that it sees, in double.
  ExpectedAttention expected(Index t, Index h, Index first, Index end,
                             const simd::Kernels& kernels) const {
    const Index visible = std::max<Index>(0, std::min(end, keys() - tokens() + t + 1) - first);
    const Index width = key_width(), values = value_width();
    std::vector<Expected> row;  // keys and values
    for (Index k = 0; k < visible; ++k)
      for (Index i = 0; i < width + values; ++i) row.push_back(key_or_value(first + k, h, i));
    const auto at = [&](Index k, Index i) -> const Expected& {
      return row[static_cast<std::size_t>(k * (width + values) + i)];
    };
    const auto query = [&](Index i) { return static_cast<double>(queries_(t, h * width + i)); };
    const simd::Arithmetic arithmetic =
        absorbed() && config_.rope_key_per_head ? Arithmetic::float32 : arithmetic_for<T>(kernels);
    ExpectedAttention attention = expected_attention(
        {visible, width, values}, scale(), query, [&](Index k, Index i) { return at(k, i).value; },
        [&](Index k, Index c) { return at(k, width + c).value; }, arithmetic);
    if (absorbed()) return attention;

    // Decompressed keys and values have errors of their own, and are rounded once more where the
    // products are of bfloat16.
    const double rounding = arithmetic == Arithmetic::bfloat16 ? 0x1p-9 : 0.0;
    double logit_error = 0.0, value_error = 0.0, largest = 0.0;
    for (Index k = 0; k < visible; ++k) {
      double error = 0.0;
      for (Index i = 0; i < width; ++i)
        error += std::abs(query(i)) * (at(k, i).bound + rounding * std::abs(at(k, i).value));
      logit_error = std::max(logit_error, scale() * error);
      for (Index i = width; i < width + values; ++i) {
        largest = std::max(largest, std::abs(at(k, i).value));
        value_error = std::max(value_error, at(k, i).bound + rounding * std::abs(at(k, i).value));
      }
    }
    attention.logit_bound += logit_error;
    attention.bound += 2.0 * logit_error * largest + value_error;
    return attention;
  }

  /// Largest element of any value, as it is in the cache or as it is made from there.
  double largest_value() const {
    double largest = 0.0;
    for (Index k = 0; k < keys(); ++k)
      for (Index h = 0; h < heads(); ++h)
        for (Index c = 0; c < value_width(); ++c)
          largest = std::max(largest, std::abs(key_or_value(k, h, key_width() + c).value));
    return largest;
  }

 private:
  bool absorbed() const noexcept { return mode_ == AttentionForm::absorbed; }
  Index first_rope() const noexcept {
    return absorbed() ? config_.kv_lora_rank : config_.qk_nope_head_dim;
  }
  Index key_width() const noexcept { return first_rope() + config_.qk_rope_head_dim; }
  double scale() const noexcept { return 1.0 / std::sqrt(static_cast<double>(key_width())); }

  // Element i of [key | value] of key k in head h, as this form computes it.
  Expected key_or_value(Index k, Index h, Index i) const {
    const auto cached = [&](Index c) {
      return static_cast<double>(static_cast<float>(static_cast<T>(rows_(k, c))));
    };
    const Index rank = config_.kv_lora_rank, rope = config_.qk_rope_head_dim;
    const Index rope_key = rank + (config_.rope_key_per_head ? h * rope : 0);
    if (i >= first_rope() && i < key_width()) return {cached(rope_key + i - first_rope())};
    if (absorbed()) return {cached(i < rank ? i : i - key_width())};
    const Index row = h * (config_.qk_nope_head_dim + config_.v_head_dim) +
                      (i < first_rope() ? i : i - config_.qk_rope_head_dim);
    return expected_dot(rank, cached, [&](Index c) {
      return static_cast<double>(kv_b_[static_cast<std::size_t>(row * rank + c)]);
    });
  }

  AttentionConfig config_;
  AttentionForm mode_;
  Random random_;
  std::vector<float> kv_b_;
  RowMajorMatrix rows_;     // [keys, cache row width]
  RowMajorMatrix queries_;  // [tokens, heads * key_width()]
  AttentionWeights weights_;
};

class PartialAttention : public EveryIsaAndMode {
 protected:
  // Values and log-sum-exp of queries over keys [first, end) are what they are in double.
  template <StorageElement T>
  void expect_attention(const SplitAttention<T>& split, Index first, Index end) const {
    Context context(kernels());
    const Partial part = split.attend(first, end, context);
    for (Index t = 0; t < split.tokens(); ++t)
      for (Index h = 0; h < split.heads(); ++h) {
        const auto expected = split.expected(t, h, first, end, kernels());
        const double log_sum_exp = static_cast<double>(part.log_sum_exp(t, h));
        const std::string what = std::string(name_of(kCacheFormatOf<T>)) + ", keys " +
                                 std::to_string(first) + " to " + std::to_string(end) + ", token " +
                                 std::to_string(t) + ", head " + std::to_string(h);
        if (expected.log_sum_exp == -std::numeric_limits<double>::infinity()) {
          ASSERT_EQ(log_sum_exp, expected.log_sum_exp) << what;
        } else {
          // It moves with the logits, by exp2 and the sum over the keys, and rounds to float32.
          ASSERT_NEAR(log_sum_exp, expected.log_sum_exp,
                      expected.logit_bound + 2e-7 +
                          4.0 * std::sqrt(static_cast<double>(end - first)) * 0x1p-24 +
                          std::abs(expected.log_sum_exp) * 0x1p-24)
              << what;
        }
        for (std::size_t c = 0; c < expected.out.size(); ++c)
          ASSERT_NEAR(
              static_cast<double>(part.values(t, h * split.value_width() + static_cast<Index>(c))),
              expected.out[c], expected.bound)
              << what << ", value " << c;
      }
  }

  // The parts between `cuts`, merged, are attention over the whole.
  template <StorageElement T>
  void expect_merged(const SplitAttention<T>& split, std::vector<Index> cuts) const {
    Context context(kernels());
    const Partial whole = split.attend_all(context);
    Partial merged(split.tokens(), split.heads(), split.value_width());
    cuts.push_back(split.keys());
    double largest_log = static_cast<double>(whole.log_sum_exp.cwiseAbs().maxCoeff());
    for (Index first = 0; Index end : cuts) {
      const Partial part = split.attend(first, end, context);
      for (Index i = 0; i < part.log_sum_exp.size(); ++i)
        if (const float value = part.log_sum_exp.data()[i]; value != kNothing)
          largest_log = std::max(largest_log, std::abs(static_cast<double>(value)));
      merged.merge(part);
      first = end;
    }
    // The logits are the same in both. Each log-sum-exp rounds by 2^-24 of itself, in every part
    // and after every merge; exp2 and sums over the keys round in both ways to compute it, above
    // and below the fraction.
    const double log_error = 2.0 * static_cast<double>(cuts.size()) * largest_log * 0x1p-24 +
                             2.0 * 2e-7 +
                             8.0 * std::sqrt(static_cast<double>(split.keys())) * 0x1p-24;
    // Weights are rounded to bfloat16 relative to another maximum.
    const bool rounds = arithmetic_for<T>(kernels()) == Arithmetic::bfloat16;
    const double error = (2.0 * log_error + (rounds ? 2.0 * 0x1p-9 : 0.0)) * split.largest_value();
    const auto difference = [](const RowMajorMatrix& a, const RowMajorMatrix& b) {
      return (a.cast<double>() - b.cast<double>()).cwiseAbs().maxCoeff();
    };
    ASSERT_FALSE(merged.values.hasNaN());
    EXPECT_LE(difference(merged.values, whole.values), error)
        << name_of(kCacheFormatOf<T>) << " cut at " << cuts[0];
    EXPECT_LE(difference(merged.log_sum_exp, whole.log_sum_exp), log_error)
        << name_of(kCacheFormatOf<T>) << " cut at " << cuts[0];
  }

  template <StorageElement T>
  void expect_attention_of_every_size() const {
    for (Index keys : {1, 15, 16, 17, 64, 65, 129, 600}) {
      const SplitAttention<T> split(small_config(), mode(), keys, std::min<Index>(keys, 3));
      expect_attention(split, 0, keys);
    }
    const SplitAttention<T> lesson(lesson_config(), mode(), 129, 3);
    expect_attention(lesson, 0, 129);
    for (double center : {-300.0, 300.0})
      expect_attention(SplitAttention<T>(small_config(), mode(), 130, 2, center, center), 0, 130);
    expect_attention(SplitAttention<T>(small_config(), mode(), 130, 2, -300.0, 300.0), 0, 130);
  }

  // The queries are tokens 193 to 199.
  template <StorageElement T>
  void expect_merged_wherever_it_is_cut() const {
    for (const AttentionConfig& config : {small_config(), lesson_config()}) {
      const SplitAttention<T> split(config, mode(), 200, 7);
      for (const std::vector<Index>& cuts : std::vector<std::vector<Index>>{
               {100}, {64, 150}, {193}, {196}, {1, 190, 195}, {0}, {100, 100}})
        expect_merged(split, cuts);
    }
    for (const auto& [from, to] : {std::pair(300.0, 300.0), {-300.0, -300.0}, {-300.0, 300.0}}) {
      const SplitAttention<T> steep(small_config(), mode(), 200, 7, from, to);
      expect_merged(steep, {100});
      expect_merged(steep, {64, 195});
    }
  }

  static AttentionConfig lesson_config() { return AttentionConfig::lesson(48, 4, 24, 20, 8); }
  // Small, for contexts of several parts of 1024 keys.
  static AttentionConfig long_config() { return make_config(16, 3, 0, 20, 6, 4, 6); }
};
MLA_FOR_EVERY_ISA_AND_MODE(PartialAttention);

TEST_P(PartialAttention, LogSumExpIsThatOfTheScoresInDouble) {
  expect_attention_of_every_size<float>();
  expect_attention_of_every_size<bfloat16>();
  expect_attention_of_every_size<float16>();
}

TEST_P(PartialAttention, MergedPartsAreAttentionOverTheWhole) {
  expect_merged_wherever_it_is_cut<float>();
  expect_merged_wherever_it_is_cut<bfloat16>();
  expect_merged_wherever_it_is_cut<float16>();
}

TEST_P(PartialAttention, OverSeveralThousandKeysIsMergedInsideAndOutside) {
  const SplitAttention<float> split(long_config(), mode(), 2100, 5);
  expect_attention(split, 0, 2100);
  expect_merged(split, {1024, 2000});
  expect_merged(split, {700});
}

// A part before the queries is seen whole by each; one that begins among them, by the later ones.
TEST_P(PartialAttention, TokensSeeOfAPartWhatComesBeforeThem) {
  for (const AttentionConfig& config : {small_config(), lesson_config()}) {
    const SplitAttention<float> split(config, mode(), 100, 7);
    expect_attention(split, 0, 70);
    expect_attention(split, 20, 95);
    expect_attention(split, 96, 100);
    expect_attention(split, 50, 50);
    Context context(kernels());
    const Partial last = split.attend(96, 100, context);
    EXPECT_TRUE(same_bits(last.log_sum_exp.topRows(3),
                          RowMajorMatrix::Constant(3, split.heads(), kNothing)));
    EXPECT_TRUE(same_bits(last.values.topRows(3),
                          RowMajorMatrix::Zero(3, split.heads() * split.value_width())));
    EXPECT_TRUE(last.log_sum_exp.bottomRows(4).allFinite());
  }
}

TEST_P(PartialAttention, AskingForTheLogSumExpChangesNoBitOfTheValues) {
  for (const AttentionConfig& config : {small_config(), lesson_config(), long_config()}) {
    const SplitAttention<bfloat16> split(config, mode(), 1100, 2);
    const auto all = split.cache(0, 1100);
    Context context(kernels());
    RowMajorMatrix values(2, split.heads() * split.value_width());
    split.run({{&all, 0, 2}}, context, view(values), {});
    EXPECT_TRUE(same_bits(values, split.attend_all(context).values));
  }
}

TEST_P(PartialAttention, ThreadsChangeNoBitOfTheLogSumExp) {
  const SplitAttention<float> split(long_config(), mode(), 2100, 5);
  Context serial(kernels());
  const Partial expected = split.attend_all(serial);
  for (Index threads : {2, 3, 7}) {
    ThreadExecutor executor(threads);
    Context context(executor, kernels());
    EXPECT_TRUE(same_bits(split.attend_all(context).log_sum_exp, expected.log_sum_exp));
  }
}

TEST_P(PartialAttention, SeveralSequencesMaySeeOnePrefixInOneCall) {
  const SplitAttention<float> split(small_config(), mode(), 107, 7);
  const auto prefix = split.cache(0, 100);
  Context context(kernels());
  Partial shared(7, split.heads(), split.value_width());
  split.run({{&prefix, 0, 2, 2}, {&prefix, 2, 4, 4}, {&prefix, 6, 1, 1}}, context,
            view(shared.values), view(shared.log_sum_exp));
  const Partial alone = split.attend(0, 100, context);
  EXPECT_TRUE(same_bits(shared.values, alone.values));
  EXPECT_TRUE(same_bits(shared.log_sum_exp, alone.log_sum_exp));
}

}  // namespace
}  // namespace mla::test
