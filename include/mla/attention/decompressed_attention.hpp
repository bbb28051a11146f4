#ifndef MLA_ATTENTION_DECOMPRESSED_ATTENTION_HPP_
#define MLA_ATTENTION_DECOMPRESSED_ATTENTION_HPP_

#include <algorithm>
#include <cstddef>
#include <span>

#include "mla/attention/cached_tokens.hpp"
#include "mla/attention/check_batch.hpp"
#include "mla/attention/low_rank.hpp"
#include "mla/attention/turned_queries.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/rope.hpp"
#include "mla/ops/softmax_rows.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// Causal attention with keys and values that are made from the latents, a block of the cache at a
/// time, and used by all queries of the sequence. The latents of a block are widened and packed
/// once for all heads; a span of blocks is held at a time. Caches of a batch may be of different
/// formats. `rotary` is for caches with several segments, and for windows.
///   queries [tokens, heads * (nope + rope)]
///   values  [tokens, heads * v]
///   log_sum_exp [tokens, heads]  of the scaled scores, -inf where no key was seen; empty: not
///                                wanted (see merge_attention.hpp)
/// Tokens of a call that see windows of their own are attended to one by one, keys and values made
/// for each: absorbed attention does without. Throws std::invalid_argument for shapes and caches
/// that do not fit, and for tokens that see selected rows.
class DecompressedAttention {
 public:
  DecompressedAttention(const AttentionConfig& config, double softmax_scale,
                        const LatentDecompression& decompression,
                        const RotaryEmbedding* rotary = nullptr)
      : config_(config),
        softmax_scale_(static_cast<float>(softmax_scale)),
        decompression_(decompression),
        rotary_(rotary) {}

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
    TurnedQueries::require_rotary(batch, rotary_);
    const auto attend_tokens = [&](const CachedTokens& some) {
      const Index first = some.first_token, count = some.tokens;
      attend({some, queries.row_range(first, count), values.row_range(first, count),
              log_sum_exp.data ? log_sum_exp.row_range(first, count) : log_sum_exp},
             context);
    };
    for (const CachedTokens& sequence : batch)
      if (sequence.each_its_own())
        for (Index i = 0; i < sequence.tokens; ++i) attend_tokens(sequence.only(i));
      else if (sequence.tokens > 0)
        attend_tokens(sequence);
  }

 private:
  // Keys that are decompressed at a time: a multiple of what the kernels take at a time.
  static constexpr Index kBlockKeys = 4 * simd::kTileKeys;
  // Blocks whose latents are held, widened and packed.
  static constexpr Index kSpanBlocks = 8, kSpanKeys = kSpanBlocks * kBlockKeys;

  // Tokens of one sequence that see the same keys, or the first of them.
  struct Call {
    const CachedTokens& sequence;
    MatrixView<const float> queries;  // [tokens, heads * (nope + rope)]
    MatrixView<float> values;         // [tokens, heads * v]
    MatrixView<float> log_sum_exp;    // [tokens, heads], or empty
  };

  // Some blocks of the cache, as all heads read them. Blocks are cut by the place of keys: the
  // first one of a piece may lack its first keys.
  struct Span {
    MatrixView<float> rows;    // [kSpanKeys, cache row width] in float32
    MatrixView<float> packed;  // [blocks, packed_floats] latents as the projections want them
    Index grid = 0;            // row of the cache that block 0 begins with, or would
    Index first = 0, end = 0;  // rows of the cache

    Index blocks() const noexcept { return (end - grid + kBlockKeys - 1) / kBlockKeys; }
    Index block_first(Index b) const noexcept { return std::max(first, grid + b * kBlockKeys); }
    Index block_keys(Index b) const noexcept {
      return std::min(end, grid + (b + 1) * kBlockKeys) - block_first(b);
    }
    MatrixView<float> block_rows(Index b) const noexcept {
      return rows.row_range(block_first(b) - grid, block_keys(b));
    }
  };

  // Memory of one worker.
  struct Scratch {
    MatrixView<float> made;        // [keys, nope | rope | v] keys and values of one head
    std::byte* encoded = nullptr;  // the same as the kernels want them, unless that is float32
    Index* visible = nullptr;      // [tokens] keys of a call, and after it, that a token sees
    float* linear = nullptr;       // of decompress()
    float* kernel = nullptr;       // of attend_many()
  };

  // The kernels that compute with decompressed rows, how these lie, and how many blocks of a head
  // are held and attended in one call.
  struct MadeRows {
    const simd::CacheKernels& kernels;
    RowLayout layout;
    Index blocks = 1;

    bool encoded() const noexcept { return layout.format != CacheFormat::float32; }
  };

  // As exact as the kernels of the cache: what they round, decompressed rows may be rounded to.
  MadeRows made_rows(CacheFormat cache, const simd::Kernels& kernels) const {
    const bool rounds = kernels.of(cache).arithmetic != simd::Arithmetic::float32;
    const CacheFormat format = rounds ? CacheFormat::bfloat16 : CacheFormat::float32;
    return {kernels.of(format), row_layout(format, config_.qk_head_dim() + config_.v_head_dim, 0),
            rounds ? std::min(kSpanKeys, kernels.of(format).part_keys) / kBlockKeys : 1};
  }

  Scratch take_scratch(const MadeRows& made, Index tokens, Context& context) const {
    Workspace& workspace = context.workspace();
    return {workspace.take_matrix<float>(made.encoded() ? kBlockKeys : made.blocks * kBlockKeys,
                                         made.layout.width()),
            workspace.take<std::byte>(made.encoded() ? made.blocks * kBlockKeys * made.layout.bytes
                                                     : 0),
            workspace.take<Index>(tokens), workspace.take<float>(context.kernels().linear_scratch),
            workspace.take<float>(made.kernels.attend_many_scratch(
                made.layout, tokens, config_.qk_head_dim(), config_.v_head_dim))};
  }

  void attend(const Call& call, Context& context) const {
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const Index tokens = call.sequence.tokens;
    const Index heads = config_.num_attention_heads, workers = context.executor().concurrency();
    const MadeRows made = made_rows(call.sequence.cache->format(), context.kernels());
    Scratch* const scratch = workspace.take<Scratch>(workers);
    for (Index w = 0; w < workers; ++w) scratch[w] = take_scratch(made, tokens, context);
    // As much as the cache may need before it grows: decoding allocates nothing until then.
    const LatentCache& cache = *call.sequence.cache;
    const Index most = cache.rows().capacity();
    const bool whole = cache.is_whole() && !call.sequence.window;
    const Index most_keys = std::min(kSpanKeys, whole ? most : most + kBlockKeys);
    Span span = {workspace.take_matrix<float>(most_keys, config_.cache_row_width()),
                 workspace.take_matrix<float>(kSpanBlocks,
                                              decompression_.packed_floats(kBlockKeys, context))};
    // Sums go on from span to span: each head's are kept, unless there is one span only.
    const bool one_span = most <= kSpanKeys && whole;
    const Index states = one_span ? workers : heads;
    const SoftmaxRows softmax(workspace.take_matrix<float>(states * tokens, config_.v_head_dim),
                              workspace);
    const auto turned =
        one_span ? MatrixView<float>() : workspace.take_matrix<float>(tokens, call.queries.cols);
    TurnedQueries turner(config_, rotary_, config_.qk_nope_head_dim, workspace);

    const auto for_each_head = [&](const auto& body) {
      if (!one_span) context.executor().parallel_for(heads, [&](Index h, Index) { body(h); });
    };
    for_each_head([&](Index h) { softmax.start(h * tokens, tokens); });
    for_each_piece(call.sequence, tokens - 1, [&](const KeyPiece& keys) {
      Call piece = call;
      if (keys.turn != 0) {
        turner.set(cache, keys.turn);
        turn(call.queries, turned, turner, context);
        piece.queries = turned;
      }
      span.grid = keys.first - keys.place % kBlockKeys;
      for (; span.grid < keys.end(); span.grid += kSpanKeys) {
        span.first = std::max(keys.first, span.grid);
        span.end = std::min(keys.end(), span.grid + kSpanKeys);
        context.executor().parallel_for(
            span.blocks(), [&](Index b, Index) { widen_block(cache, span, b, context); });
        context.executor().parallel_for(heads, [&](Index h, Index worker) {
          const Index state = (one_span ? worker : h) * tokens;
          if (one_span) softmax.start(state, tokens);
          for (Index b = 0, blocks; b < span.blocks(); b += blocks) {
            // Kernels cut the keys of a call from its first one on: by place, too, if a block that
            // lacks its first keys has a call of its own.
            const bool whole_block = span.block_first(b) == span.grid + b * kBlockKeys;
            blocks = whole_block ? std::min(made.blocks, span.blocks() - b) : 1;
            attend_blocks(piece, span, b, blocks, h, made, softmax, state, scratch[worker],
                          context);
          }
          if (one_span) finish(call, h, softmax, state);
        });
      }
    });
    for_each_head([&](Index h) { finish(call, h, softmax, h * tokens); });
    if (!one_span || call.sequence.visible(tokens - 1) > 0) return;
    softmax.start(0, tokens);  // there is no key
    for (Index h = 0; h < heads; ++h) finish(call, h, softmax, 0);
  }

  // queries [tokens, heads * (nope + rope)] -> turned, of the same shape
  void turn(MatrixView<const float> queries, MatrixView<float> turned, const TurnedQueries& turner,
            const Context& context) const {
    const Index qk = config_.qk_head_dim();
    for (Index t = 0; t < queries.rows; ++t)
      for (Index h = 0; h < config_.num_attention_heads; ++h)
        turner.turn(queries.row(t) + h * qk, qk, turned.row(t) + h * qk, context.kernels());
  }

  void widen_block(const LatentCache& cache, const Span& span, Index b,
                   const Context& context) const noexcept {
    const auto rows = span.block_rows(b);
    for (Index k = 0; k < rows.rows; ++k)
      context.kernels()
          .of(cache.format())
          .widen(cache.layout(), cache.row(span.block_first(b) + k), rows.row(k));
    decompression_.pack(rows.col_range(0, config_.kv_lora_rank), span.packed.row(b), context);
  }

  // Queries of head h on blocks [b, + blocks) of the span.
  void attend_blocks(const Call& call, const Span& span, Index b, Index blocks, Index h,
                     const MadeRows& made, const SoftmaxRows& softmax, Index state,
                     const Scratch& scratch, const Context& context) const noexcept {
    const Index first = span.block_first(b);
    Index keys = 0;
    for (Index end = b + blocks; b < end; keys += span.block_keys(b++)) {
      const auto rows = scratch.made.row_range(made.encoded() ? 0 : keys, span.block_keys(b));
      decompress(span.block_rows(b), span.packed.row(b), h, rows, scratch.linear, context);
      for (Index k = 0; made.encoded() && k < rows.rows; ++k)
        made.kernels.encode(made.layout, rows.row(k),
                            scratch.encoded + (keys + k) * made.layout.bytes);
    }
    // Tokens from before these keys see none of them.
    const Index skip = std::max<Index>(0, first - call.sequence.past());
    const Index rows = call.sequence.tokens - skip;
    for (Index i = 0; i < rows; ++i) scratch.visible[i] = call.sequence.visible(skip + i) - first;
    const std::byte* const page =
        made.encoded() ? scratch.encoded : reinterpret_cast<const std::byte*>(scratch.made.data);
    const Index qk = config_.qk_head_dim();
    made.kernels.attend_many(
        {call.queries.row(skip) + h * qk, call.queries.stride, rows, scratch.visible},
        {.pages = &page,
         .page_rows = made.blocks * kBlockKeys,
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
  const RotaryEmbedding* rotary_;
};

}  // namespace mla

#endif  // MLA_ATTENTION_DECOMPRESSED_ATTENTION_HPP_
