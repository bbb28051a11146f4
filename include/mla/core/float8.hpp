#ifndef MLA_CORE_FLOAT8_HPP_
#define MLA_CORE_FLOAT8_HPP_

#include "mla/core/compiler.hpp"

#include <bit>
#include <cstdint>
#include <limits>

// The 8-bit and 4-bit floating-point numbers of published checkpoints (OCP specifications OFP8 and
// MX). Decoding is exact.

namespace mla {

/// F8_E4M3 (E4M3FN): 4 exponent bits with bias 7, 3 mantissa bits, subnormals down to 2^-9, largest
/// value 448, no infinities; 0x7f and 0xff are NaN.
constexpr float decode_e4m3(std::uint8_t code) noexcept {
  const std::uint32_t sign = (code & 0x80u) << 24;
  const std::uint32_t magnitude = code & 0x7fu;
  if (magnitude == 0x7fu) return std::numeric_limits<float>::quiet_NaN();
  if (magnitude < 0x08u)  // zero and subnormals: magnitude * 2^-9
    return (sign ? -1.0f : 1.0f) * static_cast<float>(magnitude) * 0x1p-9f;
  return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));  // bias 7 to 127
}

/// F8_E8M0 (ue8m0): 2^(code - 127); 0xff is NaN.
constexpr float decode_e8m0(std::uint8_t code) noexcept {
  if (code == 0xffu) return std::numeric_limits<float>::quiet_NaN();
  return code == 0 ? 0x1p-127f : std::bit_cast<float>(static_cast<std::uint32_t>(code) << 23);
}

/// E2M1 (FP4) in the low four bits: 0, 0.5, 1, 1.5, 2, 3, 4, 6, and the same negated from 8 on.
constexpr float decode_e2m1(std::uint8_t code) noexcept {
  constexpr float kMagnitudes[] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  const float magnitude = kMagnitudes[code & 7u];
  return (code & 8u) != 0 ? -magnitude : magnitude;
}

namespace detail {

/// |x| < 2^22 to the nearest integer, ties to even, in a way that compilers make vectors of.
constexpr float nearest_integer(float x) noexcept { return (x + 0x1.8p23f) - 0x1.8p23f; }

}  // namespace detail
}  // namespace mla

#endif  // MLA_CORE_FLOAT8_HPP_
