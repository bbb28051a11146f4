#include "mla/model/generate.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "mla/model/sampler.hpp"
#include "model/trained_decoder.hpp"
#include "support/compare.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

struct Generated {
  GenerationResult result;
  std::vector<TokenId> tokens;
};

Generated generate_tokens(std::span<const TokenId> prompt, DecoderState& state,
                          GenerationOptions options,
                          const SamplerOptions& sampling = {.temperature = 0.0}) {
  Generated generated;
  options.on_token = [&](TokenId token) {
    generated.tokens.push_back(token);
    return true;
  };
  Sampler sampler(trained_model().vocab_size(), sampling);
  Context context;
  generated.result = generate(trained_model(), state, prompt, sampler, context, options);
  return generated;
}

Generated generate_tokens(std::span<const TokenId> prompt, const GenerationOptions& options) {
  DecoderState state(trained_model().config());
  return generate_tokens(prompt, state, options);
}

TEST(Generate, GreedyContinuationsAreTheGoldens) {
  const Goldens goldens(kModel);
  for (const std::string prompt : kPrompts) {
    for (const bool speculative : {false, true}) {
      const Generated generated =
          generate_tokens(goldens.prompt(prompt), {.max_tokens = 64, .speculative = speculative});
      EXPECT_TRUE(std::ranges::equal(generated.tokens, goldens.integers(prompt + ".greedy")))
          << prompt << " speculative " << speculative;
      EXPECT_EQ(generated.result.stop, StopReason::max_tokens);
      EXPECT_EQ(generated.result.generated_tokens, 64);
      EXPECT_EQ(generated.result.drafted_tokens > 0, speculative);
    }
  }
}

// Of the drafts that were needed, which are fewer than the goldens' one for each token.
TEST(Generate, DraftsAreAcceptedAboutAsOftenAsStated) {
  const Goldens goldens(kModel);
  const Generated generated =
      generate_tokens(goldens.prompt("long"), {.max_tokens = 64, .speculative = true});
  EXPECT_GT(generated.result.acceptance(), 0.6);
  EXPECT_LT(generated.result.acceptance(), 0.9);
  EXPECT_EQ(generated.result.drafted_tokens + generated.result.accepted_tokens + 1, 64);
}

// Text and caches, for every cache format, form and number of tokens, and to the end of the
// context.
class GenerateWith : public ::testing::TestWithParam<CacheFormat> {};

