#ifndef MLA_BASELINE_GROUPED_QUERY_ATTENTION_HPP_
#define MLA_BASELINE_GROUPED_QUERY_ATTENTION_HPP_

#include <algorithm>
#include <numeric>
#include <span>

#include "mla/attention/cache_rollback.hpp"
#include "mla/attention/check_batch.hpp"
#include "mla/attention/token_positions.hpp"
#include "mla/baseline/grouped_query_config.hpp"
#include "mla/baseline/key_value_cache.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/linear.hpp"
#include "mla/ops/rope.hpp"
#include "mla/ops/softmax_rows.hpp"

namespace mla {

/// Weights of one layer under their published names: views [out_features, in_features] in memory
/// that must outlive the layer. Biases [1, out_features] are optional.
struct GroupedQueryWeights {
  WeightView q_proj;  ///< [heads * head_dim, hidden_size]
  WeightView k_proj;  ///< [kv heads * head_dim, hidden_size]
  WeightView v_proj;  ///< [kv heads * v_head_dim, hidden_size]
  WeightView o_proj;  ///< [hidden_size, heads * v_head_dim]

  WeightView q_proj_bias = {};
  WeightView k_proj_bias = {};
  WeightView v_proj_bias = {};
  WeightView o_proj_bias = {};

  /// Throws std::invalid_argument naming the tensor that is missing or of another shape than the
  /// configuration says.
  void validate(const GroupedQueryConfig& config) const {
    const Index hidden = config.hidden_size, heads = config.num_attention_heads;
    const Index key_value_heads = config.num_key_value_heads;
    check("q_proj", q_proj, q_proj_bias, heads * config.head_dim, hidden);
    check("k_proj", k_proj, k_proj_bias, key_value_heads * config.head_dim, hidden);
    check("v_proj", v_proj, v_proj_bias, key_value_heads * config.value_dim(), hidden);
    check("o_proj", o_proj, o_proj_bias, hidden, heads * config.value_dim());
  }

 private:
  static void check(const char* name, const WeightView& weight, const WeightView& bias, Index rows,
                    Index cols) {
    require_shape(name, weight, rows, cols);
    require(!bias || (bias.rows == 1 && bias.cols == rows), "tensor ", name,
            "_bias must have shape [1, ", rows, "], got [", bias.rows, ", ", bias.cols, "]");
  }
};

/// One layer of MHA, GQA or MQA, for prefill and decoding over a cache of keys and values: what
/// MultiheadLatentAttention is compared with, on the same kernels. Immutable: threads may share it,
/// each with its own Context and caches.
///
/// The result of a token is the same to the last bit for any number of threads and any split of a
/// prompt into calls, as long as instruction set and cache type are the same.
class GroupedQueryAttention {
 public:
  /// `weights` are views that must outlive the layer. Throws std::invalid_argument naming the field
  /// or tensor that does not fit.
  GroupedQueryAttention(const GroupedQueryConfig& config, const GroupedQueryWeights& weights)
      : config_((config.validate(), weights.validate(config), config)),
        query_(weights.q_proj, weights.q_proj_bias),
        key_(weights.k_proj, weights.k_proj_bias),
        value_(weights.v_proj, weights.v_proj_bias),
        output_(weights.o_proj, weights.o_proj_bias) {
    if (config.rotated_dim() > 0)
      rotary_ = RotaryEmbedding(config.rotated_dim(), config.rope_theta, config.rope_scaling);
  }

  const GroupedQueryConfig& config() const noexcept { return config_; }

