#ifndef MLA_MODEL_FAMILIES_GLM4_MOE_LITE_HPP_
#define MLA_MODEL_FAMILIES_GLM4_MOE_LITE_HPP_

#include <string_view>

#include "mla/model/families/family.hpp"

// GLM-4.7-Flash: DeepSeek-V3 with one group of experts. rms_norm_eps is 1e-5 there, that of the two
// latent norms 1e-6. scoring_func is missing in the published file: sigmoid is meant, as V3's
// default has it. head_dim means different things in files of different writers, and nothing here.

namespace mla::families {

inline constexpr std::string_view kGlm4MoeLiteKeys[] = {"qk_head_dim",
                                                        "head_dim",
                                                        "rope_parameters",
                                                        "rope_interleave",
                                                        "partial_rotary_factor",
                                                        "num_hidden_layers",
                                                        "hidden_act",
                                                        "intermediate_size",
                                                        "mlp_bias",
                                                        "num_nextn_predict_layers",
                                                        "moe_intermediate_size",
                                                        "moe_layer_freq",
                                                        "first_k_dense_replace",
                                                        "n_routed_experts",
                                                        "num_local_experts",
                                                        "n_shared_experts",
                                                        "num_experts_per_tok",
                                                        "n_group",
                                                        "topk_group",
                                                        "topk_method",
                                                        "norm_topk_prob",
                                                        "scoring_func",
                                                        "routed_scaling_factor",
                                                        "mlp_layer_types"};

inline AttentionConfig read_glm4_moe_lite_attention(const ConfigReader& config) {
  return read_deepseek_attention(config);
}

inline void read_glm4_moe_lite(const ConfigReader& config, ModelConfig& model) {
  constexpr MixtureOfExpertsConfig kDefaults = {.routed_scaling_factor = 1.8};
  read_decoder(config, model);
  read_experts(config, kDefaults, model);
}

inline constexpr std::string_view kGlm4MoeLiteTypes[] = {"glm4_moe_lite"};
inline constexpr std::string_view kGlm4MoeLiteArchitectures[] = {"Glm4MoeLiteForCausalLM"};
inline constexpr Family kGlm4MoeLite = {.model_types = kGlm4MoeLiteTypes,
                                        .architectures = kGlm4MoeLiteArchitectures,
                                        .keys = kGlm4MoeLiteKeys,
                                        .read_attention = &read_glm4_moe_lite_attention,
                                        .read_model = &read_glm4_moe_lite};

}  // namespace mla::families

#endif  // MLA_MODEL_FAMILIES_GLM4_MOE_LITE_HPP_
