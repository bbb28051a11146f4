#include "mla/io/cache_snapshot.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "support/cache_types.hpp"
#include "support/full_disk.hpp"
#include "support/safetensors_writer.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

// A cache of random rows at positions with gaps.
template <StorageElement T>
LatentKVCache<T> random_cache(const AttentionConfig& config, Index tokens, std::uint64_t seed = 1) {
  Random random(seed);
  LatentKVCache<T> cache(config);
  const RowMajorMatrix rows = random_matrix(tokens, config.cache_row_width(), random);
  cache.append({rows.data(), rows.rows(), rows.cols()}, with_gaps(tokens, 5, random));
  return cache;
}

AttentionConfig snapshot_config() {
  AttentionConfig config = make_config(8, 3, 4, 6, 2, 4, 2);
  config.rope_scaling = short_yarn(1.0, 0.707);
  return config;
}

// `bytes` with the checksum that they should have.
std::string sealed(std::string bytes) {
  Crc32 crc;
  crc.add(std::as_bytes(std::span(bytes)).first(bytes.size() - 4));
  const std::uint32_t value = crc.value();
  std::memcpy(bytes.data() + bytes.size() - 4, &value, 4);
  return bytes;
}

// What version 1 wrote of a cache of snapshot_config(): its metadata as it was, and rows of numbers
// of `dtype`, which it called `element`.
template <StorageElement T>
std::string version_1(const LatentKVCache<T>& cache, std::string_view dtype) {
  const nlohmann::json metadata = {{"format", "mla latent cache"},
                                   {"version", "1"},
                                   {"label", "weights 1"},
                                   {"element", name_of(cache.format())},
                                   {"caches", "1"},
                                   {"kv_lora_rank", "6"},
                                   {"qk_rope_head_dim", "4"},
                                   {"rope_keys", "1"},
                                   {"kv_a_layernorm_eps", "1e-06"},
                                   {"rope_theta", "10000"},
                                   {"rope_interleave", "true"},
                                   {"rope_scaling.type", "yarn"},
                                   {"rope_scaling.factor", "40"},
                                   {"rope_scaling.original_max_position_embeddings", "32"},
                                   {"rope_scaling.beta_fast", "32"},
                                   {"rope_scaling.beta_slow", "1"},
                                   {"rope_scaling.mscale", "1"},
                                   {"rope_scaling.mscale_all_dim", "0.707"}};
  std::vector<T> rows;
  for (Index i = 0; i < cache.size(); ++i) rows.insert(rows.end(), cache.row(i), cache.row(i) + 10);
  const std::vector<std::int64_t> positions = cache.positions();
  const std::string tensors =
      SafetensorsWriter()
          .add("caches.0.positions", "I64", {cache.size()}, positions)
          .add("caches.0.rows", std::string(dtype), {cache.size(), 10}, rows)
          .add("crc32", "U32", {1}, std::vector<std::uint32_t>(1))
          .bytes();
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, tensors.data(), 8);
  return sealed(safetensors_bytes(
      R"({"__metadata__":)" + metadata.dump() + "," + tensors.substr(9, header_bytes - 1),
      tensors.substr(8 + header_bytes)));
}

template <class T>
class CacheSnapshotOf : public ::testing::Test {};
TYPED_TEST_SUITE(CacheSnapshotOf, CacheTypes, TypeNames);

TYPED_TEST(CacheSnapshotOf, ARestoredCacheContinuesBitForBit) {
  const TemporaryDirectory directory;
  TestLayer layer(small_config());
  Context context;
  for (const Index tokens : {0, 1, 63, 64, 65, 200}) {
    const RowMajorMatrix prompt = layer.input(tokens), x = layer.input(70);
    const std::vector<Index> positions = with_gaps(tokens, 9, layer.random);
    LatentKVCache<TypeParam> cache(layer.config());
    run(layer, prompt, cache, context, {.position_ids = positions});
    save_snapshot(directory / "cache", layer.config(), cache);

    auto restored = random_cache<TypeParam>(layer.config(), 130);  // what was there is gone
    restore_snapshot(directory / "cache", layer.config(), restored);
    ASSERT_TRUE(CacheContents(restored) == CacheContents(cache)) << tokens;
    EXPECT_TRUE(same_bits(run(layer, x, restored, context), run(layer, x, cache, context)));
    EXPECT_TRUE(CacheContents(restored) == CacheContents(cache)) << tokens;
  }
  EXPECT_EQ(names_in(directory), std::vector<std::string>{"cache"});
}

