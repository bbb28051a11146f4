#include "mla/model/router.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "model/reference_router.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"

namespace mla::test {
namespace {

MixtureOfExpertsConfig make_experts(Index experts, Index top, Index groups, Index top_groups) {
  MixtureOfExpertsConfig config;
  config.n_routed_experts = experts;
  config.num_experts_per_tok = top;
  config.n_group = groups;
  config.topk_group = top_groups;
  return config;
}

/// A router whose logits are the input itself: the gate is the identity.
struct IdentityRouter {
  IdentityRouter(const MixtureOfExpertsConfig& config, const std::vector<float>& biases)
      : identity(RowMajorMatrix::Identity(config.n_routed_experts, config.n_routed_experts)),
        bias(biases) {
    RouterWeights weights;
    weights.gate = {identity.data(), config.n_routed_experts, config.n_routed_experts};
    if (!bias.empty()) weights.e_score_correction_bias = {bias.data(), 1, config.n_routed_experts};
    router = Router(config, weights, config.n_routed_experts);
  }

  RowMajorMatrix identity;
  std::vector<float> bias;
  Router router;
};

/// Routes one token.
struct Routed {
  Routed(const MixtureOfExpertsConfig& config, const std::vector<float>& logits,
         const std::vector<float>& bias = {})
      : Routed(IdentityRouter(config, bias).router, logits) {}

