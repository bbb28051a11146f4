#ifndef MLA_ATTENTION_LOW_RANK_HPP_
#define MLA_ATTENTION_LOW_RANK_HPP_

#include <algorithm>

#include "mla/attention/context.hpp"
#include "mla/attention/linear.hpp"
#include "mla/attention/rms_norm.hpp"
#include "mla/attention/weights.hpp"
#include "mla/core/config.hpp"
#include "mla/core/tensor.hpp"

// The low-rank projections of MLA (DeepSeek-V2, section 2.1): queries and the pair of keys and
// values pass through a narrow latent each. Only the latter is cached.

namespace mla {

/// cos and sin [tokens, qk_rope_head_dim / 2] of the tokens of a call.
struct RotaryTables {
  MatrixView<float> cos;
  MatrixView<float> sin;
};

/// Hidden states to queries: q_a_proj, norm, q_b_proj; or q_proj alone where q_lora_rank is 0.
class LowRankQuery {
 public:
  LowRankQuery() = default;
  LowRankQuery(const AttentionConfig& config, const AttentionWeights& weights)
      : config_(config),
        compress_(weights.q_a_proj, weights.q_a_proj_bias),
        expand_(config.q_lora_rank > 0 ? weights.q_b_proj : weights.q_proj),
        expand_nope_(weights.q_b_nope_proj),
        expand_rope_(weights.q_b_rope_proj) {
    if (weights.q_a_layernorm) norm_ = RmsNorm(weights.q_a_layernorm, config.q_a_layernorm_eps);
  }

  /// x [tokens, hidden_size] -> queries [tokens, heads * (nope + rope)], by head [nope | rope], the
  /// rotary part rotated.
  void forward(MatrixView<const float> x, const RotaryTables& rotary, MatrixView<float> queries,
               Context& context) const {
    const Workspace::Scope scope(context.workspace());
    MatrixView<const float> latent = x;
    if (compress_) {
      const auto compressed = context.workspace().take_matrix<float>(x.rows, config_.q_lora_rank);
      compress_.forward(x, compressed, context);
      if (norm_) norm_.forward(compressed, context);
      latent = compressed;
    }
    if (expand_) {
      expand_.forward(latent, queries, context);
    } else {
      expand_part(expand_nope_, 0, latent, queries, context);
      expand_part(expand_rope_, config_.qk_nope_head_dim, latent, queries, context);
    }
    for (Index t = 0; t < queries.rows; ++t)
      for (Index h = 0; h < config_.num_attention_heads; ++h)
        context.kernels().rotate(
            queries.row(t) + h * config_.qk_head_dim() + config_.qk_nope_head_dim,
            rotary.cos.row(t), rotary.sin.row(t), config_.qk_rope_head_dim,
            config_.rope_interleave);
  }

 private:
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
        norm_(weights.kv_a_layernorm, config.kv_a_layernorm_eps) {}

  /// x [tokens, hidden_size] -> rows [tokens, kv_lora_rank + rope_key_width] as they are cached.
  void forward(MatrixView<const float> x, const RotaryTables& rotary, MatrixView<float> rows,
               Context& context) const {
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

  /// Type of kv_b_proj.
  DType dtype() const noexcept { return keys_.dtype; }

  /// queries [tokens, heads * (nope + rope)] -> latent_queries [tokens, heads * (rank + rope)], by
  /// head [q_nope * W_UK | q_rope].
  void absorb(MatrixView<const float> queries, MatrixView<float> latent_queries,
              Context& context) const {
    const Index nope = config_.qk_nope_head_dim, rope = config_.qk_rope_head_dim;
    const Index rank = config_.kv_lora_rank;
    context.executor().parallel_for(config_.num_attention_heads, [&](Index h, Index) {
      const auto query = queries.col_range(h * (nope + rope), nope + rope);
      const auto latent_query = latent_queries.col_range(h * (rank + rope), rank + rope);
      visit(keys_, [&](auto weight) {
        kernels(weight, context)
            .linear_transposed(query.col_range(0, nope), key_head(weight, h),
                               latent_query.col_range(0, rank));
      });
      for (Index t = 0; t < query.rows; ++t)
        std::copy_n(query.row(t) + nope, rope, latent_query.row(t) + rank);
    });
  }

  /// latent_values [tokens, heads * rank] -> values [tokens, heads * v], by W_UV of each head.
  void project_values(MatrixView<const float> latent_values, MatrixView<float> values,
                      Context& context) const {
    const Index rank = config_.kv_lora_rank, v = config_.v_head_dim;
    const Workspace::Scope scope(context.workspace());
    const auto scratch = context.workspace().take_matrix<float>(
        context.executor().concurrency(), scratch_floats(latent_values.rows, context));
    context.executor().parallel_for(config_.num_attention_heads, [&](Index h, Index worker) {
      visit(values_, [&](auto weight) {
        const auto latents = latent_values.col_range(h * rank, rank);
        const float* packed = pack(weight, latents, scratch.row(worker), context);
        kernels(weight, context)
            .linear(latents, packed, value_head(weight, h), values.col_range(h * v, v),
                    scratch.row(worker));
      });
    });
  }

  /// Scratch memory of decompress(), for one worker.
  Index scratch_floats(Index tokens, const Context& context) const noexcept {
    const auto packed = [&](auto weight) {
      return kernels(weight, context).packed_floats(tokens, config_.kv_lora_rank);
    };
    return packed_offset(context) + std::max(visit(keys_, packed), visit(values_, packed));
  }

  /// latents [keys, rank] -> keys [keys, nope] and values [keys, v] of head h. Runs where called;
  /// `scratch`: scratch_floats(), aligned to a cache line.
  void decompress(MatrixView<const float> latents, Index h, MatrixView<float> keys,
                  MatrixView<float> values, float* scratch, const Context& context) const noexcept {
    const float* packed = nullptr;
    visit(keys_, [&](auto weight) {
      packed = pack(weight, latents, scratch, context);
      kernels(weight, context).linear(latents, packed, key_head(weight, h), keys, scratch);
    });
    visit(values_, [&](auto weight) {
      if (values_.dtype != keys_.dtype) packed = pack(weight, latents, scratch, context);
      kernels(weight, context).linear(latents, packed, value_head(weight, h), values, scratch);
    });
  }

 private:
  // Behind the memory of linear(), at a cache line.
  static Index packed_offset(const Context& context) noexcept {
    return (context.kernels().linear_scratch + 15) / 16 * 16;
  }

  template <class T>
  static const float* pack(MatrixView<const T> weight, MatrixView<const float> latents,
                           float* scratch, const Context& context) noexcept {
    kernels(weight, context).pack(latents, scratch + packed_offset(context));
    return scratch + packed_offset(context);
  }

  template <class T>
  static const simd::TypedKernels<T>& kernels(MatrixView<const T>, const Context& context) {
    return context.kernels().template of<T>();
  }

  template <class T>
  MatrixView<const T> key_head(MatrixView<const T> weight, Index h) const noexcept {
    return weight.row_range(h * key_head_stride_, config_.qk_nope_head_dim);
  }
  template <class T>
  MatrixView<const T> value_head(MatrixView<const T> weight, Index h) const noexcept {
    return weight.row_range(h * value_head_stride_ + first_value_row_, config_.v_head_dim);
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
