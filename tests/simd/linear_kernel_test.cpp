#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "mla/simd/kernels.hpp"
#include "support/isas.hpp"
#include "support/kernel_oracle.hpp"
#include "support/random.hpp"

namespace mla::test {
namespace {

class LinearKernel : public EveryIsa {
 protected:
  // x as the kernel of weights of type T wants to have it.
  template <StorageElement T>
  const float* packed(MatrixView<const float> x) {
    const auto floats = kernels().of(kWeightFormatOf<T>).packed_floats(x.rows, x.cols);
    packed_ = AlignedBuffer<float>(static_cast<std::size_t>(floats));
    std::fill(packed_.begin(), packed_.end(), std::numeric_limits<float>::quiet_NaN());
    kernels().of(kWeightFormatOf<T>).pack(x, packed_.data());
    return packed_.data();
  }

  template <StorageElement T>
  void multiply(MatrixView<const float> x, MatrixView<const T> weight, MatrixView<float> out) {
    kernels().of(kWeightFormatOf<T>).linear(x, packed<T>(x), weight, out, scratch());
  }

  float* scratch() {
    if (scratch_.size() == 0)
      scratch_ = AlignedBuffer<float>(static_cast<std::size_t>(kernels().linear_scratch));
    std::fill(scratch_.begin(), scratch_.end(), std::numeric_limits<float>::quiet_NaN());
    return scratch_.data();
  }

  template <StorageElement T>
  void expect_product(Index tokens, Index in, Index out_features) {
    Random random(static_cast<std::uint64_t>(tokens * 7919 + in * 31 + out_features));
    const GuardedMatrix<float> x(tokens, in, random);
    const GuardedMatrix<T> weight(out_features, in, random);
    GuardedMatrix<float> out(tokens, out_features);
    multiply<T>(x.view(), weight.view(), out.view());
    const std::vector<double> exact_x = x.in_double(), exact_weight = weight.in_double();
    for (Index t = 0; t < tokens; ++t)
      for (Index o = 0; o < out_features; ++o) {
        const double* a = exact_x.data() + t * in;
        const double* b = exact_weight.data() + o * in;
        const Expected expected = expected_dot(
            in, [&](Index i) { return a[i]; }, [&](Index i) { return b[i]; });
        ASSERT_NEAR(out.at(t, o), expected.value, expected.bound_of(arithmetic_for<T>(kernels())))
            << name_of(kWeightFormatOf<T>) << " tokens " << tokens << " in " << in << " token " << t
            << " feature " << o << " of " << out_features;
      }
    ASSERT_TRUE(out.gaps_are_untouched());
  }

  template <StorageElement T>
  void expect_transposed_product(Index tokens, Index in, Index out_features) {
    Random random(static_cast<std::uint64_t>(tokens * 7919 + in * 31 + out_features));
    const GuardedMatrix<float> x(tokens, in, random);
    const GuardedMatrix<T> weight(in, out_features, random);
    GuardedMatrix<float> out(tokens, out_features);
    kernels()
        .of(kWeightFormatOf<T>)
        .linear_transposed(x.view(), weight.view(), out.view(), scratch());
    for (Index t = 0; t < tokens; ++t)
      for (Index c = 0; c < out_features; ++c) {
        const Expected expected = expected_sequential_dot(
            in, [&](Index r) { return x.at(t, r); }, [&](Index r) { return weight.at(r, c); });
        ASSERT_NEAR(out.at(t, c), expected.value, expected.bound)
            << name_of(kWeightFormatOf<T>) << " tokens " << tokens << " in " << in << " token " << t
            << " column " << c << " of " << out_features;
      }
    ASSERT_TRUE(out.gaps_are_untouched());
  }

  // Computes all tokens together and every contiguous part of them alone.
  template <class Kernel>
  void expect_rows_independent(const Kernel& kernel, Index in, Index out_features) {
    constexpr Index kTokens = 17;
    Random random(3);
    GuardedMatrix<float> x(kTokens, in, random);
    x.view()(4, 0) =
        std::numeric_limits<float>::quiet_NaN();  // must stay there (its sign is the compiler's)
    GuardedMatrix<float> together(kTokens, out_features);
    kernel(x.view(), together.view());
    for (Index first = 0; first < kTokens; ++first)
      for (Index count = 1; first + count <= kTokens; ++count) {
        GuardedMatrix<float> alone(count, out_features);
        kernel(MatrixView<const float>(x.view()).row_range(first, count), alone.view());
        for (Index t = 0; t < count; ++t) {
          const bool same_bits =
              std::memcmp(alone.view().row(t), together.view().row(first + t),
                          static_cast<std::size_t>(out_features) * sizeof(float)) == 0;
          ASSERT_TRUE(first + t == 4 ? std::isnan(alone.at(t, 0)) : same_bits)
              << "rows " << first << " to " << first + count << " in " << in;
        }
      }
  }

  template <StorageElement T>
  void expect_rows_independent_of_each_other(Index in, Index out_features) {
    Random random(4);
    const GuardedMatrix<T> weight(out_features, in, random), transposed(in, out_features, random);
    expect_rows_independent([&](MatrixView<const float> x,
                                MatrixView<float> out) { multiply<T>(x, weight.view(), out); },
                            in, out_features);
    expect_rows_independent(
        [&](MatrixView<const float> x, MatrixView<float> out) {
          kernels().of(kWeightFormatOf<T>).linear_transposed(x, transposed.view(), out, scratch());
        },
        in, out_features);
  }

