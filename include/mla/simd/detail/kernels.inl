// The kernels, written once over the vector type F32 of the vec_*.inl included just before. See
// kernels.hpp for what each computes. A register tile is kRowTile rows x kColTile columns; every
// output element has its own accumulator and its own fixed order of additions, so the shape of the
// tile that it falls into does not change it.

inline constexpr int kColTile = 4;

template <int kSize>
struct TileSize {
  static constexpr int value = kSize;
};

// Covers [0, count): tile(TileSize<kSize>, first) as often as it fits, then for single elements.
template <int kSize, class Tile>
MLA_INLINE void for_tiles(Index count, const Tile& tile) {
  Index first = 0;
  for (; first + kSize <= count; first += kSize) tile(TileSize<kSize>(), first);
  for (; first < count; ++first) tile(TileSize<1>(), first);
}

#include "mla/simd/detail/kernels_attend.inl"
#include "mla/simd/detail/kernels_linear.inl"
#include "mla/simd/detail/kernels_rows.inl"

template <class T>
inline constexpr TypedKernels<T> kTypedKernels = {&linear<T>, &linear_transposed<T>, &attend<T>,
                                                  &to_float<T>, &from_float<T>};

inline constexpr Kernels kKernels = {
    kIsa,   kTypedKernels<float>, kTypedKernels<bfloat16>, kTypedKernels<float16>, &rms_norm,
    &rotate};
