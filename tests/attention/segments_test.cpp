// Attention over caches whose rows were evicted or shifted, and through sliding windows.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "attention/tolerances.hpp"
#include "mla/attention/absorbed_attention.hpp"
#include "support/compare.hpp"
#include "support/decoded_rows.hpp"
#include "support/modes.hpp"
#include "support/random.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

std::vector<CacheFormat> all_formats() {
  std::vector<CacheFormat> formats;
  for (std::size_t f = 0; f < kCacheFormatCount; ++f)
    formats.push_back(static_cast<CacheFormat>(f));
  return formats;
}

// A text in a cache whose rows come and go, and beside it what the reference needs to know of it.
class ServedText {
 public:
  ServedText(TestLayer& layer, CacheFormat format, const simd::Kernels& kernels, AttentionForm mode)
      : layer_(layer), cache_(layer.config(), format), context_(kernels), mode_(mode) {}

  Index size() const { return std::ssize(x_); }
  LatentCache& cache() { return cache_; }
  Context& context() { return context_; }

  // Output of `tokens` more tokens, `gap` positions behind the last one.
  RowMajorMatrix append(Index tokens, Index gap = 0) {
    const RowMajorMatrix x = layer_.input(tokens);
    std::vector<Index> positions;
    for (Index t = 0; t < tokens; ++t) {
      positions.push_back((positions_.empty() ? 0 : positions_.back() + 1) + (t == 0 ? gap : 0));
      positions_.push_back(positions.back());
      x_.push_back(x.row(t));
    }
    return run(layer_, x, cache_, context_, {.mode = mode_, .position_ids = positions});
  }
  void shift(Index first, Index delta) {
    cache_.shift(first, delta);
    for (auto p = positions_.begin() + first; p != positions_.end(); ++p) *p += delta;
  }
  void evict(const std::vector<Index>& rows) {
    cache_.evict(rows);
    for (auto row = rows.rbegin(); row != rows.rend(); ++row) {
      x_.erase(x_.begin() + *row);
      positions_.erase(positions_.begin() + *row);
    }
  }
  void rebase() { cache_.rebase(layer_.config()); }

  // The outputs of the last `tokens` tokens in double, of the rows as they are decoded.
  DoubleMatrix expected(Index tokens) const {
    return reference_output_over(layer_, x(), positions_, decoded_rows(layer_.config(), cache_))
        .bottomRows(tokens);
  }
  // The same from the hidden states, without any rounding of rows.
  DoubleMatrix expected_of_hidden_states(Index tokens) const {
    return reference_output(layer_, x(), positions_).bottomRows(tokens);
  }

  double tolerance() const {
    return context_.kernels().of(cache_.format()).arithmetic == Arithmetic::float32
               ? kTinyFloat32Tolerance
               : kTinyBFloat16Tolerance;
  }

 private:
  RowMajorMatrix x() const {
    RowMajorMatrix x(size(), layer_.config().hidden_size);
    for (Index t = 0; t < size(); ++t) x.row(t) = x_[static_cast<std::size_t>(t)];
    return x;
  }

  TestLayer& layer_;
  LatentCache cache_;
  Context context_;
  AttentionForm mode_;
  std::vector<Eigen::Matrix<float, 1, Eigen::Dynamic>> x_;
  std::vector<Index> positions_;
};

AttentionConfig yarn_config() {
  AttentionConfig config = small_config();
  config.rope_scaling = short_yarn(1.0, 0.707);
  return config;
}

class Segments : public EveryIsaAndMode {
 protected:
  static std::vector<AttentionConfig> configs() {
    return {small_config(), yarn_config(), AttentionConfig::lesson(48, 4, 24, 20, 8)};
  }
};
MLA_FOR_EVERY_ISA_AND_MODE(Segments);

