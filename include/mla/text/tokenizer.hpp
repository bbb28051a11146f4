#ifndef MLA_TEXT_TOKENIZER_HPP_
#define MLA_TEXT_TOKENIZER_HPP_

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"
#include "mla/text/byte_pair_model.hpp"
#include "mla/text/pre_tokenizer.hpp"
#include "mla/text/regex.hpp"
#include "mla/text/special_tokens.hpp"
#include "mla/text/tiktoken_file.hpp"
#include "mla/text/token_finder.hpp"
#include "mla/text/token_stream.hpp"
#include "mla/text/utf8.hpp"
#include "mla/text/vocabulary.hpp"

namespace mla {

/// Text to tokens and back, as tokenizer.json of a published model says: byte-level BPE, or BPE
/// over pieces of text with bytes to fall back to, as files converted from SentencePiece have it;
/// or as tiktoken.model of Moonlight and Kimi K2 says. Gives the ids that the published tokenizers
/// give; what it does not understand in a file it refuses.
///
/// All member functions are safe to call from several threads.
class Tokenizer {
 public:
  /// Opens a directory with tokenizer.json, or else tiktoken.model, and, if they are there,
  /// tokenizer_config.json and generation_config.json (see SpecialTokens), or tokenizer.json by
  /// itself. Throws
  /// std::runtime_error naming the file and the field that is not supported or not as it must be.
  explicit Tokenizer(const std::filesystem::path& path) : Tokenizer(read_files(path)) {}

  /// The tokens of `text`. Added tokens (`<｜User｜>`, `<｜end▁of▁sentence｜>`) become their ids
  /// wherever they are written out in it. With `add_bos` the first token is bos_id().
  /// Throws std::invalid_argument when the text is not UTF-8, naming the byte, has 2^31 bytes or
  /// more, or when there is no bos_id() to add; std::runtime_error when a regular expression takes
  /// too long.
  std::vector<TokenId> encode(std::string_view text, bool add_bos) const {
    require(text.size() < (std::size_t{1} << 31), "text of ", text.size(),
            " bytes is too long, must be below 2^31");
    require_utf8(text);
    require(!add_bos || special_.bos, "add_bos, but the tokenizer has no bos token");
    std::vector<TokenId> ids;
    if (add_bos) ids.push_back(*special_.bos);
    RegexMemory regex_memory;
    BytePairEncoder::Memory merge_memory;
    const auto encode_word = [&](std::string_view word) { model_.encode(word, merge_memory, ids); };
    cut_out(as_written_, text, ids, [&](std::string_view rest) {
      if (!pre_tokenizer_) {  // pieces
        if (!rest.empty()) encode_word(with_space_marks(rest));
        return;
      }
      cut_out(normalized_, rest, ids, [&](std::string_view plain) {
        pre_tokenizer_->split(plain, regex_memory, encode_word);
      });
    });
    return ids;
  }

  /// With the bos token when adds_bos(): what `tokenizer(text)` of Hugging Face gives.
  std::vector<TokenId> encode(std::string_view text) const {
    return encode(text, special_.adds_bos);
  }

  /// The text of `ids`; what is not UTF-8 in it becomes U+FFFD. Throws std::invalid_argument for an
  /// id that is not in the vocabulary.
  std::string decode(std::span<const TokenId> ids, bool skip_special = true) const {
    TokenStream stream(spelling());
    std::string text;
    for (const TokenId id : ids)
      if (const Vocabulary::Token& found = token(id); !skip_special || !found.special)
        text += stream.push(found);
    return text += stream.finish();
  }

  Spelling spelling() const noexcept { return model_.spelling(); }
  /// Throws std::invalid_argument when `id` is not in the vocabulary.
  const Vocabulary::Token& token(TokenId id) const {
    require(vocabulary_.contains(id), "token id ", id, " is not in the vocabulary of ",
            vocabulary_.size(), " tokens");
    return vocabulary_[id];
  }

  /// Ids are below this. A model may have rows for more, which no text becomes.
  Index vocab_size() const noexcept { return vocabulary_.size(); }

  std::optional<TokenId> bos_id() const noexcept { return special_.bos; }
  const std::vector<TokenId>& eos_ids() const noexcept { return special_.eos; }
  /// Whether encode(text) begins with bos_id().
  bool adds_bos() const noexcept { return special_.adds_bos; }

  /// The id of a token as it is written in the file: "Ġthe", "<｜User｜>".
  std::optional<TokenId> token_id(std::string_view text) const { return vocabulary_.find(text); }

  /// Throws std::invalid_argument when `id` is not in the vocabulary; so do the next two.
  const std::string& token_text(TokenId id) const { return token(id).text; }
  bool is_special(TokenId id) const { return token(id).special; }
  /// The bytes that `id` adds to a text, perhaps not whole characters. None for a special token
  /// with `skip_special`.
  std::string_view decoded_bytes(TokenId id, bool skip_special = true) const {
    const Vocabulary::Token& found = token(id);
    return skip_special && found.special ? std::string_view() : found.bytes;
  }

 private:
  explicit Tokenizer(const detail::TokenizerFiles& files)
      : model_(model_of(files)),
        vocabulary_(model_.ids(), files.tokenizer.value("added_tokens", nlohmann::json()),
                    files.tokenizer_path, model_.spelling()),
        as_written_(vocabulary_.added().as_written),
        normalized_(vocabulary_.added().normalized),
        special_(detail::SpecialTokensReader(files, vocabulary_).read()) {
    if (model_.spelling() == Spelling::byte_level)
      pre_tokenizer_.emplace(files.tokenizer.at("pre_tokenizer"),
                             files.tokenizer_path + ": pre_tokenizer");
    else if (!vocabulary_.added().normalized.empty())
      throw_runtime(files.tokenizer_path, ": added token ",
                    vocabulary_.added().normalized.front().text,
                    " with normalized true is not supported beside a normalizer");
  }

