#ifndef MLA_BENCH_KERNEL_BENCHMARK_HPP_
#define MLA_BENCH_KERNEL_BENCHMARK_HPP_

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <numeric>
#include <string>
#include <vector>

#include "machine.hpp"
#include "mla/core/eigen_executor.hpp"
#include "mla/mla.hpp"

// What the files of bench_kernels share. Arguments are named in the output. isa is the number of an
// instruction set, whose name ends the row; type, of the cache or of the weights: 0 f32, 1 bf16,
// 2 f16; of weights also 3 fp8, 4 int8, 5 int4, 6 fp4; of the cache also 3 int8, 4 fp8, 5 int4.

namespace mla::bench {

/// Of a benchmark whose first argument it is; its name becomes the label of the row.
inline simd::Isa isa_of(benchmark::State& state) {
  const auto isa = static_cast<simd::Isa>(state.range(0));
  state.SetLabel(std::string(simd::name_of(isa)));
  return isa;
}

/// Of a benchmark whose second argument is the type of its cache.
inline CacheFormat cache_format_of(const benchmark::State& state) {
  return static_cast<CacheFormat>(state.range(1));
}

/// All rows once, to see that they run and about what they say: bench_kernels --quick.
inline bool quick = false;

/// A benchmark that measures its own time, with the rows that `arguments` makes.
inline void add_rows(const char* name, void (*run)(benchmark::State&),
                     void (*arguments)(benchmark::internal::Benchmark*)) {
  auto* const rows = benchmark::RegisterBenchmark(name, run)->Apply(arguments)->UseManualTime();
  if (quick)
    rows->Iterations(1);
  else
    rows->MinTime(0.3);
}

// The rows of each file.
void add_attention_form_rows();
void add_expert_rows();
void add_projection_rows();
void add_sparse_attention_rows();

inline ReadBandwidth& read_bandwidth() {
  static ReadBandwidth probe;
  return probe;
}

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<Index>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

/// Runs the work with yardsticks in between, and reports medians: of_peak compares with the
/// products of the isa in registers, of_bf16 with VDPBF16PS where there is one; a thread's peak
/// times the number of threads.
class Meter {
 public:
  Meter(benchmark::State& state, Context& context) : state_(state), context_(context) {}

  /// `flops` and `bytes` of one call of work(). Returns the median of its seconds.
  template <class Work>
  double run(double flops, double bytes, const Work& work) {
    const Index workers = context_.executor().concurrency();
    work();  // grows the workspace
    for (auto _ : state_) {
      peak_.push_back(peak_of_all(context_.kernels().isa));
      bf16_.push_back(peak_of_all(simd::Isa::avx512_bf16));
      if (bytes > 0.0) bandwidth_.push_back(read_bandwidth().measure(context_.executor()));
      const double start = seconds_of(workers);
      work();
      const double elapsed = seconds_of(workers) - start;
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
      report("of_roofline", std::max(flops / median(peak_), bytes / median(bandwidth_)) / time);
    }
    return time;
  }

 private:
  // What the threads reach beside each other.
  double peak_of_all(simd::Isa isa) {
    std::vector<double> peaks(static_cast<std::size_t>(context_.executor().concurrency()));
    context_.executor().parallel_for(std::ssize(peaks), [&](Index task, Index) {
      peaks[static_cast<std::size_t>(task)] = peak_flops(isa);
    });
    return std::accumulate(peaks.begin(), peaks.end(), 0.0);
  }

  void report(const char* name, double value) {
    if (std::isfinite(value)) state_.counters[name] = value;
  }

  benchmark::State& state_;
  Context& context_;
  std::vector<double> seconds_, peak_, bf16_, bandwidth_;
};

/// Pseudo-random elements in [-1, 1) * scale, which repeat after a while.
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

struct Bench {
  Bench(benchmark::State& state, int threads)
      : executor(threads), context(executor, simd::kernels_for(isa_of(state))) {}

  EigenExecutor executor;
  Context context;
};

inline LatentCache filled_cache(const AttentionConfig& config, CacheFormat format, Index tokens) {
  LatentCache cache(config, format);
  const Index key_width = config.indexer.key_width();
  const auto values = random_values<float>(64 * config.cache_row_width());
  const auto keys = random_values<float>(key_width == 0 ? 0 : 65521 + 64 * key_width);
  std::vector<Index> positions(64);
  for (Index first = 0; first < tokens; first += 64) {
    const Index count = std::min<Index>(64, tokens - first);
    for (Index i = 0; i < count; ++i) positions[static_cast<std::size_t>(i)] = first + i;
    // Index keys differ from each other, or all would have the score of 64.
    const float* const index_keys = keys.data() + first * key_width % 65521;
    cache.append({values.data(), count, config.cache_row_width()},
                 {positions.data(), static_cast<std::size_t>(count)}, simd::kernels(),
                 key_width == 0 ? MatrixView<const float>()
                                : MatrixView<const float>(index_keys, count, key_width));
  }
  return cache;
}

/// The best instruction set in float32, and the best with products of bfloat16 if there is one.
inline std::vector<Index> isas() {
  std::vector<Index> all = {static_cast<Index>(simd::best_isa())};
  const auto rounded = static_cast<Index>(simd::best_isa(Arithmetic::bfloat16));
  if (rounded != all[0]) all.push_back(rounded);
  return all;
}

}  // namespace mla::bench

#endif  // MLA_BENCH_KERNEL_BENCHMARK_HPP_
