// libmla.so from outside: it computes the bits of the library in C++, and refuses what does not fit
// with a status and a message, whatever a caller of C may pass.

#include <gtest/gtest.h>
#include <mla.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "mla/attention/multihead_latent_attention.hpp"
#include "mla/core/eigen_executor.hpp"
#include "mla/io/load_attention_weights.hpp"
#include "mla/model/generate.hpp"
#include "mla/model/read_attention_config.hpp"
#include "mla/model/sampler.hpp"
#include "mla/text/tokenizer.hpp"
#include "mla/version.hpp"
#include "model/trained_decoder.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/safetensors_writer.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

using Tokens = std::vector<TokenId>;

template <auto kDestroy>
struct Destroy {
  void operator()(auto* handle) const { kDestroy(handle); }
};
template <class T, auto kDestroy>
using Owned = std::unique_ptr<T, Destroy<kDestroy>>;
using OwnedContext = Owned<mla_context, mla_context_destroy>;
using OwnedModel = Owned<mla_model, mla_model_destroy>;
using OwnedState = Owned<mla_state, mla_state_destroy>;
using OwnedSampler = Owned<mla_sampler, mla_sampler_destroy>;
using OwnedFlag = Owned<mla_cancel_flag, mla_cancel_flag_destroy>;
using OwnedTokenizer = Owned<mla_tokenizer, mla_tokenizer_destroy>;
using OwnedStream = Owned<mla_text_stream, mla_text_stream_destroy>;
using OwnedAttention = Owned<mla_attention, mla_attention_destroy>;
using OwnedCache = Owned<mla_cache, mla_cache_destroy>;

testing::AssertionResult ok(mla_status status) {
  if (status == MLA_OK) return testing::AssertionSuccess();
  return testing::AssertionFailure() << mla_status_text(status) << ": " << mla_last_error();
}

testing::AssertionResult refused(mla_status status, mla_status expected, std::string_view message) {
  if (status != expected)
    return testing::AssertionFailure() << mla_status_text(status) << " (" << mla_last_error()
                                       << "), expected " << mla_status_text(expected);
  if (std::string_view(mla_last_error()).find(message) != std::string_view::npos)
    return testing::AssertionSuccess();
  return testing::AssertionFailure() << "no \"" << message << "\" in: " << mla_last_error();
}

template <class O, class... Arguments>
O made(const Arguments&... arguments) {
  auto* const create = std::get<0>(std::forward_as_tuple(arguments...));
  return std::apply(
      [&](auto*, const auto&... rest) {
        typename O::pointer handle = nullptr;
        EXPECT_TRUE(ok(create(rest..., &handle)));
        return O(handle);
      },
      std::forward_as_tuple(arguments...));
}

OwnedContext new_context() { return made<OwnedContext>(&mla_context_new, nullptr); }
OwnedModel load_model() { return made<OwnedModel>(&mla_model_load, kModel.c_str()); }
OwnedState new_state(const OwnedModel& model, const char* format = "f32") {
  return made<OwnedState>(&mla_state_new, model.get(), format);
}
OwnedTokenizer load_tokenizer() {
  return made<OwnedTokenizer>(&mla_tokenizer_load, kModel.c_str());
}

Tokens golden(const char* name) {
  static const Goldens goldens(kModel);
  const auto values = goldens.integers(name);
  return {values.begin(), values.end()};
}

mla_text_step step_of(const OwnedState& state, const Tokens& tokens, std::size_t wanted) {
  return {state.get(), tokens.data(), tokens.size(), wanted};
}

TEST(CApi, HasTheVersionsOfTheHeaders) {
  EXPECT_EQ(mla_abi_version(), MLA_ABI_VERSION);
  EXPECT_STREQ(mla_library_version(), MLA_VERSION);
}

// ---------------------------------------------------------------------------------------- context

TEST(CApiContext, ComputesInFloat32OnTheCallingThreadUnlessToldOtherwise) {
  const auto context = new_context();
  EXPECT_EQ(mla_context_threads(context.get()), 1);
  EXPECT_EQ(mla_context_isa(context.get()), simd::name_of(simd::kernels().isa));
  EXPECT_STREQ(mla_context_arithmetic(context.get()), "float32");

  mla_context_options options;
  mla_context_options_init(&options, sizeof options);
  options.threads = 3;
  options.arithmetic = "bfloat16";
  options.isa = "scalar";
  const auto scalar = made<OwnedContext>(&mla_context_new, &options);
  EXPECT_EQ(mla_context_threads(scalar.get()), 3);
  EXPECT_STREQ(mla_context_isa(scalar.get()), "scalar");
  EXPECT_STREQ(mla_context_arithmetic(scalar.get()), "float32");

  options.isa = nullptr;
  const auto fast = made<OwnedContext>(&mla_context_new, &options);
  EXPECT_EQ(mla_context_isa(fast.get()), simd::name_of(simd::kernels(Arithmetic::bfloat16).isa));
}

TEST(CApiContext, RefusesWhatDoesNotExist) {
  const auto refuses = [](auto change, std::string_view message) {
    mla_context_options options;
    mla_context_options_init(&options, sizeof options);
    change(options);
    mla_context* context = nullptr;
    EXPECT_TRUE(refused(mla_context_new(&options, &context), MLA_INVALID_ARGUMENT, message));
    EXPECT_EQ(context, nullptr);
  };
  refuses([](auto& o) { o.threads = -1; }, "threads must be from 0 to 1024, got -1");
  refuses([](auto& o) { o.threads = 1025; }, "got 1025");
  refuses([](auto& o) { o.arithmetic = "int4"; }, "float32 or bfloat16, got int4");
  refuses([](auto& o) { o.isa = "sse9"; }, "isa sse9 does not exist");
  refuses(
      [](auto& o) {
        o.threads = 0;
        o.parallel_for = [](void*, std::int64_t, void (*)(void*, std::int64_t, std::int64_t),
                            void*) {};
      },
      "threads must say how many parallel_for has");
  EXPECT_TRUE(refused(mla_context_new(nullptr, nullptr), MLA_INVALID_ARGUMENT, "is NULL"));
}

