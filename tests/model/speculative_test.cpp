#include "mla/model/speculative.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "mla/model/generate.hpp"
#include "model/synthetic_checkpoint.hpp"
#include "model/test_sampler.hpp"

// That drafts do not change what tokens are distributed by.

namespace mla::test {
namespace {

// Pearson's statistic of counts against probabilities, in standard deviations above its mean:
// above 5 for one of two million samples.
double excess(const std::vector<double>& counts, const std::vector<double>& probabilities) {
  const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
  double statistic = 0.0, bins = -1.0, rare = 0.0, rare_expected = 0.0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double expected = total * probabilities[i];
    if (expected < 20.0) {  // all rare outcomes are one
      rare += counts[i];
      rare_expected += expected;
      continue;
    }
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    bins += 1.0;
  }
  if (rare_expected > 5.0) {
    statistic += (rare - rare_expected) * (rare - rare_expected) / rare_expected;
    bins += 1.0;
  } else {
    EXPECT_LE(rare, 30.0);
  }
  return (statistic - bins) / std::sqrt(2.0 * bins);
}

std::vector<float> random_distribution(std::size_t size, double sharpness, Random& random) {
  std::vector<float> p(size);
  float sum = 0.0f;
  for (float& value : p) sum += value = std::exp(static_cast<float>(sharpness * random.unit()));
  for (float& value : p) value /= sum;
  return p;
}

TEST(SpeculativeRule, TheTokenIsDistributedByPWhateverQIs) {
  Random random(11);
  TestSampler sampler(8, 1.0, 12);
  for (const double sharpness : {0.0, 1.0, 3.0}) {
    std::vector<float> p = random_distribution(8, 1.0, random);
    std::vector<float> q = random_distribution(8, sharpness, random);
    p[3] += p[5];
    p[5] = 0.0f;  // never, though drafts propose it
    q[2] += q[6];
    q[6] = 0.0f;  // never drafted
    std::vector<double> counts(8, 0.0);
    double accepted = 0.0, overlap = 0.0;
    constexpr int kTrials = 200000;
    for (int i = 0; i < kTrials; ++i) {
      const TokenId draft = sampler.sample(q);
      const bool keep = accept_draft(p, q, draft, sampler.uniform());
      accepted += keep;
      std::vector<float> residual = p;
      if (!keep) take_residual(residual, q);
      ++counts[static_cast<std::size_t>(keep ? draft : sampler.sample(residual))];
    }
    EXPECT_LT(excess(counts, {p.begin(), p.end()}), 5.0) << sharpness;
    EXPECT_EQ(counts[5], 0.0);
    for (std::size_t i = 0; i < 8; ++i) overlap += static_cast<double>(std::min(p[i], q[i]));
    EXPECT_NEAR(accepted / kTrials, overlap, 0.006) << "as often as the distributions overlap";
  }
}

TEST(SpeculativeRule, EqualDistributionsAlwaysAcceptAndLeaveNoResidual) {
  std::vector<float> p = {0.25f, 0.5f, 0.0f, 0.25f};
  for (const TokenId draft : {0, 1, 3}) EXPECT_TRUE(accept_draft(p, p, draft, 0.9999999999));
  const std::vector<float> before = p;
  take_residual(p, before);
  EXPECT_EQ(p, before);
}

TEST(SpeculativeRule, GreedyIsACaseOfIt) {
  std::vector<float> p = {0.0f, 1.0f, 0.0f};
  const std::vector<float> wrong = {0.0f, 0.0f, 1.0f};
  EXPECT_TRUE(accept_draft(p, p, 1, 0.999));
  EXPECT_FALSE(accept_draft(p, wrong, 2, 0.0));
  take_residual(p, wrong);
  EXPECT_EQ(p, (std::vector<float>{0.0f, 1.0f, 0.0f}));
}

// All texts of four tokens of a small vocabulary, with drafts and without, against their exact
// probabilities by the model.
struct SampledDrafts {
  const char* name;
  bool speculative;
  Index drafts, lookup;
};
class SampledText : public ::testing::TestWithParam<SampledDrafts> {};

constexpr Index kSmallVocabulary = 5, kTextTokens = 4;
constexpr double kTemperature = 1.3;

nlohmann::json tiny_vocabulary() {
  nlohmann::json config = synthetic_config();
  config.update(
      {{"vocab_size", kSmallVocabulary}, {"num_hidden_layers", 2}, {"eos_token_id", nullptr}});
  return config;
}

std::vector<double> text_probabilities(const DecoderModel& model,
                                       const std::vector<TokenId>& prompt) {
  TestSampler sampler(kSmallVocabulary, kTemperature, 1);
  std::vector<double> probabilities;
  const auto texts = static_cast<Index>(std::pow(kSmallVocabulary, kTextTokens));
  for (Index text = 0; text < texts; ++text) {
    std::vector<TokenId> tokens = prompt;
    for (Index i = 0, rest = text; i < kTextTokens; ++i, rest /= kSmallVocabulary)
      tokens.push_back(static_cast<TokenId>(rest % kSmallVocabulary));
    DecoderState state(model.config());
    const RowMajorMatrix logits = model.forward(tokens, state);
    double probability = 1.0;
    for (std::size_t i = prompt.size(); i < tokens.size(); ++i) {
      const float* row = logits.data() + (static_cast<Index>(i) - 1) * kSmallVocabulary;
      std::vector<float> next(kSmallVocabulary);
      sampler.probabilities({row, kSmallVocabulary}, {}, next);
      probability *= static_cast<double>(next[static_cast<std::size_t>(tokens[i])]);
    }
    probabilities.push_back(probability);
  }
  return probabilities;
}

TEST_P(SampledText, IsDistributedAsTheModelSays) {
  const SyntheticCheckpoint files(tiny_vocabulary());
  const DecoderModel model = DecoderModel::load(files.path());
  const std::vector<TokenId> prompt = {0, 3, 2, 3};
  const std::vector<double> expected = text_probabilities(model, prompt);
  std::vector<double> counts(expected.size(), 0.0);
  TestSampler sampler(kSmallVocabulary, kTemperature, 21);
  DecoderState state(model.config());
  Context context;
  Index drafted = 0, accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    Index text = 0, place = 1;
    state.clear();
    const GenerationResult result = generate(model, state, prompt, sampler, context,
                                             {.max_tokens = kTextTokens,
                                              .speculative = GetParam().speculative,
                                              .draft_tokens = GetParam().drafts,
                                              .lookup = GetParam().lookup,
                                              .on_token = [&](TokenId token) {
                                                text += place * token;
                                                place *= kSmallVocabulary;
                                                return true;
                                              }});
    ++counts[static_cast<std::size_t>(text)];
    drafted += result.drafted_tokens;
    accepted += result.accepted_tokens;
  }
  EXPECT_LT(excess(counts, expected), 5.0);
  const bool drafts = GetParam().speculative || GetParam().lookup > 0;
  EXPECT_EQ(drafted > 0, drafts);
  if (drafts) {  // both outcomes were tried
    EXPECT_GT(accepted, 1000);
    EXPECT_GT(drafted - accepted, 1000);
  }
}
INSTANTIATE_TEST_SUITE_P(Drafts, SampledText,
                         ::testing::Values(SampledDrafts{"Without", false, 1, 0},
                                           SampledDrafts{"With", true, 1, 0},
                                           SampledDrafts{"Three", true, 3, 0},
                                           SampledDrafts{"LookedUp", false, 3, 1},
                                           SampledDrafts{"LookedUpOrPredicted", true, 2, 2}),
                         [](const auto& drafts) { return std::string(drafts.param.name); });

TEST(SpeculativeRule, AGivenDraftIsOneFromADistributionThatIsAllOnIt) {
  Random random(13);
  for (const TokenId draft : {0, 3, 7}) {
    const std::vector<float> p = random_distribution(8, 2.0, random);
    std::vector<float> q(8, 0.0f), given = p, drawn = p;
    q[static_cast<std::size_t>(draft)] = 1.0f;
    for (const double uniform : {0.0, 0.05, 0.1, 0.2, 0.5, 0.99})
      EXPECT_EQ(accept_draft(p, draft, uniform), accept_draft(p, q, draft, uniform));
    take_residual(given, draft);
    take_residual(drawn, q);
    EXPECT_EQ(given, drawn);
  }
  std::vector<float> certain = {0.0f, 1.0f};
  take_residual(certain, 1);
  EXPECT_EQ(certain, (std::vector<float>{0.0f, 1.0f})) << "nothing else can be drawn";
}

}  // namespace
}  // namespace mla::test
