#include "mla/model/read_attention_config.hpp"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "support/safetensors_writer.hpp"

namespace mla {
namespace {

using nlohmann::json;
using test::fails_naming;
using test::TemporaryDirectory;
using test::write_file;

// deepseek-ai/DeepSeek-V3, complete.
json deepseek_v3() {
  return json::parse(R"({
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": false, "attention_dropout": 0.0,
    "auto_map": {
      "AutoConfig": "configuration_deepseek.DeepseekV3Config",
      "AutoModel": "modeling_deepseek.DeepseekV3Model",
      "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"
    },
    "aux_loss_alpha": 0.001, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
    "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
    "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
    "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "pretraining_tp": 1, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {
      "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
      "weight_block_size": [128, 128]
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
      "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
      "original_max_position_embeddings": 4096, "type": "yarn"
    },
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "seq_aux": true, "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": true,
    "v_head_dim": 128, "vocab_size": 129280
  })");
}

// deepseek-ai/DeepSeek-V2-Lite, complete.
json deepseek_v2_lite() {
  return json::parse(R"({
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": false, "attention_dropout": 0.0,
    "auto_map": {
      "AutoConfig": "configuration_deepseek.DeepseekV2Config",
      "AutoModel": "modeling_deepseek.DeepseekV2Model",
      "AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM"
    },
    "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 10944, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64,
    "n_shared_experts": 2, "norm_topk_prob": false, "num_attention_heads": 16,
    "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16,
    "pretraining_tp": 1, "q_lora_rank": null, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
      "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
      "original_max_position_embeddings": 4096, "type": "yarn"
    },
    "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax",
    "seq_aux": true, "tie_word_embeddings": false, "topk_group": 1, "topk_method": "greedy",
    "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": true,
    "v_head_dim": 128, "vocab_size": 102400
  })");
}

json changed(json config, const json& changes) {
  config.merge_patch(changes);  // a null removes the key
  return config;
}

json with(json config, const std::string& key, json value) {
  config[key] = std::move(value);
  return config;
}

json with_rope(json config, const std::string& key, json value) {
  config["rope_scaling"][key] = std::move(value);
  return config;
}

testing::AssertionResult refuses(const json& config, std::vector<std::string> parts) {
  parts.push_back("m/config.json");
  return fails_naming([&] { read_attention_config(config, "m/config.json"); }, parts);
}

TEST(ReadAttentionConfig, ReadsDeepSeekV3AndR1) {
  EXPECT_EQ(read_attention_config(deepseek_v3()), AttentionConfig::deepseek_v3());
  // R1 and V3-0324 differ in the version only.
  const json r1 = with(deepseek_v3(), "transformers_version", "4.46.3");
  EXPECT_EQ(read_attention_config(r1), AttentionConfig::deepseek_v3());
}

TEST(ReadAttentionConfig, ReadsDeepSeekV31) {
  const json v31 = changed(deepseek_v3(), {{"quantization_config", {{"scale_fmt", "ue8m0"}}},
                                           {"transformers_version", "4.44.2"},
                                           {"ep_size", nullptr}});
  EXPECT_EQ(read_attention_config(v31), AttentionConfig::deepseek_v3());
}

TEST(ReadAttentionConfig, ReadsDeepSeekV2) {
  const json v2 = changed(deepseek_v2_lite(), {{"hidden_size", 5120},
                                               {"intermediate_size", 12288},
                                               {"moe_intermediate_size", 1536},
                                               {"n_group", 8},
                                               {"n_routed_experts", 160},
                                               {"num_attention_heads", 128},
                                               {"num_hidden_layers", 60},
                                               {"num_key_value_heads", 128},
                                               {"q_lora_rank", 1536},
                                               {"routed_scaling_factor", 16.0},
                                               {"topk_group", 3},
                                               {"topk_method", "group_limited_greedy"},
                                               {"ep_size", 1},
                                               {"transformers_version", "4.39.3"}});
  AttentionConfig expected = AttentionConfig::deepseek_v2_lite();
  expected.hidden_size = 5120;
  expected.num_attention_heads = 128;
  expected.q_lora_rank = 1536;
  EXPECT_EQ(read_attention_config(v2), expected);
}

TEST(ReadAttentionConfig, ReadsDeepSeekV2LiteWithoutQueryCompression) {
  EXPECT_EQ(read_attention_config(deepseek_v2_lite()), AttentionConfig::deepseek_v2_lite());
}

