#ifndef MLA_SUPPORT_EXECUTORS_HPP_
#define MLA_SUPPORT_EXECUTORS_HPP_

#include <atomic>
#include <latch>
#include <stdexcept>
#include <thread>
#include <vector>

#include "mla/core/executor.hpp"

namespace mla::test {

/// Fresh threads for every call, which begin together and take the tasks as they come.
class ThreadExecutor final : public Executor {
 public:
  explicit ThreadExecutor(Index threads) : threads_(threads) {}
  Index concurrency() const noexcept override { return threads_; }

 private:
  void run(Index tasks, const Body& body) override {
    std::atomic<Index> next = 0;
    std::latch start(threads_);
    const auto work = [&](Index worker) {
      start.arrive_and_wait();
      for (Index task = next++; task < tasks; task = next++) body(task, worker);
    };
    std::vector<std::thread> others;
    for (Index worker = 1; worker < threads_; ++worker) others.emplace_back(work, worker);
    work(0);
    for (std::thread& thread : others) thread.join();
  }

  Index threads_;
};

/// One thread that runs the last task first. Says that it has four, for which there are more tasks.
class BackwardExecutor final : public Executor {
 public:
  Index concurrency() const noexcept override { return 4; }

 private:
  void run(Index tasks, const Body& body) override {
    for (Index task = tasks; task-- > 0;) body(task, 0);
  }
};

/// Throws std::runtime_error halfway through its call number `failing_call`, counted from 0. Says
/// that it has four threads, as above.
class FailingExecutor final : public Executor {
 public:
  explicit FailingExecutor(Index failing_call) : failing_call_(failing_call) {}
  Index concurrency() const noexcept override { return 4; }
  bool failed() const noexcept { return calls_ > failing_call_; }

 private:
  void run(Index tasks, const Body& body) override {
    const bool fails = calls_++ == failing_call_;
    for (Index task = 0; task < (fails ? tasks / 2 : tasks); ++task) body(task, 0);
    if (fails) throw std::runtime_error("no thread is left");
  }

  Index failing_call_;
  Index calls_ = 0;
};

}  // namespace mla::test

#endif  // MLA_SUPPORT_EXECUTORS_HPP_
