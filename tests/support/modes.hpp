#ifndef MLA_SUPPORT_MODES_HPP_
#define MLA_SUPPORT_MODES_HPP_

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "mla/attention/multihead_latent_attention.hpp"
#include "support/isas.hpp"

namespace mla::test {

struct IsaAndMode {
  simd::Isa isa;
  AttentionForm mode;
};

/// Base of test suites that run once for each form of attention on each of supported_isas().
class EveryIsaAndMode : public ::testing::TestWithParam<IsaAndMode> {
 protected:
  const simd::Kernels& kernels() const noexcept { return simd::kernels_for(GetParam().isa); }
  AttentionForm mode() const noexcept { return GetParam().mode; }
  ForwardOptions options() const noexcept { return {.mode = mode()}; }
};

inline std::vector<IsaAndMode> every_isa_and_mode() {
  std::vector<IsaAndMode> all;
  for (simd::Isa isa : supported_isas())
    for (AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed})
      all.push_back({isa, mode});
  return all;
}

#define MLA_FOR_EVERY_ISA_AND_MODE(suite)                                                      \
  INSTANTIATE_TEST_SUITE_P(Isa, suite, ::testing::ValuesIn(::mla::test::every_isa_and_mode()), \
                           [](const ::testing::TestParamInfo<::mla::test::IsaAndMode>& form) { \
                             const bool absorbed =                                             \
                                 form.param.mode == ::mla::AttentionForm::absorbed;            \
                             return std::string(::mla::simd::name_of(form.param.isa)) +        \
                                    (absorbed ? "_absorbed" : "_decompressed");                \
                           })

}  // namespace mla::test

#endif  // MLA_SUPPORT_MODES_HPP_
