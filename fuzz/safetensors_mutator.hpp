#ifndef MLA_FUZZ_SAFETENSORS_MUTATOR_HPP_
#define MLA_FUZZ_SAFETENSORS_MUTATOR_HPP_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

// libFuzzer knows nothing of a length before a header, nor of JSON within strings of JSON: nearly
// all it makes of a safetensors file by itself is refused at its 8th byte.

namespace mla::fuzz {

inline std::string mutated(std::string text, std::size_t max_size) {
  const std::size_t size = text.size();
  text.resize(std::max(max_size, size));
  text.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(text.data()), size, text.size()));
  return text;
}

/// A header one of whose metadata's texts is changed; as it was where there is none.
inline std::string with_mutated_metadata(const std::string& header, std::size_t max_size,
                                         std::mt19937& random) {
  nlohmann::json json = nlohmann::json::parse(header, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("__metadata__")) return header;
  nlohmann::json& metadata = json["__metadata__"];
  if (!metadata.is_object() || metadata.empty()) return header;
  nlohmann::json& value = *std::next(metadata.begin(), random() % metadata.size());
  if (value.is_string()) value = mutated(value.get<std::string>(), max_size);
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// Changes anything in 1 of 8 cases; otherwise the header, a text in its metadata, or the data, and
/// keeps the length before the header right.
inline std::size_t mutate_safetensors(std::uint8_t* bytes, std::size_t size, std::size_t max_size,
                                      unsigned seed) {
  std::mt19937 random(seed);
  std::uint64_t length = 0;
  constexpr std::size_t kPrefix = sizeof(length);
  const unsigned choice = random() % 8;
  if (size >= kPrefix) std::memcpy(&length, bytes, kPrefix);
  if (size < kPrefix || length > size - kPrefix || max_size < kPrefix || choice == 0)
    return LLVMFuzzerMutate(bytes, size, max_size);
  std::string header(bytes + kPrefix, bytes + kPrefix + length);
  std::string data(bytes + kPrefix + length, bytes + size);
  if (choice == 1)
    data = mutated(data, max_size - kPrefix - header.size());
  else if (choice < 5)
    header = mutated(header, max_size - kPrefix - data.size());
  else
    header = with_mutated_metadata(header, max_size - size + 64, random);
  if (kPrefix + header.size() + data.size() > max_size) return size;
  length = header.size();
  std::memcpy(bytes, &length, kPrefix);
  std::ranges::copy(header + data, bytes + kPrefix);
  return kPrefix + header.size() + data.size();
}

}  // namespace mla::fuzz

#endif  // MLA_FUZZ_SAFETENSORS_MUTATOR_HPP_
