#include "mla/model/sampler.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "mla/model/generation_options.hpp"
#include "support/random.hpp"

namespace mla {
namespace {

static_assert(TokenSampler<Sampler>);

using Floats = std::vector<float>;
using Tokens = std::vector<TokenId>;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

Floats probabilities(const SamplerOptions& options, const Floats& logits,
                     const Tokens& history = {}) {
  Sampler sampler(std::ssize(logits), options);
  Floats result(logits.size(), kNaN);
  sampler.probabilities(logits, history, result);
  return result;
}

// Logits whose softmax is `p`.
Floats logits_of(const std::vector<double>& p) {
  Floats logits;
  for (const double value : p) logits.push_back(static_cast<float>(std::log(value)));
  return logits;
}

// Each within 1e-6: a logit near -3 is rounded by 1.2e-7, a probability changes by as much of
// itself; zeros must be exactly 0.
void expect_near(const Floats& actual, const std::vector<double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], 1e-6) << i;
    EXPECT_EQ(actual[i] == 0.0f, expected[i] == 0.0) << i;
  }
}

template <class Call>
std::string refusal(Call&& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no std::invalid_argument";
}

const std::vector<double> kP = {0.1, 0.4, 0.05, 0.3, 0.15};

TEST(Sampler, DefaultsAreTheSoftmaxOfTheLogits) {
  expect_near(probabilities({}, logits_of(kP)), kP);
}

TEST(Sampler, TemperatureZeroTakesTheBestAndOfEqualsTheLowest) {
  Sampler sampler(5, {.temperature = 0.0});
  EXPECT_EQ(sampler.next(Floats{1, 3, 2, 3, -kInfinity}), 1);
  EXPECT_EQ(sampler.next(Floats{-5, -5, -5, -5, -5}), 0);
  EXPECT_EQ(sampler.next(Floats{-0.0f, 0.0f, -1, -1, -1}), 0);
  EXPECT_EQ(probabilities({.temperature = 0.0}, {1, 3, 2, 3, 0}), (Floats{0, 1, 0, 0, 0}));
  // Without a draw, so the sequence of draws has not begun.
  EXPECT_EQ(sampler.uniform(), Sampler(5).uniform());
}

TEST(Sampler, TemperatureTakesPowersOfProbabilities) {
  // p^2 / sum p^2, sum p^2 = 0.285; sqrt(p) / sum sqrt(p).
  expect_near(probabilities({.temperature = 0.5}, logits_of(kP)),
              {0.01 / 0.285, 0.16 / 0.285, 0.0025 / 0.285, 0.09 / 0.285, 0.0225 / 0.285});
  double roots = 0.0;
  for (const double p : kP) roots += std::sqrt(p);
  std::vector<double> expected;
  for (const double p : kP) expected.push_back(std::sqrt(p) / roots);
  expect_near(probabilities({.temperature = 2.0}, logits_of(kP)), expected);
  expect_near(probabilities({.temperature = 1e-300}, {1, 3, 3, 2}), {0, 0.5, 0.5, 0});
}

TEST(Sampler, TopKKeepsTheKBestAndTheEqualsOfTheLast) {
  expect_near(probabilities({.top_k = 1}, logits_of(kP)), {0, 1, 0, 0, 0});
  expect_near(probabilities({.top_k = 2}, logits_of(kP)), {0, 4.0 / 7, 0, 3.0 / 7, 0});
  expect_near(probabilities({.top_k = 5}, logits_of(kP)), kP);
  expect_near(probabilities({.top_k = 1000}, logits_of(kP)), kP);
  expect_near(probabilities({.top_k = 2}, {2, 3, 2, 2, 1}),
              {1 / (3 + M_E), M_E / (3 + M_E), 1 / (3 + M_E), 1 / (3 + M_E), 0});
}

TEST(Sampler, TopPKeepsTheFewestThatReachP) {
  expect_near(probabilities({.top_p = 0.39}, logits_of(kP)), {0, 1, 0, 0, 0});
  expect_near(probabilities({.top_p = 0.41}, logits_of(kP)), {0, 4.0 / 7, 0, 3.0 / 7, 0});
  expect_near(probabilities({.top_p = 0.69}, logits_of(kP)), {0, 4.0 / 7, 0, 3.0 / 7, 0});
  expect_near(probabilities({.top_p = 0.71}, logits_of(kP)),
              {0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85});
  expect_near(probabilities({.top_p = 0.96}, logits_of(kP)), kP);
  expect_near(probabilities({.top_p = 1e-9}, logits_of(kP)), {0, 1, 0, 0, 0});
  // Exactly reached is reached; of equals the lower ids.
  expect_near(probabilities({.top_p = 0.5}, {7, 7, 7, 7}), {0.5, 0.5, 0, 0});
  expect_near(probabilities({.top_p = 0.75}, {-kInfinity, 7, 7, 7, 7}),
              {0, 1.0 / 3, 1.0 / 3, 1.0 / 3, 0});
}

