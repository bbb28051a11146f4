#ifndef MLA_SUPPORT_EXECUTOR_CHECK_HPP_
#define MLA_SUPPORT_EXECUTOR_CHECK_HPP_

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "mla/core/executor.hpp"

namespace mla::test {

/// Each task runs once, and no two that run at the same time have the same worker.
inline void expect_each_task_once(Executor& executor, Index tasks) {
  std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
  std::vector<std::atomic<int>> busy(static_cast<std::size_t>(executor.concurrency()));
  std::atomic<int> shared_workers{0};
  executor.parallel_for(tasks, [&](Index task, Index worker) {
    auto& mine = busy.at(static_cast<std::size_t>(worker));
    if (mine.fetch_add(1) != 0) ++shared_workers;
    ++runs[static_cast<std::size_t>(task)];
    --mine;
  });
  for (const auto& count : runs) EXPECT_EQ(count, 1);
  EXPECT_EQ(shared_workers, 0) << "two tasks that ran at the same time had the same worker";
}

}  // namespace mla::test

#endif  // MLA_SUPPORT_EXECUTOR_CHECK_HPP_
