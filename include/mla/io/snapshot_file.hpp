#ifndef MLA_IO_SNAPSHOT_FILE_HPP_
#define MLA_IO_SNAPSHOT_FILE_HPP_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/attention/check_batch.hpp"
#include "mla/attention/latent_cache.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/crc32.hpp"
#include "mla/io/replacement_file.hpp"
#include "mla/io/safetensors.hpp"
#include "mla/io/safetensors_writer.hpp"

// A snapshot is a safetensors file with the rows and positions of one or several latent caches:
// - __metadata__: every field that gives the rows their meaning; all must agree on restoring.
// - caches.<i>.positions: I64 [tokens].
// - caches.<i>.rows: U8 [tokens, bytes per row], as in the cache, in the format that cache_format
//   says. Version 1, which is still read, has them as F32, BF16 or F16 [tokens, kv_lora_rank +
//   rope_key_width], and calls the field `element`.
// - caches.<i>.index_keys: U8 [tokens, bytes per key], where the cache has them.
// Caches with rows evicted or shifted, and states that share pages, are in version 3: see
// paged_snapshot.hpp.
// - crc32: U32 [1], the last bytes of the file: the CRC-32 of all bytes before.

namespace mla {

namespace detail {

/// Names and values in the order in which they are compared.
using SnapshotFields = std::vector<std::pair<std::string, std::string>>;

/// What the rows of a cache depend on besides the weights, which `label` stands for.
inline SnapshotFields snapshot_fields(const AttentionConfig& config, const LatentCache& cache,
                                      Index caches, std::string_view label) {
  SnapshotFields fields = {{"format", "mla latent cache"},
                           {"version", "2"},
                           {"label", std::string(label)},
                           {"cache_format", std::string(name_of(cache.format()))},
                           {"caches", std::to_string(caches)},
                           {"kv_lora_rank", std::to_string(config.kv_lora_rank)},
                           {"qk_rope_head_dim", std::to_string(config.qk_rope_head_dim)},
                           {"rope_keys", std::to_string(config.rope_keys())},
                           {"kv_a_layernorm_eps", shortest_text(config.kv_a_layernorm_eps)}};
  cache.rotary().for_each_field(
      [&](const char* name, std::string text) { fields.emplace_back(name, std::move(text)); });
  if (config.kv_latent_scale != 1.0)
    fields.emplace_back("kv_latent_scale", shortest_text(config.kv_latent_scale));
  if (config.indexer) {
    fields.emplace_back("index_topk", std::to_string(config.indexer.topk));
    fields.emplace_back("indexer_rope_interleave",
                        config.indexer.rope_interleave ? "true" : "false");
  }
  if (const PagedRows* keys = cache.index_keys()) {
    fields.emplace_back("index_key_width", std::to_string(keys->layout().width()));
    fields.emplace_back("index_key_format", name_of(keys->layout().format));
  }
  return fields;
}

inline std::string snapshot_tensor(std::size_t cache, const char* what) {
  return "caches." + std::to_string(cache) + "." + what;
}

// The rows of a cache as a tensor U8 [tokens, bytes per row].
inline SafetensorsSource snapshot_rows(std::string name, const PagedRows& rows) {
  SafetensorsSource tensor = {
      std::move(name), SafetensorsDType::uint8, {rows.size(), rows.layout().bytes}};
  for (Index row = 0; row < rows.size(); row += PagedRows::kPageRows) {
    const Index count = std::min(PagedRows::kPageRows, rows.size() - row);
    tensor.parts.emplace_back(rows.row(row), static_cast<std::size_t>(count * rows.layout().bytes));
  }
  return tensor;
}

// Writes the tensors, and at the end the checksum.
inline void write_snapshot_file(const std::filesystem::path& path, const SnapshotFields& fields,
                                std::vector<SafetensorsSource>& tensors) {
  tensors.push_back({"crc32", SafetensorsDType::uint32, {1}, {}});
  const std::string header = safetensors_header(tensors, {fields.begin(), fields.end()});
  ReplacementFile file(path);
  Crc32 crc;
  const auto write = [&](std::span<const std::byte> bytes) {
    crc.add(bytes);
    file.write(bytes);
  };
  write(std::as_bytes(std::span(header)));
  for (const SafetensorsSource& tensor : tensors)
    for (const auto part : tensor.parts) write(part);
  const std::uint32_t checksum = crc.value();
  file.write(std::as_bytes(std::span(&checksum, 1)));
  file.commit();
}

inline void write_snapshot(const std::filesystem::path& path, const SnapshotFields& fields,
                           std::span<const LatentCache* const> caches) {
  std::vector<SafetensorsSource> tensors;
  std::vector<std::vector<Index>> positions;
  for (const LatentCache* cache : caches) positions.push_back(cache->positions());
  for (std::size_t i = 0; i < caches.size(); ++i)
    tensors.push_back({snapshot_tensor(i, "positions"),
                       SafetensorsDType::int64,
                       {caches[i]->size()},
                       {std::as_bytes(std::span(positions[i]))}});
  for (std::size_t i = 0; i < caches.size(); ++i) {
    tensors.push_back(snapshot_rows(snapshot_tensor(i, "rows"), caches[i]->rows()));
    if (const PagedRows* keys = caches[i]->index_keys())
      tensors.push_back(snapshot_rows(snapshot_tensor(i, "index_keys"), *keys));
  }
  write_snapshot_file(path, fields, tensors);
}

template <class Fields>
auto field(Fields& fields, std::string_view name) {
  return std::ranges::find(fields, name, &SnapshotFields::value_type::first);
}

/// A snapshot of version 1 or 2 that was checked from end to end.
class SnapshotFile {
 public:
  /// Throws std::runtime_error naming the file and the field or tensor that is not as it must be.
  SnapshotFile(const std::filesystem::path& path, SnapshotFields fields,
               std::span<LatentCache* const> caches)
      : file_(path) {
    check_field("format", fields);  // of another kind or version, the rest has no meaning
    const auto version = file_.metadata().find("version");
    const bool typed = version != file_.metadata().end() && version->second == "1";
    if (typed) {
      field(fields, "version")->second = "1";
      field(fields, "cache_format")->first = "element";
    }
    check(fields);
    std::size_t tensors = 1;
    for (std::size_t i = 0; i < caches.size(); ++i) {
      caches_.push_back(read_cache(i, *caches[i], typed));
      tensors += caches[i]->index_keys() ? 3U : 2U;
    }
    if (file_.tensors().size() != tensors)
      fail("has ", file_.tensors().size(), " tensors, expected ", tensors);
  }

