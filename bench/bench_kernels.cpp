// How near the kernels come to what the machine can do: attention, projections and a whole layer,
// as fractions of the peak of their products and of the read bandwidth, measured in the same run.
// docs/performance.md explains the numbers.
//   bench_kernels [--quick]     every row once, in less than two minutes

#include <string_view>
#include <vector>

#include "kernel_benchmark.hpp"

namespace mla::bench {
namespace {

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
  const LatentCache cache = filled_cache(config, cache_format_of(state), context);
  const auto tokens = CachedTokens::ending_in(cache, 0, queries);
  const AbsorbedAttention attention(config, 0.1);
  const double pairs = static_cast<double>(queries * context - queries * (queries - 1) / 2);
  const double flops = 2.0 * static_cast<double>(heads * (2 * rank + width - rank)) * pairs;
  Meter(state, bench.context).run(flops, 0.0, [&] {
    attention.forward({&tokens, 1}, {q.data(), queries, heads * width},
                      {out.data(), queries, heads * rank}, bench.context);
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
  const LatentDecompression decompression(config, weights);
  std::vector<float> out(static_cast<std::size_t>(tokens * heads * v));
  const LatentCache cache = filled_cache(config, cache_format_of(state), tokens);
  const auto share = CachedTokens::ending_in(cache, 0, tokens);
  const DecompressedAttention attention(config, 0.1, decompression);
  Meter(state, bench.context).run(attention_cost(config, 0, tokens).decompressed, 0.0, [&] {
    attention.forward({&share, 1}, {q.data(), tokens, heads * qk}, {out.data(), tokens, heads * v},
                      bench.context);
  });
}

// Rows of 512 + 64 numbers to their bytes, and back: what appending and decompression do to each.
void BM_CacheRows(benchmark::State& state) {
  const simd::CacheKernels& rows = simd::kernels_for(isa_of(state)).of(cache_format_of(state));
  const RowLayout layout = row_layout(cache_format_of(state), 512, 64);
  auto values = random_values<float>(576);
  AlignedBuffer<std::byte> bytes(static_cast<std::size_t>(layout.bytes));
  const bool encode = state.range(2) != 0;
  rows.encode(layout, values.data(), bytes.data());
  for (auto _ : state) {
    if (encode)
      rows.encode(layout, values.data(), bytes.data());
    else
      rows.widen(layout, bytes.data(), values.data());
    benchmark::ClobberMemory();
  }
  state.counters["rows/s"] = benchmark::Counter(1.0, benchmark::Counter::kIsIterationInvariantRate);
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
  const MultiheadLatentAttention layer(c, weights);
  LatentCache cache = filled_cache(c, CacheFormat::bfloat16, context);
  cache.reserve(context + tokens);
  const RowMajorMatrix x = RowMajorMatrix::Random(tokens, c.hidden_size);
  RowMajorMatrix out(tokens, c.hidden_size);

  const double elements =
      1536.0 * 7168 + 24576.0 * 1536 + 576.0 * 7168 + 32768.0 * 512 + 7168.0 * 16384;
  const double attention = 2.0 * 128 * 1088 * static_cast<double>(tokens * context);
  Meter(state, bench.context)
      .run(2.0 * elements * static_cast<double>(tokens) + attention, 2.0 * elements, [&] {
        layer.forward(x, cache, out, bench.context, {.mode = AttentionForm::absorbed});
        cache.truncate(context);
      });
}

void BM_Peak(benchmark::State& state) {
  std::vector<double> rates;
  const simd::Isa isa = isa_of(state);
  for (auto _ : state) rates.push_back(peak_flops(isa));
  state.counters["FLOP/s"] = median(rates);
}

void BM_DramRead(benchmark::State& state) {
  EigenExecutor executor(static_cast<int>(state.range(0)));
  std::vector<double> rates;
  for (auto _ : state) rates.push_back(read_bandwidth().measure(executor));
  state.counters["B/s"] = median(rates);
}

void decode_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa", "type", "heads", "latent", "rope", "context", "queries", "threads"});
  for (Index isa : isas()) {
    for (Index threads : {1, 2})
      for (Index context : {1024, 4096, 16384})
        b->Args({isa, 1, 128, 512, 64, context, 1, threads});
    for (Index queries : {8, 64}) b->Args({isa, 1, 128, 512, 64, 4096, queries, 1});
    for (Index type : {3, 4, 5}) {
      b->Args({isa, type, 128, 512, 64, 4096, 1, 1});
      b->Args({isa, type, 16, 512, 64, 16384, 1, 1});
    }
    b->Args({isa, 1, 16, 512, 64, 16384, 1, 1});
    for (Index heads : {16, 20, 40, 64}) b->Args({isa, 1, heads, 512, 64, 4096, 1, 1});
    b->Args({isa, 1, 128, 256, 64, 4096, 1, 1});
    b->Args({isa, 1, 128, 256, 32, 4096, 1, 1});
    b->Args({isa, 1, 128, 384, 48, 4096, 1, 1});
  }
  b->Args({isas()[0], 0, 128, 512, 64, 4096, 1, 1});
  const auto avx2 = simd::Isa::avx2;
  if (simd::is_supported(avx2)) b->Args({static_cast<Index>(avx2), 1, 128, 512, 64, 4096, 1, 1});
}

void prefill_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa", "type", "heads", "tokens", "threads"});
  for (Index isa : isas())
    for (Index threads : {1, 2}) b->Args({isa, 1, 128, 2048, threads});
  for (Index isa : isas()) b->Args({isa, 3, 128, 2048, 1});
}

void row_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa", "type", "encode"});
  for (const auto isa : {simd::Isa::scalar, simd::best_isa()})
    for (Index type : {1, 3, 4, 5})
      for (Index encode : {0, 1}) b->Args({static_cast<Index>(isa), type, encode});
}

void layer_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa", "context", "tokens", "threads"});
  for (Index isa : isas())
    for (Index threads : {1, 2})
      for (Index tokens : {1, 8}) b->Args({isa, 4096, tokens, threads});
}

void peak_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa"});
  for (const auto isa : simd::kAllIsas)
    if (simd::is_supported(isa)) b->Args({static_cast<Index>(isa)});
}

void add_kernel_rows() {
  benchmark::RegisterBenchmark("BM_Peak", &BM_Peak)->Apply(&peak_arguments);
  benchmark::RegisterBenchmark("BM_DramRead", &BM_DramRead)->ArgName("threads")->Arg(1)->Arg(2);
  add_rows("BM_AbsorbedDecode", &BM_AbsorbedDecode, &decode_arguments);
  benchmark::RegisterBenchmark("BM_CacheRows", &BM_CacheRows)->Apply(&row_arguments);
  add_rows("BM_DecompressedPrefill", &BM_DecompressedPrefill, &prefill_arguments);
  add_rows("BM_Layer", &BM_Layer, &layer_arguments);
}

}  // namespace
}  // namespace mla::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  mla::bench::quick = argc > 1 && std::string_view(argv[1]) == "--quick";
  mla::bench::add_kernel_rows();
  mla::bench::add_attention_form_rows();
  mla::bench::add_projection_rows();
  mla::bench::add_expert_rows();
  mla::bench::add_sparse_attention_rows();
  benchmark::RunSpecifiedBenchmarks();
}
