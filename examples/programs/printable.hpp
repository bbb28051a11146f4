#ifndef MLA_EXAMPLES_PROGRAMS_PRINTABLE_HPP_
#define MLA_EXAMPLES_PROGRAMS_PRINTABLE_HPP_

#include <cstddef>
#include <string>
#include <string_view>

#include "mla/text/utf8.hpp"

namespace mla::programs {

/// `text` as one line that gives a terminal no commands, whatever a path or a file has in it:
/// line breaks and tabs become spaces; other control characters (C0, DEL, C1) and bytes that are
/// not UTF-8 are written as \x1b.
inline std::string printable(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string line;
  while (!text.empty()) {
    const Utf8Unit unit = first_utf8_unit(text);
    const std::string_view bytes = text.substr(0, unit.bytes);
    const bool c0 = bytes[0] >= '\0' && bytes[0] < ' ';
    const bool c1 = bytes.size() == 2 && bytes[0] == '\xc2' && bytes[1] < '\xa0';
    if (bytes == "\n" || bytes == "\r" || bytes == "\t") {
      line += ' ';
    } else if (unit.kind == Utf8Unit::Kind::character && !c0 && !c1 && bytes != "\x7f") {
      line += bytes;
    } else {
      for (const char byte : bytes) {
        const auto value = static_cast<unsigned char>(byte);
        line += {'\\', 'x', kDigits[value >> 4], kDigits[value & 15]};
      }
    }
    text.remove_prefix(unit.bytes);
  }
  return line;
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_PRINTABLE_HPP_
