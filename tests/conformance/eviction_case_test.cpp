// Kind eviction of mla-conformance: it passes, notices wrong numbers, and says what it lacks.
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "conformance/command_line.hpp"
#include "support/full_disk.hpp"
#include "support/safetensors_writer.hpp"

namespace mla::conformance {
namespace {

const std::string kEvictionFile = MLA_TEST_DATA "/eviction_tiny.safetensors";
const std::string kEvictionModel = MLA_MODELS "/tiny-shakespeare-v3";

struct EvictionAnswer {
  int status;
  std::string out, err;

  bool says(const std::string& part) const {
    return out.find(part) != out.npos || err.find(part) != err.npos;
  }
};

EvictionAnswer evict(const std::string& file, std::vector<std::string> words = {}) {
  std::ostringstream out, err;
  words.insert(words.begin(), file);
  const int status = run_command_line(words, out, err);
  return {status, out.str(), err.str()};
}

TEST(EvictionCase, EveryPolicyPasses) {
  const EvictionAnswer answer = evict(kEvictionFile, {"--model", kEvictionModel});
  EXPECT_EQ(answer.status, 0) << answer.out << answer.err;
  for (const char* name : {"unlimited", "window", "sinks", "sinks_renumbered", "half_renumbered"})
    EXPECT_TRUE(answer.says(std::string(name) + ".best")) << name;
  EXPECT_TRUE(answer.says("# 10 pass, 0 fail"));
}

TEST(EvictionCase, AnotherPolicyIsNoticed) {
  const test::TemporaryDirectory directory;
  std::string bytes = test::read_file(kEvictionFile);
  const std::string sinks = "\\\"sinks\\\": 4";
  const auto at = bytes.find(sinks, bytes.find("sinks_renumbered"));
  ASSERT_NE(at, bytes.npos);
  bytes[at + sinks.size() - 1] = '5';
  test::write_file(directory / "case.safetensors", bytes);
  const EvictionAnswer answer = evict((directory / "case.safetensors").string(),
                                      {"--model", kEvictionModel, "--mode", "absorbed"});
  EXPECT_EQ(answer.status, 1) << answer.out << answer.err;
  EXPECT_TRUE(answer.says("# 4 pass, 1 fail"));
}

TEST(EvictionCase, WhatIsMissingIsNamed) {
  EXPECT_TRUE(evict(kEvictionFile).says("needs a model: --model DIR"));
  EXPECT_EQ(evict(kEvictionFile).status, 2);
  const EvictionAnswer cache = evict(kEvictionFile, {"--model", kEvictionModel, "--cache", "bf16"});
  EXPECT_EQ(cache.status, 2);
  EXPECT_TRUE(cache.says("float32 cache, not bf16"));
  const test::TemporaryDirectory directory;
  const auto refused = [&](const std::string& from, const std::string& to, const char* what) {
    std::string bytes = test::read_file(kEvictionFile);
    ASSERT_EQ(from.size(), to.size());
    ASSERT_NE(bytes.find(from), bytes.npos) << from;
    bytes.replace(bytes.find(from), from.size(), to);
    test::write_file(directory / "case.safetensors", bytes);
    const EvictionAnswer answer =
        evict((directory / "case.safetensors").string(), {"--model", kEvictionModel});
    EXPECT_EQ(answer.status, 2) << what;
    EXPECT_TRUE(answer.says(what)) << answer.err;
  };
  refused("\"cases\"", "\"casse\"", "cases is missing");
  refused("\\\"limit\\\": 64", "\\\"limit\\\": -4", "cannot drop");
  refused("\\\"sinks\\\": 4", "\\\"sinsk\\\": 4", "must be an integer");
}

}  // namespace
}  // namespace mla::conformance
