#ifndef MLA_OPS_CONTEXT_HPP_
#define MLA_OPS_CONTEXT_HPP_

#include "mla/core/default_executor.hpp"
#include "mla/core/error.hpp"
#include "mla/core/executor.hpp"
#include "mla/core/workspace.hpp"
#include "mla/simd/kernels.hpp"

namespace mla {

/// What a forward pass runs on: threads, instruction set and scratch memory. Keep one for each
/// thread that calls the library, from step to step: its scratch memory grows in the first calls
/// and is used again afterwards. Layers may share it; two calls at the same time may not.
class Context {
 public:
  /// Runs on the DefaultExecutor, with the best kernels of this machine.
  Context(DefaultExecutor executor = {})  // NOLINT(google-explicit-constructor)
      : Context(executor.get()) {}

  /// `executor` must outlive the context. `Context(executor, simd::kernels(Arithmetic::bfloat16))`
  /// multiplies by weights and caches of bfloat16 with dot products of bfloat16 where the machine
  /// has them: several times as fast, and less exact (see simd::Arithmetic). Fewer instructions
  /// than the machine has, for comparison: `Context(executor, simd::kernels_for(simd::Isa::avx2))`.
  /// Throws std::invalid_argument for an executor whose concurrency() is below 1.
  explicit Context(Executor& executor, const simd::Kernels& kernels = simd::kernels())
      : executor_(&executor), kernels_(&kernels) {
    require(executor.concurrency() >= 1, "an executor needs at least 1 thread, got ",
            executor.concurrency());
  }
  explicit Context(const simd::Kernels& kernels, DefaultExecutor executor = {})
      : Context(executor.get(), kernels) {}

  Executor& executor() const noexcept { return *executor_; }
  const simd::Kernels& kernels() const noexcept { return *kernels_; }
  Workspace& workspace() noexcept { return workspace_; }

 private:
  Executor* executor_;
  const simd::Kernels* kernels_;
  Workspace workspace_;
};

}  // namespace mla

#endif  // MLA_OPS_CONTEXT_HPP_
