// The kernels, written once over the vector type F32 of the vec/*.inl included just before. See
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

// The same with single ones for what is left: less code where little is left.
template <int kSize, class Tile>
MLA_INLINE void for_tiles_or_ones(Index count, const Tile& tile) {
  Index first = 0;
  for (; first + kSize <= count; first += kSize) tile(TileSize<kSize>(), first);
  if constexpr (kSize > 1)
    for (; first < count; ++first) tile(TileSize<1>(), first);
}

// The same for what may be computed twice: the last tile ends at `count`, and only a count of fewer
// than a tile takes smaller ones.
template <int kSize, int kSmaller, class Tile>
MLA_INLINE void for_overlapping_tiles(Index count, const Tile& tile) {
  // NOLINTNEXTLINE(bugprone-branch-clone): kSmaller may be 1
  constexpr int kNext = kSmaller < kSize ? kSmaller : 1;
  if constexpr (kSize > 1)
    if (count < kSize) return for_overlapping_tiles<kNext, 1>(count, tile);
  for (Index first = 0; first < count; first += kSize)
    tile(TileSize<kSize>(), first + kSize <= count ? first : count - kSize);
}

// Each needs those before it.
// clang-format off
#include "mla/simd/detail/rows.inl"
#include "mla/simd/detail/linear/float32.inl"
#include "mla/simd/detail/attend/softmax.inl"
#include "mla/simd/detail/attend/few_rows.inl"
#include "mla/simd/detail/attend/rows_ahead.inl"
#include "mla/simd/detail/attend/many_rows.inl"
#include "mla/simd/detail/index/float32.inl"
// clang-format on

constexpr LinearKernels linear_kernels(decltype(LinearKernels::linear) linear,
                                       decltype(LinearKernels::linear_transposed) transposed,
                                       decltype(LinearKernels::widen) widen) {
  return {.arithmetic = Arithmetic::float32,
          .packed_floats = &packed_floats,
          .pack = &pack,
          .linear = linear,
          .linear_transposed = transposed,
          .widen = widen};
}

template <MakeTile kMakeTile>
constexpr CacheKernels cache_kernels(decltype(CacheKernels::encode) encode,
                                     decltype(CacheKernels::widen) widen) {
  return {.arithmetic = Arithmetic::float32,
          .encode = encode,
          .widen = widen,
          .attend = &attend<kMakeTile>,
          .attend_scratch = &tile_floats,
          .attend_many = &attend_many<kMakeTile>,
          .attend_many_scratch = &attend_many_scratch,
          .attend_many_keys = kTileKeys};
}

// Every format has kernels from its own functions alone; float32 is taken from where it lies.
constexpr Kernels kernels_by_definition() {
  Kernels kernels = {};
  kernels.isa = kIsa;
  for (std::size_t f = 0; f < kWeightFormatCount; ++f)
    kernels.weights[f] =
        linear_kernels(&linear_of_any, &linear_transposed_of_any, kWeightFormats[f].widen);
  for (std::size_t f = 0; f < kCacheFormatCount; ++f)
    kernels.caches[f] =
        cache_kernels<&float_tile_of_any>(kCacheFormats[f].encode, kCacheFormats[f].widen);
  for (IndexKernels& index : kernels.index_keys) index = kIndexKernels<&float_tile_of_any>;
  kernels.of(WeightFormat::float32) =
      linear_kernels(&linear<float>, &linear_transposed<float>, &widen_block<float>);
  kernels.of(CacheFormat::float32) =
      cache_kernels<&float_tile<float>>(&encode_row<float>, &widen_row<float>);
  kernels.of_index_keys(CacheFormat::float32) = kIndexKernels<&float_tile<float>>;
  kernels.linear_scratch = LinearBlocks::kFloats;
  kernels.rms_norm = &rms_norm;
  kernels.rotate = &rotate;
  return kernels;
}
