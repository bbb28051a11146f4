#ifndef MLA_MODEL_DECODER_STATE_HPP_
#define MLA_MODEL_DECODER_STATE_HPP_

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "mla/attention/latent_cache.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/model/model_config.hpp"

namespace mla {

/// What a decoder remembers of one text: a latent cache for each layer, and one for multi-token
/// prediction where the model has it.
class DecoderState {
 public:
  /// Throws std::invalid_argument where `config` or `format` does not fit.
  explicit DecoderState(const ModelConfig& config, CacheFormat format = CacheFormat::float32) {
    config.validate();
    for (Index layer = 0; layer < config.num_hidden_layers; ++layer)
      layers_.emplace_back(config.attention, format);
    if (config.num_nextn_predict_layers > 0) prediction_.emplace_back(config.attention, format);
  }

  /// Of all its caches.
  CacheFormat format() const noexcept { return layers_.front().format(); }

  /// Tokens in the caches of the layers.
  Index size() const noexcept { return layers_.front().size(); }
  Index layers() const noexcept { return static_cast<Index>(layers_.size()); }

  LatentCache& layer(Index i) noexcept { return layers_[static_cast<std::size_t>(i)]; }
  const LatentCache& layer(Index i) const noexcept { return layers_[static_cast<std::size_t>(i)]; }
  /// The cache of multi-token prediction: position t is made of state t and token t + 1. nullptr
  /// where the model has none.
  LatentCache* prediction() noexcept {
    return prediction_.empty() ? nullptr : &prediction_.front();
  }
  const LatentCache* prediction() const noexcept {
    return prediction_.empty() ? nullptr : &prediction_.front();
  }

  bool fits(const ModelConfig& config) const noexcept {
    return layers() == config.num_hidden_layers && layers_.front().fits(config.attention);
  }

  /// Makes room for `tokens` tokens in all: appending up to there allocates nothing.
  void reserve(Index tokens) {
    for_each_cache([&](LatentCache& cache) { cache.reserve(tokens); });
  }

  /// Forgets all but the first `tokens` tokens, exactly: what follows is as if the others had never
  /// been there. Keeps the memory. Throws std::invalid_argument if there are fewer.
  void truncate(Index tokens) {
    require(tokens >= 0 && tokens <= size(), "cannot truncate a state of ", size(), " tokens to ",
            tokens);
    truncate_layers(tokens);
    if (prediction_.empty()) return;
    // Position t was made with token t + 1.
    const std::span<const Index> positions = prediction_.front().positions();
    prediction_.front().truncate(std::ranges::lower_bound(positions, tokens - 1) -
                                 positions.begin());
  }

  /// Truncates the caches of the layers, however many tokens each of them has, and leaves that of
  /// multi-token prediction alone.
  void truncate_layers(Index tokens) {
    for (LatentCache& cache : layers_) cache.truncate(std::min(tokens, cache.size()));
  }

  /// Forgets everything and keeps the memory.
  void clear() noexcept {
    for_each_cache([](LatentCache& cache) { cache.clear(); });
  }

  /// Bytes of the cached rows, over all layers.
  std::size_t bytes_used() const noexcept {
    return sum([](const LatentCache& cache) { return cache.bytes_used(); });
  }
  /// Bytes of all pages, also of those that hold no token yet.
  std::size_t bytes_allocated() const noexcept {
    return sum([](const LatentCache& cache) { return cache.bytes_allocated(); });
  }
  /// Bytes that a token takes, over all layers.
  std::size_t bytes_per_token() const noexcept {
    return sum([](const LatentCache& cache) { return cache.bytes_per_token(); });
  }

 private:
  template <class Visit>
  void for_each_cache(const Visit& visit) {
    for (LatentCache& cache : layers_) visit(cache);
    for (LatentCache& cache : prediction_) visit(cache);
  }

  template <class Bytes>
  std::size_t sum(const Bytes& bytes) const noexcept {
    std::size_t total = 0;
    for (const LatentCache& cache : layers_) total += bytes(cache);
    for (const LatentCache& cache : prediction_) total += bytes(cache);
    return total;
  }

  std::vector<LatentCache> layers_;      // [num_hidden_layers]
  std::vector<LatentCache> prediction_;  // one or none
};

}  // namespace mla

#endif  // MLA_MODEL_DECODER_STATE_HPP_
