// The bytes of quantised rows, derived here number by number in double.
#include "mla/core/quantised_rows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "mla/core/cache_format.hpp"
#include "support/cache_types.hpp"
#include "support/random.hpp"

namespace mla::test {
namespace {

constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinite = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

std::vector<std::byte> encoded(const RowLayout& layout, const std::vector<float>& row) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(layout.bytes), std::byte{0x55});
  info_of(layout.format).encode(layout, row.data(), bytes.data());
  return bytes;
}
std::vector<float> decoded(const RowLayout& layout, const std::vector<std::byte>& bytes) {
  std::vector<float> row(static_cast<std::size_t>(layout.width()));
  info_of(layout.format).widen(layout, bytes.data(), row.data());
  return row;
}
template <class T>
T value_at(const std::vector<std::byte>& bytes, std::size_t at) {
  T value;
  std::memcpy(static_cast<void*>(&value), bytes.data() + at, sizeof(T));
  return value;
}
std::uint8_t byte_at(const std::vector<std::byte>& bytes, std::size_t at) {
  return static_cast<std::uint8_t>(bytes[at]);
}
std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }

// Of the codes of one sign the nearest to x; of two that are as near the even one.
std::uint8_t nearest_e4m3(float x) {
  const double magnitude = std::min(std::abs(static_cast<double>(x)), 448.0);
  std::uint8_t best = 0;
  for (std::uint8_t code = 0; code < 0x7f; ++code) {
    const auto distance = [&](std::uint8_t c) {
      return std::abs(static_cast<double>(decode_e4m3(c)) - magnitude);
    };
    if (distance(code) < distance(best) || (distance(code) == distance(best) && code % 2 == 0))
      best = code;
  }
  return static_cast<std::uint8_t>(best | (std::signbit(x) ? 0x80 : 0));
}

