#ifndef MLA_OPS_RMS_NORM_HPP_
#define MLA_OPS_RMS_NORM_HPP_

#include <iterator>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/ops/context.hpp"

namespace mla {

/// Root mean square normalisation (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps) * weight.
class RmsNorm {
 public:
  RmsNorm() = default;

  /// weight [1, n] is converted to float32.
  RmsNorm(const WeightView& weight, double eps)
      : weight_(to_float_vector(weight)), eps_(static_cast<float>(eps)) {}

  explicit operator bool() const noexcept { return !weight_.empty(); }

  /// Normalises every row of x [tokens, n] in place. Throws std::invalid_argument for other widths.
  void forward(MatrixView<float> x, const Context& context) const {
    require_matrix("x of a norm", x, x.rows, std::ssize(weight_));
    for (Index t = 0; t < x.rows; ++t)
      context.kernels().rms_norm(x.row(t), weight_.data(), x.cols, eps_, x.row(t));
  }

 private:
  std::vector<float> weight_;
  float eps_ = 0.0f;
};

}  // namespace mla

#endif  // MLA_OPS_RMS_NORM_HPP_
