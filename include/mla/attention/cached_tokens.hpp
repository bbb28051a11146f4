#ifndef MLA_ATTENTION_CACHED_TOKENS_HPP_
#define MLA_ATTENTION_CACHED_TOKENS_HPP_

#include <algorithm>
#include <span>

#include "mla/attention/latent_cache.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// Which cached rows the tokens of a call see, where that is a list for each and not all rows up to
/// its own. A row is a place in the cache of the token's sequence; a list must rise and end at the
/// token's own row at the latest. An empty list is allowed: the token sees nothing and gets zeros.
struct KeySelection {
  std::span<const Index> first = {};  ///< [tokens + 1] where each token's list begins in `rows`
  std::span<const Index> rows = {};   ///< the lists, one after the other

  explicit operator bool() const noexcept { return !first.empty(); }
  std::span<const Index> of(Index token) const noexcept {
    const auto t = static_cast<std::size_t>(token);
    return rows.subspan(static_cast<std::size_t>(first[t]),
                        static_cast<std::size_t>(first[t + 1] - first[t]));
  }
};

/// A sequence's share of a call: tokens [first_token, + tokens) of the call are the last of
/// `cache`, where they have been appended already. Token i of them sees all cached tokens but the
/// last tokens - 1 - i, or a list of rows: causality is by place in the cache, not by position id.
///
/// A cache may also hold a part of the sequence only (see merge_attention.hpp): one that ends
/// before the last tokens, or one that begins after the first of them, which see nothing of it.
struct CachedTokens {
  const LatentCache* cache = nullptr;
  Index first_token = 0;
  Index tokens = 0;
  /// How many of the last `tokens` are not stored in this cache. They follow it and see all of it.
  Index uncached = 0;
  /// [tokens] the rows that each token sees; nullptr: a prefix each.
  const std::span<const Index>* selected = nullptr;

  /// Tokens whose last one is the last of `cache`.
  static CachedTokens ending_in(const LatentCache& cache, Index first_token,
                                Index tokens) noexcept {
    return {.cache = &cache, .first_token = first_token, .tokens = tokens};
  }
  /// Tokens that follow `cache`: none is in it, and all see all of it.
  static CachedTokens after(const LatentCache& cache, Index first_token, Index tokens) noexcept {
    return {.cache = &cache, .first_token = first_token, .tokens = tokens, .uncached = tokens};
  }

  /// Cached tokens from before the call. Below 0: that many of the call's come before the cache.
  Index past() const noexcept { return cache->size() + uncached - tokens; }
  /// Keys that token i of this share sees.
  Index visible(Index i) const noexcept {
    if (selected) return std::ssize(selected[i]);
    return std::clamp<Index>(past() + i + 1, 0, cache->size());
  }
  /// The rows that these are, or nullptr for the first visible(i).
  const Index* rows_of(Index i) const noexcept { return selected ? selected[i].data() : nullptr; }
};

}  // namespace mla

#endif  // MLA_ATTENTION_CACHED_TOKENS_HPP_
