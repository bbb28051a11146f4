#ifndef MLA_SUPPORT_TEST_LAYER_HPP_
#define MLA_SUPPORT_TEST_LAYER_HPP_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <list>
#include <new>
#include <numeric>
#include <span>
#include <vector>

#include "mla/attention/multihead_latent_attention.hpp"
#include "support/compare.hpp"
#include "support/quantised_matrix.hpp"
#include "support/random.hpp"

namespace mla::test {

struct WeightOptions {
  WeightFormat format = WeightFormat::float32;
  bool mixed_formats = false;  ///< each tensor has a format of its own; `format` does not matter
  bool split = false;  ///< the parts of fused matrices one by one, as the lesson stores them
  bool biases = false;
};

/// Random weights of a layer and the memory that they are in. Activations keep about unit variance;
/// queries are larger, so that softmax is far from a plain mean, which would hide errors.
class RandomWeights {
 public:
  RandomWeights(const AttentionConfig& config, const WeightOptions& options, Random& random)
      : options_(options), random_(random) {
    const Index heads = config.num_attention_heads, hidden = config.hidden_size;
    const Index rank = config.kv_lora_rank, query_rank = config.q_lora_rank;
    const Index nope = config.qk_nope_head_dim, rope = config.qk_rope_head_dim;
    const Index v = config.v_head_dim;
    constexpr double kSharp = 3.0;

    AttentionWeights& w = views_;
    if (query_rank == 0) {
      w.q_proj = projection(heads * (nope + rope), hidden, kSharp);
    } else {
      w.q_a_proj = projection(query_rank, hidden);
      if (config.query_norm) w.q_a_layernorm = norm(query_rank);
      if (options.split) {
        w.q_b_nope_proj = projection(heads * nope, query_rank, kSharp);
        w.q_b_rope_proj = projection(heads * rope, query_rank, kSharp);
      } else {
        w.q_b_proj = projection(heads * (nope + rope), query_rank, kSharp);
      }
      if (options.biases) w.q_a_proj_bias = tensor(1, query_rank, 0.5);
    }
    if (options.split) {
      w.kv_a_proj = projection(rank, hidden);
      w.k_rope_proj = projection(config.rope_key_width(), hidden);
      w.k_b_proj = projection(heads * nope, rank);
      w.v_b_proj = projection(heads * v, rank);
    } else {
      w.kv_a_proj_with_mqa = projection(config.cache_row_width(), hidden);
      w.kv_b_proj = projection(heads * (nope + v), rank);
      if (options.biases) w.kv_a_proj_with_mqa_bias = tensor(1, config.cache_row_width(), 0.5);
    }
    w.kv_a_layernorm = norm(rank);
    w.o_proj = projection(hidden, heads * v);
    if (options.biases) w.o_proj_bias = tensor(1, hidden, 0.5);
    if (config.indexer.type == IndexerType::full) add_indexer(config);  // the others stay the same
  }

  const AttentionWeights& views() const noexcept { return views_; }

 private:
  void add_indexer(const AttentionConfig& config) {
    const IndexerConfig& indexer = config.indexer;
    views_.indexer_wq_b = projection(indexer.heads * indexer.head_dim, config.q_lora_rank);
    views_.indexer_wk = projection(indexer.head_dim, config.hidden_size);
    views_.indexer_k_norm = norm(indexer.head_dim);
    views_.indexer_k_norm_bias = tensor(1, indexer.head_dim, 0.3);
    views_.indexer_weights_proj = projection(indexer.heads, config.hidden_size);
  }
  WeightView projection(Index rows, Index cols, double scale = 1.0) {
    return tensor(rows, cols, scale / std::sqrt(static_cast<double>(cols)));
  }
  WeightView norm(Index n) { return tensor(1, n, 0.3, 1.0); }

  WeightView tensor(Index rows, Index cols, double scale, double center = 0.0) {
    WeightFormat format = options_.format;
    if (options_.mixed_formats)
      format =
          random_.one_of({WeightFormat::float32, WeightFormat::bfloat16, WeightFormat::float16});
    switch (format) {
      case WeightFormat::float32:
        return tensor_of<float>(rows, cols, scale, center);
      case WeightFormat::bfloat16:
        return tensor_of<bfloat16>(rows, cols, scale, center);
      case WeightFormat::float16:
        return tensor_of<float16>(rows, cols, scale, center);
      case WeightFormat::fp8_e4m3:
      case WeightFormat::int8:
      case WeightFormat::int4:
      case WeightFormat::fp4_e2m1:
#if defined(MLA_EXTRA_WEIGHT_FORMAT)
      case WeightFormat::extra:
#endif
        break;
    }
    return quantised(format, rows, cols, scale, center);
  }

  // As published; norms and biases, which have another mean, stay bfloat16.
  WeightView quantised(WeightFormat format, Index rows, Index cols, double scale, double center) {
    if (rows == 1) return tensor_of<bfloat16>(rows, cols, scale, center);
    for (const Quantisation& q : kQuantisations)
      if (q.format == format) return quantised_.emplace_back(q, rows, cols, random_, scale).view();
    return {};
  }

