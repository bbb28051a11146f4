#ifndef MLA_MODEL_TEST_SAMPLER_HPP_
#define MLA_MODEL_TEST_SAMPLER_HPP_

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "mla/model/generate.hpp"
#include "support/random.hpp"

namespace mla::test {

/// Draws from softmax(logits / temperature), nothing else; temperature 0 takes the best. One that a
/// user of the library could have written, for tests that need no more.
class TestSampler {
 public:
  TestSampler(Index vocab_size, double temperature, std::uint64_t seed)
      : temperature_(temperature),
        random_(seed),
        probabilities_(static_cast<std::size_t>(vocab_size)) {}

  void probabilities(std::span<const float> logits, std::span<const TokenId> /*text*/,
                     std::span<float> out) {
    const float peak = *std::ranges::max_element(logits);
    double sum = 0.0;
    for (const float logit : logits) sum += weight(logit - peak);
    for (std::size_t i = 0; i < logits.size(); ++i)
      out[i] = static_cast<float>(weight(logits[i] - peak) / sum);
  }
  TokenId sample(std::span<const float> weights) {
    double left = uniform() * std::accumulate(weights.begin(), weights.end(), 0.0);
    std::size_t last = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      if (weights[i] <= 0.0f) continue;
      last = i;
      left -= static_cast<double>(weights[i]);
      if (left < 0.0) break;
    }
    return static_cast<TokenId>(last);
  }
  TokenId next(std::span<const float> logits, std::span<const TokenId> text) {
    probabilities(logits, text, probabilities_);
    return sample(probabilities_);
  }
  bool greedy() const { return temperature_ == 0.0; }
  double uniform() { return random_.uniform(0.0, 1.0); }

 private:
  double weight(float below_peak) const {
    if (temperature_ == 0.0) return below_peak == 0.0f ? 1.0 : 0.0;
    return std::exp(static_cast<double>(below_peak) / temperature_);
  }

  double temperature_;
  Random random_;
  std::vector<float> probabilities_;
};

static_assert(TokenSampler<TestSampler>);

}  // namespace mla::test

#endif  // MLA_MODEL_TEST_SAMPLER_HPP_
