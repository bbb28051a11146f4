#ifndef MLA_MODEL_DECODER_SNAPSHOT_HPP_
#define MLA_MODEL_DECODER_SNAPSHOT_HPP_

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "mla/attention/latent_cache.hpp"
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
  require(state.fits(config), "the state was made for another model: it has ", state.layers(),
          " layers, this one has ", config.num_hidden_layers);
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
  detail::write_snapshot(path, fields, caches);
}

/// Replaces the text in `state` by that of a snapshot: as restore_snapshot() of a cache, with all
/// layers as they were whatever is thrown.
inline void restore_snapshot(const std::filesystem::path& path, const ModelConfig& config,
                             DecoderState& state, std::string_view label = {}) {
  const auto fields = detail::snapshot_fields(config, state, label);
  const auto caches = detail::caches_of<LatentCache>(state);
  const detail::SnapshotFile file(path, fields, caches);
  for (Index layer = 1; layer < state.layers(); ++layer)
    if (file.tokens(static_cast<std::size_t>(layer)) != file.tokens(0))
      file.fail("layer ", layer, " has ", file.tokens(static_cast<std::size_t>(layer)),
                " tokens, layer 0 has ", file.tokens(0));
  file.restore(caches);
}

}  // namespace mla

#endif  // MLA_MODEL_DECODER_SNAPSHOT_HPP_