TEST(ReadAttentionConfig, ReadsKimiK2) {
  const json kimi = changed(
      deepseek_v3(), {{"bos_token_id", 163584},
                      {"eos_token_id", 163585},
                      {"first_k_dense_replace", 1},
                      {"max_position_embeddings", 131072},
                      {"model_type", "kimi_k2"},
                      {"n_group", 1},
                      {"n_routed_experts", 384},
                      {"num_attention_heads", 64},
                      {"num_key_value_heads", 64},
                      {"num_nextn_predict_layers", 0},
                      {"rope_scaling", {{"beta_fast", 1.0}, {"beta_slow", 1.0}, {"factor", 32.0}}},
                      {"rope_theta", 50000.0},
                      {"routed_scaling_factor", 2.827},
                      {"topk_group", 1},
                      {"transformers_version", "4.48.3"},
                      {"vocab_size", 163840},
                      {"ep_size", nullptr}});
  EXPECT_EQ(read_attention_config(kimi), AttentionConfig::kimi_k2());
  AttentionConfig k2_0905 = AttentionConfig::kimi_k2();
  k2_0905.rope_scaling.factor = 64.0;
  EXPECT_EQ(read_attention_config(with_rope(kimi, "factor", 64.0)), k2_0905);
}

// As transformers 4.57 writes V3 after loading it: derived keys, and both names of the rope type.
TEST(ReadAttentionConfig, ReadsWhatTransformers4WritesAnew) {
  const json config = changed(deepseek_v3(), {{"dtype", "bfloat16"},
                                              {"torch_dtype", nullptr},
                                              {"head_dim", 64},
                                              {"qk_head_dim", 192},
                                              {"rope_interleave", true},
                                              {"rope_scaling", {{"rope_type", "yarn"}}},
                                              {"transformers_version", "4.57.1"}});
  EXPECT_EQ(read_attention_config(config), AttentionConfig::deepseek_v3());
}

// transformers 5 nests everything about rotation in rope_parameters.
TEST(ReadAttentionConfig, ReadsRopeParametersOfTransformers5) {
  json config = deepseek_v3();
  json rope = config["rope_scaling"];
  config.erase("rope_scaling");
  config.erase("rope_theta");
  rope.erase("type");
  rope["rope_type"] = "yarn";
  rope["rope_theta"] = 10000.0;
  rope["partial_rotary_factor"] = 1.0;
  EXPECT_EQ(read_attention_config(with(config, "rope_parameters", rope)),
            AttentionConfig::deepseek_v3());

  const json plain = {{"rope_type", "default"}, {"rope_theta", 50000}};
  const AttentionConfig unscaled = read_attention_config(with(config, "rope_parameters", plain));
  EXPECT_EQ(unscaled.rope_scaling, RopeScaling{});
  EXPECT_EQ(unscaled.rope_theta, 50000.0);
}

TEST(ReadAttentionConfig, NullRopeScalingMeansPlainRotation) {
  const AttentionConfig config =
      read_attention_config(with(deepseek_v3(), "rope_scaling", nullptr));
  EXPECT_EQ(config.rope_scaling, RopeScaling{});
}

TEST(ReadAttentionConfig, ReadsLinearScaling) {
  const AttentionConfig config = read_attention_config(
      with(deepseek_v3(), "rope_scaling", {{"rope_type", "linear"}, {"factor", 4}}));
  EXPECT_EQ(config.rope_scaling.type, RopeScalingType::linear);
  EXPECT_EQ(config.rope_scaling.factor, 4.0);
}

TEST(ReadAttentionConfig, YarnWithoutMscalesLeavesTheSoftmaxScaleAlone) {
  json config = deepseek_v3();
  config["rope_scaling"].erase("mscale");
  config["rope_scaling"].erase("mscale_all_dim");
  config["rope_scaling"].erase("beta_fast");
  config["rope_scaling"].erase("beta_slow");
  EXPECT_EQ(read_attention_config(config).rope_scaling,
            (RopeScaling{RopeScalingType::yarn, 40.0, 4096, 32.0, 1.0, 1.0, 0.0}));
}

TEST(ReadAttentionConfig, RotaryPairsAreInterleavedUnlessItSaysOtherwise) {
  EXPECT_TRUE(read_attention_config(deepseek_v3()).rope_interleave);
  EXPECT_FALSE(
      read_attention_config(with(deepseek_v3(), "rope_interleave", false)).rope_interleave);
}