TEST_P(Segments, ShiftedAndEvictedRowsAreTheReferenceAtTheirPositions) {
  for (const AttentionConfig& config : configs())
    for (const CacheFormat format : all_formats()) {
      TestLayer layer(config);
      ServedText text(layer, format, kernels(), mode());
      Random random(7);
      text.append(150);
      for (int step = 0; step < 12; ++step) {
        const Index first = random.integer(1, text.size() - 1);
        switch (step % 4) {
          case 0:
            text.shift(first, random.integer(1, 50));
            break;
          case 1:
            text.evict({first});
            break;
          case 2:
            text.evict(consecutive(first / 2, first / 3));
            break;
          default:
            text.shift(0, random.integer(0, 9));
        }
        const Index tokens = random.one_of<Index>({1, 2, 17, 70});
        const RowMajorMatrix out = text.append(tokens, random.integer(0, 3));
        ASSERT_TRUE(close(out, text.expected(tokens), text.tolerance()))
            << name_of(format) << " step " << step << " of " << describe(config);
        if (format == CacheFormat::float32) {
          ASSERT_TRUE(close(out, text.expected_of_hidden_states(tokens), kTinyFloat32Tolerance))
              << "step " << step;
        }
        if (text.cache().segments().size() > 5) text.rebase();
      }
    }
}

// Parts of 1024 keys begin anywhere in a page.
TEST_P(Segments, LongSegmentsAreTheReference) {
  TestLayer layer(make_config(16, 3, 0, 20, 6, 4, 6));
  for (const CacheFormat format : {CacheFormat::float32, CacheFormat::bfloat16}) {
    ServedText text(layer, format, kernels(), mode());
    text.append(3000);
    text.evict(consecutive(4, 33));
    text.shift(4, -20);
    text.evict(consecutive(1030, 900));
    for (const Index tokens : {1, 40}) {
      const RowMajorMatrix out = text.append(tokens);
      EXPECT_TRUE(close(out, text.expected(tokens), text.tolerance())) << tokens;
    }
  }
}

