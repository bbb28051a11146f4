#ifndef MLA_TESTS_FORMATS_TOY_CACHE_FORMAT_HPP_
#define MLA_TESTS_FORMATS_TOY_CACHE_FORMAT_HPP_

// A cache format that the library knows nothing of, as a program would bring its own
// (MLA_EXTRA_CACHE_FORMAT). A row is
//   8-bit codes of the latent | a float32 scale for 8 of them | rotary keys in float32
// one after the other, wherever that may begin.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "mla/core/cache_format.hpp"

namespace mla {

namespace toy {

inline constexpr Index kGroup = 8;

inline Index groups_of(Index latent_width) noexcept { return (latent_width + kGroup - 1) / kGroup; }

inline Index row_bytes(Index latent_width, Index rope_width) noexcept {
  return latent_width + 4 * groups_of(latent_width) + 4 * rope_width;
}

inline void encode_row(const RowLayout& layout, const float* row, std::byte* bytes) noexcept {
  std::byte* scales = bytes + layout.latent_width;
  for (Index first = 0; first < layout.latent_width; first += kGroup, scales += 4) {
    const Index end = std::min(first + kGroup, layout.latent_width);
    float largest = 0.0f;
    for (Index i = first; i < end; ++i) largest = std::max(largest, std::abs(row[i]));
    const float scale = largest / 127.0f;
    for (Index i = first; i < end; ++i)
      bytes[i] = static_cast<std::byte>(
          static_cast<std::int8_t>(scale == 0.0f ? 0.0f : std::nearbyint(row[i] / scale)));
    std::memcpy(scales, &scale, 4);
  }
  std::memcpy(scales, row + layout.latent_width, static_cast<std::size_t>(4 * layout.rope_width));
}

inline void widen_row(const RowLayout& layout, const std::byte* bytes, float* out) noexcept {
  const std::byte* const scales = bytes + layout.latent_width;
  for (Index i = 0; i < layout.latent_width; ++i) {
    float scale;
    std::memcpy(&scale, scales + i / kGroup * 4, 4);
    out[i] = static_cast<float>(static_cast<std::int8_t>(bytes[i])) * scale;
  }
  std::memcpy(out + layout.latent_width, scales + 4 * groups_of(layout.latent_width),
              static_cast<std::size_t>(4 * layout.rope_width));
}

}  // namespace toy

inline constexpr CacheFormatInfo kExtraCacheFormat = {"toy", &toy::row_bytes, &toy::encode_row,
                                                      &toy::widen_row};

}  // namespace mla

#endif  // MLA_TESTS_FORMATS_TOY_CACHE_FORMAT_HPP_
