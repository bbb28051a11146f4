#ifndef MLA_MODEL_MULTI_TOKEN_PREDICTION_HPP_
#define MLA_MODEL_MULTI_TOKEN_PREDICTION_HPP_

#include <Eigen/Core>
#include <algorithm>
#include <numeric>
#include <span>

#include "mla/attention/cache_rollback.hpp"
#include "mla/attention/call_plan.hpp"
#include "mla/attention/latent_cache.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/model/decoder_layer.hpp"
#include "mla/model/decoder_weights.hpp"
#include "mla/model/model_config.hpp"
#include "mla/ops/context.hpp"
#include "mla/ops/embedding.hpp"
#include "mla/ops/head.hpp"
#include "mla/ops/linear.hpp"
#include "mla/ops/rms_norm.hpp"

namespace mla {

/// One text's share of a call of multi-token prediction.
struct PredictionStep {
  MatrixView<const float> hidden = {};        ///< [tokens, hidden_size] state of each position
  std::span<const TokenId> next_tokens = {};  ///< [tokens] token after each position
  Index first_position = 0;                   ///< others follow it one by one
  LatentCache* cache = nullptr;               ///< of the module, for this text
  Index wanted = 1;                           ///< predictions: of the last positions, 0 to all
  AttentionForm mode = AttentionForm::automatic;

  Index tokens() const noexcept { return std::ssize(next_tokens); }
};

/// A module for multi-token prediction (DeepSeek-V3 technical report, section 2.2): from the state
/// of token t and the embedding of a token after it, it predicts the one after that, by
///   x = eh_proj([enorm(embedding), hnorm(state)])
/// a decoder layer with a latent cache of its own, a norm and a head.
///
/// The one of a published checkpoint takes token t + 1 and the state after model.norm. A chain of
/// several, as the report and lessons describe it (`combine_proj`): the k-th, from 1 on, takes
/// token t + k and the states() of the one before, and predicts token t + k + 1.
class MultiTokenPrediction {
 public:
  /// `weights` are views that must outlive the module. Throws std::invalid_argument naming the
  /// field or tensor that does not fit.
  /// Its layer is `depth` layers after the model's last one to a DecoderObserver.
  MultiTokenPrediction(const ModelConfig& config, const MultiTokenPredictionWeights& weights,
                       Index depth = 0)
      : embedding_(weights.embed_tokens, config.embedding_scale),
        embedding_norm_(detail::make_norm("enorm", weights.enorm, config)),
        hidden_norm_(detail::make_norm("hnorm", weights.hnorm, config)),
        hidden_first_(weights.hidden_first),
        projection_(weights.eh_proj),
        layer_(config, config.num_hidden_layers + depth, weights.layer),
        head_(weights.shared_head_norm
                  ? detail::make_norm("shared_head.norm", weights.shared_head_norm, config)
                  : RmsNorm(),
              weights.shared_head, config.logit_scale) {
    const Index hidden = config.hidden_size();
    require_shape("embed_tokens", weights.embed_tokens, config.vocab_size, hidden);
    require_shape("eh_proj", weights.eh_proj, hidden, 2 * hidden);
    require_shape("shared_head.head", weights.shared_head, config.vocab_size, hidden);
  }

  Index vocab_size() const noexcept { return embedding_.vocab_size(); }
  Index hidden_size() const noexcept { return embedding_.hidden_size(); }

  /// Continues several texts in one call, each in a cache of its own, and writes what follows the
  /// wanted ones of their positions: logits [sum of wanted, vocab_size], one text after the other.
  /// Every text gets the bits that it would get alone. Positions in a cache must rise; ones that it
  /// lacks change a prediction, but harm nothing. The call takes memory for all its tokens, so cut
  /// a long prompt into chunks: the result is the same to the last bit. Throws as
  /// DecoderModel::forward, with the caches unchanged.
  void forward(std::span<const PredictionStep> batch, Eigen::Ref<RowMajorMatrix> logits,
               Context& context, DecoderObserver* observer = nullptr) const {
    require_matrix("logits", mutable_view_of(logits), check(batch), vocab_size());
    run(batch, context, observer, [&](MatrixView<float> x) {
      head_.normalise(x, context);
      head_.forward(x, mutable_view_of(logits), context);
    });
  }

