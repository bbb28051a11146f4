#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "mla/core/weight_view.hpp"
#include "support/message_of.hpp"
#include "support/quantised_matrix.hpp"
#include "support/random.hpp"

namespace mla::test {
namespace {

// Two bytes of codes per row, a scale for two columns.
TEST(WeightFormat, Int4IsOffsetBinaryWithEvenColumnsInTheLowHalf) {
  const std::uint8_t codes[] = {0x80, 0xf1, 0x78, 0x29};
  const float scales[] = {1.0f, 10.0f, 100.0f, 1000.0f};
  const WeightView weight(codes, WeightFormat::int4, 2, 4,
                          Scales{.data = scales, .block_cols = 2, .stride = 2});
  float values[8] = {};
  info_of(weight.format).widen(weight, {values, 2, 4});
  const float expected[] = {-8, 0, -70, 70, 0, -100, 1000, -6000};
  for (int i = 0; i < 8; ++i) EXPECT_EQ(values[i], expected[i]) << i;
}

TEST(WeightFormat, ZeroPointsOfEightRowsShareAWord) {
  const std::vector<std::uint8_t> codes(9, 0x5a);  // 10, then 5
  const std::vector<float> scales(18, 0.5f);
  // Of group 0 of rows 0 to 7, of group 1; then of row 8.
  const std::uint32_t zero_points[] = {0x76543210, 0x00000001, 0x0000000f, 0x00000005};
  const WeightView weight(
      codes.data(), WeightFormat::int4, 9, 2,
      Scales{.data = scales.data(), .block_cols = 1, .stride = 2, .zero_points = zero_points});
  float values[18] = {};
  info_of(weight.format).widen(weight, {values, 9, 2});
  for (int r = 0; r < 8; ++r) {
    EXPECT_EQ(values[2 * r], 0.5f * static_cast<float>(10 - r)) << r;
    EXPECT_EQ(values[2 * r + 1], 0.5f * static_cast<float>(5 - (r == 0 ? 1 : 0))) << r;
  }
  EXPECT_EQ(values[16], -2.5f);
  EXPECT_EQ(values[17], 0.0f);
}

// 1/3 is not a float, nor is its product with a scale: both are rounded, the code's product too.
TEST(WeightFormat, TheGlobalScaleOfNvfp4IsMultipliedFirst) {
  const std::uint8_t codes[] = {0x75};   // 3 and 6
  const std::uint8_t scales[] = {0x39};  // 1.125
  const float factor = 1.0f / 3.0f, scale = 1.125f * factor;
  const WeightView weight(codes, WeightFormat::fp4_e2m1, 1, 2,
                          Scales{.data = scales,
                                 .format = ScaleFormat::fp8_e4m3,
                                 .block_cols = 16,
                                 .stride = 1,
                                 .factor = factor});
  float values[2] = {};
  info_of(weight.format).widen(weight, {values, 1, 2});
  EXPECT_EQ(values[0], 3.0f * scale);
  EXPECT_EQ(values[1], 6.0f * scale);
}

TEST(WeightFormat, AnyPartOfAMatrixIsWidenedByDefinition) {
  Random random(7);
  for (const Quantisation& q : kQuantisations)
    for (const Index cols : {1, 9, 32, 150}) {
      const QuantisedMatrix matrix(q, 137, cols, random);
      for (int sample = 0; sample < 20; ++sample) {
        const Index r = random.integer(0, 136), c = random.integer(0, cols - 1);
        const Index rows = random.integer(1, 137 - r), width = random.integer(1, cols - c);
        const WeightView part = matrix.view().row_range(r, rows).col_range(c, width);
        RowMajorMatrix values(rows, width);
        info_of(q.format).widen(part, {values.data(), rows, width});
        for (Index i = 0; i < rows; ++i)
          for (Index j = 0; j < width; ++j)
            ASSERT_EQ(values(i, j), matrix.at(r + i, c + j)) << q << " " << r + i << " " << c + j;
      }
    }
}

TEST(WeightFormat, BytesOfAPartAreThoseThatItTouches) {
  Random random(8);
  const QuantisedMatrix int4({WeightFormat::int4, ScaleFormat::bfloat16, 1, 32}, 10, 70, random);
  EXPECT_EQ(int4.view().bytes(), 10 * 35);
  EXPECT_EQ(int4.view().scale_bytes(), 10 * 3 * 2);
  const WeightView part = int4.view().row_range(2, 4).col_range(31, 2);  // bytes 15 and 16
  EXPECT_EQ(part.bytes(), 4 * 2);
  EXPECT_EQ(part.scale_bytes(), 4 * 2 * 2);
  EXPECT_EQ(part.col_range(1, 1).bytes(), 4 * 1);
  EXPECT_EQ(part.col_range(1, 1).scale_bytes(), 4 * 2);

  const QuantisedMatrix zero({WeightFormat::int4, ScaleFormat::bfloat16, 1, 32, true}, 10, 70,
                             random);
  EXPECT_EQ(zero.view().scale_bytes(), 10 * 3 * 2 + 2 * 3 * 4);
  EXPECT_EQ(zero.view().row_range(7, 2).scale_bytes(), 2 * 3 * 2 + 2 * 3 * 4);

  const QuantisedMatrix fp8({WeightFormat::fp8_e4m3, ScaleFormat::float32, 128, 128}, 300, 200,
                            random);
  EXPECT_EQ(fp8.view().bytes(), 300 * 200);
  EXPECT_EQ(fp8.view().scale_bytes(), 3 * 2 * 4);
  EXPECT_EQ(fp8.view().row_range(127, 2).col_range(127, 1).scale_bytes(), 2 * 4);
  EXPECT_EQ(fp8.view().row_range(0, 0).scale_bytes(), 0);
  const float plain[6] = {};
  EXPECT_EQ(WeightView(plain, 2, 3).bytes(), 24);
  EXPECT_EQ(WeightView(plain, 2, 3).scale_bytes(), 0);
}

TEST(WeightFormat, WhatDoesNotFitIsRefusedByName) {
  const std::uint8_t codes[64] = {};
  const float scales[64] = {};
  const std::uint32_t zero_points[8] = {};
  const char* const fits = "nothing was thrown";
  const auto message = [&](WeightFormat format, Index cols, const Scales& of) {
    const WeightView weight(codes, format, 4, cols, of);
    return message_of([&] { require_shape("q_proj", weight, 4, cols); });
  };
  Scales channel{.data = scales, .block_cols = 8, .stride = 1};
  EXPECT_EQ(message(WeightFormat::int4, 8, channel), fits);
  EXPECT_EQ(message(WeightFormat::int4, 7, channel),
            "tensor q_proj has a stride of 7 elements of 4 bits, which is not a whole number of "
            "bytes");
  EXPECT_EQ(message(WeightFormat::fp8_e4m3, 8, {}), "tensor q_proj of format fp8 needs scales");
  EXPECT_EQ(message(WeightFormat::bfloat16, 8, channel),
            "tensor q_proj of format bf16 has scales, which this format does not use");
  channel.zero_points = zero_points;
  EXPECT_EQ(message(WeightFormat::int4, 8, channel), fits);
  EXPECT_EQ(message(WeightFormat::int8, 8, channel),
            "tensor q_proj of format int8 has zero points for blocks of 1 rows; int4 has them, for "
            "each row");
  channel.block_rows = 2;
  EXPECT_EQ(message(WeightFormat::int4, 8, channel),
            "tensor q_proj of format int4 has zero points for blocks of 2 rows; int4 has them, for "
            "each row");
}

}  // namespace
}  // namespace mla::test
