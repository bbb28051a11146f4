// A tiny model of random weights of each published family, in its published layout, with goldens
// that were computed in float64 and checked against the published code
// (tests/data/models/README.md): mla-conformance passes them all, and fails them when a key of the
// family says something else.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "conformance/command_line.hpp"
#include "mla/io/json.hpp"
#include "support/safetensors_writer.hpp"

namespace mla::test {
namespace {

struct PublishedFamily {
  std::string folder;
  /// Patches of config.json, each of which computes something else.
  std::vector<const char*> mistakes;
};

void PrintTo(const PublishedFamily& family, std::ostream* out) { *out << family.folder; }

std::vector<PublishedFamily> published_families() {
  return {
      {"youtu", {R"({"rope_theta": 10000})", R"({"rope_interleave": false})"}},
      {"glm47-flash",
       {R"({"routed_scaling_factor": 1.0})", R"({"scoring_func": "softmax"})",
        R"({"rms_norm_eps": 1e-3})"}},
      {"gigachat", {R"({"norm_topk_prob": false})", R"({"routed_scaling_factor": 2.0})"}},
      {"sarvam-mla",
       {R"({"rope_scaling": {"factor": 8}})", R"({"rope_scaling": {"mscale_all_dim": 0.5}})",
        R"({"n_group": 4})"}},
      {"plm", {R"({"rope_theta": 10000})"}},
      {"minicpm3",
       {R"({"scale_emb": 11})", R"({"scale_depth": 1.0})", R"({"dim_model_base": 50})",
        R"({"rope_scaling": {"short_factor": [1, 1, 1, 1, 1, 1], "long_factor": [1, 1, 1, 1, 1, 1]}})"}},
      {"minicpm3-longrope",
       {R"({"max_position_embeddings": 384})",  // the factor of cos and sin
        R"({"rope_scaling": {"short_factor": [1, 1, 1, 1, 1, 1, 1, 1]}})",
        R"({"rope_scaling": {"long_factor": [1, 1, 1, 1, 1, 1, 1, 1]}})",
        R"({"rope_scaling": {"original_max_position_embeddings": 49}})"}},
      {"mistral4-flat",
       {R"({"rope_parameters": {"llama_4_scaling_beta": 0.1}})",
        R"({"rope_parameters": {"original_max_position_embeddings": 17}})",
        R"({"norm_topk_prob": false})"}},
      {"mistral4-nested",
       {R"({"text_config": {"rope_parameters": {"llama_4_scaling_beta": 0.0}}})",
        R"({"text_config": {"norm_topk_prob": false}})"}},
      {"longcat-flash",
       {R"({"routed_scaling_factor": 5.0})", R"({"rope_theta": 10000.0})",
        R"({"rms_norm_eps": 1e-3})"}},
      {"dsv32",
       {R"({"indexer_rope_interleave": true})", R"({"rope_scaling": {"mscale_all_dim": 0.5}})"}},
      {"glm5", {R"({"indexer_rope_interleave": false})", R"({"routed_scaling_factor": 1.0})"}},
      {"glm52", {R"({"indexer_rope_interleave": false})", R"({"rms_norm_eps": 1e-3})"}},
  };
}

std::filesystem::path folder_of(const std::string& name) {
  return std::filesystem::path(MLA_TEST_DATA) / "models" / name;
}

struct Verdict {
  int status;
  std::string text;
};

Verdict conformance_of(const std::filesystem::path& directory) {
  std::ostringstream out, err;
  const std::vector<std::string> words = {directory.string()};
  const int status = conformance::run_command_line(words, out, err);
  return {status, out.str() + err.str()};
}

class Families : public ::testing::TestWithParam<PublishedFamily> {};

TEST_P(Families, ConformToTheirGoldens) {
  const Verdict verdict = conformance_of(folder_of(GetParam().folder));
  EXPECT_EQ(verdict.status, 0) << verdict.text;
  for (const char* line : {"logits", "hidden.", "greedy"})
    EXPECT_NE(verdict.text.find(line), std::string::npos) << line << " is not compared";
}

TEST_P(Families, DoNotConformWithAnotherConfiguration) {
  const std::filesystem::path published = folder_of(GetParam().folder);
  for (const char* mistake : GetParam().mistakes) {
    const TemporaryDirectory directory;
    for (const char* file : {"model.safetensors", "goldens.safetensors"})
      std::filesystem::create_symlink(published / file, directory / file);
    nlohmann::json config = parse_json_file(published / "config.json");
    config.merge_patch(nlohmann::json::parse(mistake));
    write_file(directory / "config.json", config.dump());
    const Verdict verdict = conformance_of(directory.path());
    EXPECT_EQ(verdict.status, 1) << mistake << "\n" << verdict.text;
    EXPECT_NE(verdict.text.find("FAIL"), std::string::npos) << mistake << "\n" << verdict.text;
  }
}

std::string family_name(const ::testing::TestParamInfo<PublishedFamily>& info) {
  std::string name;
  for (const char c : info.param.folder)
    if (c != '-') name += c;
  return name;
}
INSTANTIATE_TEST_SUITE_P(Published, Families, ::testing::ValuesIn(published_families()),
                         family_name);

}  // namespace
}  // namespace mla::test
