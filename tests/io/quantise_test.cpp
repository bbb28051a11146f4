// Quantising a checkpoint: codes and scales by definition, the policy, and folders that are saved.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "mla/core/eigen_executor.hpp"
#include "mla/io/quantise.hpp"
#include "mla/io/save_checkpoint.hpp"
#include "support/full_disk.hpp"
#include "support/random.hpp"
#include "support/safetensors_writer.hpp"

namespace mla::test {
namespace {

constexpr const char* kUp = "model.layers.0.mlp.up_proj.weight";

QuantisationPolicy all_as(const WeightScheme& scheme) {
  return [scheme](std::string_view) { return std::optional(scheme); };
}

RowMajorMatrix decoded(const WeightView& weight) {
  RowMajorMatrix values(weight.rows, weight.cols);
  info_of(weight.format).widen(weight, {values.data(), weight.rows, weight.cols});
  return values;
}

class Quantise : public testing::Test {
 protected:
  Checkpoint write(const SafetensorsWriter& tensors, const nlohmann::json& config = {}) {
    std::filesystem::create_directories(source());
    tensors.write(source() / "model.safetensors");
    write_file(source() / "config.json",
               (config.is_null() ? nlohmann::json::object() : config).dump());
    return Checkpoint(source());
  }
  // One matrix of these elements.
  Checkpoint matrix(Index rows, Index cols, const std::vector<float>& values) {
    return write(SafetensorsWriter().add(kUp, "F32", {rows, cols}, values));
  }
  std::filesystem::path source() const { return directory_ / "source"; }
  std::filesystem::path target() const { return directory_ / "target"; }

