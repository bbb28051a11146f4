#ifndef MLA_ATTENTION_FLASH_MLA_HPP_
#define MLA_ATTENTION_FLASH_MLA_HPP_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include "mla/attention/latent_cache.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"
#include "mla/core/float16.hpp"
#include "mla/core/quantised_rows.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/kernels.hpp"

// Exchange with FlashMLA, DeepSeek's kernels for GPUs, and engines with its cache of 8 bits (vLLM
// and SGLang call it fp8_ds_mla): pages of 64 tokens, a token's 656 bytes one after the other
//   512 E4M3 | 4 float32, the scales of 128 of them | 64 bfloat16, the rotary key after rotation
// which are the rows of CacheFormat::fp8 at these widths. Page p of a sequence has its tokens from
// 64 * p on; which page of an engine's memory that is, its block table says. Little-endian.

namespace mla {

inline constexpr Index kFlashMlaPageTokens = 64;
inline constexpr Index kFlashMlaRowBytes = 656;
inline constexpr Index kFlashMlaPageBytes = kFlashMlaPageTokens * kFlashMlaRowBytes;

namespace detail {

inline RowLayout flash_mla_layout() { return row_layout(CacheFormat::fp8, 512, 64); }

inline void require_flash_mla(const LatentCache& cache, Index tokens, std::size_t pages) {
  require(cache.kv_lora_rank() == 512 && cache.rope_key_width() == 64,
          "FlashMLA's rows have 512 + 64 elements (latent + rotary key), this cache has rows of ",
          cache.kv_lora_rank(), " + ", cache.rope_key_width());
  require(pages >= static_cast<std::size_t>((tokens + kFlashMlaPageTokens - 1) / 64), tokens,
          " tokens need ", (tokens + kFlashMlaPageTokens - 1) / 64, " pages of ",
          kFlashMlaPageTokens, ", got ", pages);
  // Engines know no offsets: a row says what its key was rotated for.
  for (const CacheSegment& segment : cache.segments())
    require(segment.offset == 0, "rows ", segment.first, " to ", segment.end(),
            " of the cache are shifted by ", segment.offset, " positions: rebase() it first");
}

inline std::size_t flash_mla_page(Index token) noexcept {
  return static_cast<std::size_t>(token / kFlashMlaPageTokens);
}
inline Index flash_mla_offset(Index token) noexcept {
  return token % kFlashMlaPageTokens * kFlashMlaRowBytes;
}

// What is in the row of token t that a cache of this format does not take.
inline void check_flash_mla_row(const std::byte* row, Index t, CacheFormat format) {
  float scales[4];
  bfloat16 rope[64];
  std::memcpy(scales, row + 512, sizeof(scales));
  std::memcpy(static_cast<void*>(rope), row + 528, sizeof(rope));
  for (Index g = 0; g < 4; ++g)
    require(std::isfinite(scales[g]), "scale ", g, " of token ", t, " of FlashMLA's pages is ",
            scales[g]);
  const float limit = info_of(format).rope_limit;
  for (Index i = 0; i < 64; ++i) {
    const auto key = static_cast<float>(rope[i]);
    require(std::abs(key) < limit || !std::isfinite(key), "rotary key ", i, " of token ", t,
            " of FlashMLA's pages is ", key, ", a cache of format ", name_of(format),
            " holds those below ", limit);
  }
}

}  // namespace detail

/// One token: row [576] of float32, latent first -> its 656 bytes. Numbers that are not finite
/// become NaN.
// NOLINTNEXTLINE(bugprone-exception-escape): the layout of 512 + 64 numbers exists
inline void encode_flash_mla_row(const float* row, Fp8Scale scale, std::byte* bytes) noexcept {
  const RowLayout layout = detail::flash_mla_layout();
  alignas(64) std::byte encoded[kFlashMlaRowBytes];
  switch (scale) {
    case Fp8Scale::power_of_two:
      detail::Fp8Rows<Fp8Scale::power_of_two>::encode(layout, row, encoded);
      break;
    case Fp8Scale::largest:
      detail::Fp8Rows<Fp8Scale::largest>::encode(layout, row, encoded);
      break;
  }
  std::copy_n(encoded, kFlashMlaRowBytes, bytes);
}

/// The tokens of `cache` -> pages [kFlashMlaPageBytes each]. A cache of format fp8 is copied byte
/// by byte, scales of any writer included; one of another format is decoded and encoded with
/// `scale`. Bytes behind the last token stay as they are. Throws std::invalid_argument, with the
/// pages unchanged, where rows do not have 512 + 64 numbers, there are too few pages, or a part of
/// the cache is shifted.
inline void export_flash_mla(const LatentCache& cache, std::span<std::byte* const> pages,
                             Fp8Scale scale = Fp8Scale::power_of_two) {
  detail::require_flash_mla(cache, cache.size(), pages.size());
  require(scale == Fp8Scale::power_of_two || scale == Fp8Scale::largest, "scale ",
          static_cast<int>(scale), " of FlashMLA's rows does not exist");
  const std::size_t used = detail::flash_mla_page(cache.size() + kFlashMlaPageTokens - 1);
  for (std::size_t p = 0; p < used; ++p)
    require(pages[p] != nullptr, "page ", p, " of FlashMLA's is missing");
  float row[576];
  for (Index t = 0; t < cache.size(); ++t) {
    std::byte* const to = pages[detail::flash_mla_page(t)] + detail::flash_mla_offset(t);
    if (cache.format() == CacheFormat::fp8) {
      std::copy_n(cache.row(t), kFlashMlaRowBytes, to);
      continue;
    }
    info_of(cache.format()).widen(cache.layout(), cache.row(t), row);
    encode_flash_mla_row(row, scale, to);
  }
}

/// Appends positions.size() tokens of pages [kFlashMlaPageBytes each] to `cache`: byte by byte to
/// one of format fp8, decoded and encoded to one of another. Scales may be any writer's, but must
/// be finite. Throws std::invalid_argument naming the token where a scale is not or a rotary key
/// is too large for the cache, where rows do not have 512 + 64 numbers, where there are too few
/// pages, and as LatentCache::append() does; or std::bad_alloc. The cache is then unchanged.
inline void import_flash_mla(std::span<const std::byte* const> pages,
                             std::span<const Index> positions, LatentCache& cache,
                             const simd::Kernels& kernels = simd::kernels()) {
  const RowLayout layout = detail::flash_mla_layout();
  const Index tokens = std::ssize(positions), before = cache.size();
  detail::require_flash_mla(cache, tokens, pages.size());
  const auto row_of = [&](Index t) {
    return pages[detail::flash_mla_page(t)] + detail::flash_mla_offset(t);
  };
  for (Index t = 0; t < tokens; ++t) {
    if (t % kFlashMlaPageTokens == 0)
      require(pages[detail::flash_mla_page(t)] != nullptr, "page ", detail::flash_mla_page(t),
              " of FlashMLA's is missing");
    detail::check_flash_mla_row(row_of(t), t, cache.format());
  }

  // Rows where they are aligned, and as numbers.
  std::vector<std::byte> bytes(static_cast<std::size_t>(kFlashMlaPageBytes));
  RowMajorMatrix rows(cache.format() == CacheFormat::fp8 ? 0 : kFlashMlaPageTokens, 576);
  cache.reserve(before + tokens);
  try {
    for (Index first = 0; first < tokens; first += kFlashMlaPageTokens) {
      const Index count = std::min(kFlashMlaPageTokens, tokens - first);
      const auto places =
          positions.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
      std::copy_n(row_of(first), count * kFlashMlaRowBytes, bytes.begin());
      if (cache.format() == CacheFormat::fp8) {
        cache.append_stored({bytes.data(), count, kFlashMlaRowBytes}, places);
        continue;
      }
      for (Index t = 0; t < count; ++t)
        info_of(CacheFormat::fp8)
            .widen(layout, bytes.data() + t * kFlashMlaRowBytes, rows.row(t).data());
      cache.append({rows.data(), count, 576}, places, kernels);
    }
  } catch (...) {
    cache.truncate(before);
    throw;
  }
}

}  // namespace mla

#endif  // MLA_ATTENTION_FLASH_MLA_HPP_
