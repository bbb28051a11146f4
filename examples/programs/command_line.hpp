#ifndef MLA_EXAMPLES_PROGRAMS_COMMAND_LINE_HPP_
#define MLA_EXAMPLES_PROGRAMS_COMMAND_LINE_HPP_

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"

namespace mla::programs {

/// All of `text` as a number of type T. Throws std::invalid_argument, with `what` in the message.
template <class T>
T parse_number(std::string_view text, std::string_view what) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(error != std::errc::result_out_of_range, what, " is out of range: ", text);
  require(error == std::errc() && end == text.data() + text.size(), what,
          " must be a number, got \"", text, "\"");
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

  /// The number after option `name`, `otherwise` where it is not given.
  template <class T>
  T number(std::string_view name, T otherwise) const {
    const auto found = values_.find(name);
    return found == values_.end() ? otherwise : parse_number<T>(found->second, name);
  }

 private:
  void add(const std::string& name, std::string value) {
    require(values_.emplace(name, std::move(value)).second, name, " is given twice");
  }

  std::map<std::string, std::string, std::less<>> values_;
  std::vector<std::string> rest_;
};

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_COMMAND_LINE_HPP_
