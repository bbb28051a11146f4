#ifndef MLA_ATTENTION_COST_MODEL_HPP_
#define MLA_ATTENTION_COST_MODEL_HPP_

#include <limits>

#include "mla/core/config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/isa.hpp"

namespace mla {

/// Which of the two equal forms of MLA attention to compute.
enum class Mode {
  automatic,     ///< whichever the cost model expects to be faster, for each sequence
  absorbed,      ///< W_UK and W_UV applied to the query and the result: best for decoding
  decompressed,  ///< keys and values made from the latents: best for long prompts
};

/// Costs of the two forms for one sequence.
struct AttentionCost {
  double absorbed = 0.0;
  double decompressed = 0.0;
};

/// Floating-point operations of `tokens` new tokens after `past` cached ones, from W_UK's side of
/// the query to W_UV's side of the result. (Projections that both forms share are left out.)
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

/// How fast a core does the parts of the two forms: operations a nanosecond, packed elements a
/// nanosecond. Only their ratios matter.
struct AttentionSpeed {
  double project;         ///< W_UK and W_UV on queries and their results
  double decompress;      ///< W_UK and W_UV on cached latents
  double attend_latents;  ///< queries on latents
  double attend_rows;     ///< the same, each query for itself: rotary keys are not shared
  double attend_heads;    ///< queries on decompressed keys and values
  double pack;            ///< latents to what the kernels read, once for each group of rows
  double tile_keys;       ///< number of keys that are computed together if one of them is seen
};

/// The speed of an instruction set's kernels. Fitted to BM_AttentionForms on one machine (see
/// docs/performance.md). The ratios of NEON and of the scalar kernels were never measured and are
/// taken to be those of AVX2, with BFMMLA to be twice as fast.
constexpr AttentionSpeed attention_speed(simd::Isa isa) noexcept {
  switch (isa) {
    case simd::Isa::avx512:
      return {123, 161, 222, 53, 155, 5.0, 64};
    case simd::Isa::avx512_bf16:
      return {130, 97, 113, 53, 102, 4.0, 256};
    case simd::Isa::amx:
      return {190, 630, 1430, 53, 427, 5.0, 256};
    case simd::Isa::neon_bf16:
      return {68, 190, 218, 40, 160, 3.6, 256};
    default:
      return {68, 95, 109, 40, 80, 3.6, 64};
  }
}

/// The same for weights and a cache of these types: those of bfloat16 have kernels of their own in
/// some instruction sets.
constexpr AttentionSpeed attention_speed(simd::Isa isa, DType weights, DType cache) noexcept {
  const auto of = [isa](DType type) {
    if (type == DType::bfloat16 || simd::precision_of(isa) == simd::Precision::float32)
      return attention_speed(isa);
    return attention_speed(isa == simd::Isa::neon_bf16 ? simd::Isa::neon : simd::Isa::avx512);
  };
  AttentionSpeed speed = of(cache);
  speed.project = of(weights).project;
  speed.decompress = of(weights).decompress;
  if (cache == DType::float32) speed.pack = std::numeric_limits<double>::infinity();  // not needed
  return speed;
}

/// The time of the two forms, in nanoseconds of a core, as attention_cost().
inline AttentionCost attention_time(const AttentionConfig& config, Index past, Index tokens,
                                    const AttentionSpeed& speed) noexcept {
  // Query rows that are computed together (with AVX-512; fewer without), and those of all heads
  // that go over the keys together (AbsorbedAttention).
  constexpr Index kBlockRows = 32, kGroupRows = 128;
  const double heads = static_cast<double>(config.num_attention_heads);
  const double rank = static_cast<double>(config.kv_lora_rank);
  const double rope = static_cast<double>(config.qk_rope_head_dim);
  const double dims = static_cast<double>(config.qk_head_dim() + config.v_head_dim);
  const double expand =
      2.0 * rank * static_cast<double>(config.qk_nope_head_dim + config.v_head_dim);
  const double n = static_cast<double>(tokens), keys = static_cast<double>(past + tokens);
  const double pairs = n * static_cast<double>(past) + n * (n + speed.tile_keys) / 2.0;

  const auto groups = [](Index rows, Index size) {
    const Index count = (rows + size - 1) / size;
    return static_cast<double>(count);
  };
  const double passes = groups(tokens * config.num_attention_heads, kGroupRows);
  const double fill = tokens == 0 ? 1.0 : groups(tokens, kBlockRows) * kBlockRows / n;
  const double latents = heads * pairs * 2.0 * (2.0 * rank + rope);
  const double attend =
      config.rope_key_per_head
          ? latents / speed.attend_rows
          : latents / speed.attend_latents + passes * keys * (2.0 * rank + rope) / speed.pack;
  return {
      heads * n * expand / speed.project + attend,
      heads * (keys * expand / speed.decompress + fill * pairs * 2.0 * dims / speed.attend_heads)};
}

/// The form that Mode::automatic stands for. Depends on the sequence alone, not on its batch.
inline Mode choose_mode(const AttentionConfig& config, Index past, Index tokens,
                        const AttentionSpeed& speed) noexcept {
  const AttentionCost time = attention_time(config, past, tokens, speed);
  return time.decompressed < time.absorbed ? Mode::decompressed : Mode::absorbed;
}

}  // namespace mla

#endif  // MLA_ATTENTION_COST_MODEL_HPP_
