#ifndef MLA_CORE_COMPILER_HPP_
#define MLA_CORE_COMPILER_HPP_

// What every file that includes the library must be compiled with. Every header includes this one
// ahead of its own code, so this is the first thing the compiler says.

#if __cplusplus <= 201703L
#error "mla needs C++20: compile with -std=c++20"
#endif

// Kernels count on roundings, and the code around them tests for NaN and starts maxima at
// -infinity. clang defines a macro for -ffast-math and for -ffinite-math-only, none for the other
// parts.
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__)
#define MLA_NOT_IEEE
#elif defined(__FINITE_MATH_ONLY__)
#if __FINITE_MATH_ONLY__
#define MLA_NOT_IEEE
#endif
#endif
#if defined(MLA_NOT_IEEE)
#error "mla needs IEEE arithmetic (rounding, infinities, NaN): no -ffast-math, nor parts of it"
#endif

#endif  // MLA_CORE_COMPILER_HPP_
