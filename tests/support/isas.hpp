#ifndef MLA_SUPPORT_ISAS_HPP_
#define MLA_SUPPORT_ISAS_HPP_

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "mla/simd/kernels.hpp"

namespace mla::test {

/// All instruction sets that this machine can run and that compute with no less than `precision`,
/// weakest first.
inline std::vector<simd::Isa> supported_isas(Arithmetic precision = Arithmetic::bfloat16) {
  std::vector<simd::Isa> isas;
  for (simd::Isa isa : simd::kAllIsas)
    if (simd::is_supported(isa) && simd::arithmetic_of(isa) <= precision) isas.push_back(isa);
  return isas;
}

/// Base of test suites that run once for each of supported_isas().
class EveryIsa : public ::testing::TestWithParam<simd::Isa> {
 protected:
  const simd::Kernels& kernels() const noexcept { return simd::kernels_for(GetParam()); }
};

#define MLA_FOR_EVERY_ISA(suite)                                                           \
  INSTANTIATE_TEST_SUITE_P(Isa, suite, ::testing::ValuesIn(::mla::test::supported_isas()), \
                           [](const ::testing::TestParamInfo<::mla::simd::Isa>& isa) {     \
                             return std::string(::mla::simd::name_of(isa.param));          \
                           })

/// Sizes on both sides of lane counts, register tiles, kernel tiles and pages.
inline constexpr Index kStraddlingSizes[] = {1, 15, 16, 17, 63, 64, 65, 127, 129, 600};

}  // namespace mla::test

#endif  // MLA_SUPPORT_ISAS_HPP_
