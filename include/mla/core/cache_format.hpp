#ifndef MLA_CORE_CACHE_FORMAT_HPP_
#define MLA_CORE_CACHE_FORMAT_HPP_

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string_view>

#include "mla/core/error.hpp"
#include "mla/core/float16.hpp"
#include "mla/core/tensor.hpp"

// What a cached row is: [latent | rotary keys] of one token as bytes, in a format that is known at
// run time.
//
// A format owes two functions, encode() and widen(), and the size of a row. With them and a row in
// the table below it is right on every instruction set and in both forms of attention. Kernels that
// are faster for a format come on top (simd/kernels.hpp) and compute the same bits.

namespace mla {

/// How the rows of a cache are stored.
enum class CacheFormat : std::uint8_t {
  float32,
  bfloat16,
  float16,
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
};

template <StorageElement T>
inline constexpr CacheFormat kCacheFormatOf = std::is_same_v<T, float>      ? CacheFormat::float32
                                              : std::is_same_v<T, bfloat16> ? CacheFormat::bfloat16
                                                                            : CacheFormat::float16;

namespace detail {

template <StorageElement T>
struct ElementRows {
  static Index row_bytes(Index latent_width, Index rope_width) noexcept {
    return (latent_width + rope_width) * static_cast<Index>(sizeof(T));
  }
  static void encode(const RowLayout& layout, const float* row, std::byte* bytes) noexcept {
    T* const out = reinterpret_cast<T*>(bytes);
    for (Index i = 0; i < layout.width(); ++i) out[i] = static_cast<T>(row[i]);
  }
  static void widen(const RowLayout& layout, const std::byte* bytes, float* out) noexcept {
    const T* const row = reinterpret_cast<const T*>(bytes);
    for (Index i = 0; i < layout.width(); ++i) out[i] = static_cast<float>(row[i]);
  }
  static constexpr CacheFormatInfo info(std::string_view name) noexcept {
    return {name, &row_bytes, &encode, &widen};
  }
};

}  // namespace detail
}  // namespace mla

// A program may bring one format of its own: MLA_EXTRA_CACHE_FORMAT is then the name of a header,
// in quotes, that defines `inline constexpr mla::CacheFormatInfo mla::kExtraCacheFormat`. All files
// of the program must define it alike.
#if defined(MLA_EXTRA_CACHE_FORMAT)
#include MLA_EXTRA_CACHE_FORMAT
#endif

namespace mla {

/// A row for each CacheFormat, in its order.
inline constexpr CacheFormatInfo kCacheFormats[] = {
    detail::ElementRows<float>::info("f32"),
    detail::ElementRows<bfloat16>::info("bf16"),
    detail::ElementRows<float16>::info("f16"),
#if defined(MLA_EXTRA_CACHE_FORMAT)
    kExtraCacheFormat,
#endif
};
inline constexpr std::size_t kCacheFormatCount = std::size(kCacheFormats);
#if defined(MLA_EXTRA_CACHE_FORMAT)
static_assert(static_cast<std::size_t>(CacheFormat::extra) + 1 == kCacheFormatCount);
#else
static_assert(static_cast<std::size_t>(CacheFormat::float16) + 1 == kCacheFormatCount);
#endif

constexpr const CacheFormatInfo& info_of(CacheFormat format) noexcept {
  return kCacheFormats[static_cast<std::size_t>(format)];
}
constexpr std::string_view name_of(CacheFormat format) noexcept { return info_of(format).name; }

/// The layout of rows [latent | rotary keys]. Throws std::invalid_argument for a format that does
/// not exist or a row without a number.
inline RowLayout row_layout(CacheFormat format, Index latent_width, Index rope_width) {
  require(static_cast<std::size_t>(format) < kCacheFormatCount, "cache format ",
          static_cast<int>(format), " does not exist");
  require(latent_width >= 0 && rope_width >= 0 && latent_width + rope_width > 0,
          "a cache row needs at least one number, got ", latent_width, " + ", rope_width);
  return {format, latent_width, rope_width, info_of(format).row_bytes(latent_width, rope_width)};
}

}  // namespace mla

#endif  // MLA_CORE_CACHE_FORMAT_HPP_