TYPED_TEST(CacheSnapshotOf, NaNAndSubnormalsKeepTheirBits) {
  const TemporaryDirectory directory;
  const AttentionConfig config = make_config(8, 1, 0, 6, 2, 2, 2);
  std::vector<TypeParam> row(8);
  const std::uint32_t bits[] = {1, 0x7f800001, 0xff800000, 0x7c01, 0x80000001, 0xffff, 0x7f81, 0};
  for (std::size_t i = 0; i < 8; ++i)
    std::memcpy(static_cast<void*>(&row[i]), &bits[i], sizeof(TypeParam));
  LatentKVCache<TypeParam> cache(config), restored(config);
  const Index position = kMaxPosition;
  cache.append_stored({row.data(), 1, 8}, {&position, 1});
  save_snapshot(directory / "cache", config, cache);
  restore_snapshot(directory / "cache", config, restored);
  EXPECT_EQ(std::memcmp(restored.row(0), row.data(), 8 * sizeof(TypeParam)), 0);
  EXPECT_EQ(restored.next_position(), kMaxPosition + 1);
}

TYPED_TEST(CacheSnapshotOf, RestoringUsesTheRoomThatIsReserved) {
  const TemporaryDirectory directory;
  save_snapshot(directory / "cache", small_config(), random_cache<TypeParam>(small_config(), 100));
  auto cache = random_cache<TypeParam>(small_config(), 3);
  cache.reserve(1000);
  const TypeParam* row = cache.row(0);
  const std::size_t bytes = cache.bytes_allocated();
  restore_snapshot(directory / "cache", small_config(), cache);
  EXPECT_EQ(cache.size(), 100);
  EXPECT_EQ(cache.row(0), row);
  EXPECT_EQ(cache.bytes_allocated(), bytes);
}

TYPED_TEST(CacheSnapshotOf, AFileOfVersion1Restores) {
  const TemporaryDirectory directory;
  const auto dtype = name_of(mla::detail::safetensors_dtype_of<TypeParam>().value());
  for (const Index tokens : {0, 1, 70}) {
    const auto saved = random_cache<TypeParam>(snapshot_config(), tokens);
    auto cache = random_cache<TypeParam>(snapshot_config(), 3, 7);
    const auto path = write_file(directory / "cache", version_1(saved, dtype));
    restore_snapshot(path, snapshot_config(), cache, "weights 1");
    EXPECT_TRUE(CacheContents(cache) == CacheContents(saved)) << tokens;
  }
}

// A snapshot of a few tokens, and a cache that must stay as it is.
class CacheSnapshot : public ::testing::Test {
 protected:
  CacheSnapshot() { save_snapshot(path_, config_, saved_, "weights 1"); }

  // restore_snapshot() throws std::runtime_error with the path and `parts`, and changes nothing.
  ::testing::AssertionResult refused(const std::vector<std::string>& parts) {
    return refused(config_, cache_, parts);
  }
  ::testing::AssertionResult refused(const AttentionConfig& config, LatentCache& cache,
                                     std::vector<std::string> parts,
                                     std::string_view label = "weights 1") {
    parts.push_back(path_.string());
    const CacheContents before(cache);
    const auto result = fails_naming([&] { restore_snapshot(path_, config, cache, label); }, parts);
    if (!result) return result;
    if (CacheContents(cache) == before) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "the cache has changed";
  }

  void write_sealed(const std::string& bytes) { write_file(path_, sealed(bytes)); }

  TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_ / "cache";
  AttentionConfig config_ = snapshot_config();
  LatentKVCache<bfloat16> saved_ = random_cache<bfloat16>(config_, 3);
  LatentKVCache<bfloat16> cache_ = random_cache<bfloat16>(config_, 2, 7);
};

TEST_F(CacheSnapshot, IsWhatTheOtherTestsDamage) {
  restore_snapshot(path_, config_, cache_, "weights 1");
  EXPECT_TRUE(CacheContents(cache_) == CacheContents(saved_));
}

TEST_F(CacheSnapshot, IsASafetensorsFileThatSaysWhatItIs) {
  const SafetensorsFile file(path_);
  EXPECT_EQ(file.names(),
            (std::vector<std::string>{"caches.0.positions", "caches.0.rows", "crc32"}));
  const SafetensorsTensor& rows = file.tensor("caches.0.rows");
  EXPECT_EQ(rows.dtype, SafetensorsDType::uint8);
  EXPECT_EQ(rows.shape, (std::vector<Index>{3, 20}));
  EXPECT_EQ(std::memcmp(rows.bytes.data(), saved_.row(0), rows.bytes.size()), 0);
  EXPECT_EQ(file.metadata().at("version"), "2");
  EXPECT_EQ(file.metadata().at("cache_format"), "bf16");
  EXPECT_EQ(file.metadata().at("rope_scaling.mscale_all_dim"), "0.707");
  EXPECT_EQ(file.metadata().at("label"), "weights 1");
}

TEST_F(CacheSnapshot, ConfigsWithOtherRowsAreRefusedByTheField) {
  const auto refused_with = [&](const char* field, auto change) {
    AttentionConfig other = config_;
    change(other);
    LatentKVCache<bfloat16> cache(other);
    EXPECT_TRUE(refused(other, cache, {std::string(": ") + field + " is "}));
  };
  using C = AttentionConfig;
  refused_with("kv_lora_rank", [](C& c) { c.kv_lora_rank = 7; });
  refused_with("kv_lora_rank", [](C& c) { c.kv_lora_rank = 4, c.qk_rope_head_dim = 6; });
  refused_with("qk_rope_head_dim", [](C& c) { c.qk_rope_head_dim = 2; });
  refused_with("rope_keys", [](C& c) { c.rope_key_per_head = true; });
  refused_with("kv_a_layernorm_eps", [](C& c) { c.kv_a_layernorm_eps = 1e-5; });
  refused_with("rope_theta", [](C& c) { c.rope_theta = 10000.000000000002; });
  refused_with("rope_interleave", [](C& c) { c.rope_interleave = false; });
  refused_with("rope_scaling.type", [](C& c) { c.rope_scaling = {}; });
  refused_with("rope_scaling.type", [](C& c) { c.rope_scaling.type = RopeScalingType::linear; });
  refused_with("rope_scaling.factor", [](C& c) { c.rope_scaling.factor = 41.0; });
  refused_with("rope_scaling.original_max_position_embeddings",
               [](C& c) { c.rope_scaling.original_max_position_embeddings = 33; });
  refused_with("rope_scaling.beta_fast", [](C& c) { c.rope_scaling.beta_fast = 31.0; });
  refused_with("rope_scaling.beta_slow", [](C& c) { c.rope_scaling.beta_slow = 2.0; });
  refused_with("rope_scaling.mscale", [](C& c) { c.rope_scaling.mscale = 0.5; });
  refused_with("rope_scaling.mscale_all_dim", [](C& c) { c.rope_scaling.mscale_all_dim = 0.7; });
}

TEST_F(CacheSnapshot, WhatTheRowsDoNotDependOnMayDiffer) {
  AttentionConfig other = config_;
  other.hidden_size = 9;
  other.num_attention_heads = 5;
  other.q_lora_rank = 0;
  other.qk_nope_head_dim = 3;
  other.v_head_dim = 4;
  other.q_a_layernorm_eps = 0.1;
  restore_snapshot(path_, other, cache_, "weights 1");
  EXPECT_TRUE(CacheContents(cache_) == CacheContents(saved_));
}