TEST(Sampler, MinPDropsThoseFarBelowTheBest) {
  expect_near(probabilities({.min_p = 0.3}, logits_of(kP)),
              {0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85});
  expect_near(probabilities({.min_p = 0.74}, logits_of(kP)), {0, 4.0 / 7, 0, 3.0 / 7, 0});
  expect_near(probabilities({.min_p = 1.0}, {1, 3, 3, 2}), {0, 0.5, 0.5, 0});
}

// The documented boundary: at least min_p times as likely. The same exp() at run time gives it to
// the last bit.
TEST(Sampler, MinPKeepsATokenThatIsExactlyMinPTimesAsLikely) {
  volatile double difference = -1.0;
  const double share = std::exp(difference);
  expect_near(probabilities({.min_p = share}, {4, 3, 2}),
              {1 / (1 + share), share / (1 + share), 0});
  expect_near(probabilities({.min_p = std::nextafter(share, 1.0)}, {4, 3, 2}), {1, 0, 0});
}

// CTRL: positive logits are divided, others multiplied, and once only.
TEST(Sampler, RepetitionPenaltyIsForSeenTokens) {
  const Floats logits = {2, -2, 2, -2, 0};
  const auto penalised = probabilities({.repetition_penalty = 4.0}, logits, {0, 1, 1, 0, 4, 0});
  const std::vector<double> changed = {0.5, -8, 2, -2, 0};
  double sum = 0.0;
  std::vector<double> expected;
  for (const double logit : changed) sum += std::exp(logit);
  for (const double logit : changed) expected.push_back(std::exp(logit) / sum);
  expect_near(penalised, expected);
  EXPECT_EQ(probabilities({.repetition_penalty = 4.0}, logits), probabilities({}, logits));
  EXPECT_EQ(probabilities({}, logits, {0, 1}), probabilities({}, logits));

  // Each call begins anew, and greedy choice heeds it too.
  Sampler sampler(5, {.temperature = 0.0, .repetition_penalty = 4.0});
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(sampler.next(logits, Tokens{0}), 2);
    EXPECT_EQ(sampler.next(logits, Tokens{2}), 0);
  }
}

// Every two steps here would give something else the other way round.
TEST(Sampler, StepsComeInTheDocumentedOrder) {
  // Penalty before temperature and top-k: token 0 falls behind 1 and 2.
  expect_near(probabilities({.top_k = 2, .repetition_penalty = 2.0}, {4, 3, 3, 1}, {0}),
              {0, 0.5, 0.5, 0});
  // Temperature before top-p: 0.4^2 / 0.285 = 0.56 reaches 0.5 alone.
  expect_near(probabilities({.temperature = 0.5, .top_p = 0.5}, logits_of(kP)), {0, 1, 0, 0, 0});
  // Top-k before top-p: 0.4 / 0.7 = 0.57 of those left reaches 0.55.
  expect_near(probabilities({.top_k = 2, .top_p = 0.55}, logits_of(kP)), {0, 1, 0, 0, 0});
  // Temperature before min-p: 0.3^2 / 0.4^2 = 0.5625.
  expect_near(probabilities({.temperature = 0.5, .min_p = 0.6}, logits_of(kP)), {0, 1, 0, 0, 0});
  // Top-p before min-p: 0.1 is needed to reach 0.95, whatever min-p drops.
  expect_near(probabilities({.top_p = 0.95, .min_p = 0.2}, logits_of(kP)),
              {0.1 / 0.95, 0.4 / 0.95, 0, 0.3 / 0.95, 0.15 / 0.95});
}

// The definitions, with everything sorted.
std::vector<double> slow_probabilities(const SamplerOptions& options, const Floats& logits) {
  const std::size_t size = logits.size();
  std::vector<std::size_t> order(size);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](auto a, auto b) { return logits[a] > logits[b]; });
  const double best = static_cast<double>(logits[order[0]]);
  std::vector<double> weights(size, 0.0);
  double sum = 0.0;
  for (std::size_t i = 0; i < size; ++i) {
    const bool in_top_k = options.top_k == 0 || static_cast<Index>(i) < options.top_k ||
                          logits[order[i]] == logits[order[std::size_t(options.top_k) - 1]];
    if (!in_top_k) break;
    sum += weights[order[i]] =
        std::exp((static_cast<double>(logits[order[i]]) - best) / options.temperature);
  }
  double reached = 0.0, kept = 0.0;
  for (std::size_t i = 0; i < size; ++i) {
    double& weight = weights[order[i]];
    const double own = weight;
    if ((options.top_p < 1.0 && reached >= options.top_p * sum) || own < options.min_p)
      weight = 0.0;
    reached += own;
    kept += weight;
  }
  for (double& weight : weights) weight /= kept;
  return weights;
}

