#include "mla/io/quantization_config.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/safetensors_writer.hpp"

namespace mla {
namespace {

using nlohmann::json;
using test::fails_naming;

// As in deepseek-ai/DeepSeek-V3.1, with other blocks.
json fp8_blocks() {
  return {{"quantization_config",
           {{"activation_scheme", "dynamic"},
            {"fmt", "e4m3"},
            {"quant_method", "fp8"},
            {"scale_fmt", "ue8m0"},
            {"weight_block_size", {64, 32}}}}};
}

// As in moonshotai/Kimi-K2-Thinking.
json int4_groups() {
  return json::parse(R"({"quantization_config": {"config_groups": {"group_0": {
      "input_activations": null, "output_activations": null, "targets": ["Linear"],
      "weights": {"actorder": null, "block_structure": null, "dynamic": false, "group_size": 32,
        "num_bits": 4, "observer": "minmax", "observer_kwargs": {}, "strategy": "group",
        "symmetric": true, "type": "int"}}},
    "format": "pack-quantized", "ignore": ["lm_head", "re:.*self_attn.*"], "kv_cache_scheme": null,
    "quant_method": "compressed-tensors", "quantization_status": "compressed"}})");
}
json& weights_of(json& config) {
  return config["quantization_config"]["config_groups"]["group_0"]["weights"];
}

std::vector<WeightScheme> schemes_of(const json& config) {
  return read_quantization_config(config).schemes;
}

testing::AssertionResult refuses_quantization(const json& config, std::vector<std::string> parts) {
  parts.push_back("m/config.json: ");
  return fails_naming([&] { read_quantization_config(config, "m/config.json"); }, parts);
}

using Schemes = std::vector<WeightScheme>;

TEST(QuantizationConfig, Fp8HasBlocksOf128UnlessItSaysOtherwise) {
  json config = fp8_blocks();
  EXPECT_EQ(schemes_of(config), (Schemes{{WeightFormat::fp8_e4m3, 64, 32}}));
  config["quantization_config"].erase("weight_block_size");
  EXPECT_EQ(schemes_of(config), (Schemes{{WeightFormat::fp8_e4m3, 128, 128}}));
}

TEST(QuantizationConfig, NothingIsQuantisedWithoutIt) {
  EXPECT_EQ(schemes_of({{"quantization_config", nullptr}}), Schemes());
  EXPECT_EQ(schemes_of(json::object()), Schemes());
}

TEST(QuantizationConfig, ItMayBeThatOfALanguageModelInALargerOne) {
  EXPECT_EQ(schemes_of({{"text_config", int4_groups()}}), (Schemes{{WeightFormat::int4, 1, 32}}));
  EXPECT_EQ(schemes_of({{"text_config", json::object()}}), Schemes());
}

TEST(QuantizationConfig, Int8HasBlocksOrAScalePerRow) {
  const auto of_method = [](const char* method) {
    return json{{"quantization_config",
                 {{"quant_method", method},
                  {"activation_scheme", "dynamic"},
                  {"weight_block_size", {128, 128}}}}};
  };
  EXPECT_EQ(schemes_of(of_method("blockwise_int8")), (Schemes{{WeightFormat::int8, 128, 128}}));
  EXPECT_EQ(schemes_of({{"quantization_config", {{"quant_method", "w8a8_int8"}}}}),
            (Schemes{{WeightFormat::int8, 1, 0}}));
}

TEST(QuantizationConfig, EveryStrategyAndFormatOfCompressedTensorsIsRead) {
  json config = int4_groups();
  EXPECT_EQ(schemes_of(config), (Schemes{{WeightFormat::int4, 1, 32}}));
  weights_of(config).update({{"symmetric", false}, {"group_size", 128}});
  EXPECT_EQ(schemes_of(config), (Schemes{{WeightFormat::int4, 1, 128, true}}));
  weights_of(config).update({{"symmetric", true}, {"strategy", "channel"}, {"group_size", -1}});
  EXPECT_EQ(schemes_of(config), (Schemes{{WeightFormat::int4, 1, 0}}));
  config["quantization_config"]["format"] = "int-quantized";
  weights_of(config)["num_bits"] = 8;
  EXPECT_EQ(schemes_of(config), (Schemes{{WeightFormat::int8, 1, 0}}));
  weights_of(config).update({{"strategy", "block"}, {"block_structure", {128, 64}}});
  EXPECT_EQ(schemes_of(config), (Schemes{{WeightFormat::int8, 128, 64}}));
  config["quantization_config"]["format"] = "float-quantized";
  weights_of(config).update({{"strategy", "tensor"}, {"type", "float"}});
  EXPECT_EQ(schemes_of(config), (Schemes{{WeightFormat::fp8_e4m3, 0, 0}}));
  config["quantization_config"]["format"] = "nvfp4-pack-quantized";
  weights_of(config).update({{"strategy", "tensor_group"}, {"num_bits", 4}, {"group_size", 16}});
  EXPECT_EQ(schemes_of(config), (Schemes{{WeightFormat::fp4_e2m1, 1, 16}}));
}

