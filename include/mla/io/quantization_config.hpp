#ifndef MLA_IO_QUANTIZATION_CONFIG_HPP_
#define MLA_IO_QUANTIZATION_CONFIG_HPP_

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"

namespace mla {

/// How matrices of a model are quantised: their format, and the rows and columns that share a
/// scale.
struct WeightScheme {
  WeightFormat format = WeightFormat::fp8_e4m3;
  Index block_rows = 1;  ///< 0: all
  Index block_cols = 0;  ///< 0: all
  bool zero_points = false;

  bool operator==(const WeightScheme&) const = default;
};

/// quantization_config of a config.json. Which matrices it is about is seen in the files: a matrix
/// has the format that its tensors have, and its scales must be those of one of the schemes.
struct QuantizationConfig {
  std::vector<WeightScheme> schemes;

  bool has(WeightFormat format) const {
    return std::ranges::any_of(schemes, [&](const auto& s) { return s.format == format; });
  }
};

namespace detail {

class QuantizationReader {
 public:
  explicit QuantizationReader(const ConfigReader& config) : config_(config) {}

  QuantizationConfig read() const {
    const std::string& method = config_.string("quant_method");
    if (method == "fp8" || method == "blockwise_int8") return {{read_blocks(method)}};
    if (method == "w8a8_int8") return {{{WeightFormat::int8, 1, 0}}};  // a scale per row
    if (method == "compressed-tensors") return read_groups();
    config_.fail("quant_method must be fp8, compressed-tensors, blockwise_int8 or w8a8_int8, got ",
                 method);
  }

 private:
  using Keys = std::initializer_list<std::string_view>;
  static void refuse_others(const ConfigReader& config, Keys known) {
    config.refuse_keys_besides({ConfigReader::Keys(known.begin(), known.size())}, true, "");
  }

  // DeepSeek-V3 and what was made after it. activation_scheme and scale_fmt speak of activations,
  // which are not quantised here.
  WeightScheme read_blocks(const std::string& method) const {
    refuse_others(config_, {"quant_method", "fmt", "weight_block_size", "activation_scheme",
                            "scale_fmt", "modules_to_not_convert", "ignored_layers"});
    if (config_.find("fmt") && config_.string("fmt") != "e4m3")
      config_.fail("fmt must be e4m3, got ", config_.string("fmt"));
    if (config_.find("scale_fmt") && config_.string("scale_fmt") != "ue8m0")
      config_.fail("scale_fmt must be ue8m0, got ", config_.string("scale_fmt"));
    const nlohmann::json* size = config_.find("weight_block_size");
    const auto [rows, cols] =
        size ? read_block(config_, "weight_block_size", *size) : std::array<Index, 2>{128, 128};
    return {method == "fp8" ? WeightFormat::fp8_e4m3 : WeightFormat::int8, rows, cols};
  }

  QuantizationConfig read_groups() const {
    refuse_others(config_, {"quant_method", "format", "config_groups", "ignore",
                            "quantization_status", "global_compression_ratio", "version",
                            "packed_modules_mapping", "sparsity_config", "transform_config"});
    for (const char* key : {"sparsity_config", "transform_config"})
      if (const nlohmann::json* value = config_.find(key); value && !value->empty())
        config_.fail(key, " = ", json_text(*value), " is not supported");
    const std::string format = config_.string("format");
    const nlohmann::json* groups = config_.find("config_groups");
    if (!groups || !groups->is_object() || groups->empty())
      config_.fail("config_groups must be an object with groups, got ",
                   groups ? json_text(*groups) : "nothing");
    QuantizationConfig result;
    for (const auto& [name, value] : groups->items()) {
      const ConfigReader group = config_.object("config_groups").object(name.c_str());
      refuse_others(group,
                    {"targets", "weights", "input_activations", "output_activations", "format"});
      const std::string own = group.find("format") ? group.string("format") : format;
      result.schemes.push_back(read_weights(group.object("weights"), own));
    }
    return result;
  }

  static WeightScheme read_weights(const ConfigReader& weights, const std::string& format) {
    refuse_others(
        weights, {"num_bits", "type", "symmetric", "strategy", "group_size", "block_structure",
                  "dynamic", "actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"});
    refuse_activation_order(weights);
    if (weights.boolean("dynamic", false)) weights.fail("dynamic must be false, got true");
    WeightScheme scheme;
    scheme.format = read_format(weights, format);
    read_strategy(weights, scheme);
    scheme.zero_points = !weights.boolean("symmetric", true);
    if (scheme.zero_points && (scheme.format != WeightFormat::int4 || scheme.block_rows != 1))
      weights.fail("symmetric must be true for ", name_of(scheme.format), " weights of strategy ",
                   weights.string("strategy"), ", got false");
    return scheme;
  }

