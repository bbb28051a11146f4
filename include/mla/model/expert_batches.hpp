#ifndef MLA_MODEL_EXPERT_BATCHES_HPP_
#define MLA_MODEL_EXPERT_BATCHES_HPP_

#include <algorithm>
#include <iterator>
#include <span>

#include "mla/core/tensor.hpp"
#include "mla/core/workspace.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/linear.hpp"
#include "mla/ops/mlp.hpp"

namespace mla::detail {

/// An expert with those tokens of a call that go through it, and what is computed for them.
struct ExpertBatch {
  const Mlp* expert = nullptr;
  const Index* tokens = nullptr;   ///< [count] rows of x, rising; nullptr: all of x
  const float* weights = nullptr;  ///< [count] factors of the results; nullptr: 1
  Index count = 0;

  // Filled in by ExpertBatches.
  MatrixView<const float> x = {};      ///< [count, hidden_size]
  MatrixView<float> gathered = {};     ///< [count, hidden_size] to be filled, where x is a copy
  MatrixView<float> activations = {};  ///< [count, intermediate_size] silu(gate) * up
  float* packed_for_gate = nullptr;    ///< x as gate_proj wants it; nullptr: as it is
  float* packed_for_up = nullptr;      ///< of its own only where up_proj has another format
  float* packed_for_down = nullptr;    ///< the same of the activations
  Index first_task = 0;                ///< of the parallel region that runs
};

/// Runs experts together, in two parallel regions: gate_proj, up_proj and the activation of all of
/// them, then down_proj. (In regions of their own the experts of a decoded token, 9 in DeepSeek-V3,
/// are 36 barriers.) Before each comes another where rows must be copied or packed.
class ExpertBatches {
 public:
  /// Takes scratch memory for `batches` of rows of x [tokens, hidden_size].
  ExpertBatches(std::span<ExpertBatch> batches, MatrixView<const float> x, Context& context)
      : batches_(batches), x_(x), context_(context), scratch_(linear_scratch(context)) {
    for (ExpertBatch& batch : batches_) {
      prepare(batch);
      most_tokens_ = std::max(most_tokens_, batch.count);
      intermediate_ += batch.activations.cols;
    }
  }

  /// Adds each token's results, times their weights, to its row of out [tokens, hidden_size], in
  /// the order of the batches.
  void add_to(MatrixView<float> out) {
    pack_inputs();
    activate();
    pack_activations();
    add_down(out);
  }

 private:
  const simd::Kernels& kernels() const noexcept { return context_.kernels(); }
  Index workers() const noexcept { return context_.executor().concurrency(); }

  void prepare(ExpertBatch& batch) {
    Workspace& workspace = context_.workspace();
    const Linear &gate = batch.expert->gate_proj(), &up = batch.expert->up_proj();
    const auto packed = [&](const Linear& projection) -> float* {
      const Index floats = projection.packed_floats(batch.count, kernels());
      return floats == 0 ? nullptr : workspace.take<float>(floats);
    };
    if (!batch.tokens) {
      batch.x = x_;
    } else if (batch.count == 1) {
      batch.x = x_.row_range(batch.tokens[0], 1);
    } else {
      batch.gathered = workspace.take_matrix<float>(batch.count, x_.cols);
      batch.x = batch.gathered;
    }
    batch.activations = workspace.take_matrix<float>(batch.count, gate.out_features());
    batch.packed_for_gate = packed(gate);
    batch.packed_for_up = up.packs_as(gate) ? batch.packed_for_gate : packed(up);
    batch.packed_for_down = packed(batch.expert->down_proj());
  }

  // body(batch, part, worker) for all parts [0, parts(batch)) of all batches in a parallel region.
  // The last batch, the shared experts with all tokens, comes first: the longest tasks.
  template <class Parts, class Body>
  void for_each_part(const Parts& parts, const Body& body) {
    Index tasks = 0;
    for (ExpertBatch& batch : batches_) {
      batch.first_task = tasks;
      tasks += parts(batch);
    }
    context_.executor().parallel_for(tasks, [&](Index reverse, Index worker) {
      const Index task = tasks - 1 - reverse;
      const auto after = std::ranges::upper_bound(batches_, task, {}, &ExpertBatch::first_task);
      const ExpertBatch& batch = *std::prev(after);
      body(batch, task - batch.first_task, worker);
    });
  }

  static Index packed_parts(const ExpertBatch& batch) noexcept {
    return (batch.count + simd::kPackedTokens - 1) / simd::kPackedTokens;
  }

