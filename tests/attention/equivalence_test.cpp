// What must not change a single bit of a token's result: chunks, batches, threads, history.
#include <gtest/gtest.h>

#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "support/executors.hpp"
#include "support/modes.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

class Equivalence : public EveryIsaAndMode {
 protected:
  // Runs x in parts that begin at the given tokens, on one cache, and expects the bits of
  // `expected` and the contents of `once`, which one call made.
  template <StorageElement T>
  void expect_parts_equal(const TestLayer& layer, const RowMajorMatrix& x,
                          const std::vector<Index>& begins, const RowMajorMatrix& expected,
                          const CacheContents& once, const std::string& what) {
    Context context(kernels());
    LatentKVCache<T> cache(layer.config());
    RowMajorMatrix actual(x.rows(), x.cols());
    for (std::size_t i = 0; i < begins.size(); ++i) {
      const Index end = i + 1 < begins.size() ? begins[i + 1] : x.rows();
      const Index count = end - begins[i];
      actual.middleRows(begins[i], count) =
          run(layer, x.middleRows(begins[i], count), cache, context, options());
    }
    ASSERT_TRUE(same_bits(actual, expected)) << what;
    ASSERT_EQ(CacheContents(cache), once) << what;
  }

  template <StorageElement T>
  void expect_any_chunks_equal_one_call(const AttentionConfig& config, Index tokens) {
    TestLayer layer(config);
    const RowMajorMatrix x = layer.input(tokens);
    Context context(kernels());
    LatentKVCache<T> cache(config);
    const RowMajorMatrix expected = run(layer, x, cache, context, options());
    const CacheContents once(cache);
    const auto expect_equal = [&](const std::vector<Index>& begins, const std::string& what) {
      expect_parts_equal<T>(layer, x, begins, expected, once, what);
    };
    expect_equal(consecutive(0, tokens), "token by token");
    for (Index split : {1, 63, 64, 65, 127, 129, 256, 257, 599})
      if (split < tokens) expect_equal({0, split}, "at " + std::to_string(split));
    std::vector<Index> begins = {0};
    while (begins.back() + 40 < tokens)
      begins.push_back(begins.back() + layer.random.integer(0, 40));  // some are empty
    expect_equal(begins, "at random");
  }
};
MLA_FOR_EVERY_ISA_AND_MODE(Equivalence);

TEST_P(Equivalence, AnyChunksOfAPromptEqualOneCall) {
  expect_any_chunks_equal_one_call<float>(small_config(), 600);
}

TEST_P(Equivalence, AnyChunksEqualOneCallWithOddDimsAndOneHead) {
  expect_any_chunks_equal_one_call<float>(make_config(33, 1, 17, 31, 5, 6, 7), 200);
}

TEST_P(Equivalence, AnyChunksEqualOneCallWithRotaryKeysOfEachHead) {
  expect_any_chunks_equal_one_call<float>(AttentionConfig::lesson(48, 4, 24, 20, 8), 140);
}

TEST_P(Equivalence, AnyChunksEqualOneCallWithTwentyHeads) {
  expect_any_chunks_equal_one_call<float>(make_config(24, 20, 12, 24, 6, 4, 6), 140);
}

TEST_P(Equivalence, AnyChunksEqualOneCallOnCachesOf16Bits) {
  expect_any_chunks_equal_one_call<bfloat16>(small_config(), 140);
  expect_any_chunks_equal_one_call<float16>(small_config(), 140);
}

