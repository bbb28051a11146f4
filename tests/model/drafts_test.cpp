// More drafts than one at a time, by multi-token prediction and out of the text: that they change
// nothing but the number of calls.
#include "mla/model/drafts.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <list>
#include <stdexcept>
#include <string>
#include <vector>

#include "mla/model/draft_lookup.hpp"
#include "mla/model/generate.hpp"
#include "mla/model/sampler.hpp"
#include "model/trained_decoder.hpp"
#include "support/compare.hpp"
#include "support/message_of.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

std::vector<TokenId> looked_up(const std::vector<TokenId>& text, Index least, std::size_t count) {
  DraftLookup lookup(least);
  lookup.append(text);
  std::vector<TokenId> drafts(count, -1);
  if (!lookup.find(drafts)) return {};
  return drafts;
}

TEST(DraftLookup, ContinuesAsAfterTheLongestMatchAndOfEqualsTheLatest) {
  using Ids = std::vector<TokenId>;
  EXPECT_EQ(looked_up({7, 8, 9, 1, 5, 8, 9, 2, 7, 8, 9}, 1, 2), (Ids{1, 5})) << "of three tokens";
  EXPECT_EQ(looked_up({8, 9, 1, 8, 9, 2, 8, 9}, 2, 2), (Ids{2, 8})) << "the latest";
  EXPECT_EQ(looked_up({8, 9, 1, 8, 9}, 2, 1), (Ids{1}));
  EXPECT_EQ(looked_up({8, 9, 1, 8, 9}, 3, 1), (Ids{})) << "two tokens are no match of three";
  EXPECT_EQ(looked_up({1, 2, 3}, 1, 4), (Ids{}));
  EXPECT_EQ(looked_up({4}, 1, 4), (Ids{}));
  EXPECT_EQ(looked_up({}, 1, 4), (Ids{}));
}

TEST(DraftLookup, GoesOnAsARepetitionWhereTheMatchReachesTheEnd) {
  using Ids = std::vector<TokenId>;
  EXPECT_EQ(looked_up({3, 6, 6}, 1, 4), (Ids{6, 6, 6, 6}));
  EXPECT_EQ(looked_up({1, 2, 3, 1, 2, 3, 1}, 2, 7), (Ids{2, 3, 1, 2, 3, 1, 2}));
}

TEST(DraftLookup, ComparesNoMoreThanItsLongestMatch) {
  std::vector<TokenId> end;
  for (Index i = 0; i < DraftLookup::kLongestMatch + 2; ++i) end.push_back(static_cast<TokenId>(i));
  std::vector<TokenId> text = end;  // all of it, then a shorter match
  text.push_back(100);
  text.insert(text.end(), end.begin() + 2, end.end());
  text.push_back(200);
  text.insert(text.end(), end.begin(), end.end());
  EXPECT_EQ(looked_up(text, 1, 1), (std::vector<TokenId>{200})) << "the latest that is long enough";
  EXPECT_EQ(message_of([] { DraftLookup(0); }), "lookup must be from 1 to 32 tokens, got 0");
  EXPECT_EQ(message_of([] { DraftLookup(33); }), "lookup must be from 1 to 32 tokens, got 33");
}

/// How texts are drafted.
struct DraftSetting {
  bool speculative;
  Index drafts, lookup;

  void apply_to(GenerationOptions& options) const {
    options.speculative = speculative;
    options.draft_tokens = drafts;
    options.lookup = lookup;
  }
  friend std::ostream& operator<<(std::ostream& out, const DraftSetting& setting) {
    return out << (setting.speculative ? "prediction, " : "") << setting.drafts
               << " drafts, lookup " << setting.lookup;
  }
};
constexpr DraftSetting kDraftSettings[] = {
    {true, 2, 0},  {true, 3, 0}, {true, 17, 0}, {false, 1, 1},
    {false, 4, 2}, {true, 1, 2}, {true, 6, 4},
};

struct DraftedText {
  GenerationResult result;
  std::vector<TokenId> tokens;
};

DraftedText write_greedily(const DecoderModel& model, DecoderState& state,
                           std::span<const TokenId> prompt, GenerationOptions options) {
  DraftedText text;
  options.on_token = [&](TokenId token) {
    text.tokens.push_back(token);
    return true;
  };
  Sampler sampler(model.vocab_size(), {.temperature = 0.0});
  Context context;
  text.result = generate(model, state, prompt, sampler, context, options);
  return text;
}

void expect_same_layers(const DecoderState& actual, const DecoderState& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (Index layer = 0; layer < expected.layers(); ++layer)
    EXPECT_EQ(CacheContents(actual.layer(layer)), CacheContents(expected.layer(layer))) << layer;
}

