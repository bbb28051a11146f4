#ifndef MLA_EXAMPLES_CONFORMANCE_LARGEST_LOGIT_HPP_
#define MLA_EXAMPLES_CONFORMANCE_LARGEST_LOGIT_HPP_

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention_case.hpp"

#include "mla/attention/low_rank.hpp"
#include "mla/core/tensor.hpp"
#include "mla/ops/rope.hpp"

namespace mla::conformance {

namespace detail {

// Queries of all rows in latent space, [rows, heads * (kv_lora_rank + rope)].
inline RowMajorMatrix latent_queries(const AttentionCase& layer) {
  const AttentionConfig& config = layer.config;
  const std::vector<Index> positions = layer.explicit_positions();
  const Index rows = layer.rows(), rope = config.qk_rope_head_dim;
  const auto view = [](auto& m) { return MatrixView(m.data(), m.rows(), m.cols()); };

  Context context(simd::kernels_for(simd::Isa::scalar));
  RowMajorMatrix cos(rows, rope / 2), sin(rows, rope / 2);
  RotaryEmbedding(config).tables(positions, view(cos), view(sin));
  RowMajorMatrix queries(rows, config.num_attention_heads * config.qk_head_dim());
  LowRankQuery(config, layer.weights->views())
      .forward(view(layer.hidden_states), {view(cos), view(sin)}, view(queries), context);
  RowMajorMatrix result(rows, config.num_attention_heads * (config.kv_lora_rank + rope));
  LatentDecompression(config, layer.weights->views()).absorb(view(queries), view(result), context);
  return result;
}

}  // namespace detail

/// The largest magnitude of softmax_scale * query . key over all heads and visible keys, by the
/// keys that the case itself states.
inline double largest_logit(const AttentionCase& layer) {
  const Index rank = layer.config.kv_lora_rank, rope = layer.config.qk_rope_head_dim;
  const RowMajorMatrix queries = detail::latent_queries(layer);
  float largest = 0.0f;
  for (Index row = 0; row < layer.rows(); ++row)
    for (Index key = row - row % layer.tokens; key <= row; ++key)
      for (Index h = 0; h < layer.config.num_attention_heads; ++h) {
        if (!layer.is_token(row) || !layer.is_token(key)) continue;
        const Index rope_key = layer.config.rope_key_per_head ? h * rope : 0;
        const auto query = queries.row(row).segment(h * (rank + rope), rank + rope);
        const float logit =
            query.head(rank).dot(layer.expected.latent.row(key)) +
            query.tail(rope).dot(layer.expected.k_pe.row(key).segment(rope_key, rope));
        largest = std::max(largest, std::abs(logit));
      }
  return softmax_scale(layer.config) * static_cast<double>(largest);
}

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_LARGEST_LOGIT_HPP_
