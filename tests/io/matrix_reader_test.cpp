// Quantised matrices of checkpoints: read where they are, in every published layout; what does not
// fit is refused by name.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mla/io/checkpoint.hpp"
#include "mla/io/tensor_reader.hpp"
#include "support/safetensors_writer.hpp"

namespace mla {
namespace {

using nlohmann::json;
using test::fails_naming;
using test::SafetensorsWriter;
using test::TemporaryDirectory;
using test::write_file;

json fp8_config(Index rows = 128, Index cols = 128) {
  return {{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {rows, cols}}};
}

json compressed_config(const char* format, json weights) {
  weights.emplace("type", "int");
  weights.emplace("strategy", "group");
  return {{"quant_method", "compressed-tensors"},
          {"format", format},
          {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}}}}}};
}

json int4_config(Index group, bool symmetric = true) {
  return compressed_config("pack-quantized",
                           {{"num_bits", 4}, {"group_size", group}, {"symmetric", symmetric}});
}

class MatrixReader : public testing::Test {
 protected:
  // A directory with these tensors and, unless it is null, this quantization_config.
  Checkpoint open(const SafetensorsWriter& tensors, const json& quantization = nullptr) {
    tensors.write(directory_ / "model.safetensors");
    std::filesystem::remove(directory_ / "config.json");
    if (!quantization.is_null())
      write_file(directory_ / "config.json", json{{"quantization_config", quantization}}.dump());
    return Checkpoint(directory_.path());
  }

  testing::AssertionResult refuses(const SafetensorsWriter& tensors, const json& quantization,
                                   Index rows, Index cols, const std::vector<std::string>& parts) {
    return fails_naming([&] { open(tensors, quantization).matrix("x.weight", rows, cols); }, parts);
  }

  TemporaryDirectory directory_;
};

RowMajorMatrix decoded(const WeightView& weight) {
  RowMajorMatrix values(weight.rows, weight.cols);
  info_of(weight.format).widen(weight, {values.data(), weight.rows, weight.cols});
  return values;
}

std::vector<std::uint8_t> some_codes(Index size) {
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < codes.size(); ++i)  // NaN codes become zero
    codes[i] = i % 128 == 127 ? std::uint8_t{0} : static_cast<std::uint8_t>(i);
  return codes;
}

TEST_F(MatrixReader, Fp8IsAViewIntoTheFileWithScalesOfAllTypes) {
  constexpr Index kRows = 130, kCols = 257;  // blocks [2, 3], the last ones partial
  const std::vector<std::uint8_t> codes = some_codes(kRows * kCols);
  const std::vector<std::uint8_t> exponents = {120, 127, 130, 119, 128, 125};
  std::vector<float> f32;
  std::vector<bfloat16> bf16;
  for (const std::uint8_t exponent : exponents) {
    f32.push_back(std::ldexp(1.0f, exponent - 127));
    bf16.push_back(bfloat16(f32.back()));
  }
  SafetensorsWriter tensors;
  for (const char* name : {"a", "b", "c"})
    tensors.add(name + std::string(".weight"), "F8_E4M3", {kRows, kCols}, codes);
  tensors.add("a.weight_scale_inv", "F32", {2, 3}, f32)
      .add("b.weight_scale_inv", "BF16", {2, 3}, bf16)
      .add("c.weight_scale_inv", "F8_E8M0", {2, 3}, exponents);
  for (const json& config : {json(), fp8_config()}) {
    const Checkpoint checkpoint = open(tensors, config);
    for (const char* name : {"a.weight", "b.weight", "c.weight"}) {
      const WeightView weight = checkpoint.matrix(name, kRows, kCols);
      ASSERT_EQ(weight.format, WeightFormat::fp8_e4m3);
      EXPECT_EQ(weight.data, checkpoint.tensor(name).bytes.data());
      EXPECT_EQ(weight.scales.data,
                checkpoint.tensor(name + std::string("_scale_inv")).bytes.data());
      const RowMajorMatrix values = decoded(weight);
      for (Index r = 0; r < kRows; ++r)
        for (Index c = 0; c < kCols; ++c)
          ASSERT_EQ(values(r, c), decode_e4m3(codes[static_cast<std::size_t>(r * kCols + c)]) *
                                      f32[static_cast<std::size_t>(r / 128 * 3 + c / 128)])
              << name << " " << r << " " << c;
    }
  }
}

