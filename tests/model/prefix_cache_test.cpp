#include "mla/model/prefix_cache.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "mla/attention/cache_bytes.hpp"
#include "mla/model/decoder_snapshot.hpp"
#include "mla/model/generate.hpp"
#include "mla/model/sampler.hpp"
#include "model/trained_decoder.hpp"
#include "support/compare.hpp"
#include "support/full_disk.hpp"
#include "support/random.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

constexpr std::size_t kPlenty = std::size_t{1} << 30;

std::vector<CacheContents> contents_of_state(const DecoderState& state) {
  std::vector<CacheContents> all;
  for (Index layer = 0; layer < state.layers(); ++layer) all.emplace_back(state.layer(layer));
  if (state.prediction()) all.emplace_back(*state.prediction());
  return all;
}

// A state of tokens with all rows of multi-token prediction that they have.
DecoderState computed(std::span<const TokenId> tokens, CacheFormat format = CacheFormat::float32) {
  const DecoderModel& model = trained_model();
  DecoderState state(model.config(), format);
  Context context;
  RowMajorMatrix hidden(std::ssize(tokens), model.hidden_size()), none(0, model.vocab_size());
  if (tokens.empty()) return state;
  model.forward_hidden(tokens, state, hidden, context, {.mode = AttentionForm::absorbed});
  model.prediction()->forward(hidden.topRows(hidden.rows() - 1), tokens.subspan(1), 0,
                              *state.prediction(), none, context, AttentionForm::absorbed);
  return state;
}

std::vector<TokenId> some_text(Index tokens, Random& random) {
  std::vector<TokenId> text;
  for (Index i = 0; i < tokens; ++i)
    text.push_back(static_cast<TokenId>(random.integer(0, trained_model().vocab_size() - 1)));
  return text;
}

TEST(PrefixCache, WhatItGivesContinuesAsIfComputedFromTheStart) {
  Random random(1);
  for (const CacheFormat format : {CacheFormat::float32, CacheFormat::bfloat16}) {
    PrefixCache cache(trained_model().config(), format, kPlenty);
    const std::vector<TokenId> first = some_text(200, random);
    std::vector<TokenId> second = first;  // another text from token 100 on
    for (std::size_t i = 100; i < second.size(); ++i) second[i] ^= 1;
    EXPECT_EQ(cache.longest(first).size(), 0);
    cache.insert(first, computed(first, format));
    EXPECT_EQ(cache.match(second), 100);
    cache.insert(second, computed(second, format));
    EXPECT_EQ(cache.tokens(), 64 * 5);
    for (const auto& text : {first, second})
      for (const std::size_t size : {1U, 2U, 64U, 65U, 128U, 129U, 180U, 192U, 193U, 200U}) {
        const std::span<const TokenId> wanted = std::span(text).first(size);
        const Index expected = std::min<Index>(192, static_cast<Index>(size) - 1);
        ASSERT_EQ(cache.match(wanted), expected);
        DecoderState state = cache.longest(wanted);
        DecoderState fresh = computed(wanted.first(static_cast<std::size_t>(expected)), format);
        ASSERT_EQ(contents_of_state(state), contents_of_state(fresh)) << size;
        const auto rest = wanted.subspan(static_cast<std::size_t>(expected));
        EXPECT_TRUE(
            same_bits(trained_model().forward(rest, state), trained_model().forward(rest, fresh)));
        EXPECT_EQ(contents_of_state(state), contents_of_state(fresh)) << size;
      }
  }
}

// Written texts with drafts, which fill the cache of multi-token prediction on their way.
TEST(PrefixCache, TextsThatWereWrittenCanBeStored) {
  Random random(2);
  const auto prompt = some_text(100, random);
  PrefixCache cache(trained_model().config(), CacheFormat::float32, kPlenty);
  Context context;
  Sampler sampler(trained_model().vocab_size(), {.temperature = 0.0});
  std::vector<TokenId> text = prompt;
  DecoderState state(trained_model().config());
  generate(
      trained_model(), state, prompt, sampler, context,
      {.max_tokens = 100, .stop_at_eos = false, .speculative = true, .on_token = [&](TokenId t) {
         text.push_back(t);
         return true;
       }});
  cache.insert(std::span(text).first(static_cast<std::size_t>(state.size())), state);
  EXPECT_EQ(cache.match(text), 192);
  const DecoderState stored = cache.longest(text);
  EXPECT_EQ(contents_of_state(stored), contents_of_state(state.fork(192)));
  ASSERT_GT(stored.prediction()->size(), 180);
}

TEST(PrefixCache, NothingIsCopiedAndNothingCountsTwice) {
  Random random(3);
  const auto text = some_text(192, random);
  const DecoderState state = computed(text);
  PrefixCache cache(trained_model().config(), CacheFormat::float32, kPlenty);
  cache.insert(text, state);
  const DecoderState found = cache.longest(text);
  for (Index i = 0; i < found.size(); ++i) ASSERT_EQ(found.layer(1).row(i), state.layer(1).row(i));
  const DecoderState* const both[] = {&state, &found};
  EXPECT_EQ(bytes_used(both), state.bytes_used());
  const std::size_t before = cache.bytes();
  cache.insert(text, state);
  cache.insert(std::span(text).first(130), state);
  EXPECT_EQ(cache.bytes(), before);
  EXPECT_EQ(cache.tokens(), 192);
}

