#ifndef MLA_MODEL_DECODER_LAYER_HPP_
#define MLA_MODEL_DECODER_LAYER_HPP_

#include <Eigen/Core>
#include <cstddef>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "mla/attention/attention_mass.hpp"
#include "mla/attention/attention_weights.hpp"
#include "mla/attention/call_plan.hpp"
#include "mla/attention/index_selection.hpp"
#include "mla/attention/latent_cache.hpp"
#include "mla/attention/multihead_latent_attention.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/model/mixture_of_experts.hpp"
#include "mla/model/model_config.hpp"
#include "mla/model/router.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/mlp.hpp"
#include "mla/ops/rms_norm.hpp"
#include "mla/ops/row_blocks.hpp"

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
  /// The rows that a layer's indexer selected for the tokens of a call.
  virtual void on_selection(Index /*layer*/, const IndexSelection& /*selection*/) {}
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
  WeightView post_mlp_layernorm = {};  ///< [1, hidden_size], with post_mlp_layernorm and experts

  /// With shortcut_experts: the layer's other half, and the experts beside both.
  std::vector<DecoderLayerWeights> second_half = {};
  std::optional<MixtureOfExpertsWeights> shortcut = {};
};

namespace detail {

inline RmsNorm make_norm(const char* name, const WeightView& weight, const ModelConfig& config) {
  require_shape(name, weight, 1, config.hidden_size());
  return {weight, config.rms_norm_eps};
}

}  // namespace detail

/// One layer: x += attention(norm(x)), then x += mlp(norm(x)), where mlp is a plain one or a
/// mixture of experts. With shortcut_experts twice that, and what a mixture of experts makes of the
/// first mlp's input is added at the end. Immutable, like all parts of the model.
class DecoderLayer {
 public:
  /// `weights` are views that must outlive the layer. Throws std::invalid_argument naming the field
  /// or tensor that does not fit.
  DecoderLayer(const ModelConfig& config, Index layer, const DecoderLayerWeights& weights)
      : layer_(layer), residual_scale_(static_cast<float>(config.residual_scale)) {
    const std::size_t halves = weights.second_half.size() + 1;
    require(static_cast<Index>(halves) == config.attentions_per_layer(), "a layer has ",
            config.attentions_per_layer(), " attentions, but there are weights of ", halves);
    require(weights.shortcut.has_value() == config.shortcut_experts,
            "weights of shortcut experts are ", weights.shortcut ? "set" : "missing");
    halves_.reserve(halves);
    halves_.emplace_back(config, layer, weights);
    for (const DecoderLayerWeights& half : weights.second_half)
      halves_.emplace_back(config, layer, half);
    if (weights.shortcut)
      shortcut_.emplace(config.experts, *weights.shortcut, config.hidden_size());
  }

  /// The first of its attentions.
  const MultiheadLatentAttention& attention() const noexcept { return halves_.front().attention; }

  /// Adds the layer's part to the residual stream x [plan.tokens(), hidden_size], whose tokens are
  /// appended to `caches`: this layer's of each of the plan's sequences, those of a second
  /// attention after those of the first; there must be no padding. `masses`: none, or one or
  /// nullptr for each cache (see MultiheadLatentAttention). `selection`: what layers of the call
  /// share (likewise); nullptr: nothing. What was appended before something was thrown stays.
  void forward(MatrixView<float> x, const CallPlan& plan, std::span<LatentCache* const> caches,
               Context& context, DecoderObserver* observer = nullptr,
               std::span<AttentionMass* const> masses = {},
               IndexSelection* selection = nullptr) const {
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const auto normalised = workspace.take_matrix<float>(x.rows, x.cols);
    const auto part = workspace.take_matrix<float>(x.rows, x.cols);
    const auto beside = workspace.take_matrix<float>(shortcut_ ? x.rows : 0, x.cols);
    const std::size_t sequences = plan.shares().size();
    std::optional<IndexSelection> own;
    if (attention().config().indexer.type == IndexerType::full && !selection)
      selection = &own.emplace(attention().config(), plan, workspace);
    for (std::size_t h = 0; h < halves_.size(); ++h) {
      const Half& half = halves_[h];
      half.input_norm.forward(x, normalised, context);
      half.attention.forward(
          plan, caches.subspan(h * sequences, sequences), normalised, part, context,
          masses.empty() ? masses : masses.subspan(h * sequences, sequences), selection);
      if (observer && half.attention.config().indexer.type == IndexerType::full)
        observer->on_selection(layer_, *selection);
      add(part, x, context);
      half.post_attention_norm.forward(x, normalised, context);
      if (shortcut_ && h == 0) forward_experts(*shortcut_, normalised, beside, context, observer);
      forward_mlp(half.mlp, normalised, part, context, observer);
      if (half.post_mlp_norm) half.post_mlp_norm.forward(part, context);
      add(part, x, context);
    }
    if (shortcut_) add(beside, x, context);
    if (observer) observer->on_layer(layer_, x);
  }