// Long contexts are attended in parts that are merged, each of many rows and on any worker.
TEST_P(Equivalence, ChunksAndThreadsEqualOneCallAcrossAThousandKeys) {
  TestLayer layer(make_config(16, 3, 0, 20, 6, 4, 6));
  const RowMajorMatrix x = layer.input(2060);
  Context context(kernels());
  LatentKVCache<float> cache(layer.config());
  const RowMajorMatrix expected = run(layer, x, cache, context, options());
  const CacheContents once(cache);
  for (const std::vector<Index>& begins : std::vector<std::vector<Index>>{
           {0, 1023, 1025, 2047, 2049}, {0, 1024, 2048}, {0, 1, 1000, 1030, 1031, 2040, 2041}})
    expect_parts_equal<float>(layer, x, begins, expected, once,
                              "from " + std::to_string(begins[1]));
  for (Index threads : {2, 3, 7})
    for (Index tokens : {1, 8, 40}) {
      ThreadExecutor executor(threads);
      Context threaded(executor, kernels());
      cache.truncate(2060 - tokens);
      EXPECT_TRUE(same_bits(run(layer, x.bottomRows(tokens), cache, threaded, options()),
                            expected.bottomRows(tokens)))
          << threads << " threads, " << tokens << " tokens";
    }
}

// So many heads and tokens that their partial results do not fit in memory together.
TEST(ManyRows, InSeveralRoundsEqualFewRowsInOne) {
  TestLayer layer(make_config(8, 128, 0, 512, 4, 2, 4));
  const RowMajorMatrix x = layer.input(260);
  Context context;
  const ForwardOptions absorbed = {.mode = AttentionForm::absorbed};
  const RowMajorMatrix expected = run_fresh<float>(layer, x, context, absorbed);
  LatentKVCache<float> cache(layer.config());
  for (Index first = 0; first < 260; first += 130)
    EXPECT_TRUE(same_bits(run(layer, x.middleRows(first, 130), cache, context, absorbed),
                          expected.middleRows(first, 130)));
}

// Sequences of different ages and lengths, one without new tokens.
TEST_P(Equivalence, ARaggedBatchEqualsItsSequencesAlone) {
  TestLayer layer(small_config());
  const Index past[] = {0, 63, 64, 130, 5, 300};
  const Index tokens[] = {70, 1, 0, 65, 1, 2};
  Context context(kernels());
  std::vector<LatentKVCache<float>> batched, alone;
  for (Index p : past) {
    const RowMajorMatrix history = layer.input(p);
    run(layer, history, batched.emplace_back(layer.config()), context, options());
    run(layer, history, alone.emplace_back(layer.config()), context, options());
  }
  std::vector<Sequence> batch;
  for (std::size_t s = 0; s < std::size(past); ++s) batch.push_back({&batched[s], tokens[s]});
  const RowMajorMatrix x = layer.input(139);
  RowMajorMatrix out(139, x.cols());
  layer.layer.forward(x, batch, out, context, options());
  Index first = 0;
  for (std::size_t s = 0; s < std::size(past); ++s) {
    const RowMajorMatrix expected =
        run(layer, x.middleRows(first, tokens[s]), alone[s], context, options());
    EXPECT_TRUE(same_bits(out.middleRows(first, tokens[s]), expected)) << "sequence " << s;
    EXPECT_EQ(CacheContents(batched[s]), CacheContents(alone[s])) << "sequence " << s;
    first += tokens[s];
  }
}

TEST_P(Equivalence, AnyThreadsAndAnyOrderOfTasksEqualOneThread) {
  for (const AttentionConfig& config : {small_config(), make_config(150, 20, 70, 36, 12, 10, 14)}) {
    TestLayer layer(config);
    const RowMajorMatrix x = layer.input(130);
    Context serial(kernels());
    const RowMajorMatrix expected = run_fresh<float>(layer, x, serial, options());
    for (Index threads : {1, 2, 3, 7}) {
      ThreadExecutor executor(threads);
      Context context(executor, kernels());
      EXPECT_TRUE(same_bits(run_fresh<float>(layer, x, context, options()), expected)) << threads;
    }
    BackwardExecutor backward;
    Context context(backward, kernels());
    EXPECT_TRUE(same_bits(run_fresh<float>(layer, x, context, options()), expected));
  }
}

