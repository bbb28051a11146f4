#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "mla/io/safetensors.hpp"
#include "support/safetensors_writer.hpp"

// Damaged files, most valuable under the address sanitizer.

namespace mla {
namespace {

using test::fails_naming;
using test::SafetensorsWriter;
using test::TemporaryDirectory;
using test::write_file;

TEST(DamagedSafetensors, AFileThatWasCutAtAnyKilobyteIsRefused) {
  const std::filesystem::path whole =
      std::filesystem::path(MLA_MODELS) / "tiny-shakespeare-v3" / "goldens.safetensors";
  ASSERT_NO_THROW(SafetensorsFile{whole});
  const TemporaryDirectory directory;
  const std::filesystem::path cut = directory / "cut.safetensors";
  std::filesystem::copy_file(whole, cut);
  std::filesystem::permissions(cut, std::filesystem::perms::owner_write,
                               std::filesystem::perm_options::add);
  std::uintmax_t size = std::filesystem::file_size(whole);
  ASSERT_GT(size, 400u * 1024u);
  while (size > 0) {
    size = (size - 1) / 1024 * 1024;
    std::filesystem::resize_file(cut, size);
    ASSERT_TRUE(fails_naming([&] { SafetensorsFile{cut}; }, {cut.string()})) << size << " bytes";
  }
}

// Every element can be read, and together the tensors are as long as the data.
void expect_consistent(const SafetensorsFile& file, std::size_t file_bytes) {
  std::size_t total = 0;
  unsigned sum = 0;
  for (const auto& [name, tensor] : file.tensors()) {
    EXPECT_EQ(name, tensor.name);
    const Index elements = std::accumulate(tensor.shape.begin(), tensor.shape.end(), Index{1},
                                           [](Index a, Index b) { return a * b; });
    EXPECT_EQ(elements * bytes_of(tensor.dtype), std::ssize(tensor.bytes));
    for (const std::byte byte : tensor.bytes) sum += std::to_integer<unsigned>(byte);
    total += tensor.bytes.size();
  }
  EXPECT_LE(total, file_bytes);
  EXPECT_LE(sum, total * 255);
}

TEST(DamagedSafetensors, TenThousandRandomChangesOfTheHeaderNeverCrash) {
  const std::string good = SafetensorsWriter()
                               .add<float>("a.weight", "F32", {2, 3}, std::vector<float>(6))
                               .add<bfloat16>("b", "BF16", {4}, std::vector<bfloat16>(4))
                               .add<std::uint8_t>("c", "F8_E4M3", {2, 2}, {1, 2, 3, 4})
                               .add<std::int64_t>("d", "I64", {}, {5})
                               .bytes();
  const std::size_t header_end = good.size() - 24 - 8 - 4 - 8;
  const TemporaryDirectory directory;
  const auto path = write_file(directory / "file.safetensors", good);
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);  // kept, for speed
  std::mt19937 random(20240507);
  const auto below = [&](std::size_t limit) {
    return std::uniform_int_distribution<std::size_t>(0, limit - 1)(random);
  };
  int opened = 0, refused = 0;
  for (int trial = 0; trial < 10000; ++trial) {
    std::string bytes = good;
    for (std::size_t changes = 1 + below(3); changes > 0; --changes) {
      const std::size_t at = below(header_end);
      switch (below(3)) {
        case 0:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
          break;
        case 1:
          bytes[at] = static_cast<char>(below(256));
          break;
        default:  // the header's own alphabet, which parses more often than other bytes
          bytes[at] = good[8 + below(header_end - 8)];
      }
    }
    file.seekp(0).write(bytes.data(), std::ssize(bytes)).flush();
    try {
      expect_consistent(SafetensorsFile(path), bytes.size());
      ++opened;
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string_view(error.what()).find(path.string()), std::string_view::npos);
      ++refused;
    }
  }
  EXPECT_GT(opened, 100);  // names and spaces may change
  EXPECT_GT(refused, 5000);
}

}  // namespace
}  // namespace mla
