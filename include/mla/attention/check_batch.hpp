#ifndef MLA_ATTENTION_CHECK_BATCH_HPP_
#define MLA_ATTENTION_CHECK_BATCH_HPP_

#include <span>
#include <string_view>

#include "mla/attention/cached_tokens.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"

namespace mla {

/// Throws std::invalid_argument unless the rows of `list` rise and are below `end`. `token` is the
/// token that sees them, for the message.
inline void require_selection(std::span<const Index> list, Index end, Index token) {
  Index last = -1;
  for (const Index row : list) {
    require(row >= 0 && row < end, "selection of token ", token, " has row ", row,
            ", but the token sees rows 0 to ", end - 1);
    require(row != last, "selection of token ", token, " has row ", row, " twice");
    require(row > last, "selection of token ", token, " must rise: row ", row, " comes after ",
            last);
    last = row;
  }
}

/// Throws std::invalid_argument unless keys of both are rotated alike. `name`, whose cache it is,
/// is for the message.
template <class... Name>
void require_rotary(const RotarySettings& layer, const RotarySettings& cache, const Name&... name) {
  if (layer.rotates_as(cache)) [[likely]]
    return;
  layer.for_each_field([&](std::string_view field, std::string_view wanted) {
    cache.for_each_field([&](std::string_view same, std::string_view got) {
      require(same != field || got == wanted, "the cache", name..., " was made with ", field, " ",
              got, ", this layer has ", wanted);
    });
  });
}

/// Throws std::invalid_argument unless the cache fits a layer of this configuration:
/// require_cache(config, cache, " of sequence ", s).
template <class... Name>
void require_cache(const AttentionConfig& config, const LatentCache& cache, const Name&... name) {
  require(cache.kv_lora_rank() == config.kv_lora_rank &&
              cache.rope_key_width() == config.rope_key_width(),
          "the cache", name..., " has rows of ", cache.kv_lora_rank(), " + ",
          cache.rope_key_width(), " elements (latent + rotary keys), this layer needs ",
          config.kv_lora_rank, " + ", config.rope_key_width());
  const Index width = cache.index_keys() ? cache.index_keys()->layout().width() : 0;
  const Index needed = config.indexer.key_width();
  require(needed == 0 || needed == width, "the cache", name..., " has index keys of ", width,
          " numbers, the indexer of this layer needs ", needed);
  require_rotary(config.rotary(), cache.rotary(), name...);
}

/// Throws std::invalid_argument unless the shares of a call fit a layer of this configuration and
/// cover tokens of [0, tokens) one after the other.
inline void check_batch(const AttentionConfig& config, std::span<const CachedTokens> batch,
                        Index tokens) {
  Index end = 0;
  for (std::size_t s = 0; s < batch.size(); ++s) {
    const CachedTokens& share = batch[s];
    require(share.cache != nullptr, "sequence ", s, " has no cache");
    require_cache(config, *share.cache, " of sequence ", s);
    require(share.tokens >= 0 && share.first_token >= end && share.first_token <= tokens &&
                share.tokens <= tokens - share.first_token,
            "sequence ", s, " has tokens ", share.first_token, " to ",
            share.first_token + share.tokens, " of a call of ", tokens, ", where those from ", end,
            " on are left");
    require(share.uncached >= 0 && share.uncached <= share.tokens, "sequence ", s, " has ",
            share.uncached, " uncached tokens of ", share.tokens);
    require(share.later >= 0 && share.later <= share.cache->size(), "sequence ", s, " has ",
            share.later, " tokens after it in a cache of ", share.cache->size());
    for (Index i = 0; share.selected && i < share.tokens; ++i)
      require_selection(share.selected[i], share.cache->size(), share.first_token + i);
    end = share.first_token + share.tokens;
  }
}

}  // namespace mla

#endif  // MLA_ATTENTION_CHECK_BATCH_HPP_