  /// Appends the tokens x [tokens, hidden_size] to `cache` and writes their attention output to
  /// out [tokens, hidden_size]. `position_ids` [tokens] must rise, gaps are allowed; empty: the
  /// positions that follow the last cached one. Allocates nothing once `context` has seen a call of
  /// this size and `cache` has room (KeyValueCache::reserve). Throws std::invalid_argument for what
  /// does not fit; whatever is thrown, the cache is as it was.
  void forward(const Eigen::Ref<const RowMajorMatrix>& x, GroupedKVCache& cache,
               Eigen::Ref<RowMajorMatrix> out, Context& context,
               std::span<const Index> position_ids = {}) const {
    check_call(x, cache, out, position_ids);
    if (x.rows() == 0) return;
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const Index tokens = x.rows(), past = cache.size();
    const Index heads = config_.num_attention_heads, v = config_.value_dim();
    if (position_ids.empty()) {
      Index* following = workspace.take<Index>(tokens);
      std::iota(following, following + tokens, cache.next_position());
      position_ids = {following, static_cast<std::size_t>(tokens)};
    }
    const MatrixView<const float> input(x.data(), tokens, x.cols(), x.outerStride());
    const auto queries = workspace.take_matrix<float>(tokens, heads * config_.head_dim);
    const auto values = workspace.take_matrix<float>(tokens, heads * v);

    cache.reserve(past + tokens);
    GroupedKVCache* const caches[] = {&cache};
    CacheRollback<GroupedKVCache> rollback(caches, workspace);
    project(input, position_ids, queries, cache, context);
    attend(queries, cache, values, context);
    output_.forward(values, {out.data(), tokens, out.cols(), out.outerStride()}, context);
    rollback.keep();
  }

  /// The same, with memory of its own for the result and on the way.
  RowMajorMatrix forward(const Eigen::Ref<const RowMajorMatrix>& x, GroupedKVCache& cache,
                         std::span<const Index> position_ids = {}) const {
    RowMajorMatrix out(x.rows(), x.cols());
    Context context;
    forward(x, cache, out, context, position_ids);
    return out;
  }

 private:
  // Query rows that one task takes through the keys of a head.
  static constexpr Index kTaskRows = 32;

  void check_call(const Eigen::Ref<const RowMajorMatrix>& x, const GroupedKVCache& cache,
                  const Eigen::Ref<RowMajorMatrix>& out,
                  std::span<const Index> position_ids) const {
    require(x.cols() == config_.hidden_size, "x must have hidden_size ", config_.hidden_size,
            " columns, got ", x.cols());
    require(out.rows() == x.rows() && out.cols() == x.cols(), "out must have shape [", x.rows(),
            ", ", x.cols(), "], got [", out.rows(), ", ", out.cols(), "]");
    require(cache.num_key_value_heads() == config_.num_key_value_heads &&
                cache.head_dim() == config_.head_dim && cache.value_dim() == config_.value_dim(),
            "the cache has ", cache.num_key_value_heads(), " K/V heads of ", cache.head_dim(),
            " + ", cache.value_dim(), " elements (key + value), this layer needs ",
            config_.num_key_value_heads, " of ", config_.head_dim, " + ", config_.value_dim());
    require_rotary(config_.rotary(), cache.rotary());
    require(position_ids.empty() || static_cast<Index>(position_ids.size()) == x.rows(),
            "position_ids must have ", x.rows(), " elements, one per token, got ",
            position_ids.size());
    Index last = cache.next_position() - 1;
    for (Index i = 0; i < std::ssize(position_ids); ++i) {
      require_next_position(position_ids[static_cast<std::size_t>(i)], last, i);
      last = position_ids[static_cast<std::size_t>(i)];
    }
  }

  // x [tokens, hidden_size] -> queries [tokens, heads * head_dim], keys and values to the cache.
  void project(MatrixView<const float> x, std::span<const Index> positions,
               MatrixView<float> queries, GroupedKVCache& cache, Context& context) const {
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const Index key_value_heads = config_.num_key_value_heads;
    const auto keys = workspace.take_matrix<float>(x.rows, key_value_heads * config_.head_dim);
    const auto values = workspace.take_matrix<float>(x.rows, key_value_heads * config_.value_dim());
    const auto cos = workspace.take_matrix<float>(x.rows, config_.rotated_dim() / 2);
    const auto sin = workspace.take_matrix<float>(x.rows, config_.rotated_dim() / 2);
    rotary_.tables(positions, cos, sin);
    query_.forward(x, queries, context);
    rotate_heads(queries, cos, sin, context);
    key_.forward(x, keys, context);
    rotate_heads(keys, cos, sin, context);
    value_.forward(x, values, context);
    cache.append(keys, values, positions, context.kernels());
  }

