// Tokens that see lists of rows in place of all rows up to their own.

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "attention/tolerances.hpp"
#include "mla/attention/multihead_latent_attention.hpp"
#include "support/compare.hpp"
#include "support/executors.hpp"
#include "support/isas.hpp"
#include "support/message_of.hpp"
#include "support/random.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

constexpr CacheFormat kFormats[] = {CacheFormat::float32, CacheFormat::bfloat16,
                                    CacheFormat::float16, CacheFormat::int8,
                                    CacheFormat::fp8,     CacheFormat::int4};

// Lists of rows, one per token.
class Lists {
 public:
  void add(const std::vector<Index>& rows) {
    rows_.insert(rows_.end(), rows.begin(), rows.end());
    first_.push_back(std::ssize(rows_));
  }
  KeySelection selection() const { return {first_, rows_}; }
  // Of tokens [first, + count), as a call of their own has them.
  Lists part(Index first, Index count) const {
    Lists lists;
    for (Index t = first; t < first + count; ++t) {
      const auto list = selection().of(t);
      lists.add({list.begin(), list.end()});
    }
    return lists;
  }
  // [tokens, tokens] 1 where the token of the row sees the key of the column.
  std::vector<std::uint8_t> mask() const {
    const Index tokens = std::ssize(first_) - 1;
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(tokens * tokens));
    for (Index t = 0; t < tokens; ++t)
      for (const Index row : selection().of(t))
        mask[static_cast<std::size_t>(t * tokens + row)] = 1;
    return mask;
  }

  std::vector<Index> first_ = {0};
  std::vector<Index> rows_;
};

// Of `tokens` tokens on an empty cache: all, none, one, or some of the rows that each may see.
Lists random_lists(Index tokens, Random& random) {
  Lists lists;
  for (Index t = 0; t < tokens; ++t) {
    std::vector<Index> rows;
    switch (random.integer(0, 4)) {
      case 0:
        break;
      case 1:
        rows = {random.integer(0, t)};
        break;
      case 2:
        rows = consecutive(0, t + 1);
        break;
      default: {
        const double chance = random.uniform(0.0, 1.0);
        for (Index row = 0; row <= t; ++row)
          if (random.chance(chance)) rows.push_back(row);
      }
    }
    lists.add(rows);
  }
  return lists;
}

Lists all_rows(Index first, Index tokens) {
  Lists lists;
  for (Index t = 0; t < tokens; ++t) lists.add(consecutive(0, first + t + 1));
  return lists;
}

RowMajorMatrix run_selected(const TestLayer& layer, const RowMajorMatrix& x, CacheFormat format,
                            const Lists& lists, Context& context) {
  LatentCache cache(layer.config(), format);
  return run(layer, x, cache, context, {.selected = lists.selection()});
}

class Selection : public EveryIsa {};
MLA_FOR_EVERY_ISA(Selection);

TEST_P(Selection, IsAttentionUnderAMask) {
  Random random(31);
  for (const AttentionConfig& config :
       {small_config(), make_config(33, 1, 17, 31, 5, 6, 7), make_config(24, 20, 12, 24, 6, 4, 6),
        make_config(48, 40, 0, 33, 6, 4, 6), AttentionConfig::lesson(48, 4, 24, 20, 8)})
    for (const Index tokens : {1, 17, 70, 150}) {
      TestLayer layer(config, {.split = config.rope_key_per_head}, 7);
      const RowMajorMatrix x = layer.input(tokens);
      const Lists lists = random_lists(tokens, random);
      const std::vector<std::uint8_t> mask = lists.mask();
      const DoubleMatrix expected = reference_output_of_selection(layer, x, consecutive(0, tokens),
                                                                  {mask.data(), tokens, tokens});
      Context context(kernels());
      for (const CacheFormat format : kFormats) {
        // What a format rounds is bounded where caches are tested; here, that it is no other mask.
        const double tolerance = format == CacheFormat::float32    ? kFloat32Tolerance
                                 : format == CacheFormat::float16  ? 0.01
                                 : format == CacheFormat::bfloat16 ? 0.08
                                 : format == CacheFormat::int8     ? 0.1
                                                                   : 0.5;
        EXPECT_TRUE(close(run_selected(layer, x, format, lists, context), expected, tolerance))
            << name_of(format) << ", " << tokens << " tokens";
      }
    }
}

// To the last bit: with the list of all rows, in calls of any size, on any number of threads.
TEST_P(Selection, OfAllRowsIsTheAbsorbedForm) {
  for (const AttentionConfig& config :
       {small_config(), AttentionConfig::lesson(48, 4, 24, 20, 8)}) {
    TestLayer layer(config, {.split = config.rope_key_per_head});
    const RowMajorMatrix x = layer.input(1100);
    Context context(kernels());
    for (const CacheFormat format : kFormats) {
      LatentCache cache(config, format);
      const RowMajorMatrix dense = run(layer, x, cache, context, {.mode = AttentionForm::absorbed});
      cache.truncate(1030);
      const Lists last = all_rows(1030, 70);
      EXPECT_TRUE(
          same_bits(run(layer, x.bottomRows(70), cache, context, {.selected = last.selection()}),
                    dense.bottomRows(70)))
          << name_of(format);
    }
  }
}

