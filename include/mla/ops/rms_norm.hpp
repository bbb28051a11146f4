#ifndef MLA_OPS_RMS_NORM_HPP_
#define MLA_OPS_RMS_NORM_HPP_

#include <iterator>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/row_blocks.hpp"

namespace mla {

/// Root mean square normalisation (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps) * weight.
class RmsNorm {
 public:
  RmsNorm() = default;

  /// weight [1, n] is converted to float32, times `scale`.
  RmsNorm(const WeightView& weight, double eps, double scale = 1.0)
      : weight_(to_float_vector(weight)), eps_(static_cast<float>(eps)) {
    for (float& element : weight_)
      element = static_cast<float>(scale * static_cast<double>(element));
  }

  explicit operator bool() const noexcept { return !weight_.empty(); }

  /// Normalises every row of x [tokens, n] in place. Throws std::invalid_argument for other widths.
  void forward(MatrixView<float> x, const Context& context) const { forward(x, x, context); }

  /// The same from x to out [tokens, n], which may be x.
  void forward(MatrixView<const float> x, MatrixView<float> out, const Context& context) const {
    require_matrix("x of a norm", x, x.rows, std::ssize(weight_));
    require_matrix("out of a norm", out, x.rows, x.cols);
    for_row_blocks(context.executor(), x.rows, x.cols, [&](Index first, Index count) {
      for (Index t = first; t < first + count; ++t)
        context.kernels().rms_norm(x.row(t), weight_.data(), x.cols, eps_, out.row(t));
    });
  }

 private:
  std::vector<float> weight_;
  float eps_ = 0.0f;
};

}  // namespace mla

#endif  // MLA_OPS_RMS_NORM_HPP_
