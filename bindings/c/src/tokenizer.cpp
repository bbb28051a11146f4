// The tokenizer.

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/text/streaming_decoder.hpp"
#include "mla/text/tokenizer.hpp"

#include "handle.hpp"

struct mla_tokenizer : mla::c::Handle<mla::c::Kind::tokenizer> {
  explicit mla_tokenizer(mla::Tokenizer&& loaded)
      : tokenizer(std::make_shared<const mla::Tokenizer>(std::move(loaded))) {}
  std::shared_ptr<const mla::Tokenizer> tokenizer;
};

struct mla_text_stream : mla::c::Handle<mla::c::Kind::text_stream> {
  mla_text_stream(std::shared_ptr<const mla::Tokenizer> of, bool skip_special)
      : tokenizer(std::move(of)), decoder(*tokenizer, skip_special) {}
  std::shared_ptr<const mla::Tokenizer> tokenizer;
  mla::StreamingDecoder decoder;
};

namespace mla::c {
namespace {

/// `text` and a NUL, which `bytes` does not count.
void write_text(std::string_view text, char* out, std::size_t capacity, std::size_t* bytes) {
  require(bytes != nullptr, "the pointer for the bytes is NULL");
  const std::span<char> room = array("text", out, capacity);
  *bytes = text.size();
  if (text.size() >= capacity)
    throw Failure(MLA_BUFFER_TOO_SMALL, detail::message_of({"text needs room for ", text.size() + 1,
                                                            " bytes, got ", capacity}));
  std::ranges::copy(text, room.begin());
  room[text.size()] = '\0';
}

/// Writes what next(decoder) says. The stream goes on only if that fits.
template <class Next>
mla_status stream_text(mla_text_stream* stream, char* text, std::size_t capacity,
                       std::size_t* bytes, const Next& next) noexcept {
  return guarded([&] {
    mla_text_stream& found = object(stream);
    const InUse in_use(found);
    StreamingDecoder decoder = found.decoder;
    write_text(next(decoder), text, capacity, bytes);
    found.decoder = std::move(decoder);
  });
}

}  // namespace
}  // namespace mla::c

extern "C" {

mla_status mla_tokenizer_load(const char* path, mla_tokenizer** tokenizer) {
  return mla::c::guarded([&] {
    mla::c::make(tokenizer, mla::Tokenizer(std::filesystem::path(mla::c::text("path", path))));
  });
}

void mla_tokenizer_destroy(mla_tokenizer* tokenizer) { mla::c::destroy(tokenizer); }

std::int64_t mla_tokenizer_vocab_size(const mla_tokenizer* tokenizer) {
  return mla::c::object_or_null(tokenizer) ? tokenizer->tokenizer->vocab_size() : 0;
}

mla_status mla_tokenizer_encode(const mla_tokenizer* tokenizer, const char* text, std::size_t bytes,
                                int add_bos, std::int32_t* ids, std::size_t capacity,
                                std::size_t* count) {
  return mla::c::guarded([&] {
    const mla::Tokenizer& found = *mla::c::object(tokenizer).tokenizer;
    const auto given = mla::c::array("text", text, bytes);
    mla::require(add_bos >= -1 && add_bos <= 1, "add_bos must be -1, 0 or 1, got ", add_bos);
    const std::vector<mla::TokenId> tokens =
        found.encode({given.data(), given.size()}, add_bos < 0 ? found.adds_bos() : add_bos != 0);
    mla::c::write_array("ids", std::span(tokens), ids, capacity, count);
  });
}

mla_status mla_tokenizer_decode(const mla_tokenizer* tokenizer, const std::int32_t* ids,
                                std::size_t count, int skip_special, char* text,
                                std::size_t capacity, std::size_t* bytes) {
  return mla::c::guarded([&] {
    const mla::Tokenizer& found = *mla::c::object(tokenizer).tokenizer;
    const std::string decoded = found.decode(mla::c::array("ids", ids, count), skip_special != 0);
    mla::c::write_text(decoded, text, capacity, bytes);
  });
}

mla_status mla_tokenizer_token_id(const mla_tokenizer* tokenizer, const char* token,
                                  std::int32_t* id) {
  return mla::c::guarded([&] {
    const mla::Tokenizer& found = *mla::c::object(tokenizer).tokenizer;
    mla::require(id != nullptr, "the pointer for the id is NULL");
    const auto there = found.token_id(mla::c::text("token", token));
    mla::require(there.has_value(), "the vocabulary has no token ", token);
    *id = *there;
  });
}

mla_status mla_text_stream_new(const mla_tokenizer* tokenizer, int skip_special,
                               mla_text_stream** stream) {
  return mla::c::guarded(
      [&] { mla::c::make(stream, mla::c::object(tokenizer).tokenizer, skip_special != 0); });
}

void mla_text_stream_destroy(mla_text_stream* stream) { mla::c::destroy(stream); }

mla_status mla_text_stream_push(mla_text_stream* stream, std::int32_t token, char* text,
                                std::size_t capacity, std::size_t* bytes) {
  return mla::c::stream_text(stream, text, capacity, bytes,
                             [&](mla::StreamingDecoder& decoder) { return decoder.push(token); });
}

mla_status mla_text_stream_finish(mla_text_stream* stream, char* text, std::size_t capacity,
                                  std::size_t* bytes) {
  return mla::c::stream_text(stream, text, capacity, bytes,
                             [](mla::StreamingDecoder& decoder) { return decoder.finish(); });
}

}  // extern "C"
