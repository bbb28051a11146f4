#include "mla/text/regex.hpp"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "mla/text/pre_tokenizer.hpp"
#include "support/safetensors_writer.hpp"

namespace mla {
namespace {

using test::fails_naming;
using Words = std::vector<std::string>;

// All matches, one after the other.
Words matches(std::string_view pattern, std::string_view text) {
  const Regex regex(pattern, "pattern");
  RegexMemory memory;
  Words found;
  std::size_t from = 0;
  while (const auto match = regex.find(text, from, memory)) {
    found.emplace_back(text.substr(match->begin, match->end - match->begin));
    from = match->end;
  }
  return found;
}

TEST(Regex, WhiteSpaceIsThatOfUnicode) {
  const std::string spaces =
      "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000";
  const std::string others = "\x1c\x1f!\u0084\u0086\u180e\u200b\u2060\ufeff\U0010ffff";
  const std::string text = "a" + spaces + others + "b";
  EXPECT_EQ(matches(R"(\s+)", text), Words{spaces});
  EXPECT_EQ(matches(R"([\s]+)", text), Words{spaces});
  EXPECT_EQ(matches(R"(\S+)", text), (Words{"a", others + "b"}));
  EXPECT_EQ(matches(R"([\S]+)", text), (Words{"a", others + "b"}));
  EXPECT_EQ(matches(R"([^\s]+)", text), (Words{"a", others + "b"}));
  EXPECT_EQ(matches(R"([\s\S]+)", text), Words{text});
}

TEST(Regex, DigitsAreThoseOfEveryScript) {
  EXPECT_EQ(matches(R"(\d+)", "a12\u0663\u00bd"), Words{"12\u0663"});
  EXPECT_EQ(matches(R"([^\D1]+)", "a12\u0663\u00bd"), Words{"2\u0663"});
}

// As with Oniguruma.
TEST(Regex, LineEndsAreThoseBeforeNewlinesAndTheEnd) {
  EXPECT_EQ(matches(R"(\s+$)", "a  \n b \r\nc "), (Words{"  ", " \r", " "}));
  EXPECT_EQ(matches(R"(^.)", "ab\ncd\n"), (Words{"a", "c"}));
  EXPECT_EQ(matches(R"(.+)", "a\rb\u2028\nc"), (Words{"a\rb\u2028", "c"}));
}

TEST(Regex, TranslatesCodePointsAndBraces) {
  EXPECT_EQ(matches(R"([\u4e00-\u9fff]\x{3000})", "\u4e01\u3000"), Words{"\u4e01\u3000"});
  EXPECT_EQ(matches(R"(a{x)", "aa{x"), Words{"a{x"});
  EXPECT_EQ(matches(R"(a{2,})", "a aaa"), Words{"aaa"});
  EXPECT_EQ(matches(R"(a{1,2}?)", "aaa"), (Words{"a", "a", "a"}));
  EXPECT_EQ(matches(R"((?i:'s|'LL))", "'S'lL'\u017f'd"), (Words{"'S", "'lL", "'\u017f"}));
  EXPECT_EQ(matches(R"((a|b)+?\.)", "aba."), Words{"aba."});
}

TEST(Regex, RefusesWhatOnigurumaReadsOtherwise) {
  for (const auto& [pattern, part] :
       std::vector<std::pair<std::string, std::string>>{{R"(\w+)", R"(\w)"},
                                                        {R"(a\b)", R"(\b)"},
                                                        {R"([\h])", R"(\h)"},
                                                        {R"(\v)", R"(\v)"},
                                                        {R"(\x41)", R"(\x)"},
                                                        {R"((a)\1)", R"(\1)"},
                                                        {R"(\u41)", R"(\u)"},
                                                        {R"(\x{})", R"(\x{)"},
                                                        {R"(\Qa\E)", R"(\Q)"},
                                                        {R"([a[b]])", "class"},
                                                        {R"([[:alpha:]])", "class"},
                                                        {R"([a&&b])", "&&"},
                                                        {R"([]a])", "empty class"},
                                                        {R"([a)", "without end"},
                                                        {R"(a{2}+)", "possessive"},
                                                        {R"(a{2,3}+)", "possessive"},
                                                        {R"(a{2}?)", "lazy"},
                                                        {R"(a{,2})", "{,"},
                                                        {R"((?m)a)", "(?m"},
                                                        {R"((?<n>a))", "(?<"},
                                                        {R"((*UTF)a)", "(*"},
                                                        {R"((?#c)a)", "(?#"},
                                                        {R"(\p{Greek}+)", R"(\p{Greek})"},
                                                        {R"(\pL)", R"(\pL)"},
                                                        {R"(\p{^L})", R"(\p{^L})"},
                                                        {R"([a-\s])", "range"},
                                                        {"a\\", "\\"}}) {
    EXPECT_TRUE(
        fails_naming([&, p = pattern] { Regex(p, "here"); }, {"here", part, "is not supported"}))
        << pattern;
  }
}

TEST(Regex, RefusesWhatDoesNotCompileOrMatchesNothing) {
  for (const char* pattern : {"(", "a)", "*", "[b-a]", "a{3,2}", "(?<=a+)b", R"([\p{L}-z])"})
    EXPECT_TRUE(fails_naming([&] { Regex(pattern, "here"); }, {"here", "does not compile"}))
        << pattern;
  for (const char* pattern : {"", "a*", "(?=a)", "$", "a|"})
    EXPECT_TRUE(fails_naming([&] { Regex(pattern, "here"); }, {"here", "empty"})) << pattern;
}

TEST(Regex, EndlessBacktrackingIsAnError) {
  const std::string text(100, 'a');
  EXPECT_TRUE(fails_naming([&] { matches("(?:a+)+[bc]", text); }, {"pattern", "match limit"}));
}

TEST(Regex, LongRunsNeedNoDeepRecursion) {
  const std::string run(1 << 20, ' ');
  EXPECT_EQ(matches(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", run + "x"), (Words{run.substr(1), " "}));
  const std::string letters(1 << 20, 'a');
  EXPECT_EQ(matches(R"((?:a|b)+c?)", letters), Words{letters});
}

nlohmann::json split_step(const char* regex) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}
nlohmann::json sequence(std::vector<nlohmann::json> steps, bool use_regex = false) {
  steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", use_regex}});
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}
Words words(const nlohmann::json& pre_tokenizer, std::string_view text) {
  Words result;
  RegexMemory memory;
  PreTokenizer(pre_tokenizer, "pre_tokenizer").split(text, memory, [&](std::string_view word) {
    result.emplace_back(word);
  });
  return result;
}

// The words in this and the next tests are those of Hugging Face's tokenizers 0.23.
TEST(PreTokenizer, CutsAsDeepSeekV3) {
  const auto v3 = sequence(
      {split_step(R"(\p{N}{1,3})"), split_step("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
       split_step(R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?)"
                  R"([\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)")});
  EXPECT_EQ(words(v3, "Don't  stop: 12345 a1\n\n \tb_c.\r\n"),
            (Words{"Don", "'t", " ", " stop", ":", " ", "123", "45", " a", "1", "\n\n", " ", "\tb",
                   "_c", ".\r\n"}));
  EXPECT_EQ(words(v3, "\u6f22\u5b57\u3068 \u6f22x \u00bd   7"),
            (Words{"\u6f22\u5b57\u3068", " ", "\u6f22", "x", " ", "\u00bd", "   ", "7"}));
  EXPECT_EQ(words(v3, ""), Words{});
}

TEST(PreTokenizer, CutsAsDeepSeekV2) {
  const auto v2 = sequence({split_step("[\r\n]"),
                            split_step(R"(\s?[A-Za-z]+)"),
                            split_step(R"(\s?[!-/:-~]+)"),
                            split_step(R"(\s+$)"),
                            {{"type", "Digits"}, {"individual_digits", true}}});
  EXPECT_EQ(words(v2, "Hi  you! 123\n\n  x  "),
            (Words{"Hi", " ", " you", "!", " ", "1", "2", "3", "\n", "\n", " ", " x", "  "}));
}

TEST(PreTokenizer, CutsAsGpt2) {
  EXPECT_EQ(words(sequence({}, true), "I'll say  it's 42!\n\nOK "),
            (Words{"I", "'ll", " say", " ", " it", "'s", " 42", "!", "\n", "\n", "OK", " "}));
}

TEST(PreTokenizer, StringsAreNotPatterns) {
  nlohmann::json step = split_step("");
  step["pattern"] = {{"String", ".+"}};
  EXPECT_EQ(words(sequence({step, {{"type", "Digits"}, {"individual_digits", false}}}), "a.+b12c"),
            (Words{"a", ".+", "b", "12", "c"}));
}

TEST(PreTokenizer, RefusesByName) {
  const auto refused = [](const nlohmann::json& value, const std::vector<std::string>& parts) {
    return fails_naming([&] { PreTokenizer(value, "pre_tokenizer"); }, parts);
  };
  const auto changed = [](const char* key, const nlohmann::json& value) {
    nlohmann::json step = split_step("a");
    step[key] = value;
    return sequence({step});
  };
  const std::string first = "pre_tokenizer.pretokenizers[0].";
  for (const char* behavior : {"Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"})
    EXPECT_TRUE(refused(changed("behavior", behavior), {first + "behavior", behavior}));
  EXPECT_TRUE(refused(changed("invert", true), {first + "invert"}));
  EXPECT_TRUE(refused(changed("new_field", 1), {first + "new_field"}));
  EXPECT_TRUE(refused(changed("pattern", "a"), {first + "pattern"}));
  EXPECT_TRUE(refused(changed("pattern", {{"Glob", "a"}}), {first + "pattern.Glob"}));
  EXPECT_TRUE(refused(changed("pattern", nlohmann::json::object()), {first + "pattern"}));
  EXPECT_TRUE(refused(changed("pattern", {{"Regex", "("}}), {first + "pattern", "compile"}));
  for (const char* type : {"Metaspace", "Whitespace", "Punctuation", "BertPreTokenizer"})
    EXPECT_TRUE(refused(changed("type", type), {first + "type", type}));
  EXPECT_TRUE(refused({{"type", "Sequence"}}, {"pre_tokenizer.pretokenizers"}));
  EXPECT_TRUE(refused(split_step("a"), {"pre_tokenizer", "ByteLevel"}));
  EXPECT_TRUE(refused(nlohmann::json::array(), {"pre_tokenizer", "object"}));
  EXPECT_TRUE(refused({{"type", "ByteLevel"}}, {"add_prefix_space"}));
  EXPECT_TRUE(refused({{"type", "ByteLevel"}, {"add_prefix_space", true}}, {"add_prefix_space"}));
  auto late = sequence({});
  late["pretokenizers"].push_back(split_step("a"));
  EXPECT_TRUE(refused(late, {"pre_tokenizer.pretokenizers[1]", "ByteLevel"}));
  EXPECT_TRUE(refused(sequence(std::vector<nlohmann::json>(40, split_step("a"))), {"32 steps"}));
}

}  // namespace
}  // namespace mla
