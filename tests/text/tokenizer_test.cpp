#include "mla/text/tokenizer.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "mla/core/tensor.hpp"
#include "mla/io/json.hpp"
#include "mla/text/streaming_decoder.hpp"
#include "support/random.hpp"
#include "text/small_tokenizer.hpp"

namespace mla {
namespace {

using test::Ids;
using test::open_tokenizer;
using test::small_tokenizer_json;
using test::TokenizerDirectory;

const std::string kModel = std::string(MLA_MODELS) + "/tiny-shakespeare-v3";

const Tokenizer& shakespeare() {
  static const Tokenizer tokenizer(kModel);
  return tokenizer;
}

// goldens.json: ids of Hugging Face's tokenizers.
TEST(Tokenizer, GivesTheGoldenIds) {
  const auto goldens = parse_json_file(kModel + "/goldens.json").at("tokenizer").at("strings");
  ASSERT_FALSE(goldens.empty());
  for (const auto& golden : goldens) {
    const std::string text = golden.at("text");
    const Ids ids = golden.at("ids");
    EXPECT_EQ(shakespeare().encode(text, false), ids) << text;
    EXPECT_EQ(shakespeare().decode(ids, false), text);
  }
}

TEST(Tokenizer, Fp8CheckpointHasTheSameTokenizer) {
  const Tokenizer tokenizer(kModel + "-fp8");
  EXPECT_EQ(tokenizer.encode("ROMEO:\nAh, how now"), shakespeare().encode("ROMEO:\nAh, how now"));
}

TEST(Tokenizer, TokensOfThePromptsAreAsManyAsTheGoldensSay) {
  const auto prompts = parse_json_file(kModel + "/goldens.json").at("prompts");
  ASSERT_FALSE(prompts.empty());
  for (const auto& [name, prompt] : prompts.items()) {
    const std::string text = prompt.at("text");
    EXPECT_EQ(std::ssize(shakespeare().encode(text)), prompt.at("tokens_with_bos")) << name;
  }
}

TEST(Tokenizer, KnowsItsSpecialTokens) {
  const Tokenizer& tokenizer = shakespeare();
  EXPECT_EQ(tokenizer.vocab_size(), 1024);
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_ids(), Ids{1});
  EXPECT_TRUE(tokenizer.adds_bos());
  EXPECT_EQ(tokenizer.encode("a", true), (Ids{0, *tokenizer.token_id("a")}));
  EXPECT_EQ(tokenizer.encode("a"), tokenizer.encode("a", true));
  EXPECT_EQ(tokenizer.encode(""), Ids{0});
  EXPECT_EQ(tokenizer.encode("", false), Ids{});
  EXPECT_TRUE(tokenizer.is_special(2));
  EXPECT_FALSE(tokenizer.is_special(3));
  EXPECT_EQ(tokenizer.token_text(0), "<\uff5cbegin\u2581of\u2581sentence\uff5c>");
  EXPECT_EQ(tokenizer.token_id("no such token"), std::nullopt);
}

// One piece of text of which most code has not thought.
std::string random_piece(test::Random& random) {
  const auto utf8 = [](char32_t c) {
    const auto byte = [](char32_t value) { return static_cast<char>(value); };
    if (c < 0x80) return std::string{byte(c)};
    if (c < 0x800) return std::string{byte(0xc0 | c >> 6), byte(0x80 | (c & 63))};
    if (c < 0x10000)
      return std::string{byte(0xe0 | c >> 12), byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63))};
    return std::string{byte(0xf0 | c >> 18), byte(0x80 | (c >> 12 & 63)),
                       byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63))};
  };
  const auto code_point = [&](char32_t low, char32_t high) {
    const auto c = static_cast<char32_t>(random.integer(low, high));
    return utf8(c >= 0xd800 && c < 0xe000 ? c - 0x800 : c);
  };
  switch (random.integer(0, 11)) {
    case 0:
      return code_point(0, 0x1f);  // control characters, also NUL
    case 1:
      return code_point(0x20, 0x7f);
    case 2:
      return code_point(0x80, 0x7ff);
    case 3:
      return code_point(0x4e00, 0x9fff);  // ideographs
    case 4:
      return "e" + code_point(0x300, 0x36f);  // combining marks
    case 5:
      return code_point(0x1f300, 0x1faff);  // emoji
    case 6:
      return code_point(0x10000, 0x10ffff);
    case 7:
      return std::to_string(random.integer(0, 10'000'000));
    case 8:
      return std::string(static_cast<std::size_t>(random.integer(1, 80)), ' ');
    case 9:
      return random.one_of<std::string>({"\n", "\r\n", "\n\n\n", "\t", "\u3000", "\u2028"});
    case 10:
      return random.one_of<std::string>({"<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5c",
                                         "\uff5c>", "\U0001f468\u200d\U0001f469"});
    default:
      return random.one_of<std::string>({" the", "ROMEO", "'s", "don't", ", ", "...", "a"});
  }
}