TEST_F(MatrixReader, TheBlockSizeComesFromTheConfig) {
  const SafetensorsWriter tensors =
      SafetensorsWriter()
          .add<std::uint8_t>("x.weight", "F8_E4M3", {3, 2}, {0x38, 0x38, 0x38, 0x38, 0x38, 0x38})
          .add<float>("x.weight_scale_inv", "F32", {2, 2}, {1, 2, 3, 4});
  const Checkpoint checkpoint = open(tensors, fp8_config(2, 1));
  const RowMajorMatrix values = decoded(checkpoint.matrix("x.weight", 3, 2));
  EXPECT_EQ(values(1, 1), 2.0f);
  EXPECT_EQ(values(2, 0), 3.0f);
}

// compressed-tensors' float-quantized: a scale per row, per block or for all.
TEST_F(MatrixReader, Fp8OfCompressedTensorsHasScalesOfItsStrategy) {
  SafetensorsWriter tensors;
  tensors.add<std::uint8_t>("x.weight", "F8_E4M3", {2, 2}, {0x38, 0x38, 0x38, 0x38});
  const auto value_at = [&](const json& weights, const SafetensorsWriter& with) {
    const Checkpoint checkpoint = open(with, compressed_config("float-quantized", weights));
    return decoded(checkpoint.matrix("x.weight", 2, 2))(1, 0);
  };
  const json channel = {{"num_bits", 8}, {"type", "float"}, {"strategy", "channel"}};
  SafetensorsWriter by_row = tensors, flat = tensors, one = tensors, number = tensors;
  by_row.add<bfloat16>("x.weight_scale", "BF16", {2, 1}, {bfloat16(2.0f), bfloat16(3.0f)});
  EXPECT_EQ(value_at(channel, by_row), 3.0f);
  flat.add<float>("x.weight_scale", "F32", {2}, {4, 5});
  EXPECT_EQ(value_at(channel, flat), 5.0f);
  const json all = {{"num_bits", 8}, {"type", "float"}, {"strategy", "tensor"}};
  one.add<float>("x.weight_scale", "F32", {1}, {6});
  EXPECT_EQ(value_at(all, one), 6.0f);
  number.add<float>("x.weight_scale", "F32", {}, {7});
  EXPECT_EQ(value_at(all, number), 7.0f);
}

TEST_F(MatrixReader, Int8HasAScalePerRowOrPerBlock) {
  SafetensorsWriter tensors;
  tensors.add<std::int8_t>("x.weight", "I8", {2, 3}, {-128, 127, 1, -1, 2, 0})
      .add<float>("x.weight_scale", "F32", {2, 1}, {0.5f, 10.0f});
  for (const json& config :
       {json(), compressed_config("int-quantized", {{"num_bits", 8}, {"strategy", "channel"}})}) {
    const Checkpoint checkpoint = open(tensors, config);
    const WeightView weight = checkpoint.matrix("x.weight", 2, 3);
    EXPECT_EQ(weight.format, WeightFormat::int8);
    EXPECT_EQ(weight.data, checkpoint.tensor("x.weight").bytes.data());
    EXPECT_EQ(decoded(weight), (RowMajorMatrix(2, 3) << -64, 63.5, 0.5, -10, 20, 0).finished());
  }
  SafetensorsWriter blocks;
  blocks.add<std::int8_t>("x.weight", "I8", {2, 3}, {1, 1, 1, 1, 1, 1})
      .add<float>("x.weight_scale_inv", "F32", {1, 2}, {2, 3});
  const Checkpoint checkpoint =
      open(blocks, {{"quant_method", "blockwise_int8"}, {"weight_block_size", {2, 2}}});
  EXPECT_EQ(decoded(checkpoint.matrix("x.weight", 2, 3)),
            (RowMajorMatrix(2, 3) << 2, 2, 3, 2, 2, 3).finished());
}

