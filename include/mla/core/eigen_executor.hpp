#ifndef MLA_CORE_EIGEN_EXECUTOR_HPP_
#define MLA_CORE_EIGEN_EXECUTOR_HPP_

#include <algorithm>
#include <atomic>
#include <memory>
#include <unsupported/Eigen/CXX11/ThreadPool>

#include "mla/core/error.hpp"
#include "mla/core/executor.hpp"

namespace mla {

/// Runs tasks on an Eigen::ThreadPool and on the thread that calls; called from a thread of that
/// pool, on this thread alone. Needs Eigen's unsupported headers, and threads (-pthread).
class EigenExecutor final : public Executor {
 public:
  /// `threads` in all, the calling one included. Throws std::invalid_argument if that is below 1.
  explicit EigenExecutor(int threads)
      : own_((require(threads >= 1, "an executor needs at least 1 thread, got ", threads),
              std::make_unique<Eigen::ThreadPool>(threads - 1))),
        pool_(own_.get()) {}

  /// On a pool that the caller has, and that must outlive the executor.
  explicit EigenExecutor(Eigen::ThreadPoolInterface& pool) : pool_(&pool) {}

  Index concurrency() const noexcept override { return pool_->NumThreads() + 1; }

 private:
  static constexpr int kSpins = 1000;  // 10 to 50 microseconds

  static void pause() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  // What the threads of one run() share; it lives on the caller's stack until all have left.
  struct Run {
    const Body& body;
    Index tasks;
    Eigen::Barrier left;
    std::atomic<Index> working;  // threads of the pool that have not left
    std::atomic<Index> next_task{0};
    std::atomic<Index> next_worker{1};

    void work(Index worker) {
      for (Index task; (task = next_task.fetch_add(1, std::memory_order_relaxed)) < tasks;)
        body(task, worker);
    }
  };

  void run(Index tasks, const Body& body) override {
    // A thread of the pool that waited for others could wait for ever.
    const bool inside = pool_->CurrentThreadId() >= 0;
    const Index helpers = inside ? 0 : std::min<Index>(tasks, concurrency()) - 1;
    Run shared{body, tasks, Eigen::Barrier(static_cast<unsigned>(helpers)), helpers};
    for (Index i = 0; i < helpers; ++i)
      pool_->Schedule([run = &shared] {
        run->work(run->next_worker.fetch_add(1, std::memory_order_relaxed));
        run->working.fetch_sub(1, std::memory_order_relaxed);
        run->left.Notify();
      });
    shared.work(0);
    // To be woken up takes longer than many calls.
    for (int i = 0; i < kSpins && shared.working.load(std::memory_order_relaxed) > 0; ++i) pause();
    shared.left.Wait();
  }

  std::unique_ptr<Eigen::ThreadPool> own_;
  Eigen::ThreadPoolInterface* pool_;
};

}  // namespace mla

#endif  // MLA_CORE_EIGEN_EXECUTOR_HPP_
