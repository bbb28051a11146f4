#include "mla/model/model_report.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "mla/model/decoder_model.hpp"
#include "model/synthetic_checkpoint.hpp"
#include "model/trained_decoder.hpp"
#include "support/safetensors_writer.hpp"

namespace mla::test {
namespace {

const TensorGroup* find_group(const ModelReport& report, const std::string& name) {
  const auto found = std::ranges::find(report.tensors, name, &TensorGroup::name);
  return found == report.tensors.end() ? nullptr : &*found;
}

// A copy of a model's directory without its weights.
void copy_texts(const std::filesystem::path& from, const std::filesystem::path& to) {
  for (const auto& entry : std::filesystem::directory_iterator(from))
    if (entry.path().extension() == ".json")
      std::filesystem::copy(entry.path(), to / entry.path().filename());
}

TEST(ModelReport, SaysWhatTheTrainedModelIs) {
  const ModelReport report = inspect_model(kModel);
  EXPECT_TRUE(report.runs());
  EXPECT_EQ(report.model_type, "deepseek_v3");
  EXPECT_EQ(report.architectures, std::vector<std::string>{"DeepseekV3ForCausalLM"});
  ASSERT_TRUE(report.config.has_value());
  EXPECT_EQ(*report.config, trained_model().config());
  EXPECT_TRUE(report.has_prediction);
  EXPECT_TRUE(report.schemes.empty());
  const SafetensorsFile file(kModel / "model.safetensors");
  Index bytes = 0, elements = 0;
  for (const auto& [name, tensor] : file.tensors()) {
    bytes += std::ssize(tensor.bytes);
    elements +=
        std::accumulate(tensor.shape.begin(), tensor.shape.end(), Index{1}, std::multiplies<>());
  }
  EXPECT_EQ(report.weight_bytes(), bytes);
  EXPECT_EQ(report.parameters(), elements);
  const TensorGroup* experts = find_group(report, "model.layers.*.mlp.experts.*.up_proj.weight");
  ASSERT_NE(experts, nullptr);
  const ModelConfig& config = *report.config;
  Index layers = 0;
  for (Index layer = 0; layer <= config.num_hidden_layers; ++layer)
    layers += config.has_experts(layer);
  EXPECT_EQ(experts->count, layers * config.experts.n_routed_experts);
  EXPECT_EQ(experts->elements,
            experts->count * config.experts.moe_intermediate_size * config.hidden_size());
}

TEST(ModelReport, CountsTheScalesOfQuantisedMatricesWithThem) {
  const std::string experts = "model.layers.*.mlp.experts.*.up_proj.weight";
  const ModelReport plain = inspect_model(kModel);
  const Index elements = find_group(plain, experts)->elements;
  for (const auto& [path, format, bits] : {std::tuple(kFp8Model, std::string("fp8"), Index{8}),
                                           {kUe8m0Model, std::string("fp8"), Index{8}},
                                           {kInt4Model, std::string("int4"), Index{4}}}) {
    SCOPED_TRACE(path.string());
    const ModelReport report = inspect_model(path);
    EXPECT_TRUE(report.runs());
    ASSERT_FALSE(report.schemes.empty());
    EXPECT_EQ(name_of(report.schemes[0].format), format);
    const TensorGroup* group = find_group(report, experts);
    ASSERT_NE(group, nullptr);
    EXPECT_EQ(group->format, format);
    EXPECT_EQ(group->elements, elements);
    EXPECT_GT(group->bytes, elements * bits / 8);
    EXPECT_LT(group->bytes, elements * (bits + 2) / 8);
    for (const TensorGroup& other : report.tensors)
      EXPECT_EQ(other.name.find("_scale"), std::string::npos) << other.name;
    const Checkpoint checkpoint(path);
    Index bytes = 0;
    for (const std::string& name : checkpoint.names())
      bytes += std::ssize(checkpoint.tensor(name).bytes);
    EXPECT_EQ(report.weight_bytes(), bytes);
  }
}

TEST(ModelReport, CostsOfCachesAreThoseOfStates) {
  const ModelReport report = inspect_model(kModel);
  const ModelConfig& config = *report.config;
  ASSERT_EQ(report.caches.size(), kCacheFormatCount);
  for (const CacheCost& cost : report.caches) {
    const DecoderState state(config, cost.format);
    EXPECT_EQ(cost.bytes, config.num_hidden_layers * state.layer(0).layout().bytes);
    EXPECT_EQ(cost.prediction_bytes, state.layer(0).layout().bytes);
  }
  const AttentionConfig& attention = config.attention;
  EXPECT_EQ(report.caches[0].multi_head_bytes,
            4 * config.num_hidden_layers * attention.num_attention_heads *
                (attention.qk_head_dim() + attention.v_head_dim));
}

TEST(ModelReport, EveryFamilyThatRunsIsReported) {
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(MLA_TEST_DATA) / "models")) {
    if (!entry.is_directory()) continue;
    SCOPED_TRACE(entry.path().filename().string());
    const ModelReport report = inspect_model(entry.path());
    EXPECT_TRUE(report.runs()) << report.refusals.front();
    const DecoderModel model = DecoderModel::load(entry.path());
    EXPECT_EQ(report.has_prediction, model.prediction() != nullptr);
  }
}

