// Texts that go on when the context is full: forks, evicted and shifted tokens, sliding windows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "mla/io/safetensors.hpp"
#include "mla/model/generate.hpp"
#include "mla/model/sampler.hpp"
#include "mla/model/text_mass.hpp"
#include "model/trained_decoder.hpp"
#include "support/compare.hpp"
#include "support/isas.hpp"
#include "support/message_of.hpp"
#include "support/random.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

// The trained model for texts longer than those it was trained on.
const DecoderModel& long_model() {
  static const Checkpoint checkpoint(kModel);
  static const DecoderModel model = [] {
    ModelConfig config = load_model_config(kModel);
    config.max_position_embeddings = 400;
    return DecoderModel(config, load_decoder_weights(checkpoint, config));
  }();
  return model;
}

// Logits of evicting caches by an independent float64 implementation. What a policy does:
// of more than `limit` tokens it forgets `at_once` behind the first `sinks`; those that are left
// count as 0, 1, 2, ... or keep their positions.
class EvictionGoldens {
 public:
  struct Policy {
    const char* name;
    Index limit, sinks, at_once;
    bool renumbered;
  };
  static constexpr Policy kPolicies[] = {{"unlimited", 1000, 0, 1, false},
                                         {"window", 64, 0, 1, false},
                                         {"sinks", 64, 4, 1, false},
                                         {"sinks_renumbered", 64, 4, 1, true},
                                         {"half_renumbered", 64, 4, 30, true}};

  std::span<const TokenId> tokens() const { return file_.tensor("input_ids").values<TokenId>(); }

  // logits [320, vocab_size] are those of a policy: every best token, and in some rows every logit,
  // which differ from float64 by 1.8e-5 in float32 arithmetic, and the loss.
  ::testing::AssertionResult are_of(const std::string& name, const RowMajorMatrix& logits) const {
    const auto best = file_.tensor(name + ".best").values<std::int32_t>();
    for (Index t = 0; t < logits.rows(); ++t)
      if (best_token(logits, t) != best[static_cast<std::size_t>(t)])
        return ::testing::AssertionFailure() << name << ": another best token in row " << t;
    const auto rows = file_.tensor("rows").values<std::int32_t>();
    const float* expected = file_.tensor(name + ".logits").values<float>().data();
    for (const std::int32_t row : rows) {
      const Eigen::Map<const Eigen::RowVectorXf> right(expected, logits.cols());
      const double worst = static_cast<double>((logits.row(row) - right).cwiseAbs().maxCoeff());
      if (!(worst < 2e-4))
        return ::testing::AssertionFailure()
               << name << ": logits of row " << row << " off by " << worst;
      if (row + 1 < std::ssize(tokens())) {
        const TokenId next = tokens()[static_cast<std::size_t>(row) + 1];
        const double off = std::abs(loss(logits.row(row), next) - loss(right, next));
        if (!(off < 1e-3))
          return ::testing::AssertionFailure()
                 << name << ": loss of row " << row << " off by " << off;
      }
      expected += logits.cols();
    }
    return ::testing::AssertionSuccess();
  }

 private:
  static double loss(const Eigen::RowVectorXf& logits, TokenId token) {
    const Eigen::RowVectorXd x = logits.cast<double>();
    return std::log((x.array() - x.maxCoeff()).exp().sum()) + x.maxCoeff() - x(token);
  }

  SafetensorsFile file_{std::filesystem::path(MLA_TEST_DATA) / "eviction_tiny.safetensors"};
};

class Eviction : public EveryIsa {};
INSTANTIATE_TEST_SUITE_P(Isa, Eviction, ::testing::ValuesIn(supported_isas(Arithmetic::float32)),
                         [](const ::testing::TestParamInfo<simd::Isa>& isa) {
                           return std::string(simd::name_of(isa.param));
                         });

TEST_P(Eviction, EveryPolicyGivesTheGoldens) {
  const EvictionGoldens goldens;
  Context context(kernels());
  for (const auto& policy : EvictionGoldens::kPolicies) {
    DecoderState state(long_model().config());
    RowMajorMatrix logits(std::ssize(goldens.tokens()), long_model().vocab_size());
    for (Index t = 0; t < logits.rows(); ++t) {
      if (state.size() == policy.limit) {
        state.evict(consecutive(policy.sinks, policy.at_once));
        if (policy.renumbered) state.shift(policy.sinks, -policy.at_once);
      }
      long_model().forward(goldens.tokens().subspan(static_cast<std::size_t>(t), 1), state,
                           logits.row(t), context);
    }
    EXPECT_TRUE(goldens.are_of(policy.name, logits));
  }
}

