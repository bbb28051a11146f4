#ifndef MLA_CORE_OPENMP_EXECUTOR_HPP_
#define MLA_CORE_OPENMP_EXECUTOR_HPP_

#ifndef _OPENMP
#error "mla/core/openmp_executor.hpp needs OpenMP: compile with -fopenmp"
#endif

#include <omp.h>

#include "mla/core/error.hpp"
#include "mla/core/executor.hpp"

namespace mla {

/// Runs tasks on OpenMP threads.
class OpenMpExecutor final : public Executor {
 public:
  /// As many threads as OpenMP would take (OMP_NUM_THREADS).
  OpenMpExecutor() : OpenMpExecutor(omp_get_max_threads()) {}

  /// Throws std::invalid_argument if `threads` is below 1.
  explicit OpenMpExecutor(int threads) : threads_(threads) {
    require(threads >= 1, "an executor needs at least 1 thread, got ", threads);
  }

  Index concurrency() const noexcept override { return threads_; }

 private:
  void run(Index tasks, const Body& body) override {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_)
    for (Index task = 0; task < tasks; ++task) body(task, omp_get_thread_num());
  }

  int threads_;
};

}  // namespace mla

#endif  // MLA_CORE_OPENMP_EXECUTOR_HPP_
