#ifndef MLA_TEXT_VOCABULARY_HPP_
#define MLA_TEXT_VOCABULARY_HPP_

#include <charconv>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"
#include "mla/text/byte_level.hpp"
#include "mla/text/byte_pair_model.hpp"
#include "mla/text/token_finder.hpp"

namespace mla {

/// What stands for a space in pieces: "▁", U+2581.
inline constexpr std::string_view kSpaceMark = "\xe2\x96\x81";

/// All tokens of a tokenizer.json: those of its model and `added_tokens`, which may be the model's
/// too. Their ids together must be 0, 1, 2, ... without a gap.
class Vocabulary {
 public:
  struct Token {
    std::string text;   ///< as in the file: "Ġthe"
    std::string bytes;  ///< what it decodes to: " the"
    bool special = false;
    bool byte = false;  ///< stands for a byte, "<0x0A>": Spelling::pieces only
  };

  /// `added_tokens` by when they are looked for.
  struct AddedTokens {
    std::vector<TokenFinder::Token> as_written;  ///< before anything else is done to a text
    std::vector<TokenFinder::Token> normalized;  ///< in what is between those
  };

  /// `added_tokens` is an array, or null for none. Throws std::runtime_error beginning with
  /// `origin`, naming the field and the token that is not as it must be.
  Vocabulary(TokenIds model_ids, const nlohmann::json& added_tokens, const std::string& origin,
             Spelling spelling = Spelling::byte_level)
      : spelling_(spelling), ids_(std::move(model_ids)) {
    std::vector<TokenId> special;
    read_added_tokens(added_tokens, origin, special);
    tokens_.resize(ids_.size());
    for (const auto& [text, id] : ids_) place(text, id, origin);
    for (const TokenId id : special) tokens_[static_cast<std::size_t>(id)].special = true;
  }

  Index size() const noexcept { return std::ssize(tokens_); }
  bool contains(TokenId id) const noexcept { return id >= 0 && id < size(); }

  /// `id` must be one of the vocabulary.
  const Token& operator[](TokenId id) const noexcept {
    return tokens_[static_cast<std::size_t>(id)];
  }

  /// The id of the token with this text in the file.
  std::optional<TokenId> find(std::string_view text) const {
    const auto found = ids_.find(text);
    if (found == ids_.end()) return std::nullopt;
    return found->second;
  }

  const AddedTokens& added() const noexcept { return added_; }

 private:
  void read_added_tokens(const nlohmann::json& tokens, const std::string& origin,
                         std::vector<TokenId>& special) {
    if (tokens.is_null()) return;
    if (!tokens.is_array())
      throw_runtime(origin, ": added_tokens must be an array, got ", json_text(tokens));
    TokenIds seen;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const std::string where = origin + ": added_tokens[" + std::to_string(i) + "].";
      const ConfigReader token(tokens[i], where);
      static constexpr std::string_view kKeys[] = {"id", "content", "normalized", "special"};
      token.refuse_keys_besides({kKeys}, true, "");  // single_word, lstrip, rstrip: only false
      const std::string& text = token.string("content");
      if (text.empty()) token.fail("content must not be empty");
      const auto id = detail::read_token_id(token.size("id"), where + "id");
      if (!seen.emplace(text, id).second) token.fail("content ", text, " occurs twice");
      if (const auto known = ids_.emplace(text, id).first; known->second != id)
        token.fail("id of ", text, " is ", id, ", but ", known->second, " in model.vocab");

      auto& group = token.boolean("normalized", true) ? added_.normalized : added_.as_written;
      group.push_back({text, id});
      if (token.boolean("special", false)) special.push_back(id);
    }
  }

  void place(const std::string& text, TokenId id, const std::string& origin) {
    if (static_cast<std::size_t>(id) >= tokens_.size())
      throw_runtime(origin, ": token ", text, " has the id ", id, ", but the ids of ",
                    tokens_.size(), " tokens must be 0 to ", tokens_.size() - 1);
    Token& token = tokens_[static_cast<std::size_t>(id)];
    if (!token.text.empty())
      throw_runtime(origin, ": tokens ", token.text, " and ", text, " have the same id ", id);
    // One with characters that stand for no byte is meant as it is written.
    if (spelling_ == Spelling::byte_level)
      token = {.text = text, .bytes = byte_level_bytes(text).value_or(text)};
    else if (const auto byte = byte_of(text))
      token = {.text = text, .bytes = std::string(1, *byte), .byte = true};
    else
      token = {.text = text, .bytes = with_spaces(text)};
  }

  // "<0x0A>"
  static std::optional<char> byte_of(std::string_view text) {
    if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return std::nullopt;
    unsigned value = 0;
    const auto [end, error] = std::from_chars(text.data() + 3, text.data() + 5, value, 16);
    if (error != std::errc() || end != text.data() + 5) return std::nullopt;
    return static_cast<char>(value);
  }

  static std::string with_spaces(std::string text) {
    for (std::size_t at = 0; (at = text.find(kSpaceMark, at)) != text.npos; ++at)
      text.replace(at, kSpaceMark.size(), " ");
    return text;
  }

  Spelling spelling_;
  TokenIds ids_;
  std::vector<Token> tokens_;  // by id
  AddedTokens added_;
};

}  // namespace mla

#endif  // MLA_TEXT_VOCABULARY_HPP_
