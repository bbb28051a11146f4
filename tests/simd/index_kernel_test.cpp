// Scores of index keys, against sums in double over the decoded keys.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "mla/simd/kernels.hpp"
#include "support/isas.hpp"
#include "support/random.hpp"

namespace mla::test {
namespace {

constexpr CacheFormat kIndexFormats[] = {CacheFormat::float32, CacheFormat::bfloat16,
                                         CacheFormat::float16, CacheFormat::int8,
                                         CacheFormat::fp8,     CacheFormat::int4};

// Keys in pages of 64, and the queries of a token.
class IndexCase {
 public:
  IndexCase(CacheFormat format, Index heads, Index width, Index keys, std::uint64_t seed)
      : random_(seed),
        layout_(row_layout(format, width, 0)),
        keys_(keys),
        queries_(random_elements<float>(heads * width, random_)),
        weights_(random_elements<float>(heads, random_)) {
    const Index pages = (keys + kPage - 1) / kPage;
    bytes_ = AlignedBuffer<std::byte>(static_cast<std::size_t>(pages * kPage * layout_.bytes));
    std::fill_n(bytes_.data(), bytes_.size(), std::byte{0x7f});
    for (Index k = 0; k < keys; ++k) set_key(k, random_elements<float>(width, random_));
    for (Index p = 0; p < pages; ++p) pages_.push_back(bytes_.data() + p * kPage * layout_.bytes);
  }

  void set_key(Index k, const std::vector<float>& key) {
    info_of(layout_.format).encode(layout_, key.data(), bytes_.data() + k * layout_.bytes);
  }

  // Of keys [first, + count).
  std::vector<float> scores(const simd::Kernels& kernels, Index first, Index count) const {
    const simd::IndexKernels& index = kernels.of_index_keys(layout_.format);
    const Index heads = std::ssize(weights_), width = layout_.width();
    AlignedBuffer<float> packed(static_cast<std::size_t>(index.packed_floats(heads, width)));
    AlignedBuffer<float> scratch(static_cast<std::size_t>(index.scratch(layout_, heads, width)));
    const MatrixView<const float> rows(queries_.data(), heads, width);
    index.pack(rows, weights_.data(), packed.data());
    std::vector<float> scores(static_cast<std::size_t>(count) + 1, 7.0f);
    index.score({rows, packed.data()},
                {.pages = pages_.data() + first / kPage,
                 .page_rows = kPage,
                 .layout = layout_,
                 .count = count,
                 .key_width = width,
                 .first_row = first % kPage},
                scores.data(), scratch.data());
    EXPECT_EQ(scores.back(), 7.0f) << "a score too many";
    scores.pop_back();
    return scores;
  }

  // And a bound of the error, of products rounded to `digits` bits.
  std::pair<double, double> expected(Index k, int digits) const {
    const Index width = layout_.width();
    std::vector<float> key(static_cast<std::size_t>(width));
    info_of(layout_.format).widen(layout_, bytes_.data() + k * layout_.bytes, key.data());
    double score = 0.0, size = 0.0;
    for (std::size_t h = 0; h < weights_.size(); ++h) {
      double product = 0.0, sum = 0.0;
      for (Index i = 0; i < width; ++i) {
        const double x =
            static_cast<double>(
                queries_[h * static_cast<std::size_t>(width) + static_cast<std::size_t>(i)]) *
            static_cast<double>(key[static_cast<std::size_t>(i)]);
        product += x;
        sum += std::abs(x);
      }
      score += static_cast<double>(weights_[h]) * std::max(0.0, product);
      size += std::abs(static_cast<double>(weights_[h])) * sum;
    }
    return {score, size * std::ldexp(2.0, -digits)};
  }

  Index keys() const { return keys_; }

 private:
  static constexpr Index kPage = 64;

  Random random_;
  RowLayout layout_;
  Index keys_;
  std::vector<float> queries_, weights_;
  AlignedBuffer<std::byte> bytes_{0};
  std::vector<const std::byte*> pages_;
};

class IndexKernel : public EveryIsa {};
MLA_FOR_EVERY_ISA(IndexKernel);

TEST_P(IndexKernel, ScoresAreWeightedSumsOfPositiveProducts) {
  std::uint64_t seed = 0;
  for (const CacheFormat format : kIndexFormats)
    for (const Index heads : {1, 5, 16, 17, 33, 64})
      for (const Index width : {1, 28, 64, 128}) {
        const Index keys = kStraddlingSizes[++seed % std::size(kStraddlingSizes)];
        const IndexCase c(format, heads, width, keys, seed);
        const std::vector<float> scores = c.scores(kernels(), 0, keys);
        const bool rounds = kernels().of_index_keys(format).arithmetic == Arithmetic::bfloat16;
        for (Index k = 0; k < keys; ++k) {
          const auto [score, bound] = c.expected(k, rounds ? 8 : 20);
          ASSERT_NEAR(scores[static_cast<std::size_t>(k)], score, bound)
              << name_of(format) << ", " << heads << " heads of " << width << ", key " << k
              << " of " << keys;
        }
      }
}

TEST_P(IndexKernel, AScoreDependsOnItsKeyOnly) {
  Random random(7);
  for (const CacheFormat format : kIndexFormats)
    for (const Index heads : {9, 64}) {
      const IndexCase c(format, heads, 64, 300, 3);
      const std::vector<float> all = c.scores(kernels(), 0, 300);
      for (int round = 0; round < 30; ++round) {
        const Index first = random.integer(0, 299), count = random.integer(1, 300 - first);
        const std::vector<float> some = c.scores(kernels(), first, count);
        for (std::size_t k = 0; k < some.size(); ++k)
          ASSERT_EQ(std::bit_cast<std::uint32_t>(some[k]),
                    std::bit_cast<std::uint32_t>(all[k + static_cast<std::size_t>(first)]))
              << name_of(format) << ", key " << first << " + " << k << " of " << count;
      }
    }
}

// A product below 0 counts as 0, one that is NaN makes its score NaN and no other.
TEST_P(IndexKernel, KeepsNaNInItsPlace) {
  for (const CacheFormat format : {CacheFormat::float32, CacheFormat::bfloat16}) {
    IndexCase c(format, 5, 32, 70, 4);
    const std::vector<float> before = c.scores(kernels(), 0, 70);
    c.set_key(66, std::vector<float>(32, std::numeric_limits<float>::quiet_NaN()));
    const std::vector<float> after = c.scores(kernels(), 0, 70);
    for (std::size_t k = 0; k < 70; ++k)
      if (k == 66)
        EXPECT_TRUE(std::isnan(after[k])) << name_of(format);
      else
        EXPECT_EQ(after[k], before[k]) << name_of(format) << ", key " << k;
  }
}

}  // namespace
}  // namespace mla::test
