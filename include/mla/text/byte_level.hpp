#ifndef MLA_TEXT_BYTE_LEVEL_HPP_
#define MLA_TEXT_BYTE_LEVEL_HPP_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "mla/text/utf8.hpp"

// Byte-level vocabularies write every byte as a visible character (openai/gpt-2, encoder.py,
// bytes_to_unicode): printable Latin-1 as itself, the others as U+0100, U+0101, ... in order. A
// space is U+0120, a newline U+010A.

namespace mla {

namespace detail {

constexpr bool is_visible_latin1(int byte) noexcept {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
}

constexpr std::array<char16_t, 256> byte_level_characters() noexcept {
  std::array<char16_t, 256> characters{};
  char16_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte)
    characters[static_cast<std::size_t>(byte)] =
        is_visible_latin1(byte) ? static_cast<char16_t>(byte) : next++;
  return characters;
}

inline constexpr std::array<char16_t, 256> kByteLevelCharacters = byte_level_characters();

}  // namespace detail

/// The text that stands for `bytes` in a vocabulary.
inline std::string byte_level_text(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) {
    const char16_t c = detail::kByteLevelCharacters[static_cast<std::uint8_t>(byte)];
    if (c < 0x80) {
      text += static_cast<char>(c);
    } else {  // all of them are below U+0800
      text += static_cast<char>(0xc0 | (c >> 6));
      text += static_cast<char>(0x80 | (c & 0x3f));
    }
  }
  return text;
}

/// The bytes that `text` stands for; none when one of its characters stands for no byte.
inline std::optional<std::string> byte_level_bytes(std::string_view text) {
  static constexpr auto kBytes = [] {  // of each character; -1: stands for none
    std::array<std::int16_t, 0x144> bytes{};
    bytes.fill(-1);
    for (std::size_t byte = 0; byte < 256; ++byte)
      bytes[detail::kByteLevelCharacters[byte]] = static_cast<std::int16_t>(byte);
    return bytes;
  }();
  std::string bytes;
  while (!text.empty()) {
    const Utf8Unit unit = first_utf8_unit(text);
    if (unit.kind != Utf8Unit::Kind::character || unit.bytes > 2) return std::nullopt;
    const auto byte = [text](std::size_t i) -> std::size_t {
      return static_cast<std::uint8_t>(text[i]);
    };
    const std::size_t c = unit.bytes == 1 ? byte(0) : (byte(0) & 0x1f) << 6 | (byte(1) & 0x3f);
    if (c >= kBytes.size() || kBytes[c] < 0) return std::nullopt;
    bytes += static_cast<char>(kBytes[c]);
    text.remove_prefix(unit.bytes);
  }
  return bytes;
}

}  // namespace mla

#endif  // MLA_TEXT_BYTE_LEVEL_HPP_
