#ifndef MLA_TEXT_TEMPLATE_EXPRESSION_HPP_
#define MLA_TEXT_TEMPLATE_EXPRESSION_HPP_

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/text/template_tokens.hpp"

// The part of Jinja that chat templates are written in, as a tree. What is not part of it is
// refused when a template is read, not when it is run.

namespace mla::detail {

/// Objects keep the order of their keys, as in Python.
using TemplateValue = nlohmann::ordered_json;

/// An expression. Children, by kind:
///   literal      none: value
///   name         none: text
///   attribute    object: text is the name
///   item         object, index
///   slice        object, first, end (missing ones are absent literals)
///   call         callee, arguments...; named ones in `named`
///   filter       object, arguments...; text is the filter's name
///   test         object, arguments...; text is the test's name
///   unary        operand; text is the operator: not -
///   binary       left, right; text is the operator
///   conditional  condition, then, otherwise
///   list         elements
///   dict         keys and values in turn
struct TemplateExpression {
  enum class Kind {
    literal,
    name,
    attribute,
    item,
    slice,
    call,
    filter,
    test,
    unary,
    binary,
    conditional,
    list,
    dict
  } kind;
  int line = 0;
  std::string text = {};
  TemplateValue value = {};
  std::vector<TemplateExpression> children = {};
  std::vector<std::pair<std::string, TemplateExpression>> named = {};
};

/// Reads expressions from the tokens of a tag.
class TemplateExpressions {
 public:
  using Node = TemplateExpression;
  using Kind = Node::Kind;

  TemplateExpressions(std::string_view code, int line)
      : tokens_(template_tokens(code, line)), line_(line) {}

  bool at_end() const noexcept { return peek().kind == TemplateToken::Kind::end; }
  bool looking_at(std::string_view text) const noexcept {
    return peek().kind != TemplateToken::Kind::string && peek().text == text && !at_end();
  }
  bool accept(std::string_view text) {
    if (!looking_at(text)) return false;
    ++at_;
    return true;
  }
  void expect(std::string_view text) {
    if (!accept(text)) fail("expected ", text, " before ", at_end() ? "the end" : peek().text);
  }
  std::string name() {
    if (peek().kind != TemplateToken::Kind::name) fail("expected a name, got ", peek().text);
    return tokens_[at_++].text;
  }
  void expect_end() const {
    if (!at_end()) fail(peek().text, " is not supported here");
  }
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    fail_template(line_, parts...);
  }

  Node expression() {
    if (++depth_ > kMaxDepth) fail("expressions are nested too deep");
    Node value = disjunction();
    if (accept("if")) {
      Node condition = disjunction();
      Node otherwise = make(Kind::literal);
      otherwise.value = TemplateValue(nlohmann::detail::value_t::discarded);
      if (accept("else")) otherwise = expression();
      value = make(Kind::conditional, "", {condition, value, otherwise});
    }
    --depth_;
    return value;
  }
  /// One without `if`, which is a loop's own.
  Node disjunction() {
    return operators({"or"}, [&] { return operators({"and"}, [&] { return negation(); }); });
  }

 private:
  static constexpr int kMaxDepth = 64;

