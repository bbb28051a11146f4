// libmla.so: generation gives the texts of the library in C++.

#include <gtest/gtest.h>
#include <mla.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "c_api.hpp"
#include "mla/model/generate.hpp"
#include "mla/model/sampler.hpp"
#include "support/random.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

struct Collected {
  Tokens tokens;
  std::vector<std::int64_t> prefilled;
  std::size_t stop_after = SIZE_MAX;
  mla_cancel_flag* cancel = nullptr;

  static int on_token(void* user, std::int32_t token) {
    auto& self = *static_cast<Collected*>(user);
    self.tokens.push_back(token);
    if (self.cancel && self.tokens.size() == 3) mla_cancel_flag_set(self.cancel);
    return self.tokens.size() >= self.stop_after;
  }
  static int on_prefill(void* user, std::int64_t done, std::int64_t /*all*/) {
    static_cast<Collected*>(user)->prefilled.push_back(done);
    return 0;
  }
};

mla_generation_options generation_options(Collected& collected, std::int64_t max_tokens) {
  mla_generation_options options;
  mla_generation_options_init(&options, sizeof options);
  options.max_tokens = max_tokens;
  options.on_token = &Collected::on_token;
  options.on_prefill = &Collected::on_prefill;
  options.user = &collected;
  return options;
}

// Greedy and sampled, plain and speculative, in one call.
TEST(CApiGenerate, WritesTheTextsOfTheGoldensAndOfTheLibrary) {
  const auto context = new_context();
  const auto model = load_model();
  const Tokens short_prompt = golden("short.input_ids"), long_prompt = golden("long.input_ids");
  mla_sampler_options sampling;
  mla_sampler_options_init(&sampling, sizeof sampling);
  sampling.temperature = 0.8;
  sampling.top_p = 0.95;
  sampling.top_k = 40;
  sampling.min_p = 0.001;
  sampling.repetition_penalty = 1.1;
  sampling.seed = 5;
  const auto sampler = made<OwnedSampler>(&mla_sampler_new, std::int64_t{1024}, &sampling);
  const auto a = new_state(model), b = new_state(model), c = new_state(model);
  Collected greedy, speculative, sampled;
  auto options = generation_options(greedy, 64);
  auto speculative_options = generation_options(speculative, 64);
  speculative_options.speculative = 1;
  speculative_options.draft_tokens = 3;
  speculative_options.lookup = 4;
  auto sampled_options = generation_options(sampled, 20);
  sampled_options.sampler = sampler.get();
  sampled_options.chunk_tokens = 8;
  const mla_generation texts[] = {
      {a.get(), short_prompt.data(), short_prompt.size(), &options},
      {b.get(), long_prompt.data(), long_prompt.size(), &speculative_options},
      {c.get(), short_prompt.data(), short_prompt.size(), &sampled_options}};
  mla_generation_result results[3];
  for (auto& result : results) result.size = sizeof result;
  ASSERT_TRUE(ok(mla_generate(model.get(), context.get(), texts, 3, results)));
  EXPECT_EQ(greedy.tokens, golden("short.greedy"));
  EXPECT_EQ(speculative.tokens, golden("long.greedy"));
  EXPECT_EQ(results[0].stop, MLA_STOP_MAX_TOKENS);
  EXPECT_EQ(results[0].prompt_tokens, std::ssize(short_prompt));
  EXPECT_EQ(results[0].generated_tokens, 64);
  EXPECT_EQ(results[0].drafted_tokens, 0);
  EXPECT_GT(results[1].accepted_tokens, 0);
  EXPECT_GE(results[1].drafted_tokens, results[1].accepted_tokens);
  EXPECT_EQ(results[0].decode_calls, 63);
  EXPECT_EQ(results[1].decode_calls, 63 - results[1].accepted_tokens);
  speculative_options.draft_tokens = 65;
  EXPECT_EQ(mla_generate(model.get(), context.get(), texts, 3, results), MLA_INVALID_ARGUMENT);
  speculative_options.draft_tokens = 3;
  EXPECT_EQ(greedy.prefilled, std::vector<std::int64_t>{std::ssize(short_prompt)});
  EXPECT_EQ(mla_state_size(a.get()), std::ssize(short_prompt) + 63);

  Tokens expected;
  GenerationOptions expected_options;
  expected_options.max_tokens = 20;
  expected_options.chunk_tokens = 8;
  expected_options.on_token = [&](TokenId token) {
    expected.push_back(token);
    return true;
  };
  DecoderState state(trained_model().config());
  Sampler expected_sampler(1024, {.temperature = 0.8,
                                  .top_k = 40,
                                  .top_p = 0.95,
                                  .min_p = 0.001,
                                  .repetition_penalty = 1.1,
                                  .seed = 5});
  Context alone;
  generate(trained_model(), state, std::span<const TokenId>(short_prompt), expected_sampler, alone,
           expected_options);
  EXPECT_EQ(sampled.tokens, expected);
}

