// Chat templates render what jinja2 renders (tests/data/chat), and refuse what they do not know.
#include "mla/text/chat_template.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "mla/io/json.hpp"
#include "support/message_of.hpp"
#include "support/safetensors_writer.hpp"

namespace mla::test {
namespace {

std::filesystem::path chat_folder() { return std::filesystem::path(MLA_TEST_DATA) / "chat"; }

std::string template_text(const std::string& name) {
  const MappedFile file(chat_folder() / (name + ".jinja"));
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

std::string rendered(const std::string& source, const detail::TemplateVariables& variables = {}) {
  const auto statements = detail::TemplateStatements(source).read();
  return detail::TemplateRenderer(variables).render(statements);
}

class ChatTemplateGolden : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Templates, ChatTemplateGolden,
                         ::testing::Values("turns", "thinking", "blocks", "values"),
                         [](const auto& name) { return std::string(name.param); });

TEST_P(ChatTemplateGolden, RendersWhatJinjaDoes) {
  const std::string source = template_text(GetParam());
  EXPECT_NO_THROW(ChatTemplate{source});
  const MappedFile file(chat_folder() / (std::string(GetParam()) + ".json"));
  const auto goldens = nlohmann::ordered_json::parse(
      reinterpret_cast<const char*>(file.bytes().data()),
      reinterpret_cast<const char*>(file.bytes().data()) + file.bytes().size());
  int compared = 0;
  for (const auto& golden : goldens) {
    detail::TemplateVariables variables;
    for (const auto& [name, value] : golden["variables"].items()) variables[name] = value;
    if (golden.contains("text")) {
      EXPECT_EQ(rendered(source, variables), golden["text"].get<std::string>()) << golden;
      ++compared;
    } else if (golden.contains("refused")) {
      EXPECT_EQ(
          message_of([&] { rendered(source, variables); }),
          "the chat template refuses these messages: " + golden["refused"].get<std::string>());
    } else {
      EXPECT_THROW(rendered(source, variables), std::runtime_error) << golden;
    }
  }
  EXPECT_GT(compared, 15);
}

TEST(ChatTemplate, OfAModelsFilesKnowsItsTokens) {
  const TemporaryDirectory directory;
  EXPECT_FALSE(ChatTemplate::load(directory.path()).has_value());
  nlohmann::json config = {{"bos_token", {{"content", "<s>"}}}, {"eos_token", "</s>"}};
  write_file(directory / "tokenizer_config.json", config.dump());
  EXPECT_FALSE(ChatTemplate::load(directory.path()).has_value());
  const std::vector<ChatMessage> messages = {{"system", "S"}, {"user", "U"}};
  const auto text = [&](const ChatOptions& options = {}) {
    return ChatTemplate::load(directory.path())->render(messages, options);
  };
  config["chat_template"] = template_text("thinking");
  write_file(directory / "tokenizer_config.json", config.dump());
  EXPECT_EQ(text(), "<s>S<U>U<A></think>");
  EXPECT_EQ(text({.add_generation_prompt = false}), "<s>S<U>U");
  EXPECT_EQ(text({.variables = {{"enable_thinking", "true"}}}), "<s>S<U>U<A><think>");
  EXPECT_THROW(text({.variables = {{"enable_thinking", "yes"}}}), std::invalid_argument);
  config["chat_template"] = {{{"name", "tool_use"}, {"template", "no"}},
                             {{"name", "default"}, {"template", "{{ messages | length }}"}}};
  write_file(directory / "tokenizer_config.json", config.dump());
  EXPECT_EQ(text(), "2");
  write_file(directory / "chat_template.jinja", "own {{ eos_token }}\n");
  EXPECT_EQ(text(), "own </s>");
  write_file(directory / "chat_template.jinja", "a\n{{ 1 | wordwrap }}");
  EXPECT_TRUE(fails_naming([&] { text(); }, {"chat_template.jinja", "line 2", "wordwrap"}));
}

TEST(ChatTemplate, WhatIsNotSupportedIsNamedWithItsLine) {
  const auto refused = [](const char* source, std::vector<std::string> parts) {
    parts.push_back("chat template, line ");
    return fails_naming([&] { ChatTemplate{source}; }, parts);
  };
  EXPECT_TRUE(refused("\n\n{% include 'x' %}", {"line 3", "include"}));
  EXPECT_TRUE(refused("{% raw %}{% endraw %}", {"raw"}));
  EXPECT_TRUE(refused("{{ x | shuffle }}", {"the filter shuffle"}));
  EXPECT_TRUE(refused("{{ 'a' if x is odd }}", {"the test odd"}));
  EXPECT_TRUE(refused("{% if x %}", {"no endif"}));
  EXPECT_TRUE(refused("{% for x in y %}{% endif %}", {"endif"}));
  EXPECT_TRUE(refused("{% endfor %}", {"end without its beginning"}));
  EXPECT_TRUE(refused("{{ 'a }}", {"{{ has no end"}));
  EXPECT_TRUE(refused("{{ a b }}", {"b is not supported here"}));
  EXPECT_TRUE(refused("{{ a ? b }}", {"character ?"}));
  EXPECT_TRUE(refused("{{ }}", {"ends too soon"}));
  EXPECT_TRUE(refused("{{ '\\x41' }}", {"escape \\x"}));
  EXPECT_TRUE(refused(("{{ " + std::string(500, '(') + "1").c_str(), {"no end"}));
  EXPECT_TRUE(refused(("{{ " + std::string(500, '(') + "1" + std::string(500, ')') + " }}").c_str(),
                      {"nested too deep"}));
}

TEST(ChatTemplate, WhatOnlyValuesTellIsRefusedWhenItIsRendered) {
  const auto fails = [](const char* source, std::vector<std::string> parts) {
    return fails_naming([&] { rendered(source); }, parts);
  };
  EXPECT_TRUE(fails("{{ [1, 2] }}", {"a list or an object is printed"}));
  EXPECT_TRUE(fails("{{ a.b }}", {"b of an undefined value"}));
  EXPECT_TRUE(fails("{{ strftime_now('%Y') }}", {"the function strftime_now"}));
  EXPECT_TRUE(fails("{{ 'a'.title() }}", {"the method title"}));
  EXPECT_TRUE(fails("{{ 'ä' | upper }}", {"beyond ASCII"}));
  EXPECT_TRUE(fails("{{ 1 / 0 }}", {"division by zero"}));
  EXPECT_TRUE(fails("{{ 1 + 'a' }}", {"+ of these values"}));
  EXPECT_TRUE(fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", {"nested too deep"}));
  EXPECT_TRUE(
      fails("{% for i in range(2000) %}{% for j in range(2000) %}{{ i }}"
            "{% endfor %}{% endfor %}",
            {"too many steps"}));
}

}  // namespace
}  // namespace mla::test