  static BytePairModel model_of(const detail::TokenizerFiles& files) {
    if (!files.ranked_tokens.empty()) return {files.ranked_tokens, files.tokenizer_path};
    check_fields(files);
    return {files.tokenizer.at("model"), files.tokenizer_path + ": model"};
  }

  // As the normalizer of pieces: a mark before the text, and one for each space.
  static std::string with_space_marks(std::string_view text) {
    std::string marked(kSpaceMark);
    for (const char c : text) {
      if (c == ' ')
        marked += kSpaceMark;
      else
        marked += c;
    }
    return marked;
  }

  static detail::TokenizerFiles read_files(const std::filesystem::path& path) {
    detail::TokenizerFiles files;
    const bool is_directory = std::filesystem::is_directory(path);
    const bool ranked = is_directory && !std::filesystem::exists(path / "tokenizer.json") &&
                        std::filesystem::exists(path / "tiktoken.model");
    const char* const main_file = ranked ? "tiktoken.model" : "tokenizer.json";
    files.tokenizer_path = (is_directory ? path / main_file : path).string();
    if (ranked)
      files.ranked_tokens = detail::read_tiktoken_file(files.tokenizer_path);
    else
      files.tokenizer = parse_json_file(files.tokenizer_path);
    if (!is_directory) return files;
    files.directory = (path / "").string();
    const auto read = [&](const char* name, nlohmann::json& json) {
      if (std::filesystem::exists(path / name)) json = parse_json_file(path / name);
    };
    read("tokenizer_config.json", files.tokenizer_config);
    read("generation_config.json", files.generation_config);
    if (ranked)
      files.tokenizer = detail::moonshot_tokenizer(
          files.tokenizer_config,
          files.directory + "tokenizer_config.json: ", files.ranked_tokens.size());
    return files;
  }

  // All but those that the members read.
  static void check_fields(const detail::TokenizerFiles& files) {
    const ConfigReader root(files.tokenizer, files.tokenizer_path + ": ");
    static constexpr std::string_view kKeys[] = {"version",       "added_tokens",   "normalizer",
                                                 "pre_tokenizer", "post_processor", "decoder",
                                                 "model"};
    root.refuse_keys_besides({kKeys}, false, "");  // truncation and padding: only null
    if (root.find("version") && root.string("version") != "1.0")
      root.fail("version = ", root.string("version"), " is not supported; known is 1.0");
    if (!root.find("model")) root.fail("model is missing");
    if (root.object("model").boolean("byte_fallback", false)) return check_pieces(root);
    for (const char* key : {"pre_tokenizer", "decoder"})
      if (!root.find(key)) root.fail(key, " is missing");
    if (root.object("decoder").string("type") != "ByteLevel")
      root.fail("decoder.type = ", root.object("decoder").string("type"),
                " is not supported; known is ByteLevel");
    if (const nlohmann::json* normalizer = root.find("normalizer"))
      if (*normalizer !=
          nlohmann::json{{"type", "Sequence"}, {"normalizers", nlohmann::json::array()}})
        root.fail("normalizer = ", json_text(*normalizer), " is not supported; known is none");
  }

  // What surrounds a model with byte_fallback in files converted from SentencePiece.
  static void check_pieces(const ConfigReader& root) {
    const nlohmann::json mark = kSpaceMark, space = " ";
    const nlohmann::json normalizer = {
        {"type", "Sequence"},
        {"normalizers",
         {{{"type", "Prepend"}, {"prepend", mark}},
          {{"type", "Replace"}, {"pattern", {{"String", space}}}, {"content", mark}}}}};
    const nlohmann::json decoder = {
        {"type", "Sequence"},
        {"decoders",
         {{{"type", "Replace"}, {"pattern", {{"String", mark}}}, {"content", space}},
          {{"type", "ByteFallback"}},
          {{"type", "Fuse"}},
          {{"type", "Strip"}, {"content", space}, {"start", 1}, {"stop", 0}}}}};
    if (root.find("pre_tokenizer"))
      root.fail("pre_tokenizer = ", json_text(*root.find("pre_tokenizer")),
                " is not supported with byte_fallback; known is none");
    for (const auto& [key, known] : {std::pair("normalizer", &normalizer), {"decoder", &decoder}}) {
      if (!root.find(key)) root.fail(key, " is missing");
      if (*root.find(key) != *known)
        root.fail(key, " = ", json_text(*root.find(key)),
                  " is not supported with byte_fallback; known is ", json_text(*known));
    }
  }

  // Appends the tokens that `finder` finds in `text` to `ids`, and calls encode_rest with what is
  // between them, in order.
  template <class EncodeRest>
  static void cut_out(const TokenFinder& finder, std::string_view text, std::vector<TokenId>& ids,
                      const EncodeRest& encode_rest) {
    std::size_t done = 0;
    while (const auto match = finder.find(text, done)) {
      encode_rest(text.substr(done, match->begin - done));
      ids.push_back(match->id);
      done = match->end;
    }
    encode_rest(text.substr(done));
  }

  BytePairModel model_;
  Vocabulary vocabulary_;
  TokenFinder as_written_, normalized_;
  std::optional<PreTokenizer> pre_tokenizer_;  // none with pieces
  SpecialTokens special_;
};

}  // namespace mla

#endif  // MLA_TEXT_TOKENIZER_HPP_
