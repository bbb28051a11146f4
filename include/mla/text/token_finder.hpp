#ifndef MLA_TEXT_TOKEN_FINDER_HPP_
#define MLA_TEXT_TOKEN_FINDER_HPP_

#include "mla/core/compiler.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/token.hpp"

namespace mla {

/// Finds the places of some tokens (`<｜User｜>`) in a text: the leftmost one, and of those that
/// begin at one place the longest.
class TokenFinder {
 public:
  struct Token {
    std::string text;  ///< not empty
    TokenId id;
  };
  struct Match {
    std::size_t begin, end;
    TokenId id;
  };

  explicit TokenFinder(std::vector<Token> tokens) : tokens_(std::move(tokens)) {
    std::ranges::sort(tokens_, {}, &Token::text);
    for (const Token& token : tokens_) begins_[static_cast<std::uint8_t>(token.text[0])] = true;
  }

  /// The first match at `from` or after.
  std::optional<Match> find(std::string_view text, std::size_t from) const {
    for (std::size_t begin = from; begin < text.size(); ++begin) {
      if (!begins_[static_cast<std::uint8_t>(text[begin])]) continue;
      if (const Token* token = longest_at(text.substr(begin)))
        return Match{begin, begin + token->text.size(), token->id};
    }
    return std::nullopt;
  }

 private:
  const Token* longest_at(std::string_view text) const {
    const Token* longest = nullptr;
    auto first = tokens_.begin(), last = tokens_.end();  // those that begin as `text` does
    for (std::size_t length = 0; first != last; ++length) {
      if (first->text.size() == length) longest = &*first++;
      if (length == text.size()) break;
      const auto byte = static_cast<std::uint8_t>(text[length]);
      const auto next_byte = [length](const Token& token) {
        return static_cast<std::uint8_t>(token.text[length]);
      };
      first = std::ranges::lower_bound(first, last, byte, {}, next_byte);
      last = std::ranges::upper_bound(first, last, byte, {}, next_byte);
    }
    return longest;
  }

  std::vector<Token> tokens_;          // sorted by their bytes
  std::array<bool, 256> begins_ = {};  // whether one begins with this byte
};

}  // namespace mla

#endif  // MLA_TEXT_TOKEN_FINDER_HPP_
