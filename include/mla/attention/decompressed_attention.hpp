#ifndef MLA_ATTENTION_DECOMPRESSED_ATTENTION_HPP_
#define MLA_ATTENTION_DECOMPRESSED_ATTENTION_HPP_

#include <algorithm>
#include <cstddef>
#include <span>

#include "mla/attention/cached_tokens.hpp"
#include "mla/attention/check_batch.hpp"
#include "mla/attention/low_rank.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/softmax_rows.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// Causal attention with keys and values that are made from the latents, a block of the cache at a
/// time, and used by all queries of the sequence. The latents of a block are widened and packed
/// once for all heads; a span of blocks is held at a time. Caches of a batch may be of different
/// formats.
///   queries [tokens, heads * (nope + rope)]
///   values  [tokens, heads * v]
///   log_sum_exp [tokens, heads]  of the scaled scores, -inf where no key was seen; empty: not
///                                wanted (see merge_attention.hpp)
/// Throws std::invalid_argument for shapes and caches that do not fit, and for tokens that see
/// selected rows: each would need keys and values of its own, which absorbed attention does
/// without.
class DecompressedAttention {
 public:
  DecompressedAttention(const AttentionConfig& config, double softmax_scale,
                        const LatentDecompression& decompression)
      : config_(config),
        softmax_scale_(static_cast<float>(softmax_scale)),
        decompression_(decompression) {}

  void forward(std::span<const CachedTokens> batch, MatrixView<const float> queries,
               MatrixView<float> values, Context& context,
               MatrixView<float> log_sum_exp = {}) const {
    const Index heads = config_.num_attention_heads, tokens = queries.rows;
    require_matrix("queries", queries, tokens, heads * config_.qk_head_dim());
    require_matrix("values", values, tokens, heads * config_.v_head_dim);
    if (log_sum_exp.data) require_matrix("log_sum_exp", log_sum_exp, tokens, heads);
    check_batch(config_, batch, tokens);
    for (std::size_t s = 0; s < batch.size(); ++s)
      require(!batch[s].selected, "sequence ", s,
              " has tokens that see selected rows, which decompressed attention does not take");
    for (const CachedTokens& sequence : batch) {
      const Call call = {sequence, queries.row_range(sequence.first_token, sequence.tokens),
                         values.row_range(sequence.first_token, sequence.tokens),
                         log_sum_exp.data
                             ? log_sum_exp.row_range(sequence.first_token, sequence.tokens)
                             : log_sum_exp};
      if (sequence.tokens > 0) attend(call, context);
    }
  }

 private:
  // Keys that are decompressed at a time: a multiple of what the kernels take at a time.
  static constexpr Index kBlockKeys = 4 * simd::kTileKeys;
  // Blocks whose latents are held, widened and packed.
  static constexpr Index kSpanBlocks = 8, kSpanKeys = kSpanBlocks * kBlockKeys;

  // One sequence.
  struct Call {
    const CachedTokens& sequence;
    MatrixView<const float> queries;  // [tokens, heads * (nope + rope)]
    MatrixView<float> values;         // [tokens, heads * v]
    MatrixView<float> log_sum_exp;    // [tokens, heads], or empty
  };

  // Some blocks of the cache, as all heads read them.
  struct Span {
    MatrixView<float> rows;    // [keys, cache row width] in float32
    MatrixView<float> packed;  // [blocks, packed_floats] latents as the projections want them
  };

  // Memory of one worker.
  struct Scratch {
    MatrixView<float> made;        // [block, nope | rope | v] keys and values of one head
    std::byte* encoded = nullptr;  // the same as the kernels want them, unless that is float32
    Index* visible = nullptr;      // [tokens] keys of the block, and after it, that a token sees
    float* linear = nullptr;       // of decompress()
    float* kernel = nullptr;       // of attend_many()
  };

  // The kernels that compute with decompressed rows, and how these lie.
  struct MadeRows {
    const simd::CacheKernels& kernels;
    RowLayout layout;
  };

  // As exact as the kernels of the cache: what they round, decompressed rows may be rounded to.
  MadeRows made_rows(CacheFormat cache, const simd::Kernels& kernels) const {
    const bool rounds = kernels.of(cache).arithmetic != simd::Arithmetic::float32;
    const CacheFormat format = rounds ? CacheFormat::bfloat16 : CacheFormat::float32;
    return {kernels.of(format), row_layout(format, config_.qk_head_dim() + config_.v_head_dim, 0)};
  }

  Scratch take_scratch(const MadeRows& made, Index tokens, Context& context) const {
    Workspace& workspace = context.workspace();
    return {workspace.take_matrix<float>(kBlockKeys, made.layout.width()),
            workspace.take<std::byte>(kBlockKeys * made.layout.bytes),
            workspace.take<Index>(tokens), workspace.take<float>(context.kernels().linear_scratch),
            workspace.take<float>(made.kernels.attend_many_scratch(
                made.layout, tokens, config_.qk_head_dim(), config_.v_head_dim))};
  }