TEST(PrefixCache, SaltsDoNotSeeEachOther) {
  Random random(4);
  const auto text = some_text(130, random);
  PrefixCache cache(trained_model().config(), CacheFormat::float32, kPlenty);
  cache.insert(text, computed(text), "one tenant");
  EXPECT_EQ(cache.match(text), 0);
  EXPECT_EQ(cache.match(text, "another"), 0);
  EXPECT_EQ(cache.match(text, "one tenant"), 128);
  EXPECT_EQ(cache.longest(text).size(), 0);
  cache.clear();
  EXPECT_EQ(cache.match(text, "one tenant"), 0);
  EXPECT_EQ(cache.bytes(), 0u);
}

// Against a list of all texts with the order in which their blocks were used. Only token ids matter
// here, so all texts share one state.
TEST(PrefixCache, ForgetsTheEndsOfTextsThatWereUsedLeastRecently) {
  Random random(5);
  std::vector<TokenId> zeros(256);
  const DecoderState state = computed(zeros);
  PrefixCache one(trained_model().config(), CacheFormat::float32, kPlenty);
  one.insert(std::span(zeros).first(128), state);
  const std::size_t block = one.bytes() - [&] {
    PrefixCache single(trained_model().config(), CacheFormat::float32, kPlenty);
    single.insert(std::span(zeros).first(64), state);
    return single.bytes();
  }();
  const std::size_t budget = 10 * block;
  PrefixCache cache(trained_model().config(), CacheFormat::float32, budget);
  std::map<std::vector<TokenId>, int> used;  // by the tokens up to a block's end
  int now = 0;
  const auto prefix = [](const std::vector<TokenId>& text, std::size_t blocks) {
    return std::vector<TokenId>(text.begin(), text.begin() + static_cast<long>(64 * blocks));
  };
  for (int step = 0; step < 400; ++step) {
    std::vector<TokenId> text;
    for (int b = 0; b < random.integer(1, 4); ++b)
      text.insert(text.end(), 64, static_cast<TokenId>(random.integer(0, 2)));
    text.push_back(5);
    ++now;
    std::size_t known = 0;
    while (known < text.size() / 64 && used.contains(prefix(text, known + 1))) ++known;
    ASSERT_EQ(cache.match(text), static_cast<Index>(64 * known)) << step;
    for (std::size_t b = 1; b <= known; ++b) used[prefix(text, b)] = now;
    if (random.chance(0.5)) {
      EXPECT_EQ(cache.longest(text).size(), static_cast<Index>(64 * known));
    } else {
      // The state is longer than needed and of other tokens; nobody looks.
      std::vector<TokenId> stored(text.begin(), text.end() - 1);
      cache.insert(stored, state);
      for (std::size_t b = known + 1; b <= stored.size() / 64; ++b) used[prefix(text, b)] = now;
      while (used.size() > 10 || cache.tokens() < 64 * std::ssize(used)) {
        // The oldest, and of one text its last block.
        const auto oldest = std::ranges::min_element(used, [](const auto& a, const auto& b) {
          return std::pair(a.second, -std::ssize(a.first)) <
                 std::pair(b.second, -std::ssize(b.first));
        });
        used.erase(oldest);
      }
    }
    ASSERT_LE(cache.bytes(), budget);
    ASSERT_EQ(cache.tokens(), 64 * std::ssize(used)) << step;
    for (const auto& [tokens, when] : used) {
      std::vector<TokenId> longer = tokens;
      longer.push_back(7);
      ASSERT_EQ(cache.match(longer), std::ssize(tokens)) << step;
    }
  }
}

TEST(PrefixCache, ATextThatIsTooLongIsStoredInPart) {
  Random random(6);
  const auto text = some_text(256, random);
  const DecoderState state = computed(text);
  PrefixCache all(trained_model().config(), CacheFormat::float32, kPlenty);
  all.insert(text, state);
  PrefixCache cache(trained_model().config(), CacheFormat::float32, all.bytes() * 3 / 4);
  const auto other = some_text(70, random);
  cache.insert(other, computed(other));
  cache.insert(text, state);
  EXPECT_GE(cache.match(text), 64);
  EXPECT_LT(cache.match(text), 250);
  EXPECT_LE(cache.bytes(), cache.budget());
}

