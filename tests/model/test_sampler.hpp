#ifndef MLA_MODEL_TEST_SAMPLER_HPP_
#define MLA_MODEL_TEST_SAMPLER_HPP_

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "mla/model/generate.hpp"
#include "support/random.hpp"

namespace mla::test {

/// Draws from softmax(logits / temperature), nothing else; temperature 0 takes the best.
class TestSampler {
 public:
  TestSampler(Index vocab_size, double temperature, std::uint64_t seed)
      : temperature_(temperature),
        random_(seed),
        probabilities_(static_cast<std::size_t>(vocab_size)) {}

  std::span<const float> probabilities(std::span<const float> logits,
                                       std::span<const TokenId> /*text*/) {
    const float peak = *std::ranges::max_element(logits);
    double sum = 0.0;
    for (std::size_t i = 0; i < logits.size(); ++i) sum += weight(logits[i] - peak);
    for (std::size_t i = 0; i < logits.size(); ++i)
      probabilities_[i] = static_cast<float>(weight(logits[i] - peak) / sum);
    return probabilities_;
  }
  TokenId draw(std::span<const float> probabilities) {
    double left = uniform();
    std::size_t last = 0;
    for (std::size_t i = 0; i < probabilities.size(); ++i) {
      if (probabilities[i] <= 0.0f) continue;
      last = i;
      left -= static_cast<double>(probabilities[i]);
      if (left < 0.0) break;
    }
    return static_cast<TokenId>(last);
  }
  TokenId sample(std::span<const float> logits, std::span<const TokenId> text) {
    return draw(probabilities(logits, text));
  }
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

struct GreedySampler : TestSampler {
  explicit GreedySampler(Index vocab_size) : TestSampler(vocab_size, 0.0, 1) {}
};

static_assert(TokenSampler<TestSampler>);

}  // namespace mla::test

#endif  // MLA_MODEL_TEST_SAMPLER_HPP_
