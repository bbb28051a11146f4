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
  double bound_of(simd::Precision precision) const noexcept {
    return precision == simd::Precision::bfloat16 ? bound + 4.0 * 0x1p-9 * norm : bound;
  }
};

/// How a table's kernels for elements of type T compute.
template <StorageElement T>
simd::Precision precision_for(const simd::Kernels& kernels) noexcept {
  return std::is_same_v<T, bfloat16> ? simd::precision_of(kernels.isa) : simd::Precision::float32;
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

}  // namespace mla::test

#endif  // MLA_SUPPORT_KERNEL_ORACLE_HPP_