  /// One text: positions first_position, first_position + 1, ...
  ///   hidden       [tokens, hidden_size] state of these positions
  ///   next_tokens  [tokens] token after each of these positions
  ///   logits       [n, vocab_size] of the last n positions, n <= tokens
  void forward(const Eigen::Ref<const RowMajorMatrix>& hidden, std::span<const TokenId> next_tokens,
               Index first_position, LatentCache& cache, Eigen::Ref<RowMajorMatrix> logits,
               Context& context, AttentionForm mode = AttentionForm::automatic,
               DecoderObserver* observer = nullptr) const {
    const PredictionStep step = {view_of(hidden), next_tokens,   first_position,
                                 &cache,          logits.rows(), mode};
    forward(std::span(&step, 1), logits, context, observer);
  }

  /// As forward(), but writes the states [sum of wanted, hidden_size] of the wanted positions
  /// before norm and head, which the next module of a chain takes, or this one again. They may be
  /// written where `hidden` of a step is read.
  void states(std::span<const PredictionStep> batch, Eigen::Ref<RowMajorMatrix> states,
              Context& context, DecoderObserver* observer = nullptr) const {
    require_matrix("states", mutable_view_of(states), check(batch), hidden_size());
    run(batch, context, observer, [&](MatrixView<float> x) {
      for (Index t = 0; t < x.rows; ++t)
        std::copy_n(x.row(t), x.cols, states.data() + t * states.outerStride());
    });
  }
  /// One text: states [n, hidden_size] of the last n positions.
  void states(const Eigen::Ref<const RowMajorMatrix>& hidden, std::span<const TokenId> next_tokens,
              Index first_position, LatentCache& cache, Eigen::Ref<RowMajorMatrix> states,
              Context& context, AttentionForm mode = AttentionForm::automatic,
              DecoderObserver* observer = nullptr) const {
    const PredictionStep step = {view_of(hidden), next_tokens,   first_position,
                                 &cache,          states.rows(), mode};
    this->states({&step, 1}, states, context, observer);
  }

  /// states [n, hidden_size] -> logits [n, vocab_size].
  void head(const Eigen::Ref<const RowMajorMatrix>& states, Eigen::Ref<RowMajorMatrix> logits,
            Context& context) const {
    require_matrix("states", view_of(states), logits.rows(), hidden_size());
    const Workspace::Scope scope(context.workspace());
    const auto x = context.workspace().take_matrix<float>(states.rows(), states.cols());
    for (Index t = 0; t < x.rows; ++t)
      std::copy_n(states.data() + t * states.outerStride(), x.cols, x.row(t));
    head_.normalise(x, context);
    head_.forward(x, mutable_view_of(logits), context);
  }

 private:
  // Returns the positions that are wanted.
  Index check(std::span<const PredictionStep> batch) const {
    Index wanted = 0;
    for (std::size_t s = 0; s < batch.size(); ++s) {
      const PredictionStep& step = batch[s];
      require(step.cache != nullptr, "prediction ", s, " has no cache");
      require_matrix("hidden", step.hidden, std::ssize(step.next_tokens), hidden_size());
      require(step.wanted >= 0 && step.wanted <= step.tokens(), "of ", step.tokens(), " positions ",
              step.wanted, " cannot be the last");
      embedding_.check(step.next_tokens);
      wanted += step.wanted;
    }
    return wanted;
  }

  // Calls sink(x [sum of wanted, hidden_size]) with what the layer makes of the wanted positions.
  template <class Sink>
  void run(std::span<const PredictionStep> batch, Context& context, DecoderObserver* observer,
           const Sink& sink) const {
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    LatentCache** const caches = workspace.take<LatentCache*>(std::ssize(batch));
    Index others = 0, wanted = 0;
    for (std::size_t s = 0; s < batch.size(); ++s) {
      caches[s] = batch[s].cache;
      others += others_of(batch[s], observer);
      wanted += batch[s].tokens() - others_of(batch[s], observer);
    }
    if (others + wanted == 0) return;
    CacheRollback<LatentCache> rollback({caches, batch.size()}, workspace);
    // Only the last `wanted` positions need an output; the others, which come first here, are just
    // appended to the caches.
    const auto x = workspace.take_matrix<float>(others + wanted, hidden_size());
    combine(batch, observer, x, context);
    layer_.append(x.row_range(0, others), plan(batch, observer, true, context),
                  {caches, batch.size()}, context);
    const auto last = x.row_range(others, wanted);
    layer_.forward(last, plan(batch, observer, false, context), {caches, batch.size()}, context,
                   observer);
    sink(observer ? gather_wanted(batch, last, workspace) : last);
    rollback.keep();
  }

