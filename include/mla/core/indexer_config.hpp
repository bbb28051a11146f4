#ifndef MLA_CORE_INDEXER_CONFIG_HPP_
#define MLA_CORE_INDEXER_CONFIG_HPP_

#include <cmath>
#include <cstdint>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// Who selects the keys that a layer's tokens see.
enum class IndexerType : std::uint8_t {
  none,    ///< nobody: every token sees all keys up to its own
  full,    ///< the layer's own indexer
  shared,  ///< the indexer of the last layer before it that has one, in the same call
};

/// DeepSeek Sparse Attention (DeepSeek-V3.2): an indexer scores all keys that a token may see, and
/// the token attends to the best `topk` of them. Names in messages are those of config.json.
///   key[s]      = rotate(layer_norm(wk * x[s]))              [head_dim], one for all heads
///   query[t]    = rotate(wq_b * q_a_layernorm(q_a_proj * x[t]))   [heads, head_dim]
///   weight[t]   = (weights_proj * x[t]) * heads^-0.5 * head_dim^-0.5
///   score[t, s] = sum over h of weight[t, h] * max(0, query[t, h] . key[s])
/// The first qk_rope_head_dim numbers of a query or key are rotated, by the layer's frequencies.
struct IndexerConfig {
  IndexerType type = IndexerType::none;
  Index heads = 0;               ///< index_n_heads
  Index head_dim = 0;            ///< index_head_dim
  Index topk = 0;                ///< index_topk: keys that a token sees at most
  bool rope_interleave = false;  ///< pairs (2i, 2i+1) as GLM-5; false: (i, i + dim/2) as V3.2
  double k_norm_eps = 1e-6;      ///< of the keys' LayerNorm

  bool operator==(const IndexerConfig&) const = default;

  /// Whether tokens see a selection.
  explicit operator bool() const noexcept { return type != IndexerType::none; }
  /// Numbers of an index key, which is cached beside the latent; 0: there is none.
  Index key_width() const noexcept { return type == IndexerType::full ? head_dim : 0; }

  /// Throws std::invalid_argument naming the first field that does not fit a layer with these dims.
  void validate(Index q_lora_rank, Index qk_rope_head_dim) const {
    if (type == IndexerType::none) return;
    require(type == IndexerType::full || type == IndexerType::shared,
            "indexer.type must be an IndexerType, got ", static_cast<int>(type));
    check_size("index_n_heads", heads);
    check_size("index_head_dim", head_dim);
    check_size("index_topk", topk);
    require(head_dim >= qk_rope_head_dim, "index_head_dim must be at least qk_rope_head_dim ",
            qk_rope_head_dim, ", got ", head_dim);
    require(q_lora_rank > 0, "an indexer needs compressed queries, but q_lora_rank is 0");
    require(std::isfinite(k_norm_eps) && k_norm_eps >= 0.0,
            "indexer.k_norm_eps must not be negative, got ", k_norm_eps);
  }

 private:
  static void check_size(const char* field, Index value) {
    constexpr Index kMost = Index{1} << 24;
    require(value > 0 && value <= kMost, field, " must be between 1 and ", kMost, ", got ", value);
  }
};

}  // namespace mla

#endif  // MLA_CORE_INDEXER_CONFIG_HPP_
