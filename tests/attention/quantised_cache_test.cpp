// Layers over caches of 8 and 4 bits. Attention over such a cache is by definition attention over
// its decoded rows, here to the last bit and in both forms; what rounding costs is bounded apart.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "attention/tolerances.hpp"
#include "mla/attention/absorbed_attention.hpp"
#include "mla/attention/decompressed_attention.hpp"
#include "support/cache_types.hpp"
#include "support/executors.hpp"
#include "support/isas.hpp"
#include "support/message_of.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

class QuantisedCache : public ::testing::TestWithParam<std::tuple<simd::Isa, CacheFormat>> {
 protected:
  const simd::Kernels& kernels() const { return simd::kernels_for(std::get<0>(GetParam())); }
  CacheFormat format() const { return std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Isa, QuantisedCache,
                         ::testing::Combine(::testing::ValuesIn(supported_isas()),
                                            ::testing::ValuesIn(kQuantised)),
                         [](const auto& form) {
                           return std::string(simd::name_of(std::get<0>(form.param))) + "_" +
                                  std::string(name_of(std::get<1>(form.param)));
                         });

// The rows of `cache` as numbers of `format`.
LatentCache decoded(const LatentCache& cache, const AttentionConfig& config, CacheFormat format) {
  RowMajorMatrix rows(cache.size(), cache.layout().width());
  for (Index i = 0; i < cache.size(); ++i)
    info_of(cache.format()).widen(cache.layout(), cache.rows().row(i), rows.row(i).data());
  LatentCache result(config, format);
  result.append(view_of(rows), cache.positions(), simd::kernels_for(simd::Isa::scalar));
  return result;
}

// Attention of the last `tokens` tokens, by queries that are the same at every call.
RowMajorMatrix attend(const TestLayer& layer, const LatentCache& cache, Index tokens, Mode mode,
                      Context& context) {
  const AttentionConfig& config = layer.config();
  const CachedTokens last = CachedTokens::ending_in(cache, 0, tokens);
  const bool absorbed = mode == Mode::absorbed;
  const Index key = absorbed ? config.kv_lora_rank + config.qk_rope_head_dim : config.qk_head_dim();
  const Index value = absorbed ? config.kv_lora_rank : config.v_head_dim;
  Random random(3);
  const RowMajorMatrix queries = random_matrix(tokens, config.num_attention_heads * key, random);
  RowMajorMatrix values(tokens, config.num_attention_heads * value);
  const LatentDecompression decompression(config, layer.weights.views());
  if (absorbed)
    AbsorbedAttention(config, 0.1)
        .forward({&last, 1}, view_of(queries), mutable_view_of(values), context);
  else
    DecompressedAttention(config, 0.1, decompression)
        .forward({&last, 1}, view_of(queries), mutable_view_of(values), context);
  return values;
}

const AttentionConfig kConfigs[] = {make_config(48, 3, 0, 160, 24, 16, 24),
                                    make_config(33, 9, 17, 31, 5, 6, 7),
                                    make_config(40, 16, 0, 512, 16, 64, 16)};

TEST_P(QuantisedCache, AttentionIsThatOverTheDecodedRowsToTheLastBit) {
  std::vector<AttentionConfig> configs(std::begin(kConfigs), std::end(kConfigs));
  configs.push_back(AttentionConfig::lesson(48, 4, 24, 20, 8));
  for (const AttentionConfig& config : configs)
    for (const auto weights : {WeightFormat::float32, WeightFormat::bfloat16}) {
      TestLayer layer(config, {.format = weights, .split = config.rope_key_per_head});
      for (const Index size : {1, 65, 300, 1100}) {
        if (size > 300 && config.kv_lora_rank > 100) continue;
        Context context(kernels());
        LatentCache cache(config, format());
        layer.layer.append(layer.input(size), cache, context);
        for (const Mode mode : {Mode::absorbed, Mode::decompressed}) {
          // A rotary key per head is attended row by row, which is always in float32.
          const bool rounds = kernels().of(format()).arithmetic == simd::Arithmetic::bfloat16 &&
                              !(config.rope_key_per_head && mode == Mode::absorbed);
          const LatentCache plain =
              decoded(cache, config, rounds ? CacheFormat::bfloat16 : CacheFormat::float32);
          const Index tokens = std::min<Index>(size, 5);
          EXPECT_TRUE(same_bits(attend(layer, cache, tokens, mode, context),
                                attend(layer, plain, tokens, mode, context)))
              << describe(config) << " size " << size << " mode " << static_cast<int>(mode)
              << " weights " << name_of(weights);
        }
      }
    }
}

// The error of the outputs: measured 0.009, 0.06 and 0.16 at most.
TEST_P(QuantisedCache, CostsItsRoundingAndNothingMore) {
  const double bound = format() == CacheFormat::int8  ? 0.02
                       : format() == CacheFormat::fp8 ? 0.1
                                                      : 0.3;
  for (const AttentionConfig& config : kConfigs) {
    TestLayer layer(config);
    const RowMajorMatrix x = layer.input(150);
    const DoubleMatrix exact = reference_output(layer, x, consecutive(0, 150));
    for (const Mode mode : {Mode::absorbed, Mode::decompressed}) {
      Context context(kernels());
      LatentCache cache(config, format());
      const RowMajorMatrix out = run(layer, x, cache, context, {.mode = mode});
      EXPECT_TRUE(close(out, exact, bound)) << describe(config);
      EXPECT_GT(relative_error(out, exact), bound / 10.0) << "the bound says nothing";
      // Of the rows that the cache holds nothing more is lost.
      RowMajorMatrix rows(150, config.cache_row_width());
      for (Index i = 0; i < 150; ++i)
        info_of(format()).widen(cache.layout(), cache.rows().row(i), rows.row(i).data());
      const bool rounds = kernels().of(format()).arithmetic == simd::Arithmetic::bfloat16;
      EXPECT_TRUE(close(out,
                        reference_output_over(layer, x, consecutive(0, 150), rows.cast<double>()),
                        rounds ? kTinyBFloat16Tolerance : kTinyFloat32Tolerance))
          << describe(config);
    }
  }
}

TEST_P(QuantisedCache, ChunksDraftsThreadsAndBatchesOfMixedFormatsChangeNothing) {
  const AttentionConfig config = make_config(48, 3, 0, 160, 24, 16, 24);
  TestLayer layer(config);
  const RowMajorMatrix x = layer.input(140), draft = layer.input(9), other_x = layer.input(33);
  for (const Mode mode : {Mode::absorbed, Mode::decompressed}) {
    ThreadExecutor executor(3);
    Context context(kernels()), threaded(executor, kernels());
    LatentCache cache(config, format()), chunked(config, format());
    const RowMajorMatrix once = run(layer, x, cache, context, {.mode = mode});
    for (Index first = 0, count; first < 140; first += count) {
      count = std::min<Index>(first % 3 == 0 ? 1 : 50, 140 - first);
      EXPECT_TRUE(
          same_bits(run(layer, x.middleRows(first, count), chunked, threaded, {.mode = mode}),
                    once.middleRows(first, count)));
      run(layer, draft, chunked, context, {.mode = mode});
      chunked.truncate(first + count);
    }
    EXPECT_EQ(CacheContents(chunked), CacheContents(cache));

    for (const CacheFormat other : {CacheFormat::float32, CacheFormat::bfloat16, CacheFormat::int8,
                                    CacheFormat::fp8, CacheFormat::int4}) {
      LatentCache mixed(config, format()), beside(config, other), alone(config, other);
      RowMajorMatrix both(173, 48), out(173, 48);
      both << other_x, x;
      const std::vector<Sequence> batch = {{&beside, 33}, {&mixed, 140}};
      layer.layer.forward(both, batch, out, threaded, {.mode = mode});
      EXPECT_TRUE(same_bits(out.bottomRows(140), once));
      EXPECT_TRUE(same_bits(out.topRows(33), run(layer, other_x, alone, context, {.mode = mode})));
    }
  }
}

TEST(QuantisedCaches, ARotaryKeyThatFloat16DoesNotHoldIsRefusedByName) {
  const AttentionConfig config = make_config(8, 2, 0, 4, 4, 2, 4);
  const std::vector<Index> positions = {0, 1};
  for (const CacheFormat format : kQuantised) {
    LatentCache cache(config, format);
    RowMajorMatrix rows = RowMajorMatrix::Constant(2, 6, 65519.0f);
    cache.append(view_of(rows.topRows(1)), {positions.data(), 1});
    const CacheContents before(cache);
    rows(1, 5) = -65520.0f;
    const auto append = [&] { cache.append(view_of(rows), std::vector<Index>{1, 2}); };
    if (format == CacheFormat::fp8) {
      append();
      EXPECT_EQ(cache.size(), 3);
      continue;
    }
    EXPECT_EQ(message_of(append), "rotary key 1 of cache row 1 is -65520, a cache of format " +
                                      std::string(name_of(format)) + " holds those below 65520");
    EXPECT_EQ(CacheContents(cache), before);
    // What is not finite has bytes of its own: whoever sees it sees NaN.
    rows(1, 5) = std::numeric_limits<float>::infinity();
    rows(1, 4) = std::numeric_limits<float>::quiet_NaN();
    append();
    EXPECT_EQ(cache.size(), 3);
  }
}

// In the middle of a call, of a layer whose rotary keys come out too large for one of the batch.
TEST(QuantisedCaches, ACallWithSuchAKeyLeavesAllCachesAsTheyWere) {
  TestLayer layer(make_config(16, 2, 0, 8, 4, 2, 4));
  Context context;
  LatentCache first(layer.config(), CacheFormat::int4), second(layer.config(), CacheFormat::int8);
  RowMajorMatrix x = layer.input(6), out(6, 16);
  const std::vector<Sequence> batch = {{&first, 3}, {&second, 3}};
  layer.layer.forward(x, batch, out, context);
  const CacheContents before_first(first), before_second(second);
  x.row(5) *= 1e7f;
  EXPECT_NE(message_of([&] { layer.layer.forward(x, batch, out, context); }).find("rotary key"),
            std::string::npos);
  EXPECT_EQ(CacheContents(first), before_first);
  EXPECT_EQ(CacheContents(second), before_second);
}

TEST(QuantisedCaches, SizesCountCodesScalesAndRotaryKeys) {
  const AttentionConfig config = AttentionConfig::deepseek_v3();
  const RowMajorMatrix rows = RowMajorMatrix::Random(100, 576);
  const std::size_t expected[] = {656, 656, 416};
  for (std::size_t f = 0; f < 3; ++f) {
    LatentCache cache(config, kQuantised[f]);
    cache.append(view_of(rows), consecutive(0, 100));
    EXPECT_EQ(cache.bytes_per_token(), expected[f]);
    EXPECT_EQ(cache.bytes_used(), 100 * expected[f]);
    EXPECT_EQ(cache.bytes_allocated(), 128 * (expected[f] + sizeof(Index)));
  }
}

// The keys of sparse attention, without a rotary part.
TEST(QuantisedCaches, IndexKeysMayBeQuantisedToo) {
  const AttentionConfig config = make_config(8, 2, 0, 4, 4, 2, 4);
  Random random(4);
  const RowMajorMatrix rows = random_matrix(70, 6, random), keys = random_matrix(70, 130, random);
  for (const CacheFormat format : kQuantised) {
    LatentCache cache(config, CacheFormat::int8, {.width = 130, .format = format});
    cache.append(view_of(rows), consecutive(0, 70), simd::kernels(), view_of(keys));
    const RowLayout layout = row_layout(format, 130, 0);
    std::vector<std::byte> bytes(static_cast<std::size_t>(layout.bytes));
    for (Index i = 0; i < 70; ++i) {
      info_of(format).encode(layout, keys.row(i).data(), bytes.data());
      EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), cache.index_keys()->row(i)));
    }
    cache.truncate(3);
    EXPECT_EQ(cache.index_keys()->size(), 3);
  }
}

}  // namespace
}  // namespace mla::test
