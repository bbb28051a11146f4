#ifndef MLA_MLA_HPP_
#define MLA_MLA_HPP_

/// Multi-head Latent Attention: the layer, its caches, and what they need; only Eigen and the
/// standard library. Apart from it: mla/attention/reference.hpp (the specification in plain Eigen),
/// mla/baseline/ (MHA, GQA and MQA to compare with), mla/io/ and mla/model/ (checkpoints and whole
/// decoders; need nlohmann/json), mla/text/ (tokenizers; needs PCRE2).

#include "mla/attention/absorbed_attention.hpp"
#include "mla/attention/decompressed_attention.hpp"
#include "mla/attention/merge_attention.hpp"
#include "mla/attention/multihead_latent_attention.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"

#endif  // MLA_MLA_HPP_
