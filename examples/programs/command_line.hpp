#ifndef MLA_EXAMPLES_PROGRAMS_COMMAND_LINE_HPP_
#define MLA_EXAMPLES_PROGRAMS_COMMAND_LINE_HPP_

#include <algorithm>
#include <charconv>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"

namespace mla::programs {

/// All of `text` as a number of type T, from `least` on. Throws std::invalid_argument, with `what`
/// in the message.
template <class T>
T parse_number(std::string_view text, std::string_view what,
               T least = std::numeric_limits<T>::lowest()) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool valid = error == std::errc() && end == text.data() + text.size() && !(value < least);
  if (text.size() > 40) text = text.substr(0, 40);  // enough to find it by
  require(error != std::errc::result_out_of_range, what, " is out of range: ", text);
  const char* kind = std::is_integral_v<T> ? "whole number" : "number";
  if (least > std::numeric_limits<T>::lowest() || std::is_unsigned_v<T>)
    require(valid, what, " must be a ", kind, " from ", least, " on, got \"", text, "\"");
  require(valid, what, " must be a ", kind, ", got \"", text, "\"");
  return value;
}

/// The arguments of a program: `--option value` or `--option=value`, flags, and the rest in order.
/// After `--` all are rest.
class CommandLine {
 public:
  /// `options` take a value, `flags` do not. Throws std::invalid_argument for an option that is not
  /// known, is given twice, or lacks its value.
  CommandLine(std::span<const std::string> words, std::span<const std::string_view> options,
              std::span<const std::string_view> flags) {
    for (std::size_t i = 0; i < words.size(); ++i) {
      const std::string& word = words[i];
      if (word == "--") {
        rest_.insert(rest_.end(), words.begin() + static_cast<std::ptrdiff_t>(i) + 1, words.end());
        return;
      }
      if (word.size() < 2 || word[0] != '-') {
        rest_.push_back(word);
        continue;
      }
      const std::size_t equals = word.find('=');
      const std::string name = word.substr(0, equals);
      if (std::ranges::find(flags, name) != flags.end()) {
        require(equals == word.npos, name, " takes no value");
        add(name, "");
        continue;
      }
      require(std::ranges::find(options, name) != options.end(), "unknown option ", name);
      require(equals != word.npos || i + 1 < words.size(), name, " needs a value");
      add(name, equals != word.npos ? word.substr(equals + 1) : words[++i]);
    }
  }

  const std::vector<std::string>& rest() const noexcept { return rest_; }

  bool has(std::string_view name) const { return values_.contains(name); }

  std::optional<std::string> text(std::string_view name) const {
    const auto found = values_.find(name);
    return found == values_.end() ? std::nullopt : std::optional(found->second);
  }

  /// The number after option `name`, from `least` on; `otherwise` where it is not given.
  template <class T>
  T number(std::string_view name, T otherwise, T least = std::numeric_limits<T>::lowest()) const {
    const auto found = values_.find(name);
    return found == values_.end() ? otherwise : parse_number<T>(found->second, name, least);
  }

 private:
  void add(const std::string& name, std::string value) {
    require(values_.emplace(name, std::move(value)).second, name, " is given twice");
  }

  std::map<std::string, std::string, std::less<>> values_;
  std::vector<std::string> rest_;
};

/// The arguments of a program without options, at most so many of them.
inline std::vector<std::string> plain_arguments(std::span<const std::string> words,
                                                std::size_t most) {
  std::vector<std::string> rest = CommandLine(words, {}, {}).rest();
  require(rest.size() <= most, "at most ", most, most == 1 ? " argument is" : " arguments are",
          " taken, got ", rest.size());
  return rest;
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_COMMAND_LINE_HPP_
