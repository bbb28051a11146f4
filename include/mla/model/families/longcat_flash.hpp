#ifndef MLA_MODEL_FAMILIES_LONGCAT_FLASH_HPP_
#define MLA_MODEL_FAMILIES_LONGCAT_FLASH_HPP_

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>

#include "mla/model/families/family.hpp"

// LongCat-Flash: two attentions and two MLPs per layer, a mixture of experts beside them, experts
// that give a token's own state back, and scaled latents. Its files have no model_type and names of
// their own. The module for multi-token prediction (model.mtp) is not read.

namespace mla::families {

inline constexpr std::string_view kLongcatKeys[] = {
    "num_layers", "ffn_hidden_size", "expert_ffn_hidden_size", "moe_topk", "n_routed_experts",
    "zero_expert_num", "zero_expert_type", "routed_scaling_factor", "mla_scale_q_lora",
    "mla_scale_kv_lora", "attention_method", "qk_head_dim", "hidden_act", "router_bias",
    // as transformers writes it: twice num_layers
    "num_hidden_layers", "head_dim", "rope_parameters"};

inline AttentionConfig read_longcat_attention(const ConfigReader& config) {
  if (config.find("attention_method") && config.string("attention_method") != "MLA")
    config.fail("attention_method = ", config.string("attention_method"),
                " is not supported; MLA is");
  AttentionConfig attention = read_deepseek_attention(config);
  if (attention.q_lora_rank == 0) config.fail("q_lora_rank must not be null");
  // Published code scales whatever mla_scale_q_lora and mla_scale_kv_lora say.
  for (const char* key : {"mla_scale_q_lora", "mla_scale_kv_lora"})
    if (!config.boolean(key, true)) config.fail(key, " = false is not supported");
  const auto scale = [&](Index rank) {
    return std::sqrt(static_cast<double>(attention.hidden_size) /
                     static_cast<double>(std::max<Index>(1, rank)));
  };
  attention.q_latent_scale = scale(attention.q_lora_rank);
  attention.kv_latent_scale = scale(attention.kv_lora_rank);
  return attention;
}

inline void read_longcat(const ConfigReader& config, ModelConfig& model) {
  read_decoder(config, model, "num_layers", "ffn_hidden_size");
  config.expect("num_hidden_layers", 2.0 * static_cast<double>(model.num_hidden_layers));
  if (config.boolean("router_bias", false)) config.fail("router_bias = true is not supported");
  model.experts = {.n_routed_experts = config.size("n_routed_experts"),
                   .zero_experts = size_or(config, "zero_expert_num", 0),
                   .num_experts_per_tok = config.size("moe_topk"),
                   .n_shared_experts = 0,
                   .moe_intermediate_size = config.size("expert_ffn_hidden_size"),
                   .n_group = 1,
                   .topk_group = 1,
                   .scoring_func = ScoringFunction::softmax,
                   .topk_method = TopkMethod::noaux_tc,
                   .norm_topk_prob = false,
                   .routed_scaling_factor = config.number("routed_scaling_factor")};
  if (model.experts.zero_experts > 0 && config.find("zero_expert_type") &&
      config.string("zero_expert_type") != "identity")
    config.fail("zero_expert_type = ", config.string("zero_expert_type"),
                " is not supported; identity is");
  model.shortcut_experts = true;
  model.names.router = "router.classifier.weight";
  model.names.router_bias = "router.e_score_correction_bias";
  model.names.other_parts = {"model.mtp."};
}

inline constexpr std::string_view kLongcatTypes[] = {"longcat_flash"};
inline constexpr std::string_view kLongcatArchitectures[] = {"LongcatFlashForCausalLM",
                                                             "LongcatCausalLM"};
inline constexpr Family kLongcatFlash = {.model_types = kLongcatTypes,
                                         .architectures = kLongcatArchitectures,
                                         .keys = kLongcatKeys,
                                         .read_attention = &read_longcat_attention,
                                         .read_model = &read_longcat,
                                         .by_architecture = true};

}  // namespace mla::families

#endif  // MLA_MODEL_FAMILIES_LONGCAT_FLASH_HPP_
