#ifndef MLA_MODEL_SAMPLER_HPP_
#define MLA_MODEL_SAMPLER_HPP_

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/model/model_config.hpp"

namespace mla {

/// How the next token is chosen. The defaults sample from the model's own distribution.
struct SamplerOptions {
  double temperature = 1.0;         ///< 0: always the most likely token
  Index top_k = 0;                  ///< only the k most likely; 0: all
  double top_p = 1.0;               ///< only the fewest most likely that together reach p
  double min_p = 0.0;               ///< only those at least this times as likely as the best
  double repetition_penalty = 1.0;  ///< above 1: tokens seen before are less likely
  std::uint64_t seed = 0;

  /// Throws std::invalid_argument naming the field.
  void validate() const {
    const auto at_least_zero = [](double value) { return value >= 0.0 && std::isfinite(value); };
    require(at_least_zero(temperature), "temperature must be 0 or more, got ", temperature);
    require(top_k >= 0, "top_k must be 0 or more, got ", top_k);
    require(top_p > 0.0 && top_p <= 1.0, "top_p must be above 0 and at most 1, got ", top_p);
    require(min_p >= 0.0 && min_p <= 1.0, "min_p must be from 0 to 1, got ", min_p);
    require(repetition_penalty >= 1e-6 && repetition_penalty <= 1e6,
            "repetition_penalty must be from 1e-6 to 1e6, got ", repetition_penalty);
  }
};

/// Chooses tokens by their logits. In this order, which is that of Hugging Face's transformers:
///
///   repetition_penalty  logits of tokens in the history are divided by it where positive and
///                       multiplied where not (CTRL, Keskar et al. 2019), once for each token
///   temperature         logits are divided by it; at 0 what follows is left out
///   top_k               logits below the k-th largest are dropped; its equals stay
///   top_p               of the softmax of the rest, the fewest that reach p together stay (nucleus
///                       sampling, Holtzman et al. 2020); of equals the lower ids
///   min_p               those below min_p times the largest probability are dropped
///
/// What stays is scaled to a sum of 1. Probabilities are computed in double, in an order that
/// depends on the logits only. A seed gives the same draws on every platform; the probabilities
/// that a draw is compared with are as exact as std::exp.
///
/// Not safe to use from several threads at once. Nothing is allocated after construction.
class Sampler {
 public:
  /// Throws std::invalid_argument naming the option, or when `vocab_size` is below 1.
  explicit Sampler(Index vocab_size, const SamplerOptions& options = {})
      : options_(validated(options)), state_(options.seed) {
    require(vocab_size > 0 && vocab_size <= std::numeric_limits<TokenId>::max(),
            "vocab_size must be from 1 to 2^31 - 1, got ", vocab_size);
    const auto size = static_cast<std::size_t>(vocab_size);
    scores_.resize(size);
    kept_.resize(size);
    seen_.resize(size, false);
    probabilities_.resize(size);
  }

  const SamplerOptions& options() const noexcept { return options_; }
  Index vocab_size() const noexcept { return std::ssize(scores_); }

  /// Whether next() draws nothing: temperature 0.
  bool greedy() const noexcept { return options_.temperature == 0.0; }

  /// Begins again, as if constructed with `seed`.
  void reseed(std::uint64_t seed) noexcept { state_ = seed; }

  /// A token to follow `history`, for which the model gave `logits` [vocab_size]. Uses one
  /// uniform() unless temperature is 0. Throws std::invalid_argument as probabilities() does.
  TokenId next(std::span<const float> logits, std::span<const TokenId> history = {}) {
    if (greedy()) return most_likely(logits, history);
    probabilities(logits, history, probabilities_);
    return sample(probabilities_);
  }

  /// The distribution that next() draws from, into `out` [vocab_size]; at temperature 0 all of it
  /// is on one token, of equals the lowest. Logits may be -infinity: never chosen.
  /// Throws std::invalid_argument naming the token for a logit that is NaN or +infinity and for a
  /// token in the history that is not in the vocabulary, and when every logit is -infinity.
  void probabilities(std::span<const float> logits, std::span<const TokenId> history,
                     std::span<float> out) {
    require(std::ssize(out) == vocab_size(), "probabilities need room for ", vocab_size(),
            " tokens, got ", out.size());
    if (greedy()) {
      const TokenId token = most_likely(logits, history);
      std::ranges::fill(out, 0.0f);
      out[static_cast<std::size_t>(token)] = 1.0f;
      return;
    }
    penalise(logits, history);
    keep_top_k();
    to_weights();
    keep_top_p();
    // The largest weight is 1.
    std::erase_if(kept_, [&](TokenId token) { return score(token) < options_.min_p; });
    const double sum = sum_of_kept();
    std::ranges::fill(out, 0.0f);
    for (const TokenId token : kept_)
      out[static_cast<std::size_t>(token)] = static_cast<float>(score(token) / sum);
  }

  /// Draws a token with one uniform(). `weights` [vocab_size] need not sum to 1, so that it also
  /// draws from max(0, p - q), what speculative sampling continues with after a rejection. Throws
  /// std::invalid_argument for a weight that is negative or not finite, or when all are 0.
  TokenId sample(std::span<const float> weights) {
    require(std::ssize(weights) == vocab_size(), "weights must be of ", vocab_size(),
            " tokens, got ", weights.size());
    double sum = 0.0;
    for (std::size_t token = 0; token < weights.size(); ++token) {
      require(weights[token] >= 0.0f && std::isfinite(weights[token]), "weight of token ", token,
              " must be 0 or more, got ", weights[token]);
      sum += static_cast<double>(weights[token]);
    }
    require(sum > 0.0, "weights are 0 for every token");
    const double target = uniform() * sum;
    double reached = 0.0;
    std::size_t last = 0;  // that has a weight: rounding may bring `target` up to `sum`
    for (std::size_t token = 0; token < weights.size(); ++token) {
      if (weights[token] == 0.0f) continue;
      last = token;
      reached += static_cast<double>(weights[token]);
      if (reached > target) break;
    }
    return static_cast<TokenId>(last);
  }

