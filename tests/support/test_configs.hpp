#ifndef MLA_SUPPORT_TEST_CONFIGS_HPP_
#define MLA_SUPPORT_TEST_CONFIGS_HPP_

#include <sstream>
#include <string>
#include <vector>

#include "mla/core/attention_config.hpp"
#include "support/test_layer.hpp"

namespace mla::test {

/// A layer to test: shapes of a published model, with fewer heads and a smaller hidden_size.
struct TestConfig {
  std::string name;
  AttentionConfig config;
  Index tokens;  ///< of the longest prompt that is worth its time
  WeightOptions weights = {};
  Index largest_gap = 1;  ///< between positions
};

inline std::string describe(const AttentionConfig& c) {
  std::ostringstream text;
  text << "hidden_size " << c.hidden_size << " heads " << c.num_attention_heads << " q_lora_rank "
       << c.q_lora_rank << " kv_lora_rank " << c.kv_lora_rank << " nope " << c.qk_nope_head_dim
       << " rope " << c.qk_rope_head_dim << " v " << c.v_head_dim << " theta " << c.rope_theta
       << " interleave " << c.rope_interleave << " query_norm " << c.query_norm
       << " rope_key_per_head " << c.rope_key_per_head << " eps " << c.q_a_layernorm_eps << " "
       << c.kv_a_layernorm_eps << " scaling " << name_of(c.rope_scaling.type) << " factor "
       << c.rope_scaling.factor << " original " << c.rope_scaling.original_max_position_embeddings
       << " betas " << c.rope_scaling.beta_fast << " " << c.rope_scaling.beta_slow << " mscale "
       << c.rope_scaling.mscale << " " << c.rope_scaling.mscale_all_dim << " latent scales "
       << c.q_latent_scale << " " << c.kv_latent_scale << " temperature "
       << c.query_temperature_beta << " " << c.query_temperature_length;
  return text.str();
}

/// hidden_size, heads, q_lora_rank, kv_lora_rank, nope, rope, v; the rest as DeepSeek-V3 without
/// YaRN.
inline AttentionConfig make_config(Index hidden, Index heads, Index query_rank, Index rank,
                                   Index nope, Index rope, Index v) {
  AttentionConfig config;
  config.hidden_size = hidden;
  config.num_attention_heads = heads;
  config.q_lora_rank = query_rank;
  config.kv_lora_rank = rank;
  config.qk_nope_head_dim = nope;
  config.qk_rope_head_dim = rope;
  config.v_head_dim = v;
  return config;
}

/// Small, and unlike a power of two wherever it can be.
inline AttentionConfig small_config() { return make_config(48, 3, 20, 36, 12, 10, 14); }

/// A YaRN whose original length most test prompts exceed, with two different mscales.
inline RopeScaling short_yarn(double mscale, double mscale_all_dim) {
  return {RopeScalingType::yarn, 40.0, 32, 32.0, 1.0, mscale, mscale_all_dim};
}

inline std::vector<TestConfig> test_configs() {
  std::vector<TestConfig> configs = {
      {"Small", small_config(), 600},
      {"NoQueryCompression", make_config(48, 3, 0, 36, 12, 10, 14), 600},
      {"OneHeadOddRanks", make_config(33, 1, 17, 31, 5, 6, 7), 600},
      {"ThreePartsOfAThousandKeys", make_config(16, 3, 0, 20, 6, 4, 6), 2100},
      {"EveryDimOneOrTwo", make_config(1, 1, 1, 1, 1, 2, 1), 129},
      {"DeepSeekV3Dims", make_config(64, 2, 96, 512, 128, 64, 128), 200},
      {"DeepSeekV2LiteHeads", make_config(64, 16, 0, 64, 16, 8, 16), 200},
      {"TwentyHeads", make_config(40, 20, 24, 40, 8, 4, 8), 129},
      {"Rank256Rope64", make_config(64, 3, 48, 256, 64, 64, 64), 129},  // rows of 320
      {"Rank256Rope32", make_config(64, 3, 48, 256, 64, 32, 64), 129},  // rows of 288
      {"Nope192Value256", make_config(64, 2, 48, 128, 192, 64, 256), 129},
  };
  TestConfig lesson = {"Lesson", AttentionConfig::lesson(48, 4, 24, 20, 8), 200};
  lesson.weights.split = true;
  configs.push_back(lesson);
  lesson.name = "LessonFused";
  lesson.weights.split = false;
  configs.push_back(lesson);
  TestConfig biased = {"Biases", small_config(), 129};
  biased.weights.biases = true;
  configs.push_back(biased);

  // What position 0 and short contexts hide: long distances and gaps.
  const auto add_rotary = [&](const char* name, const auto& change) {
    TestConfig rotary = {name, small_config(), 200};
    rotary.largest_gap = 50;
    change(rotary.config);
    configs.push_back(rotary);
  };
  add_rotary("HalfSplitRope", [](AttentionConfig& c) { c.rope_interleave = false; });
  add_rotary("YarnOneMscale", [](AttentionConfig& c) { c.rope_scaling = short_yarn(1.0, 1.0); });
  add_rotary("YarnTwoMscales", [](AttentionConfig& c) {
    c.rope_scaling = short_yarn(1.0, 0.707);
    c.rope_interleave = false;
  });
  add_rotary("LinearScaling", [](AttentionConfig& c) {
    c.rope_scaling = {RopeScalingType::linear, 8.0};
  });
  add_rotary("NtkScaling", [](AttentionConfig& c) {
    c.rope_scaling = {RopeScalingType::ntk, 8.0};
    c.rope_theta = 500.0;
  });
  add_rotary("LargeAndDifferentEps", [](AttentionConfig& c) {
    c.q_a_layernorm_eps = 0.5;
    c.kv_a_layernorm_eps = 0.01;
  });
  return configs;
}

}  // namespace mla::test

#endif  // MLA_SUPPORT_TEST_CONFIGS_HPP_