  template <StorageElement T>
  void expect_tokens_equal_one_by_one(Index tokens) {
    constexpr Index kIn = 1030, kOut = 131;
    Random random(6);
    const GuardedMatrix<float> x(tokens, kIn, random);
    const GuardedMatrix<T> weight(kOut, kIn, random);
    GuardedMatrix<float> together(tokens, kOut), alone(1, kOut);
    multiply<T>(x.view(), weight.view(), together.view());
    for (Index t = 0; t < tokens; ++t) {
      multiply<T>(x.view().row_range(t, 1), weight.view(), alone.view());
      ASSERT_EQ(std::memcmp(alone.view().row(0), together.view().row(t), kOut * sizeof(float)), 0)
          << t << " of " << tokens;
    }
  }

 private:
  AlignedBuffer<float> scratch_, packed_;
};
MLA_FOR_EVERY_ISA(LinearKernel);

TEST_P(LinearKernel, MultipliesAtAllStraddlingSizes) {
  for (Index in : kStraddlingSizes)
    for (Index tokens : {1, 2, 3, 4, 5, 7, 8, 9, 17})
      for (Index out_features : {1, 3, 4, 5, 17}) {
        expect_product<float>(tokens, in, out_features);
        expect_product<bfloat16>(tokens, in, out_features);
        expect_product<float16>(tokens, in, out_features);
      }
}

// Products are cut into blocks of 64 features; 192 tokens and 768 inputs; with tiles 64, 256 and
// 512 tokens, and 256 inputs of many tokens.
TEST_P(LinearKernel, MultipliesAcrossBlocks) {
  for (Index in : {511, 512, 513, 767, 768, 769, 1537, 4100}) {
    expect_product<float>(3, in, 9);
    expect_product<float>(16, in, 66);
    expect_product<bfloat16>(16, in, 66);
    expect_product<bfloat16>(20, in, 63);
  }
  expect_product<float>(20, 769, 63);
  expect_product<float>(193, 70, 65);
  expect_product<bfloat16>(193, 70, 65);
  expect_product<bfloat16>(513, 65, 17);
}

TEST_P(LinearKernel, MultipliesTransposedAtAllStraddlingSizes) {
  for (Index out_features : kStraddlingSizes)
    for (Index tokens : {1, 2, 3, 4, 5, 7, 17})
      for (Index in : {1, 3, 4, 5, 17}) {
        expect_transposed_product<float>(tokens, in, out_features);
        expect_transposed_product<bfloat16>(tokens, in, out_features);
        expect_transposed_product<float16>(tokens, in, out_features);
      }
}

TEST_P(LinearKernel, ARowDoesNotDependOnTheOtherRowsInASingleBit) {
  for (Index in : {5, 129, 1030})
    for (Index out_features : {3, 70}) {
      expect_rows_independent_of_each_other<float>(in, out_features);
      expect_rows_independent_of_each_other<bfloat16>(in, out_features);
      expect_rows_independent_of_each_other<float16>(in, out_features);
    }
}

// From one token at a time to several blocks of tokens and inputs: with tiles, one to four groups
// of 16 tokens in a pass, passes of different numbers of groups, and panels.
TEST_P(LinearKernel, ManyTokensEqualOneByOneToTheLastBit) {
  expect_tokens_equal_one_by_one<float16>(270);
  for (Index tokens : {19, 48, 63, 67, 100, 129, 250, 270, 530})
    expect_tokens_equal_one_by_one<bfloat16>(tokens);
}

TEST_P(LinearKernel, NoTokensAndNoFeaturesWriteNothing) {
  Random random(5);
  const GuardedMatrix<float> x(2, 8, random), weight(3, 8, random);
  GuardedMatrix<float> out(2, 3);
  multiply<float>(x.view().row_range(0, 0), weight.view(), out.view().row_range(0, 0));
  multiply<float>(x.view(), weight.view().row_range(0, 0), out.view().col_range(0, 0));
  kernels()
      .of(WeightFormat::float32)
      .linear_transposed(x.view().row_range(0, 0), weight.view(), out.view().row_range(0, 0),
                         scratch());
  EXPECT_TRUE(std::isnan(out.at(0, 0)));
}

TEST_P(LinearKernel, NoInputsGiveZeros) {
  Random random(5);
  const GuardedMatrix<float> x(70, 0, random);
  const GuardedMatrix<bfloat16> weight(3, 0, random);
  for (Index tokens : {1, 70}) {
    GuardedMatrix<float> out(tokens, 3);
    multiply<bfloat16>(x.view().row_range(0, tokens), weight.view(), out.view());
    for (Index t = 0; t < tokens; ++t)
      for (Index o = 0; o < 3; ++o) EXPECT_EQ(out.at(t, o), 0.0);
  }
}

// Subnormal weights of a quantised checkpoint must not be flushed to zero, but by the instructions
// for products of bfloat16, which do.
TEST_P(LinearKernel, SubnormalWeightsCount) {
  const float x[] = {0x1p30f, 0x1p30f};
  const bfloat16 bf16[] = {bfloat16::from_bits(1), bfloat16::from_bits(3)};
  const float16 f16[] = {float16::from_bits(1), float16::from_bits(3)};
  float out = 0.0f;
  multiply<bfloat16>({x, 1, 2}, {bf16, 1, 2}, {&out, 1, 1});
  const bool flushed = arithmetic_for<bfloat16>(kernels()) == simd::Arithmetic::bfloat16;
  EXPECT_EQ(out, flushed ? 0.0f : 4.0f * 0x1p-133f * 0x1p30f);
  multiply<float16>({x, 1, 2}, {f16, 1, 2}, {&out, 1, 1});
  EXPECT_EQ(out, 4.0f * 0x1p-24f * 0x1p30f);
}

}  // namespace
}  // namespace mla::test
