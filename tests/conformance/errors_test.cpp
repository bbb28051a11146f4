#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "conformance/command_line.hpp"
#include "conformance/editable_case.hpp"

// What the program answers to wrong results, broken files and wrong usage.

namespace mla::conformance {
namespace {

using test::EditableCase;
using test::TemporaryDirectory;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

struct Answer {
  int status;
  std::string out;
  std::string err;
};

Answer run(const std::vector<std::string>& words) {
  std::ostringstream out, err;
  const int status = run_command_line(words, out, err);
  return {status, out.str(), err.str()};
}

EditableCase golden(const std::string& name) {
  return EditableCase::read(MLA_TEST_DATA "/goldens/" + name + ".safetensors");
}

Answer run(const EditableCase& made) {
  const TemporaryDirectory directory;
  return run({made.write(directory / "case.safetensors").string()});
}

// Status 2, and one line on stderr with the file and `parts`.
void expect_refused(const EditableCase& made, const std::vector<std::string>& parts) {
  const Answer answer = run(made);
  EXPECT_EQ(answer.status, 2) << answer.out;
  EXPECT_EQ(std::ranges::count(answer.err, '\n'), 1) << answer.err;
  EXPECT_PRED2(contains, answer.err, "case.safetensors: ");
  for (const std::string& part : parts) EXPECT_PRED2(contains, answer.err, part);
}

void expect_failed(const EditableCase& made, const std::string& check) {
  const Answer answer = run(made);
  EXPECT_EQ(answer.status, 1) << answer.out << answer.err;
  EXPECT_PRED2(contains, answer.out, check);
  EXPECT_PRED2(contains, answer.out, "  FAIL\n");
  EXPECT_EQ(answer.err, "");
}

TEST(Conformance, UntouchedCasePasses) {
  const Answer answer = run(golden("v3_mini"));
  EXPECT_EQ(answer.status, 0);
  EXPECT_PRED2(contains, answer.out, "v3_mini          absorbed      output ");
  EXPECT_PRED2(contains, answer.out, "v3_mini          decompressed  output ");
  EXPECT_PRED2(contains, answer.out, "# 2 pass, 0 fail\n");
}

// 3e-5 of the largest value, in one element.
TEST(Conformance, PerturbedResultFails) {
  for (const std::string tensor : {"output", "latent", "k_pe"}) {
    EditableCase made = golden("v3_mini");
    std::vector<float>& values = made.tensors[tensor].values;
    const float largest = *std::ranges::max_element(values);
    values[values.size() / 2] += 3e-5f * largest * (largest > 0.0f ? 1.0f : -1.0f);
    expect_failed(made, tensor);
  }
  EditableCase made = golden("rope_pair");
  made.tensors["half_split.k_pe"].values[5] += 0.01f;
  expect_failed(made, "half_split.k_pe 1.0e-02");
}

TEST(Conformance, NaNNeverPasses) {
  EditableCase made = golden("v3_mini");
  made.tensors["output"].values[3] = std::numeric_limits<float>::quiet_NaN();
  expect_failed(made, "output inf");
}

TEST(Conformance, OtherSettingsFail) {
  EditableCase made = golden("yarn");
  made.metadata["softmax_scale"] = "0.3312";
  expect_failed(made, "softmax_scale");
  made = golden("yarn");
  made.metadata["cos_sin_scale"] = "1.1";
  expect_failed(made, "cos_sin_scale");
  made = golden("yarn");
  made.tensors["inv_freq"].values[7] *= 1.000001f;
  expect_failed(made, "inv_freq");
}

TEST(Conformance, OtherRopeTablesFail) {
  EditableCase made = golden("rope_tables");
  made.tensors["inv_freq.12"].values[31] *= 1.000001f;
  expect_failed(made, "inv_freq.12");
  made = golden("rope_tables");
  made.tensors["scales"].values[6] += 1e-6f;
  expect_failed(made, "scales.3");
  made = golden("rope_tables");
  made.tensors["sin.0"].values[300] += 1e-6f;
  expect_failed(made, "cos.sin.0");
}

// A setting of `index` with frequencies of its own, in front of the others.
EditableCase with_setting(const std::string& index, const std::string& dim) {
  EditableCase made = golden("rope_tables");
  made.metadata["settings"].insert(1, R"({"index":)" + index + R"(,"dim":)" + dim +
                                          R"(,"rope_theta":1e4,"rope_scaling":null},)");
  made.tensors["inv_freq." + index] = {{1}, {1.0f}};
  return made;
}

TEST(Conformance, RopeTablesOfASettingBeyondTheListAreRefused) {
  const std::string beyond = std::to_string(1 << 20);
  expect_refused(with_setting(beyond, "2"), {"settings[0].index", beyond});
}

TEST(Conformance, RopeTablesOfAnAbsurdDimensionAreRefused) {
  expect_refused(with_setting("0", "9223372036854775806"), {"rotary dimension"});
}

// Memory for rows of 2^24 numbers is not taken before there are such rows.
TEST(Conformance, ARankThatNoTensorHasIsRefusedAsAWrongShape) {
  EditableCase made = golden("v3_mini");
  std::string& config = made.metadata["config"];
  const std::string rank = "\"kv_lora_rank\": 32";
  config.replace(config.find(rank), rank.size(), "\"kv_lora_rank\": 16777216");
  made.tensors["hidden_states"] = {{100, 1000, 128}, std::vector<float>(100 * 1000 * 128)};
  expect_refused(made, {"kv_a_proj_with_mqa.weight has shape"});
}

TEST(Conformance, DamagedGeneratorIsRefused) {
  const EditableCase lesson = golden("tutorial_lesson");
  const auto with = [&](const std::string& from, const std::string& to) {
    EditableCase made = lesson;
    std::string& text = made.metadata["generator"];
    const auto place = text.find(from);
    EXPECT_NE(place, text.npos) << from;
    text.replace(place, from.size(), to);
    return made;
  };
  expect_refused(with("0x00001f320aebc6a9", "0x00001f320aebc6aa"),
                 {"kv_proj.weight", "checksum 0x1f320aebc6a9", "0x1f320aebc6aa"});
  expect_refused(with("0x001a010000000000", "0x001a010000000001"), {"kv_proj.weight", "checksum"});
  expect_refused(with("0x001a010000000000", "seven"), {"kv_proj.weight", "seed", "seven"});
  expect_refused(with("0x1.0000000000000p-4", "much"), {"kv_proj.weight", "scale_hex", "much"});
  expect_refused(with("\"bf16\": true", "\"bf16\": false"), {"hidden_states", "bf16"});
  expect_refused(with("[128, 256]", "[128, 1000000000000]"), {"kv_proj.weight", "shape"});
  expect_refused(with("[", "{"), {"generator"});
  EditableCase made = lesson;
  made.tensors["hidden_states"].values[17] = 0.25f;
  expect_refused(made, {"hidden_states", "stored as well as generated", "17"});
}

TEST(Conformance, WrongTensorsAreRefused) {
  EditableCase made = golden("v3_mini");
  made.tensors.erase("kv_b_proj.weight");
  expect_refused(made, {"kv_b_proj.weight is missing"});
  made = golden("v3_mini");
  made.tensors["o_proj.weight"].shape = {64, 128};
  expect_refused(made, {"o_proj.weight has shape [64, 128], expected [128, 64]"});
  made = golden("v3_mini");
  made.tensors["q_a_proj.bias"] = {{48}, std::vector<float>(48)};
  expect_refused(made, {"q_a_proj.bias is not used"});
  made = golden("v3_mini");
  made.tensors["output"].shape = {17, 128};
  expect_refused(made, {"output", "[17, 128]", "[1, 17, 128]"});
  made = golden("v3_mini");
  made.tensors["hidden_states"].shape = {17, 128};
  expect_refused(made, {"hidden_states", "[17, 128]", "[sequences, tokens, 128]"});
  made = golden("padded_left");
  made.tensors["attention_mask"].values[0] = 2.0f;
  expect_refused(made, {"attention_mask must be 0 or 1", "2"});
  made = golden("yarn");
  made.tensors["position_ids"].values[1] = 0.5f;
  expect_refused(made, {"position_ids must have integers", "0.5"});
  made = golden("yarn");
  made.tensors["position_ids"].values[1] = 1.0f;
  expect_refused(made, {"position_ids must rise"});
}

TEST(Conformance, WrongMetadataIsRefused) {
  const auto with = [](const std::string& key, const std::string& value) {
    EditableCase made = golden("decode");
    made.metadata[key] = value;
    return made;
  };
  expect_refused(with("kind", "mqa"), {"kind mqa is not known"});
  expect_refused(with("calls", "[13, 9]"), {"calls [13, 9]", "21 tokens"});
  expect_refused(with("calls", "[21, 0]"), {"calls [21, 0]"});
  expect_refused(with("calls", "21"), {"calls", "list"});
  expect_refused(with("output_rows", "[5, 22]"), {"output_rows [5, 22]", "21 tokens"});
  expect_refused(with("config", "{"), {"config"});
  expect_refused(with("config", "{}"), {"config"});
  expect_refused(with("config", "[]"), {"config"});
  EditableCase made = golden("decode");
  made.metadata.erase("config");
  expect_refused(made, {"config is missing"});
  made = golden("decode");
  std::string& config = made.metadata["config"];
  config.insert(1, "\"sliding_window\": 128, ");
  expect_refused(made, {"sliding_window"});
  made = golden("decode");
  auto json = nlohmann::json::parse(made.metadata["config"]);
  json["rope_scaling"] = {{"type", "dynamic"}, {"factor", 2.0}};
  made.metadata["config"] = json.dump();
  expect_refused(made, {"dynamic"});
}

// Others are still run.
TEST(Conformance, FilesThatCannotBeUsedAreStatus2) {
  const TemporaryDirectory directory;
  test::write_file(directory / "a.safetensors", "no tensors here");
  golden("v3_mini").write(directory / "b.safetensors");
  const Answer answer = run({directory.path().string()});
  EXPECT_EQ(answer.status, 2);
  EXPECT_PRED2(contains, answer.err, "a.safetensors: ");
  EXPECT_PRED2(contains, answer.out, "# 2 pass, 0 fail");

  const std::string absent = (directory / "absent.safetensors").string();
  EXPECT_EQ(run({absent}).status, 2);
  EXPECT_PRED2(contains, run({absent}).err, absent + ": cannot open");
  const TemporaryDirectory empty;
  EXPECT_EQ(run({empty.path().string()}).status, 2);
}

TEST(Conformance, WrongUsageIsStatus2WithOneLine) {
  const std::string path = MLA_TEST_DATA "/goldens/v3_mini.safetensors";
  const std::vector<std::vector<std::string>> all = {
      {},
      {path, "--isa"},
      {path, "--isa", "mmx"},
      {path, "--mode", "automatic"},
      {path, "--weights", "f16"},
      {path, "--cache", "f64"},
      {path, "--fast"},
  };
  for (const auto& words : all) {
    const Answer answer = run(words);
    EXPECT_EQ(answer.status, 2) << answer.out;
    EXPECT_EQ(std::ranges::count(answer.err, '\n'), 1) << answer.err;
    EXPECT_EQ(answer.out, "");
  }
  EXPECT_EQ(run({"--help"}).status, 0);
}

TEST(Conformance, OptionsChooseModeIsaAndElementTypes) {
  const std::string path = MLA_TEST_DATA "/goldens/v3_mini.safetensors";
  const Answer answer =
      run({"--isa", "scalar", path, "--mode", "absorbed", "--weights", "bf16", "--cache", "f16"});
  EXPECT_EQ(answer.status, 0) << answer.out;
  EXPECT_PRED2(contains, answer.out, "# scalar, bf16 weights, f16 cache");
  EXPECT_PRED2(contains, answer.out, "float32 + bf16 weights + f16 cache, logits to 7.7  pass");
  EXPECT_EQ(answer.out.find("decompressed"), answer.out.npos);
  EXPECT_PRED2(contains, answer.out, "# 1 pass, 0 fail");
}

}  // namespace
}  // namespace mla::conformance
