#ifndef MLA_BENCH_MACHINE_HPP_
#define MLA_BENCH_MACHINE_HPP_

#include <time.h>

#include <chrono>
#include <cstddef>
#include <numeric>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "mla/core/executor.hpp"
#include "mla/simd/isa.hpp"

// What the machine could do at this moment: the yardsticks that benchmarks are divided by. Machines
// are shared and change their clock, so yardsticks are measured between the benchmark's own rounds.

namespace mla::bench {

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Processor time of the calling thread.
inline double thread_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// The clock for work on so many threads. One thread's is what it had of the processor, which
/// others on the machine disturb less.
inline double seconds_of(Index threads) { return threads == 1 ? thread_seconds() : seconds(); }

namespace detail {

// Reads all of it, with several wide loads at a time; the value is of no use.
#if defined(__x86_64__)
[[gnu::target("avx2")]] inline std::size_t read_avx2(const std::size_t* first,
                                                     const std::size_t* last) {
  const auto* at = reinterpret_cast<const __m256i*>(first);
  const auto* end = at + (last - first) / 16 * 4;
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (; at != end; at += 4) {
    a = _mm256_xor_si256(a, _mm256_loadu_si256(at));
    b = _mm256_xor_si256(b, _mm256_loadu_si256(at + 1));
    c = _mm256_xor_si256(c, _mm256_loadu_si256(at + 2));
    d = _mm256_xor_si256(d, _mm256_loadu_si256(at + 3));
  }
  a = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
  return static_cast<std::size_t>(_mm256_extract_epi64(a, 0) ^ _mm256_extract_epi64(a, 1) ^
                                  _mm256_extract_epi64(a, 2) ^ _mm256_extract_epi64(a, 3));
}
#endif

inline std::size_t read(const std::size_t* first, const std::size_t* last) {
#if defined(__x86_64__)
  if (simd::is_supported(simd::Isa::avx2)) return read_avx2(first, last);
#endif
  return std::accumulate(first, last, std::size_t{0});
}

// Twelve independent accumulators, which hides the latency, of the widest multiply-add of `isa`.
// Inputs are zero, so the values stay normal. Returns floating-point operations.
#if defined(__x86_64__)
#define MLA_BENCH_TWELVE(op, reg)                                                          \
  op " %%" reg "14,%%" reg "15,%%" reg "0\n" op " %%" reg "14,%%" reg "15,%%" reg "1\n" op \
     " %%" reg "14,%%" reg "15,%%" reg "2\n" op " %%" reg "14,%%" reg "15,%%" reg "3\n" op \
     " %%" reg "14,%%" reg "15,%%" reg "4\n" op " %%" reg "14,%%" reg "15,%%" reg "5\n" op \
     " %%" reg "14,%%" reg "15,%%" reg "6\n" op " %%" reg "14,%%" reg "15,%%" reg "7\n" op \
     " %%" reg "14,%%" reg "15,%%" reg "8\n" op " %%" reg "14,%%" reg "15,%%" reg "9\n" op \
     " %%" reg "14,%%" reg "15,%%" reg "10\n" op " %%" reg "14,%%" reg "15,%%" reg "11\n"
#define MLA_BENCH_LOOP(op, reg, rounds)                                                          \
  asm volatile("vzeroall\n1:\n" MLA_BENCH_TWELVE(op, reg) "dec %0\njnz 1b\nvzeroupper\n"         \
               : "+r"(rounds)                                                                    \
               :                                                                                 \
               : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
                 "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "cc")
inline double multiply_add(simd::Isa isa, long rounds) {
  const double n = 12.0 * static_cast<double>(rounds);
  if (isa == simd::Isa::avx512) {
    MLA_BENCH_LOOP("vfmadd231ps", "zmm", rounds);
    return 32.0 * n;
  }
  if (simd::is_supported(simd::Isa::avx2)) {  // SSE2 has no FMA: one addition and one product
    if (isa == simd::Isa::avx2) {
      MLA_BENCH_LOOP("vfmadd231ps", "ymm", rounds);
      return 16.0 * n;
    }
    MLA_BENCH_LOOP("vaddps", "xmm", rounds);
    return 4.0 * n;
  }
  return 0.0;
}
inline double bfloat16_dot(long rounds) {
  const double n = 12.0 * static_cast<double>(rounds);
  MLA_BENCH_LOOP("vdpbf16ps", "zmm", rounds);
  return 64.0 * n;
}
#undef MLA_BENCH_LOOP
#undef MLA_BENCH_TWELVE

// Products of tiles of 16 x 32 by 32 x 16, with four sums.
[[gnu::target("amx-tile,amx-bf16")]] inline double bfloat16_tiles(long rounds) {
  struct alignas(64) {
    unsigned char palette = 1, start_row = 0, reserved[14] = {};
    unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shapes;
  asm volatile("" : : "r"(&shapes) : "memory");  // all of it is read, which g++ does not know
  _tile_loadconfig(&shapes);
  for (long i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 4.0 * 2.0 * 16 * 16 * 32 * static_cast<double>(rounds);
}
#else
inline double multiply_add(simd::Isa, long) { return 0.0; }
inline double bfloat16_dot(long) { return 0.0; }
inline double bfloat16_tiles(long) { return 0.0; }
#endif

template <class Work>
double rate(const Work& work) {
  const double start = thread_seconds();
  const double amount = work();
  return amount / (thread_seconds() - start);
}

}  // namespace detail

/// The widest products that the kernels of `isa` have for bfloat16 weights, in registers: float32
/// multiply-adds, VDPBF16PS or TDPBF16PS. In operations a second of one thread; 0 if not measured
/// here.
inline double peak_flops(simd::Isa isa) {
  return detail::rate([isa] {
    if (!simd::is_supported(isa)) return 0.0;
    if (isa == simd::Isa::amx) return detail::bfloat16_tiles(25000);
    if (isa == simd::Isa::avx512_bf16) return detail::bfloat16_dot(100000);
    return detail::multiply_add(isa, 100000);
  });
}

/// Bytes a second that are read from memory of a size, by default far larger than any cache.
class ReadBandwidth {
 public:
  explicit ReadBandwidth(std::size_t bytes = std::size_t{1} << 30) : words_(bytes / 8, 1) {}

  /// By the executor's threads together.
  double measure(Executor& executor) {
    const Index tasks = 16 * executor.concurrency();
    const std::size_t share = words_.size() / static_cast<std::size_t>(tasks);
    std::vector<std::size_t> sums(static_cast<std::size_t>(tasks));
    const double start = seconds_of(executor.concurrency());
    executor.parallel_for(tasks, [&](Index task, Index) {
      const auto* first = words_.data() + static_cast<std::size_t>(task) * share;
      sums[static_cast<std::size_t>(task)] = detail::read(first, first + share);
    });
    const double elapsed = seconds_of(executor.concurrency()) - start;
    volatile std::size_t sink = std::accumulate(sums.begin(), sums.end(), std::size_t{0});
    (void)sink;
    return static_cast<double>(words_.size() * 8) / elapsed;
  }

  /// By this thread, from whatever cache the memory fits in.
  double measure_cached() {
    constexpr int kTimes = 50;
    const auto pass = [this] { return detail::read(words_.data(), words_.data() + words_.size()); };
    volatile std::size_t sink = pass();
    const double start = thread_seconds();
    for (int i = 0; i < kTimes; ++i) sink = pass();
    (void)sink;
    return kTimes * static_cast<double>(words_.size() * 8) / (thread_seconds() - start);
  }

 private:
  std::vector<std::size_t> words_;
};

}  // namespace mla::bench

#endif  // MLA_BENCH_MACHINE_HPP_