TEST_P(Segments, TenThousandShiftsAreOneShift) {
  TestLayer layer(yarn_config());
  for (const CacheFormat format : all_formats()) {
    ServedText text(layer, format, kernels(), mode());
    text.append(200);
    text.shift(4, 30'000);
    for (int i = 0; i < 10'000; ++i) text.shift(4, -3);
    EXPECT_EQ(text.cache().positions(), consecutive(0, 200));
    EXPECT_EQ(text.cache().segments().size(), 2u);
    const RowMajorMatrix out = text.append(3);
    EXPECT_TRUE(close(out, text.expected(3), text.tolerance())) << name_of(format);
  }
}

TEST_P(Segments, RebasedRowsStayTheReferenceAndLatentsTheirBytes) {
  for (const AttentionConfig& config : configs())
    for (const CacheFormat format : all_formats()) {
      TestLayer layer(config);
      ServedText text(layer, format, kernels(), mode());
      text.append(150);
      text.evict(consecutive(10, 70));
      text.shift(10, -70);
      text.shift(40, 11);
      const LatentCache before = text.cache().fork(text.size());
      text.rebase();
      EXPECT_TRUE(text.cache().is_whole());
      EXPECT_EQ(text.cache().positions(), before.positions());
      // What is stored of the latent is not touched, nor are rows that were not shifted.
      std::vector<float> was(static_cast<std::size_t>(config.cache_row_width())), is = was;
      for (Index i = 0; i < text.size(); ++i) {
        info_of(format).widen(before.layout(), before.row(i), was.data());
        info_of(format).widen(before.layout(), text.cache().row(i), is.data());
        const Index same = i < 10 ? config.cache_row_width() : config.kv_lora_rank;
        ASSERT_TRUE(std::equal(was.begin(), was.begin() + same, is.begin())) << i;
        if (i >= 10) {
          ASSERT_NE(was, is) << i;
        }
      }
      const RowMajorMatrix out = text.append(3);
      EXPECT_TRUE(close(out, text.expected(3), text.tolerance())) << name_of(format);
      if (format == CacheFormat::float32) {
        EXPECT_TRUE(close(out, text.expected_of_hidden_states(3), kTinyFloat32Tolerance));
      }
    }
}

TEST_P(Segments, TokensThroughAWindowAreTheReferenceOfWhatTheySee) {
  const SlidingWindow window = {.keep = 4, .rows = 60};
  for (const AttentionConfig& config : configs())
    for (const CacheFormat format : {CacheFormat::float32, CacheFormat::bfloat16}) {
      TestLayer layer(config);
      const RowMajorMatrix x = layer.input(200);
      Context context(kernels());
      LatentCache cache(config, format);
      RowMajorMatrix out(200, x.cols());
      for (Index t = 0; t < 200; ++t)
        layer.layer.forward(x.row(t), cache, out.row(t), context,
                            {.mode = mode(), .window = window});
      EXPECT_LE(cache.size(), window.most() + 1);
      if (format != CacheFormat::float32) continue;
      for (Index t = 0; t < 200; t += 9) {
        const Index hidden = window.hidden(t + 1), seen = t + 1 - hidden;
        RowMajorMatrix seen_x(seen, x.cols());
        for (Index i = 0; i < seen; ++i)
          seen_x.row(i) = x.row(i < window.keep || hidden == 0 ? i : i + hidden);
        const DoubleMatrix expected = reference_output(layer, seen_x, consecutive(0, seen));
        ASSERT_TRUE(close(out.row(t), expected.bottomRows(1), kTinyFloat32Tolerance)) << t;
      }
    }
}

// However a text is cut into calls, and wherever its state was forked: the same bits.
TEST_P(Segments, AWindowDoesNotDependOnHowATextIsCutIntoCalls) {
  TestLayer layer(yarn_config());
  for (const SlidingWindow window :
       {SlidingWindow{4, 60}, SlidingWindow{0, 64}, SlidingWindow{70, 1}, SlidingWindow{1, 1100}})
    for (const CacheFormat format : all_formats()) {
      const Index length = window.rows > 1000 ? 1300 : 300;
      const RowMajorMatrix x = layer.input(length);
      Context context(kernels());
      const ForwardOptions options = {.mode = mode(), .window = window};
      const Index many =
          mode() == AttentionForm::absorbed ? 100 : 20;  // decompressed takes its time
      LatentCache one_by_one(layer.config(), format), in_calls(layer.config(), format);
      RowMajorMatrix expected(length, x.cols()), out(length, x.cols());
      Random random(3);
      // What comes before the window moves is the same for all.
      const Index start = window.most() - 3;
      layer.layer.forward(x.topRows(start), one_by_one, expected.topRows(start), context, options);
      in_calls = one_by_one.fork(start);
      const Index end = std::min(length, start + 200);
      for (Index t = start; t < end; ++t)
        layer.layer.forward(x.row(t), one_by_one, expected.row(t), context, options);
      for (Index t = start; t < end;) {
        const Index count = std::min(end - t, random.chance(0.1) ? many : random.integer(1, 3));
        layer.layer.forward(x.middleRows(t, count), in_calls, out.middleRows(t, count), context,
                            options);
        in_calls.truncate(in_calls.size() - (count - 1));  // all but one were drafts
        ASSERT_TRUE(same_bits(out.middleRows(t, count), expected.middleRows(t, count)))
            << name_of(format) << " " << window.keep << " + " << window.rows << " from " << t;
        ++t;
        if (random.chance(0.2)) in_calls = in_calls.fork(in_calls.size());
      }
      EXPECT_EQ(in_calls.positions(), one_by_one.positions());
    }
}

TEST(SegmentsErrors, WindowsThatCannotBeAreRefused) {
  TestLayer layer(small_config());
  Context context;
  LatentCache cache(layer.config());
  const RowMajorMatrix x = layer.input(3);
  const auto with = [&](const ForwardOptions& options) {
    return [&, options] { run(layer, x, cache, context, options); };
  };
  EXPECT_TRUE(refuses(with({.window = {-1, 5}}), {"window", "-1", "5"}));
  EXPECT_TRUE(refuses(with({.window = {1, -5}}), {"window", "1", "-5"}));
  const Index first[] = {0, 0, 0, 0};
  EXPECT_TRUE(refuses(with({.selected = {first, {}}, .window = {1, 5}}), {"window", "selected"}));
  LatentCache shifted(layer.config());
  run(layer, x, shifted, context);
  shifted.shift(1, 3);
  const AbsorbedAttention attention(layer.config(), 1.0);
  const RowMajorMatrix queries = RowMajorMatrix::Zero(1, 3 * 46);
  RowMajorMatrix values(1, 3 * 36);
  const CachedTokens tokens = CachedTokens::ending_in(shifted, 0, 1);
  EXPECT_TRUE(refuses(
      [&] {
        attention.forward({&tokens, 1}, view_of(queries), mutable_view_of(values), context);
      },
      {"rotary"}));
  EXPECT_EQ(cache.size(), 0);
}

}  // namespace
}  // namespace mla::test
