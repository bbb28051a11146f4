#include "mla/text/byte_pair_encoder.hpp"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "mla/core/tensor.hpp"
#include "support/random.hpp"

namespace mla {
namespace {

using Ids = std::vector<std::int32_t>;
using Merges = std::vector<BytePairEncoder::Merge>;

constexpr std::array<std::int32_t, 256> identity() {
  std::array<std::int32_t, 256> tokens{};
  for (std::size_t byte = 0; byte < 256; ++byte) tokens[byte] = static_cast<std::int32_t>(byte);
  return tokens;
}

Ids encode(const Merges& merges, const std::string& word) {
  BytePairEncoder::Memory memory;
  Ids ids;
  BytePairEncoder(identity(), merges).encode(word, memory, ids);
  return ids;
}

// The definition: search all neighbours for the earliest merge, do the leftmost, and again.
Ids encode_slowly(const Merges& merges, const std::string& word) {
  Ids ids;
  for (const char byte : word) ids.push_back(static_cast<std::uint8_t>(byte));
  for (;;) {
    const auto find = [&]() -> std::optional<std::pair<std::size_t, std::size_t>> {
      for (std::size_t m = 0; m < merges.size(); ++m)
        for (std::size_t i = 0; i + 1 < ids.size(); ++i)
          if (ids[i] == merges[m].left && ids[i + 1] == merges[m].right) return {{m, i}};
      return std::nullopt;
    };
    const auto found = find();
    if (!found) return ids;
    const auto [m, i] = *found;
    ids[i] = merges[m].merged;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(i) + 1);
  }
}

TEST(BytePairEncoder, MergesTheEarliestFirstAndTheLeftmostOfThose) {
  const Merges merges = {{'b', 'c', 256}, {'a', 'b', 257}, {'a', 256, 258}, {'x', 'x', 259}};
  EXPECT_EQ(encode(merges, "abc"), Ids{258});
  EXPECT_EQ(encode(merges, "abab"), (Ids{257, 257}));
  EXPECT_EQ(encode(merges, "xxxxx"), (Ids{259, 259, 'x'}));
  EXPECT_EQ(encode(merges, ""), Ids{});
  EXPECT_EQ(encode(merges, "z\xff"), (Ids{'z', 255}));
  EXPECT_EQ(encode({}, "ab"), (Ids{'a', 'b'}));
}

// As in Hugging Face's tokenizers, whose table the later one overwrites.
TEST(BytePairEncoder, OfTheSameMergeTwiceTheLastCounts) {
  EXPECT_EQ(encode({{'a', 'b', 256}, {'b', 'c', 257}, {'a', 'b', 256}}, "abc"), (Ids{'a', 257}));
}

TEST(BytePairEncoder, EqualsTheDefinitionOnRandomMergesAndWords) {
  test::Random random(3);
  for (int repeat = 0; repeat < 300; ++repeat) {
    const Index letters = random.integer(1, 4);
    Merges merges;
    for (std::int32_t next = 256; next < 256 + 40; ++next) {
      const auto token = [&] {
        const Index known = letters + std::ssize(merges);
        const Index i = random.integer(0, known - 1);
        return static_cast<std::int32_t>(i < letters ? 'a' + i : 256 + i - letters);
      };
      const std::int32_t left = token(), right = token();
      bool known = false;
      for (const auto& merge : merges) known |= merge.left == left && merge.right == right;
      if (known) break;
      merges.push_back({left, right, next});
    }
    for (int w = 0; w < 20; ++w) {
      std::string word;
      for (Index i = random.integer(0, 60); i > 0; --i)
        word += static_cast<char>('a' + random.integer(0, letters - 1));
      EXPECT_EQ(encode(merges, word), encode_slowly(merges, word)) << word;
    }
  }
}

// 2^20 bytes that all become one token. Quadratic would be 10^12 steps; 1000 times less is plenty
// for any machine and sanitizer.
TEST(BytePairEncoder, LongWordsAreNotQuadratic) {
  Merges merges = {{'a', 'a', 256}};
  for (std::int32_t i = 1; i < 20; ++i) merges.push_back({255 + i, 255 + i, 256 + i});
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(encode(merges, std::string(1 << 20, 'a')), Ids{275});
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

}  // namespace
}  // namespace mla
