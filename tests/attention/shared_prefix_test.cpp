// Sequences of a call that share pages: attended to together, with the bits of each alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "mla/attention/key_groups.hpp"
#include "support/compare.hpp"
#include "support/executors.hpp"
#include "support/isas.hpp"
#include "support/random.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

class SharedPrefix : public EveryIsa {};
MLA_FOR_EVERY_ISA(SharedPrefix);

TEST_P(SharedPrefix, ForksInOneCallGetTheBitsOfEachAlone) {
  ThreadExecutor threads(3);
  BackwardExecutor backward;
  const simd::Kernels& table = kernels();
  Random random(1);
  for (const Index heads : {2, 16, 50})
    for (std::size_t f = 0; f < kCacheFormatCount; ++f) {
      TestLayer layer(make_config(16, heads, 0, 20, 6, 4, 6));
      Context alone(table), by_threads(threads, table), by_backward(backward, table);
      LatentCache prefix(layer.config(), static_cast<CacheFormat>(f));
      const Index length = random.one_of<Index>({1024, 2100, 1087});
      run(layer, layer.input(length), prefix, alone);
      // Some fork within the prefix, some write more, one is of another text.
      std::vector<LatentCache> caches;
      for (const Index back : {0, 0, 1, 40, 70, 0, 1000}) {
        caches.push_back(prefix.fork(length - back));
        if (back == 1) run(layer, layer.input(90), caches.back(), alone);
      }
      caches.insert(caches.begin() + 3, LatentCache(layer.config(), static_cast<CacheFormat>(f)));
      run(layer, layer.input(1500), caches[3], alone);
      std::vector<Sequence> batch;
      Index tokens = 0;
      for (std::size_t s = 0; s < caches.size(); ++s) {
        batch.push_back({&caches[s], s == 5 ? 3 : s == 6 ? 0 : 1});
        tokens += batch.back().tokens;
      }
      const RowMajorMatrix x = layer.input(tokens);
      for (const AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
        RowMajorMatrix expected(tokens, x.cols());
        Index first = 0;
        for (const Sequence& sequence : batch) {
          LatentCache copy = sequence.cache->fork(sequence.cache->size());
          expected.middleRows(first, sequence.tokens) =
              run(layer, x.middleRows(first, sequence.tokens), copy, alone, {.mode = mode});
          first += sequence.tokens;
        }
        for (Context* context : {&alone, &by_threads, &by_backward}) {
          std::vector<LatentCache> forks;
          for (const LatentCache& cache : caches) forks.push_back(cache.fork(cache.size()));
          for (std::size_t s = 0; s < forks.size(); ++s) batch[s].cache = &forks[s];
          RowMajorMatrix out(tokens, x.cols());
          layer.layer.forward(x, batch, out, *context, {.mode = mode});
          ASSERT_TRUE(same_bits(out, expected))
              << name_of(static_cast<CacheFormat>(f)) << " " << heads << " heads, " << length;
        }
        for (std::size_t s = 0; s < caches.size(); ++s) batch[s].cache = &caches[s];
      }
    }
}

// What is attended to together: parts of the prefix once for all, what is behind it by each.
TEST(SharedPrefixGroups, PartsOfThePrefixAreOneTaskForAll) {
  TestLayer layer(make_config(16, 16, 0, 20, 6, 4, 6));
  Context context;
  LatentCache prefix(layer.config());
  run(layer, layer.input(4096), prefix, context);
  std::vector<LatentCache> forks, copies;
  for (int i = 0; i < 8; ++i) {
    forks.push_back(prefix.fork(4096));
    run(layer, layer.input(1), forks.back(), context);
    copies.emplace_back(layer.config());
    run(layer, layer.input(4097), copies.back(), context);
  }
  const auto tasks_of = [&](const std::vector<LatentCache>& caches) {
    std::vector<CachedTokens> batch;
    for (std::size_t s = 0; s < caches.size(); ++s)
      batch.push_back(CachedTokens::ending_in(caches[s], static_cast<Index>(s), 1));
    const Workspace::Scope scope(context.workspace());
    const KeyGroups groups(batch, 16, 20, 1, context.kernels(), context.workspace());
    std::vector<Index> rows;
    groups.for_each_round(
        [&](std::span<const KeyGroups::Task> tasks, std::span<const KeyGroups::Group>) {
          for (const KeyGroups::Task& task : tasks) rows.push_back(task.rows);
        });
    std::ranges::sort(rows);
    return rows;
  };
  std::vector<Index> together(8, 16);
  together.insert(together.end(), 4, 128);
  EXPECT_EQ(tasks_of(forks), together);
  EXPECT_EQ(tasks_of(copies), std::vector<Index>(40, 16));
}

}  // namespace
}  // namespace mla::test
