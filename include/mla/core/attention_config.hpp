#ifndef MLA_CORE_ATTENTION_CONFIG_HPP_
#define MLA_CORE_ATTENTION_CONFIG_HPP_

#include <charconv>
#include <cmath>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/indexer_config.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// How rotary frequencies are stretched beyond the length that a model was first trained on.
enum class RopeScalingType {
  none,     ///< plain rotary embedding
  linear,   ///< all frequencies divided by `factor`
  dynamic,  ///< NTK-aware, theta grows with the sequence: a table only, no attention layer takes it
  ntk,      ///< NTK-aware, theta multiplied once by factor^(dim / (dim - 2))
  yarn,     ///< YaRN (Peng et al. 2023), as DeepSeek-V2/V3 and Kimi K2 use it
  longrope,  ///< LongRoPE (Ding et al. 2024), as MiniCPM3: a factor of its own for each frequency
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
    case RopeScalingType::longrope:
      return "longrope";
  }
  return {};
}

/// What longrope divides the frequency of each rotary pair by. Which of the two lists a text takes
/// is decided once, by the context that its cache is made for: keys that are cached are not rotated
/// again, and queries by other factors would not fit them.
struct LongropeFactors {
  std::vector<double> short_factor;  ///< [qk_rope_head_dim / 2] up to the original length
  std::vector<double> long_factor;   ///< [qk_rope_head_dim / 2] beyond it

  bool operator==(const LongropeFactors&) const = default;
};

/// The `rope_scaling` (or `rope_parameters`) block of a published config.json.
struct RopeScaling {
  RopeScalingType type = RopeScalingType::none;
  /// longrope: cos and sin are scaled by sqrt(1 + ln(factor) / ln(original length)).
  double factor = 1.0;
  Index original_max_position_embeddings = 4096;  ///< yarn, longrope: length before stretching
  double beta_fast = 32.0;                        ///< yarn: rotations above which nothing changes
  double beta_slow = 1.0;       ///< yarn: rotations below which a frequency is divided by factor
  double mscale = 1.0;          ///< yarn: cos and sin are scaled by mscale / mscale_all_dim
  double mscale_all_dim = 0.0;  ///< yarn: the softmax scale is multiplied by its mscale squared
  std::shared_ptr<const LongropeFactors> longrope = {};  ///< longrope, and only there
  bool long_context = false;  ///< longrope: long_factor, of a context beyond the original length

  bool operator==(const RopeScaling& other) const noexcept {
    return rotates_as(other) && factor == other.factor && mscale == other.mscale &&
           original_max_position_embeddings == other.original_max_position_embeddings &&
           beta_fast == other.beta_fast && beta_slow == other.beta_slow &&
           mscale_all_dim == other.mscale_all_dim && long_context == other.long_context;
  }

  /// Whether caches of both may be mixed: fields that `type` does not read may differ, and so may
  /// long_context, which is the cache's own.
  bool rotates_as(const RopeScaling& other) const noexcept {
    if (type != other.type || type == RopeScalingType::none) return type == other.type;
    if (factor != other.factor) return false;
    if (type != RopeScalingType::yarn && type != RopeScalingType::longrope) return true;
    if (original_max_position_embeddings != other.original_max_position_embeddings) return false;
    if (type == RopeScalingType::longrope)
      return longrope && other.longrope ? *longrope == *other.longrope : longrope == other.longrope;
    return beta_fast == other.beta_fast && beta_slow == other.beta_slow && mscale == other.mscale &&
           mscale_all_dim == other.mscale_all_dim;
  }

  /// Throws std::invalid_argument naming the field.
  [[gnu::cold]] void validate() const {
    require(!name_of(type).empty(), "rope_scaling.type must be a RopeScalingType, got ",
            static_cast<int>(type));
    if (type == RopeScalingType::none) return;
    require(std::isfinite(factor) && factor >= 1.0, "rope_scaling.factor must be at least 1, got ",
            factor);
    if (type != RopeScalingType::yarn && type != RopeScalingType::longrope) return;
    require(original_max_position_embeddings > 0,
            "rope_scaling.original_max_position_embeddings must be positive, got ",
            original_max_position_embeddings);
    if (type == RopeScalingType::longrope) return validate_longrope();
    require(std::isfinite(beta_fast) && std::isfinite(beta_slow) && beta_slow > 0.0 &&
                beta_fast >= beta_slow,
            "rope_scaling needs beta_fast >= beta_slow > 0, got beta_fast ", beta_fast,
            " and beta_slow ", beta_slow);
    require(std::isfinite(mscale) && mscale >= 0.0,
            "rope_scaling.mscale must not be negative, got ", mscale);
    require(std::isfinite(mscale_all_dim) && mscale_all_dim >= 0.0,
            "rope_scaling.mscale_all_dim must not be negative, got ", mscale_all_dim);
  }

  /// Throws std::invalid_argument unless longrope has a factor for each pair of `dim` elements.
  void validate_for(Index dim) const {
    if (type != RopeScalingType::longrope) return;
    for (const auto& [name, factors] : {std::pair("short_factor", &longrope->short_factor),
                                        {"long_factor", &longrope->long_factor}})
      require(std::ssize(*factors) == dim / 2, "rope_scaling.", name, " must have ", dim / 2,
              " factors, half of qk_rope_head_dim, got ", factors->size());
  }

 private:
  void validate_longrope() const {
    require(longrope != nullptr, "rope_scaling.type longrope needs short_factor and long_factor");
    require(original_max_position_embeddings > 1,
            "rope_scaling.original_max_position_embeddings must be above 1 with longrope");
    for (const auto* factors : {&longrope->short_factor, &longrope->long_factor})
      for (const double divisor : *factors)
        require(std::isfinite(divisor) && divisor > 0.0,
                "rope_scaling.short_factor and long_factor must be positive, got ", divisor);
  }
};

