#ifndef MLA_MODEL_DECODER_MODEL_HPP_
#define MLA_MODEL_DECODER_MODEL_HPP_

#include <Eigen/Core>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "mla/attention/context.hpp"
#include "mla/attention/cost_model.hpp"
#include "mla/attention/linear.hpp"
#include "mla/attention/rms_norm.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/model/decoder_layer.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/decoder_weights.hpp"
#include "mla/model/embedding.hpp"
#include "mla/model/load_decoder_weights.hpp"
#include "mla/model/model_config.hpp"
#include "mla/model/multi_token_prediction.hpp"
#include "mla/model/read_model_config.hpp"

namespace mla {

/// What a caller may say about a forward pass of a decoder.
struct DecoderOptions {
  Mode mode = Mode::automatic;
  /// A long prompt passes through the layers in chunks of so many tokens, which bounds the scratch
  /// memory. With a pinned mode it does not change a bit of the result.
  Index chunk_tokens = 256;
  DecoderObserver* observer = nullptr;
};

/// A complete decoder: embedding, layers, norm, head, and the module for multi-token prediction
/// where the checkpoint has one. Immutable: threads may share it, each with its own Context and
/// DecoderState.
///
/// The result of a token is the same to the last bit for any number of threads and any split of a
/// text into calls, as long as mode, instruction set and cache type are the same.
class DecoderModel {
 public:
  /// The model in a directory, as it was downloaded: config.json and safetensors files. Weights are
  /// used where the files are mapped, but for fp8 ones, which are decoded to `fp8_as` (see
  /// Checkpoint). Throws std::runtime_error naming the file, the key or the tensor that is not as
  /// it must be.
  static DecoderModel load(const std::filesystem::path& directory, DType fp8_as = DType::bfloat16) {
    const ModelConfig config = load_model_config(directory);
    auto checkpoint = std::make_shared<const Checkpoint>(directory, fp8_as);
    DecoderModel model(config, load_decoder_weights(*checkpoint, config));
    model.checkpoint_ = std::move(checkpoint);
    return model;
  }

  /// `weights` are views that must outlive the model. Throws std::invalid_argument naming the field
  /// or tensor that does not fit.
  DecoderModel(const ModelConfig& config, const DecoderWeights& weights)
      : config_((config.validate(), config)),
        embedding_(weights.embed_tokens),
        norm_(detail::make_norm("model.norm", weights.norm, config)),
        head_(weights.lm_head) {
    check_vocabulary("embed_tokens", weights.embed_tokens);
    check_vocabulary("lm_head", weights.lm_head);
    const Index layers = static_cast<Index>(weights.layers.size());
    require(layers == config.num_hidden_layers, "num_hidden_layers is ", config.num_hidden_layers,
            ", but there are weights of ", layers);
    layers_.reserve(weights.layers.size());
    for (Index layer = 0; layer < layers; ++layer)
      layers_.emplace_back(config, layer, weights.layers[static_cast<std::size_t>(layer)]);
    if (weights.prediction) prediction_.emplace(config, *weights.prediction);
    config_.num_nextn_predict_layers = prediction_ ? 1 : 0;
  }

  /// num_nextn_predict_layers says whether there is a module for it, 1 or 0.
  const ModelConfig& config() const noexcept { return config_; }
  Index vocab_size() const noexcept { return config_.vocab_size; }
  Index hidden_size() const noexcept { return config_.hidden_size(); }
  /// Tokens that a text may have in all.
  Index max_position_embeddings() const noexcept { return config_.max_position_embeddings; }
  /// nullptr where the model has none.
  const MultiTokenPrediction* prediction() const noexcept {
    return prediction_ ? &*prediction_ : nullptr;
  }

  /// Continues the text in `state` by `tokens` and writes the logits [n, vocab_size] of the last n
  /// of them, any n up to all. Allocates nothing once `context` has seen a call of this size and
  /// `state` has room (DecoderState::reserve). Throws std::invalid_argument for a token that is not
  /// in the vocabulary, for more tokens than max_position_embeddings, and for shapes that do not
  /// fit; whatever is thrown, the state is as it was.
  template <StorageElement T>
  void forward(std::span<const TokenId> tokens, DecoderState<T>& state,
               Eigen::Ref<RowMajorMatrix> logits, Context& context,
               const DecoderOptions& options = {}) const {
    require(logits.rows() <= std::ssize(tokens) && logits.cols() == vocab_size(),
            "logits must have at most ", tokens.size(), " rows of vocab_size ", vocab_size(),
            ", got [", logits.rows(), ", ", logits.cols(), "]");
    const MatrixView<float> out(logits.data(), logits.rows(), logits.cols(), logits.outerStride());
    run(tokens, state, out.rows, context, options,
        [&](Index first, MatrixView<const float> hidden) {
          head_.forward(hidden, out.row_range(first, hidden.rows), context);
        });
  }

  /// The same, with memory of its own: logits [tokens, vocab_size] of all tokens.
  template <StorageElement T>
  RowMajorMatrix forward(std::span<const TokenId> tokens, DecoderState<T>& state,
                         const DecoderOptions& options = {}) const {
    RowMajorMatrix logits(std::ssize(tokens), vocab_size());
    Context context;
    forward(tokens, state, logits, context, options);
    return logits;
  }

