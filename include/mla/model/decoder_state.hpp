#ifndef MLA_MODEL_DECODER_STATE_HPP_
#define MLA_MODEL_DECODER_STATE_HPP_

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "mla/attention/cache_bytes.hpp"
#include "mla/attention/check_batch.hpp"
#include "mla/attention/latent_cache.hpp"
#include "mla/attention/sliding_window.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/model/model_config.hpp"

namespace mla {

/// What a decoder remembers of one text: a latent cache for each attention of its layers, and one
/// for multi-token prediction where the model has it.
class DecoderState {
 public:
  /// For texts of up to `context_tokens` tokens, 0: max_position_embeddings. With longrope that
  /// chooses the rotation once and for all: a text that was begun as a short one cannot become a
  /// long one. Throws std::invalid_argument where `config` or `format` does not fit.
  explicit DecoderState(const ModelConfig& config, CacheFormat format = CacheFormat::float32,
                        Index context_tokens = 0)
      : context_tokens_(context_tokens == 0 ? config.max_position_embeddings : context_tokens) {
    config.validate();
    require(context_tokens >= 0 && context_tokens <= config.max_position_embeddings,
            "context_tokens must be between 1 and max_position_embeddings ",
            config.max_position_embeddings, ", got ", context_tokens);
    const AttentionConfig attention = config.attention.for_context(context_tokens_);
    for (Index layer = 0; layer < config.attentions(); ++layer)
      layers_.emplace_back(
          config.attention_of(layer / config.attentions_per_layer()).for_context(context_tokens_),
          format);
    if (config.num_nextn_predict_layers > 0) prediction_.emplace_back(attention, format);
  }

  /// Of all its caches.
  CacheFormat format() const noexcept { return layers_.front().format(); }

  /// Tokens that the text may have in all.
  Index context_tokens() const noexcept { return context_tokens_; }
  /// Tokens in the caches of the layers.
  Index size() const noexcept { return layers_.front().size(); }
  /// Caches of layers: one for each attention (ModelConfig::attentions).
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
    prediction_.front().truncate(predictions_of(tokens));
  }

  /// Forgets the tokens `rows`, which must rise, in every layer, and what multi-token prediction
  /// knows of their positions. The others keep their positions. Throws as LatentCache::evict, with
  /// the state unchanged.
  void evict(std::span<const Index> rows) {
    const std::vector<std::span<const Index>> same(layers_.size(), rows);
    evict_from_layers(same);
  }

  /// The same with other rows in each layer: rows[layer]. As many in each, and not the last token,
  /// so that the layers go on alike; multi-token prediction forgets what the last layer does. With
  /// index keys the rows must be the same ones: layers may share a selection.
  void evict(std::span<const std::vector<Index>> rows) {
    require(std::ssize(rows) == layers(), "rows to evict must be given for ", layers(),
            " layers, got ", rows.size());
    for (std::size_t layer = 0; layer < rows.size(); ++layer) {
      require(!layers_.front().index_keys() || rows[layer] == rows[0],
              "layers that share a selection must forget the same rows: layer ", layer,
              " would forget others than layer 0");
      require(rows[layer].size() == rows[0].size(), "as many rows must go from each layer, got ",
              rows[0].size(), " from layer 0 and ", rows[layer].size(), " from layer ", layer);
      require(rows[layer].empty() || rows[layer].back() != size() - 1,
              "the last token must stay, where layers forget different ones: layer ", layer,
              " would forget row ", size() - 1);
    }
    evict_from_layers(std::vector<std::span<const Index>>(rows.begin(), rows.end()));
  }

  /// Moves the positions of the tokens from row `first` on by `delta`, and those of multi-token
  /// prediction with them: as LatentCache::shift, in all caches or in none.
  void shift(Index first, Index delta) {
    require(first >= 0 && first < size(), "cannot shift a state of ", size(), " tokens from row ",
            first, " on");
    DecoderState shifted = whole_fork();
    const Index position = layers_.front().position(first);
    for (LatentCache& cache : shifted.layers_) cache.shift(first, delta);
    for (LatentCache& cache : shifted.prediction_) {
      const Index row = cache.rows_before(position);
      if (row < cache.size()) cache.shift(row, delta);
    }
    *this = std::move(shifted);
  }