  const TemplateToken& peek(std::size_t ahead = 0) const noexcept {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  Node make(Kind kind, std::string text = {}, std::vector<Node> children = {}) const {
    return {.kind = kind, .line = line_, .text = std::move(text), .children = std::move(children)};
  }

  template <class Operand>
  Node operators(std::initializer_list<std::string_view> signs, const Operand& operand) {
    Node left = operand();
    while (true) {
      const auto* const sign =
          std::ranges::find_if(signs, [&](std::string_view text) { return looking_at(text); });
      if (sign == signs.end()) return left;
      ++at_;
      left = make(Kind::binary, std::string(*sign), {left, operand()});
    }
  }

  Node negation() {
    if (++depth_ > kMaxDepth) fail("expressions are nested too deep");
    Node node = accept("not") ? make(Kind::unary, "not", {negation()}) : comparison();
    --depth_;
    return node;
  }

  Node comparison() {
    Node left = sum();
    while (true) {
      if (accept("in")) {
        left = make(Kind::binary, "in", {left, sum()});
      } else if (looking_at("not") && peek(1).text == "in") {
        at_ += 2;
        left = make(Kind::unary, "not", {make(Kind::binary, "in", {left, sum()})});
      } else {
        const auto signs = {"==", "!=", "<=", ">=", "<", ">"};
        const auto* const sign =
            std::ranges::find_if(signs, [&](std::string_view text) { return looking_at(text); });
        if (sign == signs.end()) return left;
        ++at_;
        left = make(Kind::binary, *sign, {left, sum()});
      }
    }
  }

  Node sum() {
    return operators({"+", "-"}, [&] {
      return operators({"~"}, [&] {
        return operators({"*", "//", "/", "%"}, [&] { return unary(); });
      });
    });
  }

  Node unary() {
    if (++depth_ > kMaxDepth) fail("expressions are nested too deep");
    Node node = accept("-") ? make(Kind::unary, "-", {unary()}) : postfix(primary());
    --depth_;
    return node;
  }

  Node postfix(Node node) {
    while (true) {
      if (accept("."))
        node = make(Kind::attribute, name(), {node});
      else if (accept("["))
        node = subscript(std::move(node));
      else if (accept("("))
        node = arguments(make(Kind::call, "", {node}));
      else if (accept("|"))
        node = filter_or_test(Kind::filter, std::move(node));
      else if (accept("is"))
        node = test(std::move(node));
      else
        return node;
    }
  }

  Node subscript(Node object) {
    std::vector<Node> parts = {std::move(object)};
    const auto bound = [&] {
      Node absent = make(Kind::literal);
      return looking_at(":") || looking_at("]") ? absent : expression();
    };
    parts.push_back(bound());
    const bool slice = accept(":");
    if (slice) parts.push_back(bound());
    const bool stepped = accept(":");
    if (stepped) parts.push_back(bound());
    expect("]");
    return make(slice ? Kind::slice : Kind::item, "", std::move(parts));
  }

  Node arguments(Node call) {
    while (!accept(")")) {
      if (peek().kind == TemplateToken::Kind::name && peek(1).text == "=" &&
          peek(1).kind == TemplateToken::Kind::sign) {
        std::string key = name();
        expect("=");
        call.named.emplace_back(std::move(key), expression());
      } else {
        call.children.push_back(expression());
      }
      if (!looking_at(")")) expect(",");
    }
    return call;
  }

  Node filter_or_test(Kind kind, Node object) {
    Node node = make(kind, name(), {std::move(object)});
    return accept("(") ? arguments(std::move(node)) : node;
  }

  Node test(Node object) {
    const bool negated = accept("not");
    Node node = filter_or_test(Kind::test, std::move(object));
    const bool compares = node.text == "in" || node.text == "eq" || node.text == "equalto" ||
                          node.text == "divisibleby";
    if (compares && node.children.size() == 1) node.children.push_back(unary());
    return negated ? make(Kind::unary, "not", {node}) : node;
  }

  Node primary() {
    const TemplateToken token = peek();
    if (token.kind == TemplateToken::Kind::end) fail("an expression ends too soon");
    ++at_;
    if (token.kind == TemplateToken::Kind::string) {
      std::string text = token.text;
      while (peek().kind == TemplateToken::Kind::string) text += tokens_[at_++].text;
      return literal(text);
    }
    if (token.kind == TemplateToken::Kind::number)
      return literal(TemplateValue::parse(token.text, nullptr, false));
    if (token.kind == TemplateToken::Kind::name) {
      if (token.text == "true" || token.text == "True") return literal(true);
      if (token.text == "false" || token.text == "False") return literal(false);
      if (token.text == "none" || token.text == "None") return literal(nullptr);
      return make(Kind::name, token.text);
    }
    if (token.text == "(") return parenthesis();
    if (token.text == "[") {
      Node list = make(Kind::list);
      while (!accept("]")) {
        list.children.push_back(expression());
        if (!looking_at("]")) expect(",");
      }
      return list;
    }
    if (token.text == "{") return dict();
    fail(token.text, " is not supported here");
  }

  Node literal(TemplateValue value) const {
    Node node = make(Kind::literal);
    node.value = std::move(value);
    return node;
  }

  // A group, or a tuple, which is a list here.
  Node parenthesis() {
    Node list = make(Kind::list);
    bool tuple = looking_at(")");
    while (!accept(")")) {
      list.children.push_back(expression());
      if (!looking_at(")")) {
        expect(",");
        tuple = true;
      }
    }
    return tuple ? list : Node(list.children.front());
  }

  Node dict() {
    Node node = make(Kind::dict);
    while (!accept("}")) {
      node.children.push_back(expression());
      expect(":");
      node.children.push_back(expression());
      if (!looking_at("}")) expect(",");
    }
    return node;
  }

  std::vector<TemplateToken> tokens_;
  std::size_t at_ = 0;
  int line_;
  int depth_ = 0;
};

}  // namespace mla::detail

#endif  // MLA_TEXT_TEMPLATE_EXPRESSION_HPP_
