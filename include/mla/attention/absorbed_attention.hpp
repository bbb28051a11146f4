#ifndef MLA_ATTENTION_ABSORBED_ATTENTION_HPP_
#define MLA_ATTENTION_ABSORBED_ATTENTION_HPP_

#include <algorithm>
#include <span>

#include "mla/attention/cached_tokens.hpp"
#include "mla/attention/check_batch.hpp"
#include "mla/attention/key_groups.hpp"
#include "mla/core/config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/softmax_rows.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// Causal attention in latent space: queries with W_UK absorbed against the cached rows as they
/// are. A row is one head of one token. Caches of a batch may be of different formats.
///   latent_queries [tokens, heads * (rank + rope)]  from LatentDecompression::absorb, dense
///   latent_values  [tokens, heads * rank]           the softmax-weighted sums of latents, dense
///   log_sum_exp    [tokens, heads]  of the scaled scores, -inf where no key was seen; empty: not
///                                   wanted (see merge_attention.hpp)
/// Throws std::invalid_argument for shapes, caches and selections that do not fit.
class AbsorbedAttention {
 public:
  AbsorbedAttention(const AttentionConfig& config, double softmax_scale)
      : config_(config), softmax_scale_(static_cast<float>(softmax_scale)) {}

  void forward(std::span<const CachedTokens> batch, MatrixView<const float> latent_queries,
               MatrixView<float> latent_values, Context& context,
               MatrixView<float> log_sum_exp = {}) const {
    const Index heads = config_.num_attention_heads, rank = config_.kv_lora_rank;
    const Index key_width = rank + config_.qk_rope_head_dim;
    const Index tokens = latent_queries.rows;
    require_dense("latent_queries", latent_queries, tokens, heads * key_width);
    require_dense("latent_values", latent_values, tokens, heads * rank);
    if (log_sum_exp.data) require_matrix("log_sum_exp", log_sum_exp, tokens, heads);
    check_batch(config_, batch, tokens);

    const Workspace::Scope scope(context.workspace());
    const MatrixView<const float> queries(latent_queries.data, tokens * heads, key_width);
    const MatrixView<float> values(latent_values.data, tokens * heads, rank);
    Index* visible = context.workspace().take<Index>(queries.rows);
    for (const CachedTokens& sequence : batch)
      for (Index i = 0; i < sequence.tokens; ++i)
        std::fill_n(visible + (sequence.first_token + i) * heads, heads, sequence.visible(i));

    if (config_.rope_key_per_head)
      attend_each_head(batch, queries, visible, values, log_sum_exp, context);
    else
      attend_all_heads(batch, queries, visible, values, log_sum_exp, context);
  }

 private:
  // Rows follow each other without gaps, as kernels go from head to head and from token to token.
  template <class T>
  static void require_dense(const char* name, MatrixView<T> matrix, Index rows, Index cols) {
    require_matrix(name, matrix, rows, cols);
    require(rows <= 1 || matrix.stride == cols, name, " must be dense, got rows of ", cols,
            " elements ", matrix.stride, " apart");
  }

  // Keys [first, + count) of a cache, or of a list of its rows, with one of the rotary keys.
  simd::KeyValueRows key_rows(const LatentCache& cache, const Index* selected, Index first,
                              Index count, Index rope_key) const noexcept {
    static_assert(KeyGroups::kPartKeys % PagedRows::kPageRows == 0);
    const Index first_page = selected ? 0 : first / PagedRows::kPageRows;
    return {.pages = cache.rows().pages() + first_page,
            .page_rows = PagedRows::kPageRows,
            .layout = cache.layout(),
            .count = count,
            .key_offset = 0,
            .key_width = config_.kv_lora_rank,
            .tail_offset = config_.kv_lora_rank + rope_key * config_.qk_rope_head_dim,
            .tail_width = config_.qk_rope_head_dim,
            .value_offset = 0,
            .value_width = config_.kv_lora_rank,
            .selected = selected ? selected + first : nullptr};
  }

