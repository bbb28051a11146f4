#ifndef MLA_ATTENTION_ABSORBED_ATTENTION_HPP_
#define MLA_ATTENTION_ABSORBED_ATTENTION_HPP_

#include <algorithm>
#include <span>

#include "mla/attention/cached_tokens.hpp"
#include "mla/attention/context.hpp"
#include "mla/attention/softmax_rows.hpp"
#include "mla/core/config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// Causal attention in latent space: queries with W_UK absorbed against the cached rows as they
/// are. A row is one head of one token.
///   latent_queries [tokens, heads * (rank + rope)]  from LatentDecompression::absorb
///   latent_values  [tokens, heads * rank]           the softmax-weighted sums of latents
///   log_sum_exp    [tokens, heads]  of the scaled scores, -inf where no key was seen; empty: not
///                                   wanted (see merge_attention.hpp)
template <StorageElement T>
class AbsorbedAttention {
 public:
  AbsorbedAttention(const AttentionConfig& config, double softmax_scale)
      : config_(config), softmax_scale_(static_cast<float>(softmax_scale)) {}

  void forward(std::span<const CachedTokens<T>> batch, MatrixView<const float> latent_queries,
               MatrixView<float> latent_values, Context& context,
               MatrixView<float> log_sum_exp = {}) const {
    const Index heads = config_.num_attention_heads;
    const Index rows = latent_queries.rows * heads;
    require(
        latent_queries.stride == latent_queries.cols && latent_values.stride == latent_values.cols,
        "rows of latent queries and values must follow each other, got strides of ",
        latent_queries.stride, " and ", latent_values.stride, " for widths of ",
        latent_queries.cols, " and ", latent_values.cols);
    require(!log_sum_exp.data || log_sum_exp.cols == heads, "log_sum_exp must have ", heads,
            " columns, one a head, got ", log_sum_exp.cols);
    const Workspace::Scope scope(context.workspace());
    const MatrixView<const float> queries(latent_queries.data, rows,
                                          config_.kv_lora_rank + config_.qk_rope_head_dim);
    const MatrixView<float> values(latent_values.data, rows, config_.kv_lora_rank);
    Index* visible = context.workspace().template take<Index>(rows);
    for (const CachedTokens<T>& sequence : batch)
      for (Index i = 0; i < sequence.tokens; ++i)
        std::fill_n(visible + (sequence.first_token + i) * heads, heads, sequence.visible(i));

    if (config_.rope_key_per_head)
      attend_each_head(batch, queries, visible, values, log_sum_exp, context);
    else
      attend_all_heads(batch, queries, visible, values, log_sum_exp, context);
  }

 private:
  // A long sequence is cut into parts of so many keys that are attended apart and merged. The cuts
  // depend on a key's place only: results must not depend on the number of threads.
  static constexpr Index kPartKeys = 1024;
  // Query rows that go over the keys together, at most and at least.
  static constexpr Index kMostRows = 128, kLeastRows = 32;
  // Partial results, in floats, that are held at a time.
  static constexpr Index kPartialFloats = Index{1} << 24;

  static Index parts_of(Index keys) noexcept { return (keys + kPartKeys - 1) / kPartKeys; }

  // Some rows of a sequence, which see at most `keys` keys; their partial results, part by part,
  // are in rows [slot, + rows * parts).
  struct Group {
    const CachedTokens<T>* sequence;
    Index row, rows;
    Index keys;
    Index slot;
    Index parts() const noexcept { return parts_of(keys); }
  };

  // One part of the keys of a group.
  struct Task {
    const Group* group;
    Index part;
  };

  simd::KeyValueRows<T> key_rows(const LatentKVCache<T>& cache, Index first, Index count,
                                 Index rope_key) const noexcept {
    constexpr Index kPageRows = PagedRows<T>::kPageRows;
    static_assert(kPartKeys % kPageRows == 0);
    return {.pages = cache.rows().pages() + first / kPageRows,
            .page_rows = kPageRows,
            .row_stride = config_.cache_row_width(),
            .count = count,
            .key_offset = 0,
            .key_width = config_.kv_lora_rank,
            .tail_offset = config_.kv_lora_rank + rope_key * config_.qk_rope_head_dim,
            .tail_width = config_.qk_rope_head_dim,
            .value_offset = 0,
            .value_width = config_.kv_lora_rank};
  }

