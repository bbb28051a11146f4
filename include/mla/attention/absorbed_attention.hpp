#ifndef MLA_ATTENTION_ABSORBED_ATTENTION_HPP_
#define MLA_ATTENTION_ABSORBED_ATTENTION_HPP_

#include <algorithm>
#include <new>
#include <span>

#include "mla/attention/cached_tokens.hpp"
#include "mla/attention/check_batch.hpp"
#include "mla/attention/key_groups.hpp"
#include "mla/attention/turned_queries.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/rope.hpp"
#include "mla/ops/softmax_rows.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// Causal attention in latent space: queries with W_UK absorbed against the cached rows as they
/// are. A row is one head of one token. Caches of a batch may be of different formats. `rotary` is
/// for caches with several segments, and for windows.
///   latent_queries [tokens, heads * (rank + rope)]  from LatentDecompression::absorb, dense
///   latent_values  [tokens, heads * rank]           the softmax-weighted sums of latents, dense
///   log_sum_exp    [tokens, heads]  of the scaled scores, -inf where no key was seen; empty: not
///                                   wanted (see merge_attention.hpp)
/// Throws std::invalid_argument for shapes, caches and selections that do not fit.
class AbsorbedAttention {
 public:
  AbsorbedAttention(const AttentionConfig& config, double softmax_scale,
                    const RotaryEmbedding* rotary = nullptr)
      : config_(config), softmax_scale_(static_cast<float>(softmax_scale)), rotary_(rotary) {}

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
    TurnedQueries::require_rotary(batch, rotary_);

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

  // Some keys of a cache, of all its rows or of a list of them, with one of the rotary keys.
  simd::KeyValueRows key_rows(const LatentCache& cache, const Index* selected, const KeyPiece& keys,
                              Index rope_key) const noexcept {
    const Index slot = selected ? keys.slot : keys.slot + keys.first;
    return {.pages = cache.rows().pages() + slot / PagedRows::kPageRows,
            .page_rows = PagedRows::kPageRows,
            .layout = cache.layout(),
            .count = keys.keys,
            .key_offset = 0,
            .key_width = config_.kv_lora_rank,
            .tail_offset = config_.kv_lora_rank + rope_key * config_.qk_rope_head_dim,
            .tail_width = config_.qk_rope_head_dim,
            .value_offset = 0,
            .value_width = config_.kv_lora_rank,
            .selected = selected ? selected + keys.first : nullptr,
            .first_row = slot % PagedRows::kPageRows};
  }

  // What a worker needs for queries that have to be turned; nothing where none has to be.
  struct Turned {
    TurnedQueries queries;
    float* rows;  // [kMostRows, key_width]
  };
  Turned* take_turned(std::span<const CachedTokens> batch, Index rows, Context& context) const {
    if (!TurnedQueries::needed(batch)) return nullptr;
    Workspace& workspace = context.workspace();
    const Index workers = context.executor().concurrency();
    Turned* const turned = workspace.take<Turned>(workers);
    for (Index w = 0; w < workers; ++w)
      new (turned + w)
          Turned{{config_, rotary_, config_.kv_lora_rank, workspace},
                 workspace.take<float>(rows * (config_.kv_lora_rank + config_.qk_rope_head_dim))};
    return turned;
  }
  // Rows [row, + rows) of the queries, turned for some keys.
  const float* turned_rows(const LatentCache& cache, MatrixView<const float> queries, Index row,
                           Index rows, Index turn, Turned* turned,
                           const Context& context) const noexcept {
    if (turn == 0) return queries.row(row);
    turned->queries.set(cache, turn);
    for (Index r = 0; r < rows; ++r)
      turned->queries.turn(queries.row(row + r), queries.cols, turned->rows + r * queries.cols,
                           context.kernels());
    return turned->rows;
  }

