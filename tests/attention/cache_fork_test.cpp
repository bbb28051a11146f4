// Forks, evicted rows and shifted positions of a cache, against plain lists of what it should hold.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "mla/attention/cache_bytes.hpp"
#include "mla/attention/latent_cache.hpp"
#include "support/checked_cache.hpp"
#include "support/compare.hpp"
#include "support/random.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

std::vector<Index> some_rows(Index size, Random& random) {
  std::vector<Index> rows;
  if (random.chance(0.5)) {  // neighbours
    const Index first = random.integer(0, size - 1), end = random.integer(first, size);
    for (Index row = first; row < end; ++row) rows.push_back(row);
  } else {
    const double part = random.one_of({0.01, 0.1, 0.9});
    for (Index row = 0; row < size; ++row)
      if (random.chance(part)) rows.push_back(row);
  }
  return rows;
}

// A shift that leaves positions rising.
std::pair<Index, Index> some_shift(const Checked& text, Random& random) {
  const Index first = random.integer(0, text.size() - 1);
  const auto& tokens = text.tokens;
  const Index before = first == 0 ? -1 : tokens[static_cast<std::size_t>(first) - 1].position;
  const Index room = tokens[static_cast<std::size_t>(first)].position - before - 1;
  return {first, random.integer(-room, 20)};
}

std::size_t bytes_of_distinct_rows(const std::vector<Checked>& texts) {
  std::set<const std::byte*> rows, keys;
  Index bytes = 0;
  for (const Checked& text : texts)
    for (const CacheSegment& segment : text.cache.segments())
      for (Index slot = segment.slot; slot < segment.slot + segment.rows; ++slot) {
        if (rows.insert(text.cache.rows().row(slot)).second) bytes += text.cache.layout().bytes;
        if (const PagedRows* list = text.cache.index_keys())
          if (keys.insert(list->row(slot)).second) bytes += list->layout().bytes;
      }
  return static_cast<std::size_t>(bytes);
}

std::size_t bytes_together(const std::vector<Checked>& texts) {
  std::vector<const LatentCache*> caches;
  for (const Checked& text : texts) caches.push_back(&text.cache);
  return bytes_used(caches);
}

void run_random_texts(const IndexKeyFormat& index_keys, std::uint64_t seed) {
  Random random(seed);
  std::vector<Checked> texts;
  texts.push_back({LatentCache(small_config(), CacheFormat::float32, index_keys), {}});
  for (int step = 0; step < 600; ++step) {
    Checked& text = texts[static_cast<std::size_t>(random.integer(0, std::ssize(texts) - 1))];
    std::string what = "seed " + std::to_string(seed) + " step " + std::to_string(step) + ": ";
    switch (random.integer(0, 6)) {
      case 0:
      case 1:
        what += "append";
        text.append(random.one_of<Index>({1, 2, 63, 64, 65, 150}), random.one_of<Index>({0, 0, 7}),
                    random);
        break;
      case 2:
        what += "fork";
        texts.push_back(text.fork(random.integer(0, text.size())));
        break;
      case 3: {
        what += "truncate";
        const Index size = random.integer(text.size() / 2, text.size());
        text.cache.truncate(size);
        text.tokens.resize(static_cast<std::size_t>(size));
        break;
      }
      case 4:
        what += "evict";
        if (text.size() > 0) text.evict(some_rows(text.size(), random));
        break;
      case 5:
        what += "shift";
        if (text.size() > 0 && text.cache.segments().size() < CacheSegments::kMost &&
            index_keys.width == 0) {
          const auto [first, delta] = some_shift(text, random);
          text.shift(first, delta);
        }
        break;
      default:
        what += "give back memory";
        text.cache.shrink_to_fit();
    }
    if (texts.size() > 5) texts.erase(texts.begin() + random.integer(0, 5));
    for (const Checked& each : texts) ASSERT_NO_FATAL_FAILURE(each.check(what));
    ASSERT_EQ(bytes_together(texts), bytes_of_distinct_rows(texts)) << what;
  }
}

TEST(CacheFork, RandomTextsHoldWhatTheyShould) {
  for (std::uint64_t seed = 1; seed <= 6; ++seed) run_random_texts({}, seed);
}

TEST(CacheFork, IndexKeysAreForkedAndEvictedWithTheirRows) {
  for (std::uint64_t seed = 11; seed <= 13; ++seed)
    run_random_texts({.width = 5, .format = CacheFormat::float32}, seed);
}

