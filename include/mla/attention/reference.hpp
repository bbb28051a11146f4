#ifndef MLA_ATTENTION_REFERENCE_HPP_
#define MLA_ATTENTION_REFERENCE_HPP_

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "mla/attention/attention_weights.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/ops/rope.hpp"

// The specification: Multi-head Latent Attention as DeepSeek-V2's section 2.1 writes it, in plain
// Eigen expressions, for a whole sequence at once. No cache, no tricks; every fast path is tested
// against it in double.

namespace mla::reference {

template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class Scalar>
using RowVector = Eigen::Matrix<Scalar, 1, Eigen::Dynamic>;

/// Weights [rows, cols] as a matrix of Scalar; empty for an empty view.
template <class Scalar>
Matrix<Scalar> to_matrix(const WeightView& weight) {
  RowMajorMatrix matrix(weight.rows, weight.cols);
  if (weight) info_of(weight.format).widen(weight, {matrix.data(), weight.rows, weight.cols});
  return matrix.cast<Scalar>();
}

/// Queries of a sequence, by head.
template <class Scalar>
struct Queries {
  Matrix<Scalar> nope;  ///< [tokens, heads * qk_nope_head_dim]
  Matrix<Scalar> rope;  ///< [tokens, heads * qk_rope_head_dim] after rotation
};

/// All that a cache keeps of a sequence.
template <class Scalar>
struct Latents {
  Matrix<Scalar> latent;    ///< [tokens, kv_lora_rank] after the norm
  Matrix<Scalar> rope_key;  ///< [tokens, rope_key_width] after rotation
};

/// What a layer computes for a sequence.
template <class Scalar>
struct Result {
  Matrix<Scalar> output;    ///< [tokens, hidden_size]
  Matrix<Scalar> latent;    ///< [tokens, kv_lora_rank] as cached
  Matrix<Scalar> rope_key;  ///< [tokens, rope_key_width] as cached
};

/// x / sqrt(mean(x^2) + eps) * weight, row by row.
template <class Scalar>
Matrix<Scalar> rms_norm(const Matrix<Scalar>& x, const RowVector<Scalar>& weight, double eps) {
  Matrix<Scalar> y(x.rows(), x.cols());
  for (Index t = 0; t < x.rows(); ++t)
    y.row(t) = (x.row(t) / std::sqrt(x.row(t).squaredNorm() / Scalar(x.cols()) + Scalar(eps)))
                   .cwiseProduct(weight);
  return y;
}

/// Rotates each head's pairs of x [tokens, heads * dim] by the angles of the tokens' positions.
template <class Scalar>
void rotate(Eigen::Ref<Matrix<Scalar>> x, std::span<const Index> positions,
            const RotaryEmbedding& rotary, bool interleaved) {
  const Index half = static_cast<Index>(rotary.inv_freq().size());
  for (Index t = 0; t < x.rows(); ++t)
    for (Index first = 0; first < x.cols(); first += 2 * half)
      for (Index i = 0; i < half; ++i) {
        const double angle = static_cast<double>(positions[static_cast<std::size_t>(t)]) *
                             rotary.inv_freq()[static_cast<std::size_t>(i)];
        const Scalar cos = Scalar(std::cos(angle) * rotary.cos_sin_scale());
        const Scalar sin = Scalar(std::sin(angle) * rotary.cos_sin_scale());
        Scalar& a = x(t, first + (interleaved ? 2 * i : i));
        Scalar& b = x(t, first + (interleaved ? 2 * i + 1 : i + half));
        const Scalar rotated = a * cos - b * sin;
        b = a * sin + b * cos;
        a = rotated;
      }
}

/// x [tokens, n] * weight^T + bias
template <class Scalar>
Matrix<Scalar> linear(const Matrix<Scalar>& x, const WeightView& weight,
                      const WeightView& bias = {}) {
  Matrix<Scalar> y = x * to_matrix<Scalar>(weight).transpose();
  if (bias) y.rowwise() += to_matrix<Scalar>(bias).row(0);
  return y;
}

/// Which keys the rows of a sequence see, of those up to their own: 1 or 0.
///   keep      [tokens] for all rows alike; empty: all
///   selected  [tokens, tokens] of each row; empty: all
struct Mask {
  std::span<const std::uint8_t> keep = {};
  MatrixView<const std::uint8_t> selected = {};

