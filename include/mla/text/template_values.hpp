#ifndef MLA_TEXT_TEMPLATE_VALUES_HPP_
#define MLA_TEXT_TEMPLATE_VALUES_HPP_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "mla/core/error.hpp"
#include "mla/text/template_expression.hpp"
#include "mla/text/utf8.hpp"

// Values of templates as Python has them: text, truth, comparison, JSON, methods and filters.

namespace mla::detail {

inline TemplateValue undefined_value() {
  return TemplateValue(nlohmann::detail::value_t::discarded);
}
inline bool is_undefined(const TemplateValue& value) noexcept { return value.is_discarded(); }

inline bool is_true(const TemplateValue& value) {
  if (is_undefined(value) || value.is_null()) return false;
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value.get<double>() != 0.0;
  if (value.is_string()) return !value.get_ref<const std::string&>().empty();
  return !value.empty();
}

/// str() of a value that a template prints. Lists and objects are refused: Python prints them in a
/// way of its own.
inline std::string printed(const TemplateValue& value, int line) {
  if (is_undefined(value)) return "";
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number()) return value.dump();
  fail_template(line, "a list or an object is printed, which is not supported; tojson is");
}

/// json.dumps(value, ensure_ascii=False), as transformers' tojson has it.
inline void write_json(const TemplateValue& value, int indent, int depth, std::string& out) {
  const auto line_break = [&](int level) {
    if (indent < 0) return;
    out += '\n';
    out.append(static_cast<std::size_t>(indent) * static_cast<std::size_t>(level), ' ');
  };
  const auto separate = [&](bool& first) {
    if (!std::exchange(first, false)) out += indent < 0 ? ", " : ",";
    line_break(depth + 1);
  };
  bool first = true;
  if (value.is_array() && !value.empty()) {
    out += '[';
    for (const TemplateValue& element : value) {
      separate(first);
      write_json(element, indent, depth + 1, out);
    }
    line_break(depth);
    out += ']';
  } else if (value.is_object() && !value.empty()) {
    out += '{';
    for (const auto& [key, element] : value.items()) {
      separate(first);
      out += TemplateValue(key).dump() + ": ";
      write_json(element, indent, depth + 1, out);
    }
    line_break(depth);
    out += '}';
  } else {
    out += value.dump();
  }
}

inline constexpr std::string_view kPythonSpace = " \t\n\r\f\v";

inline std::string stripped(std::string_view text, bool left, bool right,
                            std::string_view characters = kPythonSpace) {
  if (left) text.remove_prefix(std::min(text.size(), text.find_first_not_of(characters)));
  if (right) text = text.substr(0, text.find_last_not_of(characters) + 1);
  return std::string(text);
}

