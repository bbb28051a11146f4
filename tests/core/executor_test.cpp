#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>

#include "mla/core/eigen_executor.hpp"
#include "mla/core/executor.hpp"
#include "support/executor_check.hpp"

namespace mla::test {
namespace {

TEST(Executor, EveryTaskRunsOnceAndNoTwoShareAWorker) {
  SerialExecutor serial;
  for (Index tasks : {0, 1, 2, 100}) expect_each_task_once(serial, tasks);
  for (int threads : {1, 2, 3, 7}) {
    EigenExecutor executor(threads);
    EXPECT_EQ(executor.concurrency(), threads);
    for (int round = 0; round < 100; ++round)
      for (Index tasks : {0, 1, 2, 5, 100}) expect_each_task_once(executor, tasks);
  }
}

TEST(Executor, TakesAPoolOfTheCaller) {
  Eigen::ThreadPool pool(2);
  EigenExecutor executor(pool);
  EXPECT_EQ(executor.concurrency(), 3);
  expect_each_task_once(executor, 50);
}

// A server may run whole forward passes on the pool that it shares with the library.
TEST(Executor, WorksFromAThreadOfItsOwnPool) {
  EigenExecutor executor(3);
  std::atomic<int> inner{0};
  executor.parallel_for(
      6, [&](Index, Index) { executor.parallel_for(5, [&](Index, Index) { ++inner; }); });
  EXPECT_EQ(inner, 30);
}

TEST(Executor, RefusesNoThreads) { EXPECT_THROW(EigenExecutor(0), std::invalid_argument); }

}  // namespace
}  // namespace mla::test