  bool sees(Index row, Index key) const noexcept {
    return (keep.empty() || keep[static_cast<std::size_t>(key)]) &&
           (!selected.data || selected(row, key));
  }
};

/// (x - mean) / sqrt(variance + eps) * weight + bias, row by row.
template <class Scalar>
Matrix<Scalar> layer_norm(const Matrix<Scalar>& x, const RowVector<Scalar>& weight,
                          const RowVector<Scalar>& bias, double eps) {
  Matrix<Scalar> y(x.rows(), x.cols());
  for (Index t = 0; t < x.rows(); ++t) {
    const RowVector<Scalar> centred = x.row(t).array() - x.row(t).mean();
    const Scalar variance = centred.squaredNorm() / Scalar(x.cols());
    y.row(t) = (centred / std::sqrt(variance + Scalar(eps))).cwiseProduct(weight) + bias;
  }
  return y;
}

/// Softmax attention of one head: queries and keys [tokens, d], values [tokens, v]. Row t sees the
/// keys up to t that `mask` allows; a row that sees none is 0.
template <class Scalar>
Matrix<Scalar> causal_attention(const Matrix<Scalar>& q, const Matrix<Scalar>& k,
                                const Matrix<Scalar>& v, Scalar scale, const Mask& mask) {
  Matrix<Scalar> out = Matrix<Scalar>::Zero(q.rows(), v.cols());
  for (Index t = 0; t < q.rows(); ++t) {
    RowVector<Scalar> scores = scale * q.row(t) * k.topRows(t + 1).transpose();
    for (Index s = 0; s <= t; ++s)
      if (!mask.sees(t, s)) scores(s) = -std::numeric_limits<Scalar>::infinity();
    const Scalar peak = scores.maxCoeff();
    if (peak == -std::numeric_limits<Scalar>::infinity()) continue;
    const RowVector<Scalar> p = (scores.array() - peak).exp();
    out.row(t) = p * v.topRows(t + 1) / p.sum();
  }
  return out;
}

/// The normalised query latent [tokens, q_lora_rank] of x [tokens, hidden_size]; x itself where
/// queries are not compressed.
template <class Scalar>
Matrix<Scalar> query_latent(const AttentionConfig& config, const AttentionWeights& weights,
                            const Matrix<Scalar>& x) {
  Matrix<Scalar> c_q = x;
  if (config.q_lora_rank > 0) c_q = linear(x, weights.q_a_proj, weights.q_a_proj_bias);
  if (weights.q_a_layernorm)
    c_q = Scalar(config.q_latent_scale) *
          rms_norm<Scalar>(c_q, to_matrix<Scalar>(weights.q_a_layernorm).row(0),
                           config.q_a_layernorm_eps);
  return c_q;
}

/// Queries of x [tokens, hidden_size]: compressed, normalised, expanded; the rotary part of each
/// head rotated.
template <class Scalar>
Queries<Scalar> queries(const AttentionConfig& config, const AttentionWeights& weights,
                        const Matrix<Scalar>& x, std::span<const Index> positions) {
  const Index heads = config.num_attention_heads, tokens = x.rows();
  const Index nope = config.qk_nope_head_dim, rope = config.qk_rope_head_dim;
  const Matrix<Scalar> c_q = query_latent(config, weights, x);
  Queries<Scalar> q = {Matrix<Scalar>(tokens, heads * nope), Matrix<Scalar>(tokens, heads * rope)};
  if (weights.split_query()) {
    q.nope = linear(c_q, weights.q_b_nope_proj);
    q.rope = linear(c_q, weights.q_b_rope_proj);
  } else {
    const Matrix<Scalar> both =
        linear(c_q, config.q_lora_rank > 0 ? weights.q_b_proj : weights.q_proj);
    for (Index h = 0; h < heads; ++h) {
      q.nope.middleCols(h * nope, nope) = both.middleCols(h * (nope + rope), nope);
      q.rope.middleCols(h * rope, rope) = both.middleCols(h * (nope + rope) + nope, rope);
    }
  }
  rotate<Scalar>(q.rope, positions, RotaryEmbedding(config), config.rope_interleave);
  for (Index t = 0; t < tokens; ++t) {
    const auto temperature =
        static_cast<Scalar>(config.query_temperature(positions[static_cast<std::size_t>(t)]));
    q.nope.row(t) *= temperature;
    q.rope.row(t) *= temperature;
  }
  return q;
}

/// Latents and rotary keys of x [tokens, hidden_size].
template <class Scalar>
Latents<Scalar> latents(const AttentionConfig& config, const AttentionWeights& weights,
                        const Matrix<Scalar>& x, std::span<const Index> positions) {
  Latents<Scalar> kv;
  if (weights.split_kv_a()) {
    kv = {linear(x, weights.kv_a_proj), linear(x, weights.k_rope_proj)};
  } else {
    const Matrix<Scalar> both =
        linear(x, weights.kv_a_proj_with_mqa, weights.kv_a_proj_with_mqa_bias);
    kv = {both.leftCols(config.kv_lora_rank), both.rightCols(config.rope_key_width())};
  }
  kv.latent = Scalar(config.kv_latent_scale) *
              rms_norm<Scalar>(kv.latent, to_matrix<Scalar>(weights.kv_a_layernorm).row(0),
                               config.kv_a_layernorm_eps);
  rotate<Scalar>(kv.rope_key, positions, RotaryEmbedding(config), config.rope_interleave);
  return kv;
}

/// Index keys [tokens, index_head_dim] of x [tokens, hidden_size]: one for all index heads, its
/// first qk_rope_head_dim numbers rotated.
template <class Scalar>
Matrix<Scalar> index_keys(const AttentionConfig& config, const AttentionWeights& weights,
                          const Matrix<Scalar>& x, std::span<const Index> positions) {
  Matrix<Scalar> keys = layer_norm<Scalar>(
      linear(x, weights.indexer_wk), to_matrix<Scalar>(weights.indexer_k_norm).row(0),
      to_matrix<Scalar>(weights.indexer_k_norm_bias).row(0), config.indexer.k_norm_eps);
  Matrix<Scalar> rotated = keys.leftCols(config.qk_rope_head_dim);
  rotate<Scalar>(rotated, positions, RotaryEmbedding(config), config.indexer.rope_interleave);
  keys.leftCols(config.qk_rope_head_dim) = rotated;
  return keys;
}

/// Scores [tokens, tokens] of index keys (columns) for tokens (rows); 0 for keys that come later.
template <class Scalar>
Matrix<Scalar> index_scores(const AttentionConfig& config, const AttentionWeights& weights,
                            const Matrix<Scalar>& x, std::span<const Index> positions) {
  const Index heads = config.indexer.heads, dim = config.indexer.head_dim, tokens = x.rows();
  const Matrix<Scalar> keys = index_keys(config, weights, x, positions);
  const Matrix<Scalar> queries = linear(query_latent(config, weights, x), weights.indexer_wq_b);
  const Scalar scale = Scalar(1) / std::sqrt(Scalar(heads) * Scalar(dim));
  const Matrix<Scalar> factors = scale * linear(x, weights.indexer_weights_proj);
  Matrix<Scalar> scores = Matrix<Scalar>::Zero(tokens, tokens);
  for (Index h = 0; h < heads; ++h) {
    Matrix<Scalar> query = queries.middleCols(h * dim, dim);
    Matrix<Scalar> rotated = query.leftCols(config.qk_rope_head_dim);
    rotate<Scalar>(rotated, positions, RotaryEmbedding(config), config.indexer.rope_interleave);
    query.leftCols(config.qk_rope_head_dim) = rotated;
    const Matrix<Scalar> products = (query * keys.transpose()).cwiseMax(Scalar(0));
    for (Index t = 0; t < tokens; ++t)
      scores.row(t).head(t + 1) += factors(t, h) * products.row(t).head(t + 1);
  }
  return scores;
}

/// Which keys sparse attention leaves, [tokens, tokens] of 1 and 0, row by row: for each token the
/// `topk` of the keys up to its own with the highest scores, of equal ones the earlier.
template <class Scalar>
std::vector<std::uint8_t> select_keys(const Matrix<Scalar>& scores, Index topk) {
  const Index tokens = scores.rows();
  std::vector<std::uint8_t> selected(static_cast<std::size_t>(tokens * tokens));
  for (Index t = 0; t < tokens; ++t) {
    std::vector<Index> keys(static_cast<std::size_t>(t + 1));
    std::iota(keys.begin(), keys.end(), Index{0});
    std::ranges::stable_sort(keys, std::ranges::greater(), [&](Index s) { return scores(t, s); });
    for (Index k = 0; k < std::min(topk, t + 1); ++k)
      selected[static_cast<std::size_t>(t * tokens + keys[static_cast<std::size_t>(k)])] = 1;
  }
  return selected;
}

/// Keys and values of each head from the latents, ordinary attention, o_proj: [tokens,
/// hidden_size].
template <class Scalar>
Matrix<Scalar> attend(const AttentionConfig& config, const AttentionWeights& weights,
                      const Queries<Scalar>& query, const Latents<Scalar>& kv, const Mask& mask) {
  const Index heads = config.num_attention_heads, tokens = kv.latent.rows();
  const Index nope = config.qk_nope_head_dim, rope = config.qk_rope_head_dim;
  const Index v = config.v_head_dim;
  Matrix<Scalar> keys(tokens, heads * nope), values(tokens, heads * v);
  if (weights.split_kv_b()) {
    keys = linear(kv.latent, weights.k_b_proj);
    values = linear(kv.latent, weights.v_b_proj);
  } else {
    const Matrix<Scalar> both = linear(kv.latent, weights.kv_b_proj);
    for (Index h = 0; h < heads; ++h) {
      keys.middleCols(h * nope, nope) = both.middleCols(h * (nope + v), nope);
      values.middleCols(h * v, v) = both.middleCols(h * (nope + v) + nope, v);
    }
  }
  Matrix<Scalar> heads_out(tokens, heads * v);
  for (Index h = 0; h < heads; ++h) {
    const Index rope_first = config.rope_key_per_head ? h * rope : 0;
    Matrix<Scalar> q(tokens, nope + rope), k(tokens, nope + rope);
    q << query.nope.middleCols(h * nope, nope), query.rope.middleCols(h * rope, rope);
    k << keys.middleCols(h * nope, nope), kv.rope_key.middleCols(rope_first, rope);
    heads_out.middleCols(h * v, v) = causal_attention<Scalar>(q, k, values.middleCols(h * v, v),
                                                              Scalar(softmax_scale(config)), mask);
  }
  return linear(heads_out, weights.o_proj, weights.o_proj_bias);
}

/// One layer over a sequence x [tokens, hidden_size].
///   positions  [tokens]
///   mask       keep: 1 for a token, 0 for padding; selected: by sparse attention. A layer with an
///              indexer of its own selects by itself, without padding
template <class Scalar>
Result<Scalar> forward(const AttentionConfig& config, const AttentionWeights& weights,
                       const Matrix<Scalar>& x, std::span<const Index> positions,
                       const Mask& mask = {}) {
  const Latents<Scalar> kv = latents(config, weights, x, positions);
  std::vector<std::uint8_t> selected;
  Mask seen = mask;
  if (config.indexer.type == IndexerType::full) {
    selected = select_keys(index_scores(config, weights, x, positions), config.indexer.topk);
    seen.selected = {selected.data(), x.rows(), x.rows()};
  }
  return {attend(config, weights, queries(config, weights, x, positions), kv, seen), kv.latent,
          kv.rope_key};
}

}  // namespace mla::reference

#endif  // MLA_ATTENTION_REFERENCE_HPP_
