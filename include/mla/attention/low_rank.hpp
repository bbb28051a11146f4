#ifndef MLA_ATTENTION_LOW_RANK_HPP_
#define MLA_ATTENTION_LOW_RANK_HPP_

#include <algorithm>

#include "mla/attention/attention_weights.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/linear.hpp"
#include "mla/ops/rms_norm.hpp"
#include "mla/ops/rope.hpp"
#include "mla/ops/row_blocks.hpp"

// The low-rank projections of MLA (DeepSeek-V2, section 2.1): queries and the pair of keys and
// values pass through a narrow latent each. Only the latter is cached.

namespace mla {

/// Hidden states to queries: q_a_proj, norm, q_b_proj; or q_proj alone where q_lora_rank is 0.
class LowRankQuery {
 public:
  LowRankQuery() = default;
  [[gnu::cold]] LowRankQuery(const AttentionConfig& config, const AttentionWeights& weights)
      : config_(config),
        compress_(weights.q_a_proj, weights.q_a_proj_bias),
        expand_(config.q_lora_rank > 0 ? weights.q_b_proj : weights.q_proj),
        expand_nope_(weights.q_b_nope_proj),
        expand_rope_(weights.q_b_rope_proj) {
    if (weights.q_a_layernorm)
      norm_ = RmsNorm(weights.q_a_layernorm, config.q_a_layernorm_eps, config.q_latent_scale);
  }

  /// x [tokens, hidden_size] -> queries [tokens, heads * (nope + rope)], by head [nope | rope], the
  /// rotary part rotated. Throws std::invalid_argument for other shapes.
  void forward(MatrixView<const float> x, const RotaryTables& rotary, MatrixView<float> queries,
               Context& context) const {
    const Workspace::Scope scope(context.workspace());
    expand(compress(x, context), rotary, queries, context);
  }

  // What forward() is made of.

  /// x [tokens, hidden_size] -> the normalised query latent [tokens, q_lora_rank], in scratch
  /// memory of `context`; x itself where q_lora_rank is 0.
  MatrixView<const float> compress(MatrixView<const float> x, Context& context) const {
    require_matrix("x", x, x.rows, config_.hidden_size);
    if (!compress_) return x;
    const auto latent = context.workspace().take_matrix<float>(x.rows, config_.q_lora_rank);
    compress_.forward(x, latent, context);
    if (norm_) norm_.forward(latent, context);
    return latent;
  }

  /// latent, of compress() -> queries [tokens, heads * (nope + rope)].
  void expand(MatrixView<const float> latent, const RotaryTables& rotary, MatrixView<float> queries,
              Context& context) const {
    require_tables(rotary, latent.rows, config_.qk_rope_head_dim);
    require_matrix("queries", queries, latent.rows,
                   config_.num_attention_heads * config_.qk_head_dim());
    if (expand_) {
      expand_.forward(latent, queries, context);
    } else {
      expand_part(expand_nope_, 0, latent, queries, context);
      expand_part(expand_rope_, config_.qk_nope_head_dim, latent, queries, context);
    }
    const Index heads = config_.num_attention_heads, rope = config_.qk_rope_head_dim;
    for_row_blocks(context.executor(), queries.rows, heads * rope, [&](Index first, Index count) {
      for (Index t = first; t < first + count; ++t)
        for (Index h = 0; h < heads; ++h)
          context.kernels().rotate(
              queries.row(t) + h * config_.qk_head_dim() + config_.qk_nope_head_dim,
              rotary.cos.row(t), rotary.sin.row(t), rope, config_.rope_interleave);
    });
    if (rotary.query_scale) scale_rows(rotary.query_scale, queries, context);
  }

 private:
  static void scale_rows(const float* factors, MatrixView<float> rows, const Context& context) {
    for_row_blocks(context.executor(), rows.rows, rows.cols, [&](Index first, Index count) {
      for (Index t = first; t < first + count; ++t)
        std::for_each_n(rows.row(t), rows.cols, [&](float& element) { element *= factors[t]; });
    });
  }

