#ifndef MLA_BASELINE_GROUPED_QUERY_CONFIG_HPP_
#define MLA_BASELINE_GROUPED_QUERY_CONFIG_HPP_

#include <cmath>
#include <optional>

#include "mla/core/attention_config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/ops/rope.hpp"

namespace mla {

/// Shape and arithmetic of one attention layer that caches keys and values themselves. The number
/// of heads that have a key and a value of their own tells the variants apart:
///   num_key_value_heads == num_attention_heads  multi-head attention, MHA (Vaswani et al. 2017)
///   between the two                             grouped-query attention, GQA (Ainslie et al. 2023)
///   num_key_value_heads == 1                    multi-query attention, MQA (Shazeer 2019)
/// Names are those of Llama's and Qwen's config.json; the defaults are Llama-3.1-8B's, without its
/// rope_scaling.
struct GroupedQueryConfig {
  Index hidden_size = 4096;
  Index num_attention_heads = 32;
  Index num_key_value_heads = 8;
  Index head_dim = 128;                  ///< width of a query or key
  std::optional<Index> v_head_dim = {};  ///< width of a value; unset: head_dim

  double rope_theta = 500000.0;
  bool rope_interleave = false;          ///< rotary pairs (2i, 2i+1); false: (i, i + rotary_dim/2)
  std::optional<Index> rotary_dim = {};  ///< first elements of a head that are rotated; unset: all
  RopeScaling rope_scaling = {};

  bool operator==(const GroupedQueryConfig&) const = default;

  Index value_dim() const noexcept { return v_head_dim.value_or(head_dim); }
  Index rotated_dim() const noexcept { return rotary_dim.value_or(head_dim); }
  /// Query heads that share a key and a value.
  Index group_size() const noexcept { return num_attention_heads / num_key_value_heads; }
  /// Elements that one token takes in the cache: a key and a value of each K/V head.
  Index cache_row_width() const noexcept { return num_key_value_heads * (head_dim + value_dim()); }
  /// How its keys are rotated.
  RotarySettings rotary() const { return {rope_theta, rope_interleave, rope_scaling}; }
  /// Factor on query . key before the softmax: 1 / sqrt(head_dim), times YaRN's factor.
  double softmax_scale() const noexcept {
    return rope_softmax_multiplier(rope_scaling) / std::sqrt(static_cast<double>(head_dim));
  }

  /// Throws std::invalid_argument naming the first field that does not fit.
  void validate() const {
    positive("hidden_size", hidden_size);
    positive("num_attention_heads", num_attention_heads);
    positive("num_key_value_heads", num_key_value_heads);
    require(num_attention_heads % num_key_value_heads == 0,
            "num_attention_heads must be a multiple of num_key_value_heads, got ",
            num_attention_heads, " and ", num_key_value_heads);
    positive("head_dim", head_dim);
    positive("v_head_dim", value_dim());
    require(rotated_dim() >= 0 && rotated_dim() <= head_dim && rotated_dim() % 2 == 0,
            rotary_dim ? "rotary_dim" : "head_dim, all of it rotated,",
            " must be even and at most head_dim ", head_dim, ", got ", rotated_dim());
    require(std::isfinite(rope_theta) && rope_theta > 1.0, "rope_theta must be above 1, got ",
            rope_theta);
    rope_scaling.validate();
    require(rope_scaling.type != RopeScalingType::dynamic,
            "rope_scaling.type dynamic changes the rotation of keys that are already cached, so an "
            "attention layer cannot use it");
  }

  /// The heads of an MLA model with their keys and values cached as they are, for
  /// `num_key_value_heads` of them: head_dim = rotary part + nope part, in this order (MLA's own
  /// order is nope, then rotary: the rows of q_proj and k_proj swap places within a head).
  static GroupedQueryConfig heads_of(const AttentionConfig& config, Index num_key_value_heads) {
    return {.hidden_size = config.hidden_size,
            .num_attention_heads = config.num_attention_heads,
            .num_key_value_heads = num_key_value_heads,
            .head_dim = config.qk_head_dim(),
            .v_head_dim = config.v_head_dim,
            .rope_theta = config.rope_theta,
            .rope_interleave = config.rope_interleave,
            .rotary_dim = config.qk_rope_head_dim,
            .rope_scaling = config.rope_scaling};
  }

 private:
  // Keeps every product of two dims far from overflow.
  static constexpr Index kMaxDim = Index{1} << 24;

  static void positive(const char* field, Index value) {
    require(value > 0 && value <= kMaxDim, field, " must be between 1 and ", kMaxDim, ", got ",
            value);
  }
};

}  // namespace mla

#endif  // MLA_BASELINE_GROUPED_QUERY_CONFIG_HPP_
