// Bodies of MultiheadLatentAttention; see core/bodies.hpp.

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "mla/attention/absorbed_attention.hpp"
#include "mla/attention/cache_rollback.hpp"
#include "mla/attention/check_batch.hpp"
#include "mla/attention/decompressed_attention.hpp"
#include "mla/attention/multihead_latent_attention.hpp"
#include "mla/core/error.hpp"

namespace mla {

namespace detail {

inline std::span<LatentCache* const> caches_of(std::span<const Sequence> batch,
                                               Workspace& workspace) {
  LatentCache** const caches = workspace.take<LatentCache*>(std::ssize(batch));
  for (std::size_t s = 0; s < batch.size(); ++s) caches[s] = batch[s].cache;
  return {caches, batch.size()};
}

// The call is done: keeps what it appended, less what windows hide from here on. All caches or
// none, if memory runs out.
[[gnu::cold]] inline void slide(const CallPlan& plan, std::span<LatentCache* const> caches,
                                CacheRollback<LatentCache>& rollback) {
  std::vector<std::pair<LatentCache*, LatentCache>> slid;
  for (std::size_t s = 0; s < caches.size(); ++s) {
    const CallPlan::Share& share = plan.shares()[s];
    if (caches[s]->slides_in_place(share.window, share.past)) continue;
    slid.emplace_back(caches[s], caches[s]->fork(caches[s]->size()));
    slid.back().second.slide(share.window, share.past);
  }
  rollback.keep();
  for (std::size_t s = 0; s < caches.size(); ++s) {
    const CallPlan::Share& share = plan.shares()[s];
    if (caches[s]->slides_in_place(share.window, share.past))
      caches[s]->slide(share.window, share.past);
  }
  for (auto& [cache, content] : slid) *cache = std::move(content);
}

}  // namespace detail

MLA_BODY MultiheadLatentAttention::MultiheadLatentAttention(const AttentionConfig& config,
                                                            const AttentionWeights& weights)
    : config_((config.validate(), weights.validate(config), config)),
      rotary_(config),
      query_(config, weights),
      indexer_(config, weights),
      compression_(config, weights),
      decompression_(config, weights),
      output_(weights.o_proj, weights.o_proj_bias) {}

MLA_BODY void MultiheadLatentAttention::forward(const Eigen::Ref<const RowMajorMatrix>& x,
                                                std::span<const Sequence> batch,
                                                Eigen::Ref<RowMajorMatrix> out, Context& context,
                                                const ForwardOptions& options) const {
  check_call(view_of(x));
  require_matrix("out", mutable_view_of(out), x.rows(), x.cols());
  Workspace& workspace = context.workspace();
  const Workspace::Scope scope(workspace);
  const CallPlan call = plan(x.rows(), batch, options, context);
  const std::span<LatentCache* const> caches = detail::caches_of(batch, workspace);
  CacheRollback<LatentCache> rollback(caches, workspace);
  if (!call.has_padding()) {
    forward(call, caches, view_of(x), mutable_view_of(out), context);
  } else {
    const auto real = workspace.take_matrix<float>(call.tokens(), x.cols());
    call.gather(view_of(x), real);
    forward(call, caches, real, real, context);
    call.scatter(real, mutable_view_of(out));
  }
  detail::slide(call, caches, rollback);
}

MLA_BODY void MultiheadLatentAttention::append(const Eigen::Ref<const RowMajorMatrix>& x,
                                               LatentCache& cache, Context& context,
                                               const ForwardOptions& options) const {
  check_call(view_of(x));
  Workspace& workspace = context.workspace();
  const Workspace::Scope scope(workspace);
  const Sequence sequence = {&cache, x.rows()};
  const CallPlan call = plan(x.rows(), std::span(&sequence, 1), options, context);
  LatentCache* const caches[] = {&cache};
  const auto real = workspace.take_matrix<float>(call.tokens(), x.cols());
  call.gather(view_of(x), real);
  CacheRollback<LatentCache> rollback(caches, workspace);
  append(call, caches, real, context);
  rollback.keep();
}

MLA_BODY CallPlan MultiheadLatentAttention::plan(Index tokens, std::span<const Sequence> batch,
                                                 const ForwardOptions& options,
                                                 Context& context) const {
  return {config_, rotary_, tokens, batch, options, context.workspace()};
}

MLA_BODY void MultiheadLatentAttention::forward(const CallPlan& plan,
                                                std::span<LatentCache* const> caches,
                                                MatrixView<const float> x, MatrixView<float> out,
                                                Context& context,
                                                std::span<AttentionMass* const> masses,
                                                IndexSelection* selection) const {
  check_call(x);
  require_matrix("out", out, plan.tokens(), config_.hidden_size);
  require(masses.empty() || masses.size() == caches.size(), "got ", masses.size(), " masses for ",
          caches.size(), " sequences");
  require(masses.empty() || !config_.indexer,
          "attention is not counted where an indexer selects the keys");
  if (plan.tokens() == 0) return;
  Workspace& workspace = context.workspace();
  const Workspace::Scope scope(workspace);
  const Index tokens = plan.tokens(), heads = config_.num_attention_heads;
  std::optional<IndexSelection> own;
  selection = selection_of(plan, selection, own, context);
  append(plan, caches, x, context);
  const auto queries = workspace.take_matrix<float>(tokens, heads * config_.qk_head_dim());
  {
    const Workspace::Scope queries_scope(workspace);
    const auto latent = query_.compress(x, context);
    query_.expand(latent, plan.rotary(), queries, context);
    if (indexer_) indexer_.select(x, latent, plan, caches, *selection, context);
  }
  const auto values = workspace.take_matrix<float>(tokens, heads * config_.v_head_dim);
  const auto log_sum_exp =
      masses.empty() ? MatrixView<float>() : workspace.take_matrix<float>(tokens, heads);
  attend(plan, caches, queries, values, log_sum_exp, selection, context);
  if (!masses.empty()) count(plan, caches, queries, log_sum_exp, masses, context);
  output_.forward(values, out, context);
}

MLA_BODY void MultiheadLatentAttention::append(const CallPlan& plan,
                                               std::span<LatentCache* const> caches,
                                               MatrixView<const float> x, Context& context) const {
  check_call(x);
  require_matrix("x", x, plan.tokens(), config_.hidden_size);
  require(caches.size() == plan.shares().size(), "the plan has ", plan.shares().size(),
          " sequences, got ", caches.size(), " caches");
  for (std::size_t s = 0; s < caches.size(); ++s)
    require_cache(config_, *caches[s], " of sequence ", s);
  if (plan.tokens() == 0) return;
  const Workspace::Scope scope(context.workspace());
  const auto rows =
      context.workspace().take_matrix<float>(plan.tokens(), config_.cache_row_width());
  compression_.forward(x, plan.rotary(), rows, context);
  MatrixView<float> index_keys;
  if (indexer_) {
    index_keys = context.workspace().take_matrix<float>(plan.tokens(), config_.indexer.key_width());
    indexer_.make_keys(x, plan.rotary(), index_keys, context);
  }
  plan.append(rows, caches, context.kernels(), index_keys);
}

MLA_BODY void MultiheadLatentAttention::check_call(MatrixView<const float> x) const {
  require(bool(compression_), "this layer was moved from");
  require(x.cols == config_.hidden_size, "x must have hidden_size ", config_.hidden_size,
          " columns, got ", x.cols);
}

MLA_BODY AttentionForm MultiheadLatentAttention::mode_of(AttentionForm wanted,
                                                         const CachedTokens& sequence,
                                                         const Context& context) const noexcept {
  if (wanted != AttentionForm::automatic) return wanted;
  if (sequence.each_its_own()) return AttentionForm::absorbed;
  return choose_mode(
      config_, sequence.past(), sequence.tokens,
      attention_speed(context.kernels(), decompression_.format(), sequence.cache->format()));
}

MLA_BODY IndexSelection* MultiheadLatentAttention::selection_of(const CallPlan& plan,
                                                                IndexSelection* shared,
                                                                std::optional<IndexSelection>& own,
                                                                Context& context) const {
  if (!config_.indexer) return nullptr;
  IndexSelection* selection = shared;
  if (!selection) selection = &own.emplace(config_, plan, context.workspace());
  require(indexer_ || selection->selected(),
          "this layer takes the selection of a layer with an indexer, which must come before it in "
          "the same call");
  return selection;
}

MLA_BODY std::span<CachedTokens> MultiheadLatentAttention::tokens_of(
    const CallPlan& plan, std::span<LatentCache* const> caches, const IndexSelection* selection,
    AttentionForm* modes, Context& context) const {
  CachedTokens* const tokens = context.workspace().take<CachedTokens>(2 * std::ssize(caches));
  std::size_t count = 0;
  for (std::size_t s = 0; s < caches.size(); ++s) {
    const CallPlan::Share& share = plan.shares()[s];
    const CachedTokens all = plan.cached(s, *caches[s]);
    const Index dense = selection ? selection->dense_tokens(share) : share.tokens;
    if (dense > 0 || share.tokens == 0) {
      tokens[count] = all.first(dense);
      modes[count] = mode_of(share.mode, tokens[count], context);
      ++count;
    }
    if (dense == share.tokens) continue;
    tokens[count] = all.last(share.tokens - dense);
    tokens[count].selected = selection->lists(share.first_token + dense);
    modes[count++] = AttentionForm::absorbed;
  }
  return {tokens, count};
}

MLA_BODY void MultiheadLatentAttention::attend(
    const CallPlan& plan, std::span<LatentCache* const> caches, MatrixView<const float> queries,
    MatrixView<float> values, MatrixView<float> log_sum_exp, const IndexSelection* selection,
    Context& context) const {
  AttentionForm* const modes = context.workspace().take<AttentionForm>(2 * std::ssize(caches));
  const std::span<CachedTokens> sequences = tokens_of(plan, caches, selection, modes, context);
  const std::size_t count = sequences.size();
  for (std::size_t s = 0, end; s < count; s = end) {
    const Index first = sequences[s].first_token;
    Index tokens = 0;
    for (end = s; end < count && modes[end] == modes[s]; ++end) {
      sequences[end].first_token -= first;
      tokens += sequences[end].tokens;
    }
    if (tokens > 0)
      attend_run(modes[s], sequences.subspan(s, end - s), queries.row_range(first, tokens),
                 values.row_range(first, tokens),
                 log_sum_exp.data ? log_sum_exp.row_range(first, tokens) : log_sum_exp, context);
  }
}

MLA_BODY void MultiheadLatentAttention::attend_run(
    AttentionForm mode, std::span<const CachedTokens> batch, MatrixView<const float> queries,
    MatrixView<float> values, MatrixView<float> log_sum_exp, Context& context) const {
  if (mode == AttentionForm::decompressed)
    return DecompressedAttention(config_, softmax_scale(), decompression_, &rotary_)
        .forward(batch, queries, values, context, log_sum_exp);
  const Workspace::Scope scope(context.workspace());
  const Index heads = config_.num_attention_heads;
  const auto latent_queries = context.workspace().take_matrix<float>(
      queries.rows, heads * (config_.kv_lora_rank + config_.qk_rope_head_dim));
  const auto latent_values =
      context.workspace().take_matrix<float>(queries.rows, heads * config_.kv_lora_rank);
  decompression_.absorb(queries, latent_queries, context);
  AbsorbedAttention(config_, softmax_scale(), &rotary_)
      .forward(batch, latent_queries, latent_values, context, log_sum_exp);
  decompression_.project_values(latent_values, values, context);
}

MLA_BODY void MultiheadLatentAttention::count(const CallPlan& plan,
                                              std::span<LatentCache* const> caches,
                                              MatrixView<const float> queries,
                                              MatrixView<const float> log_sum_exp,
                                              std::span<AttentionMass* const> masses,
                                              Context& context) const {
  const Index width = config_.kv_lora_rank + config_.qk_rope_head_dim;
  for (std::size_t s = 0; s < masses.size(); ++s) {
    if (!masses[s]) continue;
    const Workspace::Scope scope(context.workspace());
    CachedTokens tokens = plan.cached(s, *caches[s]);
    const auto latent_queries =
        context.workspace().take_matrix<float>(tokens.tokens, config_.num_attention_heads * width);
    decompression_.absorb(queries.row_range(tokens.first_token, tokens.tokens), latent_queries,
                          context);
    const auto sums = log_sum_exp.row_range(tokens.first_token, tokens.tokens);
    masses[s]->add(config_, softmax_scale(), rotary_, tokens, latent_queries, sums, context);
  }
}

}  // namespace mla