  Index tokens(std::size_t cache) const noexcept { return caches_[cache].rows.rows; }

  /// Replaces the content of the caches. Throws std::bad_alloc with all of them unchanged.
  void restore(std::span<LatentCache* const> caches) const {
    for (std::size_t i = 0; i < caches.size(); ++i) caches[i]->reserve(tokens(i));
    for (std::size_t i = 0; i < caches.size(); ++i) {
      caches[i]->clear();
      const SnapshotRows& rows = caches_[i];
      caches[i]->append_stored(rows.rows, rows.positions, rows.index_keys);  // there is room
    }
  }

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw_runtime(file_.path(), ": ", parts...);
  }

 protected:
  struct Unread {};
  /// Not checked yet.
  SnapshotFile(const std::filesystem::path& path, Unread) : file_(path) {}

  struct SnapshotRows {
    std::span<const Index> positions;        // [tokens]
    MatrixView<const std::byte> rows;        // [tokens, bytes per row]
    MatrixView<const std::byte> index_keys;  // [tokens, bytes per key], or empty
  };

  void check(const SnapshotFields& fields) const {
    check_field("format", fields);
    check_field("version", fields);
    check_checksum();
    for (const auto& [name, value] : fields) check_field(name, fields);
    for (const auto& [name, value] : file_.metadata())
      if (field(fields, name) == fields.end())
        fail(name, " is ", value, " in the snapshot, but is no field of this configuration");
  }

