// The kernels, written once over the vector type F32 of the vec_*.inl included just before. See
// kernels.hpp for what each computes. A register tile is kRowTile rows x kColTile columns, that of
// linear() for more than very few tokens kTokenTile x kFeatureTile; every output element has its
// own accumulator and its own fixed order of additions, so the shape of the tile that it falls into
// does not change it.

inline constexpr int kColTile = 4;

template <int kSize>
struct TileSize {
  static constexpr int value = kSize;
};

// Covers [first, count): tile(TileSize<kSize>, first) as often as it fits, then smaller tiles.
template <int kSize, class Tile>
MLA_INLINE void for_tiles(Index count, const Tile& tile, Index first = 0) {
  for (; first + kSize <= count; first += kSize) tile(TileSize<kSize>(), first);
  if constexpr (kSize > 1) for_tiles<(kSize + 1) / 2>(count, tile, first);
}

#include "mla/simd/detail/kernels_rows.inl"
//
#include "mla/simd/detail/kernels_linear.inl"
//
#include "mla/simd/detail/kernels_softmax.inl"
//
#include "mla/simd/detail/kernels_attend.inl"
#include "mla/simd/detail/kernels_attend_many.inl"

template <class T>
inline constexpr TypedKernels<T> kTypedKernels = {.packed_floats = &packed_floats,
                                                  .pack = &pack,
                                                  .linear = &linear<T>,
                                                  .linear_transposed = &linear_transposed<T>,
                                                  .attend = &attend<T>,
                                                  .attend_many = &attend_many<T>,
                                                  .attend_many_scratch = &attend_many_scratch,
                                                  .attend_many_keys = kTileKeys,
                                                  .to_float = &to_float<T>,
                                                  .from_float = &from_float<T>};

inline constexpr Kernels kKernels = {.isa = kIsa,
                                     .f32 = kTypedKernels<float>,
                                     .bf16 = kTypedKernels<bfloat16>,
                                     .f16 = kTypedKernels<float16>,
                                     .linear_scratch = LinearBlocks::kFloats,
                                     .rms_norm = &rms_norm,
                                     .rotate = &rotate};
