#ifndef MLA_MODEL_FAMILIES_MISTRAL4_HPP_
#define MLA_MODEL_FAMILIES_MISTRAL4_HPP_

#include <string_view>

#include "mla/model/families/family.hpp"

// Mistral 4: DeepSeek-V3's layers with a router of softmax over all experts, and queries that are
// scaled by their position (llama_4_scaling_beta). The softmax scale is the plain one: YaRN's
// mscale is not squared into it, whatever mscale_all_dim says. Alone, or as the text part of
// `mistral3`. head_dim and partial_rotary_factor describe a whole head in these files and mean
// nothing here.

namespace mla::families {

inline constexpr std::string_view kMistral4Keys[] = {"qk_head_dim",
                                                     "head_dim",
                                                     "rope_parameters",
                                                     "rope_interleave",
                                                     "num_hidden_layers",
                                                     "hidden_act",
                                                     "intermediate_size",
                                                     "mlp_bias",
                                                     "moe_intermediate_size",
                                                     "moe_layer_freq",
                                                     "first_k_dense_replace",
                                                     "n_routed_experts",
                                                     "num_local_experts",
                                                     "num_experts",
                                                     "n_shared_experts",
                                                     "num_experts_per_tok",
                                                     "n_group",
                                                     "topk_group",
                                                     "norm_topk_prob",
                                                     "routed_scaling_factor"};

inline AttentionConfig read_mistral4_attention(const ConfigReader& config) {
  static constexpr std::string_view kMore[] = {"llama_4_scaling_beta", "partial_rotary_factor"};
  AttentionConfig attention = read_deepseek_attention(config, {.more_keys = kMore});
  RopeScaling& scaling = attention.rope_scaling;
  if (scaling.type == RopeScalingType::yarn) {
    // cos and sin are scaled by mscale / mscale_all_dim. Without both neither they nor the softmax
    // are scaled.
    if (scaling.mscale != scaling.mscale_all_dim)
      config.fail("rope_parameters.mscale = ", scaling.mscale,
                  " and mscale_all_dim = ", scaling.mscale_all_dim,
                  " differ, which is not supported");
    scaling.mscale = scaling.mscale_all_dim = 0.0;
  }
  if (!config.find("rope_parameters")) return attention;
  const ConfigReader rope = config.object("rope_parameters");
  attention.query_temperature_beta = rope.number("llama_4_scaling_beta", 0.0);
  if (attention.query_temperature_beta != 0.0)
    attention.query_temperature_length = rope.size("original_max_position_embeddings");
  return attention;
}

inline void read_mistral4(const ConfigReader& config, ModelConfig& model) {
  constexpr MixtureOfExpertsConfig kDefaults = {.scoring_func = ScoringFunction::softmax,
                                                .topk_method = TopkMethod::greedy,
                                                .routed_scaling_factor = 1.0};
  read_decoder(config, model);
  config.expect("n_group", 1.0);  // groups would need a way to rank them, which no file has
  config.expect("topk_group", 1.0);
  read_experts(config, kDefaults, model);
}

inline constexpr std::string_view kMistral4Types[] = {"mistral4"};
inline constexpr std::string_view kMistral4Architectures[] = {"Mistral4ForCausalLM"};
inline constexpr Family kMistral4 = {.model_types = kMistral4Types,
                                     .architectures = kMistral4Architectures,
                                     .keys = kMistral4Keys,
                                     .read_attention = &read_mistral4_attention,
                                     .read_model = &read_mistral4};

}  // namespace mla::families

#endif  // MLA_MODEL_FAMILIES_MISTRAL4_HPP_