TEST(E4m3, RoundsToTheNearestCodeAndTiesToTheEvenOne) {
  std::vector<float> all = {0.0f,   0x1p-149f, 0x1p-126f, 448.0f,  449.0f,
                            463.9f, 464.0f,    1e10f,     kLargest};
  for (std::uint8_t code = 0; code < 0x7e; ++code) {
    const float tie = (decode_e4m3(code) + decode_e4m3(static_cast<std::uint8_t>(code + 1))) / 2.0f;
    all.insert(all.end(),
               {decode_e4m3(code), tie, std::nextafter(tie, 0.0f), std::nextafter(tie, kInfinite)});
  }
  Random random(1);
  for (int i = 0; i < 20'000; ++i)
    all.push_back(static_cast<float>(std::exp2(random.uniform(-12.0, 9.0))));
  for (const float x : all) {
    ASSERT_EQ(encode_e4m3(x), nearest_e4m3(x)) << x;
    ASSERT_EQ(encode_e4m3(-x), nearest_e4m3(-x)) << -x;
  }
  EXPECT_EQ(encode_e4m3(-0.0f), 0x80);
}

TEST(E4m3, WhatIsNotFiniteIsNaN) {
  for (const float x : {kNotANumber, kInfinite}) {
    EXPECT_EQ(encode_e4m3(x), 0x7f);
    EXPECT_EQ(encode_e4m3(-x), 0xff);
  }
}

TEST(E4m3, EveryCodeComesBack) {
  for (int code = 0; code < 256; ++code)
    EXPECT_EQ(encode_e4m3(decode_e4m3(static_cast<std::uint8_t>(code))),
              code == 0xff ? 0x7f : code);
}

TEST(QuantisedRows, HaveThePublishedSizes) {
  EXPECT_EQ(row_layout(CacheFormat::int8, 512, 64).bytes, 656);
  EXPECT_EQ(row_layout(CacheFormat::fp8, 512, 64).bytes, 656);
  EXPECT_EQ(row_layout(CacheFormat::int4, 512, 64).bytes, 416);
  // Codes, to a multiple of 4; two scales; rotary keys, to a multiple of 4.
  EXPECT_EQ(row_layout(CacheFormat::int8, 129, 3).bytes, 132 + 8 + 8);
  EXPECT_EQ(row_layout(CacheFormat::fp8, 129, 0).bytes, 132 + 8);
  EXPECT_EQ(row_layout(CacheFormat::int4, 33, 1).bytes, 18 + 4 + 2);
  EXPECT_EQ(row_layout(CacheFormat::int4, 1, 0).bytes, 2 + 2);
  EXPECT_EQ(row_layout(CacheFormat::int8, 0, 5).bytes, 12);
}

// What a format makes of a group of finite numbers, in double and by its definition.
struct ExpectedGroup {
  float scale = 0.0f;
  std::vector<int> codes;
};
ExpectedGroup expected_integers(const std::vector<float>& x, float divisor, bool bfloat16_scale) {
  ExpectedGroup group;
  float largest = 0.0f;
  for (const float v : x) largest = std::max(largest, std::abs(v));
  group.scale = largest / divisor;
  if (bfloat16_scale) group.scale = static_cast<float>(bfloat16(group.scale));
  for (const float v : x) {
    const float quotient = group.scale == 0.0f ? 0.0f : v / group.scale;
    group.codes.push_back(
        static_cast<int>(std::clamp(std::nearbyint(static_cast<double>(quotient)),
                                    -static_cast<double>(divisor), static_cast<double>(divisor))));
  }
  return group;
}

std::vector<float> random_row(Index width, Random& random) {
  std::vector<float> row;
  const double size = std::exp2(random.uniform(-20.0, 10.0));
  for (Index i = 0; i < width; ++i) {
    const double outlier = random.chance(0.02) ? 30.0 : 1.0;
    row.push_back(static_cast<float>(size * outlier * random.unit()));
  }
  return row;
}

std::vector<float> part(const std::vector<float>& row, Index first, Index count) {
  return {row.begin() + first, row.begin() + first + count};
}

TEST(QuantisedRows, Int8IsTheLatentByGroupsOf128AndRotaryKeysInFloat16) {
  Random random(2);
  for (const Index latent : {1, 3, 127, 128, 129, 256, 300, 512})
    for (const Index rope : {0, 1, 2, 64}) {
      const RowLayout layout = row_layout(CacheFormat::int8, latent, rope);
      const std::vector<float> row = random_row(latent + rope, random);
      const auto bytes = encoded(layout, row);
      const std::vector<float> numbers = decoded(layout, bytes);
      const auto scales_at = static_cast<std::size_t>((latent + 3) / 4 * 4);
      const Index groups = (latent + 127) / 128;
      for (Index g = 0; g < groups; ++g) {
        const Index first = 128 * g, count = std::min<Index>(128, latent - first);
        const ExpectedGroup group = expected_integers(part(row, first, count), 127.0f, false);
        ASSERT_EQ(value_at<float>(bytes, scales_at + 4 * static_cast<std::size_t>(g)), group.scale);
        for (Index i = 0; i < count; ++i) {
          const auto at = static_cast<std::size_t>(first + i);
          const int code = group.codes[static_cast<std::size_t>(i)];
          ASSERT_EQ(static_cast<std::int8_t>(byte_at(bytes, at)), code) << latent << " " << at;
          ASSERT_EQ(numbers[at], static_cast<float>(code) * group.scale);
        }
      }
      for (std::size_t at = static_cast<std::size_t>(latent); at < scales_at; ++at)
        ASSERT_EQ(byte_at(bytes, at), 0);
      const std::size_t rope_at = scales_at + 4 * static_cast<std::size_t>(groups);
      for (std::size_t i = 0; i < static_cast<std::size_t>(rope); ++i) {
        const float x = row[static_cast<std::size_t>(latent) + i];
        ASSERT_EQ(value_at<float16>(bytes, rope_at + 2 * i), float16(x));
        ASSERT_EQ(numbers[static_cast<std::size_t>(latent) + i], static_cast<float>(float16(x)));
      }
      for (std::size_t at = rope_at + 2 * static_cast<std::size_t>(rope); at < bytes.size(); ++at)
        ASSERT_EQ(byte_at(bytes, at), 0);
    }
}

TEST(QuantisedRows, Int4HasTheFirstHalfOfAGroupInTheLowBits) {
  Random random(3);
  for (const Index latent : {1, 2, 3, 31, 32, 33, 63, 65, 512})
    for (const Index rope : {0, 1, 64}) {
      const RowLayout layout = row_layout(CacheFormat::int4, latent, rope);
      const std::vector<float> row = random_row(latent + rope, random);
      const auto bytes = encoded(layout, row);
      const std::vector<float> numbers = decoded(layout, bytes);
      const auto scales_at = static_cast<std::size_t>(((latent + 1) / 2 + 1) / 2 * 2);
      const Index groups = (latent + 31) / 32;
      for (Index g = 0; g < groups; ++g) {
        const Index first = 32 * g, count = std::min<Index>(32, latent - first);
        const Index half = (count + 1) / 2;
        const ExpectedGroup group = expected_integers(part(row, first, count), 7.0f, true);
        const float scale = static_cast<float>(
            value_at<bfloat16>(bytes, scales_at + 2 * static_cast<std::size_t>(g)));
        ASSERT_EQ(scale, group.scale);
        for (Index i = 0; i < count; ++i) {
          const unsigned pair = byte_at(bytes, static_cast<std::size_t>(16 * g + i % half));
          const int code = static_cast<int>(i < half ? pair & 15u : pair >> 4) - 8;
          ASSERT_EQ(code, group.codes[static_cast<std::size_t>(i)]) << latent << " " << first + i;
          ASSERT_EQ(numbers[static_cast<std::size_t>(first + i)], static_cast<float>(code) * scale);
        }
        if (count % 2 == 1) {
          ASSERT_EQ(byte_at(bytes, static_cast<std::size_t>(16 * g + half - 1)) >> 4, 0);
        }
      }
      const std::size_t rope_at = scales_at + 2 * static_cast<std::size_t>(groups);
      for (std::size_t i = 0; i < static_cast<std::size_t>(rope); ++i)
        ASSERT_EQ(value_at<float16>(bytes, rope_at + 2 * i),
                  float16(row[static_cast<std::size_t>(latent) + i]));
      ASSERT_EQ(rope_at + 2 * static_cast<std::size_t>(rope), bytes.size());
    }
}

TEST(QuantisedRows, Fp8HasScalesOfPowersOfTwoOrOfTheLargestNumber) {
  Random random(4);
  for (int i = 0; i < 200; ++i) {
    const RowLayout layout = row_layout(CacheFormat::fp8, 300, 64);
    const std::vector<float> row = random_row(364, random);
    for (const bool power_of_two : {true, false}) {
      std::vector<std::byte> bytes(static_cast<std::size_t>(layout.bytes));
      (power_of_two
           ? &mla::detail::Fp8Rows<Fp8Scale::power_of_two>::encode
           : &mla::detail::Fp8Rows<Fp8Scale::largest>::encode)(layout, row.data(), bytes.data());
      ASSERT_EQ(power_of_two, bytes == encoded(layout, row)) << "one is the default";
      const std::vector<float> numbers = decoded(layout, bytes);
      for (Index g = 0; g < 3; ++g) {
        const Index first = 128 * g, count = std::min<Index>(128, 300 - first);
        float largest = 0.0f;
        for (const float x : part(row, first, count)) largest = std::max(largest, std::abs(x));
        float scale = std::max(largest / 448.0f, 0x1p-126f);
        if (power_of_two) {
          scale = 0x1p-13f;  // the power above 1e-4
          while (scale < largest / 448.0f) scale *= 2.0f;
        }
        ASSERT_EQ(value_at<float>(bytes, 300 + 4 * static_cast<std::size_t>(g)), scale) << largest;
        for (Index k = first; k < first + count; ++k) {
          const auto at = static_cast<std::size_t>(k);
          ASSERT_EQ(byte_at(bytes, at), nearest_e4m3(row[at] / scale)) << row[at] << " " << scale;
          ASSERT_EQ(bits_of(numbers[at]), bits_of(decode_e4m3(byte_at(bytes, at)) * scale));
        }
      }
      for (std::size_t k = 0; k < 64; ++k)
        ASSERT_EQ(value_at<bfloat16>(bytes, 312 + 2 * k), bfloat16(row[300 + k]));
    }
  }
}

TEST(QuantisedRows, AGroupOfZerosHasCodesOfZero) {
  for (const float zero : {0.0f, -0.0f}) {
    const std::vector<float> row(576, zero);
    const auto int8 = encoded(row_layout(CacheFormat::int8, 512, 64), row);
    for (std::size_t i = 0; i < 528; ++i) ASSERT_EQ(byte_at(int8, i), 0) << i;
    const auto int4 = encoded(row_layout(CacheFormat::int4, 512, 64), row);
    for (std::size_t i = 0; i < 256; ++i) ASSERT_EQ(byte_at(int4, i), 0x88) << i;
    for (std::size_t i = 256; i < 288; ++i) ASSERT_EQ(byte_at(int4, i), 0) << i;
    const auto fp8 = encoded(row_layout(CacheFormat::fp8, 512, 64), row);
    const std::uint8_t signed_zero = std::signbit(zero) ? 0x80 : 0;
    for (std::size_t i = 0; i < 512; ++i) ASSERT_EQ(byte_at(fp8, i), signed_zero) << i;
    for (std::size_t g = 0; g < 4; ++g) ASSERT_EQ(value_at<float>(fp8, 512 + 4 * g), 0x1p-13f);
    for (const auto& bytes : {int8, int4, fp8})
      for (std::size_t i = bytes.size() - 128; i < bytes.size(); i += 2)
        ASSERT_EQ(value_at<std::uint16_t>(bytes, i), std::signbit(zero) ? 0x8000 : 0);
    for (const CacheFormat format : kQuantised) {
      const RowLayout layout = row_layout(format, 512, 64);
      for (const float x : decoded(layout, encoded(layout, row))) ASSERT_EQ(x, 0.0f);
    }
  }
}

// Half a step of the scale, which is the largest number's share.
TEST(QuantisedRows, HugeNumbersStayFinite) {
  for (const float huge : {1e38f, std::nextafter(kLargest, 0.0f), kLargest}) {
    std::vector<float> row(128, huge / 2.0f);
    row[5] = -huge;
    for (const CacheFormat format : {CacheFormat::int8, CacheFormat::int4}) {
      const RowLayout layout = row_layout(format, 128, 0);
      const std::vector<float> numbers = decoded(layout, encoded(layout, row));
      const double step = format == CacheFormat::int8 ? 1.0 / 127 : 1.0 / 7;
      for (std::size_t i = 0; i < 128; ++i)
        ASSERT_NEAR(static_cast<double>(numbers[i]) / static_cast<double>(huge),
                    static_cast<double>(row[i]) / static_cast<double>(huge), 0.51 * step);
    }
  }
  // FlashMLA's power of two for these is 2^120, of which 256 is beyond float32.
  const RowLayout layout = row_layout(CacheFormat::fp8, 1, 0);
  EXPECT_EQ(decoded(layout, encoded(layout, {3.2e38f}))[0], 240.0f * 0x1p120f);
  EXPECT_EQ(byte_at(encoded(layout, {kLargest}), 0), encode_e4m3(256.0f));
}

TEST(QuantisedRows, SubnormalNumbersHaveDefinedBytes) {
  // 190 steps of the smallest number there is: a scale of one step, codes up to 127.
  const RowLayout int8 = row_layout(CacheFormat::int8, 3, 0);
  const auto bytes = encoded(int8, {190.0f * 0x1p-149f, -100.0f * 0x1p-149f, 0x1p-149f});
  EXPECT_EQ(value_at<float>(bytes, 4), 0x1p-149f);
  EXPECT_EQ(byte_at(bytes, 0), 127);
  EXPECT_EQ(static_cast<std::int8_t>(byte_at(bytes, 1)), -100);
  EXPECT_EQ(byte_at(bytes, 2), 1);
  // Too small for a scale: zeros.
  const auto zeros = encoded(int8, {63.0f * 0x1p-149f, -0x1p-149f, 0.0f});
  EXPECT_EQ(zeros, std::vector<std::byte>(8));
  const RowLayout int4 = row_layout(CacheFormat::int4, 2, 0);
  EXPECT_EQ(value_at<std::uint32_t>(encoded(int4, {0x1p-140f, 0.0f}), 0), 0x88u);
  const RowLayout fp8 = row_layout(CacheFormat::fp8, 2, 0);
  const auto floored = encoded(fp8, {1e-40f, -1e-40f});
  EXPECT_EQ(byte_at(floored, 0), 0x00);
  EXPECT_EQ(byte_at(floored, 1), 0x80);
  EXPECT_EQ(value_at<float>(floored, 4), 0x1p-13f);
}

TEST(QuantisedRows, WhatIsNotFiniteStaysVisible) {
  for (const float bad : {kNotANumber, -kNotANumber, kInfinite, -kInfinite}) {
    std::vector<float> row(300, 1.0f);
    row[130] = bad;
    for (const CacheFormat format : kQuantised) {
      const RowLayout layout = row_layout(format, 300, 0);
      const std::vector<float> numbers = decoded(layout, encoded(layout, row));
      const bool alone = format == CacheFormat::fp8;  // E4M3 has a NaN
      const Index group = format == CacheFormat::int4 ? 32 : 128;
      for (Index i = 0; i < 300; ++i) {
        const bool spoiled = alone ? i == 130 : i / group == 130 / group;
        ASSERT_EQ(std::isnan(numbers[static_cast<std::size_t>(i)]), spoiled) << i;
        if (!spoiled) {
          ASSERT_NEAR(numbers[static_cast<std::size_t>(i)], 1.0f, 0.01f);
        }
      }
    }
    const auto int8 = encoded(row_layout(CacheFormat::int8, 300, 0), row);
    EXPECT_EQ(value_at<std::uint32_t>(int8, 304), 0x7fc00000u);
    for (std::size_t i = 128; i < 256; ++i) ASSERT_EQ(byte_at(int8, i), 0);
    const auto int4 = encoded(row_layout(CacheFormat::int4, 300, 0), row);
    EXPECT_EQ(value_at<std::uint16_t>(int4, 150 + 8), 0x7fc0);
    for (std::size_t i = 64; i < 80; ++i) ASSERT_EQ(byte_at(int4, i), 0x88);
    const auto fp8 = encoded(row_layout(CacheFormat::fp8, 300, 0), row);
    EXPECT_EQ(byte_at(fp8, 130), std::signbit(bad) ? 0xff : 0x7f);
    EXPECT_EQ(value_at<float>(fp8, 304), 0x1p-8f);  // of the others: 1 / 448, rounded up
  }
}

TEST(QuantisedRows, RotaryKeysInFloat16SaturateAndKeepWhatIsNotFinite) {
  const std::vector<float> row = {1.0f,   65519.0f,  65520.0f,   -1e10f,   kLargest,
                                  -65504, kInfinite, -kInfinite, 0x1p-24f, 3e-8f};
  const std::vector<std::uint16_t> expected = {0x3c00, 0x7bff, 0x7bff, 0xfbff, 0x7bff,
                                               0xfbff, 0x7c00, 0xfc00, 0x0001, 0x0001};
  for (const CacheFormat format : {CacheFormat::int8, CacheFormat::int4}) {
    const RowLayout layout = row_layout(format, 0, 10);
    const auto bytes = encoded(layout, row);
    for (std::size_t i = 0; i < 10; ++i)
      EXPECT_EQ(value_at<std::uint16_t>(bytes, 2 * i), expected[i]) << i;
    EXPECT_TRUE(
        std::isnan(decoded(layout, encoded(layout, std::vector<float>(10, kNotANumber)))[9]));
    EXPECT_EQ(info_of(format).rope_limit, 65520.0f);
  }
  EXPECT_EQ(info_of(CacheFormat::fp8).rope_limit, kInfinite);
}

}  // namespace
}  // namespace mla::test
