#ifndef MLA_TEXT_SMALL_TOKENIZER_HPP_
#define MLA_TEXT_SMALL_TOKENIZER_HPP_

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mla/text/byte_level.hpp"
#include "mla/text/tokenizer.hpp"
#include "support/safetensors_writer.hpp"

namespace mla::test {

/// The tokenizer.json of 256 bytes (ids as the bytes), "ab" (256), "abc" (257), "Ġa" (258), and the
/// added tokens "<s>" (259, special), "<sep>" (260, special) and "<u>" (261, not special,
/// normalized).
inline nlohmann::json small_tokenizer_json() {
  nlohmann::json vocab = {{"ab", 256}, {"abc", 257}, {"\u0120a", 258}};
  for (int byte = 0; byte < 256; ++byte)
    vocab[byte_level_text(std::string(1, static_cast<char>(byte)))] = byte;
  const auto added = [](int id, const char* text, bool special) {
    return nlohmann::json{{"id", id},          {"content", text}, {"single_word", false},
                          {"lstrip", false},   {"rstrip", false}, {"normalized", !special},
                          {"special", special}};
  };
  return {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens",
       {added(259, "<s>", true), added(260, "<sep>", true), added(261, "<u>", false)}},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"vocab", vocab},
        {"merges", {"a b", nlohmann::json::array({"ab", "c"}), "\u0120 a"}}}}};
}

/// A directory of tokenizer files.
class TokenizerDirectory {
 public:
  TokenizerDirectory& write(const char* name, const nlohmann::json& json) {
    write_file(directory_ / name, json.dump());
    return *this;
  }
  const std::filesystem::path& path() const { return directory_.path(); }

 private:
  TemporaryDirectory directory_;
};

inline Tokenizer open_tokenizer(const nlohmann::json& json) {
  return Tokenizer(TokenizerDirectory().write("tokenizer.json", json).path());
}

using Ids = std::vector<std::int32_t>;

}  // namespace mla::test

#endif  // MLA_TEXT_SMALL_TOKENIZER_HPP_
