#ifndef MLA_IO_LOAD_ATTENTION_WEIGHTS_HPP_
#define MLA_IO_LOAD_ATTENTION_WEIGHTS_HPP_

#include <optional>
#include <string>

#include "mla/attention/attention_weights.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/tensor_reader.hpp"

namespace mla {

namespace detail {

inline void read_indexer(TensorReader& reader, const AttentionConfig& config,
                         AttentionWeights& weights) {
  const IndexerConfig& indexer = config.indexer;
  switch (indexer.type) {
    case IndexerType::none:
      return;
    case IndexerType::shared:
      for (const std::string& name : reader.names())
        if (name.starts_with("indexer.")) reader.ignore(name);
      return;
    case IndexerType::full:
      break;
  }
  const Index dim = indexer.head_dim, hidden = config.hidden_size;
  weights.indexer_wq_b =
      reader.matrix("indexer.wq_b.weight", indexer.heads * dim, config.q_lora_rank);
  weights.indexer_wk = reader.matrix("indexer.wk.weight", dim, hidden);
  weights.indexer_k_norm = reader.vector("indexer.k_norm.weight", dim);
  weights.indexer_k_norm_bias = reader.vector("indexer.k_norm.bias", dim);
  weights.indexer_weights_proj =
      reader.matrix("indexer.weights_proj.weight", indexer.heads, hidden);
}

}  // namespace detail

/// Takes the weights of one attention layer, by their published names, from a reader of its module,
/// "model.layers.0.self_attn". Where `attention_bias`, the key of config.json, is given, exactly
/// the biases that it promises must be there; without it they are taken where they are. Throws
/// std::runtime_error naming the tensor when one is missing or has another shape than the
/// configuration says. A layer that shares the selection of another has no indexer; where the file
/// has one all the same, as conversions do, it is ignored. Tensors that are left over are the
/// caller's to refuse.
inline AttentionWeights read_attention_weights(TensorReader& reader, const AttentionConfig& config,
                                               std::optional<bool> attention_bias = std::nullopt) {
  const Index hidden = config.hidden_size;
  const Index heads = config.num_attention_heads;
  const Index query_rank = config.q_lora_rank;
  const auto bias = [&](const std::string& name, Index size) {
    if (attention_bias && *attention_bias != reader.contains(name))
      reader.fail(name, *attention_bias ? " is missing, but attention_bias is true"
                                        : " is there, but attention_bias is false");
    return reader.optional_vector(name, size);
  };

  AttentionWeights weights;
  if (query_rank == 0) {
    weights.q_proj = reader.matrix("q_proj.weight", heads * config.qk_head_dim(), hidden);
  } else {
    weights.q_a_proj = reader.matrix("q_a_proj.weight", query_rank, hidden);
    weights.q_a_proj_bias = bias("q_a_proj.bias", query_rank);
    if (config.query_norm)
      weights.q_a_layernorm = reader.vector("q_a_layernorm.weight", query_rank);
    weights.q_b_proj = reader.matrix("q_b_proj.weight", heads * config.qk_head_dim(), query_rank);
  }
  const Index row_width = config.cache_row_width();
  weights.kv_a_proj_with_mqa = reader.matrix("kv_a_proj_with_mqa.weight", row_width, hidden);
  weights.kv_a_proj_with_mqa_bias = bias("kv_a_proj_with_mqa.bias", row_width);
  weights.kv_a_layernorm = reader.vector("kv_a_layernorm.weight", config.kv_lora_rank);
  weights.kv_b_proj =
      reader.matrix("kv_b_proj.weight", heads * (config.qk_nope_head_dim + config.v_head_dim),
                    config.kv_lora_rank);
  weights.o_proj = reader.matrix("o_proj.weight", hidden, heads * config.v_head_dim);
  weights.o_proj_bias = bias("o_proj.bias", hidden);
  detail::read_indexer(reader, config, weights);
  reader.ignore("rotary_emb.inv_freq");  // old files have the table, which is always computed
  return weights;
}

/// The same of the layer whose tensors begin with `prefix`, "model.layers.0.self_attn". The weights
/// are views into the checkpoint, which must outlive them. Throws std::runtime_error also for a
/// tensor of the layer that this configuration does not use.
inline AttentionWeights load_attention_weights(const Checkpoint& checkpoint,
                                               const std::string& prefix,
                                               const AttentionConfig& config,
                                               std::optional<bool> attention_bias = std::nullopt) {
  TensorReader reader = TensorReader(checkpoint).under(prefix);
  const AttentionWeights weights = read_attention_weights(reader, config, attention_bias);
  reader.refuse_unused();
  return weights;
}

}  // namespace mla

#endif  // MLA_IO_LOAD_ATTENTION_WEIGHTS_HPP_
