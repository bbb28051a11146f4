#ifndef MLA_MODEL_FAMILIES_GLM_MOE_DSA_HPP_
#define MLA_MODEL_FAMILIES_GLM_MOE_DSA_HPP_

#include <string_view>

#include "mla/model/families/family.hpp"
#include "mla/model/families/indexer.hpp"

// GLM-5, 5.1 and 5.2: DeepSeek-V3.2's layers, whose indexer has interleaved rotary pairs. In 5.2
// some layers share the selection of the last layer with an indexer. rms_norm_eps is 1e-5, that of
// the two latent norms 1e-6. head_dim means different things in files of different writers, and
// nothing here. index_share_for_mtp_iteration is about second and later drafts of multi-token
// prediction, which are not made from the module here.

namespace mla::families {

inline constexpr std::string_view kGlmMoeDsaKeys[] = {
    "qk_head_dim", "head_dim", "rope_parameters", "rope_interleave", "partial_rotary_factor",
    "num_hidden_layers", "hidden_act", "intermediate_size", "mlp_bias", "num_nextn_predict_layers",
    "moe_intermediate_size", "moe_layer_freq", "first_k_dense_replace", "n_routed_experts",
    "num_local_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group",
    "topk_method", "norm_topk_prob", "scoring_func", "routed_scaling_factor", "mlp_layer_types",
    "moe_router_dtype",
    // of the indexer
    "index_n_heads", "index_head_dim", "index_topk", "indexer_rope_interleave", "indexer_types",
    "index_topk_freq", "index_skip_topk_offset", "index_topk_pattern",
    "index_share_for_mtp_iteration"};

inline AttentionConfig read_glm_moe_dsa_attention(const ConfigReader& config) {
  AttentionConfig attention = read_deepseek_attention(config);
  attention.indexer = read_indexer(config, true);
  return attention;
}

inline void read_glm_moe_dsa(const ConfigReader& config, ModelConfig& model) {
  constexpr MixtureOfExpertsConfig kDefaults = {};
  read_decoder(config, model);
  read_experts(config, kDefaults, model);
  read_indexer_types(config, model);
}

inline constexpr std::string_view kGlmMoeDsaTypes[] = {"glm_moe_dsa"};
inline constexpr std::string_view kGlmMoeDsaArchitectures[] = {"GlmMoeDsaForCausalLM"};
inline constexpr Family kGlmMoeDsa = {.model_types = kGlmMoeDsaTypes,
                                      .architectures = kGlmMoeDsaArchitectures,
                                      .keys = kGlmMoeDsaKeys,
                                      .read_attention = &read_glm_moe_dsa_attention,
                                      .read_model = &read_glm_moe_dsa};

}  // namespace mla::families

#endif  // MLA_MODEL_FAMILIES_GLM_MOE_DSA_HPP_
