#ifndef MLA_SERVER_CHAT_FORMAT_HPP_
#define MLA_SERVER_CHAT_FORMAT_HPP_

#include <exception>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "mla/text/chat_template.hpp"

namespace mla::server {

/// For models without a chat template of their own, which were not trained to chat.
inline constexpr std::string_view kPlainChat =
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}User: {{ message.content }}\n\n"
    "{% elif message.role == 'assistant' %}Assistant: {{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}\n\n"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}";

/// How the messages of a chat become the text that a model continues.
struct ChatFormat {
  std::optional<ChatTemplate> chat_template;
  std::string refusal;  ///< why there is none; chats are refused then, completions are not
  bool plain = false;   ///< kPlainChat

  /// The template of `file`, if one is given; or the model's own; or kPlainChat. Throws
  /// std::runtime_error for a file that is no template.
  static ChatFormat load(const std::filesystem::path& directory, const std::string& file = {}) {
    ChatFormat format;
    if (!file.empty()) {
      format.chat_template = ChatTemplate::load(file, directory);
      return format;
    }
    try {
      format.chat_template = ChatTemplate::load(directory);
    } catch (const std::exception& error) {
      format.refusal = error.what();
      return format;
    }
    format.plain = !format.chat_template;
    if (format.plain)
      format.chat_template = ChatTemplate::with_tokens(kPlainChat, "the plain chat", directory);
    return format;
  }
};

}  // namespace mla::server

#endif  // MLA_SERVER_CHAT_FORMAT_HPP_
