#ifndef MLA_EXAMPLES_PROGRAMS_TOKEN_IDS_HPP_
#define MLA_EXAMPLES_PROGRAMS_TOKEN_IDS_HPP_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "command_line.hpp"
#include "files.hpp"

#include "mla/core/error.hpp"
#include "mla/io/safetensors.hpp"
#include "mla/model/model_config.hpp"

namespace mla::programs {

/// Numbers with commas or white space between them. Throws std::invalid_argument, with `what` in
/// the message, for anything else.
inline std::vector<TokenId> parse_token_ids(std::string_view text, std::string_view what) {
  constexpr std::string_view kBetween = ", \t\r\n";
  std::vector<TokenId> ids;
  for (std::size_t at = text.find_first_not_of(kBetween); at != text.npos;) {
    const std::size_t end = std::min(text.find_first_of(kBetween, at), text.size());
    ids.push_back(parse_number<TokenId>(text.substr(at, end - at), what, 0));
    at = text.find_first_not_of(kBetween, end);
  }
  return ids;
}

/// Where token ids are: a text file of numbers, or a tensor of a safetensors file.
struct TokenIdSource {
  std::string file;
  std::string tensor;  ///< empty for a text file
};

/// Of "ids.txt" or "goldens.safetensors:name". Throws std::invalid_argument.
inline TokenIdSource parse_token_id_source(const std::string& text) {
  constexpr std::string_view kExtension = ".safetensors";
  const std::size_t colon = text.find(std::string(kExtension) + ":");
  if (colon == text.npos) {
    require(!text.ends_with(kExtension), "--ids-from needs the name of a tensor, too: ", text,
            ":NAME");
    return {text, ""};
  }
  const std::size_t end = colon + kExtension.size();
  return {text.substr(0, end), text.substr(end + 1)};
}

/// I32 or I64 of a tensor. Throws std::runtime_error.
inline std::vector<TokenId> read_token_ids(const TokenIdSource& source) {
  if (source.tensor.empty()) {
    const std::string text = read_file(source.file);
    try {
      return parse_token_ids(text, "a token id");
    } catch (const std::invalid_argument& error) {
      throw_runtime(source.file, ": ", error.what());
    }
  }
  const SafetensorsFile file(source.file);
  const SafetensorsTensor& tensor = file.tensor(source.tensor);
  if (tensor.dtype == SafetensorsDType::int32) {
    const auto values = tensor.values<std::int32_t>();
    return {values.begin(), values.end()};
  }
  if (tensor.dtype != SafetensorsDType::int64)
    throw_runtime(source.file, ": tensor ", source.tensor, " has dtype ", name_of(tensor.dtype),
                  ", expected I32 or I64");
  std::vector<TokenId> ids;
  for (const std::int64_t value : tensor.values<std::int64_t>()) {
    if (!std::in_range<TokenId>(value))
      throw_runtime(source.file, ": tensor ", source.tensor, " has ", value, ", which is no token");
    ids.push_back(static_cast<TokenId>(value));
  }
  return ids;
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_TOKEN_IDS_HPP_
