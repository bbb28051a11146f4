#ifndef MLA_ATTENTION_INDEXER_HPP_
#define MLA_ATTENTION_INDEXER_HPP_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "mla/attention/attention_weights.hpp"
#include "mla/attention/cached_tokens.hpp"
#include "mla/attention/call_plan.hpp"
#include "mla/attention/index_selection.hpp"
#include "mla/attention/latent_cache.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/layer_norm.hpp"
#include "mla/ops/linear.hpp"
#include "mla/ops/rope.hpp"
#include "mla/ops/row_blocks.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// The indexer of a layer (IndexerConfig): makes the index keys that are cached, scores those that
/// a token may see, and selects the best. A score depends on its token and key only, so that a
/// selection does not depend on threads, on how a text is cut into calls, or on its batch.
class Indexer {
 public:
  Indexer() = default;
  /// Empty where the layer has no indexer of its own. `weights` must outlive the object.
  Indexer(const AttentionConfig& config, const AttentionWeights& weights) : config_(config) {
    if (config.indexer.type != IndexerType::full) return;
    queries_ = Linear(weights.indexer_wq_b);
    keys_ = Linear(weights.indexer_wk);
    key_norm_ =
        LayerNorm(weights.indexer_k_norm, weights.indexer_k_norm_bias, config.indexer.k_norm_eps);
    head_weights_ = Linear(weights.indexer_weights_proj);
  }

  explicit operator bool() const noexcept { return bool(key_norm_); }

  /// x [tokens, hidden_size] -> keys [tokens, index_head_dim] as they are cached. Throws
  /// std::invalid_argument for other shapes.
  void make_keys(MatrixView<const float> x, const RotaryTables& rotary, MatrixView<float> keys,
                 Context& context) const {
    require_tables(rotary, x.rows, config_.qk_rope_head_dim);
    keys_.forward(x, keys, context);
    key_norm_.forward(keys, context);
    rotate(keys, 1, rotary, context);
  }

  /// Writes what the tokens of a call see, where that is not all up to their own.
  ///   x       [plan.tokens(), hidden_size]
  ///   latent  [plan.tokens(), q_lora_rank] of LowRankQuery::compress
  ///   caches  of the plan's sequences, with their index keys
  void select(MatrixView<const float> x, MatrixView<const float> latent, const CallPlan& plan,
              std::span<LatentCache* const> caches, IndexSelection& selection,
              Context& context) const {
    if (!selection.any()) return selection.set_selected();
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const Index heads = config_.indexer.heads;
    const auto queries = workspace.take_matrix<float>(x.rows, heads * config_.indexer.head_dim);
    queries_.forward(latent, queries, context);
    rotate(queries, heads, plan.rotary(), context);
    const auto weights = workspace.take_matrix<float>(x.rows, heads);
    weigh_heads(x, weights, context);
    for (std::size_t s = 0; s < caches.size(); ++s) {
      const CallPlan::Share& share = plan.shares()[s];
      const CachedTokens tokens = plan.cached(s, *caches[s]);
      select_rows(tokens.last(share.tokens - selection.dense_tokens(share)), queries, weights,
                  selection, context);
    }
    selection.set_selected();
  }

 private:
  static constexpr Index kTaskHeads = 16;                // whose weights a task computes
  static constexpr Index kPartKeys = 2048;               // that a task scores
  static constexpr Index kScoreFloats = Index{1} << 22;  // scores that are held at a time

  // The first numbers of each of `heads` heads of rows.
  void rotate(MatrixView<float> rows, Index heads, const RotaryTables& rotary,
              const Context& context) const {
    const Index dim = config_.indexer.head_dim, rope = config_.qk_rope_head_dim;
    for_row_blocks(context.executor(), rows.rows, heads * rope, [&](Index first, Index count) {
      for (Index t = first; t < first + count; ++t)
        for (Index h = 0; h < heads; ++h)
          context.kernels().rotate(rows.row(t) + h * dim, rotary.cos.row(t), rotary.sin.row(t),
                                   rope, config_.indexer.rope_interleave);
    });
  }

  // weights_proj in float32, whatever the context may round: near ties depend on it.
  void weigh_heads(MatrixView<const float> x, MatrixView<float> weights, Context& context) const {
    const Workspace::Scope scope(context.workspace());
    const simd::Kernels& exact = simd::kernels_for(context.kernels().isa, Arithmetic::float32);
    const auto scratch = context.workspace().take_matrix<float>(context.executor().concurrency(),
                                                                exact.linear_scratch);
    context.executor().parallel_for(
        (weights.cols + kTaskHeads - 1) / kTaskHeads, [&](Index task, Index worker) {
          const Index first = task * kTaskHeads, count = std::min(kTaskHeads, weights.cols - first);
          head_weights_.forward_part(x, nullptr, first, weights.col_range(first, count),
                                     scratch.row(worker), exact);
        });
    const double heads = static_cast<double>(config_.indexer.heads);
    const double dim = static_cast<double>(config_.indexer.head_dim);
    const auto scale = static_cast<float>(1.0 / std::sqrt(heads * dim));
    for (Index t = 0; t < weights.rows; ++t)
      std::for_each_n(weights.row(t), weights.cols, [&](float& weight) { weight *= scale; });
  }