std::string random_text(test::Random& random, Index most_pieces) {
  std::string text;
  for (Index i = random.integer(0, most_pieces); i > 0; --i) text += random_piece(random);
  return text;
}

TEST(Tokenizer, EveryTextComesBack) {
  test::Random random(11);
  for (int repeat = 0; repeat < 2000; ++repeat) {
    const std::string text = random_text(random, 30);
    const Ids ids = shakespeare().encode(text, false);
    EXPECT_EQ(shakespeare().decode(ids, false), text);
    for (const std::int32_t id : ids) EXPECT_TRUE(id >= 0 && id < shakespeare().vocab_size());
  }
}

TEST(Tokenizer, StreamedTokensGiveTheDecodedTextForEveryPrefix) {
  test::Random random(12);
  for (int repeat = 0; repeat < 150; ++repeat) {
    Ids ids = shakespeare().encode(random_text(random, 12), false);
    for (Index i = random.integer(0, 10); i > 0; --i)  // and tokens that are no text
      ids.insert(ids.begin() + random.integer(0, std::ssize(ids)),
                 static_cast<std::int32_t>(random.integer(0, 1023)));
    for (const bool skip_special : {false, true}) {
      StreamingDecoder stream(shakespeare(), skip_special);
      std::string text;
      for (std::size_t count = 0; count <= ids.size(); ++count) {
        StreamingDecoder copy = stream;
        const std::string expected =
            shakespeare().decode(std::span(ids).first(count), skip_special);
        ASSERT_EQ(text + copy.finish(), expected);
        if (count == ids.size()) break;
        const std::string piece = stream.push(ids[count]);
        EXPECT_NO_THROW(require_utf8(piece));
        text += piece;
      }
    }
  }
}

TEST(Tokenizer, EmojiArriveInOnePiece) {
  const Ids ids = shakespeare().encode("\U0001f602", false);
  ASSERT_EQ(ids.size(), 4u);  // one for each byte
  StreamingDecoder stream(shakespeare());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(stream.push(ids[std::size_t(i)]), "");
  EXPECT_EQ(stream.push(ids[3]), "\U0001f602");
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_THROW(stream.push(1024), std::invalid_argument);
  EXPECT_EQ(stream.finish(), "\ufffd");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Tokenizer, SpecialTokensAreLeftOutOnlyWhenAsked) {
  const Tokenizer tokenizer = open_tokenizer(small_tokenizer_json());
  const Ids ids = tokenizer.encode("<s>ab<u><sep>", false);
  EXPECT_EQ(ids, (Ids{259, 256, 261, 260}));
  EXPECT_EQ(tokenizer.decode(ids, false), "<s>ab<u><sep>");
  EXPECT_EQ(tokenizer.decode(ids), "ab<u>");
}

