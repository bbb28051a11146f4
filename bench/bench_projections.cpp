// Projections by weights as they lie in a checkpoint, and the same by Eigen and oneDNN.

#include <algorithm>
#include <deque>
#include <vector>

#include "kernel_benchmark.hpp"
#include "random_weights.hpp"
#if defined(MLA_BENCH_ONEDNN)
#include "onednn_projection.hpp"
#endif

namespace mla::bench {
namespace {

constexpr Index kFewTokens = 16;

// Few tokens take other weights each time, beyond any cache.
Index copies_of(Index tokens, double bytes) {
  const double all = quick ? 1e8 : 1e9;
  return tokens <= kFewTokens ? std::max<Index>(1, static_cast<Index>(all / bytes)) : 1;
}

// x [tokens, in] by weights [out, in].
void BM_Projection(benchmark::State& state) {
  const Index in = state.range(2), out = state.range(3), tokens = state.range(4);
  Bench bench(state, static_cast<int>(state.range(5)));
  const auto format = static_cast<WeightFormat>(state.range(1));
  const auto x = random_values<float>(tokens * in);
  std::vector<float> y(static_cast<std::size_t>(tokens * out));
  RandomWeights memory;
  std::vector<WeightView> weights = {memory.matrix(format, out, in)};
  const double bytes = RandomWeights::bytes_of(weights[0]);
  while (std::ssize(weights) < copies_of(tokens, bytes))
    weights.push_back(memory.matrix(format, out, in));
  std::size_t copy = 0;
  Meter(state, bench.context)
      .run(2.0 * static_cast<double>(in * out * tokens), tokens <= kFewTokens ? bytes : 0.0, [&] {
        const Linear linear(weights[copy]);
        linear.forward({x.data(), tokens, in}, {y.data(), tokens, out}, bench.context);
        copy = (copy + 1) % weights.size();
      });
}

// The same products as BM_Projection by Eigen, float32 weights.
void BM_ProjectionEigen(benchmark::State& state) {
  Bench bench(state, 1);
  const Index in = state.range(1), out = state.range(2), tokens = state.range(3);
  const double bytes = 4.0 * static_cast<double>(in * out);
  const Index copies = copies_of(tokens, bytes);
  const auto x = random_values<float>(tokens * in);
  const auto weights = random_values<float>(copies * in * out, 0.05f);
  RowMajorMatrix y(tokens, out);
  const Eigen::Map<const RowMajorMatrix> xs(x.data(), tokens, in);
  Index copy = 0;
  Meter(state, bench.context)
      .run(2.0 * static_cast<double>(in * out * tokens), tokens <= kFewTokens ? bytes : 0.0, [&] {
        const Eigen::Map<const RowMajorMatrix> weight(weights.data() + copy * in * out, out, in);
        y.noalias() = xs * weight.transpose();
        copy = (copy + 1) % copies;
      });
}

#if defined(MLA_BENCH_ONEDNN)
// And by oneDNN: bfloat16, weights packed before.
void BM_ProjectionOneDnn(benchmark::State& state) {
  Bench bench(state, 1);
  const Index in = state.range(1), out = state.range(2), tokens = state.range(3);
  const double bytes = 2.0 * static_cast<double>(in * out);
  auto x = random_values<bfloat16>(tokens * in), weight = random_values<bfloat16>(in * out);
  std::vector<float> y(static_cast<std::size_t>(tokens * out));
  std::deque<OneDnnProjection> projections;
  for (Index i = 0; i < copies_of(tokens, bytes); ++i)
    projections.emplace_back(x.data(), weight.data(), y.data(), tokens, in, out);
  std::size_t copy = 0;
  Meter(state, bench.context)
      .run(2.0 * static_cast<double>(in * out * tokens), tokens <= kFewTokens ? bytes : 0.0, [&] {
        projections[copy].run();
        copy = (copy + 1) % projections.size();
      });
}
#endif

constexpr Index kProjections[][2] = {{7168, 1536}, {1536, 24576}, {16384, 7168}};

void projection_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa", "type", "in", "out", "tokens", "threads"});
  for (Index tokens : {1, 8, 64, 512}) {
    for (Index isa : isas())
      for (const auto& [in, out] : kProjections) b->Args({isa, 1, in, out, tokens, 1});
    b->Args({isas()[0], 0, 7168, 1536, tokens, 1});
    for (Index isa : isas())
      for (const WeightFormat type :
           {WeightFormat::fp8_e4m3, WeightFormat::int8, WeightFormat::int4})
        b->Args({isa, static_cast<Index>(type), 7168, 1536, tokens, 1});
  }
  for (Index isa : isas()) b->Args({isa, 1, 16384, 7168, 64, 2});
}

void other_projection_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa", "in", "out", "tokens"});
  for (Index tokens : {1, 8, 64, 512})
    for (const auto& [in, out] : kProjections) b->Args({isas().back(), in, out, tokens});
}

}  // namespace

void add_projection_rows() {
  add_rows("BM_Projection", &BM_Projection, &projection_arguments);
  add_rows("BM_ProjectionEigen", &BM_ProjectionEigen, &other_projection_arguments);
#if defined(MLA_BENCH_ONEDNN)
  add_rows("BM_ProjectionOneDnn", &BM_ProjectionOneDnn, &other_projection_arguments);
#endif
}

}  // namespace mla::bench
