#ifndef MLA_IO_SAFETENSORS_WRITER_HPP_
#define MLA_IO_SAFETENSORS_WRITER_HPP_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/json.hpp"
#include "mla/io/safetensors.hpp"

namespace mla {

/// A tensor that is to be written, row-major. Its bytes may lie in several places, as the pages of
/// a cache do.
struct SafetensorsSource {
  std::string name;
  SafetensorsDType dtype = SafetensorsDType::float32;
  std::vector<Index> shape;
  std::vector<std::span<const std::byte>> parts = {};
};

/// The beginning of a safetensors file, up to its data: that of `tensors` in their order. The data
/// begins at a multiple of 8 bytes. Throws std::invalid_argument for text that is not UTF-8.
inline std::string safetensors_header(
    const std::vector<SafetensorsSource>& tensors,
    const std::map<std::string, std::string, std::less<>>& metadata) {
  const auto quoted = [](const std::string& text) {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception& error) {
      throw_invalid("a safetensors header holds UTF-8 text: ", json_error_text(error));
    }
  };
  // By hand: nlohmann::json leaks memory where it cannot get enough for an object.
  std::string text = "{\"__metadata__\":{";
  for (const auto& [name, value] : metadata) {
    if (text.back() != '{') text += ',';
    text += quoted(name) + ":" + quoted(value);
  }
  text += "}";
  Index begin = 0;
  for (const SafetensorsSource& tensor : tensors) {
    Index bytes = bytes_of(tensor.dtype);
    for (const Index dim : tensor.shape) bytes *= dim;
    text += "," + quoted(tensor.name) + ":{\"dtype\":\"" + std::string(name_of(tensor.dtype)) +
            "\",\"shape\":" + shape_text(tensor.shape) +
            ",\"data_offsets\":" + shape_text({begin, begin + bytes}) + "}";
    begin += bytes;
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = text.size();
  std::string header(sizeof(length), '\0');
  std::memcpy(header.data(), &length, sizeof(length));
  return header + text;
}

}  // namespace mla

#endif  // MLA_IO_SAFETENSORS_WRITER_HPP_
