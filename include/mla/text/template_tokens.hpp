#ifndef MLA_TEXT_TEMPLATE_TOKENS_HPP_
#define MLA_TEXT_TEMPLATE_TOKENS_HPP_

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "mla/core/error.hpp"

// The outer and inner tokens of a Jinja template, read as transformers sets it up: trim_blocks (the
// line break after a block goes), lstrip_blocks (so does the indentation before one), and without
// the last line break of the file.

namespace mla::detail {

/// Where a template is wrong. `line` counts from 1.
template <class... Parts>
[[noreturn]] void fail_template(int line, const Parts&... parts) {
  throw_runtime("chat template, line ", line, ": ", parts...);
}

/// A piece of a template: text as it is, {{ expression }} or {% statement %}.
struct TemplateTag {
  enum class Kind { text, expression, statement } kind;
  std::string text;  ///< without the brackets
  int line;
};

/// Cuts a template into its pieces. Throws std::runtime_error with the line of one without end.
class TemplateTags {
 public:
  explicit TemplateTags(std::string_view source) : rest_(source) {
    if (rest_.ends_with('\n')) rest_.remove_suffix(1);
  }

  std::vector<TemplateTag> read() {
    while (!rest_.empty()) {
      const std::size_t open = next_tag();
      add_text(rest_.substr(0, open), open);
      skip(open);
      if (!rest_.empty()) add_tag();
    }
    return std::move(tags_);
  }

 private:
  static constexpr std::string_view kBlank = " \t", kSpace = " \t\r\n\f\v";

  std::size_t next_tag() const noexcept {
    for (std::size_t at = 0; at + 1 < rest_.size(); ++at)
      if (rest_[at] == '{' &&
          (rest_[at + 1] == '{' || rest_[at + 1] == '%' || rest_[at + 1] == '#'))
        return at;
    return rest_.size();
  }

  // The text before the tag at `open`, without what the tags around it take away.
  void add_text(std::string_view text, std::size_t open) {
    if (strip_after_) text.remove_prefix(std::min(text.size(), text.find_first_not_of(kSpace)));
    if (trim_after_ && text.starts_with('\n')) text.remove_prefix(1);
    const bool at_tag = open < rest_.size();
    const char kind = at_tag ? rest_[open + 1] : '\0';
    const char sign = at_tag && open + 2 < rest_.size() ? rest_[open + 2] : '\0';
    if (at_tag && sign == '-') {
      text = text.substr(0, text.find_last_not_of(kSpace) + 1);
    } else if (at_tag && kind != '{' && sign != '+') {
      const std::size_t end = text.find_last_not_of(kBlank) + 1;
      const bool whole_line = end == 0 ? begins_line_ || strip_after_ : text[end - 1] == '\n';
      if (whole_line) text = text.substr(0, end);
    }
    if (!text.empty()) tags_.push_back({TemplateTag::Kind::text, std::string(text), line_});
  }

  void add_tag() {
    const char kind = rest_[1];
    const std::string_view close = kind == '{' ? "}}" : kind == '%' ? "%}" : "#}";
    const std::size_t end = kind == '#' ? rest_.find(close, 2) : end_of_code(close);
    if (end == rest_.npos) fail_template(line_, rest_.substr(0, 2), " has no end");
    std::string_view inside = rest_.substr(2, end - 2);
    const bool strip = inside.ends_with('-');
    const bool keep = inside.ends_with('+') && kind != '{';
    if (strip || keep) inside.remove_suffix(1);
    if (inside.starts_with('-') || inside.starts_with('+')) inside.remove_prefix(1);
    if (kind != '#')
      tags_.push_back({kind == '{' ? TemplateTag::Kind::expression : TemplateTag::Kind::statement,
                       std::string(inside), line_});
    skip(end + 2);
    strip_after_ = strip;
    trim_after_ = kind != '{' && !keep && !strip;
    begins_line_ = trim_after_ && rest_.starts_with('\n');
  }

