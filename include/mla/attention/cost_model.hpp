#ifndef MLA_ATTENTION_COST_MODEL_HPP_
#define MLA_ATTENTION_COST_MODEL_HPP_

#include "mla/core/config.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// Which of the two equal forms of MLA attention to compute.
enum class Mode {
  automatic,     ///< whichever the cost model expects to be faster, for each sequence
  absorbed,      ///< W_UK and W_UV applied to the query and the result: best for decoding
  decompressed,  ///< keys and values made from the latents: best for long prompts
};

/// Work of the two forms for one sequence, in floating-point operations.
struct AttentionCost {
  double absorbed = 0.0;
  double decompressed = 0.0;
};

/// Costs of `tokens` new tokens after `past` cached ones, from W_UK's side of the query to W_UV's
/// side of the result. (Projections that both forms share are left out.)
inline AttentionCost attention_cost(const AttentionConfig& config, Index past,
                                    Index tokens) noexcept {
  const double heads = static_cast<double>(config.num_attention_heads);
  const double rank = static_cast<double>(config.kv_lora_rank);
  const double nope = static_cast<double>(config.qk_nope_head_dim);
  const double rope = static_cast<double>(config.qk_rope_head_dim);
  const double v = static_cast<double>(config.v_head_dim);
  const double n = static_cast<double>(tokens), before = static_cast<double>(past);
  const double pairs = n * before + n * (n + 1.0) / 2.0;  // of a query and a key that it sees

  const double expand = 2.0 * rank * (nope + v);  // kv_b_proj of one head on one row
  return {heads * (n * expand + pairs * 2.0 * (2.0 * rank + rope)),
          heads * ((before + n) * expand + pairs * 2.0 * (nope + rope + v))};
}

/// The form that Mode::automatic stands for. Depends on the sequence alone, not on its batch.
inline Mode choose_mode(const AttentionConfig& config, Index past, Index tokens) noexcept {
  const AttentionCost cost = attention_cost(config, past, tokens);
  return cost.decompressed < cost.absorbed ? Mode::decompressed : Mode::absorbed;
}

}  // namespace mla

#endif  // MLA_ATTENTION_COST_MODEL_HPP_
