// libmla.so: versions, and what computes.

#include <gtest/gtest.h>
#include <mla.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>

#include "c_api.hpp"
#include "mla/version.hpp"
#include "support/compare.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

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

}  // namespace
}  // namespace mla::test
