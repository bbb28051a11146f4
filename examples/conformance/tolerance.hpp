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
constexpr double unit_roundoff(CacheFormat format) noexcept {
  switch (format) {
    case CacheFormat::float32:
      return 0x1p-24;
    case CacheFormat::bfloat16:
      return kBfloat16Rounding;
    case CacheFormat::float16:
      return 0x1p-11;
  }
  __builtin_unreachable();
}

struct Tolerance {
  double output = kFloat32;
  double cache_row = kFloat32;  ///< latent and k_pe
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

  /// Adds what a cache of 16-bit elements does.
  void add_rounded_cache(CacheFormat cache, double logit) {
    const double u = unit_roundoff(cache);
    output += u * (4.0 + logit / 2.0);
    cache_row += u;
    reason += " + " + std::string(name_of(cache)) + " cache";
  }

 private:
  void add_rounded_factors(double logit) {
    output += 2.0 * kBfloat16Rounding * (4.0 + logit / 2.0);
    cache_row += 8.0 * kBfloat16Rounding;
  }
};

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_TOLERANCE_HPP_