// A program of another version of the header passes a shorter or a longer struct.
TEST(CApiContext, TakesStructsOfOtherVersions) {
  struct Longer {
    mla_context_options options;
    std::int64_t unknown;
  } longer;
  mla_context_options_init(&longer.options, sizeof longer);
  EXPECT_EQ(longer.options.size, sizeof longer);
  EXPECT_EQ(longer.unknown, 0);
  longer.options.threads = 2;
  const auto context = made<OwnedContext>(&mla_context_new, &longer.options);
  EXPECT_EQ(mla_context_threads(context.get()), 2);
  longer.unknown = 7;
  mla_context* none = nullptr;
  EXPECT_TRUE(refused(mla_context_new(&longer.options, &none), MLA_INVALID_ARGUMENT,
                      "this version of the library does not know"));

  mla_context_options shorter;
  std::memset(static_cast<void*>(&shorter), 0xff, sizeof shorter);  // what is beyond is not read
  constexpr std::size_t kSize = offsetof(mla_context_options, arithmetic);
  mla_context_options_init(&shorter, kSize);
  EXPECT_EQ(shorter.size, kSize);
  shorter.threads = 2;
  const auto old = made<OwnedContext>(&mla_context_new, &shorter);
  EXPECT_EQ(mla_context_threads(old.get()), 2);
  EXPECT_STREQ(mla_context_arithmetic(old.get()), "float32");

  for (const std::size_t size : {std::size_t{0}, std::size_t{4}, std::size_t{1} << 40}) {
    shorter.size = size;
    EXPECT_TRUE(refused(mla_context_new(&shorter, &none), MLA_INVALID_ARGUMENT, ".size is"));
  }
}

TEST(CApiContext, RunsOnTheCallersThreads) {
  struct Pool {
    std::atomic<int> calls{0};
    static void run(void* user, std::int64_t tasks, void (*body)(void*, std::int64_t, std::int64_t),
                    void* data) {
      ++static_cast<Pool*>(user)->calls;
      std::atomic<std::int64_t> next{0};
      const auto work = [&](std::int64_t worker) {
        for (std::int64_t task; (task = next++) < tasks;) body(data, task, worker);
      };
      std::thread other(work, 1);
      work(0);
      other.join();
    }
  } pool;
  mla_context_options options;
  mla_context_options_init(&options, sizeof options);
  options.threads = 2;
  options.parallel_for = &Pool::run;
  options.user = &pool;
  const auto context = made<OwnedContext>(&mla_context_new, &options);
  const auto model = load_model();
  const auto state = new_state(model);
  const Tokens prompt = golden("short.input_ids");
  const auto step = step_of(state, prompt, 1);
  RowMajorMatrix logits(1, trained_model().vocab_size());
  ASSERT_TRUE(ok(mla_forward(model.get(), context.get(), &step, 1, logits.data(),
                             static_cast<std::size_t>(logits.size()))));
  EXPECT_GT(pool.calls, 0);
  DecoderState expected_state(trained_model().config());
  RowMajorMatrix expected(1, logits.cols());
  Context alone;
  trained_model().forward(prompt, expected_state, expected, alone);
  EXPECT_TRUE(same_bits(logits, expected));
}

// ------------------------------------------------------------------------------------------ model

TEST(CApiModel, SaysWhatItIs) {
  const auto model = load_model();
  mla_model_info info;
  info.size = sizeof info;
  ASSERT_TRUE(ok(mla_model_get_info(model.get(), &info)));
  const ModelConfig& config = trained_model().config();
  EXPECT_EQ(info.vocab_size, config.vocab_size);
  EXPECT_EQ(info.hidden_size, config.hidden_size());
  EXPECT_EQ(info.num_hidden_layers, config.num_hidden_layers);
  EXPECT_EQ(info.max_position_embeddings, config.max_position_embeddings);
  EXPECT_EQ(info.num_nextn_predict_layers, 1);
  EXPECT_EQ(info.bos_token_id, 0);
  EXPECT_EQ(info.eos_token_id, 1);
  EXPECT_STREQ(info.model_type, "deepseek_v3");
  EXPECT_EQ(info.size, sizeof info);

  std::int32_t id = -1;
  std::size_t count = 0;
  EXPECT_TRUE(refused(mla_model_eos_token_ids(model.get(), nullptr, 0, &count),
                      MLA_BUFFER_TOO_SMALL, "ids needs room for 1, got 0"));
  EXPECT_EQ(count, 1U);
  EXPECT_TRUE(ok(mla_model_eos_token_ids(model.get(), &id, 1, &count)));
  EXPECT_EQ(id, 1);
}

TEST(CApiModel, NamesTheFileThatIsNotThere) {
  mla_model* model = nullptr;
  EXPECT_TRUE(refused(mla_model_load("/nowhere", &model), MLA_RUNTIME_ERROR, "/nowhere: cannot"));
  EXPECT_TRUE(refused(mla_model_load(nullptr, &model), MLA_INVALID_ARGUMENT, "directory is NULL"));
  EXPECT_EQ(model, nullptr);
}

