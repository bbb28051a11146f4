#ifndef MLA_TEXT_BYTE_PAIR_MODEL_HPP_
#define MLA_TEXT_BYTE_PAIR_MODEL_HPP_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"
#include "mla/text/byte_level.hpp"
#include "mla/text/byte_pair_encoder.hpp"
#include "mla/text/utf8.hpp"

namespace mla {

namespace detail {

struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const noexcept {
    return std::hash<std::string_view>()(text);
  }
};

inline TokenId read_token_id(const nlohmann::json& value, const std::string& where) {
  constexpr Index kMaxId = 1 << 30;
  const Index id = json_size(value, where);
  if (id > kMaxId) throw_runtime(where, " must be a token id, got ", id);
  return static_cast<TokenId>(id);
}

}  // namespace detail

/// How the text of a token in a file stands for what it decodes to.
enum class Spelling {
  byte_level,  ///< a character for every byte: "Ġthe" is " the"
  pieces,      ///< as it is, "▁" for a space, and "<0x0A>" for a byte: "▁the"
};

/// The ids of tokens by their text in the file: "Ġthe".
using TokenIds = std::unordered_map<std::string, TokenId, detail::TextHash, std::equal_to<>>;

/// `model` of a tokenizer.json: byte pair encoding over a byte-level vocabulary, or over pieces of
/// text with byte_fallback. Either must have a token for every byte, so that no word is ever
/// unknown.
class BytePairModel {
 public:
  /// Throws std::runtime_error beginning with `where`, naming the field that is refused.
  BytePairModel(const nlohmann::json& model, const std::string& where)
      : spelling_(Reader(model, where + ".").boolean("byte_fallback", false)
                      ? Spelling::pieces
                      : Spelling::byte_level),
        ids_(read_vocab(Reader(model, where + "."), where)),
        encoder_(byte_tokens(where), read_merges(Reader(model, where + "."), where)) {
    if (!Reader(model, where + ".").boolean("ignore_merges", false)) return;
    if (spelling_ == Spelling::pieces)
      throw_runtime(where, ".ignore_merges true is not supported with byte_fallback");
    for (const auto& [text, id] : ids_)
      if (auto bytes = byte_level_bytes(text)) whole_words_.emplace(std::move(*bytes), id);
  }

  /// Of tiktoken's file: `ranked` are the bytes of tokens 0, 1, 2, ...; a token comes of any two
  /// that it is made of, the smallest first, and a word that is a token is never merged. Throws
  /// std::runtime_error beginning with `where` where a byte has no token.
  BytePairModel(const std::vector<std::string>& ranked, const std::string& where)
      : ids_(ids_of(ranked)),
        encoder_(byte_tokens(where), merges_of(ranked), BytePairEncoder::Order::by_merged) {
    for (std::size_t id = 0; id < ranked.size(); ++id)
      whole_words_.emplace(ranked[id], static_cast<TokenId>(id));
  }

  Spelling spelling() const noexcept { return spelling_; }

  /// `model.vocab`.
  const TokenIds& ids() const noexcept { return ids_; }

  /// Appends the tokens of `word`, of fewer than 2^31 bytes, to `ids`.
  void encode(std::string_view word, BytePairEncoder::Memory& memory,
              std::vector<TokenId>& ids) const {
    if (spelling_ == Spelling::pieces) return encode_pieces(word, memory, ids);
    const auto whole = whole_words_.find(word);
    if (whole != whole_words_.end())
      ids.push_back(whole->second);
    else
      encoder_.encode(word, memory, ids);
  }

 private:
  using Reader = ConfigReader;

  // Characters that are tokens, and the bytes of others.
  void encode_pieces(std::string_view word, BytePairEncoder::Memory& memory,
                     std::vector<TokenId>& ids) const {
    memory.tokens.clear();
    while (!word.empty()) {
      const std::string_view character = word.substr(0, first_utf8_unit(word).bytes);
      const auto found = ids_.find(character);
      if (found != ids_.end())
        memory.tokens.push_back(found->second);
      else
        for (const char byte : character)
          memory.tokens.push_back(encoder_.byte_tokens()[static_cast<std::uint8_t>(byte)]);
      word.remove_prefix(character.size());
    }
    encoder_.encode(memory, ids);
  }

  static TokenIds ids_of(const std::vector<std::string>& ranked) {
    TokenIds ids;
    for (std::size_t id = 0; id < ranked.size(); ++id)
      ids.emplace(byte_level_text(ranked[id]), static_cast<TokenId>(id));
    return ids;
  }