  // All heads of a token share the keys.
  void attend_all_heads(std::span<const CachedTokens<T>> batch, MatrixView<const float> queries,
                        const Index* visible, MatrixView<float> values,
                        MatrixView<float> log_sum_exp, Context& context) const {
    Workspace& workspace = context.workspace();
    const Index group_rows = rows_of_group(batch, context.executor().concurrency());
    const std::span<Group> groups = make_groups(batch, group_rows, workspace);
    const Index workers = context.executor().concurrency();
    const Index scratch_floats = context.kernels().template of<T>().attend_many_scratch(
        kMostRows, queries.cols, config_.kv_lora_rank);
    const auto scratch = workspace.template take_matrix<float>(workers, scratch_floats);
    const Index room = slots_of_round(batch);
    const SoftmaxRows partial(workspace.template take_matrix<float>(room, config_.kv_lora_rank),
                              workspace);
    Task* task = workspace.template take<Task>(room);

    for (std::size_t first = 0, end; first < groups.size(); first = end) {
      Index slots = 0, tasks = 0;
      for (end = first; end < groups.size(); ++end) {
        const Index more = groups[end].rows * groups[end].parts();
        if (slots + more > room) break;
        groups[end].slot = slots;
        slots += more;
        tasks += groups[end].parts();
      }
      const auto round = groups.subspan(first, end - first);
      for (Index i = 0; const Group& group : round)
        for (Index part = 0; part < group.parts(); ++part) task[i++] = {&group, part};
      context.executor().parallel_for(tasks, [&](Index i, Index worker) {
        attend_part(*task[i].group, task[i].part, queries, visible, partial, scratch.row(worker),
                    context);
      });
      context.executor().parallel_for(static_cast<Index>(round.size()), [&](Index i, Index) {
        const Group& group = round[static_cast<std::size_t>(i)];
        for (Index r = 0; r < group.rows; ++r)
          keep(partial.merge(group.slot + r, group.rows, group.parts(), values.row(group.row + r)),
               group.row + r, log_sum_exp);
      });
    }
  }

  // Partial results of a round: as many as all rows could have before the caches must grow, so that
  // decoding allocates nothing until then, but not more than kPartialFloats unless a group needs
  // it.
  Index slots_of_round(std::span<const CachedTokens<T>> batch) const noexcept {
    Index rows = 0, parts = 1;
    for (const CachedTokens<T>& sequence : batch) {
      rows += sequence.tokens * config_.num_attention_heads;
      parts = std::max(parts, parts_of(sequence.cache->rows().capacity()));
    }
    return std::min(rows * parts,
                    std::max(kMostRows * parts, kPartialFloats / config_.kv_lora_rank));
  }

  // As many rows as leave the workers with little to wait for each other: keys are packed again for
  // each group.
  Index rows_of_group(std::span<const CachedTokens<T>> batch, Index workers) const noexcept {
    Index rows = kMostRows;
    const auto well_shared = [&] {
      Index tasks = 0;
      for (const CachedTokens<T>& sequence : batch)
        tasks += (sequence.tokens * config_.num_attention_heads + rows - 1) / rows *
                 parts_of(sequence.cache->size());
      return 4 * tasks >= 3 * ((tasks + workers - 1) / workers) * workers;
    };
    while (rows > kLeastRows && !well_shared()) rows /= 2;
    return rows;
  }

  std::span<Group> make_groups(std::span<const CachedTokens<T>> batch, Index group_rows,
                               Workspace& workspace) const {
    const Index heads = config_.num_attention_heads;
    Index most = 0;
    for (const CachedTokens<T>& sequence : batch)
      most += (sequence.tokens * heads + kLeastRows - 1) / kLeastRows;
    Group* groups = workspace.take<Group>(most);
    Index i = 0;
    for (const CachedTokens<T>& sequence : batch) {
      const Index sequence_rows = sequence.tokens * heads;
      for (Index row = 0; row < sequence_rows; row += group_rows) {
        const Index rows = std::min(group_rows, sequence_rows - row);
        groups[i++] = {&sequence, sequence.first_token * heads + row, rows,
                       sequence.visible((row + rows - 1) / heads), 0};
      }
    }
    return {groups, static_cast<std::size_t>(i)};
  }

  void attend_part(const Group& group, Index part, MatrixView<const float> queries,
                   const Index* visible, const SoftmaxRows& partial, float* scratch,
                   const Context& context) const noexcept {
    const Index first_key = part * kPartKeys;
    Index visible_here[kMostRows];
    for (Index r = 0; r < group.rows; ++r) visible_here[r] = visible[group.row + r] - first_key;
    const Index slot = group.slot + part * group.rows;
    partial.start(slot, group.rows);
    context.kernels().of<T>().attend_many(
        {queries.row(group.row), queries.stride, group.rows, visible_here},
        key_rows(*group.sequence->cache, first_key, std::min(kPartKeys, group.keys - first_key), 0),
        softmax_scale_, partial.state(slot), scratch);
  }

  // Every head has a rotary key of its own.
  void attend_each_head(std::span<const CachedTokens<T>> batch, MatrixView<const float> queries,
                        const Index* visible, MatrixView<float> values,
                        MatrixView<float> log_sum_exp, Context& context) const {
    const Index heads = config_.num_attention_heads;
    const SoftmaxRows softmax(values, context.workspace());
    for (const CachedTokens<T>& sequence : batch)
      context.executor().parallel_for(sequence.tokens * heads, [&](Index i, Index) {
        const Index row = sequence.first_token * heads + i;
        softmax.start(row, 1);
        context.kernels().of<T>().attend({queries.row(row), queries.stride, 1, visible + row},
                                         key_rows(*sequence.cache, 0, visible[row], i % heads),
                                         softmax_scale_, softmax.state(row));
        keep(softmax.finish(row, values.row(row)), row, log_sum_exp);
      });
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
