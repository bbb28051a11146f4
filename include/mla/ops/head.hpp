#ifndef MLA_OPS_HEAD_HPP_
#define MLA_OPS_HEAD_HPP_

#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/linear.hpp"
#include "mla/ops/rms_norm.hpp"

namespace mla {

/// The end of a model: hidden states to logits, after a norm where there is one.
class Head {
 public:
  Head() = default;
  /// weight [vocab_size, hidden_size] must outlive the object. Logits are multiplied by `scale`.
  Head(const RmsNorm& norm, const WeightView& weight, double scale = 1.0)
      : norm_(norm), linear_(weight), scale_(static_cast<float>(scale)) {}

  Index vocab_size() const noexcept { return linear_.out_features(); }
  Index hidden_size() const noexcept { return linear_.in_features(); }

  /// Normalises hidden states [tokens, hidden_size] in place.
  void normalise(MatrixView<float> hidden, const Context& context) const {
    if (norm_) norm_.forward(hidden, context);
  }

  /// Normalised states [n, hidden_size] -> logits [n, vocab_size]. Throws std::invalid_argument for
  /// other shapes.
  void forward(MatrixView<const float> hidden, MatrixView<float> logits, Context& context) const {
    require_matrix("hidden", hidden, logits.rows, hidden_size());
    require_matrix("logits", logits, logits.rows, vocab_size());
    linear_.forward(hidden, logits, context);
    if (scale_ == 1.0f) return;
    for (Index t = 0; t < logits.rows; ++t)
      for (Index i = 0; i < logits.cols; ++i) logits(t, i) *= scale_;
  }

 private:
  RmsNorm norm_;  // empty: none
  Linear linear_;
  float scale_ = 1.0f;
};

}  // namespace mla

#endif  // MLA_OPS_HEAD_HPP_
