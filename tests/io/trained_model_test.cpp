#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>

#include "mla/io/checkpoint.hpp"
#include "mla/io/load_attention_weights.hpp"
#include "mla/model/read_attention_config.hpp"

// The trained models in models/, one in bfloat16 and the same in fp8 with shards.

namespace mla {
namespace {

const std::filesystem::path kModel = std::filesystem::path(MLA_MODELS) / "tiny-shakespeare-v3";
const std::filesystem::path kFp8Model =
    std::filesystem::path(MLA_MODELS) / "tiny-shakespeare-v3-fp8";
constexpr Index kLayers = 5;  // four and the multi-token-prediction module

std::string self_attn(Index layer) {
  return "model.layers." + std::to_string(layer) + ".self_attn";
}

TEST(TrainedModel, ItsConfigIsRead) {
  for (const auto& directory : {kModel, kFp8Model}) {
    const AttentionConfig config = load_attention_config(directory);
    EXPECT_EQ(config.hidden_size, 192);
    EXPECT_EQ(config.num_attention_heads, 6);
    EXPECT_EQ(config.q_lora_rank, 96);
    EXPECT_EQ(config.kv_lora_rank, 64);
    EXPECT_EQ(config.qk_nope_head_dim, 32);
    EXPECT_EQ(config.qk_rope_head_dim, 16);
    EXPECT_EQ(config.v_head_dim, 32);
    EXPECT_EQ(config.rope_scaling, RopeScaling{});
  }
}

TEST(TrainedModel, TheAttentionOfEveryLayerIsLoaded) {
  for (const auto& directory : {kModel, kFp8Model}) {
    const AttentionConfig config = load_attention_config(directory);
    const Checkpoint checkpoint(directory);
    for (Index layer = 0; layer < kLayers; ++layer) {
      const AttentionWeights weights =
          load_attention_weights(checkpoint, self_attn(layer), config, false);
      EXPECT_NO_THROW(weights.validate(config));
      EXPECT_EQ(weights.q_b_proj.format,
                directory == kModel ? WeightFormat::bfloat16 : WeightFormat::fp8_e4m3);
    }
  }
}

TEST(TrainedModel, BothFormsHaveTheSameTensorsButForTheScales) {
  const Checkpoint bf16(kModel), fp8(kFp8Model);
  std::vector<std::string> names;
  for (const std::string& name : fp8.names())
    if (!name.ends_with("_scale_inv")) names.push_back(name);
  EXPECT_EQ(names, bf16.names());
  for (const std::string& name : names) EXPECT_EQ(fp8.tensor(name).shape, bf16.tensor(name).shape);
}

// E4M3 has 4 bits of precision: the weight was rounded by up to 2^-4 of itself, below 2^-6 * scale
// by up to half a subnormal step, and the product by 2^-24.
TEST(TrainedModel, Fp8WeightsAreTheBfloat16OnesWithinRounding) {
  const Checkpoint bf16(kModel), fp8(kFp8Model);
  int matrices = 0;
  double largest = 0.0;
  for (const std::string& name : fp8.names()) {
    if (fp8.tensor(name).dtype != SafetensorsDType::float8_e4m3) continue;
    const Index rows = fp8.tensor(name).shape[0], cols = fp8.tensor(name).shape[1];
    const auto expected = bf16.matrix(name, rows, cols).as<bfloat16>();
    const WeightView weights = fp8.matrix(name, rows, cols);
    RowMajorMatrix decoded(rows, cols);
    info_of(weights.format).widen(weights, {decoded.data(), rows, cols});
    const auto scales = fp8.tensor(name + "_scale_inv").values<float>();
    for (Index r = 0; r < rows; ++r) {
      for (Index c = 0; c < cols; ++c) {
        const auto block = static_cast<std::size_t>(r / 128 * ((cols + 127) / 128) + c / 128);
        const double weight = float(expected(r, c));
        const double error = std::abs(double{decoded(r, c)} - weight);
        ASSERT_LE(error, (0x1p-4 + 0x1p-24) * std::abs(weight) + 0x1p-10 * scales[block])
            << name << " " << r << " " << c;
        largest = std::max(largest, error);
      }
    }
    ++matrices;
  }
  EXPECT_EQ(matrices, 136);
  EXPECT_GT(largest, 0.0);
}

TEST(TrainedModel, ItsGoldensAreRead) {
  const SafetensorsFile goldens(kModel / "goldens.safetensors");
  EXPECT_EQ(goldens.tensor("short.input_ids").values<std::int32_t>().size(), 6u);
  EXPECT_EQ(goldens.tensor("short.logits").values<float>().size(), 6u * 1024u);
}

}  // namespace
}  // namespace mla
