// libmla.so: models and states compute the bits of the library in C++.

#include <gtest/gtest.h>
#include <mla.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "c_api.hpp"
#include "mla/attention/multihead_latent_attention.hpp"
#include "support/compare.hpp"
#include "support/safetensors_writer.hpp"

namespace mla::test {
namespace {

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

}  // namespace
}  // namespace mla::test
