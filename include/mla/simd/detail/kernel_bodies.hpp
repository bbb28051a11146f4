#ifndef MLA_SIMD_DETAIL_KERNEL_BODIES_HPP_
#define MLA_SIMD_DETAIL_KERNEL_BODIES_HPP_

#include "mla/simd/detail/region.hpp"
#include "mla/simd/kernels.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// One text of kernels (kernels.inl), compiled once for each instruction set over that set's vector
// type (vec/*.inl), each in a namespace of its own.

// Translation units with different -m flags must not share these functions: the linker would keep
// one copy for all. So their names carry the flags that matter.
#if defined(__AVX512F__)
#define MLA_SIMD_BASELINE baseline_avx512
#elif defined(__AVX2__)
#define MLA_SIMD_BASELINE baseline_avx2
#elif defined(__AVX__)
#define MLA_SIMD_BASELINE baseline_avx
#elif defined(__ARM_FEATURE_SVE)
#define MLA_SIMD_BASELINE baseline_sve
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

MLA_KERNELS_BEGIN
namespace mla::simd {
inline namespace MLA_SIMD_BASELINE {

// Machines that have nothing better are rare: less time to compile is worth more here.
#if defined(__GNUC__) && !defined(__clang__) && (defined(__x86_64__) || defined(__aarch64__))
#pragma GCC push_options
#pragma GCC optimize("O1")
#define MLA_SCALAR_IS_RARE
#endif
namespace scalar {
inline constexpr Isa kIsa = Isa::scalar;
#include "mla/simd/detail/vec/scalar.inl"
//
#include "mla/simd/detail/kernels.inl"
inline constexpr Kernels kKernels = kernels_by_definition();
}  // namespace scalar
#if defined(MLA_SCALAR_IS_RARE)
#pragma GCC pop_options
#endif

#if defined(__x86_64__)

MLA_REGION_BEGIN("avx2,fma,f16c")
namespace avx2 {
inline constexpr Isa kIsa = Isa::avx2;
#include "mla/simd/detail/vec/avx2.inl"
//
#include "mla/simd/detail/kernels.inl"
//
#include "mla/simd/detail/encode_rows.inl"
//
#include "mla/simd/detail/formats.inl"
}  // namespace avx2
MLA_REGION_END

MLA_REGION_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
namespace avx512 {
inline constexpr Isa kIsa = Isa::avx512;
#include "mla/simd/detail/vec/avx512.inl"
//
#include "mla/simd/detail/kernels.inl"
using avx2::encode_quantised;  // a row of each token: wider vectors would gain nothing
#include "mla/simd/detail/formats.inl"
}  // namespace avx512
MLA_REGION_END

// Of these only the kernels for bfloat16 are new.
#define MLA_SIMD_AVX512_BF16 "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"

MLA_REGION_BEGIN(MLA_SIMD_AVX512_BF16)
namespace avx512 {
namespace bf16 {
inline constexpr Isa kIsa = Isa::avx512_bf16;
// Each needs those before it.
// clang-format off
#include "mla/simd/detail/tiles/bf16.inl"
#include "mla/simd/detail/tiles/avx512_bf16_packing.inl"
#include "mla/simd/detail/tiles/avx512_bf16_products.inl"
#include "mla/simd/detail/attend/bf16.inl"
#include "mla/simd/detail/widen_codes.inl"
#include "mla/simd/detail/attend/bf16_codes.inl"
#include "mla/simd/detail/linear/avx512_bf16.inl"
#include "mla/simd/detail/index/bf16.inl"
#include "mla/simd/detail/bf16_table.inl"
// clang-format on
}  // namespace bf16
}  // namespace avx512
MLA_REGION_END

MLA_REGION_BEGIN(MLA_SIMD_AVX512_BF16 ",amx-tile,amx-bf16")
namespace avx512 {
namespace bf16 {
namespace amx {
inline constexpr Isa kIsa = Isa::amx;
// Each needs those before it.
// clang-format off
#include "mla/simd/detail/tiles/amx_products.inl"
#include "mla/simd/detail/tiles/amx_grids.inl"
#include "mla/simd/detail/attend/amx_rows.inl"
#include "mla/simd/detail/attend/amx_softmax.inl"
#include "mla/simd/detail/attend/amx_blocks.inl"
#include "mla/simd/detail/attend/amx.inl"
#include "mla/simd/detail/linear/amx_tiles.inl"
#include "mla/simd/detail/linear/amx_few.inl"
#include "mla/simd/detail/linear/amx_many.inl"
#include "mla/simd/detail/linear/amx.inl"
#include "mla/simd/detail/index/bf16.inl"
#include "mla/simd/detail/bf16_table.inl"
// clang-format on
}  // namespace amx
}  // namespace bf16
}  // namespace avx512
MLA_REGION_END

#elif defined(__aarch64__)

namespace neon {
inline constexpr Isa kIsa = Isa::neon;
#include "mla/simd/detail/vec/neon.inl"
//
#include "mla/simd/detail/kernels.inl"
//
#include "mla/simd/detail/encode_rows.inl"
//
#include "mla/simd/detail/formats.inl"
}  // namespace neon

MLA_REGION_BEGIN("arch=armv8.2-a+bf16")
namespace neon {
namespace bf16 {
inline constexpr Isa kIsa = Isa::neon_bf16;
// Each needs those before it.
// clang-format off
#include "mla/simd/detail/tiles/bf16.inl"
#include "mla/simd/detail/tiles/neon_bf16_packing.inl"
#include "mla/simd/detail/tiles/neon_bf16_products.inl"
#include "mla/simd/detail/attend/bf16.inl"
#include "mla/simd/detail/widen_codes.inl"
#include "mla/simd/detail/attend/bf16_codes.inl"
#include "mla/simd/detail/linear/neon_bf16.inl"
#include "mla/simd/detail/index/bf16.inl"
#include "mla/simd/detail/bf16_table.inl"
// clang-format on
}  // namespace bf16
}  // namespace neon
MLA_REGION_END

#endif  // __aarch64__

}  // namespace MLA_SIMD_BASELINE
}  // namespace mla::simd
MLA_KERNELS_END

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

namespace mla::simd {

#if !defined(MLA_COMPILED)
inline
#endif
    const Kernels&
    kernels_for(Isa isa, Arithmetic arithmetic) noexcept {
  switch (best_isa(arithmetic, isa)) {
#if defined(__x86_64__)
    case Isa::avx2:
      return avx2::kKernels;
    case Isa::avx512:
      return avx512::kKernels;
    case Isa::avx512_bf16:
      return avx512::bf16::kKernels;
    case Isa::amx:
      return avx512::bf16::amx::kKernels;
    case Isa::neon:
    case Isa::neon_bf16:
#elif defined(__aarch64__)
    case Isa::neon:
      return neon::kKernels;
    case Isa::neon_bf16:
      return neon::bf16::kKernels;
    case Isa::avx2:
    case Isa::avx512:
    case Isa::avx512_bf16:
    case Isa::amx:
#else
    case Isa::avx2:
    case Isa::avx512:
    case Isa::avx512_bf16:
    case Isa::amx:
    case Isa::neon:
    case Isa::neon_bf16:
#endif
    case Isa::scalar:  // as are those of other architectures, which best_isa() never returns
      break;
  }
  return scalar::kKernels;
}

}  // namespace mla::simd

#endif  // MLA_SIMD_DETAIL_KERNEL_BODIES_HPP_
