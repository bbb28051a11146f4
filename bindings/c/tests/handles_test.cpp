// libmla.so: whatever handle a caller may pass, and where messages go.

#include <gtest/gtest.h>
#include <mla.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>

#include "c_api.hpp"

namespace mla::test {
namespace {

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
