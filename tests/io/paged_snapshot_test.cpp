// Snapshots of caches with segments, and of states that share pages.
#include "mla/io/paged_snapshot.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "mla/attention/cache_bytes.hpp"
#include "mla/io/cache_snapshot.hpp"
#include "support/full_disk.hpp"
#include "support/safetensors_writer.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

std::string sealed_again(std::string bytes) {
  Crc32 crc;
  crc.add(std::as_bytes(std::span(bytes)).first(bytes.size() - 4));
  const std::uint32_t value = crc.value();
  std::memcpy(bytes.data() + bytes.size() - 4, &value, 4);
  return bytes;
}

std::vector<CacheFormat> every_format() {
  std::vector<CacheFormat> formats;
  for (std::size_t f = 0; f < kCacheFormatCount; ++f)
    formats.push_back(static_cast<CacheFormat>(f));
  return formats;
}

// Rows evicted and shifted; three segments.
LatentCache segmented_cache(TestLayer& layer, CacheFormat format, Context& context) {
  LatentCache cache(layer.config(), format);
  run(layer, layer.input(200), cache, context);
  cache.slide({.keep = 4, .rows = 150}, 200);
  cache.shift(100, 7);
  return cache;
}

TEST(PagedSnapshot, ASegmentedCacheContinuesBitForBit) {
  const TemporaryDirectory directory;
  TestLayer layer(small_config());
  Context context;
  for (const CacheFormat format : every_format()) {
    LatentCache cache = segmented_cache(layer, format, context);
    save_snapshot(directory / "cache", layer.config(), cache);
    LatentCache restored(layer.config(), format);
    run(layer, layer.input(9), restored, context);
    restore_snapshot(directory / "cache", layer.config(), restored);
    ASSERT_TRUE(CacheContents(restored) == CacheContents(cache));
    EXPECT_TRUE(std::ranges::equal(restored.segments(), cache.segments()));
    // Pages are counted once, also those of two segments.
    const LatentCache* const both[] = {&restored};
    EXPECT_EQ(bytes_used(both), restored.bytes_used());
    for (const AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
      const RowMajorMatrix x = layer.input(70);
      const ForwardOptions options = {.mode = mode, .window = {4, 160}};
      EXPECT_TRUE(same_bits(run(layer, x, restored, context, options),
                            run(layer, x, cache, context, options)));
      EXPECT_TRUE(CacheContents(restored) == CacheContents(cache));
    }
    restored.rebase(layer.config());
    save_snapshot(directory / "cache", layer.config(), restored);  // version 2 again
    EXPECT_FALSE(mla::detail::is_paged_snapshot(directory / "cache"));
  }
}

TEST(PagedSnapshot, IndexKeysComeWithTheirRows) {
  const TemporaryDirectory directory;
  const AttentionConfig config = small_config();
  Random random(1);
  LatentCache cache(config, CacheFormat::bfloat16, {.width = 5, .format = CacheFormat::float16});
  const RowMajorMatrix rows = random_matrix(100, config.cache_row_width(), random);
  const RowMajorMatrix keys = random_matrix(100, 5, random);
  cache.append({rows.data(), 100, rows.cols()}, consecutive(0, 100), simd::kernels(),
               {keys.data(), 100, 5});
  cache.evict(20, 50);
  save_snapshot(directory / "cache", config, cache);
  LatentCache restored(config, CacheFormat::bfloat16, {.width = 5, .format = CacheFormat::float16});
  restore_snapshot(directory / "cache", config, restored);
  EXPECT_EQ(restored.positions(), cache.positions());
  for (Index i = 0; i < 50; ++i) {
    const auto slot = [&](const LatentCache& of) {
      return i < 20 ? i : of.segments()[1].slot + i - 20;
    };
    EXPECT_EQ(std::memcmp(restored.row(i), cache.row(i), 92), 0);
    EXPECT_EQ(std::memcmp(restored.index_keys()->row(slot(restored)),
                          cache.index_keys()->row(slot(cache)), 10),
              0);
  }
}

// With the right checksum: somebody made the file. Whatever a number is replaced by, the file is
// refused, or what it gives is a cache.
TEST(PagedSnapshot, AForgedNumberIsRefusedOrHarmless) {
  const TemporaryDirectory directory;
  TestLayer layer(make_config(8, 3, 4, 6, 2, 4, 2));
  Context context;
  LatentCache cache = segmented_cache(layer, CacheFormat::float32, context);
  cache.truncate(60);
  const auto path = directory / "cache";
  save_snapshot(path, layer.config(), cache);
  const std::string good = read_file(path);
  std::uint64_t header = 0;
  std::memcpy(&header, good.data(), 8);
  const std::size_t rows = 3 * 64 * 10 * 4;  // bytes at most, at the end
  const std::size_t end = good.size() > rows + 8 + header ? good.size() - rows : good.size();
  int refused = 0, accepted = 0;
  for (std::size_t at = 8 + header;
       at + 8 <= std::max(end, 8 + header + 400) && at + 8 < good.size() - 4; at += 8)
    for (const Index forged : {Index{-1}, Index{0}, Index{1}, Index{63}, Index{64}, Index{65},
                               Index{1} << 40, Index{1} << 62, -(Index{1} << 62)}) {
      std::string bytes = good;
      std::memcpy(bytes.data() + at, &forged, 8);
      write_file(path, sealed_again(bytes));
      LatentCache restored(layer.config());
      try {
        restore_snapshot(path, layer.config(), restored);
        ++accepted;
        const CacheContents contents(restored);  // reads every row
        EXPECT_TRUE(std::ranges::is_sorted(contents.positions));
        // Far away there is no room for more.
        if (restored.next_position() - restored.offset() < kMaxPosition - 2 &&
            restored.next_position() < kMaxPosition - 2)
          run(layer, layer.input(2), restored, context);
      } catch (const std::runtime_error& error) {
        ++refused;
        EXPECT_NE(std::string(error.what()).find(path.string()), std::string::npos);
        EXPECT_EQ(restored.size(), 0);
      }
    }
  EXPECT_GT(refused, 100);
  EXPECT_GT(accepted, 1);
  write_file(path, good);
  restore_snapshot(path, layer.config(), cache);
}

TEST(PagedSnapshot, OtherConfigurationsAndDamageAreRefused) {
  const TemporaryDirectory directory;
  TestLayer layer(small_config());
  Context context;
  LatentCache cache = segmented_cache(layer, CacheFormat::float32, context);
  const auto path = directory / "cache";
  save_snapshot(path, layer.config(), cache, "a");
  const CacheContents before(cache);
  const auto fails = [&](const std::vector<std::string>& parts, const char* label) {
    return fails_naming([&] { restore_snapshot(path, layer.config(), cache, label); }, parts);
  };
  EXPECT_TRUE(fails({"label is a in the snapshot, but b here"}, "b"));
  AttentionConfig other = layer.config();
  other.rope_theta = 5e5;
  LatentCache elsewhere(other);
  EXPECT_TRUE(fails_naming([&] { restore_snapshot(path, other, elsewhere, "a"); },
                           {path.string(), "rope_theta is 10000 in the snapshot"}));
  const std::string good = read_file(path);
  for (std::size_t i = 1; i < 40; ++i) {
    std::string bytes = good;
    bytes[good.size() * i / 40] ^= 4;
    write_file(path, bytes);
    EXPECT_TRUE(fails({path.string()}, "a")) << i;
  }
  EXPECT_EQ(CacheContents(cache), before);
}

}  // namespace
}  // namespace mla::test
