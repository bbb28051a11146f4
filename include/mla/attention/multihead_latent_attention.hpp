#ifndef MLA_ATTENTION_MULTIHEAD_LATENT_ATTENTION_HPP_
#define MLA_ATTENTION_MULTIHEAD_LATENT_ATTENTION_HPP_

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "mla/attention/causal_attention.hpp"
#include "mla/attention/context.hpp"
#include "mla/attention/cost_model.hpp"
#include "mla/attention/forward_plan.hpp"
#include "mla/attention/latent_kv_cache.hpp"
#include "mla/attention/linear.hpp"
#include "mla/attention/low_rank.hpp"
#include "mla/attention/rope.hpp"
#include "mla/attention/weights.hpp"
#include "mla/core/config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// One Multi-head Latent Attention layer (DeepSeek-V2, section 2.1), for prefill and decoding over
/// a latent cache. Immutable: threads may share it, each with its own Context and caches.
///
/// The result of a token at its position is the same to the last bit for any number of threads, any
/// split of a prompt into calls and any batch, as long as mode, instruction set and cache type are
/// the same.
class MultiheadLatentAttention {
 public:
  /// `weights` are views that must outlive the layer; only norms and biases are converted and kept.
  /// Throws std::invalid_argument naming the field or tensor that does not fit.
  MultiheadLatentAttention(const AttentionConfig& config, const AttentionWeights& weights)
      : config_((config.validate(), weights.validate(config), config)),
        rotary_(config),
        query_(config, weights),
        compression_(config, weights),
        decompression_(config, weights),
        output_(weights.o_proj, weights.o_proj_bias) {}

  const AttentionConfig& config() const noexcept { return config_; }
  /// Factor on query . key before the softmax.
  double softmax_scale() const noexcept { return mla::softmax_scale(config_); }

  /// Appends the tokens x [tokens, hidden_size] to `cache` and writes their attention output to
  /// out [tokens, hidden_size]. Allocates nothing once `context` has seen a call of this size and
  /// `cache` has room (LatentKVCache::reserve). Throws std::invalid_argument for shapes or options
  /// that do not fit; whatever is thrown, the cache is as it was.
  template <StorageElement T>
  void forward(const Eigen::Ref<const RowMajorMatrix>& x, LatentKVCache<T>& cache,
               Eigen::Ref<RowMajorMatrix> out, Context& context,
               const ForwardOptions& options = {}) const {
    const Sequence<T> sequence = {&cache, x.rows()};
    forward(x, std::span<const Sequence<T>>(&sequence, 1), out, context, options);
  }

  /// The same, with memory of its own for the result and on the way.
  template <StorageElement T>
  RowMajorMatrix forward(const Eigen::Ref<const RowMajorMatrix>& x, LatentKVCache<T>& cache,
                         const ForwardOptions& options = {}) const {
    RowMajorMatrix out(x.rows(), x.cols());
    Context context;
    forward(x, cache, out, context, options);
    return out;
  }

  /// Several sequences in one call, each with its own cache and any number of tokens (none is
  /// allowed): x and out hold their tokens one sequence after the other.
  template <StorageElement T>
  void forward(const Eigen::Ref<const RowMajorMatrix>& x, std::span<const Sequence<T>> batch,
               Eigen::Ref<RowMajorMatrix> out, Context& context,
               const ForwardOptions& options = {}) const {
    check_width(x);
    require(out.rows() == x.rows() && out.cols() == x.cols(), "out must have shape [", x.rows(),
            ", ", x.cols(), "], got [", out.rows(), ", ", out.cols(), "]");
    const Workspace::Scope scope(context.workspace());
    ForwardPlan<T> plan(config_, x.rows(), batch, options, speed<T>(context), context.workspace());
    const MatrixView<const float> all(x.data(), x.rows(), x.cols(), x.outerStride());
    const MatrixView<float> result(out.data(), out.rows(), out.cols(), out.outerStride());
    if (plan.tokens() == 0) {
      plan.scatter({}, result);
    } else if (plan.tokens() == x.rows()) {
      forward_tokens(plan, all, result, context);
    } else {  // without the padding
      const auto real = context.workspace().take_matrix<float>(plan.tokens(), x.cols());
      plan.gather(all, real);
      forward_tokens(plan, real, real, context);
      plan.scatter(real, result);
    }
  }

  template <StorageElement T>
  void forward(const Eigen::Ref<const RowMajorMatrix>& x, const std::vector<Sequence<T>>& batch,
               Eigen::Ref<RowMajorMatrix> out, Context& context,
               const ForwardOptions& options = {}) const {
    forward(x, std::span<const Sequence<T>>(batch), out, context, options);
  }