  // heads [tokens, some heads * head_dim]
  void rotate_heads(MatrixView<float> heads, MatrixView<const float> cos,
                    MatrixView<const float> sin, const Context& context) const noexcept {
    for (Index t = 0; t < heads.rows; ++t)
      for (Index first = 0; first < heads.cols; first += config_.head_dim)
        context.kernels().rotate(heads.row(t) + first, cos.row(t), sin.row(t),
                                 config_.rotated_dim(), config_.rope_interleave);
  }

  // Causal attention of the last queries.rows tokens of the cache.
  //   queries [tokens, heads * head_dim]
  //   values  [tokens, heads * v_head_dim]
  void attend(MatrixView<const float> queries, const GroupedKVCache& cache,
              MatrixView<float> values, Context& context) const {
    const Index tokens = queries.rows, group = config_.group_size();
    const Index head_rows = tokens * group;  // query rows that share a key
    const Index key_value_heads = config_.num_key_value_heads;
    const Index past = cache.size() - tokens;
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);

    // Row (g, t, j) is query head g * group + j of token t: the rows of a K/V head are neighbours.
    const auto grouped =
        workspace.take_matrix<float>(key_value_heads * head_rows, config_.head_dim);
    const auto out = workspace.take_matrix<float>(grouped.rows, config_.value_dim());
    copy_groups(queries, grouped, [](const float* by_token, float* by_group, Index n) {
      std::copy_n(by_token, n, by_group);
    });
    Index* visible = workspace.take<Index>(head_rows);
    for (Index row = 0; row < head_rows; ++row) visible[row] = past + row / group + 1;
    const SoftmaxRows softmax(out, workspace);

    const auto scale = static_cast<float>(config_.softmax_scale());
    const Index tasks = (head_rows + kTaskRows - 1) / kTaskRows;  // of a K/V head
    const simd::CacheKernels& kernels = context.kernels().of(cache.format());
    const auto scratch = workspace.take_matrix<float>(
        context.executor().concurrency(),
        kernels.attend_scratch(cache.head_row(), config_.head_dim, config_.value_dim()));
    context.executor().parallel_for(key_value_heads * tasks, [&](Index task, Index worker) {
      const Index head = task / tasks, first = task % tasks * kTaskRows;
      const Index rows = std::min(kTaskRows, head_rows - first);
      const Index row = head * head_rows + first;
      softmax.start(row, rows);
      kernels.attend({grouped.row(row), grouped.stride, rows, visible + first},
                     cache.head(head, visible[first + rows - 1]), scale, softmax.state(row),
                     scratch.row(worker));
      for (Index r = row; r < row + rows; ++r) softmax.finish(r, out.row(r));
    });
    copy_groups(values, out, [](float* by_token, const float* by_group, Index n) {
      std::copy_n(by_group, n, by_token);
    });
  }

  // Calls copy(by_token, by_group, elements) for the neighbouring heads that both have in common.
  //   by_token [tokens, heads * n]
  //   by_group [kv heads * tokens * group, n]
  template <class Float, class Copy>
  void copy_groups(MatrixView<Float> by_token, MatrixView<float> by_group,
                   const Copy& copy) const noexcept {
    const Index width = config_.group_size() * by_group.cols;
    for (Index g = 0; g < config_.num_key_value_heads; ++g)
      for (Index t = 0; t < by_token.rows; ++t)
        copy(by_token.row(t) + g * width, by_group.data + (g * by_token.rows + t) * width, width);
  }

  GroupedQueryConfig config_;
  RotaryEmbedding rotary_;  // empty: no rotation
  Linear query_;
  Linear key_;
  Linear value_;
  Linear output_;
};

}  // namespace mla

#endif  // MLA_BASELINE_GROUPED_QUERY_ATTENTION_HPP_