  // Positions of a text that are appended only. An observer sees all.
  static Index others_of(const PredictionStep& step, const DecoderObserver* observer) noexcept {
    return observer ? 0 : step.tokens() - step.wanted;
  }

  // Calls visit(step, first, count) for the part of each text that is appended only, or for the
  // rest.
  template <class Visit>
  static void for_each_part(std::span<const PredictionStep> batch, const DecoderObserver* observer,
                            bool of_others, const Visit& visit) {
    for (const PredictionStep& step : batch) {
      const Index others = others_of(step, observer);
      if (of_others)
        visit(step, 0, others);
      else
        visit(step, others, step.tokens() - others);
    }
  }

  CallPlan plan(std::span<const PredictionStep> batch, const DecoderObserver* observer,
                bool of_others, Context& context) const {
    Sequence* const sequences = context.workspace().take<Sequence>(std::ssize(batch));
    Index tokens = 0;
    Sequence* next = sequences;
    for_each_part(batch, observer, of_others, [&](const PredictionStep& step, Index, Index count) {
      *next++ = {step.cache, count, step.mode};
      tokens += count;
    });
    Index* const positions = context.workspace().take<Index>(tokens);
    Index* position = positions;
    for_each_part(batch, observer, of_others,
                  [&](const PredictionStep& step, Index first, Index count) {
                    std::iota(position, position + count, step.first_position + first);
                    position += count;
                  });
    return layer_.attention().plan(tokens, {sequences, batch.size()},
                                   {.position_ids = {positions, static_cast<std::size_t>(tokens)}},
                                   context);
  }

  // -> x [tokens of all texts, hidden_size], those that are appended only first
  void combine(std::span<const PredictionStep> batch, const DecoderObserver* observer,
               MatrixView<float> x, Context& context) const {
    const Workspace::Scope scope(context.workspace());
    const Index hidden = hidden_size();
    const auto both = context.workspace().take_matrix<float>(x.rows, 2 * hidden);
    const auto embedded = both.col_range(hidden_first_ ? hidden : 0, hidden);
    const auto state = both.col_range(hidden_first_ ? 0 : hidden, hidden);
    Index row = 0;
    for (const bool of_others : {true, false})
      for_each_part(batch, observer, of_others,
                    [&](const PredictionStep& step, Index first, Index count) {
                      embedding_.forward(step.next_tokens.subspan(static_cast<std::size_t>(first),
                                                                  static_cast<std::size_t>(count)),
                                         embedded.row_range(row, count), context);
                      for (Index t = 0; t < count; ++t)
                        std::copy_n(step.hidden.row(first + t), hidden, state.row(row + t));
                      row += count;
                    });
    embedding_norm_.forward(embedded, context);
    hidden_norm_.forward(state, context);
    projection_.forward(both, x, context);
  }

  // The last `wanted` of each text's rows of x.
  static MatrixView<float> gather_wanted(std::span<const PredictionStep> batch,
                                         MatrixView<const float> x, Workspace& workspace) {
    Index wanted = 0, row = 0, end = 0;
    for (const PredictionStep& step : batch) wanted += step.wanted;
    const auto rows = workspace.take_matrix<float>(wanted, x.cols);
    for (const PredictionStep& step : batch) {
      end += step.tokens();
      for (Index t = end - step.wanted; t < end; ++t)
        std::copy_n(x.row(t), x.cols, rows.row(row++));
    }
    return rows;
  }

  Embedding embedding_;
  RmsNorm embedding_norm_;
  RmsNorm hidden_norm_;
  bool hidden_first_;
  Linear projection_;
  DecoderLayer layer_;
  Head head_;
};

}  // namespace mla

#endif  // MLA_MODEL_MULTI_TOKEN_PREDICTION_HPP_
