// A product with quantised weights is the product with what they decode to: to float32 in float32
// arithmetic, to bfloat16 in bfloat16 arithmetic. Bit for bit, in every format and shape.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "mla/simd/kernels.hpp"
#include "support/isas.hpp"
#include "support/kernel_oracle.hpp"
#include "support/quantised_matrix.hpp"
#include "support/random.hpp"

namespace mla::test {
namespace {

// The same bits; a NaN may have others.
bool same_elements(const GuardedMatrix<float>& a, const GuardedMatrix<float>& b) {
  for (Index r = 0; r < a.view().rows; ++r)
    for (Index c = 0; c < a.view().cols; ++c) {
      const float x = a.view()(r, c), y = b.view()(r, c);
      if (std::isnan(x) ? !std::isnan(y) : std::memcmp(&x, &y, sizeof(x)) != 0) return false;
    }
  return a.gaps_are_untouched();
}

class QuantisedProduct : public EveryIsa {
 protected:
  // What weights decode to, in both precisions.
  struct Decoded {
    explicit Decoded(const QuantisedMatrix& matrix) : values(matrix.decoded()) {
      for (const float value : values.reshaped<Eigen::RowMajor>())
        rounded.push_back(bfloat16(value));
    }
    // The one that `arithmetic` computes with.
    WeightView view(Arithmetic arithmetic) const {
      if (arithmetic == Arithmetic::float32) return WeightView(values);
      return {rounded.data(), values.rows(), values.cols()};
    }
    RowMajorMatrix values;
    std::vector<bfloat16> rounded;
  };

  // Products with the same part of both: rows [row, + rows) and columns [col, + cols).
  struct Part {
    Index row, rows, col, cols;
    WeightView of(const WeightView& weight) const {
      return weight.row_range(row, rows).col_range(col, cols);
    }
  };

  void expect_product(const WeightView& weight, const Decoded& decoded, const Part& part,
                      const GuardedMatrix<float>& x, Index tokens) {
    const simd::LinearKernels& own = kernels().of(weight.format);
    const WeightView oracle = decoded.view(own.arithmetic);
    const auto rows = x.view().row_range(0, tokens).col_range(0, part.cols);
    GuardedMatrix<float> actual(tokens, part.rows), expected(tokens, part.rows);
    own.linear(rows, packed(own, rows), part.of(weight), actual.view(), scratch());
    const simd::LinearKernels& plain = kernels().of(oracle.format);
    ASSERT_EQ(plain.arithmetic, own.arithmetic);
    plain.linear(rows, packed(plain, rows), part.of(oracle), expected.view(), scratch());
    ASSERT_TRUE(same_elements(actual, expected))
        << tokens << " tokens, rows " << part.row << " + " << part.rows << ", columns " << part.col
        << " + " << part.cols;
  }

  // In float32 whatever the arithmetic.
  void expect_transposed(const WeightView& weight, const Decoded& decoded, const Part& part,
                         const GuardedMatrix<float>& x, Index tokens) {
    const auto rows = x.view().row_range(0, tokens).col_range(0, part.rows);
    GuardedMatrix<float> actual(tokens, part.cols), expected(tokens, part.cols);
    kernels().of(weight.format).linear_transposed(rows, part.of(weight), actual.view(), scratch());
    kernels()
        .of(WeightFormat::float32)
        .linear_transposed(rows, part.of(WeightView(decoded.values)), expected.view(), scratch());
    ASSERT_TRUE(same_elements(actual, expected))
        << tokens << " tokens, transposed, rows " << part.row << " + " << part.rows << ", columns "
        << part.col << " + " << part.cols;
  }

  void expect_widened(const WeightView& weight, const Decoded& decoded, const Part& part) {
    GuardedMatrix<float> actual(part.rows, part.cols);
    kernels().of(weight.format).widen(part.of(weight), actual.view());
    for (Index r = 0; r < part.rows; ++r)
      ASSERT_EQ(std::memcmp(actual.view().row(r), &decoded.values(part.row + r, part.col),
                            static_cast<std::size_t>(part.cols) * sizeof(float)),
                0)
          << "row " << part.row + r << ", columns " << part.col << " + " << part.cols;
    ASSERT_TRUE(actual.gaps_are_untouched());
  }

  void expect_all(const Quantisation& q, Index rows, Index cols, std::vector<Index> tokens,
                  Random& random) {
    SCOPED_TRACE(::testing::Message() << q << ", weights " << rows << " x " << cols);
    const QuantisedMatrix matrix(q, rows, cols, random);
    const Decoded decoded(matrix);
    const Index most = *std::ranges::max_element(tokens);
    const GuardedMatrix<float> x(most, std::max(rows, cols), random);
    std::vector<Part> parts = {{0, rows, 0, cols}};
    // Heads and shares that begin and end inside of blocks of scales, and between two codes of a
    // byte.
    if (rows > 3 && cols > 9) parts.push_back({3, rows - 3, 5, cols - 9});
    if (rows > 70 && cols > 200) parts.push_back({67, rows - 69, 96, cols - 100});
    for (const Part& part : parts) {
      expect_widened(matrix.view(), decoded, part);
      for (const Index count : tokens) {
        expect_product(matrix.view(), decoded, part, x, count);
        expect_transposed(matrix.view(), decoded, part, x, count);
      }
    }
  }