  // The keys of a part of the cache, of those that lie in a piece.
  static simd::KeyValueRows key_rows(const PagedRows& keys, const KeyPiece& piece, Index first,
                                     Index count) noexcept {
    const Index slot = piece.slot + first;
    return {.pages = keys.pages() + slot / PagedRows::kPageRows,
            .page_rows = PagedRows::kPageRows,
            .layout = keys.layout(),
            .count = count,
            .key_width = keys.layout().width(),
            .first_row = slot % PagedRows::kPageRows};
  }

  // Selects for tokens that all have a list: as many at a time as there is room for their scores.
  void select_rows(const CachedTokens& tokens, MatrixView<const float> queries,
                   MatrixView<const float> weights, IndexSelection& selection,
                   Context& context) const {
    if (tokens.tokens == 0) return;
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const PagedRows& keys = *tokens.cache->index_keys();
    const simd::IndexKernels& kernels = context.kernels().of_index_keys(keys.layout().format);
    const Index heads = config_.indexer.heads, dim = config_.indexer.head_dim;
    const Index workers = context.executor().concurrency();
    // As long as the cache may become before it grows: decoding allocates nothing until then.
    const Index most = keys.capacity();
    const Index together = std::clamp<Index>(kScoreFloats / most, 1, tokens.tokens);
    const Scoring scoring = {
        tokens,
        keys,
        kernels,
        queries,
        heads,
        workspace.take_matrix<float>(together, line_of(kernels.packed_floats(heads, dim))),
        workspace.take_matrix<float>(together, line_of(most)),
        workspace.take_matrix<float>(workers, line_of(kernels.scratch(keys.layout(), heads, dim)))};
    const auto memory = workspace.take_matrix<std::uint32_t>(workers, TopRows::scratch(most));
    for (Index first = 0; first < tokens.tokens; first += together) {
      const Index count = std::min(together, tokens.tokens - first);
      context.executor().parallel_for(count,
                                      [&](Index i, Index) { scoring.pack(first, i, weights); });
      const Index parts = (tokens.visible(first + count - 1) + kPartKeys - 1) / kPartKeys;
      context.executor().parallel_for(count * parts, [&](Index task, Index worker) {
        scoring.score(first, task / parts, task % parts, worker);
      });
      context.executor().parallel_for(count, [&](Index i, Index worker) {
        const Index t = tokens.first_token + first + i;
        TopRows::select(
            {scoring.scores.row(i), static_cast<std::size_t>(tokens.visible(first + i))},
            selection.topk(), selection.list(t), memory.row(worker));
      });
    }
  }

  // Floats of a row that ends with a cache line.
  static constexpr Index line_of(Index floats) noexcept { return (floats + 15) / 16 * 16; }

  // Tokens [first, + scores.rows) of a share.
  struct Scoring {
    const CachedTokens& tokens;
    const PagedRows& keys;
    const simd::IndexKernels& kernels;
    MatrixView<const float> queries;  // [tokens of the call, heads * dim]
    Index heads = 0;
    MatrixView<float> packed;   // [tokens at a time, packed_floats]
    MatrixView<float> scores;   // [tokens at a time, rows of the cache]
    MatrixView<float> scratch;  // [workers, ...]

    // queries [heads, dim] of token i of the share
    MatrixView<const float> rows_of(Index i) const noexcept {
      return {queries.row(tokens.first_token + i), heads, queries.cols / heads};
    }
    void pack(Index first, Index i, MatrixView<const float> weights) const noexcept {
      kernels.pack(rows_of(first + i), weights.row(tokens.first_token + first + i), packed.row(i));
    }
    void score(Index first, Index i, Index part, Index worker) const noexcept {
      for_each_piece(tokens, first + i, [&](const KeyPiece& piece) {
        const Index begin = std::max(piece.first, part * kPartKeys);
        const Index end = std::min(piece.end(), (part + 1) * kPartKeys);
        if (begin < end)
          kernels.score({rows_of(first + i), packed.row(i)},
                        key_rows(keys, piece, begin, end - begin), scores.row(i) + begin,
                        scratch.row(worker));
      });
    }
  };

  AttentionConfig config_;
  Linear queries_;       // wq_b
  Linear keys_;          // wk
  LayerNorm key_norm_;   // k_norm
  Linear head_weights_;  // weights_proj
};

}  // namespace mla

#endif  // MLA_ATTENTION_INDEXER_HPP_