TEST_P(Selection, DoesNotDependOnChunksThreadsOrBatch) {
  TestLayer layer(small_config());
  const Index tokens = 90;
  const RowMajorMatrix x = layer.input(tokens), other_x = layer.input(40);
  Random random(5);
  const Lists lists = random_lists(tokens, random), other_lists = random_lists(40, random);
  Context context(kernels());
  for (const CacheFormat format : kFormats) {
    const RowMajorMatrix once = run_selected(layer, x, format, lists, context);
    ThreadExecutor executor(3);
    Context threaded(executor, kernels());
    EXPECT_TRUE(same_bits(run_selected(layer, x, format, lists, threaded), once));

    LatentCache chunked(layer.config(), format);
    for (Index first = 0; first < tokens;) {
      const Index count = std::min<Index>(random.integer(1, 30), tokens - first);
      const Lists part = lists.part(first, count);
      EXPECT_TRUE(same_bits(
          run(layer, x.middleRows(first, count), chunked, context, {.selected = part.selection()}),
          once.middleRows(first, count)));
      first += count;
    }

    // Beside a sequence whose cache is of another format.
    const CacheFormat other_format =
        format == CacheFormat::float32 ? CacheFormat::bfloat16 : CacheFormat::float32;
    const RowMajorMatrix other_once =
        run_selected(layer, other_x, other_format, other_lists, context);
    LatentCache a(layer.config(), format), b(layer.config(), other_format);
    Lists both = lists;
    for (Index t = 0; t < 40; ++t) {
      const auto list = other_lists.selection().of(t);
      both.add({list.begin(), list.end()});
    }
    RowMajorMatrix both_x(130, x.cols()), out(130, x.cols());
    both_x << x, other_x;
    layer.layer.forward(both_x, {{&a, tokens}, {&b, 40}}, out, threaded,
                        {.selected = both.selection()});
    EXPECT_TRUE(same_bits(out.topRows(tokens), once));
    EXPECT_TRUE(same_bits(out.bottomRows(40), other_once));
  }
}

// Padding has lists too, which nobody reads.
TEST_P(Selection, GoesWithPadding) {
  TestLayer layer(small_config());
  const RowMajorMatrix x = layer.input(6);
  Context context(kernels());
  const std::vector<std::uint8_t> mask = {1, 0, 1, 1, 0, 1};
  Lists padded, plain;
  for (const auto& list : std::vector<std::vector<Index>>{{0}, {99, 98}, {0}, {1, 2}, {}, {0, 3}})
    padded.add(list);
  for (const Index t : {0, 2, 3, 5}) {
    const auto list = padded.selection().of(t);
    plain.add({list.begin(), list.end()});
  }
  RowMajorMatrix real(4, x.cols());
  real << x.row(0), x.row(2), x.row(3), x.row(5);
  const std::vector<Index> positions = {0, 2, 3, 5};
  LatentCache cache(layer.config()), plain_cache(layer.config());
  const RowMajorMatrix out =
      run(layer, x, cache, context, {.attention_mask = mask, .selected = padded.selection()});
  const RowMajorMatrix expected = run(layer, real, plain_cache, context,
                                      {.position_ids = positions, .selected = plain.selection()});
  for (Index i = 0; i < 4; ++i)
    EXPECT_TRUE(same_bits(out.row(positions[static_cast<std::size_t>(i)]), expected.row(i))) << i;
}

TEST(SelectionErrors, NameTheTokenAndTheRowAndLeaveTheCache) {
  TestLayer layer(small_config());
  Context context;
  LatentCache cache(layer.config());
  run(layer, layer.input(5), cache, context);
  const CacheContents before(cache);
  const RowMajorMatrix x = layer.input(2);
  const auto message = [&](const std::vector<Index>& second,
                           AttentionForm mode = AttentionForm::automatic) {
    Lists lists;
    lists.add({0, 5});
    lists.add(second);
    const std::string text = test::message_of(
        [&] { run(layer, x, cache, context, {.mode = mode, .selected = lists.selection()}); });
    EXPECT_EQ(CacheContents(cache), before);
    return text;
  };
  EXPECT_EQ(message({1, 3, 3}), "selection of token 1 has row 3 twice");
  EXPECT_EQ(message({1, 7}), "selection of token 1 has row 7, but the token sees rows 0 to 6");
  EXPECT_EQ(message({-1}), "selection of token 1 has row -1, but the token sees rows 0 to 6");
  EXPECT_EQ(message({3, 1}), "selection of token 1 must rise: row 1 comes after 3");
  EXPECT_EQ(message({1}, AttentionForm::decompressed).substr(0, 49),
            "mode decompressed does not take selected keys: ea");

  const std::vector<Index> rows = {0, 1};
  const auto first_message = [&](const std::vector<Index>& first) {
    return test::message_of([&] { run(layer, x, cache, context, {.selected = {first, rows}}); });
  };
  EXPECT_EQ(first_message({0, 1}),
            "selected.first must have 3 elements, one per token and the end, got 2");
  EXPECT_EQ(first_message({0, 1, 3}),
            "selected.first must rise from 0 to at most the 2 rows, got 3 after 1");
  EXPECT_EQ(first_message({0, 2, 1}),
            "selected.first must rise from 0 to at most the 2 rows, got 1 after 2");
  EXPECT_EQ(CacheContents(cache), before);
}

}  // namespace
}  // namespace mla::test