TEST(PrefixCache, StatesThatDoNotFitAreRefusedByName) {
  Random random(7);
  const auto text = some_text(130, random);
  const ModelConfig& config = trained_model().config();
  PrefixCache cache(config, CacheFormat::float32, kPlenty);
  DecoderState state = computed(text);
  const auto refused = [&](const DecoderState& bad, std::initializer_list<const char*> parts) {
    const auto result = refuses([&] { cache.insert(text, bad); }, parts);
    EXPECT_EQ(cache.bytes(), 0u);
    return result;
  };
  EXPECT_TRUE(refused(computed(text, CacheFormat::bfloat16), {"bf16", "f32"}));
  EXPECT_TRUE(refused(state.fork(129), {"129", "130"}));
  ModelConfig deeper = config;
  ++deeper.num_hidden_layers;
  EXPECT_TRUE(refused(DecoderState(deeper), {"another model", "5 layers", "has 4"}));
  ModelConfig without = config;
  without.num_nextn_predict_layers = 0;
  DecoderState no_prediction(without);
  trained_model().forward(text, no_prediction);
  EXPECT_TRUE(refused(no_prediction, {"no cache of multi-token prediction"}));
  DecoderState shifted = state.fork(130);
  shifted.shift(7, 3);
  EXPECT_TRUE(refused(shifted, {"layer 0", "shifted"}));
  DecoderState evicted = computed(some_text(140, random));
  const Index rows[] = {3};
  evicted.evict(rows);
  EXPECT_TRUE(refused(evicted, {"layer 0", "evicted"}));
  EXPECT_TRUE(refuses([&] { PrefixCache(config, CacheFormat::float32, 1000); },
                      {"1000 bytes", "64 tokens"}));
}

TEST(PrefixCache, ThreadsShareIt) {
  Random random(8);
  std::vector<std::vector<TokenId>> texts;
  std::vector<DecoderState> states;
  for (int i = 0; i < 4; ++i) {
    texts.push_back(some_text(200, random));
    states.push_back(computed(texts.back()));
  }
  PrefixCache whole(trained_model().config(), CacheFormat::float32, kPlenty);
  whole.insert(texts[0], states[0]);
  PrefixCache cache(trained_model().config(), CacheFormat::float32, 2 * whole.bytes());
  std::vector<std::thread> threads;
  for (std::size_t thread = 0; thread < 4; ++thread)
    threads.emplace_back([&, thread] {
      Random own(thread);
      for (int i = 0; i < 200; ++i) {
        const auto text = static_cast<std::size_t>(own.integer(0, 3));
        if (own.chance(0.5)) {
          cache.insert(texts[text], states[text]);
        } else {
          const DecoderState found = cache.longest(texts[text]);
          const CacheContents expected(states[text].layer(2).fork(found.size()));
          if (CacheContents(found.layer(2)) != expected) ADD_FAILURE() << i;
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(cache.bytes(), cache.budget());
}

// Pages of forks are in the file once, and are shared again.
TEST(ForkSnapshots, SharedPagesAreWrittenOnceAndSharedAgain) {
  Random random(9);
  const TemporaryDirectory directory;
  const ModelConfig& config = trained_model().config();
  for (const CacheFormat format : {CacheFormat::float32, CacheFormat::bfloat16}) {
    std::vector<DecoderState> states;
    states.push_back(computed(some_text(180, random), format));
    for (const Index at : {180, 150, 128, 0}) states.push_back(states[0].fork(at));
    const auto next = some_text(30, random);
    trained_model().forward(next, states[1]);
    Context context;
    RowMajorMatrix none(0, trained_model().vocab_size());
    for (const TokenId& token : next) {
      const TextStep step = {&states[2], {&token, 1}, 0, AttentionForm::absorbed, {4, 140}};
      trained_model().forward(std::span(&step, 1), none, context);
    }
    std::vector<const DecoderState*> all;
    for (const DecoderState& state : states) all.push_back(&state);
    const auto path = directory / "states";
    save_snapshots(path, config, all);
    const std::size_t bytes = bytes_used(all);
    EXPECT_GT(std::filesystem::file_size(path), bytes);
    EXPECT_LT(std::filesystem::file_size(path), bytes + bytes / 4 + 40'000);

    auto restored = restore_snapshots(path, config, format);
    ASSERT_EQ(restored.size(), states.size());
    std::vector<const DecoderState*> again;
    for (const DecoderState& state : restored) again.push_back(&state);
    EXPECT_EQ(bytes_used(again), bytes);
    for (std::size_t s = 0; s < states.size(); ++s) {
      EXPECT_EQ(contents_of_state(restored[s]), contents_of_state(states[s])) << s;
      EXPECT_TRUE(same_bits(trained_model().forward(next, restored[s]),
                            trained_model().forward(next, states[s])));
    }
    EXPECT_TRUE(refuses([&] { restore_snapshot(path, config, states[0]); }, {"5 states"}));
    save_snapshot(path, config, states[2]);
    DecoderState one(config, format);
    restore_snapshot(path, config, one);
    EXPECT_EQ(contents_of_state(one), contents_of_state(states[2]));
    EXPECT_EQ(restore_snapshots(path, config, format).size(), 1u);
    EXPECT_TRUE(refuses([&] { save_snapshots(path, config, {}); }, {"no state"}));
  }
}

}  // namespace
}  // namespace mla::test
