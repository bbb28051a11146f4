#ifndef MLA_EXAMPLES_CONFORMANCE_GENERATED_TENSOR_HPP_
#define MLA_EXAMPLES_CONFORMANCE_GENERATED_TENSOR_HPP_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/json.hpp"

// Tensors that a case file does not store but describes: pseudo-random bfloat16 numbers that every
// implementation can make, bit for bit. See docs/conformance.md.

namespace mla::conformance {

/// One entry of the metadata's `generator`.
struct GeneratedTensor {
  std::string name;
  std::vector<Index> shape;
  std::uint64_t seed = 0;
  bool norm = false;   ///< a norm's weight, in [0.5, 1.5)
  float scale = 0.0f;  ///< otherwise in [-scale, scale)
  std::uint64_t checksum = 0;
};

/// Steele, Lea and Flood 2014: output number `z` of the generator, in any order.
constexpr std::uint64_t splitmix64(std::uint64_t z) noexcept {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

namespace detail {

inline const nlohmann::json& field(const nlohmann::json& object, const char* key,
                                   const std::string& where) {
  if (!object.is_object() || !object.contains(key)) throw_runtime(where, ".", key, " is missing");
  return object[key];
}

// "0x0019010000000000"
inline std::uint64_t read_hex(const nlohmann::json& value, const std::string& where) {
  const std::string& text = json_string(value, where);
  char* end = nullptr;
  const std::uint64_t number = std::strtoull(text.c_str(), &end, 16);
  if (!text.starts_with("0x") || text.size() > 18 || *end != '\0')
    throw_runtime(where, " must be a hexadecimal number of up to 64 bits, got ", json_text(value));
  return number;
}

// "0x1.83091e0000000p-7" or decimal.
inline float read_float(const nlohmann::json& value, const std::string& where) {
  const std::string& text = json_string(value, where);
  char* end = nullptr;
  const float number = std::strtof(text.c_str(), &end);
  if (text.empty() || *end != '\0')
    throw_runtime(where, " must be a number, got ", json_text(value));
  return number;
}

}  // namespace detail

/// Throws std::runtime_error beginning with `origin`, the file's path, for what does not fit.
inline GeneratedTensor read_generated_tensor(const nlohmann::json& entry,
                                             const std::string& origin) {
  using detail::field;
  GeneratedTensor tensor;
  tensor.name = json_string(field(entry, "name", origin + ": generator"), origin + ": generator");
  const std::string where = origin + ": generator of " + tensor.name;
  if (!field(entry, "shape", where).is_array())
    throw_runtime(where, ".shape must be a list, got ", json_text(entry["shape"]));
  Index elements = 1;
  for (const auto& dim : entry["shape"]) {
    tensor.shape.push_back(json_size(dim, where + ".shape"));
    if (__builtin_mul_overflow(elements, tensor.shape.back(), &elements) || elements >> 40 != 0)
      throw_runtime(where, ".shape ", json_text(entry["shape"]), " has more than 2^40 elements");
  }
  tensor.seed = detail::read_hex(field(entry, "seed", where), where + ".seed");
  tensor.norm = json_bool(field(entry, "norm", where), where + ".norm");
  if (!json_bool(field(entry, "bf16", where), where + ".bf16"))
    throw_runtime(where, ".bf16 must be true: the checksum is one of bfloat16 numbers");
  if (!tensor.norm) {
    const char* scale = entry.contains("scale_hex") ? "scale_hex" : "scale";
    tensor.scale = detail::read_float(field(entry, scale, where), where + "." + scale);
  }
  tensor.checksum = detail::read_hex(field(entry, "checksum", where), where + ".checksum");
  return tensor;
}

inline std::string hex_text(std::uint64_t number) {
  std::ostringstream text;
  text << "0x" << std::hex << number;
  return text.str();
}

/// The elements, row-major. Throws std::runtime_error if they do not have the promised checksum.
inline AlignedBuffer<bfloat16> generate(const GeneratedTensor& tensor, const std::string& origin) {
  std::size_t elements = 1;
  for (const Index dim : tensor.shape) elements *= static_cast<std::size_t>(dim);
  AlignedBuffer<bfloat16> values(elements);
  std::uint64_t checksum = 0;
  for (std::uint64_t i = 0; i < elements; ++i) {
    const auto top = static_cast<std::uint32_t>(splitmix64(tensor.seed + i) >> 32);
    const float u = static_cast<float>(top >> 8) * 0x1p-23f - 1.0f;  // exact, in [-1, 1)
    values[i] = bfloat16(tensor.norm ? 1.0f + 0.5f * u : u * tensor.scale);
    checksum += values[i].bits * (2 * i + 1);
  }
  if (checksum != tensor.checksum)
    throw_runtime(origin, ": generated tensor ", tensor.name, " has checksum ", hex_text(checksum),
                  ", the file says ", hex_text(tensor.checksum));
  return values;
}

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_GENERATED_TENSOR_HPP_
