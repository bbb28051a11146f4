#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <tuple>
#include <vector>

#include "mla/simd/kernels.hpp"
#include "support/attend_case.hpp"
#include "support/isas.hpp"

namespace mla::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class AttendKernel : public ::testing::TestWithParam<std::tuple<simd::Isa, bool>> {
 protected:
  AttendForm form() const noexcept {
    return {simd::kernels_for(std::get<0>(GetParam())), std::get<1>(GetParam())};
  }

  // Every row is the attention over the keys that it sees, or untouched where it sees none.
  template <StorageElement T>
  void expect_attention(AttendCase<T>& attend_case, const std::vector<Index>& visible,
                        const char* what) {
    const AttendResult result = attend_case.run(form(), visible);
    ASSERT_TRUE(result.out.gaps_are_untouched()) << what;
    for (std::size_t r = 0; r < visible.size(); ++r) {
      const auto row = static_cast<Index>(r);
      if (visible[r] == 0) {
        ASSERT_TRUE(result.same_row(row, AttendResult(1, result.out.view().cols), 0)) << what;
        continue;
      }
      const auto expected = attend_case.expected(row, visible[r], form().arithmetic<T>());
      const double sum = static_cast<double>(result.sum[r]);
      for (std::size_t c = 0; c < expected.out.size(); ++c)
        ASSERT_NEAR(result.out.at(row, static_cast<Index>(c)) / sum, expected.out[c],
                    expected.bound)
            << what << ", row " << r << " of " << visible.size() << ", " << visible[r]
            << " keys, value " << c;
    }
  }

  template <StorageElement T>
  void expect_attention_at_straddling_sizes() {
    for (const KeyLayout& layout : kKeyLayouts)
      for (Index keys : kStraddlingSizes) {
        // The rows fill register tiles and vectors in different ways; few where a key is long.
        const Index rows = layout.width > 100 ? keys % 4 + 1 : keys % 37 + 3;
        AttendCase<T> attend_case(layout, rows, keys, 1);
        expect_attention(attend_case, std::vector<Index>(static_cast<std::size_t>(rows), keys),
                         layout.name);
      }
  }

  template <StorageElement T>
  void expect_each_row_sees_its_own_keys() {
    const std::vector<Index> visible = {0, 1, 63, 64, 65, 0, 600, 127, 129, 128, 599, 0, 2, 192, 7};
    for (const KeyLayout& layout : kKeyLayouts) {
      if (layout.width > 300) continue;
      AttendCase<T> attend_case(layout, static_cast<Index>(visible.size()), 600, 2);
      expect_attention(attend_case, visible, layout.name);
    }
  }

  template <StorageElement T>
  void expect_no_leak_from_invisible_keys() {
    const std::vector<Index> visible = {100, 101, 150, 64, 99};
    for (const KeyLayout& layout : {kKeyLayouts[3], kKeyLayouts[6]}) {
      AttendCase<T> clean(layout, 5, 150, 6), spoiled(layout, 5, 150, 6);
      for (Index i = 0; i < layout.width; ++i) {
        spoiled.key_row(100)[i] = T(kNaN);
        spoiled.key_row(101)[i] = T(kInfinity);
        spoiled.key_row(102)[i] = T(-kInfinity);
      }
      const AttendResult expected = clean.run(form(), visible);
      const AttendResult actual = spoiled.run(form(), visible);
      for (Index r : {0, 3, 4}) EXPECT_TRUE(actual.same_row(r, expected, r)) << r;
      for (Index r : {1, 2}) EXPECT_TRUE(std::isnan(actual.out.at(r, 0))) << r;
    }
    // The same where rows are so many that they go over the keys block by block.
    constexpr Index kRows = 150, kKeys = 300;
    std::vector<Index> many;
    for (Index r = 0; r < kRows; ++r) many.push_back(r % 40 == 39 ? kKeys : 100 + r);
    AttendCase<T> clean(kKeyLayouts[4], kRows, kKeys, 6), spoiled(kKeyLayouts[4], kRows, kKeys, 6);
    for (Index i = 0; i < kKeyLayouts[4].width; ++i) spoiled.key_row(280)[i] = T(kNaN);
    const AttendResult expected = clean.run(form(), many);
    const AttendResult actual = spoiled.run(form(), many);
    for (Index r = 0; r < kRows; ++r)
      EXPECT_TRUE(r % 40 == 39 ? std::isnan(actual.out.at(r, 0)) : actual.same_row(r, expected, r))
          << r;
  }

