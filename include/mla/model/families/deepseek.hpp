#ifndef MLA_MODEL_FAMILIES_DEEPSEEK_HPP_
#define MLA_MODEL_FAMILIES_DEEPSEEK_HPP_

#include <string_view>

#include "mla/model/families/family.hpp"

// DeepSeek-V2, V3 and R1, Kimi K2, Moonlight, GigaChat 3, Kanana 2; JoyAI, whose layer of
// multi-token prediction has no experts and is in a file of its own.

namespace mla::families {

inline constexpr std::string_view kDeepSeekKeys[] = {
    "qk_head_dim", "head_dim", "rope_parameters", "rope_interleave", "partial_rotary_factor",
    "num_hidden_layers", "hidden_act", "intermediate_size", "mlp_bias", "num_nextn_predict_layers",
    "moe_intermediate_size", "moe_layer_freq", "first_k_dense_replace", "n_routed_experts",
    "num_local_experts", "num_experts", "n_shared_experts", "num_experts_per_tok", "n_group",
    "topk_group", "topk_method", "norm_topk_prob", "scoring_func", "routed_scaling_factor",
    "mlp_layer_types",
    // of DeepSeek-VL2's decoder: written, and read by nobody
    "lm_head", "rm_head", "use_mla"};

inline AttentionConfig read_deepseek(const ConfigReader& config) {
  if (!config.boolean("use_mla", true)) config.fail("use_mla = false: this is not MLA");
  AttentionConfig attention = read_deepseek_attention(config);
  config.expect("head_dim", static_cast<double>(attention.qk_rope_head_dim));
  return attention;
}

// What a file does not say is as the published configuration class has it.
inline constexpr MixtureOfExpertsConfig kDeepSeekV2Experts = {
    .scoring_func = ScoringFunction::softmax,
    .topk_method = TopkMethod::greedy,
    .norm_topk_prob = false,
    .routed_scaling_factor = 1.0,
    .scale_normalised = false};
inline constexpr MixtureOfExpertsConfig kDeepSeekV3Experts = {};

inline void read_deepseek_v2(const ConfigReader& config, ModelConfig& model) {
  read_decoder(config, model);
  read_experts(config, kDeepSeekV2Experts, model);
}
inline void read_deepseek_v3(const ConfigReader& config, ModelConfig& model) {
  read_decoder(config, model);
  read_experts(config, kDeepSeekV3Experts, model);
}
inline void read_joyai(const ConfigReader& config, ModelConfig& model) {
  read_deepseek_v3(config, model);
  model.dense_prediction = true;
}

inline constexpr std::string_view kDeepSeekArchitectures[] = {
    "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "KimiK2ForCausalLM"};
inline constexpr std::string_view kDeepSeekV2Types[] = {"deepseek_v2"};
inline constexpr std::string_view kDeepSeekV3Types[] = {"deepseek_v3", "kimi_k2"};
inline constexpr std::string_view kJoyAITypes[] = {"joyai_llm_flash"};
inline constexpr std::string_view kJoyAIArchitectures[] = {"JoyAILLMFlashForCausalLM",
                                                           "DeepseekV3ForCausalLM"};

inline constexpr Family kDeepSeekV2 = {.model_types = kDeepSeekV2Types,
                                       .architectures = kDeepSeekArchitectures,
                                       .keys = kDeepSeekKeys,
                                       .read_attention = &read_deepseek,
                                       .read_model = &read_deepseek_v2};
inline constexpr Family kDeepSeekV3 = {.model_types = kDeepSeekV3Types,
                                       .architectures = kDeepSeekArchitectures,
                                       .keys = kDeepSeekKeys,
                                       .read_attention = &read_deepseek,
                                       .read_model = &read_deepseek_v3};
inline constexpr Family kJoyAI = {.model_types = kJoyAITypes,
                                  .architectures = kJoyAIArchitectures,
                                  .keys = kDeepSeekKeys,
                                  .read_attention = &read_deepseek,
                                  .read_model = &read_joyai};

}  // namespace mla::families

#endif  // MLA_MODEL_FAMILIES_DEEPSEEK_HPP_