  // "weight" and "static" leave inputs in their places; a permutation of them needs a g_idx.
  static void refuse_activation_order(const ConfigReader& weights) {
    const nlohmann::json* order = weights.find("actorder");
    if (order && *order != false && *order != "weight" && *order != "static")
      weights.fail("actorder = ", json_text(*order), " is not supported: inputs in another order");
  }

  static WeightFormat read_format(const ConfigReader& weights, const std::string& format) {
    struct Known {
      std::string_view format, type;
      Index bits;
      WeightFormat weight;
    };
    constexpr Known kKnown[] = {
        {"pack-quantized", "int", 4, WeightFormat::int4},
        {"int-quantized", "int", 8, WeightFormat::int8},
        {"naive-quantized", "int", 8, WeightFormat::int8},
        {"float-quantized", "float", 8, WeightFormat::fp8_e4m3},
        {"naive-quantized", "float", 8, WeightFormat::fp8_e4m3},
        {"mxfp8-quantized", "float", 8, WeightFormat::fp8_e4m3},
        {"mxfp4-pack-quantized", "float", 4, WeightFormat::fp4_e2m1},
        {"nvfp4-pack-quantized", "float", 4, WeightFormat::fp4_e2m1},
    };
    const std::string& type = weights.string("type");
    const Index bits = weights.size("num_bits");
    for (const Known& known : kKnown)
      if (known.format == format && known.type == type && known.bits == bits) return known.weight;
    weights.fail("num_bits = ", bits, " of type ", type, " in format ", format,
                 " is not supported");
  }

  static void read_strategy(const ConfigReader& weights, WeightScheme& scheme) {
    const std::string& strategy = weights.string("strategy");
    if (strategy == "tensor") {
      scheme.block_rows = scheme.block_cols = 0;
    } else if (strategy == "channel") {
      scheme.block_cols = 0;
    } else if (strategy == "group" || strategy == "tensor_group") {
      scheme.block_cols = weights.size("group_size");
      if (scheme.block_cols < 1 || scheme.block_cols > kMaxBlock)
        weights.fail("group_size must be a positive integer, got ", scheme.block_cols);
    } else if (strategy == "block") {
      const nlohmann::json* size = weights.find("block_structure");
      if (!size) weights.fail("block_structure is missing");
      const auto [rows, cols] = read_block(weights, "block_structure", *size);
      scheme.block_rows = rows;
      scheme.block_cols = cols;
    } else {
      weights.fail("strategy must be tensor, channel, group, tensor_group or block, got ",
                   strategy);
    }
  }

  // [128, 128]
  static std::array<Index, 2> read_block(const ConfigReader& config, const char* key,
                                         const nlohmann::json& value) {
    const auto valid = [](const nlohmann::json& size) {
      return size.is_number_integer() && size > 0 && size <= kMaxBlock;
    };
    if (!value.is_array() || value.size() != 2 || !std::ranges::all_of(value, valid))
      config.fail(key, " must be two positive integers, got ", json_text(value));
    return {value[0].get<Index>(), value[1].get<Index>()};
  }

  static constexpr Index kMaxBlock = Index{1} << 24;

  const ConfigReader& config_;
};

}  // namespace detail

/// The quantization_config of a parsed config.json or its text_config, no schemes where it has
/// none. Throws std::runtime_error beginning with `origin`, the file's path, that names the key
/// which is not understood.
inline QuantizationConfig read_quantization_config(const nlohmann::json& json,
                                                   const std::string& origin = "config.json") {
  const ConfigReader config(json, origin + ": ");
  // A language model in a larger one has its keys in text_config.
  if (!config.find("quantization_config") && config.find("text_config"))
    return read_quantization_config(json["text_config"], origin + ": text_config");
  if (!config.find("quantization_config")) return {};
  const ConfigReader quantization = config.object("quantization_config");
  return detail::QuantizationReader(quantization).read();
}

}  // namespace mla

#endif  // MLA_IO_QUANTIZATION_CONFIG_HPP_
