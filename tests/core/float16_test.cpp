#include "mla/core/float16.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "support/random.hpp"

namespace mla::test {
namespace {

// What the two formats are, in numbers: all that the independent rounding below needs.
template <class T>
struct Format;
template <>
struct Format<bfloat16> {
  static constexpr int kPrecision = 8, kMinExponent = -126;
  static constexpr double kMax = 0x1.fep127;
  static constexpr std::uint16_t kInfinity = 0x7f80;
  static constexpr const char* kName = "BFloat16";
};
template <>
struct Format<float16> {
  static constexpr int kPrecision = 11, kMinExponent = -14;
  static constexpr double kMax = 65504.0;
  static constexpr std::uint16_t kInfinity = 0x7c00;
  static constexpr const char* kName = "Float16";
};

// The nearest value of the format, ties to even: scales one unit in the last place to 1 and lets
// the processor round a double.
template <class T>
double nearest(double value) {
  int exponent = 0;
  std::frexp(value, &exponent);  // value = m * 2^exponent, 0.5 <= |m| < 1
  const int unit = std::max(exponent - 1, Format<T>::kMinExponent) - (Format<T>::kPrecision - 1);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, -unit)), unit);
  if (std::abs(rounded) <= Format<T>::kMax) return rounded;
  return std::copysign(std::numeric_limits<double>::infinity(), value);
}

template <class T>
class SixteenBitFloat : public ::testing::Test {};
struct Names {
  template <class T>
  static std::string GetName(int) {
    return Format<T>::kName;
  }
};
using Formats = ::testing::Types<bfloat16, float16>;
TYPED_TEST_SUITE(SixteenBitFloat, Formats, Names);

TYPED_TEST(SixteenBitFloat, EveryPatternSurvivesARoundTripThroughFloat) {
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const auto value = TypeParam::from_bits(static_cast<std::uint16_t>(bits));
    const TypeParam back(static_cast<float>(value));
    if ((bits & 0x7fff) > Format<TypeParam>::kInfinity)
      ASSERT_TRUE(std::isnan(static_cast<float>(back))) << bits;
    else
      ASSERT_EQ(back.bits, bits);
  }
}

TYPED_TEST(SixteenBitFloat, EveryPatternHasTheValueOfItsFields) {
  constexpr int kMantissaBits = Format<TypeParam>::kPrecision - 1;
  for (std::uint32_t bits = 0; bits < Format<TypeParam>::kInfinity; ++bits) {
    const int exponent = static_cast<int>(bits >> kMantissaBits);
    const int mantissa = static_cast<int>(bits & ((1u << kMantissaBits) - 1u));
    const int significand = exponent > 0 ? mantissa + (1 << kMantissaBits) : mantissa;
    const double value = std::ldexp(
        significand, std::max(exponent, 1) - 1 + Format<TypeParam>::kMinExponent - kMantissaBits);
    const auto sixteen = static_cast<std::uint16_t>(bits);
    const auto negative = static_cast<std::uint16_t>(bits | 0x8000);
    ASSERT_EQ(static_cast<double>(static_cast<float>(TypeParam::from_bits(sixteen))), value);
    ASSERT_EQ(static_cast<double>(static_cast<float>(TypeParam::from_bits(negative))), -value);
  }
}

TYPED_TEST(SixteenBitFloat, TiesBetweenNeighboursGoToTheEvenOne) {
  constexpr float kOverflow = std::numeric_limits<float>::infinity();
  for (std::uint16_t bits = 0; bits + 1 < Format<TypeParam>::kInfinity; ++bits) {
    const auto low = static_cast<float>(TypeParam::from_bits(bits));
    const auto high =
        static_cast<float>(TypeParam::from_bits(static_cast<std::uint16_t>(bits + 1)));
    const float middle = low + (high - low) / 2.0f;  // one bit more: exact
    const std::uint16_t even = bits % 2 == 0 ? bits : static_cast<std::uint16_t>(bits + 1);
    ASSERT_EQ(TypeParam(middle).bits, even) << middle;
    ASSERT_EQ(TypeParam(-middle).bits, even | 0x8000) << -middle;
    ASSERT_EQ(TypeParam(std::nextafter(middle, 0.0f)).bits, bits) << middle;
    ASSERT_EQ(TypeParam(std::nextafter(middle, kOverflow)).bits, bits + 1) << middle;
  }
}

TYPED_TEST(SixteenBitFloat, RoundsEveryMagnitudeAsADoubleDoes) {
  Random random(1);
  for (int i = 0; i < 1'000'000; ++i) {
    // All float exponents are equally likely, subnormals and overflow among them.
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(random.bits()));
    if (std::isnan(value)) continue;
    const double expected =
        std::isinf(value) ? static_cast<double>(value) : nearest<TypeParam>(value);
    ASSERT_EQ(static_cast<double>(static_cast<float>(TypeParam(value))), expected) << value;
  }
}

TYPED_TEST(SixteenBitFloat, OverflowBeginsHalfAStepAboveTheLargestValue) {
  const double step =
      Format<TypeParam>::kMax - static_cast<double>(static_cast<float>(TypeParam::from_bits(
                                    static_cast<std::uint16_t>(Format<TypeParam>::kInfinity - 2))));
  const auto limit = static_cast<float>(Format<TypeParam>::kMax + step / 2.0);
  EXPECT_EQ(TypeParam(limit).bits, Format<TypeParam>::kInfinity);
  EXPECT_EQ(TypeParam(-limit).bits, Format<TypeParam>::kInfinity | 0x8000);
  EXPECT_EQ(TypeParam(std::nextafter(limit, 0.0f)).bits, Format<TypeParam>::kInfinity - 1);
}

TYPED_TEST(SixteenBitFloat, NaNStaysNaNWhateverItsPayload) {
  for (std::uint32_t payload = 1; payload < 0x00800000u; payload = payload * 2 + 1)
    for (std::uint32_t sign : {0u, 0x80000000u}) {
      // The lowest payload bits alone must not be cut off into an infinity, nor rounding overflow.
      const auto nan = std::bit_cast<float>(sign | 0x7f800000u | payload);
      EXPECT_TRUE(std::isnan(static_cast<float>(TypeParam(nan)))) << std::hex << payload;
    }
}

TYPED_TEST(SixteenBitFloat, ComparesAsFloatsDo) {
  EXPECT_EQ(TypeParam(0.0f), TypeParam(-0.0f));
  EXPECT_NE(TypeParam(1.0f), TypeParam(-1.0f));
  const TypeParam nan(std::numeric_limits<float>::quiet_NaN());
  EXPECT_FALSE(nan == nan);
}

TYPED_TEST(SixteenBitFloat, ConvertsAtCompileTime) {
  static_assert(static_cast<float>(TypeParam(1.5f)) == 1.5f);
  static_assert(TypeParam(-0.0f).bits == 0x8000);
  static_assert(TypeParam{}.bits == 0);
}

}  // namespace
}  // namespace mla::test
