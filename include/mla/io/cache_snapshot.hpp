#ifndef MLA_IO_CACHE_SNAPSHOT_HPP_
#define MLA_IO_CACHE_SNAPSHOT_HPP_

#include <filesystem>
#include <string_view>
#include <utility>

#include "mla/attention/check_batch.hpp"
#include "mla/attention/latent_cache.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/io/paged_snapshot.hpp"
#include "mla/io/snapshot_file.hpp"

namespace mla {

/// Writes the tokens of `cache`, of a layer with this configuration, to a file. `label` says what
/// the configuration does not: which weights, which layer. A file that is there is replaced as a
/// whole or not at all, see ReplacementFile. Throws std::invalid_argument where `cache` does not
/// fit `config`, and std::runtime_error naming the file.
inline void save_snapshot(const std::filesystem::path& path, const AttentionConfig& config,
                          const LatentCache& cache, std::string_view label = {}) {
  require_cache(config, cache);
  const LatentCache* const caches[] = {&cache};
  const auto fields = detail::snapshot_fields(config, cache, 1, label);
  if (cache.is_whole())
    detail::write_snapshot(path, fields, caches);
  else
    detail::write_paged_snapshot(path, fields, caches, 1);
}

/// Replaces the tokens of `cache` by those of a snapshot. What follows is bit by bit as if it was
/// the cache that was saved. Throws std::invalid_argument where `cache` does not fit `config`, and
/// std::runtime_error naming the file and the field or tensor when the file is damaged or was saved
/// from another configuration, format or label; whatever is thrown, the cache is unchanged.
inline void restore_snapshot(const std::filesystem::path& path, const AttentionConfig& config,
                             LatentCache& cache, std::string_view label = {}) {
  require_cache(config, cache);
  const auto fields = detail::snapshot_fields(config, cache, 1, label);
  if (detail::is_paged_snapshot(path)) {
    const LatentCache* const like[] = {&cache};
    const detail::PagedSnapshot file(path, fields, like);
    file.require_states(1);
    cache = std::move(file.state(0).front());
    return;
  }
  LatentCache* const caches[] = {&cache};
  detail::SnapshotFile(path, fields, caches).restore(caches);
}

}  // namespace mla

#endif  // MLA_IO_CACHE_SNAPSHOT_HPP_
