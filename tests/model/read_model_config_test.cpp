#include "mla/model/read_model_config.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "model/synthetic_checkpoint.hpp"
#include "support/safetensors_writer.hpp"

namespace mla::test {
namespace {

ModelConfig read_with(nlohmann::json config, const nlohmann::json& changes) {
  config.update(changes);
  return read_model_config(config);
}

TEST(ReadModelConfig, ReadsTheTrainedModel) {
  const ModelConfig c =
      load_model_config(std::filesystem::path(MLA_MODELS) / "tiny-shakespeare-v3");
  EXPECT_EQ(c.model_type, "deepseek_v3");
  EXPECT_EQ(c.vocab_size, 1024);
  EXPECT_EQ(c.num_hidden_layers, 4);
  EXPECT_EQ(c.hidden_size(), 192);
  EXPECT_EQ(c.intermediate_size, 384);
  EXPECT_EQ(c.max_position_embeddings, 256);
  EXPECT_EQ(c.rms_norm_eps, 1e-6);
  EXPECT_FALSE(c.tie_word_embeddings);
  EXPECT_FALSE(c.attention_bias);
  EXPECT_EQ(c.num_nextn_predict_layers, 1);
  EXPECT_EQ(c.first_k_dense_replace, 1);
  EXPECT_EQ(c.bos_token_id, 0);
  EXPECT_EQ(c.eos_token_ids, std::vector<TokenId>{1});
  MixtureOfExpertsConfig experts;
  experts.n_routed_experts = 8;
  experts.num_experts_per_tok = 2;
  experts.n_shared_experts = 1;
  experts.moe_intermediate_size = 96;
  experts.n_group = 4;
  experts.topk_group = 2;
  experts.routed_scaling_factor = 2.5;
  EXPECT_EQ(c.experts, experts);
  EXPECT_FALSE(c.has_experts(0));
  EXPECT_TRUE(c.has_experts(1) && c.has_experts(4));
}

TEST(ReadModelConfig, WhatAFileDoesNotSayIsAsPublished) {
  nlohmann::json v3 = synthetic_config(), v2 = synthetic_v2_config("greedy");
  for (const char* key : {"scoring_func", "topk_method", "norm_topk_prob", "routed_scaling_factor",
                          "moe_layer_freq", "hidden_act", "tie_word_embeddings", "architectures",
                          "num_nextn_predict_layers", "bos_token_id", "eos_token_id"}) {
    v3.erase(key);
    v2.erase(key);
  }
  const ModelConfig three = read_model_config(v3), two = read_model_config(v2);
  EXPECT_EQ(three.experts.scoring_func, ScoringFunction::sigmoid);
  EXPECT_EQ(three.experts.topk_method, TopkMethod::noaux_tc);
  EXPECT_TRUE(three.experts.norm_topk_prob && three.experts.scale_normalised);
  EXPECT_EQ(three.experts.routed_scaling_factor, 2.5);
  EXPECT_EQ(two.experts.scoring_func, ScoringFunction::softmax);
  EXPECT_EQ(two.experts.topk_method, TopkMethod::greedy);
  EXPECT_FALSE(two.experts.norm_topk_prob || two.experts.scale_normalised);
  EXPECT_EQ(two.experts.routed_scaling_factor, 1.0);
  for (const ModelConfig& c : {three, two}) {
    EXPECT_EQ(c.moe_layer_freq, 1);
    EXPECT_FALSE(c.tie_word_embeddings);
    EXPECT_EQ(c.num_nextn_predict_layers, 0);
    EXPECT_EQ(c.bos_token_id, std::nullopt);
    EXPECT_TRUE(c.eos_token_ids.empty());
  }
}

TEST(ReadModelConfig, ReadsWhetherAttentionHasBiases) {
  EXPECT_FALSE(read_model_config(synthetic_config()).attention_bias);
  EXPECT_TRUE(read_with(synthetic_config(), {{"attention_bias", true}}).attention_bias);
}

TEST(ReadModelConfig, LayersWithExpertsFollowEitherNotation) {
  nlohmann::json json = synthetic_config();
  EXPECT_EQ(read_model_config(json).first_k_dense_replace, 1);
  json["mlp_layer_types"] = {"dense", "sparse", "sparse"};
  EXPECT_EQ(read_model_config(json).first_k_dense_replace, 1);
  json.erase("first_k_dense_replace");
  json["mlp_layer_types"] = {"dense", "dense", "sparse"};
  EXPECT_EQ(read_model_config(json).first_k_dense_replace, 2);
  const ModelConfig sparse =
      read_with(synthetic_config(), {{"first_k_dense_replace", 0}, {"moe_layer_freq", 2}});
  EXPECT_TRUE(sparse.has_experts(0) && !sparse.has_experts(1) && sparse.has_experts(2));
  const ModelConfig dense = read_with(synthetic_config(), {{"n_routed_experts", nullptr}});
  EXPECT_FALSE(dense.has_experts(0) || dense.has_experts(2));
}

TEST(ReadModelConfig, SeveralTokensMayEndATextAndGenerationConfigDecides) {
  nlohmann::json json = synthetic_config();
  json["eos_token_id"] = {5, 7};
  EXPECT_EQ(read_model_config(json).eos_token_ids, (std::vector<TokenId>{5, 7}));
  const TemporaryDirectory directory;
  write_file(directory / "config.json", json.dump());
  EXPECT_EQ(load_model_config(directory.path()).eos_token_ids, (std::vector<TokenId>{5, 7}));
  write_file(directory / "generation_config.json", R"({"temperature": 0.6})");
  EXPECT_EQ(load_model_config(directory.path()).eos_token_ids, (std::vector<TokenId>{5, 7}));
  write_file(directory / "generation_config.json", R"({"eos_token_id": 9, "do_sample": true})");
  EXPECT_EQ(load_model_config(directory.path()).eos_token_ids, std::vector<TokenId>{9});
}

TEST(ReadModelConfig, RefusesByName) {
  const auto refused = [](const nlohmann::json& changes, std::vector<std::string> parts) {
    parts.push_back("config.json: ");
    EXPECT_TRUE(fails_naming([&] { read_with(synthetic_config(), changes); }, parts)) << changes;
  };
  refused({{"model_type", "llama"}}, {"model_type", "llama"});
  refused({{"architectures", {"DeepseekV32ForCausalLM"}}},
          {"architectures", "DeepseekV32ForCausalLM"});
  refused({{"architectures", "DeepseekV3ForCausalLM"}}, {"architectures"});
  refused({{"scoring_func", "tanh"}}, {"scoring_func", "tanh", "sigmoid, softmax"});
  refused({{"scoring_func", 1}}, {"scoring_func", "1"});
  refused({{"topk_method", "aux"}}, {"topk_method", "aux", "group_limited_greedy"});
  refused({{"hidden_act", "gelu"}}, {"hidden_act", "gelu", "silu"});
  refused({{"attention_bias", 0}}, {"attention_bias", "got 0"});
  refused({{"mlp_bias", true}}, {"mlp_bias"});
  refused({{"index_topk", 64}}, {"index_topk"});
  refused({{"vocab_size", nullptr}}, {"vocab_size", "null"});
  refused({{"vocab_size", 0}}, {"vocab_size", "0"});
  refused({{"vocab_size", 1.5}}, {"vocab_size", "1.5"});
  for (const char* key : {"num_hidden_layers", "max_position_embeddings"})
    for (const char* text : {"null", "\"64\"", "64.0", "-64", "[64]", "9223372036854775808"})
      refused({{key, nlohmann::json::parse(text)}}, {key, text});
  refused({{"num_hidden_layers", 0}}, {"num_hidden_layers", "0"});
  refused({{"intermediate_size", -3}}, {"intermediate_size", "-3"});
  refused({{"max_position_embeddings", 0}}, {"max_position_embeddings", "0"});
  refused({{"rms_norm_eps", -1.0}}, {"rms_norm_eps", "-1"});
  refused({{"rms_norm_eps", "small"}}, {"rms_norm_eps", "small"});
  refused({{"moe_layer_freq", 0}}, {"moe_layer_freq", "0"});
  refused({{"num_experts_per_tok", 7}}, {"num_experts_per_tok", "6", "7"});
  refused({{"num_experts_per_tok", nullptr}}, {"num_experts_per_tok"});
  refused({{"n_group", 4}}, {"n_group", "6", "4"});
  refused({{"n_group", nullptr}}, {"n_group"});
  refused({{"topk_group", 4}}, {"topk_group", "3", "4"});
  refused({{"num_local_experts", 7}}, {"num_local_experts", "6", "7"});
  refused({{"norm_topk_prob", 1}}, {"norm_topk_prob", "1"});
  refused({{"tie_word_embeddings", "no"}}, {"tie_word_embeddings", "no"});
  refused({{"eos_token_id", 4294967296}}, {"eos_token_id", "4294967296"});
  refused({{"eos_token_id", {1, "two"}}}, {"eos_token_id", "two"});
  refused({{"bos_token_id", -1}}, {"bos_token_id", "-1"});
  refused({{"mlp_layer_types", {"dense", "sparse"}}}, {"mlp_layer_types", "3"});
  refused({{"mlp_layer_types", {"sparse", "dense", "sparse"}}}, {"mlp_layer_types", "layer 1"});
  refused({{"mlp_layer_types", {"dense", "dense", "sparse"}}}, {"first_k_dense_replace", "2", "1"});
}

}  // namespace
}  // namespace mla::test
