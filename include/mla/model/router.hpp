#ifndef MLA_MODEL_ROUTER_HPP_
#define MLA_MODEL_ROUTER_HPP_

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/model/model_config.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/linear.hpp"

namespace mla {

/// Weights of a router under their published names.
struct RouterWeights {
  WeightView gate;                     ///< [choices, hidden_size]
  WeightView e_score_correction_bias;  ///< [1, choices], with noaux_tc only

  /// Throws std::invalid_argument naming the tensor that is missing, not used, or of another shape.
  void validate(const MixtureOfExpertsConfig& config, Index hidden_size) const {
    const Index experts = config.choices();
    require_shape("gate", gate, experts, hidden_size);
    const WeightView& bias = e_score_correction_bias;
    if (config.topk_method == TopkMethod::noaux_tc)
      require_shape("e_score_correction_bias", bias, 1, experts);
    else
      require(!bias, "tensor e_score_correction_bias is set, but topk_method ",
              name_of(config.topk_method), " does not use it");
  }
};

/// Which experts the tokens of a call go to; choices are those with weights and the zero experts.
struct ExpertChoice {
  MatrixView<float> scores;   ///< [tokens, choices] without the bias
  MatrixView<Index> experts;  ///< [tokens, num_experts_per_tok] best first, by biased score
  MatrixView<float> weights;  ///< [tokens, num_experts_per_tok] of the experts' results

  /// Memory for `tokens` tokens.
  ExpertChoice(const MixtureOfExpertsConfig& config, Index tokens, Workspace& workspace)
      : scores(workspace.take_matrix<float>(tokens, config.choices())),
        experts(workspace.take_matrix<Index>(tokens, config.num_experts_per_tok)),
        weights(workspace.take_matrix<float>(tokens, config.num_experts_per_tok)) {}
};

/// The gate of a mixture of experts: scores, choice and weights, all in float32. Of experts with
/// equal scores the first wins. A token with a NaN among its logits has weights of NaN, so that its
/// result is NaN too, not that of other experts.
class Router {
 public:
  Router() = default;

  /// `weights` are views that must outlive the router; the bias is converted and kept. Throws
  /// std::invalid_argument naming the field or tensor that does not fit, or the expert whose bias
  /// is not finite.
  Router(const MixtureOfExpertsConfig& config, const RouterWeights& weights, Index hidden_size)
      : config_(validated(config)), gate_(validated(weights, config, hidden_size).gate) {
    if (weights.e_score_correction_bias) bias_ = to_float_vector(weights.e_score_correction_bias);
    for (std::size_t e = 0; e < bias_.size(); ++e)
      require(std::isfinite(bias_[e]), "tensor e_score_correction_bias must be finite, that of ",
              "expert ", e, " is ", bias_[e]);
  }

  const MixtureOfExpertsConfig& config() const noexcept { return config_; }

  /// Routes x [tokens, hidden_size]; fills `choice`.
  void forward(MatrixView<const float> x, const ExpertChoice& choice, Context& context) const {
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const auto ranked = workspace.take_matrix<float>(x.rows, config_.choices());
    const auto groups = workspace.take_matrix<float>(x.rows, config_.n_group);
    require_matrix("experts of the choice", choice.experts, x.rows, config_.num_experts_per_tok);
    require_matrix("weights of the choice", choice.weights, x.rows, config_.num_experts_per_tok);
    gate_.forward(x, choice.scores, context);
    context.executor().parallel_for(x.rows, [&](Index t, Index) {
      if (!to_scores(choice.scores.row(t)))
        return refuse(choice.experts.row(t), choice.weights.row(t));
      rank(choice.scores.row(t), ranked.row(t), groups.row(t));
      take_best(ranked.row(t), choice.experts.row(t));
      weigh(choice.scores.row(t), choice.experts.row(t), choice.weights.row(t));
    });
  }

 private:
  static constexpr float kNever = -std::numeric_limits<float>::infinity();