// Each call gives a token, and one more for each draft that was right.
void expect_counts(const GenerationResult& result) {
  EXPECT_EQ(result.generated_tokens, 1 + result.decode_calls + result.accepted_tokens);
  EXPECT_LE(result.accepted_tokens, result.drafted_tokens);
}

// Rows of multi-token prediction are made of states and tokens that are certain: as many drafts as
// there may be, they are those of a single one.
void expect_same_predictions(const DecoderState& actual, const DecoderState& expected) {
  const Index rows = std::min(actual.prediction()->size(), expected.prediction()->size());
  ASSERT_GT(rows, 0);
  EXPECT_EQ(CacheContents(actual.prediction()->fork(rows)),
            CacheContents(expected.prediction()->fork(rows)));
}

void expect_that_drafts_change_nothing(const DecoderModel& model, std::span<const TokenId> prompt,
                                       GenerationOptions options, CacheFormat format) {
  DecoderState plain(model.config(), format), single(model.config(), format);
  const DraftedText expected = write_greedily(model, plain, prompt, options);
  if (model.prediction()) {
    options.speculative = true;
    EXPECT_EQ(write_greedily(model, single, prompt, options).tokens, expected.tokens);
  }
  for (const DraftSetting& setting : kDraftSettings) {
    SCOPED_TRACE(::testing::Message() << setting);
    if (setting.speculative && !model.prediction()) continue;
    setting.apply_to(options);
    DecoderState state(model.config(), format);
    const DraftedText actual = write_greedily(model, state, prompt, options);
    EXPECT_EQ(actual.tokens, expected.tokens);
    EXPECT_EQ(actual.result.stop, expected.result.stop);
    expect_same_layers(state, plain);
    if (actual.result.stop != StopReason::end_of_text) expect_counts(actual.result);
    if (setting.speculative) expect_same_predictions(state, single);
  }
}

TEST(Drafts, ChangeNoTextOfTheTrainedModels) {
  const Goldens goldens(kModel);
  std::size_t prompt = 0;
  for (const DecoderModel* model : {&trained_model(), &fp8_model(), &ue8m0_model(), &int4_model()})
    expect_that_drafts_change_nothing(*model, goldens.prompt(kPrompts[prompt++ % 3]),
                                      {.max_tokens = 64}, CacheFormat::float32);
}

TEST(Drafts, ChangeNoTextOfAnyFamily) {
  Index models = 0, predicting = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(MLA_TEST_DATA) / "models")) {
    if (!entry.is_directory()) continue;
    SCOPED_TRACE(entry.path().filename().string());
    const DecoderModel model = DecoderModel::load(entry.path());
    std::vector<TokenId> prompt;
    for (TokenId t = 0; t < 24; ++t) prompt.push_back((7 * t + 3) % 11);
    expect_that_drafts_change_nothing(model, prompt, {.max_tokens = 30, .stop_at_eos = false},
                                      CacheFormat::float32);
    ++models;
    predicting += model.prediction() != nullptr;
  }
  EXPECT_GE(models, 10);
  EXPECT_GE(predicting, 2);
}

// Rejected drafts are taken back from caches of every format, up to the end of the context.
class DraftsWith : public ::testing::TestWithParam<CacheFormat> {};

TEST_P(DraftsWith, LeaveNoTraceInCaches) {
  const Goldens goldens(kModel);
  for (const Index max_tokens : {1, 2, 3, 7, 1000})
    expect_that_drafts_change_nothing(trained_model(), goldens.prompt("medium"),
                                      {.max_tokens = max_tokens}, GetParam());
  expect_that_drafts_change_nothing(trained_model(), goldens.prompt("medium"),
                                    {.max_tokens = 30, .decode_mode = AttentionForm::decompressed},
                                    GetParam());
}
INSTANTIATE_TEST_SUITE_P(Cache, DraftsWith,
                         ::testing::Values(CacheFormat::float32, CacheFormat::bfloat16,
                                           CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4),
                         [](const auto& format) { return std::string(name_of(format.param)); });

// Wherever the token that ends a text is: the last one, a draft, or the one after a draft.
TEST(Drafts, EndAtATokenThatEndsTheTextWhereverItIs) {
  const Goldens goldens(kModel);
  const auto prompt = goldens.prompt("long");
  const auto greedy = goldens.integers("long.greedy");
  const Checkpoint checkpoint(kModel);
  for (std::size_t i = 0; i < 40; i += 7) {
    SCOPED_TRACE(i);
    ModelConfig config = trained_model().config();
    config.eos_token_ids = {greedy[i]};
    const DecoderModel model(config, load_decoder_weights(checkpoint, config));
    expect_that_drafts_change_nothing(model, prompt, {.max_tokens = 64}, CacheFormat::float32);
  }
}

