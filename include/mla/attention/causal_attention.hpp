#ifndef MLA_ATTENTION_CAUSAL_ATTENTION_HPP_
#define MLA_ATTENTION_CAUSAL_ATTENTION_HPP_

// Causal attention over latent caches in its two forms, which compute the same, and what puts parts
// of it together.

#include "mla/attention/absorbed_attention.hpp"      // IWYU pragma: export
#include "mla/attention/decompressed_attention.hpp"  // IWYU pragma: export
#include "mla/attention/merge_attention.hpp"         // IWYU pragma: export

#endif  // MLA_ATTENTION_CAUSAL_ATTENTION_HPP_