TEST(Tokenizer, OfAddedTokensTheLeftmostAndThenTheLongestWins) {
  auto file = small_tokenizer_json();
  const auto add = [&](const char* text, bool normalized) {
    auto token = file["added_tokens"][0];
    token["content"] = text;
    token["normalized"] = normalized;
    token["id"] = 259 + file["added_tokens"].size();
    file["added_tokens"].push_back(token);
  };
  add("<sep><sep>", false);  // 262
  add("x<s", false);         // 263
  add("<sepa", true);        // 264: looked for after all that are not normalized
  add("b", true);            // also a token of the model
  file["added_tokens"].back()["id"] = 'b';
  const Tokenizer tokenizer = open_tokenizer(file);
  EXPECT_EQ(tokenizer.encode("<sep><sep><sep>", false), (Ids{262, 260}));
  EXPECT_EQ(tokenizer.encode("<sep><sep", false), (Ids{260, '<', 's', 'e', 'p'}));
  EXPECT_EQ(tokenizer.encode("x<s>", false), (Ids{263, '>'}));
  EXPECT_EQ(tokenizer.encode("<sepa<sep>a", false), (Ids{264, 260, 'a'}));
  EXPECT_EQ(tokenizer.encode("abc", false), (Ids{'a', 'b', 'c'}));
}

TEST(Tokenizer, MergesStopAtAddedTokensAndWords) {
  const Tokenizer tokenizer = open_tokenizer(small_tokenizer_json());
  EXPECT_EQ(tokenizer.encode("abc ad", false), (Ids{257, 258, 'd'}));
  EXPECT_EQ(tokenizer.encode("ab<u>c", false), (Ids{256, 261, 'c'}));
}

TEST(Tokenizer, IgnoreMergesTakesWholeWords) {
  auto file = small_tokenizer_json();
  file["model"]["vocab"]["x yz"] = 262;  // a space stands for no byte, so no text is this
  file["model"]["vocab"]["x\u0120z"] = 263;
  file["pre_tokenizer"]["use_regex"] = true;
  file["model"]["vocab"]["\u0120az"] = 264;
  EXPECT_EQ(open_tokenizer(file).encode("ab az x z", false),
            (Ids{256, 258, 'z', ' ', 'x', ' ', 'z'}));
  file["model"]["ignore_merges"] = true;
  EXPECT_EQ(open_tokenizer(file).encode("ab az x z", false), (Ids{256, 264, ' ', 'x', ' ', 'z'}));
}

TEST(Tokenizer, TokensOfOtherCharactersDecodeAsTheyAreWritten) {
  auto file = small_tokenizer_json();
  file["model"]["vocab"]["\u0120\u4e00"] = 262;
  EXPECT_EQ(open_tokenizer(file).decode(Ids{262, 258}), "\u0120\u4e00 a");
}

TEST(Tokenizer, ManyDigitsSpacesAndALongWordTakeNoTime) {
  const auto start = std::chrono::steady_clock::now();
  for (const std::string& text :
       {std::string(100'000, 'a'), std::string(100'000, ' '), std::string(100'000, '7'),
        std::string(100'000, '\n'), std::string(100'000, ' ') + "x", std::string(100'000, '!'),
        std::string(100'000, '<')})
    EXPECT_EQ(shakespeare().decode(shakespeare().encode(text, false)), text);
  // Measured: 0.15 s for all. Quadratic anything would take minutes.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST(Tokenizer, TextThatIsNotUtf8IsRefusedAtItsByte) {
  try {
    shakespeare().encode("caf\xc3\xa9 \xe2\x82");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "text is not UTF-8 at byte 6");
  }
}

TEST(Tokenizer, IdsOutsideTheVocabularyAreRefused) {
  const Tokenizer& tokenizer = shakespeare();
  for (const std::int32_t id : {-1, 1024, 2147483647, -2147483647}) {
    EXPECT_THROW(tokenizer.decode(Ids{3, id}), std::invalid_argument);
    EXPECT_THROW(tokenizer.token_text(id), std::invalid_argument);
    EXPECT_THROW(tokenizer.is_special(id), std::invalid_argument);
    EXPECT_THROW(tokenizer.decoded_bytes(id), std::invalid_argument);
  }
}

TEST(Tokenizer, ThreadsShareOne) {
  const std::string text = "PETRUCHIO:\nGentlemen and friends, I thank you for your pains: 1234\n";
  const Ids expected = shakespeare().encode(text);
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& result : results)
    threads.emplace_back([&] {
      for (int repeat = 0; repeat < 50; ++repeat) result = shakespeare().encode(text);
    });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) EXPECT_EQ(result, expected);
}

}  // namespace
}  // namespace mla
