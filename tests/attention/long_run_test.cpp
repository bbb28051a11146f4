// Many steps and far positions: memory stays flat and the results stay the reference's.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <span>
#include <vector>

#include "attention/tolerances.hpp"
#include "mla/io/cache_snapshot.hpp"
#include "support/decoded_rows.hpp"
#include "support/full_disk.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

// Sanitizers keep what was freed, and leak checks of their own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

// Memory of the process that is in use, in bytes.
std::size_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  std::size_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

// A text that grows, is cut back and grows again, as drafts and edits do it; what it should be is
// kept beside it.
class LongRun {
 public:
  explicit LongRun(const AttentionConfig& config) : layer_(config), cache_(config) {}

  Index size() const noexcept { return cache_.size(); }
  void append(Index tokens) {
    const RowMajorMatrix x = layer_.input(tokens);
    const std::vector<Index> positions = with_gaps(tokens, 2, layer_.random);
    const Index first = cache_.next_position();
    RowMajorMatrix out(tokens, x.cols());
    std::vector<Index> ids;
    for (Index position : positions) ids.push_back(first + position);
    layer_.layer.forward(x, cache_, out, context_,
                         {.mode = AttentionForm::absorbed, .position_ids = ids});
    for (Index t = 0; t < tokens; ++t) {
      text_.push_back(x.row(t));
      outputs_.push_back(out.row(t));
      positions_.push_back(ids[static_cast<std::size_t>(t)]);
    }
  }
  void truncate(Index tokens) {
    cache_.truncate(tokens);
    const auto size = static_cast<std::size_t>(tokens);
    text_.resize(size);
    outputs_.resize(size);
    positions_.resize(size);
  }

  // Whether all that is in the text now was computed as the reference does.
  ::testing::AssertionResult is_the_reference() const {
    RowMajorMatrix x(size(), layer_.config().hidden_size), out = x;
    for (Index t = 0; t < size(); ++t) {
      x.row(t) = text_[static_cast<std::size_t>(t)];
      out.row(t) = outputs_[static_cast<std::size_t>(t)];
    }
    return close(out, reference_output(layer_, x, positions_), kTinyFloat32Tolerance);
  }
  std::size_t bytes() noexcept {
    return cache_.bytes_allocated() + context_.workspace().bytes_allocated();
  }
  Random& random() noexcept { return layer_.random; }

 private:
  using Row = Eigen::Matrix<float, 1, Eigen::Dynamic>;

  TestLayer layer_;
  LatentKVCache<float> cache_;
  Context context_;
  std::vector<Row> text_, outputs_;
  std::vector<Index> positions_;
};

TEST(LongRun, MemoryStaysFlatAndResultsStayTheReference) {
  constexpr Index kSteps = 200'000;
  LongRun run(make_config(8, 2, 0, 12, 4, 4, 4));
  std::size_t bytes = 0, resident = 0;
  for (Index step = 1; step <= kSteps; ++step) {
    run.append(1);
    if (run.random().chance(0.02)) {  // a draft that is taken back in part
      const Index size = run.size();
      run.append(run.random().integer(1, 8));
      run.truncate(size);
    }
    if (run.size() == 300) run.truncate(run.random().integer(0, 200));  // an edit
    if (step == kSteps / 10) {  // has been at its longest by now
      bytes = run.bytes();
      resident = resident_bytes();
    }
    if (step % (kSteps / 200) == 0) {
      ASSERT_TRUE(run.is_the_reference()) << "at step " << step << " of size " << run.size();
    }
  }
  EXPECT_EQ(run.bytes(), bytes);
  // Five bytes a step would be seen. The rest is room for malloc, which the checks use.
  if (!kSanitized) {
    EXPECT_LE(resident_bytes(), resident + 1'000'000);
  }
}

