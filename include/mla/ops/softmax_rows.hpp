#ifndef MLA_OPS_SOFTMAX_ROWS_HPP_
#define MLA_OPS_SOFTMAX_ROWS_HPP_

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "mla/core/tensor.hpp"
#include "mla/core/workspace.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// Online softmax of query rows: what the attention kernels continue from key to key (see
/// simd::SoftmaxState), and what is left to do after the last one.
class SoftmaxRows {
 public:
  /// What a query row has seen in all: sum * 2^maximum is the sum of the exponentials of its
  /// scores.
  struct Total {
    float maximum, sum;

    /// Natural logarithm of that sum, rounded once; -inf for a row that saw no key.
    float log_sum_exp() const noexcept {
      if (sum == 0.0f) return -std::numeric_limits<float>::infinity();
      return static_cast<float>(
          (static_cast<double>(maximum) + std::log2(static_cast<double>(sum))) * std::numbers::ln2);
    }
  };

  SoftmaxRows() = default;

  /// `out.rows` rows, summed in `out` [rows, value width].
  SoftmaxRows(MatrixView<float> out, Workspace& workspace)
      : out_(out),
        maximum_(workspace.take<float>(out.rows)),
        sum_(workspace.take<float>(out.rows)) {}

  /// Rows [first, + count) have seen nothing.
  void start(Index first, Index count) const noexcept {
    std::fill_n(maximum_ + first, count, -std::numeric_limits<float>::infinity());
    std::fill_n(sum_ + first, count, 0.0f);
    for (Index r = first; r < first + count; ++r) std::fill_n(out_.row(r), out_.cols, 0.0f);
  }

  /// State of row `first` and those after it.
  simd::SoftmaxState state(Index first) const noexcept {
    return {maximum_ + first, sum_ + first, out_.row(first), out_.stride};
  }

  /// Divides row r by its sum, to `out` [value width], which may be the row. 0 if it saw no key.
  Total finish(Index r, float* out) const noexcept {
    const float scale = sum_[r] == 0.0f ? 0.0f : 1.0f / sum_[r];
    row_of(out) = row_of(out_.row(r)) * scale;
    return {maximum_[r], sum_[r]};
  }

  /// Rows r, r + stride, ... are one query that saw another part of the keys in each of them: their
  /// attention over all the keys, to `out` [value width].
  Total merge(Index r, Index stride, Index parts, float* out) const noexcept {
    if (parts == 1) return finish(r, out);
    float maximum = -std::numeric_limits<float>::infinity();
    for (Index p = 0; p < parts; ++p)
      if (sum_[r + p * stride] != 0.0f) maximum = std::max(maximum, maximum_[r + p * stride]);
    float sum = 0.0f;
    std::fill_n(out, out_.cols, 0.0f);
    for (Index row = r; row < r + parts * stride; row += stride) {
      if (sum_[row] == 0.0f) continue;  // saw nothing
      const float weight = std::exp2(maximum_[row] - maximum);
      sum += weight * sum_[row];
      row_of(out) += weight * row_of(out_.row(row));
    }
    const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
    row_of(out) *= scale;
    return {maximum, sum};
  }

 private:
  // Eigen takes several elements at a time, which g++ -O2 would not.
  Eigen::Map<Eigen::ArrayXf> row_of(float* p) const noexcept { return {p, out_.cols}; }

  MatrixView<float> out_;
  float* maximum_ = nullptr;
  float* sum_ = nullptr;
};

}  // namespace mla

#endif  // MLA_OPS_SOFTMAX_ROWS_HPP_