TEST_P(Equivalence, ATokenOfNaNSpoilsThoseThatSeeItAndNoOther) {
  TestLayer layer(make_config(16, 3, 0, 20, 6, 4, 6));
  RowMajorMatrix x = layer.input(1100);
  Context context(kernels());
  const RowMajorMatrix clean = run_fresh<float>(layer, x, context, options());
  for (Index token : {5, 64, 1040}) {
    RowMajorMatrix spoiled = x;
    spoiled(token, 3) = std::numeric_limits<float>::quiet_NaN();
    const RowMajorMatrix out = run_fresh<float>(layer, spoiled, context, options());
    EXPECT_TRUE(same_bits(out.topRows(token), clean.topRows(token))) << token;
    EXPECT_TRUE(out.bottomRows(1100 - token).array().isNaN().all()) << token;
  }
}

// A rejected draft of speculative decoding leaves no trace in later results.
TEST_P(Equivalence, TruncatingADraftEqualsNeverHavingComputedIt) {
  TestLayer layer(small_config());
  const RowMajorMatrix prompt = layer.input(63), draft = layer.input(70), x = layer.input(5);
  Context context(kernels());
  LatentKVCache<bfloat16> drafted(layer.config()), straight(layer.config());
  run(layer, prompt, drafted, context, options());
  run(layer, prompt, straight, context, options());
  run(layer, draft, drafted, context, options());
  drafted.truncate(63);
  EXPECT_TRUE(same_bits(run(layer, x, drafted, context, options()),
                        run(layer, x, straight, context, options())));
}

// Whatever a context computed before, of whichever layer, and whatever scratch memory holds.
TEST_P(Equivalence, AUsedContextEqualsAFreshOne) {
  TestLayer layer(small_config()), other(make_config(64, 5, 0, 90, 30, 12, 9), {}, 7);
  const RowMajorMatrix x = layer.input(65);
  Context fresh(kernels()), used(kernels());
  RowMajorMatrix spoiled = other.input(200);
  spoiled.setConstant(std::numeric_limits<float>::quiet_NaN());
  run_fresh<float16>(other, spoiled, used, options());
  EXPECT_TRUE(same_bits(run_fresh<float>(layer, x, used, options()),
                        run_fresh<float>(layer, x, fresh, options())));
}

// Of an instruction set's own kernels, supported here or not: bfloat16 is what they may round.
AttentionSpeed speed_of(simd::Isa isa, WeightFormat weights, CacheFormat cache) {
  const auto rounds = [isa](bool bf16) {
    return bf16 ? simd::arithmetic_of(isa) : Arithmetic::float32;
  };
  return attention_speed(isa, rounds(weights == WeightFormat::bfloat16),
                         rounds(cache == CacheFormat::bfloat16), cache);
}

TEST(AutomaticMode, ABatchOfPrefillAndDecodeEqualsItsSequencesAlone) {
  TestLayer layer(small_config());
  const Index past[] = {200, 0, 300, 100, 0}, tokens[] = {1, 100, 1, 0, 65};
  for (simd::Isa isa : supported_isas()) {
    const AttentionSpeed speed = speed_of(isa, WeightFormat::float32, CacheFormat::float32);
    ASSERT_EQ(choose_mode(layer.config(), 0, 100, speed), AttentionForm::decompressed);
    ASSERT_EQ(choose_mode(layer.config(), 200, 1, speed), AttentionForm::absorbed);
    Context context(simd::kernels_for(isa));
    std::vector<LatentKVCache<float>> batched, alone;
    for (Index p : past) {
      const RowMajorMatrix history = layer.input(p);
      run(layer, history, batched.emplace_back(layer.config()), context);
      run(layer, history, alone.emplace_back(layer.config()), context);
    }
    std::vector<Sequence> batch;
    for (std::size_t s = 0; s < std::size(past); ++s) batch.push_back({&batched[s], tokens[s]});
    const RowMajorMatrix x = layer.input(167);
    RowMajorMatrix out(167, x.cols());
    layer.layer.forward(x, batch, out, context);
    Index first = 0;
    for (std::size_t s = 0; s < std::size(past); ++s) {
      const AttentionForm mode = choose_mode(layer.config(), past[s], tokens[s], speed);
      const RowMajorMatrix expected =
          run(layer, x.middleRows(first, tokens[s]), alone[s], context, {.mode = mode});
      EXPECT_TRUE(same_bits(out.middleRows(first, tokens[s]), expected))
          << simd::name_of(isa) << " sequence " << s;
      first += tokens[s];
    }
  }
}

