#include "programs/processors.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "support/safetensors_writer.hpp"

namespace mla::programs {
namespace {

using test::TemporaryDirectory;

void write(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

// Four cores with two threads each: processors i and i + 4 are of one core.
void make_eight_threads(const TemporaryDirectory& system) {
  for (int cpu = 0; cpu < 8; ++cpu)
    write(system / ("cpu" + std::to_string(cpu)) / "topology/thread_siblings_list",
          std::to_string(cpu % 4) + "," + std::to_string(cpu % 4 + 4) + "\n");
}

TEST(Processors, ThreadsOfACoreCountOnce) {
  const TemporaryDirectory system;
  make_eight_threads(system);
  EXPECT_EQ(count_cores({0, 1, 2, 3, 4, 5, 6, 7}, system.path()), 4u);
  EXPECT_EQ(count_cores({1, 5}, system.path()), 1u);
}

TEST(Processors, OnlyAllowedOnesCount) {
  const TemporaryDirectory system;
  make_eight_threads(system);
  EXPECT_EQ(count_cores({0, 1, 6}, system.path()), 3u);
  EXPECT_EQ(count_cores({}, system.path()), 0u);
}

TEST(Processors, WithoutATopologyEachIsACore) {
  const TemporaryDirectory system;
  EXPECT_EQ(count_cores({0, 1, 2}, system.path()), 3u);
}

TEST(Processors, AQuotaIsRoundedUpAndMaxIsNone) {
  const TemporaryDirectory directory;
  const auto quota = [&](const std::string& text) {
    write(directory / "cpu.max", text);
    return processor_quota(directory / "cpu.max");
  };
  EXPECT_EQ(quota("max 100000\n"), 0u);
  EXPECT_EQ(quota("200000 100000\n"), 2u);
  EXPECT_EQ(quota("150000 100000\n"), 2u);
  EXPECT_EQ(quota("50000 100000\n"), 1u);
  EXPECT_EQ(quota(""), 0u);
  EXPECT_EQ(processor_quota(directory / "nothing"), 0u);
}

#if defined(__linux__)
TEST(Processors, AProcessOnOneProcessorHasOneCore) {
  cpu_set_t before, one;
  ASSERT_EQ(::sched_getaffinity(0, sizeof(before), &before), 0);
  CPU_ZERO(&one);
  CPU_SET(allowed_processors().at(0), &one);
  ASSERT_EQ(::sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(available_cores(), 1);
  ASSERT_EQ(::sched_setaffinity(0, sizeof(before), &before), 0);
  EXPECT_GE(available_cores(), 1);
}
#endif

TEST(Processors, SmallModelsRunOnOneThreadAndOthersOnAllCores) {
  EXPECT_EQ(default_threads(192), 1);
  EXPECT_EQ(default_threads(2048), available_cores());  // DeepSeek-V2-Lite
}

}  // namespace
}  // namespace mla::programs
