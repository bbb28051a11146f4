// Faster kernels for formats of 16, 8 and 4 bits, in vectors.
// Needs: kernels.inl, encode_quantised (encode_rows.inl).

// Each needs those before it.
// clang-format off
#include "mla/simd/detail/quantised_rows.inl"
#include "mla/simd/detail/linear/quantised.inl"
// clang-format on

constexpr Kernels kernels_in_vectors() {
  Kernels kernels = kernels_by_definition();
  const auto set_elements = [&]<class T>(T) {
    kernels.of(kWeightFormatOf<T>) =
        linear_kernels(&linear<T>, &linear_transposed<T>, &widen_block<T>);
    kernels.of(kCacheFormatOf<T>) = cache_kernels<&float_tile<T>>(&encode_row<T>, &widen_row<T>);
    kernels.of_index_keys(kCacheFormatOf<T>) = kIndexKernels<&float_tile<T>>;
  };
  set_elements(bfloat16());
  set_elements(float16());
  kernels.of(CacheFormat::bfloat16).attend = &attend_in_place<bfloat16>;
  for (const WeightFormat format :
       {WeightFormat::fp8_e4m3, WeightFormat::int8, WeightFormat::int4, WeightFormat::fp4_e2m1})
    kernels.of(format) = linear_kernels(&linear_coded, &linear_transposed_coded, &widen_coded);
  const auto set_codes = [&]<class Codes>(CacheFormat format, Codes) {
    kernels.of(format) = cache_kernels<&float_tile_of_codes<Codes>>(&encode_quantised<Codes>,
                                                                    &widen_quantised<Codes>);
  };
  set_codes(CacheFormat::int8, mla::detail::Int8Codes());
  set_codes(CacheFormat::fp8, PublishedFp8());
  set_codes(CacheFormat::int4, mla::detail::Int4Codes());
  kernels.of_index_keys(CacheFormat::fp8) = kIndexKernels<&float_tile_of_codes<PublishedFp8>>;
  return kernels;
}

inline constexpr Kernels kKernels = kernels_in_vectors();
// What sets with products of bfloat16, in namespaces within this one, take the rest from.
inline constexpr const Kernels& kFloat32Kernels = kKernels;
