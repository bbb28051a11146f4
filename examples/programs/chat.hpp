#ifndef MLA_EXAMPLES_PROGRAMS_CHAT_HPP_
#define MLA_EXAMPLES_PROGRAMS_CHAT_HPP_

#include <algorithm>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/text/chat_template.hpp"
#include "mla/text/tokenizer.hpp"

namespace mla::programs {

/// The turns of a chat as tokens. What a state has of them already is not computed again: the
/// tokens of a new turn go on from the longest beginning that both have.
class Chat {
 public:
  /// Throws std::runtime_error for a model without a chat template, or with one that is not
  /// supported.
  Chat(const std::filesystem::path& directory, const Tokenizer& tokenizer, ChatOptions options)
      : tokenizer_(tokenizer), options_(std::move(options)) {
    auto found = ChatTemplate::load(directory);
    if (!found) throw_runtime(directory.string(), ": has no chat template");
    template_.emplace(*std::move(found));
  }

  void add(std::string role, std::string content) {
    messages_.push_back({std::move(role), std::move(content)});
  }

  /// Cuts `state` back to what it has of the text so far, whose tokens were `seen`, and returns the
  /// tokens that follow, at least one.
  std::vector<TokenId> continue_from(DecoderState& state, std::span<const TokenId> seen) const {
    const std::vector<TokenId> all =
        tokenizer_.encode(template_->render(messages_, options_), false);
    require(!all.empty(), "the chat template makes no text of these messages");
    const Index most = std::min({std::ssize(seen), std::ssize(all) - 1, state.size()});
    const auto differ =
        std::mismatch(seen.begin(), seen.begin() + most, all.begin(), all.begin() + most).first;
    const Index same = differ - seen.begin();
    state.truncate(same);
    return {all.begin() + same, all.end()};
  }

 private:
  const Tokenizer& tokenizer_;
  ChatOptions options_;
  std::optional<ChatTemplate> template_;
  std::vector<ChatMessage> messages_;
};

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_CHAT_HPP_