TEST(CApiModel, GivesTheLogitsOfEachTextOfABatch) {
  const auto context = new_context();
  const auto model = load_model();
  const Tokens medium = golden("medium.input_ids"), short_text = golden("short.input_ids");
  const auto a = new_state(model), b = new_state(model, "bf16");
  const mla_text_step steps[] = {step_of(a, medium, 3), step_of(b, short_text, 1)};
  RowMajorMatrix logits(4, trained_model().vocab_size());
  const auto count = static_cast<std::size_t>(logits.size());
  ASSERT_TRUE(ok(mla_forward(model.get(), context.get(), steps, 2, logits.data(), count)));

  Context alone;
  DecoderState a_state(trained_model().config());
  DecoderState b_state(trained_model().config(), CacheFormat::bfloat16);
  RowMajorMatrix expected(4, logits.cols());
  trained_model().forward(medium, a_state, expected.topRows(3), alone);
  trained_model().forward(short_text, b_state, expected.bottomRows(1), alone);
  EXPECT_TRUE(same_bits(logits, expected));
  EXPECT_EQ(mla_state_size(b.get()), std::ssize(short_text));
  EXPECT_EQ(mla_state_bytes_used(b.get()), b_state.bytes_used());
  EXPECT_EQ(mla_state_bytes_per_token(b.get()), b_state.bytes_per_token());
  EXPECT_GE(mla_state_bytes_allocated(b.get()), b_state.bytes_used());
  EXPECT_STREQ(mla_state_format(b.get()), "bf16");
}

TEST(CApiModel, RefusesACallThatDoesNotFitAndLeavesTheStates) {
  const auto context = new_context();
  const auto model = load_model();
  const auto state = new_state(model), other = new_state(model);
  const Tokens tokens = golden("short.input_ids");
  const Tokens foreign = {1, 1024};
  std::vector<float> logits(1024);
  const auto refuses = [&](std::vector<mla_text_step> steps, std::size_t count, mla_status status,
                           std::string_view message) {
    EXPECT_TRUE(refused(
        mla_forward(model.get(), context.get(), steps.data(), steps.size(), logits.data(), count),
        status, message));
    EXPECT_EQ(mla_state_size(state.get()), 0);
    EXPECT_EQ(mla_state_size(other.get()), 0);
  };
  const mla_text_step good = step_of(state, tokens, 1);
  refuses({good}, 1023, MLA_INVALID_ARGUMENT, "logits must have 1 x 1024 numbers, got 1023");
  refuses({good, good}, 2048, MLA_BUSY, "the state is in use by another call, or given twice");
  refuses({step_of(other, tokens, 0), step_of(state, foreign, 1)}, 1024, MLA_INVALID_ARGUMENT,
          "is not in the vocabulary");
  refuses({{state.get(), nullptr, 3, 1}}, 1024, MLA_INVALID_ARGUMENT, "tokens is NULL");
  refuses({{state.get(), tokens.data(), SIZE_MAX, 1}}, 1024, MLA_INVALID_ARGUMENT,
          "tokens cannot have");
  refuses({{state.get(), tokens.data(), 1, 2}}, 2048, MLA_INVALID_ARGUMENT,
          "a text of 1 tokens cannot give the last 2");
  refuses({{nullptr, tokens.data(), 1, 1}}, 1024, MLA_INVALID_ARGUMENT, "the state is NULL");
  EXPECT_TRUE(refused(mla_forward(model.get(), context.get(), nullptr, 1, logits.data(), 0),
                      MLA_INVALID_ARGUMENT, "steps is NULL"));
  EXPECT_TRUE(refused(mla_forward(model.get(), context.get(), &good, 1, nullptr, 1024),
                      MLA_INVALID_ARGUMENT, "logits is NULL"));
  // Nothing stays in use.
  EXPECT_TRUE(ok(mla_forward(model.get(), context.get(), &good, 1, logits.data(), 1024)));
}

TEST(CApiState, TruncatesSavesAndRestores) {
  const TemporaryDirectory directory;
  const std::string path = (directory / "state").string();
  const auto context = new_context();
  const auto model = load_model();
  const auto state = new_state(model, "f16");
  const Tokens tokens = golden("medium.input_ids");
  ASSERT_TRUE(ok(mla_state_reserve(state.get(), 200)));
  const auto step = step_of(state, tokens, 0);
  ASSERT_TRUE(ok(mla_forward(model.get(), context.get(), &step, 1, nullptr, 0)));
  ASSERT_TRUE(ok(mla_state_truncate(state.get(), 5)));
  EXPECT_EQ(mla_state_size(state.get()), 5);
  ASSERT_TRUE(ok(mla_state_save(state.get(), path.c_str(), "shakespeare")));

  const auto restored = new_state(model, "f16");
  EXPECT_TRUE(refused(mla_state_restore(restored.get(), path.c_str(), nullptr), MLA_RUNTIME_ERROR,
                      "label is shakespeare in the snapshot"));
  const auto other_format = new_state(model, "f32");
  EXPECT_TRUE(refused(mla_state_restore(other_format.get(), path.c_str(), "shakespeare"),
                      MLA_RUNTIME_ERROR, "f16"));
  ASSERT_TRUE(ok(mla_state_restore(restored.get(), path.c_str(), "shakespeare")));
  EXPECT_EQ(mla_state_size(restored.get()), 5);
  const Tokens next = {tokens[5]};
  RowMajorMatrix logits(2, 1024);
  const mla_text_step steps[] = {step_of(state, next, 1), step_of(restored, next, 1)};
  ASSERT_TRUE(ok(mla_forward(model.get(), context.get(), steps, 2, logits.data(), 2048)));
  EXPECT_TRUE(same_bits(logits.topRows(1), logits.bottomRows(1)));

  EXPECT_TRUE(refused(mla_state_truncate(state.get(), 7), MLA_INVALID_ARGUMENT,
                      "cannot truncate a state of 6 tokens to 7"));
  EXPECT_TRUE(refused(mla_state_truncate(state.get(), -1), MLA_INVALID_ARGUMENT, "-1"));
  EXPECT_TRUE(refused(mla_state_reserve(state.get(), 257), MLA_INVALID_ARGUMENT, "got 257"));
  EXPECT_TRUE(
      refused(mla_state_save(state.get(), "/nowhere/state", ""), MLA_RUNTIME_ERROR, "/nowhere"));
  EXPECT_TRUE(refused(mla_state_save(state.get(), nullptr, ""), MLA_INVALID_ARGUMENT, "path"));
  mla_state* none = nullptr;
  EXPECT_TRUE(refused(mla_state_new(model.get(), "f8", &none), MLA_INVALID_ARGUMENT,
                      "cache format f8 does not exist, there are f32, bf16, f16, int8, fp8, int4"));
}

