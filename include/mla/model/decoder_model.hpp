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

#include "mla/attention/cache_rollback.hpp"
#include "mla/attention/call_plan.hpp"
#include "mla/attention/cost_model.hpp"
#include "mla/attention/index_selection.hpp"
#include "mla/attention/latent_cache.hpp"
#include "mla/attention/sliding_window.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/model/decoder_layer.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/decoder_weights.hpp"
#include "mla/model/load_decoder_weights.hpp"
#include "mla/model/model_config.hpp"
#include "mla/model/multi_token_prediction.hpp"
#include "mla/model/read_model_config.hpp"
#include "mla/model/text_mass.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/embedding.hpp"
#include "mla/ops/head.hpp"

namespace mla {

/// Options of a forward pass of a decoder.
struct DecoderOptions {
  AttentionForm mode = AttentionForm::automatic;
  /// A long prompt passes through the layers in chunks of this many tokens, which bounds the
  /// scratch memory. With a pinned mode it does not change a bit of the result.
  Index chunk_tokens = 256;
  DecoderObserver* observer = nullptr;
};

/// One text of a call: how it goes on, and how much of that is wanted back.
struct TextStep {
  DecoderState* state = nullptr;
  std::span<const TokenId> tokens = {};
  Index wanted = 1;  ///< rows of the result: those of the last tokens, 0 to all
  AttentionForm mode = AttentionForm::automatic;  ///< automatic: what DecoderOptions say
  /// Where given, each token sees the first and the last tokens only, and the text may be of any
  /// length. Afterwards the state has forgotten what the first of `tokens` did not see
  /// (DecoderState::slide), so that all of them but the first can still be taken back.
  SlidingWindow window = {};
  /// Where given, counts the attention of `tokens`; where the call throws, what was counted is
  /// undefined. Not with a window.
  TextMass* mass = nullptr;
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
  /// used where the files are mapped, in the format that they have. Throws std::runtime_error
  /// naming the file, the key or the tensor that is not as it must be.
  static DecoderModel load(const std::filesystem::path& directory) {
    Checkpoint checkpoint(directory);
    return load(load_model_config(directory), std::move(checkpoint));
  }

  /// The same of a checkpoint that was opened, and perhaps quantised, before: the model keeps it.
  static DecoderModel load(const ModelConfig& config, Checkpoint&& checkpoint) {
    auto kept = std::make_shared<const Checkpoint>(std::move(checkpoint));
    DecoderModel model(config, load_decoder_weights(*kept, config));
    model.checkpoint_ = std::move(kept);
    return model;
  }

  /// `weights` are views that must outlive the model. Throws std::invalid_argument naming the field
  /// or tensor that does not fit.
  DecoderModel(const ModelConfig& config, const DecoderWeights& weights)
      : config_((config.validate(), config)),
        embedding_(weights.embed_tokens, config.embedding_scale),
        head_(detail::make_norm("model.norm", weights.norm, config), weights.lm_head,
              config.logit_scale) {
    require_shape("embed_tokens", weights.embed_tokens, vocab_size(), hidden_size());
    require_shape("lm_head", weights.lm_head, vocab_size(), hidden_size());
    const Index layers = static_cast<Index>(weights.layers.size());
    require(layers == config.num_hidden_layers, "num_hidden_layers is ", config.num_hidden_layers,
            ", but there are weights of ", layers);
    layers_.reserve(weights.layers.size());
    for (Index layer = 0; layer < layers; ++layer)
      layers_.emplace_back(config, layer, weights.layers[static_cast<std::size_t>(layer)]);
    if (weights.prediction) prediction_.emplace(config, *weights.prediction);
  }

  /// As it was passed; prediction() says whether there is a module for multi-token prediction.
  const ModelConfig& config() const noexcept { return config_; }
  Index vocab_size() const noexcept { return config_.vocab_size; }
  Index hidden_size() const noexcept { return config_.hidden_size(); }
  /// Tokens that a text may have in all.
  Index max_position_embeddings() const noexcept { return config_.max_position_embeddings; }
  /// nullptr where the model has none.
  const MultiTokenPrediction* prediction() const noexcept {
    return prediction_ ? &*prediction_ : nullptr;
  }