  template <StorageElement T>
  void expect_rows_independent_of_each_other() {
    const std::vector<Index> visible = {129, 0, 65, 128, 1, 64, 100, 129, 3};
    for (const KeyLayout& layout : {kKeyLayouts[1], kKeyLayouts[3], kKeyLayouts[6]}) {
      AttendCase<T> attend_case(layout, 9, 129, 11);
      attend_case.queries().view()(3, 0) = kNaN;  // must stay there (its sign is the compiler's)
      const AttendResult together = attend_case.run(form(), visible);
      for (Index first = 0; first < 9; ++first)
        for (Index count = 1; first + count <= 9; ++count) {
          const std::vector<Index> part(visible.begin() + first, visible.begin() + first + count);
          const AttendResult alone = attend_case.run(form(), part, first);
          for (Index r = 0; r < count; ++r)
            ASSERT_TRUE(first + r == 3 ? std::isnan(alone.out.at(r, 0))
                                       : alone.same_row(r, together, first + r))
                << first << " " << count << " " << r;
        }
    }
  }

  // Rows that see some of the keys, all of them in one call and in calls of `groups` rows.
  void expect_same_rows_in_any_groups(const KeyLayout& layout, Index rows, Index keys,
                                      const std::vector<Index>& groups) {
    Random random(14);
    std::vector<Index> visible;
    for (Index r = 0; r < rows; ++r) visible.push_back(random.integer(0, keys));
    const AttendCase<bfloat16> attend_case(layout, rows, keys, 14);
    const AttendResult together = attend_case.run(form(), visible);
    for (Index group : groups)
      for (Index first = 0; first < rows; first += group) {
        const Index count = std::min(group, rows - first);
        const std::vector<Index> part(visible.begin() + first, visible.begin() + first + count);
        const AttendResult alone = attend_case.run(form(), part, first);
        for (Index r = 0; r < count; ++r)
          ASSERT_TRUE(alone.same_row(r, together, first + r)) << group << " " << first + r;
      }
  }

  template <StorageElement T>
  void expect_no_rows_and_no_keys_change_nothing() {
    const AttendCase<T> attend_case(kKeyLayouts[6], 2, 64, 13);
    AttendResult result(2, kKeyLayouts[6].value_width);
    attend_case.run_part(form(), {}, 0, 0, 64, result);
    attend_case.run_part(form(), {64, 64}, 0, 0, 0, result);
    for (Index r = 0; r < 2; ++r)
      EXPECT_TRUE(result.same_row(r, AttendResult(2, kKeyLayouts[6].value_width), 0));
  }

  template <StorageElement T>
  void expect_selection() {
    constexpr Index kKeys = 300, kRows = 5;
    Random random(17);
    for (const KeyLayout& layout : {kKeyLayouts[1], kKeyLayouts[3], kKeyLayouts[6]}) {
      AttendCase<T> all(layout, kRows, kKeys, 16);
      std::vector<Index> every;
      for (Index k = 0; k < kKeys; ++k) every.push_back(k);
      const std::vector<Index> visible = {300, 65, 200, 0, 64};
      const AttendResult dense = all.run(form(), visible);
      const AttendResult listed = all.run_selected(form(), visible, every);
      for (Index r = 0; r < kRows; ++r) EXPECT_TRUE(listed.same_row(r, dense, r)) << r;

      for (const Index count : {1, 63, 64, 65, 150}) {
        AttendCase<T> spoiled(layout, kRows, kKeys, 16), few(layout, kRows, count, 16);
        std::vector<Index> selected;
        for (Index k = 0; k < kKeys; ++k) {
          const Index wanted = count - std::ssize(selected), left = kKeys - k;
          if (random.integer(0, left - 1) < wanted) {
            std::copy_n(all.key_row(k), layout.width, few.key_row(std::ssize(selected)));
            selected.push_back(k);
          } else {
            std::fill_n(spoiled.key_row(k), layout.width, T(kNaN));
          }
        }
        const std::vector<Index> seen = {count, count / 2, 1, 0, count};
        few.queries() = all.queries();
        spoiled.queries() = all.queries();
        const AttendResult expected = few.run(form(), seen);
        const AttendResult actual = spoiled.run_selected(form(), seen, selected);
        for (Index r = 0; r < kRows; ++r)
          EXPECT_TRUE(actual.same_row(r, expected, r)) << layout.name << ", " << count << " keys";
      }
    }
  }

