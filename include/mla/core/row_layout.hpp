#ifndef MLA_CORE_ROW_LAYOUT_HPP_
#define MLA_CORE_ROW_LAYOUT_HPP_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>

#include "mla/core/tensor.hpp"

// What a cached row is: [latent | rotary keys] of one token as bytes, in a format that is known at
// run time.
//
// A format owes two functions, encode() and widen(), and the size of a row. With them and a row in
// the table of core/cache_format.hpp it is right on every instruction set and in both forms of
// attention. Kernels that are faster for a format come on top (simd/kernels.hpp) and compute the
// same bits.

namespace mla {

/// How the rows of a cache are stored.
enum class CacheFormat : std::uint8_t {
  float32,
  bfloat16,
  float16,
  int8,  ///< latent: 8-bit integers with a scale per 128; rotary keys: float16
  fp8,   ///< latent: E4M3 with a scale per 128; rotary keys: bfloat16. FlashMLA's 656 bytes
  int4,  ///< latent: 4-bit integers with a scale per 32; rotary keys: float16
#if defined(MLA_EXTRA_CACHE_FORMAT)
  extra,  ///< the program's own, see kExtraCacheFormat
#endif
};

/// How a row of `width()` numbers lies in `bytes` bytes.
struct RowLayout {
  CacheFormat format = CacheFormat::float32;
  Index latent_width = 0;  ///< the first numbers of a row: latent, or an index key
  Index rope_width = 0;    ///< the numbers behind it: rotary keys
  Index bytes = 0;         ///< of a row

  bool operator==(const RowLayout&) const = default;
  Index width() const noexcept { return latent_width + rope_width; }
};

/// What the library knows of a cache format.
struct CacheFormatInfo {
  std::string_view name;  ///< in messages, files and programs
  Index (*row_bytes)(Index latent_width, Index rope_width) noexcept;
  /// row [width()] of float32 -> its bytes.
  void (*encode)(const RowLayout& layout, const float* row, std::byte* bytes) noexcept;
  /// The bytes of a row -> out [width()] of float32, exactly what attention computes with.
  void (*widen)(const RowLayout& layout, const std::byte* bytes, float* out) noexcept;
  /// Finite rotary keys from here on are too large for the format: a cache refuses them, encode()
  /// takes the largest that there is.
  float rope_limit = std::numeric_limits<float>::infinity();
};

}  // namespace mla

#endif  // MLA_CORE_ROW_LAYOUT_HPP_
