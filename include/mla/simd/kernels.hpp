#ifndef MLA_SIMD_KERNELS_HPP_
#define MLA_SIMD_KERNELS_HPP_

#include <type_traits>

#include "mla/core/float16.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/isa.hpp"

// The table of kernels: all arithmetic that is worth vector instructions, one table per instruction
// set. Kernels take raw rows and lengths; the caller slices, threads and checks. They never
// allocate, throw or print. What a kernel computes for one row (a token, or a token's head) does
// not depend on which other rows are in the same call: not in a single bit.

namespace mla::simd {

/// Keys that attend() takes at a time. Page sizes are multiples of it, so that tile boundaries, and
/// with them rounding, depend on a key's place in the sequence only.
inline constexpr Index kTileKeys = 64;

/// Tokens whose rows are packed together for linear(); see TypedKernels::pack.
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

/// Keys and values of a sequence, held in rows of pages. A key is a row's
/// [key_offset, + key_width) followed by its [tail_offset, + tail_width); a value is its
/// [value_offset, + value_width). The parts may overlap: in a latent cache the value is the
/// first part of the key.
template <class T>
struct KeyValueRows {
  const T* const* pages;
  Index page_rows;  ///< rows a page, a multiple of kTileKeys unless there is one page only
  Index row_stride;
  Index count;  ///< keys in all
  Index key_offset, key_width;
  Index tail_offset, tail_width;
  Index value_offset, value_width;
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

/// Kernels over rows of one storage type T, in float32 unless precision_of() the table's
/// instruction set says otherwise.
template <class T>
struct TypedKernels {
  /// Floats that pack() makes of x [tokens, in]; 0 where linear() reads x itself.
  Index (*packed_floats)(Index tokens, Index in) noexcept;
  /// x [tokens, in] as linear() wants to have it, aligned to a cache line. Rows from a multiple of
  /// kPackedTokens on can be packed apart, to packed_floats(first row, in).
  void (*pack)(MatrixView<const float> x, float* packed) noexcept;
  /// out[t, o] = sum_i x[t, i] * weight[o, i]: a projection by row-major weights [out, in].
  /// `packed`: x by pack(). `scratch`: linear_scratch floats, aligned to a cache line.
  void (*linear)(MatrixView<const float> x, const float* packed, MatrixView<const T> weight,
                 MatrixView<float> out, float* scratch) noexcept;
  /// out[t, c] = sum_r x[t, r] * weight[r, c]: the transposed product, absorbs W_UK into a query.
  void (*linear_transposed)(MatrixView<const float> x, MatrixView<const T> weight,
                            MatrixView<float> out) noexcept;
  /// Softmax attention of a few query rows over key rows, continuing `state`.
  void (*attend)(const QueryRows& queries, const KeyValueRows<T>& keys, float softmax_scale,
                 const SoftmaxState& state) noexcept;
  /// The same for many rows that share their keys, in another order of additions. `scratch`:
  /// attend_many_scratch() floats, aligned to a cache line.
  void (*attend_many)(const QueryRows& queries, const KeyValueRows<T>& keys, float softmax_scale,
                      const SoftmaxState& state, float* scratch) noexcept;
  /// Floats of scratch memory that attend_many() needs; key_width includes the tail.
  Index (*attend_many_scratch)(Index rows, Index key_width, Index value_width) noexcept;
  /// Keys that attend_many() takes at a time: calls that continue each other split the keys at
  /// multiples of it, or the result depends on where they do.
  Index attend_many_keys;
  /// Conversion of n elements, to nearest even.
  void (*to_float)(const T* in, Index n, float* out) noexcept;
  void (*from_float)(const float* in, Index n, T* out) noexcept;
};

struct Kernels {
  Isa isa;
  TypedKernels<float> f32;
  TypedKernels<bfloat16> bf16;
  TypedKernels<float16> f16;
  /// Floats of scratch memory that linear() needs.
  Index linear_scratch;
  /// out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]. `out` may be `x`.
  void (*rms_norm)(const float* x, const float* weight, Index n, float eps, float* out) noexcept;
  /// Rotates n/2 pairs in place: (2i, 2i+1) if interleaved, else (i, i + n/2). cos, sin: [n/2].
  void (*rotate)(float* x, const float* cos, const float* sin, Index n, bool interleaved) noexcept;

  template <StorageElement T>
  const TypedKernels<T>& of() const noexcept {
    if constexpr (std::is_same_v<T, float>)
      return f32;
    else if constexpr (std::is_same_v<T, bfloat16>)
      return bf16;
    else
      return f16;
  }
};

/// The kernels of the strongest supported instruction set that is not above `isa` and no less
/// precise.
#if defined(MLA_COMPILED)
const Kernels& kernels_for(Isa isa) noexcept;
#else
inline const Kernels& kernels_for(Isa isa) noexcept;
#endif

/// The kernels for this machine, chosen at the first call; MLA_ISA in the environment lowers them.
/// With Precision::bfloat16 they may be of an instruction set that computes so.
inline const Kernels& kernels(Precision precision = Precision::float32) noexcept {
  if (precision == Precision::float32) {
    static const Kernels& exact = kernels_for(default_isa());
    return exact;
  }
  static const Kernels& rounded = kernels_for(default_isa(Precision::bfloat16));
  return rounded;
}

}  // namespace mla::simd

// Header-only by default. With MLA_COMPILED the bodies come from the one translation unit that
// defines MLA_SOURCE (CMake target mla::compiled).
#if !defined(MLA_COMPILED) || defined(MLA_SOURCE)
#include "mla/simd/detail/kernel_bodies.hpp"  // IWYU pragma: keep
#endif

#endif  // MLA_SIMD_KERNELS_HPP_
