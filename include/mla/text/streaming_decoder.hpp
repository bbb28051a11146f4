#ifndef MLA_TEXT_STREAMING_DECODER_HPP_
#define MLA_TEXT_STREAMING_DECODER_HPP_

#include <string>

#include "mla/core/token.hpp"
#include "mla/text/token_stream.hpp"
#include "mla/text/tokenizer.hpp"
#include "mla/text/vocabulary.hpp"

namespace mla {

/// Decodes tokens as they come: the pieces together are what decode() gives for all of them, and
/// each is whole characters.
class StreamingDecoder {
 public:
  /// `tokenizer` must outlive the decoder.
  explicit StreamingDecoder(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(&tokenizer), skip_special_(skip_special), stream_(tokenizer.spelling()) {}

  /// The characters that `id` completes, often none. Throws std::invalid_argument when it is not in
  /// the vocabulary, and is then as before.
  std::string push(TokenId id) {
    const Vocabulary::Token& token = tokenizer_->token(id);
    return skip_special_ && token.special ? std::string() : stream_.push(token);
  }

  /// The end: what is not a whole character becomes U+FFFD. The decoder is as new afterwards.
  std::string finish() { return stream_.finish(); }

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  TokenStream stream_;
};

}  // namespace mla

#endif  // MLA_TEXT_STREAMING_DECODER_HPP_
