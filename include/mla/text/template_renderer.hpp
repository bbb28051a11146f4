#ifndef MLA_TEXT_TEMPLATE_RENDERER_HPP_
#define MLA_TEXT_TEMPLATE_RENDERER_HPP_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/text/template_statement.hpp"
#include "mla/text/template_values.hpp"

namespace mla::detail {

using TemplateVariables = std::map<std::string, TemplateValue, std::less<>>;

/// Runs a template once.
class TemplateRenderer {
 public:
  explicit TemplateRenderer(TemplateVariables variables) {
    scopes_.push_back(std::move(variables));
  }

  /// Throws std::runtime_error with the line for what a template cannot do with these variables,
  /// std::invalid_argument with the template's own words where it raises an exception.
  std::string render(const std::vector<TemplateStatement>& statements) {
    run(statements);
    return std::move(out_);
  }

 private:
  using Node = TemplateExpression;
  using Statement = TemplateStatement;
  using Value = TemplateValue;
  using Values = std::vector<Value>;
  enum class Flow { on, break_loop, continue_loop };

  static constexpr std::size_t kMostSteps = 1'000'000, kMostScopes = 64;

  Flow run(const std::vector<Statement>& statements) {
    for (const Statement& statement : statements)
      if (const Flow flow = run(statement); flow != Flow::on) return flow;
    return Flow::on;
  }

  Flow run(const Statement& s) {
    if (++steps_ > kMostSteps) fail_template(s.line, "takes too many steps");
    switch (s.kind) {
      case Statement::Kind::text:
        out_ += s.text;
        return Flow::on;
      case Statement::Kind::output:
        out_ += printed(value_of(s.expressions[0]), s.line);
        return Flow::on;
      case Statement::Kind::set:
        set(s);
        return Flow::on;
      case Statement::Kind::branch:
        for (std::size_t i = 0; i < s.bodies.size(); ++i)
          if (i == s.expressions.size() || is_true(value_of(s.expressions[i])))
            return run(s.bodies[i]);
        return Flow::on;
      case Statement::Kind::loop:
        loop(s);
        return Flow::on;
      case Statement::Kind::macro:
        macros_[s.text] = &s;
        return Flow::on;
      case Statement::Kind::break_loop:
        return Flow::break_loop;
      case Statement::Kind::continue_loop:
        return Flow::continue_loop;
    }
    __builtin_unreachable();
  }

  std::string rendered(const std::vector<Statement>& body) {
    std::string before = std::exchange(out_, {});
    run(body);
    return std::exchange(out_, std::move(before));
  }

  void set(const Statement& s) {
    const Value value =
        s.expressions.empty() ? Value(rendered(s.bodies[0])) : value_of(s.expressions[0]);
    if (!s.attribute) return assign(s.names, value, s.line);
    Value* const space = find(s.names[0]);
    if (!space || !space->is_object()) fail_template(s.line, s.names[0], " is no namespace");
    (*space)[s.names[1]] = value;
  }

  void assign(const std::vector<std::string>& names, const Value& value, int line) {
    if (names.size() == 1) {
      scopes_.back()[names[0]] = value;
      return;
    }
    if (!value.is_array() || value.size() != names.size())
      fail_template(line, "there are not ", names.size(), " values to assign");
    for (std::size_t i = 0; i < names.size(); ++i) scopes_.back()[names[i]] = value[i];
  }

  Value* find(std::string_view name) {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (const auto found = scope->find(name); found != scope->end()) return &found->second;
    return nullptr;
  }

  // A scope of its own: what is set within is gone after it.
  void push_scope(int line) {
    if (scopes_.size() == kMostScopes) fail_template(line, "loops and macros are nested too deep");
    scopes_.emplace_back();
  }