  /// Continues several texts in one call, each with its own state and any number of tokens, prompts
  /// beside single ones: logits [sum of wanted, vocab_size], one text after the other. Every text
  /// gets the bits that it would get alone. Weights are read once for all texts, so that a few of
  /// them take little longer than one. Allocates nothing once `context` has seen a call of this
  /// size and the states have room (DecoderState::reserve). Throws std::invalid_argument for a
  /// token that is not in the vocabulary, for more tokens than max_position_embeddings, for a state
  /// of another model, and for shapes that do not fit; whatever is thrown, the states are
  /// unchanged.
  void forward(std::span<const TextStep> batch, Eigen::Ref<RowMajorMatrix> logits, Context& context,
               const DecoderOptions& options = {}) const {
    const Index wanted = check(batch, options);
    require_matrix("logits", mutable_view_of(logits), wanted, vocab_size());
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const auto caches = caches_of(batch, workspace);
    CacheRollback<LatentCache> rollback(caches, workspace);
    const auto hidden = workspace.take_matrix<float>(wanted, hidden_size());
    run(batch, hidden, context, options);
    head_.forward(hidden, mutable_view_of(logits), context);
    slide(batch, rollback);
  }

  /// One text: logits [n, vocab_size] of the last n of `tokens`, any n up to all. Throws likewise.
  void forward(std::span<const TokenId> tokens, DecoderState& state,
               Eigen::Ref<RowMajorMatrix> logits, Context& context,
               const DecoderOptions& options = {}) const {
    const TextStep step = {&state, tokens, logits.rows()};
    forward(std::span(&step, 1), logits, context, options);
  }

  /// The same, with memory of its own: logits [tokens, vocab_size] of all tokens.
  RowMajorMatrix forward(std::span<const TokenId> tokens, DecoderState& state,
                         const DecoderOptions& options = {}) const {
    RowMajorMatrix logits(std::ssize(tokens), vocab_size());
    Context context;
    forward(tokens, state, logits, context, options);
    return logits;
  }

  /// As forward(), but writes the states [sum of wanted, hidden_size] after model.norm, which
  /// head() makes logits of and multi-token prediction works on.
  void forward_hidden(std::span<const TextStep> batch, Eigen::Ref<RowMajorMatrix> hidden,
                      Context& context, const DecoderOptions& options = {}) const {
    const Index wanted = check(batch, options);
    require_matrix("hidden", mutable_view_of(hidden), wanted, hidden_size());
    const Workspace::Scope scope(context.workspace());
    const auto caches = caches_of(batch, context.workspace());
    CacheRollback<LatentCache> rollback(caches, context.workspace());
    run(batch, mutable_view_of(hidden), context, options);
    slide(batch, rollback);
  }
  void forward_hidden(std::span<const TokenId> tokens, DecoderState& state,
                      Eigen::Ref<RowMajorMatrix> hidden, Context& context,
                      const DecoderOptions& options = {}) const {
    const TextStep step = {&state, tokens, hidden.rows()};
    forward_hidden(std::span(&step, 1), hidden, context, options);
  }

  /// hidden [n, hidden_size] after model.norm -> logits [n, vocab_size].
  void head(const Eigen::Ref<const RowMajorMatrix>& hidden, Eigen::Ref<RowMajorMatrix> logits,
            Context& context) const {
    head_.forward(view_of(hidden), mutable_view_of(logits), context);
  }

 private:
  // A text's share of a pass through the layers.
  struct Piece {
    const TextStep* step;
    Index first, tokens;  // of the step's
    Index row;            // of the result: that of the step's first wanted token
  };

