#ifndef MLA_OPS_ROPE_HPP_
#define MLA_OPS_ROPE_HPP_

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>
#include <vector>

#include "mla/core/attention_config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"

// Rotary position embedding (Su et al. 2021) and its stretched forms. Angles are taken in double:
// in float32, position * inv_freq is off by position * 6e-8, which is 1 % at position 160,000.

namespace mla {

/// YaRN's attention temperature (Peng et al. 2023, eq. 15): 0.1 * mscale * ln(factor) + 1.
inline double yarn_mscale(double factor, double mscale) noexcept {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

/// Factor on cos and sin. YaRN: mscale(factor, mscale) / mscale(factor, mscale_all_dim). LongRoPE:
/// sqrt(1 + ln(factor) / ln(original length)), for short texts too. Others: 1.
inline double rope_cos_sin_scale(const RopeScaling& scaling) noexcept {
  if (scaling.type == RopeScalingType::longrope && scaling.factor > 1.0)
    return std::sqrt(1.0 +
                     std::log(scaling.factor) /
                         std::log(static_cast<double>(scaling.original_max_position_embeddings)));
  if (scaling.type != RopeScalingType::yarn) return 1.0;
  return yarn_mscale(scaling.factor, scaling.mscale) /
         yarn_mscale(scaling.factor, scaling.mscale_all_dim);
}

/// Factor on the softmax scale: mscale(factor, mscale_all_dim) squared; 1 if not YaRN.
inline double rope_softmax_multiplier(const RopeScaling& scaling) noexcept {
  if (scaling.type != RopeScalingType::yarn) return 1.0;
  const double mscale = yarn_mscale(scaling.factor, scaling.mscale_all_dim);
  return mscale * mscale;
}

/// 1 / sqrt(qk_nope_head_dim + qk_rope_head_dim), times YaRN's factor.
inline double softmax_scale(const AttentionConfig& config) noexcept {
  return rope_softmax_multiplier(config.rope_scaling) /
         std::sqrt(static_cast<double>(config.qk_head_dim()));
}

namespace detail {

// The pair that makes `rotations` full turns within the original length.
inline double yarn_correction_dim(double rotations, Index dim, double theta, Index length) {
  return static_cast<double>(dim) *
         std::log(static_cast<double>(length) / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(theta));
}

// Interpolates between inv_freq (fast pairs) and inv_freq / factor (slow pairs) along a ramp.
[[gnu::cold]] inline void apply_yarn(std::vector<double>& inv_freq, Index dim, double theta,
                                     const RopeScaling& scaling) {
  const Index length = scaling.original_max_position_embeddings;
  const double low =
      std::max(0.0, std::floor(yarn_correction_dim(scaling.beta_fast, dim, theta, length)));
  double high = std::min(static_cast<double>(dim - 1),
                         std::ceil(yarn_correction_dim(scaling.beta_slow, dim, theta, length)));
  if (low == high) high += 0.001;  // as the reference code, against a division by zero
  for (std::size_t i = 0; i < inv_freq.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inv_freq[i] *= (1.0 - ramp) + ramp / scaling.factor;
  }
}

}  // namespace detail

/// Angle a position of each of the dim/2 rotary pairs. `max_position_embeddings` and
/// `sequence_length` matter to RopeScalingType::dynamic only.
[[gnu::cold]] inline std::vector<double> rope_inv_freq(Index dim, double theta,
                                                       const RopeScaling& scaling,
                                                       Index max_position_embeddings = 0,
                                                       Index sequence_length = 0) {
  constexpr Index kMaxDim = Index{1} << 24;
  require(dim > 0 && dim <= kMaxDim && dim % 2 == 0,
          "rotary dimension must be even and between 2 and ", kMaxDim, ", got ", dim);
  const double d = static_cast<double>(dim);
  const double ntk_exponent = dim > 2 ? d / (d - 2.0) : 1.0;
  if (scaling.type == RopeScalingType::ntk) theta *= std::pow(scaling.factor, ntk_exponent);
  if (scaling.type == RopeScalingType::dynamic && sequence_length > max_position_embeddings) {
    require(max_position_embeddings > 0,
            "rope_scaling.type dynamic needs max_position_embeddings, got ",
            max_position_embeddings);
    const double stretch =
        static_cast<double>(sequence_length) / static_cast<double>(max_position_embeddings);
    theta *= std::pow(scaling.factor * stretch - (scaling.factor - 1.0), ntk_exponent);
  }

  std::vector<double> inv_freq(static_cast<std::size_t>(dim / 2));
  for (std::size_t i = 0; i < inv_freq.size(); ++i)
    inv_freq[i] = std::pow(theta, -2.0 * static_cast<double>(i) / d);
  if (scaling.type == RopeScalingType::linear)
    for (double& f : inv_freq) f /= scaling.factor;
  if (scaling.type == RopeScalingType::yarn) detail::apply_yarn(inv_freq, dim, theta, scaling);
  if (scaling.type == RopeScalingType::longrope) {
    scaling.validate_for(dim);
    const LongropeFactors& factors = *scaling.longrope;
    for (std::size_t i = 0; i < inv_freq.size(); ++i)
      inv_freq[i] /= (scaling.long_context ? factors.long_factor : factors.short_factor)[i];
  }
  return inv_freq;
}

/// cos and sin [tokens, dim / 2] of the tokens of a call.
struct RotaryTables {
  MatrixView<float> cos;
  MatrixView<float> sin;
  /// [tokens] factor on queries, rotated or not (AttentionConfig::query_temperature); nullptr:
  /// none.
  const float* query_scale = nullptr;
};

/// Throws std::invalid_argument unless the tables are of `tokens` tokens and `dim` rotary elements.
inline void require_tables(const RotaryTables& tables, Index tokens, Index dim) {
  require_matrix("rotary cos", tables.cos, tokens, dim / 2);
  require_matrix("rotary sin", tables.sin, tokens, dim / 2);
}

/// Makes cos and sin of positions; the kernels' rotate() applies them.
class RotaryEmbedding {
 public:
  RotaryEmbedding() = default;

  /// Throws std::invalid_argument where `scaling` does not fit.
  [[gnu::cold]] RotaryEmbedding(Index dim, double theta, const RopeScaling& scaling,
                                Index max_position_embeddings = 0, Index sequence_length = 0)
      : inv_freq_(rope_inv_freq(dim, theta, validated(scaling), max_position_embeddings,
                                sequence_length)),
        cos_sin_scale_(rope_cos_sin_scale(scaling)),
        long_context_(scaling.long_context) {
    if (scaling.type != RopeScalingType::longrope) return;
    RopeScaling other = scaling;
    other.long_context = !scaling.long_context;
    other_inv_freq_ = rope_inv_freq(dim, theta, other);
  }

  explicit RotaryEmbedding(const AttentionConfig& config)
      : RotaryEmbedding(config.qk_rope_head_dim, config.rope_theta, config.rope_scaling) {}

  /// [dim / 2] radians a position.
  const std::vector<double>& inv_freq() const noexcept { return inv_freq_; }
  double cos_sin_scale() const noexcept { return cos_sin_scale_; }

  /// Fills cos and sin [positions.size(), dim / 2], exact to float32 rounding where
  /// position * 1e-16 is far below it. Throws std::invalid_argument for other shapes.
  void tables(std::span<const Index> positions, MatrixView<float> cos,
              MatrixView<float> sin) const {
    tables(positions, long_context_, cos, sin);
  }
  /// The same of a text whose cache was made for a long context or a short one: that of longrope.
  void tables(std::span<const Index> positions, bool long_context, MatrixView<float> cos,
              MatrixView<float> sin) const {
    require_tables({cos, sin}, std::ssize(positions), 2 * std::ssize(inv_freq_));
    const std::vector<double>& inv_freq = inv_freq_of(long_context);
    for (std::size_t t = 0; t < positions.size(); ++t) {
      for (std::size_t i = 0; i < inv_freq.size(); ++i) {
        const double angle = static_cast<double>(positions[t]) * inv_freq[i];
        const auto row = static_cast<Index>(t), pair = static_cast<Index>(i);
        cos(row, pair) = static_cast<float>(std::cos(angle) * cos_sin_scale_);
        sin(row, pair) = static_cast<float>(std::sin(angle) * cos_sin_scale_);
      }
    }
  }

  /// cos and sin [dim / 2] that turn what is rotated already by `positions` more, or back: without
  /// cos_sin_scale(), which it has. `long_context`: as for tables().
  void turn(Index positions, bool long_context, std::span<float> cos,
            std::span<float> sin) const noexcept {
    const std::vector<double>& inv_freq = inv_freq_of(long_context);
    for (std::size_t i = 0; i < inv_freq.size(); ++i) {
      const double angle = static_cast<double>(positions) * inv_freq[i];
      cos[i] = static_cast<float>(std::cos(angle));
      sin[i] = static_cast<float>(std::sin(angle));
    }
  }

 private:
  const std::vector<double>& inv_freq_of(bool long_context) const noexcept {
    const bool other = long_context != long_context_ && !other_inv_freq_.empty();
    return other ? other_inv_freq_ : inv_freq_;
  }

  std::vector<double> inv_freq_;
  std::vector<double> other_inv_freq_;  // longrope: by the other list of factors
  double cos_sin_scale_ = 1.0;
  bool long_context_ = false;
};

}  // namespace mla

#endif  // MLA_OPS_ROPE_HPP_