/// ASCII letters only: others are refused, since Python would change them too.
inline std::string with_case(std::string text, bool upper, int line) {
  for (char& c : text) {
    if (static_cast<signed char>(c) < 0)
      fail_template(line, "upper or lower case of a text beyond ASCII is not supported");
    if (upper && c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
    if (!upper && c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

inline std::string replaced(std::string text, const std::string& from, const std::string& to,
                            int line) {
  if (from.empty()) fail_template(line, "replace of an empty text is not supported");
  for (std::size_t at = 0; (at = text.find(from, at)) != text.npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

/// Code points, as len() counts.
inline std::int64_t length_of(const TemplateValue& value, int line) {
  if (value.is_string()) {
    std::string_view text = value.get_ref<const std::string&>();
    std::int64_t count = 0;
    for (; !text.empty(); ++count) text.remove_prefix(first_utf8_unit(text).bytes);
    return count;
  }
  if (!value.is_array() && !value.is_object()) fail_template(line, "this value has no length");
  return static_cast<std::int64_t>(value.size());
}

/// A list of the characters of a text.
inline TemplateValue characters_of(std::string_view text) {
  TemplateValue list = TemplateValue::array();
  while (!text.empty()) {
    const std::size_t bytes = first_utf8_unit(text).bytes;
    list.push_back(std::string(text.substr(0, bytes)));
    text.remove_prefix(bytes);
  }
  return list;
}

inline TemplateValue split_text(const std::string& text, const TemplateValue& separator,
                                std::int64_t most, int line) {
  TemplateValue parts = TemplateValue::array();
  if (separator.is_null()) {  // at white space of any length
    for (std::size_t at = 0; (at = text.find_first_not_of(kPythonSpace, at)) != text.npos;) {
      const std::size_t end = std::min(text.size(), text.find_first_of(kPythonSpace, at));
      parts.push_back(text.substr(at, end - at));
      at = end;
    }
    return parts;
  }
  const auto& mark = separator.get_ref<const std::string&>();
  if (mark.empty()) fail_template(line, "split at an empty text");
  std::size_t at = 0;
  for (std::size_t found; most != 0 && (found = text.find(mark, at)) != text.npos; --most) {
    parts.push_back(text.substr(at, found - at));
    at = found + mark.size();
  }
  parts.push_back(text.substr(at));
  return parts;
}

inline const std::string& text_argument(std::span<const TemplateValue> arguments, std::size_t i,
                                        std::string_view what, int line) {
  if (i >= arguments.size() || !arguments[i].is_string())
    fail_template(line, what, " needs a text as argument ", i + 1);
  return arguments[i].get_ref<const std::string&>();
}

/// object.method(arguments) of texts and objects.
inline TemplateValue call_method(const TemplateValue& object, std::string_view method,
                                 std::span<const TemplateValue> arguments, int line) {
  const auto text = [&](std::size_t i) -> const std::string& {
    return text_argument(arguments, i, method, line);
  };
  if (object.is_string()) {
    const auto& self = object.get_ref<const std::string&>();
    const std::string_view characters = arguments.empty() ? kPythonSpace : "";
    if (method == "strip" || method == "lstrip" || method == "rstrip")
      return stripped(self, method != "rstrip", method != "lstrip",
                      arguments.empty() ? characters : std::string_view(text(0)));
    if (method == "startswith") return self.starts_with(text(0));
    if (method == "endswith") return self.ends_with(text(0));
    if (method == "upper" || method == "lower") return with_case(self, method == "upper", line);
    if (method == "replace") return replaced(self, text(0), text(1), line);
    if (method == "split")
      return split_text(self, arguments.empty() ? TemplateValue() : arguments[0],
                        arguments.size() > 1 ? arguments[1].get<std::int64_t>() : -1, line);
  }
  if (object.is_object()) {
    TemplateValue list = TemplateValue::array();
    if (method == "get") {
      const auto found = object.find(text(0));
      if (found != object.end()) return *found;
      return arguments.size() > 1 ? arguments[1] : TemplateValue();
    }
    for (const auto& [key, value] : object.items()) {
      if (method == "items") list.push_back(TemplateValue::array({key, value}));
      if (method == "keys") list.push_back(key);
      if (method == "values") list.push_back(value);
    }
    if (method == "items" || method == "keys" || method == "values") return list;
  }
  fail_template(line, "the method ", method, " is not supported");
}

/// Names of the filters of apply_filter(): others are refused when a template is read.
inline constexpr std::string_view kTemplateFilters[] = {
    "trim",  "length", "count",  "tojson", "default", "d",     "upper",   "lower", "join",
    "first", "last",   "string", "int",    "list",    "items", "replace", "safe"};

inline TemplateValue join_texts(const TemplateValue& list, const std::string& mark, int line) {
  std::string text;
  for (std::size_t i = 0; i < list.size(); ++i)
    text += (i > 0 ? mark : "") + printed(list[i], line);
  return text;
}

inline TemplateValue apply_filter(const TemplateValue& object, std::string_view filter,
                                  std::span<const TemplateValue> arguments, int line) {
  if (filter == "default" || filter == "d") {
    const bool also_false = arguments.size() > 1 && is_true(arguments[1]);
    const bool missing = is_undefined(object) || (also_false && !is_true(object));
    return !missing ? object : arguments.empty() ? TemplateValue("") : arguments[0];
  }
  if (filter == "string") return printed(object, line);
  if (filter == "tojson") {
    std::string text;
    write_json(object, arguments.empty() || arguments[0].is_null() ? -1 : arguments[0].get<int>(),
               0, text);
    return text;
  }
  if (is_undefined(object)) fail_template(line, "the filter ", filter, " of an undefined value");
  if (filter == "length" || filter == "count") return length_of(object, line);
  if (filter == "safe") return object;
  if (filter == "items") return call_method(object, "items", {}, line);
  if (filter == "list" && object.is_object()) return call_method(object, "keys", {}, line);
  if (filter == "list" && object.is_array()) return object;
  if (filter == "int" && object.is_number()) return static_cast<std::int64_t>(object.get<double>());
  if (object.is_string() || object.is_number()) {
    const std::string text = printed(object, line);
    if (filter == "trim") return stripped(text, true, true);
    if (filter == "upper" || filter == "lower") return with_case(text, filter == "upper", line);
    if (filter == "replace") return call_method(text, "replace", arguments, line);
  }
  if (object.is_array()) {
    if (filter == "join")
      return join_texts(object, arguments.empty() ? "" : text_argument(arguments, 0, filter, line),
                        line);
    if (filter == "first") return object.empty() ? undefined_value() : object.front();
    if (filter == "last") return object.empty() ? undefined_value() : object.back();
  }
  fail_template(line, "the filter ", filter, " of this value is not supported");
}

inline constexpr std::string_view kTemplateTests[] = {
    "defined", "undefined", "none",  "string", "number", "mapping", "iterable",   "sequence",
    "boolean", "true",      "false", "in",     "eq",     "equalto", "divisibleby"};

inline bool passes_test(const TemplateValue& object, std::string_view test,
                        std::span<const TemplateValue> arguments, int line);

/// left in right
inline bool contains_value(const TemplateValue& left, const TemplateValue& right, int line) {
  if (right.is_string() && left.is_string())
    return right.get_ref<const std::string&>().find(left.get_ref<const std::string&>()) !=
           std::string::npos;
  if (right.is_array()) return std::ranges::find(right, left) != right.end();
  if (right.is_object() && left.is_string()) return right.contains(left.get<std::string>());
  if (right.is_object()) return false;
  fail_template(line, "in: this value has nothing in it");
}

inline bool passes_test(const TemplateValue& object, std::string_view test,
                        std::span<const TemplateValue> arguments, int line) {
  if (test == "defined") return !is_undefined(object);
  if (test == "undefined") return is_undefined(object);
  if (test == "none") return object.is_null();
  if (test == "string") return object.is_string();
  if (test == "number") return object.is_number();
  if (test == "mapping") return object.is_object();
  if (test == "iterable" || test == "sequence")
    return object.is_array() || object.is_object() || object.is_string();
  if (test == "boolean") return object.is_boolean();
  if (test == "true") return object.is_boolean() && object.get<bool>();
  if (test == "false") return object.is_boolean() && !object.get<bool>();
  if (arguments.size() != 1) fail_template(line, "the test ", test, " needs one argument");
  if (test == "in") return contains_value(object, arguments[0], line);
  if (test == "eq" || test == "equalto") return object == arguments[0];
  if (!object.is_number_integer() || !arguments[0].is_number_integer() || arguments[0] == 0)
    fail_template(line, "divisibleby is of whole numbers");
  return object.get<std::int64_t>() % arguments[0].get<std::int64_t>() == 0;
}

}  // namespace mla::detail

#endif  // MLA_TEXT_TEMPLATE_VALUES_HPP_
