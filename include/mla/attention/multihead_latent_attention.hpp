#ifndef MLA_ATTENTION_MULTIHEAD_LATENT_ATTENTION_HPP_
#define MLA_ATTENTION_MULTIHEAD_LATENT_ATTENTION_HPP_

#include <cstddef>
#include <span>
#include <vector>

#include "mla/attention/absorbed_attention.hpp"
#include "mla/attention/cache_rollback.hpp"
#include "mla/attention/call_plan.hpp"
#include "mla/attention/check_batch.hpp"
#include "mla/attention/cost_model.hpp"
#include "mla/attention/decompressed_attention.hpp"
#include "mla/attention/latent_kv_cache.hpp"
#include "mla/attention/low_rank.hpp"
#include "mla/attention/weights.hpp"
#include "mla/core/config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/linear.hpp"
#include "mla/ops/rope.hpp"

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
  /// `cache` has room (LatentCache::reserve). Throws std::invalid_argument for shapes or options
  /// that do not fit; whatever is thrown, the cache is unchanged.
  void forward(const Eigen::Ref<const RowMajorMatrix>& x, LatentCache& cache,
               Eigen::Ref<RowMajorMatrix> out, Context& context,
               const ForwardOptions& options = {}) const {
    const Sequence sequence = {&cache, x.rows()};
    forward(x, std::span<const Sequence>(&sequence, 1), out, context, options);
  }

  /// The same, with memory of its own for the result and on the way.
  RowMajorMatrix forward(const Eigen::Ref<const RowMajorMatrix>& x, LatentCache& cache,
                         const ForwardOptions& options = {}) const {
    RowMajorMatrix out(x.rows(), x.cols());
    Context context;
    forward(x, cache, out, context, options);
    return out;
  }

  /// Several sequences in one call, each with its own cache, of any format, and any number of
  /// tokens (none is allowed): x and out hold their tokens one sequence after the other.
  void forward(const Eigen::Ref<const RowMajorMatrix>& x, std::span<const Sequence> batch,
               Eigen::Ref<RowMajorMatrix> out, Context& context,
               const ForwardOptions& options = {}) const {
    check_call(view_of(x));
    require_matrix("out", mutable_view_of(out), x.rows(), x.cols());
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const CallPlan call = plan(x.rows(), batch, options, context);
    const std::span<LatentCache* const> caches = caches_of(batch, workspace);
    CacheRollback<LatentCache> rollback(caches, workspace);
    if (!call.has_padding()) {
      forward(call, caches, view_of(x), mutable_view_of(out), context);
    } else {
      const auto real = workspace.take_matrix<float>(call.tokens(), x.cols());
      call.gather(view_of(x), real);
      forward(call, caches, real, real, context);
      call.scatter(real, mutable_view_of(out));
    }
    rollback.keep();
  }

  void forward(const Eigen::Ref<const RowMajorMatrix>& x, const std::vector<Sequence>& batch,
               Eigen::Ref<RowMajorMatrix> out, Context& context,
               const ForwardOptions& options = {}) const {
    forward(x, std::span<const Sequence>(batch), out, context, options);
  }

  /// Appends x [tokens, hidden_size] to `cache` without computing its output: for tokens that later
  /// tokens attend to but whose own result is not needed. Throws as forward().
  void append(const Eigen::Ref<const RowMajorMatrix>& x, LatentCache& cache, Context& context,
              const ForwardOptions& options = {}) const {
    check_call(view_of(x));
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const Sequence sequence = {&cache, x.rows()};
    const CallPlan call = plan(x.rows(), std::span(&sequence, 1), options, context);
    LatentCache* const caches[] = {&cache};
    const auto real = workspace.take_matrix<float>(call.tokens(), x.cols());
    call.gather(view_of(x), real);
    CacheRollback<LatentCache> rollback(caches, workspace);
    append(call, caches, real, context);
    rollback.keep();
  }

  /// Plans a call of `tokens` tokens, in scratch memory of `context`: for this layer, or for all
  /// layers of a model that have the same configuration. `batch` has one layer's caches. Throws as
  /// forward().
  CallPlan plan(Index tokens, std::span<const Sequence> batch, const ForwardOptions& options,
                Context& context) const {
    return {config_, rotary_, tokens, batch, options, context.workspace()};
  }

  /// As forward() over a call that was planned for all layers of a model.
  ///   caches  this layer's cache of each of the plan's sequences
  ///   x, out  [plan.tokens(), hidden_size], without padding; may be the same memory
  /// Throws std::invalid_argument for shapes that do not fit. Rows that were appended before
  /// something was thrown stay: whoever planned the call takes them back (CacheRollback).
  void forward(const CallPlan& plan, std::span<LatentCache* const> caches,
               MatrixView<const float> x, MatrixView<float> out, Context& context) const {
    check_call(x);
    require_matrix("out", out, plan.tokens(), config_.hidden_size);
    if (plan.tokens() == 0) return;
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const Index tokens = plan.tokens(), heads = config_.num_attention_heads;
    append(plan, caches, x, context);
    const auto queries = workspace.take_matrix<float>(tokens, heads * config_.qk_head_dim());
    query_.forward(x, plan.rotary(), queries, context);
    const auto values = workspace.take_matrix<float>(tokens, heads * config_.v_head_dim);
    attend(plan, caches, queries, values, context);
    output_.forward(values, out, context);
  }

  /// As append() over a planned call: x [plan.tokens(), hidden_size].
  void append(const CallPlan& plan, std::span<LatentCache* const> caches, MatrixView<const float> x,
              Context& context) const {
    check_call(x);
    require_matrix("x", x, plan.tokens(), config_.hidden_size);
    require(caches.size() == plan.shares().size(), "the plan has ", plan.shares().size(),
            " sequences, got ", caches.size(), " caches");
    for (std::size_t s = 0; s < caches.size(); ++s) require_cache(config_, *caches[s], s);
    if (plan.tokens() == 0) return;
    const Workspace::Scope scope(context.workspace());
    const auto rows =
        context.workspace().take_matrix<float>(plan.tokens(), config_.cache_row_width());
    compression_.forward(x, plan.rotary(), rows, context);
    plan.append(rows, caches, context.kernels());
  }

 private:
  void check_call(MatrixView<const float> x) const {
    require(bool(compression_), "this layer was moved from");
    require(x.cols == config_.hidden_size, "x must have hidden_size ", config_.hidden_size,
            " columns, got ", x.cols);
  }

  static std::span<LatentCache* const> caches_of(std::span<const Sequence> batch,
                                                 Workspace& workspace) {
    LatentCache** const caches = workspace.take<LatentCache*>(std::ssize(batch));
    for (std::size_t s = 0; s < batch.size(); ++s) caches[s] = batch[s].cache;
    return {caches, batch.size()};
  }

  // The form for a sequence. Depends on the sequence alone, not on its batch.
  Mode mode_of(const CallPlan& plan, const CallPlan::Share& share, const CachedTokens& sequence,
               const Context& context) const noexcept {
    if (plan.mode() != Mode::automatic) return plan.mode();
    if (sequence.selected) return Mode::absorbed;
    return choose_mode(
        config_, share.past, share.tokens,
        attention_speed(context.kernels(), decompression_.format(), sequence.cache->format()));
  }

  // queries [tokens, heads * (nope + rope)] -> values [tokens, heads * v], for neighbouring
  // sequences of the same form together.
  void attend(const CallPlan& plan, std::span<LatentCache* const> caches,
              MatrixView<const float> queries, MatrixView<float> values, Context& context) const {
    const std::size_t count = caches.size();
    CachedTokens* const sequences = context.workspace().take<CachedTokens>(std::ssize(caches));
    Mode* const modes = context.workspace().take<Mode>(std::ssize(caches));
    for (std::size_t s = 0; s < count; ++s) {
      sequences[s] = plan.cached(s, *caches[s]);
      modes[s] = mode_of(plan, plan.shares()[s], sequences[s], context);
    }
    for (std::size_t s = 0, end; s < count; s = end) {
      const Index first = sequences[s].first_token;
      Index tokens = 0;
      for (end = s; end < count && modes[end] == modes[s]; ++end) {
        sequences[end].first_token -= first;
        tokens += sequences[end].tokens;
      }
      if (tokens > 0)
        attend_run(modes[s], {sequences + s, end - s}, queries.row_range(first, tokens),
                   values.row_range(first, tokens), context);
    }
  }

  void attend_run(Mode mode, std::span<const CachedTokens> batch, MatrixView<const float> queries,
                  MatrixView<float> values, Context& context) const {
    if (mode == Mode::decompressed)
      return DecompressedAttention(config_, softmax_scale(), decompression_)
          .forward(batch, queries, values, context);
    const Workspace::Scope scope(context.workspace());
    const Index heads = config_.num_attention_heads;
    const auto latent_queries = context.workspace().take_matrix<float>(
        queries.rows, heads * (config_.kv_lora_rank + config_.qk_rope_head_dim));
    const auto latent_values =
        context.workspace().take_matrix<float>(queries.rows, heads * config_.kv_lora_rank);
    decompression_.absorb(queries, latent_queries, context);
    AbsorbedAttention(config_, softmax_scale())
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
