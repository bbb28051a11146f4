#ifndef MLA_ATTENTION_CACHE_BYTES_HPP_
#define MLA_ATTENTION_CACHE_BYTES_HPP_

#include <algorithm>
#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "mla/attention/latent_cache.hpp"
#include "mla/attention/paged_rows.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// Bytes of the rows and index keys of some caches. Rows that several of them share count once.
inline std::size_t bytes_used(std::span<const LatentCache* const> caches) {
  struct Stretch {
    const std::byte *begin, *end;
  };
  std::vector<Stretch> stretches;  // rows of a page that follow each other
  const auto add = [&](const PagedRows& rows, const CacheSegment& segment) {
    const Index end = segment.slot + segment.rows;
    for (Index first = segment.slot, count; first < end; first += count) {
      count = std::min(end - first, PagedRows::kPageRows - first % PagedRows::kPageRows);
      const std::byte* const row = rows.row(first);
      stretches.push_back({row, row + count * rows.layout().bytes});
    }
  };
  for (const LatentCache* cache : caches)
    for (const CacheSegment& segment : cache->segments()) {
      add(cache->rows(), segment);
      if (cache->index_keys()) add(*cache->index_keys(), segment);
    }
  std::ranges::sort(stretches, std::ranges::less(), &Stretch::begin);
  std::size_t bytes = 0;
  const std::byte* counted = nullptr;  // up to here
  for (const auto& [begin, end] : stretches) {
    const std::byte* const first = counted ? std::max(begin, counted, std::less<>()) : begin;
    if (!std::less<>()(first, end)) continue;
    bytes += static_cast<std::size_t>(end - first);
    counted = end;
  }
  return bytes;
}

}  // namespace mla

#endif  // MLA_ATTENTION_CACHE_BYTES_HPP_
