#ifndef MLA_SUPPORT_KERNEL_ORACLE_HPP_
#define MLA_SUPPORT_KERNEL_ORACLE_HPP_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/simd/kernels.hpp"
#include "support/random.hpp"

namespace mla::test {

/// A matrix whose rows lie apart, with NaN between and behind them: who reads there gets NaN.
template <StorageElement T>
class GuardedMatrix {
 public:
  static constexpr Index kGap = 3;

  GuardedMatrix(Index rows, Index cols)
      : rows_(rows),
        cols_(cols),
        elements_(static_cast<std::size_t>(rows * (cols + kGap)),
                  T(std::numeric_limits<float>::quiet_NaN())) {}

  GuardedMatrix(Index rows, Index cols, Random& random, double scale = 1.0)
      : GuardedMatrix(rows, cols) {
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < cols; ++c)
        view()(r, c) = static_cast<T>(static_cast<float>(scale * random.unit()));
  }

  MatrixView<T> view() noexcept { return {elements_.data(), rows_, cols_, cols_ + kGap}; }
  MatrixView<const T> view() const noexcept {
    return {elements_.data(), rows_, cols_, cols_ + kGap};
  }
  double at(Index r, Index c) const noexcept {
    return static_cast<double>(static_cast<float>(view()(r, c)));
  }

  /// All numbers, row by row, without gaps: for oracles that read them often.
  std::vector<double> in_double() const {
    std::vector<double> numbers;
    for (Index r = 0; r < rows_; ++r)
      for (Index c = 0; c < cols_; ++c) numbers.push_back(at(r, c));
    return numbers;
  }

  /// Nobody wrote between the rows.
  bool gaps_are_untouched() const noexcept {
    for (Index r = 0; r < rows_; ++r)
      for (Index c = cols_; c < cols_ + kGap; ++c)
        if (!std::isnan(static_cast<float>(view()(r, c)))) return false;
    return true;
  }

 private:
  Index rows_, cols_;
  std::vector<T> elements_;
};

/// A number and how far a float32 result may be from it.
struct Expected {
  double value = 0.0;
  double bound = 0.0;
  double norm = 0.0;  ///< of the products that it is the sum of

  /// The bound where one factor of each product was rounded to bfloat16, by at most 2^-9 of it:
  /// errors that add up as the root of their squares, at seven times their standard deviation.
  double bound_of(simd::Arithmetic arithmetic) const noexcept {
    return arithmetic == simd::Arithmetic::bfloat16 ? bound + 4.0 * 0x1p-9 * norm : bound;
  }
};

/// How a table's kernels for elements of type T compute.
template <StorageElement T>
simd::Arithmetic arithmetic_for(const simd::Kernels& kernels) noexcept {
  return std::is_same_v<T, bfloat16> ? simd::arithmetic_of(kernels.isa) : simd::Arithmetic::float32;
}

/// sum_i a(i) * b(i). Each of at least 4 lanes adds n / 4 products, then the lanes are added, each
/// step rounding by at most 2^-24 of the sum of magnitudes.
template <class A, class B>
Expected expected_dot(Index n, const A& a, const B& b) {
  double sum = 0.0, magnitude = 0.0, squares = 0.0;
  for (Index i = 0; i < n; ++i) {
    const double product = a(i) * b(i);
    sum += product;
    magnitude += std::abs(product);
    squares += product * product;
  }
  return {sum, (static_cast<double>(n) / 4.0 + 6.0) * 0x1p-24 * magnitude, std::sqrt(squares)};
}

/// The same where products are added one after the other, not lane by lane.
template <class A, class B>
Expected expected_sequential_dot(Index n, const A& a, const B& b) {
  Expected expected = expected_dot(n, a, b);
  expected.bound *= 4.0;
  return expected;
}

/// Softmax attention of one query.
struct ExpectedAttention {
  std::vector<double> out;  ///< [value_width], 0 where there is no key
  double log_sum_exp = -std::numeric_limits<double>::infinity();
  double logit_bound = 0.0;  ///< how far a logit may be from what it is
  double bound = 0.0;        ///< and a kernel's `out`
};

struct AttentionSizes {
  Index keys, key_width, value_width;
};

/// In double, of query(i), key(k, i) and value(k, c).
template <class Query, class Key, class Value>
ExpectedAttention expected_attention(const AttentionSizes& sizes, double scale, const Query& query,
                                     const Key& key, const Value& value,
                                     simd::Arithmetic arithmetic) {
  ExpectedAttention expected{std::vector<double>(static_cast<std::size_t>(sizes.value_width))};
  if (sizes.keys == 0) return expected;
  std::vector<double> logits;
  double peak = -std::numeric_limits<double>::infinity(), largest = 0.0;
  for (Index k = 0; k < sizes.keys; ++k) {
    const Expected dot = expected_dot(sizes.key_width, query, [&](Index i) { return key(k, i); });
    logits.push_back(scale * dot.value);
    peak = std::max(peak, logits.back());
    // Scaling, taking off the maximum and the constants round by 2^-24 of the logit each.
    expected.logit_bound = std::max(
        expected.logit_bound, scale * dot.bound_of(arithmetic) + std::abs(logits.back()) * 0x1p-21);
    for (Index c = 0; c < sizes.value_width; ++c)
      largest = std::max(largest, std::abs(value(k, c)));
  }
  double sum = 0.0;
  for (Index k = 0; k < sizes.keys; ++k) {
    const double p = std::exp(logits[static_cast<std::size_t>(k)] - peak);
    sum += p;
    for (std::size_t c = 0; c < expected.out.size(); ++c)
      expected.out[c] += p * value(k, static_cast<Index>(c));
  }
  for (double& out : expected.out) out /= sum;
  expected.log_sum_exp = peak + std::log(sum);
  // A weight is off by the error of its logit and 2e-7 of exp2, above and below the fraction; the
  // sums over keys round at random, which adds up as the root of their number.
  expected.bound = largest * (2.0 * (expected.logit_bound + 2e-7) +
                              4.0 * std::sqrt(static_cast<double>(sizes.keys)) * 0x1p-24);
  // Weights rounded to bfloat16, but not in the sum that they are divided by.
  if (arithmetic == simd::Arithmetic::bfloat16) expected.bound += largest * 0x1p-9;
  return expected;
}

}  // namespace mla::test

#endif  // MLA_SUPPORT_KERNEL_ORACLE_HPP_
