#ifndef MLA_SUPPORT_CHECKED_CACHE_HPP_
#define MLA_SUPPORT_CHECKED_CACHE_HPP_

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "mla/attention/latent_cache.hpp"
#include "support/random.hpp"
#include "support/test_configs.hpp"

namespace mla::test {

inline constexpr Index kWidth = 46;  // of a row of small_config()

// A token as a cache should have it.
struct Token {
  Index position;  // where it counts as being
  Index rotated;   // what its keys were rotated for
  std::vector<float> row;
  std::vector<float> index_key;

  bool operator==(const Token&) const = default;
};

// A cache and what it should hold.
struct Checked {
  LatentCache cache;
  std::vector<Token> tokens;

  Index size() const { return std::ssize(tokens); }

  void append(Index count, Index gap, Random& random) {
    const Index next = tokens.empty() ? 0 : tokens.back().position + 1;
    const Index offset = tokens.empty() ? 0 : tokens.back().position - tokens.back().rotated;
    RowMajorMatrix rows = random_matrix(count, kWidth, random), keys;
    const PagedRows* index_keys = cache.index_keys();
    if (index_keys) keys = random_matrix(count, index_keys->layout().width(), random);
    std::vector<Index> positions;
    for (Index t = 0; t < count; ++t) {
      positions.push_back(next + gap + t);
      Token token = {positions.back(),
                     positions.back() - offset,
                     {rows.row(t).begin(), rows.row(t).end()},
                     {}};
      if (index_keys) token.index_key = {keys.row(t).begin(), keys.row(t).end()};
      tokens.push_back(std::move(token));
    }
    cache.append({rows.data(), count, kWidth}, positions, simd::kernels(),
                 index_keys ? MatrixView<const float>(keys.data(), count, keys.cols())
                            : MatrixView<const float>());
  }
  Checked fork(Index count) const {
    return {cache.fork(count), {tokens.begin(), tokens.begin() + count}};
  }
  void evict(const std::vector<Index>& rows) {
    cache.evict(rows);
    for (auto row = rows.rbegin(); row != rows.rend(); ++row) tokens.erase(tokens.begin() + *row);
  }
  void shift(Index first, Index delta) {
    cache.shift(first, delta);
    for (Index i = first; i < size(); ++i) tokens[static_cast<std::size_t>(i)].position += delta;
  }

  std::vector<Token> held() const {
    std::vector<Token> held;
    const auto floats = [](const std::byte* bytes, Index width) {
      std::vector<float> numbers(static_cast<std::size_t>(width));
      std::memcpy(numbers.data(), bytes, numbers.size() * sizeof(float));
      return numbers;
    };
    for (const CacheSegment& segment : cache.segments())
      for (Index i = segment.first; i < segment.end(); ++i) {
        Token token = {cache.position(i),
                       cache.position(i) - segment.offset,
                       floats(cache.row(i), kWidth),
                       {}};
        if (const PagedRows* keys = cache.index_keys())
          token.index_key =
              floats(keys->row(segment.slot + i - segment.first), keys->layout().width());
        held.push_back(std::move(token));
      }
    return held;
  }
  void check(const std::string& what) const {
    ASSERT_EQ(cache.size(), size()) << what;
    ASSERT_TRUE(held() == tokens) << what;
    ASSERT_EQ(cache.next_position(), tokens.empty() ? 0 : tokens.back().position + 1) << what;
    ASSERT_LE(cache.segments().size(), CacheSegments::kMost) << what;
    for (std::size_t s = 0; s < cache.segments().size(); ++s)
      ASSERT_EQ((cache.segments()[s].slot - cache.segments()[s].place) % PagedRows::kPageRows, 0);
  }
};

inline Checked text_of(Index tokens, std::uint64_t seed = 1) {
  Random random(seed);
  Checked text = {LatentCache(small_config()), {}};
  text.append(tokens, 0, random);
  return text;
}

}  // namespace mla::test

#endif  // MLA_SUPPORT_CHECKED_CACHE_HPP_
