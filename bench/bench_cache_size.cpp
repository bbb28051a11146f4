// What the caches of published models weigh, and what decoding a token over them costs: MLA beside
// MHA, GQA and MQA with the same heads. docs/cache-size.md explains the numbers.
//
//   PublishedCacheSize/...  published and taught arithmetic, from caches that hold a page of tokens
//   CacheSize/...           every cache format of MLA, beside MHA, GQA and MQA in bfloat16, up to a
//                           context of 128k tokens
//   ReadBandwidth           what one thread reads from memory, for comparison with GB/s below
//   Decode/...              one new token through a whole layer (projections, attention, output
//                           projection) on one thread, over caches filled with that many tokens

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "mla/attention/multihead_latent_attention.hpp"
#include "mla/baseline/grouped_query_attention.hpp"

namespace {

using mla::AttentionConfig;
using mla::bfloat16;
using mla::CacheFormat;
using mla::GroupedKVCache;
using mla::GroupedQueryAttention;
using mla::GroupedQueryConfig;
using mla::Index;
using mla::LatentCache;
using mla::MatrixView;
using mla::MultiheadLatentAttention;
using mla::RowMajorMatrix;
using mla::WeightView;

constexpr Index kPageTokens = 64;

// ---- Caches filled with tokens

RowMajorMatrix random_matrix(Index rows, Index cols) {
  RowMajorMatrix m(rows, cols);
  std::uint32_t state = 1;
  for (Index i = 0; i < m.size(); ++i) {
    state = state * 1664525u + 1013904223u;
    m.data()[i] = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
  }
  return m;
}

MatrixView<const float> first_rows(const RowMajorMatrix& m, Index rows) {
  return {m.data(), rows, m.cols()};
}

auto appender(LatentCache& cache, const AttentionConfig& config) {
  return [&cache, rows = random_matrix(kPageTokens, config.cache_row_width())](
             const std::vector<Index>& positions) {
    cache.append(first_rows(rows, static_cast<Index>(positions.size())), positions);
  };
}

auto appender(GroupedKVCache& cache, const GroupedQueryConfig& config) {
  const Index heads = config.num_key_value_heads;
  return [&cache, keys = random_matrix(kPageTokens, heads * config.head_dim),
          values = random_matrix(kPageTokens, heads * config.value_dim())](
             const std::vector<Index>& positions) {
    const Index tokens = static_cast<Index>(positions.size());
    cache.append(first_rows(keys, tokens), first_rows(values, tokens), positions);
  };
}

// Appends random tokens until `cache` holds `tokens`, or forgets what is beyond them, and gives
// back the memory that is not needed for them.
template <class Cache, class Config>
void fill(Cache& cache, const Config& config, Index tokens) {
  const auto append = appender(cache, config);
  cache.truncate(std::min(tokens, cache.size()));
  while (cache.size() < tokens) {
    std::vector<Index> positions(
        static_cast<std::size_t>(std::min(kPageTokens, tokens - cache.size())));
    std::iota(positions.begin(), positions.end(), cache.next_position());
    append(positions);
  }
  cache.shrink_to_fit();
}

// ---- PublishedCacheSize

// Bytes of keys, values and latents that a token takes in one layer, from a cache filled with one
// page.
template <class Cache, class Config>
double measured_bytes_per_token(const Config& config, CacheFormat format) {
  Cache cache(config, format);
  fill(cache, config, kPageTokens);
  return static_cast<double>(cache.bytes_used()) / static_cast<double>(cache.size());
}
double bytes_per_token(const AttentionConfig& config, CacheFormat format = CacheFormat::bfloat16) {
  return measured_bytes_per_token<LatentCache>(config, format);
}
double bytes_per_token(const GroupedQueryConfig& config,
                       CacheFormat format = CacheFormat::bfloat16) {
  return measured_bytes_per_token<GroupedKVCache>(config, format);
}

GroupedQueryConfig key_value_heads(Index hidden_size, Index heads, Index key_value_heads,
                                   Index head_dim) {
  return {.hidden_size = hidden_size,
          .num_attention_heads = heads,
          .num_key_value_heads = key_value_heads,
          .head_dim = head_dim};
}

template <class Config>
void register_published(const std::string& name, const Config& config, int layers) {
  benchmark::RegisterBenchmark(("PublishedCacheSize/" + name).c_str(),
                               [config, layers](benchmark::State& state) {
                                 double layer = 0.0;
                                 for (auto _ : state) layer = bytes_per_token(config);
                                 state.counters["layers"] = layers;
                                 state.counters["bytes_per_token_layer"] = layer;
                                 state.counters["kB_per_token"] = layer * layers / 1e3;
                                 state.counters["GB_at_2048_tokens"] = layer * layers * 2048 / 1e9;
                               })
      ->Iterations(1);
}

// Of a model's layers in one format.
template <class Config>
void register_size(const std::string& name, const Config& config, int layers, CacheFormat format) {
  benchmark::RegisterBenchmark(("CacheSize/" + name + "/" + std::string(name_of(format))).c_str(),
                               [=](benchmark::State& state) {
                                 double layer = 0.0;
                                 for (auto _ : state) layer = bytes_per_token(config, format);
                                 state.counters["bytes_per_token_layer"] = layer;
                                 state.counters["kB_per_token"] = layer * layers / 1e3;
                                 state.counters["GB_at_128k_tokens"] =
                                     layer * layers * 131072 / 1e9;
                               })
      ->Iterations(1);
}

void register_sizes(const std::string& model, const AttentionConfig& config, int layers) {
  for (const CacheFormat format : {CacheFormat::float32, CacheFormat::bfloat16, CacheFormat::int8,
                                   CacheFormat::fp8, CacheFormat::int4})
    register_size(model + "/MLA", config, layers, format);
  const auto with = [&](Index key_value_heads) {
    return GroupedQueryConfig::heads_of(config, key_value_heads);
  };
  register_size(model + "/MHA", with(config.num_attention_heads), layers, CacheFormat::bfloat16);
  register_size(model + "/GQA8", with(8), layers, CacheFormat::bfloat16);
  register_size(model + "/MQA", with(1), layers, CacheFormat::bfloat16);
}

// The lesson's ratio, 2 * n_embd / kv_lora_rank, and what it is with the rotary keys that its layer
// caches, or would cache with one for all heads as DeepSeek's.
void register_lesson(Index n_embd, Index n_head, Index kv_lora_rank) {
  const std::string name = "PublishedCacheSize/lesson/n_embd:" + std::to_string(n_embd) +
                           "/n_head:" + std::to_string(n_head) +
                           "/kv_lora_rank:" + std::to_string(kv_lora_rank);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    AttentionConfig lesson = AttentionConfig::lesson(n_embd, n_head, kv_lora_rank);
    double mha = 0.0, cached = 0.0, shared = 0.0;
    for (auto _ : state) {
      mha = bytes_per_token(key_value_heads(n_embd, n_head, n_head, n_embd / n_head));
      lesson.rope_key_per_head = true;
      cached = bytes_per_token(lesson);
      lesson.rope_key_per_head = false;
      shared = bytes_per_token(lesson);
    }
    const double latent = static_cast<double>(kv_lora_rank) * sizeof(bfloat16);
    state.counters["mha_bytes"] = mha;
    state.counters["latent_bytes"] = latent;
    state.counters["cached_bytes"] = cached;
    state.counters["taught_ratio"] = mha / latent;
    state.counters["real_ratio"] = mha / cached;
    state.counters["ratio_with_shared_rope_key"] = mha / shared;
  })->Iterations(1);
}