TEST(QuantizationConfig, GroupsOfAMixedModelHaveFormatsOfTheirOwn) {
  json config = int4_groups();
  json& quantization = config["quantization_config"];
  json& groups = quantization["config_groups"];
  quantization["format"] = "mixed-precision";
  groups["group_1"] = groups["group_0"];
  groups["group_0"]["format"] = "pack-quantized";
  groups["group_1"]["format"] = "int-quantized";
  groups["group_1"]["weights"].update({{"num_bits", 8}, {"strategy", "channel"}});
  EXPECT_EQ(schemes_of(config), (Schemes{{WeightFormat::int4, 1, 32}, {WeightFormat::int8, 1, 0}}));
  groups["group_1"].erase("format");
  EXPECT_TRUE(refuses_quantization(config, {"group_1.weights", "mixed-precision"}));
}

TEST(QuantizationConfig, RefusesABlockSizeThatIsNone) {
  for (const char* text : {"128", "[128]", "[0, 128]", "[128, -1]", "[128, 128.0]", "[1, \"1\"]",
                           "[128, 9223372036854775807]", "[128, 18446744073709551615]"}) {
    json config = fp8_blocks();
    config["quantization_config"]["weight_block_size"] = json::parse(text);
    EXPECT_TRUE(refuses_quantization(config, {"quantization_config.weight_block_size"})) << text;
  }
}

TEST(QuantizationConfig, RefusesWhatItDoesNotKnowByName) {
  EXPECT_TRUE(
      refuses_quantization({{"quantization_config", "fp8"}}, {"quantization_config", "fp8"}));
  const auto refuses = [](const char* key, const json& value, std::vector<std::string> parts) {
    json config = fp8_blocks();
    config["quantization_config"][key] = value;
    parts.push_back(std::string("quantization_config.") + key);
    return refuses_quantization(config, parts);
  };
  EXPECT_TRUE(refuses("quant_method", "gptq", {"fp8", "gptq"}));
  EXPECT_TRUE(refuses("fmt", "e5m2", {"e4m3", "e5m2"}));
  EXPECT_TRUE(refuses("scale_fmt", "log", {"ue8m0", "log"}));
  EXPECT_TRUE(refuses("rotation", "hadamard", {"hadamard"}));
}

TEST(QuantizationConfig, RefusesKeysOfCompressedTensorsThatChangeTheWeights) {
  const auto refuses_weights = [](const json& changes, const std::vector<std::string>& parts) {
    json config = int4_groups();
    weights_of(config).update(changes);
    return refuses_quantization(config, parts);
  };
  EXPECT_TRUE(refuses_weights({{"actorder", "group"}}, {"weights.actorder", "group"}));
  EXPECT_TRUE(refuses_weights({{"actorder", true}}, {"weights.actorder", "true"}));
  EXPECT_TRUE(refuses_weights({{"dynamic", true}}, {"weights.dynamic"}));
  EXPECT_TRUE(refuses_weights({{"num_bits", 3}}, {"weights.num_bits = 3"}));
  EXPECT_TRUE(refuses_weights({{"group_size", 0}}, {"weights.group_size", "0"}));
  EXPECT_TRUE(refuses_weights({{"strategy", "token"}}, {"weights.strategy", "token"}));
  EXPECT_TRUE(refuses_weights({{"zero_point", 1}}, {"weights.zero_point"}));
  EXPECT_TRUE(refuses_weights({{"type", "float"}}, {"weights.num_bits = 4", "float"}));

  json config = int4_groups();
  for (const char* key : {"sparsity_config", "transform_config"}) {
    config["quantization_config"][key] = json::object();  // as written by llm-compressor
    EXPECT_EQ(schemes_of(config).size(), 1u);
    config["quantization_config"][key] = {{"config_groups", 1}};
    EXPECT_TRUE(refuses_quantization(config, {key}));
    config["quantization_config"].erase(key);
  }
  config["quantization_config"]["kv_cache_scheme"] = {{"num_bits", 8}};
  EXPECT_TRUE(refuses_quantization(config, {"kv_cache_scheme"}));
  config = int4_groups();
  weights_of(config)["actorder"] = "weight";  // leaves inputs where they are
  EXPECT_EQ(schemes_of(config).size(), 1u);
  config["quantization_config"]["config_groups"] = json::object();
  EXPECT_TRUE(refuses_quantization(config, {"config_groups"}));
}

}  // namespace
}  // namespace mla
