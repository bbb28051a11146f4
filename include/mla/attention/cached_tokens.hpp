#ifndef MLA_ATTENTION_CACHED_TOKENS_HPP_
#define MLA_ATTENTION_CACHED_TOKENS_HPP_

#include <algorithm>
#include <span>

#include "mla/attention/latent_cache.hpp"
#include "mla/attention/sliding_window.hpp"
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
  SlidingWindow window = {};  ///< none, where rows are selected
  Index later = 0;            ///< tokens of `cache` that come after these

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
  Index past() const noexcept { return cache->size() - later + uncached - tokens; }
  /// Keys that token i of this share sees, with those that a window hides.
  Index visible(Index i) const noexcept {
    if (selected) return std::ssize(selected[i]);
    return std::clamp<Index>(past() + i + 1, 0, cache->size() - later);
  }
  /// The rows that these are, or nullptr for the first visible(i).
  const Index* rows_of(Index i) const noexcept { return selected ? selected[i].data() : nullptr; }
  /// Whether tokens see other keys than those up to their own.
  bool each_its_own() const noexcept {
    return selected != nullptr || (tokens > 0 && window.hidden(visible(tokens - 1)) > 0);
  }
  /// The first `count`, or the last.
  CachedTokens first(Index count) const noexcept {
    CachedTokens some = *this;
    some.tokens = count;
    some.later += tokens - count;
    return some;
  }
  CachedTokens last(Index count) const noexcept {
    CachedTokens some = *this;
    some.first_token += tokens - count;
    some.tokens = count;
    if (selected) some.selected += tokens - count;
    return some;
  }
  /// Token i alone.
  CachedTokens only(Index i) const noexcept {
    CachedTokens one = *this;
    one.first_token += i;
    one.tokens = 1;
    one.uncached -= tokens - 1 - i;  // below 0: rows that come after it
    if (selected) one.selected += i;
    return one;
  }
};

/// Neighbouring keys that a token sees, in one segment of the cache. Keys have numbers: of their
/// row in the cache, or in the list of selected rows.
struct KeyPiece {
  Index first, keys;
  Index slot;   ///< of PagedRows: where row 0 of the cache would lie if all were of this segment
  Index place;  ///< of the first key: keys are cut into parts by place
  Index turn;   ///< positions by which the queries have to be rotated further for these keys

  Index end() const noexcept { return first + keys; }
};

/// Calls visit(piece) for what token i sees, in order. Queries are rotated for the positions of the
/// last segment.
template <class Visit>
void for_each_piece(const CachedTokens& tokens, Index i, const Visit& visit) {
  const LatentCache& cache = *tokens.cache;
  const Index visible = tokens.visible(i);
  const auto piece = [&](const CacheSegment& segment, Index first, Index end, Index place,
                         Index hidden) {
    if (first < end)
      visit(KeyPiece{first, end - first, segment.slot - segment.first, place,
                     cache.offset() - segment.offset - hidden});
  };
  if (const Index* selected = tokens.rows_of(i)) {
    Index first = 0;
    for (const CacheSegment& segment : cache.segments()) {
      const Index end =
          std::lower_bound(selected + first, selected + visible, segment.end()) - selected;
      piece(segment, first, end, first, 0);
      first = end;
    }
    return;
  }
  const Index hidden = tokens.window.hidden(visible), keep = hidden > 0 ? tokens.window.keep : 0;
  for (const CacheSegment& segment : cache.segments()) {
    const auto rows = [&](Index from, Index to, Index closer) {
      const Index first = std::max(segment.first, from);
      piece(segment, first, std::min(segment.end(), to), segment.place + first - segment.first,
            closer);
    };
    rows(0, keep, hidden);
    rows(keep + hidden, visible, 0);
  }
}

}  // namespace mla

#endif  // MLA_ATTENTION_CACHED_TOKENS_HPP_
