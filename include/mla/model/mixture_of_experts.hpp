#ifndef MLA_MODEL_MIXTURE_OF_EXPERTS_HPP_
#define MLA_MODEL_MIXTURE_OF_EXPERTS_HPP_

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/model/expert_batches.hpp"
#include "mla/model/model_config.hpp"
#include "mla/model/router.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/mlp.hpp"

namespace mla {

/// Weights of a mixture of experts under their published names.
struct MixtureOfExpertsWeights {
  RouterWeights router;
  std::vector<MlpWeights> experts;  ///< [n_routed_experts]
  MlpWeights shared_experts;        ///< one MLP; empty where n_shared_experts is 0
};

/// DeepSeekMoE (Dai et al. 2024): every token goes through the experts that its router chose and
/// through the shared ones. An expert runs once per call, on all tokens that chose it, and together
/// with other experts.
///
/// The result of a token does not depend on the others of the call in a single bit: its experts
/// are added up in the order of their numbers, then the shared ones, then zero experts, whose
/// result is the token's own state.
class MixtureOfExperts {
 public:
  MixtureOfExperts() = default;

  /// `weights` are views that must outlive the object. Throws std::invalid_argument naming the
  /// field or tensor that does not fit.
  MixtureOfExperts(const MixtureOfExpertsConfig& config, const MixtureOfExpertsWeights& weights,
                   Index hidden_size)
      : router_(config, weights.router, hidden_size) {
    const Index experts = static_cast<Index>(weights.experts.size());
    require(experts == config.n_routed_experts, "n_routed_experts is ", config.n_routed_experts,
            ", but there are weights of ", experts);
    for (const MlpWeights& expert : weights.experts)
      experts_.emplace_back(expert, hidden_size, config.moe_intermediate_size);
    require(bool(weights.shared_experts) == (config.n_shared_experts > 0), "n_shared_experts is ",
            config.n_shared_experts, ", but weights of shared experts are ",
            weights.shared_experts ? "set" : "missing");
    if (weights.shared_experts)
      shared_experts_ = Mlp(weights.shared_experts, hidden_size,
                            config.n_shared_experts * config.moe_intermediate_size);
  }

  const Router& router() const noexcept { return router_; }
  const MixtureOfExpertsConfig& config() const noexcept { return router_.config(); }

  /// x [tokens, hidden_size] -> out [tokens, hidden_size], by a choice of router().
  void forward(MatrixView<const float> x, const ExpertChoice& choice, MatrixView<float> out,
               Context& context) const {
    require_matrix("out", out, x.rows, x.cols);
    require_matrix("experts of the choice", choice.experts, x.rows, config().num_experts_per_tok);
    require_matrix("weights of the choice", choice.weights, x.rows, config().num_experts_per_tok);
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const Assignments assignments(choice, config().choices(), workspace);
    const std::span<detail::ExpertBatch> batches = make_batches(assignments, x.rows, workspace);
    for (Index t = 0; t < out.rows; ++t) std::fill_n(out.row(t), out.cols, 0.0f);
    for (std::size_t first = 0, last = 0; first < batches.size(); first = last) {
      Index rows = 0;
      do rows += batches[last++].count;
      while (last < batches.size() && rows + batches[last].count <= kRowsTogether);
      const Workspace::Scope together(workspace);
      detail::ExpertBatches(batches.subspan(first, last - first), x, context).add_to(out);
    }
    add_zero_experts(x, choice, out);
  }

 private:
  // More would need much scratch memory, and gain nothing: there is enough work in a region.
  static constexpr Index kRowsTogether = 1024;

  // The choices of all tokens, sorted by expert; the tokens of an expert rise.
  struct Assignments {
    Assignments(const ExpertChoice& choice, Index experts, Workspace& workspace)
        : first(workspace.take<Index>(experts + 2)),
          token_of(workspace.take<Index>(choice.experts.rows * choice.experts.cols)),
          weight_of(workspace.take<float>(choice.experts.rows * choice.experts.cols)) {
      // first[e + 2] counts those of e; summed up, first[e + 1] is where e begins, and after
      // filling in where it ends.
      std::fill_n(first, experts + 2, Index{0});
      for_each(choice, [&](Index, Index e, float) { ++first[e + 2]; });
      for (Index e = 0; e < experts; ++e) first[e + 2] += first[e + 1];
      for_each(choice, [&](Index t, Index e, float weight) {
        const Index place = first[e + 1]++;
        token_of[place] = t;
        weight_of[place] = weight;
      });
    }

    Index count(Index e) const noexcept { return first[e + 1] - first[e]; }
    const Index* tokens(Index e) const noexcept { return token_of + first[e]; }
    const float* weights(Index e) const noexcept { return weight_of + first[e]; }

    Index* first;  // [experts + 2] of token_of and weight_of
    Index* token_of;
    float* weight_of;

   private:
    template <class Visit>
    static void for_each(const ExpertChoice& choice, const Visit& visit) {
      for (Index t = 0; t < choice.experts.rows; ++t)
        for (Index k = 0; k < choice.experts.cols; ++k)
          visit(t, choice.experts(t, k), choice.weights(t, k));
    }
  };

  void add_zero_experts(MatrixView<const float> x, const ExpertChoice& choice,
                        MatrixView<float> out) const noexcept {
    if (config().zero_experts == 0) return;
    for (Index t = 0; t < x.rows; ++t) {
      float weight = 0.0f;
      for (Index k = 0; k < choice.experts.cols; ++k)
        if (choice.experts(t, k) >= config().n_routed_experts) weight += choice.weights(t, k);
      for (Index i = 0; i < x.cols; ++i) out(t, i) += weight * x(t, i);
    }
  }

  // The experts that were chosen, in the order of their numbers, then the shared ones.
  std::span<detail::ExpertBatch> make_batches(const Assignments& assignments, Index tokens,
                                              Workspace& workspace) const {
    auto* const batches = workspace.take<detail::ExpertBatch>(config().n_routed_experts + 1);
    std::size_t size = 0;
    for (Index e = 0; e < config().n_routed_experts; ++e)
      if (assignments.count(e) > 0)
        batches[size++] = {.expert = &experts_[static_cast<std::size_t>(e)],
                           .tokens = assignments.tokens(e),
                           .weights = assignments.weights(e),
                           .count = assignments.count(e)};
    if (shared_experts_ && tokens > 0)
      batches[size++] = {
          .expert = &shared_experts_, .tokens = nullptr, .weights = nullptr, .count = tokens};
    return {batches, size};
  }

  Router router_;
  std::vector<Mlp> experts_;
  Mlp shared_experts_;
};

}  // namespace mla

#endif  // MLA_MODEL_MIXTURE_OF_EXPERTS_HPP_
