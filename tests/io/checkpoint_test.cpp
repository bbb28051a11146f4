#include "mla/io/checkpoint.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "support/safetensors_writer.hpp"

namespace mla {
namespace {

using test::fails_naming;
using test::SafetensorsWriter;
using test::TemporaryDirectory;
using test::write_file;

class CheckpointTest : public testing::Test {
 protected:
  // A directory whose model.safetensors is `writer`'s.
  Checkpoint open(const SafetensorsWriter& writer) {
    writer.write(directory_ / "model.safetensors");
    return Checkpoint(directory_.path());
  }

  void write_index(const nlohmann::json& weight_map) {
    write_file(index(), nlohmann::json{{"weight_map", weight_map}}.dump());
  }
  std::filesystem::path index() const { return directory_ / "model.safetensors.index.json"; }

  testing::AssertionResult refuses(const std::vector<std::string>& parts) {
    return fails_naming([&] { Checkpoint{directory_.path()}; }, parts);
  }

  TemporaryDirectory directory_;
};

SafetensorsWriter one_float(const std::string& name, float value) {
  SafetensorsWriter writer;
  writer.add<float>(name, "F32", {1, 1}, {value});
  return writer;
}

TEST_F(CheckpointTest, OpensAFileADirectoryAndShards) {
  one_float("a", 1).write(directory_ / "x.safetensors");
  one_float("b", 2).write(directory_ / "y.safetensors");
  EXPECT_EQ(Checkpoint(directory_ / "x.safetensors").names(), std::vector<std::string>{"a"});

  write_index({{"a", "x.safetensors"}, {"b", "y.safetensors"}});
  const Checkpoint shards(directory_.path());
  EXPECT_EQ(shards.names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(shards.matrix("b", 1, 1).as<float>()(0, 0), 2.0f);

  const Checkpoint single =
      open(one_float("c", 3));  // is preferred to the index, as in transformers
  EXPECT_EQ(single.names(), std::vector<std::string>{"c"});
}

TEST_F(CheckpointTest, AFileOfMultiTokenPredictionBelongsToIt) {
  one_float("b", 2).write(directory_ / "mtp-1-of-1.safetensors");
  EXPECT_EQ(open(one_float("a", 1)).names(), (std::vector<std::string>{"a", "b"}));
}

TEST_F(CheckpointTest, TheIndexDecidesWhichShardATensorIsReadFrom) {
  one_float("a", 1).write(directory_ / "x.safetensors");
  SafetensorsWriter both = one_float("a", -1);
  both.add<float>("b", "F32", {1, 1}, {2}).write(directory_ / "y.safetensors");
  write_index({{"a", "x.safetensors"}, {"b", "y.safetensors"}});
  EXPECT_EQ(Checkpoint(directory_.path()).matrix("a", 1, 1).as<float>()(0, 0), 1.0f);
}

TEST_F(CheckpointTest, WeightsOfThreeTypesAreViewsIntoTheFile) {
  const Checkpoint checkpoint =
      open(SafetensorsWriter()
               .add<float>("f32", "F32", {2, 2}, {1, 2, 3, 4})
               .add<bfloat16>("bf16", "BF16", {1, 2}, {bfloat16(1.0f), bfloat16(2.0f)})
               .add<float16>("f16", "F16", {2}, {float16(1.0f), float16(2.0f)}));
  const WeightView f32 = checkpoint.matrix("f32", 2, 2);
  EXPECT_EQ(f32.data, checkpoint.tensor("f32").bytes.data());
  EXPECT_EQ(f32.format, WeightFormat::float32);
  EXPECT_EQ(f32.as<float>()(1, 0), 3.0f);
  const WeightView bf16 = checkpoint.matrix("bf16", 1, 2);
  EXPECT_EQ(bf16.data, checkpoint.tensor("bf16").bytes.data());
  EXPECT_EQ(float(bf16.as<bfloat16>()(0, 1)), 2.0f);
  const WeightView f16 = checkpoint.vector("f16", 2);
  EXPECT_EQ(f16.data, checkpoint.tensor("f16").bytes.data());
  EXPECT_EQ(f16.rows, 1);
  EXPECT_EQ(float(f16.as<float16>()(0, 1)), 2.0f);
}

TEST_F(CheckpointTest, AMissingTensorAndAnotherShapeAreNamed) {
  const Checkpoint checkpoint = open(SafetensorsWriter()
                                         .add<float>("w", "F32", {2, 3}, std::vector<float>(6))
                                         .add<float>("v", "F32", {3}, std::vector<float>(3)));
  const std::string path = directory_.path().string();
  EXPECT_TRUE(fails_naming([&] { checkpoint.matrix("q", 2, 3); }, {path, "tensor q", "missing"}));
  EXPECT_TRUE(
      fails_naming([&] { checkpoint.matrix("w", 3, 2); }, {path, "tensor w", "[2, 3]", "[3, 2]"}));
  EXPECT_TRUE(
      fails_naming([&] { checkpoint.matrix("v", 1, 3); }, {path, "tensor v", "[3]", "[1, 3]"}));
  EXPECT_TRUE(fails_naming([&] { checkpoint.vector("v", 4); }, {path, "tensor v", "[3]", "[4]"}));
  EXPECT_TRUE(
      fails_naming([&] { checkpoint.vector("w", 6); }, {path, "tensor w", "[2, 3]", "[6]"}));
}

TEST_F(CheckpointTest, IntegersAreTensorsButNotWeights) {
  const Checkpoint checkpoint =
      open(SafetensorsWriter().add<std::int32_t>("ids", "I32", {1, 2}, {3, 4}));
  EXPECT_EQ(checkpoint.tensor("ids").values<std::int32_t>()[1], 4);
  EXPECT_TRUE(fails_naming([&] { checkpoint.matrix("ids", 1, 2); }, {"tensor ids", "I32"}));
}

TEST_F(CheckpointTest, NamesCanBeAskedForByPrefix) {
  const Checkpoint checkpoint = open(SafetensorsWriter()
                                         .add<float>("layers.1.a", "F32", {0}, {})
                                         .add<float>("layers.1.b", "F32", {0}, {})
                                         .add<float>("layers.10.a", "F32", {0}, {})
                                         .add<float>("head", "F32", {0}, {}));
  EXPECT_EQ(checkpoint.names("layers.1."), (std::vector<std::string>{"layers.1.a", "layers.1.b"}));
  EXPECT_EQ(checkpoint.names().size(), 4u);
  EXPECT_TRUE(checkpoint.contains("head"));
  EXPECT_FALSE(checkpoint.contains("hea"));
}

TEST_F(CheckpointTest, RefusesAPlaceWithoutACheckpoint) {
  EXPECT_TRUE(refuses({directory_.path().string(), "model.safetensors.index.json"}));
  EXPECT_TRUE(fails_naming([&] { Checkpoint{directory_ / "none"}; },
                           {(directory_ / "none").string(), "No such file"}));
}

TEST_F(CheckpointTest, NamesAShardThatIsMissing) {
  write_index({{"a", "x.safetensors"}});
  EXPECT_TRUE(refuses({(directory_ / "x.safetensors").string(), "No such file"}));
}

TEST_F(CheckpointTest, NamesATensorThatItsShardLacks) {
  one_float("a", 1).write(directory_ / "x.safetensors");
  write_index({{"a", "x.safetensors"}, {"b", "x.safetensors"}});
  EXPECT_TRUE(refuses({index().string(), "tensor b", "x.safetensors"}));
}

TEST_F(CheckpointTest, AnIndexCannotReachOutsideItsDirectory) {
  const TemporaryDirectory elsewhere;
  const auto outside = one_float("a", 1).write(elsewhere / "x.safetensors");
  std::filesystem::create_directory(directory_ / "sub");
  one_float("a", 1).write(directory_ / "sub" / "x.safetensors");
  for (const std::string& shard :
       {"../" + elsewhere.path().filename().string() + "/x.safetensors", outside.string(),
        std::string("sub/x.safetensors"), std::string(".."), std::string("."), std::string(),
        std::string("x\0y", 3)}) {
    write_index({{"a", shard}});
    EXPECT_TRUE(refuses({index().string(), "tensor a", "beside"})) << shard;
  }
}

TEST_F(CheckpointTest, RefusesAnIndexThatIsNotOne) {
  for (const char* text : {"", "[]", "{}", R"({"weight_map": ["a"]})"}) {
    write_file(index(), text);
    EXPECT_TRUE(refuses({index().string()})) << text;
  }
  write_file(index(), R"({"weight_map": {"a": 1}})");
  EXPECT_TRUE(refuses({index().string(), "tensor a", "1"}));
  write_file(index(), R"({"weight_map": {"a": "x", "a": "y"}})");
  EXPECT_TRUE(refuses({index().string(), "weight_map.a twice"}));
}

}  // namespace
}  // namespace mla
