#ifndef MLA_MODEL_DRAFT_LOOKUP_HPP_
#define MLA_MODEL_DRAFT_LOOKUP_HPP_

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"

namespace mla {

/// Drafts out of the text itself (prompt lookup, Saxena 2023): where the last tokens of a text
/// occurred before, what followed them there. It costs a look at each token of the text and nothing
/// of the model, and it is right where a text quotes: code, lists, answers about a document.
class DraftLookup {
 public:
  /// Matches of fewer than `least` tokens do not count. Throws std::invalid_argument unless it is
  /// from 1 to kLongestMatch.
  explicit DraftLookup(Index least) : least_(least) {
    require(least >= 1 && least <= kLongestMatch, "lookup must be from 1 to ", kLongestMatch,
            " tokens, got ", least);
  }

  /// More of a match is not compared.
  static constexpr Index kLongestMatch = 32;

  void reserve(Index tokens) { text_.reserve(static_cast<std::size_t>(tokens)); }
  void append(std::span<const TokenId> tokens) {
    text_.insert(text_.end(), tokens.begin(), tokens.end());
  }

  /// Fills `drafts` by the longest match, of equals the latest; false: there is none. A match that
  /// reaches into the end of the text goes on as a repetition.
  bool find(std::span<TokenId> drafts) const noexcept {
    const auto [end, tokens] = longest_match();
    if (tokens < least_) return false;
    const std::size_t rest = text_.size() - end;
    for (std::size_t i = 0; i < drafts.size(); ++i)
      drafts[i] = i < rest ? text_[end + i] : drafts[i - rest];
    return true;
  }

 private:
  // Where the longest match ends, and its tokens.
  std::pair<std::size_t, Index> longest_match() const noexcept {
    std::pair<std::size_t, Index> best = {0, 0};
    if (text_.empty()) return best;
    for (std::size_t end = text_.size() - 1; end > 0; --end) {
      if (text_[end - 1] != text_.back()) continue;
      const Index tokens = match(end);
      if (tokens > best.second) best = {end, tokens};
      if (tokens == kLongestMatch) break;
    }
    return best;
  }

  // How many tokens before `end` are the last ones of the text.
  Index match(std::size_t end) const noexcept {
    const auto most = std::min<Index>(static_cast<Index>(end), kLongestMatch);
    Index tokens = 1;
    while (tokens < most && text_[end - 1 - static_cast<std::size_t>(tokens)] ==
                                text_[text_.size() - 1 - static_cast<std::size_t>(tokens)])
      ++tokens;
    return tokens;
  }

  Index least_;
  std::vector<TokenId> text_;
};

}  // namespace mla

#endif  // MLA_MODEL_DRAFT_LOOKUP_HPP_
