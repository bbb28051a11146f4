// What serving many texts costs beside the products: forks of a state, the longest stored prefix of
// a text, and attention of texts that share their beginning. docs/serving.md explains the numbers.
//   bench_serving

#include <algorithm>
#include <vector>

#include "kernel_benchmark.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/prefix_cache.hpp"

namespace mla::bench {
namespace {

// A model of `layers` such attentions; only the shapes count here.
ModelConfig model_of(const AttentionConfig& attention, Index layers) {
  ModelConfig config;
  config.attention = attention;
  config.num_hidden_layers = layers;
  return config;
}

// A state of so many tokens. Each layer has pages of its own, as in a model: their counts lie in as
// many places.
DecoderState filled_state(const ModelConfig& config, Index tokens) {
  DecoderState state(config, CacheFormat::bfloat16);
  for (Index layer = 0; layer < state.layers(); ++layer)
    state.layer(layer) = filled_cache(config.attention, CacheFormat::bfloat16, tokens);
  return state;
}

// A fork at the last token but one, whose page is copied.
void BM_Fork(benchmark::State& state) {
  const Index tokens = state.range(0);
  const DecoderState text =
      filled_state(model_of(AttentionConfig::deepseek_v3(), state.range(1)), tokens);
  std::vector<double> times;
  for (auto _ : state) {
    const double begin = thread_seconds();
    const DecoderState fork = text.fork(tokens - 1);
    const double end = thread_seconds();
    benchmark::DoNotOptimize(fork.size());
    state.SetIterationTime(end - begin);
    times.push_back(end - begin);
  }
  state.counters["fork_us"] = 1e6 * median(times);
}

// The longest prefix of 100,000 tokens among 1,000 texts. `apart`: whether the texts differ from
// the first token on, or leave a common text of 100,000 tokens at 1,000 places.
void BM_LongestPrefix(benchmark::State& state) {
  constexpr Index kTokens = 100'000, kTexts = 1'000, kTail = 640;
  AttentionConfig small;
  small.num_attention_heads = 1;
  small.kv_lora_rank = 4;
  small.qk_rope_head_dim = 2;
  const ModelConfig config = model_of(small, state.range(0));
  const bool apart = state.range(1) != 0;
  const DecoderState text = filled_state(config, kTokens + kTail);
  PrefixCache cache(config, CacheFormat::bfloat16, std::size_t{1} << 36);
  std::vector<TokenId> common(kTokens);
  for (std::size_t i = 0; i < common.size(); ++i)
    common[i] = static_cast<TokenId>(i * 7919 % 100'003);
  cache.insert(common, text);
  for (Index i = 1; i < kTexts; ++i) {
    const Index shared = apart ? 0 : i * (kTokens / kTexts);
    std::vector<TokenId> tokens(common.begin(), common.begin() + shared);
    for (Index j = 0; j < kTail; ++j) tokens.push_back(static_cast<TokenId>(200'000 + i + j));
    cache.insert(tokens, text.fork(std::ssize(tokens)));
  }
  std::vector<double> found, made;
  for (auto _ : state) {
    const double begin = thread_seconds();
    const Index tokens = cache.match(common);
    const double between = thread_seconds();
    const DecoderState longest = cache.longest(common);
    const double end = thread_seconds();
    if (tokens != longest.size() || tokens != kTokens / 64 * 64) state.SkipWithError("not found");
    state.SetIterationTime(between - begin);
    found.push_back(between - begin);
    made.push_back(end - between);
  }
  state.counters["match_us"] = 1e6 * median(found);
  state.counters["state_us"] = 1e6 * median(made);
}

// Absorbed attention of `texts`, one new token each, whose caches share all rows, beside that of
// texts with as many rows of their own.
void BM_SharedPrefix(benchmark::State& state) {
  AttentionConfig config;
  config.num_attention_heads = state.range(1);
  const Index texts = state.range(2), context = state.range(3);
  Bench bench(state, 1);
  const Index heads = config.num_attention_heads;
  const auto width = config.kv_lora_rank + config.qk_rope_head_dim;
  const auto q = random_values<float>(texts * heads * width, 0.1f);
  std::vector<float> out(static_cast<std::size_t>(texts * heads * config.kv_lora_rank));
  const AbsorbedAttention attention(config, 0.1);
  const LatentCache prefix = filled_cache(config, CacheFormat::bfloat16, context);
  std::vector<LatentCache> forks, own;
  for (Index i = 0; i < texts; ++i) {
    forks.push_back(prefix.fork(context));
    own.push_back(filled_cache(config, CacheFormat::bfloat16, context));
  }
  const auto seconds_for = [&](const std::vector<LatentCache>& caches) {
    std::vector<CachedTokens> tokens;
    for (Index i = 0; i < texts; ++i)
      tokens.push_back(CachedTokens::ending_in(caches[static_cast<std::size_t>(i)], i, 1));
    const double begin = thread_seconds();
    attention.forward(tokens, {q.data(), texts, heads * width},
                      {out.data(), texts, heads * config.kv_lora_rank}, bench.context);
    return thread_seconds() - begin;
  };
  std::vector<double> shared, alone;
  for (auto _ : state) {
    shared.push_back(seconds_for(forks));
    alone.push_back(seconds_for(own));
    state.SetIterationTime(shared.back());
  }
  state.counters["times_as_fast"] = median(alone) / median(shared);
}

}  // namespace
}  // namespace mla::bench

int main(int argc, char** argv) {
  using namespace mla;
  using namespace mla::bench;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add_rows("BM_Fork", BM_Fork, [](benchmark::internal::Benchmark* b) {
    b->ArgNames({"tokens", "layers"})->Args({8192, 61})->Args({8192, 27});
  });
  add_rows("BM_LongestPrefix", BM_LongestPrefix, [](benchmark::internal::Benchmark* b) {
    b->ArgNames({"layers", "apart"})->Args({1, 0})->Args({1, 1})->Args({27, 0})->Args({61, 0});
  });
  add_rows("BM_SharedPrefix", BM_SharedPrefix, [](benchmark::internal::Benchmark* b) {
    b->ArgNames({"isa", "heads", "texts", "context"});
    for (const Index isa : isas())
      for (const Index heads : {16, 128}) b->Args({isa, heads, 8, 4096});
  });
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
