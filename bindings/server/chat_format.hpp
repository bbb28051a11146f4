#ifndef MLA_SERVER_CHAT_FORMAT_HPP_
#define MLA_SERVER_CHAT_FORMAT_HPP_

#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "mla/core/error.hpp"
#include "mla/text/tokenizer.hpp"

// How the messages of a chat become the text that a model continues: what the chat_template of the
// published models gives for plain messages. A template is a program in a language of its own,
// which this server does not run.

namespace mla::server {

struct ChatMessage {
  enum class Role { system, user, assistant };
  Role role;
  std::string content;
};

enum class ChatFormat {
  deepseek_v3,  ///< <｜User｜>...<｜Assistant｜>...<｜end▁of▁sentence｜>
  deepseek_v2,  ///< User: ...\n\nAssistant: ...<｜end▁of▁sentence｜>
  kimi_k2,      ///< <|im_user|>user<|im_middle|>...<|im_end|>
};

struct ChatFormatInfo {
  ChatFormat format;
  std::string_view name;  ///< of --chat-format
  std::string_view sign;  ///< a token that only models with this format have
};
inline constexpr ChatFormatInfo kChatFormats[] = {
    {ChatFormat::deepseek_v3, "deepseek_v3", "<｜Assistant｜>"},
    {ChatFormat::kimi_k2, "kimi_k2", "<|im_middle|>"},
    {ChatFormat::deepseek_v2, "deepseek_v2", ""},
};

constexpr std::string_view name_of(ChatFormat format) noexcept {
  for (const ChatFormatInfo& info : kChatFormats)
    if (info.format == format) return info.name;
  __builtin_unreachable();
}

inline std::optional<ChatFormat> chat_format_from_name(std::string_view name) noexcept {
  for (const ChatFormatInfo& info : kChatFormats)
    if (info.name == name) return info.format;
  return std::nullopt;
}

/// The format of a model, by the tokens that it has; that of DeepSeek-V2, which needs none, where
/// it has none of them.
inline ChatFormat chat_format_of(const Tokenizer& tokenizer) {
  for (const ChatFormatInfo& info : kChatFormats)
    if (!info.sign.empty() && tokenizer.token_id(info.sign)) return info.format;
  return ChatFormat::deepseek_v2;
}

namespace detail {

inline std::string deepseek_v3_text(std::span<const ChatMessage> messages) {
  std::string text;  // system messages come first, wherever they are
  for (const ChatMessage& message : messages)
    if (message.role == ChatMessage::Role::system)
      text += (text.empty() ? "" : "\n\n") + message.content;
  for (const ChatMessage& message : messages) switch (message.role) {
      case ChatMessage::Role::system:
        break;
      case ChatMessage::Role::user:
        text += "<｜User｜>" + message.content;
        break;
      case ChatMessage::Role::assistant:
        text += "<｜Assistant｜>" + message.content + "<｜end▁of▁sentence｜>";
        break;
    }
  return text + "<｜Assistant｜>";
}

inline std::string deepseek_v2_text(std::span<const ChatMessage> messages) {
  std::string text;
  for (const ChatMessage& message : messages) switch (message.role) {
      case ChatMessage::Role::system:
        text += message.content + "\n\n";
        break;
      case ChatMessage::Role::user:
        text += "User: " + message.content + "\n\n";
        break;
      case ChatMessage::Role::assistant:
        text += "Assistant: " + message.content + "<｜end▁of▁sentence｜>";
        break;
    }
  return text + "Assistant:";
}

inline std::string kimi_k2_text(std::span<const ChatMessage> messages) {
  std::string text;
  for (const ChatMessage& message : messages) {
    switch (message.role) {
      case ChatMessage::Role::system:
        text += "<|im_system|>system<|im_middle|>";
        break;
      case ChatMessage::Role::user:
        text += "<|im_user|>user<|im_middle|>";
        break;
      case ChatMessage::Role::assistant:
        text += "<|im_assistant|>assistant<|im_middle|>";
        break;
    }
    text += message.content + "<|im_end|>";
  }
  return text + "<|im_assistant|>assistant<|im_middle|>";
}

}  // namespace detail

/// The text that the model is to continue, without the token that begins every text.
inline std::string chat_text(ChatFormat format, std::span<const ChatMessage> messages) {
  switch (format) {
    case ChatFormat::deepseek_v3:
      return detail::deepseek_v3_text(messages);
    case ChatFormat::deepseek_v2:
      return detail::deepseek_v2_text(messages);
    case ChatFormat::kimi_k2:
      return detail::kimi_k2_text(messages);
  }
  __builtin_unreachable();
}

}  // namespace mla::server

#endif  // MLA_SERVER_CHAT_FORMAT_HPP_
