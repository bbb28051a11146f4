#ifndef MLA_SERVER_REQUESTS_HPP_
#define MLA_SERVER_REQUESTS_HPP_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/text/tokenizer.hpp"

#include "chat_format.hpp"
#include "completion.hpp"

// The bodies of requests. A field that this server does not know, or whose value would change the
// answer in a way that it cannot, is refused by name; those that cannot change it are ignored.

namespace mla::server {

/// What a server knows that requests are read with.
struct RequestContext {
  const Tokenizer& tokenizer;
  std::string model;  ///< the name that requests must ask for
  const ChatFormat& chat_format;
  Index max_position_embeddings;
  std::uint64_t seed;  ///< for a request that has none
};

/// A request for one or more texts: /v1/completions or /v1/chat/completions.
struct CompletionRequest {
  bool chat = false;
  std::vector<Prompt> prompts;  ///< choices of prompt i have the numbers from i * n on
  bool stream = false;
  bool include_usage = false;  ///< in a stream
};

/// Throw ApiError with the field that is not as it must be.
CompletionRequest read_completion_request(std::string_view body, const RequestContext& context);
CompletionRequest read_chat_request(std::string_view body, const RequestContext& context);

/// /v1/tokenize: {"model", "text" | "messages", "add_special_tokens"}.
std::vector<TokenId> read_tokenize_request(std::string_view body, const RequestContext& context);

}  // namespace mla::server

#endif  // MLA_SERVER_REQUESTS_HPP_
