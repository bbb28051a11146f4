#ifndef MLA_MLA_HPP_
#define MLA_MLA_HPP_

/// Multi-head Latent Attention: everything that needs only Eigen and the standard library.
/// Reading checkpoints is in mla/io/ (needs nlohmann/json).

#include "mla/attention/multihead_latent_attention.hpp"
#include "mla/attention/reference.hpp"
#include "mla/baseline/grouped_query_attention.hpp"
#include "mla/core/config.hpp"
#include "mla/core/tensor.hpp"

#endif  // MLA_MLA_HPP_
