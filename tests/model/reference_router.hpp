#ifndef MLA_MODEL_REFERENCE_ROUTER_HPP_
#define MLA_MODEL_REFERENCE_ROUTER_HPP_

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <vector>

#include "mla/model/model_config.hpp"

namespace mla::test {

/// Where one token goes, in double and by sorting, as the published modelling code writes it.
struct ReferenceRouting {
  std::vector<double> scores;       // [n_routed_experts]
  std::vector<Index> experts;       // best first
  std::map<Index, double> weights;  // of the chosen experts
  double margin = 0.0;              // by which the closest decision was taken
};

namespace detail {

/// The places of the `count` largest values, largest first; lowers `margin` to the distance of the
/// last one in to the first one out.
inline std::vector<Index> largest(const std::vector<double>& values, Index count, double& margin) {
  std::vector<Index> places(values.size());
  std::iota(places.begin(), places.end(), Index{0});
  std::ranges::stable_sort(places, std::greater{},
                           [&](Index i) { return values[static_cast<std::size_t>(i)]; });
  const auto value = [&](Index rank) {
    return values[static_cast<std::size_t>(places[static_cast<std::size_t>(rank)])];
  };
  for (Index rank = 0; rank < count && rank + 1 < std::ssize(places); ++rank)
    margin = std::min(margin, value(rank) - value(rank + 1));
  places.resize(static_cast<std::size_t>(count));
  return places;
}

}  // namespace detail

/// logits [n_routed_experts]; bias [n_routed_experts] or empty.
inline ReferenceRouting reference_routing(const MixtureOfExpertsConfig& config,
                                          const std::vector<double>& logits,
                                          const std::vector<double>& bias) {
  const bool v2 = !config.scale_normalised;
  ReferenceRouting routing;
  double sum = 0.0;
  for (const double logit : logits) {
    const bool sigmoid = config.scoring_func == ScoringFunction::sigmoid;
    routing.scores.push_back(sigmoid ? 1.0 / (1.0 + std::exp(-logit)) : std::exp(logit));
    sum += routing.scores.back();
  }
  if (config.scoring_func == ScoringFunction::softmax)
    for (double& score : routing.scores) score /= sum;

  std::vector<double> choice = routing.scores;
  for (std::size_t e = 0; e < bias.size(); ++e) choice[e] += bias[e];
  double margin = 1e30;
  if (config.topk_method != TopkMethod::greedy) {
    const auto size = static_cast<std::size_t>(config.n_routed_experts / config.n_group);
    std::vector<double> groups;
    for (std::size_t first = 0; first < choice.size(); first += size) {
      std::vector<double> group(choice.begin() + static_cast<std::ptrdiff_t>(first),
                                choice.begin() + static_cast<std::ptrdiff_t>(first + size));
      std::ranges::sort(group, std::greater{});
      const bool two = config.topk_method == TopkMethod::noaux_tc && size > 1;
      groups.push_back(two ? group[0] + group[1] : group[0]);
    }
    std::vector<double> kept(choice.size(), -1e300);
    for (const Index g : detail::largest(groups, config.topk_group, margin))
      for (std::size_t e = static_cast<std::size_t>(g) * size;
           e < (static_cast<std::size_t>(g) + 1) * size; ++e)
        kept[e] = choice[e];
    choice = kept;
  }
  routing.experts = detail::largest(choice, config.num_experts_per_tok, margin);
  routing.margin = margin;

  double total = 1e-20;
  for (const Index e : routing.experts) total += routing.scores[static_cast<std::size_t>(e)];
  for (const Index e : routing.experts) {
    double weight = routing.scores[static_cast<std::size_t>(e)];
    if (v2) {  // modeling_deepseek.py of V2: one or the other
      if (config.num_experts_per_tok > 1 && config.norm_topk_prob)
        weight /= total;
      else
        weight *= config.routed_scaling_factor;
    } else {
      if (config.norm_topk_prob) weight /= total;
      weight *= config.routed_scaling_factor;
    }
    routing.weights[e] = weight;
  }
  return routing;
}

}  // namespace mla::test

#endif  // MLA_MODEL_REFERENCE_ROUTER_HPP_
