#ifndef MLA_EXAMPLES_PROGRAMS_PROGRESS_HPP_
#define MLA_EXAMPLES_PROGRAMS_PROGRESS_HPP_

#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "printable.hpp"

#include "mla/core/tensor.hpp"

namespace mla::programs {

/// Whether someone watches standard error.
inline bool on_terminal() noexcept { return ::isatty(STDERR_FILENO) == 1; }

/// One line of progress, `what  [#####.....]  done / all`, on a terminal and nowhere else. It
/// appears when the work takes longer than a moment, and is erased at the end.
class ProgressBar {
 public:
  explicit ProgressBar(std::string_view what)
      : what_(printable(what)), next_(Clock::now() + kPause) {}
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar() { erase(); }

  void show(Index done, Index all) {
    if (!on_terminal_ || Clock::now() < next_ || all <= 0) return;
    next_ = Clock::now() + kPause;
    constexpr Index kWidth = 30;
    std::string bar(kWidth, '.');
    bar.replace(0, static_cast<std::size_t>(kWidth * done / all),
                static_cast<std::size_t>(kWidth * done / all), '#');
    std::fprintf(stderr, "\r%s  [%s]  %td / %td", what_.c_str(), bar.c_str(), done, all);
    shown_ = true;
  }

  void erase() noexcept {
    if (std::exchange(shown_, false)) std::fputs("\r\033[K", stderr);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kPause{100};

  std::string what_;
  bool on_terminal_ = on_terminal();
  Clock::time_point next_;
  bool shown_ = false;
};

/// As ProgressBar, for work that does not say how far it is: `what  3 s`, from a thread of its own.
class ProgressClock {
 public:
  explicit ProgressClock(std::string_view what) {
    if (on_terminal()) thread_ = std::thread([this, what = printable(what)] { tick(what); });
  }
  ProgressClock(const ProgressClock&) = delete;
  ProgressClock& operator=(const ProgressClock&) = delete;
  ~ProgressClock() {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

 private:
  void tick(const std::string& what) {
    std::unique_lock lock(mutex_);
    const auto done = [this] { return done_; };
    int tenths = 1;
    for (; !changed_.wait_for(lock, std::chrono::milliseconds(100), done); ++tenths)
      std::fprintf(stderr, "\r%s  %d s", what.c_str(), tenths / 10);
    if (tenths > 1) std::fputs("\r\033[K", stderr);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::thread thread_;
};

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_PROGRESS_HPP_
