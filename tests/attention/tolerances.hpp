#ifndef MLA_ATTENTION_TOLERANCES_HPP_
#define MLA_ATTENTION_TOLERANCES_HPP_

namespace mla::test {

// Of the largest output.

/// All arithmetic in float32. Measured over all configurations of reference_agreement_test.cpp,
/// instruction sets and modes: at most 1.9e-6. It is the rounding of float32 (6e-8) through five
/// matrix products and the softmax.
constexpr double kFloat32Tolerance = 4e-6;

/// The same for tiny dims, which average less, so that single roundings show.
constexpr double kTinyFloat32Tolerance = 1e-5;

/// With bfloat16 arithmetic: a few roundings by up to 2^-9 on the way of each number. Measured
/// 0.0053 on the layers of precision_test.cpp.
constexpr double kBFloat16Tolerance = 0.01;
constexpr double kTinyBFloat16Tolerance = 0.03;

/// The same with quantised weights, which are decoded to bfloat16 then: another rounding by 2^-9 of
/// each, which the reference does not make. Measured 0.024.
constexpr double kQuantisedBFloat16Tolerance = 0.04;

}  // namespace mla::test

#endif  // MLA_ATTENTION_TOLERANCES_HPP_