  template <StorageElement T>
  void expect_any_page_size() {
    const std::vector<Index> visible = {300, 65, 200};
    const KeyLayout& layout = kKeyLayouts[1];
    const AttendResult small = AttendCase<T>(layout, 3, 300, 12, 2.0, 64).run(form(), visible);
    for (Index page_rows : {128, 192, 300, 500}) {  // one page may be of any size
      const AttendResult large =
          AttendCase<T>(layout, 3, 300, 12, 2.0, page_rows).run(form(), visible);
      for (Index r = 0; r < 3; ++r) EXPECT_TRUE(large.same_row(r, small, r)) << page_rows;
    }
  }
};

// -2^-127 is flushed to -0 by products of bfloat16; with 0 times the keys that only the other row
// sees added, it would be 0.
TEST_P(AttendKernel, TheSignOfZeroDoesNotDependOnTheOtherRows) {
  constexpr Index kKeys = 64, kSeen = 32;
  const simd::CacheKernels& kernels =
      simd::kernels_for(std::get<0>(GetParam())).of(CacheFormat::bfloat16);
  std::vector<bfloat16> rows(2 * kKeys, bfloat16(0.0f));  // [key | value]
  rows[2 * 30] = bfloat16(-1.0f);
  rows[2 * 30 + 1] = bfloat16(-0x1p-126f);
  for (std::size_t k = kSeen; k < kKeys; ++k) rows[2 * k + 1] = bfloat16(1.0f);
  const auto* const page = reinterpret_cast<const std::byte*>(rows.data());
  const simd::KeyValueRows keys = {.pages = &page,
                                   .page_rows = kKeys,
                                   .layout = row_layout(CacheFormat::bfloat16, 2, 0),
                                   .count = kKeys,
                                   .key_offset = 0,
                                   .key_width = 1,
                                   .tail_offset = 1,
                                   .tail_width = 0,
                                   .value_offset = 1,
                                   .value_width = 1};
  AlignedBuffer<float> scratch(
      static_cast<std::size_t>(kernels.attend_many_scratch(keys.layout, 2, 1, 1) +
                               kernels.attend_scratch(keys.layout, 1, 1)));
  const auto is_negative = [&](const std::vector<Index>& visible) {
    const std::vector<float> queries(visible.size(), 1.0f);
    std::vector<float> maximum(visible.size(), -kInfinity), sum(visible.size()),
        out(visible.size());
    const simd::QueryRows query_rows = {queries.data(), 1, std::ssize(visible), visible.data()};
    const simd::SoftmaxState state = {maximum.data(), sum.data(), out.data(), 1};
    if (std::get<1>(GetParam()))
      kernels.attend_many(query_rows, keys, 1.0f, state, scratch.data());
    else
      kernels.attend(query_rows, keys, 1.0f, state, scratch.data());
    return std::signbit(out[0]);
  };
  EXPECT_EQ(is_negative({kSeen}), is_negative({kSeen, kKeys}));
}

INSTANTIATE_TEST_SUITE_P(Isa, AttendKernel,
                         ::testing::Combine(::testing::ValuesIn(supported_isas()),
                                            ::testing::Bool()),
                         [](const auto& form) {
                           return std::string(name_of(std::get<0>(form.param))) +
                                  (std::get<1>(form.param) ? "_many_rows" : "_few_rows");
                         });

TEST_P(AttendKernel, IsSoftmaxAttentionAtTileBoundariesForFloat32) {
  expect_attention_at_straddling_sizes<float>();
}
TEST_P(AttendKernel, IsSoftmaxAttentionAtTileBoundariesForBFloat16) {
  expect_attention_at_straddling_sizes<bfloat16>();
}
TEST_P(AttendKernel, IsSoftmaxAttentionAtTileBoundariesForFloat16) {
  expect_attention_at_straddling_sizes<float16>();
}

