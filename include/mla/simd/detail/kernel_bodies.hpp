#ifndef MLA_SIMD_DETAIL_KERNEL_BODIES_HPP_
#define MLA_SIMD_DETAIL_KERNEL_BODIES_HPP_

#include "mla/simd/detail/region.hpp"
#include "mla/simd/kernels.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__FAST_MATH__)
#error "mla's kernels need IEEE arithmetic (rounding, infinities, NaN): compile without -ffast-math"
#endif

// One text of kernels (kernels.inl), compiled once for each instruction set over that set's vector
// type (vec_*.inl), each in a namespace of its own.

// Translation units with different -m flags must not share these functions: the linker would keep
// one copy for all. So their names carry the flags that matter.
#if defined(__AVX512F__)
#define MLA_SIMD_BASELINE baseline_avx512
#elif defined(__AVX2__)
#define MLA_SIMD_BASELINE baseline_avx2
#elif defined(__AVX__)
#define MLA_SIMD_BASELINE baseline_avx
#else
#define MLA_SIMD_BASELINE baseline
#endif

// g++ 12 warns of its own headers: the undefined vectors in avx512fintrin.h (GCC bug 105593). And
// of int constants as sizes of arrays, which clang sees to be positive.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#endif

namespace mla::simd {
inline namespace MLA_SIMD_BASELINE {

namespace scalar {
inline constexpr Isa kIsa = Isa::scalar;
#include "mla/simd/detail/vec_scalar.inl"
//
#include "mla/simd/detail/kernels.inl"
}  // namespace scalar

#if defined(__x86_64__)

MLA_REGION_BEGIN("avx2,fma,f16c")
namespace avx2 {
inline constexpr Isa kIsa = Isa::avx2;
#include "mla/simd/detail/vec_avx2.inl"
//
#include "mla/simd/detail/kernels.inl"
}  // namespace avx2
MLA_REGION_END

MLA_REGION_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
namespace avx512 {
inline constexpr Isa kIsa = Isa::avx512;
#include "mla/simd/detail/vec_avx512.inl"
//
#include "mla/simd/detail/kernels.inl"
}  // namespace avx512
MLA_REGION_END

#endif  // __x86_64__

}  // namespace MLA_SIMD_BASELINE
}  // namespace mla::simd

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

namespace mla::simd {

#if !defined(MLA_COMPILED)
inline
#endif
    const Kernels&
    kernels_for(Isa isa) noexcept {
  switch (best_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx2:
      return avx2::kKernels;
    case Isa::avx512:
      return avx512::kKernels;
#endif
    default:
      return scalar::kKernels;
  }
}

}  // namespace mla::simd

#endif  // MLA_SIMD_DETAIL_KERNEL_BODIES_HPP_
