// The table of an instruction set with products of bfloat16: the kernels of the set around it, but
// for products with weights and caches of bfloat16.
// Needs: linear() and kLinearFloats (linear/<set>.inl), attend_many_bf16 (attend/bf16.inl).

inline constexpr const Kernels& kFloat32Kernels = kKernels;

constexpr Kernels with_bf16_products(Kernels kernels) {
  kernels.isa = kIsa;
  LinearKernels& weights = kernels.of(WeightFormat::bfloat16);
  weights.arithmetic = Arithmetic::bfloat16;
  weights.packed_floats = &packed_floats;
  weights.pack = &pack;
  weights.linear = &linear;
  CacheKernels& caches = kernels.of(CacheFormat::bfloat16);
  caches.arithmetic = Arithmetic::bfloat16;
  caches.attend_many = &attend_many_bf16;
  caches.attend_many_scratch = &attend_many_bf16_scratch;
  caches.attend_many_keys = kSpanKeys;
  if (kernels.linear_scratch < kLinearFloats) kernels.linear_scratch = kLinearFloats;
  return kernels;
}

inline constexpr Kernels kKernels = with_bf16_products(kFloat32Kernels);