  // Returns the rows of the result.
  Index check(std::span<const TextStep> batch, const DecoderOptions& options) const {
    require(options.chunk_tokens > 0, "chunk_tokens must be positive, got ", options.chunk_tokens);
    Index wanted = 0;
    for (std::size_t s = 0; s < batch.size(); ++s) {
      const TextStep& step = batch[s];
      require(step.state != nullptr, "text ", s, " has no state");
      const DecoderState& state = *step.state;
      require_state(config_, state, " of text ", s);
      for (std::size_t other = 0; other < s; ++other)
        require(batch[other].state != step.state, "texts ", other, " and ", s,
                " have the same state");
      require_window(step.window, std::min(max_position_embeddings(), state.context_tokens()));
      require(!step.mass || step.mass->layers() == config_.attentions(),
              "attention is to be counted in ", config_.attentions(), " layers, text ", s,
              " has masses for ", step.mass ? step.mass->layers() : 0);
      require(!step.mass || !config_.attention.indexer,
              "attention is not counted where an indexer selects the keys");
      require(!step.mass || !step.window, "attention through a window is not counted");
      require(step.window || std::ssize(step.tokens) <= max_position_embeddings() - state.size(),
              "a text of ", state.size(), " + ", step.tokens.size(),
              " tokens is longer than max_position_embeddings ", max_position_embeddings());
      require(step.window || std::ssize(step.tokens) <= state.context_tokens() - state.size(),
              "a text of ", state.size(), " + ", step.tokens.size(),
              " tokens is longer than the context that its state was made for, ",
              state.context_tokens());
      require(step.wanted >= 0 && step.wanted <= std::ssize(step.tokens), "text ", s, " has ",
              step.tokens.size(), " tokens, cannot give the last ", step.wanted);
      embedding_.check(step.tokens);
      wanted += step.wanted;
    }
    return wanted;
  }

  // The call is done: keeps what it appended, less what windows hide from here on. All states or
  // none, if memory runs out.
  static void slide(std::span<const TextStep> batch, CacheRollback<LatentCache>& rollback) {
    std::vector<std::pair<DecoderState*, DecoderState>> slid;
    const auto past = [](const TextStep& step) {
      return step.state->size() - std::ssize(step.tokens);
    };
    for (const TextStep& step : batch)
      if (!step.state->slides_in_place(step.window, past(step)))
        slid.emplace_back(step.state, step.state->slid(step.window, past(step)));
    rollback.keep();
    for (const TextStep& step : batch)
      if (step.state->slides_in_place(step.window, past(step)))
        step.state->slide(step.window, past(step));
    for (auto& [state, content] : slid) *state = std::move(content);
  }

  // All caches of the layers.
  std::span<LatentCache* const> caches_of(std::span<const TextStep> batch,
                                          Workspace& workspace) const {
    const Index count = std::ssize(batch) * config_.attentions();
    LatentCache** const caches = workspace.take<LatentCache*>(count);
    LatentCache** next = caches;
    for (const TextStep& step : batch)
      for (Index layer = 0; layer < config_.attentions(); ++layer)
        *next++ = &step.state->layer(layer);
    return {caches, static_cast<std::size_t>(count)};
  }

  // Checked texts through all layers -> hidden [sum of wanted, hidden_size] after model.norm. Texts
  // are cut into the chunks that they would have alone, and chunks of several texts go together as
  // long as they are no more than chunk_tokens.
  void run(std::span<const TextStep> batch, MatrixView<float> hidden, Context& context,
           const DecoderOptions& options) const {
    Workspace& workspace = context.workspace();
    Index* const done = workspace.take<Index>(std::ssize(batch));
    std::fill_n(done, batch.size(), Index{0});
    Piece* const pieces = workspace.take<Piece>(std::ssize(batch));
    for (const TextStep& step : batch)
      step.state->reserve(step.state->size() + std::ssize(step.tokens));
    while (true) {
      Index count = 0, tokens = 0, row = 0;
      for (std::size_t s = 0; s < batch.size(); ++s) {
        const Index left = std::ssize(batch[s].tokens) - done[s];
        const Index chunk = std::min(options.chunk_tokens, left);
        if (chunk > 0 && (tokens == 0 || tokens + chunk <= options.chunk_tokens)) {
          pieces[count++] = {&batch[s], done[s], chunk, row};
          tokens += chunk;
          done[s] += chunk;
        }
        row += batch[s].wanted;
      }
      if (count == 0) return;
      pass({pieces, static_cast<std::size_t>(count)}, tokens, hidden, context, options);
    }
  }