  /// Appends x [tokens, hidden_size] to `cache` as forward() does, and that is all: for tokens
  /// which others see, but whose own output nobody wants. Throws as forward().
  template <StorageElement T>
  void append(const Eigen::Ref<const RowMajorMatrix>& x, LatentKVCache<T>& cache, Context& context,
              const ForwardOptions& options = {}) const {
    check_width(x);
    const Workspace::Scope scope(context.workspace());
    const Sequence<T> sequence = {&cache, x.rows()};
    const ForwardPlan<T> plan(config_, x.rows(), std::span(&sequence, 1), options,
                              speed<T>(context), context.workspace());
    if (plan.tokens() == 0) return;
    const auto real = context.workspace().take_matrix<float>(plan.tokens(), x.cols());
    plan.gather({x.data(), x.rows(), x.cols(), x.outerStride()}, real);
    plan.append(compress(real, rotary_tables(plan, context), context), context.kernels()).keep();
  }

 private:
  void check_width(const Eigen::Ref<const RowMajorMatrix>& x) const {
    require(x.cols() == config_.hidden_size, "x must have hidden_size ", config_.hidden_size,
            " columns, got ", x.cols());
  }

  template <StorageElement T>
  AttentionSpeed speed(const Context& context) const noexcept {
    return attention_speed(context.kernels().isa, decompression_.dtype(), kDTypeOf<T>);
  }

  template <StorageElement T>
  RotaryTables rotary_tables(const ForwardPlan<T>& plan, Context& context) const {
    const Index pairs = config_.qk_rope_head_dim / 2;
    const RotaryTables tables = {context.workspace().take_matrix<float>(plan.tokens(), pairs),
                                 context.workspace().take_matrix<float>(plan.tokens(), pairs)};
    rotary_.tables(plan.positions(), tables.cos, tables.sin);
    return tables;
  }

  // x [tokens, hidden_size] -> rows [tokens, cache row width] as they are cached
  MatrixView<float> compress(MatrixView<const float> x, const RotaryTables& rotary,
                             Context& context) const {
    const auto rows = context.workspace().take_matrix<float>(x.rows, config_.cache_row_width());
    compression_.forward(x, rotary, rows, context);
    return rows;
  }

  // x and out [plan.tokens(), hidden_size]; may be the same memory.
  template <StorageElement T>
  void forward_tokens(ForwardPlan<T>& plan, MatrixView<const float> x, MatrixView<float> out,
                      Context& context) const {
    Workspace& workspace = context.workspace();
    const Index tokens = plan.tokens();
    const RotaryTables rotary = rotary_tables(plan, context);
    const auto rows = compress(x, rotary, context);
    const auto queries =
        workspace.take_matrix<float>(tokens, config_.num_attention_heads * config_.qk_head_dim());
    query_.forward(x, rotary, queries, context);

    auto appended = plan.append(rows, context.kernels());
    const auto values =
        workspace.take_matrix<float>(tokens, config_.num_attention_heads * config_.v_head_dim);
    plan.for_each_run(
        [&](Mode mode, Index first, Index count, std::span<const CachedTokens<T>> sequences) {
          attend(mode, sequences, queries.row_range(first, count), values.row_range(first, count),
                 context);
        });
    output_.forward(values, out, context);
    appended.keep();
  }

  // queries [tokens, heads * (nope + rope)] -> values [tokens, heads * v]
  template <StorageElement T>
  void attend(Mode mode, std::span<const CachedTokens<T>> batch, MatrixView<const float> queries,
              MatrixView<float> values, Context& context) const {
    if (mode == Mode::decompressed)
      return DecompressedAttention<T>(config_, softmax_scale(), decompression_)
          .forward(batch, queries, values, context);
    const Workspace::Scope scope(context.workspace());
    const Index heads = config_.num_attention_heads;
    const auto latent_queries = context.workspace().take_matrix<float>(
        queries.rows, heads * (config_.kv_lora_rank + config_.qk_rope_head_dim));
    const auto latent_values =
        context.workspace().take_matrix<float>(queries.rows, heads * config_.kv_lora_rank);
    decompression_.absorb(queries, latent_queries, context);
    AbsorbedAttention<T>(config_, softmax_scale())
        .forward(batch, latent_queries, latent_values, context);
    decompression_.project_values(latent_values, values, context);
  }

  AttentionConfig config_;
  RotaryEmbedding rotary_;
  LowRankQuery query_;
  LatentCompression compression_;
  LatentDecompression decompression_;
  Linear output_;
};

}  // namespace mla

#endif  // MLA_ATTENTION_MULTIHEAD_LATENT_ATTENTION_HPP_