// 1,000 tokens: the nucleus is found in several rounds of sorting. Weights with quarters in the
// logits give many equals. A nucleus may end one token earlier where rounding of a sum decides;
// top_p are chosen so that none does.
TEST(Sampler, EqualsTheSortedDefinitionOnLargeVocabularies) {
  test::Random random(5);
  for (int repeat = 0; repeat < 200; ++repeat) {
    Floats logits;
    const double sharpness = random.uniform(0.0, 5.0);
    for (int i = 0; i < 1000; ++i) {
      const double logit = sharpness * random.unit();
      logits.push_back(static_cast<float>(repeat % 2 ? std::round(logit * 4.0) / 4.0 : logit));
    }
    const SamplerOptions options{.temperature = random.uniform(0.3, 2.0),
                                 .top_k = random.chance(0.5) ? random.integer(1, 1000) : 0,
                                 .top_p = random.chance(0.8) ? random.uniform(0.01, 1.0) : 1.0,
                                 .min_p = random.chance(0.5) ? random.uniform(0.0, 0.3) : 0.0};
    const auto actual = probabilities(options, logits);
    const auto expected = slow_probabilities(options, logits);
    double sum = 0.0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      ASSERT_NEAR(actual[i], expected[i], 1e-6 * expected[i]) << repeat << ' ' << i;
      sum += static_cast<double>(actual[i]);
    }
    EXPECT_NEAR(sum, 1.0, 1e-6);  // 1,000 roundings of 6e-8 of a part each
  }
}

// splitmix64 from seed 1234567, upper 53 bits: the published values of the generator are
// 6457827717110365317, 3203168211198807973, 9817491932198370423.
TEST(Sampler, DrawsOfASeedAreTheSameEverywhere) {
  Sampler sampler(1000, {.seed = 1234567});
  EXPECT_EQ(sampler.uniform(), static_cast<double>(6457827717110365317u >> 11) * 0x1p-53);
  EXPECT_EQ(sampler.uniform(), static_cast<double>(3203168211198807973u >> 11) * 0x1p-53);
  EXPECT_EQ(sampler.uniform(), static_cast<double>(9817491932198370423u >> 11) * 0x1p-53);
  sampler.reseed(1234567);
  const Floats even(1000, 1.0f);
  Tokens drawn;
  for (int i = 0; i < 8; ++i) drawn.push_back(sampler.sample(even));
  EXPECT_EQ(drawn, (Tokens{350, 173, 532, 249, 889, 423, 590, 275}));
}

TEST(Sampler, EqualSeedsChooseEqualTokens) {
  const SamplerOptions options{.temperature = 0.8, .top_p = 0.9, .seed = 42};
  Sampler a(5, options), b(5, options), other(5, {.temperature = 0.8, .top_p = 0.9, .seed = 43});
  Tokens of_a, of_b, of_other;
  for (int i = 0; i < 50; ++i) {
    of_a.push_back(a.next(logits_of(kP)));
    of_b.push_back(b.next(logits_of(kP)));
    of_other.push_back(other.next(logits_of(kP)));
  }
  EXPECT_EQ(of_a, of_b);
  EXPECT_NE(of_a, of_other);
  b.reseed(42);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(b.next(logits_of(kP)), of_a[std::size_t(i)]);
}

// Of n draws a token of probability p gets n p, with the deviation sqrt(n p (1 - p)). Beyond five
// deviations is one of 1.7 million; the seed is fixed, so it does not come and go.
TEST(Sampler, FrequenciesAreTheProbabilities) {
  constexpr int kDraws = 200'000;
  const SamplerOptions options{.temperature = 0.7, .top_k = 4, .seed = 7};
  const Floats p = probabilities(options, logits_of(kP));
  Sampler sampler(5, options);
  std::vector<int> counts(5);
  for (int i = 0; i < kDraws; ++i) ++counts[std::size_t(sampler.next(logits_of(kP)))];
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double mean = kDraws * static_cast<double>(p[i]);
    EXPECT_NEAR(counts[i], mean, 5.0 * std::sqrt(mean * (1.0 - static_cast<double>(p[i]))))
        << i;  // 0 for token 2, which top-k drops
  }
}

TEST(Sampler, DrawsByWeightsOfAnySum) {
  Sampler sampler(4, {.seed = 3});
  std::vector<int> counts(4);
  for (int i = 0; i < 30'000; ++i)
    ++counts[std::size_t(sampler.sample(Floats{0, 1e-30f, 0, 2e-30f}))];
  EXPECT_EQ(counts[0] + counts[2], 0);
  EXPECT_NEAR(counts[1], 10'000, 5.0 * std::sqrt(30'000 * 2.0 / 9.0));  // five deviations
  for (int i = 0; i < 100; ++i) EXPECT_EQ(sampler.sample(Floats{0, 0, 1, 0}), 2);
}

