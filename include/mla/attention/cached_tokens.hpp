#ifndef MLA_ATTENTION_CACHED_TOKENS_HPP_
#define MLA_ATTENTION_CACHED_TOKENS_HPP_

#include <algorithm>

#include "mla/attention/latent_kv_cache.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// A sequence's share of a call: tokens [first_token, + tokens) of the call are the last of
/// `cache`, where they have been appended already. Token i of them sees all cached tokens but the
/// last tokens - 1 - i: causality is by place in the cache, not by position id.
///
/// A cache may also hold a part of the sequence only (see merge_attention.hpp): one that ends
/// before the last tokens, or one that begins after the first of them, which see nothing of it.
template <StorageElement T>
struct CachedTokens {
  const LatentKVCache<T>* cache = nullptr;
  Index first_token = 0;
  Index tokens = 0;
  /// The last so many of `tokens` are not in the cache but come after it, and see all of it.
  Index uncached = 0;

  /// Cached tokens from before the call; below 0: so many of the call's come before the cache.
  Index past() const noexcept { return cache->size() + uncached - tokens; }
  /// Keys that token i of this share sees.
  Index visible(Index i) const noexcept {
    return std::clamp<Index>(past() + i + 1, 0, cache->size());
  }
};

}  // namespace mla

#endif  // MLA_ATTENTION_CACHED_TOKENS_HPP_