  // All heads of a token share the keys.
  void attend_all_heads(std::span<const CachedTokens> batch, MatrixView<const float> queries,
                        const Index* visible, MatrixView<float> values,
                        MatrixView<float> log_sum_exp, Context& context) const {
    Workspace& workspace = context.workspace();
    const Index workers = context.executor().concurrency();
    const KeyGroups groups(batch, config_.num_attention_heads, config_.kv_lora_rank, workers,
                           workspace);
    const auto scratch =
        workspace.take_matrix<float>(workers, scratch_floats(batch, context.kernels()));
    const SoftmaxRows partial(workspace.take_matrix<float>(groups.room(), config_.kv_lora_rank),
                              workspace);

    groups.for_each_round([&](std::span<const KeyGroups::Task> tasks,
                              std::span<const KeyGroups::Group> round) {
      context.executor().parallel_for(std::ssize(tasks), [&](Index i, Index worker) {
        const KeyGroups::Task& task = tasks[static_cast<std::size_t>(i)];
        attend_part(*task.group, task.part, queries, visible, partial, scratch.row(worker),
                    context);
      });
      context.executor().parallel_for(std::ssize(round), [&](Index i, Index) {
        const KeyGroups::Group& group = round[static_cast<std::size_t>(i)];
        for (Index r = 0; r < group.rows; ++r)
          keep(partial.merge(group.slot + r, group.rows, group.parts(), values.row(group.row + r)),
               group.row + r, log_sum_exp);
      });
    });
  }

  // Of attend_many() for any cache of the batch.
  Index scratch_floats(std::span<const CachedTokens> batch,
                       const simd::Kernels& kernels) const noexcept {
    Index floats = 0;
    for (const CachedTokens& sequence : batch)
      floats =
          std::max(floats, kernels.of(sequence.cache->format())
                               .attend_many_scratch(sequence.cache->layout(), KeyGroups::kMostRows,
                                                    config_.kv_lora_rank + config_.qk_rope_head_dim,
                                                    config_.kv_lora_rank));
    return floats;
  }

  void attend_part(const KeyGroups::Group& group, Index part, MatrixView<const float> queries,
                   const Index* visible, const SoftmaxRows& partial, float* scratch,
                   const Context& context) const noexcept {
    const Index first_key = part * KeyGroups::kPartKeys;
    Index visible_here[KeyGroups::kMostRows];
    for (Index r = 0; r < group.rows; ++r) visible_here[r] = visible[group.row + r] - first_key;
    const Index slot = group.slot + part * group.rows;
    partial.start(slot, group.rows);
    const LatentCache& cache = *group.sequence->cache;
    context.kernels()
        .of(cache.format())
        .attend_many({queries.row(group.row), queries.stride, group.rows, visible_here},
                     key_rows(cache, group.selected, first_key,
                              std::min(KeyGroups::kPartKeys, group.keys - first_key), 0),
                     softmax_scale_, partial.state(slot), scratch);
  }

  // Every head has a rotary key of its own.
  void attend_each_head(std::span<const CachedTokens> batch, MatrixView<const float> queries,
                        const Index* visible, MatrixView<float> values,
                        MatrixView<float> log_sum_exp, Context& context) const {
    const Index heads = config_.num_attention_heads;
    const Index workers = context.executor().concurrency();
    const SoftmaxRows softmax(values, context.workspace());
    for (const CachedTokens& sequence : batch) {
      const LatentCache& cache = *sequence.cache;
      const simd::CacheKernels& kernels = context.kernels().of(cache.format());
      const Workspace::Scope scope(context.workspace());
      const auto scratch = context.workspace().take_matrix<float>(
          workers, kernels.attend_scratch(cache.layout(), queries.cols, values.cols));
      context.executor().parallel_for(sequence.tokens * heads, [&](Index i, Index worker) {
        const Index row = sequence.first_token * heads + i;
        softmax.start(row, 1);
        kernels.attend({queries.row(row), queries.stride, 1, visible + row},
                       key_rows(cache, sequence.rows_of(i / heads), 0, visible[row], i % heads),
                       softmax_scale_, softmax.state(row), scratch.row(worker));
        keep(softmax.finish(row, values.row(row)), row, log_sum_exp);
      });
    }
  }

  // The log-sum-exp of a row, if it is wanted.
  static void keep(const SoftmaxRows::Total& total, Index row,
                   MatrixView<float> log_sum_exp) noexcept {
    if (log_sum_exp.data)
      log_sum_exp(row / log_sum_exp.cols, row % log_sum_exp.cols) = total.log_sum_exp();
  }

  AttentionConfig config_;
  float softmax_scale_;
};

}  // namespace mla

#endif  // MLA_ATTENTION_ABSORBED_ATTENTION_HPP_