TEST(CApiState, ForksAndEvicts) {
  const auto context = new_context();
  const auto model = load_model();
  const auto state = new_state(model, "bf16");
  const Tokens tokens = golden("medium.input_ids");
  const auto step = step_of(state, tokens, 0);
  ASSERT_TRUE(ok(mla_forward(model.get(), context.get(), &step, 1, nullptr, 0)));
  mla_state* handle = nullptr;
  ASSERT_TRUE(ok(mla_state_fork(state.get(), 9, &handle)));
  const OwnedState fork(handle);
  EXPECT_EQ(mla_state_size(fork.get()), 9);
  const std::int64_t rows[] = {2, 3, 6};
  ASSERT_TRUE(ok(mla_state_evict(fork.get(), rows, 3)));
  EXPECT_EQ(mla_state_size(fork.get()), 6);
  EXPECT_EQ(mla_state_size(state.get()), std::ssize(tokens));

  Context alone;
  DecoderState expected_state(trained_model().config(), CacheFormat::bfloat16);
  RowMajorMatrix none(0, 1024), expected(1, 1024), logits(1, 1024);
  trained_model().forward(std::span(tokens).first(9), expected_state, none, alone);
  expected_state.evict(std::span<const Index>(rows));
  const Tokens next = {tokens[9]};
  trained_model().forward(next, expected_state, expected, alone);
  const auto last = step_of(fork, next, 1);
  ASSERT_TRUE(ok(mla_forward(model.get(), context.get(), &last, 1, logits.data(), 1024)));
  EXPECT_TRUE(same_bits(logits, expected));

  const std::int64_t falling[] = {3, 2};
  EXPECT_EQ(mla_state_evict(fork.get(), falling, 2), MLA_INVALID_ARGUMENT);
  EXPECT_EQ(mla_state_evict(fork.get(), nullptr, 2), MLA_INVALID_ARGUMENT);
  EXPECT_TRUE(refused(mla_state_fork(fork.get(), 8, &handle), MLA_INVALID_ARGUMENT,
                      "cannot fork a state of 7 tokens at 8"));
  EXPECT_EQ(mla_state_size(fork.get()), 7);
}

// ------------------------------------------------------------------------------------- generation

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

// -------------------------------------------------------------------------------------- tokenizer

TEST(CApiTokenizer, EncodesAndDecodes) {
  const auto tokenizer = load_tokenizer();
  const Tokenizer expected(kModel);
  EXPECT_EQ(mla_tokenizer_vocab_size(tokenizer.get()), expected.vocab_size());
  const std::string text = "ROMEO:\nWhat, \u00e9tude \u4f60\u597d?";
  for (const int add_bos : {-1, 0, 1}) {
    const Tokens ids = add_bos < 0 ? expected.encode(text) : expected.encode(text, add_bos == 1);
    std::size_t count = 0;
    EXPECT_TRUE(refused(mla_tokenizer_encode(tokenizer.get(), text.data(), text.size(), add_bos,
                                             nullptr, 0, &count),
                        MLA_BUFFER_TOO_SMALL, "ids needs room for"));
    ASSERT_EQ(count, ids.size());
    Tokens actual(count);
    ASSERT_TRUE(ok(mla_tokenizer_encode(tokenizer.get(), text.data(), text.size(), add_bos,
                                        actual.data(), count, &count)));
    EXPECT_EQ(actual, ids);
    std::size_t bytes = 0;
    std::string back(text.size() + 1, '?');
    EXPECT_TRUE(refused(mla_tokenizer_decode(tokenizer.get(), ids.data(), ids.size(), 1,
                                             back.data(), text.size(), &bytes),
                        MLA_BUFFER_TOO_SMALL, "bytes"));
    EXPECT_EQ(bytes, text.size());
    ASSERT_TRUE(ok(mla_tokenizer_decode(tokenizer.get(), ids.data(), ids.size(), 1, back.data(),
                                        back.size(), &bytes)));
    EXPECT_EQ(back, text + '\0');
  }
  std::int32_t id = -1;
  EXPECT_TRUE(ok(mla_tokenizer_token_id(tokenizer.get(), "\u0120the", &id)));
  EXPECT_EQ(id, expected.token_id("\u0120the"));
  EXPECT_TRUE(refused(mla_tokenizer_token_id(tokenizer.get(), "no such", &id), MLA_INVALID_ARGUMENT,
                      "no such"));
  std::size_t count = 0;
  EXPECT_TRUE(refused(mla_tokenizer_encode(tokenizer.get(), "a\xff", 2, 0, &id, 1, &count),
                      MLA_INVALID_ARGUMENT, "UTF-8"));
  EXPECT_TRUE(refused(mla_tokenizer_encode(tokenizer.get(), "a", 1, 2, &id, 1, &count),
                      MLA_INVALID_ARGUMENT, "add_bos"));
  const std::int32_t foreign = 1024;
  EXPECT_TRUE(refused(mla_tokenizer_decode(tokenizer.get(), &foreign, 1, 1, nullptr, 0, &count),
                      MLA_INVALID_ARGUMENT, "1024"));
  mla_tokenizer* none = nullptr;
  EXPECT_TRUE(refused(mla_tokenizer_load("/nowhere", &none), MLA_RUNTIME_ERROR, "/nowhere"));
}

