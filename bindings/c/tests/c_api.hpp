#ifndef MLA_BINDINGS_C_TESTS_C_API_HPP_
#define MLA_BINDINGS_C_TESTS_C_API_HPP_

#include <gtest/gtest.h>
#include <mla.h>

#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "mla/core/token.hpp"
#include "model/trained_decoder.hpp"

// What the tests of libmla.so share: handles that destroy themselves, and what a status says.

namespace mla::test {

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

inline testing::AssertionResult ok(mla_status status) {
  if (status == MLA_OK) return testing::AssertionSuccess();
  return testing::AssertionFailure() << mla_status_text(status) << ": " << mla_last_error();
}

inline testing::AssertionResult refused(mla_status status, mla_status expected,
                                        std::string_view message) {
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

inline OwnedContext new_context() { return made<OwnedContext>(&mla_context_new, nullptr); }
inline OwnedModel load_model() { return made<OwnedModel>(&mla_model_load, kModel.c_str()); }
inline OwnedState new_state(const OwnedModel& model, const char* format = "f32") {
  return made<OwnedState>(&mla_state_new, model.get(), format);
}
inline OwnedTokenizer load_tokenizer() {
  return made<OwnedTokenizer>(&mla_tokenizer_load, kModel.c_str());
}

inline Tokens golden(const char* name) {
  static const Goldens goldens(kModel);
  const auto values = goldens.integers(name);
  return {values.begin(), values.end()};
}

inline mla_text_step step_of(const OwnedState& state, const Tokens& tokens, std::size_t wanted) {
  return {state.get(), tokens.data(), tokens.size(), wanted};
}

}  // namespace mla::test

#endif  // MLA_BINDINGS_C_TESTS_C_API_HPP_
