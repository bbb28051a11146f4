// The table of an instruction set with products of bfloat16: the kernels of the set around it, but
// for products with weights and caches of bfloat16 and of fewer bits.
// Needs: linear(), kLinearFloats and set_quantised_products() (linear/<set>.inl), attend_made_rows
// and kPartKeys (attend/bf16.inl or attend/amx.inl), make_row_of_codes (attend/bf16_codes.inl),
// score_bf16_index (index/bf16.inl).

inline void attend_many_bf16(const QueryRows& queries, const KeyValueRows& keys,
                             float softmax_scale, const SoftmaxState& state,
                             float* scratch) noexcept {
  attend_made_rows(queries, keys, softmax_scale, state, nullptr, scratch);
}

template <class Codes>
void attend_many_codes(const QueryRows& queries, const KeyValueRows& keys, float softmax_scale,
                       const SoftmaxState& state, float* scratch) noexcept {
  attend_made_rows(queries, keys, softmax_scale, state, &make_row_of_codes<Codes>, scratch);
}

constexpr Kernels with_bf16_products(Kernels kernels) {
  kernels.isa = kIsa;
  LinearKernels& weights = kernels.of(WeightFormat::bfloat16);
  weights.arithmetic = Arithmetic::bfloat16;
  weights.packed_floats = &packed_floats;
  weights.pack = &pack;
  weights.linear = &linear;
  set_quantised_products(kernels);
  const auto set_cache = [&](CacheFormat format, auto* attend_many) {
    CacheKernels& cache = kernels.of(format);
    cache.arithmetic = Arithmetic::bfloat16;
    cache.attend_many = attend_many;
    cache.attend_many_scratch = &attend_many_bf16_scratch;
    cache.attend_many_keys = kSpanKeys;
    cache.part_keys = kPartKeys;
  };
  set_cache(CacheFormat::bfloat16, &attend_many_bf16);
  set_cache(CacheFormat::int8, &attend_many_codes<mla::detail::Int8Codes>);
  set_cache(CacheFormat::fp8, &attend_many_codes<PublishedFp8>);
  set_cache(CacheFormat::int4, &attend_many_codes<mla::detail::Int4Codes>);
  for (const CacheFormat format : {CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4})
    kernels.of(format).widen = &widen_rounded;
  const auto set_index_keys = [&](CacheFormat format, auto* score) {
    kernels.of_index_keys(format) = {.arithmetic = Arithmetic::bfloat16,
                                     .packed_floats = &bf16_index_packed_floats,
                                     .pack = &pack_bf16_index_queries,
                                     .score = score,
                                     .scratch = &bf16_index_scratch};
  };
  set_index_keys(CacheFormat::bfloat16, &score_bf16_index);
  set_index_keys(CacheFormat::fp8, &score_bf16_index_of_codes<PublishedFp8>);
  if (kernels.linear_scratch < kLinearFloats) kernels.linear_scratch = kLinearFloats;
  return kernels;
}

inline constexpr Kernels kKernels = with_bf16_products(kFloat32Kernels);