TEST(CApiTextStream, GivesWholeCharactersAndLosesNoneWhereTheBufferIsTooSmall) {
  auto tokenizer = load_tokenizer();
  const auto stream = made<OwnedStream>(&mla_text_stream_new, tokenizer.get(), 1);
  const Tokenizer cpp(kModel);
  tokenizer.reset();  // the stream keeps what it needs
  const std::string text = "a\u4f60\u597d";
  std::string all;
  for (const TokenId id : cpp.encode(text)) {
    char piece[16];
    std::size_t bytes = 0;
    const mla_status status = mla_text_stream_push(stream.get(), id, nullptr, 0, &bytes);
    EXPECT_TRUE(refused(status, MLA_BUFFER_TOO_SMALL, "text needs room for"));
    ASSERT_TRUE(ok(mla_text_stream_push(stream.get(), id, piece, sizeof piece, &bytes)));
    all.append(piece, bytes);
    EXPECT_EQ(piece[bytes], '\0');
  }
  EXPECT_EQ(all, text);
  char piece[16];
  std::size_t bytes = 0;
  const Tokens ids = cpp.encode("\u4f60", false);
  ASSERT_GT(ids.size(), 1U);
  ASSERT_TRUE(ok(mla_text_stream_push(stream.get(), ids[0], piece, sizeof piece, &bytes)));
  EXPECT_EQ(bytes, 0U);
  ASSERT_TRUE(ok(mla_text_stream_finish(stream.get(), piece, sizeof piece, &bytes)));
  EXPECT_STREQ(piece, "\ufffd");
}

// -------------------------------------------------------------------------------------- attention

TEST(CApiAttention, OfACheckpointIsTheLayerOfTheLibrary) {
  const auto context = new_context();
  const auto attention = made<OwnedAttention>(&mla_attention_load, kModel.c_str(), std::int64_t{1});
  mla_attention_config c;
  c.size = sizeof c;
  ASSERT_TRUE(ok(mla_attention_get_config(attention.get(), &c)));
  const AttentionConfig config = load_attention_config(kModel);
  EXPECT_EQ(c.hidden_size, config.hidden_size);
  EXPECT_STREQ(c.rope_scaling_type, "none");

  const Checkpoint checkpoint(kModel);
  const MultiheadLatentAttention expected(
      config, load_attention_weights(checkpoint, "model.layers.1.self_attn", config));
  Random random(2);
  const RowMajorMatrix x = random_matrix(70, config.hidden_size, random);
  RowMajorMatrix out(70, config.hidden_size), expected_out(70, config.hidden_size);
  const auto a = made<OwnedCache>(&mla_cache_new, attention.get(), "bf16");
  const auto b = made<OwnedCache>(&mla_cache_new, attention.get(), nullptr);
  const mla_sequence sequences[] = {{a.get(), 66}, {b.get(), 4}};
  ASSERT_TRUE(ok(mla_attention_forward(attention.get(), context.get(), sequences, 2, x.data(),
                                       out.data(), nullptr)));
  LatentCache a_cache(config, CacheFormat::bfloat16), b_cache(config);
  Context alone;
  expected.forward(x, {{&a_cache, 66}, {&b_cache, 4}}, expected_out, alone);
  EXPECT_TRUE(same_bits(out, expected_out));
  EXPECT_EQ(mla_cache_size(a.get()), 66);
  EXPECT_EQ(mla_cache_bytes_used(a.get()), a_cache.bytes_used());
  EXPECT_EQ(mla_cache_bytes_per_token(b.get()), b_cache.bytes_per_token());
  mla_attention* none = nullptr;
  EXPECT_TRUE(refused(mla_attention_load(kModel.c_str(), 99, &none), MLA_RUNTIME_ERROR,
                      "model.layers.99.self_attn"));
  EXPECT_TRUE(refused(mla_attention_load(kModel.c_str(), -1, &none), MLA_INVALID_ARGUMENT, "-1"));
}

// Weights, config and options of a caller's own.
class CApiOwnAttention : public testing::Test {
 protected:
  CApiOwnAttention() : config_(small_config()), random_(4), weights_(config_, options(), random_) {
    config_.rope_scaling = short_yarn(1.0, 0.7);
    mla_attention_config_init(&c_config_, sizeof c_config_);
    c_config_.hidden_size = config_.hidden_size;
    c_config_.num_attention_heads = config_.num_attention_heads;
    c_config_.q_lora_rank = config_.q_lora_rank;
    c_config_.kv_lora_rank = config_.kv_lora_rank;
    c_config_.qk_nope_head_dim = config_.qk_nope_head_dim;
    c_config_.qk_rope_head_dim = config_.qk_rope_head_dim;
    c_config_.v_head_dim = config_.v_head_dim;
    c_config_.rope_scaling_type = "yarn";
    c_config_.rope_factor = config_.rope_scaling.factor;
    c_config_.rope_original_max_position_embeddings =
        config_.rope_scaling.original_max_position_embeddings;
    c_config_.rope_beta_fast = config_.rope_scaling.beta_fast;
    c_config_.rope_beta_slow = config_.rope_scaling.beta_slow;
    c_config_.rope_mscale = config_.rope_scaling.mscale;
    c_config_.rope_mscale_all_dim = config_.rope_scaling.mscale_all_dim;
    const AttentionWeights& w = weights_.views();
    const auto add = [&](const char* name, const WeightView& view) {
      c_weights_.push_back(
          {name, name_of(view.format).data(), view.data, view.rows, view.cols, 0, nullptr});
    };
    add("q_a_proj", w.q_a_proj);
    add("q_a_layernorm", w.q_a_layernorm);
    add("q_b_proj", w.q_b_proj);
    add("kv_a_proj_with_mqa", w.kv_a_proj_with_mqa);
    add("kv_a_layernorm", w.kv_a_layernorm);
    add("kv_b_proj", w.kv_b_proj);
    add("o_proj", w.o_proj);
    add("q_a_proj_bias", w.q_a_proj_bias);
    add("kv_a_proj_with_mqa_bias", w.kv_a_proj_with_mqa_bias);
    add("o_proj_bias", w.o_proj_bias);
  }

  static WeightOptions options() { return {.mixed_formats = true, .biases = true}; }

  mla_status create(OwnedAttention& attention) {
    mla_attention* handle = nullptr;
    const mla_status status =
        mla_attention_new(&c_config_, c_weights_.data(), c_weights_.size(), &handle);
    attention.reset(handle);
    return status;
  }

