#ifndef MLA_IO_QUANTIZATION_CONFIG_HPP_
#define MLA_IO_QUANTIZATION_CONFIG_HPP_

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "mla/core/tensor.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/fp8.hpp"
#include "mla/io/json.hpp"

namespace mla {

/// The block size of F8_E4M3 weights, quantization_config.weight_block_size; 128 x 128 when the
/// config does not say. Throws std::runtime_error beginning with `origin`, the file's path.
inline BlockSize read_weight_block_size(const nlohmann::json& json,
                                        const std::string& origin = "config.json") {
  constexpr Index kMaxBlock = Index{1} << 24;
  const ConfigReader config(json, origin + ": ");
  if (!config.find("quantization_config")) return kDefaultWeightBlockSize;
  const ConfigReader quantization = config.object("quantization_config");
  for (const auto& [key, supported] : {std::pair("quant_method", "fp8"), std::pair("fmt", "e4m3")})
    if (quantization.find(key) && quantization.string(key) != supported)
      quantization.fail(std::string(key) + " must be " + supported + ", got " +
                        quantization.string(key));
  const nlohmann::json* value = quantization.find("weight_block_size");
  if (!value) return kDefaultWeightBlockSize;
  const auto valid = [](const nlohmann::json& size) {
    return size.is_number_integer() && size > 0 && size <= kMaxBlock;
  };
  if (!value->is_array() || value->size() != 2 || !std::ranges::all_of(*value, valid))
    quantization.fail("weight_block_size must be two positive integers, got ", json_text(*value));
  return {(*value)[0].get<Index>(), (*value)[1].get<Index>()};
}

}  // namespace mla

#endif  // MLA_IO_QUANTIZATION_CONFIG_HPP_
