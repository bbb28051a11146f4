#ifndef MLA_EXAMPLES_PROGRAMS_CACHE_FORMATS_HPP_
#define MLA_EXAMPLES_PROGRAMS_CACHE_FORMATS_HPP_

#include <string>

#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"

namespace mla::programs {

/// "f32, bf16, ..."
inline std::string cache_names() {
  std::string names;
  for (const CacheFormatInfo& format : kCacheFormats)
    names += (names.empty() ? "" : ", ") + std::string(format.name);
  return names;
}

/// The format that `--cache` names. Throws std::invalid_argument.
inline CacheFormat parse_cache(const std::string& name) {
  for (std::size_t f = 0; f < kCacheFormatCount; ++f)
    if (name == kCacheFormats[f].name) return static_cast<CacheFormat>(f);
  throw_invalid("--cache must be one of ", cache_names(), "; got ", name);
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_CACHE_FORMATS_HPP_
