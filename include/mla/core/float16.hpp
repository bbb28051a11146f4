#ifndef MLA_CORE_FLOAT16_HPP_
#define MLA_CORE_FLOAT16_HPP_

#include "mla/core/compiler.hpp"

#include <bit>
#include <cstdint>

// The two 16-bit floating-point formats of checkpoints and caches, as plain storage types: they
// convert to and from float and have no arithmetic of their own.

namespace mla {

/// bfloat16: the upper half of a float32. 8 exponent bits, 8 bits of precision.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;

  /// Rounds to nearest, ties to even. NaN stays NaN (and becomes quiet), large values become inf.
  explicit constexpr bfloat16(float value) noexcept {
    const auto u = std::bit_cast<std::uint32_t>(value);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    const std::uint32_t rounded = nan ? (u | 0x00400000u) : u + 0x7fffu + ((u >> 16) & 1u);
    bits = static_cast<std::uint16_t>(rounded >> 16);
  }

  explicit constexpr operator float() const noexcept {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }

  static constexpr bfloat16 from_bits(std::uint16_t bits) noexcept {
    bfloat16 result;
    result.bits = bits;
    return result;
  }

  friend constexpr bool operator==(bfloat16 a, bfloat16 b) noexcept {
    return static_cast<float>(a) == static_cast<float>(b);
  }
};

/// IEEE 754 binary16: 5 exponent bits, 11 bits of precision, largest finite value 65504.
struct float16 {
  std::uint16_t bits = 0;

  float16() = default;

  /// Rounds to nearest, ties to even; subnormals are kept. NaN stays NaN, |x| >= 65520 becomes inf.
  explicit constexpr float16(float value) noexcept {
    const auto u = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = (u >> 16) & 0x8000u;
    const std::uint32_t magnitude = u & 0x7fffffffu;
    std::uint32_t half = 0;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
      half = 0x7c00u;
    } else if (magnitude >= 0x38800000u) {  // normal: rebias the exponent from 127 to 15
      half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    } else {  // subnormal: adding 0.5 leaves value * 2^24, rounded to nearest even, in the mantissa
      const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
      half = std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u;
    }
    bits = static_cast<std::uint16_t>(sign | half);
  }

  explicit constexpr operator float() const noexcept {
    const std::uint32_t sign = (bits & 0x8000u) << 16;
    const std::uint32_t magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u)  // infinity and NaN
      return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    if (magnitude < 0x0400u)  // zero and subnormals: magnitude * 2^-24
      return (sign ? -1.0f : 1.0f) * static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
  }

  static constexpr float16 from_bits(std::uint16_t bits) noexcept {
    float16 result;
    result.bits = bits;
    return result;
  }

  friend constexpr bool operator==(float16 a, float16 b) noexcept {
    return static_cast<float>(a) == static_cast<float>(b);
  }
};

static_assert(sizeof(bfloat16) == 2 && sizeof(float16) == 2);

}  // namespace mla

#endif  // MLA_CORE_FLOAT16_HPP_
