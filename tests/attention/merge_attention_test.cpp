// Attention over two parts of the keys, put together by the log-sum-exp of their scores.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <utility>

#include "attention/partial.hpp"
#include "mla/attention/merge_attention.hpp"
#include "support/compare.hpp"
#include "support/kernel_oracle.hpp"
#include "support/random.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

// One token, heads of two values each.
Partial partial(std::initializer_list<float> log_sum_exp, std::initializer_list<float> values) {
  Partial result(1, std::ssize(log_sum_exp), 2);
  std::copy(log_sum_exp.begin(), log_sum_exp.end(), result.log_sum_exp.data());
  std::copy(values.begin(), values.end(), result.values.data());
  return result;
}

TEST(MergeAttention, WeighsByTheExponentialsFarFromZeroToo) {
  for (float center : {0.0f, 300.0f, -300.0f}) {
    Partial merged = partial({center, center}, {1.0f, 2.0f, 3.0f, 4.0f});
    merged.merge(partial({center + 1.0f, center - 1.0f}, {5.0f, 6.0f, 7.0f, 8.0f}));
    const double share = 1.0 / (1.0 + std::exp(1.0));  // of the smaller
    // Three roundings of numbers below 8.
    const double bound = 3.0 * 8.0 * 0x1p-24;
    EXPECT_NEAR(merged.values(0, 0), 5.0 - 4.0 * share, bound);
    EXPECT_NEAR(merged.values(0, 1), 6.0 - 4.0 * share, bound);
    EXPECT_NEAR(merged.values(0, 2), 3.0 + 4.0 * share, bound);
    EXPECT_NEAR(merged.values(0, 3), 4.0 + 4.0 * share, bound);
    const double grown = std::log1p(std::exp(-1.0));
    const double rounding = 302.0 * 0x1p-24;
    EXPECT_NEAR(merged.log_sum_exp(0, 0), static_cast<double>(center) + 1.0 + grown, rounding);
    EXPECT_NEAR(merged.log_sum_exp(0, 1), static_cast<double>(center) + grown, rounding);
  }
}

TEST(MergeAttention, APartFarBelowLeavesNothing) {
  Partial merged = partial({-300.0f, 3e38f}, {1.0f, 2.0f, 3.0f, 4.0f});
  merged.merge(partial({300.0f, -3e38f}, {5.0f, 6.0f, 7.0f, 8.0f}));
  const Partial expected = partial({300.0f, 3e38f}, {5.0f, 6.0f, 3.0f, 4.0f});
  EXPECT_TRUE(same_bits(merged.values, expected.values));
  EXPECT_TRUE(same_bits(merged.log_sum_exp, expected.log_sum_exp));
}

// exp() of the difference is infinite, in double too from 710 on.
TEST(MergeAttention, APartFarAboveReplacesWhatWasThere) {
  Partial merged = partial({-3e38f, -400.0f}, {1.0f, 2.0f, 3.0f, 4.0f});
  const Partial above = partial({3e38f, 400.0f}, {5.0f, 6.0f, 7.0f, 8.0f});
  merged.merge(above);
  EXPECT_TRUE(same_bits(merged.values, above.values));
  EXPECT_TRUE(same_bits(merged.log_sum_exp, above.log_sum_exp));
}

// Whatever its values are: they may not have been written yet.
TEST(MergeAttention, APartThatSawNothingChangesNothing) {
  const Partial some = partial({0.5f, kNothing}, {5.0f, 6.0f, 0.0f, 0.0f});
  const Partial nothing = partial({kNothing, kNothing}, {kNaN, kNaN, 0.0f, 0.0f});
  Partial first = some, second = nothing;
  first.merge(nothing);
  second.merge(some);
  for (const Partial* merged : {&first, &second}) {
    EXPECT_TRUE(same_bits(merged->values, some.values));
    EXPECT_TRUE(same_bits(merged->log_sum_exp, some.log_sum_exp));
  }
}

TEST(MergeAttention, ANaNIsNotHidden) {
  for (const bool first : {false, true}) {
    const Partial number = partial({1.0f}, {1.0f, 2.0f}), nan = partial({kNaN}, {kNaN, kNaN});
    Partial merged = first ? nan : number;
    merged.merge(first ? number : nan);
    EXPECT_TRUE(std::isnan(merged.log_sum_exp(0, 0)));
    EXPECT_TRUE(std::isnan(merged.values(0, 0)));
  }
}

TEST(MergeAttention, WritesIntoRowsThatLieApartAndNowhereElse) {
  Random random(1);
  GuardedMatrix<float> values(3, 8, random), log_sum_exp(3, 2, random);
  const GuardedMatrix<float> more(3, 8, random), more_log_sum_exp(3, 2, random);
  Partial dense(3, 2, 4);
  for (const auto* part : {&std::as_const(values), &more})
    for (Index t = 0; t < 3; ++t) {
      Partial row(1, 2, 4);
      const auto& logs = part == &more ? more_log_sum_exp : std::as_const(log_sum_exp);
      std::copy_n(part->view().row(t), 8, row.values.data());
      std::copy_n(logs.view().row(t), 2, row.log_sum_exp.data());
      merge_attention(view(std::as_const(row.values)), view(std::as_const(row.log_sum_exp)),
                      view(dense.values).row_range(t, 1), view(dense.log_sum_exp).row_range(t, 1));
    }
  merge_attention(more.view(), more_log_sum_exp.view(), values.view(), log_sum_exp.view());
  EXPECT_TRUE(values.gaps_are_untouched());
  EXPECT_TRUE(log_sum_exp.gaps_are_untouched());
  for (Index t = 0; t < 3; ++t)
    for (Index c = 0; c < 8; ++c) EXPECT_EQ(values.view()(t, c), dense.values(t, c));
}

TEST(MergeAttention, RefusesWhatDoesNotFit) {
  const Partial good(2, 3, 4);
  const auto refused = [&](const Partial& more, Partial into,
                           std::initializer_list<const char*> parts) {
    return refuses([&] { into.merge(more); }, parts);
  };
  EXPECT_TRUE(refused(Partial(3, 3, 4), good, {"values to merge", "[2, 12]", "[3, 12]"}));
  EXPECT_TRUE(refused(Partial(2, 3, 5), good, {"values to merge", "[2, 12]", "[2, 15]"}));
  EXPECT_TRUE(refused(Partial(2, 2, 6), good, {"log_sum_exp to merge", "[2, 3]", "[2, 2]"}));
  Partial odd = good;
  odd.log_sum_exp.resize(2, 5);
  EXPECT_TRUE(refused(good, odd, {"12 columns", "multiple of the 5 heads"}));
  odd.log_sum_exp.resize(2, 0);
  EXPECT_TRUE(refused(good, odd, {"multiple of the 0 heads"}));
  odd.log_sum_exp.resize(3, 3);
  EXPECT_TRUE(refused(good, odd, {"3 rows", "got 2"}));
}

}  // namespace
}  // namespace mla::test