  // Strings may have the closing brackets in them, and so may dicts.
  std::size_t end_of_code(std::string_view close) const noexcept {
    char quote = '\0';
    int depth = 0;
    for (std::size_t at = 2; at < rest_.size(); ++at) {
      const char c = rest_[at];
      if (quote != '\0') {
        if (c == '\\') ++at;
        if (c == quote) quote = '\0';
      } else if (c == '"' || c == '\'') {
        quote = c;
      } else if (depth == 0 && rest_.substr(at).starts_with(close)) {
        return at;
      } else if (c == '(' || c == '[' || c == '{') {
        ++depth;
      } else if (c == ')' || c == ']' || c == '}') {
        --depth;
      }
    }
    return rest_.npos;
  }

  void skip(std::size_t bytes) {
    line_ += static_cast<int>(std::ranges::count(rest_.substr(0, bytes), '\n'));
    rest_.remove_prefix(bytes);
  }

  std::string_view rest_;
  int line_ = 1;
  bool strip_after_ = false, trim_after_ = false, begins_line_ = true;
  std::vector<TemplateTag> tags_;
};

/// A token within {{ }} or {% %}.
struct TemplateToken {
  enum class Kind { name, number, string, sign, end } kind;
  std::string text;  ///< of a string: what it stands for
};

/// Throws std::runtime_error for what is no token.
inline std::vector<TemplateToken> template_tokens(std::string_view code, int line) {
  constexpr std::array<std::string_view, 6> kLong = {"**", "//", "==", "!=", "<=", ">="};
  const auto is_name = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c >= '0' && c <= '9');
  };
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  std::vector<TemplateToken> tokens;
  std::size_t at = 0;
  const auto take_while = [&](const auto& wanted) {
    const std::size_t begin = at;
    while (at < code.size() && wanted(code[at])) ++at;
    return std::string(code.substr(begin, at - begin));
  };
  const auto take_string = [&](char quote) {
    std::string text;
    for (++at; at < code.size() && code[at] != quote; ++at) {
      if (code[at] != '\\' || at + 1 == code.size()) {
        text += code[at];
        continue;
      }
      const char c = code[++at];
      if (c == 'n')
        text += '\n';
      else if (c == 't')
        text += '\t';
      else if (c == 'r')
        text += '\r';
      else if (c == '\\' || c == '\'' || c == '"')
        text += c;
      else
        fail_template(line, "the escape \\", std::string(1, c), " is not supported");
    }
    if (at == code.size()) fail_template(line, "a string has no end");
    ++at;
    return text;
  };
  while (at < code.size()) {
    const char c = code[at];
    if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
      ++at;
    } else if (c == '"' || c == '\'') {
      tokens.push_back({TemplateToken::Kind::string, take_string(c)});
    } else if (is_digit(c)) {
      std::string number = take_while(is_digit);
      if (at + 1 < code.size() && code[at] == '.' && is_digit(code[at + 1])) {
        ++at;
        number += "." + take_while(is_digit);
      }
      tokens.push_back({TemplateToken::Kind::number, number});
    } else if (is_name(c)) {
      tokens.push_back({TemplateToken::Kind::name, take_while(is_name)});
    } else {
      std::size_t length = 1;
      for (const std::string_view sign : kLong)
        if (code.substr(at).starts_with(sign)) length = 2;
      constexpr std::string_view kSigns = "+-*/%~|.,:()[]{}<>=!";
      if (kSigns.find(c) == kSigns.npos)
        fail_template(line, "the character ", std::string(1, c), " is not supported");
      tokens.push_back({TemplateToken::Kind::sign, std::string(code.substr(at, length))});
      at += length;
    }
  }
  tokens.push_back({TemplateToken::Kind::end, ""});
  return tokens;
}

}  // namespace mla::detail

#endif  // MLA_TEXT_TEMPLATE_TOKENS_HPP_
