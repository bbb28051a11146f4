// How near the kernels come to what the machine can do: attention, projections and a whole layer,
// as fractions of the peak of their products and of the read bandwidth, measured in the same run.
// docs/performance.md explains the numbers.
//
// Arguments are named in the output. isa: 0 scalar, 1 avx2, 2 avx512, 3 avx512_bf16, 4 amx, 5 neon,
// 6 neon_bf16.
// type, of the cache or of the weights: 0 f32, 1 bf16, 2 f16. of_peak compares with the products of
// that isa in registers, of_bf16 with VDPBF16PS where there is one; a thread's peak times the
// number of threads.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "machine.hpp"
#if defined(MLA_BENCH_ONEDNN)
#include "onednn_projection.hpp"
#endif
#include "mla/core/eigen_executor.hpp"
#include "mla/mla.hpp"

namespace {

using mla::AttentionConfig;
using mla::AttentionWeights;
using mla::bfloat16;
using mla::float16;
using mla::Index;
using mla::LatentKVCache;
using mla::MatrixView;
using mla::RowMajorMatrix;
using mla::WeightView;

mla::simd::Isa isa_of(const benchmark::State& state) {
  return static_cast<mla::simd::Isa>(state.range(0));
}

mla::bench::ReadBandwidth& read_bandwidth() {
  static mla::bench::ReadBandwidth probe;
  return probe;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<Index>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

// Runs the work with yardsticks in between, and reports medians.
class Meter {
 public:
  Meter(benchmark::State& state, mla::Context& context) : state_(state), context_(context) {}

  // `flops` and `bytes` of one call of work().
  template <class Work>
  void run(double flops, double bytes, const Work& work) {
    const double threads = static_cast<double>(context_.executor().concurrency());
    work();  // grows the workspace
    for (auto _ : state_) {
      peak_.push_back(threads * mla::bench::peak_flops(context_.kernels().isa));
      bf16_.push_back(threads * mla::bench::peak_flops(mla::simd::Isa::avx512_bf16));
      if (bytes > 0.0) bandwidth_.push_back(read_bandwidth().measure(context_.executor()));
      const double start = mla::bench::seconds();
      work();
      const double elapsed = mla::bench::seconds() - start;
      state_.SetIterationTime(elapsed);
      seconds_.push_back(elapsed);
    }
    const double time = median(seconds_);
    report("FLOP/s", flops / time);
    report("of_peak", flops / time / median(peak_));
    report("of_bf16", flops / time / median(bf16_));
    if (bytes > 0.0) {
      report("B/s", bytes / time);
      report("of_bandwidth", bytes / time / median(bandwidth_));
    }
  }

 private:
  void report(const char* name, double value) {
    if (std::isfinite(value)) state_.counters[name] = value;
  }

  benchmark::State& state_;
  mla::Context& context_;
  std::vector<double> seconds_, peak_, bf16_, bandwidth_;
};

// Pseudo-random elements in [-1, 1) * scale, which repeat after a while.
template <class T>
std::vector<T> random_values(Index size, float scale = 1.0f) {
  constexpr std::size_t kPeriod = 65521;  // a prime: rows do not repeat
  std::vector<T> values(static_cast<std::size_t>(size));
  std::uint32_t state = 1;
  for (std::size_t i = 0; i < std::min(kPeriod, values.size()); ++i) {
    state = state * 1664525u + 1013904223u;
    values[i] = static_cast<T>((static_cast<float>(state >> 8) * 0x1p-23f - 1.0f) * scale);
  }
  for (std::size_t i = kPeriod; i < values.size(); i += kPeriod)
    std::copy_n(values.begin(), std::min(kPeriod, values.size() - i),
                values.begin() + static_cast<Index>(i));
  return values;
}

// Calls body(T()) for the element type that a benchmark's argument names.
template <class Body>
void with_type(Index type, const Body& body) {
  if (type == 0)
    body(float());
  else if (type == 1)
    body(bfloat16());
  else
    body(float16());
}

struct Bench {
  Bench(benchmark::State& state, int threads)
      : executor(threads), context(executor, mla::simd::kernels_for(isa_of(state))) {}

  mla::EigenExecutor executor;
  mla::Context context;
};

template <class T>
LatentKVCache<T> filled_cache(const AttentionConfig& config, Index tokens) {
  LatentKVCache<T> cache(config);
  const auto values = random_values<float>(64 * config.cache_row_width());
  std::vector<Index> positions(64);
  for (Index first = 0; first < tokens; first += 64) {
    const Index count = std::min<Index>(64, tokens - first);
    for (Index i = 0; i < count; ++i) positions[static_cast<std::size_t>(i)] = first + i;
    cache.append({values.data(), count, config.cache_row_width()},
                 {positions.data(), static_cast<std::size_t>(count)});
  }
  return cache;
}

// Absorbed attention alone: `queries` tokens at the end of a cache of `context` tokens.
void BM_AbsorbedDecode(benchmark::State& state) {
  AttentionConfig config;
  config.num_attention_heads = state.range(2);
  config.kv_lora_rank = state.range(3);
  config.qk_rope_head_dim = state.range(4);
  const Index context = state.range(5), queries = state.range(6);
  Bench bench(state, static_cast<int>(state.range(7)));
  const Index heads = config.num_attention_heads, rank = config.kv_lora_rank;
  const Index width = rank + config.qk_rope_head_dim;
  const auto q = random_values<float>(queries * heads * width, 0.1f);
  std::vector<float> out(static_cast<std::size_t>(queries * heads * rank));
  with_type(state.range(1), [&](auto type) {
    using T = decltype(type);
    const auto cache = filled_cache<T>(config, context);
    const mla::CachedTokens<T> tokens = {&cache, 0, queries};
    const mla::AbsorbedAttention<T> attention(config, 0.1);
    const double pairs = static_cast<double>(queries * context - queries * (queries - 1) / 2);
    const double flops = 2.0 * static_cast<double>(heads * (2 * rank + width - rank)) * pairs;
    Meter(state, bench.context).run(flops, 0.0, [&] {
      attention.forward({&tokens, 1}, {q.data(), queries, heads * width},
                        {out.data(), queries, heads * rank}, bench.context);
    });
  });
}

// Decompressed causal attention over a prompt of `tokens`; the causal half of the products counts,
// with the decompression.
void BM_DecompressedPrefill(benchmark::State& state) {
  AttentionConfig config;
  config.num_attention_heads = state.range(2);
  const Index tokens = state.range(3);
  Bench bench(state, static_cast<int>(state.range(4)));
  const Index heads = config.num_attention_heads, qk = config.qk_head_dim(), v = config.v_head_dim;
  const auto q = random_values<float>(tokens * heads * qk, 0.1f);
  const auto kv_b =
      random_values<bfloat16>(heads * (config.qk_nope_head_dim + v) * config.kv_lora_rank, 0.05f);
  AttentionWeights weights;
  weights.kv_b_proj = {kv_b.data(), heads * (config.qk_nope_head_dim + v), config.kv_lora_rank};
  const mla::LatentDecompression decompression(config, weights);
  std::vector<float> out(static_cast<std::size_t>(tokens * heads * v));
  with_type(state.range(1), [&](auto type) {
    using T = decltype(type);
    const auto cache = filled_cache<T>(config, tokens);
    const mla::CachedTokens<T> share = {&cache, 0, tokens};
    const mla::DecompressedAttention<T> attention(config, 0.1, decompression);
    Meter(state, bench.context).run(attention_cost(config, 0, tokens).decompressed, 0.0, [&] {
      attention.forward({&share, 1}, {q.data(), tokens, heads * qk},
                        {out.data(), tokens, heads * v}, bench.context);
    });
  });
}

// x [tokens, in] by weights [out, in]. Few tokens take other weights each time, beyond any cache.
void BM_Projection(benchmark::State& state) {
  const Index in = state.range(2), out = state.range(3), tokens = state.range(4);
  Bench bench(state, static_cast<int>(state.range(5)));
  const auto x = random_values<float>(tokens * in);
  std::vector<float> y(static_cast<std::size_t>(tokens * out));
  with_type(state.range(1), [&](auto type) {
    using T = decltype(type);
    const double bytes = static_cast<double>(in * out) * sizeof(T);
    const Index copies = tokens <= 16 ? std::max<Index>(1, static_cast<Index>(1e9 / bytes)) : 1;
    const auto weights = random_values<T>(copies * in * out, 0.05f);
    Index copy = 0;
    Meter(state, bench.context)
        .run(2.0 * static_cast<double>(in * out * tokens), tokens <= 16 ? bytes : 0.0, [&] {
          const mla::Linear linear(WeightView(weights.data() + copy * in * out, out, in));
          linear.forward({x.data(), tokens, in}, {y.data(), tokens, out}, bench.context);
          copy = (copy + 1) % copies;
        });
  });
}

// One DeepSeek-V3 layer of attention, bfloat16: `tokens` new ones after `context` cached ones.
void BM_Layer(benchmark::State& state) {
  const AttentionConfig c = AttentionConfig::deepseek_v3();
  const Index context = state.range(1), tokens = state.range(2);
  Bench bench(state, static_cast<int>(state.range(3)));
  static const auto values = random_values<bfloat16>(16384 * 7168, 0.02f);  // the largest matrix
  const auto weight = [](Index rows, Index cols) { return WeightView(values.data(), rows, cols); };
  // Different memory for each matrix, as in a model.
  static const auto q_a = random_values<bfloat16>(1536 * 7168, 0.02f);
  static const auto q_b = random_values<bfloat16>(24576 * 1536, 0.02f);
  static const auto kv_a = random_values<bfloat16>(576 * 7168, 0.02f);
  static const auto kv_b = random_values<bfloat16>(32768 * 512, 0.02f);
  AttentionWeights weights;
  weights.q_a_proj = {q_a.data(), 1536, 7168};
  weights.q_a_layernorm = weight(1, 1536);
  weights.q_b_proj = {q_b.data(), 24576, 1536};
  weights.kv_a_proj_with_mqa = {kv_a.data(), 576, 7168};
  weights.kv_a_layernorm = weight(1, 512);
  weights.kv_b_proj = {kv_b.data(), 32768, 512};
  weights.o_proj = weight(7168, 16384);
  const mla::MultiheadLatentAttention layer(c, weights);
  auto cache = filled_cache<bfloat16>(c, context);
  cache.reserve(context + tokens);
  const RowMajorMatrix x = RowMajorMatrix::Random(tokens, c.hidden_size);
  RowMajorMatrix out(tokens, c.hidden_size);

  const double elements =
      1536.0 * 7168 + 24576.0 * 1536 + 576.0 * 7168 + 32768.0 * 512 + 7168.0 * 16384;
  const double attention = 2.0 * 128 * 1088 * static_cast<double>(tokens * context);
  Meter(state, bench.context)
      .run(2.0 * elements * static_cast<double>(tokens) + attention, 2.0 * elements, [&] {
        layer.forward(x, cache, out, bench.context, {.mode = mla::Mode::absorbed});
        cache.truncate(context);
      });
}

void BM_Peak(benchmark::State& state) {
  std::vector<double> rates;
  for (auto _ : state) rates.push_back(mla::bench::peak_flops(isa_of(state)));
  state.counters["FLOP/s"] = median(rates);
}

void BM_DramRead(benchmark::State& state) {
  mla::EigenExecutor executor(static_cast<int>(state.range(0)));
  std::vector<double> rates;
  for (auto _ : state) rates.push_back(read_bandwidth().measure(executor));
  state.counters["B/s"] = median(rates);
}

// The same products as BM_Projection by Eigen, float32 weights.
void BM_ProjectionEigen(benchmark::State& state) {
  Bench bench(state, 1);
  const Index in = state.range(1), out = state.range(2), tokens = state.range(3);
  const auto x = random_values<float>(tokens * in), weight = random_values<float>(in * out, 0.05f);
  RowMajorMatrix y(tokens, out);
  const Eigen::Map<const RowMajorMatrix> xs(x.data(), tokens, in), weights(weight.data(), out, in);
  Meter(state, bench.context).run(2.0 * static_cast<double>(in * out * tokens), 0.0, [&] {
    y.noalias() = xs * weights.transpose();
  });
}

#if defined(MLA_BENCH_ONEDNN)
// And by oneDNN: bfloat16, weights packed before.
void BM_ProjectionOneDnn(benchmark::State& state) {
  Bench bench(state, 1);
  const Index in = state.range(1), out = state.range(2), tokens = state.range(3);
  auto x = random_values<bfloat16>(tokens * in), weight = random_values<bfloat16>(in * out, 0.05f);
  std::vector<float> y(static_cast<std::size_t>(tokens * out));
  mla::bench::OneDnnProjection projection(x.data(), weight.data(), y.data(), tokens, in, out);
  Meter(state, bench.context).run(2.0 * static_cast<double>(in * out * tokens), 0.0, [&] {
    projection.run();
  });
}
#endif

// The best instruction set in float32, and the best with products of bfloat16 if there is one.
std::vector<Index> isas() {
  std::vector<Index> all = {static_cast<Index>(mla::simd::best_isa())};
  const auto rounded = static_cast<Index>(mla::simd::best_isa(mla::Precision::bfloat16));
  if (rounded != all[0]) all.push_back(rounded);
  return all;
}

void decode_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa", "type", "heads", "latent", "rope", "context", "queries", "threads"});
  for (Index isa : isas()) {
    for (Index threads : {1, 2})
      for (Index context : {1024, 4096, 16384})
        b->Args({isa, 1, 128, 512, 64, context, 1, threads});
    for (Index queries : {8, 64}) b->Args({isa, 1, 128, 512, 64, 4096, queries, 1});
    for (Index heads : {16, 20, 40, 64}) b->Args({isa, 1, heads, 512, 64, 4096, 1, 1});
    b->Args({isa, 1, 128, 256, 64, 4096, 1, 1});
    b->Args({isa, 1, 128, 256, 32, 4096, 1, 1});
    b->Args({isa, 1, 128, 384, 48, 4096, 1, 1});
  }
  b->Args({isas()[0], 0, 128, 512, 64, 4096, 1, 1});
  const auto avx2 = mla::simd::Isa::avx2;
  if (mla::simd::is_supported(avx2))
    b->Args({static_cast<Index>(avx2), 1, 128, 512, 64, 4096, 1, 1});
}

void prefill_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa", "type", "heads", "tokens", "threads"});
  for (Index isa : isas())
    for (Index threads : {1, 2}) b->Args({isa, 1, 128, 2048, threads});
}

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

