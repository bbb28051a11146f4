#ifndef MLA_MODEL_DECODER_LAYER_HPP_
#define MLA_MODEL_DECODER_LAYER_HPP_

#include <algorithm>
#include <span>
#include <variant>

#include "mla/attention/call_plan.hpp"
#include "mla/attention/latent_cache.hpp"
#include "mla/attention/multihead_latent_attention.hpp"
#include "mla/attention/weights.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/model/mixture_of_experts.hpp"
#include "mla/model/model_config.hpp"
#include "mla/model/router.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/mlp.hpp"
#include "mla/ops/rms_norm.hpp"

namespace mla {

/// Sees what a forward pass computes on its way. The tokens of a call come in chunks, in order;
/// views are valid during the call only. Layer num_hidden_layers is the one of multi-token
/// prediction.
class DecoderObserver {
 public:
  virtual ~DecoderObserver() = default;
  /// hidden [tokens, hidden_size]: the embeddings, input of layer 0.
  virtual void on_embedding(MatrixView<const float> /*hidden*/) {}
  /// hidden [tokens, hidden_size]: the residual stream after a layer.
  virtual void on_layer(Index /*layer*/, MatrixView<const float> /*hidden*/) {}
  /// The experts that a layer's router chose.
  virtual void on_experts(Index /*layer*/, const ExpertChoice& /*choice*/) {}
  /// hidden [tokens, hidden_size]: the state after model.norm.
  virtual void on_norm(MatrixView<const float> /*hidden*/) {}
};

/// Weights of a decoder layer under their published names.
struct DecoderLayerWeights {
  WeightView input_layernorm;  ///< [1, hidden_size]
  AttentionWeights self_attn;
  WeightView post_attention_layernorm;  ///< [1, hidden_size]
  std::variant<MlpWeights, MixtureOfExpertsWeights> mlp;
};

namespace detail {

inline RmsNorm make_norm(const char* name, const WeightView& weight, const ModelConfig& config) {
  require_shape(name, weight, 1, config.hidden_size());
  return {weight, config.rms_norm_eps};
}

}  // namespace detail

/// One layer: x += attention(norm(x)), then x += mlp(norm(x)), where mlp is a plain one or a
/// mixture of experts. Immutable, like all parts of the model.
class DecoderLayer {
 public:
  /// `weights` are views that must outlive the layer. Throws std::invalid_argument naming the field
  /// or tensor that does not fit.
  DecoderLayer(const ModelConfig& config, Index layer, const DecoderLayerWeights& weights)
      : layer_(layer),
        input_norm_(detail::make_norm("input_layernorm", weights.input_layernorm, config)),
        attention_(config.attention, weights.self_attn),
        post_attention_norm_(detail::make_norm("post_attention_layernorm",
                                               weights.post_attention_layernorm, config)) {
    if (const auto* experts = std::get_if<MixtureOfExpertsWeights>(&weights.mlp))
      mlp_ = MixtureOfExperts(config.experts, *experts, config.hidden_size());
    else
      mlp_ = Mlp(std::get<MlpWeights>(weights.mlp), config.hidden_size(), config.intermediate_size);
  }

  const MultiheadLatentAttention& attention() const noexcept { return attention_; }

  /// Adds the layer's part to the residual stream x [plan.tokens(), hidden_size], whose tokens are
  /// appended to `caches`, this layer's of each of the plan's sequences; there must be no padding.
  /// What was appended before something was thrown stays (see MultiheadLatentAttention).
  void forward(MatrixView<float> x, const CallPlan& plan, std::span<LatentCache* const> caches,
               Context& context, DecoderObserver* observer = nullptr) const {
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const auto normalised = workspace.take_matrix<float>(x.rows, x.cols);
    const auto part = workspace.take_matrix<float>(x.rows, x.cols);

    normalise(input_norm_, x, normalised, context);
    attention_.forward(plan, caches, normalised, part, context);
    add(part, x);
    normalise(post_attention_norm_, x, normalised, context);
    forward_mlp(normalised, part, context, observer);
    add(part, x);
    if (observer) observer->on_layer(layer_, x);
  }

  /// Appends x [plan.tokens(), hidden_size] to `caches` as forward() does, without computing what
  /// the layer makes of it.
  void append(MatrixView<const float> x, const CallPlan& plan, std::span<LatentCache* const> caches,
              Context& context) const {
    const Workspace::Scope scope(context.workspace());
    const auto normalised = context.workspace().take_matrix<float>(x.rows, x.cols);
    normalise(input_norm_, x, normalised, context);
    attention_.append(plan, caches, normalised, context);
  }

 private:
  static void normalise(const RmsNorm& norm, MatrixView<const float> x, MatrixView<float> out,
                        const Context& context) {
    for (Index t = 0; t < x.rows; ++t) std::copy_n(x.row(t), x.cols, out.row(t));
    norm.forward(out, context);
  }

  static void add(MatrixView<const float> part, MatrixView<float> x) noexcept {
    for (Index t = 0; t < x.rows; ++t)
      for (Index i = 0; i < x.cols; ++i) x(t, i) += part(t, i);
  }

  void forward_mlp(MatrixView<const float> x, MatrixView<float> out, Context& context,
                   DecoderObserver* observer) const {
    if (const auto* mlp = std::get_if<Mlp>(&mlp_)) return mlp->forward(x, out, context);
    const auto& experts = std::get<MixtureOfExperts>(mlp_);
    const ExpertChoice choice(experts.config(), x.rows, context.workspace());
    experts.router().forward(x, choice, context);
    if (observer) observer->on_experts(layer_, choice);
    experts.forward(x, choice, out, context);
  }

  Index layer_;
  RmsNorm input_norm_;
  MultiheadLatentAttention attention_;
  RmsNorm post_attention_norm_;
  std::variant<Mlp, MixtureOfExperts> mlp_;
};

}  // namespace mla

#endif  // MLA_MODEL_DECODER_LAYER_HPP_