  AttentionConfig config_;
  Random random_;
  RandomWeights weights_;
  mla_attention_config c_config_;
  std::vector<mla_weight> c_weights_;
};

TEST_F(CApiOwnAttention, TakesStridesPositionsPaddingAndMode) {
  OwnedAttention attention;
  ASSERT_TRUE(ok(create(attention)));
  const auto context = new_context();
  constexpr Index kTokens = 9;
  const Index width = config_.hidden_size;
  const RowMajorMatrix x = random_matrix(kTokens, width + 3, random_);
  RowMajorMatrix out = RowMajorMatrix::Constant(kTokens, width + 1, -7.0f);
  const std::int64_t positions[kTokens] = {0, 1, 2, 5, 6, 0, 2, 3, 4};
  const std::uint8_t mask[kTokens] = {1, 1, 1, 1, 1, 1, 0, 1, 1};
  mla_attention_options options;
  mla_attention_options_init(&options, sizeof options);
  options.x_stride = width + 3;
  options.out_stride = width + 1;
  options.position_ids = positions;
  options.attention_mask = mask;
  options.mode = MLA_FORM_DECOMPRESSED;
  const auto a = made<OwnedCache>(&mla_cache_new, attention.get(), "f32");
  const auto b = made<OwnedCache>(&mla_cache_new, attention.get(), "f16");
  const mla_sequence sequences[] = {{a.get(), 5}, {b.get(), 4}};
  ASSERT_TRUE(ok(mla_attention_forward(attention.get(), context.get(), sequences, 2, x.data(),
                                       out.data(), &options)));
  const MultiheadLatentAttention expected(config_, weights_.views());
  LatentCache a_cache(config_), b_cache(config_, CacheFormat::float16);
  RowMajorMatrix expected_out(kTokens, width);
  Context alone;
  expected.forward(x.leftCols(width), {{&a_cache, 5}, {&b_cache, 4}}, expected_out, alone,
                   {.mode = AttentionForm::decompressed,
                    .position_ids = std::span<const Index>(positions),
                    .attention_mask = mask});
  EXPECT_TRUE(same_bits(out.leftCols(width), expected_out));
  EXPECT_TRUE((out.col(width).array() == -7.0f).all());  // between the rows
  EXPECT_EQ(mla_cache_size(b.get()), 3);
}

// A tensor of 8 bits with a scale per row, used as it lies.
TEST_F(CApiOwnAttention, TakesScaledWeights) {
  AttentionWeights expected_weights = weights_.views();
  const Index rows = expected_weights.o_proj.rows, cols = expected_weights.o_proj.cols;
  std::vector<std::int8_t> codes;
  std::vector<float> scale_values;
  for (Index r = 0; r < rows; ++r) {
    scale_values.push_back(static_cast<float>(random_.uniform(1e-3, 1e-2)));
    for (Index c = 0; c < cols; ++c)
      codes.push_back(static_cast<std::int8_t>(random_.integer(-127, 127)));
  }
  Scales expected_scales;
  expected_scales.data = scale_values.data();
  expected_scales.block_cols = cols;
  expected_scales.stride = 1;
  expected_weights.o_proj =
      WeightView(codes.data(), WeightFormat::int8, rows, cols, expected_scales);
  mla_scales scales;
  mla_scales_init(&scales, sizeof scales);
  scales.data = scale_values.data();
  scales.block_cols = cols;
  scales.stride = 1;
  c_weights_[6] = {"o_proj", "int8", codes.data(), rows, cols, 0, &scales};

  OwnedAttention attention;
  ASSERT_TRUE(ok(create(attention)));
  const auto context = new_context();
  const RowMajorMatrix x = random_matrix(5, config_.hidden_size, random_);
  RowMajorMatrix out(5, config_.hidden_size), expected_out(5, config_.hidden_size);
  const auto cache = made<OwnedCache>(&mla_cache_new, attention.get(), "int8");
  const mla_sequence sequence = {cache.get(), 5};
  ASSERT_TRUE(ok(mla_attention_forward(attention.get(), context.get(), &sequence, 1, x.data(),
                                       out.data(), nullptr)));
  const MultiheadLatentAttention expected(config_, expected_weights);
  LatentCache expected_cache(config_, CacheFormat::int8);
  Context alone;
  expected.forward(x, expected_cache, expected_out, alone);
  EXPECT_TRUE(same_bits(out, expected_out));

  scales.format = "f64";
  EXPECT_TRUE(refused(create(attention), MLA_INVALID_ARGUMENT, "scales of format f64"));
  scales.format = "f32";
  scales.block_cols = 0;
  EXPECT_TRUE(refused(create(attention), MLA_INVALID_ARGUMENT, "tensor o_proj has scales"));
  c_weights_[6].scales = nullptr;
  EXPECT_TRUE(refused(create(attention), MLA_INVALID_ARGUMENT, "needs scales"));
}

