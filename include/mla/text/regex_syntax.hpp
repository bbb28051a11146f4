#ifndef MLA_TEXT_REGEX_SYNTAX_HPP_
#define MLA_TEXT_REGEX_SYNTAX_HPP_

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "mla/core/error.hpp"

// The regular expressions of tokenizer.json are written for Oniguruma (Ruby syntax), which Hugging
// Face's tokenizers use; here PCRE2 matches them. What both read alike is passed on, what has
// another spelling is translated, and what means something else is refused:
//   \s, \S     U+180E is white space for PCRE2 but not for Unicode: written out as ranges
//   \d, \D     \p{Nd}, \P{Nd}
//   \uHHHH     \x{HHHH}
//   ^, $       of lines in both, given PCRE2_MULTILINE and newline = LF
//   {n,m}      {n,m}+ is possessive in PCRE2 only, {n}? lazy in PCRE2 only, {,m}: refused
//   \w, \b, \h, \v, \xHH, back references, [a[b]], [[:alpha:]], [a&&b], (?m), (?<name>: refused
//   \p{...}    general categories, and the scripts below: \p{sc:Han}, since \p{Han} has other
//              characters too in PCRE2 from 10.40 on (Script_Extensions); other properties: refused

namespace mla {

namespace detail {

/// Translates one expression; errors are std::runtime_error beginning with `where`.
class RegexTranslation {
 public:
  RegexTranslation(std::string_view pattern, const std::string& where)
      : pattern_(pattern), where_(where) {}

  std::string translated() {
    while (!at_end()) {
      if (peek() == '\\')
        escape(false);
      else if (peek() == '[')
        character_class();
      else if (peek() == '(')
        group();
      else if (peek() == '{')
        interval();
      else
        copy(1);
    }
    return std::move(out_);
  }

 private:
  // White_Space=yes of Unicode (PropList.txt), and all others. In a class a hyphen after them is
  // itself, since they end with a range.
  static constexpr std::string_view kSpaces =
      R"(\x20\x{85}\x{a0}\x{1680}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{2000}-\x{200a}\t-\r)";
  static constexpr std::string_view kNoSpaces =
      R"(\x00-\x08\x0e-\x1f\x21-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff})"
      R"(\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";
  static constexpr std::string_view kCategories[] = {
      "C",  "Cc", "Cf", "Cn", "Co", "Cs", "L",  "Ll", "Lm", "Lo", "Lt", "Lu", "M",
      "Mc", "Me", "Mn", "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Pe", "Pf", "Pi",
      "Po", "Ps", "S",  "Sc", "Sk", "Sm", "So", "Z",  "Zl", "Zp", "Zs"};
  static constexpr std::string_view kScripts[] = {"Bopomofo", "Han", "Hangul", "Hiragana",
                                                  "Katakana"};
  static constexpr std::string_view kGroups[] = {"(?:", "(?i:", "(?=", "(?!",
                                                 "(?>", "(?<=", "(?<!"};

  bool at_end() const noexcept { return at_ >= pattern_.size(); }
  char peek(std::size_t ahead = 0) const noexcept {
    return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0';
  }
  bool looking_at(std::string_view text) const noexcept {
    return pattern_.substr(at_).starts_with(text);
  }
  void copy(std::size_t characters) {
    out_ += pattern_.substr(at_, characters);
    at_ += characters;
  }
  void replace(std::size_t characters, std::string_view by) {
    out_ += by;
    at_ += characters;
  }
  [[noreturn]] void refuse(std::string_view what) const {
    throw_runtime(where_, ": ", what, " at byte ", at_, " of the regular expression ", pattern_,
                  " is not supported");
  }

  // Only those whose first characters are told apart by neither engine's options.
  void group() {
    if (looking_at("(*")) refuse("(*");
    if (!looking_at("(?")) return copy(1);
    for (const std::string_view known : kGroups)
      if (looking_at(known)) return copy(known.size());
    refuse(pattern_.substr(at_, 3));
  }