TEST(CApiGenerate, EndsByCallbackFlagContextAndEndOfText) {
  const auto context = new_context();
  const auto model = load_model();
  const Tokens prompt = golden("short.input_ids");
  const auto run = [&](Collected& collected, mla_generation_options options) {
    const auto state = new_state(model);
    const mla_generation text = {state.get(), prompt.data(), prompt.size(), &options};
    collected.tokens.clear();
    mla_generation_result result;
    result.size = sizeof result;
    EXPECT_TRUE(ok(mla_generate(model.get(), context.get(), &text, 1, &result)));
    EXPECT_EQ(result.generated_tokens, std::ssize(collected.tokens));
    return result.stop;
  };
  Collected collected;
  collected.stop_after = 5;
  EXPECT_EQ(run(collected, generation_options(collected, 64)), MLA_STOP_CANCELLED);
  EXPECT_EQ(collected.tokens.size(), 5U);

  const auto flag = made<OwnedFlag>(&mla_cancel_flag_new);
  Collected cancelled;
  cancelled.cancel = flag.get();
  auto options = generation_options(cancelled, 64);
  options.cancel = flag.get();
  EXPECT_EQ(run(cancelled, options), MLA_STOP_CANCELLED);
  EXPECT_EQ(cancelled.tokens.size(), 3U);
  EXPECT_EQ(mla_cancel_flag_is_set(flag.get()), 1);
  EXPECT_EQ(run(cancelled, options), MLA_STOP_CANCELLED);  // after the prompt
  EXPECT_EQ(cancelled.tokens.size(), 0U);
  mla_cancel_flag_clear(flag.get());
  EXPECT_EQ(mla_cancel_flag_is_set(flag.get()), 0);

  Collected all;
  EXPECT_EQ(run(all, generation_options(all, 1000)), MLA_STOP_CONTEXT_FULL);
  EXPECT_EQ(std::ssize(prompt) + std::ssize(all.tokens), 256);
  EXPECT_TRUE(ok(mla_generate(model.get(), context.get(), nullptr, 0, nullptr)));
}

TEST(CApiGenerate, LeavesTheStatesWhereItFails) {
  const auto context = new_context();
  const auto model = load_model();
  const auto state = new_state(model);
  const Tokens prompt = golden("short.input_ids");
  mla_generation text = {state.get(), prompt.data(), prompt.size(), nullptr};
  mla_generation_result result;
  result.size = sizeof result;
  const auto refuses = [&](mla_status status, std::string_view message) {
    EXPECT_TRUE(
        refused(mla_generate(model.get(), context.get(), &text, 1, &result), status, message));
    EXPECT_EQ(mla_state_size(state.get()), 0);
  };
  text.prompt_count = 0;
  refuses(MLA_INVALID_ARGUMENT, "the prompt is empty (text 0)");
  text.prompt_count = prompt.size();
  Collected collected;
  auto options = generation_options(collected, -1);
  text.options = &options;
  refuses(MLA_INVALID_ARGUMENT, "max_tokens must not be negative, got -1");
  options.max_tokens = 4;
  options.decode_mode = 9;
  refuses(MLA_INVALID_ARGUMENT, "decode_mode is 9, which is no mla_attention_form");
  options.decode_mode = MLA_FORM_ABSORBED;
  mla_sampler_options sampling;
  mla_sampler_options_init(&sampling, sizeof sampling);
  const auto other = made<OwnedSampler>(&mla_sampler_new, std::int64_t{7}, &sampling);
  options.sampler = other.get();
  refuses(MLA_INVALID_ARGUMENT, "the sampler is for a vocabulary of 7, the model has 1024");
  options.sampler = nullptr;
  result.size = 3;
  refuses(MLA_INVALID_ARGUMENT, "mla_generation_result.size is 3");
  result.size = sizeof result;
  options.on_token = [](void*, std::int32_t) -> int { throw std::runtime_error("no more"); };
  refuses(MLA_RUNTIME_ERROR, "no more");

  // A callback cannot use what the call uses.
  struct Inside {
    mla_model* model;
    mla_context* context;
    mla_state* state;
    int busy = 0;
  } inside{model.get(), context.get(), state.get()};
  options.user = &inside;
  options.on_prefill = nullptr;
  options.on_token = [](void* user, std::int32_t token) {
    auto& self = *static_cast<Inside*>(user);
    const mla_text_step step = {self.state, &token, 1, 0};
    self.busy += mla_forward(self.model, self.context, &step, 1, nullptr, 0) == MLA_BUSY;
    self.busy += mla_state_truncate(self.state, 0) == MLA_BUSY;
    return 0;
  };
  EXPECT_TRUE(ok(mla_generate(model.get(), context.get(), &text, 1, &result)));
  EXPECT_EQ(inside.busy, 8);
}

TEST(CApiSampler, DrawsWhatTheLibraryDraws) {
  mla_sampler_options sampling;
  mla_sampler_options_init(&sampling, sizeof sampling);
  EXPECT_EQ(sampling.temperature, 1.0);
  sampling.seed = 3;
  const auto sampler = made<OwnedSampler>(&mla_sampler_new, std::int64_t{50}, &sampling);
  Sampler expected(50, {.seed = 3});
  Random random(1);
  const Tokens history = {4, 5};
  for (int i = 0; i < 20; ++i) {
    const auto logits = random_elements<float>(50, random, 2.0);
    std::int32_t token = -1;
    ASSERT_TRUE(ok(mla_sampler_next(sampler.get(), logits.data(), logits.size(), history.data(),
                                    history.size(), &token)));
    EXPECT_EQ(token, expected.next(logits, history));
  }
  const std::vector<float> few(7);
  std::int32_t token = -1;
  EXPECT_TRUE(refused(mla_sampler_next(sampler.get(), few.data(), 7, nullptr, 0, &token),
                      MLA_INVALID_ARGUMENT, "logits must be of 50 tokens, got 7"));
  EXPECT_EQ(token, -1);
  sampling.top_p = 2.0;
  mla_sampler* none = nullptr;
  EXPECT_TRUE(refused(mla_sampler_new(50, &sampling, &none), MLA_INVALID_ARGUMENT, "top_p"));
}

}  // namespace
}  // namespace mla::test
