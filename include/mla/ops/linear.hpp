#ifndef MLA_OPS_LINEAR_HPP_
#define MLA_OPS_LINEAR_HPP_

#include <algorithm>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/ops/context.hpp"

namespace mla {

/// Scratch memory of simd::LinearKernels::linear, a row for each worker of the executor.
inline MatrixView<float> linear_scratch(Context& context) {
  return context.workspace().take_matrix<float>(context.executor().concurrency(),
                                                context.kernels().linear_scratch);
}

/// x [tokens, in] as linear() of weights of `format` wants to have it, if it does, in scratch
/// memory.
inline const float* packed_tokens(WeightFormat format, MatrixView<const float> x,
                                  Context& context) {
  const simd::LinearKernels& kernels = context.kernels().of(format);
  const Index floats = kernels.packed_floats(x.rows, x.cols);
  if (floats == 0) return nullptr;
  float* const packed = context.workspace().take<float>(floats);
  constexpr Index kTokens = simd::kPackedTokens;
  context.executor().parallel_for((x.rows + kTokens - 1) / kTokens, [&](Index task, Index) {
    const Index first = task * kTokens;
    kernels.pack(x.row_range(first, std::min(kTokens, x.rows - first)),
                 packed + kernels.packed_floats(first, x.cols));
  });
  return packed;
}

/// How many of `outputs` features a task of a projection should compute. Every task reads all of x
/// and begins without weights in the cache: tasks are large, as long as each worker gets several.
inline Index outputs_of_task(Index outputs, Index workers) noexcept {
  constexpr Index kTasksOfWorker = 4;
  Index most = simd::kTaskOutputs;
  while (most < 16 * simd::kTaskOutputs &&
         (workers == 1 || outputs / (2 * most) >= kTasksOfWorker * workers))
    most *= 2;
  return most;
}

/// x * weight^T + bias over a view of checkpoint weights, which are never copied.
class Linear {
 public:
  Linear() = default;

  /// weight [out_features, in_features] must outlive the layer. bias [1, out_features] is optional.
  explicit Linear(const WeightView& weight, const WeightView& bias = {}) : weight_(weight) {
    if (!bias) return;
    require_shape("bias", bias, 1, weight.rows);
    bias_ = to_float_vector(bias);
  }

  Index in_features() const noexcept { return weight_.cols; }
  Index out_features() const noexcept { return weight_.rows; }
  explicit operator bool() const noexcept { return bool(weight_); }

  /// x [tokens, in_features] -> out [tokens, out_features]. Throws std::invalid_argument for other
  /// shapes.
  void forward(MatrixView<const float> x, MatrixView<float> out, Context& context) const {
    require_matrix("x", x, x.rows, in_features());
    require_matrix("out", out, x.rows, out_features());
    const Workspace::Scope scope(context.workspace());
    const auto scratch = linear_scratch(context);
    const float* const packed = packed_tokens(weight_.format, x, context);
    const Index most = outputs_of_task(weight_.rows, context.executor().concurrency());
    const Index tasks = (weight_.rows + most - 1) / most;
    context.executor().parallel_for(tasks, [&](Index task, Index worker) {
      const Index first = task * most;
      forward_part(x, packed, first, out.col_range(first, std::min(most, weight_.rows - first)),
                   scratch.row(worker), context.kernels());
    });
  }

  // What forward() is made of, for those that run several projections in one parallel region.

  /// Floats that pack() makes of `tokens` rows; 0 where forward_part() wants `packed` to be null.
  Index packed_floats(Index tokens, const simd::Kernels& kernels) const noexcept {
    return kernels.of(weight_.format).packed_floats(tokens, weight_.cols);
  }

  /// Whether both read the same packed rows.
  bool packs_as(const Linear& other) const noexcept {
    return weight_.format == other.weight_.format;
  }

  /// Writes the part of `packed` for rows [first, first + rows.rows) of x, `rows` [n, in_features];
  /// `first` is a multiple of simd::kPackedTokens, and so is n unless these are the last.
  void pack(MatrixView<const float> rows, Index first, float* packed,
            const simd::Kernels& kernels) const noexcept {
    const simd::LinearKernels& products = kernels.of(weight_.format);
    products.pack(rows, packed + products.packed_floats(first, rows.cols));
  }

  /// out [tokens, n]: the features [first, first + n) of forward(), on the calling thread.
  /// `packed`: all of x by pack(). `scratch`: a row of linear_scratch().
  void forward_part(MatrixView<const float> x, const float* packed, Index first,
                    MatrixView<float> out, float* scratch,
                    const simd::Kernels& kernels) const noexcept {
    kernels.of(weight_.format).linear(x, packed, weight_.row_range(first, out.cols), out, scratch);
    if (!bias_.empty()) add_bias(first, out);
  }

 private:
  void add_bias(Index first, MatrixView<float> out) const noexcept {
    for (Index t = 0; t < out.rows; ++t)
      for (Index o = 0; o < out.cols; ++o) out(t, o) += bias_[static_cast<std::size_t>(first + o)];
  }

  WeightView weight_;
  std::vector<float> bias_;  // [out_features], or empty
};

}  // namespace mla

#endif  // MLA_OPS_LINEAR_HPP_
