#include "mla/io/json.hpp"

#include <gtest/gtest.h>

#include <string>

#include "support/safetensors_writer.hpp"

namespace mla {
namespace {

using test::fails_naming;

TEST(Json, KeysMayRepeatInDifferentObjectsOnly) {
  const auto json = parse_json(R"({"a": {"k": 1}, "b": [{"k": 2}, {"k": 3}]})", "x.json");
  EXPECT_EQ(json["b"][1]["k"], 3);
  EXPECT_TRUE(fails_naming([] { parse_json(R"({"k": 1, "k": 2})", "x.json"); }, {"x.json", "k"}));
  EXPECT_TRUE(fails_naming([] { parse_json(R"([{"a": {"q": 1, "r": 2, "q": 1}}])", "x.json"); },
                           {"x.json", "a.q twice"}));
  EXPECT_TRUE(fails_naming([] { parse_json(R"({"key": 1, "k\u0065y": 2})", "x.json"); },
                           {"x.json", "key"}));
}

TEST(Json, IsNotNestedDeeperThanSixtyFour) {
  const auto nested = [](int depth) {
    return std::string(static_cast<std::size_t>(depth), '[') +
           std::string(static_cast<std::size_t>(depth), ']');
  };
  EXPECT_NO_THROW(parse_json(nested(64), "x.json"));
  EXPECT_TRUE(fails_naming([&] { parse_json(nested(66), "x.json"); }, {"x.json", "nested"}));
  const std::string bomb(1 << 20, '[');
  EXPECT_TRUE(fails_naming([&] { parse_json(bomb, "x.json"); }, {"x.json", "nested"}));
}

TEST(Json, RefusesWhatIsNotJson) {
  for (const std::string text :
       {"", "{", "{} x", "{'a': 1}", "[1,]", "nan", "{\"a\": 1e999}", "\"\xff\"", "// comment\n1"})
    EXPECT_TRUE(fails_naming([&] { parse_json(text, "x.json"); }, {"x.json"})) << text;
}

TEST(Json, ErrorsSayWhereWithoutTheParsersTag) {
  for (const char* text : {"{\"a\": 1,\n ]", "\"\xff\"", "{\"a\": 1e999}"}) {
    try {
      parse_json(text, "x.json");
      ADD_FAILURE() << text;
    } catch (const std::runtime_error& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.find("json.exception"), message.npos) << message;
      EXPECT_TRUE(message.starts_with("x.json: ") && message[8] != '[') << message;
    }
  }
  EXPECT_TRUE(fails_naming([] { parse_json("{\"a\": 1,\n ]", "x.json"); },
                           {"x.json: parse error at line 2, column 2"}));
}

TEST(Json, DoesNotStopAtANulByte) {
  EXPECT_TRUE(
      fails_naming([] { parse_json(std::string("{}\0{", 4), "x.json"); }, {"x.json", "NUL"}));
}

TEST(Json, SizesAreNonNegativeIntegersBelowTwoToTheSixtyThree) {
  const auto size = [](const char* text) { return json_size(parse_json(text, "x.json"), "key"); };
  EXPECT_EQ(size("0"), 0);
  EXPECT_EQ(size("9223372036854775807"), 9223372036854775807);
  EXPECT_EQ(json_size(nlohmann::json(3), "key"), 3);  // set in code: stored as signed
  for (const char* text : {"-1", "1.0", "1e3", "9223372036854775808", "18446744073709551616",
                           "\"1\"", "true", "null", "[1]"})
    EXPECT_TRUE(fails_naming([&] { size(text); }, {"key"})) << text;
}

}  // namespace
}  // namespace mla
