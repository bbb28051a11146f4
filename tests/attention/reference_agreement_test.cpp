// Both forms of attention against the reference in double.
#include <gtest/gtest.h>

#include <vector>

#include "attention/tolerances.hpp"
#include "support/isas.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

class ReferenceAgreement : public ::testing::TestWithParam<TestConfig> {};

INSTANTIATE_TEST_SUITE_P(Config, ReferenceAgreement, ::testing::ValuesIn(test_configs()),
                         [](const auto& test) { return test.param.name; });

TEST_P(ReferenceAgreement, AbsorbedAndDecompressedAreTheReference) {
  const TestConfig& param = GetParam();
  TestLayer layer(param.config, param.weights);
  const RowMajorMatrix x = layer.input(param.tokens);
  const std::vector<Index> positions = with_gaps(param.tokens, param.largest_gap, layer.random);
  const DoubleMatrix expected = reference_output(layer, x, positions);
  for (simd::Isa isa : supported_isas())
    for (AttentionForm mode :
         {AttentionForm::absorbed, AttentionForm::decompressed, AttentionForm::automatic}) {
      Context context(simd::kernels_for(isa));
      const ForwardOptions options = {.mode = mode, .position_ids = positions};
      const auto out = run_fresh<float>(layer, x, context, options);
      EXPECT_TRUE(close(out, expected, kFloat32Tolerance))
          << simd::name_of(isa) << " mode " << static_cast<int>(mode);
    }
}

}  // namespace
}  // namespace mla::test
