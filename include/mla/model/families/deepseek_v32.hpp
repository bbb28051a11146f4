#ifndef MLA_MODEL_FAMILIES_DEEPSEEK_V32_HPP_
#define MLA_MODEL_FAMILIES_DEEPSEEK_V32_HPP_

#include <string_view>

#include "mla/model/families/deepseek.hpp"
#include "mla/model/families/family.hpp"
#include "mla/model/families/indexer.hpp"

// DeepSeek-V3.2 and V3.2-Exp: DeepSeek-V3 with an indexer in every layer, that of multi-token
// prediction too. The indexer's rotary pairs are half-split, those of the layer interleaved.

namespace mla::families {

inline constexpr std::string_view kDeepSeekV32Keys[] = {
    "qk_head_dim", "head_dim", "rope_parameters", "rope_interleave", "partial_rotary_factor",
    "num_hidden_layers", "hidden_act", "intermediate_size", "mlp_bias", "num_nextn_predict_layers",
    "moe_intermediate_size", "moe_layer_freq", "first_k_dense_replace", "n_routed_experts",
    "num_local_experts", "n_shared_experts", "num_experts_per_tok", "n_group", "topk_group",
    "topk_method", "norm_topk_prob", "scoring_func", "routed_scaling_factor", "mlp_layer_types",
    // of the indexer
    "index_n_heads", "index_head_dim", "index_topk", "indexer_rope_interleave"};

inline AttentionConfig read_deepseek_v32_attention(const ConfigReader& config) {
  AttentionConfig attention = read_deepseek(config);
  attention.indexer = read_indexer(config, false);
  return attention;
}

inline constexpr std::string_view kDeepSeekV32Types[] = {"deepseek_v32"};
inline constexpr std::string_view kDeepSeekV32Architectures[] = {"DeepseekV32ForCausalLM"};
inline constexpr Family kDeepSeekV32 = {.model_types = kDeepSeekV32Types,
                                        .architectures = kDeepSeekV32Architectures,
                                        .keys = kDeepSeekV32Keys,
                                        .read_attention = &read_deepseek_v32_attention,
                                        .read_model = &read_deepseek_v3};

}  // namespace mla::families

#endif  // MLA_MODEL_FAMILIES_DEEPSEEK_V32_HPP_
