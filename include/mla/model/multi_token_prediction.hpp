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
      : embedding_(weights.embed_tokens),
        embedding_norm_(detail::make_norm("enorm", weights.enorm, config)),
        hidden_norm_(detail::make_norm("hnorm", weights.hnorm, config)),
        hidden_first_(weights.hidden_first),
        projection_(weights.eh_proj),
        layer_(config, config.num_hidden_layers + depth, weights.layer),
        head_(weights.shared_head_norm
                  ? detail::make_norm("shared_head.norm", weights.shared_head_norm, config)
                  : RmsNorm(),
              weights.shared_head) {
    const Index hidden = config.hidden_size();
    require_shape("embed_tokens", weights.embed_tokens, config.vocab_size, hidden);
    require_shape("eh_proj", weights.eh_proj, hidden, 2 * hidden);
    require_shape("shared_head.head", weights.shared_head, config.vocab_size, hidden);
  }

  Index vocab_size() const noexcept { return embedding_.vocab_size(); }
  Index hidden_size() const noexcept { return embedding_.hidden_size(); }

  /// Continues `cache` by positions first_position, first_position + 1, ... and writes what follows
  /// the last ones of them.
  ///   hidden       [tokens, hidden_size] state of these positions
  ///   next_tokens  [tokens] token after each of these positions
  ///   logits       [n, vocab_size] of the last n positions, n <= tokens
  /// Positions in `cache` must rise; ones that it lacks change a prediction, but harm nothing. The
  /// call takes memory for all its tokens, so cut a long prompt into chunks: the result is the
  /// same to the last bit. Throws as DecoderModel::forward, with the cache as it was.
  void forward(const Eigen::Ref<const RowMajorMatrix>& hidden, std::span<const TokenId> next_tokens,
               Index first_position, LatentCache& cache, Eigen::Ref<RowMajorMatrix> logits,
               Context& context, Mode mode = Mode::automatic,
               DecoderObserver* observer = nullptr) const {
    require(logits.cols() == vocab_size(), "logits must have vocab_size ", vocab_size(),
            " columns, got ", logits.cols());
    run(hidden, next_tokens, first_position, cache, logits.rows(), context, mode, observer,
        [&](MatrixView<float> x) {
          head_.normalise(x, context);
          head_.forward(x, mutable_view_of(logits), context);
        });
  }

  /// As forward(), but writes the states [n, hidden_size] of the last n positions before norm and
  /// head, which the next module of a chain takes.
  void states(const Eigen::Ref<const RowMajorMatrix>& hidden, std::span<const TokenId> next_tokens,
              Index first_position, LatentCache& cache, Eigen::Ref<RowMajorMatrix> states,
              Context& context, Mode mode = Mode::automatic,
              DecoderObserver* observer = nullptr) const {
    require(states.cols() == hidden_size(), "states must have hidden_size ", hidden_size(),
            " columns, got ", states.cols());
    run(hidden, next_tokens, first_position, cache, states.rows(), context, mode, observer,
        [&](MatrixView<float> x) {
          for (Index t = 0; t < x.rows; ++t)
            std::copy_n(x.row(t), x.cols, states.data() + t * states.outerStride());
        });
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
  // Calls sink(x [wanted, hidden_size]) with what the layer makes of the last positions.
  template <class Sink>
  void run(const Eigen::Ref<const RowMajorMatrix>& hidden, std::span<const TokenId> next_tokens,
           Index first_position, LatentCache& cache, Index wanted, Context& context, Mode mode,
           DecoderObserver* observer, const Sink& sink) const {
    const Index tokens = std::ssize(next_tokens);
    require(hidden.rows() == tokens && hidden.cols() == hidden_size(), "hidden must have shape [",
            tokens, ", ", hidden_size(), "], got [", hidden.rows(), ", ", hidden.cols(), "]");
    require(wanted <= tokens, "of ", tokens, " positions ", wanted, " cannot be the last");
    embedding_.check(next_tokens);
    if (tokens == 0) return;
    Workspace& workspace = context.workspace();
    const Workspace::Scope scope(workspace);
    const auto x = workspace.take_matrix<float>(tokens, hidden_size());
    combine({hidden.data(), tokens, hidden_size(), hidden.outerStride()}, next_tokens, x, context);
    Index* first = workspace.take<Index>(tokens);
    std::iota(first, first + tokens, first_position);
    const std::span<const Index> positions(first, static_cast<std::size_t>(tokens));

    // Only the last `wanted` positions need an output; the others are just appended to the cache.
    const Index others = observer ? 0 : tokens - wanted;
    const auto place = static_cast<std::size_t>(others);
    LatentCache* const caches[] = {&cache};
    CacheRollback<LatentCache> rollback(caches, workspace);
    layer_.append(x.row_range(0, others), plan(cache, positions.first(place), mode, context),
                  caches, context);
    layer_.forward(x.row_range(others, tokens - others),
                   plan(cache, positions.subspan(place), mode, context), caches, context, observer);
    sink(x.row_range(tokens - wanted, wanted));
    rollback.keep();
  }

  CallPlan plan(LatentCache& cache, std::span<const Index> positions, Mode mode,
                Context& context) const {
    const Sequence sequence = {&cache, std::ssize(positions)};
    return layer_.attention().plan(std::ssize(positions), std::span(&sequence, 1),
                                   {.mode = mode, .position_ids = positions}, context);
  }

  // -> x [tokens, hidden_size]
  void combine(MatrixView<const float> hidden, std::span<const TokenId> next_tokens,
               MatrixView<float> x, Context& context) const {
    const Workspace::Scope scope(context.workspace());
    const auto both = context.workspace().take_matrix<float>(x.rows, 2 * hidden_size());
    const auto embedded = both.col_range(hidden_first_ ? hidden_size() : 0, hidden_size());
    const auto state = both.col_range(hidden_first_ ? 0 : hidden_size(), hidden_size());
    embedding_.forward(next_tokens, embedded, context);
    for (Index t = 0; t < x.rows; ++t) std::copy_n(hidden.row(t), hidden_size(), state.row(t));
    embedding_norm_.forward(embedded, context);
    hidden_norm_.forward(state, context);
    projection_.forward(both, x, context);
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
