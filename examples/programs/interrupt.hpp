#ifndef MLA_EXAMPLES_PROGRAMS_INTERRUPT_HPP_
#define MLA_EXAMPLES_PROGRAMS_INTERRUPT_HPP_

#include <signal.h>

#include <exception>

namespace mla::programs {

/// Ctrl-C, once it has been noticed.
struct Interrupted : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

namespace detail {
inline volatile sig_atomic_t was_interrupted = 0;
}

/// The first Ctrl-C is noticed by interrupted(), a second one ends the program at once. System
/// calls that wait return early, so that the first is noticed there, too.
inline void catch_interrupts() noexcept {
  struct sigaction action = {};
  action.sa_handler = [](int) { detail::was_interrupted = 1; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  ::sigaction(SIGINT, &action, nullptr);
}

inline bool interrupted() noexcept { return detail::was_interrupted != 0; }

inline void throw_if_interrupted() {
  if (interrupted()) throw Interrupted();
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_INTERRUPT_HPP_