  // One of two separate matrices: its heads go to `offset` within each query.
  void expand_part(const Linear& part, Index offset, MatrixView<const float> latent,
                   MatrixView<float> queries, Context& context) const {
    const Workspace::Scope scope(context.workspace());
    const auto all = context.workspace().take_matrix<float>(latent.rows, part.out_features());
    part.forward(latent, all, context);
    const Index width = part.out_features() / config_.num_attention_heads;
    for (Index t = 0; t < latent.rows; ++t)
      for (Index h = 0; h < config_.num_attention_heads; ++h)
        std::copy_n(all.row(t) + h * width, width,
                    queries.row(t) + h * config_.qk_head_dim() + offset);
  }

  AttentionConfig config_;
  Linear compress_;  // empty: no query compression
  RmsNorm norm_;     // empty: no norm
  Linear expand_;    // or the two below
  Linear expand_nope_;
  Linear expand_rope_;
};

/// Hidden states to cache rows: kv_a_proj_with_mqa, norm of the latent, rotation of the keys.
class LatentCompression {
 public:
  LatentCompression() = default;
  LatentCompression(const AttentionConfig& config, const AttentionWeights& weights)
      : config_(config),
        fused_(weights.kv_a_proj_with_mqa, weights.kv_a_proj_with_mqa_bias),
        latent_(weights.kv_a_proj),
        rope_keys_(weights.k_rope_proj),
        norm_(weights.kv_a_layernorm, config.kv_a_layernorm_eps, config.kv_latent_scale) {}

  explicit operator bool() const noexcept { return bool(norm_); }

  /// x [tokens, hidden_size] -> rows [tokens, kv_lora_rank + rope_key_width] as they are cached.
  /// Throws std::invalid_argument for other shapes.
  void forward(MatrixView<const float> x, const RotaryTables& rotary, MatrixView<float> rows,
               Context& context) const {
    require_matrix("x", x, x.rows, config_.hidden_size);
    require_tables(rotary, x.rows, config_.qk_rope_head_dim);
    require_matrix("rows", rows, x.rows, config_.cache_row_width());
    const Index rank = config_.kv_lora_rank;
    if (fused_) {
      fused_.forward(x, rows, context);
    } else {
      latent_.forward(x, rows.col_range(0, rank), context);
      rope_keys_.forward(x, rows.col_range(rank, config_.rope_key_width()), context);
    }
    norm_.forward(rows.col_range(0, rank), context);
    for (Index t = 0; t < rows.rows; ++t)
      for (Index k = 0; k < config_.rope_keys(); ++k)
        context.kernels().rotate(rows.row(t) + rank + k * config_.qk_rope_head_dim,
                                 rotary.cos.row(t), rotary.sin.row(t), config_.qk_rope_head_dim,
                                 config_.rope_interleave);
  }

 private:
  AttentionConfig config_;
  Linear fused_;  // or the two below
  Linear latent_;
  Linear rope_keys_;
  RmsNorm norm_;
};

/// Latents to keys and values by kv_b_proj, whose slices of one head are W_UK [nope, kv_lora_rank]
/// and W_UV [v, kv_lora_rank] in the papers. Absorbed attention applies W_UK to the query and W_UV
/// to the result; decompressed attention applies both to the cached latents.
class LatentDecompression {
 public:
  LatentDecompression() = default;
  LatentDecompression(const AttentionConfig& config, const AttentionWeights& weights)
      : config_(config),
        keys_(weights.split_kv_b() ? weights.k_b_proj : weights.kv_b_proj),
        values_(weights.split_kv_b() ? weights.v_b_proj : weights.kv_b_proj),
        key_head_stride_(weights.split_kv_b() ? config.qk_nope_head_dim
                                              : config.qk_nope_head_dim + config.v_head_dim),
        value_head_stride_(weights.split_kv_b() ? config.v_head_dim : key_head_stride_),
        first_value_row_(weights.split_kv_b() ? 0 : config.qk_nope_head_dim) {}

  /// Format of kv_b_proj.
  WeightFormat format() const noexcept { return keys_.format; }

