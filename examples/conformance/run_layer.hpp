#ifndef MLA_EXAMPLES_CONFORMANCE_RUN_LAYER_HPP_
#define MLA_EXAMPLES_CONFORMANCE_RUN_LAYER_HPP_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention_case.hpp"

#include "mla/attention/latent_cache.hpp"
#include "mla/attention/multihead_latent_attention.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/simd/kernels.hpp"

namespace mla::conformance {

namespace detail {

// Rows of a call, sequence after sequence, out of or back into rows of the case.
struct CallRows {
  const AttentionCase& layer;
  Index first = 0;   // token of each sequence
  Index tokens = 0;  // of each sequence

  // copy(row of the call, row of the case)
  template <class Copy>
  void for_each(const Copy& copy) const {
    for (Index s = 0; s < layer.sequences; ++s)
      for (Index t = 0; t < tokens; ++t) copy(s * tokens + t, s * layer.tokens + first + t);
  }

  template <class T>
  std::vector<T> gather(const std::vector<T>& of_case) const {
    std::vector<T> result;
    if (of_case.empty()) return result;
    for_each([&](Index, Index row) { result.push_back(of_case[static_cast<std::size_t>(row)]); });
    return result;
  }
};

inline void run_call(const MultiheadLatentAttention& attention, const CallRows& rows,
                     AttentionForm mode, std::vector<LatentCache>& caches, Context& context,
                     RowMajorMatrix& output) {
  const Index count = rows.layer.sequences * rows.tokens;
  RowMajorMatrix x(count, output.cols()), out(count, output.cols());
  rows.for_each([&](Index of_call, Index of_case) {
    x.row(of_call) = rows.layer.hidden_states.row(of_case);
  });
  const std::vector<Index> positions = rows.gather(rows.layer.position_ids);
  const std::vector<std::uint8_t> mask = rows.gather(rows.layer.attention_mask);
  std::vector<Sequence> batch;
  for (auto& cache : caches) batch.push_back({&cache, rows.tokens});
  attention.forward(x, batch, out, context,
                    {.mode = mode, .position_ids = positions, .attention_mask = mask});
  rows.for_each([&](Index of_call, Index of_case) { output.row(of_case) = out.row(of_call); });
}

// A cache has a row for each token that is not padding.
inline void read_cache(const AttentionCase& layer, Index sequence, const LatentCache& cache,
                       LayerResult& result) {
  std::vector<Index> rows;
  for (Index row = sequence * layer.tokens; row < (sequence + 1) * layer.tokens; ++row)
    if (layer.is_token(row)) rows.push_back(row);
  if (cache.size() != std::ssize(rows))
    throw_runtime("the cache of sequence ", sequence, " has ", cache.size(), " rows for ",
                  rows.size(), " tokens");
  const Index rank = layer.config.kv_lora_rank;
  RowMajorMatrix values(1, cache.layout().width());
  for (Index i = 0; i < cache.size(); ++i) {
    const Index row = rows[static_cast<std::size_t>(i)];
    info_of(cache.format()).widen(cache.layout(), cache.row(i), values.data());
    result.latent.row(row) = values.leftCols(rank);
    result.k_pe.row(row) = values.rightCols(layer.config.rope_key_width());
  }
}

}  // namespace detail

/// What the library makes of a case: all its calls, the sequences of each as one batch.
inline LayerResult run_layer(const AttentionCase& layer, AttentionForm mode, CacheFormat cache,
                             const simd::Kernels& kernels) {
  const MultiheadLatentAttention attention(layer.config, layer.weights->views());
  Context context(kernels);
  std::vector<LatentCache> caches;
  for (Index s = 0; s < layer.sequences; ++s) caches.emplace_back(layer.config, cache);
  LayerResult result(layer.config, layer.rows());
  Index first = 0;
  for (const Index tokens : layer.calls) {
    detail::run_call(attention, {layer, first, tokens}, mode, caches, context, result.output);
    first += tokens;
  }
  for (Index s = 0; s < layer.sequences; ++s)
    detail::read_cache(layer, s, caches[static_cast<std::size_t>(s)], result);
  return result;
}

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_RUN_LAYER_HPP_
