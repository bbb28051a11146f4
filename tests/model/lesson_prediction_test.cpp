// The lesson's head for multi-token prediction: combine_proj over [rmsnorm(hidden state),
// rmsnorm(embedding)], attention with a rotary key for every head, experts, residuals; chained over
// depths. Compared with the formulas written out in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "mla/attention/reference.hpp"
#include "mla/model/multi_token_prediction.hpp"
#include "model/reference_router.hpp"
#include "model/synthetic_checkpoint.hpp"
#include "support/compare.hpp"
#include "support/executors.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

using Matrix = reference::Matrix<double>;

constexpr Index kHidden = 48, kVocabulary = 39, kDepths = 3, kTokens = 70;

ModelConfig lesson_config() {
  ModelConfig config;
  config.attention = AttentionConfig::lesson(kHidden, 4, 20, 28, 8);
  config.vocab_size = kVocabulary;
  config.num_hidden_layers = 2;
  config.rms_norm_eps = 1e-5;
  config.experts = {.n_routed_experts = 5,
                    .num_experts_per_tok = 2,
                    .n_shared_experts = 0,
                    .moe_intermediate_size = 19,
                    .n_group = 1,
                    .topk_group = 1,
                    .scoring_func = ScoringFunction::softmax,
                    .topk_method = TopkMethod::greedy,
                    .routed_scaling_factor = 1.0};
  return config;
}

// Random weights of all depths; embedding and head are the same for all.
class LessonWeights {
 public:
  explicit LessonWeights(const ModelConfig& config, std::uint64_t seed) : random_(seed) {
    const WeightView embedding = matrix(kVocabulary, kHidden, 1.0);
    const WeightView head = matrix(kVocabulary, kHidden, 0.3);
    for (Index depth = 0; depth < kDepths; ++depth) {
      attention_.push_back(
          std::make_unique<RandomWeights>(config.attention, WeightOptions{.split = true}, random_));
      MultiTokenPredictionWeights weights;
      weights.embed_tokens = embedding;
      weights.enorm = norm();
      weights.hnorm = norm();
      weights.eh_proj = matrix(kHidden, 2 * kHidden, 0.15);
      weights.hidden_first = true;
      weights.layer = {norm(), attention_.back()->views(), norm(), experts(config.experts)};
      weights.shared_head = head;
      depths_.push_back(weights);
    }
  }
  const std::vector<MultiTokenPredictionWeights>& depths() const noexcept { return depths_; }

 private:
  WeightView norm() { return matrix(1, kHidden, 0.3, 1.0); }
  MixtureOfExpertsWeights experts(const MixtureOfExpertsConfig& config) {
    MixtureOfExpertsWeights weights;
    weights.router.gate = matrix(config.n_routed_experts, kHidden, 0.3);
    const Index inner = config.moe_intermediate_size;
    for (Index e = 0; e < config.n_routed_experts; ++e)
      weights.experts.push_back(
          {matrix(inner, kHidden, 0.2), matrix(inner, kHidden, 0.2), matrix(kHidden, inner, 0.3)});
    return weights;
  }
  WeightView matrix(Index rows, Index cols, double scale, double center = 0.0) {
    memory_.push_back(random_elements<float>(rows * cols, random_, scale, center));
    return {memory_.back().data(), rows, cols};
  }

  Random random_;
  std::vector<std::vector<float>> memory_;
  std::vector<std::unique_ptr<RandomWeights>> attention_;
  std::vector<MultiTokenPredictionWeights> depths_;
};

// One depth, a token at a time where it can be.
class ReferenceHead {
 public:
  ReferenceHead(const ModelConfig& config, const MultiTokenPredictionWeights& weights)
      : config_(config), weights_(weights) {}

