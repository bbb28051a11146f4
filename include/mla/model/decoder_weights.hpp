#ifndef MLA_MODEL_DECODER_WEIGHTS_HPP_
#define MLA_MODEL_DECODER_WEIGHTS_HPP_

#include <charconv>
#include <cstring>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/load_attention_weights.hpp"
#include "mla/model/decoder_layer.hpp"
#include "mla/model/mixture_of_experts.hpp"
#include "mla/model/mlp.hpp"
#include "mla/model/model_config.hpp"

namespace mla {

/// Weights of the module for multi-token prediction under their published names.
struct MultiTokenPredictionWeights {
  WeightView embed_tokens;  ///< [vocab_size, hidden_size], the model's where it has none of its own
  WeightView enorm;         ///< [1, hidden_size]
  WeightView hnorm;         ///< [1, hidden_size]
  WeightView eh_proj;       ///< [hidden_size, 2 * hidden_size]: embedding, then hidden state
  bool hidden_first =
      false;  ///< or the other way round, as the report's formula and lessons have it
  DecoderLayerWeights layer;
  WeightView shared_head_norm;  ///< [1, hidden_size]; lessons have none
  WeightView shared_head;       ///< [vocab_size, hidden_size], the model's where it has none
};

/// Weights of a whole model under their published names: views into a checkpoint.
struct DecoderWeights {
  WeightView embed_tokens;  ///< [vocab_size, hidden_size]
  std::vector<DecoderLayerWeights> layers;
  WeightView norm;     ///< [1, hidden_size]
  WeightView lm_head;  ///< [vocab_size, hidden_size]; embed_tokens itself where they are tied
  std::optional<MultiTokenPredictionWeights> prediction;
};

namespace detail {

/// Takes the tensors of a model out of a checkpoint and remembers which.
class DecoderLoader {
 public:
  DecoderLoader(const Checkpoint& checkpoint, const ModelConfig& config)
      : checkpoint_(checkpoint), config_(config) {}

  DecoderWeights load() {
    DecoderWeights weights;
    weights.embed_tokens = vocabulary("model.embed_tokens");
    for (Index layer = 0; layer < config_.num_hidden_layers; ++layer)
      weights.layers.push_back(load_layer(layer));
    weights.norm = norm("model.norm");
    weights.lm_head = config_.tie_word_embeddings ? weights.embed_tokens : vocabulary("lm_head");
    const std::string module = layer_name(config_.num_hidden_layers);
    if (config_.num_nextn_predict_layers > 0 && !checkpoint_.names(module + ".").empty())
      weights.prediction = load_prediction(module, weights);
    refuse_unused();
    return weights;
  }

 private:
  static std::string layer_name(Index layer) { return "model.layers." + std::to_string(layer); }

  std::string take(const std::string& name) { return *taken_.insert(name).first; }

  WeightView matrix(const std::string& module, Index rows, Index cols) {
    const std::string name = take(module + ".weight");
    const WeightView view = checkpoint_.matrix(name, rows, cols);
    if (checkpoint_.tensor(name).dtype == SafetensorsDType::float8_e4m3) take(name + "_scale_inv");
    return view;
  }
  WeightView vocabulary(const std::string& module) {
    return matrix(module, config_.vocab_size, config_.hidden_size());
  }
  // The module's own, unless it is missing or a copy: published checkpoints hold both matrices
  // twice, and one is read sooner than two. Large ones are not compared: no cache would keep them.
  WeightView vocabulary_or(const std::string& module, const WeightView& models) {
    constexpr Index kMostCompared = Index{1} << 24;
    if (!checkpoint_.contains(module + ".weight")) return models;
    const WeightView own = vocabulary(module);
    const bool copy =
        own.dtype == models.dtype && own.bytes() <= kMostCompared &&
        std::memcmp(own.data, models.data, static_cast<std::size_t>(own.bytes())) == 0;
    return copy ? models : own;
  }
  WeightView norm(const std::string& module) {
    return checkpoint_.vector(take(module + ".weight"), config_.hidden_size());
  }