TEST_P(GenerateWith, SpeculationChangesNeitherTextNorCaches) {
  const Goldens goldens(kModel);
  for (const AttentionForm mode :
       {AttentionForm::absorbed, AttentionForm::decompressed, AttentionForm::automatic}) {
    for (const Index max_tokens : {1, 2, 3, 40, 1000}) {
      GenerationOptions options = {.max_tokens = max_tokens, .decode_mode = mode};
      DecoderState plain(trained_model().config(), GetParam());
      DecoderState drafted(trained_model().config(), GetParam());
      const Generated expected = generate_tokens(goldens.prompt("medium"), plain, options);
      options.speculative = true;
      const Generated actual = generate_tokens(goldens.prompt("medium"), drafted, options);
      EXPECT_EQ(actual.tokens, expected.tokens) << max_tokens;
      EXPECT_EQ(actual.result.stop, expected.result.stop);
      EXPECT_EQ(drafted.size(), 40 + std::ssize(actual.tokens) - 1);
      for (Index layer = 0; layer < plain.layers(); ++layer)
        EXPECT_EQ(CacheContents(drafted.layer(layer)), CacheContents(plain.layer(layer)));
      if (max_tokens == 1000) {
        EXPECT_EQ(actual.result.stop, StopReason::context_full);
        EXPECT_EQ(actual.tokens.size(), 256u - 40u);
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Cache, GenerateWith,
                         ::testing::Values(CacheFormat::float32, CacheFormat::bfloat16,
                                           CacheFormat::float16, CacheFormat::int8,
                                           CacheFormat::fp8, CacheFormat::int4),
                         [](const auto& format) { return std::string(name_of(format.param)); });

static_assert(TokenSampler<Sampler>);

// A draft and its verification see the same history as plain decoding does.
TEST(Generate, SpeculationKeepsThePenaltyForRepetition) {
  const Goldens goldens(kModel);
  const SamplerOptions penalised = {.temperature = 0.0, .repetition_penalty = 1.4};
  DecoderState plain(trained_model().config()), drafted(trained_model().config());
  const auto prompt = goldens.prompt("medium");
  const Generated expected = generate_tokens(prompt, plain, {.max_tokens = 80}, penalised);
  const Generated actual =
      generate_tokens(prompt, drafted, {.max_tokens = 80, .speculative = true}, penalised);
  EXPECT_EQ(actual.tokens, expected.tokens);
  EXPECT_GT(actual.result.accepted_tokens, 0);
  EXPECT_FALSE(
      std::ranges::equal(std::span(expected.tokens).first(64), goldens.integers("medium.greedy")));
}

TEST(Generate, ASeedRepeats) {
  const Goldens goldens(kModel);
  for (const bool speculative : {false, true}) {
    std::vector<TokenId> texts[3];
    for (const int i : {0, 1, 2}) {
      DecoderState state(trained_model().config());
      texts[i] = generate_tokens(goldens.prompt("short"), state,
                                 {.max_tokens = 40, .speculative = speculative},
                                 {.temperature = 0.8, .top_p = 0.95, .seed = i < 2 ? 7u : 8u})
                     .tokens;
    }
    EXPECT_EQ(texts[0], texts[1]);
    EXPECT_NE(texts[0], texts[2]);
  }
}

TEST(Generate, AConversationGoesOnInTheSameState) {
  const Goldens goldens(kModel);
  const auto prompt = goldens.prompt("long");
  for (const bool speculative : {false, true}) {
    const GenerationOptions options = {
        .max_tokens = 20, .speculative = speculative, .prefill_mode = AttentionForm::absorbed};
    const Generated whole = generate_tokens(prompt, options);
    DecoderState state(trained_model().config());
    const Generated before = generate_tokens(prompt.first(50), state, options);
    // What the model wrote is taken back, and the rest of the prompt said instead.
    state.truncate(50);
    EXPECT_EQ(generate_tokens(prompt.subspan(50), state, options).tokens, whole.tokens);
  }
}

TEST(Generate, ThePromptMayComeInChunksOfAnySize) {
  const Goldens goldens(kModel);
  for (const Index chunk : {1, 7, 64, 189}) {
    for (const bool speculative : {false, true}) {
      Index calls = 0, last = 0;
      const Generated generated =
          generate_tokens(goldens.prompt("long"), {.max_tokens = 64,
                                                   .speculative = speculative,
                                                   .prefill_mode = AttentionForm::absorbed,
                                                   .chunk_tokens = chunk,
                                                   .on_prefill = [&](Index done, Index all) {
                                                     EXPECT_EQ(all, 190);
                                                     EXPECT_GT(done, last);
                                                     last = done;
                                                     ++calls;
                                                     return true;
                                                   }});
      EXPECT_TRUE(std::ranges::equal(generated.tokens, goldens.integers("long.greedy")));
      EXPECT_EQ(last, 190);
      EXPECT_EQ(calls, (190 + chunk - 1) / chunk);
    }
  }
}

TEST(Generate, StopsWhereItShouldAndSaysWhy) {
  const Goldens goldens(kModel);
  const auto greedy = goldens.integers("short.greedy");
  const auto prompt = goldens.prompt("short");
  for (const bool speculative : {false, true}) {
    // At a token that ends a text: here the tenth that the model writes.
    ModelConfig config = trained_model().config();
    config.eos_token_ids = {1, greedy[9]};
    const auto first = std::ranges::find(greedy, greedy[9]) - greedy.begin();
    const Checkpoint checkpoint(kModel);
    const DecoderModel model(config, load_decoder_weights(checkpoint, config));
    DecoderState state(config);
    Sampler sampler(config.vocab_size, {.temperature = 0.0});
    Context context;
    GenerationResult result =
        generate(model, state, prompt, sampler, context, {.speculative = speculative});
    EXPECT_EQ(result.stop, StopReason::end_of_text);
    EXPECT_EQ(result.generated_tokens, first);
    EXPECT_EQ(state.size(), 6 + first - 1);

    state.clear();
    result = generate(model, state, prompt, sampler, context,
                      {.max_tokens = 30, .stop_at_eos = false, .speculative = speculative});
    EXPECT_EQ(result.stop, StopReason::max_tokens);
    EXPECT_EQ(result.generated_tokens, 30);

    state.clear();
    Index seen = 0;
    result = generate(model, state, prompt, sampler, context,
                      {.stop_at_eos = false, .speculative = speculative, .on_token = [&](TokenId) {
                         return ++seen < 5;
                       }});
    EXPECT_EQ(result.stop, StopReason::cancelled);
    EXPECT_EQ(result.generated_tokens, 5);
    EXPECT_EQ(state.size(), 6 + 4);

    state.clear();
    result = generate(model, state, prompt, sampler, context,
                      {.speculative = speculative,
                       .chunk_tokens = 2,
                       .on_prefill = [&](Index done, Index) { return done < 4; }});
    EXPECT_EQ(result.stop, StopReason::cancelled);
    EXPECT_EQ(result.generated_tokens, 0);
    EXPECT_EQ(state.size(), 4);

    state.clear();
    result = generate(model, state, prompt, sampler, context,
                      {.max_tokens = 0, .speculative = speculative});
    EXPECT_EQ(result.stop, StopReason::max_tokens);
    EXPECT_EQ(state.size(), 6);
    EXPECT_EQ(name_of(StopReason::context_full), "context_full");

    // A prompt that fills the context leaves no place for a token.
    state.clear();
    const auto text = goldens.integers("validation.input_ids");
    result =
        generate(model, state, text.first(256), sampler, context, {.speculative = speculative});
    EXPECT_EQ(result.stop, StopReason::context_full);
    EXPECT_EQ(result.generated_tokens, 0);
    EXPECT_EQ(state.size(), 256);
  }
}

TEST(Generate, RefusesWhatDoesNotFitAndLeavesTheStateAsItWas) {
  const Goldens goldens(kModel);
  const auto text = goldens.integers("validation.input_ids");
  DecoderState state(trained_model().config());
  generate_tokens(goldens.prompt("short"), state, {.max_tokens = 5, .speculative = true});
  std::vector<CacheContents> before;
  for (Index layer = 0; layer < 4; ++layer) before.emplace_back(state.layer(layer));
  const CacheContents before_prediction(*state.prediction());
  const auto refused = [&](std::span<const TokenId> prompt, const GenerationOptions& options,
                           std::initializer_list<const char*> parts) {
    EXPECT_TRUE(refuses([&] { generate_tokens(prompt, state, options); }, parts));
    for (Index layer = 0; layer < 4; ++layer)
      EXPECT_EQ(CacheContents(state.layer(layer)), before[static_cast<std::size_t>(layer)]);
    EXPECT_EQ(CacheContents(*state.prediction()), before_prediction);
  };
  refused({}, {}, {"prompt is empty"});
  refused(text.first(247), {}, {"247 tokens after 10", "max_position_embeddings 256"});
  refused(text.first(3), {.max_tokens = -1}, {"max_tokens", "-1"});
  refused(text.first(3), {.chunk_tokens = 0}, {"chunk_tokens", "0"});
  const std::vector<TokenId> foreign = {5, 1024};
  refused(foreign, {.speculative = true, .chunk_tokens = 1}, {"1024", "vocabulary"});
  refused(std::vector<TokenId>{-1}, {}, {"-1", "vocabulary"});

  Sampler sampler(1024, {.temperature = 0.0});
  Context context;
  const auto fails = [](TokenId) -> bool { throw std::runtime_error("disk full"); };
  EXPECT_THROW(generate(trained_model(), state, text.first(20), sampler, context,
                        {.speculative = true, .on_token = fails}),
               std::runtime_error);
  refused({}, {}, {"prompt is empty"});

  ModelConfig without = trained_model().config();
  without.num_nextn_predict_layers = 0;
  DecoderState plain(without);
  EXPECT_TRUE(
      refuses([&] { generate_tokens(goldens.prompt("short"), plain, {.speculative = true}); },
              {"multi-token prediction", "state"}));
}

}  // namespace
}  // namespace mla::test
