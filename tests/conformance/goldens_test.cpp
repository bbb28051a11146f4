#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "conformance/run_case.hpp"
#include "mla/simd/kernels.hpp"
#include "support/isas.hpp"

// Every golden must hold within the tolerances that docs/conformance.md derives.

namespace mla::conformance {
namespace {

using test::supported_isas;

constexpr const char* kGoldens[] = {
    "chunked",   "decode",      "long_flat",       "nasty_logits",  "padded_left", "padded_right",
    "rope_pair", "rope_tables", "tutorial_lesson", "tutorial_mini", "v2lite_mini", "v3_mini",
    "v3_real",   "yarn",        "yarn_gaps",       "yarn_mscale"};

std::filesystem::path golden_path(const std::string& name) {
  return std::filesystem::path(MLA_TEST_DATA) / "goldens" / (name + ".safetensors");
}

void expect_pass(const CaseFile& file, const Options& options) {
  for (const Report& report : run_case(file, options))
    EXPECT_TRUE(report.passed()) << simd::name_of(options.kernels->isa) << ": " << report.line();
}

class Golden : public ::testing::TestWithParam<const char*> {};

TEST_P(Golden, HoldsOnEveryIsaInBothModesForAllElementTypes) {
  const CaseFile file(golden_path(GetParam()));
  EXPECT_EQ(file.name(), GetParam());
  const bool large = file.name() == "v3_real";  // once, and on the weakest kernels
  for (const simd::Isa isa : supported_isas())
    for (const auto weights : {WeightFormat::float32, WeightFormat::bfloat16})
      for (const auto cache : {CacheFormat::float32, CacheFormat::bfloat16, CacheFormat::float16,
                               CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4}) {
        // Its weights are bfloat16 as they are.
        if (large && weights == WeightFormat::bfloat16) continue;
        if (large && isa != simd::best_isa() && cache != CacheFormat::float32) continue;
        expect_pass(file, {.weights = weights, .cache = cache, .kernels = &simd::kernels_for(isa)});
      }
}

INSTANTIATE_TEST_SUITE_P(Files, Golden, ::testing::ValuesIn(kGoldens),
                         [](const auto& name) { return std::string(name.param); });

TEST(Goldens, AreAllListedAbove) {
  std::size_t files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(golden_path("v3_mini").parent_path()))
    files += entry.path().extension() == ".safetensors";
  EXPECT_EQ(files, std::size(kGoldens));
}

// The tolerance of 2e-5 is for others; this code shall not drift towards it. Logits of 300 cost a
// digit and more, and are left out.
TEST(Goldens, HoldToAMillionthInFloat32) {
  for (const std::string name : {"chunked", "decode", "long_flat", "padded_left", "rope_pair",
                                 "tutorial_mini", "v2lite_mini", "v3_mini", "yarn_gaps"}) {
    const CaseFile file(golden_path(name));
    for (const Report& report : run_case(file, Options{}))
      for (const Check& check : report.checks)
        EXPECT_LT(check.relative(), 1e-6) << report.name << " " << report.mode << " " << check.name;
  }
}

// The case has a layer in both orders of rotary pairs; a report that lost one would say less.
TEST(Goldens, RopePairChecksBothOrders) {
  const CaseFile file(golden_path("rope_pair"));
  for (const Report& report : run_case(file, Options{})) {
    std::vector<std::string> names;
    for (const Check& check : report.checks)
      if (check.shown) names.push_back(check.name);
    EXPECT_EQ(names, (std::vector<std::string>{"output", "latent", "k_pe", "half_split.output",
                                               "half_split.latent", "half_split.k_pe"}));
  }
}

// Rounded weights move the output by what the tolerance allows; the same weights in double show
// that all of it is rounding.
TEST(Goldens, RoundedWeightsAreHeldToTheSameWeightsInDouble) {
  const CaseFile file(golden_path("nasty_logits"));
  for (const Report& report : run_case(file, {.weights = WeightFormat::bfloat16})) {
    ASSERT_EQ(report.checks[3].name, "same_weights.output");
    EXPECT_GT(report.checks[0].relative(), 1e-3);
    EXPECT_EQ(report.checks[3].tolerance, kFloat32);
    EXPECT_LT(report.checks[3].relative(), kFloat32);
  }
}

}  // namespace
}  // namespace mla::conformance
