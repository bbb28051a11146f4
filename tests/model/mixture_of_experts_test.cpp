#include "mla/model/mixture_of_experts.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "mla/ops/mlp.hpp"
#include "support/compare.hpp"
#include "support/executors.hpp"
#include "support/isas.hpp"
#include "support/random.hpp"

namespace mla::test {
namespace {

constexpr Index kHiddenSize = 33, kIntermediateSize = 21;

MixtureOfExpertsConfig small_experts() {
  MixtureOfExpertsConfig config;
  config.n_routed_experts = 12;
  config.num_experts_per_tok = 3;
  config.n_group = 4;
  config.topk_group = 2;
  config.n_shared_experts = 2;
  config.moe_intermediate_size = kIntermediateSize;
  return config;
}

/// Random weights of a mixture of experts, and their owner.
struct RandomExperts {
  explicit RandomExperts(const MixtureOfExpertsConfig& config, Index hidden = kHiddenSize)
      : hidden_size(hidden), random(3) {
    weights.router.gate = matrix(config.n_routed_experts, hidden_size);
    weights.router.e_score_correction_bias = matrix(1, config.n_routed_experts);
    for (Index e = 0; e < config.n_routed_experts; ++e)
      weights.experts.push_back(mlp(config.moe_intermediate_size));
    weights.shared_experts = mlp(config.n_shared_experts * config.moe_intermediate_size);
  }

  MlpWeights mlp(Index intermediate) {
    return {matrix(intermediate, hidden_size), matrix(intermediate, hidden_size),
            matrix(hidden_size, intermediate)};
  }
  WeightView matrix(Index rows, Index cols) {
    memory.push_back(random_elements<bfloat16>(rows * cols, random, 0.3));
    return {memory.back().data(), rows, cols};
  }