  /// As forward(), but writes the states [n, hidden_size] of the last n tokens after model.norm,
  /// which head() makes logits of and multi-token prediction works on.
  template <StorageElement T>
  void forward_hidden(std::span<const TokenId> tokens, DecoderState<T>& state,
                      Eigen::Ref<RowMajorMatrix> hidden, Context& context,
                      const DecoderOptions& options = {}) const {
    require(hidden.rows() <= std::ssize(tokens) && hidden.cols() == hidden_size(),
            "hidden must have at most ", tokens.size(), " rows of hidden_size ", hidden_size(),
            ", got [", hidden.rows(), ", ", hidden.cols(), "]");
    run(tokens, state, hidden.rows(), context, options,
        [&](Index first, MatrixView<const float> x) {
          for (Index t = 0; t < x.rows; ++t)
            std::copy_n(x.row(t), x.cols, hidden.data() + (first + t) * hidden.outerStride());
        });
  }

  /// hidden [n, hidden_size] after model.norm -> logits [n, vocab_size].
  void head(const Eigen::Ref<const RowMajorMatrix>& hidden, Eigen::Ref<RowMajorMatrix> logits,
            Context& context) const {
    require(hidden.cols() == hidden_size() && logits.rows() == hidden.rows() &&
                logits.cols() == vocab_size(),
            "head() makes [n, ", vocab_size(), "] of [n, ", hidden_size(), "], got [",
            logits.rows(), ", ", logits.cols(), "] and [", hidden.rows(), ", ", hidden.cols(), "]");
    head_.forward({hidden.data(), hidden.rows(), hidden.cols(), hidden.outerStride()},
                  {logits.data(), logits.rows(), logits.cols(), logits.outerStride()}, context);
  }

 private:
  // Truncates the caches to what they had, unless told to keep it.
  template <StorageElement T>
  class Rollback {
   public:
    explicit Rollback(DecoderState<T>& state) noexcept : state_(state), tokens_(state.size()) {}
    Rollback(const Rollback&) = delete;
    Rollback& operator=(const Rollback&) = delete;
    ~Rollback() {
      if (!kept_) state_.truncate_layers(tokens_);
    }
    void keep() noexcept { kept_ = true; }

   private:
    DecoderState<T>& state_;
    Index tokens_;
    bool kept_ = false;
  };

  void check_vocabulary(const char* name, const WeightView& weight) const {
    require(weight.rows == vocab_size() && weight.cols == hidden_size(), "tensor ", name,
            " must have shape [", vocab_size(), ", ", hidden_size(), "], got [", weight.rows, ", ",
            weight.cols, "]");
  }

  template <StorageElement T>
  void check(std::span<const TokenId> tokens, const DecoderState<T>& state,
             const DecoderOptions& options) const {
    require(state.fits(config_), "the state was made for another model: it has ", state.layers(),
            " layers with rows of ", state.layer(0).rows().row_width(), " elements, this one has ",
            config_.num_hidden_layers, " with ", config_.attention.cache_row_width());
    require(options.chunk_tokens > 0, "chunk_tokens must be positive, got ", options.chunk_tokens);
    require(std::ssize(tokens) <= max_position_embeddings() - state.size(), "a text of ",
            state.size(), " + ", tokens.size(), " tokens is longer than max_position_embeddings ",
            max_position_embeddings());
    embedding_.check(tokens);
  }

  // Calls sink(first, hidden) for the last `wanted` tokens, in chunks: states [n, hidden_size]
  // after model.norm, from the wanted token `first` on.
  template <StorageElement T, class Sink>
  void run(std::span<const TokenId> tokens, DecoderState<T>& state, Index wanted, Context& context,
           const DecoderOptions& options, const Sink& sink) const {
    check(tokens, state, options);
    Rollback<T> rollback(state);
    const Index count = std::ssize(tokens), unwanted = count - wanted;
    state.reserve(state.size() + count);
    for (Index first = 0; first < count; first += options.chunk_tokens) {
      const Index chunk = std::min(options.chunk_tokens, count - first);
      const Workspace::Scope scope(context.workspace());
      const auto x = context.workspace().template take_matrix<float>(chunk, hidden_size());
      forward_chunk(
          tokens.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(chunk)), state,
          x, context, options);
      const Index skip = std::clamp(unwanted - first, Index{0}, chunk);
      if (skip < chunk) sink(first + skip - unwanted, x.row_range(skip, chunk - skip));
    }
    rollback.keep();
  }

  // -> x [tokens, hidden_size] after model.norm
  template <StorageElement T>
  void forward_chunk(std::span<const TokenId> tokens, DecoderState<T>& state, MatrixView<float> x,
                     Context& context, const DecoderOptions& options) const {
    embedding_.forward(tokens, x, context);
    if (options.observer) options.observer->on_embedding(x);
    for (Index layer = 0; layer < config_.num_hidden_layers; ++layer)
      layers_[static_cast<std::size_t>(layer)].forward(x, state.layer(layer), context,
                                                       {.mode = options.mode}, options.observer);
    norm_.forward(x, context);
    if (options.observer) options.observer->on_norm(x);
  }

  ModelConfig config_;
  std::shared_ptr<const Checkpoint> checkpoint_;  // of load(): what the views below refer to
  Embedding embedding_;
  std::vector<DecoderLayer> layers_;
  RmsNorm norm_;
  Linear head_;
  std::optional<MultiTokenPrediction> prediction_;
};

}  // namespace mla

#endif  // MLA_MODEL_DECODER_MODEL_HPP_