TEST(ReadAttentionConfig, NormEpsIsOneMillionthWhateverRmsNormEpsSays) {
  const AttentionConfig config = read_attention_config(with(deepseek_v3(), "rms_norm_eps", 1e-5));
  EXPECT_EQ(config.q_a_layernorm_eps, 1e-6);
  EXPECT_EQ(config.kv_a_layernorm_eps, 1e-6);
}

TEST(ReadAttentionConfig, NamesEveryMissingKey) {
  for (const char* key :
       {"model_type", "hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank",
        "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rope_theta"}) {
    json config = deepseek_v3();
    config.erase(key);
    EXPECT_TRUE(refuses(config, {key, "missing"}));
    if (std::string(key) != "q_lora_rank") {
      EXPECT_TRUE(refuses(with(config, key, nullptr), {key, "null"}));
    }
  }
  for (const char* key : {"factor", "original_max_position_embeddings"}) {
    json config = deepseek_v3();
    config["rope_scaling"].erase(key);
    EXPECT_TRUE(refuses(config, {"rope_scaling." + std::string(key), "missing"}));
  }
}

TEST(ReadAttentionConfig, NamesEveryKeyOfTheWrongTypeAndItsValue) {
  for (const char* key : {"hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank",
                          "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"})
    for (const char* text : {"\"64\"", "64.0", "-64", "true", "[64]", "9223372036854775808"})
      EXPECT_TRUE(refuses(with(deepseek_v3(), key, json::parse(text)), {key, "got "})) << text;
  EXPECT_TRUE(refuses(with(deepseek_v3(), "rope_theta", "10000"), {"rope_theta", "\"10000\""}));
  EXPECT_TRUE(refuses(with(deepseek_v3(), "rope_interleave", "yes"), {"rope_interleave", "yes"}));
  EXPECT_TRUE(refuses(with(deepseek_v3(), "rope_scaling", "yarn"), {"rope_scaling", "yarn"}));
  EXPECT_TRUE(refuses(with(deepseek_v3(), "model_type", 3), {"model_type", "got 3"}));
  for (const char* key : {"factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"})
    EXPECT_TRUE(refuses(with_rope(deepseek_v3(), key, "40"),
                        {"rope_scaling." + std::string(key), "\"40\""}));
  EXPECT_TRUE(refuses(with_rope(deepseek_v3(), "original_max_position_embeddings", 4096.0),
                      {"rope_scaling.original_max_position_embeddings", "4096.0"}));
  EXPECT_TRUE(refuses(with_rope(deepseek_v3(), "type", 1), {"rope_scaling.type", "got 1"}));
  EXPECT_TRUE(refuses(json::array({1}), {"must be an object"}));
}

TEST(ReadAttentionConfig, RefusesValuesThatNoLayerCanHave) {
  EXPECT_TRUE(refuses(with(deepseek_v3(), "hidden_size", 0), {"hidden_size", "0"}));
  EXPECT_TRUE(refuses(with(deepseek_v3(), "q_lora_rank", 0), {"q_lora_rank", "0"}));
  EXPECT_TRUE(refuses(with(deepseek_v3(), "qk_rope_head_dim", 63), {"qk_rope_head_dim", "63"}));
  EXPECT_TRUE(refuses(with(deepseek_v3(), "rope_theta", 0.5), {"rope_theta", "0.5"}));
  EXPECT_TRUE(refuses(with_rope(deepseek_v3(), "factor", 0.5), {"factor", "0.5"}));
}

TEST(ReadAttentionConfig, RefusesOtherModelTypes) {
  for (const char* type : {"deepseek_v4", "hy_v4", "kimi_linear", "llama", ""})
    EXPECT_TRUE(refuses(with(deepseek_v3(), "model_type", type), {"model_type", type}));
}

TEST(ReadAttentionConfig, RefusesRopeTypesThatItDoesNotCompute) {
  for (const char* type : {"dynamic", "longrope", "llama3", "ntk", "su", ""})
    EXPECT_TRUE(refuses(with_rope(deepseek_v3(), "type", type), {"rope_scaling.type", type}));
  EXPECT_TRUE(refuses(with_rope(deepseek_v3(), "rope_type", "linear"), {"yarn", "linear"}));
}