  /// Appends x [plan.tokens(), hidden_size] to `caches` as forward() does, without computing what
  /// the layer makes of it: of a layer with one attention.
  void append(MatrixView<const float> x, const CallPlan& plan, std::span<LatentCache* const> caches,
              Context& context) const {
    require(halves_.size() == 1, "a layer with ", halves_.size(),
            " attentions cannot be appended to without computing it");
    const Workspace::Scope scope(context.workspace());
    const auto normalised = context.workspace().take_matrix<float>(x.rows, x.cols);
    halves_.front().input_norm.forward(x, normalised, context);
    halves_.front().attention.append(plan, caches, normalised, context);
  }

 private:
  using AnyMlp = std::variant<Mlp, MixtureOfExperts>;

  // Attention and MLP: all of a layer, or one of two.
  struct Half {
    Half(const ModelConfig& config, Index layer, const DecoderLayerWeights& weights)
        : input_norm(detail::make_norm("input_layernorm", weights.input_layernorm, config)),
          attention(config.attention_of(layer), weights.self_attn),
          post_attention_norm(detail::make_norm("post_attention_layernorm",
                                                weights.post_attention_layernorm, config)) {
      const auto* experts = std::get_if<MixtureOfExpertsWeights>(&weights.mlp);
      if (experts)
        mlp = MixtureOfExperts(config.experts, *experts, config.hidden_size());
      else
        mlp = Mlp(std::get<MlpWeights>(weights.mlp), config.hidden_size(), config.intermediate_size,
                  config.hidden_act == Activation::silu);
      const bool normed = config.post_mlp_layernorm && experts;
      require(normed == bool(weights.post_mlp_layernorm), "tensor post_mlp_layernorm of layer ",
              layer, " is ", normed ? "missing" : "set, but not used");
      if (normed)
        post_mlp_norm = detail::make_norm("post_mlp_layernorm", weights.post_mlp_layernorm, config);
    }

    RmsNorm input_norm;
    MultiheadLatentAttention attention;
    RmsNorm post_attention_norm;
    AnyMlp mlp;
    RmsNorm post_mlp_norm;  // empty: none
  };

  // x += part * residual_scale. Eigen takes several elements at a time, which g++ -O2 would not.
  void add(MatrixView<const float> part, MatrixView<float> x, const Context& context) const {
    for_row_blocks(context.executor(), x.rows, x.cols, [&](Index first, Index count) {
      for (Index t = first; t < first + count; ++t) {
        Eigen::Map<Eigen::ArrayXf> sum(x.row(t), x.cols);
        const Eigen::Map<const Eigen::ArrayXf> more(part.row(t), x.cols);
        if (residual_scale_ == 1.0f)
          sum += more;
        else
          sum += residual_scale_ * more;
      }
    });
  }

  void forward_mlp(const AnyMlp& any, MatrixView<const float> x, MatrixView<float> out,
                   Context& context, DecoderObserver* observer) const {
    if (const auto* mlp = std::get_if<Mlp>(&any)) return mlp->forward(x, out, context);
    forward_experts(std::get<MixtureOfExperts>(any), x, out, context, observer);
  }

  void forward_experts(const MixtureOfExperts& experts, MatrixView<const float> x,
                       MatrixView<float> out, Context& context, DecoderObserver* observer) const {
    const ExpertChoice choice(experts.config(), x.rows, context.workspace());
    experts.router().forward(x, choice, context);
    if (observer) observer->on_experts(layer_, choice);
    experts.forward(x, choice, out, context);
  }

  Index layer_;
  float residual_scale_;
  std::vector<Half> halves_;
  std::optional<MixtureOfExperts> shortcut_;
};

}  // namespace mla

#endif  // MLA_MODEL_DECODER_LAYER_HPP_
