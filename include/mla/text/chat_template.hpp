#ifndef MLA_TEXT_CHAT_TEMPLATE_HPP_
#define MLA_TEXT_CHAT_TEMPLATE_HPP_

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"
#include "mla/io/mapped_file.hpp"
#include "mla/text/template_renderer.hpp"

namespace mla {

/// A turn of a chat.
struct ChatMessage {
  std::string role;  ///< "system", "user", "assistant", ...
  std::string content;
};

struct ChatOptions {
  bool add_generation_prompt = true;  ///< end with what begins the assistant's answer
  /// More variables of the template, as JSON: {"enable_thinking", "false"}.
  std::map<std::string, std::string> variables = {};
};

/// The chat_template of a published model, which makes one text of the turns of a chat. It is a
/// program in Jinja, of which the part that such templates are written in is run here: set,
/// if, for, macro, namespaces, the usual filters, tests and methods. What else a template has is
/// refused by name and line, when it is read or, where only values tell, when it is rendered; so
/// nothing is rendered differently in silence. Immutable: threads may share it.
///
/// (The alternative, a renderer of our own for each known template, would need one for each of its
/// many versions.)
class ChatTemplate {
 public:
  /// Throws std::runtime_error with the line of what is not supported.
  explicit ChatTemplate(std::string_view source)
      : statements_(detail::TemplateStatements(source).read()) {
    check(statements_);
  }

  /// The template of a model's directory: chat_template.jinja, or chat_template of
  /// tokenizer_config.json (of several the one with the name "default"); none if it has none.
  /// Throws std::runtime_error naming the file.
  static std::optional<ChatTemplate> load(const std::filesystem::path& directory) {
    const auto own = directory / "chat_template.jinja";
    if (std::filesystem::exists(own)) return load(own, directory);
    const auto config = directory / "tokenizer_config.json";
    if (!std::filesystem::exists(config)) return std::nullopt;
    const JsonDocument json(parse_json_file(config));
    const std::string source = source_of(ConfigReader(*json, config.string() + ": "));
    if (source.empty()) return std::nullopt;
    return with_tokens(source, config.string(), directory);
  }

  /// The template in `file` for the model in `directory`, whose BOS and EOS it has. Throws
  /// likewise.
  static ChatTemplate load(const std::filesystem::path& file,
                           const std::filesystem::path& directory) {
    return with_tokens(text_of(file), file.string(), directory);
  }

  /// The template `source` for the model in `directory`. Errors begin with `origin`.
  static ChatTemplate with_tokens(std::string_view source, const std::string& origin,
                                  const std::filesystem::path& directory) {
    ChatTemplate result = from_source(source, origin);
    const auto config = directory / "tokenizer_config.json";
    if (!std::filesystem::exists(config)) return result;
    const JsonDocument json(parse_json_file(config));
    const ConfigReader reader(*json, config.string() + ": ");
    result.bos_ = token_text(reader, "bos_token");
    result.eos_ = token_text(reader, "eos_token");
    return result;
  }

  /// The text that a model continues. It has the special tokens written out, a BOS among them where
  /// the template has one: encode it without add_bos. Throws std::invalid_argument where the
  /// template refuses the messages, std::runtime_error where it does what is not supported.
  std::string render(std::span<const ChatMessage> messages, const ChatOptions& options = {}) const {
    detail::TemplateVariables variables;
    detail::TemplateValue list = detail::TemplateValue::array();
    for (const ChatMessage& message : messages)
      list.push_back({{"role", message.role}, {"content", message.content}});
    variables["messages"] = std::move(list);
    variables["bos_token"] = bos_;
    variables["eos_token"] = eos_;
    variables["add_generation_prompt"] = options.add_generation_prompt;
    for (const auto& [name, json] : options.variables) {
      auto value = detail::TemplateValue::parse(json, nullptr, false);
      require(!value.is_discarded(), "variable ", name, " of a chat must be JSON, got ", json);
      variables[name] = std::move(value);
    }
    return detail::TemplateRenderer(std::move(variables)).render(statements_);
  }

 private:
  static std::string text_of(const std::filesystem::path& path) {
    const MappedFile file(path);
    return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
  }

  static ChatTemplate from_source(std::string_view source, const std::string& origin) {
    try {
      return ChatTemplate(source);
    } catch (const std::runtime_error& error) {
      throw_runtime(origin, ": ", error.what());
    }
  }

  // Empty: there is none.
  static std::string source_of(const ConfigReader& config) {
    const nlohmann::json* value = config.find("chat_template");
    if (!value) return {};
    if (!value->is_array()) return config.string("chat_template");
    for (const nlohmann::json& one : *value) {
      const ConfigReader entry(one, config.where() + "chat_template.");
      if (entry.string("name") == "default") return entry.string("template");
    }
    config.fail("chat_template has no template with the name default");
  }

  static std::string token_text(const ConfigReader& config, const char* key) {
    const nlohmann::json* value = config.find(key);
    if (!value) return {};
    return value->is_object() ? config.object(key).string("content") : config.string(key);
  }

  // Names of filters, tests and functions, before anything is rendered.
  static void check(const std::vector<detail::TemplateStatement>& statements) {
    for (const detail::TemplateStatement& statement : statements) {
      for (const auto& expression : statement.expressions) check(expression);
      for (const auto& body : statement.bodies) check(body);
    }
  }
  static void check(const detail::TemplateExpression& node) {
    using Kind = detail::TemplateExpression::Kind;
    const auto known = [&](auto& names) { return std::ranges::count(names, node.text) > 0; };
    if (node.kind == Kind::filter && !known(detail::kTemplateFilters))
      detail::fail_template(node.line, "the filter ", node.text, " is not supported");
    if (node.kind == Kind::test && !known(detail::kTemplateTests))
      detail::fail_template(node.line, "the test ", node.text, " is not supported");
    for (const auto& child : node.children) check(child);
    for (const auto& [name, value] : node.named) check(value);
  }

  std::vector<detail::TemplateStatement> statements_;
  std::string bos_, eos_;
};

}  // namespace mla

#endif  // MLA_TEXT_CHAT_TEMPLATE_HPP_
