#include "mla/text/utf8.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/text/byte_level.hpp"
#include "support/random.hpp"

namespace mla {
namespace {

const std::string kReplacement = "\xef\xbf\xbd";

std::string lossy(const std::string& bytes) {
  Utf8Stream stream;
  std::string text = stream.push(bytes);
  return text + stream.finish();
}

TEST(Utf8, AcceptsTheEndsOfEachLength) {
  for (const std::string text :
       {"\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_NO_THROW(require_utf8(text));
    EXPECT_EQ(lossy(text), text);
  }
  EXPECT_NO_THROW(require_utf8(std::string(3, '\0')));
}

TEST(Utf8, NamesTheByteThatIsWrong) {
  const auto offset = [](const std::string& text) -> std::string {
    try {
      require_utf8(text);
    } catch (const std::invalid_argument& error) {
      const std::string what = error.what();
      return what.substr(what.rfind(' ') + 1);
    }
    return "none";
  };
  EXPECT_EQ(offset("ab\x80"), "2");
  EXPECT_EQ(offset("\xc3\xa9\xc3"), "2");             // cut off
  EXPECT_EQ(offset("\xe2\x82"), "0");                 // cut off
  EXPECT_EQ(offset("x\xc0\xaf"), "1");                // overlong
  EXPECT_EQ(offset("\xe0\x9f\xbf"), "0");             // overlong
  EXPECT_EQ(offset("\xf0\x8f\xbf\xbf"), "0");         // overlong
  EXPECT_EQ(offset("0123456789\xed\xa0\x80"), "10");  // surrogate
  EXPECT_EQ(offset("\xf4\x90\x80\x80"), "0");         // U+110000
  EXPECT_EQ(offset("\xf5"), "0");
  EXPECT_EQ(offset("\xff"), "0");
  EXPECT_EQ(offset("fine"), "none");
}

// The examples of the Unicode standard, section 3.9, tables 3-8 to 3-11.
TEST(Utf8, ReplacesMaximalIllFormedParts) {
  const auto r = [](int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += kReplacement;
    return text;
  };
  EXPECT_EQ(lossy("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41"), r(8) + "A");
  EXPECT_EQ(lossy("\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41"), r(8) + "A");
  EXPECT_EQ(lossy("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42"), r(5) + "A" + r(2) + "B");
  EXPECT_EQ(lossy("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41"), r(4) + "A");
}

TEST(Utf8, PortionsDoNotMatter) {
  test::Random random(1);
  for (int repeat = 0; repeat < 2000; ++repeat) {
    std::string bytes;
    for (Index i = random.integer(0, 12); i > 0; --i)
      bytes += random.one_of<std::string>({"a", "\xc3", "\xa9", "\xe2", "\x82", "\xac", "\xf0",
                                           "\x9f", "\x98", "\x82", "\xed", "\xff", "\xf4"});
    Utf8Stream stream;
    std::string text;
    for (std::size_t at = 0; at < bytes.size();) {
      const auto count = static_cast<std::size_t>(random.integer(0, 3));
      const std::string piece = stream.push(bytes.substr(at, count));
      EXPECT_NO_THROW(require_utf8(piece));
      text += piece;
      at += count;
    }
    text += stream.finish();
    EXPECT_EQ(text, lossy(bytes));
    EXPECT_EQ(stream.finish(), "");
  }
}

TEST(Utf8, CharactersArriveWithTheirLastByte) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("\xf0\x9f"), "");
  EXPECT_EQ(stream.push("\x98"), "");
  EXPECT_EQ(stream.push("\x82"), "\xf0\x9f\x98\x82");
  EXPECT_EQ(stream.push("\xe2\x82x"), kReplacement + "x");
  EXPECT_EQ(stream.push("\xe2\x82"), "");
  EXPECT_EQ(stream.finish(), kReplacement);
}

TEST(ByteLevel, WritesEveryByteAsOneCharacterAndReadsItBack) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string one(1, static_cast<char>(byte));
    EXPECT_EQ(byte_level_bytes(byte_level_text(one)), one) << byte;
    all += one;
  }
  EXPECT_NO_THROW(require_utf8(byte_level_text(all)));
  EXPECT_EQ(byte_level_bytes(byte_level_text(all)), all);
}

// From GPT-2's vocabulary.
TEST(ByteLevel, IsTheAlphabetOfGpt2) {
  EXPECT_EQ(byte_level_text(" the\n"), "\u0120the\u010a");
  EXPECT_EQ(byte_level_text(std::string("\0\x1f\x7f\xa0\xad", 5)),
            "\u0100\u011f\u0121\u0142\u0143");
  EXPECT_EQ(byte_level_text("\xc3\xa9"), "\u00c3\u00a9");
}

TEST(ByteLevel, OtherCharactersStandForNoByte) {
  for (const std::string text : {" ", "a b", "\u0144", "\u00ad", "\uff5c", "\U0001f602", "\xc3"})
    EXPECT_EQ(byte_level_bytes(text), std::nullopt) << text;
  EXPECT_EQ(byte_level_bytes(""), "");
}

}  // namespace
}  // namespace mla