  // All heads of a token share the keys.
  void attend_all_heads(std::span<const CachedTokens> batch, MatrixView<const float> queries,
                        const Index* visible, MatrixView<float> values,
                        MatrixView<float> log_sum_exp, Context& context) const {
    Workspace& workspace = context.workspace();
    const Index workers = context.executor().concurrency();
    const KeyGroups groups(batch, config_.num_attention_heads, config_.kv_lora_rank, workers,
                           context.kernels(), workspace);
    const auto scratch = workspace.take_matrix<float>(
        workers, scratch_floats(batch, groups.most_rows(), context.kernels()));
    const SoftmaxRows partial(workspace.take_matrix<float>(groups.room(), config_.kv_lora_rank),
                              workspace);
    Turned* const turned = take_turned(batch, groups.most_rows(), context);

    groups.for_each_round(
        [&](std::span<const KeyGroups::Task> tasks, std::span<const KeyGroups::Group> round) {
          context.executor().parallel_for(std::ssize(tasks), [&](Index i, Index worker) {
            attend_part(tasks[static_cast<std::size_t>(i)], queries, visible, partial,
                        turned ? turned + worker : nullptr, scratch.row(worker), context);
          });
          context.executor().parallel_for(std::ssize(round), [&](Index i, Index) {
            const KeyGroups::Group& group = round[static_cast<std::size_t>(i)];
            for (const KeyGroups::Member& member : group.members)
              for (Index row = member.row; row < member.row + member.rows; ++row)
                keep(partial.merge(group.slot + row - group.row, group.rows, member.parts,
                                   values.row(row)),
                     row, log_sum_exp);
          });
        });
  }

  // Of attend_many() for any cache of the batch.
  Index scratch_floats(std::span<const CachedTokens> batch, Index rows,
                       const simd::Kernels& kernels) const noexcept {
    Index floats = 0;
    for (const CachedTokens& sequence : batch)
      floats =
          std::max(floats, kernels.of(sequence.cache->format())
                               .attend_many_scratch(sequence.cache->layout(), rows,
                                                    config_.kv_lora_rank + config_.qk_rope_head_dim,
                                                    config_.kv_lora_rank));
    return floats;
  }

  void attend_part(const KeyGroups::Task& task, MatrixView<const float> queries,
                   const Index* visible, const SoftmaxRows& partial, Turned* turned, float* scratch,
                   const Context& context) const noexcept {
    Index visible_here[KeyGroups::kMostSharedRows];
    for (Index r = 0; r < task.rows; ++r) visible_here[r] = visible[task.row + r] - task.keys.first;
    partial.start(task.slot, task.rows);
    const LatentCache& cache = *task.sequence->cache;
    context.kernels()
        .of(cache.format())
        .attend_many(
            {turned_rows(cache, queries, task.row, task.rows, task.keys.turn, turned, context),
             queries.stride, task.rows, visible_here},
            key_rows(cache, task.sequence->rows_of(task.token), task.keys, 0), softmax_scale_,
            partial.state(task.slot), scratch);
  }

  // Every head has a rotary key of its own.
  void attend_each_head(std::span<const CachedTokens> batch, MatrixView<const float> queries,
                        const Index* visible, MatrixView<float> values,
                        MatrixView<float> log_sum_exp, Context& context) const {
    const Index heads = config_.num_attention_heads;
    const Index workers = context.executor().concurrency();
    const SoftmaxRows softmax(values, context.workspace());
    Turned* const turned = take_turned(batch, 1, context);
    for (const CachedTokens& sequence : batch) {
      const LatentCache& cache = *sequence.cache;
      const simd::CacheKernels& kernels = context.kernels().of(cache.format());
      const Workspace::Scope scope(context.workspace());
      const auto scratch = context.workspace().take_matrix<float>(
          workers, kernels.attend_scratch(cache.layout(), queries.cols, values.cols));
      context.executor().parallel_for(sequence.tokens * heads, [&](Index i, Index worker) {
        const Index row = sequence.first_token * heads + i;
        softmax.start(row, 1);
        for_each_piece(sequence, i / heads, [&](const KeyPiece& keys) {
          const Index visible_here = visible[row] - keys.first;
          kernels.attend({turned_rows(cache, queries, row, 1, keys.turn,
                                      turned ? turned + worker : nullptr, context),
                          queries.stride, 1, &visible_here},
                         key_rows(cache, sequence.rows_of(i / heads), keys, i % heads),
                         softmax_scale_, softmax.state(row), scratch.row(worker));
        });
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
  const RotaryEmbedding* rotary_;
};

}  // namespace mla

#endif  // MLA_ATTENTION_ABSORBED_ATTENTION_HPP_
