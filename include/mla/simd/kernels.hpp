#ifndef MLA_SIMD_KERNELS_HPP_
#define MLA_SIMD_KERNELS_HPP_

#include <cstddef>

#include "mla/core/cache_format.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/simd/isa.hpp"

// The table of kernels: all arithmetic that is worth vector instructions, one table per instruction
// set. Kernels take raw rows and lengths; the caller slices, threads and checks. They never
// allocate, throw or print. What a kernel computes for one row (a token, or a token's head) does
// not depend on which other rows are in the same call: not in a single bit.

namespace mla::simd {

/// Keys that attend() takes at a time. Page sizes are multiples of it, so that tile boundaries, and
/// with them rounding, depend on a key's place in the sequence only.
inline constexpr Index kTileKeys = 64;

/// Tokens whose rows are packed together for linear(); see LinearKernels::pack.
inline constexpr Index kPackedTokens = 16;

/// Output features that are best given to one call of linear().
inline constexpr Index kTaskOutputs = 64;

/// Rows of queries [rows, key_width + tail_width] and how much of the sequence each may see.
struct QueryRows {
  const float* data;
  Index stride;
  Index rows;
  const Index* visible;  ///< [rows] keys that a row sees, counted from the first; 0 is allowed
};

/// Keys and values of a sequence, held in rows of pages. A key is a row's numbers
/// [key_offset, + key_width) followed by its [tail_offset, + tail_width); a value is its
/// [value_offset, + value_width). The parts may overlap: in a latent cache the value is the
/// first part of the key.
struct KeyValueRows {
  const std::byte* const* pages = nullptr;
  Index page_rows = 0;    ///< rows per page, a multiple of kTileKeys unless there is one page only
  Index page_offset = 0;  ///< bytes of a page before its first row
  RowLayout layout = {};  ///< of a row; rows follow each other
  Index count = 0;        ///< keys in all
  Index key_offset = 0, key_width = 0;
  Index tail_offset = 0, tail_width = 0;
  Index value_offset = 0, value_width = 0;
  /// Rows that are the keys, in this order: [count] numbers, counted from `first_row`. nullptr:
  /// rows 0 to count - 1.
  const Index* selected = nullptr;
  Index first_row = 0;  ///< rows of the first page that come before those that are counted here

  /// The bytes of key k. Every kernel reads rows through this.
  const std::byte* row_of(Index k) const noexcept {
    const Index row = first_row + (selected ? selected[k] : k);
    return pages[row / page_rows] + page_offset + row % page_rows * layout.bytes;
  }
};

/// What the online softmax knows of each query row so far. Before the first key: maximum -inf,
/// sum 0, out 0. After the last: out / sum is the attention, and
/// (maximum + log2(sum)) * ln 2 the log-sum-exp of the scaled scores.
struct SoftmaxState {
  float* maximum;  ///< [rows] of softmax_scale * log2(e) * score
  float* sum;      ///< [rows] of 2^(score - maximum)
  float* out;      ///< [rows, value_width]
  Index out_stride;
};

/// Products with weights of one format. What they compute is defined by the weights decoded to
/// float32 (WeightFormatInfo::widen): bit for bit the product with those in the arithmetic that the
/// entry says, whatever the format.
struct LinearKernels {
  /// What linear() rounds. linear_transposed() computes in float32 always.
  Arithmetic arithmetic;
  /// Floats that pack() makes of x [tokens, in]; 0 where linear() reads x itself.
  Index (*packed_floats)(Index tokens, Index in) noexcept;
  /// x [tokens, in] as linear() wants to have it, aligned to a cache line. Rows from a multiple of
  /// kPackedTokens on can be packed apart, to packed_floats(first row, in).
  void (*pack)(MatrixView<const float> x, float* packed) noexcept;
  /// out[t, o] = sum_i x[t, i] * weight[o, i]: a projection by row-major weights [out, in].
  /// `packed`: x by pack(). `scratch`: linear_scratch floats, aligned to a cache line.
  void (*linear)(MatrixView<const float> x, const float* packed, const WeightView& weight,
                 MatrixView<float> out, float* scratch) noexcept;
  /// out[t, c] = sum_r x[t, r] * weight[r, c]: the transposed product, absorbs W_UK into a query.
  /// `scratch`: linear_scratch floats, aligned to a cache line.
  void (*linear_transposed)(MatrixView<const float> x, const WeightView& weight,
                            MatrixView<float> out, float* scratch) noexcept;
  /// out[r, c] = weight[r, c] in float32, scale applied.
  void (*widen)(const WeightView& weight, MatrixView<float> out) noexcept;
};

/// Attention over cached rows of one format: by definition attention over the decoded rows
/// (CacheFormatInfo::widen), in bfloat16 arithmetic over these rounded to bfloat16.
struct CacheKernels {
  /// What attend_many() rounds. attend() computes in float32 always.
  Arithmetic arithmetic;
  /// row [layout.width()] of float32 -> its bytes, the same from every table; and back to what
  /// attend_many() computes with: rounded to bfloat16 where it rounds.
  void (*encode)(const RowLayout& layout, const float* row, std::byte* bytes) noexcept;
  void (*widen)(const RowLayout& layout, const std::byte* bytes, float* row) noexcept;
  /// Softmax attention of a few query rows over key rows, continuing `state`. `scratch`:
  /// attend_scratch() floats, aligned to a cache line.
  void (*attend)(const QueryRows& queries, const KeyValueRows& keys, float softmax_scale,
                 const SoftmaxState& state, float* scratch) noexcept;
  /// Floats of scratch memory that attend() needs; key_width includes the tail.
  Index (*attend_scratch)(const RowLayout& layout, Index key_width, Index value_width) noexcept;
  /// The same for many rows that share their keys, in another order of additions. `scratch`:
  /// attend_many_scratch() floats, aligned to a cache line.
  void (*attend_many)(const QueryRows& queries, const KeyValueRows& keys, float softmax_scale,
                      const SoftmaxState& state, float* scratch) noexcept;
  /// Floats of scratch memory that attend_many() needs; key_width includes the tail.
  Index (*attend_many_scratch)(const RowLayout& layout, Index rows, Index key_width,
                               Index value_width) noexcept;
  /// Keys that attend_many() takes at a time: calls that continue each other split the keys at
  /// multiples of it, or the result depends on where they do.
  Index attend_many_keys;
  /// Keys of a sequence that are best attended in one call, where several calls can share a
  /// sequence; a multiple of attend_many_keys and of a page's rows.
  Index part_keys = 1024;
};

/// The index queries of a token in sparse attention, and the weights of their heads.
struct IndexQueries {
  MatrixView<const float> rows;   ///< [index heads, head_dim]
  const float* packed = nullptr;  ///< these and the weights by IndexKernels::pack
};

/// Scores of cached index keys of one format (IndexerConfig says what they are): by definition of
/// the decoded keys, in bfloat16 arithmetic of these and the queries rounded to bfloat16. The score
/// of a key depends on no other key.
struct IndexKernels {
  Arithmetic arithmetic;  ///< what score() rounds
  /// Floats that pack() makes of queries [heads, width].
  Index (*packed_floats)(Index heads, Index width) noexcept;
  /// queries [heads, width] and weights [heads] as score() wants to have them, aligned to a cache
  /// line.
  void (*pack)(MatrixView<const float> queries, const float* weights, float* packed) noexcept;
  /// scores[k] = sum over h of weights[h] * max(0, queries[h] . key k) for all keys.count keys,
  /// whose key_width is the queries' width, without a tail. `scratch`: scratch() floats, aligned to
  /// a cache line.
  void (*score)(const IndexQueries& queries, const KeyValueRows& keys, float* scores,
                float* scratch) noexcept;
  Index (*scratch)(const RowLayout& layout, Index heads, Index width) noexcept;
};

/// All kernels of an instruction set: the best for each format that the machine has and the
/// arithmetic allows.
struct Kernels {
  Isa isa;
  LinearKernels weights[kWeightFormatCount];   ///< by WeightFormat
  CacheKernels caches[kCacheFormatCount];      ///< by CacheFormat
  IndexKernels index_keys[kCacheFormatCount];  ///< by CacheFormat
  /// Floats of scratch memory that linear() and linear_transposed() need.
  Index linear_scratch;
  /// out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]. `out` may be `x`.
  void (*rms_norm)(const float* x, const float* weight, Index n, float eps, float* out) noexcept;
  /// Rotates n/2 pairs in place: (2i, 2i+1) if interleaved, else (i, i + n/2). cos, sin: [n/2].
  void (*rotate)(float* x, const float* cos, const float* sin, Index n, bool interleaved) noexcept;