TEST_P(AttendKernel, EachRowSeesItsOwnNumberOfKeysAndARowThatSeesNoneStaysZero) {
  expect_each_row_sees_its_own_keys<float>();
  expect_each_row_sees_its_own_keys<bfloat16>();
  expect_each_row_sees_its_own_keys<float16>();
}

// float32 has no trouble with e^300 only because the maximum is taken off first.
TEST_P(AttendKernel, SurvivesLogitsOfPlusAndMinus300) {
  const KeyLayout& layout = kKeyLayouts[3];
  AttendCase<float> attend_case(layout, 5, 200, 3, 170.0);
  expect_attention(attend_case, {200, 65, 64, 63, 1}, "random");

  // All logits of a row are far below zero, then far above, with the extremes in different tiles.
  for (float sign : {-1.0f, 1.0f}) {
    AttendCase<float> steep(layout, 1, 200, 4);
    for (Index i = 0; i < 37; ++i) steep.queries().view()(0, i) = 300.0f / 37.0f;
    for (Index k = 0; k < 200; ++k)
      for (Index i = 0; i < 37; ++i)
        steep.key_row(k)[i < 31 ? i : layout.tail_offset + i - 31] =
            sign * (1.0f + 0.001f * static_cast<float>(k)) / steep.scale();
    expect_attention(steep, {200}, sign < 0.0f ? "falling from -300" : "rising from 300");
  }
}

// Where a rounding of the logit is large, weights must still not come out above 1.
TEST_P(AttendKernel, SurvivesHugeFiniteLogits) {
  const KeyLayout& layout = kKeyLayouts[3];
  for (float size : {1e8f, 1e11f, 1e15f}) {
    AttendCase<float> attend_case(layout, 20, 70, 14, size);
    double largest = 0.0;
    for (Index k = 0; k < 70; ++k)
      for (Index c = 0; c < layout.value_width; ++c)
        largest = std::max(
            largest,
            std::abs(static_cast<double>(attend_case.key_row(k)[layout.value_offset + c])));
    const AttendResult result = attend_case.run(form(), std::vector<Index>(20, 70));
    for (Index r = 0; r < 20; ++r) {
      const double sum = static_cast<double>(result.sum[static_cast<std::size_t>(r)]);
      ASSERT_LE(sum, 70.0) << "a weight above 1";
      for (Index c = 0; c < layout.value_width; ++c)
        ASSERT_LE(std::abs(result.out.at(r, c)) / sum, 1.0001 * largest) << size;
    }
  }
}

TEST_P(AttendKernel, KeepsTheLogSumExp) {
  for (double spread : {1.0, 100.0}) {
    AttendCase<bfloat16> attend_case(kKeyLayouts[1], 3, 129, 5, spread);
    const std::vector<Index> visible = {129, 64, 1};
    const AttendResult result = attend_case.run(form(), visible);
    for (std::size_t r = 0; r < visible.size(); ++r) {
      const auto expected =
          attend_case.expected(static_cast<Index>(r), visible[r], form().arithmetic<bfloat16>());
      const double actual =
          (static_cast<double>(result.maximum[r]) + std::log2(static_cast<double>(result.sum[r]))) *
          std::numbers::ln2;
      // It moves with the logits, and has a rounding of its own.
      EXPECT_NEAR(actual, expected.log_sum_exp, expected.logit_bound + 1e-6);
    }
  }
}

TEST_P(AttendKernel, NaNAndInfinityInAnInvisibleKeyDoNotLeak) {
  expect_no_leak_from_invisible_keys<float>();
  expect_no_leak_from_invisible_keys<bfloat16>();
}

