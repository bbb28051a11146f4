#ifndef MLA_MODEL_FAMILIES_SARVAM_MLA_HPP_
#define MLA_MODEL_FAMILIES_SARVAM_MLA_HPP_

#include <string_view>

#include "mla/model/families/family.hpp"

// Sarvam: DeepSeek-V3 without query compression. Its files call YaRN deepseek_yarn and the numbers
// of experts num_experts and num_shared_experts; head_dim (latent and rotary key) and q_head_dim
// mean nothing here.

namespace mla::families {

inline constexpr std::string_view kSarvamKeys[] = {"qk_head_dim",
                                                   "head_dim",
                                                   "q_head_dim",
                                                   "rope_interleave",
                                                   "num_hidden_layers",
                                                   "hidden_act",
                                                   "intermediate_size",
                                                   "mlp_bias",
                                                   "moe_intermediate_size",
                                                   "moe_layer_freq",
                                                   "first_k_dense_replace",
                                                   "num_experts",
                                                   "num_shared_experts",
                                                   "num_experts_per_tok",
                                                   "n_group",
                                                   "topk_group",
                                                   "topk_method",
                                                   "norm_topk_prob",
                                                   "scoring_func",
                                                   "routed_scaling_factor"};

inline AttentionConfig read_sarvam_attention(const ConfigReader& config) {
  return read_deepseek_attention(config, {.yarn = "deepseek_yarn"});
}

inline void read_sarvam(const ConfigReader& config, ModelConfig& model) {
  constexpr MixtureOfExpertsConfig kDefaults = {};
  read_decoder(config, model);
  read_experts(config, kDefaults, model, "num_experts", "num_shared_experts");
}

inline constexpr std::string_view kSarvamTypes[] = {"sarvam_mla"};
inline constexpr std::string_view kSarvamArchitectures[] = {"SarvamMLAForCausalLM"};
inline constexpr Family kSarvam = {.model_types = kSarvamTypes,
                                   .architectures = kSarvamArchitectures,
                                   .keys = kSarvamKeys,
                                   .read_attention = &read_sarvam_attention,
                                   .read_model = &read_sarvam};

}  // namespace mla::families

#endif  // MLA_MODEL_FAMILIES_SARVAM_MLA_HPP_