TEST_F(CacheSnapshot, AnotherFormatOrLabelIsRefused) {
  LatentCache half(config_, CacheFormat::float16);
  EXPECT_TRUE(refused(config_, half, {"cache_format is bf16 in the snapshot, but f16 here"}));
  LatentCache single(config_);
  EXPECT_TRUE(refused(config_, single, {"cache_format is bf16 in the snapshot, but f32 here"}));
  EXPECT_TRUE(refused(config_, cache_, {"label is weights 1 in the snapshot, but weights 2 here"},
                      "weights 2"));
}

// 8 and 4 bits: all bytes come back, what follows has the same bits, and formats of the same size
// are not taken for each other.
TEST_F(CacheSnapshot, QuantisedRowsRestoreByteByByteAndInTheirFormatOnly) {
  TestLayer layer(make_config(40, 3, 0, 160, 24, 16, 24));
  Context context;
  for (const CacheFormat format : kQuantised)
    for (const Index tokens : {0, 1, 65, 200}) {
      const RowMajorMatrix x = layer.input(70);
      LatentCache cache(layer.config(), format), restored(layer.config(), format);
      run(layer, layer.input(tokens), cache, context);
      if (tokens == 65) {
        RowMajorMatrix spoiled = RowMajorMatrix::Constant(1, 176, 1.0f);
        spoiled(0, 3) = std::numeric_limits<float>::quiet_NaN();
        cache.append(view_of(spoiled), std::vector<Index>{100});
      }
      run(layer, layer.input(3), restored, context);
      save_snapshot(path_, layer.config(), cache);
      restore_snapshot(path_, layer.config(), restored);
      ASSERT_TRUE(CacheContents(restored) == CacheContents(cache)) << name_of(format);
      if (tokens != 65) {
        EXPECT_TRUE(same_bits(run(layer, x, restored, context), run(layer, x, cache, context)));
      }
      for (const CacheFormat other_format : kQuantised) {
        if (other_format == format) continue;
        LatentCache other(layer.config(), other_format);
        const std::string saved(name_of(format)), wanted(name_of(other_format));
        EXPECT_TRUE(fails_naming(
            [&] { restore_snapshot(path_, layer.config(), other); },
            {"cache_format is " + saved + " in the snapshot, but " + wanted + " here"}));
        EXPECT_EQ(other.size(), 0);
      }
    }
}

TEST_F(CacheSnapshot, ALabelThatIsNotTextIsTheCallersMistake) {
  EXPECT_THROW(save_snapshot(path_, config_, cache_, "mod\xE8le"), std::invalid_argument);
}

TEST_F(CacheSnapshot, AnyBitThatFlipsIsNoticed) {
  const std::string good = read_file(path_);
  std::fstream file(path_, std::ios::binary | std::ios::in | std::ios::out);
  const auto put = [&](std::size_t at, char byte) {
    file.seekp(static_cast<std::streamoff>(at)).put(byte).flush();
  };
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      put(at, static_cast<char>(good[at] ^ (1 << bit)));
      ASSERT_TRUE(refused({})) << "bit " << bit << " of byte " << at;
    }
    put(at, good[at]);
  }
  restore_snapshot(path_, config_, cache_, "weights 1");
}

TEST_F(CacheSnapshot, AnyOtherLengthIsRefused) {
  const std::string good = read_file(path_);
  for (std::size_t size = 0; size < good.size(); ++size) {
    std::filesystem::resize_file(write_file(path_, good), size);
    ASSERT_TRUE(refused({})) << size << " bytes";
  }
  write_file(path_, good + '\0');
  EXPECT_TRUE(refused({}));
}

