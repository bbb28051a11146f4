#ifndef MLA_EXAMPLES_CONFORMANCE_CASE_CONFIG_HPP_
#define MLA_EXAMPLES_CONFORMANCE_CASE_CONFIG_HPP_

#include <nlohmann/json.hpp>
#include <string>

#include "case_file.hpp"

#include "mla/core/attention_config.hpp"
#include "mla/core/error.hpp"
#include "mla/io/json.hpp"
#include "mla/model/read_attention_config.hpp"

namespace mla::conformance {

/// A `rope_scaling` block of a case: null, or {type, factor, ...}. Beside the types of published
/// models there are `ntk` and `dynamic`.
inline RopeScaling read_rope_scaling(const nlohmann::json& json, const std::string& where) {
  RopeScaling scaling;
  if (json.is_null()) return scaling;
  if (!json.is_object()) throw_runtime(where, " must be null or an object, got ", json_text(json));
  std::string type = "default";
  for (const auto& [key, value] : json.items()) {
    const std::string at = where + "." + key;
    if (key == "type" || key == "rope_type")
      type = json_string(value, at);
    else if (key == "factor")
      scaling.factor = json_number(value, at);
    else if (key == "original_max_position_embeddings")
      scaling.original_max_position_embeddings = json_size(value, at);
    else if (key == "beta_fast")
      scaling.beta_fast = json_number(value, at);
    else if (key == "beta_slow")
      scaling.beta_slow = json_number(value, at);
    else if (key == "mscale")
      scaling.mscale = json_number(value, at);
    else if (key == "mscale_all_dim")
      scaling.mscale_all_dim = json_number(value, at);
    else
      throw_runtime(at, " = ", json_text(value), " is not supported");
  }
  if (type == "default") return {};
  for (const RopeScalingType known :
       {RopeScalingType::none, RopeScalingType::linear, RopeScalingType::dynamic,
        RopeScalingType::ntk, RopeScalingType::yarn})
    if (name_of(known) == type) {
      scaling.type = known;
      return scaling;
    }
  throw_runtime(where, ".type = ", type, " is not supported");
}

namespace detail {

// Keys of a published config.json.
inline AttentionConfig read_published_config(nlohmann::json json, const std::string& where) {
  if (!json.is_object()) throw_runtime(where, " must be an object, got ", json_text(json));
  json.emplace("model_type", "deepseek_v3");
  const RopeScaling scaling =
      read_rope_scaling(json.value("rope_scaling", nlohmann::json()), where + ".rope_scaling");
  if (json.contains("rope_parameters")) return read_attention_config(json, where);
  json.erase("rope_scaling");
  AttentionConfig config = read_attention_config(json, where);
  config.rope_scaling = scaling;
  return config;
}

// The lesson's own names.
inline AttentionConfig read_tutorial_config(const nlohmann::json& json, const std::string& where) {
  const auto size = [&](const char* key) {
    return json_size(field(json, key, where), where + "." + key);
  };
  AttentionConfig config = AttentionConfig::lesson(
      size("n_embd"), size("n_head"), size("kv_lora_rank"), size("q_lora_rank"), size("rope_dim"));
  config.rope_interleave = false;
  config.rope_scaling =
      read_rope_scaling(json.value("rope_scaling", nlohmann::json()), where + ".rope_scaling");
  config.rope_theta = json_number(field(json, "rope_theta", where), where + ".rope_theta");
  config.kv_a_layernorm_eps =
      json_number(field(json, "rms_norm_eps", where), where + ".rms_norm_eps");
  return config;
}

}  // namespace detail

/// The layer that a case is about.
inline AttentionConfig read_config(const CaseFile& file) {
  const nlohmann::json json = file.json("config");
  const std::string where = file.path() + ": config";
  return file.kind() == "tutorial" ? detail::read_tutorial_config(json, where)
                                   : detail::read_published_config(json, where);
}

/// Whether q_a_proj, kv_a_proj_with_mqa and o_proj have biases.
inline bool has_attention_bias(const CaseFile& file) {
  const nlohmann::json bias = file.json("config").value("attention_bias", nlohmann::json());
  return !bias.is_null() && json_bool(bias, file.path() + ": config.attention_bias");
}

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_CASE_CONFIG_HPP_
