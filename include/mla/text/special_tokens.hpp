#ifndef MLA_TEXT_SPECIAL_TOKENS_HPP_
#define MLA_TEXT_SPECIAL_TOKENS_HPP_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/token.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"
#include "mla/text/vocabulary.hpp"

namespace mla {

/// Which tokens begin and end a text, and whether the first is added to every text. Where several
/// files speak of one of them:
///   bos       bos_token of tokenizer_config.json, else the post_processor's, else bos_token_id of
///             generation_config.json
///   eos       eos_token_id of generation_config.json, what generation stops at, perhaps several;
///             else eos_token of tokenizer_config.json
///   adds_bos  add_bos_token of tokenizer_config.json, else whether the post_processor adds one
struct SpecialTokens {
  std::optional<TokenId> bos;
  std::vector<TokenId> eos;
  bool adds_bos = false;
};

namespace detail {

/// The parsed files of a tokenizer; those that there are not are null.
// NOLINTNEXTLINE(bugprone-exception-escape): nlohmann's own move constructor
struct TokenizerFiles {
  std::string tokenizer_path;  // of the file itself
  std::string directory;       // with a slash at the end
  nlohmann::json tokenizer, tokenizer_config, generation_config;
  std::vector<std::string> ranked_tokens;  // of tiktoken.model; then `tokenizer` has no model
};

class SpecialTokensReader {
 public:
  SpecialTokensReader(const TokenizerFiles& files, const Vocabulary& vocabulary)
      : files_(files), vocabulary_(vocabulary) {}

  /// Throws std::runtime_error naming the file and the field that is refused.
  SpecialTokens read() {
    const auto post_processor = files_.tokenizer.find("post_processor");
    if (post_processor != files_.tokenizer.end() && !post_processor->is_null())
      read_post_processor(*post_processor, files_.tokenizer_path + ": post_processor");
    if (!files_.tokenizer_config.is_null()) read_tokenizer_config();
    if (!files_.generation_config.is_null()) read_generation_config();
    if (tokens_.adds_bos && !tokens_.bos)
      throw_runtime(files_.directory, "tokenizer_config.json: add_bos_token without a bos_token");
    return tokens_;
  }

 private:
  // ByteLevel only moves offsets, which are not kept here.
  void read_post_processor(const nlohmann::json& value, const std::string& where) {
    const ConfigReader processor(value, where + ".");
    const std::string& type = processor.string("type");
    if (type == "ByteLevel") return;
    if (type == "TemplateProcessing") return read_template(processor, where);
    if (type != "Sequence")
      processor.fail("type = ", type,
                     " is not supported; known are ByteLevel, TemplateProcessing and Sequence");
    const nlohmann::json* all = processor.find("processors");
    if (!all || !all->is_array()) processor.fail("processors must be an array");
    for (const nlohmann::json& one : *all) read_post_processor(one, where + ".processors");
  }

  // {"single": [{"SpecialToken": {"id": "<bos>"}}, {"Sequence": {"id": "A"}}]}
  void read_template(const ConfigReader& processor, const std::string& where) {
    const nlohmann::json* single = processor.find("single");
    if (!single || !single->is_array() || single->empty() || single->size() > 2)
      processor.fail("single must be a text, perhaps with one token before it");
    const ConfigReader text(single->back(), where + ".single.");
    if (!text.find("Sequence")) text.fail("a token after the text is not supported");
    if (single->size() == 1) return;
    const ConfigReader first(single->front(), where + ".single.");
    tokens_.bos = token(first.object("SpecialToken").string("id"), where + ".single");
    tokens_.adds_bos = true;
  }

  void read_tokenizer_config() {
    const std::string where = files_.directory + "tokenizer_config.json: ";
    const ConfigReader config(files_.tokenizer_config, where);
    if (config.boolean("add_eos_token", false)) config.fail("add_eos_token true is not supported");
    tokens_.adds_bos = config.boolean("add_bos_token", tokens_.adds_bos);
    if (const auto bos = named_token(config, "bos_token", where)) tokens_.bos = bos;
    if (const auto eos = named_token(config, "eos_token", where)) tokens_.eos = {*eos};
    if (config.find("added_tokens_decoder")) check_added_tokens(config, where);
  }

  // {"0": {"content": "<bos>", ...}}: repeats added_tokens. One that tokenizer.json does not have
  // would be added to it by Hugging Face's transformers.
  void check_added_tokens(const ConfigReader& config, const std::string& where) const {
    const nlohmann::json& added = *config.find("added_tokens_decoder");
    if (!added.is_object()) config.fail("added_tokens_decoder must be an object");
    for (const auto& [id, value] : added.items()) {
      const std::string here = where + "added_tokens_decoder." + id;
      const std::string& text = ConfigReader(value, here + ".").string("content");
      const TokenId known = token(text, here);
      if (std::to_string(known) != id)
        throw_runtime(here, ": token ", text, " has the id ", known, " in tokenizer.json");
    }
  }

  void read_generation_config() {
    const std::string where = files_.directory + "generation_config.json: ";
    const ConfigReader config(files_.generation_config, where);
    if (const nlohmann::json* bos = config.find("bos_token_id"); bos && !tokens_.bos)
      tokens_.bos = token(*bos, where + "bos_token_id");
    const nlohmann::json* eos = config.find("eos_token_id");
    if (!eos) return;
    tokens_.eos.clear();
    if (!eos->is_array()) tokens_.eos.push_back(token(*eos, where + "eos_token_id"));
    if (eos->is_array())
      for (const nlohmann::json& one : *eos)
        tokens_.eos.push_back(token(one, where + "eos_token_id"));
  }

  // A string, or an object whose "content" it is.
  std::optional<TokenId> named_token(const ConfigReader& config, const char* key,
                                     const std::string& where) const {
    const nlohmann::json* value = config.find(key);
    if (!value) return std::nullopt;
    const std::string& text = value->is_object() ? config.object(key).string("content")
                                                 : json_string(*value, where + key);
    return token(text, where + key);
  }

  TokenId token(const std::string& text, const std::string& where) const {
    const auto id = vocabulary_.find(text);
    if (!id) throw_runtime(where, ": token ", text, " is not in the vocabulary");
    return *id;
  }

  TokenId token(const nlohmann::json& value, const std::string& where) const {
    const TokenId id = read_token_id(value, where);
    if (!vocabulary_.contains(id))
      throw_runtime(where, ": token ", id, " is not in the vocabulary of ", vocabulary_.size());
    return id;
  }

  const TokenizerFiles& files_;
  const Vocabulary& vocabulary_;
  SpecialTokens tokens_;
};

}  // namespace detail

}  // namespace mla

#endif  // MLA_TEXT_SPECIAL_TOKENS_HPP_
