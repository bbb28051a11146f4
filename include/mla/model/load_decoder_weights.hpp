#ifndef MLA_MODEL_LOAD_DECODER_WEIGHTS_HPP_
#define MLA_MODEL_LOAD_DECODER_WEIGHTS_HPP_

#include <charconv>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/load_attention_weights.hpp"
#include "mla/io/tensor_reader.hpp"
#include "mla/model/decoder_layer.hpp"
#include "mla/model/decoder_weights.hpp"
#include "mla/model/mixture_of_experts.hpp"
#include "mla/model/model_config.hpp"
#include "mla/ops/mlp.hpp"

namespace mla {

namespace detail {

/// Takes the tensors of a model out of a checkpoint.
class DecoderLoader {
 public:
  DecoderLoader(const Checkpoint& checkpoint, const ModelConfig& config)
      : all_(checkpoint), tensors_(all_.beginning(config.names.prefix)), config_(config) {}

  DecoderWeights load() {
    DecoderWeights weights;
    weights.embed_tokens = vocabulary(tensors_, "model.embed_tokens.weight");
    for (Index layer = 0; layer < config_.num_hidden_layers; ++layer)
      weights.layers.push_back(load_layer(layer));
    weights.norm = norm(tensors_, "model.norm.weight");
    weights.lm_head = load_head(weights.embed_tokens);
    if (config_.num_nextn_predict_layers > 0 && !module().names().empty())
      weights.prediction = load_prediction(weights);
    ignore_other_modules(weights.prediction.has_value());
    tensors_.ignore("model.rotary_emb.inv_freq");  // as in every layer of older files
    ignore_other_parts();
    all_.refuse_unused();
    return weights;
  }

 private:
  TensorReader layer_reader(Index layer) const {
    return tensors_.under("model.layers." + std::to_string(layer));
  }
  /// The module for multi-token prediction comes after the layers.
  TensorReader module() const { return layer_reader(config_.num_hidden_layers); }

  WeightView vocabulary(TensorReader& tensors, const std::string& name) const {
    return tensors.matrix(name, config_.vocab_size, config_.hidden_size());
  }
  // The module's own, unless it is missing or a copy: published checkpoints hold both matrices
  // twice, and one is read sooner than two. Large ones are not compared: no cache would keep them.
  WeightView vocabulary_or(TensorReader& tensors, const std::string& name,
                           const WeightView& models) const {
    constexpr Index kMostCompared = Index{1} << 24;
    if (!tensors.contains_matrix(name)) return models;
    const WeightView own = vocabulary(tensors, name);
    return own.bytes() <= kMostCompared && compared() && is_copy(own, models) ? models : own;
  }
  // Whether both [rows, cols] matrices are the same bits, scales included.
  static bool is_copy(const WeightView& a, const WeightView& b) {
    const auto same = [](const void* x, const void* y, Index bytes) {
      return std::memcmp(x, y, static_cast<std::size_t>(bytes)) == 0;
    };
    if (a.format != b.format || a.rows != b.rows || a.cols != b.cols) return false;
    for (Index r = 0; r < a.rows; ++r)
      if (!same(a.byte_of(r, 0), b.byte_of(r, 0), a.row_range(r, 1).bytes())) return false;
    const Scales &x = a.scales, &y = b.scales;
    return !x || (x.format == y.format && x.factor == y.factor && x.block_rows == y.block_rows &&
                  x.block_cols == y.block_cols && !x.zero_points && !y.zero_points &&
                  same(x.data, y.data, a.scale_bytes()));
  }
  bool compared() const noexcept { return all_.use() == TensorData::read; }
  // A file may hold the head of a tied model as a copy, quantised or not. Another matrix is none:
  // either the key or the file is wrong.
  WeightView load_head(const WeightView& embed_tokens) {
    const std::string name = "lm_head.weight";
    if (!config_.tie_word_embeddings) return vocabulary(tensors_, name);
    if (!tensors_.contains_matrix(name)) return embed_tokens;
    const WeightView head = vocabulary(tensors_, name);
    if (!head.scales && compared() && !is_copy(head, embed_tokens))
      tensors_.fail(name,
                    " is not a copy of model.embed_tokens.weight, but tie_word_embeddings is true");
    return head.scales ? head : embed_tokens;
  }
  WeightView norm(TensorReader& tensors, const std::string& name) const {
    return tensors.vector(name, config_.hidden_size());
  }

