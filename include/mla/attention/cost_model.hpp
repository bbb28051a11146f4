#ifndef MLA_ATTENTION_COST_MODEL_HPP_
#define MLA_ATTENTION_COST_MODEL_HPP_

#include <limits>

#include "mla/core/attention_config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/isa.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// Which of the two equal forms of MLA attention to compute.
enum class AttentionForm {
  automatic,     ///< whichever the cost model expects to be faster, for each sequence
  absorbed,      ///< W_UK and W_UV applied to the query and the result: best for decoding
  decompressed,  ///< keys and values made from the latents: best for long prompts
};
using Mode = AttentionForm;  ///< its older name

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
  double attend_latents;  ///< absorbed attention, keys shared by all heads
  double attend_rows;     ///< absorbed attention, a rotary key per head
  double attend_heads;    ///< attention on decompressed keys and values
  double pack;            ///< latents to what the kernels read, once per group of rows
  double tile_keys;       ///< number of keys that are computed together if one of them is seen
};

/// The speed of an instruction set's kernels that round as `arithmetic` says. Fitted to
/// BM_AttentionForms on one machine (see docs/performance.md). The ratios of NEON and of the scalar
/// kernels were never measured and are taken to be those of AVX2, with BFMMLA to be twice as fast.
constexpr AttentionSpeed attention_speed(simd::Isa isa, simd::Arithmetic arithmetic) noexcept {
  constexpr AttentionSpeed kAvx512 = {.project = 123,
                                      .decompress = 161,
                                      .attend_latents = 222,
                                      .attend_rows = 53,
                                      .attend_heads = 155,
                                      .pack = 5.0,
                                      .tile_keys = 64};
  constexpr AttentionSpeed kAvx2 = {.project = 68,
                                    .decompress = 95,
                                    .attend_latents = 109,
                                    .attend_rows = 40,
                                    .attend_heads = 80,
                                    .pack = 3.6,
                                    .tile_keys = 64};
  const bool float32 = arithmetic == simd::Arithmetic::float32;
  switch (isa) {
    case simd::Isa::avx512:
      return kAvx512;
    case simd::Isa::avx512_bf16:
      if (float32) return kAvx512;
      return {.project = 130,
              .decompress = 97,
              .attend_latents = 113,
              .attend_rows = 53,
              .attend_heads = 102,
              .pack = 4.0,
              .tile_keys = 256};
    case simd::Isa::amx:
      if (float32) return kAvx512;
      return {.project = 190,
              .decompress = 630,
              .attend_latents = 1430,
              .attend_rows = 53,
              .attend_heads = 427,
              .pack = 5.0,
              .tile_keys = 256};
    case simd::Isa::neon_bf16:
      if (float32) return kAvx2;
      return {.project = 68,
              .decompress = 190,
              .attend_latents = 218,
              .attend_rows = 40,
              .attend_heads = 160,
              .pack = 3.6,
              .tile_keys = 256};
    case simd::Isa::scalar:
    case simd::Isa::avx2:
    case simd::Isa::neon:
      return kAvx2;
  }
  __builtin_unreachable();
}

/// The same where products with weights and with the cache round differently.
constexpr AttentionSpeed attention_speed(simd::Isa isa, simd::Arithmetic weights,
                                         simd::Arithmetic rows, CacheFormat cache) noexcept {
  const AttentionSpeed products = attention_speed(isa, weights);
  AttentionSpeed speed = attention_speed(isa, rows);
  speed.project = products.project;
  speed.decompress = products.decompress;
  // Rows of float32 are read where they lie.
  if (cache == CacheFormat::float32) speed.pack = std::numeric_limits<double>::infinity();
  return speed;
}

/// The same for weights and a cache of these formats, each with its own entry of the table.
inline AttentionSpeed attention_speed(const simd::Kernels& kernels, WeightFormat weights,
                                      CacheFormat cache) noexcept {
  return attention_speed(kernels.isa, kernels.of(weights).arithmetic, kernels.of(cache).arithmetic,
                         cache);
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

/// The form that AttentionForm::automatic stands for. Depends on the sequence alone, not on its
/// batch.
inline AttentionForm choose_mode(const AttentionConfig& config, Index past, Index tokens,
                                 const AttentionSpeed& speed) noexcept {
  const AttentionCost time = attention_time(config, past, tokens, speed);
  return time.decompressed < time.absorbed ? AttentionForm::decompressed : AttentionForm::absorbed;
}

}  // namespace mla

#endif  // MLA_ATTENTION_COST_MODEL_HPP_