// The same in calls of any number of tokens.
TEST_P(Eviction, SlidingWindowsGiveTheGoldensHoweverATextIsCut) {
  const EvictionGoldens goldens;
  Context context(kernels());
  RowMajorMatrix expected(std::ssize(goldens.tokens()), trained_model().vocab_size());
  for (const auto& [name, window] : {std::pair("window", SlidingWindow{0, 64}),
                                     std::pair("sinks_renumbered", SlidingWindow{4, 60})})
    for (const Index chunk : {1, 2, 37, 320}) {
      DecoderState state(trained_model().config());
      RowMajorMatrix logits = expected;
      for (Index t = 0; t < logits.rows(); t += chunk) {
        const Index count = std::min(chunk, logits.rows() - t);
        const TextStep step = {
            &state,
            goldens.tokens().subspan(static_cast<std::size_t>(t), static_cast<std::size_t>(count)),
            count, AttentionForm::absorbed, window};
        trained_model().forward(std::span(&step, 1), logits.middleRows(t, count), context);
        EXPECT_LE(state.size(), window.most() - 1 + 2 * chunk);
      }
      EXPECT_TRUE(goldens.are_of(name, logits)) << chunk;
      if (chunk == 1)
        expected = logits;
      else
        EXPECT_TRUE(same_bits(logits, expected)) << name << " in calls of " << chunk;
    }
}

std::vector<CacheContents> contents_of(const DecoderState& state) {
  std::vector<CacheContents> all;
  for (Index layer = 0; layer < state.layers(); ++layer) all.emplace_back(state.layer(layer));
  if (state.prediction()) all.emplace_back(*state.prediction());
  return all;
}

struct Written {
  std::vector<TokenId> tokens;
  GenerationResult result;
};

Written write(DecoderState& state, std::span<const TokenId> prompt, GenerationOptions options) {
  Written written;
  Context context;
  options.stop_at_eos = false;
  options.on_token = [&](TokenId token) {
    written.tokens.push_back(token);
    return true;
  };
  Sampler sampler(trained_model().vocab_size(), {.temperature = 0.0});
  written.result = generate(trained_model(), state, prompt, sampler, context, options);
  return written;
}

// Far beyond max_position_embeddings, which is 256.
TEST(Eviction, AWindowWritesForEverWithAndWithoutDrafts) {
  const Goldens goldens(kModel);
  const auto prompt = goldens.prompt("long");
  for (const CacheFormat format : {CacheFormat::float32, CacheFormat::bfloat16}) {
    GenerationOptions options = {.max_tokens = 600, .window = {4, 100}, .chunk_tokens = 33};
    DecoderState plain(trained_model().config(), format);
    DecoderState drafted(trained_model().config(), format);
    const Written expected = write(plain, prompt, options);
    EXPECT_EQ(expected.tokens.size(), 600u);
    EXPECT_EQ(expected.result.stop, StopReason::max_tokens);
    options.speculative = true;
    const Written actual = write(drafted, prompt, options);
    EXPECT_EQ(actual.tokens, expected.tokens);
    EXPECT_GT(actual.result.accepted_tokens, 100);
    EXPECT_LE(plain.size(), 104);
    EXPECT_EQ(plain.layer(0).positions(), consecutive(0, plain.size()));
    for (Index layer = 0; layer < plain.layers(); ++layer)
      EXPECT_EQ(CacheContents(drafted.layer(layer)), CacheContents(plain.layer(layer)));
    // Multi-token prediction has slid along.
    ASSERT_GT(drafted.prediction()->size(), 90);
    EXPECT_LE(drafted.prediction()->size(), 104);
    EXPECT_LE(drafted.prediction()->position(drafted.prediction()->size() - 1), 104);

    // A fork goes on as the text itself, and both as one text in one call.
    DecoderState fork = plain.fork(plain.size());
    const std::vector<TokenId> next = {expected.tokens.back()};
    options.speculative = false;
    options.max_tokens = 150;
    const Written continued = write(plain, next, options);
    EXPECT_EQ(write(fork, next, options).tokens, continued.tokens);
    DecoderState whole(trained_model().config(), format);
    options.max_tokens = 750;
    const Written all = write(whole, prompt, options);
    EXPECT_TRUE(
        std::equal(continued.tokens.begin(), continued.tokens.end(), all.tokens.begin() + 600));
  }
}

TEST(Eviction, AWindowThatTheTextDoesNotFillChangesNothing) {
  const Goldens goldens(kModel);
  DecoderState plain(trained_model().config()), windowed(trained_model().config());
  const GenerationOptions options = {.max_tokens = 50};
  GenerationOptions with = options;
  with.window = {4, 200};
  EXPECT_EQ(write(windowed, goldens.prompt("medium"), with).tokens,
            write(plain, goldens.prompt("medium"), options).tokens);
  EXPECT_EQ(contents_of(windowed), contents_of(plain));
}

