#include "mla/core/float8.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

namespace mla {
namespace {

static_assert(decode_e4m3(0x7e) == 448.0f && decode_e4m3(0xfe) == -448.0f);
static_assert(decode_e4m3(0x01) == 0x1p-9f && decode_e4m3(0x08) == 0x1p-6f);
static_assert(decode_e8m0(127) == 1.0f && decode_e8m0(254) == 0x1p127f);
static_assert(decode_e2m1(0x1) == 0.5f && decode_e2m1(0xf) == -6.0f);

// The definition of the format, written with ldexp instead of bits.
double e4m3_by_definition(int code) {
  const int exponent = code / 8 % 16, mantissa = code % 8;
  const double sign = code < 128 ? 1.0 : -1.0;
  if (exponent == 0) return sign * std::ldexp(mantissa, -9);
  return sign * std::ldexp(1.0 + mantissa / 8.0, exponent - 7);
}

TEST(Float8, All256CodesOfE4M3AreExact) {
  for (int code = 0; code < 256; ++code) {
    const float decoded = decode_e4m3(static_cast<std::uint8_t>(code));
    if (code % 128 == 127) {
      EXPECT_TRUE(std::isnan(decoded)) << code;
    } else {
      EXPECT_EQ(decoded, e4m3_by_definition(code)) << code;
      EXPECT_EQ(std::signbit(decoded), code >= 128) << code;
    }
  }
}

TEST(Float8, All256CodesOfE8M0AreExact) {
  for (int code = 0; code < 255; ++code)
    EXPECT_EQ(decode_e8m0(static_cast<std::uint8_t>(code)), std::ldexp(1.0, code - 127)) << code;
  EXPECT_TRUE(std::isnan(decode_e8m0(255)));
}

// Two exponent bits with bias 1, a mantissa bit, no infinities and no NaN.
TEST(Float8, All16CodesOfE2M1AreExact) {
  for (int code = 0; code < 16; ++code) {
    const int exponent = code / 2 % 4, mantissa = code % 2;
    const double magnitude =
        exponent == 0 ? mantissa / 2.0 : std::ldexp(1.0 + mantissa / 2.0, exponent - 1);
    const float decoded = decode_e2m1(static_cast<std::uint8_t>(code));
    EXPECT_EQ(std::abs(decoded), magnitude) << code;
    EXPECT_EQ(std::signbit(decoded), code >= 8) << code;
  }
}

}  // namespace
}  // namespace mla
