#include "mla/simd/isa.hpp"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "mla/simd/kernels.hpp"
#include "support/isas.hpp"

namespace mla::test {
namespace {

using simd::Arithmetic;
using simd::Isa;

// Sets MLA_ISA, or takes it away, until the end of the scope.
class IsaVariable {
 public:
  explicit IsaVariable(const char* value) {
    if (const char* old = std::getenv("MLA_ISA")) old_ = old;
    set(value);
  }
  ~IsaVariable() { set(old_ ? old_->c_str() : nullptr); }
  IsaVariable(const IsaVariable&) = delete;
  IsaVariable& operator=(const IsaVariable&) = delete;

 private:
  static void set(const char* value) {
    if (value)
      ::setenv("MLA_ISA", value, 1);
    else
      ::unsetenv("MLA_ISA");
  }
  std::optional<std::string> old_;
};

TEST(Isa, NamesAndIsasAreOneToOne) {
  for (Isa isa : simd::kAllIsas) EXPECT_EQ(simd::isa_from_name(simd::name_of(isa)), isa);
  EXPECT_EQ(simd::isa_from_name("sse9"), std::nullopt);
  EXPECT_EQ(simd::isa_from_name(""), std::nullopt);
  EXPECT_EQ(simd::isa_from_name("AVX2"), std::nullopt);
}

TEST(Isa, ScalarRunsEverywhere) {
  EXPECT_TRUE(simd::is_supported(Isa::scalar));
  EXPECT_EQ(simd::best_isa(Arithmetic::bfloat16, Isa::scalar), Isa::scalar);
}

TEST(Isa, NeonRunsOnEveryAArch64AndNowhereElse) {
#if defined(__aarch64__)
  EXPECT_EQ(supported_isas(Arithmetic::float32), (std::vector{Isa::scalar, Isa::neon}));
#else
  EXPECT_FALSE(simd::is_supported(Isa::neon));
#endif
}

#if defined(__aarch64__) && defined(__linux__)
// What the kernel says of the processor, from the file and not from the C library.
unsigned long second_hardware_capabilities() {
  std::ifstream file("/proc/self/auxv", std::ios::binary);
  constexpr unsigned long kHwcap2 = 26;
  unsigned long entry[2] = {};
  while (file.read(reinterpret_cast<char*>(entry), sizeof(entry)))
    if (entry[0] == kHwcap2) return entry[1];
  return 0;
}
#endif

TEST(Isa, NeonBf16RunsWhereTheSystemReportsTheInstructionsAndNowhereElse) {
#if defined(__aarch64__) && defined(__linux__)
  const bool reported = (second_hardware_capabilities() >> 14 & 1) != 0;  // "bf16" in cpuinfo
  EXPECT_EQ(simd::is_supported(Isa::neon_bf16), reported);
  EXPECT_EQ(simd::best_isa(Arithmetic::bfloat16), reported ? Isa::neon_bf16 : Isa::neon);
  EXPECT_EQ(simd::best_isa(), Isa::neon);
#elif !defined(__aarch64__)
  EXPECT_FALSE(simd::is_supported(Isa::neon_bf16));
#endif
}

TEST(Isa, TheBestIsSupportedPreciseAndNotAboveTheLimit) {
  for (Arithmetic precision : {Arithmetic::float32, Arithmetic::bfloat16})
    for (Isa limit : simd::kAllIsas) {
      const Isa best = simd::best_isa(precision, limit);
      EXPECT_TRUE(simd::is_supported(best));
      EXPECT_LE(best, limit);
      EXPECT_LE(simd::arithmetic_of(best), precision);
      for (Isa isa : supported_isas())
        EXPECT_TRUE(isa > limit || simd::arithmetic_of(isa) > precision || isa <= best);
    }
  EXPECT_EQ(simd::best_isa(Arithmetic::bfloat16), supported_isas().back());
}

TEST(Isa, TheEnvironmentVariableLowersTheDefault) {
  for (Isa isa : simd::kAllIsas) {
    const IsaVariable variable(std::string(simd::name_of(isa)).c_str());
    for (Arithmetic precision : {Arithmetic::float32, Arithmetic::bfloat16})
      EXPECT_EQ(simd::default_isa(precision), simd::best_isa(precision, isa));
  }
}

TEST(Isa, AnUnknownOrMissingVariableChangesNothing) {
  for (const char* value : {"sse9", "", static_cast<const char*>(nullptr)}) {
    const IsaVariable variable(value);
    EXPECT_EQ(simd::default_isa(), simd::best_isa());
  }
}

TEST(Kernels, TheTableOfAnIsaIsItsOwnOrTheBestBelow) {
  for (Isa isa : simd::kAllIsas)
    EXPECT_EQ(simd::kernels_for(isa).isa, simd::best_isa(simd::arithmetic_of(isa), isa));
}

TEST(Kernels, NoEntryRoundsMoreThanTheArithmeticAllows) {
  for (Arithmetic arithmetic : {Arithmetic::float32, Arithmetic::bfloat16, Arithmetic::int8})
    for (Isa isa : simd::kAllIsas) {
      const simd::Kernels& kernels = simd::kernels_for(isa, arithmetic);
      EXPECT_EQ(kernels.isa, simd::best_isa(arithmetic, isa));
      for (const simd::LinearKernels& entry : kernels.weights)
        EXPECT_LE(entry.arithmetic, arithmetic);
      for (const simd::CacheKernels& entry : kernels.caches)
        EXPECT_LE(entry.arithmetic, arithmetic);
    }
}

// What can be computed exactly at full speed is: only bfloat16 numbers are rounded for, and cached
// ones of fewer bits.
TEST(Kernels, OnlyFormatsOfBFloat16AndFewerBitsComputeInBFloat16) {
  for (Isa isa : supported_isas()) {
    const simd::Kernels& kernels = simd::kernels_for(isa);
    EXPECT_EQ(kernels.of(WeightFormat::bfloat16).arithmetic, simd::arithmetic_of(isa));
    for (const CacheFormat format :
         {CacheFormat::bfloat16, CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4})
      EXPECT_EQ(kernels.of(format).arithmetic, simd::arithmetic_of(isa));
    EXPECT_EQ(kernels.of(WeightFormat::float32).arithmetic, Arithmetic::float32);
    EXPECT_EQ(kernels.of(WeightFormat::float16).arithmetic, Arithmetic::float32);
    EXPECT_EQ(kernels.of(CacheFormat::float32).arithmetic, Arithmetic::float32);
    EXPECT_EQ(kernels.of(CacheFormat::float16).arithmetic, Arithmetic::float32);
  }
}

// kernels() chooses once in a process: ask in a copy of this one, which has not asked yet. (To
// start it afresh is not possible under an emulator.)
TEST(KernelsDeathTest, TheProcessFollowsTheEnvironmentVariable) {
  GTEST_FLAG_SET(death_test_style, "fast");
  const IsaVariable variable("scalar");
  EXPECT_EXIT(std::exit(simd::kernels().isa == Isa::scalar ? 0 : 1), ::testing::ExitedWithCode(0),
              "");
}

}  // namespace
}  // namespace mla::test
