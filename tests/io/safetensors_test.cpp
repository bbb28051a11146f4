#include "mla/io/safetensors.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "support/safetensors_writer.hpp"

namespace mla {
namespace {

using test::fails_naming;
using test::safetensors_bytes;
using test::SafetensorsWriter;
using test::TemporaryDirectory;
using test::write_file;

class Safetensors : public testing::Test {
 protected:
  SafetensorsFile open(const std::string& bytes) {
    return SafetensorsFile(write_file(directory_ / "file.safetensors", bytes));
  }

  // Opening is refused, and the message names the file and `parts`.
  testing::AssertionResult refuses(const std::string& bytes, std::vector<std::string> parts) {
    parts.push_back((directory_ / "file.safetensors").string());
    return fails_naming([&] { open(bytes); }, parts);
  }

  // A file of one F32 tensor "odd" [2] with `fields` in place of its true ones.
  static std::string one_tensor(const std::string& fields, std::size_t data_bytes = 8) {
    return safetensors_bytes("{\"odd\":{" + fields + "}}", std::string(data_bytes, 'x'));
  }

  TemporaryDirectory directory_;
};

TEST_F(Safetensors, ViewsHoldWhatWasWritten) {
  SafetensorsWriter writer;
  writer.add<float>("f32", "F32", {2, 3}, {0, 1, 2, 3, 4, 5})
      .add<std::int64_t>("i64", "I64", {2}, {-1, std::int64_t{1} << 40})
      .add<std::int32_t>("i32", "I32", {3}, {7, -8, 9})
      .add<bfloat16>("bf16", "BF16", {1, 2}, {bfloat16(1.5f), bfloat16(-2.0f)})
      .add<float16>("f16", "F16", {2}, {float16(0.25f), float16(3.0f)})
      .add<std::uint8_t>("f8", "F8_E4M3", {3}, {0x38, 0xb8, 0x7f});
  const SafetensorsFile file = open(writer.bytes());
  EXPECT_EQ(file.names(), (std::vector<std::string>{"bf16", "f16", "f32", "f8", "i32", "i64"}));
  const SafetensorsTensor& f32 = file.tensor("f32");
  EXPECT_EQ(f32.name, "f32");
  EXPECT_EQ(f32.dtype, SafetensorsDType::float32);
  EXPECT_EQ(f32.shape, (std::vector<Index>{2, 3}));
  EXPECT_EQ(f32.values<float>()[5], 5.0f);
  EXPECT_EQ(file.tensor("i64").values<std::int64_t>()[1], std::int64_t{1} << 40);
  EXPECT_EQ(file.tensor("i32").values<std::int32_t>()[1], -8);
  EXPECT_EQ(float(file.tensor("bf16").values<bfloat16>()[1]), -2.0f);
  EXPECT_EQ(float(file.tensor("f16").values<float16>()[0]), 0.25f);
  EXPECT_EQ(file.tensor("f8").bytes[2], std::byte{0x7f});
}

TEST_F(Safetensors, AlignedTensorsAreNotCopied) {
  const SafetensorsFile file = open(SafetensorsWriter()
                                        .add<float>("a", "F32", {2}, {1, 2})
                                        .add<float>("b", "F32", {1}, {3})
                                        .bytes());
  EXPECT_EQ(file.tensor("a").bytes.data() + 8, file.tensor("b").bytes.data());
}

TEST_F(Safetensors, EveryKnownDTypeHasItsSize) {
  const std::vector<std::pair<std::string, std::size_t>> sizes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},     {"U32", 4},
      {"F32", 4},  {"I64", 8}, {"U64", 8}, {"F64", 8}};
  for (const auto& [name, size] : sizes) {
    const SafetensorsFile file =
        open(SafetensorsWriter().add<char>("t", name, {3}, std::vector<char>(3 * size)).bytes());
    EXPECT_EQ(name_of(file.tensor("t").dtype), name);
    EXPECT_EQ(bytes_of(file.tensor("t").dtype), static_cast<Index>(size));
  }
}

// The format allows a header of any length, so the data may begin at any address.
TEST_F(Safetensors, DataAtAnyAddressIsReadAligned) {
  const SafetensorsWriter writer = SafetensorsWriter()
                                       .add<std::uint8_t>("a", "U8", {1}, {1})
                                       .add<std::int64_t>("b", "I64", {2}, {5, -6})
                                       .add<float>("c", "F32", {1}, {0.5f});
  for (std::size_t spaces = 0; spaces < 8; ++spaces) {
    SafetensorsFile opened = open(writer.bytes(spaces));
    const SafetensorsFile file = std::move(opened);  // copies stay where they are
    for (const auto& [name, tensor] : file.tensors())
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) %
                    static_cast<std::uintptr_t>(bytes_of(tensor.dtype)),
                0u);
    EXPECT_EQ(file.tensor("b").values<std::int64_t>()[1], -6);
    EXPECT_EQ(file.tensor("c").values<float>()[0], 0.5f);
  }
}

