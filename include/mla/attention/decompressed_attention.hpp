#ifndef MLA_ATTENTION_DECOMPRESSED_ATTENTION_HPP_
#define MLA_ATTENTION_DECOMPRESSED_ATTENTION_HPP_

#include <algorithm>
#include <new>
#include <span>
#include <type_traits>

#include "mla/attention/cached_tokens.hpp"
#include "mla/attention/context.hpp"
#include "mla/attention/low_rank.hpp"
#include "mla/attention/softmax_rows.hpp"
#include "mla/core/config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// Causal attention with keys and values that are made from the latents, head by head and a block
/// of the cache at a time, and used by all queries of the sequence. Memory is a block, and one
/// head's queries and results, for each worker.
///   queries [tokens, heads * (nope + rope)]
///   values  [tokens, heads * v]
///   log_sum_exp [tokens, heads]  of the scaled scores, -inf where no key was seen; empty: not
///                                wanted (see merge_attention.hpp)
template <StorageElement T>
class DecompressedAttention {
 public:
  DecompressedAttention(const AttentionConfig& config, double softmax_scale,
                        const LatentDecompression& decompression)
      : config_(config),
        softmax_scale_(static_cast<float>(softmax_scale)),
        decompression_(decompression) {}

  void forward(std::span<const CachedTokens<T>> batch, MatrixView<const float> queries,
               MatrixView<float> values, Context& context,
               MatrixView<float> log_sum_exp = {}) const {
    if constexpr (std::is_same_v<T, bfloat16>)
      if (simd::precision_of(context.kernels().isa) == simd::Precision::bfloat16)
        return attend<bfloat16>(batch, queries, values, log_sum_exp, context);
    attend<float>(batch, queries, values, log_sum_exp, context);
  }

 private:
  // Keys that are decompressed at a time: a multiple of what the kernels take at a time.
  static constexpr Index kBlockKeys = 4 * simd::kTileKeys;

  // Memory of one worker. D is the type of decompressed rows.
  template <class D>
  struct Scratch {
    Scratch(const AttentionConfig& config, Index tokens, const LatentDecompression& decompression,
            Context& context)
        : latents(context.workspace().take_matrix<float>(kBlockKeys, config.kv_lora_rank)),
          made(context.workspace().take_matrix<float>(kBlockKeys,
                                                      config.qk_head_dim() + config.v_head_dim)),
          linear(
              context.workspace().take<float>(decompression.scratch_floats(kBlockKeys, context))),
          visible(context.workspace().take<Index>(tokens)),
          softmax(context.workspace().take_matrix<float>(tokens, config.v_head_dim),
                  context.workspace()),
          kernel(context.workspace().take<float>(context.kernels().of<D>().attend_many_scratch(
              tokens, config.qk_head_dim(), config.v_head_dim))) {
      if constexpr (std::is_same_v<D, float>)
        rows = made;
      else
        rows = context.workspace().take_matrix<D>(kBlockKeys, made.cols);
    }

    MatrixView<float> latents;  // [block, rank]
    MatrixView<float> made;     // [block, nope | rope | v] keys and values of one head
    MatrixView<D> rows;         // the same as D
    float* linear;              // of decompress()
    Index* visible;             // [tokens] keys of the block, and after it, that a token sees
    SoftmaxRows softmax;        // [tokens, v]
    float* kernel;              // of attend_many()
  };

  template <class D>
  void attend(std::span<const CachedTokens<T>> batch, MatrixView<const float> queries,
              MatrixView<float> values, MatrixView<float> log_sum_exp, Context& context) const {
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    Index tokens = 0;
    for (const CachedTokens<T>& sequence : batch) tokens = std::max(tokens, sequence.tokens);
    const Index workers = context.executor().concurrency();
    Scratch<D>* scratch = workspace.take<Scratch<D>>(workers);
    for (Index w = 0; w < workers; ++w)
      new (scratch + w) Scratch<D>(config_, tokens, decompression_, context);

    const Index heads = config_.num_attention_heads;
    const Index tasks = static_cast<Index>(batch.size()) * heads;
    context.executor().parallel_for(tasks, [&](Index task, Index worker) {
      attend_head(batch[static_cast<std::size_t>(task / heads)], task % heads, queries, values,
                  log_sum_exp, scratch[worker], context);
    });
  }

  template <class D>
  void attend_head(const CachedTokens<T>& sequence, Index h, MatrixView<const float> queries,
                   MatrixView<float> values, MatrixView<float> log_sum_exp,
                   const Scratch<D>& scratch, const Context& context) const noexcept {
    if (sequence.tokens == 0) return;
    const Index qk = config_.qk_head_dim(), v = config_.v_head_dim;
    scratch.softmax.start(0, sequence.tokens);
    for (Index first = 0; first < sequence.cache->size(); first += kBlockKeys) {
      const Index count = std::min(kBlockKeys, sequence.cache->size() - first);
      decompress(*sequence.cache, first, count, h, scratch, context);
      // Tokens from before the block see nothing of it.
      const Index skip = std::max<Index>(0, first - sequence.past());
      const Index rows = sequence.tokens - skip;
      for (Index i = 0; i < rows; ++i) scratch.visible[i] = sequence.visible(skip + i) - first;
      const simd::KeyValueRows<D> keys = {.pages = &scratch.rows.data,
                                          .page_rows = kBlockKeys,
                                          .row_stride = scratch.rows.stride,
                                          .count = count,
                                          .key_offset = 0,
                                          .key_width = qk,
                                          .tail_offset = 0,
                                          .tail_width = 0,
                                          .value_offset = qk,
                                          .value_width = v};
      const float* query = queries.row(sequence.first_token + skip) + h * qk;
      context.kernels().of<D>().attend_many({query, queries.stride, rows, scratch.visible}, keys,
                                            softmax_scale_, scratch.softmax.state(skip),
                                            scratch.kernel);
    }
    for (Index i = 0; i < sequence.tokens; ++i) {
      const Index token = sequence.first_token + i;
      const auto total = scratch.softmax.finish(i, values.row(token) + h * v);
      if (log_sum_exp.data) log_sum_exp(token, h) = total.log_sum_exp();
    }
  }

  // Keys and values of head h of cached tokens [first, + count) to scratch.rows.
  template <class D>
  void decompress(const LatentKVCache<T>& cache, Index first, Index count, Index h,
                  const Scratch<D>& scratch, const Context& context) const noexcept {
    const auto& kernels = context.kernels().of<T>();
    const Index rope = config_.qk_rope_head_dim, nope = config_.qk_nope_head_dim;
    const Index rope_key = config_.kv_lora_rank + (config_.rope_key_per_head ? h * rope : 0);
    for (Index k = 0; k < count; ++k) {
      const T* row = cache.row(first + k);
      kernels.to_float(row, config_.kv_lora_rank, scratch.latents.row(k));
      kernels.to_float(row + rope_key, rope, scratch.made.row(k) + nope);
    }
    const auto made = scratch.made.row_range(0, count);
    decompression_.decompress(scratch.latents.row_range(0, count), h, made.col_range(0, nope),
                              made.col_range(config_.qk_head_dim(), config_.v_head_dim),
                              scratch.linear, context);
    if constexpr (!std::is_same_v<D, float>)
      for (Index k = 0; k < count; ++k)
        context.kernels().of<D>().from_float(made.row(k), made.cols, scratch.rows.row(k));
  }

  AttentionConfig config_;
  float softmax_scale_;
  const LatentDecompression& decompression_;
};

}  // namespace mla

#endif  // MLA_ATTENTION_DECOMPRESSED_ATTENTION_HPP_
