#ifndef MLA_SERVER_RESPONSES_HPP_
#define MLA_SERVER_RESPONSES_HPP_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mla/text/tokenizer.hpp"

#include "api_error.hpp"
#include "completion.hpp"
#include "requests.hpp"
#include "statistics.hpp"

// Answers in the API's own form.

namespace mla::server {

/// JSON text; what is not UTF-8 becomes U+FFFD.
std::string dump(const nlohmann::json& json);

nlohmann::json error_json(const ApiError& error);

/// Makes the answer of one request, whole or piece by piece.
class CompletionWriter {
 public:
  CompletionWriter(const CompletionRequest& request, const Tokenizer& tokenizer, std::string id,
                   std::string model, std::int64_t created);

  /// In a stream, what goes before the first piece.
  std::vector<nlohmann::json> begin() const;
  /// A piece of prompt `p`, in a stream.
  nlohmann::json chunk(std::size_t p, const Piece& piece);
  /// In a stream, what goes after the last piece.
  std::vector<nlohmann::json> end(const Usage& usage) const;

  /// A piece of prompt `p`, to be part of whole().
  void add(std::size_t p, const Piece& piece);
  nlohmann::json whole(const Usage& usage) const;

 private:
  struct Choice {
    std::string text;
    nlohmann::json logprobs;
    std::string finish_reason;
    std::size_t text_offset = 0;  // bytes before the next token
  };

  std::size_t number_of(std::size_t p, const Piece& piece) const noexcept;
  nlohmann::json envelope(const char* object) const;
  nlohmann::json logprobs(const std::vector<TokenReport>& reports, Choice& choice) const;
  nlohmann::json chat_logprobs(const std::vector<TokenReport>& reports) const;
  nlohmann::json token_json(const TokenLogprob& token) const;
  std::string token_bytes(TokenId token) const;

  const CompletionRequest& request_;
  const Tokenizer& tokenizer_;
  std::string id_, model_;
  std::int64_t created_;
  std::vector<Choice> choices_;
};

/// For Prometheus.
std::string metrics_text(const Statistics& statistics);
/// For people, and for the page.
nlohmann::json health_json(const Statistics& statistics);

}  // namespace mla::server

#endif  // MLA_SERVER_RESPONSES_HPP_
