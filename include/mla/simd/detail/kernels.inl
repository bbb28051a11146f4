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

// Each needs those before it.
// clang-format off
#include "mla/simd/detail/rows.inl"
#include "mla/simd/detail/quantised_rows.inl"
#include "mla/simd/detail/linear/float32.inl"
#include "mla/simd/detail/linear/quantised.inl"
#include "mla/simd/detail/attend/softmax.inl"
#include "mla/simd/detail/attend/few_rows.inl"
#include "mla/simd/detail/attend/rows_ahead.inl"
#include "mla/simd/detail/attend/many_rows.inl"
#include "mla/simd/detail/index/float32.inl"
// clang-format on

// Formats of plain elements T.
template <class T>
inline constexpr LinearKernels kLinearKernels = {.arithmetic = Arithmetic::float32,
                                                 .packed_floats = &packed_floats,
                                                 .pack = &pack,
                                                 .linear = &linear<T>,
                                                 .linear_transposed = &linear_transposed<T>,
                                                 .widen = &widen_block<T>};
// Formats of 8 and 4 bits.
template <class Weights>
inline constexpr LinearKernels kQuantisedKernels = {
    .arithmetic = Arithmetic::float32,
    .packed_floats = &packed_floats,
    .pack = &pack,
    .linear = &linear_quantised<Weights>,
    .linear_transposed = &linear_transposed_quantised<Weights>,
    .widen = &widen_weights<Weights>};
template <class T>
inline constexpr CacheKernels kCacheKernels = {.arithmetic = Arithmetic::float32,
                                               .encode = &encode_row<T>,
                                               .widen = &widen_row<T>,
                                               .attend = &attend<T>,
                                               .attend_scratch = &tile_floats,
                                               .attend_many = &attend_many<&float_tile<T>>,
                                               .attend_many_scratch = &attend_many_scratch,
                                               .attend_many_keys = kTileKeys};

// Formats of 8 and 4 bits.
using PublishedFp8 = mla::detail::Fp8Codes<Fp8Scale::power_of_two>;
template <class Codes>
inline constexpr CacheKernels kCodeKernels = {
    .arithmetic = Arithmetic::float32,
    .encode = &encode_quantised<Codes>,
    .widen = &widen_quantised<Codes>,
    .attend = &attend_tiles<&float_tile_of_codes<Codes>>,
    .attend_scratch = &tile_floats,
    .attend_many = &attend_many<&float_tile_of_codes<Codes>>,
    .attend_many_scratch = &attend_many_scratch,
    .attend_many_keys = kTileKeys};

// Every format has kernels from its own functions alone; faster ones take their place.
constexpr Kernels float32_kernels() {
  Kernels kernels = {};
  kernels.isa = kIsa;
  for (std::size_t f = 0; f < kWeightFormatCount; ++f)
    kernels.weights[f] = {.arithmetic = Arithmetic::float32,
                          .packed_floats = &packed_floats,
                          .pack = &pack,
                          .linear = &linear_of_any,
                          .linear_transposed = &linear_transposed_of_any,
                          .widen = kWeightFormats[f].widen};
  for (std::size_t f = 0; f < kCacheFormatCount; ++f)
    kernels.caches[f] = {.arithmetic = Arithmetic::float32,
                         .encode = kCacheFormats[f].encode,
                         .widen = kCacheFormats[f].widen,
                         .attend = &attend_tiles<&float_tile_of_any>,
                         .attend_scratch = &tile_floats,
                         .attend_many = &attend_many<&float_tile_of_any>,
                         .attend_many_scratch = &attend_many_scratch,
                         .attend_many_keys = kTileKeys};
  for (IndexKernels& index : kernels.index_keys) index = kIndexKernels<&float_tile_of_any>;
  kernels.of(WeightFormat::float32) = kLinearKernels<float>;
  kernels.of(WeightFormat::bfloat16) = kLinearKernels<bfloat16>;
  kernels.of(WeightFormat::float16) = kLinearKernels<float16>;
  kernels.of(WeightFormat::fp8_e4m3) = kQuantisedKernels<E4m3Weights>;
  kernels.of(WeightFormat::int8) = kQuantisedKernels<Int8Weights>;
  kernels.of(WeightFormat::int4) = kQuantisedKernels<Int4Weights>;
  kernels.of(WeightFormat::fp4_e2m1) = kQuantisedKernels<E2m1Weights>;
  kernels.of(CacheFormat::float32) = kCacheKernels<float>;
  kernels.of(CacheFormat::bfloat16) = kCacheKernels<bfloat16>;
  kernels.of(CacheFormat::float16) = kCacheKernels<float16>;
  kernels.of(CacheFormat::int8) = kCodeKernels<mla::detail::Int8Codes>;
  kernels.of(CacheFormat::fp8) = kCodeKernels<PublishedFp8>;
  kernels.of(CacheFormat::int4) = kCodeKernels<mla::detail::Int4Codes>;
  kernels.of_index_keys(CacheFormat::float32) = kIndexKernels<&float_tile<float>>;
  kernels.of_index_keys(CacheFormat::bfloat16) = kIndexKernels<&float_tile<bfloat16>>;
  kernels.of_index_keys(CacheFormat::float16) = kIndexKernels<&float_tile<float16>>;
  kernels.of_index_keys(CacheFormat::fp8) = kIndexKernels<&float_tile_of_codes<PublishedFp8>>;
  kernels.linear_scratch = LinearBlocks::kFloats;
  kernels.rms_norm = &rms_norm;
  kernels.rotate = &rotate;
  return kernels;
}

inline constexpr Kernels kKernels = float32_kernels();