TEST(ReadAttentionConfig, RefusesContradictingRotation) {
  json config = deepseek_v3();
  config["rope_parameters"] = config["rope_scaling"];
  EXPECT_TRUE(refuses(config, {"rope_parameters", "rope_scaling"}));
  EXPECT_TRUE(refuses(with_rope(deepseek_v3(), "rope_theta", 50000),
                      {"rope_theta = 10000 contradicts rope_scaling.rope_theta = 50000"}));
  config.erase("rope_scaling");
  config["rope_parameters"]["rope_theta"] = 50000;
  EXPECT_TRUE(
      refuses(config, {"rope_theta = 10000 contradicts rope_parameters.rope_theta = 50000"}));
}

TEST(ReadAttentionConfig, RefusesUnknownKeysOfRotation) {
  const json keys = {{"attention_factor", 1.2},     {"long_factor", {1.0}},
                     {"short_factor", {1.0}},       {"low_freq_factor", 1.0},
                     {"llama_4_scaling_beta", 0.1}, {"partial_rotary_factor", 0.5},
                     {"truncate", false},           {"mrope_section", {1, 2}}};
  for (const auto& [key, value] : keys.items())
    EXPECT_TRUE(
        refuses(with_rope(deepseek_v3(), key, value), {"rope_scaling." + key, value.dump()}));
  EXPECT_NO_THROW(read_attention_config(with_rope(deepseek_v3(), "attention_factor", nullptr)));
  EXPECT_NO_THROW(read_attention_config(with_rope(deepseek_v3(), "truncate", true)));
  // A key of YaRN beside another type is a mistake in the type.
  EXPECT_TRUE(refuses(with(deepseek_v3(), "rope_scaling",
                           {{"type", "linear"}, {"factor", 2}, {"mscale_all_dim", 1}}),
                      {"rope_scaling.mscale_all_dim", "linear"}));
  EXPECT_TRUE(refuses(with(deepseek_v3(), "rope_scaling", {{"factor", 40}}),
                      {"rope_scaling.factor", "default"}));
}

TEST(ReadAttentionConfig, RefusesKeysThatMayChangeTheAttention) {
  const json keys = {{"mla_scale_q_lora", true},
                     {"mla_scale_kv_lora", true},
                     {"llama_4_scaling_beta", 0.1},
                     {"llama_4_scaling", {{"beta", 0.1}}},
                     {"index_topk", 2048},
                     {"index_n_heads", 64},
                     {"index_head_dim", 128},
                     {"sliding_window", 4096},
                     {"use_sliding_window", true},
                     {"attn_logit_softcapping", 50.0},
                     {"logit_scale", 0.5},
                     {"attention_multiplier", 0.1},
                     {"query_pre_attn_scalar", 256},
                     {"partial_rotary_factor", 0.5},
                     {"qk_head_dim", 128},
                     {"head_dim", 128},
                     {"layer_types", {"full_attention"}},
                     {"some_future_key", "x"}};
  for (const auto& [key, value] : keys.items())
    EXPECT_TRUE(refuses(with(deepseek_v3(), key, value), {key, value.dump()}));
}

TEST(ReadAttentionConfig, AcceptsUnknownKeysThatAreSwitchedOff) {
  for (const char* key : {"sliding_window", "index_topk", "mla_scale_q_lora", "some_future_key"}) {
    EXPECT_NO_THROW(read_attention_config(with(deepseek_v3(), key, nullptr)));
    EXPECT_NO_THROW(read_attention_config(with(deepseek_v3(), key, false)));
  }
  EXPECT_NO_THROW(read_attention_config(with(deepseek_v3(), "partial_rotary_factor", 1)));
}

TEST(ReadAttentionConfig, LoadsTheFileInAModelsDirectory) {
  const TemporaryDirectory directory;
  write_file(directory / "config.json", deepseek_v3().dump(2));
  EXPECT_EQ(load_attention_config(directory.path()), AttentionConfig::deepseek_v3());
  write_file(directory / "config.json", R"({"hidden_size": 1, "hidden_size": 2})");
  EXPECT_TRUE(fails_naming([&] { load_attention_config(directory.path()); },
                           {(directory / "config.json").string(), "hidden_size"}));
  std::filesystem::remove(directory / "config.json");
  EXPECT_TRUE(fails_naming([&] { load_attention_config(directory.path()); },
                           {(directory / "config.json").string(), "No such file"}));
}

}  // namespace
}  // namespace mla