TEST_F(Safetensors, MetadataIsAMapOfStrings) {
  const SafetensorsFile file =
      open(safetensors_bytes(R"({"__metadata__":{"format":"pt","k":""}})"));
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.metadata().size(), 2u);
  EXPECT_TRUE(file.tensors().empty());
  EXPECT_TRUE(
      refuses(safetensors_bytes(R"({"__metadata__":{"format":1}})"), {"__metadata__.format"}));
  EXPECT_TRUE(refuses(safetensors_bytes(R"({"__metadata__":"pt"})"), {"__metadata__"}));
}

TEST_F(Safetensors, AScalarHasNoDimsAndAnEmptyTensorNoBytes) {
  const SafetensorsFile file = open(SafetensorsWriter()
                                        .add<float>("none", "F32", {0, 5}, {})
                                        .add<float>("one", "F32", {}, {2.5f})
                                        .add<float>("tail", "F32", {3, 0}, {})
                                        .bytes());
  EXPECT_EQ(file.tensor("one").values<float>()[0], 2.5f);
  EXPECT_TRUE(file.tensor("none").values<float>().empty());
  EXPECT_EQ(shape_text(file.tensor("none").shape), "[0, 5]");
}

TEST_F(Safetensors, AMissingTensorAndAnotherElementTypeAreNamed) {
  const SafetensorsFile file = open(SafetensorsWriter().add<float>("a", "F32", {1}, {1}).bytes());
  EXPECT_FALSE(file.contains("b"));
  EXPECT_TRUE(fails_naming([&] { file.tensor("b"); }, {"file.safetensors", "tensor b"}));
  EXPECT_TRUE(
      fails_naming([&] { file.tensor("a").values<bfloat16>(); }, {"tensor a", "F32", "BF16"}));
}

TEST_F(Safetensors, RefusesAFileWithoutAHeaderLength) {
  EXPECT_TRUE(refuses("", {"got 0 bytes"}));
  EXPECT_TRUE(refuses("1234567", {"got 7 bytes"}));
}

TEST_F(Safetensors, RefusesAHeaderLongerThanTheFile) {
  std::string bytes = safetensors_bytes("{}");
  for (const std::uint64_t length :
       {std::uint64_t{3}, std::uint64_t{1} << 40, (std::uint64_t{1} << 63) - 8,
        std::uint64_t{1} << 63, ~std::uint64_t{0} - 7, ~std::uint64_t{0}}) {
    std::memcpy(bytes.data(), &length, sizeof(length));
    EXPECT_TRUE(refuses(bytes, {std::to_string(length)}));
  }
}

// What an incomplete clone of a repository of models leaves in place of its weights.
TEST_F(Safetensors, SaysWhatAFileOfAnotherKindIs) {
  EXPECT_TRUE(refuses("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
                      {"git-lfs pointer", "git lfs pull"}));
  EXPECT_TRUE(refuses(std::string("GGUF\3\0\0\0", 8) + std::string(100, 'x'), {"GGUF"}));
}

TEST_F(Safetensors, RefusesAHeaderThatIsNotAnObject) {
  for (const char* header : {"", "[]", "1", "null", "\"{}\"", " {}", "\xef\xbb\xbf{}"})
    EXPECT_TRUE(refuses(safetensors_bytes(header), {})) << header;
}

TEST_F(Safetensors, RefusesAHeaderThatIsNotJson) {
  for (const char* header : {"{", "{\"a\"}", "{} {}", "{,}", "{\"a\":\"\xff\"}"})
    EXPECT_TRUE(refuses(safetensors_bytes(header), {})) << header;
  EXPECT_TRUE(refuses(safetensors_bytes(std::string("{}\0\0", 4)), {"NUL"}));
}

TEST_F(Safetensors, PermitsSpacesAfterTheHeader) {
  EXPECT_NO_THROW(open(safetensors_bytes("{}      ")));
}

TEST_F(Safetensors, RefusesANestingBomb) {
  EXPECT_TRUE(refuses(safetensors_bytes("{\"a\":" + std::string(1 << 20, '[')), {"nested"}));
}

TEST_F(Safetensors, RefusesATensorThatIsNotAnObject) {
  EXPECT_TRUE(refuses(safetensors_bytes(R"({"odd":[1]})"), {"odd", "[1]"}));
}

TEST_F(Safetensors, RefusesMissingAndUnknownFields) {
  EXPECT_TRUE(refuses(one_tensor(R"("shape":[2],"data_offsets":[0,8])"), {"odd", "dtype"}));
  EXPECT_TRUE(refuses(one_tensor(R"("dtype":"F32","data_offsets":[0,8])"), {"odd", "shape"}));
  EXPECT_TRUE(refuses(one_tensor(R"("dtype":"F32","shape":[2])"), {"odd", "data_offsets"}));
  EXPECT_TRUE(refuses(one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"strides":[1])"),
                      {"odd", "strides"}));
}