  /// The next number of the seed's sequence, from [0, 1): the upper 53 bits of splitmix64 (Steele
  /// et al. 2014). The standard distributions are not used, since they differ between libraries.
  double uniform() noexcept {
    std::uint64_t bits = (state_ += 0x9e3779b97f4a7c15u);
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    bits ^= bits >> 31;
    return static_cast<double>(bits >> 11) * 0x1p-53;
  }

 private:
  double& score(TokenId token) noexcept { return scores_[static_cast<std::size_t>(token)]; }

  auto more_likely() noexcept {
    return
        [this](TokenId a, TokenId b) { return score(a) != score(b) ? score(a) > score(b) : a < b; };
  }

  // scores_ = logits, those of tokens in the history penalised.
  void penalise(std::span<const float> logits, std::span<const TokenId> history) {
    check(logits, history);
    std::ranges::copy(logits, scores_.begin());
    if (options_.repetition_penalty == 1.0) return;
    for (const TokenId token : history) {
      const auto t = static_cast<std::size_t>(token);
      if (seen_[t]) continue;
      seen_[t] = true;
      scores_[t] = scores_[t] > 0.0 ? scores_[t] / options_.repetition_penalty
                                    : scores_[t] * options_.repetition_penalty;
    }
    for (const TokenId token : history) seen_[static_cast<std::size_t>(token)] = false;
  }

  // Returns the largest logit.
  float check(std::span<const float> logits, std::span<const TokenId> history) const {
    require(std::ssize(logits) == vocab_size(), "logits must be of ", vocab_size(), " tokens, got ",
            logits.size());
    const float peak = Eigen::Map<const Eigen::ArrayXf>(logits.data(), std::ssize(logits))
                           .maxCoeff<Eigen::PropagateNaN>();
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    if (!(peak < kInfinity)) {
      const auto refused = [](float logit) { return !(logit < kInfinity); };  // NaN too
      const auto first = std::ranges::find_if(logits, refused);
      throw_invalid("logit of token ", first - logits.begin(), " is ", *first);
    }
    require(peak > -kInfinity, "logits are -infinity for every token");
    for (const TokenId token : history)
      require(token >= 0 && token < vocab_size(), "token ", token,
              " of the history is not in the vocabulary of ", vocab_size());
    return peak;
  }

  TokenId most_likely(std::span<const float> logits, std::span<const TokenId> history) {
    if (options_.repetition_penalty != 1.0) {
      penalise(logits, history);
      return static_cast<TokenId>(std::ranges::max_element(scores_) - scores_.begin());
    }
    const float peak = check(logits, history);
    return static_cast<TokenId>(std::ranges::find(logits, peak) - logits.begin());
  }

  // kept_ = the tokens whose score is not below the k-th largest, nor -infinity, by id.
  void keep_top_k() {
    kept_.clear();  // keeps its memory
    for (TokenId token = 0; token < vocab_size(); ++token)
      if (score(token) > -std::numeric_limits<double>::infinity()) kept_.push_back(token);
    if (options_.top_k == 0 || options_.top_k >= std::ssize(kept_)) return;
    const auto kth = kept_.begin() + (options_.top_k - 1);
    std::ranges::nth_element(kept_, kth, more_likely());
    const double least = score(*kth);
    std::erase_if(kept_, [&](TokenId token) { return score(token) < least; });
    std::ranges::sort(kept_);
  }

  // scores_ of kept_ = exp((score - largest) / temperature).
  void to_weights() {
    double largest = -std::numeric_limits<double>::infinity();
    for (const TokenId token : kept_) largest = std::max(largest, score(token));
    for (const TokenId token : kept_)
      score(token) = std::exp((score(token) - largest) / options_.temperature);
  }

  double sum_of_kept() noexcept {
    double sum = 0.0;
    for (const TokenId token : kept_) sum += score(token);
    return sum;
  }

  // Keeps those of kept_ that reach top_p first, by id. Sorts no more of them by weight than it
  // needs: the nucleus is mostly a few tokens of a hundred thousand.
  void keep_top_p() {
    if (options_.top_p == 1.0) return;
    const double wanted = options_.top_p * sum_of_kept();
    const auto end = kept_.end();
    auto sorted = kept_.begin();  // the end of those that are sorted by weight and counted
    double reached = 0.0;
    for (std::ptrdiff_t count = 64; sorted != end && reached < wanted; count *= 4) {
      const auto last = sorted + std::min(count, end - sorted);
      if (last != end) std::ranges::nth_element(sorted, last, end, more_likely());
      std::ranges::sort(sorted, last, more_likely());
      while (sorted != last && reached < wanted) reached += score(*sorted++);
    }
    kept_.erase(sorted, end);
    std::ranges::sort(kept_);
  }

  SamplerOptions options_;
  std::uint64_t state_;
  std::vector<double> scores_;        // [vocab_size]
  std::vector<TokenId> kept_;         // tokens not dropped
  std::vector<char> seen_;            // [vocab_size] all false between calls
  std::vector<float> probabilities_;  // [vocab_size]
};

}  // namespace mla

#endif  // MLA_MODEL_SAMPLER_HPP_
