#ifndef MLA_CORE_CONFIG_HPP_
#define MLA_CORE_CONFIG_HPP_

#include <cmath>
#include <string_view>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// How rotary frequencies are stretched beyond the length that a model was first trained on.
enum class RopeScalingType {
  none,     ///< plain rotary embedding
  linear,   ///< all frequencies divided by `factor`
  dynamic,  ///< NTK-aware, theta grows with the sequence: a table only, no attention layer takes it
  ntk,      ///< NTK-aware, theta multiplied once by factor^(dim / (dim - 2))
  yarn,     ///< YaRN (Peng et al. 2023), as DeepSeek-V2/V3 and Kimi K2 use it
};

/// Empty for a value that is none of them.
constexpr std::string_view name_of(RopeScalingType type) noexcept {
  switch (type) {
    case RopeScalingType::none:
      return "none";
    case RopeScalingType::linear:
      return "linear";
    case RopeScalingType::dynamic:
      return "dynamic";
    case RopeScalingType::ntk:
      return "ntk";
    case RopeScalingType::yarn:
      return "yarn";
  }
  return {};
}

/// The `rope_scaling` (or `rope_parameters`) block of a published config.json.
struct RopeScaling {
  RopeScalingType type = RopeScalingType::none;
  double factor = 1.0;
  Index original_max_position_embeddings = 4096;  ///< yarn: length before stretching
  double beta_fast = 32.0;                        ///< yarn: rotations above which nothing changes
  double beta_slow = 1.0;       ///< yarn: rotations below which a frequency is divided by factor
  double mscale = 1.0;          ///< yarn: cos and sin are scaled by mscale / mscale_all_dim
  double mscale_all_dim = 0.0;  ///< yarn: the softmax scale is multiplied by its mscale squared

  bool operator==(const RopeScaling&) const = default;

  /// Throws std::invalid_argument naming the field.
  void validate() const {
    require(!name_of(type).empty(), "rope_scaling.type must be a RopeScalingType, got ",
            static_cast<int>(type));
    if (type == RopeScalingType::none) return;
    require(std::isfinite(factor) && factor >= 1.0, "rope_scaling.factor must be at least 1, got ",
            factor);
    if (type != RopeScalingType::yarn) return;
    require(original_max_position_embeddings > 0,
            "rope_scaling.original_max_position_embeddings must be positive, got ",
            original_max_position_embeddings);
    require(std::isfinite(beta_fast) && std::isfinite(beta_slow) && beta_slow > 0.0 &&
                beta_fast >= beta_slow,
            "rope_scaling needs beta_fast >= beta_slow > 0, got beta_fast ", beta_fast,
            " and beta_slow ", beta_slow);
    require(std::isfinite(mscale) && mscale >= 0.0,
            "rope_scaling.mscale must not be negative, got ", mscale);
    require(std::isfinite(mscale_all_dim) && mscale_all_dim >= 0.0,
            "rope_scaling.mscale_all_dim must not be negative, got ", mscale_all_dim);
  }
};

/// Shape and arithmetic of one MLA layer. Names and meanings are those of the published
/// config.json; the defaults are DeepSeek-V3's.
struct AttentionConfig {
  Index hidden_size = 7168;
  Index num_attention_heads = 128;
  Index q_lora_rank = 1536;  ///< 0: queries come from one uncompressed q_proj (config key null)
  Index kv_lora_rank = 512;
  Index qk_nope_head_dim = 128;
  Index qk_rope_head_dim = 64;
  Index v_head_dim = 128;

  double rope_theta = 10000.0;
  bool rope_interleave = true;  ///< rotary pairs (2i, 2i+1) as DeepSeek; false: (i, i + dim/2)
  RopeScaling rope_scaling;

  /// q_a_layernorm and kv_a_layernorm; 1e-6 in the reference code whatever rms_norm_eps says.
  double q_a_layernorm_eps = 1e-6;
  double kv_a_layernorm_eps = 1e-6;

  /// The lesson's variant. DeepSeek: a norm on the compressed query, one rotary key for all heads.
  bool query_norm = true;
  bool rope_key_per_head = false;

  bool operator==(const AttentionConfig&) const = default;

