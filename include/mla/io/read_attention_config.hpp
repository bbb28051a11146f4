#ifndef MLA_IO_READ_ATTENTION_CONFIG_HPP_
#define MLA_IO_READ_ATTENTION_CONFIG_HPP_

#include <algorithm>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>

#include "mla/core/config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"

// config.json of a published model. What is not understood is refused: a key that is in none of the
// lists below might change what the attention computes (index_topk, sliding_window,
// mla_scale_q_lora, llama_4_scaling_beta, ...), and a model that ignores it answers wrongly without
// a word. Only null and false, which switch a feature off, are accepted for any key.

namespace mla {

namespace detail {

inline constexpr std::string_view kModelTypes[] = {"deepseek_v2", "deepseek_v3", "kimi_k2"};

/// Keys that are read here.
inline constexpr std::string_view kAttentionKeys[] = {
    "model_type",      "hidden_size",      "num_attention_heads",  "q_lora_rank",
    "kv_lora_rank",    "qk_nope_head_dim", "qk_rope_head_dim",     "v_head_dim",
    "qk_head_dim",     "head_dim",         "rope_theta",           "rope_scaling",
    "rope_parameters", "rope_interleave",  "partial_rotary_factor"};

/// Keys that change nothing about attention, or that others read: quantization_config is read with
/// the weights. num_key_value_heads means nothing in MLA, and rms_norm_eps is not the eps of its
/// two norms.
inline constexpr std::string_view kOtherKeys[] = {
    // files and training
    "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "_name_or_path",
    "_attn_implementation", "_attn_implementation_autoset", "unsloth_fixed", "unsloth_version",
    "use_cache", "is_decoder", "return_dict", "id2label", "label2id", "initializer_range",
    "attention_dropout", "pretraining_tp", "quantization_config",
    // the model around it
    "num_hidden_layers", "max_position_embeddings", "attention_bias", "vocab_size", "bos_token_id",
    "eos_token_id", "pad_token_id", "tie_word_embeddings", "num_key_value_heads", "rms_norm_eps",
    "hidden_act", "intermediate_size", "mlp_bias", "mlp_layer_types", "num_nextn_predict_layers",
    // mixture of experts
    "moe_intermediate_size", "moe_layer_freq", "first_k_dense_replace", "n_routed_experts",
    "num_local_experts", "num_experts", "n_shared_experts", "num_experts_per_tok", "n_group",
    "topk_group", "topk_method", "norm_topk_prob", "scoring_func", "routed_scaling_factor",
    "ep_size", "seq_aux", "aux_loss_alpha", "router_aux_loss_coef", "output_router_logits"};

inline RopeScaling read_rope_scaling(const ConfigReader& rope) {
  static constexpr std::string_view kPlain[] = {"type", "rope_type", "rope_theta",
                                                "partial_rotary_factor"};
  static constexpr std::string_view kLinear[] = {"factor"};
  static constexpr std::string_view kYarn[] = {"factor",    "original_max_position_embeddings",
                                               "beta_fast", "beta_slow",
                                               "mscale",    "mscale_all_dim",
                                               "truncate"};

  // "type" is the older name; files that were written anew carry both.
  const bool older = !rope.find("rope_type") && rope.find("type");
  const char* key = older ? "type" : "rope_type";
  const std::string type = rope.find(key) ? rope.string(key) : "default";
  if (rope.find("type") && rope.string("type") != type)
    rope.fail("type = ", rope.string("type"), " contradicts rope_type = ", type);
  rope.expect("partial_rotary_factor", 1.0);

  const std::string reason = " with rope type " + type;
  RopeScaling scaling;
  if (type == "default") {
    rope.refuse_keys_besides({kPlain}, false, reason);
  } else if (type == "linear") {
    rope.refuse_keys_besides({kPlain, kLinear}, false, reason);
    scaling.type = RopeScalingType::linear;
    scaling.factor = rope.number("factor");
  } else if (type == "yarn") {
    rope.refuse_keys_besides({kPlain, kYarn}, false, reason);
    // true: the ramp's ends are rounded to whole dims, as DeepSeek's code does.
    if (!rope.boolean("truncate", true)) rope.fail("truncate = false is not supported");
    scaling.type = RopeScalingType::yarn;
    scaling.factor = rope.number("factor");
    scaling.original_max_position_embeddings = rope.size("original_max_position_embeddings");
    scaling.beta_fast = rope.number("beta_fast", scaling.beta_fast);
    scaling.beta_slow = rope.number("beta_slow", scaling.beta_slow);
    scaling.mscale = rope.number("mscale", scaling.mscale);
    scaling.mscale_all_dim = rope.number("mscale_all_dim", scaling.mscale_all_dim);
  } else {
    rope.fail(key, " = ", type, " is not supported; default, linear and yarn are");
  }
  return scaling;
}

/// `rope_theta` beside `rope_scaling` (transformers 4) or both inside `rope_parameters` (5).
inline void read_rope(const ConfigReader& config, AttentionConfig& attention) {
  config.expect("partial_rotary_factor", 1.0);
  attention.rope_interleave = config.boolean("rope_interleave", true);
  const bool newer = config.find("rope_parameters") != nullptr;
  if (newer && config.find("rope_scaling"))
    config.fail("rope_parameters and rope_scaling are both given");
  const char* key = newer ? "rope_parameters" : "rope_scaling";
  if (!config.find(key)) {
    attention.rope_theta = config.number("rope_theta");
    return;
  }
  const ConfigReader rope = config.object(key);
  attention.rope_scaling = read_rope_scaling(rope);
  attention.rope_theta =
      rope.find("rope_theta") ? rope.number("rope_theta") : config.number("rope_theta");
  if (config.number("rope_theta", attention.rope_theta) != attention.rope_theta)
    config.fail("rope_theta = ", config.number("rope_theta"), " contradicts ", key,
                ".rope_theta = ", attention.rope_theta);
}

}  // namespace detail

/// The attention of a config.json of model_type deepseek_v2, deepseek_v3 or kimi_k2. The norms'
/// eps is 1e-6 whatever rms_norm_eps says, as in DeepSeek's code. Throws std::runtime_error
/// beginning with `origin`, the file's path, and naming the key and its value when a key is
/// missing, has the wrong type, or is not understood.
inline AttentionConfig read_attention_config(const nlohmann::json& json,
                                             const std::string& origin = "config.json") {
  const ConfigReader config(json, origin + ": ");
  if (std::ranges::count(detail::kModelTypes, config.string("model_type")) == 0)
    config.fail("model_type = ", config.string("model_type"),
                " is not supported; deepseek_v2, deepseek_v3 and kimi_k2 are");
  config.refuse_keys_besides({detail::kAttentionKeys, detail::kOtherKeys}, true,
                             ": it may change what the attention computes");

  AttentionConfig attention;
  attention.hidden_size = config.size("hidden_size");
  attention.num_attention_heads = config.size("num_attention_heads");
  if (!config.contains("q_lora_rank")) config.fail("q_lora_rank is missing");
  attention.q_lora_rank = config.find("q_lora_rank") ? config.size("q_lora_rank") : 0;
  if (config.find("q_lora_rank") && attention.q_lora_rank == 0)
    config.fail("q_lora_rank must be positive or null, got 0");
  attention.kv_lora_rank = config.size("kv_lora_rank");
  attention.qk_nope_head_dim = config.size("qk_nope_head_dim");
  attention.qk_rope_head_dim = config.size("qk_rope_head_dim");
  attention.v_head_dim = config.size("v_head_dim");
  detail::read_rope(config, attention);
  try {
    attention.validate();
  } catch (const std::invalid_argument& error) {
    config.fail(error.what());
  }
  // Derived, but written by transformers; its head_dim is the rotary part.
  config.expect("qk_head_dim", static_cast<double>(attention.qk_head_dim()));
  config.expect("head_dim", static_cast<double>(attention.qk_rope_head_dim));
  return attention;
}

/// Reads config.json in a model's directory.
inline AttentionConfig load_attention_config(const std::filesystem::path& directory) {
  const auto path = directory / "config.json";
  return read_attention_config(*JsonDocument(parse_json_file(path)), path.string());
}

}  // namespace mla

#endif  // MLA_IO_READ_ATTENTION_CONFIG_HPP_
