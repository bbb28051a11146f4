#include "mla/io/crc32.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "support/random.hpp"

namespace mla {
namespace {

std::uint32_t crc32_of(std::string_view text) {
  Crc32 crc;
  crc.add(std::as_bytes(std::span(text)));
  return crc.value();
}

TEST(Crc32, IsThatOfZlib) {
  EXPECT_EQ(crc32_of(""), 0u);
  EXPECT_EQ(crc32_of("123456789"), 0xcbf43926u);  // the check value of the algorithm's catalogue
  EXPECT_EQ(crc32_of("The quick brown fox jumps over the lazy dog"), 0x414fa339u);
}

TEST(Crc32, IsTheSameInAnyParts) {
  test::Random random(1);
  std::string text;
  for (int i = 0; i < 100; ++i) text += static_cast<char>(random.bits());
  for (std::size_t first = 0; first <= 20; ++first)
    for (std::size_t second = 0; second <= 20; ++second) {
      Crc32 crc;
      const auto bytes = std::as_bytes(std::span(text));
      crc.add(bytes.first(first));
      crc.add(bytes.subspan(first, second));
      crc.add(bytes.subspan(first + second));
      EXPECT_EQ(crc.value(), crc32_of(text));
    }
}

}  // namespace
}  // namespace mla
