#ifndef MLA_MODEL_FAMILIES_PLM_HPP_
#define MLA_MODEL_FAMILIES_PLM_HPP_

#include <string_view>

#include "mla/model/families/family.hpp"

// PLM: DeepSeek-V2-Lite's attention, and an MLP without a gate, down(relu(up(x))^2).

namespace mla::families {

inline constexpr std::string_view kPlmKeys[] = {"qk_head_dim",       "rope_interleave",
                                                "num_hidden_layers", "hidden_act",
                                                "intermediate_size", "mlp_bias"};

inline AttentionConfig read_plm_attention(const ConfigReader& config) {
  return read_deepseek_attention(config);
}

inline void read_plm(const ConfigReader& config, ModelConfig& model) {
  read_decoder(config, model, "num_hidden_layers", "intermediate_size", Activation::relu2);
}

inline constexpr std::string_view kPlmTypes[] = {"plm"};
inline constexpr std::string_view kPlmArchitectures[] = {"PLMForCausalLM"};
inline constexpr Family kPlm = {.model_types = kPlmTypes,
                                .architectures = kPlmArchitectures,
                                .keys = kPlmKeys,
                                .read_attention = &read_plm_attention,
                                .read_model = &read_plm};

}  // namespace mla::families

#endif  // MLA_MODEL_FAMILIES_PLM_HPP_