  // Begins one element after an aligned address: a mapped file promises no more.
  template <StorageElement T>
  WeightView tensor_of(Index rows, Index cols, double scale, double center) {
    const std::vector<T> elements = random_elements<T>(rows * cols, random_, scale, center);
    AlignedBuffer<std::byte> memory((elements.size() + 1) * sizeof(T));
    std::memcpy(memory.data() + sizeof(T), elements.data(), elements.size() * sizeof(T));
    memory_.push_back(std::move(memory));
    return {memory_.back().data() + sizeof(T), kWeightFormatOf<T>, rows, cols};
  }

  WeightOptions options_;
  Random& random_;
  std::vector<AlignedBuffer<std::byte>> memory_;
  std::list<QuantisedMatrix> quantised_;
  AttentionWeights views_;
};

/// A layer with random weights.
struct TestLayer {
  explicit TestLayer(const AttentionConfig& config, const WeightOptions& options = {},
                     std::uint64_t seed = 1)
      : random(seed), weights(config, options, random), layer(config, weights.views()) {}
  TestLayer(const TestLayer&) = delete;
  TestLayer& operator=(const TestLayer&) = delete;

  const AttentionConfig& config() const noexcept { return layer.config(); }
  /// Hidden states [tokens, hidden_size], others at every call.
  RowMajorMatrix input(Index tokens) {
    return random_matrix(tokens, layer.config().hidden_size, random);
  }

  Random random;
  RandomWeights weights;
  MultiheadLatentAttention layer;
};

/// reference::forward<double>(...).output, compiled once for all tests.
DoubleMatrix reference_output(const TestLayer& layer, const RowMajorMatrix& x,
                              std::span<const Index> positions,
                              std::span<const std::uint8_t> mask = {});

/// The same where token t sees key s if selected(t, s), [tokens, tokens], is 1.
DoubleMatrix reference_output_of_selection(const TestLayer& layer, const RowMajorMatrix& x,
                                           std::span<const Index> positions,
                                           MatrixView<const std::uint8_t> selected);

/// Which keys the layer's indexer selects, reference::select_keys(index_scores<double>(...)).
std::vector<std::uint8_t> reference_selection(const TestLayer& layer, const RowMajorMatrix& x,
                                              std::span<const Index> positions);

/// What reference::forward computes.
struct ReferenceResult {
  DoubleMatrix output;  ///< [tokens, hidden_size]
  DoubleMatrix rows;    ///< [tokens, cache row width], of padding too
};
ReferenceResult reference_result(const TestLayer& layer, const RowMajorMatrix& x,
                                 std::span<const Index> positions,
                                 std::span<const std::uint8_t> mask);
/// The same in float32: how far it is from double says what rounding does to this layer.
ReferenceResult reference_result_in_float(const TestLayer& layer, const RowMajorMatrix& x,
                                          std::span<const Index> positions,
                                          std::span<const std::uint8_t> mask);
/// The output for x in double where a cache holds `rows` [tokens, cache row width].
DoubleMatrix reference_output_over(const TestLayer& layer, const RowMajorMatrix& x,
                                   std::span<const Index> positions, const DoubleMatrix& rows);

/// first, first + 1, ...
inline std::vector<Index> consecutive(Index first, Index count) {
  std::vector<Index> positions(static_cast<std::size_t>(count));
  std::iota(positions.begin(), positions.end(), first);
  return positions;
}

/// Rising positions with gaps of up to `largest_gap`.
inline std::vector<Index> with_gaps(Index count, Index largest_gap, Random& random) {
  std::vector<Index> positions;
  Index position = random.integer(0, largest_gap);
  for (Index i = 0; i < count; ++i) {
    positions.push_back(position);
    position += random.integer(1, largest_gap);
  }
  return positions;
}

/// The output for x, appended to `cache`. What forward() leaves unwritten is NaN.
inline RowMajorMatrix run(const TestLayer& layer, const Eigen::Ref<const RowMajorMatrix>& x,
                          LatentCache& cache, Context& context,
                          const ForwardOptions& options = {}) {
  RowMajorMatrix out =
      RowMajorMatrix::Constant(x.rows(), x.cols(), std::numeric_limits<float>::quiet_NaN());
  layer.layer.forward(x, cache, out, context, options);
  return out;
}

/// The output for x on a fresh cache.
template <StorageElement T>
RowMajorMatrix run_fresh(const TestLayer& layer, const Eigen::Ref<const RowMajorMatrix>& x,
                         Context& context, const ForwardOptions& options = {}) {
  LatentKVCache<T> cache(layer.config());
  return run(layer, x, cache, context, options);
}

/// Everything that can be seen of a cache's tokens, to compare by ==.
struct CacheContents {
  explicit CacheContents(const LatentCache& cache)
      : positions(cache.positions()),
        next_position(cache.next_position()),
        bytes_used(cache.bytes_used()) {
    for (Index i = 0; i < cache.size(); ++i) {
      add(cache.row(i), cache.layout().bytes);
      if (const PagedRows* keys = cache.index_keys()) add(keys->row(i), keys->layout().bytes);
    }
  }
  bool operator==(const CacheContents&) const = default;

  std::vector<Index> positions;
  Index next_position;
  std::size_t bytes_used;
  std::vector<std::byte> rows;

 private:
  void add(const std::byte* row, Index bytes) { rows.insert(rows.end(), row, row + bytes); }
};

}  // namespace mla::test

#endif  // MLA_SUPPORT_TEST_LAYER_HPP_
