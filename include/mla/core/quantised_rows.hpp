#ifndef MLA_CORE_QUANTISED_ROWS_HPP_
#define MLA_CORE_QUANTISED_ROWS_HPP_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <type_traits>

#include "mla/core/float16.hpp"
#include "mla/core/float8.hpp"
#include "mla/core/row_layout.hpp"
#include "mla/core/tensor.hpp"

// Cached rows of 8 and 4 bits. A row is
//   codes of the latent | a scale per group of it | rotary keys of 16 bits
// where the scales begin at a multiple of their size, and so does the next row; what is between is
// 0. The last group may be shorter. A number is code * scale in float32, rounded once.
//
//          codes                   group  scale                           rotary keys  512 + 64
//   int8   int8, -127 to 127       128    float32, largest / 127          float16      656 bytes
//   fp8    E4M3                    128    float32, see Fp8Scale           bfloat16     656 bytes
//   int4   4 bits, -7 to 7, + 8    32     bfloat16, of largest / 7        float16      416 bytes
//
// `largest` is the group's largest magnitude; code = number / scale in float32, rounded to nearest,
// ties to even. The codes of a group of zeros are 0, and the sign of a zero is kept by fp8 only.
// Numbers that are not finite stay visible: in fp8 they become NaN themselves, in int8 and int4 the
// scale does and with it the group. Rotary keys that float16 does not hold become its largest.
// Near the end of float32 int8 and int4 take the largest scale whose numbers are finite.
//
// What is computed here defines the bytes; the kernels of every instruction set make the same.

