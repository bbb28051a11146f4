#ifndef MLA_BASELINE_GROUPED_QUERY_LAYER_HPP_
#define MLA_BASELINE_GROUPED_QUERY_LAYER_HPP_

#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "mla/baseline/grouped_query_attention.hpp"

namespace mla::test {

using MatrixD = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Reproducible numbers, uniform in [-1, 1).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(state_ >> 40) * 0x1p-23f - 1.0f;
  }
  RowMajorMatrix matrix(Index rows, Index cols, float scale = 1.0f) {
    RowMajorMatrix m(rows, cols);
    for (Index i = 0; i < m.size(); ++i) m.data()[i] = scale * next();
    return m;
  }

 private:
  std::uint64_t state_;
};

inline WeightView view(const RowMajorMatrix& m) { return {m.data(), m.rows(), m.cols()}; }

inline std::vector<Index> positions_from(Index first, Index count) {
  std::vector<Index> positions(static_cast<std::size_t>(count));
  std::iota(positions.begin(), positions.end(), first);
  return positions;
}

/// Random weights and biases of a layer. Scores come out at a scale of 1, so that the softmax is
/// neither flat nor a maximum.
struct GroupedQueryLayer {
  explicit GroupedQueryLayer(const GroupedQueryConfig& layer_config, std::uint64_t seed = 1)
      : config(layer_config) {
    Random random(seed);
    const auto scale = [](Index inputs) { return 2.0f / std::sqrt(static_cast<float>(inputs)); };
    const Index hidden = config.hidden_size;
    q = random.matrix(config.num_attention_heads * config.head_dim, hidden, scale(hidden));
    k = random.matrix(config.num_key_value_heads * config.head_dim, hidden, scale(hidden));
    v = random.matrix(config.num_key_value_heads * config.value_dim(), hidden, scale(hidden));
    o = random.matrix(hidden, config.num_attention_heads * config.value_dim(),
                      scale(config.num_attention_heads * config.value_dim()));
    q_bias = random.matrix(1, q.rows());
    k_bias = random.matrix(1, k.rows());
    v_bias = random.matrix(1, v.rows());
    o_bias = random.matrix(1, hidden);
  }

  GroupedQueryWeights weights() const {
    return {view(q),      view(k),      view(v),      view(o),
            view(q_bias), view(k_bias), view(v_bias), view(o_bias)};
  }
  GroupedQueryAttention attention() const { return {config, weights()}; }

  /// The layer as the papers write it, in double: all heads one after the other, no cache.
  MatrixD reference(const RowMajorMatrix& x, const std::vector<Index>& positions) const {
    const auto project = [](const MatrixD& in, const RowMajorMatrix& weight,
                            const RowMajorMatrix& bias) -> MatrixD {
      return (in * weight.cast<double>().transpose()).rowwise() + bias.cast<double>().row(0);
    };
    const MatrixD input = x.cast<double>();
    const MatrixD queries = rotated(project(input, q, q_bias), positions);
    const MatrixD keys = rotated(project(input, k, k_bias), positions);
    const MatrixD values = project(input, v, v_bias);
    const Index d = config.head_dim, width = config.value_dim(), tokens = x.rows();
    MatrixD heads(tokens, config.num_attention_heads * width);
    for (Index h = 0; h < config.num_attention_heads; ++h) {
      const Index shared = h * config.num_key_value_heads / config.num_attention_heads;
      for (Index t = 0; t < tokens; ++t) {
        const Eigen::RowVectorXd scores =
            queries.row(t).segment(h * d, d) *
            keys.middleCols(shared * d, d).topRows(t + 1).transpose() /
            std::sqrt(static_cast<double>(d));
        const Eigen::RowVectorXd p = (scores.array() - scores.maxCoeff()).exp();
        heads.row(t).segment(h * width, width) =
            p * values.middleCols(shared * width, width).topRows(t + 1) / p.sum();
      }
    }
    return project(heads, o, o_bias);
  }

  GroupedQueryConfig config;
  RowMajorMatrix q, k, v, o;
  RowMajorMatrix q_bias, k_bias, v_bias, o_bias;

 private:
  MatrixD rotated(MatrixD m, const std::vector<Index>& positions) const {
    const Index half = config.rotated_dim() / 2;
    for (Index t = 0; t < m.rows(); ++t)
      for (Index first = 0; first < m.cols(); first += config.head_dim)
        for (Index i = 0; i < half; ++i) {
          const double angle =
              static_cast<double>(positions[static_cast<std::size_t>(t)]) *
              std::pow(config.rope_theta, -static_cast<double>(i) / static_cast<double>(half));
          double& a = m(t, first + (config.rope_interleave ? 2 * i : i));
          double& b = m(t, first + (config.rope_interleave ? 2 * i + 1 : i + half));
          const double rotated = a * std::cos(angle) - b * std::sin(angle);
          b = a * std::sin(angle) + b * std::cos(angle);
          a = rotated;
        }
    return m;
  }
};

/// Largest difference, relative to the largest element of `expected`.
inline double relative_error(const RowMajorMatrix& actual, const MatrixD& expected) {
  return (actual.cast<double>() - expected).cwiseAbs().maxCoeff() / expected.cwiseAbs().maxCoeff();
}

}  // namespace mla::test

#endif  // MLA_BASELINE_GROUPED_QUERY_LAYER_HPP_