TEST(Eviction, WhateverIsThrownTheTextHasNotSlid) {
  const Goldens goldens(kModel);
  DecoderState state(trained_model().config());
  GenerationOptions options = {.max_tokens = 100, .speculative = true, .window = {4, 60}};
  write(state, goldens.prompt("medium"), options);
  const auto before = contents_of(state);
  int tokens = 0;
  Context context;
  Sampler sampler(trained_model().vocab_size(), {.temperature = 0.0});
  options.on_token = [&](TokenId) -> bool {
    if (++tokens == 90) throw std::runtime_error("enough");
    return true;
  };
  EXPECT_THROW(
      generate(trained_model(), state, goldens.prompt("medium"), sampler, context, options),
      std::runtime_error);
  EXPECT_EQ(contents_of(state), before);
  // Of two texts one is refused.
  const TokenId bad[] = {0, 5000};
  DecoderState other(trained_model().config());
  const TextStep steps[] = {{&state, goldens.prompt("medium"), 0, AttentionForm::absorbed, {4, 60}},
                            {&other, bad, 0}};
  RowMajorMatrix none(0, trained_model().vocab_size());
  EXPECT_THROW(trained_model().forward(steps, none, context), std::invalid_argument);
  EXPECT_EQ(contents_of(state), before);
}

TEST(Eviction, ForksShareTheirTextAndGoOnApart) {
  const Goldens goldens(kModel);
  const auto tokens = goldens.prompt("long");
  Context context;
  RowMajorMatrix none(0, trained_model().vocab_size());
  for (const CacheFormat format : {CacheFormat::float32, CacheFormat::bfloat16}) {
    DecoderState state(trained_model().config(), format);
    const DecoderOptions pinned = {.mode = AttentionForm::absorbed};
    trained_model().forward(tokens, state, none, context, pinned);
    std::vector<DecoderState> forks;
    std::vector<const DecoderState*> all = {&state};
    for (const Index at : {Index{0}, Index{1}, Index{64}, Index{100}, std::ssize(tokens)})
      forks.push_back(state.fork(at));
    for (const DecoderState& fork : forks) all.push_back(&fork);
    EXPECT_EQ(bytes_used(all), state.bytes_used());
    for (DecoderState& fork : forks) {
      DecoderState fresh(trained_model().config(), format);
      const auto size = static_cast<std::size_t>(fork.size());
      if (size > 0) trained_model().forward(tokens.first(size), fresh, none, context, pinned);
      const std::vector<TokenId> next = {7, 8, 9, 10};
      EXPECT_TRUE(
          same_bits(trained_model().forward(next, fork), trained_model().forward(next, fresh)));
      EXPECT_EQ(contents_of(fork), contents_of(fresh));
    }
    EXPECT_GT(bytes_used(all), state.bytes_used());
    EXPECT_TRUE(refuses([&] { state.fork(state.size() + 1); }, {"fork", "tokens at"}));
    EXPECT_TRUE(refuses([&] { state.fork(-1); }, {"fork", "-1"}));
  }
}

// Eviction by attention, in the order of importance that the definition gives.
TEST(Eviction, TheAttentionThatIsCountedIsThatOfTheSoftmax) {
  const Goldens goldens(kModel);
  const auto tokens = goldens.prompt("long");
  for (const AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
    Context context;
    RowMajorMatrix none(0, trained_model().vocab_size());
    DecoderState state(trained_model().config());
    TextMass mass(state.layers()), one_by_one(state.layers());
    TextStep step = {&state, tokens, 0, mode};
    step.mass = &mass;
    trained_model().forward(std::span(&step, 1), none, context);
    DecoderState same(trained_model().config());
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      TextStep token = {&same, tokens.subspan(t, 1), 0, mode};
      token.mass = &one_by_one;
      trained_model().forward(std::span(&token, 1), none, context);
    }
    const double heads =
        static_cast<double>(trained_model().config().attention.num_attention_heads);
    for (Index layer = 0; layer < state.layers(); ++layer) {
      const auto rows = mass.layer(layer).rows();
      ASSERT_EQ(std::ssize(rows), state.size());
      double sum = 0.0;
      for (const double row : rows) sum += row;
      // Every head of every token spends 1; float32 probabilities are off by 1e-6 each.
      EXPECT_NEAR(sum, heads * static_cast<double>(tokens.size()), 1e-2) << layer;
      EXPECT_TRUE(std::ranges::equal(rows, one_by_one.layer(layer).rows())) << layer;
      // Nobody but the last token sees the last row: less than one for each head.
      EXPECT_LT(rows.back(), heads);
    }
  }
}