  MlpWeights load_mlp(TensorReader tensors, Index intermediate_size) const {
    const Index hidden = config_.hidden_size();
    MlpWeights weights;
    if (config_.hidden_act == Activation::silu)
      weights.gate_proj = tensors.matrix("gate_proj.weight", intermediate_size, hidden);
    weights.up_proj = tensors.matrix("up_proj.weight", intermediate_size, hidden);
    weights.down_proj = tensors.matrix("down_proj.weight", hidden, intermediate_size);
    return weights;
  }

  MixtureOfExpertsWeights load_experts(TensorReader tensors) const {
    const MixtureOfExpertsConfig& experts = config_.experts;
    MixtureOfExpertsWeights weights;
    const TensorNames& names = config_.names;
    weights.router.gate = tensors.matrix(names.router, experts.choices(), config_.hidden_size());
    if (experts.topk_method == TopkMethod::noaux_tc)
      weights.router.e_score_correction_bias = tensors.vector(names.router_bias, experts.choices());
    if (tensors.contains("experts.gate_up_proj"))
      weights.experts = load_stacked_experts(tensors);
    else
      for (Index e = 0; e < experts.n_routed_experts; ++e)
        weights.experts.push_back(
            load_mlp(tensors.under("experts." + std::to_string(e)), experts.moe_intermediate_size));
    if (experts.n_shared_experts > 0)
      weights.shared_experts = load_mlp(tensors.under("shared_experts"),
                                        experts.n_shared_experts * experts.moe_intermediate_size);
    return weights;
  }

  // All experts of a layer in two tensors: gate_up_proj [experts, 2 * moe, hidden], gate first, and
  // down_proj [experts, hidden, moe].
  std::vector<MlpWeights> load_stacked_experts(TensorReader tensors) const {
    const MixtureOfExpertsConfig& experts = config_.experts;
    const Index count = experts.n_routed_experts, size = experts.moe_intermediate_size;
    const Index hidden = config_.hidden_size();
    const WeightView gate_up = tensors.stack("experts.gate_up_proj", count, 2 * size, hidden);
    const WeightView down = tensors.stack("experts.down_proj", count, hidden, size);
    std::vector<MlpWeights> weights;
    for (Index e = 0; e < count; ++e)
      weights.push_back({.gate_proj = gate_up.row_range(2 * e * size, size),
                         .up_proj = gate_up.row_range((2 * e + 1) * size, size),
                         .down_proj = down.row_range(e * hidden, hidden)});
    return weights;
  }

  // Both halves: norms, attentions and MLPs have a number each.
  DecoderLayerWeights load_layer_with_shortcut(Index layer) const {
    TensorReader tensors = layer_reader(layer);
    std::vector<DecoderLayerWeights> halves(2);
    for (std::size_t h = 0; h < halves.size(); ++h) {
      const std::string number = "." + std::to_string(h);
      TensorReader attention = tensors.under("self_attn" + number);
      halves[h].input_layernorm = norm(tensors, "input_layernorm" + number + ".weight");
      halves[h].self_attn =
          read_attention_weights(attention, config_.attention, config_.attention_bias);
      halves[h].post_attention_layernorm =
          norm(tensors, "post_attention_layernorm" + number + ".weight");
      halves[h].mlp = load_mlp(tensors.under("mlps" + number), config_.intermediate_size);
    }
    DecoderLayerWeights weights = halves[0];
    weights.second_half = {halves[1]};
    weights.shortcut = load_experts(tensors.under("mlp"));
    return weights;
  }

