#ifndef MLA_ATTENTION_MERGE_ATTENTION_HPP_
#define MLA_ATTENTION_MERGE_ATTENTION_HPP_

#include <algorithm>
#include <cmath>
#include <limits>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

namespace detail {

// One query of one head: what it saw of other keys, to `out` [width] and `log_sum_exp`.
inline void merge_row(const float* more, float more_log_sum_exp, Index width, float* out,
                      float& log_sum_exp) noexcept {
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  if (more_log_sum_exp == kNothing) return;
  if (log_sum_exp == kNothing) {  // `out` may be anything
    std::copy_n(more, width, out);
    log_sum_exp = more_log_sum_exp;
    return;
  }
  const double before = static_cast<double>(log_sum_exp);
  const double other = static_cast<double>(more_log_sum_exp);
  const double peak = std::max(before, other);
  const double weight = std::exp(before - peak), other_weight = std::exp(other - peak);
  const double sum = weight + other_weight;  // from 1 to 2
  const float share = static_cast<float>(weight / sum);
  const float other_share = static_cast<float>(other_weight / sum);
  for (Index c = 0; c < width; ++c) out[c] = share * out[c] + other_share * more[c];
  log_sum_exp = static_cast<float>(peak + std::log(sum));
}

}  // namespace detail

/// Attention over several parts of the keys, put together from attention over each: for a cache
/// that is split over machines, or a prefix that many sequences share. Takes what was computed for
/// the same queries over other keys into `values` and `log_sum_exp`, which both describe all those
/// keys then. Parts that saw no key (-inf) change nothing, so merging may begin with nothing else.
///
///   values, more_values            [tokens, heads * width]  of either form of attention
///   log_sum_exp, more_log_sum_exp  [tokens, heads]          natural logarithm, of the same heads
///
/// Weights come from differences of log_sum_exp, which rounds to float32 by 2^-24 of itself: that
/// is nearly all that merging adds to the errors of the parts, 2e-5 at +-300. Parts merged in the
/// same order give the same bits. Allocates nothing. Throws std::invalid_argument for shapes that
/// do not fit.
inline void merge_attention(MatrixView<const float> more_values,
                            MatrixView<const float> more_log_sum_exp, MatrixView<float> values,
                            MatrixView<float> log_sum_exp) {
  const Index tokens = log_sum_exp.rows, heads = log_sum_exp.cols;
  require(heads > 0 && values.cols % heads == 0, "values have ", values.cols,
          " columns, which must be a multiple of the ", heads, " heads of log_sum_exp");
  require(values.rows == tokens, "values must have ", tokens, " rows as log_sum_exp, got ",
          values.rows);
  require(more_values.rows == tokens && more_values.cols == values.cols,
          "values to merge must have shape [", tokens, ", ", values.cols, "], got [",
          more_values.rows, ", ", more_values.cols, "]");
  require(more_log_sum_exp.rows == tokens && more_log_sum_exp.cols == heads,
          "log_sum_exp to merge must have shape [", tokens, ", ", heads, "], got [",
          more_log_sum_exp.rows, ", ", more_log_sum_exp.cols, "]");

  const Index width = values.cols / heads;
  for (Index t = 0; t < tokens; ++t)
    for (Index h = 0; h < heads; ++h)
      detail::merge_row(more_values.row(t) + h * width, more_log_sum_exp(t, h), width,
                        values.row(t) + h * width, log_sum_exp(t, h));
}

}  // namespace mla

#endif  // MLA_ATTENTION_MERGE_ATTENTION_HPP_
