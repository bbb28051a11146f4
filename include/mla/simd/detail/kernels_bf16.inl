// The table of an instruction set with products of bfloat16: the kernels of the set around it, but
// for products with weights and caches of bfloat16.

inline constexpr const Kernels& kFloat32Kernels = kKernels;

constexpr Kernels with_bf16_products(Kernels kernels) {
  kernels.isa = kIsa;
  kernels.bf16.packed_floats = &packed_floats;
  kernels.bf16.pack = &pack;
  kernels.bf16.linear = &linear;
  kernels.bf16.attend_many = &attend_many_bf16;
  kernels.bf16.attend_many_scratch = &attend_many_bf16_scratch;
  kernels.bf16.attend_many_keys = kSpanKeys;
  if (kernels.linear_scratch < kLinearFloats) kernels.linear_scratch = kLinearFloats;
  return kernels;
}

inline constexpr Kernels kKernels = with_bf16_products(kFloat32Kernels);
