#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "mla/text/tokenizer.hpp"
#include "support/safetensors_writer.hpp"
#include "text/small_tokenizer.hpp"

namespace mla {
namespace {

using nlohmann::json;
using test::fails_naming;
using test::Ids;
using test::open_tokenizer;
using test::small_tokenizer_json;
using test::TokenizerDirectory;

// Whether the small tokenizer with this change is refused with `parts` in the message.
testing::AssertionResult refused(const std::function<void(json&)>& change,
                                 std::vector<std::string> parts) {
  json changed = small_tokenizer_json();
  change(changed);
  parts.push_back("tokenizer.json");
  return fails_naming([&] { open_tokenizer(changed); }, parts);
}

TEST(TokenizerFiles, TheSmallOneIsAccepted) {
  EXPECT_EQ(open_tokenizer(small_tokenizer_json()).vocab_size(), 262);
}

TEST(TokenizerFiles, MissingOrUnknownPartsAreNamed) {
  for (const char* key : {"model", "pre_tokenizer", "decoder"}) {
    EXPECT_TRUE(refused([&](json& j) { j.erase(key); }, {std::string(key) + " is missing"}));
    EXPECT_TRUE(refused([&](json& j) { j[key] = nullptr; }, {std::string(key) + " is missing"}));
    EXPECT_TRUE(refused([&](json& j) { j[key] = 1; }, {key, "object"}));
    EXPECT_TRUE(refused([&](json& j) { j[key].erase("type"); }, {key, "type is missing"}));
    EXPECT_TRUE(refused([&](json& j) { j[key]["type"] = "Fancy"; }, {key, "Fancy"}));
  }
  EXPECT_TRUE(refused([](json& j) { j = json::array(); }, {"object"}));
  EXPECT_TRUE(refused([](json& j) { j["version"] = "2.0"; }, {"version", "2.0"}));
  EXPECT_TRUE(refused([](json& j) { j["truncation"] = {{"max_length", 5}}; }, {"truncation"}));
  EXPECT_TRUE(refused([](json& j) { j["padding"] = {{"strategy", "x"}}; }, {"padding"}));
  EXPECT_TRUE(refused([](json& j) { j["new_part"] = 1; }, {"new_part"}));
}

TEST(TokenizerFiles, OnlyTheEmptyNormalizerIsSupported) {
  json empty = small_tokenizer_json();
  empty["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array()}};
  EXPECT_NO_THROW(open_tokenizer(empty));
  EXPECT_TRUE(refused([](json& j) { j["normalizer"] = {{"type", "NFC"}}; }, {"normalizer", "NFC"}));
  EXPECT_TRUE(refused(
      [](json& j) {
        j["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}};
      },
      {"normalizer", "Lowercase"}));
}

TEST(TokenizerFiles, VocabularyMustBeWhole) {
  const auto vocab = [](const std::function<void(json&)>& change, std::vector<std::string> parts) {
    return refused([&](json& j) { change(j["model"]["vocab"]); }, std::move(parts));
  };
  EXPECT_TRUE(refused([](json& j) { j["model"].erase("vocab"); }, {"model.vocab is missing"}));
  EXPECT_TRUE(vocab([](json& v) { v = json::array(); }, {"model.vocab", "object"}));
  EXPECT_TRUE(vocab([](json& v) { v["ab"] = "256"; }, {"model.vocab", "ab", "256"}));
  EXPECT_TRUE(vocab([](json& v) { v["ab"] = -1; }, {"model.vocab", "ab", "-1"}));
  EXPECT_TRUE(vocab([](json& v) { v["ab"] = 256.5; }, {"model.vocab", "ab", "256.5"}));
  EXPECT_TRUE(vocab([](json& v) { v["ab"] = 5'000'000'000; }, {"model.vocab", "ab", "5000000000"}));
  EXPECT_TRUE(vocab([](json& v) { v["ab"] = 65; }, {"ab", "A", "same id 65"}));
  EXPECT_TRUE(vocab([](json& v) { v["ab"] = 262; }, {"ab", "262", "0 to 261"}));
  EXPECT_TRUE(vocab([](json& v) { v[""] = 262; }, {"model.vocab", "empty"}));
  EXPECT_TRUE(vocab([](json& v) { v.erase("\u010a"); }, {"model.vocab", "byte 10"}));
}

TEST(TokenizerFiles, TokensThatOccurTwiceAreRefused) {
  std::string text = small_tokenizer_json().dump();
  text.insert(text.find("\"abc\""), "\"ab\":262,");
  const test::TemporaryDirectory directory;
  test::write_file(directory / "tokenizer.json", text);
  EXPECT_TRUE(fails_naming([&] { Tokenizer tokenizer(directory.path()); },
                           {"tokenizer.json", "model.vocab.ab", "twice"}));
}

TEST(TokenizerFiles, MergesMustBeOfKnownTokens) {
  const auto merge = [](const json& value, std::vector<std::string> parts) {
    parts.push_back("model.merges[3]");
    return refused([&](json& j) { j["model"]["merges"].push_back(value); }, std::move(parts));
  };
  EXPECT_TRUE(refused([](json& j) { j["model"].erase("merges"); }, {"model.merges"}));
  EXPECT_TRUE(refused([](json& j) { j["model"]["merges"] = "a b"; }, {"model.merges"}));
  EXPECT_TRUE(merge("a c", {"ac"}));  // the merged one
  EXPECT_TRUE(merge("xy z", {"xy"}));
  EXPECT_TRUE(merge("a yz", {"yz"}));
  EXPECT_TRUE(merge("< s>", {"s>"}));  // added tokens are not for merging
  EXPECT_TRUE(merge("ab", {"two tokens"}));
  EXPECT_TRUE(merge("a b c", {"two tokens"}));
  EXPECT_TRUE(merge(7, {"7"}));
  EXPECT_TRUE(merge(json::array({"a"}), {"string"}));
  EXPECT_TRUE(merge(json::array({"a", 1}), {"string"}));
}

TEST(TokenizerFiles, ModelOptionsThatChangeTokensAreRefused) {
  const auto option = [](const char* key, const json& value) {
    return refused([&](json& j) { j["model"][key] = value; }, {std::string("model.") + key});
  };
  EXPECT_TRUE(option("type", "WordPiece"));
  EXPECT_TRUE(option("type", "Unigram"));
  EXPECT_TRUE(option("dropout", 0.1));
  EXPECT_TRUE(refused([](json& j) { j["model"]["byte_fallback"] = true; },
                      {"pre_tokenizer = ", "byte_fallback"}));
  EXPECT_TRUE(option("continuing_subword_prefix", "##"));
  EXPECT_TRUE(option("end_of_word_suffix", "</w>"));
  EXPECT_TRUE(option("ignore_merges", 1));
  EXPECT_TRUE(option("new_option", 1));
  json harmless = small_tokenizer_json();
  harmless["model"].update({{"continuing_subword_prefix", ""},
                            {"end_of_word_suffix", ""},
                            {"byte_fallback", false},
                            {"fuse_unk", false},
                            {"unk_token", "<u>"}});
  EXPECT_NO_THROW(open_tokenizer(harmless));
}

TEST(TokenizerFiles, AddedTokensMustFit) {
  const auto added = [](const std::function<void(json&)>& change, std::vector<std::string> parts) {
    parts.push_back("added_tokens");
    return refused([&](json& j) { change(j["added_tokens"]); }, std::move(parts));
  };
  EXPECT_TRUE(added([](json& a) { a = "none"; }, {"array"}));
  EXPECT_TRUE(added([](json& a) { a[1] = 3; }, {"[1]", "object"}));
  for (const char* key : {"id", "content"})
    EXPECT_TRUE(added([&](json& a) { a[1].erase(key); }, {"[1]", key}));
  for (const char* key : {"single_word", "lstrip", "rstrip"})
    EXPECT_TRUE(added([&](json& a) { a[1][key] = true; }, {"[1]", key}));
  EXPECT_TRUE(added([](json& a) { a[1]["special"] = 1; }, {"[1]", "special"}));
  EXPECT_TRUE(added([](json& a) { a[1]["content"] = ""; }, {"[1]", "content"}));
  EXPECT_TRUE(added([](json& a) { a[1]["content"] = "<s>"; }, {"[1]", "<s>", "twice"}));
  EXPECT_TRUE(added([](json& a) { a[1]["content"] = "ab"; }, {"[1]", "ab", "260", "256"}));
  EXPECT_TRUE(refused([](json& j) { j["added_tokens"][1]["id"] = 259; }, {"<sep>", "same id 259"}));
  EXPECT_TRUE(refused([](json& j) { j["added_tokens"][1]["id"] = 300; }, {"<sep>", "300"}));
}

// {"bos_token": ...} and so on beside the small tokenizer.
struct Config {
  json tokenizer = small_tokenizer_json();
  json tokenizer_config = json::object();
  json generation_config = json::object();

  Tokenizer open() const {
    TokenizerDirectory directory;
    directory.write("tokenizer.json", tokenizer);
    directory.write("tokenizer_config.json", tokenizer_config);
    directory.write("generation_config.json", generation_config);
    return Tokenizer(directory.path());
  }
};
const json kTemplate = {{"type", "TemplateProcessing"},
                        {"single",
                         {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
                          {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
                        {"pair", json::array()},
                        {"special_tokens", json::object()}};

TEST(TokenizerFiles, BosIsAddedAsTheFilesSay) {
  EXPECT_EQ(Config().open().bos_id(), std::nullopt);
  EXPECT_FALSE(Config().open().adds_bos());
  EXPECT_THROW(Config().open().encode("a", true), std::invalid_argument);

  const Config config{.tokenizer_config = {{"bos_token", "<s>"}, {"add_bos_token", true}}};
  EXPECT_EQ(config.open().encode("a"), (Ids{259, 'a'}));
  EXPECT_EQ(config.open().encode("a", false), Ids{'a'});

  const Config off{
      .tokenizer_config = {{"bos_token", {{"content", "<s>"}}}, {"add_bos_token", false}}};
  EXPECT_EQ(off.open().encode("a"), Ids{'a'});
  EXPECT_EQ(off.open().encode("a", true), (Ids{259, 'a'}));

  Config by_template;
  by_template.tokenizer["post_processor"] = {{"type", "Sequence"},
                                             {"processors", {{{"type", "ByteLevel"}}, kTemplate}}};
  EXPECT_EQ(by_template.open().encode("a"), (Ids{259, 'a'}));
  by_template.tokenizer_config = {{"add_bos_token", false}};
  EXPECT_EQ(by_template.open().encode("a"), Ids{'a'});
}

TEST(TokenizerFiles, TheSpecialTokensComeFromTheFilesInOrder) {
  const Config config{.tokenizer_config = {{"bos_token", "<s>"}, {"eos_token", "<sep>"}},
                      .generation_config = {{"bos_token_id", 5}, {"eos_token_id", {261, 260}}}};
  EXPECT_EQ(config.open().bos_id(), 259);
  EXPECT_EQ(config.open().eos_ids(), (Ids{261, 260}));

  const Config named{.tokenizer_config = {{"bos_token", nullptr}, {"eos_token", "<sep>"}}};
  EXPECT_EQ(named.open().bos_id(), std::nullopt);
  EXPECT_EQ(named.open().eos_ids(), Ids{260});

  const Config numbered{.generation_config = {{"bos_token_id", 5}, {"eos_token_id", 260}}};
  EXPECT_EQ(numbered.open().bos_id(), 5);
  EXPECT_EQ(numbered.open().eos_ids(), Ids{260});
}

TEST(TokenizerFiles, OneFileAloneHasNoSpecialTokens) {
  TokenizerDirectory directory;
  directory.write("tokenizer.json", small_tokenizer_json());
  directory.write("tokenizer_config.json", {{"bos_token", "<s>"}, {"add_bos_token", true}});
  const Tokenizer tokenizer(directory.path() / "tokenizer.json");
  EXPECT_EQ(tokenizer.encode("a"), Ids{'a'});
  EXPECT_TRUE(tokenizer.eos_ids().empty());
}

TEST(TokenizerFiles, OtherFilesThatDoNotFitAreRefused) {
  const auto bad_config = [](const json& config, std::vector<std::string> parts) {
    parts.push_back("tokenizer_config.json");
    return fails_naming([&] { (Config{.tokenizer_config = config}.open()); }, parts);
  };
  EXPECT_TRUE(bad_config(json::array(), {"object"}));
  EXPECT_TRUE(bad_config({{"bos_token", "<none>"}}, {"bos_token", "<none>"}));
  EXPECT_TRUE(bad_config({{"eos_token", 3}}, {"eos_token", "3"}));
  EXPECT_TRUE(bad_config({{"eos_token", {{"text", "<s>"}}}}, {"eos_token.content"}));
  EXPECT_TRUE(bad_config({{"add_bos_token", "yes"}}, {"add_bos_token"}));
  EXPECT_TRUE(bad_config({{"add_bos_token", true}}, {"add_bos_token", "bos_token"}));
  EXPECT_TRUE(bad_config({{"add_eos_token", true}}, {"add_eos_token"}));
  const auto decoder = [](const char* id, const char* text) {
    return json{{"added_tokens_decoder", {{id, {{"content", text}}}}}};
  };
  EXPECT_NO_THROW((Config{.tokenizer_config = decoder("260", "<sep>")}.open()));
  EXPECT_TRUE(bad_config(decoder("259", "<sep>"), {"added_tokens_decoder.259", "<sep>", "260"}));
  EXPECT_TRUE(bad_config(decoder("262", "<new>"), {"added_tokens_decoder.262", "<new>"}));
  EXPECT_TRUE(bad_config({{"added_tokens_decoder", 1}}, {"added_tokens_decoder"}));

  const auto bad_generation = [](const json& config, std::vector<std::string> parts) {
    parts.push_back("generation_config.json");
    return fails_naming([&] { (Config{.generation_config = config}.open()); }, parts);
  };
  EXPECT_TRUE(bad_generation({{"bos_token_id", 262}}, {"bos_token_id", "262"}));
  EXPECT_TRUE(bad_generation({{"eos_token_id", {1, 262}}}, {"eos_token_id", "262"}));
  EXPECT_TRUE(bad_generation({{"eos_token_id", "<s>"}}, {"eos_token_id", "<s>"}));

  EXPECT_TRUE(fails_naming([] { Tokenizer tokenizer("/no/such/place"); }, {"/no/such/place"}));
}

TEST(TokenizerFiles, PostProcessorsAreRefusedByName) {
  const auto processor = [](const json& value, std::vector<std::string> parts) {
    parts.push_back("post_processor");
    return refused([&](json& j) { j["post_processor"] = value; }, std::move(parts));
  };
  EXPECT_TRUE(processor({{"type", "BertProcessing"}}, {"BertProcessing"}));
  EXPECT_TRUE(processor({{"type", "Sequence"}}, {"processors"}));
  EXPECT_TRUE(processor({{"type", "Sequence"}, {"processors", {{{"type", "Roberta"}}}}},
                        {"processors", "Roberta"}));
  json after = kTemplate;
  std::swap(after["single"][0], after["single"][1]);
  EXPECT_TRUE(processor(after, {"single", "after the text"}));
  json two = kTemplate;
  two["single"].push_back(two["single"][1]);
  EXPECT_TRUE(processor(two, {"single"}));
  json unknown = kTemplate;
  unknown["single"][0]["SpecialToken"]["id"] = "<none>";
  EXPECT_TRUE(processor(unknown, {"<none>"}));
  EXPECT_TRUE(processor({{"type", "TemplateProcessing"}}, {"single"}));
}

}  // namespace
}  // namespace mla
