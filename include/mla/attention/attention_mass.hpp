#ifndef MLA_ATTENTION_ATTENTION_MASS_HPP_
#define MLA_ATTENTION_ATTENTION_MASS_HPP_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

#include "mla/attention/cached_tokens.hpp"
#include "mla/attention/turned_queries.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/rope.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// How much attention each cached token of a layer got from the tokens that were counted: the sum
/// of their probabilities over heads and tokens. MLA has one row for all heads, so one number
/// decides about it. Sums go token by token and head by head: they depend neither on threads nor on
/// how the tokens were cut into calls, as long as attention itself does not.
class AttentionMass {
 public:
  /// [tokens] of the cache when it was counted last.
  std::span<const double> rows() const noexcept { return rows_; }

  /// Counts the tokens of a call, which are in their cache already.
  ///   latent_queries [tokens, heads * (rank + rope)]  as absorbed attention takes them, dense
  ///   log_sum_exp    [tokens, heads]                  as attention gives it
  /// Where memory runs out, nothing is counted. Throws std::invalid_argument for tokens that see
  /// selected rows, a layer with a rotary key for each head, and shapes that do not fit.
  [[gnu::cold]] void add(const AttentionConfig& config, double softmax_scale,
                         const RotaryEmbedding& rotary, const CachedTokens& tokens,
                         MatrixView<const float> latent_queries,
                         MatrixView<const float> log_sum_exp, Context& context) {
    const Index heads = config.num_attention_heads;
    require(!config.rope_key_per_head,
            "attention is counted for one rotary key for all heads only");
    require(!tokens.selected, "attention to selected rows is not counted");
    require_matrix("latent_queries", latent_queries, tokens.tokens,
                   heads * (config.kv_lora_rank + config.qk_rope_head_dim));
    require_matrix("log_sum_exp", log_sum_exp, tokens.tokens, heads);
    rows_.reserve(static_cast<std::size_t>(tokens.cache->rows().capacity()));
    rows_.resize(static_cast<std::size_t>(tokens.cache->size()));
    const Workspace::Scope scope(context.workspace());
    const Counting counting = {config, static_cast<float>(softmax_scale), context};
    const auto queries = context.workspace().take_matrix<float>(heads, latent_queries.cols / heads);
    const auto scores = context.workspace().take_matrix<float>(heads, tokens.cache->size());
    TurnedQueries turned(config, &rotary, config.kv_lora_rank, context.workspace());
    for (Index t = 0; t < tokens.tokens; ++t)
      for_each_piece(tokens, t, [&](const KeyPiece& keys) {
        turned.set(*tokens.cache, keys.turn);
        for (Index h = 0; h < heads; ++h)
          turned.turn(latent_queries.row(t) + h * queries.cols, queries.cols, queries.row(h),
                      context.kernels());
        counting.score(*tokens.cache, keys, queries, scores);
        for (Index k = 0; k < keys.keys; ++k)
          for (Index h = 0; h < heads; ++h)
            rows_[static_cast<std::size_t>(keys.first + k)] += static_cast<double>(
                std::exp(counting.softmax_scale * scores(h, k) - log_sum_exp(t, h)));
      });
  }

  /// Forgets the tokens `rows`, which rise, as LatentCache::evict() does.
  void evict(std::span<const Index> rows) {
    auto row = rows.begin();
    Index i = 0;
    std::erase_if(rows_, [&](double) {
      const bool gone = row != rows.end() && *row == i++;
      row += gone;
      return gone;
    });
  }
  /// Keeps the first `tokens`.
  void truncate(Index tokens) noexcept {
    rows_.resize(std::min(rows_.size(), static_cast<std::size_t>(tokens)));
  }
  void clear() noexcept { rows_.clear(); }

 private:
  static constexpr Index kBlockKeys = simd::kTaskOutputs;

  struct Counting {
    const AttentionConfig& config;
    float softmax_scale;
    Context& context;

    // queries [heads, rank + rope] on some keys of a cache -> scores [heads, keys]: the product of
    // the queries with rows of float32, which the kernels of linear layers compute.
    void score(const LatentCache& cache, const KeyPiece& keys, MatrixView<const float> queries,
               MatrixView<float> scores) const {
      const Workspace::Scope scope(context.workspace());
      Workspace& workspace = context.workspace();
      const simd::Kernels& kernels = context.kernels();
      const simd::LinearKernels& linear = kernels.of(WeightFormat::float32);
      const Index workers = context.executor().concurrency(), width = queries.cols;
      const auto blocks = workspace.take_matrix<float>(workers, kBlockKeys * width);
      const auto scratch = workspace.take_matrix<float>(workers, kernels.linear_scratch);
      float* const packed = workspace.take<float>(linear.packed_floats(queries.rows, width));
      linear.pack(queries, packed);
      const Index count = (keys.keys + kBlockKeys - 1) / kBlockKeys;
      context.executor().parallel_for(count, [&](Index b, Index worker) {
        const Index first = b * kBlockKeys, n = std::min(kBlockKeys, keys.keys - first);
        const MatrixView<float> rows(blocks.row(worker), n, width);
        for (Index k = 0; k < n; ++k)
          kernels.of(cache.format())
              .widen(cache.layout(), cache.row(keys.first + first + k), rows.row(k));
        linear.linear(queries, packed, {rows.data, n, width}, scores.col_range(first, n),
                      scratch.row(worker));
      });
    }
  };

  std::vector<double> rows_;
};

/// What least_attended() leaves.
struct MassEviction {
  Index limit = 0;    ///< rows that are left, all in all
  Index keep = 4;     ///< the first of them stay, whatever they got
  Index recent = 32;  ///< and the last
  /// The mean over so many neighbours decides, an odd number: what stands around a token that is
  /// looked at matters, too (SnapKV, Li et al. 2024). 1: each row by itself.
  Index pool = 7;
};

/// The rows, rising, that are to be evicted for `limit` to be left: those that got the least. Of
/// equal ones the older go. Throws std::invalid_argument for options that cannot be.
inline std::vector<Index> least_attended(std::span<const double> mass,
                                         const MassEviction& options) {
  require(options.keep >= 0 && options.recent >= 0 && options.limit >= 0 &&
              options.keep <= options.limit && options.recent <= options.limit - options.keep,
          "an eviction that leaves ", options.limit, " rows cannot keep the first ", options.keep,
          " and the last ", options.recent);
  require(options.pool > 0 && options.pool % 2 == 1, "pool must be an odd number, got ",
          options.pool);
  const Index size = std::ssize(mass);
  if (size <= options.limit) return {};
  const Index first = options.keep, end = size - options.recent;
  std::vector<double> means(static_cast<std::size_t>(size));
  for (Index i = first; i < end; ++i) {
    const Index from = std::max(first, i - options.pool / 2);
    const Index to = std::min(end, i + options.pool / 2 + 1);
    double sum = 0.0;
    for (Index k = from; k < to; ++k) sum += mass[static_cast<std::size_t>(k)];
    means[static_cast<std::size_t>(i)] = sum / static_cast<double>(to - from);
  }
  std::vector<Index> rows(static_cast<std::size_t>(end - first));
  std::iota(rows.begin(), rows.end(), first);
  std::ranges::stable_sort(rows, {}, [&](Index i) { return means[static_cast<std::size_t>(i)]; });
  rows.resize(static_cast<std::size_t>(size - options.limit));
  std::ranges::sort(rows);
  return rows;
}

}  // namespace mla

#endif  // MLA_ATTENTION_ATTENTION_MASS_HPP_