TEST(Eviction, LeastAttendedGoesByTheMeanOverNeighboursAndTheOlderFirst) {
  const std::vector<double> mass = {0, 0, 5, 1, 1, 9, 1, 1, 0, 0, 0, 3};
  EXPECT_EQ(least_attended(mass, {.limit = 12, .keep = 2, .recent = 1}), std::vector<Index>());
  EXPECT_EQ(least_attended(mass, {.limit = 9, .keep = 2, .recent = 1, .pool = 1}),
            (std::vector<Index>{8, 9, 10}));
  EXPECT_EQ(least_attended(mass, {.limit = 8, .keep = 2, .recent = 1, .pool = 1}),
            (std::vector<Index>{3, 8, 9, 10}));
  // Means of three: 2: 3, 3: 7/3, 4: 11/3, 5: 11/3, 6: 11/3, 7: 2/3, 8: 1/3, 9: 0, 10: 0.
  EXPECT_EQ(least_attended(mass, {.limit = 7, .keep = 2, .recent = 1, .pool = 3}),
            (std::vector<Index>{3, 7, 8, 9, 10}));
  EXPECT_TRUE(refuses([&] { least_attended(mass, {.limit = 4, .keep = 2, .recent = 3}); },
                      {"leaves 4", "first 2", "last 3"}));
  EXPECT_TRUE(
      refuses([&] { least_attended(mass, {.limit = 9, .recent = 1, .pool = 2}); }, {"pool", "2"}));
}

// Layers forget different tokens and go on together; what is left is where it was.
TEST(Eviction, EvictingByAttentionLeavesTheRestAsItWas) {
  const Goldens goldens(kModel);
  const auto tokens = goldens.prompt("long");
  Context context;
  RowMajorMatrix none(0, trained_model().vocab_size());
  DecoderState state(trained_model().config());
  TextMass mass(state.layers());
  trained_model().forward(tokens.first(tokens.size() - 16), state, none, context);
  TextStep observed = {&state, tokens.last(16), 0, AttentionForm::absorbed};
  observed.mass = &mass;
  trained_model().forward(std::span(&observed, 1), none, context);
  const DecoderState whole = state.fork(state.size());
  const Index limit = 60, gone = state.size() - limit;
  EXPECT_EQ(evict_least_attended(state, mass, {.limit = limit, .recent = 16}), gone);
  EXPECT_EQ(state.size(), limit);
  for (Index layer = 0; layer < state.layers(); ++layer) {
    const LatentCache& cache = state.layer(layer);
    ASSERT_EQ(cache.size(), limit);
    EXPECT_EQ(std::ssize(mass.layer(layer).rows()), limit);
    for (Index i = 0; i < limit; ++i) {
      const std::byte* row = whole.layer(layer).row(cache.position(i));
      ASSERT_TRUE(std::equal(row, row + cache.layout().bytes, cache.row(i)));
    }
    EXPECT_EQ(cache.position(3), 3);
    EXPECT_EQ(cache.next_position(), std::ssize(tokens));
  }
  EXPECT_NE(state.layer(0).positions(), state.layer(3).positions());
  const std::vector<TokenId> next = {1, 2, 3};
  trained_model().forward(next, state);
  EXPECT_EQ(state.size(), limit + 3);

  const auto before = contents_of(state);
  EXPECT_TRUE(
      refuses([&] { evict_least_attended(state, mass, {.limit = 50}); }, {"60 tokens", "63"}));
  std::vector<std::vector<Index>> rows(static_cast<std::size_t>(state.layers()), {5});
  rows[2] = {5, 6};
  EXPECT_TRUE(refuses([&] { state.evict(rows); }, {"layer 2", "2", "1"}));
  rows[2] = {62};
  EXPECT_TRUE(refuses([&] { state.evict(rows); }, {"last token", "layer 2", "62"}));
  rows[2] = {-1};
  EXPECT_TRUE(refuses([&] { state.evict(rows); }, {"-1"}));
  rows.pop_back();
  EXPECT_TRUE(refuses([&] { state.evict(rows); }, {"4 layers", "3"}));
  EXPECT_TRUE(refuses([&] { state.shift(63, 1); }, {"63"}));
  EXPECT_TRUE(refuses([&] { state.shift(0, -1); }, {"-1"}));
  EXPECT_EQ(contents_of(state), before);
}

}  // namespace
}  // namespace mla::test
