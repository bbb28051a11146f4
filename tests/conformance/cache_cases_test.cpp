// Cases about cached rows: that the published ones hold, and that what differs does not.
#include "conformance/cache_cases.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "conformance/command_line.hpp"
#include "support/isas.hpp"
#include "support/safetensors_writer.hpp"

namespace mla::conformance {
namespace {

using test::TemporaryDirectory;

const std::string kRows = MLA_TEST_DATA "/cache/flashmla_656.safetensors";
const std::string kLatents = MLA_TEST_DATA "/cache/latent_512.safetensors";

// A case file that can be changed in place.
class ChangedFile {
 public:
  explicit ChangedFile(const std::string& path) : original_(path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    bytes_ = text.str();
  }
  // Byte `at` of a tensor.
  char& byte(const std::string& tensor, std::size_t at) {
    const auto* const first = original_.tensor(tensor).bytes.data();
    return bytes_[static_cast<std::size_t>(first - original_.bytes().data()) + at];
  }
  // Text in the header, by text of the same length.
  ChangedFile& replace(const std::string& from, const std::string& to) {
    EXPECT_EQ(from.size(), to.size());
    const std::size_t at = bytes_.find(from);
    EXPECT_NE(at, bytes_.npos) << from;
    bytes_.replace(at, from.size(), to);
    return *this;
  }

  struct Answer {
    int status;
    std::string out, err;
  };
  Answer run() const {
    const TemporaryDirectory directory;
    const std::string path = test::write_file(directory / "case.safetensors", bytes_).string();
    std::ostringstream out, err;
    const int status = run_command_line(std::vector<std::string>{path}, out, err);
    return {status, out.str(), err.str()};
  }

 private:
  SafetensorsFile original_;
  std::string bytes_;
};

class CacheCases : public test::EveryIsa {
 protected:
  std::vector<Report> reports(const std::string& path) const {
    return run_case(CaseFile(path), {.kernels = &kernels()});
  }
};
MLA_FOR_EVERY_ISA(CacheCases);

TEST_P(CacheCases, FlashMlaRowsAreEqualInEveryByte) {
  const std::vector<Report> all = reports(kRows);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_TRUE(all[0].passed()) << all[0].line();
  std::vector<std::string> names;
  for (const Check& check : all[0].checks) {
    names.push_back(check.name);
    EXPECT_EQ(check.error, 0.0) << check.name;
    EXPECT_EQ(check.tolerance, 0.0);
  }
  EXPECT_EQ(names, (std::vector<std::string>{"bytes", "decoded", "bytes.amax_scale",
                                             "decoded.amax_scale"}));
}

TEST_P(CacheCases, AttentionOverTheLatentsIsThatOfEveryFormat) {
  const std::vector<Report> all = reports(kLatents);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_TRUE(all[0].passed()) << all[0].line();
  int outputs = 0, exact = 0;
  for (const Check& check : all[0].checks) {
    outputs += check.name.ends_with("output");
    exact += check.tolerance == 0.0;
    // The tolerance of 2e-5 is for others; measured 1e-6.
    const bool float32 = kernels().of(CacheFormat::int8).arithmetic == Arithmetic::float32;
    EXPECT_LT(check.relative(), float32 ? 3e-6 : 0.03) << check.name;
  }
  EXPECT_EQ(outputs, 6);
  EXPECT_EQ(exact, 8) << "codes and scales of four formats";
}

// How far each format is from the exact latents, on this draw; the file's README has the same.
TEST(CacheCase, FormatsCostWhatTheirReferencesCost) {
  const CaseFile file(kLatents);
  const detail::LatentCase c(file);
  const RowMajorMatrix exact = file.tensor("output", {8, 512}).matrix(8, 512);
  const auto error = [&](CacheFormat format) {
    const RowMajorMatrix output = c.attend(c.cache(format, simd::kernels()), simd::kernels());
    return static_cast<double>((output - exact).cwiseAbs().maxCoeff() /
                               exact.cwiseAbs().maxCoeff());
  };
  EXPECT_NEAR(error(CacheFormat::bfloat16), 0.0065, 0.0005);
  EXPECT_NEAR(error(CacheFormat::int8), 0.014, 0.0005);
  EXPECT_NEAR(error(CacheFormat::fp8), 0.093, 0.0005);
  EXPECT_NEAR(error(CacheFormat::int4), 0.077, 0.0005);
}

TEST(CacheCase, AnotherByteFails) {
  for (const std::string tensor : {"bytes", "bytes.amax_scale", "decoded", "decoded.amax_scale"}) {
    ChangedFile file(kRows);
    file.byte(tensor, 47 * 576 + 100) ^= 1;
    const auto answer = file.run();
    EXPECT_EQ(answer.status, 1) << tensor << answer.out << answer.err;
    EXPECT_NE(answer.out.find(tensor + " 1.0e+00 ("), std::string::npos) << answer.out;
  }
  for (const std::string tensor : {"int8_g128.codes", "int8_g128.scales", "int4_g32.codes",
                                   "int4_g32.scales", "fp8_g128_pow2.codes", "fp8_g128_amax.codes",
                                   "fp8_g128_amax.scales", "fp8_g128_pow2.scales"}) {
    ChangedFile file(kLatents);
    file.byte(tensor, 1000) ^= 1;
    const auto answer = file.run();
    EXPECT_EQ(answer.status, 1) << tensor << answer.out << answer.err;
    EXPECT_NE(answer.out.find(tensor + " 1.0e+00 ("), std::string::npos) << answer.out;
  }
  ChangedFile file(kLatents);
  file.byte("int4_g32.output", 4 * 700 + 2) ^= 0x40;
  EXPECT_EQ(file.run().status, 1);
}

TEST(CacheCase, FilesThatAreNoCaseAreRefusedByTheTensor) {
  const auto refused = [](const ChangedFile& file, const std::string& part) {
    const auto answer = file.run();
    EXPECT_EQ(answer.status, 2) << answer.out;
    EXPECT_EQ(std::ranges::count(answer.err, '\n'), 1) << answer.err;
    EXPECT_NE(answer.err.find(part), std::string::npos) << answer.err;
  };
  refused(ChangedFile(kRows).replace("\"input\"", "\"imput\""), "tensor input is missing");
  refused(ChangedFile(kRows).replace("[48,576]", "[576,48]"), "shape [576, 48]");
  refused(ChangedFile(kRows).replace("[48,656]", "[656,48]"), "expected U8 [48, 656]");
  refused(ChangedFile(kRows).replace("cache_rows_656", "cache_rows_657"),
          "kind cache_rows_657 is not known");
  refused(ChangedFile(kLatents).replace("softmax_scale", "softmax_scala"),
          "softmax_scale is missing");
  refused(ChangedFile(kLatents).replace("\"q_pe\"", "\"q_pa\""), "tensor q_pe is missing");
  refused(ChangedFile(kLatents).replace("\"int4_g32.scales\"", "\"int4_g32.scalez\""),
          "tensor int4_g32.scales is missing");
}

}  // namespace
}  // namespace mla::conformance