  static std::vector<BytePairEncoder::Merge> merges_of(const std::vector<std::string>& ranked) {
    std::unordered_map<std::string_view, TokenId> ids;
    for (std::size_t id = 0; id < ranked.size(); ++id)
      ids.emplace(ranked[id], static_cast<TokenId>(id));
    std::vector<BytePairEncoder::Merge> merges;
    for (std::size_t id = 0; id < ranked.size(); ++id) {
      const std::string_view token = ranked[id];
      for (std::size_t at = 1; at < token.size(); ++at) {
        const auto left = ids.find(token.substr(0, at)), right = ids.find(token.substr(at));
        if (left != ids.end() && right != ids.end())
          merges.push_back({left->second, right->second, static_cast<TokenId>(id)});
      }
    }
    return merges;
  }

  // Everything besides merging: dropout, prefixes and suffixes. unk_token and fuse_unk are about
  // words that do not occur here.
  static void check_fields(const Reader& model) {
    static constexpr std::string_view kKeys[] = {"type",
                                                 "vocab",
                                                 "merges",
                                                 "ignore_merges",
                                                 "unk_token",
                                                 "fuse_unk",
                                                 "byte_fallback",
                                                 "continuing_subword_prefix",
                                                 "end_of_word_suffix"};
    if (model.string("type") != "BPE")
      model.fail("type = ", model.string("type"), " is not supported; known is BPE");
    model.refuse_keys_besides({kKeys}, true, "");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (model.find(key) && !model.string(key).empty())
        model.fail(key, " = ", model.string(key), " is not supported");
  }

  static TokenIds read_vocab(const Reader& model, const std::string& where) {
    check_fields(model);
    const nlohmann::json* vocab = model.find("vocab");
    if (!vocab) model.fail("vocab is missing");
    if (!vocab->is_object()) model.fail("vocab must be an object, got ", json_text(*vocab));
    TokenIds ids;
    for (const auto& [text, id] : vocab->items()) {
      if (text.empty()) model.fail("vocab has an empty token");
      ids.emplace(text, detail::read_token_id(id, where + ".vocab: id of " + text));
    }
    return ids;
  }

  std::string byte_text(std::uint8_t byte) const {
    if (spelling_ == Spelling::byte_level)
      return byte_level_text(std::string(1, static_cast<char>(byte)));
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    return std::string("<0x") + kDigits[byte / 16] + kDigits[byte % 16] + ">";
  }

  std::array<TokenId, 256> byte_tokens(const std::string& where) const {
    std::array<TokenId, 256> result{};
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::string text = byte_text(static_cast<std::uint8_t>(byte));
      const auto found = ids_.find(text);
      if (found == ids_.end())
        throw_runtime(where, ".vocab has no token ", text, ", which stands for byte ", byte);
      result[byte] = found->second;
    }
    return result;
  }

  std::vector<BytePairEncoder::Merge> read_merges(const Reader& model,
                                                  const std::string& where) const {
    const nlohmann::json* merges = model.find("merges");
    if (!merges) model.fail("merges is missing");
    if (!merges->is_array()) model.fail("merges must be an array, got ", json_text(*merges));
    std::vector<BytePairEncoder::Merge> result;
    for (const nlohmann::json& merge : *merges)
      result.push_back(read_merge(merge, where + ".merges[" + std::to_string(result.size()) + "]"));
    return result;
  }

  // "a b" or ["a", "b"], both in the vocabulary, and so is "ab".
  BytePairEncoder::Merge read_merge(const nlohmann::json& merge, const std::string& where) const {
    std::string left, right;
    if (merge.is_array() && merge.size() == 2) {
      left = json_string(merge[0], where);
      right = json_string(merge[1], where);
    } else {
      const std::string& both = json_string(merge, where);
      const std::size_t space = both.find(' ');
      if (space == both.npos || both.find(' ', space + 1) != both.npos)
        throw_runtime(where, " must be two tokens with a space between them, got ", both);
      left = both.substr(0, space);
      right = both.substr(space + 1);
    }
    const auto id = [&](const std::string& text) {
      const auto found = ids_.find(text);
      if (found == ids_.end()) throw_runtime(where, ": token ", text, " is not in the vocabulary");
      return found->second;
    };
    return {id(left), id(right), id(left + right)};
  }

  Spelling spelling_ = Spelling::byte_level;
  TokenIds ids_;
  BytePairEncoder encoder_;
  TokenIds whole_words_;  // by their bytes; empty unless words in the vocabulary are never merged
};

}  // namespace mla

#endif  // MLA_TEXT_BYTE_PAIR_MODEL_HPP_