TEST_F(CacheSnapshot, AFileOfVersion1IsRefusedByItsOwnFields) {
  LatentCache half(config_, CacheFormat::float16);
  write_file(path_, version_1(saved_, "BF16"));
  EXPECT_TRUE(refused(config_, half, {"element is bf16 in the snapshot, but f16 here"}));
  LatentCache indexed(config_, CacheFormat::bfloat16, {.width = 5});
  EXPECT_TRUE(refused(config_, indexed, {"index_key_width is missing"}));
  LatentCache quantised(config_, CacheFormat::int8);
  EXPECT_TRUE(refused(config_, quantised, {"element is bf16 in the snapshot, but int8 here"}));
  write_file(path_, version_1(saved_, "F16"));
  EXPECT_TRUE(refused({"caches.0.rows", "F16 [3, 10]", "expected BF16 [3, 10]"}));
}

TEST_F(CacheSnapshot, OtherVersionsAndOtherFilesAreRefused) {
  std::string bytes = read_file(path_);
  const std::size_t version = bytes.find(R"("version":"2")");
  ASSERT_NE(version, bytes.npos);
  bytes[version + 11] = '4';
  write_sealed(bytes);
  EXPECT_TRUE(refused({"version is 4 in the snapshot, but 2 here"}));
  SafetensorsWriter().add<float>("a", "F32", {2}, {1.0f, 2.0f}).write(path_);
  EXPECT_TRUE(refused({"no snapshot", "format is missing"}));
  std::filesystem::remove(path_);
  EXPECT_TRUE(refused({"cannot open", "No such file"}));
}

// Such files have the right checksum: somebody made them.
TEST_F(CacheSnapshot, AForgedFileIsRefusedByTheTensor) {
  const std::string good = read_file(path_);
  const std::size_t data = good.size() - 4 - 3 * 20 - 3 * 8;
  const auto forge_position = [&](std::size_t i, Index position) {
    std::string bytes = good;
    std::memcpy(bytes.data() + data + 8 * i, &position, 8);
    write_sealed(bytes);
  };
  const auto forge_header = [&](const std::string& from, const std::string& to) {
    std::string bytes = good;
    ASSERT_EQ(from.size(), to.size());
    ASSERT_NE(bytes.find(from), bytes.npos);
    write_sealed(bytes.replace(bytes.find(from), from.size(), to));
  };
  write_sealed(good);
  restore_snapshot(path_, config_, cache_, "weights 1");

  forge_position(0, -1);
  EXPECT_TRUE(refused({"caches.0.positions", "has -1 after -1"}));
  forge_position(1, saved_.positions()[0]);
  EXPECT_TRUE(refused({"caches.0.positions", "must rise"}));
  forge_position(2, kMaxPosition + 1);
  EXPECT_TRUE(refused({"caches.0.positions", "must rise up to"}));
  forge_header("[3, 20]", "[20, 3]");
  EXPECT_TRUE(refused({"caches.0.rows", "[20, 3]", "expected U8 [3, 20]"}));
  forge_header(R"("U8")", R"("I8")");
  EXPECT_TRUE(refused({"caches.0.rows", "I8 [3, 20]", "expected U8 [3, 20]"}));
  forge_header("caches.0.rows", "caches.1.rows");
  EXPECT_TRUE(refused({"caches.0.rows", "missing"}));
  forge_header(R"("rope_keys")", R"("rope_kyes")");
  EXPECT_TRUE(refused({"rope_keys is missing"}));
}

TEST_F(CacheSnapshot, FieldsThatThisConfigurationDoesNotHaveAreRefused) {
  AttentionConfig plain = config_;
  plain.rope_scaling = {};
  LatentCache unscaled(plain, CacheFormat::bfloat16);
  auto fields = mla::detail::snapshot_fields(plain, unscaled, 1, "weights 1");
  fields.emplace_back("mla_scale_kv_lora", "2");
  const LatentCache* const caches[] = {&saved_};
  mla::detail::write_snapshot(path_, fields, caches);
  EXPECT_TRUE(refused(plain, unscaled, {"mla_scale_kv_lora is 2 in the snapshot"}));
}

// Appends `tokens` random rows with index keys.
void append_indexed(LatentCache& cache, Index tokens, Random& random) {
  const RowMajorMatrix rows = random_matrix(tokens, cache.layout().width(), random);
  const RowMajorMatrix keys = random_matrix(tokens, cache.index_keys()->layout().width(), random);
  cache.append(view_of(rows), consecutive(cache.next_position(), tokens), simd::kernels(),
               view_of(keys));
}