  MlpWeights load_mlp(const std::string& module, Index intermediate_size) {
    const Index hidden = config_.hidden_size();
    return {matrix(module + ".gate_proj", intermediate_size, hidden),
            matrix(module + ".up_proj", intermediate_size, hidden),
            matrix(module + ".down_proj", hidden, intermediate_size)};
  }

  MixtureOfExpertsWeights load_experts(const std::string& module) {
    const MixtureOfExpertsConfig& experts = config_.experts;
    MixtureOfExpertsWeights weights;
    weights.router.gate = matrix(module + ".gate", experts.n_routed_experts, config_.hidden_size());
    if (experts.topk_method == TopkMethod::noaux_tc)
      weights.router.e_score_correction_bias = checkpoint_.vector(
          take(module + ".gate.e_score_correction_bias"), experts.n_routed_experts);
    for (Index e = 0; e < experts.n_routed_experts; ++e)
      weights.experts.push_back(
          load_mlp(module + ".experts." + std::to_string(e), experts.moe_intermediate_size));
    if (experts.n_shared_experts > 0)
      weights.shared_experts = load_mlp(module + ".shared_experts",
                                        experts.n_shared_experts * experts.moe_intermediate_size);
    return weights;
  }

  DecoderLayerWeights load_layer(Index layer) {
    const std::string name = layer_name(layer);
    DecoderLayerWeights weights;
    weights.input_layernorm = norm(name + ".input_layernorm");
    // Refuses tensors of the attention that it does not use.
    weights.self_attn = load_attention_weights(checkpoint_, name + ".self_attn", config_.attention,
                                               config_.attention_bias);
    for (const std::string& used : checkpoint_.names(name + ".self_attn.")) take(used);
    weights.post_attention_layernorm = norm(name + ".post_attention_layernorm");
    if (config_.has_experts(layer))
      weights.mlp = load_experts(name + ".mlp");
    else
      weights.mlp = load_mlp(name + ".mlp", config_.intermediate_size);
    return weights;
  }

  MultiTokenPredictionWeights load_prediction(const std::string& module,
                                              const DecoderWeights& model) {
    const Index hidden = config_.hidden_size();
    MultiTokenPredictionWeights weights;
    weights.embed_tokens = vocabulary_or(module + ".embed_tokens", model.embed_tokens);
    weights.enorm = norm(module + ".enorm");
    weights.hnorm = norm(module + ".hnorm");
    weights.eh_proj = matrix(module + ".eh_proj", hidden, 2 * hidden);
    weights.layer = load_layer(config_.num_hidden_layers);
    weights.shared_head_norm = norm(module + ".shared_head.norm");
    weights.shared_head = vocabulary_or(module + ".shared_head.head", model.lm_head);
    return weights;
  }

  /// A tensor that is left over belongs to another kind of model.
  void refuse_unused() const {
    for (const std::string& name : checkpoint_.names()) {
      const bool tied_head = config_.tie_word_embeddings && name == "lm_head.weight";
      if (taken_.contains(name) || tied_head || name.ends_with(".rotary_emb.inv_freq") ||
          in_further_module(name))
        continue;
      throw_runtime(checkpoint_.path(), ": tensor ", name, " is not used by this configuration");
    }
  }

  /// Of the modules for multi-token prediction only the first is used.
  bool in_further_module(std::string_view name) const {
    constexpr std::string_view kLayers = "model.layers.";
    if (!name.starts_with(kLayers)) return false;
    Index layer = 0;
    std::from_chars(name.data() + kLayers.size(), name.data() + name.size(), layer);
    const Index first = config_.num_hidden_layers;
    return layer > first && layer < first + config_.num_nextn_predict_layers;
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  std::set<std::string> taken_;
};

}  // namespace detail

/// The weights of a model under their published names. They are views into the checkpoint, which
/// must outlive them; fp8 weights are decoded here. Without tensors of the module for multi-token
/// prediction the model has none, whatever num_nextn_predict_layers says. Throws std::runtime_error
/// naming the tensor when one is missing, has another shape than the configuration says, or is not
/// used by it.
inline DecoderWeights load_decoder_weights(const Checkpoint& checkpoint,
                                           const ModelConfig& config) {
  return detail::DecoderLoader(checkpoint, config).load();
}

}  // namespace mla

#endif  // MLA_MODEL_DECODER_WEIGHTS_HPP_
