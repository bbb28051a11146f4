#ifndef MLA_EXAMPLES_PROGRAMS_TOKEN_IDS_HPP_
#define MLA_EXAMPLES_PROGRAMS_TOKEN_IDS_HPP_

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
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
    ids.push_back(parse_number<TokenId>(text.substr(at, end - at), what));
    at = text.find_first_not_of(kBetween, end);
  }
  return ids;
}

/// Token ids of a text file, or of a tensor of 32-bit integers, "goldens.safetensors:name".
inline std::vector<TokenId> read_token_ids(const std::string& source) {
  constexpr std::string_view kExtension = ".safetensors:";
  const std::size_t extension = source.find(kExtension);
  if (extension == source.npos) return parse_token_ids(read_file(source), source);
  const std::size_t colon = extension + kExtension.size() - 1;
  const SafetensorsFile file(source.substr(0, colon));
  const auto values = file.tensor(source.substr(colon + 1)).values<TokenId>();
  return {values.begin(), values.end()};
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_TOKEN_IDS_HPP_
