// Two more formats that models are published with, held to goldens (tests/data/tokenizers): ids,
// words and decoded texts as the published tokenizers give them.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "mla/io/json.hpp"
#include "mla/text/streaming_decoder.hpp"
#include "mla/text/tokenizer.hpp"
#include "support/safetensors_writer.hpp"

namespace mla::test {
namespace {

std::filesystem::path folder_of(const std::string& name) {
  return std::filesystem::path(MLA_TEST_DATA) / "tokenizers" / name;
}

class PublishedTokenizer : public ::testing::TestWithParam<const char*> {
 protected:
  Tokenizer tokenizer_{folder_of(GetParam())};
  nlohmann::json goldens_ = parse_json_file(folder_of(GetParam()) / "goldens.json");
};
INSTANTIATE_TEST_SUITE_P(Folders, PublishedTokenizer,
                         ::testing::Values("kimi-tiktoken", "minicpm3-pieces"),
                         [](const auto& folder) { return std::string(folder.param).substr(0, 4); });

TEST_P(PublishedTokenizer, GivesTheGoldenIds) {
  EXPECT_GE(goldens_["strings"].size(), 50u);
  for (const nlohmann::json& golden : goldens_["strings"])
    EXPECT_EQ(tokenizer_.encode(golden["text"].get<std::string>(), false),
              golden["ids"].get<std::vector<TokenId>>())
        << golden["text"];
}

TEST_P(PublishedTokenizer, DecodesTheGoldens) {
  for (const nlohmann::json& golden : goldens_["decode"])
    EXPECT_EQ(tokenizer_.decode(golden["ids"].get<std::vector<TokenId>>()),
              golden["text"].get<std::string>())
        << golden["ids"];
  for (const nlohmann::json& golden : goldens_["strings"])
    if (golden.contains("decoded")) {
      EXPECT_EQ(tokenizer_.decode(golden["ids"].get<std::vector<TokenId>>()),
                golden["decoded"].get<std::string>())
          << golden["text"];
    }
}

TEST_P(PublishedTokenizer, StreamedTokensGiveTheDecodedText) {
  for (const char* list : {"strings", "decode"})
    for (const nlohmann::json& golden : goldens_[list]) {
      const auto ids = golden["ids"].get<std::vector<TokenId>>();
      for (const bool skip_special : {true, false}) {
        StreamingDecoder stream(tokenizer_, skip_special);
        std::string text;
        for (const TokenId id : ids) {
          text += stream.push(id);
          EXPECT_TRUE(is_utf8(text));
        }
        EXPECT_EQ(text + stream.finish(), tokenizer_.decode(ids, skip_special)) << golden;
      }
    }
}

TEST(TiktokenFile, AWordThatIsATokenIsNotMerged) {
  const Tokenizer tokenizer(folder_of("kimi-tiktoken"));
  const nlohmann::json goldens = parse_json_file(folder_of("kimi-tiktoken") / "goldens.json");
  for (const nlohmann::json& piece : goldens["whole_pieces"])
    EXPECT_EQ(tokenizer.encode(piece.get<std::string>(), false).size(), 1u) << piece;
  EXPECT_EQ(tokenizer.vocab_size(), 900 + 258);
  EXPECT_EQ(tokenizer.bos_id(), 900);
  EXPECT_EQ(tokenizer.token_text(905), "<|reserved_token_905|>");
  EXPECT_TRUE(tokenizer.is_special(905));
  EXPECT_FALSE(tokenizer.adds_bos());
}

TEST(TokenizerPieces, AddABosAndMarkEachPartOfAText) {
  const Tokenizer tokenizer(folder_of("minicpm3-pieces"));
  EXPECT_TRUE(tokenizer.adds_bos());
  EXPECT_EQ(tokenizer.encode("").size(), 1u);
  const auto two = tokenizer.encode("the<|im_end|>the", false);
  const auto one = tokenizer.encode("the", false);
  std::vector<TokenId> expected = one;
  expected.push_back(504);
  expected.insert(expected.end(), one.begin(), one.end());
  EXPECT_EQ(two, expected);
}

std::string text_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

testing::AssertionResult tiktoken_refused(const std::function<void(std::string&)>& change,
                                          const std::vector<std::string>& parts) {
  const TemporaryDirectory directory;
  std::string model = text_of(folder_of("kimi-tiktoken") / "tiktoken.model");
  change(model);
  write_file(directory / "tiktoken.model", model);
  write_file(directory / "tokenizer_config.json",
             text_of(folder_of("kimi-tiktoken") / "tokenizer_config.json"));
  return fails_naming([&] { Tokenizer{directory.path()}; }, parts);
}

TEST(TiktokenFile, IsRefusedByTheLine) {
  const auto line = [](const char* text) {
    return [text](std::string& model) { model = text + model.substr(model.find('\n')); };
  };
  EXPECT_TRUE(tiktoken_refused(line("IQ=="), {"tiktoken.model", "line 1", "rank"}));
  EXPECT_TRUE(tiktoken_refused(line("IQ== 1"), {"line 1", "rank 0", "got 1"}));
  EXPECT_TRUE(tiktoken_refused(line("IQ== x"), {"line 1", "rank 0", "got x"}));
  EXPECT_TRUE(tiktoken_refused(line("I? 0"), {"line 1", "base64"}));
  EXPECT_TRUE(tiktoken_refused(line(" 0"), {"line 1", "base64"}));
  EXPECT_TRUE(tiktoken_refused(line("IiI= 0"), {"stands for byte 33"}));
  EXPECT_TRUE(tiktoken_refused([](std::string& model) { model += "\n"; }, {"line 901"}));
}

TEST(TiktokenFile, OfAnotherTokenizerIsRefused) {
  const TemporaryDirectory directory;
  write_file(directory / "tiktoken.model", text_of(folder_of("kimi-tiktoken") / "tiktoken.model"));
  EXPECT_TRUE(fails_naming([&] { Tokenizer{directory.path()}; }, {"tokenizer_config.json"}));
  nlohmann::json config = parse_json_file(folder_of("kimi-tiktoken") / "tokenizer_config.json");
  config["tokenizer_class"] = "QWenTokenizer";
  write_file(directory / "tokenizer_config.json", config.dump());
  EXPECT_TRUE(fails_naming([&] { Tokenizer{directory.path()}; },
                           {"tokenizer_class = QWenTokenizer", "TikTokenTokenizer"}));
  config["tokenizer_class"] = "TikTokenTokenizer";
  config["added_tokens_decoder"]["1158"] = {{"content", "<more>"}};
  write_file(directory / "tokenizer_config.json", config.dump());
  EXPECT_TRUE(
      fails_naming([&] { Tokenizer{directory.path()}; }, {"added_tokens_decoder", "900 and 1157"}));
}

testing::AssertionResult pieces_refused(const std::function<void(nlohmann::json&)>& change,
                                        const std::vector<std::string>& parts) {
  nlohmann::json json = parse_json_file(folder_of("minicpm3-pieces") / "tokenizer.json");
  change(json);
  const TemporaryDirectory directory;
  write_file(directory / "tokenizer.json", json.dump());
  return fails_naming([&] { Tokenizer{directory.path()}; }, parts);
}

TEST(TokenizerPieces, AreRefusedWithAnythingElseAroundThem) {
  using nlohmann::json;
  EXPECT_TRUE(
      pieces_refused([](json& j) { j["normalizer"] = nullptr; }, {"normalizer is missing"}));
  EXPECT_TRUE(pieces_refused([](json& j) { j["normalizer"]["normalizers"][0]["prepend"] = "_"; },
                             {"normalizer = ", "not supported with byte_fallback"}));
  EXPECT_TRUE(pieces_refused([](json& j) { j["decoder"]["decoders"].erase(3); },
                             {"decoder = ", "not supported with byte_fallback"}));
  EXPECT_TRUE(pieces_refused(
      [](json& j) {
        j["pre_tokenizer"] = {{"type", "Metaspace"}};
      },
      {"pre_tokenizer = ", "Metaspace"}));
  EXPECT_TRUE(pieces_refused([](json& j) { j["model"]["vocab"].erase("<0x0A>"); },
                             {"no token <0x0A>", "byte 10"}));
  EXPECT_TRUE(
      pieces_refused([](json& j) { j["model"]["ignore_merges"] = true; }, {"ignore_merges"}));
  EXPECT_TRUE(pieces_refused([](json& j) { j["added_tokens"][4]["normalized"] = true; },
                             {"<|im_start|>", "normalized"}));
}

}  // namespace
}  // namespace mla::test
