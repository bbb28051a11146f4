#ifndef MLA_BINDINGS_C_CONTEXT_HPP_
#define MLA_BINDINGS_C_CONTEXT_HPP_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "mla/attention/call_plan.hpp"
#include "mla/attention/cost_model.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/eigen_executor.hpp"
#include "mla/core/executor.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/ops/context.hpp"

#include "handle.hpp"

struct mla_context : mla::c::Handle<mla::c::Kind::context> {
  mla_context(std::unique_ptr<mla::Executor> own_executor, const mla::simd::Kernels& kernels)
      : executor(std::move(own_executor)), context(*executor, kernels) {}

  std::unique_ptr<mla::Executor> executor;
  mla::Context context;
  // Of a call; kept, so that the next one allocates nothing.
  std::vector<mla::TextStep> steps;
  std::vector<mla::Sequence> sequences;
  std::vector<mla::c::InUse> states_in_use;  // or caches
};

namespace mla::c {

inline AttentionForm form_of(const char* name, mla_attention_form mode) {
  switch (mode) {
    case MLA_FORM_AUTOMATIC:
      return AttentionForm::automatic;
    case MLA_FORM_ABSORBED:
      return AttentionForm::absorbed;
    case MLA_FORM_DECOMPRESSED:
      return AttentionForm::decompressed;
  }
  throw_invalid(name, " is ", static_cast<int>(mode), ", which is no mla_attention_form");
}

/// Of "f32"; NULL is f32. Throws std::invalid_argument with the names that there are.
inline CacheFormat cache_format_of(const char* name) {
  if (!name) return CacheFormat::float32;
  std::string known;
  for (std::size_t i = 0; i < kCacheFormatCount; ++i) {
    if (kCacheFormats[i].name == name) return static_cast<CacheFormat>(i);
    known += (i > 0 ? ", " : "") + std::string(kCacheFormats[i].name);
  }
  throw_invalid("cache format ", name, " does not exist, there are ", known);
}

}  // namespace mla::c

#endif  // MLA_BINDINGS_C_CONTEXT_HPP_
