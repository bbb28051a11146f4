#ifndef MLA_OPS_LAYER_NORM_HPP_
#define MLA_OPS_LAYER_NORM_HPP_

#include <cmath>
#include <cstddef>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/row_blocks.hpp"

namespace mla {

/// Layer normalisation with a bias (Ba et al. 2016):
///   (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias
/// For short rows: means are summed in double, one number after the other.
class LayerNorm {
 public:
  LayerNorm() = default;

  /// weight and bias [1, n] are converted to float32.
  LayerNorm(const WeightView& weight, const WeightView& bias, double eps)
      : weight_(to_float_vector(weight)), bias_(to_float_vector(bias)), eps_(eps) {
    require_shape("bias of a norm", bias, 1, weight.cols);
  }

  explicit operator bool() const noexcept { return !weight_.empty(); }

  /// Normalises every row of x [tokens, n] in place. Throws std::invalid_argument for other widths.
  void forward(MatrixView<float> x, const Context& context) const {
    require_matrix("x of a norm", x, x.rows, std::ssize(weight_));
    for_row_blocks(context.executor(), x.rows, x.cols, [&](Index first, Index count) {
      for (Index t = first; t < first + count; ++t) normalise(x.row(t));
    });
  }

 private:
  void normalise(float* x) const noexcept {
    const std::size_t n = weight_.size();
    double sum = 0.0, squares = 0.0;
    for (std::size_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]);
    const double mean = sum / static_cast<double>(n);
    for (std::size_t i = 0; i < n; ++i) {
      const double distance = static_cast<double>(x[i]) - mean;
      squares += distance * distance;
    }
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + eps_);
    for (std::size_t i = 0; i < n; ++i)
      x[i] = static_cast<float>((static_cast<double>(x[i]) - mean) * scale) * weight_[i] + bias_[i];
  }

  std::vector<float> weight_;
  std::vector<float> bias_;
  double eps_ = 0.0;
};

}  // namespace mla

#endif  // MLA_OPS_LAYER_NORM_HPP_
