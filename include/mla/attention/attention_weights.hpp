#ifndef MLA_ATTENTION_ATTENTION_WEIGHTS_HPP_
#define MLA_ATTENTION_ATTENTION_WEIGHTS_HPP_

#include <iterator>
#include <string_view>

#include "mla/core/attention_config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"

namespace mla {

/// Weights of one MLA layer under their published names. All are views [out_features, in_features]
/// in the checkpoint's own memory, which must outlive the layer; leave unused ones empty.
///
/// Query, one of:
///   q_proj                            q_lora_rank == 0
///   q_a_proj, q_a_layernorm, q_b_proj q_lora_rank > 0; q_a_layernorm only with query_norm
/// Key and value:
///   kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, o_proj
/// A model that stores the parts of a fused matrix one by one (the lesson's) sets, in its place:
///   q_b_proj           -> q_b_nope_proj, q_b_rope_proj
///   kv_a_proj_with_mqa -> kv_a_proj, k_rope_proj
///   kv_b_proj          -> k_b_proj, v_b_proj
/// Biases [1, out_features] are optional (config key attention_bias). The tensors of an indexer are
/// there exactly where AttentionConfig::indexer is IndexerType::full.
struct AttentionWeights {
  WeightView q_proj;         ///< [heads * (nope + rope), hidden_size], by head: nope, then rope
  WeightView q_a_proj;       ///< [q_lora_rank, hidden_size]
  WeightView q_a_layernorm;  ///< [1, q_lora_rank]
  WeightView q_b_proj;       ///< [heads * (nope + rope), q_lora_rank], by head: nope, then rope
  WeightView q_b_nope_proj;  ///< [heads * nope, q_lora_rank]
  WeightView q_b_rope_proj;  ///< [heads * rope, q_lora_rank]

  WeightView kv_a_proj_with_mqa;  ///< [kv_lora_rank + rope_key_width, hidden_size]
  WeightView kv_a_proj;           ///< [kv_lora_rank, hidden_size]
  WeightView k_rope_proj;         ///< [rope_key_width, hidden_size]
  WeightView kv_a_layernorm;      ///< [1, kv_lora_rank]
  WeightView kv_b_proj;           ///< [heads * (nope + v), kv_lora_rank], by head: nope, then v
  WeightView k_b_proj;            ///< [heads * nope, kv_lora_rank]
  WeightView v_b_proj;            ///< [heads * v, kv_lora_rank]

  WeightView o_proj;  ///< [hidden_size, heads * v_head_dim]

  WeightView q_a_proj_bias;
  WeightView kv_a_proj_with_mqa_bias;
  WeightView o_proj_bias;

  WeightView indexer_wq_b;          ///< [index heads * index head_dim, q_lora_rank]
  WeightView indexer_wk;            ///< [index head_dim, hidden_size]
  WeightView indexer_k_norm;        ///< [1, index head_dim]
  WeightView indexer_k_norm_bias;   ///< [1, index head_dim]
  WeightView indexer_weights_proj;  ///< [index heads, hidden_size]

  bool split_query() const noexcept { return bool(q_b_nope_proj); }
  bool split_kv_a() const noexcept { return bool(kv_a_proj); }
  bool split_kv_b() const noexcept { return bool(k_b_proj); }