// 10 columns in two words, groups of 8 and 2.
SafetensorsWriter int4_tensors(bool shape64 = false) {
  SafetensorsWriter tensors;
  tensors
      .add<std::uint32_t>("x.weight_packed", "I32", {2, 2},
                          {0x76543210, 0x00000098, 0xfedcba98, 0x00000070})
      .add<bfloat16>("x.weight_scale", "BF16", {2, 2},
                     {bfloat16(1.0f), bfloat16(2.0f), bfloat16(0.5f), bfloat16(4.0f)});
  if (shape64) return tensors.add<std::int64_t>("x.weight_shape", "I64", {2}, {2, 10});
  return tensors.add<std::int32_t>("x.weight_shape", "I32", {2}, {2, 10});
}

TEST_F(MatrixReader, Int4IsAViewOfPackedWords) {
  for (const bool shape64 : {false, true}) {
    const Checkpoint checkpoint = open(int4_tensors(shape64), int4_config(8));
    EXPECT_TRUE(checkpoint.contains_matrix("x.weight"));
    EXPECT_FALSE(checkpoint.contains("x.weight"));
    const WeightView weight = checkpoint.matrix("x.weight", 2, 10);
    EXPECT_EQ(weight.format, WeightFormat::int4);
    EXPECT_EQ(weight.data, checkpoint.tensor("x.weight_packed").bytes.data());
    EXPECT_EQ(decoded(weight), (RowMajorMatrix(2, 10) << -8, -7, -6, -5, -4, -3, -2, -1, 0, 2,  //
                                0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, -32, -4)
                                   .finished());
  }
}

TEST_F(MatrixReader, ZeroPointsOfInt4ArePackedAlongTheRows) {
  SafetensorsWriter tensors = int4_tensors();
  tensors.add<std::uint32_t>("x.weight_zero_point", "I32", {1, 2}, {0xf2, 0x10});
  const Checkpoint checkpoint = open(tensors, int4_config(8, false));
  const RowMajorMatrix values = decoded(checkpoint.matrix("x.weight", 2, 10));
  EXPECT_EQ(values(0, 0), -2.0f);
  EXPECT_EQ(values(0, 8), 16.0f);
  EXPECT_EQ(values(1, 0), -3.5f);
  EXPECT_EQ(values(1, 9), 24.0f);
  EXPECT_TRUE(refuses(tensors, int4_config(8), 2, 10, {"x.weight_scale", "zero points"}));
  EXPECT_TRUE(refuses(int4_tensors(), int4_config(8, false), 2, 10,
                      {"x.weight_scale", "expects zero points"}));
  SafetensorsWriter wide = int4_tensors();
  wide.add<std::uint32_t>("x.weight_zero_point", "I32", {2, 2}, {0, 0, 0, 0});
  EXPECT_TRUE(refuses(wide, int4_config(8, false), 2, 10,
                      {"x.weight_zero_point", "[2, 2]", "expected [1, 2]"}));
}

TEST_F(MatrixReader, RefusesZeroPointsOfOtherFormats) {
  SafetensorsWriter tensors;
  tensors.add<std::int8_t>("x.weight", "I8", {1, 2}, {1, 2})
      .add<float>("x.weight_scale", "F32", {1, 1}, {1})
      .add<std::int8_t>("x.weight_zero_point", "I8", {1, 1}, {3});
  EXPECT_TRUE(refuses(tensors, nullptr, 1, 2, {"tensor x.weight_zero_point", "int4"}));
}

