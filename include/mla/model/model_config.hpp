#ifndef MLA_MODEL_MODEL_CONFIG_HPP_
#define MLA_MODEL_MODEL_CONFIG_HPP_

#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/attention_config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"

namespace mla {

/// How the router's logits become scores (config key `scoring_func`).
enum class ScoringFunction { sigmoid, softmax };

/// Empty for a value that is none of them.
constexpr std::string_view name_of(ScoringFunction scoring) noexcept {
  switch (scoring) {
    case ScoringFunction::sigmoid:
      return "sigmoid";
    case ScoringFunction::softmax:
      return "softmax";
  }
  return {};
}

/// How experts are chosen by their scores (config key `topk_method`).
enum class TopkMethod {
  greedy,                ///< the best of all
  group_limited_greedy,  ///< DeepSeek-V2: of the groups with the best experts
  noaux_tc,              ///< DeepSeek-V3: of the groups with the best pairs, by biased scores
};

/// Empty for a value that is none of them.
constexpr std::string_view name_of(TopkMethod method) noexcept {
  switch (method) {
    case TopkMethod::greedy:
      return "greedy";
    case TopkMethod::group_limited_greedy:
      return "group_limited_greedy";
    case TopkMethod::noaux_tc:
      return "noaux_tc";
  }
  return {};
}

/// The mixture of experts of a model's layers. Names and meanings are those of config.json, the
/// defaults DeepSeek-V3's.
struct MixtureOfExpertsConfig {
  Index n_routed_experts = 256;  ///< 0: no layer has experts (config key null)
  /// Choices of the router after those, which have no weights: a token's own state is their result.
  Index zero_experts = 0;
  Index num_experts_per_tok = 8;
  Index n_shared_experts = 1;  ///< one MLP of n_shared_experts * moe_intermediate_size for all
  Index moe_intermediate_size = 2048;
  Index n_group = 8;     ///< groups of neighbouring experts, all of the same size
  Index topk_group = 4;  ///< groups that a token may choose from; without meaning to greedy
  ScoringFunction scoring_func = ScoringFunction::sigmoid;
  TopkMethod topk_method = TopkMethod::noaux_tc;
  bool norm_topk_prob = true;  ///< the weights of a token's experts are divided by their sum
  double routed_scaling_factor = 2.5;
  /// DeepSeek-V3: weights are scaled in any case, and a single one is normalised too. V2: weights
  /// that were normalised are not scaled, and a single one is scaled only.
  bool scale_normalised = true;

  bool operator==(const MixtureOfExpertsConfig&) const = default;

  bool grouped() const noexcept { return topk_method != TopkMethod::greedy; }
  /// What the router chooses from.
  Index choices() const noexcept { return n_routed_experts + zero_experts; }
  Index group_size() const noexcept { return choices() / n_group; }

  /// Throws std::invalid_argument naming the field.
  void validate() const;
};

/// What an MLP computes (config key `hidden_act`).
enum class Activation {
  silu,   ///< down_proj(silu(gate_proj(x)) * up_proj(x))
  relu2,  ///< down_proj(relu(up_proj(x))^2), without a gate
};

/// Empty for a value that is none of them.
constexpr std::string_view name_of(Activation activation) noexcept {
  switch (activation) {
    case Activation::silu:
      return "silu";
    case Activation::relu2:
      return "relu2";
  }
  return {};
}

/// Where a decoder's tensors are in a file, as far as families differ.
struct TensorNames {
  std::string prefix = {};  ///< of all names: "language_model."
  /// Beginnings of the names of other parts of a larger model, which are not read.
  std::vector<std::string> other_parts = {};
  std::string router = "gate.weight";  ///< within the mlp of a layer
  std::string router_bias = "gate.e_score_correction_bias";

  bool operator==(const TensorNames&) const = default;
};

/// Shape and arithmetic of a whole decoder: config.json of a family that model/families knows.
/// Terms that DeepSeek does not have are neutral where nothing else is said.
struct ModelConfig {
  std::string model_type = "deepseek_v3";
  AttentionConfig attention;  ///< hidden_size is here
  bool attention_bias = false;
  Index vocab_size = 129280;
  Index num_hidden_layers = 61;
  Index intermediate_size = 18432;  ///< of layers without experts
  Index max_position_embeddings = 163840;
  double rms_norm_eps = 1e-6;  ///< of all norms but the attention's own two
  bool tie_word_embeddings = false;
  Index num_nextn_predict_layers = 1;  ///< modules for multi-token prediction
  Index first_k_dense_replace = 3;     ///< layers before this one have no experts
  Index moe_layer_freq = 1;            ///< layers that are no multiple of it have none either
  MixtureOfExpertsConfig experts;
  Activation hidden_act = Activation::silu;  ///< of MLPs; experts are silu
  double embedding_scale = 1.0;              ///< on embeddings
  double residual_scale = 1.0;  ///< on what attention and MLP add to the residual stream
  double logit_scale = 1.0;     ///< on logits
  /// A norm on the result of each mixture of experts, before it is added.
  bool post_mlp_layernorm = false;
  /// The layer of multi-token prediction has no experts.
  bool dense_prediction = false;
  /// A layer is attention, MLP, attention, MLP; a mixture of experts runs beside them, from the
  /// first MLP's input to the layer's end (LongCat-Flash).
  bool shortcut_experts = false;
  /// [num_hidden_layers] which layers have an indexer of their own, full, and which take the
  /// selection of the last one that has, shared. Empty: as `attention` says, each its own. The
  /// layer of multi-token prediction has its own in any case.
  std::vector<IndexerType> indexer_types;
  TensorNames names;
  std::optional<TokenId> bos_token_id;
  std::vector<TokenId> eos_token_ids;  ///< each one ends a text