namespace mla {

/// How the scale of 128 E4M3 codes is chosen, where `largest` is their largest magnitude. Readers
/// need not care.
enum class Fp8Scale : std::uint8_t {
  power_of_two,  ///< 2^ceil(log2(max(largest / 448, 1e-4))): FlashMLA, DeepSeek's deployment
  largest,       ///< max(largest / 448, 2^-126): vLLM
};

/// To nearest, ties to even; beyond 448 it is 448. NaN and infinities become NaN. Signs are kept.
constexpr std::uint8_t encode_e4m3(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint8_t>(bits >> 24 & 0x80u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const auto with_sign = [&](std::uint32_t code) { return static_cast<std::uint8_t>(sign | code); };
  if (magnitude >= 0x7f800000u) return with_sign(0x7f);
  if (magnitude >= 0x43e00000u) return with_sign(0x7e);  // 448
  if (magnitude < 0x3c800000u) {                         // below 2^-6: a multiple of 2^-9
    const float steps = std::bit_cast<float>(magnitude) * 0x1p9f;
    return with_sign(std::bit_cast<std::uint32_t>(steps + 0x1p23f) - 0x4b000000u);
  }
  const std::uint32_t nearest = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
  return with_sign((nearest >> 20) - (120u << 3));  // bias 127 to 7
}

namespace detail {

constexpr Index round_up_to(Index n, Index step) noexcept { return (n + step - 1) / step * step; }

/// float16 of x; of finite x that it does not hold, its largest.
inline float16 saturated_float16(float x) noexcept {
  const bool too_large = std::abs(x) > 65504.0f && std::isfinite(x);
  return too_large ? float16::from_bits(x < 0.0f ? 0xfbff : 0x7bff) : float16(x);
}

/// The codes of int8.
struct Int8Codes {
  using Scale = float;
  using Rope = float16;
  static constexpr Index kGroup = 128;
  static constexpr bool kHasNaN = false;  ///< whether a code is
  static constexpr Index bytes(Index numbers) noexcept { return numbers; }

  /// Of a group of finite numbers.
  static float scale_of(float largest) noexcept {
    constexpr float kMost = 0x1.020406p121f;  // 127 times more is beyond float32
    return std::min(largest / 127.0f, kMost);
  }
  static std::int8_t code_of(float x, float scale) noexcept {
    if (!(scale > 0.0f)) return 0;
    return static_cast<std::int8_t>(std::clamp(nearest_integer(x / scale), -127.0f, 127.0f));
  }
  static void encode(const float* x, Index count, float scale, std::byte* codes) noexcept {
    for (Index i = 0; i < count; ++i) codes[i] = static_cast<std::byte>(code_of(x[i], scale));
  }
  /// Number i of a group of `count`, without its scale.
  static float number(const std::byte* codes, Index, Index i) noexcept {
    return static_cast<float>(static_cast<std::int8_t>(codes[i]));
  }
};

/// The codes of fp8.
template <Fp8Scale kScale>
struct Fp8Codes {
  using Scale = float;
  using Rope = bfloat16;
  static constexpr Index kGroup = 128;
  static constexpr bool kHasNaN = true;
  static constexpr Index bytes(Index numbers) noexcept { return numbers; }

  static float scale_of(float largest) noexcept {
    if (kScale == Fp8Scale::largest) return std::max(largest / 448.0f, 0x1p-126f);
    const auto bits = std::bit_cast<std::uint32_t>(std::max(largest / 448.0f, 1e-4f));
    return std::bit_cast<float>((bits + 0x7fffffu) & 0xff800000u);
  }
  static void encode(const float* x, Index count, float scale, std::byte* codes) noexcept {
    for (Index i = 0; i < count; ++i) codes[i] = static_cast<std::byte>(encode_e4m3(x[i] / scale));
  }
  static float number(const std::byte* codes, Index, Index i) noexcept {
    return decode_e4m3(static_cast<std::uint8_t>(codes[i]));
  }
};

/// The codes of int4, two in a byte: the first half of a group in the low bits, the second in the
/// high ones.
struct Int4Codes {
  using Scale = bfloat16;
  using Rope = float16;
  static constexpr Index kGroup = 32;
  static constexpr bool kHasNaN = false;
  static constexpr Index bytes(Index numbers) noexcept { return (numbers + 1) / 2; }

  static float scale_of(float largest) noexcept {
    constexpr float kMost = 0x1.24p125f;  // 7 times more is beyond float32
    return std::min(static_cast<float>(bfloat16(largest / 7.0f)), kMost);
  }
  static std::uint8_t code_of(float x, float scale) noexcept {
    const float code = scale > 0.0f ? nearest_integer(x / scale) : 0.0f;
    return static_cast<std::uint8_t>(std::clamp(code, -7.0f, 7.0f) + 8.0f);
  }
  static void encode(const float* x, Index count, float scale, std::byte* codes) noexcept {
    const Index half = bytes(count);
    for (Index i = 0; i < half; ++i) {
      const unsigned high = half + i < count ? code_of(x[half + i], scale) : 0u;
      codes[i] = static_cast<std::byte>(code_of(x[i], scale) | high << 4);
    }
  }
  static float number(const std::byte* codes, Index count, Index i) noexcept {
    const Index half = bytes(count);
    const auto pair = static_cast<unsigned>(codes[i < half ? i : i - half]);
    return static_cast<float>(i < half ? pair & 15u : pair >> 4) - 8.0f;
  }
};

/// Rows of codes, scales and rotary keys.
template <class Codes>
struct QuantisedRows {
  using Scale = typename Codes::Scale;
  using Rope = typename Codes::Rope;

  static constexpr Index groups(Index latent_width) noexcept {
    return (latent_width + Codes::kGroup - 1) / Codes::kGroup;
  }
  /// Bytes from the start of a row.
  static constexpr Index scales_at(Index latent_width) noexcept {
    return round_up_to(Codes::bytes(latent_width), sizeof(Scale));
  }
  static constexpr Index rope_at(Index latent_width) noexcept {
    return scales_at(latent_width) + groups(latent_width) * Index{sizeof(Scale)};
  }
  static constexpr Index row_bytes(Index latent_width, Index rope_width) noexcept {
    return round_up_to(rope_at(latent_width) + rope_width * Index{sizeof(Rope)}, sizeof(Scale));
  }

  static const Scale* scales(const RowLayout& layout, const std::byte* row) noexcept {
    return reinterpret_cast<const Scale*>(row + scales_at(layout.latent_width));
  }
  static Scale* scales(const RowLayout& layout, std::byte* row) noexcept {
    return reinterpret_cast<Scale*>(row + scales_at(layout.latent_width));
  }
  static const Rope* rope(const RowLayout& layout, const std::byte* row) noexcept {
    return reinterpret_cast<const Rope*>(row + rope_at(layout.latent_width));
  }
  static Rope* rope(const RowLayout& layout, std::byte* row) noexcept {
    return reinterpret_cast<Rope*>(row + rope_at(layout.latent_width));
  }

  /// 0 in the bytes of a row that hold nothing.
  static void clear_gaps(const RowLayout& layout, std::byte* row) noexcept {
    std::fill(row + Codes::bytes(layout.latent_width), row + scales_at(layout.latent_width),
              std::byte{0});
    std::fill(row + rope_at(layout.latent_width) + layout.rope_width * Index{sizeof(Rope)},
              row + layout.bytes, std::byte{0});
  }

  /// The scale of x [count], a group; NaN where no scale gives its numbers.
  static Scale scale_of(const float* x, Index count) noexcept {
    float largest = 0.0f;
    bool finite = true;
    for (Index i = 0; i < count; ++i) {
      const bool number = std::isfinite(x[i]);
      finite = finite && number;
      if (number) largest = std::max(largest, std::abs(x[i]));
    }
    return Scale(finite || Codes::kHasNaN ? Codes::scale_of(largest)
                                          : std::numeric_limits<float>::quiet_NaN());
  }
  [[gnu::cold]] static Scale encode_group(const float* x, Index count, std::byte* codes) noexcept {
    const Scale scale = scale_of(x, count);
    Codes::encode(x, count, static_cast<float>(scale), codes);
    return scale;
  }
  static Rope encode_rope(float x) noexcept {
    if constexpr (std::is_same_v<Rope, float16>)
      return saturated_float16(x);
    else
      return Rope(x);
  }

  [[gnu::cold]] static void encode(const RowLayout& layout, const float* row,
                                   std::byte* bytes) noexcept {
    clear_gaps(layout, bytes);
    for (Index g = 0, first = 0; first < layout.latent_width; ++g, first += Codes::kGroup)
      scales(layout, bytes)[g] =
          encode_group(row + first, std::min(Codes::kGroup, layout.latent_width - first),
                       bytes + Codes::bytes(first));
    for (Index i = 0; i < layout.rope_width; ++i)
      rope(layout, bytes)[i] = encode_rope(row[layout.latent_width + i]);
  }

  static void widen(const RowLayout& layout, const std::byte* bytes, float* out) noexcept {
    for (Index g = 0, first = 0; first < layout.latent_width; ++g, first += Codes::kGroup) {
      const Index count = std::min(Codes::kGroup, layout.latent_width - first);
      const auto scale = static_cast<float>(scales(layout, bytes)[g]);
      for (Index i = 0; i < count; ++i)
        out[first + i] = Codes::number(bytes + Codes::bytes(first), count, i) * scale;
    }
    for (Index i = 0; i < layout.rope_width; ++i)
      out[layout.latent_width + i] = static_cast<float>(rope(layout, bytes)[i]);
  }

  static constexpr CacheFormatInfo info(std::string_view name) noexcept {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    // From 65520 on float16 rounds to infinity.
    return {name, &row_bytes, &encode, &widen,
            std::is_same_v<Rope, float16> ? 65520.0f : kInfinity};
  }
};

using Int8Rows = QuantisedRows<Int8Codes>;
template <Fp8Scale kScale = Fp8Scale::power_of_two>
using Fp8Rows = QuantisedRows<Fp8Codes<kScale>>;
using Int4Rows = QuantisedRows<Int4Codes>;

}  // namespace detail
}  // namespace mla

#endif  // MLA_CORE_QUANTISED_ROWS_HPP_