  /// Forgets the tokens that a window hides from the token that came after the first `tokens`, and
  /// moves those behind them closer: as LatentCache::slide, in all caches or in none. Allocates
  /// nothing where slides_in_place().
  void slide(const SlidingWindow& window, Index tokens) {
    if (slides_in_place(window, tokens))
      slide_caches(window, tokens);
    else
      *this = slid(window, tokens);
  }
  /// Whether it will slide without memory, and so without an exception: after the first time.
  bool slides_in_place(const SlidingWindow& window, Index tokens) const noexcept {
    const Slide slide = slide_of(window, tokens);
    return slide.rows == 0 ||
           (std::ranges::all_of(layers_,
                                [&](const LatentCache& cache) {
                                  return cache.drops_in_place(slide.first, slide.rows);
                                }) &&
            std::ranges::all_of(prediction_, [&](const LatentCache& cache) {
              const Index first = cache.rows_before(slide.from);
              return cache.drops_in_place(first, cache.rows_before(slide.to) - first);
            }));
  }
  /// A state that shares all pages with this one and has slid.
  DecoderState slid(const SlidingWindow& window, Index tokens) const {
    DecoderState state = whole_fork();
    state.slide_caches(window, tokens);
    return state;
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

  /// A state of the first `tokens` tokens, which goes on as if it had been computed on its own, bit
  /// for bit, and shares all pages with this one until one of them writes. Threads may fork the
  /// same state. Throws std::invalid_argument if there are fewer tokens.
  DecoderState fork(Index tokens) const {
    require(tokens >= 0 && tokens <= size(), "cannot fork a state of ", size(), " tokens at ",
            tokens);
    DecoderState state(context_tokens_);
    state.layers_.reserve(layers_.size());
    for (const LatentCache& cache : layers_) state.layers_.push_back(cache.fork(tokens));
    if (!prediction_.empty())
      state.prediction_.push_back(prediction_.front().fork(predictions_of(tokens)));
    return state;
  }

  /// A state like this one of other caches, of the same layouts.
  DecoderState with(std::vector<LatentCache> layers, std::optional<LatentCache> prediction) const {
    require(std::ssize(layers) == this->layers() && bool(prediction) == bool(this->prediction()),
            "a state like this one has ", this->layers(), " layers, got ", layers.size());
    DecoderState state(context_tokens_);
    state.layers_ = std::move(layers);
    if (prediction) state.prediction_.push_back(std::move(*prediction));
    return state;
  }

  /// Bytes of the cached rows, over all layers. See bytes_used(states) for states that share some.
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
  // Without caches.
  explicit DecoderState(Index context_tokens) noexcept : context_tokens_(context_tokens) {}

  // Rows of multi-token prediction that depend on the first `tokens` tokens only: that of position
  // t was made with token t + 1.
  Index predictions_of(Index tokens) const noexcept {
    const Index last = tokens == 0 ? 0 : layers_.front().position(tokens - 1);
    return prediction_.front().rows_before(last);
  }

  // With all rows of multi-token prediction, also those that the next token may change.
  DecoderState whole_fork() const {
    DecoderState state = fork(size());
    for (std::size_t i = 0; i < prediction_.size(); ++i)
      state.prediction_[i] = prediction_[i].fork(prediction_[i].size());
    return state;
  }

  void evict_from_layers(std::span<const std::span<const Index>> rows) {
    DecoderState left = whole_fork();
    if (!prediction_.empty()) {
      const LatentCache& layer = layers_.back();
      LatentCache& prediction = left.prediction_.front();
      std::vector<Index> predictions;
      for (const Index row : rows.back()) {
        require(row >= 0 && row < size(), "cannot evict row ", row, " of a state of ", size(),
                " tokens");
        const Index found = prediction.rows_before(layer.position(row));
        if (found < prediction.size() && prediction.position(found) == layer.position(row))
          predictions.push_back(found);
      }
      prediction.evict(predictions);
    }
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      left.layers_[layer].evict(rows[layer]);
    *this = std::move(left);
  }

  // What goes where a window slides.
  struct Slide {
    Index first = 0, rows = 0;  // of the layers
    Index from = 0, to = 0;     // positions of these rows
  };
  Slide slide_of(const SlidingWindow& window, Index tokens) const noexcept {
    const Index rows = window.slides(size(), tokens);
    if (rows == 0) return {};
    const LatentCache& layer = layers_.front();
    return {window.keep, rows, layer.position(window.keep), layer.position(window.keep + rows)};
  }
  void slide_caches(const SlidingWindow& window, Index tokens) {
    const Slide slide = slide_of(window, tokens);
    if (slide.rows == 0) return;
    for (LatentCache& cache : prediction_) {
      const Index first = cache.rows_before(slide.from);
      cache.close_up(first, cache.rows_before(slide.to) - first, slide.rows);
    }
    for (LatentCache& cache : layers_) cache.close_up(slide.first, slide.rows, slide.rows);
  }

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

  Index context_tokens_;
  std::vector<LatentCache> layers_;      // [attentions]
  std::vector<LatentCache> prediction_;  // one or none
};

/// Bytes of the cached rows of some states. Rows that several of them share count once.
inline std::size_t bytes_used(std::span<const DecoderState* const> states) {
  std::vector<const LatentCache*> caches;
  for (const DecoderState* state : states) {
    for (Index layer = 0; layer < state->layers(); ++layer) caches.push_back(&state->layer(layer));
    if (state->prediction()) caches.push_back(state->prediction());
  }
  return bytes_used(caches);
}

/// Throws std::invalid_argument unless the state fits a model of this configuration. `name`, whose
/// state it is, is for the message.
template <class... Name>
void require_state(const ModelConfig& config, const DecoderState& state, const Name&... name) {
  require(state.layers() == config.attentions(), "the state", name...,
          " was made for another model: it has ", state.layers(), " layers, this one has ",
          config.attentions());
  for (Index layer = 0; layer < state.layers(); ++layer)
    require_cache(config.attention_of(layer / config.attentions_per_layer()), state.layer(layer),
                  name...);
}

}  // namespace mla

#endif  // MLA_MODEL_DECODER_STATE_HPP_