TEST(Drafts, SaveCalls) {
  const Goldens goldens(kModel);
  const auto prompt = goldens.prompt("long");
  Index calls[3] = {};
  for (const Index drafts : {1, 2, 3}) {
    DecoderState state(trained_model().config());
    const DraftedText text =
        write_greedily(trained_model(), state, prompt,
                       {.max_tokens = 64, .speculative = true, .draft_tokens = drafts});
    calls[drafts - 1] = text.result.decode_calls;
  }
  EXPECT_LT(calls[0], 45) << "of 63 without drafts";
  EXPECT_LT(calls[1], calls[0]);
  EXPECT_LT(calls[2], calls[1]);
}

// The text before the prompt is in the state only: it is found where the caller tells it.
TEST(Drafts, AreLookedUpInTheHistory) {
  const Goldens goldens(kModel);
  const auto prompt = goldens.prompt("long");
  const GenerationOptions plain = {.max_tokens = 40, .stop_at_eos = false};
  DecoderState once(trained_model().config());
  const std::vector<TokenId> written = write_greedily(trained_model(), once, prompt, plain).tokens;
  // The same text again, and what the model will write after it as the history: all drafts are
  // right but the first ones.
  std::vector<TokenId> history(prompt.begin(), prompt.end());
  history.insert(history.end(), written.begin(), written.end());
  GenerationOptions options = plain;
  options.lookup = 4;
  options.draft_tokens = 8;
  Sampler sampler(trained_model().vocab_size(), {.temperature = 0.0});
  Context context;
  GenerationResult results[2];
  for (const bool told : {false, true}) {
    DecoderState state(trained_model().config());
    std::vector<TokenId> tokens;
    options.on_token = [&](TokenId token) {
      tokens.push_back(token);
      return true;
    };
    const std::vector<GenerationTask<Sampler>> task = {
        {&state, prompt, &sampler, options,
         told ? std::span<const TokenId>(history) : std::span<const TokenId>()}};
    results[told] = generate(trained_model(), task, context).front();
    EXPECT_EQ(tokens, written);
  }
  EXPECT_LE(results[1].decode_calls, 8);
  EXPECT_GT(results[0].decode_calls, 8);
}

TEST(Drafts, OfSeveralTextsAreThoseOfEachAlone) {
  const Goldens goldens(kModel);
  const ModelConfig& config = trained_model().config();
  std::list<DecoderState> states;
  std::list<Sampler> samplers;
  std::vector<std::vector<TokenId>> texts(std::size(kDraftSettings));
  std::vector<GenerationTask<Sampler>> tasks;
  const auto task_of = [&](std::size_t i, std::vector<TokenId>& text) {
    GenerationOptions options = {.max_tokens = 20 + 7 * static_cast<Index>(i)};
    if (i == 4) options.max_tokens = 1000;
    options.chunk_tokens = i % 3 == 0 ? 5 : 64;
    kDraftSettings[i].apply_to(options);
    options.on_token = [&text](TokenId token) {
      text.push_back(token);
      return true;
    };
    const CacheFormat format = i % 2 == 0 ? CacheFormat::float32 : CacheFormat::int8;
    const SamplerOptions sampling = {.temperature = i % 4 == 1 ? 0.7 : 0.0, .seed = i};
    return GenerationTask<Sampler>{&states.emplace_back(config, format),
                                   goldens.prompt(kPrompts[i % 3]),
                                   &samplers.emplace_back(config.vocab_size, sampling), options};
  };
  for (std::size_t i = 0; i < std::size(kDraftSettings); ++i) tasks.push_back(task_of(i, texts[i]));
  Context context;
  const std::vector<GenerationResult> results = generate(trained_model(), tasks, context);
  for (std::size_t i = 0; i < std::size(kDraftSettings); ++i) {
    SCOPED_TRACE(::testing::Message() << kDraftSettings[i]);
    std::vector<TokenId> alone;
    const std::vector<GenerationTask<Sampler>> task = {task_of(i, alone)};
    const GenerationResult result = generate(trained_model(), task, context).front();
    EXPECT_EQ(texts[i], alone);
    EXPECT_EQ(results[i].drafted_tokens, result.drafted_tokens);
    EXPECT_EQ(results[i].accepted_tokens, result.accepted_tokens);
    EXPECT_EQ(results[i].decode_calls, result.decode_calls);
    expect_same_layers(*tasks[i].state, *task[0].state);
    EXPECT_EQ(CacheContents(*tasks[i].state->prediction()),
              CacheContents(*task[0].state->prediction()));
  }
}

