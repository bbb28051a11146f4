#include "mla/io/tensor_reader.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "support/safetensors_writer.hpp"

namespace mla {
namespace {

using test::fails_naming;
using test::SafetensorsWriter;
using test::TemporaryDirectory;

class TensorReaderTest : public testing::Test {
 protected:
  TensorReaderTest() {
    writer_.add<float>("head.weight", "F32", {2, 1}, {1, 2})
        .add<float>("layers.1.norm.weight", "F32", {2}, {3, 4})
        .add<std::uint8_t>("layers.1.mlp.up.weight", "F8_E4M3", {1, 1}, {0x38})
        .add<float>("layers.1.mlp.up.weight_scale_inv", "F32", {1, 1}, {0.5f});
  }

  Checkpoint checkpoint() { return Checkpoint(writer_.write(directory_ / "x.safetensors")); }
  // With the four tensors of the constructor taken.
  static TensorReader all_taken(const Checkpoint& checkpoint) {
    TensorReader reader(checkpoint);
    reader.matrix("head.weight", 2, 1);
    TensorReader layer = reader.under("layers.1");
    layer.vector("norm.weight", 2);
    layer.under("mlp").matrix("up.weight", 1, 1);
    return reader;
  }

  TemporaryDirectory directory_;
  SafetensorsWriter writer_;
};

TEST_F(TensorReaderTest, AModuleNamesItsTensorsWithoutThePrefix) {
  const Checkpoint file = checkpoint();
  TensorReader layer = TensorReader(file).under("layers.1");
  EXPECT_EQ(layer.names(),
            (std::vector<std::string>{"mlp.up.weight", "mlp.up.weight_scale_inv", "norm.weight"}));
  EXPECT_TRUE(layer.contains("norm.weight"));
  EXPECT_FALSE(layer.contains("head.weight"));
  EXPECT_EQ(layer.vector("norm.weight", 2).data, file.tensor("layers.1.norm.weight").bytes.data());
  EXPECT_TRUE(layer.contains_matrix("mlp.up.weight"));
  EXPECT_EQ(to_float_vector(layer.matrix("mlp.up.weight", 1, 1)), std::vector<float>{0.5f});
  EXPECT_TRUE(TensorReader(file).under("layer").names().empty()) << "a module, not a prefix";
}

TEST_F(TensorReaderTest, ErrorsNameTheWholeTensor) {
  const Checkpoint file = checkpoint();
  TensorReader layer = TensorReader(file).under("layers.1");
  const std::string path = file.path();
  EXPECT_TRUE(fails_naming([&] { layer.matrix("gate.weight", 1, 1); },
                           {path, "tensor layers.1.gate.weight is missing"}));
  EXPECT_TRUE(fails_naming([&] { layer.vector("norm.weight", 3); },
                           {path, "tensor layers.1.norm.weight", "[2]", "[3]"}));
  EXPECT_TRUE(fails_naming([&] { layer.fail("x", " is ", 7); }, {path, "tensor layers.1.x is 7"}));
}

TEST_F(TensorReaderTest, AnOptionalVectorIsEmptyWhereItIsMissing) {
  const Checkpoint file = checkpoint();
  TensorReader layer = TensorReader(file).under("layers.1");
  EXPECT_FALSE(layer.optional_vector("norm.bias", 2));
  EXPECT_EQ(layer.optional_vector("norm.weight", 2).cols, 2);
  EXPECT_TRUE(fails_naming([&] { layer.optional_vector("norm.weight", 1); }, {"norm.weight"}));
}

TEST_F(TensorReaderTest, WhatAModuleTakesItsReaderHasTaken) {
  const Checkpoint file = checkpoint();
  EXPECT_NO_THROW(all_taken(file).refuse_unused());
  TensorReader some(file);
  some.under("layers.1").vector("norm.weight", 2);
  EXPECT_TRUE(fails_naming([&] { some.refuse_unused(); }, {"tensor head.weight is not used"}));
  EXPECT_TRUE(fails_naming([&] { some.under("layers.1").refuse_unused(); },
                           {"tensor layers.1.mlp.up.weight is not used"}));
}

TEST_F(TensorReaderTest, WhatIsLeftOverIsRefusedUnlessItIsIgnored) {
  writer_.add<float>("layers.1.other", "F32", {0}, {});
  const Checkpoint file = checkpoint();
  TensorReader reader = all_taken(file);
  EXPECT_TRUE(fails_naming([&] { reader.refuse_unused(); }, {file.path(), "layers.1.other"}));
  reader.under("layers.1").ignore("other");
  reader.ignore("layers.2.other");  // is not there
  EXPECT_NO_THROW(reader.refuse_unused());
}

// A scale beside a weight that has none would have been applied by somebody else.
TEST_F(TensorReaderTest, AScaleIsUsedByFp8Only) {
  writer_.add<float>("head.weight_scale_inv", "F32", {1, 1}, {2});
  const Checkpoint file = checkpoint();
  EXPECT_TRUE(fails_naming([&] { all_taken(file).refuse_unused(); }, {"head.weight_scale_inv"}));
}

}  // namespace
}  // namespace mla