  void loop(const Statement& s) {
    Value over = value_of(s.expressions[0]);
    if (over.is_object()) over = call_method(over, "keys", {}, s.line);
    if (is_undefined(over)) over = Value::array();
    if (!over.is_array()) fail_template(s.line, "a loop over what is no list");
    push_scope(s.line);
    if (s.expressions.size() > 1) {
      Value kept = Value::array();
      for (const Value& element : over) {
        assign(s.names, element, s.line);
        if (is_true(value_of(s.expressions[1]))) kept.push_back(element);
      }
      over = std::move(kept);
    }
    for (std::size_t i = 0; i < over.size(); ++i) {
      scopes_.back().clear();
      assign(s.names, over[i], s.line);
      scopes_.back()["loop"] = loop_variable(over, i);
      if (run(s.bodies[0]) == Flow::break_loop) break;
    }
    scopes_.pop_back();
    if (over.empty() && s.bodies.size() > 1) run(s.bodies[1]);
  }

  static Value loop_variable(const Value& over, std::size_t i) {
    Value loop = {{"index", i + 1},
                  {"index0", i},
                  {"first", i == 0},
                  {"last", i + 1 == over.size()},
                  {"length", over.size()},
                  {"revindex", over.size() - i},
                  {"revindex0", over.size() - i - 1}};
    if (i > 0) loop["previtem"] = over[i - 1];
    if (i + 1 < over.size()) loop["nextitem"] = over[i + 1];
    return loop;
  }

  Value value_of(const Node& node) {
    if (++steps_ > kMostSteps) fail_template(node.line, "takes too many steps");
    switch (node.kind) {
      case Node::Kind::literal:
        return node.value;
      case Node::Kind::name: {
        const Value* const found = find(node.text);
        return found ? *found : undefined_value();
      }
      case Node::Kind::attribute:
        return attribute(value_of(node.children[0]), node.text, node.line);
      case Node::Kind::item:
        return item(value_of(node.children[0]), value_of(node.children[1]), node.line);
      case Node::Kind::slice:
        return slice(node);
      case Node::Kind::call:
        return call(node);
      case Node::Kind::filter: {
        Values arguments = arguments_of(node);
        for (const auto& [name, value] : node.named)
          if (name == "indent" || name == "default_value" || name == "boolean")
            arguments.push_back(value_of(value));
          else if (name != "ensure_ascii" && name != "sort_keys")
            fail_template(node.line, "the argument ", name, " of ", node.text, " is not supported");
        return apply_filter(value_of(node.children[0]), node.text, arguments, node.line);
      }
      case Node::Kind::test:
        return passes_test(value_of(node.children[0]), node.text, arguments_of(node), node.line);
      case Node::Kind::unary:
        return unary(node);
      case Node::Kind::binary:
        return binary(node);
      case Node::Kind::conditional:
        return value_of(node.children[is_true(value_of(node.children[0])) ? 1 : 2]);
      case Node::Kind::list: {
        Value list = Value::array();
        for (const Node& child : node.children) list.push_back(value_of(child));
        return list;
      }
      case Node::Kind::dict: {
        Value dict = Value::object();
        for (std::size_t i = 0; i < node.children.size(); i += 2)
          dict[printed(value_of(node.children[i]), node.line)] = value_of(node.children[i + 1]);
        return dict;
      }
    }
    __builtin_unreachable();
  }

  // All children but the first.
  Values arguments_of(const Node& node) {
    Values values;
    for (std::size_t i = 1; i < node.children.size(); ++i)
      values.push_back(value_of(node.children[i]));
    return values;
  }

  static Value attribute(const Value& object, const std::string& name, int line) {
    if (is_undefined(object)) fail_template(line, name, " of an undefined value");
    const auto found = object.is_object() ? object.find(name) : object.end();
    return object.is_object() && found != object.end() ? *found : undefined_value();
  }

  static Value item(const Value& object, const Value& index, int line) {
    if (index.is_string()) return attribute(object, index.get<std::string>(), line);
    if (is_undefined(object)) fail_template(line, "an element of an undefined value");
    if (!object.is_array() || !index.is_number_integer())
      fail_template(line, "this value has no such elements");
    const auto size = static_cast<std::int64_t>(object.size());
    auto at = index.get<std::int64_t>();
    if (at < 0) at += size;
    return at < 0 || at >= size ? undefined_value() : object[static_cast<std::size_t>(at)];
  }

