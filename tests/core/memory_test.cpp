// Workspace, AlignedBuffer, views and executors.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "mla/core/executor.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/core/workspace.hpp"
#include "support/counting_operator_new.hpp"
#include "support/executors.hpp"

namespace mla::test {
namespace {

bool is_aligned(const void* memory) { return reinterpret_cast<std::uintptr_t>(memory) % 64 == 0; }

// Takes memory as a forward pass does: of many sizes, in nested scopes, more than the first block.
void take_many_sizes(Workspace& workspace) {
  const Workspace::Scope outer(workspace);
  for (Index count : {1, 100, 70'000, 3, 5000}) {
    workspace.take<float>(count);
    const Workspace::Scope inner(workspace);
    workspace.take<double>(2 * count);
    workspace.take_matrix<std::uint8_t>(count, 3);
  }
}

TEST(Workspace, TheSecondRoundOfTheSameSizesAllocatesNothing) {
  Workspace workspace;
  take_many_sizes(workspace);
  const AllocationCount allocations;
  take_many_sizes(workspace);
  EXPECT_EQ(allocations.count(), 0);
}

TEST(Workspace, SmallerSizesThanBeforeAllocateNothing) {
  Workspace workspace;
  {
    const Workspace::Scope scope(workspace);
    for (Index count : {10'000, 60'000, 20'000, 200'000, 7}) workspace.take<float>(count);
  }
  const AllocationCount allocations;
  const Workspace::Scope scope(workspace);
  for (Index count : {9999, 128, 20'000, 150'000, 6}) workspace.take<float>(count);
  EXPECT_EQ(allocations.count(), 0);
}

TEST(Workspace, GrowingDoesNotMoveWhatWasTakenBefore) {
  Workspace workspace;
  const Workspace::Scope scope(workspace);
  std::vector<std::pair<int*, int>> taken;
  for (int i = 0; i < 200; ++i) {
    taken.emplace_back(workspace.take<int>(i * 17), i * 17);
    for (int k = 0; k < i * 17; ++k) taken.back().first[k] = i;
  }
  for (int i = 0; i < 200; ++i)
    for (int k = 0; k < taken[static_cast<std::size_t>(i)].second; ++k)
      ASSERT_EQ(taken[static_cast<std::size_t>(i)].first[k], i);
}

TEST(Workspace, EveryPieceIsAlignedToACacheLine) {
  Workspace workspace;
  const Workspace::Scope scope(workspace);
  for (Index count = 0; count < 100; ++count) {
    ASSERT_TRUE(is_aligned(workspace.take<char>(count)));
    ASSERT_TRUE(is_aligned(workspace.take<double>(count * 1000)));
  }
}

TEST(Workspace, AScopeGivesBackWhatWasTakenInIt) {
  Workspace workspace;
  const Workspace::Scope outer(workspace);
  float* before = workspace.take<float>(16);
  float* first = nullptr;
  {
    const Workspace::Scope inner(workspace);
    first = workspace.take<float>(16);
    workspace.take<float>(1 << 20);  // into another block
  }
  EXPECT_EQ(workspace.take<float>(16), first);
  EXPECT_NE(first, before);
}

TEST(Workspace, StaysUsableWhenMemoryRunsOut) {
  Workspace workspace;
  {
    const Workspace::Scope scope(workspace);
    workspace.take<float>(16);
    const FailingAllocation failing(0);
    EXPECT_THROW(workspace.take<float>(1 << 20), std::bad_alloc);
  }
  const Workspace::Scope scope(workspace);
  float* memory = workspace.take<float>(1 << 20);
  memory[(1 << 20) - 1] = 1.0f;
  EXPECT_GE(workspace.bytes_allocated(), std::size_t{4} << 20);
}

TEST(AlignedBuffer, IsAlignedAndMovesWithItsMemory) {
  AlignedBuffer<float> a(3);
  float* memory = a.data();
  EXPECT_TRUE(is_aligned(memory));
  AlignedBuffer<float> b(std::move(a));
  EXPECT_EQ(b.data(), memory);
  EXPECT_EQ(b.size(), 3u);
  EXPECT_EQ(a.size(), 0u);
  a = std::move(b);
  EXPECT_EQ(a.data(), memory);
  EXPECT_EQ(a.end() - a.begin(), 3);
}

TEST(MatrixView, RangesShareTheMemoryAndKeepTheStride) {
  float values[24] = {};
  const MatrixView<float> view(values, 4, 5, 6);
  view.row_range(1, 2).col_range(2, 3)(1, 2) = 7.0f;
  EXPECT_EQ(values[2 * 6 + 4], 7.0f);
  const MatrixView<const float> constant = view;
  EXPECT_EQ(constant(2, 4), 7.0f);
  EXPECT_EQ(constant.stride, 6);
}

TEST(WeightView, IsWidenedByItsOwnFormat) {
  const float f32[] = {1.0f, 2.0f};
  const bfloat16 bf16[] = {bfloat16(3.0f), bfloat16(4.0f)};
  const float16 f16[] = {float16(5.0f), float16(6.0f)};
  EXPECT_EQ(to_float_vector({f32, 1, 2}), (std::vector{1.0f, 2.0f}));
  EXPECT_EQ(to_float_vector({bf16, 1, 2}), (std::vector{3.0f, 4.0f}));
  EXPECT_EQ(to_float_vector({f16, 1, 2}), (std::vector{5.0f, 6.0f}));
  EXPECT_EQ(WeightView(bf16, 1, 2).bytes(), 4);
  EXPECT_EQ(WeightView(f32, 1, 2).bytes(), 8);
  EXPECT_FALSE(WeightView());
  EXPECT_EQ(name_of(WeightFormat::bfloat16), "bf16");
}

TEST(SerialExecutor, RunsEveryTaskOnceInOrderAsWorkerZero) {
  SerialExecutor executor;
  EXPECT_EQ(executor.concurrency(), 1);
  for (Index tasks : {0, 1, 2, 17}) {
    Index next = 0;
    executor.parallel_for(tasks, [&](Index task, Index worker) {
      EXPECT_EQ(task, next++);
      EXPECT_EQ(worker, 0);
    });
    EXPECT_EQ(next, tasks);
  }
}

TEST(Executor, HandingOverTheBodyAllocatesNothing) {
  SerialExecutor executor;
  Index sum = 0, a = 1, b = 2, c = 3, d = 4;  // more than a std::function keeps in itself
  const AllocationCount allocations;
  executor.parallel_for(10, [&, a, b, c, d](Index task, Index) { sum += task + a + b + c + d; });
  EXPECT_EQ(allocations.count(), 0);
  EXPECT_EQ(sum, 145);
}

TEST(Executor, ADerivedOneRunsEveryTaskOnceWithItsOwnWorkers) {
  for (Index threads : {1, 2, 3, 7}) {
    ThreadExecutor executor(threads);
    std::vector<std::atomic<int>> runs(100);
    std::atomic<bool> strange_worker = false;
    executor.parallel_for(100, [&](Index task, Index worker) {
      ++runs[static_cast<std::size_t>(task)];
      if (worker < 0 || worker >= threads) strange_worker = true;
    });
    for (const auto& count : runs) ASSERT_EQ(count, 1);
    EXPECT_FALSE(strange_worker);
  }
}

}  // namespace
}  // namespace mla::test