  Matrix states(const Matrix& hidden, std::span<const TokenId> next_tokens) {
    const Matrix embeddings = reference::to_matrix<double>(weights_.embed_tokens);
    Matrix x(hidden.rows(), kHidden);
    for (Index t = 0; t < x.rows(); ++t) {
      Matrix both(1, 2 * kHidden);
      both << norm(hidden.row(t), weights_.hnorm),
          norm(embeddings.row(next_tokens[static_cast<std::size_t>(t)]), weights_.enorm);
      x.row(t) = both * reference::to_matrix<double>(weights_.eh_proj).transpose();
    }
    const std::vector<Index> positions = consecutive(0, x.rows());
    Matrix normalised(x.rows(), kHidden);
    for (Index t = 0; t < x.rows(); ++t)
      normalised.row(t) = norm(x.row(t), weights_.layer.input_layernorm);
    x += reference::forward<double>(config_.attention, weights_.layer.self_attn, normalised,
                                    positions)
             .output;
    for (Index t = 0; t < x.rows(); ++t)
      x.row(t) += experts(norm(x.row(t), weights_.layer.post_attention_layernorm));
    return x;
  }

  Matrix logits(const Matrix& states) const {
    return states * reference::to_matrix<double>(weights_.shared_head).transpose();
  }
  double margin() const noexcept { return margin_; }

 private:
  Matrix norm(const Matrix& row, const WeightView& weight) const {
    const double mean = row.array().square().mean();
    return (row / std::sqrt(mean + config_.rms_norm_eps))
        .cwiseProduct(reference::to_matrix<double>(weight));
  }

  Matrix experts(const Matrix& row) {
    const auto& weights = std::get<MixtureOfExpertsWeights>(weights_.layer.mlp);
    const Matrix logits = row * reference::to_matrix<double>(weights.router.gate).transpose();
    const ReferenceRouting routing =
        reference_routing(config_.experts, {logits.data(), logits.data() + logits.size()}, {});
    margin_ = std::min(margin_, routing.margin);
    Matrix sum = Matrix::Zero(1, kHidden);
    for (const auto& [expert, factor] : routing.weights) {
      const MlpWeights& mlp = weights.experts[static_cast<std::size_t>(expert)];
      Matrix gate = row * reference::to_matrix<double>(mlp.gate_proj).transpose();
      gate = gate.unaryExpr([](double g) { return g / (1.0 + std::exp(-g)); });
      const Matrix up = row * reference::to_matrix<double>(mlp.up_proj).transpose();
      sum +=
          factor * gate.cwiseProduct(up) * reference::to_matrix<double>(mlp.down_proj).transpose();
    }
    return sum;
  }

  const ModelConfig& config_;
  const MultiTokenPredictionWeights& weights_;
  double margin_ = 1e30;
};

class LessonPrediction : public ::testing::Test {
 protected:
  explicit LessonPrediction(std::uint64_t seed = 4) : weights(config, seed) {
    for (Index depth = 0; depth < kDepths; ++depth) {
      modules.emplace_back(config, weights.depths()[static_cast<std::size_t>(depth)], depth);
      caches.emplace_back(config.attention);
    }
  }

  // Passes positions [first, first + rows) through all depths: depth k, from 1 on, takes the token
  // k places later. Returns the logits of each depth.
  std::vector<RowMajorMatrix> run(Index first, Index rows) {
    std::vector<RowMajorMatrix> logits;
    RowMajorMatrix x = hidden.middleRows(first, rows);
    for (std::size_t k = 0; k < kDepths; ++k) {
      RowMajorMatrix states(rows, kHidden);
      const auto next = std::span<const TokenId>(tokens).subspan(
          static_cast<std::size_t>(first) + k + 1, static_cast<std::size_t>(rows));
      modules[k].states(x, next, first, caches[k], states, context, AttentionForm::absorbed);
      logits.emplace_back(rows, kVocabulary);
      modules[k].head(states, logits.back(), context);
      x = states;
    }
    return logits;
  }

  std::vector<CacheContents> contents() const {
    std::vector<CacheContents> all;
    for (const auto& cache : caches) all.emplace_back(cache);
    return all;
  }

  ModelConfig config = lesson_config();
  LessonWeights weights;
  std::vector<MultiTokenPrediction> modules;
  std::vector<LatentKVCache<float>> caches;
  Random random{5};
  RowMajorMatrix hidden = random_matrix(kTokens, kHidden, random);
  std::vector<TokenId> tokens = random_tokens(kTokens + kDepths, kVocabulary, 6);
  Context context;
};

