#ifndef MLA_TEXT_UTF8_HPP_
#define MLA_TEXT_UTF8_HPP_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "mla/core/error.hpp"

// UTF-8 as the Unicode standard has it (section 3.9, table 3-7): no surrogates, nothing overlong,
// nothing above U+10FFFF.

namespace mla {

/// What some bytes begin with.
struct Utf8Unit {
  enum class Kind {
    character,
    ill_formed,  ///< the longest part that can begin no character: one U+FFFD
    incomplete,  ///< all there is, and more bytes may complete it
  };
  Kind kind;
  std::size_t bytes;
};

/// The first unit of `text`, which must not be empty.
constexpr Utf8Unit first_utf8_unit(std::string_view text) noexcept {
  using enum Utf8Unit::Kind;
  const auto lead = static_cast<std::uint8_t>(text[0]);
  if (lead < 0x80) return {character, 1};
  if (lead < 0xc2 || lead > 0xf4) return {ill_formed, 1};
  const std::size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // The second byte excludes overlong forms, surrogates and what is beyond U+10FFFF.
  std::uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  std::uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {incomplete, i};
    const auto byte = static_cast<std::uint8_t>(text[i]);
    if (byte < low || byte > high) return {ill_formed, i};
    low = 0x80;
    high = 0xbf;
  }
  return {character, length};
}

inline bool is_utf8(std::string_view text) noexcept {
  while (!text.empty()) {
    const Utf8Unit unit = first_utf8_unit(text);
    if (unit.kind != Utf8Unit::Kind::character) return false;
    text.remove_prefix(unit.bytes);
  }
  return true;
}

/// Throws std::invalid_argument with the offset of the first byte that is not UTF-8.
inline void require_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Unit unit = first_utf8_unit(text.substr(at));
    require(unit.kind == Utf8Unit::Kind::character, "text is not UTF-8 at byte ", at);
    at += unit.bytes;
  }
}

/// Bytes that arrive in any portions, made UTF-8: characters are passed on once they are complete,
/// and each ill-formed part becomes one U+FFFD, as in String::from_utf8_lossy of Rust and
/// bytes.decode(errors="replace") of Python.
class Utf8Stream {
 public:
  /// The characters that `bytes` complete. At most three bytes are held back.
  std::string push(std::string_view bytes) {
    held_ += bytes;
    return take(false);
  }

  /// The end: bytes held back become U+FFFD. The stream is as new afterwards.
  std::string finish() { return take(true); }

 private:
  std::string take(bool at_end) {
    std::string text;
    std::string_view rest = held_;
    while (!rest.empty()) {
      const Utf8Unit unit = first_utf8_unit(rest);
      if (unit.kind == Utf8Unit::Kind::incomplete && !at_end) break;
      text += unit.kind == Utf8Unit::Kind::character ? rest.substr(0, unit.bytes) : "\xef\xbf\xbd";
      rest.remove_prefix(unit.bytes);
    }
    held_.erase(0, held_.size() - rest.size());
    return text;
  }

  std::string held_;
};

}  // namespace mla

#endif  // MLA_TEXT_UTF8_HPP_