  /// queries [tokens, heads * (nope + rope)] -> latent_queries [tokens, heads * (rank + rope)], by
  /// head [q_nope * W_UK | q_rope]. Throws std::invalid_argument for other shapes.
  void absorb(MatrixView<const float> queries, MatrixView<float> latent_queries,
              Context& context) const {
    const Index nope = config_.qk_nope_head_dim, rope = config_.qk_rope_head_dim;
    const Index rank = config_.kv_lora_rank, heads = config_.num_attention_heads;
    require_matrix("queries", queries, queries.rows, heads * (nope + rope));
    require_matrix("latent_queries", latent_queries, queries.rows, heads * (rank + rope));
    const Workspace::Scope scope(context.workspace());
    const auto scratch = linear_scratch(context);
    const simd::LinearKernels& kernels = context.kernels().of(keys_.format);
    context.executor().parallel_for(heads, [&](Index h, Index worker) {
      const auto query = queries.col_range(h * (nope + rope), nope + rope);
      const auto latent_query = latent_queries.col_range(h * (rank + rope), rank + rope);
      kernels.linear_transposed(query.col_range(0, nope), key_head(h),
                                latent_query.col_range(0, rank), scratch.row(worker));
      for (Index t = 0; t < query.rows; ++t)
        std::copy_n(query.row(t) + nope, rope, latent_query.row(t) + rank);
    });
  }

  /// latent_values [tokens, heads * rank] -> values [tokens, heads * v], by W_UV of each head.
  /// Throws std::invalid_argument for other shapes.
  void project_values(MatrixView<const float> latent_values, MatrixView<float> values,
                      Context& context) const {
    const Index rank = config_.kv_lora_rank, v = config_.v_head_dim;
    const Index heads = config_.num_attention_heads;
    require_matrix("latent_values", latent_values, latent_values.rows, heads * rank);
    require_matrix("values", values, latent_values.rows, heads * v);
    const Workspace::Scope scope(context.workspace());
    const auto scratch = linear_scratch(context);
    const simd::LinearKernels& kernels = context.kernels().of(values_.format);
    const auto packed = context.workspace().take_matrix<float>(
        context.executor().concurrency(), kernels.packed_floats(latent_values.rows, rank));
    context.executor().parallel_for(heads, [&](Index h, Index worker) {
      const auto latents = latent_values.col_range(h * rank, rank);
      kernels.pack(latents, packed.row(worker));
      kernels.linear(latents, packed.row(worker), value_head(h), values.col_range(h * v, v),
                     scratch.row(worker));
    });
  }

  /// Floats that pack() makes of latents [keys, rank].
  Index packed_floats(Index keys, const Context& context) const noexcept {
    return packed_for_keys(keys, context) +
           context.kernels().of(values_.format).packed_floats(keys, config_.kv_lora_rank);
  }

  /// latents [keys, rank] as decompress() of every head wants to have them, aligned to a cache
  /// line.
  void pack(MatrixView<const float> latents, float* packed, const Context& context) const noexcept {
    context.kernels().of(keys_.format).pack(latents, packed);
    if (values_.format != keys_.format)
      context.kernels()
          .of(values_.format)
          .pack(latents, packed + packed_for_keys(latents.rows, context));
  }

  /// latents [keys, rank] -> keys [keys, nope] and values [keys, v] of head h. Runs where called.
  ///   packed   pack() of the latents
  ///   scratch  simd::Kernels::linear_scratch floats, aligned to a cache line
  void decompress(MatrixView<const float> latents, const float* packed, Index h,
                  MatrixView<float> keys, MatrixView<float> values, float* scratch,
                  const Context& context) const noexcept {
    const float* const packed_for_values =
        values_.format == keys_.format ? packed : packed + packed_for_keys(latents.rows, context);
    context.kernels().of(keys_.format).linear(latents, packed, key_head(h), keys, scratch);
    context.kernels()
        .of(values_.format)
        .linear(latents, packed_for_values, value_head(h), values, scratch);
  }

 private:
  // In whole cache lines.
  Index packed_for_keys(Index keys, const Context& context) const noexcept {
    const Index floats =
        context.kernels().of(keys_.format).packed_floats(keys, config_.kv_lora_rank);
    return (floats + 15) / 16 * 16;
  }

  WeightView key_head(Index h) const noexcept {
    return keys_.row_range(h * key_head_stride_, config_.qk_nope_head_dim);
  }
  WeightView value_head(Index h) const noexcept {
    return values_.row_range(h * value_head_stride_ + first_value_row_, config_.v_head_dim);
  }

  AttentionConfig config_;
  WeightView keys_;
  WeightView values_;
  Index key_head_stride_ = 0;  // rows from one head to the next
  Index value_head_stride_ = 0;
  Index first_value_row_ = 0;
};

}  // namespace mla

#endif  // MLA_ATTENTION_LOW_RANK_HPP_