  const float* packed(const simd::LinearKernels& table, MatrixView<const float> x) {
    const auto floats = static_cast<std::size_t>(table.packed_floats(x.rows, x.cols));
    if (floats == 0) return nullptr;
    if (packed_.size() < floats) packed_ = AlignedBuffer<float>(floats);
    table.pack(x, packed_.data());
    return packed_.data();
  }
  float* scratch() {
    if (scratch_.size() == 0)
      scratch_ = AlignedBuffer<float>(static_cast<std::size_t>(kernels().linear_scratch));
    std::ranges::fill(scratch_, std::numeric_limits<float>::quiet_NaN());
    return scratch_.data();
  }

 private:
  AlignedBuffer<float> scratch_, packed_;
};
MLA_FOR_EVERY_ISA(QuantisedProduct);

TEST_P(QuantisedProduct, IsThatOfTheDecodedWeightsAtOddSizes) {
  Random random(1);
  for (const Quantisation& q : kQuantisations)
    for (const Index rows : {1, 3, 65})
      for (const Index cols : {1, 2, 7, 31, 33, 129})
        expect_all(q, rows, cols, {1, 2, 3, 5, 8, 16, 17}, random);
}

// Blocks of kernels: 16 and 64 features, 192 and 512 tokens, 512, 768 and 4096 inputs.
TEST_P(QuantisedProduct, IsThatOfTheDecodedWeightsAcrossBlocks) {
  Random random(2);
  for (const Quantisation& q : kQuantisations) {
    expect_all(q, 130, 770, {1, 4, 9, 31, 64, 65}, random);
    expect_all(q, 17, 4224, {1, 7, 16, 33}, random);
    expect_all(q, 64, 512, {1, 16, 48, 63}, random);
  }
}

TEST_P(QuantisedProduct, IsThatOfTheDecodedWeightsForUpTo600Tokens) {
  Random random(3);
  for (const Quantisation& q : kQuantisations) {
    expect_all(q, 70, 264, {96, 128, 193}, random);
    expect_all(q, 20, 136, {191, 512, 513, 600}, random);
  }
}

// fp8: both zeros, subnormal codes and a NaN, which stays in its output feature.
TEST_P(QuantisedProduct, EveryCodeOfFp8CountsAndANaNStaysInItsFeature) {
  Random random(4);
  QuantisedMatrix matrix(kQuantisations[0], 3, 256, random);
  for (Index c = 0; c < 256; ++c) {
    matrix.set_code(0, c, static_cast<std::byte>(c % 128 == 127 ? 0 : c));
    matrix.set_code(1, c, static_cast<std::byte>(c));
    matrix.set_code(2, c, static_cast<std::byte>(c % 2 == 0 ? c % 8 : 0x80));
  }
  const Decoded decoded(matrix);
  for (const Index tokens : {1, 17, 200}) {
    const GuardedMatrix<float> x(tokens, 256, random);
    expect_product(matrix.view(), decoded, {0, 3, 0, 256}, x, tokens);
    GuardedMatrix<float> out(tokens, 3);
    const simd::LinearKernels& own = kernels().of(WeightFormat::fp8_e4m3);
    own.linear(x.view(), packed(own, x.view()), matrix.view(), out.view(), scratch());
    for (Index t = 0; t < tokens; ++t) {
      EXPECT_TRUE(std::isfinite(out.at(t, 0)));
      EXPECT_TRUE(std::isnan(out.at(t, 1)));
      EXPECT_TRUE(std::isfinite(out.at(t, 2)) && out.at(t, 2) != 0.0);
    }
  }
}

// Scales that make weights subnormal, that overflow, and the smallest that e8m0 has.
TEST_P(QuantisedProduct, ExtremeScalesRoundAsTheyMust) {
  Random random(5);
  for (const Quantisation& q : kQuantisations) {
    if (q.scales == ScaleFormat::fp8_e4m3 || q.scales == ScaleFormat::float16) continue;
    SCOPED_TRACE(::testing::Message() << q);
    QuantisedMatrix matrix(q, 9, 40, random);
    const Index scales = matrix.view().scales.stride;
    for (Index i = 0; i + 1 < scales; ++i)  // of the first rows
      matrix.set_scale(i, i % 3 == 0 ? 0x1p-127 : i % 3 == 1 ? 0x1p127 : 0x1p-120);
    const Decoded decoded(matrix);
    expect_widened(matrix.view(), decoded, {0, 9, 0, 40});
    GuardedMatrix<float> x(3, 40, random);
    expect_product(matrix.view(), decoded, {0, 9, 0, 40}, x, 3);
    expect_transposed(matrix.view(), decoded, {0, 9, 0, 40}, x, 3);
  }
}

}  // namespace
}  // namespace mla::test