TEST_F(CApiOwnAttention, CachesTruncateSaveAndRestore) {
  OwnedAttention attention;
  ASSERT_TRUE(ok(create(attention)));
  const TemporaryDirectory directory;
  const std::string path = (directory / "cache").string();
  const auto context = new_context();
  const Index width = config_.hidden_size;
  const RowMajorMatrix x = random_matrix(8, width, random_);
  RowMajorMatrix first(8, width), second(8, width);
  const auto cache = made<OwnedCache>(&mla_cache_new, attention.get(), "bf16");
  const auto copy = made<OwnedCache>(&mla_cache_new, attention.get(), "bf16");
  ASSERT_TRUE(ok(mla_cache_reserve(cache.get(), 100)));
  const auto forward = [&](const OwnedCache& with, RowMajorMatrix& out) {
    const mla_sequence sequence = {with.get(), 8};
    return mla_attention_forward(attention.get(), context.get(), &sequence, 1, x.data(), out.data(),
                                 nullptr);
  };
  ASSERT_TRUE(ok(forward(cache, first)));
  ASSERT_TRUE(ok(mla_cache_truncate(cache.get(), 3)));
  ASSERT_TRUE(ok(mla_cache_save(cache.get(), path.c_str(), nullptr)));
  ASSERT_TRUE(ok(mla_cache_restore(copy.get(), path.c_str(), nullptr)));
  ASSERT_TRUE(ok(forward(cache, first)));
  ASSERT_TRUE(ok(forward(copy, second)));
  EXPECT_TRUE(same_bits(first, second));
  EXPECT_EQ(mla_cache_size(copy.get()), 11);
  EXPECT_TRUE(refused(mla_cache_truncate(copy.get(), 12), MLA_INVALID_ARGUMENT, "12"));
  EXPECT_TRUE(refused(mla_cache_reserve(copy.get(), -1), MLA_INVALID_ARGUMENT, "-1"));
  EXPECT_TRUE(
      refused(mla_cache_restore(copy.get(), path.c_str(), "x"), MLA_RUNTIME_ERROR, "label"));
  EXPECT_EQ(mla_cache_size(copy.get()), 11);
}

TEST_F(CApiOwnAttention, NamesTheWeightThatDoesNotFit) {
  const auto refuses = [&](auto change, std::string_view message) {
    const auto config = c_config_;
    const auto weights = c_weights_;
    change();
    OwnedAttention attention;
    EXPECT_TRUE(refused(create(attention), MLA_INVALID_ARGUMENT, message));
    EXPECT_EQ(attention, nullptr);
    c_config_ = config;
    c_weights_ = weights;
  };
  refuses([&] { c_weights_.pop_back(), c_weights_[6].name = "p_proj"; },
          "there is no tensor p_proj");
  refuses([&] { c_weights_[0].name = "o_proj"; }, "tensor o_proj is given twice");
  refuses([&] { c_weights_[0].format = "f8"; }, "tensor q_a_proj has format f8");
  refuses([&] { c_weights_[0].format = nullptr; }, "the format of a weight is NULL");
  refuses([&] { c_weights_[0].name = nullptr; }, "the name of a weight is NULL");
  refuses([&] { c_weights_[0].data = nullptr; }, "the data of tensor q_a_proj is NULL");
  refuses([&] { c_weights_[0].rows += 1; }, "tensor q_a_proj must have shape");
  refuses([&] { c_weights_[0].stride = 1; }, "tensor q_a_proj has a stride of 1");
  refuses([&] { c_weights_[0].stride = -5; }, "tensor q_a_proj has a stride of -5");
  refuses([&] { c_weights_.erase(c_weights_.begin()); }, "tensor q_a_proj is missing");
  refuses([&] { c_config_.qk_rope_head_dim = 3; }, "qk_rope_head_dim must be even, got 3");
  refuses([&] { c_config_.num_attention_heads = INT64_MAX; }, "num_attention_heads");
  refuses([&] { c_config_.rope_scaling_type = "llama3"; }, "got llama3");
  mla_attention* none = nullptr;
  EXPECT_TRUE(refused(mla_attention_new(nullptr, nullptr, 0, &none), MLA_INVALID_ARGUMENT, "NULL"));
}

TEST_F(CApiOwnAttention, RefusesACallThatDoesNotFitAndLeavesTheCaches) {
  OwnedAttention attention;
  ASSERT_TRUE(ok(create(attention)));
  const auto context = new_context();
  const auto cache = made<OwnedCache>(&mla_cache_new, attention.get(), "f32");
  std::vector<float> x(static_cast<std::size_t>(2 * config_.hidden_size)), out(x.size());
  const mla_sequence sequence = {cache.get(), 2};
  const mla_sequence twice[] = {sequence, sequence};
  mla_attention_options options;
  mla_attention_options_init(&options, sizeof options);
  const auto refuses = [&](mla_status status, mla_status expected, std::string_view message) {
    EXPECT_TRUE(refused(status, expected, message));
    EXPECT_EQ(mla_cache_size(cache.get()), 0);
  };
  const auto forward = [&](const mla_sequence* sequences, std::size_t count, const float* in) {
    return mla_attention_forward(attention.get(), context.get(), sequences, count, in, out.data(),
                                 &options);
  };
  refuses(forward(twice, 2, x.data()), MLA_BUSY, "the cache is in use");
  refuses(forward(&sequence, 1, nullptr), MLA_INVALID_ARGUMENT, "x is NULL");
  const mla_sequence endless = {cache.get(), SIZE_MAX};
  refuses(forward(&endless, 1, x.data()), MLA_INVALID_ARGUMENT, "cannot have");
  options.x_stride = 5;
  refuses(forward(&sequence, 1, x.data()), MLA_INVALID_ARGUMENT, "x_stride must be 0 or at least");
  options.x_stride = 0;
  const std::int64_t positions[] = {5, 4};
  options.position_ids = positions;
  refuses(forward(&sequence, 1, x.data()), MLA_INVALID_ARGUMENT, "position_ids must rise");
  options.position_ids = nullptr;
  options.mode = -1;
  refuses(forward(&sequence, 1, x.data()), MLA_INVALID_ARGUMENT, "mode is -1");
  options.mode = MLA_FORM_AUTOMATIC;
  EXPECT_TRUE(ok(forward(&sequence, 1, x.data())));

  const auto other = made<OwnedAttention>(&mla_attention_load, kModel.c_str(), std::int64_t{0});
  const auto other_cache = made<OwnedCache>(&mla_cache_new, other.get(), "f32");
  const mla_sequence foreign = {other_cache.get(), 2};
  EXPECT_EQ(forward(&foreign, 1, x.data()), MLA_INVALID_ARGUMENT);
}

// ---------------------------------------------------------------------------------------- handles