void layer_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa", "context", "tokens", "threads"});
  for (Index isa : isas())
    for (Index threads : {1, 2})
      for (Index tokens : {1, 8}) b->Args({isa, 4096, tokens, threads});
}

void peak_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa"});
  for (const auto isa : mla::simd::kAllIsas)
    if (mla::simd::is_supported(isa)) b->Args({static_cast<Index>(isa)});
}

BENCHMARK(BM_Peak)->Apply(peak_arguments);
BENCHMARK(BM_DramRead)->ArgName("threads")->Arg(1)->Arg(2);
BENCHMARK(BM_AbsorbedDecode)->Apply(decode_arguments)->UseManualTime()->MinTime(0.3);
BENCHMARK(BM_DecompressedPrefill)->Apply(prefill_arguments)->UseManualTime()->MinTime(0.3);
BENCHMARK(BM_Projection)->Apply(projection_arguments)->UseManualTime()->MinTime(0.3);
BENCHMARK(BM_ProjectionEigen)->Apply(other_projection_arguments)->UseManualTime()->MinTime(0.3);
#if defined(MLA_BENCH_ONEDNN)
BENCHMARK(BM_ProjectionOneDnn)->Apply(other_projection_arguments)->UseManualTime()->MinTime(0.3);
#endif
BENCHMARK(BM_Layer)->Apply(layer_arguments)->UseManualTime()->MinTime(0.3);

}  // namespace

BENCHMARK_MAIN();