  void attend(const Call& call, Context& context) const {
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const Index tokens = call.sequence.tokens, size = call.sequence.cache->size();
    const Index heads = config_.num_attention_heads, workers = context.executor().concurrency();
    const MadeRows made = made_rows(call.sequence.cache->format(), context.kernels());
    Scratch* const scratch = workspace.take<Scratch>(workers);
    for (Index w = 0; w < workers; ++w) scratch[w] = take_scratch(made, tokens, context);
    // As much as the cache may need before it grows: decoding allocates nothing until then.
    const Index most = call.sequence.cache->rows().capacity();
    const Span span = {
        workspace.take_matrix<float>(std::min(kSpanKeys, most), config_.cache_row_width()),
        workspace.take_matrix<float>(kSpanBlocks,
                                     decompression_.packed_floats(kBlockKeys, context))};
    // Sums go on from span to span: each head's are kept, unless there is one span only.
    const Index states = most > kSpanKeys ? heads : workers;
    const SoftmaxRows softmax(workspace.take_matrix<float>(states * tokens, config_.v_head_dim),
                              workspace);

    for (Index first = 0; first < size || first == 0; first += kSpanKeys) {
      const Index count = std::min(kSpanKeys, size - first);
      context.executor().parallel_for((count + kBlockKeys - 1) / kBlockKeys, [&](Index b, Index) {
        widen_block(*call.sequence.cache, first, b, count, span, context);
      });
      context.executor().parallel_for(heads, [&](Index h, Index worker) {
        const Index state = (states == heads ? h : worker) * tokens;
        if (first == 0) softmax.start(state, tokens);
        for (Index b = 0; b * kBlockKeys < count; ++b)
          attend_block(call, first + b * kBlockKeys, span, b, count, h, made, softmax, state,
                       scratch[worker], context);
        if (first + count == size) finish(call, h, softmax, state);
      });
    }
  }

  // Rows of block b of a span that begins at cached token `first` and has `count`.
  void widen_block(const LatentCache& cache, Index first, Index b, Index count, const Span& span,
                   const Context& context) const noexcept {
    const Index begin = b * kBlockKeys, keys = std::min(kBlockKeys, count - begin);
    for (Index k = begin; k < begin + keys; ++k)
      context.kernels()
          .of(cache.format())
          .widen(cache.layout(), cache.rows().row(first + k), span.rows.row(k));
    decompression_.pack(span.rows.row_range(begin, keys).col_range(0, config_.kv_lora_rank),
                        span.packed.row(b), context);
  }

  // Queries of head h on block b of the span, whose first key is cached token `first`.
  void attend_block(const Call& call, Index first, const Span& span, Index b, Index count, Index h,
                    const MadeRows& made, const SoftmaxRows& softmax, Index state,
                    const Scratch& scratch, const Context& context) const noexcept {
    const Index keys = std::min(kBlockKeys, count - b * kBlockKeys);
    decompress(span.rows.row_range(b * kBlockKeys, keys), span.packed.row(b), h,
               scratch.made.row_range(0, keys), scratch.linear, context);
    const bool encoded = made.layout.format != CacheFormat::float32;
    for (Index k = 0; encoded && k < keys; ++k)
      made.kernels.encode(made.layout, scratch.made.row(k),
                          scratch.encoded + k * made.layout.bytes);
    // Tokens from before the block see nothing of it.
    const Index skip = std::max<Index>(0, first - call.sequence.past());
    const Index rows = call.sequence.tokens - skip;
    for (Index i = 0; i < rows; ++i) scratch.visible[i] = call.sequence.visible(skip + i) - first;
    const std::byte* const page =
        encoded ? scratch.encoded : reinterpret_cast<const std::byte*>(scratch.made.data);
    const Index qk = config_.qk_head_dim();
    made.kernels.attend_many(
        {call.queries.row(skip) + h * qk, call.queries.stride, rows, scratch.visible},
        {.pages = &page,
         .page_rows = kBlockKeys,
         .layout = made.layout,
         .count = keys,
         .key_offset = 0,
         .key_width = qk,
         .tail_offset = 0,
         .tail_width = 0,
         .value_offset = qk,
         .value_width = config_.v_head_dim},
        softmax_scale_, softmax.state(state + skip), scratch.kernel);
  }

  // rows [keys, cache row width] -> made [keys, nope | rope | v] of head h.
  void decompress(MatrixView<const float> rows, const float* packed, Index h,
                  MatrixView<float> made, float* scratch, const Context& context) const noexcept {
    const Index rank = config_.kv_lora_rank, nope = config_.qk_nope_head_dim;
    const Index rope = config_.qk_rope_head_dim;
    const Index rope_key = rank + (config_.rope_key_per_head ? h * rope : 0);
    for (Index k = 0; k < rows.rows; ++k)
      std::copy_n(rows.row(k) + rope_key, rope, made.row(k) + nope);
    decompression_.decompress(rows.col_range(0, rank), packed, h, made.col_range(0, nope),
                              made.col_range(config_.qk_head_dim(), config_.v_head_dim), scratch,
                              context);
  }

  void finish(const Call& call, Index h, const SoftmaxRows& softmax, Index state) const noexcept {
    for (Index i = 0; i < call.sequence.tokens; ++i) {
      const auto total = softmax.finish(state + i, call.values.row(i) + h * config_.v_head_dim);
      if (call.log_sum_exp.data) call.log_sum_exp(i, h) = total.log_sum_exp();
    }
  }

  AttentionConfig config_;
  float softmax_scale_;
  const LatentDecompression& decompression_;
};

}  // namespace mla

#endif  // MLA_ATTENTION_DECOMPRESSED_ATTENTION_HPP_