// Wherever it is: in the key, the rotary part or the value, in the first tile or in a later one.
TEST_P(AttendKernel, AVisibleNaNIsNotHidden) {
  const KeyLayout& layout = kKeyLayouts[6];
  for (Index key : {0, 63, 64, 140, 149})
    for (Index element : {layout.key_offset, layout.key_offset + layout.key_width - 1,
                          layout.tail_offset, layout.tail_offset + layout.tail_width - 1}) {
      AttendCase<float> attend_case(layout, 3, 150, 7);
      attend_case.key_row(key)[element] = kNaN;
      const AttendResult result = attend_case.run(form(), {150, 150, 150});
      for (Index r = 0; r < 3; ++r)
        for (Index c = 0; c < layout.value_width; ++c)
          ASSERT_TRUE(std::isnan(result.out.at(r, c) /
                                 static_cast<double>(result.sum[static_cast<std::size_t>(r)])))
              << "key " << key << " element " << element;
    }
  AttendCase<bfloat16> attend_case(layout, 1, 65, 8);
  attend_case.key_row(64)[layout.value_offset + 2] = bfloat16(kNaN);
  const AttendResult result = attend_case.run(form(), {65});
  EXPECT_TRUE(std::isnan(result.out.at(0, 2)));
  EXPECT_FALSE(std::isnan(result.out.at(0, 1)));
}

TEST_P(AttendKernel, AllNaNLogitsOfATileAreNotHiddenByLaterOnes) {
  AttendCase<float> attend_case(kKeyLayouts[6], 1, 200, 9);
  for (Index k = 0; k < 64; ++k) attend_case.key_row(k)[3] = kNaN;
  EXPECT_TRUE(std::isnan(attend_case.run(form(), {200}).out.at(0, 0)));
}

TEST_P(AttendKernel, ContinuingOverCallsSplitAtTilesEqualsOneCallToTheLastBit) {
  const std::vector<Index> visible = {600, 0, 599, 64, 65, 320, 1};
  for (const KeyLayout& layout : {kKeyLayouts[1], kKeyLayouts[6]}) {
    const AttendCase<bfloat16> attend_case(layout, 7, 600, 10);
    const AttendResult once = attend_case.run(form(), visible);
    for (Index part : {64, 128, 256, 320, 512, 576}) {
      if (form().many && part % form().kernels.of(CacheFormat::bfloat16).attend_many_keys != 0)
        continue;
      AttendResult parts(7, layout.value_width);
      for (Index first = 0; first < 600; first += part)
        attend_case.run_part(form(), visible, 0, first, std::min<Index>(part, 600 - first), parts);
      for (Index r = 0; r < 7; ++r) EXPECT_TRUE(parts.same_row(r, once, r)) << part << " row " << r;
    }
  }
}

TEST_P(AttendKernel, ARowDoesNotDependOnTheOtherRowsInASingleBit) {
  expect_rows_independent_of_each_other<float>();
  expect_rows_independent_of_each_other<bfloat16>();
}

// More rows than any register tile or block holds, in other groups.
TEST_P(AttendKernel, ManyRowsInAnyGroupsAreTheSameToTheLastBit) {
  expect_same_rows_in_any_groups(kKeyLayouts[6], 75, 150, {1, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64});
}

// So many that blocks of them go over all keys one by one; values wider than the keys, and more
// keys than are prepared at a time.
TEST_P(AttendKernel, ManyRowsOfManyKeysInAnyGroupsAreTheSameToTheLastBit) {
  expect_same_rows_in_any_groups(kKeyLayouts[4], 200, 600, {33, 128, 129});
  if (form().many) expect_same_rows_in_any_groups(kKeyLayouts[4], 140, 2200, {128});
}

TEST_P(AttendKernel, ThePageSizeDoesNotChangeASingleBit) {
  expect_any_page_size<float>();
  expect_any_page_size<bfloat16>();
}

// A list of all rows is the same as no list, and one of some rows as a cache of these alone, to the
// last bit; what is not selected may be NaN.
TEST_P(AttendKernel, SelectedRowsAreAllThatIsSeen) {
  expect_selection<float>();
  expect_selection<bfloat16>();
  expect_selection<float16>();
}

TEST_P(AttendKernel, NoRowsAndNoKeysChangeNothing) {
  expect_no_rows_and_no_keys_change_nothing<float>();
  expect_no_rows_and_no_keys_change_nothing<bfloat16>();
}

}  // namespace
}  // namespace mla::test
