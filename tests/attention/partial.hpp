#ifndef MLA_ATTENTION_PARTIAL_HPP_
#define MLA_ATTENTION_PARTIAL_HPP_

#include <limits>

#include "mla/attention/merge_attention.hpp"
#include "mla/core/tensor.hpp"

namespace mla::test {

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kNothing = -std::numeric_limits<float>::infinity();

inline MatrixView<float> view(RowMajorMatrix& m) { return {m.data(), m.rows(), m.cols()}; }
inline MatrixView<const float> view(const RowMajorMatrix& m) {
  return {m.data(), m.rows(), m.cols()};
}

/// Attention of some queries over some keys.
struct Partial {
  Partial(Index tokens, Index heads, Index width)
      : values(RowMajorMatrix::Constant(tokens, heads * width, kNaN)),
        log_sum_exp(RowMajorMatrix::Constant(tokens, heads, kNothing)) {}

  void merge(const Partial& more) {
    merge_attention(view(more.values), view(more.log_sum_exp), view(values), view(log_sum_exp));
  }

  RowMajorMatrix values;       // [tokens, heads * width]
  RowMajorMatrix log_sum_exp;  // [tokens, heads]
};

}  // namespace mla::test

#endif  // MLA_ATTENTION_PARTIAL_HPP_
