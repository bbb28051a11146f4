#ifndef MLA_EXAMPLES_CONFORMANCE_TOLERANCE_HPP_
#define MLA_EXAMPLES_CONFORMANCE_TOLERANCE_HPP_

#include <string>

#include "mla/core/cache_format.hpp"

// How far a result may be from a case's, relative to the largest value of the tensor. Derived in
// docs/conformance.md, which also has the errors that were measured.

namespace mla::conformance {

/// Float32 arithmetic on the same numbers. Good code stays below a twentieth of it.
inline constexpr double kFloat32 = 2e-5;

/// Numbers that were computed in double and differ only by how a file rounds them to float32.
inline constexpr double kFloat32Rounding = 0x1p-23;

/// Unit roundoff: the largest relative error of rounding a number to nearest.
inline constexpr double kBfloat16Rounding = 0x1p-8;

/// What a cache changes in numbers, relative to the largest of those that share a scale.
struct CacheRounding {
  double latent;  ///< at most
  double rope;    ///< of rotary keys, at most
  /// Of latents in the root mean square of a product with them, relative to that: as much, or more
  /// where small numbers are changed as much as large ones.
  double product;
};
constexpr CacheRounding rounding_of(CacheFormat format) noexcept {
  constexpr double kFloat16Rounding = 0x1p-11;
  // Numbers that share a scale are a quarter of their largest, in the root mean square.
  constexpr double kLargestByUsual = 4.0;
  switch (format) {
    case CacheFormat::float32:
      return {0x1p-24, 0x1p-24, 0x1p-24};
    case CacheFormat::bfloat16:
      return {kBfloat16Rounding, kBfloat16Rounding, kBfloat16Rounding};
    case CacheFormat::float16:
      return {kFloat16Rounding, kFloat16Rounding, kFloat16Rounding};
    case CacheFormat::int8:
      return {0.5 / 127, kFloat16Rounding, kLargestByUsual * 0.5 / 127};
    case CacheFormat::fp8:
      return {0x1p-4, kBfloat16Rounding, 0x1p-4};
    case CacheFormat::int4:  // the scale is rounded, too
      return {0.5 / 7 + kBfloat16Rounding, kFloat16Rounding, kLargestByUsual * 0.5 / 7};
#if defined(MLA_EXTRA_CACHE_FORMAT)
    case CacheFormat::extra:
      return {1.0, 1.0, 1.0};
#endif
  }
  __builtin_unreachable();
}

struct Tolerance {
  double output = kFloat32;
  double latent = kFloat32;
  double k_pe = kFloat32;
  std::string reason = "float32";

  /// Adds what 16-bit weights do to a layer whose largest attention logit is `logit`.
  void add_rounded_weights(double logit) {
    add_rounded_factors(logit);
    reason += " + bf16 weights";
  }

  /// Adds what rounding the other factor of each product with a weight does: as much.
  void add_bfloat16_arithmetic(double logit) {
    add_rounded_factors(logit);
    reason += " + bf16 arithmetic";
  }

  /// Adds what a cache of 16 bits or fewer does.
  void add_rounded_cache(CacheFormat cache, double logit) {
    const CacheRounding rounding = rounding_of(cache);
    output += rounding.product * (4.0 + logit / 2.0);
    latent += rounding.latent;
    k_pe += rounding.rope;
    reason += " + " + std::string(name_of(cache)) + " cache";
  }

 private:
  void add_rounded_factors(double logit) {
    output += 2.0 * kBfloat16Rounding * (4.0 + logit / 2.0);
    latent += 8.0 * kBfloat16Rounding;
    k_pe += 8.0 * kBfloat16Rounding;
  }
};

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_TOLERANCE_HPP_