TEST(CacheFork, SharesAllPagesUntilOneIsWrittenTo) {
  for (const Index tokens : {1, 63, 64, 65, 200}) {
    Checked text = text_of(tokens);
    Checked fork = text.fork(tokens);
    for (Index i = 0; i < tokens; ++i) ASSERT_EQ(fork.cache.row(i), text.cache.row(i));
    Random random(2);
    fork.append(1, 0, random);
    text.append(2, 3, random);
    for (Index i = 0; i < tokens; ++i)
      ASSERT_EQ(fork.cache.row(i) == text.cache.row(i), i < tokens / 64 * 64) << tokens;
    fork.check("fork");
    text.check("text");
  }
}

// The last one that has a page writes to it where it is.
TEST(CacheFork, APageThatNobodyElseHasAnyMoreIsNotCopied) {
  Checked text = text_of(70);
  { const Checked fork = text.fork(70); }
  const std::byte* row = text.cache.row(69);
  Random random(3);
  text.append(1, 0, random);
  EXPECT_EQ(text.cache.row(69), row);
}

TEST(CacheFork, ThreadsForkTheSameTextAndGoOn) {
  const Checked text = text_of(1000);
  std::vector<Checked> results;
  for (std::size_t i = 0; i < 4; ++i) results.push_back({LatentCache(small_config()), {}});
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < results.size(); ++i)
    threads.emplace_back([&, i] {
      Random random(i);
      for (int round = 0; round < 20; ++round) {
        Checked fork = text.fork(random.integer(900, 1000));
        fork.append(random.integer(1, 100), 0, random);
        results[i] = fork.fork(random.integer(1, fork.size()));
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const Checked& result : results) result.check("a thread's");
  text.check("the shared one");
}

TEST(CacheFork, BadCallsAreRefusedByNameAndChangeNothing) {
  Checked text = text_of(100);
  text.evict({50});
  text.shift(60, 5);
  Random random(5);
  const auto list = [&](std::vector<Index> rows) {
    return [&text, rows] { text.cache.evict(rows); };
  };
  EXPECT_TRUE(refuses([&] { text.cache.fork(100); }, {"fork", "99", "100"}));
  EXPECT_TRUE(refuses([&] { text.cache.fork(-1); }, {"fork", "99", "-1"}));
  EXPECT_TRUE(refuses(list({3, 99}), {"evict", "99", "99 tokens"}));
  EXPECT_TRUE(refuses(list({-1, 3}), {"evict", "-1"}));
  EXPECT_TRUE(refuses(list({4, 3}), {"rise", "3", "4"}));
  EXPECT_TRUE(refuses(list({4, 4}), {"rise", "4"}));
  EXPECT_TRUE(refuses([&] { text.cache.evict(90, 10); }, {"90", "100", "99"}));
  EXPECT_TRUE(refuses([&] { text.cache.shift(99, 1); }, {"shift", "99"}));
  EXPECT_TRUE(refuses([&] { text.cache.shift(0, -1); }, {"-1", "row 0"}));
  EXPECT_TRUE(refuses([&] { text.cache.shift(10, -1); }, {"row 10", "position 9", "row 9"}));
  EXPECT_TRUE(refuses([&] { text.cache.shift(10, kMaxPosition); }, {"2^40"}));
  EXPECT_TRUE(refuses([&] { text.cache.shift(10, kMaxPosition + 1); }, {"shift", "1099511627777"}));
  EXPECT_TRUE(refuses([&] { text.cache.close_up(10, 5, 6); }, {"row 15", "position 9"}));
  AttentionConfig other = small_config();
  other.kv_lora_rank = 35;
  EXPECT_TRUE(refuses([&] { text.cache.rebase(other); }, {"another configuration"}));
  text.check("after all that");

  for (Index row = 10; text.cache.segments().size() < CacheSegments::kMost; row += 10)
    text.shift(row, 100);
  EXPECT_TRUE(refuses([&] { text.cache.shift(95, 1); }, {"8 segments", "rebase"}));
  EXPECT_TRUE(refuses([&] { text.cache.close_up(5, 1, 1); }, {"8 segments", "rebase"}));
  text.check("after too many segments");

  LatentCache keys(small_config(), CacheFormat::float32, {.width = 4});
  const RowMajorMatrix rows = random_matrix(9, kWidth, random), more = random_matrix(9, 4, random);
  keys.append({rows.data(), 9, kWidth}, consecutive(0, 9), simd::kernels(), {more.data(), 9, 4});
  EXPECT_TRUE(refuses([&] { keys.shift(3, 1); }, {"index keys"}));
  EXPECT_TRUE(refuses([&] { keys.slide({.keep = 1, .rows = 2}, 9); }, {"index keys"}));
}

}  // namespace
}  // namespace mla::test