TEST_F(MatrixReader, Mxfp4AndNvfp4ShareTheirCodes) {
  SafetensorsWriter mx;
  mx.add<std::uint8_t>("x.weight_packed", "U8", {1, 2}, {0x21, 0xf7})
      .add<std::uint8_t>("x.weight_scale", "U8", {1, 1}, {128});
  const auto config = [](const char* format, Index group) {
    return compressed_config(format, {{"num_bits", 4}, {"type", "float"}, {"group_size", group}});
  };
  const RowMajorMatrix codes = (RowMajorMatrix(1, 4) << 0.5, 1, 6, -6).finished();
  EXPECT_EQ(decoded(open(mx, config("mxfp4-pack-quantized", 32)).matrix("x.weight", 1, 4)),
            RowMajorMatrix(2.0f * codes));
  SafetensorsWriter nv;
  nv.add<std::uint8_t>("x.weight_packed", "U8", {1, 2}, {0x21, 0xf7})
      .add<std::uint8_t>("x.weight_scale", "F8_E4M3", {1, 1}, {0x48});  // 4
  EXPECT_TRUE(
      refuses(nv, config("nvfp4-pack-quantized", 16), 1, 4, {"x.weight_global_scale", "missing"}));
  SafetensorsWriter zero = nv;
  zero.add<float>("x.weight_global_scale", "F32", {1}, {0});
  EXPECT_TRUE(refuses(zero, config("nvfp4-pack-quantized", 16), 1, 4,
                      {"x.weight_global_scale", "positive", "0"}));
  nv.add<float>("x.weight_global_scale", "F32", {1}, {8});
  EXPECT_EQ(decoded(open(nv, config("nvfp4-pack-quantized", 16)).matrix("x.weight", 1, 4)),
            RowMajorMatrix(0.5f * codes));
}

TEST_F(MatrixReader, RefusesAScaleThatIsMissingOrThereTwice) {
  SafetensorsWriter fp8, int8, int4;
  fp8.add<std::uint8_t>("x.weight", "F8_E4M3", {1, 1}, {1});
  EXPECT_TRUE(refuses(fp8, fp8_config(), 1, 1, {"tensor x.weight_scale_inv is missing"}));
  int8.add<std::int8_t>("x.weight", "I8", {1, 1}, {1});
  EXPECT_TRUE(refuses(int8, nullptr, 1, 1, {"tensor x.weight_scale is missing"}));
  int4.add<std::int32_t>("x.weight_packed", "I32", {1, 1}, {1})
      .add<std::int32_t>("x.weight_shape", "I32", {2}, {1, 8});
  EXPECT_TRUE(refuses(int4, int4_config(8), 1, 8, {"tensor x.weight_scale is missing"}));
  fp8.add<float>("x.weight_scale", "F32", {1}, {1})
      .add<float>("x.weight_scale_inv", "F32", {1, 1}, {1});
  EXPECT_TRUE(refuses(fp8, fp8_config(), 1, 1, {"x.weight_scale", "twice", "x.weight_scale_inv"}));
}

TEST_F(MatrixReader, RefusesScalesOfAnotherShapeOrType) {
  SafetensorsWriter shape, type;
  shape.add("x.weight", "F8_E4M3", {1, 129}, some_codes(129))
      .add<float>("x.weight_scale_inv", "F32", {1, 1}, {1});
  for (const json& config : {json(), fp8_config()})
    EXPECT_TRUE(refuses(shape, config, 1, 129, {"tensor x.weight_scale_inv", "[1, 1]", "[1, 2]"}));
  type.add("x.weight", "F8_E4M3", {1, 1}, some_codes(1))
      .add<std::int32_t>("x.weight_scale_inv", "I32", {1, 1}, {1});
  EXPECT_TRUE(refuses(type, fp8_config(), 1, 1, {"tensor x.weight_scale_inv", "I32"}));
  EXPECT_TRUE(refuses(int4_tensors(), int4_config(32), 2, 10,
                      {"tensor x.weight_scale", "[2, 2]", "expects [2, 1]"}));
}

