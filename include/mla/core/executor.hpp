#ifndef MLA_CORE_EXECUTOR_HPP_
#define MLA_CORE_EXECUTOR_HPP_

#include <functional>

#include "mla/core/tensor.hpp"

namespace mla {

/// Runs independent tasks. Implement it to put the library's work on your own threads; results do
/// not depend on how many there are, nor on the order of the tasks.
class Executor {
 public:
  /// body(task, worker): `worker` is below concurrency(), and no two tasks that run at the same
  /// time share it. Must not throw.
  using Body = std::function<void(Index task, Index worker)>;

  virtual ~Executor() = default;

  /// Number of tasks that can run at the same time, at least 1 and constant.
  virtual Index concurrency() const noexcept = 0;

  /// Calls body for every task in [0, tasks), each once, and returns when all are done.
  virtual void parallel_for(Index tasks, const Body& body) = 0;
};

/// Everything on the calling thread.
class SerialExecutor final : public Executor {
 public:
  Index concurrency() const noexcept override { return 1; }
  void parallel_for(Index tasks, const Body& body) override {
    for (Index task = 0; task < tasks; ++task) body(task, 0);
  }
};

}  // namespace mla

#endif  // MLA_CORE_EXECUTOR_HPP_
