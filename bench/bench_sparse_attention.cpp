// Sparse attention at DeepSeek-V3.2's dims: one token whose indexer scores all cached keys and
// selects 2048 of them, against the same token that attends to all.

#include <optional>
#include <span>
#include <vector>

#include "kernel_benchmark.hpp"
#include "mla/attention/indexer.hpp"

namespace mla::bench {
namespace {

AttentionConfig deepseek_v32() {
  AttentionConfig config = AttentionConfig::deepseek_v3();
  config.indexer = {.type = IndexerType::full, .heads = 64, .head_dim = 128, .topk = 2048};
  return config;
}

// Weights of the indexer, of bfloat16.
class IndexerWeights {
 public:
  explicit IndexerWeights(const AttentionConfig& config)
      : memory_(random_values<bfloat16>(
            config.indexer.heads * config.indexer.head_dim * config.q_lora_rank, 0.05f)) {
    const IndexerConfig& indexer = config.indexer;
    const auto begin = [&](Index rows, Index cols) {
      return WeightView(memory_.data(), rows, cols);  // the same numbers: others are small
    };
    views_.indexer_wq_b = begin(indexer.heads * indexer.head_dim, config.q_lora_rank);
    views_.indexer_wk = begin(indexer.head_dim, config.hidden_size);
    views_.indexer_k_norm = begin(1, indexer.head_dim);
    views_.indexer_k_norm_bias = begin(1, indexer.head_dim);
    views_.indexer_weights_proj = begin(indexer.heads, config.hidden_size);
  }

  const AttentionWeights& views() const { return views_; }

 private:
  std::vector<bfloat16> memory_;
  AttentionWeights views_;
};

// The last of `tokens` tokens of a cache: from latent queries to latent values. kv_b_proj, on both
// sides of that, is the same for dense and sparse attention and left out.
class SparseAttention {
 public:
  SparseAttention(CacheFormat format, Index tokens, Context& context)
      : weights_(config_),
        rotary_(config_),
        indexer_(config_, weights_.views()),
        cache_(filled_cache(config_, format, tokens - 1)),
        x_(random_values<float>(config_.hidden_size)),
        latent_(random_values<float>(config_.q_lora_rank)),
        queries_(random_values<float>(
            config_.num_attention_heads * (config_.kv_lora_rank + config_.qk_rope_head_dim), 0.1f)),
        values_(static_cast<std::size_t>(config_.num_attention_heads * config_.kv_lora_rank)) {
    const Sequence sequence = {&cache_, 1};
    plan_.emplace(config_, rotary_, 1, std::span(&sequence, 1), ForwardOptions{},
                  context.workspace());
    selection_.emplace(config_, *plan_, context.workspace());
    const auto rows = random_values<float>(config_.cache_row_width());
    const auto keys = random_values<float>(config_.indexer.head_dim);
    LatentCache* const caches[] = {&cache_};
    plan_->append({rows.data(), 1, std::ssize(rows)}, caches, context.kernels(),
                  {keys.data(), 1, std::ssize(keys)});
  }

  void dense(Context& context) { attend(plan_->cached(0, cache_), context); }

  // All that the indexer computes for the token but its key: queries, weights, scores, the best.
  void select(Context& context) {
    LatentCache* const caches[] = {&cache_};
    indexer_.select({x_.data(), 1, std::ssize(x_)}, {latent_.data(), 1, std::ssize(latent_)},
                    *plan_, caches, *selection_, context);
  }

  void sparse(Context& context) {
    CachedTokens tokens = plan_->cached(0, cache_);
    tokens.selected = selection_->lists(0);
    attend(tokens, context);
  }

 private:
  void attend(const CachedTokens& tokens, Context& context) {
    const Workspace::Scope scope(context.workspace());
    AbsorbedAttention(config_, 0.1)
        .forward({&tokens, 1}, {queries_.data(), 1, std::ssize(queries_)},
                 {values_.data(), 1, std::ssize(values_)}, context);
  }