TEST_F(MatrixReader, RefusesScalesThatAreNoPositiveNumbers) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {0.0f, -0.0f, -1.0f, kNan, kInfinity}) {
    SafetensorsWriter tensors;
    tensors.add("x.weight", "F8_E4M3", {3, 2}, some_codes(6))
        .add<float>("x.weight_scale_inv", "F32", {3, 2}, {1, 1, 1, bad, 1, 1});
    EXPECT_TRUE(refuses(tensors, fp8_config(1, 1), 3, 2,
                        {"tensor x.weight_scale_inv", "positive", "at [1, 1]"}))
        << bad;
  }
  for (const std::uint16_t bad :
       std::initializer_list<std::uint16_t>{0x0000, 0x8000, 0xbf80, 0x7f80, 0x7fc0, 0xff80}) {
    SafetensorsWriter tensors;
    tensors.add("x.weight", "F8_E4M3", {1, 3}, some_codes(3))
        .add<std::uint16_t>("x.weight_scale_inv", "BF16", {1, 3}, {0x0001, 0x7f7f, bad});
    EXPECT_TRUE(refuses(tensors, fp8_config(1, 1), 1, 3, {"x.weight_scale_inv", "at [0, 2]"}))
        << bad;
  }
  for (const std::uint16_t bad :
       std::initializer_list<std::uint16_t>{0x0000, 0x8000, 0xbc00, 0x7c00, 0x7e00, 0xfc00}) {
    SafetensorsWriter tensors;
    tensors.add("x.weight", "F8_E4M3", {1, 3}, some_codes(3))
        .add<std::uint16_t>("x.weight_scale_inv", "F16", {1, 3}, {0x0001, 0x7bff, bad});
    EXPECT_TRUE(refuses(tensors, fp8_config(1, 1), 1, 3, {"x.weight_scale_inv", "at [0, 2]"}))
        << bad;
  }
  SafetensorsWriter nan;
  nan.add("x.weight", "F8_E4M3", {1, 1}, some_codes(1))
      .add<std::uint8_t>("x.weight_scale_inv", "F8_E8M0", {1, 1}, {255});
  EXPECT_TRUE(refuses(nan, fp8_config(), 1, 1, {"x.weight_scale_inv", "positive"}));
}

TEST_F(MatrixReader, RefusesPackedWordsThatDoNotFitTheirShape) {
  EXPECT_TRUE(refuses(int4_tensors(), int4_config(8), 2, 9,
                      {"tensor x.weight_shape", "[2, 10]", "expected [2, 9]"}));
  SafetensorsWriter narrow;
  narrow.add<std::int32_t>("x.weight_packed", "I32", {2, 1}, {1, 2})
      .add<float>("x.weight_scale", "F32", {2, 2}, {1, 1, 1, 1})
      .add<std::int32_t>("x.weight_shape", "I32", {2}, {2, 10});
  EXPECT_TRUE(refuses(narrow, int4_config(8), 2, 10,
                      {"tensor x.weight_packed", "[2, 1]", "expected [2, 2]"}));
  SafetensorsWriter without;
  without.add<std::int32_t>("x.weight_packed", "I32", {1, 1}, {1})
      .add<float>("x.weight_scale", "F32", {1, 1}, {1});
  EXPECT_TRUE(refuses(without, int4_config(8), 1, 8, {"tensor x.weight_shape is missing"}));
  SafetensorsWriter floats = without;
  floats.add<float>("x.weight_shape", "F32", {2}, {1, 8});
  EXPECT_TRUE(refuses(floats, int4_config(8), 1, 8, {"tensor x.weight_shape", "F32", "I32"}));
}

