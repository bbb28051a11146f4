#ifndef MLA_EXAMPLES_PROGRAMS_PROCESSORS_HPP_
#define MLA_EXAMPLES_PROGRAMS_PROCESSORS_HPP_

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace mla::programs {

/// Processors (hardware threads) that this process may run on, by number; empty if the system does
/// not tell.
inline std::vector<int> allowed_processors() {
  std::vector<int> processors;
#if defined(__linux__)
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &allowed)) processors.push_back(cpu);
#endif
  return processors;
}

/// Cores that `processors` are of. Hardware threads of a core share its arithmetic units, so more
/// threads than cores make nothing faster. Where `system` does not tell, each is a core of its own.
inline std::size_t count_cores(const std::vector<int>& processors,
                               const std::filesystem::path& system = "/sys/devices/system/cpu") {
  std::set<std::string> cores;
  for (const int cpu : processors) {
    const std::string name = "cpu" + std::to_string(cpu);
    std::string siblings;  // of this core, "0,64" or "0-1"
    std::getline(std::ifstream(system / name / "topology/thread_siblings_list"), siblings);
    cores.insert(siblings.empty() ? name : siblings);
  }
  return cores.size();
}

/// How many processors' time a container may take (cgroup v2), rounded up; 0 for no limit. More
/// threads than that would be stopped in turns.
inline std::size_t processor_quota(const std::filesystem::path& file = "/sys/fs/cgroup/cpu.max") {
  double quota = 0.0, period = 0.0;  // microseconds; "max" in place of a quota for no limit
  std::ifstream limits(file);
  if (!(limits >> quota >> period) || quota <= 0.0 || period <= 0.0) return 0;
  return static_cast<std::size_t>(std::ceil(quota / period));
}

/// Cores that this process has.
inline int available_cores() {
  std::size_t cores = count_cores(allowed_processors());
  if (cores == 0) cores = std::max(1u, std::thread::hardware_concurrency());
  if (const std::size_t quota = processor_quota()) cores = std::min(cores, quota);
  return static_cast<int>(cores);
}

/// The threads to run a model of `hidden_size` with: all cores, unless its products take less time
/// than waking a thread. tiny-shakespeare-v3 (192) is 5 to 6 times slower on two threads than on
/// one.
inline int default_threads(std::ptrdiff_t hidden_size) {
  constexpr std::ptrdiff_t kSmall = 1024;
  return hidden_size < kSmall ? 1 : available_cores();
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_PROCESSORS_HPP_
