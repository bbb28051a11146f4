#include <gtest/gtest.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "mla/simd/kernels.hpp"
#include "support/isas.hpp"
#include "support/random.hpp"

// What kernels round must not depend on the compiler. Where a processor can, g++ turns a product
// and a sum into one operation that rounds once, or not, as it likes, and differently in two loops
// that compute the same.

namespace mla::test {
namespace {

// Two numbers whose product needs 48 bits.
constexpr float kA = 1.0f + 0x1p-23f;
constexpr float kB = 1.0f - 0x1.8p-12f;

using Rounding = EveryIsa;
MLA_FOR_EVERY_ISA(Rounding);

// a * b - a * b is 0 where both products are rounded, and the rounding error where one is.
TEST_P(Rounding, ARotationRoundsEachProductBeforeTheSum) {
  for (Index n : {2, 8, 64}) {
    const auto half = static_cast<std::size_t>(n / 2);
    for (bool interleaved : {true, false}) {
      std::vector<float> x(2 * half, kA);
      const std::vector<float> cos(half, kB), sin(half, kB);
      kernels().rotate(x.data(), cos.data(), sin.data(), n, interleaved);
      for (std::size_t i = 0; i < half; ++i)
        EXPECT_EQ(x[interleaved ? 2 * i : i], 0.0f) << n << " " << i;
    }
  }
}

// The same in sums of products, for every two places in a row.
TEST(ScalarKernels, RoundProductsBeforeTheirSum) {
  constexpr Index kIn = 9;
  const simd::Kernels& kernels = simd::kernels_for(simd::Isa::scalar);
  AlignedBuffer<float> scratch(static_cast<std::size_t>(kernels.linear_scratch));
  for (Index i = 0; i < kIn; ++i)
    for (Index j = 0; j < kIn; ++j) {
      if (i == j) continue;
      for (Index tokens : {1, 2, 3, 8, 9}) {
        RowMajorMatrix x = RowMajorMatrix::Zero(tokens, kIn), out(tokens, kIn);
        RowMajorMatrix weight = RowMajorMatrix::Zero(kIn, kIn);
        x.col(i).setConstant(kA);
        x.col(j).setConstant(-kA);
        weight.col(i).setConstant(kB);
        weight.col(j).setConstant(kB);
        kernels.of(WeightFormat::float32)
            .linear({x.data(), tokens, kIn}, nullptr, WeightView(weight), {out.data(), tokens, kIn},
                    scratch.data());
        EXPECT_TRUE(out.isZero(0)) << tokens << " tokens, inputs " << i << " and " << j;
        const RowMajorMatrix transposed = weight.transpose();
        kernels.of(WeightFormat::float32)
            .linear_transposed({x.data(), tokens, kIn}, WeightView(transposed),
                               {out.data(), tokens, kIn}, scratch.data());
        EXPECT_TRUE(out.isZero(0)) << tokens << " tokens, rows " << i << " and " << j;
      }
    }
}

// FNV-1a of the bits of some floats.
class Digest {
 public:
  void add(std::span<const float> floats) noexcept {
    for (float x : floats) value_ = (value_ ^ std::bit_cast<std::uint32_t>(x)) * 0x100000001b3u;
  }
  std::uint64_t value() const noexcept { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325u;
};

// Uniform in [-1, 1) without a rounding.
std::vector<float> exact_random(std::size_t count, Random& random) {
  std::vector<float> x;
  while (x.size() < count)
    x.push_back(static_cast<float>(static_cast<std::int64_t>(random.bits()) >> 40) * 0x1p-23f);
  return x;
}

// The numbers below were made on x86-64 with g++. They change when the order of additions in these
// kernels does: then take the new ones from one platform, and see them hold on the others.
class ScalarBits : public ::testing::Test {
 protected:
  const simd::Kernels& kernels_ = simd::kernels_for(simd::Isa::scalar);
  Random random_{21};
  Digest digest_;
};

TEST_F(ScalarBits, OfProductsAreTheSameOnEveryPlatform) {
  AlignedBuffer<float> scratch(static_cast<std::size_t>(kernels_.linear_scratch));
  for (Index tokens : {1, 9, 20})
    for (Index in : {5, 66, 1030}) {
      const std::vector<float> x = exact_random(static_cast<std::size_t>(tokens * in), random_);
      const std::vector<float> w = exact_random(static_cast<std::size_t>(in * in), random_);
      std::vector<float> out(static_cast<std::size_t>(tokens * in));
      const simd::LinearKernels& kernels = kernels_.of(WeightFormat::float32);
      const WeightView weight(w.data(), in, in);
      kernels.linear({x.data(), tokens, in}, nullptr, weight, {out.data(), tokens, in},
                     scratch.data());
      digest_.add(out);
      kernels.linear_transposed({x.data(), tokens, in}, weight, {out.data(), tokens, in},
                                scratch.data());
      digest_.add(out);
    }
  EXPECT_EQ(digest_.value(), 0xce9aeb6a9bc17411u);
}

TEST_F(ScalarBits, OfAttentionAreTheSameOnEveryPlatform) {
  constexpr Index kRows = 5, kKeys = 150, kWidth = 37;
  const std::vector<float> queries = exact_random(kRows * kWidth, random_);
  const std::vector<float> rows = exact_random(kKeys * kWidth, random_);
  const std::vector<Index> visible = {150, 1, 64, 149, 65};
  const auto* const page = reinterpret_cast<const std::byte*>(rows.data());
  const simd::KeyValueRows keys = {.pages = &page,
                                   .page_rows = kKeys,
                                   .layout = row_layout(CacheFormat::float32, kWidth, 0),
                                   .count = kKeys,
                                   .key_offset = 0,
                                   .key_width = kWidth,
                                   .tail_offset = kWidth,
                                   .tail_width = 0,
                                   .value_offset = 0,
                                   .value_width = kWidth};
  const simd::CacheKernels& kernels = kernels_.of(CacheFormat::float32);
  AlignedBuffer<float> scratch(
      static_cast<std::size_t>(kernels.attend_many_scratch(keys.layout, kRows, kWidth, kWidth) +
                               kernels.attend_scratch(keys.layout, kWidth, kWidth)));
  for (bool many : {false, true}) {
    std::vector<float> maximum(kRows, -1e30f), sum(kRows), out(kRows * kWidth);
    const simd::SoftmaxState state = {maximum.data(), sum.data(), out.data(), kWidth};
    (many ? kernels.attend_many : kernels.attend)({queries.data(), kWidth, kRows, visible.data()},
                                                  keys, 3.0f, state, scratch.data());
    digest_.add(maximum);
    digest_.add(sum);
    digest_.add(out);
  }
  EXPECT_EQ(digest_.value(), 0x30f02d27bbd5218cu);
}

TEST_F(ScalarBits, OfNormsAndRotationsAreTheSameOnEveryPlatform) {
  for (Index n : {2, 16, 70, 576}) {
    const auto count = static_cast<std::size_t>(n);
    std::vector<float> x = exact_random(count, random_);
    const std::vector<float> weight = exact_random(count, random_);
    kernels_.rms_norm(x.data(), weight.data(), n, 1e-6f, x.data());
    digest_.add(x);
    for (bool interleaved : {true, false}) {
      kernels_.rotate(x.data(), weight.data(), weight.data() + n / 2, n, interleaved);
      digest_.add(x);
    }
  }
  EXPECT_EQ(digest_.value(), 0x9c64dc4683fdf26cu);
}

}  // namespace
}  // namespace mla::test
