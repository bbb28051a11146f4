// A context that is given no executor, in a file that is compiled with OpenMP. The other files of
// this executable are not.
#include <gtest/gtest.h>
#include <omp.h>

#include <thread>
#include <vector>

#include "support/executor_check.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

// More than one, whatever the machine has; for this thread, before the first use.
[[maybe_unused]] const bool kThreeThreads = (omp_set_num_threads(3), true);

// Prefill and a step of decoding in both forms, over more than one part of keys.
struct Layer {
  std::vector<RowMajorMatrix> outputs(Context& context) const {
    std::vector<RowMajorMatrix> all;
    for (AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
      LatentKVCache<float> cache(layer.config());
      all.push_back(run(layer, prompt, cache, context, {.mode = mode}));
      all.push_back(run(layer, step, cache, context, {.mode = mode}));
    }
    return all;
  }
  bool is_serial_on(Context& context) const {
    const std::vector<RowMajorMatrix> actual = outputs(context);
    for (std::size_t i = 0; i < actual.size(); ++i)
      if (!same_bits(actual[i], serial[i])) return false;
    return true;
  }

  TestLayer layer{make_config(16, 3, 0, 20, 6, 4, 6)};
  RowMajorMatrix prompt = layer.input(1030), step = layer.input(1);
  SerialExecutor executor;
  Context serial_context{executor};
  std::vector<RowMajorMatrix> serial = outputs(serial_context);
};

TEST(OpenMpContext, HasTheThreadsOfOpenMp) {
  EXPECT_EQ(Context().executor().concurrency(), 3);
  EXPECT_EQ(Context(simd::kernels()).executor().concurrency(), 3);
  EXPECT_EQ(&Context().executor(), &Context(simd::kernels()).executor());
  expect_each_task_once(Context().executor(), 100);
}

TEST(OpenMpContext, ComputesTheBitsOfOneThread) {
  const Layer layer;
  Context context;
  EXPECT_TRUE(layer.is_serial_on(context));
}

TEST(OpenMpContext, WorksInsideAParallelRegionWithAndWithoutThreadsOfItsOwn) {
  const Layer layer;
  const int levels = omp_get_max_active_levels();
  for (const int allowed : {1, 2}) {
    omp_set_max_active_levels(allowed);
    int right = 0, team = 0;
#pragma omp parallel num_threads(2) reduction(+ : right)
    {
      Context context;
      right += layer.is_serial_on(context) ? 1 : 0;
#pragma omp single
      team = omp_get_num_threads();
    }
    EXPECT_EQ(right, team) << allowed << " levels";
  }
  omp_set_max_active_levels(levels);
}

TEST(OpenMpContext, SeveralThreadsMayUseItAtTheSameTime) {
  const Layer layer;
  std::vector<char> right(4);
  std::vector<std::thread> threads;
  for (char& mine : right)
    threads.emplace_back([&layer, &mine] {
      Context context;
      mine = layer.is_serial_on(context);
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, std::vector<char>(4, 1));
}

}  // namespace
}  // namespace mla::test