  /// Width of a query or key: qk_nope_head_dim + qk_rope_head_dim.
  Index qk_head_dim() const noexcept { return qk_nope_head_dim + qk_rope_head_dim; }
  /// Rotary keys cached a token: one for all heads, or one for each.
  Index rope_keys() const noexcept { return rope_key_per_head ? num_attention_heads : 1; }
  /// Width of the rotary part of a cached row.
  Index rope_key_width() const noexcept { return rope_keys() * qk_rope_head_dim; }
  /// Elements that one token takes in the latent cache: [latent | rotary keys].
  Index cache_row_width() const noexcept { return kv_lora_rank + rope_key_width(); }

  /// Throws std::invalid_argument naming the first field that does not fit.
  void validate() const {
    positive("hidden_size", hidden_size);
    positive("num_attention_heads", num_attention_heads);
    require(q_lora_rank >= 0 && q_lora_rank <= kMaxDim,
            "q_lora_rank must be 0 (no query compression) or a rank up to ", kMaxDim, ", got ",
            q_lora_rank);
    positive("kv_lora_rank", kv_lora_rank);
    positive("qk_nope_head_dim", qk_nope_head_dim);
    positive("qk_rope_head_dim", qk_rope_head_dim);
    positive("v_head_dim", v_head_dim);
    require(qk_rope_head_dim % 2 == 0, "qk_rope_head_dim must be even, got ", qk_rope_head_dim);
    require(std::isfinite(rope_theta) && rope_theta > 1.0, "rope_theta must be above 1, got ",
            rope_theta);
    non_negative("q_a_layernorm_eps", q_a_layernorm_eps);
    non_negative("kv_a_layernorm_eps", kv_a_layernorm_eps);
    rope_scaling.validate();
    require(rope_scaling.type != RopeScalingType::dynamic,
            "rope_scaling.type dynamic changes the rotation of keys that are already cached, so an "
            "attention layer cannot use it; RotaryEmbedding makes its tables");
  }

  static AttentionConfig deepseek_v3() {
    AttentionConfig c;
    c.rope_scaling = {.type = RopeScalingType::yarn,
                      .factor = 40.0,
                      .original_max_position_embeddings = 4096,
                      .beta_fast = 32.0,
                      .beta_slow = 1.0,
                      .mscale = 1.0,
                      .mscale_all_dim = 1.0};
    return c;
  }
  static AttentionConfig deepseek_v2_lite() {
    AttentionConfig c;
    c.hidden_size = 2048;
    c.num_attention_heads = 16;
    c.q_lora_rank = 0;
    c.rope_scaling = {.type = RopeScalingType::yarn,
                      .factor = 40.0,
                      .original_max_position_embeddings = 4096,
                      .beta_fast = 32.0,
                      .beta_slow = 1.0,
                      .mscale = 0.707,
                      .mscale_all_dim = 0.707};
    return c;
  }
  static AttentionConfig kimi_k2() {
    AttentionConfig c;
    c.num_attention_heads = 64;
    c.rope_theta = 50000.0;
    c.rope_scaling = {.type = RopeScalingType::yarn,
                      .factor = 32.0,
                      .original_max_position_embeddings = 4096,
                      .beta_fast = 1.0,
                      .beta_slow = 1.0,
                      .mscale = 1.0,
                      .mscale_all_dim = 1.0};
    return c;
  }
  /// The lesson's layer: no query norm, a rotary key for every head, half-split rotary pairs, and
  /// nope = v = n_embd / heads.
  static AttentionConfig lesson(Index n_embd = 256, Index n_head = 8, Index kv_lora_rank = 128,
                                Index q_lora_rank = 192, Index rope_dim = 64) {
    AttentionConfig c;
    c.hidden_size = n_embd;
    c.num_attention_heads = n_head;
    c.q_lora_rank = q_lora_rank;
    c.kv_lora_rank = kv_lora_rank;
    require(n_head > 0 && n_embd % n_head == 0, "n_embd must be a multiple of n_head, got ", n_embd,
            " and ", n_head);
    c.qk_nope_head_dim = c.v_head_dim = n_embd / n_head;
    c.qk_rope_head_dim = rope_dim;
    c.rope_interleave = false;
    c.query_norm = false;
    c.rope_key_per_head = true;
    return c;
  }

 private:
  // Keeps every product of two dims far from overflow.
  static constexpr Index kMaxDim = Index{1} << 24;

  static void positive(const char* field, Index value) {
    require(value > 0 && value <= kMaxDim, field, " must be between 1 and ", kMaxDim, ", got ",
            value);
  }
  static void non_negative(const char* field, double value) {
    require(std::isfinite(value) && value >= 0.0, field, " must not be negative, got ", value);
  }
};

}  // namespace mla

#endif  // MLA_CORE_CONFIG_HPP_