  Value slice(const Node& node) {
    Value object = value_of(node.children[0]);
    const bool of_text = object.is_string();
    if (of_text) object = characters_of(object.get_ref<const std::string&>());
    if (!object.is_array()) fail_template(node.line, "only lists and texts are sliced");
    const auto size = static_cast<std::int64_t>(object.size());
    const auto bound = [&](std::size_t i, std::int64_t otherwise) -> std::int64_t {
      if (i >= node.children.size()) return otherwise;
      const Value value = value_of(node.children[i]);
      return value.is_null() ? otherwise : value.get<std::int64_t>();
    };
    const std::int64_t step = bound(3, 1);
    if (step == 0) fail_template(node.line, "a slice of step 0");
    const auto within = [&](std::int64_t at) {
      if (at < 0) at += size;
      return std::clamp<std::int64_t>(at, step < 0 ? -1 : 0, step < 0 ? size - 1 : size);
    };
    std::int64_t at = within(bound(1, step < 0 ? size - 1 : 0));
    const bool to_begin =
        step < 0 && (node.children.size() < 3 || value_of(node.children[2]).is_null());
    const std::int64_t end = to_begin ? -1 : within(bound(2, size));
    Value list = Value::array();
    for (; step > 0 ? at < end : at > end; at += step)
      list.push_back(object[static_cast<std::size_t>(at)]);
    return of_text ? join_texts(list, "", node.line) : list;
  }

  Value call(const Node& node) {
    const Node& callee = node.children[0];
    if (callee.kind == Node::Kind::attribute) {
      if (!node.named.empty()) fail_template(node.line, "named arguments of a method");
      return call_method(value_of(callee.children[0]), callee.text, arguments_of(node), node.line);
    }
    if (callee.kind != Node::Kind::name) fail_template(node.line, "this cannot be called");
    if (const auto macro = macros_.find(callee.text); macro != macros_.end())
      return call_macro(*macro->second, node);
    const Values arguments = arguments_of(node);
    if (callee.text == "namespace") {
      Value space = Value::object();
      for (const auto& [name, value] : node.named) space[name] = value_of(value);
      return space;
    }
    if (callee.text == "raise_exception")
      throw_invalid("the chat template refuses these messages: ",
                    text_argument(arguments, 0, "raise_exception", node.line));
    if (callee.text == "range") return range(arguments, node.line);
    fail_template(node.line, "the function ", callee.text, " is not supported");
  }

  static Value range(const Values& arguments, int line) {
    constexpr std::int64_t kMost = 1'000'000;
    if (arguments.empty() || arguments.size() > 2)
      fail_template(line, "range needs 1 or 2 numbers");
    const std::int64_t begin = arguments.size() == 2 ? arguments[0].get<std::int64_t>() : 0;
    const auto end = arguments.back().get<std::int64_t>();
    if (end - begin > kMost) fail_template(line, "a range of more than ", kMost);
    Value list = Value::array();
    for (std::int64_t i = begin; i < end; ++i) list.push_back(i);
    return list;
  }

  // Sees the variables of the template and its own.
  Value call_macro(const Statement& macro, const Node& node) {
    const Values arguments = arguments_of(node);
    if (arguments.size() > macro.names.size())
      fail_template(node.line, "too many arguments of ", macro.text);
    TemplateVariables own;
    const std::size_t required = macro.names.size() - macro.expressions.size();
    for (std::size_t i = 0; i < macro.names.size(); ++i)
      own[macro.names[i]] = i < arguments.size() ? arguments[i]
                            : i >= required      ? value_of(macro.expressions[i - required])
                                                 : undefined_value();
    for (const auto& [name, value] : node.named) own[name] = value_of(value);
    if (++macro_depth_ > kMostScopes) fail_template(node.line, "macros are nested too deep");
    std::vector<TemplateVariables> outer(std::make_move_iterator(scopes_.begin() + 1),
                                         std::make_move_iterator(scopes_.end()));
    scopes_.resize(1);
    scopes_.push_back(std::move(own));
    Value text = rendered(macro.bodies[0]);
    scopes_.resize(1);
    for (TemplateVariables& scope : outer) scopes_.push_back(std::move(scope));
    --macro_depth_;
    return text;
  }