TEST(Sampler, TokensOfProbabilityZeroAreNeverDrawn) {
  Sampler sampler(3, {.temperature = 5.0, .seed = 1});
  for (int i = 0; i < 1000; ++i)
    EXPECT_EQ(sampler.next(Floats{-kInfinity, -1000.0f, -kInfinity}), 1);
}

TEST(Sampler, OptionsOutOfRangeAreNamed) {
  const auto named = [](const SamplerOptions& options) {
    const std::string message = refusal([&] { Sampler sampler(5, options); });
    return message.substr(0, message.find(' '));
  };
  const double nan = static_cast<double>(kNaN), infinity = static_cast<double>(kInfinity);
  for (const double bad : {-0.1, nan, infinity, -infinity}) {
    EXPECT_EQ(named({.temperature = bad}), "temperature");
    EXPECT_EQ(named({.top_p = bad}), "top_p");
    EXPECT_EQ(named({.min_p = bad}), "min_p");
    EXPECT_EQ(named({.repetition_penalty = bad}), "repetition_penalty");
  }
  EXPECT_EQ(named({.top_k = -1}), "top_k");
  EXPECT_EQ(named({.top_p = 0.0}), "top_p");
  EXPECT_EQ(named({.top_p = 1.1}), "top_p");
  EXPECT_EQ(named({.min_p = 1.1}), "min_p");
  EXPECT_EQ(named({.repetition_penalty = 0.0}), "repetition_penalty");
  EXPECT_EQ(named({.temperature = 1e-300, .top_k = 9, .top_p = 1.0, .min_p = 1.0}), "no");
  for (const Index size : {Index{0}, Index{-1}, Index{1} << 31})
    EXPECT_NE(refusal([&] { Sampler sampler(size); }).find("vocab_size"), std::string::npos);
}

TEST(Sampler, BadLogitsHistoryAndWeightsAreNamed) {
  const auto message = [](const SamplerOptions& options, const Floats& logits,
                          const Tokens& history = {}) {
    return refusal([&] { Sampler(4, options).next(logits, history); });
  };
  for (const double temperature : {0.0, 1.0}) {
    const SamplerOptions options{.temperature = temperature};
    EXPECT_EQ(message(options, {1, 2, kNaN, 0}), "logit of token 2 is nan");
    EXPECT_EQ(message(options, {1, kInfinity, 0, 0}), "logit of token 1 is inf");
    EXPECT_EQ(message(options, Floats(4, -kInfinity)), "logits are -infinity for every token");
    EXPECT_EQ(message(options, {1, 2, 3}), "logits must be of 4 tokens, got 3");
    for (const TokenId token : {-1, 4, std::numeric_limits<TokenId>::max()})
      EXPECT_NE(message(options, {1, 2, 3, 4}, {0, token}).find("of the history"),
                std::string::npos);
  }
  Sampler sampler(4);
  EXPECT_EQ(refusal([&] {
              sampler.sample(Floats{1, -1, 0, 0});
            }),
            "weight of token 1 must be 0 or more, got -1");
  EXPECT_EQ(refusal([&] {
              sampler.sample(Floats{1, 0, 0, kNaN});
            }),
            "weight of token 3 must be 0 or more, got nan");
  EXPECT_EQ(refusal([&] {
              sampler.sample(Floats{1, 0, kInfinity, 0});
            }),
            "weight of token 2 must be 0 or more, got inf");
  EXPECT_EQ(refusal([&] { sampler.sample(Floats(4)); }), "weights are 0 for every token");
  EXPECT_EQ(refusal([&] { sampler.sample(Floats(5, 1.0f)); }),
            "weights must be of 4 tokens, got 5");
  Floats out(3);
  EXPECT_EQ(refusal([&] { sampler.probabilities(Floats(4), {}, out); }),
            "probabilities need room for 4 tokens, got 3");
}

// What is refused leaves nothing behind: no token is taken for seen.
TEST(Sampler, ACallThatThrowsChangesNothing) {
  const SamplerOptions options{.repetition_penalty = 3.0, .seed = 9};
  Sampler sampler(4, options), fresh(4, options);
  const Floats logits = {1, 2, 3, 4};
  EXPECT_THROW(sampler.next(logits, Tokens{3, 2, 9}), std::invalid_argument);
  EXPECT_THROW(sampler.next(Floats{1, 2, 3, kNaN}, Tokens{3}), std::invalid_argument);
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(sampler.next(logits, Tokens{1}), fresh.next(logits, Tokens{1}));
}

}  // namespace
}  // namespace mla
