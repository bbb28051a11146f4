#include <gtest/gtest.h>

#include <stdexcept>

#include "mla/core/openmp_executor.hpp"
#include "support/executor_check.hpp"

namespace mla::test {
namespace {

TEST(OpenMpExecutor, EveryTaskRunsOnceAndNoTwoShareAWorker) {
  for (int threads : {1, 2, 3}) {
    OpenMpExecutor executor(threads);
    EXPECT_EQ(executor.concurrency(), threads);
    for (Index tasks : {0, 1, 2, 5, 100}) expect_each_task_once(executor, tasks);
  }
}

TEST(OpenMpExecutor, RefusesNoThreads) { EXPECT_THROW(OpenMpExecutor(0), std::invalid_argument); }

}  // namespace
}  // namespace mla::test
