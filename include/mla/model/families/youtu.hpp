#ifndef MLA_MODEL_FAMILIES_YOUTU_HPP_
#define MLA_MODEL_FAMILIES_YOUTU_HPP_

#include <string_view>

#include "mla/model/families/family.hpp"

// Youtu-LLM: DeepSeek-V3's attention, dense SwiGLU layers, tied embeddings.

namespace mla::families {

inline constexpr std::string_view kYoutuKeys[] = {
    "qk_head_dim",       "head_dim",   "rope_parameters",   "rope_interleave",
    "num_hidden_layers", "hidden_act", "intermediate_size", "mlp_bias"};

inline AttentionConfig read_youtu_attention(const ConfigReader& config) {
  AttentionConfig attention = read_deepseek_attention(config);
  config.expect("head_dim", static_cast<double>(attention.qk_rope_head_dim));
  return attention;
}

inline void read_youtu(const ConfigReader& config, ModelConfig& model) {
  read_decoder(config, model);
  model.tie_word_embeddings = config.boolean("tie_word_embeddings", true);
}

inline constexpr std::string_view kYoutuTypes[] = {"youtu", "youtu_llm"};
inline constexpr std::string_view kYoutuArchitectures[] = {"YoutuForCausalLM"};
inline constexpr Family kYoutu = {.model_types = kYoutuTypes,
                                  .architectures = kYoutuArchitectures,
                                  .keys = kYoutuKeys,
                                  .read_attention = &read_youtu_attention,
                                  .read_model = &read_youtu};

}  // namespace mla::families

#endif  // MLA_MODEL_FAMILIES_YOUTU_HPP_
