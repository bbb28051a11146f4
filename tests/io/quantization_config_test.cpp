#include "mla/io/quantization_config.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/safetensors_writer.hpp"

namespace mla {
namespace {

using nlohmann::json;
using test::fails_naming;

// As in deepseek-ai/DeepSeek-V3, with other blocks.
json fp8_config() {
  return {{"quantization_config",
           {{"activation_scheme", "dynamic"},
            {"fmt", "e4m3"},
            {"quant_method", "fp8"},
            {"weight_block_size", {64, 32}}}}};
}

testing::AssertionResult refuses_quantization(const json& config, std::vector<std::string> parts) {
  parts.push_back("m/config.json: ");
  return fails_naming([&] { read_weight_block_size(config, "m/config.json"); }, parts);
}

TEST(QuantizationConfig, TheBlockSizeIs128UnlessItSaysOtherwise) {
  json config = fp8_config();
  EXPECT_EQ(read_weight_block_size(config), (BlockSize{64, 32}));
  config["quantization_config"].erase("weight_block_size");
  EXPECT_EQ(read_weight_block_size(config), (BlockSize{128, 128}));
  config["quantization_config"] = nullptr;
  EXPECT_EQ(read_weight_block_size(config), (BlockSize{128, 128}));
  EXPECT_EQ(read_weight_block_size(json::object()), (BlockSize{128, 128}));
}

TEST(QuantizationConfig, RefusesABlockSizeThatIsNone) {
  for (const char* text : {"128", "[128]", "[0, 128]", "[128, -1]", "[128, 128.0]", "[1, \"1\"]",
                           "[128, 9223372036854775807]", "[128, 18446744073709551615]"}) {
    json config = fp8_config();
    config["quantization_config"]["weight_block_size"] = json::parse(text);
    EXPECT_TRUE(refuses_quantization(config, {"quantization_config.weight_block_size"})) << text;
  }
}

TEST(QuantizationConfig, RefusesWhatIsNotFp8) {
  EXPECT_TRUE(
      refuses_quantization({{"quantization_config", "fp8"}}, {"quantization_config", "fp8"}));
  json config = fp8_config();
  config["quantization_config"]["quant_method"] = "gptq";
  EXPECT_TRUE(refuses_quantization(config, {"quantization_config.quant_method", "fp8", "gptq"}));
  config = fp8_config();
  config["quantization_config"]["fmt"] = "e5m2";
  EXPECT_TRUE(refuses_quantization(config, {"quantization_config.fmt", "e4m3", "e5m2"}));
}

}  // namespace
}  // namespace mla
