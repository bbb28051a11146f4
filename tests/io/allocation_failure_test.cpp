// Every allocation fails once while files are read and written: nothing leaks, neither memory nor
// descriptors nor files, and nothing that was there has changed.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <iterator>
#include <string>
#include <vector>

#include "mla/io/cache_snapshot.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/load_attention_weights.hpp"
#include "support/counting_operator_new.hpp"
#include "support/full_disk.hpp"
#include "support/safetensors_writer.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

std::ptrdiff_t open_files() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
}

// A layer of 1 x 1 weights in two shards, one of them fp8.
class AllocationFailure : public ::testing::Test {
 protected:
  AllocationFailure() {
    const std::string a = "model.layers.0.self_attn.";
    const std::vector<float> one = {1.0f}, three = {1.0f, 2.0f, 3.0f};
    SafetensorsWriter()
        .add<float>(a + "q_proj.weight", "F32", {3, 1}, three)
        .add<float>(a + "kv_a_proj_with_mqa.weight", "F32", {3, 1}, three)
        .add<float>(a + "kv_a_layernorm.weight", "F32", {1}, one)
        .write(directory_ / "one.safetensors");
    SafetensorsWriter()
        .add<std::uint8_t>(a + "kv_b_proj.weight", "F8_E4M3", {2, 1}, {0x38, 0x39})
        .add<float>(a + "kv_b_proj.weight_scale_inv", "F32", {1, 1}, one)
        .add<float>(a + "o_proj.weight", "F32", {1, 1}, one)
        .write(directory_ / "two.safetensors");
    nlohmann::json index;
    for (const char* name : {"q_proj.weight", "kv_a_proj_with_mqa.weight", "kv_a_layernorm.weight"})
      index["weight_map"][a + name] = "one.safetensors";
    for (const char* name : {"kv_b_proj.weight", "kv_b_proj.weight_scale_inv", "o_proj.weight"})
      index["weight_map"][a + name] = "two.safetensors";
    write_file(directory_ / "model.safetensors.index.json", index.dump());
  }

  TemporaryDirectory directory_;
  AttentionConfig config_ = make_config(1, 1, 0, 1, 1, 2, 1);
};

TEST_F(AllocationFailure, WhileACheckpointIsLoadedLeaksNothing) {
  const std::ptrdiff_t files = open_files();
  const int failures = fail_each_allocation(
      [&] {
        const Checkpoint checkpoint(directory_.path());
        const AttentionWeights weights =
            load_attention_weights(checkpoint, "model.layers.0.self_attn", config_);
        const MultiheadLatentAttention layer(config_, weights);
      },
      [&] { EXPECT_EQ(open_files(), files); });
  EXPECT_GT(failures, 300);
}

TEST_F(AllocationFailure, WhileASnapshotIsSavedLeavesTheOldOne) {
  TestLayer layer(small_config());
  LatentKVCache<bfloat16> old_cache(layer.config()), cache(layer.config());
  layer.layer.forward(layer.input(3), old_cache);
  layer.layer.forward(layer.input(70), cache);
  const TemporaryDirectory directory;
  const auto path = directory / "cache";
  save_snapshot(path, layer.config(), old_cache);
  const std::string old = read_file(path);
  const std::ptrdiff_t files = open_files();
  const int failures =
      fail_each_allocation([&] { save_snapshot(path, layer.config(), cache); },
                           [&] {
                             EXPECT_TRUE(read_file(path) == old);
                             EXPECT_EQ(names_in(directory), std::vector<std::string>{"cache"});
                             EXPECT_EQ(open_files(), files);
                           });
  EXPECT_GT(failures, 50);
  restore_snapshot(path, layer.config(), old_cache);
  EXPECT_TRUE(CacheContents(old_cache) == CacheContents(cache));
}

TEST_F(AllocationFailure, WhileASnapshotIsRestoredLeavesTheCache) {
  TestLayer layer(small_config());
  LatentKVCache<bfloat16> saved(layer.config());
  layer.layer.forward(layer.input(70), saved);
  save_snapshot(directory_ / "cache", layer.config(), saved);
  const RowMajorMatrix x = layer.input(3);
  int checks = 0;
  // A cache of its own for each call: what it has reserved needs no memory again.
  for (bool failed = true; failed; ++checks) {
    LatentKVCache<bfloat16> cache(layer.config());
    layer.layer.forward(x, cache);
    const CacheContents old(cache);
    const std::ptrdiff_t files = open_files();
    {
      const FailingAllocation failing(checks);
      try {
        restore_snapshot(directory_ / "cache", layer.config(), cache);
      } catch (const std::bad_alloc&) {
      }
      failed = failing.failed();
    }
    EXPECT_EQ(open_files(), files);
    ASSERT_TRUE(CacheContents(cache) == (failed ? old : CacheContents(saved))) << checks;
  }
  EXPECT_GT(checks, 100);
}

}  // namespace
}  // namespace mla::test
