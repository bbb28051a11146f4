#ifndef MLA_ATTENTION_CAUSAL_ATTENTION_HPP_
#define MLA_ATTENTION_CAUSAL_ATTENTION_HPP_

#include <algorithm>
#include <limits>
#include <span>

#include "mla/attention/context.hpp"
#include "mla/attention/latent_kv_cache.hpp"
#include "mla/attention/low_rank.hpp"
#include "mla/core/config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/kernels.hpp"

// Causal attention over latent caches in its two forms. The new tokens of a sequence are at the end
// of its cache already; token i of n sees all cached tokens but the last n - 1 - i. Causality is by
// place in the cache, not by position id.

namespace mla {

/// A sequence's share of a call: tokens [first_token, + tokens) of the call are the last of
/// `cache`.
template <StorageElement T>
struct CachedTokens {
  const LatentKVCache<T>* cache = nullptr;
  Index first_token = 0;
  Index tokens = 0;

  /// Cached tokens from before the call.
  Index past() const noexcept { return cache->size() - tokens; }
  /// Keys that token i of this share sees.
  Index visible(Index i) const noexcept { return past() + i + 1; }
};

/// Online softmax of query rows: what the kernels continue from key to key. See SoftmaxState.
class SoftmaxRows {
 public:
  /// `rows` rows whose results go to `out` [rows, value width].
  SoftmaxRows(MatrixView<float> out, Workspace& workspace)
      : out_(out),
        maximum_(workspace.take<float>(out.rows)),
        sum_(workspace.take<float>(out.rows)) {
    std::fill_n(maximum_, out.rows, -std::numeric_limits<float>::infinity());
    std::fill_n(sum_, out.rows, 0.0f);
    for (Index r = 0; r < out.rows; ++r) std::fill_n(out.row(r), out.cols, 0.0f);
  }

  simd::SoftmaxState from_row(Index r) const noexcept {
    return {maximum_ + r, sum_ + r, out_.row(r), out_.stride};
  }

  /// Divides rows [first, + count) by their sums. A row that saw no key stays 0.
  void finish(Index first, Index count) const noexcept {
    for (Index r = first; r < first + count; ++r) {
      if (sum_[r] == 0.0f) continue;
      const float scale = 1.0f / sum_[r];
      for (Index c = 0; c < out_.cols; ++c) out_(r, c) *= scale;
    }
  }

 private:
  MatrixView<float> out_;
  float* maximum_;
  float* sum_;
};

/// Absorbed: queries in latent space against the cached rows as they are.
///   latent_queries [tokens, heads * (rank + rope)]  from LatentDecompression::absorb
///   latent_values  [tokens, heads * rank]           the softmax-weighted sums of latents
template <StorageElement T>
void absorbed_attention(const AttentionConfig& config, double softmax_scale,
                        std::span<const CachedTokens<T>> batch,
                        MatrixView<const float> latent_queries, MatrixView<float> latent_values,
                        Context& context) {
  const Index heads = config.num_attention_heads;
  const Index rank = config.kv_lora_rank, rope = config.qk_rope_head_dim;
  const Index tokens = latent_queries.rows;
  Workspace& workspace = context.workspace();
  const Workspace::Scope scope(workspace);

  // From here on a row is one head of one token.
  const MatrixView<const float> queries(latent_queries.data, tokens * heads, rank + rope);
  const SoftmaxRows softmax({latent_values.data, tokens * heads, rank}, workspace);
  Index* visible = workspace.take<Index>(tokens * heads);
  auto* sequence_of = workspace.take<const CachedTokens<T>*>(tokens);
  for (const CachedTokens<T>& sequence : batch)
    for (Index i = 0; i < sequence.tokens; ++i) {
      sequence_of[sequence.first_token + i] = &sequence;
      std::fill_n(visible + (sequence.first_token + i) * heads, heads, sequence.visible(i));
    }

  // A task is some heads of a token that share a rotary key.
  const Index task_heads = config.rope_key_per_head ? 1 : std::min<Index>(heads, 16);
  const Index tasks = (heads + task_heads - 1) / task_heads;  // of a token
  context.executor().parallel_for(tokens * tasks, [&](Index task, Index) {
    const Index token = task / tasks, head = task % tasks * task_heads;
    const Index row = token * heads + head;
    const Index rows = std::min(task_heads, heads - head);
    const simd::KeyValueRows<T> keys = {
        .pages = sequence_of[token]->cache->rows().pages(),
        .page_rows = PagedRows<T>::kPageRows,
        .row_stride = config.cache_row_width(),
        .count = visible[row],
        .key_offset = 0,
        .key_width = rank,
        .tail_offset = rank + (config.rope_key_per_head ? head * rope : 0),
        .tail_width = rope,
        .value_offset = 0,
        .value_width = rank};
    context.kernels().of<T>().attend({queries.row(row), queries.stride, rows, visible + row}, keys,
                                     static_cast<float>(softmax_scale), softmax.from_row(row));
    softmax.finish(row, rows);
  });
}

namespace detail {

/// Keys that are decompressed at a time: a multiple of the kernels' tile.
inline constexpr Index kBlockKeys = 4 * simd::kTileKeys;

// Scratch memory of one worker of decompressed_attention.
struct KeyBlock {
  KeyBlock(const AttentionConfig& config, Index tokens, Workspace& workspace)
      : latents(workspace.take_matrix<float>(kBlockKeys, config.kv_lora_rank)),
        rows(workspace.take_matrix<float>(kBlockKeys, config.qk_head_dim() + config.v_head_dim)),
        visible(workspace.take<Index>(tokens)) {}

