#ifndef MLA_IO_LOAD_ATTENTION_WEIGHTS_HPP_
#define MLA_IO_LOAD_ATTENTION_WEIGHTS_HPP_

#include <optional>
#include <set>
#include <string>

#include "mla/attention/weights.hpp"
#include "mla/core/config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/checkpoint.hpp"

namespace mla {

namespace detail {

/// Takes the tensors of one attention layer out of a checkpoint and remembers which.
class AttentionLoader {
 public:
  AttentionLoader(const Checkpoint& checkpoint, const std::string& prefix)
      : checkpoint_(checkpoint), prefix_(prefix + ".") {}

  WeightView matrix(const std::string& name, Index rows, Index cols) {
    const std::string weight = take(name + ".weight");
    const WeightView view = checkpoint_.matrix(weight, rows, cols);
    if (checkpoint_.tensor(weight).dtype == SafetensorsDType::float8_e4m3)
      take(name + ".weight_scale_inv");
    return view;
  }
  WeightView norm(const std::string& name, Index size) {
    return checkpoint_.vector(take(name + ".weight"), size);
  }
  WeightView optional_bias(const std::string& name, Index size) {
    if (!checkpoint_.contains(prefix_ + name + ".bias")) return {};
    return checkpoint_.vector(take(name + ".bias"), size);
  }

  /// A tensor that is left over belongs to another kind of attention.
  void refuse_unused() const {
    for (const std::string& name : checkpoint_.names(prefix_)) {
      if (taken_.contains(name) || name == prefix_ + "rotary_emb.inv_freq") continue;
      throw_runtime(checkpoint_.path(), ": tensor ", name, " is not used by this configuration");
    }
  }

 private:
  std::string take(const std::string& name) { return *taken_.insert(prefix_ + name).first; }

  const Checkpoint& checkpoint_;
  std::string prefix_;
  std::set<std::string> taken_;
};

}  // namespace detail

/// The weights of one attention layer under their published names, `prefix` being
/// "model.layers.0.self_attn". They are views into the checkpoint, which must outlive them; fp8
/// weights are decoded here. Throws std::runtime_error naming the tensor when one is missing, has
/// another shape than the configuration says, or is not used by it; and a bias that is there or
/// missing against what `attention_bias`, the key of config.json, says. Without it, biases are
/// taken where they are.
inline AttentionWeights load_attention_weights(const Checkpoint& checkpoint,
                                               const std::string& prefix,
                                               const AttentionConfig& config,
                                               std::optional<bool> attention_bias = std::nullopt) {
  const Index hidden = config.hidden_size;
  const Index heads = config.num_attention_heads;
  const Index query_rank = config.q_lora_rank;
  detail::AttentionLoader loader(checkpoint, prefix);
  AttentionWeights weights;
  if (query_rank == 0) {
    weights.q_proj = loader.matrix("q_proj", heads * config.qk_head_dim(), hidden);
  } else {
    weights.q_a_proj = loader.matrix("q_a_proj", query_rank, hidden);
    weights.q_a_proj_bias = loader.optional_bias("q_a_proj", query_rank);
    if (config.query_norm) weights.q_a_layernorm = loader.norm("q_a_layernorm", query_rank);
    weights.q_b_proj = loader.matrix("q_b_proj", heads * config.qk_head_dim(), query_rank);
  }
  weights.kv_a_proj_with_mqa =
      loader.matrix("kv_a_proj_with_mqa", config.cache_row_width(), hidden);
  weights.kv_a_proj_with_mqa_bias =
      loader.optional_bias("kv_a_proj_with_mqa", config.cache_row_width());
  weights.kv_a_layernorm = loader.norm("kv_a_layernorm", config.kv_lora_rank);
  weights.kv_b_proj = loader.matrix(
      "kv_b_proj", heads * (config.qk_nope_head_dim + config.v_head_dim), config.kv_lora_rank);
  weights.o_proj = loader.matrix("o_proj", hidden, heads * config.v_head_dim);
  weights.o_proj_bias = loader.optional_bias("o_proj", hidden);
  loader.refuse_unused();
  const auto check = [&](const char* name, const WeightView& bias) {
    if (attention_bias && bool(bias) != *attention_bias)
      throw_runtime(checkpoint.path(), ": tensor ", prefix, ".", name,
                    *attention_bias ? " is missing, but attention_bias is true"
                                    : " is there, but attention_bias is false");
  };
  if (weights.q_a_proj) check("q_a_proj.bias", weights.q_a_proj_bias);
  check("kv_a_proj_with_mqa.bias", weights.kv_a_proj_with_mqa_bias);
  check("o_proj.bias", weights.o_proj_bias);
  return weights;
}

}  // namespace mla

#endif  // MLA_IO_LOAD_ATTENTION_WEIGHTS_HPP_