TEST_F(MatrixReader, RefusesInputsInAnotherOrder) {
  SafetensorsWriter tensors = int4_tensors();
  tensors.add<std::int32_t>("x.weight_g_idx", "I32", {10}, std::vector<std::int32_t>(10));
  EXPECT_TRUE(refuses(tensors, int4_config(8), 2, 10, {"tensor x.weight_g_idx", "actorder"}));
}

TEST_F(MatrixReader, WithoutAConfigAGroupMustDivideARow) {
  SafetensorsWriter even, odd;
  even.add<std::int32_t>("x.weight_packed", "I32", {1, 2}, {0, 0})
      .add<float>("x.weight_scale", "F32", {1, 2}, {1, 2})
      .add<std::int32_t>("x.weight_shape", "I32", {2}, {1, 10});
  EXPECT_EQ(open(even).matrix("x.weight", 1, 10).scales.block_cols, 5);
  odd.add<std::int32_t>("x.weight_packed", "I32", {1, 2}, {0, 0})
      .add<float>("x.weight_scale", "F32", {1, 3}, {1, 2, 3})
      .add<std::int32_t>("x.weight_shape", "I32", {2}, {1, 10});
  EXPECT_TRUE(refuses(odd, nullptr, 1, 10, {"x.weight_scale", "[1, 3]", "do not divide"}));
}

TEST_F(MatrixReader, TheConfigNamesEveryFormatAndNoOther) {
  const auto opens = [&](const SafetensorsWriter& tensors, const json& config,
                         const std::vector<std::string>& parts) {
    return fails_naming([&] { open(tensors, config); }, parts);
  };
  SafetensorsWriter plain;
  plain.add<float>("x.weight", "F32", {1, 1}, {1});
  EXPECT_TRUE(opens(plain, fp8_config(), {"config.json", "fp8", "no tensor"}));
  EXPECT_TRUE(opens(plain, int4_config(32), {"config.json", "int4", "no tensor"}));
  EXPECT_TRUE(opens(int4_tensors(), fp8_config(), {"tensor x.weight_packed is int4"}));
  SafetensorsWriter fp8;
  fp8.add<std::uint8_t>("x.weight", "F8_E4M3", {1, 1}, {1});
  EXPECT_TRUE(opens(fp8, int4_config(32), {"tensor x.weight is fp8", "config.json"}));
  write_file(directory_ / "config.json", "{}");
  EXPECT_TRUE(fails_naming([&] { Checkpoint{directory_.path()}; },
                           {"tensor x.weight is fp8", "no such quantization_config"}));
}

// What a matrix is made of is taken with it, also the scales of activations, which nobody needs.
TEST_F(MatrixReader, AllPartsOfAMatrixAreTaken) {
  SafetensorsWriter tensors = int4_tensors();
  tensors.add<float>("x.input_scale", "F32", {1}, {1});
  const Checkpoint checkpoint = open(tensors, int4_config(8));
  TensorReader reader(checkpoint);
  reader.matrix("x.weight", 2, 10);
  EXPECT_NO_THROW(reader.refuse_unused());
  SafetensorsWriter more = int4_tensors();
  more.add<float>("x.weight_rotation", "F32", {1}, {1});
  const Checkpoint other = open(more, int4_config(8));
  TensorReader strict(other);
  strict.matrix("x.weight", 2, 10);
  EXPECT_TRUE(fails_naming([&] { strict.refuse_unused(); }, {"x.weight_rotation", "not used"}));
}

TEST_F(MatrixReader, AMatrixIsStoredOnce) {
  SafetensorsWriter tensors = int4_tensors();
  tensors.add<float>("x.weight", "F32", {2, 10}, std::vector<float>(20));
  EXPECT_TRUE(refuses(tensors, int4_config(8), 2, 10, {"tensor x.weight", "twice"}));
}

}  // namespace
}  // namespace mla
