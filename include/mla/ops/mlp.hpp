#ifndef MLA_OPS_MLP_HPP_
#define MLA_OPS_MLP_HPP_

#include <algorithm>
#include <cmath>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/linear.hpp"
#include "mla/ops/row_blocks.hpp"

namespace mla {

/// Weights of an MLP under their published names.
struct MlpWeights {
  WeightView gate_proj;  ///< [intermediate_size, hidden_size]; empty: none, the MLP is relu2
  WeightView up_proj;    ///< [intermediate_size, hidden_size]
  WeightView down_proj;  ///< [hidden_size, intermediate_size]

  explicit operator bool() const noexcept { return bool(up_proj); }

  /// Throws std::invalid_argument naming the tensor that is missing, not used, or of another shape.
  [[gnu::cold]] void validate(Index hidden_size, Index intermediate_size, bool gated = true) const {
    if (gated) require_shape("gate_proj", gate_proj, intermediate_size, hidden_size);
    require(gated || !gate_proj, "tensor gate_proj is set, but this MLP has no gate");
    require_shape("up_proj", up_proj, intermediate_size, hidden_size);
    require_shape("down_proj", down_proj, hidden_size, intermediate_size);
  }
};

/// x * sigmoid(x) in float32, within 4 units in the last place; below -88 it is 0.
inline float silu(float x) noexcept { return x / (1.0f + std::exp(-x)); }

/// gate[i] = silu(gate[i]) * up[i]
inline void silu_times(float* gate, const float* up, Index n) noexcept {
  for (Index i = 0; i < n; ++i) gate[i] = silu(gate[i]) * up[i];
}

/// up[i] = relu(up[i])^2; NaN stays.
inline void relu_squared(float* up, Index n) noexcept {
  for (Index i = 0; i < n; ++i) up[i] = up[i] < 0.0f ? 0.0f : up[i] * up[i];
}

/// SwiGLU (Shazeer 2020): down_proj(silu(gate_proj(x)) * up_proj(x)); without a gate
/// down_proj(relu(up_proj(x))^2). The result of a token does not depend on the others in the call.
class Mlp {
 public:
  Mlp() = default;

  /// `weights` are views that must outlive the MLP. Throws std::invalid_argument naming the tensor
  /// that does not fit.
  Mlp(const MlpWeights& weights, Index hidden_size, Index intermediate_size, bool gated = true)
      : gate_proj_(validated(weights, hidden_size, intermediate_size, gated).gate_proj),
        up_proj_(weights.up_proj),
        down_proj_(weights.down_proj) {}

  explicit operator bool() const noexcept { return bool(up_proj_); }
  bool gated() const noexcept { return bool(gate_proj_); }
  Index intermediate_size() const noexcept { return up_proj_.out_features(); }

  const Linear& gate_proj() const noexcept { return gate_proj_; }
  const Linear& up_proj() const noexcept { return up_proj_; }
  const Linear& down_proj() const noexcept { return down_proj_; }

  /// x [tokens, hidden_size] -> out [tokens, hidden_size]; may be the same memory.
  void forward(MatrixView<const float> x, MatrixView<float> out, Context& context) const {
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const auto up = workspace.take_matrix<float>(x.rows, intermediate_size());
    up_proj_.forward(x, up, context);
    if (!gated()) {
      for_row_blocks(context.executor(), up.rows, up.cols, [&](Index first, Index count) {
        for (Index t = first; t < first + count; ++t) relu_squared(up.row(t), up.cols);
      });
      return down_proj_.forward(up, out, context);
    }
    const auto gate = workspace.take_matrix<float>(x.rows, intermediate_size());
    gate_proj_.forward(x, gate, context);
    activate(gate, up, context.executor());
    down_proj_.forward(gate, out, context);
  }

 private:
  static constexpr Index kTaskCols = 512;

  // gate = silu(gate) * up
  static void activate(MatrixView<float> gate, MatrixView<const float> up, Executor& executor) {
    const Index tasks = (gate.cols + kTaskCols - 1) / kTaskCols;  // of a token
    executor.parallel_for(gate.rows * tasks, [&](Index task, Index) {
      const Index first = task % tasks * kTaskCols;
      const Index t = task / tasks, count = std::min(kTaskCols, gate.cols - first);
      silu_times(gate.row(t) + first, up.row(t) + first, count);
    });
  }

  Linear gate_proj_;
  Linear up_proj_;
  Linear down_proj_;
};

}  // namespace mla

#endif  // MLA_OPS_MLP_HPP_
