#ifndef MLA_ATTENTION_LINEAR_HPP_
#define MLA_ATTENTION_LINEAR_HPP_

#include <algorithm>
#include <vector>

#include "mla/attention/context.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// A weight vector [1, n] of any storage type as float32.
inline std::vector<float> to_float_vector(const WeightView& weight) {
  std::vector<float> values(static_cast<std::size_t>(weight.cols));
  visit(weight, [&](auto view) {
    for (Index i = 0; i < view.cols; ++i)
      values[static_cast<std::size_t>(i)] = static_cast<float>(view(0, i));
  });
  return values;
}

/// Scratch memory of simd::TypedKernels::linear, a row for each worker of the executor.
inline MatrixView<float> linear_scratch(Context& context) {
  return context.workspace().take_matrix<float>(context.executor().concurrency(),
                                                context.kernels().linear_scratch);
}

/// x * weight^T + bias over a view of row-major checkpoint weights, which are never copied.
class Linear {
 public:
  Linear() = default;

  /// weight [out_features, in_features] must outlive the layer. bias [1, out_features] is optional.
  explicit Linear(const WeightView& weight, const WeightView& bias = {}) : weight_(weight) {
    if (!bias) return;
    require(bias.rows == 1 && bias.cols == weight.rows, "bias must have shape [1, ", weight.rows,
            "], got [", bias.rows, ", ", bias.cols, "]");
    bias_ = to_float_vector(bias);
  }

  Index in_features() const noexcept { return weight_.cols; }
  Index out_features() const noexcept { return weight_.rows; }
  explicit operator bool() const noexcept { return bool(weight_); }

  /// x [tokens, in_features] -> out [tokens, out_features]. float32 arithmetic.
  void forward(MatrixView<const float> x, MatrixView<float> out, Context& context) const {
    visit(weight_, [&](auto weight) { forward(weight, x, out, context); });
  }

 private:
  template <class T>
  void forward(MatrixView<const T> weight, MatrixView<const float> x, MatrixView<float> out,
               Context& context) const {
    constexpr Index kOutputs = simd::kTaskOutputs;
    const Workspace::Scope scope(context.workspace());
    const auto scratch = linear_scratch(context);
    const auto& kernels = context.kernels().of<T>();
    const Index tasks = (weight.rows + kOutputs - 1) / kOutputs;
    context.executor().parallel_for(tasks, [&](Index task, Index worker) {
      const Index first = task * kOutputs;
      const Index outputs = std::min(kOutputs, weight.rows - first);
      kernels.linear(x, weight.row_range(first, outputs), out.col_range(first, outputs),
                     scratch.row(worker));
      if (!bias_.empty()) add_bias(first, out.col_range(first, outputs));
    });
  }

  void add_bias(Index first, MatrixView<float> out) const noexcept {
    for (Index t = 0; t < out.rows; ++t)
      for (Index o = 0; o < out.cols; ++o) out(t, o) += bias_[static_cast<std::size_t>(first + o)];
  }

  WeightView weight_;
  std::vector<float> bias_;  // [out_features], or empty
};

}  // namespace mla

#endif  // MLA_ATTENTION_LINEAR_HPP_