  DecoderLayerWeights load_layer(Index layer) const {
    if (config_.shortcut_experts) return load_layer_with_shortcut(layer);
    TensorReader tensors = layer_reader(layer);
    TensorReader attention = tensors.under("self_attn");
    DecoderLayerWeights weights;
    weights.input_layernorm = norm(tensors, "input_layernorm.weight");
    weights.self_attn =
        read_attention_weights(attention, config_.attention_of(layer), config_.attention_bias);
    weights.post_attention_layernorm = norm(tensors, "post_attention_layernorm.weight");
    if (config_.has_experts(layer))
      weights.mlp = load_experts(tensors.under("mlp"));
    else
      weights.mlp = load_mlp(tensors.under("mlp"), config_.intermediate_size);
    if (config_.post_mlp_layernorm && config_.has_experts(layer))
      weights.post_mlp_layernorm = norm(tensors, "post_mlp_layernorm.weight");
    return weights;
  }

  MultiTokenPredictionWeights load_prediction(const DecoderWeights& model) const {
    const Index hidden = config_.hidden_size();
    TensorReader tensors = module();
    MultiTokenPredictionWeights weights;
    weights.embed_tokens = vocabulary_or(tensors, "embed_tokens.weight", model.embed_tokens);
    weights.enorm = norm(tensors, "enorm.weight");
    weights.hnorm = norm(tensors, "hnorm.weight");
    weights.eh_proj = tensors.matrix("eh_proj.weight", hidden, 2 * hidden);
    weights.layer = load_layer(config_.num_hidden_layers);
    weights.shared_head_norm = norm(tensors, "shared_head.norm.weight");
    weights.shared_head = vocabulary_or(tensors, "shared_head.head.weight", model.lm_head);
    return weights;
  }

  // Of the modules for multi-token prediction only the first is used, and none without
  // num_nextn_predict_layers. A layer that the key does not count is a module if it has an eh_proj:
  // others are layers of a larger model.
  void ignore_other_modules(bool first_is_used) {
    TensorReader layers = tensors_.under("model.layers");
    const Index first = config_.num_hidden_layers;
    for (const std::string& name : layers.names()) {
      Index layer = 0;
      std::from_chars(name.data(), name.data() + name.size(), layer);
      if (layer < first + (first_is_used ? 1 : 0)) continue;
      if (layer < first + config_.num_nextn_predict_layers ||
          layers.contains_matrix(std::to_string(layer) + ".eh_proj.weight"))
        layers.ignore(name);
    }
  }

  // Of other parts of a larger model.
  void ignore_other_parts() {
    for (const std::string& name : all_.names())
      for (const std::string& part : config_.names.other_parts)
        if (name.starts_with(part)) all_.ignore(name);
  }

  TensorReader all_;
  TensorReader tensors_;  // those of the decoder
  const ModelConfig& config_;
};

}  // namespace detail

/// The weights of a model under their published names. They are views into the checkpoint, which
/// must outlive them, quantised ones too. Throws std::runtime_error naming the tensor
/// when one is missing, has another shape than the configuration says, or is not used by it.
///
/// The module for multi-token prediction is there where both num_nextn_predict_layers and the file
/// say so. Converted checkpoints have the key without the tensors, others the tensors with the key
/// 0 or missing; both load as models without it, as they do in Hugging Face's transformers. With
/// tie_word_embeddings a head of its own must be a copy of the embedding.
inline DecoderWeights load_decoder_weights(const Checkpoint& checkpoint,
                                           const ModelConfig& config) {
  return detail::DecoderLoader(checkpoint, config).load();
}

}  // namespace mla

#endif  // MLA_MODEL_LOAD_DECODER_WEIGHTS_HPP_