// The file is as long as it should be, but nothing is in it: what reads the data would refuse its
// scales, and take hours.
TEST(ModelReport, NeverLooksAtTheNumbers) {
  const TemporaryDirectory directory;
  copy_texts(kFp8Model, directory.path());
  for (const auto& entry : std::filesystem::directory_iterator(kFp8Model)) {
    if (entry.path().extension() != ".safetensors") continue;
    std::ifstream in(entry.path(), std::ios::binary);
    std::uint64_t length = 0;
    in.read(reinterpret_cast<char*>(&length), sizeof(length));
    std::string header(length, ' ');
    in.read(header.data(), static_cast<std::streamsize>(length));
    const auto path = directory / entry.path().filename().string();
    write_file(path, safetensors_bytes(header));
    std::filesystem::resize_file(path, std::filesystem::file_size(entry.path()));
  }
  EXPECT_TRUE(
      fails_naming([&] { DecoderModel::load(directory.path()); }, {"must be positive numbers"}));
  const ModelReport expected = inspect_model(kFp8Model), report = inspect_model(directory.path());
  EXPECT_TRUE(report.runs()) << report.refusals.front();
  EXPECT_EQ(report.tensors, expected.tensors);
}

TEST(ModelReport, DataThatIsNotAlignedIsNotCopied) {
  const TemporaryDirectory directory;
  const auto path = directory / "odd.safetensors";
  SafetensorsWriter writer;
  writer.add<float>("a", "F32", {3}, {1.0f, 2.0f, 3.0f});
  write_file(path, writer.bytes(3));
  const SafetensorsFile read(path), untouched(path, TensorData::untouched);
  const auto within = [](const SafetensorsFile& file) {
    const auto* const data = file.tensor("a").bytes.data();
    return data >= file.bytes().data() && data < file.bytes().data() + file.bytes().size();
  };
  EXPECT_FALSE(within(read));
  EXPECT_TRUE(within(untouched));
}

TEST(ModelReport, ARefusedModelHasItsReasonAndWhatIsKnownOfIt) {
  const TemporaryDirectory directory;
  copy_texts(kModel, directory.path());
  std::filesystem::copy(kModel / "model.safetensors", directory / "model.safetensors");
  nlohmann::json config = nlohmann::json::parse(std::ifstream(kModel / "config.json"));
  const auto report_with = [&](const nlohmann::json& changes) {
    nlohmann::json changed = config;
    changed.update(changes);
    write_file(directory / "config.json", changed.dump());
    return inspect_model(directory.path());
  };

  const ModelReport llama = report_with({{"model_type", "llama"}});
  ASSERT_EQ(llama.refusals.size(), 1u);
  EXPECT_NE(llama.refusals[0].find("model_type = llama is not supported"), std::string::npos);
  EXPECT_EQ(llama.model_type, "llama");
  EXPECT_FALSE(llama.config.has_value());
  EXPECT_TRUE(llama.caches.empty());
  EXPECT_EQ(llama.tensors, inspect_model(kModel).tensors);

  const ModelReport wide = report_with({{"intermediate_size", 383}});
  ASSERT_EQ(wide.refusals.size(), 1u);
  EXPECT_NE(wide.refusals[0].find("has shape"), std::string::npos);
  EXPECT_TRUE(wide.config.has_value());
  EXPECT_FALSE(wide.caches.empty());

  // A format that is not known: the tensors are reported all the same.
  const ModelReport foreign = report_with({{"quantization_config", {{"quant_method", "awq"}}}});
  ASSERT_EQ(foreign.refusals.size(), 1u);
  EXPECT_NE(foreign.refusals[0].find("quant_method"), std::string::npos);
  EXPECT_EQ(foreign.tensors, llama.tensors);

  // Two reasons, each once.
  std::filesystem::resize_file(directory / "model.safetensors", 1000);
  const ModelReport cut = report_with({{"model_type", "llama"}});
  ASSERT_EQ(cut.refusals.size(), 2u);
  EXPECT_NE(cut.refusals[1].find("model.safetensors"), std::string::npos);
  EXPECT_TRUE(cut.tensors.empty());

  const TemporaryDirectory empty;
  EXPECT_FALSE(inspect_model(empty.path()).runs());
  EXPECT_TRUE(fails_naming([&] { inspect_model(empty / "nothing"); }, {"not a directory"}));
}

TEST(TensorSummary, AStrayScaleIsAGroupOfItsOwn) {
  const SafetensorsTensor stray = {.name = "a.0.weight_scale",
                                   .dtype = SafetensorsDType::float32,
                                   .shape = {2},
                                   .bytes = std::as_bytes(std::span("1234567", 8))};
  const std::vector<TensorGroup> groups = summarise({{stray.name, &stray}});
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_EQ(groups[0], (TensorGroup{"a.*.weight_scale", "F32", 1, 2, 8}));
}

}  // namespace
}  // namespace mla::test