  Index hidden_size;
  Random random;
  std::vector<std::vector<bfloat16>> memory;
  MixtureOfExpertsWeights weights;
};

RowMajorMatrix run(const MixtureOfExperts& experts, const RowMajorMatrix& x, Context& context) {
  RowMajorMatrix out(x.rows(), x.cols());
  const MatrixView<const float> in(x.data(), x.rows(), x.cols());
  const Workspace::Scope scope(context.workspace());
  const ExpertChoice choice(experts.config(), x.rows(), context.workspace());
  experts.router().forward(in, choice, context);
  experts.forward(in, choice, {out.data(), out.rows(), out.cols()}, context);
  return out;
}

TEST(Silu, IsWithinFourUnitsInTheLastPlace) {
  for (double x = -80.0; x < 200.0; x += 0.0137) {
    const auto in = static_cast<float>(x);
    const double expected = static_cast<double>(in) / (1.0 + std::exp(-static_cast<double>(in)));
    EXPECT_NEAR(silu(in), expected, 4.0 * 0x1p-24 * 2.0 * std::abs(expected)) << x;
  }
  EXPECT_EQ(silu(0.0f), 0.0f);
  EXPECT_EQ(silu(-1e30f), 0.0f);
  EXPECT_EQ(silu(1e30f), 1e30f);
  EXPECT_TRUE(std::isnan(silu(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Mlp, IsSwiGluInDouble) {
  RandomExperts owner(small_experts());
  for (const Index intermediate : {1, 15, 64, 513, 1025}) {
    const MlpWeights weights = owner.mlp(intermediate);
    const Mlp mlp(weights, kHiddenSize, intermediate);
    const RowMajorMatrix x = random_matrix(5, kHiddenSize, owner.random);
    DoubleMatrix expected = DoubleMatrix::Zero(5, kHiddenSize);
    const auto gate = weights.gate_proj.as<bfloat16>(), up = weights.up_proj.as<bfloat16>();
    const auto down = weights.down_proj.as<bfloat16>();
    for (Index t = 0; t < 5; ++t)
      for (Index i = 0; i < intermediate; ++i) {
        double g = 0.0, u = 0.0;
        for (Index c = 0; c < kHiddenSize; ++c) {
          g += static_cast<double>(x(t, c)) * static_cast<double>(static_cast<float>(gate(i, c)));
          u += static_cast<double>(x(t, c)) * static_cast<double>(static_cast<float>(up(i, c)));
        }
        for (Index c = 0; c < kHiddenSize; ++c)
          expected(t, c) +=
              g / (1.0 + std::exp(-g)) * u * static_cast<double>(static_cast<float>(down(c, i)));
      }
    RowMajorMatrix out = x;
    const MatrixView<float> view(out.data(), 5, kHiddenSize);
    Context context;
    mlp.forward(view, view, context);                         // in place
    EXPECT_TRUE(close(out, expected, 2e-6)) << intermediate;  // float32 sums of up to 1025
  }
}

TEST(MixtureOfExperts, ATokensResultDoesNotDependOnTheOthersInTheCall) {
  RandomExperts owner(small_experts());
  const MixtureOfExperts experts(small_experts(), owner.weights, kHiddenSize);
  const RowMajorMatrix x = random_matrix(70, kHiddenSize, owner.random);
  for (const simd::Isa isa : supported_isas()) {
    Context context(simd::kernels_for(isa));
    const RowMajorMatrix all = run(experts, x, context);
    for (Index t = 0; t < x.rows(); ++t)
      ASSERT_TRUE(same_bits(run(experts, x.row(t), context), all.row(t))) << t;
    for (const Index first : {1, 7, 30})
      EXPECT_TRUE(
          same_bits(run(experts, x.middleRows(first, 40), context), all.middleRows(first, 40)));
    ThreadExecutor executor(3);
    Context threads(executor, simd::kernels_for(isa));
    EXPECT_TRUE(same_bits(run(experts, x, threads), all));
  }
}

/// Each token's result, expert by expert in the stated order, by an Mlp for each.
RowMajorMatrix one_by_one(const MixtureOfExpertsConfig& config, const RandomExperts& owner,
                          const RowMajorMatrix& x, Context& context) {
  const Index hidden_size = x.cols();
  const MixtureOfExperts experts(config, owner.weights, hidden_size);
  const Workspace::Scope scope(context.workspace());
  const ExpertChoice choice(config, x.rows(), context.workspace());
  experts.router().forward({x.data(), x.rows(), hidden_size}, choice, context);
  RowMajorMatrix out = RowMajorMatrix::Zero(x.rows(), hidden_size), part(1, hidden_size);
  for (Index t = 0; t < x.rows(); ++t) {
    const MatrixView<const float> row(x.row(t).data(), 1, hidden_size);
    const MatrixView<float> result(part.data(), 1, hidden_size);
    for (Index e = 0; e < config.n_routed_experts; ++e)
      for (Index k = 0; k < config.num_experts_per_tok; ++k) {
        if (choice.experts(t, k) != e) continue;
        Mlp(owner.weights.experts[static_cast<std::size_t>(e)], hidden_size,
            config.moe_intermediate_size)
            .forward(row, result, context);
        out.row(t) += choice.weights(t, k) * part;
      }
    Mlp(owner.weights.shared_experts, hidden_size,
        config.n_shared_experts * config.moe_intermediate_size)
        .forward(row, result, context);
    out.row(t) += part;
  }
  return out;
}

// 700 tokens: several groups of experts, and more tokens than one block of a kernel has.
TEST(MixtureOfExperts, IsTheWeightedSumOfItsExpertsAndTheSharedOnes) {
  RandomExperts owner(small_experts());
  const MixtureOfExperts experts(small_experts(), owner.weights, kHiddenSize);
  for (const simd::Isa isa : supported_isas())
    for (const Index tokens : {1, 9, 700}) {
      const RowMajorMatrix x = random_matrix(tokens, kHiddenSize, owner.random);
      Context context(simd::kernels_for(isa));
      EXPECT_TRUE(
          same_bits(run(experts, x, context), one_by_one(small_experts(), owner, x, context)))
          << tokens;
    }
}

TEST(MixtureOfExperts, ProjectionsOfAnExpertMayHaveStorageTypesOfTheirOwn) {
  RandomExperts owner(small_experts());
  const auto half = random_elements<float16>(kIntermediateSize * kHiddenSize, owner.random, 0.3);
  const auto full = random_elements<float>(kIntermediateSize * kHiddenSize, owner.random, 0.3);
  for (std::size_t e = 0; e < owner.weights.experts.size(); ++e) {
    MlpWeights& expert = owner.weights.experts[e];
    if (e % 3 != 0) expert.up_proj = {half.data(), kIntermediateSize, kHiddenSize};
    if (e % 3 != 1) expert.gate_proj = {full.data(), kIntermediateSize, kHiddenSize};
    if (e % 3 != 2) expert.down_proj = {half.data(), kHiddenSize, kIntermediateSize};
  }
  const MixtureOfExperts experts(small_experts(), owner.weights, kHiddenSize);
  const RowMajorMatrix x = random_matrix(40, kHiddenSize, owner.random);
  for (const simd::Isa isa : supported_isas()) {
    Context context(simd::kernels_for(isa));
    EXPECT_TRUE(
        same_bits(run(experts, x, context), one_by_one(small_experts(), owner, x, context)));
  }
}

/// Counts the parallel regions that have several tasks.
class CountingExecutor final : public Executor {
 public:
  Index concurrency() const noexcept override { return 4; }
  int regions = 0;

 private:
  void run(Index tasks, const Body& body) override {
    ++regions;
    for (Index task = 0; task < tasks; ++task) body(task, task % 4);
  }
};

TEST(MixtureOfExperts, AllExpertsOfATokenRunInTwoParallelRegions) {
  constexpr Index kWidth = 200;
  MixtureOfExpertsConfig config = small_experts();
  config.moe_intermediate_size = 150;
  RandomExperts owner(config, kWidth);
  const MixtureOfExperts experts(config, owner.weights, kWidth);
  for (const Index tokens : {1, 40}) {
    const RowMajorMatrix x = random_matrix(tokens, kWidth, owner.random);
    const MatrixView<const float> in(x.data(), tokens, kWidth);
    RowMajorMatrix out(tokens, kWidth);
    CountingExecutor executor;
    Context context(executor);  // float32: nothing is packed
    const Workspace::Scope scope(context.workspace());
    const ExpertChoice choice(config, tokens, context.workspace());
    experts.router().forward(in, choice, context);
    executor.regions = 0;
    experts.forward(in, choice, {out.data(), tokens, kWidth}, context);
    EXPECT_EQ(executor.regions, tokens == 1 ? 2 : 3);  // the rows of 40 tokens are gathered before
  }
}

TEST(MixtureOfExperts, AllTokensMayGoToTheSameExpertsAndThereMayBeNone) {
  RandomExperts owner(small_experts());
  const MixtureOfExperts experts(small_experts(), owner.weights, kHiddenSize);
  const RowMajorMatrix one = random_matrix(1, kHiddenSize, owner.random);
  const RowMajorMatrix same = one.replicate(130, 1);
  Context context;
  const RowMajorMatrix expected = run(experts, one, context).replicate(130, 1);
  EXPECT_TRUE(same_bits(run(experts, same, context), expected));
  EXPECT_EQ(run(experts, RowMajorMatrix(0, kHiddenSize), context).rows(), 0);
}

TEST(MixtureOfExperts, NaNStaysInItsToken) {
  RandomExperts owner(small_experts());
  const MixtureOfExperts experts(small_experts(), owner.weights, kHiddenSize);
  RowMajorMatrix x = random_matrix(4, kHiddenSize, owner.random);
  Context context;
  const RowMajorMatrix before = run(experts, x, context);
  x(2, 5) = std::numeric_limits<float>::quiet_NaN();
  const RowMajorMatrix after = run(experts, x, context);
  EXPECT_TRUE(after.row(2).array().isNaN().all());
  for (const Index t : {0, 1, 3}) EXPECT_TRUE(same_bits(after.row(t), before.row(t)));
}

// Element 5 of token 2 is 0, and infinity times 0 is NaN: the logit of expert 7 in this token
// alone.
TEST(MixtureOfExperts, ANaNInOneLogitMakesItsTokenNaN) {
  RandomExperts owner(small_experts());
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  owner.memory[0][7 * kHiddenSize + 5] = bfloat16(kInfinity);  // of the gate
  const MixtureOfExperts experts(small_experts(), owner.weights, kHiddenSize);
  RowMajorMatrix x = random_matrix(4, kHiddenSize, owner.random);
  for (const simd::Isa isa : supported_isas()) {
    Context context(simd::kernels_for(isa));
    x(2, 5) = 1.0f;
    const RowMajorMatrix before = run(experts, x, context);
    EXPECT_TRUE(before.allFinite());
    x(2, 5) = 0.0f;
    const RowMajorMatrix after = run(experts, x, context);
    EXPECT_TRUE(after.row(2).array().isNaN().all());
    for (const Index t : {0, 1, 3}) EXPECT_TRUE(same_bits(after.row(t), before.row(t)));
  }
}

TEST(MixtureOfExperts, RefusesWeightsThatDoNotFit) {
  const auto refused = [](auto change, std::initializer_list<const char*> parts) {
    RandomExperts owner(small_experts());
    change(owner);
    EXPECT_TRUE(
        refuses([&] { MixtureOfExperts(small_experts(), owner.weights, kHiddenSize); }, parts));
  };
  refused([](auto& o) { o.weights.experts.pop_back(); }, {"n_routed_experts", "12", "11"});
  refused([](auto& o) { o.weights.shared_experts = {}; }, {"n_shared_experts", "2", "missing"});
  refused([](auto& o) { o.weights.shared_experts = o.mlp(kIntermediateSize); },
          {"gate_proj", "[42, 33]", "[21, 33]"});
  refused([](auto& o) { o.weights.experts[5].down_proj = o.matrix(kHiddenSize, 20); },
          {"down_proj", "[33, 21]", "[33, 20]"});
  refused([](auto& o) { o.weights.experts[5].up_proj = {}; }, {"up_proj", "missing"});
  refused([](auto& o) { o.weights.router.gate = o.matrix(11, kHiddenSize); },
          {"gate", "[12, 33]", "[11, 33]"});
}

}  // namespace
}  // namespace mla::test
