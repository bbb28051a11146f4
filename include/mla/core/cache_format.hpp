#ifndef MLA_CORE_CACHE_FORMAT_HPP_
#define MLA_CORE_CACHE_FORMAT_HPP_

#include <cstddef>
#include <iterator>
#include <string_view>

#include "mla/core/error.hpp"
#include "mla/core/float16.hpp"
#include "mla/core/quantised_rows.hpp"
#include "mla/core/row_layout.hpp"
#include "mla/core/tensor.hpp"

// The formats of cached rows, in a table; what they are is in core/row_layout.hpp.

namespace mla {

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
    detail::Int8Rows::info("int8"),
    detail::Fp8Rows<>::info("fp8"),
    detail::Int4Rows::info("int4"),
#if defined(MLA_EXTRA_CACHE_FORMAT)
    kExtraCacheFormat,
#endif
};
inline constexpr std::size_t kCacheFormatCount = std::size(kCacheFormats);
#if defined(MLA_EXTRA_CACHE_FORMAT)
static_assert(static_cast<std::size_t>(CacheFormat::extra) + 1 == kCacheFormatCount);
#else
static_assert(static_cast<std::size_t>(CacheFormat::int4) + 1 == kCacheFormatCount);
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
