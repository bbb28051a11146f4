#ifndef MLA_TEXT_TEMPLATE_STATEMENT_HPP_
#define MLA_TEXT_TEMPLATE_STATEMENT_HPP_

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/text/template_expression.hpp"
#include "mla/text/template_tokens.hpp"

namespace mla::detail {

/// A statement. By kind:
///   text       text
///   output     expressions[0]
///   set        names, of variables or of one attribute ("ns", "found"); expressions[0], or body
///   branch     expressions are the conditions, bodies of each and perhaps one more
///   loop       names of the variables; expressions: what over, perhaps a condition; bodies: of the
///              loop, of an empty one
///   macro      text is its name; names and expressions: parameters, and defaults of the last ones
struct TemplateStatement {
  enum class Kind { text, output, set, branch, loop, macro, break_loop, continue_loop } kind;
  int line = 0;
  std::string text = {};
  bool attribute = false;
  std::vector<std::string> names = {};
  std::vector<TemplateExpression> expressions = {};
  std::vector<std::vector<TemplateStatement>> bodies = {};
};

/// Reads a whole template. Throws std::runtime_error with the line of what is not supported.
class TemplateStatements {
 public:
  using Statement = TemplateStatement;
  using Kind = Statement::Kind;

  explicit TemplateStatements(std::string_view source) : tags_(TemplateTags(source).read()) {}

  std::vector<Statement> read() {
    std::vector<Statement> all = body({});
    if (at_ < tags_.size()) fail_template(tags_[at_].line, "an end without its beginning");
    return all;
  }

 private:
  static constexpr int kMaxDepth = 64;

  // First name of a statement's tag.
  static std::string keyword(const TemplateTag& tag) {
    const auto tokens = template_tokens(tag.text, tag.line);
    return tokens.front().text;
  }

  // Statements up to the tag that begins with one of `ends`, which is next then.
  std::vector<Statement> body(std::initializer_list<std::string_view> ends) {
    if (++depth_ > kMaxDepth) fail_template(tags_[at_].line, "statements are nested too deep");
    std::vector<Statement> statements;
    const int begin = at_ < tags_.size() ? tags_[at_].line : 0;
    for (; at_ < tags_.size();) {
      const TemplateTag& tag = tags_[at_];
      if (tag.kind == TemplateTag::Kind::statement) {
        const std::string word = keyword(tag);
        if (std::ranges::count(ends, word) > 0) {
          --depth_;
          return statements;
        }
        if (ends.size() == 0 && (word.starts_with("end") || word == "else" || word == "elif"))
          break;
      }
      ++at_;
      add(tag, statements);
    }
    if (ends.size() > 0) fail_template(begin, "there is no ", *ends.begin());
    --depth_;
    return statements;
  }

  void add(const TemplateTag& tag, std::vector<Statement>& to) {
    if (tag.kind == TemplateTag::Kind::text) {
      to.push_back({.kind = Kind::text, .line = tag.line, .text = tag.text});
      return;
    }
    TemplateExpressions code(tag.text, tag.line);
    if (tag.kind == TemplateTag::Kind::expression) {
      to.push_back({.kind = Kind::output, .line = tag.line, .expressions = {code.expression()}});
      return code.expect_end();
    }
    const std::string word = code.name();
    if (word == "set") return to.push_back(set(code, tag.line));
    if (word == "if") return to.push_back(branch(code, tag.line));
    if (word == "for") return to.push_back(loop(code, tag.line));
    if (word == "macro") return to.push_back(macro(code, tag.line));
    if (word != "break" && word != "continue" && word != "generation")
      code.fail("the statement ", word, " is not supported");
    code.expect_end();
    if (word == "break") return to.push_back({.kind = Kind::break_loop, .line = tag.line});
    if (word == "continue") return to.push_back({.kind = Kind::continue_loop, .line = tag.line});
    // "generation" marks what a model has said, for training.
    for (Statement& inner : body({"endgeneration"})) to.push_back(std::move(inner));
    ++at_;
  }

  Statement set(TemplateExpressions& code, int line) {
    Statement statement = {.kind = Kind::set, .line = line, .names = {code.name()}};
    statement.attribute = code.accept(".");
    if (statement.attribute) statement.names.push_back(code.name());
    while (!statement.attribute && code.accept(",")) statement.names.push_back(code.name());
    if (code.accept("=")) {
      statement.expressions = {code.expression()};
      code.expect_end();
      return statement;
    }
    code.expect_end();
    statement.bodies = {body({"endset"})};
    ++at_;
    return statement;
  }

  Statement branch(TemplateExpressions& first, int line) {
    Statement statement = {.kind = Kind::branch, .line = line, .expressions = {first.expression()}};
    first.expect_end();
    while (true) {
      statement.bodies.push_back(body({"endif", "elif", "else"}));
      TemplateExpressions code(tags_[at_].text, tags_[at_].line);
      ++at_;
      const std::string word = code.name();
      if (word == "elif") statement.expressions.push_back(code.expression());
      code.expect_end();
      if (word == "endif") return statement;
      if (word == "elif") continue;
      statement.bodies.push_back(body({"endif"}));
      ++at_;
      return statement;
    }
  }

  Statement loop(TemplateExpressions& code, int line) {
    Statement statement = {.kind = Kind::loop, .line = line, .names = {code.name()}};
    while (code.accept(",")) statement.names.push_back(code.name());
    code.expect("in");
    statement.expressions = {code.disjunction()};
    if (code.accept("if")) statement.expressions.push_back(code.disjunction());
    code.expect_end();
    statement.bodies = {body({"endfor", "else"})};
    const bool otherwise = keyword(tags_[at_++]) == "else";
    if (!otherwise) return statement;
    statement.bodies.push_back(body({"endfor"}));
    ++at_;
    return statement;
  }

  Statement macro(TemplateExpressions& code, int line) {
    Statement statement = {.kind = Kind::macro, .line = line, .text = code.name()};
    code.expect("(");
    while (!code.accept(")")) {
      statement.names.push_back(code.name());
      if (code.accept("="))
        statement.expressions.push_back(code.expression());
      else if (!statement.expressions.empty())
        code.fail("a parameter without a default follows one with it");
      if (!code.looking_at(")")) code.expect(",");
    }
    code.expect_end();
    statement.bodies = {body({"endmacro"})};
    ++at_;
    return statement;
  }

  std::vector<TemplateTag> tags_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace mla::detail

#endif  // MLA_TEXT_TEMPLATE_STATEMENT_HPP_
