// Several texts in one call: bit for bit what each gives alone.

#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <stdexcept>
#include <string>
#include <vector>

#include "mla/model/generate.hpp"
#include "mla/model/sampler.hpp"
#include "model/trained_decoder.hpp"
#include "support/compare.hpp"
#include "support/executors.hpp"
#include "support/isas.hpp"
#include "support/message_of.hpp"
#include "support/random.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

constexpr CacheFormat kBatchFormats[] = {CacheFormat::float32, CacheFormat::bfloat16,
                                         CacheFormat::float16, CacheFormat::int8,
                                         CacheFormat::fp8,     CacheFormat::int4};

std::vector<TokenId> random_text(Index count, Random& random) {
  std::vector<TokenId> tokens;
  for (Index i = 0; i < count; ++i)
    tokens.push_back(static_cast<TokenId>(random.integer(0, trained_model().vocab_size() - 1)));
  return tokens;
}

// One text of a batch: what its state holds before, how it goes on, what is wanted of it.
struct BatchedText {
  CacheFormat format;
  std::vector<TokenId> past, tokens;
  Index wanted;
};

DecoderState state_of(const BatchedText& text, Context& context) {
  DecoderState state(trained_model().config(), text.format);
  RowMajorMatrix none(0, trained_model().vocab_size());
  if (!text.past.empty()) trained_model().forward(text.past, state, none, context);
  return state;
}

bool same_states(const DecoderState& a, const DecoderState& b) {
  for (Index layer = 0; layer < a.layers(); ++layer)
    if (CacheContents(a.layer(layer)) != CacheContents(b.layer(layer))) return false;
  return (!a.prediction() || CacheContents(*a.prediction()) == CacheContents(*b.prediction()));
}

class Batch : public EveryIsa {};
MLA_FOR_EVERY_ISA(Batch);

// Prompts beside single tokens and texts without any, caches of several formats, and chunks that
// cut some of the prompts.
TEST_P(Batch, OfTextsGivesTheBitsOfEachTextAlone) {
  Random random(3);
  std::vector<BatchedText> texts;
  for (const Index past : {0, 5, 70, 130})
    for (const Index tokens : {1, 40, 0, 90}) {
      if (past + tokens > 200) continue;
      texts.push_back({kBatchFormats[random.integer(0, std::ssize(kBatchFormats) - 1)],
                       random_text(past, random), random_text(tokens, random),
                       random.integer(0, tokens)});
    }
  ThreadExecutor executor(3);
  Context alone(kernels()), together(executor, kernels());
  for (const AttentionForm mode :
       {AttentionForm::automatic, AttentionForm::absorbed, AttentionForm::decompressed})
    for (const Index chunk : {33, 256}) {
      const DecoderOptions options = {.mode = mode, .chunk_tokens = chunk};
      std::list<DecoderState> states, expected_states;
      std::vector<TextStep> batch;
      Index wanted = 0;
      for (const BatchedText& text : texts) {
        states.push_back(state_of(text, alone));
        expected_states.push_back(state_of(text, alone));
        batch.push_back({&states.back(), text.tokens, text.wanted});
        wanted += text.wanted;
      }
      RowMajorMatrix logits(wanted, trained_model().vocab_size());
      trained_model().forward(batch, logits, together, options);
      Index row = 0;
      auto state = states.begin(), expected_state = expected_states.begin();
      for (const BatchedText& text : texts) {
        RowMajorMatrix expected(text.wanted, logits.cols());
        trained_model().forward(text.tokens, *expected_state, expected, alone, options);
        EXPECT_TRUE(same_bits(logits.middleRows(row, text.wanted), expected))
            << text.past.size() << " + " << text.tokens.size() << " tokens";
        EXPECT_TRUE(same_states(*state++, *expected_state++));
        row += text.wanted;
      }
    }
}

// Each text with a mode of its own, as generate() has prompts beside texts that are being written.
TEST_P(Batch, MayMixForms) {
  Random random(4);
  Context context(kernels());
  const std::vector<TokenId> a = random_text(50, random), b = random_text(60, random);
  const ModelConfig& config = trained_model().config();
  DecoderState a_state(config), b_state(config), a_alone(config), b_alone(config);
  const std::vector<TextStep> batch = {{&a_state, a, 1, AttentionForm::decompressed},
                                       {&b_state, b, 2, AttentionForm::absorbed}};
  RowMajorMatrix logits(3, trained_model().vocab_size());
  trained_model().forward(batch, logits, context);
  RowMajorMatrix expected(3, logits.cols());
  trained_model().forward(a, a_alone, expected.topRows(1), context,
                          {.mode = AttentionForm::decompressed});
  trained_model().forward(b, b_alone, expected.bottomRows(2), context,
                          {.mode = AttentionForm::absorbed});
  EXPECT_TRUE(same_bits(logits, expected));
}

