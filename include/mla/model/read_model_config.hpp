#ifndef MLA_MODEL_READ_MODEL_CONFIG_HPP_
#define MLA_MODEL_READ_MODEL_CONFIG_HPP_

#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/token.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"
#include "mla/io/read_attention_config.hpp"
#include "mla/model/model_config.hpp"

namespace mla {

namespace detail {

/// One of the enumerators that have a name_of(), by its name.
template <class Enum>
Enum read_name(const ConfigReader& config, const char* key, std::initializer_list<Enum> known,
               Enum fallback) {
  if (!config.find(key)) return fallback;
  const std::string& name = config.string(key);
  std::string names;
  for (const Enum value : known) {
    if (name_of(value) == name) return value;
    names += (names.empty() ? "" : ", ") + std::string(name_of(value));
  }
  config.fail(key, " = ", name, " is not supported; known are ", names);
}

inline TokenId read_token(const nlohmann::json& value, const std::string& where) {
  const Index token = json_size(value, where);
  if (token > std::numeric_limits<TokenId>::max())
    throw_runtime(where, " must be a token id, got ", json_text(value));
  return static_cast<TokenId>(token);
}

/// eos_token_id: a token, or several, or null.
inline std::vector<TokenId> read_eos(const ConfigReader& config, const std::string& origin) {
  const nlohmann::json* value = config.find("eos_token_id");
  const std::string where = origin + ": eos_token_id";
  std::vector<TokenId> tokens;
  if (value && value->is_array())
    for (const nlohmann::json& token : *value) tokens.push_back(read_token(token, where));
  else if (value)
    tokens.push_back(read_token(*value, where));
  return tokens;
}

inline MixtureOfExpertsConfig read_experts(const ConfigReader& config, bool v2) {
  MixtureOfExpertsConfig experts;
  experts.n_routed_experts = config.find("n_routed_experts") ? config.size("n_routed_experts") : 0;
  for (const char* other_name : {"num_local_experts", "num_experts"})
    config.expect(other_name, static_cast<double>(experts.n_routed_experts));
  if (experts.n_routed_experts == 0) return experts;

  experts.num_experts_per_tok = config.size("num_experts_per_tok");
  experts.n_shared_experts = config.find("n_shared_experts") ? config.size("n_shared_experts") : 0;
  experts.moe_intermediate_size = config.size("moe_intermediate_size");
  // What a file does not say is as the published configuration class has it.
  experts.scoring_func =
      read_name(config, "scoring_func", {ScoringFunction::sigmoid, ScoringFunction::softmax},
                v2 ? ScoringFunction::softmax : ScoringFunction::sigmoid);
  experts.topk_method =
      read_name(config, "topk_method",
                {TopkMethod::greedy, TopkMethod::group_limited_greedy, TopkMethod::noaux_tc},
                v2 ? TopkMethod::greedy : TopkMethod::noaux_tc);
  experts.n_group = experts.grouped() ? config.size("n_group") : 1;
  experts.topk_group = experts.grouped() ? config.size("topk_group") : 1;
  experts.norm_topk_prob = config.boolean("norm_topk_prob", !v2);
  experts.routed_scaling_factor = config.number("routed_scaling_factor", v2 ? 1.0 : 2.5);
  experts.scale_normalised = !v2;
  return experts;
}

/// `mlp_layer_types` of newer files in terms of first_k_dense_replace.
inline void read_layer_types(const ConfigReader& config, const std::string& origin,
                             ModelConfig& model) {
  const nlohmann::json* types = config.find("mlp_layer_types");
  if (!types) return;
  const std::string where = origin + ": mlp_layer_types";
  if (!types->is_array() || types->size() != static_cast<std::size_t>(model.num_hidden_layers))
    config.fail("mlp_layer_types must name num_hidden_layers ", model.num_hidden_layers,
                " types, got ", json_text(*types));
  Index layer = 0, dense = 0;
  for (const nlohmann::json& type : *types) {
    const std::string& name = json_string(type, where);
    if (name == "dense" && dense == layer)
      ++dense;
    else if (name != "sparse")
      config.fail("mlp_layer_types must be dense layers and then sparse ones, got ", name,
                  " for layer ", layer);
    ++layer;
  }
  config.expect("first_k_dense_replace", static_cast<double>(dense));
  model.first_k_dense_replace = dense;
}

inline void check_architecture(const ConfigReader& config, const std::string& origin) {
  constexpr std::string_view kKnown[] = {"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM",
                                         "KimiK2ForCausalLM"};
  const nlohmann::json* names = config.find("architectures");
  if (!names) return;
  if (!names->is_array()) config.fail("architectures must be an array, got ", json_text(*names));
  for (const nlohmann::json& name : *names)
    if (std::ranges::count(kKnown, json_string(name, origin + ": architectures")) > 0) return;
  if (!names->empty())
    config.fail("architectures = ", json_text(*names),
                " is not supported; DeepseekV2ForCausalLM, DeepseekV3ForCausalLM and "
                "KimiK2ForCausalLM are");
}

}  // namespace detail

/// The whole model of a config.json of model_type deepseek_v2, deepseek_v3 or kimi_k2. Throws
/// std::runtime_error beginning with `origin`, the file's path, and naming the key and its value
/// when a key is missing, has the wrong type, or is not understood.
inline ModelConfig read_model_config(const nlohmann::json& json,
                                     const std::string& origin = "config.json") {
  ModelConfig model;
  model.attention = read_attention_config(json, origin);
  const ConfigReader config(json, origin + ": ");
  detail::check_architecture(config, origin);
  const std::string act = config.find("hidden_act") ? config.string("hidden_act") : "silu";
  if (act != "silu") config.fail("hidden_act = ", act, " is not supported; silu is");
  if (config.boolean("mlp_bias", false)) config.fail("mlp_bias = true is not supported");

  model.model_type = config.string("model_type");
  model.attention_bias = config.boolean("attention_bias", false);
  model.num_hidden_layers = config.size("num_hidden_layers");
  model.max_position_embeddings = config.size("max_position_embeddings");
  model.vocab_size = config.size("vocab_size");
  model.intermediate_size = config.size("intermediate_size");
  model.rms_norm_eps = config.number("rms_norm_eps");
  model.tie_word_embeddings = config.boolean("tie_word_embeddings", false);
  model.num_nextn_predict_layers =
      config.find("num_nextn_predict_layers") ? config.size("num_nextn_predict_layers") : 0;
  model.first_k_dense_replace =
      config.find("first_k_dense_replace") ? config.size("first_k_dense_replace") : 0;
  model.moe_layer_freq = config.find("moe_layer_freq") ? config.size("moe_layer_freq") : 1;
  detail::read_layer_types(config, origin, model);
  model.experts = detail::read_experts(config, model.model_type == "deepseek_v2");
  if (const nlohmann::json* bos = config.find("bos_token_id"))
    model.bos_token_id = detail::read_token(*bos, origin + ": bos_token_id");
  model.eos_token_ids = detail::read_eos(config, origin);
  try {
    model.validate();
  } catch (const std::invalid_argument& error) {
    config.fail(error.what());
  }
  return model;
}

/// Reads config.json in a model's directory. Where there is a generation_config.json too, the
/// tokens that end a text are those that it names.
inline ModelConfig load_model_config(const std::filesystem::path& directory) {
  const auto path = directory / "config.json";
  ModelConfig model = read_model_config(*JsonDocument(parse_json_file(path)), path.string());
  const auto generation = directory / "generation_config.json";
  if (!std::filesystem::exists(generation)) return model;
  const JsonDocument json(parse_json_file(generation));
  const ConfigReader config(*json, generation.string() + ": ");
  if (config.find("eos_token_id"))
    model.eos_token_ids = detail::read_eos(config, generation.string());
  return model;
}

}  // namespace mla

#endif  // MLA_MODEL_READ_MODEL_CONFIG_HPP_
