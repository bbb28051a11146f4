#ifndef MLA_EXAMPLES_PROGRAMS_INTERRUPT_HPP_
#define MLA_EXAMPLES_PROGRAMS_INTERRUPT_HPP_

#include <signal.h>
#include <unistd.h>

#include <string>

namespace mla::programs {

/// Exit status after Ctrl-C.
inline constexpr int kInterrupted = 128 + SIGINT;

/// From here on Ctrl-C ends the program, wherever it is, with one line on standard error. Nothing
/// is lost: output is written without a buffer, and the programs write no files.
inline void end_at_interrupt(const char* program) {
  static std::string message;
  // On a terminal, in the place of a line of progress.
  message =
      std::string(::isatty(STDERR_FILENO) == 1 ? "\r\033[K" : "") + program + ": interrupted\n";
  static const char* text = nullptr;  // a handler may only read what needs no initialisation
  static std::size_t bytes = 0;
  text = message.data();
  bytes = message.size();
  struct sigaction action = {};
  action.sa_handler = [](int) {
    [[maybe_unused]] const auto written = ::write(STDERR_FILENO, text, bytes);
    ::_exit(kInterrupted);
  };
  ::sigaction(SIGINT, &action, nullptr);
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_INTERRUPT_HPP_
