#include "programs/printable.hpp"

#include <gtest/gtest.h>

#include <string>

namespace mla::programs {
namespace {

TEST(Printable, TextStaysAsItIs) {
  const std::string text =
      "what \"you\" \\x1b will: \xc3\xa9 \xe2\x82\xac \xf0\x9f\x99\x82 \xc2\xa0~";
  EXPECT_EQ(printable(text), text);
  EXPECT_EQ(printable(""), "");
}

TEST(Printable, ALineStaysOneLine) { EXPECT_EQ(printable("a\nb\r\nc\td"), "a b  c d"); }

// C0, DEL and C1, which begins commands as ESC [ does.
TEST(Printable, ControlCharactersAreWrittenInHexadecimal) {
  EXPECT_EQ(printable(std::string("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(printable("\x1b[31m\x7f\x1f"), "\\x1b[31m\\x7f\\x1f");
  EXPECT_EQ(printable("\xc2\x80 \xc2\x9b\x33 \xc2\x9f"), "\\xc2\\x80 \\xc2\\x9b3 \\xc2\\x9f");
}

TEST(Printable, BytesThatAreNotUTF8AreWrittenInHexadecimal) {
  EXPECT_EQ(printable("\x9b\xff"), "\\x9b\\xff");
  EXPECT_EQ(printable("a\xe2\x82"), "a\\xe2\\x82");  // cut short
  EXPECT_EQ(printable("\xe2\x82z"), "\\xe2\\x82z");
  EXPECT_EQ(printable("\xc0\x9b"), "\\xc0\\x9b");  // overlong
}

}  // namespace
}  // namespace mla::programs