TEST(BatchErrors, NameTheTextAndLeaveEveryState) {
  Random random(5);
  Context context;
  const ModelConfig& config = trained_model().config();
  DecoderState a(config), b(config);
  RowMajorMatrix logits(2, config.vocab_size);
  const std::vector<TokenId> tokens = random_text(4, random);
  const std::vector<TokenId> foreign = {1, static_cast<TokenId>(config.vocab_size)};
  trained_model().forward(std::vector<TextStep>{{&a, tokens, 1}, {&b, tokens, 1}}, logits, context);
  const auto message = [&](const std::vector<TextStep>& batch) {
    const std::string text =
        test::message_of([&] { trained_model().forward(batch, logits, context); });
    EXPECT_EQ(a.size(), 4);
    EXPECT_EQ(b.size(), 4);
    return text;
  };
  EXPECT_EQ(message({{&a, tokens, 1}, {nullptr, tokens, 1}}), "text 1 has no state");
  EXPECT_EQ(message({{&a, tokens, 1}, {&a, tokens, 1}}), "texts 0 and 1 have the same state");
  EXPECT_EQ(message({{&a, tokens, 1}, {&b, tokens, 5}}),
            "text 1 has 4 tokens, cannot give the last 5");
  EXPECT_NE(message({{&a, tokens, 1}, {&b, foreign, 1}}).find("is not in the vocabulary"),
            std::string::npos);
  EXPECT_EQ(message({{&a, tokens, 1}, {&b, tokens, 2}}).substr(0, 32),
            "logits must have shape [3, 1024]");
  ModelConfig other = config;
  other.num_hidden_layers -= 1;
  DecoderState of_other(other);
  EXPECT_EQ(message({{&a, tokens, 1}, {&of_other, tokens, 1}}).substr(0, 52),
            "the state of text 1 was made for another model: it h");
}

// Texts of different lengths that end at different times, greedy and sampled, some speculative.
TEST(BatchGenerate, EveryTextIsTheOneThatItWouldBeAlone) {
  const Goldens goldens(kModel);
  struct Case {
    const char* prompt;
    SamplerOptions sampling;
    GenerationOptions options;
    CacheFormat format;
  };
  const Case cases[] = {
      {"short", {.temperature = 0.0}, {.max_tokens = 40}, CacheFormat::float32},
      {"long", {.temperature = 0.8, .seed = 3}, {.max_tokens = 17}, CacheFormat::bfloat16},
      {"medium",
       {.temperature = 0.0},
       {.max_tokens = 33, .speculative = true},
       CacheFormat::float32},
      {"short",
       {.temperature = 0.7, .seed = 9},
       {.max_tokens = 25, .speculative = true, .chunk_tokens = 2},
       CacheFormat::float16},
      {"medium", {.temperature = 0.0}, {.max_tokens = 0}, CacheFormat::float32},
      {"long",
       {.temperature = 1.0, .seed = 4},
       {.max_tokens = 1000, .speculative = true, .chunk_tokens = 16},
       CacheFormat::float32},
      {"medium",
       {.temperature = 0.0},
       {.max_tokens = 1, .speculative = true, .chunk_tokens = 7},
       CacheFormat::float32},
  };
  const ModelConfig& config = trained_model().config();
  Context context;
  std::list<DecoderState> states;
  std::list<Sampler> samplers;
  std::vector<std::vector<TokenId>> texts(std::size(cases));
  std::vector<GenerationTask<Sampler>> tasks;
  for (std::size_t i = 0; i < std::size(cases); ++i) {
    GenerationOptions options = cases[i].options;
    options.on_token = [&texts, i](TokenId token) {
      texts[i].push_back(token);
      return true;
    };
    tasks.push_back({&states.emplace_back(config, cases[i].format), goldens.prompt(cases[i].prompt),
                     &samplers.emplace_back(config.vocab_size, cases[i].sampling), options});
  }
  const std::vector<GenerationResult> results = generate(trained_model(), tasks, context);
  ASSERT_EQ(results.size(), std::size(cases));
  auto state = states.begin();
  for (std::size_t i = 0; i < std::size(cases); ++i, ++state) {
    std::vector<TokenId> alone;
    GenerationOptions options = cases[i].options;
    options.on_token = [&](TokenId token) {
      alone.push_back(token);
      return true;
    };
    DecoderState expected(config, cases[i].format);
    Sampler sampler(config.vocab_size, cases[i].sampling);
    const GenerationResult result = generate(
        trained_model(), expected, goldens.prompt(cases[i].prompt), sampler, context, options);
    EXPECT_EQ(texts[i], alone) << i;
    EXPECT_TRUE(same_states(*state, expected)) << i;
    EXPECT_EQ(results[i].stop, result.stop) << i;
    EXPECT_EQ(results[i].generated_tokens, result.generated_tokens) << i;
    EXPECT_EQ(results[i].drafted_tokens, result.drafted_tokens) << i;
    EXPECT_EQ(results[i].accepted_tokens, result.accepted_tokens) << i;
  }
}

TEST(BatchGenerate, ACallbackThatThrowsLeavesEveryState) {
  const Goldens goldens(kModel);
  const ModelConfig& config = trained_model().config();
  Context context;
  DecoderState a(config), b(config);
  RowMajorMatrix none(0, config.vocab_size);
  trained_model().forward(goldens.prompt("short"), a, none, context);
  const Index past = a.size();
  Sampler first(config.vocab_size, {.temperature = 0.0}), second = first;
  GenerationOptions throwing = {.max_tokens = 30, .speculative = true};
  int tokens = 0;
  throwing.on_token = [&](TokenId) {
    if (++tokens == 7) throw std::runtime_error("no more");
    return true;
  };
  const std::vector<GenerationTask<Sampler>> tasks = {
      {&a, goldens.prompt("medium"), &first, {.max_tokens = 30}},
      {&b, goldens.prompt("short"), &second, throwing}};
  EXPECT_THROW(generate(trained_model(), tasks, context), std::runtime_error);
  EXPECT_EQ(a.size(), past);
  EXPECT_EQ(b.size(), 0);
  EXPECT_EQ(b.prediction()->size(), 0);
}

}  // namespace
}  // namespace mla::test