TEST(CApiHandles, OfAnotherKindAreRefused) {
  const auto model = load_model();
  const auto state = new_state(model);
  mla_model_info info;
  info.size = sizeof info;
  const auto* const wrong = reinterpret_cast<const mla_model*>(state.get());
  EXPECT_TRUE(refused(mla_model_get_info(wrong, &info), MLA_INVALID_ARGUMENT,
                      "the handle of the model is of another kind or was destroyed"));
  EXPECT_TRUE(
      refused(mla_model_get_info(nullptr, &info), MLA_INVALID_ARGUMENT, "the model is NULL"));
  EXPECT_EQ(mla_state_size(reinterpret_cast<mla_state*>(model.get())), 0);
  EXPECT_EQ(mla_context_isa(reinterpret_cast<mla_context*>(model.get())), nullptr);
  mla_state_destroy(reinterpret_cast<mla_state*>(model.get()));  // not what it is: stays
  EXPECT_TRUE(ok(mla_model_get_info(model.get(), &info)));
}

TEST(CApiHandles, MayBeNullInEveryFunction) {
  std::size_t count = 0;
  std::int32_t id = 0;
  char text[4];
  mla_sampler* sampler = nullptr;
  const mla_status statuses[] = {
      mla_context_new(nullptr, nullptr),
      mla_model_load(nullptr, nullptr),
      mla_model_get_info(nullptr, nullptr),
      mla_model_eos_token_ids(nullptr, nullptr, 0, nullptr),
      mla_state_new(nullptr, nullptr, nullptr),
      mla_state_reserve(nullptr, 1),
      mla_state_truncate(nullptr, 0),
      mla_state_fork(nullptr, 0, nullptr),
      mla_state_evict(nullptr, nullptr, 0),
      mla_state_save(nullptr, nullptr, nullptr),
      mla_state_restore(nullptr, nullptr, nullptr),
      mla_forward(nullptr, nullptr, nullptr, 0, nullptr, 0),
      mla_sampler_new(5, nullptr, nullptr),
      mla_sampler_new(0, nullptr, &sampler),
      mla_sampler_next(nullptr, nullptr, 0, nullptr, 0, &id),
      mla_cancel_flag_new(nullptr),
      mla_generate(nullptr, nullptr, nullptr, 0, nullptr),
      mla_tokenizer_load(nullptr, nullptr),
      mla_tokenizer_encode(nullptr, nullptr, 0, 0, nullptr, 0, &count),
      mla_tokenizer_decode(nullptr, nullptr, 0, 0, text, 4, &count),
      mla_tokenizer_token_id(nullptr, nullptr, nullptr),
      mla_text_stream_new(nullptr, 1, nullptr),
      mla_text_stream_push(nullptr, 1, text, 4, &count),
      mla_text_stream_finish(nullptr, text, 4, &count),
      mla_attention_new(nullptr, nullptr, 0, nullptr),
      mla_attention_load(nullptr, 0, nullptr),
      mla_attention_get_config(nullptr, nullptr),
      mla_cache_new(nullptr, nullptr, nullptr),
      mla_cache_reserve(nullptr, 0),
      mla_cache_truncate(nullptr, 0),
      mla_cache_save(nullptr, nullptr, nullptr),
      mla_cache_restore(nullptr, nullptr, nullptr),
      mla_attention_forward(nullptr, nullptr, nullptr, 0, nullptr, nullptr, nullptr)};
  for (const mla_status status : statuses)
    EXPECT_EQ(status, MLA_INVALID_ARGUMENT) << &status - statuses;
  mla_context_destroy(nullptr);
  mla_model_destroy(nullptr);
  mla_state_destroy(nullptr);
  mla_sampler_destroy(nullptr);
  mla_cancel_flag_destroy(nullptr);
  mla_tokenizer_destroy(nullptr);
  mla_text_stream_destroy(nullptr);
  mla_attention_destroy(nullptr);
  mla_cache_destroy(nullptr);
  mla_cancel_flag_set(nullptr);
  mla_cancel_flag_clear(nullptr);
  EXPECT_EQ(mla_cancel_flag_is_set(nullptr), 0);
  EXPECT_EQ(mla_state_size(nullptr), 0);
  EXPECT_EQ(mla_tokenizer_vocab_size(nullptr), 0);
  EXPECT_EQ(mla_cache_size(nullptr), 0);
  mla_context_options_init(nullptr, 8);
  mla_sampler_options_init(nullptr, 8);
}

TEST(CApiHandles, KeepWhatTheyWereMadeFrom) {
  auto model = load_model();
  auto tokenizer = load_tokenizer();
  const auto state = new_state(model, "bf16");
  model.reset();
  EXPECT_TRUE(ok(mla_state_reserve(state.get(), 10)));
  EXPECT_TRUE(ok(mla_state_truncate(state.get(), 0)));
  auto attention = made<OwnedAttention>(&mla_attention_load, kModel.c_str(), std::int64_t{0});
  const auto cache = made<OwnedCache>(&mla_cache_new, attention.get(), "f32");
  attention.reset();
  EXPECT_TRUE(ok(mla_cache_reserve(cache.get(), 10)));
}

TEST(CApiErrors, AreOfTheThreadThatCalled) {
  EXPECT_EQ(mla_model_load(nullptr, nullptr), MLA_INVALID_ARGUMENT);
  const std::string here = mla_last_error();
  std::string there;
  std::thread([&] {
    there = mla_last_error();
    mla_state_truncate(nullptr, 0);
  }).join();
  EXPECT_EQ(there, "");
  EXPECT_EQ(mla_last_error(), here);
  const std::string endless(5000, 'x');
  mla_model* model = nullptr;
  EXPECT_EQ(mla_model_load(endless.c_str(), &model), MLA_RUNTIME_ERROR);
  EXPECT_LT(std::strlen(mla_last_error()), 1024U);
  for (int status = 0; status <= MLA_INTERNAL_ERROR; ++status)
    EXPECT_STRNE(mla_status_text(status), "no such status");
  EXPECT_STREQ(mla_status_text(77), "no such status");
}

}  // namespace
}  // namespace mla::test
