#ifndef MLA_MODEL_MULTI_TOKEN_PREDICTION_HPP_
#define MLA_MODEL_MULTI_TOKEN_PREDICTION_HPP_

#include <Eigen/Core>
#include <algorithm>
#include <numeric>
#include <span>

#include "mla/attention/context.hpp"
#include "mla/attention/latent_kv_cache.hpp"
#include "mla/attention/linear.hpp"
#include "mla/attention/rms_norm.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/model/decoder_layer.hpp"
#include "mla/model/decoder_weights.hpp"
#include "mla/model/embedding.hpp"
#include "mla/model/model_config.hpp"

namespace mla {

/// The module that a DeepSeek-V3 checkpoint has for multi-token prediction (technical report,
/// section 2.2): from the state of token t and the embedding of token t + 1 it predicts token
/// t + 2, by
///   x = eh_proj([enorm(embedding of token t + 1), hnorm(state of token t after model.norm)])
/// a decoder layer with a latent cache of its own, a norm and a head.
class MultiTokenPrediction {
 public:
  /// `weights` are views that must outlive the module. Throws std::invalid_argument naming the
  /// field or tensor that does not fit.
  MultiTokenPrediction(const ModelConfig& config, const MultiTokenPredictionWeights& weights)
      : embedding_(weights.embed_tokens),
        embedding_norm_(detail::make_norm("enorm", weights.enorm, config)),
        hidden_norm_(detail::make_norm("hnorm", weights.hnorm, config)),
        projection_(weights.eh_proj),
        layer_(config, config.num_hidden_layers, weights.layer),
        norm_(detail::make_norm("shared_head.norm", weights.shared_head_norm, config)),
        head_(weights.shared_head) {
    const Index hidden = config.hidden_size();
    check("embed_tokens", weights.embed_tokens, config.vocab_size, hidden);
    check("eh_proj", weights.eh_proj, hidden, 2 * hidden);
    check("shared_head.head", weights.shared_head, config.vocab_size, hidden);
  }

  Index vocab_size() const noexcept { return embedding_.vocab_size(); }
  Index hidden_size() const noexcept { return embedding_.hidden_size(); }

  /// Continues `cache` by positions first_position, first_position + 1, ... and writes what follows
  /// the last ones of them.
  ///   hidden       [tokens, hidden_size] state of these positions, after model.norm
  ///   next_tokens  [tokens] token after each of these positions
  ///   logits       [n, vocab_size] of the last n positions, n <= tokens
  /// Positions in `cache` must rise; ones that it lacks change a prediction, but harm nothing. The
  /// call takes memory for all its tokens, so cut a long prompt into chunks: the result is the
  /// same to the last bit. Throws as DecoderModel::forward, with the cache as it was.
  template <StorageElement T>
  void forward(const Eigen::Ref<const RowMajorMatrix>& hidden, std::span<const TokenId> next_tokens,
               Index first_position, LatentKVCache<T>& cache, Eigen::Ref<RowMajorMatrix> logits,
               Context& context, Mode mode = Mode::automatic,
               DecoderObserver* observer = nullptr) const {
    const Index tokens = static_cast<Index>(next_tokens.size());
    require(hidden.rows() == tokens && hidden.cols() == hidden_size(), "hidden must have shape [",
            tokens, ", ", hidden_size(), "], got [", hidden.rows(), ", ", hidden.cols(), "]");
    require(logits.rows() <= tokens && logits.cols() == vocab_size(), "logits must have at most ",
            tokens, " rows of vocab_size ", vocab_size(), ", got [", logits.rows(), ", ",
            logits.cols(), "]");
    embedding_.check(next_tokens);
    if (tokens == 0) return;
    const Workspace::Scope scope(context.workspace());
    const auto x = context.workspace().template take_matrix<float>(tokens, hidden_size());
    combine({hidden.data(), tokens, hidden_size(), hidden.outerStride()}, next_tokens, x, context);

    Index* first = context.workspace().template take<Index>(tokens);
    std::iota(first, first + tokens, first_position);
    const std::span<const Index> positions(first, static_cast<std::size_t>(tokens));
    // What follows the others nobody asks for: the last ones only need to see them.
    const Index others = observer ? 0 : tokens - logits.rows();
    const auto place = static_cast<std::size_t>(others);
    const Index past = cache.size();
    layer_.append(x.row_range(0, others), cache, context, {.position_ids = positions.first(place)});
    const auto rest = x.row_range(others, tokens - others);
    try {
      layer_.forward(rest, cache, context, {.mode = mode, .position_ids = positions.subspan(place)},
                     observer);
    } catch (...) {
      cache.truncate(past);
      throw;
    }

    const auto last = rest.row_range(rest.rows - logits.rows(), logits.rows());
    norm_.forward(last, context);
    head_.forward(last, {logits.data(), logits.rows(), logits.cols(), logits.outerStride()},
                  context);
  }

 private:
  static void check(const char* name, const WeightView& weight, Index rows, Index cols) {
    require(weight.rows == rows && weight.cols == cols, "tensor ", name, " must have shape [", rows,
            ", ", cols, "], got [", weight.rows, ", ", weight.cols, "]");
  }

  // -> x [tokens, hidden_size]
  void combine(MatrixView<const float> hidden, std::span<const TokenId> next_tokens,
               MatrixView<float> x, Context& context) const {
    const Workspace::Scope scope(context.workspace());
    const auto both = context.workspace().take_matrix<float>(x.rows, 2 * hidden_size());
    const auto embedded = both.col_range(0, hidden_size());
    const auto state = both.col_range(hidden_size(), hidden_size());
    embedding_.forward(next_tokens, embedded, context);
    for (Index t = 0; t < x.rows; ++t) std::copy_n(hidden.row(t), hidden_size(), state.row(t));
    embedding_norm_.forward(embedded, context);
    hidden_norm_.forward(state, context);
    projection_.forward(both, x, context);
  }

  Embedding embedding_;
  RmsNorm embedding_norm_;
  RmsNorm hidden_norm_;
  Linear projection_;
  DecoderLayer layer_;
  RmsNorm norm_;
  Linear head_;
};

}  // namespace mla

#endif  // MLA_MODEL_MULTI_TOKEN_PREDICTION_HPP_