/// What the rotation of a cached key depends on besides its position. A cache has that of the layer
/// it was made for, and other layers refuse it.
struct RotarySettings {
  double rope_theta = 10000.0;
  bool rope_interleave = true;
  RopeScaling rope_scaling = {};

  bool rotates_as(const RotarySettings& other) const noexcept {
    return rope_theta == other.rope_theta && rope_interleave == other.rope_interleave &&
           rope_scaling.rotates_as(other.rope_scaling);
  }
  /// Calls visit(name, text) for each field that has a meaning here.
  template <class Visit>
  void for_each_field(const Visit& visit) const;
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

  /// Factors on the normalised query latent and on the normalised latent, as it is cached:
  /// LongCat's mla_scale_q_lora and mla_scale_kv_lora.
  double q_latent_scale = 1.0;
  double kv_latent_scale = 1.0;

  /// Queries are multiplied by 1 + beta * ln(1 + floor(position / length)): Mistral 4's
  /// llama_4_scaling_beta. 0: they are not.
  double query_temperature_beta = 0.0;
  Index query_temperature_length = 1;

  /// Which keys tokens see. By default: all up to their own.
  IndexerConfig indexer = {};

  bool operator==(const AttentionConfig&) const = default;

  /// Width of a query or key: qk_nope_head_dim + qk_rope_head_dim.
  Index qk_head_dim() const noexcept { return qk_nope_head_dim + qk_rope_head_dim; }
  /// Rotary keys cached a token: one for all heads, or one for each.
  Index rope_keys() const noexcept { return rope_key_per_head ? num_attention_heads : 1; }
  /// Width of the rotary part of a cached row.
  Index rope_key_width() const noexcept { return rope_keys() * qk_rope_head_dim; }
  /// Elements that one token takes in the latent cache: [latent | rotary keys].
  Index cache_row_width() const noexcept { return kv_lora_rank + rope_key_width(); }
  /// How its keys are rotated.
  RotarySettings rotary() const { return {rope_theta, rope_interleave, rope_scaling}; }
  /// The same layer for a cache of texts of up to `tokens` tokens. It matters to longrope only.
  AttentionConfig for_context(Index tokens) const {
    AttentionConfig config = *this;
    config.rope_scaling.long_context = rope_scaling.type == RopeScalingType::longrope &&
                                       tokens > rope_scaling.original_max_position_embeddings;
    return config;
  }
  /// Factor on the queries of a position.
  double query_temperature(Index position) const noexcept {
    const Index length = position / query_temperature_length;  // whole ones
    return 1.0 + query_temperature_beta * std::log1p(static_cast<double>(length));
  }

  /// Throws std::invalid_argument naming the first field that does not fit.
  [[gnu::cold]] void validate() const {
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
    positive_number("q_latent_scale", q_latent_scale);
    positive_number("kv_latent_scale", kv_latent_scale);
    require(q_latent_scale == 1.0 || (q_lora_rank > 0 && query_norm),
            "q_latent_scale needs a normalised query latent, got ", q_latent_scale,
            " with q_lora_rank ", q_lora_rank);
    non_negative("query_temperature_beta", query_temperature_beta);
    require(query_temperature_length > 0, "query_temperature_length must be positive, got ",
            query_temperature_length);
    rope_scaling.validate();
    rope_scaling.validate_for(qk_rope_head_dim);
    indexer.validate(q_lora_rank, qk_rope_head_dim);
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
  static void positive_number(const char* field, double value) {
    require(std::isfinite(value) && value > 0.0, field, " must be positive, got ", value);
  }
  static void non_negative(const char* field, double value) {
    require(std::isfinite(value) && value >= 0.0, field, " must not be negative, got ", value);
  }
};

namespace detail {

/// As short as it can be without loss.
[[gnu::cold]] inline std::string shortest_text(double value) {
  char text[32];
  return {text, std::to_chars(text, std::end(text), value).ptr};
}
[[gnu::cold]] inline std::string shortest_text(const std::vector<double>& values) {
  std::string text;
  for (const double value : values) text += (text.empty() ? "" : " ") + shortest_text(value);
  return text;
}

}  // namespace detail

template <class Visit>
[[gnu::cold]] void RotarySettings::for_each_field(const Visit& visit) const {
  const auto number = [&](const char* name, double value) {
    visit(name, detail::shortest_text(value));
  };
  const RopeScaling& scaling = rope_scaling;
  number("rope_theta", rope_theta);
  visit("rope_interleave", std::string(rope_interleave ? "true" : "false"));
  visit("rope_scaling.type", std::string(name_of(scaling.type)));
  if (scaling.type == RopeScalingType::none) return;
  number("rope_scaling.factor", scaling.factor);
  if (scaling.type != RopeScalingType::yarn && scaling.type != RopeScalingType::longrope) return;
  visit("rope_scaling.original_max_position_embeddings",
        std::to_string(scaling.original_max_position_embeddings));
  if (scaling.type == RopeScalingType::longrope) {
    visit("rope_scaling.short_factor", detail::shortest_text(scaling.longrope->short_factor));
    visit("rope_scaling.long_factor", detail::shortest_text(scaling.longrope->long_factor));
    visit("rope_scaling.long_context", std::string(scaling.long_context ? "true" : "false"));
    return;
  }
  number("rope_scaling.beta_fast", scaling.beta_fast);
  number("rope_scaling.beta_slow", scaling.beta_slow);
  number("rope_scaling.mscale", scaling.mscale);
  number("rope_scaling.mscale_all_dim", scaling.mscale_all_dim);
}

}  // namespace mla

#endif  // MLA_CORE_ATTENTION_CONFIG_HPP_
