#ifndef MLA_ATTENTION_CACHED_TOKENS_HPP_
#define MLA_ATTENTION_CACHED_TOKENS_HPP_

#include "mla/attention/latent_kv_cache.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// A sequence's share of a call: tokens [first_token, + tokens) of the call are the last of
/// `cache`, where they have been appended already. Token i of them sees all cached tokens but the
/// last tokens - 1 - i: causality is by place in the cache, not by position id.
template <StorageElement T>
struct CachedTokens {
  const LatentKVCache<T>* cache = nullptr;
  Index first_token = 0;
  Index tokens = 0;

  /// Cached tokens from before the call.
  Index past() const noexcept { return cache->size() - tokens; }
  /// Keys that token i of this share sees.
  Index visible(Index i) const noexcept { return past() + i + 1; }
};

}  // namespace mla

#endif  // MLA_ATTENTION_CACHED_TOKENS_HPP_
