#ifndef MLA_ATTENTION_LATENT_KV_CACHE_HPP_
#define MLA_ATTENTION_LATENT_KV_CACHE_HPP_

#include <span>
#include <utility>

#include "mla/attention/latent_cache.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// A LatentCache whose rows are elements of T: float, bfloat16 or float16. The typed face of these
/// formats; everything takes it as a LatentCache.
template <StorageElement T>
class LatentKVCache : public LatentCache {
 public:
  using Element = T;

  /// Throws std::invalid_argument where `config` does not fit.
  explicit LatentKVCache(const AttentionConfig& config) : LatentCache(config, kCacheFormatOf<T>) {}

  /// Row i: latent [kv_lora_rank], then rotary keys [rope_key_width].
  const T* row(Index i) const noexcept { return reinterpret_cast<const T*>(LatentCache::row(i)); }

  /// As LatentCache::fork().
  LatentKVCache fork(Index tokens) const { return LatentKVCache(LatentCache::fork(tokens)); }

  using LatentCache::append_stored;
  /// Appends rows [tokens, layout().width()] bit by bit as row() of another cache gives them.
  /// Errors as for append().
  void append_stored(MatrixView<const T> elements, std::span<const Index> token_positions) {
    constexpr Index kBytes = sizeof(T);
    LatentCache::append_stored({reinterpret_cast<const std::byte*>(elements.data), elements.rows,
                                elements.cols * kBytes, elements.stride * kBytes},
                               token_positions);
  }

 private:
  explicit LatentKVCache(LatentCache cache) noexcept : LatentCache(std::move(cache)) {}
};

}  // namespace mla

#endif  // MLA_ATTENTION_LATENT_KV_CACHE_HPP_