  // logits -> scores [choices]. Returns whether they can be compared: none is NaN.
  bool to_scores(float* scores) const noexcept {
    switch (config_.scoring_func) {
      case ScoringFunction::sigmoid:
        sigmoid(scores);
        break;
      case ScoringFunction::softmax:
        softmax(scores);
        break;
    }
    return std::none_of(scores, scores + config_.choices(),
                        [](float score) { return std::isnan(score); });
  }

  void sigmoid(float* scores) const noexcept {
    for (Index e = 0; e < config_.choices(); ++e) scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
  }

  void softmax(float* scores) const noexcept {
    const Index experts = config_.choices();
    const float peak = *std::max_element(scores, scores + experts);
    float sum = 0.0f;
    for (Index e = 0; e < experts; ++e) sum += scores[e] = std::exp(scores[e] - peak);
    for (Index e = 0; e < experts; ++e) scores[e] /= sum;
  }

  // There is no best among NaN: any experts, whose results come to nothing but NaN.
  void refuse(Index* experts, float* weights) const noexcept {
    std::iota(experts, experts + config_.num_experts_per_tok, Index{0});
    std::fill_n(weights, config_.num_experts_per_tok, std::numeric_limits<float>::quiet_NaN());
  }

  // What experts are chosen by, ranked [choices]: the score with the bias, or -inf in a
  // group that is out. (A mask of 0 would let such an expert win over negative ones.)
  //   groups [n_group] is scratch memory
  void rank(const float* scores, float* ranked, float* groups) const noexcept {
    std::copy_n(scores, config_.choices(), ranked);
    for (std::size_t e = 0; e < bias_.size(); ++e) ranked[e] += bias_[e];
    if (!config_.grouped() || config_.topk_group == config_.n_group) return;
    const Index size = config_.group_size();
    for (Index g = 0; g < config_.n_group; ++g) groups[g] = group_score(ranked + g * size);
    for (Index g = 0; g < config_.n_group; ++g) {
      Index better = 0;
      for (Index other = 0; other < config_.n_group; ++other)
        better += groups[other] > groups[g] || (groups[other] == groups[g] && other < g);
      if (better >= config_.topk_group) std::fill_n(ranked + g * size, size, kNever);
    }
  }

  // V3: the sum of the two best of a group; V2: the best.
  float group_score(const float* ranked) const noexcept {
    float best = kNever, second = kNever;
    for (Index e = 0; e < config_.group_size(); ++e) {
      second = std::max(second, std::min(best, ranked[e]));
      best = std::max(best, ranked[e]);
    }
    const bool pair = config_.topk_method == TopkMethod::noaux_tc && config_.group_size() > 1;
    return pair ? best + second : best;
  }

  // The num_experts_per_tok best of `ranked`, which is used up.
  void take_best(float* ranked, Index* experts) const noexcept {
    for (Index k = 0; k < config_.num_experts_per_tok; ++k) {
      experts[k] = std::max_element(ranked, ranked + config_.choices()) - ranked;
      ranked[experts[k]] = kNever;
    }
  }

  void weigh(const float* scores, const Index* experts, float* weights) const noexcept {
    const Index count = config_.num_experts_per_tok;
    float sum = 1e-20f;  // as the reference code, against a division by zero
    for (Index k = 0; k < count; ++k) sum += weights[k] = scores[experts[k]];
    const bool normalise = config_.norm_topk_prob && (config_.scale_normalised || count > 1);
    const bool scale = config_.scale_normalised || !normalise;
    const float factor = static_cast<float>(config_.routed_scaling_factor);
    for (Index k = 0; k < count; ++k) {
      if (normalise) weights[k] /= sum;
      if (scale) weights[k] *= factor;
    }
  }

  MixtureOfExpertsConfig config_;
  Linear gate_;
  std::vector<float> bias_;  // [choices], or empty
};

}  // namespace mla

#endif  // MLA_MODEL_ROUTER_HPP_