  MatrixView<float> latents;  // [keys, rank]
  MatrixView<float> rows;     // [keys, nope | rope | v] of one head
  Index* visible;             // [tokens] keys of the block and after it that a token sees
};

// Keys and values of head h of cached tokens [first, + count) into the first rows of `block`.
template <StorageElement T>
void fill_block(const AttentionConfig& config, const LatentDecompression& decompression,
                const LatentKVCache<T>& cache, Index first, Index count, Index h,
                const KeyBlock& block, const Context& context) noexcept {
  const auto& kernels = context.kernels().of<T>();
  const Index rope = config.qk_rope_head_dim, nope = config.qk_nope_head_dim;
  const Index rope_key = config.kv_lora_rank + (config.rope_key_per_head ? h * rope : 0);
  for (Index k = 0; k < count; ++k) {
    const T* row = cache.row(first + k);
    kernels.to_float(row, config.kv_lora_rank, block.latents.row(k));
    kernels.to_float(row + rope_key, rope, block.rows.row(k) + nope);
  }
  const auto rows = block.rows.row_range(0, count);
  decompression.decompress(block.latents.row_range(0, count), h, rows.col_range(0, nope),
                           rows.col_range(config.qk_head_dim(), config.v_head_dim), context);
}

}  // namespace detail

/// Decompressed: keys and values of each head are made from the latents, a block of the cache at a
/// time, and used by all queries of the sequence. Memory is a block for each worker.
///   queries [tokens, heads * (nope + rope)]
///   values  [tokens, heads * v]
template <StorageElement T>
void decompressed_attention(const AttentionConfig& config, double softmax_scale,
                            const LatentDecompression& decompression,
                            std::span<const CachedTokens<T>> batch, MatrixView<const float> queries,
                            MatrixView<float> values, Context& context) {
  using detail::kBlockKeys;
  const Index heads = config.num_attention_heads;
  const Index qk = config.qk_head_dim(), v = config.v_head_dim;
  const Index tokens = queries.rows;
  Workspace& workspace = context.workspace();
  const Workspace::Scope scope(workspace);

  SoftmaxRows* softmax = workspace.take<SoftmaxRows>(heads);  // of [tokens, v] each
  for (Index h = 0; h < heads; ++h)
    new (softmax + h) SoftmaxRows(values.col_range(h * v, v), workspace);
  const Index workers = context.executor().concurrency();
  auto* blocks = workspace.take<detail::KeyBlock>(workers);
  for (Index w = 0; w < workers; ++w) new (blocks + w) detail::KeyBlock(config, tokens, workspace);

  const Index sequences = static_cast<Index>(batch.size());
  context.executor().parallel_for(sequences * heads, [&](Index task, Index worker) {
    const CachedTokens<T>& sequence = batch[static_cast<std::size_t>(task / heads)];
    const Index h = task % heads;
    const detail::KeyBlock& block = blocks[worker];
    for (Index first = 0; first < sequence.cache->size(); first += kBlockKeys) {
      const Index count = std::min(kBlockKeys, sequence.cache->size() - first);
      detail::fill_block(config, decompression, *sequence.cache, first, count, h, block, context);
      // Tokens from before the block see nothing of it.
      const Index skip = std::max<Index>(0, first - sequence.past());
      const Index rows = sequence.tokens - skip;
      for (Index i = 0; i < rows; ++i) block.visible[i] = sequence.visible(skip + i) - first;
      const simd::KeyValueRows<float> keys = {.pages = &block.rows.data,
                                              .page_rows = kBlockKeys,
                                              .row_stride = block.rows.stride,
                                              .count = count,
                                              .key_offset = 0,
                                              .key_width = qk,
                                              .tail_offset = 0,
                                              .tail_width = 0,
                                              .value_offset = qk,
                                              .value_width = v};
      const Index token = sequence.first_token + skip;
      context.kernels().f32.attend(
          {queries.row(token) + h * qk, queries.stride, rows, block.visible}, keys,
          static_cast<float>(softmax_scale), softmax[h].from_row(token));
    }
    softmax[h].finish(sequence.first_token, sequence.tokens);
  });
}

}  // namespace mla

#endif  // MLA_ATTENTION_CAUSAL_ATTENTION_HPP_
