#include "mla/io/load_attention_weights.hpp"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "support/safetensors_writer.hpp"

namespace mla {
namespace {

using test::fails_naming;
using test::SafetensorsWriter;
using test::TemporaryDirectory;

const std::string kPrefix = "model.layers.3.self_attn";

AttentionConfig small_config(Index q_lora_rank) {
  AttentionConfig config;
  config.hidden_size = 10;
  config.num_attention_heads = 3;
  config.q_lora_rank = q_lora_rank;
  config.kv_lora_rank = 5;
  config.qk_nope_head_dim = 4;
  config.qk_rope_head_dim = 2;
  config.v_head_dim = 7;
  return config;
}

using Shapes = std::map<std::string, std::vector<Index>>;

// The published names and shapes: heads * (nope + rope) = 18, kv_lora_rank + rope = 7,
// heads * (nope + v) = 33, heads * v = 21.
Shapes shapes(bool compressed_query) {
  Shapes result = {{"kv_a_proj_with_mqa.weight", {7, 10}},
                   {"kv_a_layernorm.weight", {5}},
                   {"kv_b_proj.weight", {33, 5}},
                   {"o_proj.weight", {10, 21}}};
  if (compressed_query)
    result.merge(Shapes{
        {"q_a_proj.weight", {6, 10}}, {"q_a_layernorm.weight", {6}}, {"q_b_proj.weight", {18, 6}}});
  else
    result.merge(Shapes{{"q_proj.weight", {18, 10}}});
  return result;
}

Shapes with_biases(Shapes tensors) {
  tensors.merge(
      Shapes{{"q_a_proj.bias", {6}}, {"kv_a_proj_with_mqa.bias", {7}}, {"o_proj.bias", {10}}});
  return tensors;
}

class LoadAttentionWeights : public testing::Test {
 protected:
  Checkpoint checkpoint(const Shapes& tensors) {
    SafetensorsWriter writer;
    writer.add<float>("model.layers.30.self_attn.other.weight", "F32", {0}, {});
    for (const auto& [name, shape] : tensors) {
      std::size_t size = 1;
      for (const Index dim : shape) size *= static_cast<std::size_t>(dim);
      writer.add(kPrefix + "." + name, "F32", shape, std::vector<float>(size, 1.0f));
    }
    return Checkpoint(writer.write(directory_ / "model.safetensors"));
  }

  TemporaryDirectory directory_;
};

TEST_F(LoadAttentionWeights, TakesTheCompressedQuery) {
  const Checkpoint model = checkpoint(shapes(true));
  const AttentionWeights weights = load_attention_weights(model, kPrefix, small_config(6));
  EXPECT_NO_THROW(weights.validate(small_config(6)));
  EXPECT_EQ(weights.kv_b_proj.data, model.tensor(kPrefix + ".kv_b_proj.weight").bytes.data());
  EXPECT_FALSE(weights.o_proj_bias);
}

TEST_F(LoadAttentionWeights, TakesTheUncompressedQuery) {
  const Checkpoint model = checkpoint(shapes(false));
  const AttentionWeights weights = load_attention_weights(model, kPrefix, small_config(0));
  EXPECT_NO_THROW(weights.validate(small_config(0)));
  EXPECT_FALSE(weights.q_a_proj);
}

TEST_F(LoadAttentionWeights, NamesEveryMissingTensor) {
  for (const bool compressed : {false, true}) {
    for (const auto& [name, shape] : shapes(compressed)) {
      Shapes tensors = shapes(compressed);
      tensors.erase(name);
      const Checkpoint model = checkpoint(tensors);
      EXPECT_TRUE(fails_naming(
          [&] { load_attention_weights(model, kPrefix, small_config(compressed ? 6 : 0)); },
          {kPrefix + "." + name, "missing"}));
    }
  }
}

TEST_F(LoadAttentionWeights, NamesEveryTensorOfAnotherShape) {
  for (const bool compressed : {false, true}) {
    for (const auto& [name, shape] : shapes(compressed)) {
      Shapes tensors = shapes(compressed);
      ++tensors[name][0];
      const Checkpoint model = checkpoint(tensors);
      EXPECT_TRUE(fails_naming(
          [&] { load_attention_weights(model, kPrefix, small_config(compressed ? 6 : 0)); },
          {kPrefix + "." + name, shape_text(shape), shape_text(tensors[name])}));
    }
  }
}

TEST_F(LoadAttentionWeights, TakesBiasesWhereTheyAre) {
  const Checkpoint model = checkpoint(with_biases(shapes(true)));
  const AttentionWeights weights = load_attention_weights(model, kPrefix, small_config(6));
  EXPECT_NO_THROW(weights.validate(small_config(6)));
  EXPECT_EQ(weights.q_a_proj_bias.cols, 6);
  EXPECT_EQ(weights.kv_a_proj_with_mqa_bias.cols, 7);
  EXPECT_EQ(weights.o_proj_bias.cols, 10);
}

TEST_F(LoadAttentionWeights, BiasesMustBeThoseThatTheConfigPromises) {
  const AttentionConfig config = small_config(6);
  EXPECT_NO_THROW(
      load_attention_weights(checkpoint(with_biases(shapes(true))), kPrefix, config, true));
  for (const char* name : {"q_a_proj.bias", "kv_a_proj_with_mqa.bias", "o_proj.bias"}) {
    Shapes tensors = with_biases(shapes(true));
    tensors.erase(name);
    const Checkpoint model = checkpoint(tensors);
    EXPECT_TRUE(fails_naming([&] { load_attention_weights(model, kPrefix, config, true); },
                             {kPrefix + "." + name, "missing", "attention_bias"}));
  }
  EXPECT_NO_THROW(load_attention_weights(checkpoint(shapes(true)), kPrefix, config, false));
  const Checkpoint biased = checkpoint(with_biases(shapes(true)));
  EXPECT_TRUE(fails_naming([&] { load_attention_weights(biased, kPrefix, config, false); },
                           {kPrefix + ".q_a_proj.bias", "attention_bias"}));
}

// q_proj beside a compressed query, the indexer of sparse attention, a bias that MLA does not have.
TEST_F(LoadAttentionWeights, RefusesTensorsThatItWouldIgnore) {
  for (const char* name : {"q_proj.weight", "indexer.wk.weight", "q_b_proj.bias", "kv_b_proj.bias",
                           "o_proj.weight_scale_inv", "k_norm.weight"}) {
    Shapes tensors = shapes(true);
    tensors[name] = {2, 2};
    const Checkpoint model = checkpoint(tensors);
    EXPECT_TRUE(fails_naming([&] { load_attention_weights(model, kPrefix, small_config(6)); },
                             {kPrefix + "." + name, "not used"}));
  }
  Shapes tensors = shapes(true);
  tensors["rotary_emb.inv_freq"] = {1};  // old files have the table, it is always computed
  EXPECT_NO_THROW(load_attention_weights(checkpoint(tensors), kPrefix, small_config(6)));
}

}  // namespace
}  // namespace mla
