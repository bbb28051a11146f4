#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numbers>
#include <vector>

#include "mla/simd/kernels.hpp"
#include "support/isas.hpp"
#include "support/random.hpp"

namespace mla::test {
namespace {

class RowKernel : public EveryIsa {
 protected:
  template <StorageElement T>
  void expect_every_pattern_widened() {
    std::vector<T> patterns;
    for (std::uint32_t bits = 0; bits <= 0xffff; ++bits)
      patterns.push_back(T::from_bits(static_cast<std::uint16_t>(bits)));
    std::vector<float> widened(patterns.size());
    const simd::CacheKernels& rows = kernels().of(kCacheFormatOf<T>);
    rows.widen(row_layout(kCacheFormatOf<T>, 0x10000, 0),
               reinterpret_cast<const std::byte*>(patterns.data()), widened.data());
    std::vector<float> weights(patterns.size());
    kernels()
        .of(kWeightFormatOf<T>)
        .widen({patterns.data(), 1, 0x10000}, {weights.data(), 1, 0x10000});
    ASSERT_EQ(std::memcmp(weights.data(), widened.data(), weights.size() * sizeof(float)), 0);
    for (std::size_t i = 0; i < patterns.size(); ++i) {
      const auto expected = static_cast<float>(patterns[i]);
      if (std::isnan(expected))  // the processor makes signalling NaNs quiet
        ASSERT_TRUE(std::isnan(widened[i])) << i;
      else
        ASSERT_EQ(std::bit_cast<std::uint32_t>(widened[i]), std::bit_cast<std::uint32_t>(expected))
            << i;
    }
  }