  /// Throws std::invalid_argument naming the tensor that is missing, not used by this
  /// configuration, or of another shape than the configuration says.
  [[gnu::cold]] void validate(const AttentionConfig& config) const {
    const Index heads = config.num_attention_heads;
    const Index hidden = config.hidden_size;
    const Index rank = config.kv_lora_rank;
    const Index query_rank = config.q_lora_rank;
    const Index rope = config.qk_rope_head_dim;
    const bool compressed = query_rank > 0;
    const bool query_parts = q_b_nope_proj || q_b_rope_proj;
    const bool kv_a_parts = kv_a_proj || k_rope_proj;
    const bool kv_b_parts = k_b_proj || v_b_proj;

    check("q_proj", q_proj, !compressed, heads * config.qk_head_dim(), hidden);
    check("q_a_proj", q_a_proj, compressed, query_rank, hidden);
    check("q_a_layernorm", q_a_layernorm, compressed && config.query_norm, 1, query_rank);
    check("q_b_proj", q_b_proj, compressed && !query_parts, heads * config.qk_head_dim(),
          query_rank);
    check("q_b_nope_proj", q_b_nope_proj, compressed && query_parts,
          heads * config.qk_nope_head_dim, query_rank);
    check("q_b_rope_proj", q_b_rope_proj, compressed && query_parts, heads * rope, query_rank);

    check("kv_a_proj_with_mqa", kv_a_proj_with_mqa, !kv_a_parts, config.cache_row_width(), hidden);
    check("kv_a_proj", kv_a_proj, kv_a_parts, rank, hidden);
    check("k_rope_proj", k_rope_proj, kv_a_parts, config.rope_key_width(), hidden);
    check("kv_a_layernorm", kv_a_layernorm, true, 1, rank);
    check("kv_b_proj", kv_b_proj, !kv_b_parts,
          heads * (config.qk_nope_head_dim + config.v_head_dim), rank);
    check("k_b_proj", k_b_proj, kv_b_parts, heads * config.qk_nope_head_dim, rank);
    check("v_b_proj", v_b_proj, kv_b_parts, heads * config.v_head_dim, rank);

    check("o_proj", o_proj, true, hidden, heads * config.v_head_dim);

    check("q_a_proj_bias", q_a_proj_bias, bool(q_a_proj_bias) && compressed, 1, query_rank);
    check("kv_a_proj_with_mqa_bias", kv_a_proj_with_mqa_bias,
          bool(kv_a_proj_with_mqa_bias) && !kv_a_parts, 1, config.cache_row_width());
    check("o_proj_bias", o_proj_bias, bool(o_proj_bias), 1, hidden);
    validate_indexer(config);
  }

 private:
  void validate_indexer(const AttentionConfig& config) const {
    const IndexerConfig& indexer = config.indexer;
    const bool used = indexer.type == IndexerType::full;
    check("indexer.wq_b", indexer_wq_b, used, indexer.heads * indexer.head_dim, config.q_lora_rank);
    check("indexer.wk", indexer_wk, used, indexer.head_dim, config.hidden_size);
    check("indexer.k_norm", indexer_k_norm, used, 1, indexer.head_dim);
    check("indexer.k_norm_bias", indexer_k_norm_bias, used, 1, indexer.head_dim);
    check("indexer.weights_proj", indexer_weights_proj, used, indexer.heads, config.hidden_size);
  }

  static void check(const char* name, const WeightView& weight, bool used, Index rows, Index cols) {
    if (!used) {
      require(!weight, "tensor ", name, " is set, but this configuration does not use it");
      return;
    }
    require_shape(name, weight, rows, cols);
  }
};

/// A weight of AttentionWeights and its name, for who has weights by their names.
struct AttentionWeightField {
  std::string_view name;
  WeightView AttentionWeights::*field;
};
inline constexpr AttentionWeightField kAttentionWeightFields[] = {
    {"q_proj", &AttentionWeights::q_proj},
    {"q_a_proj", &AttentionWeights::q_a_proj},
    {"q_a_layernorm", &AttentionWeights::q_a_layernorm},
    {"q_b_proj", &AttentionWeights::q_b_proj},
    {"q_b_nope_proj", &AttentionWeights::q_b_nope_proj},
    {"q_b_rope_proj", &AttentionWeights::q_b_rope_proj},
    {"kv_a_proj_with_mqa", &AttentionWeights::kv_a_proj_with_mqa},
    {"kv_a_proj", &AttentionWeights::kv_a_proj},
    {"k_rope_proj", &AttentionWeights::k_rope_proj},
    {"kv_a_layernorm", &AttentionWeights::kv_a_layernorm},
    {"kv_b_proj", &AttentionWeights::kv_b_proj},
    {"k_b_proj", &AttentionWeights::k_b_proj},
    {"v_b_proj", &AttentionWeights::v_b_proj},
    {"o_proj", &AttentionWeights::o_proj},
    {"q_a_proj_bias", &AttentionWeights::q_a_proj_bias},
    {"kv_a_proj_with_mqa_bias", &AttentionWeights::kv_a_proj_with_mqa_bias},
    {"o_proj_bias", &AttentionWeights::o_proj_bias},
    {"indexer.wq_b", &AttentionWeights::indexer_wq_b},
    {"indexer.wk", &AttentionWeights::indexer_wk},
    {"indexer.k_norm", &AttentionWeights::indexer_k_norm},
    {"indexer.k_norm_bias", &AttentionWeights::indexer_k_norm_bias},
    {"indexer.weights_proj", &AttentionWeights::indexer_weights_proj},
};
static_assert(sizeof(AttentionWeights) == std::size(kAttentionWeightFields) * sizeof(WeightView));

}  // namespace mla

#endif  // MLA_ATTENTION_ATTENTION_WEIGHTS_HPP_
