#include "mla/io/fp8.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <vector>

namespace mla {
namespace {

static_assert(decode_e4m3(0x7e) == 448.0f && decode_e4m3(0xfe) == -448.0f);
static_assert(decode_e4m3(0x01) == 0x1p-9f && decode_e4m3(0x08) == 0x1p-6f);
static_assert(decode_e8m0(127) == 1.0f && decode_e8m0(254) == 0x1p127f);

// The definition of the format, written with ldexp instead of bits.
double e4m3_by_definition(int code) {
  const int exponent = code / 8 % 16, mantissa = code % 8;
  const double sign = code < 128 ? 1.0 : -1.0;
  if (exponent == 0) return sign * std::ldexp(mantissa, -9);
  return sign * std::ldexp(1.0 + mantissa / 8.0, exponent - 7);
}

TEST(Fp8, All256CodesOfE4M3AreExact) {
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

TEST(Fp8, All256CodesOfE8M0AreExact) {
  for (int code = 0; code < 255; ++code)
    EXPECT_EQ(decode_e8m0(static_cast<std::uint8_t>(code)), std::ldexp(1.0, code - 127)) << code;
  EXPECT_TRUE(std::isnan(decode_e8m0(255)));
}

TEST(Fp8, BlocksCoverTheEdges) {
  EXPECT_EQ(blocks_of(128, 129, {128, 128}), (BlockSize{1, 2}));
  EXPECT_EQ(blocks_of(1, 576, {128, 128}), (BlockSize{1, 5}));
  EXPECT_EQ(blocks_of(7, 3, {2, 3}), (BlockSize{4, 1}));
}

TEST(Fp8, EachElementTakesTheScaleOfItsBlock) {
  for (const BlockSize block : {BlockSize{2, 3}, BlockSize{5, 7}, BlockSize{128, 128}}) {
    constexpr Index kRows = 5, kCols = 7;
    const auto [block_rows, block_cols] = blocks_of(kRows, kCols, block);
    std::vector<std::uint8_t> codes(kRows * kCols);
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(37 * i);
    std::vector<float> scale(static_cast<std::size_t>(block_rows * block_cols));
    for (std::size_t i = 0; i < scale.size(); ++i) scale[i] = 0.001f * static_cast<float>(i + 1);
    std::vector<bfloat16> out(codes.size());
    dequantize_fp8({codes.data(), kRows, kCols}, {scale.data(), block_rows, block_cols}, block,
                   {out.data(), kRows, kCols});
    for (Index r = 0; r < kRows; ++r) {
      for (Index c = 0; c < kCols; ++c) {
        const auto at = static_cast<std::size_t>(r * kCols + c);
        const float factor =
            scale[static_cast<std::size_t>(r / block[0] * block_cols + c / block[1])];
        const double exact = e4m3_by_definition(codes[at]) * factor;
        if (codes[at] % 128 == 127)
          EXPECT_TRUE(std::isnan(float(out[at])));
        else  // rounded to 24 bits and then to 8
          EXPECT_NEAR(float(out[at]), exact, std::abs(exact) * (0x1p-8 + 0x1p-23));
      }
    }
  }
}

TEST(Fp8, RoundsToNearestEven) {
  const std::uint8_t one = 0x38;
  const auto rounded = [&](float scale) {
    bfloat16 out;
    dequantize_fp8({&one, 1, 1}, {&scale, 1, 1}, {128, 128}, {&out, 1, 1});
    return float(out);
  };
  EXPECT_EQ(rounded(1.0f + 0x1p-8f), 1.0f);                       // a tie, down to even
  EXPECT_EQ(rounded(1.0f + 0x1p-8f + 0x1p-23f), 1.0f + 0x1p-7f);  // just above it
  EXPECT_EQ(rounded(1.0f + 0x1.8p-7f), 1.0f + 0x1p-6f);           // a tie, up to even
}

TEST(Fp8, ShapesThatDoNotFitAreRefused) {
  const std::vector<std::uint8_t> codes(6);
  const std::vector<float> scale(2);
  std::vector<bfloat16> out(6);
  const MatrixView<const std::uint8_t> weight(codes.data(), 2, 3);
  EXPECT_THROW(dequantize_fp8(weight, {scale.data(), 1, 2}, {128, 128}, {out.data(), 2, 3}),
               std::invalid_argument);
  EXPECT_THROW(dequantize_fp8(weight, {scale.data(), 1, 1}, {128, 128}, {out.data(), 3, 2}),
               std::invalid_argument);
  EXPECT_THROW(dequantize_fp8(weight, {scale.data(), 1, 1}, {0, 128}, {out.data(), 2, 3}),
               std::invalid_argument);
}

}  // namespace
}  // namespace mla
