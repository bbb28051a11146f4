// Projections by weights as they lie in a checkpoint, and the same by Eigen and oneDNN.

#include <algorithm>
#include <deque>
#include <vector>

#include "kernel_benchmark.hpp"
#if defined(MLA_BENCH_ONEDNN)
#include "onednn_projection.hpp"
#endif

namespace mla::bench {
namespace {

constexpr Index kFewTokens = 16;

// Calls body(T()) for the element type of the weights that a benchmark's argument names.
template <class Body>
void with_type(Index type, const Body& body) {
  if (type == 0)
    body(float());
  else if (type == 1)
    body(bfloat16());
  else
    body(float16());
}

// Few tokens take other weights each time, beyond any cache.
Index copies_of(Index tokens, double bytes) {
  return tokens <= kFewTokens ? std::max<Index>(1, static_cast<Index>(1e9 / bytes)) : 1;
}

// x [tokens, in] by weights [out, in].
void BM_Projection(benchmark::State& state) {
  const Index in = state.range(2), out = state.range(3), tokens = state.range(4);
  Bench bench(state, static_cast<int>(state.range(5)));
  const auto x = random_values<float>(tokens * in);
  std::vector<float> y(static_cast<std::size_t>(tokens * out));
  with_type(state.range(1), [&](auto type) {
    using T = decltype(type);
    const double bytes = static_cast<double>(in * out) * sizeof(T);
    const Index copies = copies_of(tokens, bytes);
    const auto weights = random_values<T>(copies * in * out, 0.05f);
    Index copy = 0;
    Meter(state, bench.context)
        .run(2.0 * static_cast<double>(in * out * tokens), tokens <= kFewTokens ? bytes : 0.0, [&] {
          const Linear linear(WeightView(weights.data() + copy * in * out, out, in));
          linear.forward({x.data(), tokens, in}, {y.data(), tokens, out}, bench.context);
          copy = (copy + 1) % copies;
        });
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
  }
  for (Index isa : isas()) b->Args({isa, 1, 16384, 7168, 64, 2});
}

void other_projection_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa", "in", "out", "tokens"});
  for (Index tokens : {1, 8, 64, 512})
    for (const auto& [in, out] : kProjections) b->Args({isas().back(), in, out, tokens});
}

BENCHMARK(BM_Projection)->Apply(projection_arguments)->UseManualTime()->MinTime(0.3);
BENCHMARK(BM_ProjectionEigen)->Apply(other_projection_arguments)->UseManualTime()->MinTime(0.3);
#if defined(MLA_BENCH_ONEDNN)
BENCHMARK(BM_ProjectionOneDnn)->Apply(other_projection_arguments)->UseManualTime()->MinTime(0.3);
#endif

}  // namespace
}  // namespace mla::bench