TEST(AutomaticMode, DecodesAbsorbedAndPrefillsLongPromptsDecompressed) {
  for (const auto& config : {AttentionConfig::deepseek_v3(), AttentionConfig::deepseek_v2_lite(),
                             AttentionConfig::kimi_k2()})
    for (simd::Isa isa : simd::kAllIsas)
      for (CacheFormat cache :
           {CacheFormat::float32, CacheFormat::bfloat16, CacheFormat::float16}) {
        const AttentionSpeed speed = speed_of(isa, WeightFormat::bfloat16, cache);
        for (Index past : {100, 4000, 100'000})
          EXPECT_EQ(choose_mode(config, past, 1, speed), AttentionForm::absorbed) << past;
        EXPECT_EQ(choose_mode(config, 0, 4096, speed), AttentionForm::decompressed);
      }
}

// Fast products make what is not a product count.
TEST(AutomaticMode, DependsOnTheSpeedOfTheKernels) {
  const AttentionConfig config = AttentionConfig::deepseek_v3();
  const auto mode = [&](simd::Isa isa, CacheFormat cache) {
    return choose_mode(config, 192, 64, speed_of(isa, WeightFormat::bfloat16, cache));
  };
  EXPECT_EQ(mode(simd::Isa::avx512, CacheFormat::bfloat16), AttentionForm::absorbed);
  EXPECT_EQ(mode(simd::Isa::amx, CacheFormat::bfloat16), AttentionForm::decompressed);
}

TEST(AutomaticMode, TakesEachQueryForItselfWhereRotaryKeysAreNotShared) {
  AttentionConfig config = AttentionConfig::deepseek_v3();
  const AttentionSpeed speed =
      speed_of(simd::Isa::avx512, WeightFormat::bfloat16, CacheFormat::bfloat16);
  EXPECT_EQ(choose_mode(config, 900, 100, speed), AttentionForm::absorbed);
  config.rope_key_per_head = true;
  EXPECT_EQ(choose_mode(config, 900, 100, speed), AttentionForm::decompressed);
  EXPECT_EQ(choose_mode(config, 900, 1, speed), AttentionForm::absorbed);
}

TEST(AutomaticMode, KnowsWeightsAndCachesThatAreNotOfBFloat16) {
  const auto speed = [](WeightFormat weights, CacheFormat cache) {
    return speed_of(simd::Isa::amx, weights, cache);
  };
  const AttentionSpeed amx = attention_speed(simd::Isa::amx, Arithmetic::bfloat16);
  const AttentionSpeed avx512 = attention_speed(simd::Isa::avx512, Arithmetic::float32);
  const AttentionSpeed weights = speed(WeightFormat::bfloat16, CacheFormat::float16);
  EXPECT_EQ(weights.decompress, amx.decompress);
  EXPECT_EQ(weights.attend_latents, avx512.attend_latents);
  EXPECT_EQ(weights.pack, avx512.pack);
  EXPECT_GT(speed(WeightFormat::bfloat16, CacheFormat::float32).pack, 1e9);  // read where it is
  const AttentionSpeed cache = speed(WeightFormat::float32, CacheFormat::bfloat16);
  EXPECT_EQ(cache.decompress, avx512.decompress);
  EXPECT_EQ(cache.attend_latents, amx.attend_latents);
}

// The work of attention_time() is that of attention_cost() where whole tiles are full.
TEST(AutomaticMode, CountsTheSameWorkAtEqualSpeeds) {
  const AttentionConfig config = AttentionConfig::deepseek_v3();
  const AttentionSpeed one = {1, 1, 1, 1, 1, std::numeric_limits<double>::infinity(), 1};
  for (Index past : {0, 1000}) {
    const AttentionCost work = attention_cost(config, past, 64);
    const AttentionCost time = attention_time(config, past, 64, one);
    EXPECT_DOUBLE_EQ(time.absorbed, work.absorbed);
    EXPECT_DOUBLE_EQ(time.decompressed, work.decompressed);
  }
}

}  // namespace
}  // namespace mla::test