  // Rows [first, first + count) of a part of kPackedTokens.
  template <class T>
  static MatrixView<T> rows_of_part(MatrixView<T> all, Index part) noexcept {
    const Index first = part * simd::kPackedTokens;
    return all.row_range(first, std::min(simd::kPackedTokens, all.rows - first));
  }

  void pack_inputs() {
    const auto parts = [](const ExpertBatch& batch) {
      const bool any = batch.gathered.data || batch.packed_for_gate || batch.packed_for_up;
      return any ? packed_parts(batch) : 0;
    };
    for_each_part(parts, [&](const ExpertBatch& batch, Index part, Index) {
      const Index first = part * simd::kPackedTokens;
      if (batch.gathered.data) {
        const auto rows = rows_of_part(batch.gathered, part);
        for (Index i = 0; i < rows.rows; ++i)
          std::copy_n(x_.row(batch.tokens[first + i]), rows.cols, rows.row(i));
      }
      const auto rows = rows_of_part(batch.x, part);
      if (batch.packed_for_gate)
        batch.expert->gate_proj().pack(rows, first, batch.packed_for_gate, kernels());
      if (batch.packed_for_up && batch.packed_for_up != batch.packed_for_gate)
        batch.expert->up_proj().pack(rows, first, batch.packed_for_up, kernels());
    });
  }

  void activate() {
    const Index most = outputs_of_task(intermediate_, workers());
    const auto ups = context_.workspace().take_matrix<float>(workers(), most_tokens_ * most);
    const auto parts = [&](const ExpertBatch& batch) {
      return (batch.activations.cols + most - 1) / most;
    };
    for_each_part(parts, [&](const ExpertBatch& batch, Index part, Index worker) {
      const Index first = part * most;
      const Index outputs = std::min(most, batch.activations.cols - first);
      const auto gate = batch.activations.col_range(first, outputs);
      const MatrixView<float> up(ups.row(worker), batch.count, outputs);
      float* const scratch = scratch_.row(worker);
      batch.expert->gate_proj().forward_part(batch.x, batch.packed_for_gate, first, gate, scratch,
                                             kernels());
      batch.expert->up_proj().forward_part(batch.x, batch.packed_for_up, first, up, scratch,
                                           kernels());
      for (Index t = 0; t < gate.rows; ++t) silu_times(gate.row(t), up.row(t), outputs);
    });
  }

  void pack_activations() {
    const auto parts = [](const ExpertBatch& batch) {
      return batch.packed_for_down ? packed_parts(batch) : 0;
    };
    for_each_part(parts, [&](const ExpertBatch& batch, Index part, Index) {
      const MatrixView<const float> rows = rows_of_part(batch.activations, part);
      batch.expert->down_proj().pack(rows, part * simd::kPackedTokens, batch.packed_for_down,
                                     kernels());
    });
  }

  // A task has some of the output features of all experts, so that nobody else adds to them.
  void add_down(MatrixView<float> out) {
    const Index most = down_outputs(out.cols);
    const auto results = context_.workspace().take_matrix<float>(workers(), most_tokens_ * most);
    context_.executor().parallel_for((out.cols + most - 1) / most, [&](Index task, Index worker) {
      const Index first = task * most;
      const auto sums = out.col_range(first, std::min(most, out.cols - first));
      for (const ExpertBatch& batch : batches_) {
        const MatrixView<float> result(results.row(worker), batch.count, sums.cols);
        batch.expert->down_proj().forward_part(batch.activations, batch.packed_for_down, first,
                                               result, scratch_.row(worker), kernels());
        add(batch, result, sums);
      }
    });
  }

  // Each task reads the weights of all experts, so few outputs are enough work for it.
  Index down_outputs(Index outputs) const noexcept {
    constexpr Index kLeast = 16, kTasksOfWorker = 2;
    Index most = outputs_of_task(outputs, workers());
    while (most > kLeast && outputs / most < kTasksOfWorker * workers()) most /= 2;
    return most;
  }

  static void add(const ExpertBatch& batch, MatrixView<const float> result,
                  MatrixView<float> sums) noexcept {
    for (Index i = 0; i < result.rows; ++i) {
      float* const sum = sums.row(batch.tokens ? batch.tokens[i] : i);
      const float* const more = result.row(i);
      const float weight = batch.weights ? batch.weights[i] : 1.0f;
      for (Index c = 0; c < result.cols; ++c) sum[c] += weight * more[c];
    }
  }

  std::span<ExpertBatch> batches_;
  MatrixView<const float> x_;
  Context& context_;
  MatrixView<float> scratch_;
  Index most_tokens_ = 0;   // of a batch
  Index intermediate_ = 0;  // features of all experts
};

}  // namespace mla::detail

#endif  // MLA_MODEL_EXPERT_BATCHES_HPP_