// Sink and window, with forks, drafts and restored files on the way. MLA_LONG_TESTS=1 in the
// environment makes it 200,000 tokens in every format.
TEST(LongRun, AWindowSlidesInConstantMemoryAndStaysTheReference) {
  const bool all = std::getenv("MLA_LONG_TESTS") != nullptr;
  const Index steps = all ? 200'000 : 4'000;
  const SlidingWindow window = {.keep = 4, .rows = 100};
  const ForwardOptions options = {.mode = AttentionForm::absorbed, .window = window};
  AttentionConfig config = make_config(8, 2, 0, 12, 4, 4, 4);
  config.rope_scaling = short_yarn(1.0, 0.707);
  const TemporaryDirectory directory;
  for (std::size_t f = 0; f < kCacheFormatCount; ++f) {
    TestLayer layer(config);
    Context context;
    LatentCache cache(config, static_cast<CacheFormat>(f));
    const bool rounds = context.kernels().of(cache.format()).arithmetic != Arithmetic::float32;
    std::size_t workspace = 0, resident = 0;
    for (Index step = 1; step <= steps; ++step) {
      if (layer.random.chance(0.05)) {  // drafts that are all rejected
        const Index tokens = layer.random.integer(1, 5);
        run(layer, layer.input(tokens), cache, context, options);
        cache.truncate(cache.size() - tokens);
      }
      if (layer.random.chance(0.01)) cache = cache.fork(cache.size());
      if (layer.random.chance(0.002)) {
        save_snapshot(directory / "cache", config, cache);
        cache = LatentCache(config, cache.format());
        restore_snapshot(directory / "cache", config, cache);
      }
      const RowMajorMatrix x = layer.input(1);
      const RowMajorMatrix out = run(layer, x, cache, context, options);
      // At most a page that begins and one that ends, for the kept rows and for the window, and
      // one for drafts.
      ASSERT_LE(cache.bytes_allocated(), 7 * cache.rows().page_bytes());
      if (step == steps / 4) {
        workspace = context.workspace().bytes_allocated();
        resident = resident_bytes();
      }
      if (step % (steps / 100) != 0) continue;
      ASSERT_EQ(cache.size(), std::min(step, window.most()));
      ASSERT_EQ(cache.positions(), consecutive(0, cache.size()));
      RowMajorMatrix text = RowMajorMatrix::Zero(cache.size(), x.cols());
      text.bottomRows(1) = x;
      const DoubleMatrix expected =
          reference_output_over(layer, text, cache.positions(), decoded_rows(config, cache));
      ASSERT_TRUE(close(out, expected.bottomRows(1),
                        rounds ? kTinyBFloat16Tolerance : kTinyFloat32Tolerance))
          << name_of(cache.format()) << " at step " << step;
    }
    EXPECT_EQ(context.workspace().bytes_allocated(), workspace);
    if (!kSanitized) {
      EXPECT_LE(resident_bytes(), resident + 1'000'000);
    }
  }
}

// A text of which only its last tokens are kept, as in a stream, far beyond a million.
TEST(LongRun, PositionsBeyondAMillionAreTheReference) {
  for (const double theta : {10'000.0, 8e6})
    for (const Index first : {Index{1'000'000}, Index{16'777'216}, Index{1'000'000'000}}) {
      AttentionConfig config = small_config();
      config.rope_theta = theta;
      config.rope_scaling = short_yarn(1.0, 0.707);
      TestLayer layer(config);
      const RowMajorMatrix x = layer.input(200);
      std::vector<Index> positions = with_gaps(200, 20'000, layer.random);
      for (Index& position : positions) position += first;
      const DoubleMatrix expected = reference_output(layer, x, positions);
      for (AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
        Context context;
        LatentKVCache<float> cache(config);
        RowMajorMatrix out(200, x.cols());
        for (Index t = 0; t < 200; ++t)
          layer.layer.forward(
              x.row(t), cache, out.row(t), context,
              {.mode = mode,
               .position_ids = std::span(positions).subspan(static_cast<std::size_t>(t), 1)});
        EXPECT_TRUE(close(out, expected, kTinyFloat32Tolerance)) << theta << " from " << first;
      }
    }
}

}  // namespace
}  // namespace mla::test
