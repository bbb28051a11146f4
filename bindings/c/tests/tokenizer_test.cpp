// libmla.so: the tokenizer and streams of text.

#include <gtest/gtest.h>
#include <mla.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "c_api.hpp"
#include "mla/text/tokenizer.hpp"

namespace mla::test {
namespace {

TEST(CApiTokenizer, EncodesAndDecodes) {
  const auto tokenizer = load_tokenizer();
  const Tokenizer expected(kModel);
  EXPECT_EQ(mla_tokenizer_vocab_size(tokenizer.get()), expected.vocab_size());
  const std::string text = "ROMEO:\nWhat, \u00e9tude \u4f60\u597d?";
  for (const int add_bos : {-1, 0, 1}) {
    const Tokens ids = add_bos < 0 ? expected.encode(text) : expected.encode(text, add_bos == 1);
    std::size_t count = 0;
    EXPECT_TRUE(refused(mla_tokenizer_encode(tokenizer.get(), text.data(), text.size(), add_bos,
                                             nullptr, 0, &count),
                        MLA_BUFFER_TOO_SMALL, "ids needs room for"));
    ASSERT_EQ(count, ids.size());
    Tokens actual(count);
    ASSERT_TRUE(ok(mla_tokenizer_encode(tokenizer.get(), text.data(), text.size(), add_bos,
                                        actual.data(), count, &count)));
    EXPECT_EQ(actual, ids);
    std::size_t bytes = 0;
    std::string back(text.size() + 1, '?');
    EXPECT_TRUE(refused(mla_tokenizer_decode(tokenizer.get(), ids.data(), ids.size(), 1,
                                             back.data(), text.size(), &bytes),
                        MLA_BUFFER_TOO_SMALL, "bytes"));
    EXPECT_EQ(bytes, text.size());
    ASSERT_TRUE(ok(mla_tokenizer_decode(tokenizer.get(), ids.data(), ids.size(), 1, back.data(),
                                        back.size(), &bytes)));
    EXPECT_EQ(back, text + '\0');
  }
  std::int32_t id = -1;
  EXPECT_TRUE(ok(mla_tokenizer_token_id(tokenizer.get(), "\u0120the", &id)));
  EXPECT_EQ(id, expected.token_id("\u0120the"));
  EXPECT_TRUE(refused(mla_tokenizer_token_id(tokenizer.get(), "no such", &id), MLA_INVALID_ARGUMENT,
                      "no such"));
  std::size_t count = 0;
  EXPECT_TRUE(refused(mla_tokenizer_encode(tokenizer.get(), "a\xff", 2, 0, &id, 1, &count),
                      MLA_INVALID_ARGUMENT, "UTF-8"));
  EXPECT_TRUE(refused(mla_tokenizer_encode(tokenizer.get(), "a", 1, 2, &id, 1, &count),
                      MLA_INVALID_ARGUMENT, "add_bos"));
  const std::int32_t foreign = 1024;
  EXPECT_TRUE(refused(mla_tokenizer_decode(tokenizer.get(), &foreign, 1, 1, nullptr, 0, &count),
                      MLA_INVALID_ARGUMENT, "1024"));
  mla_tokenizer* none = nullptr;
  EXPECT_TRUE(refused(mla_tokenizer_load("/nowhere", &none), MLA_RUNTIME_ERROR, "/nowhere"));
}

TEST(CApiTextStream, GivesWholeCharactersAndLosesNoneWhereTheBufferIsTooSmall) {
  auto tokenizer = load_tokenizer();
  const auto stream = made<OwnedStream>(&mla_text_stream_new, tokenizer.get(), 1);
  const Tokenizer cpp(kModel);
  tokenizer.reset();  // the stream keeps what it needs
  const std::string text = "a\u4f60\u597d";
  std::string all;
  for (const TokenId id : cpp.encode(text)) {
    char piece[16];
    std::size_t bytes = 0;
    const mla_status status = mla_text_stream_push(stream.get(), id, nullptr, 0, &bytes);
    EXPECT_TRUE(refused(status, MLA_BUFFER_TOO_SMALL, "text needs room for"));
    ASSERT_TRUE(ok(mla_text_stream_push(stream.get(), id, piece, sizeof piece, &bytes)));
    all.append(piece, bytes);
    EXPECT_EQ(piece[bytes], '\0');
  }
  EXPECT_EQ(all, text);
  char piece[16];
  std::size_t bytes = 0;
  const Tokens ids = cpp.encode("\u4f60", false);
  ASSERT_GT(ids.size(), 1U);
  ASSERT_TRUE(ok(mla_text_stream_push(stream.get(), ids[0], piece, sizeof piece, &bytes)));
  EXPECT_EQ(bytes, 0U);
  ASSERT_TRUE(ok(mla_text_stream_finish(stream.get(), piece, sizeof piece, &bytes)));
  EXPECT_STREQ(piece, "\ufffd");
}

}  // namespace
}  // namespace mla::test