  // One pass of `tokens` tokens through the layers.
  void pass(std::span<const Piece> pieces, Index tokens, MatrixView<float> hidden, Context& context,
            const DecoderOptions& options) const {
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const auto x = workspace.take_matrix<float>(tokens, hidden_size());
    Sequence* const sequences = workspace.take<Sequence>(std::ssize(pieces));
    Index row = 0;
    for (std::size_t p = 0; p < pieces.size(); row += pieces[p++].tokens) {
      const Piece& piece = pieces[p];
      sequences[p] = {&piece.step->state->layer(0), piece.tokens, piece.step->mode,
                      piece.step->window};
      embedding_.forward(piece.step->tokens.subspan(static_cast<std::size_t>(piece.first),
                                                    static_cast<std::size_t>(piece.tokens)),
                         x.row_range(row, piece.tokens), context);
    }
    if (options.observer) options.observer->on_embedding(x);
    const CallPlan plan = layers_.front().attention().plan(tokens, {sequences, pieces.size()},
                                                           {.mode = options.mode}, context);
    const Index each = config_.attentions_per_layer();
    const std::size_t count = pieces.size() * static_cast<std::size_t>(each);
    LatentCache** const caches = workspace.take<LatentCache*>(static_cast<Index>(count));
    AttentionMass** const masses = workspace.take<AttentionMass*>(static_cast<Index>(count));
    const bool counted =
        std::ranges::any_of(pieces, [](const Piece& piece) { return piece.step->mass; });
    std::optional<IndexSelection> selection;
    if (config_.attention.indexer) selection.emplace(config_.attention, plan, workspace);
    for (Index layer = 0; layer < config_.num_hidden_layers; ++layer) {
      for (std::size_t c = 0; c < count; ++c) {
        const TextStep& step = *pieces[c % pieces.size()].step;
        const Index cache = layer * each + static_cast<Index>(c / pieces.size());
        caches[c] = &step.state->layer(cache);
        masses[c] = step.mass ? &step.mass->layer(cache) : nullptr;
      }
      layers_[static_cast<std::size_t>(layer)].forward(
          x, plan, {caches, count}, context, options.observer, {masses, counted ? count : 0},
          selection ? &*selection : nullptr);
    }
    head_.normalise(x, context);
    if (options.observer) options.observer->on_norm(x);
    row = 0;
    for (const Piece& piece : pieces) {
      keep_wanted(piece, x.row_range(row, piece.tokens), hidden);
      row += piece.tokens;
    }
  }

  // Copies those rows of a piece's x that are wanted to their place.
  static void keep_wanted(const Piece& piece, MatrixView<const float> x, MatrixView<float> hidden) {
    const Index unwanted = std::ssize(piece.step->tokens) - piece.step->wanted;
    for (Index t = std::max<Index>(0, unwanted - piece.first); t < piece.tokens; ++t)
      std::copy_n(x.row(t), x.cols, hidden.row(piece.row + piece.first + t - unwanted));
  }

  ModelConfig config_;
  std::shared_ptr<const Checkpoint> checkpoint_;  // of load(): what the views below refer to
  Embedding embedding_;
  std::vector<DecoderLayer> layers_;
  Head head_;  // model.norm and lm_head
  std::optional<MultiTokenPrediction> prediction_;
};

}  // namespace mla

#endif  // MLA_MODEL_DECODER_MODEL_HPP_