// Float32 rounding, amplified by three layers. No router decides by less than it can tell.
TEST_F(LessonPrediction, IsTheFormulaInDoubleAtEveryDepth) {
  const std::vector<RowMajorMatrix> logits = run(0, kTokens);
  Matrix x = hidden.cast<double>();
  for (std::size_t k = 0; k < kDepths; ++k) {
    ReferenceHead depth(config, weights.depths()[k]);
    x = depth.states(x, std::span<const TokenId>(tokens).subspan(k + 1, kTokens));
    ASSERT_GT(depth.margin(), 1e-5) << "take another seed";
    EXPECT_TRUE(close(logits[k], depth.logits(x), 2e-5)) << "depth " << k + 1;
  }
}

// Step by step over the caches, and with drafts in between that are taken back.
TEST_F(LessonPrediction, CachedStepsAndTruncationEqualOneCallToTheLastBit) {
  const std::vector<RowMajorMatrix> whole = run(0, kTokens);
  const auto expected = contents();
  for (auto& cache : caches) cache.clear();
  for (Index first = 0, rows = 1; first < kTokens; first += rows, rows = rows % 5 + 1) {
    const Index count = std::min(rows, kTokens - first);
    const Index ahead = std::min<Index>(3, kTokens - first - count);
    if (ahead > 0) {  // wrong states, right places
      hidden.middleRows(first, ahead) *= -1.0f;
      run(first, ahead);
      hidden.middleRows(first, ahead) *= -1.0f;
      for (auto& cache : caches) cache.truncate(first);
    }
    const std::vector<RowMajorMatrix> logits = run(first, count);
    for (std::size_t k = 0; k < kDepths; ++k)
      EXPECT_TRUE(same_bits(logits[k], whole[k].middleRows(first, count))) << first << " " << k;
  }
  EXPECT_EQ(contents(), expected);
}

// forward() is states() and head() in one; the layer knows its depth.
TEST_F(LessonPrediction, LogitsAreTheHeadOfTheStates) {
  struct Layers final : DecoderObserver {
    void on_layer(Index layer, MatrixView<const float>) override { seen.push_back(layer); }
    std::vector<Index> seen;
  } layers;
  const RowMajorMatrix expected = run(0, 9)[0].bottomRows(4);
  LatentKVCache<float> cache(config.attention);
  RowMajorMatrix logits(4, kVocabulary);
  const auto next = std::span<const TokenId>(tokens).subspan(1, 9);
  modules[0].forward(hidden.topRows(9), next, 0, cache, logits, context, AttentionForm::absorbed);
  EXPECT_TRUE(same_bits(logits, expected));
  EXPECT_EQ(CacheContents(cache), CacheContents(caches[0]));
  modules[2].forward(hidden.topRows(9), next, 9, cache, logits, context, AttentionForm::absorbed,
                     &layers);
  EXPECT_EQ(layers.seen, (std::vector<Index>{config.num_hidden_layers + 2}));
}

// Which half is which matters.
TEST_F(LessonPrediction, TheOrderOfTheHalvesIsThatOfTheWeights) {
  MultiTokenPredictionWeights swapped = weights.depths()[0];
  swapped.hidden_first = false;
  const MultiTokenPrediction other(config, swapped);
  const RowMajorMatrix expected = run(0, 9)[0];
  LatentKVCache<float> cache(config.attention);
  RowMajorMatrix logits(9, kVocabulary);
  other.forward(hidden.topRows(9), std::span<const TokenId>(tokens).subspan(1, 9), 0, cache, logits,
                context, AttentionForm::absorbed);
  EXPECT_GT((logits - expected).cwiseAbs().maxCoeff(), 0.1f);
}

TEST_F(LessonPrediction, RefusesWhatDoesNotFit) {
  RowMajorMatrix states(9, kHidden), logits(9, kVocabulary);
  const auto next = std::span<const TokenId>(tokens).first(9);
  EXPECT_TRUE(
      refuses([&] { modules[0].states(hidden.topRows(9), next, 0, caches[0], logits, context); },
              {"[9, 48]", "[9, 39]"}));
  EXPECT_TRUE(refuses(
      [&] { modules[0].states(hidden.topRows(8), next.first(8), 0, caches[0], states, context); },
      {"8", "9"}));
  EXPECT_TRUE(refuses([&] { modules[0].head(states, logits.topRows(8), context); },
                      {"[8, 48]", "[9, 48]"}));
  EXPECT_EQ(caches[0].size(), 0);
}

}  // namespace
}  // namespace mla::test