  constexpr const LinearKernels& of(WeightFormat format) const noexcept {
    return weights[static_cast<std::size_t>(format)];
  }
  constexpr LinearKernels& of(WeightFormat format) noexcept {
    return weights[static_cast<std::size_t>(format)];
  }
  constexpr const CacheKernels& of(CacheFormat format) const noexcept {
    return caches[static_cast<std::size_t>(format)];
  }
  constexpr CacheKernels& of(CacheFormat format) noexcept {
    return caches[static_cast<std::size_t>(format)];
  }
  constexpr const IndexKernels& of_index_keys(CacheFormat format) const noexcept {
    return index_keys[static_cast<std::size_t>(format)];
  }
  constexpr IndexKernels& of_index_keys(CacheFormat format) noexcept {
    return index_keys[static_cast<std::size_t>(format)];
  }
};

/// The kernels of the best supported instruction set that is not above `isa` and rounds no more
/// than `arithmetic` allows; without it, no more than the kernels of `isa` do.
#if defined(MLA_COMPILED)
const Kernels& kernels_for(Isa isa, Arithmetic arithmetic) noexcept;
#else
inline const Kernels& kernels_for(Isa isa, Arithmetic arithmetic) noexcept;
#endif
inline const Kernels& kernels_for(Isa isa) noexcept { return kernels_for(isa, arithmetic_of(isa)); }

/// The kernels for this machine, chosen at the first call; MLA_ISA in the environment lowers them.
inline const Kernels& kernels(Arithmetic arithmetic = Arithmetic::float32) noexcept {
  if (arithmetic == Arithmetic::float32) {
    static const Kernels& exact = kernels_for(default_isa(), Arithmetic::float32);
    return exact;
  }
  // No kernel computes with 8-bit numbers yet.
  static const Kernels& rounded =
      kernels_for(default_isa(Arithmetic::bfloat16), Arithmetic::bfloat16);
  return rounded;
}

}  // namespace mla::simd

// Header-only by default. With MLA_COMPILED the bodies come from the one translation unit that
// defines MLA_SOURCE (CMake target mla::compiled).
#if !defined(MLA_COMPILED) || defined(MLA_SOURCE)
#include "mla/simd/detail/kernel_bodies.hpp"  // IWYU pragma: keep
#endif

#endif  // MLA_SIMD_KERNELS_HPP_