  bool operator==(const ModelConfig&) const = default;

  Index hidden_size() const noexcept { return attention.hidden_size; }
  /// That of a layer: layers differ in who selects their keys.
  AttentionConfig attention_of(Index layer) const {
    AttentionConfig config = attention;
    if (layer < std::ssize(indexer_types))
      config.indexer.type = indexer_types[static_cast<std::size_t>(layer)];
    return config;
  }
  bool has_experts(Index layer) const noexcept {
    if (dense_prediction && layer >= num_hidden_layers) return false;
    return experts.n_routed_experts > 0 && layer >= first_k_dense_replace &&
           layer % moe_layer_freq == 0;
  }
  /// Attentions of a layer, each with a cache of its own.
  Index attentions_per_layer() const noexcept { return shortcut_experts ? 2 : 1; }
  Index attentions() const noexcept { return num_hidden_layers * attentions_per_layer(); }

  /// Throws std::invalid_argument naming the first field that does not fit.
  void validate() const;

 private:
  void validate_indexer_types() const;
};

namespace detail {

/// Keeps every product of two dims far from overflow.
inline void check_dim(const char* field, Index value, Index least = 1) {
  constexpr Index kMaxDim = Index{1} << 24;
  require(value >= least && value <= kMaxDim, field, " must be between ", least, " and ", kMaxDim,
          ", got ", value);
}

}  // namespace detail

inline void MixtureOfExpertsConfig::validate() const {
  detail::check_dim("n_routed_experts", n_routed_experts, 0);
  if (n_routed_experts == 0) return;
  require(!name_of(scoring_func).empty(), "scoring_func must be a ScoringFunction, got ",
          static_cast<int>(scoring_func));
  require(!name_of(topk_method).empty(), "topk_method must be a TopkMethod, got ",
          static_cast<int>(topk_method));
  detail::check_dim("zero_experts", zero_experts, 0);
  detail::check_dim("num_experts_per_tok", num_experts_per_tok);
  detail::check_dim("n_shared_experts", n_shared_experts, 0);
  detail::check_dim("moe_intermediate_size", moe_intermediate_size);
  require(num_experts_per_tok <= choices(), "num_experts_per_tok must be at most ",
          "n_routed_experts ", choices(), ", got ", num_experts_per_tok);
  require(std::isfinite(routed_scaling_factor), "routed_scaling_factor must be finite, got ",
          routed_scaling_factor);
  if (!grouped()) return;
  detail::check_dim("n_group", n_group);
  detail::check_dim("topk_group", topk_group);
  require(choices() % n_group == 0, "n_group must divide n_routed_experts ", choices(), ", got ",
          n_group);
  require(topk_group <= n_group, "topk_group must be at most n_group ", n_group, ", got ",
          topk_group);
  require(num_experts_per_tok <= topk_group * group_size(), "num_experts_per_tok must be at most ",
          topk_group * group_size(), ", the experts of topk_group ", topk_group, " groups, got ",
          num_experts_per_tok);
}

inline void ModelConfig::validate() const {
  constexpr Index kMaxPositions = Index{1} << 40;
  attention.validate();
  detail::check_dim("vocab_size", vocab_size);
  detail::check_dim("num_hidden_layers", num_hidden_layers);
  detail::check_dim("intermediate_size", intermediate_size);
  require(max_position_embeddings > 0 && max_position_embeddings <= kMaxPositions,
          "max_position_embeddings must be between 1 and ", kMaxPositions, ", got ",
          max_position_embeddings);
  require(std::isfinite(rms_norm_eps) && rms_norm_eps >= 0.0,
          "rms_norm_eps must not be negative, got ", rms_norm_eps);
  detail::check_dim("num_nextn_predict_layers", num_nextn_predict_layers, 0);
  detail::check_dim("first_k_dense_replace", first_k_dense_replace, 0);
  detail::check_dim("moe_layer_freq", moe_layer_freq);
  experts.validate();
  require(!name_of(hidden_act).empty(), "hidden_act must be an Activation, got ",
          static_cast<int>(hidden_act));
  require(hidden_act == Activation::silu || experts.n_routed_experts == 0, "hidden_act ",
          name_of(hidden_act), " is for models without experts, got n_routed_experts ",
          experts.n_routed_experts);
  for (const auto& [name, scale] : {std::pair("embedding_scale", embedding_scale),
                                    {"residual_scale", residual_scale},
                                    {"logit_scale", logit_scale}})
    require(std::isfinite(scale) && scale != 0.0, name, " must be a number but 0, got ", scale);
  require(!shortcut_experts || (experts.n_routed_experts > 0 && num_nextn_predict_layers == 0),
          "shortcut_experts needs experts and no multi-token prediction, got n_routed_experts ",
          experts.n_routed_experts, " and num_nextn_predict_layers ", num_nextn_predict_layers);
  require(!shortcut_experts || !attention.indexer, "shortcut_experts with an indexer is unknown");
  validate_indexer_types();
}

inline void ModelConfig::validate_indexer_types() const {
  require(attention.indexer.type != IndexerType::shared,
          "attention.indexer is that of layers with one: full, or none");
  if (indexer_types.empty()) return;
  require(bool(attention.indexer), "indexer_types needs an indexer, attention has none");
  require(std::ssize(indexer_types) == num_hidden_layers,
          "indexer_types must be those of num_hidden_layers ", num_hidden_layers, " layers, got ",
          indexer_types.size());
  for (const IndexerType type : indexer_types)
    require(type == IndexerType::full || type == IndexerType::shared,
            "indexer_types must be full or shared");
  require(indexer_types.front() == IndexerType::full,
          "indexer_types must begin with full: layer 0 has no selection to share");
}

}  // namespace mla

#endif  // MLA_MODEL_MODEL_CONFIG_HPP_
