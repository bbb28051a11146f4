#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "conformance/editable_case.hpp"
#include "conformance/random_case.hpp"
#include "conformance/run_case.hpp"
#include "mla/simd/kernels.hpp"
#include "support/isas.hpp"

// Cases that nobody tuned anything for: shapes, settings, masks and calls by chance, results from
// the specification in double.

namespace mla::conformance {
namespace {

using test::EditableCase;
using test::RandomCase;
using test::TemporaryDirectory;

void expect_pass(const EditableCase& made) {
  const TemporaryDirectory directory;
  const CaseFile file(made.write(directory / "case.safetensors"));
  const auto expect = [&](const Options& options) {
    for (const Report& report : run_case(file, options))
      EXPECT_TRUE(report.passed()) << report.line() << "\n" << file.text("config");
  };
  for (const simd::Isa isa : test::supported_isas()) expect({.kernels = &simd::kernels_for(isa)});
  expect({.weights = WeightFormat::bfloat16});
  expect({.cache = CacheFormat::bfloat16});
  expect({.weights = WeightFormat::bfloat16, .cache = CacheFormat::float16});
}

TEST(UnseenCases, OfPublishedLayersPass) {
  for (std::uint64_t seed = 1; seed <= 80; ++seed) expect_pass(RandomCase(seed).published());
}

TEST(UnseenCases, OfTheTutorialPass) {
  for (std::uint64_t seed = 1001; seed <= 1030; ++seed) expect_pass(RandomCase(seed).tutorial());
}

// Newer configs have all rotary settings in one block.
TEST(UnseenCases, MayHaveRopeParameters) {
  EditableCase made = RandomCase(7).published();
  auto config = nlohmann::json::parse(made.metadata["config"]);
  nlohmann::json rope = config["rope_scaling"].is_null() ? nlohmann::json{{"rope_type", "default"}}
                                                         : config["rope_scaling"];
  rope["rope_theta"] = config["rope_theta"];
  config.erase("rope_scaling");
  config.erase("rope_theta");
  config["rope_parameters"] = rope;
  made.metadata["config"] = config.dump();
  expect_pass(made);
}

TEST(UnseenCases, MayStateSomeOutputRowsOnly) {
  std::uint64_t seed = 1;
  EditableCase made;
  do made = RandomCase(seed++).published();
  while (made.tensors["output"].shape[1] < 12);
  auto& output = made.tensors["output"];
  const Index sequences = output.shape[0], tokens = output.shape[1], hidden = output.shape[2];
  std::vector<float> kept;
  for (Index s = 0; s < sequences; ++s)
    kept.insert(kept.end(), output.values.begin() + (s * tokens + 5) * hidden,
                output.values.begin() + (s * tokens + 11) * hidden);
  output = {{sequences, 6, hidden}, kept};
  made.metadata["output_rows"] = "[5, 11]";
  expect_pass(made);
}

// Splitmix64 with the seeds 0 and 1 gives the published first outputs of the generator.
TEST(GeneratedTensors, AreSplitmix64) {
  EXPECT_EQ(splitmix64(0), 0xe220a8397b1dcdafu);
  EXPECT_EQ(splitmix64(0x9E3779B97F4A7C15u), 0x6e789e6aa1b965f4u);
  EXPECT_EQ(splitmix64(0x0019010000000000u), 0x45db416c6b2e12e6u);
}

// Elements of q_a_proj in the golden v3_real, as the generator of the goldens printed them.
TEST(GeneratedTensors, HaveTheNumbersOfTheFormat) {
  const std::uint16_t expected[] = {0xbbb0, 0x3bdc, 0xbb25, 0x3c41};
  std::uint64_t checksum = 0;
  for (std::uint64_t i = 0; i < 4; ++i) checksum += expected[i] * (2 * i + 1);
  const GeneratedTensor four = {"four", {2, 2},         0x0019010000000000u,
                                false,  0x1.83091ep-7f, checksum};
  const auto values = generate(four, "case");
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(values[i].bits, expected[i]);
}

TEST(GeneratedTensors, TakeThePlaceOfStoredOnes) {
  EditableCase made = EditableCase::read(MLA_TEST_DATA "/goldens/tutorial_lesson.safetensors");
  const TemporaryDirectory directory;
  EXPECT_FALSE(made.tensors.contains("kv_proj.weight"));
  const CaseFile file(made.write(directory / "case.safetensors"));
  EXPECT_EQ(file.tensor("kv_proj.weight").values.format, WeightFormat::bfloat16);
  EXPECT_EQ(file.tensor("hidden_states").values.format, WeightFormat::float32);  // stored as well
}

}  // namespace
}  // namespace mla::conformance
