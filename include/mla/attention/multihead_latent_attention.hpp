#ifndef MLA_ATTENTION_MULTIHEAD_LATENT_ATTENTION_HPP_
#define MLA_ATTENTION_MULTIHEAD_LATENT_ATTENTION_HPP_

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "mla/attention/attention_mass.hpp"
#include "mla/attention/attention_weights.hpp"
#include "mla/attention/call_plan.hpp"
#include "mla/attention/cost_model.hpp"
#include "mla/attention/index_selection.hpp"
#include "mla/attention/indexer.hpp"
#include "mla/attention/latent_kv_cache.hpp"
#include "mla/attention/low_rank.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/bodies.hpp"
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
///
/// With an indexer (AttentionConfig::indexer) a token sees the keys that it selects, absorbed in
/// any mode. Tokens that see no more than index_topk keys see all of them, as without one: the same
/// bits.
class MultiheadLatentAttention {
 public:
  /// `weights` are views that must outlive the layer; only norms and biases are converted and kept.
  /// Throws std::invalid_argument naming the field or tensor that does not fit.
  [[gnu::cold]] MultiheadLatentAttention(const AttentionConfig& config,
                                         const AttentionWeights& weights);

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
               const ForwardOptions& options = {}) const;

  void forward(const Eigen::Ref<const RowMajorMatrix>& x, const std::vector<Sequence>& batch,
               Eigen::Ref<RowMajorMatrix> out, Context& context,
               const ForwardOptions& options = {}) const {
    forward(x, std::span<const Sequence>(batch), out, context, options);
  }

  /// Appends x [tokens, hidden_size] to `cache` without computing its output: for tokens that later
  /// tokens attend to but whose own result is not needed. Throws as forward().
  void append(const Eigen::Ref<const RowMajorMatrix>& x, LatentCache& cache, Context& context,
              const ForwardOptions& options = {}) const;

  /// Plans a call of `tokens` tokens, in scratch memory of `context`: for this layer, or for all
  /// layers of a model that have the same configuration. `batch` has one layer's caches. Throws as
  /// forward().
  CallPlan plan(Index tokens, std::span<const Sequence> batch, const ForwardOptions& options,
                Context& context) const;

  /// As forward() over a call that was planned for all layers of a model.
  ///   caches  this layer's cache of each of the plan's sequences
  ///   x, out  [plan.tokens(), hidden_size], without padding; may be the same memory
  ///   masses  where given, those of this layer, or nullptr, for each sequence: the attention of
  ///   its
  ///           tokens is counted, which a layer with an indexer refuses
  ///   selection  of the call, where layers share one: written by a layer with an indexer of its
  ///           own, read by those that take the last such layer's. nullptr: none is shared
  /// Throws std::invalid_argument for shapes that do not fit. Rows that were appended before
  /// something was thrown stay: whoever planned the call takes them back (CacheRollback).
  void forward(const CallPlan& plan, std::span<LatentCache* const> caches,
               MatrixView<const float> x, MatrixView<float> out, Context& context,
               std::span<AttentionMass* const> masses = {},
               IndexSelection* selection = nullptr) const;

  /// As append() over a planned call: x [plan.tokens(), hidden_size].
  void append(const CallPlan& plan, std::span<LatentCache* const> caches, MatrixView<const float> x,
              Context& context) const;

 private:
  void check_call(MatrixView<const float> x) const;

  // The form for a sequence. Depends on the sequence alone, not on its batch.
  AttentionForm mode_of(AttentionForm wanted, const CachedTokens& sequence,
                        const Context& context) const noexcept;

  // What the layers of a call share, or `own`, made for this one. nullptr: tokens see all keys.
  IndexSelection* selection_of(const CallPlan& plan, IndexSelection* shared,
                               std::optional<IndexSelection>& own, Context& context) const;

  // The tokens of the plan's sequences: those that see all keys up to their own apart from those
  // that see a selection, at most two of a sequence.
  std::span<CachedTokens> tokens_of(const CallPlan& plan, std::span<LatentCache* const> caches,
                                    const IndexSelection* selection, AttentionForm* modes,
                                    Context& context) const;

  // queries [tokens, heads * (nope + rope)] -> values [tokens, heads * v], for neighbouring
  // sequences of the same form together.
  void attend(const CallPlan& plan, std::span<LatentCache* const> caches,
              MatrixView<const float> queries, MatrixView<float> values,
              MatrixView<float> log_sum_exp, const IndexSelection* selection,
              Context& context) const;

  void attend_run(AttentionForm mode, std::span<const CachedTokens> batch,
                  MatrixView<const float> queries, MatrixView<float> values,
                  MatrixView<float> log_sum_exp, Context& context) const;

  // Attention of the queries of attend(), which gave log_sum_exp.
  void count(const CallPlan& plan, std::span<LatentCache* const> caches,
             MatrixView<const float> queries, MatrixView<const float> log_sum_exp,
             std::span<AttentionMass* const> masses, Context& context) const;

  AttentionConfig config_;
  RotaryEmbedding rotary_;
  LowRankQuery query_;
  Indexer indexer_;
  LatentCompression compression_;
  LatentDecompression decompression_;
  Linear output_;
};

}  // namespace mla

#if defined(MLA_HAS_BODIES)
#include "mla/attention/multihead_latent_attention.inl"  // IWYU pragma: keep
#endif

#endif  // MLA_ATTENTION_MULTIHEAD_LATENT_ATTENTION_HPP_
