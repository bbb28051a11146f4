#ifndef MLA_MODEL_FAMILIES_FAMILY_HPP_
#define MLA_MODEL_FAMILIES_FAMILY_HPP_

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mla/core/attention_config.hpp"
#include "mla/core/token.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"
#include "mla/model/model_config.hpp"

// What the files of a family of models share: how config.json is read, and how strictly. A family
// has a file of its own beside this one, which lists its keys: those that are read and those that
// mean nothing there. Any other key is refused by name, since it might change what the model
// computes (index_topk, sliding_window, ...), and a model that ignores it answers wrongly without a
// word. Only null and false, which switch a feature off, are accepted for any key.

namespace mla {

using ConfigKeys = std::span<const std::string_view>;

/// A published family of models.
struct Family {
  ConfigKeys model_types;
  ConfigKeys architectures;
  ConfigKeys keys;  ///< read, or without meaning, besides families::kCommonKeys
  /// Of checked keys; need not validate.
  AttentionConfig (*read_attention)(const ConfigReader& config);
  /// Fills in all but `attention` and `model_type`.
  void (*read_model)(const ConfigReader& config, ModelConfig& model);
  /// Its files have no model_type: the architecture tells.
  bool by_architecture = false;
};

/// A larger model with the decoder of a family inside, whose other parts are not run.
struct TextPart {
  ConfigKeys model_types;
  ConfigKeys architectures;
  ConfigKeys keys;              ///< of the file's own level, besides families::kCommonKeys
  const char* config_key;       ///< where the decoder's configuration is
  std::string_view model_type;  ///< of the decoder, where that configuration does not say
  const char* defaults = "{}";  ///< JSON: what else it is where that configuration does not say
  std::string_view prefix;      ///< of its tensors
  ConfigKeys other_parts;       ///< beginnings of the names of other tensors
};

namespace families {

/// Keys of files, training and other programs, which change nothing in any family, and those that
/// every family reads. quantization_config is read with the weights. num_key_value_heads means
/// nothing in MLA.
inline constexpr std::string_view kCommonKeys[] = {
    // files and training
    "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "_name_or_path",
    "_attn_implementation", "_attn_implementation_autoset", "unsloth_fixed", "unsloth_version",
    "use_cache", "is_decoder", "return_dict", "id2label", "label2id", "initializer_range",
    "embedding_initializer_range", "attention_dropout", "pretraining_tp", "quantization_config",
    "num_key_value_heads", "ep_size", "seq_aux", "aux_loss_alpha", "router_aux_loss_coef",
    "output_router_logits", "pad_token_id",
    // defaults of generation, as transformers writes them into nested configurations
    "chunk_size_feed_forward", "diversity_penalty", "encoder_no_repeat_ngram_size",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_return_sequences", "repetition_penalty", "temperature", "top_k", "top_p",
    "typical_p",
    // read
    "model_type", "hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank",
    "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rope_theta", "rope_scaling",
    "attention_bias", "max_position_embeddings", "vocab_size", "bos_token_id", "eos_token_id",
    "tie_word_embeddings", "rms_norm_eps"};

/// A size, or `fallback` where the key is missing or null.
inline Index size_or(const ConfigReader& config, const char* key, Index fallback) {
  return config.find(key) ? config.size(key) : fallback;
}

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

/// How a family writes what stretches its rotary frequencies.
struct RopeDialect {
  std::string_view yarn = "yarn";  ///< the type's name
  bool longrope = false;           ///< whether there is that type
  ConfigKeys more_keys = {};       ///< of the block, which the family reads itself or ignores
};

inline std::vector<double> read_factors(const ConfigReader& rope, const char* key) {
  std::vector<double> factors;
  for (const nlohmann::json& factor : rope.array(key))
    factors.push_back(json_number(factor, rope.where() + key));
  return factors;
}

inline RopeScaling read_longrope(const ConfigReader& config, const ConfigReader& rope) {
  RopeScaling scaling = {.type = RopeScalingType::longrope};
  scaling.original_max_position_embeddings = rope.size("original_max_position_embeddings");
  scaling.longrope = std::make_shared<const LongropeFactors>(
      LongropeFactors{read_factors(rope, "short_factor"), read_factors(rope, "long_factor")});
  const auto longest = static_cast<double>(config.size("max_position_embeddings"));
  const auto original = static_cast<double>(scaling.original_max_position_embeddings);
  if (original < 2.0) rope.fail("original_max_position_embeddings must be above 1");
  // Published code scales cos and sin by the file's factor if it has one. Below 1 it does not.
  scaling.factor = std::max(1.0, rope.number("factor", longest / original));
  scaling.long_context = longest > original;
  return scaling;
}

inline RopeScaling read_rope_scaling(const ConfigReader& config, const ConfigReader& rope,
                                     const RopeDialect& dialect) {
  static constexpr std::string_view kPlain[] = {"type", "rope_type", "rope_theta",
                                                "partial_rotary_factor"};
  static constexpr std::string_view kLinear[] = {"factor"};
  static constexpr std::string_view kYarn[] = {"factor",    "original_max_position_embeddings",
                                               "beta_fast", "beta_slow",
                                               "mscale",    "mscale_all_dim",
                                               "truncate"};
  static constexpr std::string_view kLongrope[] = {"factor", "original_max_position_embeddings",
                                                   "short_factor", "long_factor"};

  // "type" is the older name; files that were written anew carry both.
  const bool older = !rope.find("rope_type") && rope.find("type");
  const char* key = older ? "type" : "rope_type";
  const std::string type = rope.find(key) ? rope.string(key) : "default";
  if (rope.find("type") && rope.string("type") != type)
    rope.fail("type = ", rope.string("type"), " contradicts rope_type = ", type);
  if (std::ranges::count(dialect.more_keys, "partial_rotary_factor") == 0)
    rope.expect("partial_rotary_factor", 1.0);

  const std::string reason = " with rope type " + type;
  const auto refuse_besides = [&](ConfigKeys keys) {
    rope.refuse_keys_besides({kPlain, keys, dialect.more_keys}, false, reason);
  };
  RopeScaling scaling;
  if (type == "default") {
    refuse_besides({});
  } else if (type == "linear") {
    refuse_besides(kLinear);
    scaling.type = RopeScalingType::linear;
    scaling.factor = rope.number("factor");
  } else if (type == dialect.yarn) {
    refuse_besides(kYarn);
    // true: the ramp's ends are rounded to whole dims, as DeepSeek's code does.
    if (!rope.boolean("truncate", true)) rope.fail("truncate = false is not supported");
    scaling.type = RopeScalingType::yarn;
    scaling.factor = rope.number("factor");
    scaling.original_max_position_embeddings = rope.size("original_max_position_embeddings");
    scaling.beta_fast = rope.number("beta_fast", scaling.beta_fast);
    scaling.beta_slow = rope.number("beta_slow", scaling.beta_slow);
    scaling.mscale = rope.number("mscale", scaling.mscale);
    scaling.mscale_all_dim = rope.number("mscale_all_dim", scaling.mscale_all_dim);
  } else if (dialect.longrope && type == "longrope") {
    refuse_besides(kLongrope);
    scaling = read_longrope(config, rope);
  } else {
    rope.fail(key, " = ", type, " is not supported; default, linear and ", dialect.yarn,
              dialect.longrope ? " and longrope are" : " are");
  }
  return scaling;
}

/// `rope_theta` beside `rope_scaling` (transformers 4) or both inside `rope_parameters` (5).
inline void read_rope(const ConfigReader& config, AttentionConfig& attention,
                      const RopeDialect& dialect = {}) {
  config.expect("partial_rotary_factor", 1.0);
  attention.rope_interleave = config.boolean("rope_interleave", attention.rope_interleave);
  const bool newer = config.find("rope_parameters") != nullptr;
  if (newer && config.find("rope_scaling"))
    config.fail("rope_parameters and rope_scaling are both given");
  const char* key = newer ? "rope_parameters" : "rope_scaling";
  if (!config.find(key)) {
    attention.rope_theta = config.number("rope_theta");
    return;
  }
  const ConfigReader rope = config.object(key);
  attention.rope_scaling = read_rope_scaling(config, rope, dialect);
  attention.rope_theta =
      rope.find("rope_theta") ? rope.number("rope_theta") : config.number("rope_theta");
  if (config.number("rope_theta", attention.rope_theta) != attention.rope_theta)
    config.fail("rope_theta = ", config.number("rope_theta"), " contradicts ", key,
                ".rope_theta = ", attention.rope_theta);
}

/// The dims of an MLA layer. The norms' eps is 1e-6 whatever rms_norm_eps says, as in all published
/// code of these families.
inline AttentionConfig read_attention_dims(const ConfigReader& config) {
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
  return attention;
}

inline AttentionConfig read_deepseek_attention(const ConfigReader& config,
                                               const RopeDialect& dialect = {}) {
  AttentionConfig attention = read_attention_dims(config);
  attention.v_head_dim = config.size("v_head_dim");
  read_rope(config, attention, dialect);
  // Derived, but written by transformers; its head_dim is the rotary part.
  config.expect("qk_head_dim", static_cast<double>(attention.qk_head_dim()));
  return attention;
}

inline TokenId read_token(const nlohmann::json& value, const std::string& where) {
  const Index token = json_size(value, where);
  if (token > std::numeric_limits<TokenId>::max())
    throw_runtime(where, " must be a token id, got ", json_text(value));
  return static_cast<TokenId>(token);
}

/// eos_token_id: a token, or several, or null.
inline std::vector<TokenId> read_eos(const ConfigReader& config) {
  const nlohmann::json* value = config.find("eos_token_id");
  const std::string where = config.where() + "eos_token_id";
  std::vector<TokenId> tokens;
  if (value && value->is_array())
    for (const nlohmann::json& token : *value) tokens.push_back(read_token(token, where));
  else if (value)
    tokens.push_back(read_token(*value, where));
  return tokens;
}

/// What every decoder has, with the names that most files give it. Throws for an activation other
/// than `known`.
inline void read_decoder(const ConfigReader& config, ModelConfig& model,
                         const char* layers_key = "num_hidden_layers",
                         const char* mlp_key = "intermediate_size",
                         Activation known = Activation::silu) {
  model.hidden_act = read_name(config, "hidden_act", {known}, known);
  if (config.boolean("mlp_bias", false)) config.fail("mlp_bias = true is not supported");
  model.attention_bias = config.boolean("attention_bias", false);
  model.num_hidden_layers = config.size(layers_key);
  model.max_position_embeddings = config.size("max_position_embeddings");
  model.vocab_size = config.size("vocab_size");
  model.intermediate_size = config.size(mlp_key);
  model.rms_norm_eps = config.number("rms_norm_eps");
  model.tie_word_embeddings = config.boolean("tie_word_embeddings", false);
  model.num_nextn_predict_layers = 0;
  model.first_k_dense_replace = 0;
  model.experts = {.n_routed_experts = 0};
  if (const nlohmann::json* bos = config.find("bos_token_id"))
    model.bos_token_id = read_token(*bos, config.where() + "bos_token_id");
  model.eos_token_ids = read_eos(config);
}

/// `mlp_layer_types` of newer files in terms of first_k_dense_replace.
inline void read_layer_types(const ConfigReader& config, ModelConfig& model) {
  const nlohmann::json* types = config.find("mlp_layer_types");
  if (!types) return;
  if (!types->is_array() || types->size() != static_cast<std::size_t>(model.num_hidden_layers))
    config.fail("mlp_layer_types must name num_hidden_layers ", model.num_hidden_layers,
                " types, got ", json_text(*types));
  Index layer = 0, dense = 0;
  for (const nlohmann::json& type : *types) {
    const std::string& name = json_string(type, config.where() + "mlp_layer_types");
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

/// DeepSeek's mixture of experts. `experts` has what the family takes where a file does not say;
/// `routed_key` and `shared_key` are its names of two numbers.
inline void read_experts(const ConfigReader& config, const MixtureOfExpertsConfig& defaults,
                         ModelConfig& model, const char* routed_key = "n_routed_experts",
                         const char* shared_key = "n_shared_experts") {
  model.num_nextn_predict_layers = size_or(config, "num_nextn_predict_layers", 0);
  model.first_k_dense_replace = size_or(config, "first_k_dense_replace", 0);
  model.moe_layer_freq = size_or(config, "moe_layer_freq", 1);
  read_layer_types(config, model);
  MixtureOfExpertsConfig& experts = model.experts = defaults;
  experts.n_routed_experts = size_or(config, routed_key, 0);
  for (const char* other_name : {"num_local_experts", "num_experts"})
    config.expect(other_name, static_cast<double>(experts.n_routed_experts));
  if (experts.n_routed_experts == 0) {
    model.experts = {.n_routed_experts = 0};
    return;
  }
  experts.num_experts_per_tok = config.size("num_experts_per_tok");
  experts.n_shared_experts = size_or(config, shared_key, 0);
  experts.moe_intermediate_size = config.size("moe_intermediate_size");
  experts.scoring_func =
      read_name(config, "scoring_func", {ScoringFunction::sigmoid, ScoringFunction::softmax},
                defaults.scoring_func);
  experts.topk_method =
      read_name(config, "topk_method",
                {TopkMethod::greedy, TopkMethod::group_limited_greedy, TopkMethod::noaux_tc},
                defaults.topk_method);
  experts.n_group = experts.grouped() ? config.size("n_group") : 1;
  experts.topk_group = experts.grouped() ? config.size("topk_group") : 1;
  experts.norm_topk_prob = config.boolean("norm_topk_prob", defaults.norm_topk_prob);
  experts.routed_scaling_factor =
      config.number("routed_scaling_factor", defaults.routed_scaling_factor);
}

}  // namespace families
}  // namespace mla

#endif  // MLA_MODEL_FAMILIES_FAMILY_HPP_