// ---- Decode

// Random bfloat16 weights, one after the other in memory that all layers use in turn.
class WeightPool {
 public:
  explicit WeightPool(Index elements) {
    static std::vector<bfloat16> memory;
    if (static_cast<std::size_t>(elements) > memory.size()) {
      const RowMajorMatrix pattern = random_matrix(1, 1 << 20);
      std::vector<bfloat16>().swap(memory);
      memory.resize(static_cast<std::size_t>(elements));
      for (Index i = 0; i < elements; ++i)
        memory[static_cast<std::size_t>(i)] = bfloat16(0.02f * pattern.data()[i % pattern.size()]);
    }
    next_ = memory.data();
  }

  WeightView take(Index rows, Index cols) {
    const bfloat16* data = std::exchange(next_, next_ + rows * cols);
    bytes_ += rows * cols * Index{sizeof(bfloat16)};
    return {data, rows, cols};
  }
  Index bytes() const { return bytes_; }

 private:
  const bfloat16* next_;
  Index bytes_ = 0;
};

Index weight_elements(const AttentionConfig& c) {
  const Index heads = c.num_attention_heads, hidden = c.hidden_size;
  const Index queries = heads * c.qk_head_dim();
  const Index query = c.q_lora_rank > 0 ? c.q_lora_rank * (hidden + 1 + queries) : hidden * queries;
  return query + c.cache_row_width() * hidden + c.kv_lora_rank +
         heads * (c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank +
         hidden * heads * c.v_head_dim;
}

Index weight_elements(const GroupedQueryConfig& c) {
  return c.hidden_size *
         ((c.num_attention_heads + c.num_key_value_heads) * (c.head_dim + c.value_dim()));
}

MultiheadLatentAttention make_layer(const AttentionConfig& c, WeightPool& pool) {
  const Index heads = c.num_attention_heads, hidden = c.hidden_size;
  mla::AttentionWeights w;
  if (c.q_lora_rank > 0) {
    w.q_a_proj = pool.take(c.q_lora_rank, hidden);
    if (c.query_norm) w.q_a_layernorm = pool.take(1, c.q_lora_rank);
    w.q_b_proj = pool.take(heads * c.qk_head_dim(), c.q_lora_rank);
  } else {
    w.q_proj = pool.take(heads * c.qk_head_dim(), hidden);
  }
  w.kv_a_proj_with_mqa = pool.take(c.cache_row_width(), hidden);
  w.kv_a_layernorm = pool.take(1, c.kv_lora_rank);
  w.kv_b_proj = pool.take(heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank);
  w.o_proj = pool.take(hidden, heads * c.v_head_dim);
  return {c, w};
}

GroupedQueryAttention make_layer(const GroupedQueryConfig& c, WeightPool& pool) {
  const Index heads = c.num_attention_heads, hidden = c.hidden_size;
  return {c,
          {.q_proj = pool.take(heads * c.head_dim, hidden),
           .k_proj = pool.take(c.num_key_value_heads * c.head_dim, hidden),
           .v_proj = pool.take(c.num_key_value_heads * c.value_dim(), hidden),
           .o_proj = pool.take(hidden, heads * c.value_dim())}};
}

// What one thread reads from memory: the limit for decoding with weights and caches that are too
// large for the processor's caches. memchr over 1 GiB.
void read_bandwidth(benchmark::State& state) {
  const std::vector<char> memory(std::size_t{1} << 30, 'a');
  for (auto _ : state) benchmark::DoNotOptimize(std::memchr(memory.data(), 'b', memory.size()));
  state.counters["GB/s"] = benchmark::Counter(static_cast<double>(memory.size()) / 1e9,
                                              benchmark::Counter::kIsIterationInvariantRate);
}

class Decoding {
 public:
  virtual ~Decoding() = default;
  virtual void run(benchmark::State& state, Index layers) = 0;
};

template <class Layer, class Cache, class Config>
class DecodingOf final : public Decoding {
 public:
  DecodingOf(const Config& config, CacheFormat format)
      : config_(config),
        pool_(weight_elements(config)),
        layer_(make_layer(config, pool_)),
        cache_(config, format),
        x_(random_matrix(1, config.hidden_size)),
        out_(1, config.hidden_size) {}

  void run(benchmark::State& state, Index layers) override {
    const Index tokens = state.range(0);
    fill(cache_, config_, tokens);
    const auto allocated = static_cast<double>(cache_.bytes_allocated());
    const auto read = static_cast<double>(cache_.bytes_used()) + static_cast<double>(pool_.bytes());
    layer_.forward(x_, cache_, out_, context_);  // lets the scratch memory grow
    cache_.truncate(tokens);
    for (auto _ : state) {
      layer_.forward(x_, cache_, out_, context_);
      cache_.truncate(tokens);
      benchmark::DoNotOptimize(out_.data());
    }
    state.counters["bytes_per_token_layer"] = static_cast<double>(cache_.bytes_per_token());
    state.counters["cache_MB"] = allocated / 1e6;
    state.counters["cache_GB_all_layers"] = allocated * static_cast<double>(layers) / 1e9;
    state.counters["weights_MB"] = static_cast<double>(pool_.bytes()) / 1e6;
    // Weights and cached rows that a token reads, each once.
    state.counters["GB/s"] =
        benchmark::Counter(read / 1e9, benchmark::Counter::kIsIterationInvariantRate);
  }

 private:
  Config config_;
  WeightPool pool_;
  Layer layer_;
  Cache cache_;
  mla::SerialExecutor executor_;
  mla::Context context_{executor_};
  RowMajorMatrix x_;
  RowMajorMatrix out_;
};

// One layer with its cache is kept at a time, from benchmark to benchmark as long as they ask for
// the same: filling a cache takes longer than decoding.
template <class Make>
Decoding& decoding(const std::string& name, const Make& make) {
  static std::string name_of_current;
  static std::unique_ptr<Decoding> current;
  if (name_of_current != name) {
    current.reset();
    current = make();
    name_of_current = name;
  }
  return *current;
}

template <class Layer, class Cache, class Config>
void register_decode(std::string name, const Config& config, Index layers, CacheFormat format) {
  name.append("/").append(name_of(format));
  benchmark::RegisterBenchmark(("Decode/" + name).c_str(),
                               [=](benchmark::State& state) {
                                 decoding(name, [&] {
                                   return std::make_unique<DecodingOf<Layer, Cache, Config>>(
                                       config, format);
                                 }).run(state, layers);
                               })
      ->ArgName("tokens")
      ->Arg(1024)
      ->Arg(4096)
      ->Arg(16384)
      ->Unit(benchmark::kMillisecond);
}

void register_key_value_heads(const std::string& model, const char* kind,
                              const GroupedQueryConfig& config, Index layers, CacheFormat format) {
  register_decode<GroupedQueryAttention, GroupedKVCache>(model + "/" + kind, config, layers,
                                                         format);
}

// MLA, and the same heads as MHA, GQA with 8 K/V heads, and MQA.
void register_model(const std::string& model, const AttentionConfig& config, Index layers,
                    CacheFormat format) {
  const Index heads = config.num_attention_heads;
  register_decode<MultiheadLatentAttention, LatentCache>(model + "/MLA", config, layers, format);
  const auto with = [&](Index key_value_heads) {
    return GroupedQueryConfig::heads_of(config, key_value_heads);
  };
  register_key_value_heads(model, "MHA", with(heads), layers, format);
  if (heads > 8) register_key_value_heads(model, "GQA8", with(8), layers, format);
  register_key_value_heads(model, "MQA", with(1), layers, format);
}

void register_size_benchmarks() {
  register_sizes("DeepSeek-V3", AttentionConfig::deepseek_v3(), 61);
  register_sizes("DeepSeek-V2-Lite", AttentionConfig::deepseek_v2_lite(), 27);
  register_sizes("Kimi-K2", AttentionConfig::kimi_k2(), 61);
}

// Formats that are for latents.
void register_quantised_decode_benchmarks() {
  for (const CacheFormat format : {CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4}) {
    register_decode<MultiheadLatentAttention, LatentCache>(
        "DeepSeek-V3/MLA", AttentionConfig::deepseek_v3(), 61, format);
    register_decode<MultiheadLatentAttention, LatentCache>(
        "DeepSeek-V2-Lite/MLA", AttentionConfig::deepseek_v2_lite(), 27, format);
  }
}

void register_decode_benchmarks(CacheFormat format) {
  register_model("DeepSeek-V3", AttentionConfig::deepseek_v3(), 61, format);
  register_model("DeepSeek-V2-Lite", AttentionConfig::deepseek_v2_lite(), 27, format);
  register_model("Kimi-K2", AttentionConfig::kimi_k2(), 61, format);
  register_model("lesson", AttentionConfig::lesson(), 1, format);
  // The lesson compares with heads of n_embd / n_head that are rotated as a whole.
  register_key_value_heads("lesson", "MHA-of-n_embd", key_value_heads(256, 8, 8, 32), 1, format);
}

void register_published_benchmarks() {
  register_published("DeepSeek-V3", AttentionConfig::deepseek_v3(), 61);
  register_published("DeepSeek-V2-Lite", AttentionConfig::deepseek_v2_lite(), 27);
  register_published("Kimi-K2", AttentionConfig::kimi_k2(), 61);
  register_published("Qwen2.5-72B", key_value_heads(8192, 64, 8, 128), 80);
  register_published("Llama-3.1-405B", key_value_heads(16384, 128, 8, 128), 126);
  register_published("GPT-3", key_value_heads(12288, 96, 96, 128), 96);
  register_lesson(256, 8, 128);
  register_lesson(4096, 32, 512);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::AddCustomContext("mla_isa", std::string(name_of(mla::simd::kernels().isa)));
  register_published_benchmarks();
  register_size_benchmarks();
  benchmark::RegisterBenchmark("ReadBandwidth", read_bandwidth)->Unit(benchmark::kMillisecond);
  register_decode_benchmarks(CacheFormat::bfloat16);
  register_decode_benchmarks(CacheFormat::float32);
  register_quantised_decode_benchmarks();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
