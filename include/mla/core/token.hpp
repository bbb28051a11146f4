#ifndef MLA_CORE_TOKEN_HPP_
#define MLA_CORE_TOKEN_HPP_

#include <cstdint>

#include "mla/core/error.hpp"  // refuses compilers and flags that cannot be used

namespace mla {

/// A token of a model's vocabulary. 32 bits, signed, as tensors of token ids have them.
using TokenId = std::int32_t;

}  // namespace mla

#endif  // MLA_CORE_TOKEN_HPP_