  void interval() {
    const auto digits_end = [&](std::size_t ahead) {
      while (is_digit(peek(ahead))) ++ahead;
      return ahead;
    };
    const std::size_t first_end = digits_end(1);
    const bool has_comma = peek(first_end) == ',';
    const std::size_t end = has_comma ? digits_end(first_end + 1) : first_end;
    if (peek(end) != '}' || first_end == 1) {
      if (peek(1) == ',') refuse("{,");
      return replace(1, "\\{");  // no interval: a brace
    }
    copy(end + 1);
    if (peek() == '+') refuse("a possessive interval");
    if (peek() == '?' && !has_comma) refuse("a lazy {n}");
  }

  void character_class() {
    copy(1);
    if (peek() == '^') copy(1);
    if (peek() == ']') refuse("an empty class");
    bool hyphen = false;  // one that may stand between the ends of a range
    for (bool first = true; peek() != ']'; first = false) {
      if (at_end()) refuse("a class without end");
      if (peek() == '[') refuse("a class within a class");
      if (looking_at("&&")) refuse("&&");
      const bool range = std::exchange(hyphen, !first && peek() == '-');
      if (peek() != '\\') {
        copy(1);
        continue;
      }
      if (range && std::string_view("dDsSpP").find(peek(1)) != std::string_view::npos)
        refuse("a range up to a class");
      escape(true);
    }
    copy(1);
  }

  void escape(bool in_class) {
    const char c = peek(1);
    if (c == 't' || c == 'n' || c == 'r' || c == 'f') return copy(2);
    if (c == 'd') return replace(2, "\\p{Nd}");
    if (c == 'D') return replace(2, "\\P{Nd}");
    if (c == 's' || c == 'S') return space(c == 's', in_class);
    if (c == 'p' || c == 'P') return property();
    if (c == 'x' && peek(2) == '{') return copy(code_point_end(3, '}') + 1);
    if (c == 'u') {
      if (code_point_end(2, '\0') < 6) refuse("\\u without four digits");
      replace(6, "\\x{" + std::string(pattern_.substr(at_ + 2, 4)) + "}");
      return;
    }
    if (at_ + 1 == pattern_.size() || is_digit(c) || is_letter(c)) refuse(pattern_.substr(at_, 2));
    copy(2);  // punctuation, or the first byte of a character: itself
  }

  void space(bool positive, bool in_class) {
    const std::string_view members = positive ? kSpaces : kNoSpaces;
    if (in_class) return replace(2, members);
    replace(2, "[" + std::string(members) + "]");
  }

  void property() {
    const std::size_t close = pattern_.find('}', at_);
    const std::string_view name =
        peek(2) == '{' && close != pattern_.npos ? pattern_.substr(at_ + 3, close - at_ - 3) : "";
    if (std::ranges::count(kScripts, name) > 0) {
      const std::string script = "sc:" + std::string(name);
      copy(3);
      return replace(name.size() + 1, script + "}");
    }
    if (std::ranges::count(kCategories, name) == 0)
      refuse(pattern_.substr(at_, name.empty() ? 3 : name.size() + 4));
    copy(name.size() + 4);
  }

  /// Where the hexadecimal digits end that begin `ahead` from here, at most four without `close`.
  std::size_t code_point_end(std::size_t ahead, char close) const {
    const std::size_t begin = ahead;
    while ((close != '\0' || ahead < begin + 4) && is_hexadecimal(peek(ahead))) ++ahead;
    if (close != '\0' && (peek(ahead) != close || ahead == begin)) refuse("\\x{");
    return ahead;
  }

  static constexpr bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }
  static constexpr bool is_letter(char c) noexcept {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  }
  static constexpr bool is_hexadecimal(char c) noexcept {
    return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
  }

  std::string_view pattern_;
  const std::string& where_;
  std::size_t at_ = 0;
  std::string out_;
};

}  // namespace detail

/// `pattern` of a tokenizer.json as PCRE2 reads it with PCRE2_UTF, PCRE2_MULTILINE and
/// PCRE2_NEWLINE_LF. Throws std::runtime_error beginning with `where` when it has a part that is
/// not supported; whether it compiles is not checked.
inline std::string regex_for_pcre2(std::string_view pattern, const std::string& where) {
  return detail::RegexTranslation(pattern, where).translated();
}

}  // namespace mla

#endif  // MLA_TEXT_REGEX_SYNTAX_HPP_