  Value unary(const Node& node) {
    const Value operand = value_of(node.children[0]);
    if (node.text == "not") return !is_true(operand);
    if (operand.is_number_integer()) return -operand.get<std::int64_t>();
    if (operand.is_number()) return -operand.get<double>();
    fail_template(node.line, "- of what is no number");
  }

  Value binary(const Node& node) {
    const std::string& sign = node.text;
    Value left = value_of(node.children[0]);
    if (sign == "and") return is_true(left) ? value_of(node.children[1]) : left;
    if (sign == "or") return is_true(left) ? left : value_of(node.children[1]);
    const Value right = value_of(node.children[1]);
    if (sign == "in") return contains_value(left, right, node.line);
    if (sign == "~") return printed(left, node.line) + printed(right, node.line);
    if (sign == "==" || sign == "!=") return (same(left, right)) == (sign == "==");
    if (left.is_string() && right.is_string()) return of_texts(sign, left, right, node.line);
    if (left.is_string() && right.is_number_integer() && sign == "*")
      return repeated(left.get_ref<const std::string&>(), right.get<std::int64_t>(), node.line);
    if (left.is_array() && right.is_array() && sign == "+") {
      for (const Value& element : right) left.push_back(element);
      return left;
    }
    if (left.is_number() && right.is_number()) return of_numbers(sign, left, right, node.line);
    fail_template(node.line, sign, " of these values is not supported");
  }

  static std::string repeated(const std::string& text, std::int64_t times, int line) {
    constexpr std::int64_t kMost = 1'000'000;
    if (times > kMost) fail_template(line, "a text is repeated more than ", kMost, " times");
    std::string result;
    for (; times > 0; --times) result += text;
    return result;
  }

  static bool same(const Value& left, const Value& right) {
    if (is_undefined(left) || is_undefined(right)) return is_undefined(left) && is_undefined(right);
    return left == right;
  }

  static Value of_texts(const std::string& sign, const Value& left, const Value& right, int line) {
    const auto &a = left.get_ref<const std::string&>(), &b = right.get_ref<const std::string&>();
    if (sign == "+") return a + b;
    if (sign == "<") return a < b;
    if (sign == ">") return a > b;
    if (sign == "<=") return a <= b;
    if (sign == ">=") return a >= b;
    fail_template(line, sign, " of texts is not supported");
  }

  static Value of_numbers(const std::string& sign, const Value& left, const Value& right,
                          int line) {
    const bool whole = left.is_number_integer() && right.is_number_integer();
    const auto a = left.get<double>(), b = right.get<double>();
    if (sign == "<") return a < b;
    if (sign == ">") return a > b;
    if (sign == "<=") return a <= b;
    if (sign == ">=") return a >= b;
    if ((sign == "/" || sign == "//" || sign == "%") && b == 0.0)
      fail_template(line, "a division by zero");
    double result = 0.0;
    if (sign == "+")
      result = a + b;
    else if (sign == "-")
      result = a - b;
    else if (sign == "*")
      result = a * b;
    else if (sign == "/")
      return a / b;
    else if (sign == "//")
      result = std::floor(a / b);
    else if (sign == "%")
      result = a - b * std::floor(a / b);
    if (whole && std::abs(result) > 0x1p53) fail_template(line, "a number is too large");
    return whole ? Value(static_cast<std::int64_t>(result)) : Value(result);
  }

  std::vector<TemplateVariables> scopes_;  // the template's first
  std::map<std::string, const Statement*, std::less<>> macros_;
  std::string out_;
  std::size_t steps_ = 0, macro_depth_ = 0;
};

}  // namespace mla::detail

#endif  // MLA_TEXT_TEMPLATE_RENDERER_HPP_