  Routed(const Router& router, const std::vector<float>& x) {
    const MixtureOfExpertsConfig& config = router.config();
    Context context;
    const Workspace::Scope scope(context.workspace());
    const ExpertChoice choice(config, 1, context.workspace());
    router.forward({x.data(), 1, std::ssize(x)}, choice, context);
    experts.assign(choice.experts.row(0), choice.experts.row(0) + config.num_experts_per_tok);
    weights.assign(choice.weights.row(0), choice.weights.row(0) + config.num_experts_per_tok);
    scores.assign(choice.scores.row(0), choice.scores.row(0) + config.n_routed_experts);
  }
  std::vector<Index> experts;
  std::vector<float> weights;
  std::vector<float> scores;
};

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

TEST(Router, GroupsAreRankedByTheirTwoBestExperts) {
  // Group 0 has the best expert, groups 1 and 2 the better pairs.
  const std::vector<float> logits = {3.0f, -4.0f, -4.0f, 1.5f, 1.4f, -4.0f, 1.2f, 1.6f, -4.0f};
  const Routed routed(make_experts(9, 3, 3, 2), logits, std::vector<float>(9, 0.0f));
  EXPECT_EQ(routed.experts, (std::vector<Index>{7, 3, 4}));
}

TEST(Router, DeepSeekV2RanksGroupsByTheirBestExpert) {
  const std::vector<float> logits = {3.0f, -4.0f, -4.0f, 1.5f, 1.4f, -4.0f, 1.2f, 1.6f, -4.0f};
  MixtureOfExpertsConfig config = make_experts(9, 3, 3, 2);
  config.topk_method = TopkMethod::group_limited_greedy;
  config.scoring_func = ScoringFunction::softmax;
  EXPECT_EQ(Routed(config, logits).experts, (std::vector<Index>{0, 7, 6}));
  config.topk_method = TopkMethod::greedy;
  EXPECT_EQ(Routed(config, logits).experts, (std::vector<Index>{0, 7, 3}));
}

// With a mask of 0 the experts of the groups that are out would win over negative biased scores.
TEST(Router, AGroupThatIsOutNeverWinsOverNegativeBiasedScores) {
  const std::vector<float> logits = {1.0f, 0.9f, 0.8f, 0.7f, 0.6f, 0.5f, 0.4f, 0.3f};
  const std::vector<float> bias = {-9.0f, -9.1f, -9.2f, -9.3f, -2.0f, -8.0f, -2.1f, -8.1f};
  const Routed routed(make_experts(8, 3, 4, 2), logits, bias);
  // Pairs: -16.7, -17.2, -8.8, -9.1: groups 2 and 3 are in.
  EXPECT_EQ(routed.experts, (std::vector<Index>{4, 6, 5}));
  const float sum = sigmoid(0.6f) + sigmoid(0.4f) + sigmoid(0.5f);
  EXPECT_NEAR(routed.weights[0], 2.5f * sigmoid(0.6f) / sum, 1e-6f);
}

TEST(Router, TheBiasIsForTheChoiceOnly) {
  const std::vector<float> logits = {0.1f, 0.2f, 0.3f, 0.4f};
  MixtureOfExpertsConfig config = make_experts(4, 2, 1, 1);
  const Routed routed(config, logits, {5.0f, 0.0f, 4.0f, 0.0f});
  EXPECT_EQ(routed.experts, (std::vector<Index>{0, 2})) << "best biased score first";
  const float sum = sigmoid(0.1f) + sigmoid(0.3f);
  EXPECT_NEAR(routed.weights[0], 2.5f * sigmoid(0.1f) / sum, 1e-6f);
  EXPECT_NEAR(routed.weights[1], 2.5f * sigmoid(0.3f) / sum, 1e-6f);
  for (std::size_t e = 0; e < 4; ++e) EXPECT_NEAR(routed.scores[e], sigmoid(logits[e]), 1e-7f);
  config.norm_topk_prob = false;
  EXPECT_NEAR(Routed(config, logits, {5.0f, 0.0f, 4.0f, 0.0f}).weights[1], 2.5f * sigmoid(0.3f),
              1e-6f);
}

// V2 scales weights or normalises them, V3 does both; V3 normalises a single weight to 1.
TEST(Router, ScalingAndNormalisingAreThoseOfTheModelType) {
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f, -1.0f};
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  const double best = std::exp(2.0) / sum, second = std::exp(1.0) / sum;
  MixtureOfExpertsConfig config = make_experts(4, 2, 1, 1);
  config.scoring_func = ScoringFunction::softmax;
  config.topk_method = TopkMethod::greedy;
  config.routed_scaling_factor = 16.0;
  for (const bool v2 : {false, true})
    for (const bool normalise : {false, true})
      for (const Index top : {1, 2}) {
        config.scale_normalised = !v2;
        config.norm_topk_prob = normalise;
        config.num_experts_per_tok = top;
        double expected = best;
        const bool normalised = normalise && (top > 1 || !v2);
        if (normalised) expected /= top == 1 ? best : best + second;
        if (!v2 || !normalised) expected *= 16.0;
        const Routed routed(config, logits);
        EXPECT_EQ(routed.experts[0], 2);
        EXPECT_NEAR(routed.weights[0], expected, 1e-5) << v2 << normalise << top;
      }
}

TEST(Router, OfEqualScoresTheFirstWins) {
  const std::vector<float> zeros(8, 0.0f);
  EXPECT_EQ(Routed(make_experts(8, 3, 4, 2), zeros, zeros).experts, (std::vector<Index>{0, 1, 2}));
  MixtureOfExpertsConfig greedy = make_experts(8, 8, 1, 1);
  greedy.topk_method = TopkMethod::greedy;
  EXPECT_EQ(Routed(greedy, zeros).experts, (std::vector<Index>{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(Router, LargeLogitsGiveFiniteWeights) {
  MixtureOfExpertsConfig config = make_experts(4, 2, 1, 1);
  config.topk_method = TopkMethod::greedy;
  for (const auto scoring : {ScoringFunction::sigmoid, ScoringFunction::softmax}) {
    config.scoring_func = scoring;
    const Routed large(config, {500.0f, -500.0f, 499.0f, 400.0f});
    EXPECT_EQ(large.experts[0], 0);
    for (const float weight : large.weights) EXPECT_TRUE(std::isfinite(weight));
  }
}

// Comparisons drop NaN: without a word the token would go to other experts.
TEST(Router, ANaNInTheGateMakesEveryWeightNaN) {
  for (const auto method :
       {TopkMethod::greedy, TopkMethod::group_limited_greedy, TopkMethod::noaux_tc})
    for (const auto scoring : {ScoringFunction::sigmoid, ScoringFunction::softmax})
      for (Index nan = 0; nan < 8; ++nan) {
        MixtureOfExpertsConfig config = make_experts(8, 3, 4, 2);
        config.topk_method = method;
        config.scoring_func = scoring;
        const std::vector<float> bias(method == TopkMethod::noaux_tc ? 8 : 0, 0.5f);
        IdentityRouter owner(config, bias);
        owner.identity(nan, 0) = std::numeric_limits<float>::quiet_NaN();
        const Routed routed(owner.router, {3.0f, 1.0f, 2.0f, -1.0f, 0.0f, 4.0f, 5.0f, -2.0f});
        for (const float weight : routed.weights) EXPECT_TRUE(std::isnan(weight)) << nan;
        const std::set<Index> different(routed.experts.begin(), routed.experts.end());
        EXPECT_EQ(different.size(), 3u);
        EXPECT_GE(*different.begin(), 0);
        EXPECT_LT(*different.rbegin(), 8);
      }
}

// Random shapes of all methods against sorting in double. Decisions closer than float32 can tell
// are left out.
TEST(Router, IsTheReferenceForRandomShapes) {
  Random random(7);
  int compared = 0, negative = 0;
  for (int i = 0; i < 3000; ++i) {
    const Index groups = random.integer(1, 6), size = random.integer(1, 9);
    const Index top_groups = random.integer(1, groups);
    MixtureOfExpertsConfig config =
        make_experts(groups * size, random.integer(1, top_groups * size), groups, top_groups);
    config.scoring_func = random.one_of({ScoringFunction::sigmoid, ScoringFunction::softmax});
    config.topk_method =
        random.one_of({TopkMethod::greedy, TopkMethod::group_limited_greedy, TopkMethod::noaux_tc});
    config.norm_topk_prob = random.chance(0.5);
    config.scale_normalised = random.chance(0.5);
    config.routed_scaling_factor = random.uniform(0.5, 16.0);
    const auto logits = random_elements<float>(config.n_routed_experts, random, 2.0);
    std::vector<float> bias;
    if (config.topk_method == TopkMethod::noaux_tc)
      bias = random_elements<float>(config.n_routed_experts, random, 1.0, -0.5);

    const ReferenceRouting expected =
        reference_routing(config, {logits.begin(), logits.end()}, {bias.begin(), bias.end()});
    if (expected.margin < 1e-6) continue;
    const Routed routed(config, logits, bias);
    ASSERT_EQ(routed.experts, expected.experts) << "case " << i;
    for (std::size_t k = 0; k < routed.experts.size(); ++k)
      EXPECT_NEAR(routed.weights[k] / expected.weights.at(routed.experts[k]), 1.0, 1e-5);
    for (std::size_t e = 0; e < logits.size(); ++e)
      EXPECT_NEAR(routed.scores[e], expected.scores[e], 1e-6);
    for (const float b : bias) negative += b < -1.0f;
    ++compared;
  }
  EXPECT_GT(compared, 2500);
  EXPECT_GT(negative, 1000) << "biased scores below 0 are part of it";
}

TEST(Router, RefusesWhatDoesNotFit) {
  const auto refused = [](auto change, std::initializer_list<const char*> parts) {
    MixtureOfExpertsConfig config = make_experts(8, 2, 4, 2);
    change(config);
    EXPECT_TRUE(refuses([&] { config.validate(); }, parts));
  };
  refused([](auto& c) { c.num_experts_per_tok = 9; }, {"num_experts_per_tok", "8", "9"});
  refused([](auto& c) { c.num_experts_per_tok = 0; }, {"num_experts_per_tok", "0"});
  refused([](auto& c) { c.num_experts_per_tok = 5; }, {"num_experts_per_tok", "4", "5"});
  refused([](auto& c) { c.n_group = 3; }, {"n_group", "8", "3"});
  refused([](auto& c) { c.n_group = 0; }, {"n_group", "0"});
  refused([](auto& c) { c.topk_group = 5; }, {"topk_group", "4", "5"});
  refused([](auto& c) { c.n_shared_experts = -1; }, {"n_shared_experts", "-1"});
  refused([](auto& c) { c.moe_intermediate_size = 0; }, {"moe_intermediate_size", "0"});
  refused([](auto& c) { c.n_routed_experts = -8; }, {"n_routed_experts", "-8"});
  refused([](auto& c) { c.routed_scaling_factor = std::nan(""); }, {"routed_scaling_factor"});
  refused([](auto& c) { c.scoring_func = static_cast<ScoringFunction>(7); }, {"scoring_func", "7"});
  refused([](auto& c) { c.topk_method = static_cast<TopkMethod>(-1); }, {"topk_method", "-1"});

  const MixtureOfExpertsConfig config = make_experts(8, 2, 4, 2);
  const std::vector<float> values(64, 0.0f);
  RouterWeights weights = {{values.data(), 8, 8}, {values.data(), 1, 8}};
  EXPECT_NO_THROW(Router(config, weights, 8));
  EXPECT_TRUE(refuses([&] { Router(config, weights, 7); }, {"gate", "[8, 7]", "[8, 8]"}));
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> bias(8, 1.0f);
    bias[5] = bad;
    const RouterWeights spoilt = {weights.gate, {bias.data(), 1, 8}};
    EXPECT_TRUE(refuses([&] { Router(config, spoilt, 8); },
                        {"e_score_correction_bias", "expert 5", std::isnan(bad) ? "nan" : "inf"}));
  }
  weights.e_score_correction_bias = {};
  EXPECT_TRUE(refuses([&] { Router(config, weights, 8); }, {"e_score_correction_bias"}));
  weights.e_score_correction_bias = {values.data(), 1, 8};
  MixtureOfExpertsConfig greedy = config;
  greedy.topk_method = TopkMethod::greedy;
  EXPECT_TRUE(refuses([&] { Router(greedy, weights, 8); }, {"e_score_correction_bias", "greedy"}));
}

}  // namespace
}  // namespace mla::test
