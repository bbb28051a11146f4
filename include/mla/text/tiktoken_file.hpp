#ifndef MLA_TEXT_TIKTOKEN_FILE_HPP_
#define MLA_TEXT_TIKTOKEN_FILE_HPP_

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"
#include "mla/io/mapped_file.hpp"

// tiktoken.model, as Moonlight and Kimi K2 have it in place of tokenizer.json: a token per line,
// its bytes in base64 and its rank, which is its id. What else their tokenizer does is in Python
// beside it (tokenization_moonshot.py, tokenization_kimi.py) and written down here.

namespace mla::detail {

/// None where `text` is not base64 with padding.
inline std::optional<std::string> base64_bytes(std::string_view text) {
  static constexpr auto kValues = [] {
    std::array<std::int8_t, 256> values{};
    values.fill(-1);
    constexpr std::string_view kAlphabet =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (std::size_t i = 0; i < kAlphabet.size(); ++i)
      values[static_cast<std::uint8_t>(kAlphabet[i])] = static_cast<std::int8_t>(i);
    return values;
  }();
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  text.remove_suffix(padding);
  std::string bytes;
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const std::int8_t value = kValues[static_cast<std::uint8_t>(c)];
    if (value < 0) return std::nullopt;
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 0xff);
  }
  return bytes;
}

/// The tokens of the file, by rank. Throws std::runtime_error naming the file and the line.
inline std::vector<std::string> read_tiktoken_file(const std::filesystem::path& path) {
  constexpr std::size_t kMostTokens = std::size_t{1} << 24;
  const MappedFile file(path);
  std::string_view rest(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  std::vector<std::string> tokens;
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    const auto fail = [&](const auto&... parts) {
      throw_runtime(file.path(), ": line ", tokens.size() + 1, " ", parts...);
    };
    const std::size_t space = line.find(' ');
    if (space == line.npos) fail("must be a token in base64, a space and its rank");
    std::optional<std::string> bytes = base64_bytes(line.substr(0, space));
    if (!bytes || bytes->empty()) fail("has no token in base64");
    std::size_t rank = 0;
    const char* const end = line.data() + line.size();
    const auto [at, error] = std::from_chars(line.data() + space + 1, end, rank);
    if (error != std::errc() || at != end || rank != tokens.size())
      fail("must have rank ", tokens.size(), ", got ", line.substr(space + 1));
    if (tokens.size() == kMostTokens) fail("is one too many");
    tokens.push_back(std::move(*bytes));
  }
  return tokens;
}

/// How texts are cut into words: pat_str of the published Python, whose intersections of classes
/// are written as look-aheads.
inline constexpr std::string_view kMoonshotWords =
    R"(\p{Han}+)"
    R"(|[^\r\n\p{L}\p{N}]?(?:(?!\p{Han})[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])*)"
    R"((?:(?!\p{Han})[\p{Ll}\p{Lm}\p{Lo}\p{M}])+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?(?:(?!\p{Han})[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])+)"
    R"((?:(?!\p{Han})[\p{Ll}\p{Lm}\p{Lo}\p{M}])*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// All but the model, as a tokenizer.json would say it. The published class makes 258 special
/// tokens after the others; those that tokenizer_config.json does not name are reserved. Throws
/// std::runtime_error naming the file and the field that is not as it must be.
inline nlohmann::json moonshot_tokenizer(const nlohmann::json& tokenizer_config,
                                         const std::string& where, std::size_t tokens) {
  constexpr std::size_t kSpecial = 256 + 2;
  const ConfigReader config(tokenizer_config, where);
  if (config.string("tokenizer_class") != "TikTokenTokenizer")
    config.fail("tokenizer_class = ", config.string("tokenizer_class"),
                " is not supported with tiktoken.model; TikTokenTokenizer is");
  nlohmann::json names = nlohmann::json::object();
  if (config.find("added_tokens_decoder")) names = config.object("added_tokens_decoder").json();
  std::size_t used = 0;
  nlohmann::json added = nlohmann::json::array();
  for (std::size_t id = tokens; id < tokens + kSpecial; ++id) {
    const std::string number = std::to_string(id);
    std::string text = "<|reserved_token_" + number + "|>";
    if (const auto named = names.find(number); named != names.end()) {
      text = ConfigReader(*named, where + "added_tokens_decoder." + number + ".").string("content");
      ++used;
    }
    added.push_back({{"id", id}, {"content", text}, {"normalized", false}, {"special", true}});
  }
  if (used != names.size())
    config.fail("added_tokens_decoder has ", names.size() - used, " ids that are not between ",
                tokens, " and ", tokens + kSpecial - 1);
  return {
      {"added_tokens", added},
      {"pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", kMoonshotWords}}}, {"behavior", "Isolated"}},
          {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", nlohmann::json::object()}};
}

}  // namespace mla::detail

#endif  // MLA_TEXT_TIKTOKEN_FILE_HPP_
