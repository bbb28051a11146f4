#ifndef MLA_MODEL_FAMILIES_AXK1_HPP_
#define MLA_MODEL_FAMILIES_AXK1_HPP_

#include <string_view>

#include "mla/model/families/family.hpp"

// A.X-K1: DeepSeek-V3 with a norm on the result of each mixture of experts (post_mlp_layernorm);
// dense layers have none.

namespace mla::families {

inline constexpr std::string_view kAxk1Keys[] = {
    "qk_head_dim",           "head_dim",          "rope_parameters",
    "rope_interleave",       "num_hidden_layers", "hidden_act",
    "intermediate_size",     "mlp_bias",          "num_nextn_predict_layers",
    "moe_intermediate_size", "moe_layer_freq",    "first_k_dense_replace",
    "n_routed_experts",      "num_local_experts", "n_shared_experts",
    "num_experts_per_tok",   "n_group",           "topk_group",
    "topk_method",           "norm_topk_prob",    "scoring_func",
    "routed_scaling_factor"};

inline AttentionConfig read_axk1_attention(const ConfigReader& config) {
  AttentionConfig attention = read_deepseek_attention(config);
  config.expect("head_dim", static_cast<double>(attention.qk_rope_head_dim));
  return attention;
}

inline void read_axk1(const ConfigReader& config, ModelConfig& model) {
  constexpr MixtureOfExpertsConfig kDefaults = {};
  read_decoder(config, model);
  read_experts(config, kDefaults, model);
  // No published code has a module for multi-token prediction, nor says where its norm would be.
  config.expect("num_nextn_predict_layers", 0.0);
  model.post_mlp_layernorm = true;
}

inline constexpr std::string_view kAxk1Types[] = {"axk1"};
inline constexpr std::string_view kAxk1Architectures[] = {"AXK1ForCausalLM"};
inline constexpr Family kAxk1 = {.model_types = kAxk1Types,
                                 .architectures = kAxk1Architectures,
                                 .keys = kAxk1Keys,
                                 .read_attention = &read_axk1_attention,
                                 .read_model = &read_axk1};

}  // namespace mla::families

#endif  // MLA_MODEL_FAMILIES_AXK1_HPP_
