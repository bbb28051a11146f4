// The two forms of attention against each other, over query tokens and context: where their curves
// cross, and what AttentionForm::automatic takes.

#include <vector>

#include "kernel_benchmark.hpp"

namespace mla::bench {
namespace {

// Attention from queries to values in both forms, on one cache.
class AttentionForms {
 public:
  AttentionForms(const AttentionConfig& config, CacheFormat format, Index context, Index queries)
      : config_(config),
        cache_(filled_cache(config, format, context)),
        tokens_(CachedTokens::ending_in(cache_, 0, queries)),
        weight_(random_values<bfloat16>(config.num_attention_heads *
                                            (config.qk_nope_head_dim + config.v_head_dim) *
                                            config.kv_lora_rank,
                                        0.05f)),
        decompression_(config, weights()),
        queries_(random_values<float>(queries * width(config.qk_head_dim()), 0.1f)),
        values_(static_cast<std::size_t>(queries * width(config.v_head_dim))) {}

  void absorbed(Context& context) {
    const Workspace::Scope scope(context.workspace());
    const Index rank = config_.kv_lora_rank, n = tokens_.tokens;
    const auto latent_queries =
        context.workspace().take_matrix<float>(n, width(rank + config_.qk_rope_head_dim));
    const auto latent_values = context.workspace().take_matrix<float>(n, width(rank));
    decompression_.absorb(queries(), latent_queries, context);
    AbsorbedAttention(config_, kScale)
        .forward({&tokens_, 1}, latent_queries, latent_values, context);
    decompression_.project_values(latent_values, values(), context);
  }

  void decompressed(Context& context) {
    DecompressedAttention(config_, kScale, decompression_)
        .forward({&tokens_, 1}, queries(), values(), context);
  }

 private:
  static constexpr double kScale = 0.1;

  Index width(Index of_head) const { return config_.num_attention_heads * of_head; }
  AttentionWeights weights() const {
    AttentionWeights weights;
    weights.kv_b_proj = {weight_.data(), width(config_.qk_nope_head_dim + config_.v_head_dim),
                         config_.kv_lora_rank};
    return weights;
  }
  MatrixView<const float> queries() const {
    return {queries_.data(), tokens_.tokens, width(config_.qk_head_dim())};
  }
  MatrixView<float> values() { return {values_.data(), tokens_.tokens, width(config_.v_head_dim)}; }

  AttentionConfig config_;
  LatentCache cache_;
  CachedTokens tokens_;
  std::vector<bfloat16> weight_;
  LatentDecompression decompression_;
  std::vector<float> queries_, values_;
};

// `queries` tokens, the last of `context`. loss: how much longer the form that
// AttentionForm::automatic takes needs than the better one, 1 if it is that one.
void BM_AttentionForms(benchmark::State& state) {
  AttentionConfig config = AttentionConfig::deepseek_v3();
  config.num_attention_heads = state.range(2);
  const Index context = state.range(3), queries = state.range(4);
  Bench bench(state, static_cast<int>(state.range(5)));
  const CacheFormat format = cache_format_of(state);
  AttentionForms forms(config, format, context, queries);
  forms.absorbed(bench.context);  // grow the workspace
  forms.decompressed(bench.context);
  const auto clock = [&] { return seconds_of(bench.executor.concurrency()); };
  std::vector<double> absorbed, decompressed;
  for (auto _ : state) {
    const double start = clock();
    forms.absorbed(bench.context);
    const double between = clock();
    forms.decompressed(bench.context);
    const double end = clock();
    absorbed.push_back(between - start);
    decompressed.push_back(end - between);
    state.SetIterationTime(end - start);
  }
  const AttentionSpeed speed =
      attention_speed(bench.context.kernels(), WeightFormat::bfloat16, format);
  const AttentionForm mode = choose_mode(config, context - queries, queries, speed);
  const bool expands = mode == AttentionForm::decompressed;
  const double a = median(absorbed), d = median(decompressed);
  state.counters["absorbed_s"] = a;
  state.counters["decompressed_s"] = d;
  state.counters["automatic"] = expands ? 1.0 : 0.0;
  state.counters["loss"] = (expands ? d : a) / std::min(a, d);
}

// All that have an AttentionSpeed of their own.
std::vector<Index> attention_isas() {
  std::vector<Index> all;
  for (const auto isa : simd::kAllIsas)
    if (isa != simd::Isa::scalar && simd::is_supported(isa)) all.push_back(static_cast<Index>(isa));
  return all;
}

void forms_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa", "type", "heads", "context", "queries", "threads"});
  for (Index isa : attention_isas())
    for (Index context : {256, 1024, 4096})
      for (Index queries : {1, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024})
        if (queries <= context) b->Args({isa, 1, 16, context, queries, 1});
  const Index float32 = isas()[0], best = isas().back();  // other heads, a float32 cache
  for (Index queries : {64, 128, 192, 256, 384}) {
    b->Args({best, 1, 128, 1024, queries, 1});
    b->Args({float32, 0, 16, 1024, queries, 1});
  }
}

}  // namespace

void add_attention_form_rows() {
  add_rows("BM_AttentionForms", &BM_AttentionForms, &forms_arguments);
}

}  // namespace mla::bench
