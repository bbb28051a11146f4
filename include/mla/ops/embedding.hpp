#ifndef MLA_OPS_EMBEDDING_HPP_
#define MLA_OPS_EMBEDDING_HPP_

#include <span>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/ops/context.hpp"

namespace mla {

/// The rows of a vocabulary: a view of checkpoint weights [vocab_size, hidden_size].
class Embedding {
 public:
  Embedding() = default;
  /// Rows are multiplied by `scale`.
  explicit Embedding(const WeightView& weight, double scale = 1.0)
      : weight_(weight), scale_(static_cast<float>(scale)) {}

  Index vocab_size() const noexcept { return weight_.rows; }
  Index hidden_size() const noexcept { return weight_.cols; }

  /// Throws std::invalid_argument naming the first token that is not in the vocabulary.
  void check(std::span<const TokenId> tokens) const {
    for (std::size_t t = 0; t < tokens.size(); ++t)
      require(tokens[t] >= 0 && tokens[t] < vocab_size(), "token ", tokens[t], " at place ", t,
              " is not in the vocabulary of ", vocab_size());
  }

  /// The rows of checked tokens -> out [tokens, hidden_size]. Throws std::invalid_argument for
  /// other shapes.
  void forward(std::span<const TokenId> tokens, MatrixView<float> out,
               const Context& context) const {
    require_matrix("out", out, std::ssize(tokens), hidden_size());
    const simd::LinearKernels& kernels = context.kernels().of(weight_.format);
    for (Index t = 0; t < out.rows; ++t)
      kernels.widen(weight_.row_range(tokens[static_cast<std::size_t>(t)], 1), out.row_range(t, 1));
    if (scale_ == 1.0f) return;
    for (Index t = 0; t < out.rows; ++t)
      for (Index i = 0; i < out.cols; ++i) out(t, i) *= scale_;
  }

 private:
  WeightView weight_;
  float scale_ = 1.0f;
};

}  // namespace mla

#endif  // MLA_OPS_EMBEDDING_HPP_