  TemporaryDirectory directory_;
};

std::vector<float> some_weights(Index count) {
  Random random(11);
  std::vector<float> values = random_elements<float>(count, random, 0.02);
  for (std::size_t i = 0; i < values.size(); i += 37) values[i] *= 5.0f;  // heavy tails
  return values;
}

// As written down, in plain loops over doubles where that is the same.
TEST_F(Quantise, Int8IsTheNearestCodeOfAScalePerRow) {
  constexpr Index kRows = 5, kCols = 70;
  const std::vector<float> values = some_weights(kRows * kCols);
  const Checkpoint result =
      quantise(matrix(kRows, kCols, values), all_as({WeightFormat::int8, 1, 0}));
  const WeightView weight = result.matrix(kUp, kRows, kCols);
  EXPECT_EQ(weight.format, WeightFormat::int8);
  EXPECT_EQ(weight.scales.format, ScaleFormat::float32);
  const auto* const codes = reinterpret_cast<const std::int8_t*>(weight.data);
  for (Index r = 0; r < kRows; ++r) {
    float peak = 0.0f;
    for (Index c = 0; c < kCols; ++c)
      peak = std::max(peak, std::abs(values[static_cast<std::size_t>(r * kCols + c)]));
    EXPECT_EQ(weight.scale_of(r, 0), peak / 127.0f);
    for (Index c = 0; c < kCols; ++c)
      ASSERT_EQ(codes[r * kCols + c],
                std::nearbyint(values[static_cast<std::size_t>(r * kCols + c)] / (peak / 127.0f)))
          << r << " " << c;
  }
}

TEST_F(Quantise, Int4TakesTheScaleWithTheSmallestSquaredError) {
  constexpr Index kRows = 7, kCols = 100;  // the last group has 4
  const std::vector<float> values = some_weights(kRows * kCols);
  const Checkpoint result =
      quantise(matrix(kRows, kCols, values), all_as({WeightFormat::int4, 1, 32}));
  const WeightView weight = result.matrix(kUp, kRows, kCols);
  EXPECT_EQ(weight.format, WeightFormat::int4);
  EXPECT_EQ(weight.scales.format, ScaleFormat::bfloat16);
  const RowMajorMatrix made = decoded(weight);
  int searched = 0;
  for (Index r = 0; r < kRows; ++r)
    for (Index first = 0; first < kCols; first += 32) {
      const Index count = std::min<Index>(32, kCols - first);
      const float* const x = values.data() + r * kCols + first;
      const float peak = std::abs(*std::max_element(
          x, x + count, [](float a, float b) { return std::abs(a) < std::abs(b); }));
      double least = std::numeric_limits<double>::infinity();
      float best = 0.0f;
      for (int i = 0; i <= 20; ++i) {
        const auto scale = static_cast<float>(bfloat16(peak / (7.0f + static_cast<float>(i) / 8)));
        double error = 0.0;
        for (Index c = 0; c < count; ++c) {
          const float code = std::clamp(std::nearbyint(x[c] / scale), -8.0f, 7.0f);
          error += std::pow(static_cast<double>(x[c]) - double{code} * double{scale}, 2);
        }
        if (error < least) best = scale;
        least = std::min(least, error);
      }
      searched += best != static_cast<float>(bfloat16(peak / 7.0f));
      ASSERT_EQ(weight.scale_of(r, first), best) << r << " " << first;
      for (Index c = 0; c < count; ++c)
        ASSERT_EQ(made(r, first + c), best * std::clamp(std::nearbyint(x[c] / best), -8.0f, 7.0f));
    }
  EXPECT_GT(searched, 10) << "amax / 7 is seldom the best";
}

TEST_F(Quantise, WeightsThatTheCodesCanHoldStayAsTheyAre) {
  std::vector<float> values(64);
  for (std::size_t i = 0; i < 64; ++i)
    values[i] = 0.25f * static_cast<float>(static_cast<int>(i % 15) - 7);
  for (const WeightScheme& scheme :
       {WeightScheme{WeightFormat::int4, 1, 32}, WeightScheme{WeightFormat::int4, 1, 0}}) {
    const Checkpoint result = quantise(matrix(1, 64, values), all_as(scheme));
    const RowMajorMatrix made = decoded(result.matrix(kUp, 1, 64));
    EXPECT_TRUE(std::equal(values.begin(), values.end(), made.data()));
  }
}

TEST_F(Quantise, AGroupOfZerosHasTheScaleOne) {
  for (const WeightScheme& scheme :
       {WeightScheme{WeightFormat::int4, 1, 32}, WeightScheme{WeightFormat::int8, 1, 16}}) {
    std::vector<float> values(64, 0.0f);
    values[40] = 1e-44f;  // too small for a scale
    const Checkpoint result = quantise(matrix(1, 64, values), all_as(scheme));
    const WeightView weight = result.matrix(kUp, 1, 64);
    EXPECT_EQ(weight.scale_of(0, 0), 1.0f);
    EXPECT_EQ(weight.scale_of(0, 40), 1.0f);
    EXPECT_EQ(decoded(weight).cwiseAbs().maxCoeff(), 0.0f);
  }
}

TEST_F(Quantise, ThreadsChangeNothing) {
  const std::vector<float> values = some_weights(130 * 96);
  EigenExecutor executor(3);
  const auto run = [&](Executor* on) {
    return quantise(matrix(130, 96, values), all_as({WeightFormat::int4, 1, 32}), {.executor = on});
  };
  const Checkpoint alone = run(nullptr), together = run(&executor);
  for (const char* part : {"_packed", "_scale", "_shape"})
    EXPECT_TRUE(std::ranges::equal(alone.tensor(kUp + std::string(part)).bytes,
                                   together.tensor(kUp + std::string(part)).bytes));
}

TEST_F(Quantise, NormsRoutersEmbeddingsAndKvBStayAsTheyAre) {
  for (const WeightFormat format : {WeightFormat::int8, WeightFormat::int4}) {
    const QuantisationPolicy policy = default_policy(format);
    for (const char* name :
         {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight",
          "model.layers.0.self_attn.kv_a_layernorm.weight", "model.layers.1.mlp.gate.weight",
          "model.layers.0.self_attn.kv_b_proj.weight", "model.layers.4.eh_proj.weight",
          "model.layers.4.embed_tokens.weight", "model.layers.0.self_attn.indexer.wq_b.weight"})
      EXPECT_EQ(policy(name), std::nullopt) << name;
    for (const char* name : {"lm_head.weight", "model.layers.4.shared_head.head.weight"})
      EXPECT_EQ(policy(name), (WeightScheme{WeightFormat::int8, 1, 0})) << name;
    for (const char* name : {"model.layers.0.self_attn.o_proj.weight",
                             "model.layers.1.mlp.experts.17.down_proj.weight",
                             "model.layers.1.mlp.shared_experts.gate_proj.weight",
                             "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"})
      EXPECT_EQ(policy(name)->format, format) << name;
  }
  EXPECT_THROW(default_policy(WeightFormat::fp8_e4m3), std::invalid_argument);
}

TEST_F(Quantise, WhatHasNoMoreBitsIsLeftAloneAndFp8IsDecodedFirst) {
  SafetensorsWriter tensors;
  tensors
      .add<std::uint8_t>(kUp, "F8_E4M3", {1, 4}, {0x38, 0xb8, 0x40, 0x30})  // 1 -1 2 0.5
      .add<float>(kUp + std::string("_scale_inv"), "F32", {1, 1}, {3.0f})
      .add<float>("model.norm.weight", "F32", {4}, {1, 2, 3, 4});
  const nlohmann::json config = {{"quantization_config", {{"quant_method", "fp8"}}}};
  const Checkpoint same = quantise(write(tensors, config), default_policy(WeightFormat::int8));
  EXPECT_EQ(same.matrix(kUp, 1, 4).format, WeightFormat::fp8_e4m3);
  const Checkpoint int4 = quantise(write(tensors, config), default_policy(WeightFormat::int4));
  EXPECT_EQ(int4.matrix(kUp, 1, 4).format, WeightFormat::int4);
  EXPECT_NEAR(decoded(int4.matrix(kUp, 1, 4))(0, 2), 6.0f, 0.5f);
  EXPECT_EQ(int4.vector("model.norm.weight", 4).as<float>()(0, 3), 4.0f);
}

TEST_F(Quantise, RefusesWhatCannotBeDone) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(fails_naming(
      [&] {
        quantise(matrix(2, 2, {1, 2, nan, 4}), all_as({WeightFormat::int8, 1, 0}));
      },
      {kUp, "row 1", "not finite"}));
  for (const WeightScheme& scheme :
       {WeightScheme{WeightFormat::fp8_e4m3, 1, 0}, WeightScheme{WeightFormat::int8, 2, 0},
        WeightScheme{WeightFormat::int4, 1, 32, true}, WeightScheme{WeightFormat::int4, 1, -1}})
    EXPECT_THROW(quantise(matrix(2, 2, {1, 2, 3, 4}), all_as(scheme)), std::invalid_argument);
}

// Two kinds of matrices beside plain ones, and files that belong to the model.
SafetensorsWriter small_model() {
  SafetensorsWriter tensors;
  tensors.add(kUp, "F32", {6, 72}, some_weights(6 * 72))
      .add("lm_head.weight", "F32", {3, 5}, some_weights(15))
      .add("model.layers.0.self_attn.kv_b_proj.weight", "F32", {2, 3}, some_weights(6))
      .add("model.embed_tokens.weight", "F32", {3, 5}, some_weights(15))
      .add("model.norm.weight", "F32", {5}, some_weights(5));
  return tensors;
}

TEST_F(Quantise, WhatIsSavedIsLoadedByMappingWithTheSameWeights) {
  Index seen = 0;
  const Checkpoint made =
      quantise(write(small_model(), {{"hidden_size", 5}}), default_policy(WeightFormat::int4),
               {.on_progress = [&](Index done, Index all) {
                 EXPECT_EQ(done, ++seen);
                 EXPECT_EQ(all, 2);
               }});
  write_file(source() / "tokenizer.json", "{\"a\": 1}");
  write_file(source() / "model-00001-of-00001.safetensors", "old weights");
  save_checkpoint(made, target());
  EXPECT_EQ(seen, 2);

  const Checkpoint loaded(target());
  EXPECT_EQ(loaded.names(), made.names());
  for (const std::string& name : made.names()) {
    const SafetensorsTensor &a = made.tensor(name), &b = loaded.tensor(name);
    EXPECT_EQ(a.dtype, b.dtype) << name;
    EXPECT_EQ(a.shape, b.shape) << name;
    EXPECT_TRUE(std::ranges::equal(a.bytes, b.bytes)) << name;
  }
  EXPECT_EQ(decoded(loaded.matrix(kUp, 6, 72)), decoded(made.matrix(kUp, 6, 72)));
  EXPECT_EQ(loaded.matrix("lm_head.weight", 3, 5).format, WeightFormat::int8);
  EXPECT_EQ(read_file(target() / "tokenizer.json"), "{\"a\": 1}");
  EXPECT_FALSE(std::filesystem::exists(target() / "model-00001-of-00001.safetensors"));
}

TEST_F(Quantise, TheSavedConfigIsThatOfCompressedTensors) {
  save_checkpoint(
      quantise(write(small_model(), {{"hidden_size", 5}}), default_policy(WeightFormat::int4)),
      target());
  const nlohmann::json config = nlohmann::json::parse(read_file(target() / "config.json"));
  EXPECT_EQ(config["hidden_size"], 5);
  const nlohmann::json& q = config["quantization_config"];
  EXPECT_EQ(q["quant_method"], "compressed-tensors");
  EXPECT_EQ(q["format"], "mixed-precision");
  EXPECT_EQ(q["ignore"], nlohmann::json({"model.layers.0.self_attn.kv_b_proj"}));
  std::set<std::string> formats;
  for (const auto& [name, group] : q["config_groups"].items()) {
    formats.insert(group["format"]);
    const nlohmann::json& weights = group["weights"];
    if (group["format"] == "pack-quantized") {
      EXPECT_EQ(weights["num_bits"], 4);
      EXPECT_EQ(weights["group_size"], 32);
      EXPECT_EQ(weights["strategy"], "group");
    } else {
      EXPECT_EQ(weights["num_bits"], 8);
      EXPECT_EQ(weights["strategy"], "channel");
    }
  }
  EXPECT_EQ(formats, (std::set<std::string>{"int-quantized", "pack-quantized"}));
}

TEST_F(Quantise, Fp8ThatStaysIsSavedInTheLayoutOfCompressedTensors) {
  SafetensorsWriter tensors = small_model();
  const std::string fp8 = "model.layers.0.self_attn.o_proj.weight";
  tensors.add<std::uint8_t>(fp8, "F8_E4M3", {2, 2}, {0x38, 0xb8, 0x40, 0x30})
      .add<float>(fp8 + "_scale_inv", "F32", {1, 2}, {3.0f, 4.0f});
  const nlohmann::json config = {
      {"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 1}}}}};
  const Checkpoint made = quantise(write(tensors, config), default_policy(WeightFormat::int8));
  save_checkpoint(made, target());
  const Checkpoint loaded(target());
  EXPECT_TRUE(loaded.contains(fp8 + "_scale"));
  EXPECT_EQ(decoded(loaded.matrix(fp8, 2, 2)), decoded(made.matrix(fp8, 2, 2)));
}

TEST_F(Quantise, AFullDiskLeavesNothingBehind) {
  const Checkpoint made = quantise(write(small_model()), default_policy(WeightFormat::int8));
  {
    const FullDisk disk(500);
    EXPECT_TRUE(fails_naming([&] { save_checkpoint(made, target()); },
                             {"model.safetensors", "cannot write"}));
  }
  EXPECT_EQ(names_in(directory_), std::vector<std::string>{"source"});
  save_checkpoint(made, target());
  EXPECT_TRUE(fails_naming([&] { save_checkpoint(made, target()); },
                           {target().string(), "exists already"}));
  EXPECT_EQ(names_in(directory_), (std::vector<std::string>{"source", "target"}));
}

}  // namespace
}  // namespace mla::test