  AttentionConfig config_ = deepseek_v32();
  IndexerWeights weights_;
  RotaryEmbedding rotary_;
  Indexer indexer_;
  LatentCache cache_;
  std::vector<float> x_, latent_, queries_, values_;
  std::optional<CallPlan> plan_;
  std::optional<IndexSelection> selection_;
};

// speedup: of the indexer and attention to what it selects, over attention to all.
void BM_SparseAttention(benchmark::State& state) {
  Bench bench(state, static_cast<int>(state.range(3)));
  const Workspace::Scope scope(bench.context.workspace());
  SparseAttention attention(cache_format_of(state), state.range(2), bench.context);
  attention.dense(bench.context);  // grow the workspace
  attention.select(bench.context);
  attention.sparse(bench.context);
  std::vector<double> dense, indexer, sparse;
  const auto measure = [&](std::vector<double>& seconds, auto work) {
    const double start = seconds_of(bench.executor.concurrency());
    (attention.*work)(bench.context);
    seconds.push_back(seconds_of(bench.executor.concurrency()) - start);
  };
  for (auto _ : state) {
    measure(dense, &SparseAttention::dense);
    measure(indexer, &SparseAttention::select);
    measure(sparse, &SparseAttention::sparse);
    state.SetIterationTime(dense.back() + indexer.back() + sparse.back());
  }
  state.counters["dense_s"] = median(dense);
  state.counters["indexer_s"] = median(indexer);
  state.counters["sparse_s"] = median(sparse);
  state.counters["speedup"] = median(dense) / (median(indexer) + median(sparse));
}

// What scores all keys for the token: queries that are packed, keys that are cached.
void BM_IndexScores(benchmark::State& state) {
  Bench bench(state, static_cast<int>(state.range(3)));
  constexpr Index kPart = 2048;
  const AttentionConfig config = deepseek_v32();
  const Index heads = config.indexer.heads, dim = config.indexer.head_dim, count = state.range(2);
  const LatentCache cache = filled_cache(config, cache_format_of(state), count);
  const PagedRows& keys = *cache.index_keys();
  const simd::IndexKernels& kernels = bench.context.kernels().of_index_keys(keys.layout().format);
  const auto queries = random_values<float>(heads * dim), weights = random_values<float>(heads);
  const simd::IndexQueries query = {
      {queries.data(), heads, dim},
      bench.context.workspace().take<float>(kernels.packed_floats(heads, dim))};
  std::vector<float> scores(static_cast<std::size_t>(count));
  const auto scratch = bench.context.workspace().take_matrix<float>(
      bench.executor.concurrency(), (kernels.scratch(keys.layout(), heads, dim) + 15) / 16 * 16);
  kernels.pack(query.rows, weights.data(), const_cast<float*>(query.packed));
  Meter(state, bench.context)
      .run(2.0 * static_cast<double>(heads * dim * count),
           static_cast<double>(keys.layout().bytes * count), [&] {
             bench.executor.parallel_for((count + kPart - 1) / kPart, [&](Index p, Index worker) {
               const Index first = p * kPart, n = std::min(kPart, count - first);
               kernels.score(query,
                             {.pages = keys.pages() + first / PagedRows::kPageRows,
                              .page_rows = PagedRows::kPageRows,
                              .layout = keys.layout(),
                              .count = n,
                              .key_width = dim},
                             scores.data() + first, scratch.row(worker));
             });
           });
}

void sparse_arguments(benchmark::internal::Benchmark* b) {
  b->ArgNames({"isa", "type", "context", "threads"});
  for (const Index isa : isas())
    for (const Index type : {0, 1, 4})
      for (const Index context : {4096, 32768}) b->Args({isa, type, context, 1});
}

}  // namespace

void add_sparse_attention_rows() {
  add_rows("BM_SparseAttention", &BM_SparseAttention, &sparse_arguments);
  add_rows("BM_IndexScores", &BM_IndexScores, &sparse_arguments);
}

}  // namespace mla::bench
