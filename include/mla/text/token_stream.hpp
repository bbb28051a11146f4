#ifndef MLA_TEXT_TOKEN_STREAM_HPP_
#define MLA_TEXT_TOKEN_STREAM_HPP_

#include <string>
#include <utility>

#include "mla/text/byte_pair_model.hpp"
#include "mla/text/utf8.hpp"
#include "mla/text/vocabulary.hpp"

namespace mla {

/// The text of tokens that come one by one, as the decoder of their tokenizer has it:
///   byte_level  bytes, made UTF-8 (Utf8Stream)
///   pieces      texts; a run of byte tokens is UTF-8 as a whole, or each of them is U+FFFD; one
///               space at the beginning is left out
class TokenStream {
 public:
  explicit TokenStream(Spelling spelling) : spelling_(spelling) {}

  /// The characters that `token` completes, often none.
  std::string push(const Vocabulary::Token& token) {
    if (spelling_ == Spelling::byte_level) return stream_.push(token.bytes);
    if (!token.byte) return begun(finished_run() + token.bytes);
    run_ += token.bytes;
    return {};
  }

  /// The end: what is not a whole character becomes U+FFFD. The stream is as new afterwards.
  std::string finish() {
    std::string text = spelling_ == Spelling::byte_level ? stream_.finish() : begun(finished_run());
    at_begin_ = true;
    return text;
  }

 private:
  std::string finished_run() {
    std::string run = std::exchange(run_, {});
    if (is_utf8(run)) return run;
    std::string replaced;
    for (std::size_t i = 0; i < run.size(); ++i) replaced += "\xef\xbf\xbd";
    return replaced;
  }

  std::string begun(std::string text) {
    if (at_begin_ && !text.empty()) {
      at_begin_ = false;
      if (text.front() == ' ') text.erase(0, 1);
    }
    return text;
  }

  Spelling spelling_;
  Utf8Stream stream_;
  std::string run_;  // of byte tokens
  bool at_begin_ = true;
};

}  // namespace mla

#endif  // MLA_TEXT_TOKEN_STREAM_HPP_