  void check_field(std::string_view name, const SnapshotFields& fields) const {
    const auto here = field(fields, name);
    const auto there = file_.metadata().find(name);
    if (there == file_.metadata().end()) fail("is no snapshot of this kind: ", name, " is missing");
    if (there->second != here->second)
      fail(name, " is ", there->second, " in the snapshot, but ", here->second, " here");
  }

  void check_checksum() const {
    const std::span<const std::byte> stored =
        typed_tensor("crc32", SafetensorsDType::uint32, {1}).bytes;
    const std::span<const std::byte> all = file_.bytes();
    Crc32 crc;
    crc.add(all.first(all.size() - stored.size()));
    const std::uint32_t computed = crc.value();
    if (std::memcmp(all.data() + all.size() - stored.size(), &computed, stored.size()) != 0)
      fail("crc32 is not that of the data: the file is damaged");
  }

  const SafetensorsTensor& typed_tensor(const std::string& name, SafetensorsDType dtype,
                                        const std::vector<Index>& shape) const {
    const SafetensorsTensor& tensor = file_.tensor(name);
    if (tensor.dtype != dtype || tensor.shape != shape)
      fail("tensor ", name, " is ", name_of(tensor.dtype), " ", shape_text(tensor.shape),
           ", expected ", name_of(dtype), " ", shape_text(shape));
    return tensor;
  }

  SnapshotRows read_cache(std::size_t i, const LatentCache& cache, bool typed) const {
    const std::string name = snapshot_tensor(i, "positions");
    const std::vector<Index>& shape = file_.tensor(name).shape;
    if (shape.size() != 1) fail("tensor ", name, " must have one dim, has ", shape_text(shape));
    const std::span<const Index> positions =
        typed_tensor(name, SafetensorsDType::int64, shape).values<std::int64_t>();
    Index last = -1;
    for (const Index position : positions) {
      if (position <= last || position > kMaxPosition)
        fail("tensor ", name, " must rise up to ", kMaxPosition, ", has ", position, " after ",
             last);
      last = position;
    }
    SnapshotRows rows = {
        positions, read_rows(snapshot_tensor(i, "rows"), shape[0], cache.layout(), typed), {}};
    if (const PagedRows* keys = cache.index_keys())
      rows.index_keys =
          read_rows(snapshot_tensor(i, "index_keys"), shape[0], keys->layout(), false);
    return rows;
  }

  // `typed`: a tensor of numbers, as version 1 has it.
  MatrixView<const std::byte> read_rows(const std::string& name, Index tokens,
                                        const RowLayout& layout, bool typed) const {
    const SafetensorsTensor& tensor =
        typed ? typed_tensor(name, dtype_of(layout.format), {tokens, layout.width()})
              : typed_tensor(name, SafetensorsDType::uint8, {tokens, layout.bytes});
    return {tensor.bytes.data(), tokens, layout.bytes};
  }

  // Of rows in version 1.
  SafetensorsDType dtype_of(CacheFormat format) const {
    switch (format) {
      case CacheFormat::float32:
        return SafetensorsDType::float32;
      case CacheFormat::bfloat16:
        return SafetensorsDType::bfloat16;
      case CacheFormat::float16:
        return SafetensorsDType::float16;
      case CacheFormat::int8:
      case CacheFormat::fp8:
      case CacheFormat::int4:
#if defined(MLA_EXTRA_CACHE_FORMAT)
      case CacheFormat::extra:
#endif
        fail("version 1 has no rows of format ", name_of(format));
    }
    __builtin_unreachable();
  }

  SafetensorsFile file_;

 private:
  std::vector<SnapshotRows> caches_;
};

}  // namespace detail

}  // namespace mla

#endif  // MLA_IO_SNAPSHOT_FILE_HPP_