  // Any float bits at all: subnormals, ties, overflow, infinities and NaNs are among them.
  template <StorageElement T>
  void expect_conversion_of_any_bits(Index n) {
    Random random(static_cast<std::uint64_t>(n));
    std::vector<float> floats;
    for (Index i = 0; i < n; ++i) {
      auto bits = static_cast<std::uint32_t>(random.bits());
      if (random.chance(0.3)) bits &= 0xffff8000u;                      // a tie for bfloat16
      if (random.chance(0.3)) bits = 0x38000000u + bits % 0x10000000u;  // within float16's range
      floats.push_back(std::bit_cast<float>(bits));
    }
    std::vector<T> narrow(static_cast<std::size_t>(n + 1), T(7.0f));
    kernels()
        .of(kCacheFormatOf<T>)
        .encode(row_layout(kCacheFormatOf<T>, n, 0), floats.data(),
                reinterpret_cast<std::byte*>(narrow.data()));
    for (std::size_t i = 0; i < floats.size(); ++i) {
      const T expected(floats[i]);
      if (std::isnan(floats[i]))
        ASSERT_TRUE(std::isnan(static_cast<float>(narrow[i]))) << n << " " << i;
      else
        ASSERT_EQ(std::bit_cast<std::uint32_t>(static_cast<float>(narrow[i])),
                  std::bit_cast<std::uint32_t>(static_cast<float>(expected)))
            << n << " " << i << " " << floats[i];
    }
    ASSERT_EQ(static_cast<float>(narrow.back()), 7.0f) << "wrote behind the end, n " << n;
  }
};
MLA_FOR_EVERY_ISA(RowKernel);

TEST_P(RowKernel, WidensEveryPattern) {
  expect_every_pattern_widened<bfloat16>();
  expect_every_pattern_widened<float16>();
}

TEST_P(RowKernel, NarrowsAsTheTypesDoAtAllStraddlingSizes) {
  for (Index n : kStraddlingSizes) {
    expect_conversion_of_any_bits<bfloat16>(n);
    expect_conversion_of_any_bits<float16>(n);
    expect_conversion_of_any_bits<float>(n);
  }
  expect_conversion_of_any_bits<bfloat16>(200'000);
  expect_conversion_of_any_bits<float16>(200'000);
}

TEST_P(RowKernel, NormalisesByTheRootMeanSquareAtAllStraddlingSizes) {
  Random random(1);
  for (Index n : kStraddlingSizes) {
    const std::vector<float> x = random_elements<float>(n, random, 3.0);
    const std::vector<float> weight = random_elements<float>(n, random, 0.2, 1.0);
    for (float eps : {0.0f, 1e-6f, 0.5f}) {
      double squares = 0.0;
      for (float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
      const double scale =
          1.0 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(eps));
      std::vector<float> out(static_cast<std::size_t>(n + 1), 7.0f);
      kernels().rms_norm(x.data(), weight.data(), n, eps, out.data());
      // The sum of squares is within (n / 4 + 6) * 2^-24 of itself, its root within half of that;
      // five more operations round once each.
      const double bound = (static_cast<double>(n) / 8.0 + 8.0) * 0x1p-24;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double expected = static_cast<double>(x[i]) * scale * static_cast<double>(weight[i]);
        ASSERT_NEAR(static_cast<double>(out[i]), expected, bound * std::abs(expected))
            << "n " << n << " element " << i;
      }
      ASSERT_EQ(out.back(), 7.0f);

      std::vector<float> in_place = x;
      kernels().rms_norm(in_place.data(), weight.data(), n, eps, in_place.data());
      in_place.push_back(7.0f);
      ASSERT_EQ(in_place, out) << "n " << n;
    }
  }
}

TEST_P(RowKernel, NormalisingZerosGivesZeros) {
  const std::vector<float> weight(17, 1.0f);
  std::vector<float> x(17, 0.0f);
  kernels().rms_norm(x.data(), weight.data(), 17, 1e-6f, x.data());
  EXPECT_EQ(x, std::vector<float>(17, 0.0f));
}

TEST_P(RowKernel, RotatesInterleavedAndHalfSplitPairs) {
  Random random(2);
  for (Index n : {2, 4, 6, 14, 16, 18, 30, 32, 34, 64, 66, 128, 130}) {
    const Index half = n / 2;
    const std::vector<float> x = random_elements<float>(n, random);
    std::vector<float> cos, sin;
    for (Index i = 0; i < half; ++i) {
      const double angle = random.uniform(-std::numbers::pi, std::numbers::pi);
      cos.push_back(static_cast<float>(std::cos(angle)));
      sin.push_back(static_cast<float>(std::sin(angle)));
    }
    for (bool interleaved : {true, false}) {
      std::vector<float> rotated = x;
      kernels().rotate(rotated.data(), cos.data(), sin.data(), n, interleaved);
      for (Index i = 0; i < half; ++i) {
        const auto first = static_cast<std::size_t>(interleaved ? 2 * i : i);
        const auto second = static_cast<std::size_t>(interleaved ? 2 * i + 1 : i + half);
        const auto pair = static_cast<std::size_t>(i);
        const double a = static_cast<double>(x[first]), b = static_cast<double>(x[second]);
        const double c = static_cast<double>(cos[pair]), s = static_cast<double>(sin[pair]);
        // Two products and a sum, each rounded by 2^-24 of at most |a| + |b|.
        const double bound = 3.0 * 0x1p-24 * (std::abs(a) + std::abs(b));
        ASSERT_NEAR(static_cast<double>(rotated[first]), a * c - b * s, bound) << n << " " << i;
        ASSERT_NEAR(static_cast<double>(rotated[second]), a * s + b * c, bound) << n << " " << i;
      }
    }
  }
}

TEST_P(RowKernel, HalfSplitRotationIsTheInterleavedOneOfPermutedElements) {
  constexpr Index kDim = 64;
  Random random(3);
  const std::vector<float> cos = random_elements<float>(kDim / 2, random);
  const std::vector<float> sin = random_elements<float>(kDim / 2, random);
  std::vector<float> interleaved = random_elements<float>(kDim, random), split(kDim);
  for (std::size_t i = 0; i < kDim; ++i) split[i / 2 + i % 2 * kDim / 2] = interleaved[i];
  kernels().rotate(interleaved.data(), cos.data(), sin.data(), kDim, true);
  kernels().rotate(split.data(), cos.data(), sin.data(), kDim, false);
  for (std::size_t i = 0; i < kDim; ++i) EXPECT_EQ(split[i / 2 + i % 2 * kDim / 2], interleaved[i]);
}

}  // namespace
}  // namespace mla::test
