#ifndef MLA_MODEL_DECODER_SNAPSHOT_HPP_
#define MLA_MODEL_DECODER_SNAPSHOT_HPP_

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/attention/latent_cache.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/cache_snapshot.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/model_config.hpp"

namespace mla {

namespace detail {

/// All caches of a state: those of the layers, then that of multi-token prediction.
template <class Cache, class State>
std::vector<Cache*> caches_of(State& state) {
  std::vector<Cache*> caches;
  for (Index layer = 0; layer < state.layers(); ++layer) caches.push_back(&state.layer(layer));
  if (state.prediction()) caches.push_back(state.prediction());
  return caches;
}

inline SnapshotFields snapshot_fields(const ModelConfig& config, const DecoderState& state,
                                      std::string_view label) {
  require_state(config, state);
  const Index predictions = state.prediction() ? 1 : 0;
  SnapshotFields fields =
      snapshot_fields(config.attention, state.layer(0), state.layers() + predictions, label);
  fields.emplace_back("num_hidden_layers", std::to_string(state.layers()));
  fields.emplace_back("num_nextn_predict_layers", std::to_string(predictions));
  return fields;
}

}  // namespace detail

/// Writes the state of a text, over all layers, to one file: as save_snapshot() of a cache. `label`
/// says which weights it was made with.
inline void save_snapshot(const std::filesystem::path& path, const ModelConfig& config,
                          const DecoderState& state, std::string_view label = {}) {
  const auto fields = detail::snapshot_fields(config, state, label);
  const auto caches = detail::caches_of<const LatentCache>(state);
  if (std::ranges::all_of(caches, &LatentCache::is_whole))
    detail::write_snapshot(path, fields, caches);
  else
    detail::write_paged_snapshot(path, fields, caches, 1);
}

/// Writes several states of a model, all in the same format, to one file. Pages that they share,
/// as forks of one text do, are written once, and shared again when they are restored.
inline void save_snapshots(const std::filesystem::path& path, const ModelConfig& config,
                           std::span<const DecoderState* const> states,
                           std::string_view label = {}) {
  require(!states.empty(), "there is no state to save");
  std::vector<const LatentCache*> caches;
  for (const DecoderState* state : states) {
    detail::snapshot_fields(config, *state, label);  // checks it
    require(state->format() == states.front()->format(), "states of one file have one format, got ",
            name_of(states.front()->format()), " and ", name_of(state->format()));
    const auto more = detail::caches_of<const LatentCache>(*state);
    caches.insert(caches.end(), more.begin(), more.end());
  }
  detail::write_paged_snapshot(path, detail::snapshot_fields(config, *states.front(), label),
                               caches, states.size());
}

/// The states that save_snapshots() wrote, or save_snapshot() of one. `format` and
/// `context_tokens`: theirs, see DecoderState. Throws as restore_snapshot().
inline std::vector<DecoderState> restore_snapshots(const std::filesystem::path& path,
                                                   const ModelConfig& config, CacheFormat format,
                                                   std::string_view label = {},
                                                   Index context_tokens = 0);

/// Replaces the text in `state` by that of a snapshot: as restore_snapshot() of a cache, with all
/// layers as they were whatever is thrown.
inline void restore_snapshot(const std::filesystem::path& path, const ModelConfig& config,
                             DecoderState& state, std::string_view label = {}) {
  require_state(config, state);
  if (detail::is_paged_snapshot(path)) {
    auto states = restore_snapshots(path, config, state.format(), label, state.context_tokens());
    require(states.size() == 1, "a state cannot be restored from a file of ", states.size(),
            " states: see restore_snapshots()");
    state = std::move(states.front());
    return;
  }
  const auto fields = detail::snapshot_fields(config, state, label);
  const auto caches = detail::caches_of<LatentCache>(state);
  const detail::SnapshotFile file(path, fields, caches);
  for (Index layer = 1; layer < state.layers(); ++layer)
    if (file.tokens(static_cast<std::size_t>(layer)) != file.tokens(0))
      file.fail("layer ", layer, " has ", file.tokens(static_cast<std::size_t>(layer)),
                " tokens, layer 0 has ", file.tokens(0));
  file.restore(caches);
}

inline std::vector<DecoderState> restore_snapshots(const std::filesystem::path& path,
                                                   const ModelConfig& config, CacheFormat format,
                                                   std::string_view label, Index context_tokens) {
  DecoderState empty(config, format, context_tokens);
  std::vector<DecoderState> states;
  if (!detail::is_paged_snapshot(path)) {
    restore_snapshot(path, config, empty, label);
    states.push_back(std::move(empty));
    return states;
  }
  const auto like = detail::caches_of<const LatentCache>(empty);
  const detail::PagedSnapshot file(path, detail::snapshot_fields(config, empty, label), like);
  for (std::size_t s = 0; s < file.states(); ++s) {
    std::vector<LatentCache>& layers = file.state(s);
    std::optional<LatentCache> prediction;
    if (empty.prediction()) {
      prediction = std::move(layers.back());
      layers.pop_back();
    }
    for (std::size_t layer = 1; layer < layers.size(); ++layer)
      if (layers[layer].size() != layers[0].size())
        file.fail("layer ", layer, " of state ", s, " has ", layers[layer].size(),
                  " tokens, layer 0 has ", layers[0].size());
    states.push_back(empty.with(std::move(layers), std::move(prediction)));
  }
  return states;
}

}  // namespace mla

#endif  // MLA_MODEL_DECODER_SNAPSHOT_HPP_
