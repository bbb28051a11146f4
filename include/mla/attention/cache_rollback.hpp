#ifndef MLA_ATTENTION_CACHE_ROLLBACK_HPP_
#define MLA_ATTENTION_CACHE_ROLLBACK_HPP_

#include <algorithm>
#include <cstddef>
#include <span>

#include "mla/core/tensor.hpp"
#include "mla/core/workspace.hpp"

namespace mla {

/// Truncates caches on destruction to the tokens that they had when it was made, unless keep() was
/// called: what makes a call that throws leave its caches unchanged.
template <class Cache>
class CacheRollback {
 public:
  /// `caches` must outlive the object; `workspace` holds their sizes until its scope ends.
  CacheRollback(std::span<Cache* const> caches, Workspace& workspace)
      : caches_(caches), sizes_(workspace.take<Index>(std::ssize(caches))) {
    for (std::size_t i = 0; i < caches.size(); ++i) sizes_[i] = caches[i]->size();
  }
  [[gnu::cold]] ~CacheRollback() {  // NOLINT(bugprone-exception-escape): there are never fewer
                                    // tokens
    if (kept_) return;
    for (std::size_t i = 0; i < caches_.size(); ++i)
      caches_[i]->truncate(std::min(sizes_[i], caches_[i]->size()));
  }
  CacheRollback(const CacheRollback&) = delete;
  CacheRollback& operator=(const CacheRollback&) = delete;

  void keep() noexcept { kept_ = true; }

 private:
  std::span<Cache* const> caches_;
  Index* sizes_;
  bool kept_ = false;
};

}  // namespace mla

#endif  // MLA_ATTENTION_CACHE_ROLLBACK_HPP_