// Also in windows of fewer tokens than there are drafts.
TEST(Drafts, ChangeNoTextInAWindow) {
  const Goldens goldens(kModel);
  const auto prompt = goldens.prompt("medium");
  for (const SlidingWindow& window : {SlidingWindow{4, 60}, {2, 5}, {0, 1}}) {
    GenerationOptions options = {.max_tokens = 120, .window = window, .chunk_tokens = 33};
    DecoderState plain(trained_model().config(), CacheFormat::bfloat16);
    const DraftedText expected = write_greedily(trained_model(), plain, prompt, options);
    for (const DraftSetting& setting : kDraftSettings) {
      SCOPED_TRACE(::testing::Message() << setting << ", window " << window.rows);
      setting.apply_to(options);
      DecoderState state(trained_model().config(), CacheFormat::bfloat16);
      const DraftedText actual = write_greedily(trained_model(), state, prompt, options);
      EXPECT_EQ(actual.tokens, expected.tokens);
      expect_same_layers(state, plain);
      expect_counts(actual.result);
      if (!setting.speculative) continue;
      // Multi-token prediction has slid along, and has no row of a draft.
      const LatentCache& prediction = *state.prediction();
      EXPECT_LE(prediction.size(), state.size());
      if (prediction.size() > 0) {
        EXPECT_LT(prediction.position(prediction.size() - 1), state.size());
      }
      if (window.rows == 60) {
        EXPECT_GT(actual.result.accepted_tokens, 10);
      }
    }
  }
}

// What was written with drafts can be taken back, and the text goes on as if it had not been there.
TEST(Drafts, AConversationGoesOn) {
  const Goldens goldens(kModel);
  const auto prompt = goldens.prompt("long");
  for (const DraftSetting& setting : kDraftSettings) {
    SCOPED_TRACE(::testing::Message() << setting);
    GenerationOptions options = {.max_tokens = 23, .prefill_mode = AttentionForm::absorbed};
    setting.apply_to(options);
    DecoderState whole_state(trained_model().config()), state(trained_model().config());
    const DraftedText whole = write_greedily(trained_model(), whole_state, prompt, options);
    write_greedily(trained_model(), state, prompt.first(50), options);
    state.truncate(50);
    EXPECT_EQ(write_greedily(trained_model(), state, prompt.subspan(50), options).tokens,
              whole.tokens);
    expect_same_layers(state, whole_state);
  }
}

TEST(Drafts, ACallbackThatThrowsLeavesTheStateAsItWas) {
  const Goldens goldens(kModel);
  for (const DraftSetting& setting : kDraftSettings) {
    SCOPED_TRACE(::testing::Message() << setting);
    DecoderState state(trained_model().config());
    GenerationOptions options = {.max_tokens = 10, .speculative = true};
    write_greedily(trained_model(), state, goldens.prompt("short"), options);
    const DecoderState before = state.fork(state.size());
    const CacheContents predictions(*state.prediction());
    setting.apply_to(options);
    options.max_tokens = 60;
    for (const int last : {1, 2, 9, 30}) {
      int tokens = 0;
      options.on_token = [&](TokenId) -> bool {
        if (++tokens == last) throw std::runtime_error("enough");
        return true;
      };
      Sampler sampler(trained_model().vocab_size(), {.temperature = 0.0});
      Context context;
      EXPECT_THROW(
          generate(trained_model(), state, goldens.prompt("long"), sampler, context, options),
          std::runtime_error);
      expect_same_layers(state, before);
      EXPECT_EQ(CacheContents(*state.prediction()), predictions);
    }
  }
}

TEST(Drafts, RefuseCountsThatCannotBe) {
  const Goldens goldens(kModel);
  const auto message = [&](const GenerationOptions& options) {
    DecoderState state(trained_model().config());
    return message_of(
        [&] { write_greedily(trained_model(), state, goldens.prompt("short"), options); });
  };
  EXPECT_EQ(message({.draft_tokens = 0}), "draft_tokens must be from 1 to 64, got 0");
  EXPECT_EQ(message({.draft_tokens = 65}), "draft_tokens must be from 1 to 64, got 65");
  EXPECT_EQ(message({.lookup = -1}), "lookup must not be negative, got -1");
  EXPECT_EQ(message({.lookup = 33}), "lookup must be from 1 to 32 tokens, got 33");
}

}  // namespace
}  // namespace mla::test
