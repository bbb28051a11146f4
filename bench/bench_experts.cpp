// A layer's routed experts: those that tokens choose at random, together in two parallel regions.

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "kernel_benchmark.hpp"
#include "mla/model/mixture_of_experts.hpp"
#include "random_weights.hpp"

namespace mla::bench {
namespace {

struct ExpertDims {
  Index hidden, intermediate, experts, chosen;
};
// DeepSeek-V2-Lite's, and 16 of DeepSeek-V3's 256.
constexpr ExpertDims kExpertDims[] = {{2048, 1408, 64, 6}, {7168, 2048, 16, 8}};

class RandomExperts {
 public:
  RandomExperts(const ExpertDims& dims, WeightFormat format) : dims_(dims) {
    config_.n_routed_experts = dims.experts;
    config_.num_experts_per_tok = dims.chosen;
    config_.n_shared_experts = 0;
    config_.moe_intermediate_size = dims.intermediate;
    config_.scoring_func = ScoringFunction::softmax;
    config_.topk_method = TopkMethod::greedy;
    MixtureOfExpertsWeights weights;
    weights.router.gate = memory_.matrix(WeightFormat::float32, dims.experts, dims.hidden);
    for (Index e = 0; e < dims.experts; ++e)
      weights.experts.push_back({memory_.matrix(format, dims.intermediate, dims.hidden),
                                 memory_.matrix(format, dims.intermediate, dims.hidden),
                                 memory_.matrix(format, dims.hidden, dims.intermediate)});
    const MlpWeights& first = weights.experts[0];
    expert_bytes_ = RandomWeights::bytes_of(first.gate_proj) +
                    RandomWeights::bytes_of(first.up_proj) +
                    RandomWeights::bytes_of(first.down_proj);
    mixture_ = MixtureOfExperts(config_, weights, dims.hidden);
  }

  const MixtureOfExperts& mixture() const { return mixture_; }
  const MixtureOfExpertsConfig& config() const { return config_; }
  double expert_bytes() const { return expert_bytes_; }

  /// Other experts at each call. Returns how many of them are used.
  Index choose(ExpertChoice& choice) {
    std::set<Index> used;
    for (Index t = 0; t < choice.experts.rows; ++t)
      for (Index k = 0; k < choice.experts.cols;) {
        Index* const chosen = choice.experts.row(t);
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        const auto e =
            static_cast<Index>((state_ >> 33) % static_cast<std::uint64_t>(dims_.experts));
        if (std::find(chosen, chosen + k, e) != chosen + k) continue;
        chosen[k] = e;
        choice.weights(t, k++) = 0.2f;
        used.insert(e);
      }
    return std::ssize(used);
  }

 private:
  ExpertDims dims_;
  MixtureOfExpertsConfig config_;
  RandomWeights memory_;
  MixtureOfExperts mixture_;
  double expert_bytes_ = 0.0;
  std::uint64_t state_ = 1;
};

// B/s: of the weights of the experts that are used, once each.
void BM_Experts(benchmark::State& state) {
  const ExpertDims dims = kExpertDims[state.range(2)];
  const Index tokens = state.range(3);
  Bench bench(state, static_cast<int>(state.range(4)));
  RandomExperts experts(dims, static_cast<WeightFormat>(state.range(1)));
  const auto x = random_values<float>(tokens * dims.hidden);
  std::vector<float> y(x.size());
  const Workspace::Scope scope(bench.context.workspace());
  ExpertChoice choice(experts.config(), tokens, bench.context.workspace());
  const double flops =
      6.0 * static_cast<double>(tokens * dims.chosen * dims.hidden * dims.intermediate);
  Index calls = -1, used = 0;  // the first warms up
  const double share =
      static_cast<double>(dims.experts) *
      (1.0 - std::pow(1.0 - static_cast<double>(dims.chosen) / static_cast<double>(dims.experts),
                      static_cast<double>(tokens)));
  Meter(state, bench.context).run(flops, share * experts.expert_bytes(), [&] {
    used += experts.choose(choice);
    ++calls;
    experts.mixture().forward({x.data(), tokens, dims.hidden}, choice,
                              {y.data(), tokens, dims.hidden}, bench.context);
  });
  state.counters["experts"] = static_cast<double>(used) / static_cast<double>(calls + 1);
}

void experts_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa", "type", "dims", "tokens", "threads"});
  for (Index dims : {0, 1})
    for (const WeightFormat type :
         {WeightFormat::bfloat16, WeightFormat::fp8_e4m3, WeightFormat::int8, WeightFormat::int4})
      for (Index isa : isas())
        for (Index tokens : {1, 8, 64, 512})
          b->Args({isa, static_cast<Index>(type), dims, tokens, 1});
}

}  // namespace

void add_expert_rows() { add_rows("BM_Experts", &BM_Experts, &experts_arguments); }

}  // namespace mla::bench