TEST_F(Safetensors, RefusesFieldsOfTheWrongType) {
  EXPECT_TRUE(
      refuses(one_tensor(R"("dtype":4,"shape":[2],"data_offsets":[0,8])"), {"odd", "dtype"}));
  EXPECT_TRUE(
      refuses(one_tensor(R"("dtype":"F32","shape":2,"data_offsets":[0,8])"), {"odd", "shape"}));
  EXPECT_TRUE(
      refuses(one_tensor(R"("dtype":"F32","shape":["2"],"data_offsets":[0,8])"), {"odd", "shape"}));
  for (const char* offsets : {"8", "[8]", "[0,4,8]", "{\"begin\":0,\"end\":8}", "[0,\"8\"]"})
    EXPECT_TRUE(
        refuses(one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":)" + std::string(offsets)),
                {"odd", "data_offsets"}));
}

TEST_F(Safetensors, RefusesDuplicateNames) {
  const std::string tensor = R"("twin":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  EXPECT_TRUE(refuses(safetensors_bytes("{" + tensor + "," + tensor + "}", "1234"), {"twin"}));
  EXPECT_TRUE(
      refuses(safetensors_bytes(R"({"__metadata__":{},"__metadata__":{}})"), {"__metadata__"}));
}

TEST_F(Safetensors, RefusesDuplicateFieldsWithinATensor) {
  EXPECT_TRUE(refuses(one_tensor(R"("dtype":"F32","shape":[1],"shape":[2],"data_offsets":[0,8])"),
                      {"odd.shape twice"}));
}

TEST_F(Safetensors, RefusesAnUnknownDType) {
  for (const char* dtype : {"F31", "f32", "", "F4"})
    EXPECT_TRUE(refuses(
        one_tensor(R"("dtype":")" + std::string(dtype) + R"(","shape":[2],"data_offsets":[0,8])"),
        {"odd", "dtype"}));
}

TEST_F(Safetensors, RefusesNumbersThatAreNotSizes) {
  for (const std::string number :
       {"-1", "2.0", "2.5", "2e0", "9223372036854775808", "18446744073709551618", "1e400"}) {
    EXPECT_TRUE(refuses(
        one_tensor(R"("dtype":"F32","shape":[)" + number + R"(],"data_offsets":[0,8])"), {}))
        << number;
    EXPECT_TRUE(
        refuses(one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[)" + number + ",8]"), {}))
        << number;
    EXPECT_TRUE(
        refuses(one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,)" + number + "]"), {}))
        << number;
  }
  EXPECT_TRUE(
      refuses(one_tensor(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), {"odd", "-2"}));
}

// 2^62 * 8 = 2^65 wraps to 0, and 4 * (2^62 + 2) to 8.
TEST_F(Safetensors, RefusesAShapeWhoseProductOverflows) {
  for (const char* shape : {"[4611686018427387904,8]", "[4611686018427387906]",
                            "[4294967296,4294967296]", "[9223372036854775807]"})
    EXPECT_TRUE(refuses(
        one_tensor(R"("dtype":"F32","shape":)" + std::string(shape) + R"(,"data_offsets":[0,8])"),
        {"odd", "shape"}));
}

TEST_F(Safetensors, RefusesAShapeThatDoesNotFitTheBytes) {
  EXPECT_TRUE(refuses(one_tensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"),
                      {"odd", "[3]", "12", "8"}));
  EXPECT_TRUE(refuses(one_tensor(R"("dtype":"BF16","shape":[2],"data_offsets":[0,8])"),
                      {"odd", "[2]", "4", "8"}));
}

TEST_F(Safetensors, RefusesReversedOffsets) {
  EXPECT_TRUE(refuses(one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"),
                      {"odd", "reversed"}));
}

TEST_F(Safetensors, RefusesOffsetsPastTheData) {
  EXPECT_TRUE(refuses(one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])", 7),
                      {"odd", "[0,8]", "7"}));
  EXPECT_TRUE(refuses(
      one_tensor(
          R"("dtype":"F32","shape":[1],"data_offsets":[9223372036854775803,9223372036854775807])"),
      {"odd"}));
}

TEST_F(Safetensors, RefusesOverlappingTensors) {
  EXPECT_TRUE(refuses(safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                        R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                                        "123456789abc"),
                      {"tensor a", "tensor b", "overlap"}));
  EXPECT_TRUE(refuses(safetensors_bytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                        R"("b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                                        "1234"),
                      {"tensor a", "tensor b", "overlap"}));
}

TEST_F(Safetensors, RefusesHolesBetweenBeforeAndAfterTensors) {
  EXPECT_TRUE(refuses(safetensors_bytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                        R"("b":{"dtype":"F32","shape":[1],"data_offsets":[5,9]}})",
                                        "123456789"),
                      {"tensor b", "tensor a", "hole of 1"}));
  EXPECT_TRUE(refuses(one_tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"),
                      {"odd", "hole of 4"}));
  EXPECT_TRUE(refuses(one_tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"),
                      {"odd", "4 bytes after"}));
  EXPECT_TRUE(refuses(safetensors_bytes("{}", "x"), {"1 bytes after"}));
}

}  // namespace
}  // namespace mla
