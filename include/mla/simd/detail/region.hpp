#ifndef MLA_SIMD_DETAIL_REGION_HPP_
#define MLA_SIMD_DETAIL_REGION_HPP_

#include "mla/core/compiler.hpp"

// Compiler target regions: functions between BEGIN and END are compiled for the named features,
// whatever -m flags the translation unit has. House rules: no #include of a system header inside a
// region (its inline functions would become code for that machine, for the whole program), and
// nothing from outside that takes or returns a vector.

#define MLA_SIMD_STRING_OF(x) #x
#define MLA_SIMD_STRING(x) MLA_SIMD_STRING_OF(x)

#if defined(__clang__)
#define MLA_REGION_BEGIN(features) \
  _Pragma(MLA_SIMD_STRING(         \
      clang attribute push(__attribute__((target(features))), apply_to = function)))
#define MLA_REGION_END _Pragma("clang attribute pop")
#else
#define MLA_REGION_BEGIN(features) \
  _Pragma("GCC push_options") _Pragma(MLA_SIMD_STRING(GCC target(features)))
#define MLA_REGION_END _Pragma("GCC pop_options")
#endif

// Between these no compiler may turn a product and a sum into one operation that rounds once: what
// is rounded is then the same on every processor, in every loop that a compiler makes of a text.
// Kernels are written in vectors and unrolled: passes of g++ that look there for vectors and for
// what is computed twice find next to nothing, and take an eighth of the time.
#if defined(__clang__)
#define MLA_KERNELS_BEGIN _Pragma("float_control(push)") _Pragma("clang fp contract(off)")
#define MLA_KERNELS_END _Pragma("float_control(pop)")
#else
#define MLA_KERNELS_BEGIN                                                               \
  _Pragma("GCC push_options") _Pragma("GCC optimize(\"fp-contract=off\")")              \
      _Pragma("GCC optimize(\"no-tree-slp-vectorize,no-tree-loop-vectorize\")")         \
          _Pragma("GCC optimize(\"no-tree-pre,no-gcse,no-code-hoisting,no-tree-vrp\")") \
              _Pragma("GCC optimize(\"no-thread-jumps\")")
#define MLA_KERNELS_END _Pragma("GCC pop_options")
#endif

// for (int i = 0; i < count; ++i), unrolled: otherwise g++ -O2 keeps an array of accumulators that
// the loop goes over in memory.
#define MLA_UNROLL(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); ++i)
#define MLA_INLINE __attribute__((always_inline)) inline

#endif  // MLA_SIMD_DETAIL_REGION_HPP_
