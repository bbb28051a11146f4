#ifndef MLA_CORE_EXECUTOR_HPP_
#define MLA_CORE_EXECUTOR_HPP_

#include <functional>

#include "mla/core/tensor.hpp"

namespace mla {

/// Runs independent tasks. Derive from it to put the library's work on your own threads; results
/// depend neither on how many there are nor on the order of the tasks.
class Executor {
 public:
  /// body(task, worker)
  using Body = std::function<void(Index, Index)>;

  virtual ~Executor() = default;

  /// Number of tasks that can run at the same time: at least 1, and constant.
  virtual Index concurrency() const noexcept = 0;

  /// Calls body(task, worker) once for every task in [0, tasks) and returns when all are done.
  /// `worker` is below concurrency(); tasks that run at the same time have different workers.
  /// `body` must not throw. Allocates nothing itself.
  template <class F>
  void parallel_for(Index tasks, const F& body) {
    if (tasks == 1)
      body(Index{0}, Index{0});
    else if (tasks > 1)
      run(tasks, Body(std::cref(body)));
  }

 private:
  virtual void run(Index tasks, const Body& body) = 0;
};

/// Everything on the calling thread.
class SerialExecutor final : public Executor {
 public:
  Index concurrency() const noexcept override { return 1; }

 private:
  void run(Index tasks, const Body& body) override {
    for (Index task = 0; task < tasks; ++task) body(task, 0);
  }
};

}  // namespace mla

#endif  // MLA_CORE_EXECUTOR_HPP_