TEST_F(CacheSnapshot, IndexKeysAreSavedRestoredAndTruncatedWithTheRows) {
  const IndexKeyFormat format = {.width = 5, .format = CacheFormat::float16};
  for (const Index tokens : {1, 64, 130}) {
    Random random(3);
    LatentCache cache(config_, CacheFormat::bfloat16, format);
    LatentCache restored(config_, CacheFormat::bfloat16, format);
    append_indexed(cache, tokens, random);
    append_indexed(restored, 7, random);  // what was there is gone
    save_snapshot(path_, config_, cache);
    const SafetensorsFile file(path_);
    const SafetensorsTensor& keys = file.tensor("caches.0.index_keys");
    EXPECT_EQ(keys.shape, (std::vector<Index>{tokens, 10}));
    EXPECT_EQ(std::memcmp(keys.bytes.data(), cache.index_keys()->row(0), 10), 0);

    restore_snapshot(path_, config_, restored);
    ASSERT_EQ(restored.index_keys()->size(), tokens);
    EXPECT_TRUE(CacheContents(restored) == CacheContents(cache));
    for (LatentCache* each : {&cache, &restored}) {
      each->truncate(tokens / 2);
      EXPECT_EQ(each->rows().size(), tokens / 2);
      EXPECT_EQ(each->index_keys()->size(), tokens / 2);
      Random again(4);
      append_indexed(*each, 70, again);
    }
    EXPECT_TRUE(CacheContents(restored) == CacheContents(cache));
  }
}

TEST_F(CacheSnapshot, OtherIndexKeysAreRefusedByTheField) {
  const auto cache_with = [&](const IndexKeyFormat& format) {
    LatentCache cache(config_, CacheFormat::bfloat16, format);
    Random random(3);
    append_indexed(cache, 3, random);
    return cache;
  };
  LatentCache keys = cache_with({.width = 5, .format = CacheFormat::float16});
  EXPECT_TRUE(refused(config_, keys, {"index_key_width is missing"}));
  save_snapshot(path_, config_, keys, "weights 1");
  EXPECT_TRUE(refused({"index_key_", "in the snapshot, but is no field of this configuration"}));
  LatentCache wider = cache_with({.width = 6, .format = CacheFormat::float16});
  EXPECT_TRUE(refused(config_, wider, {"index_key_width is 5 in the snapshot, but 6 here"}));
  LatentCache single = cache_with({.width = 5});
  EXPECT_TRUE(refused(config_, single, {"index_key_format is f16 in the snapshot, but f32 here"}));
  std::string bytes = read_file(path_);
  const std::string name = "caches.0.index_keys";
  write_sealed(bytes.replace(bytes.find(name), name.size(), "caches.1.index_keys"));
  EXPECT_TRUE(refused(config_, keys, {name, "missing"}));
}

TEST_F(CacheSnapshot, ACacheOfAnotherConfigIsTheCallersMistake) {
  LatentKVCache<bfloat16> other(small_config());
  EXPECT_TRUE(refuses([&] { save_snapshot(path_, config_, other); }, {"the cache has rows of"}));
  EXPECT_TRUE(refuses([&] { restore_snapshot(path_, config_, other); }, {"the cache has rows of"}));
}

TEST_F(CacheSnapshot, AFullDiskLeavesTheOldSnapshot) {
  const auto larger = random_cache<bfloat16>(config_, 1000);
  {
    const FullDisk disk(4000);
    EXPECT_TRUE(fails_naming([&] { save_snapshot(path_, config_, larger, "weights 1"); },
                             {path_.string(), "cannot write"}));
  }
  EXPECT_EQ(names_in(directory_), std::vector<std::string>{"cache"});
  restore_snapshot(path_, config_, cache_, "weights 1");
  EXPECT_TRUE(CacheContents(cache_) == CacheContents(saved_));
}

}  // namespace
}  // namespace mla::test
