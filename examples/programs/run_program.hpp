#ifndef MLA_EXAMPLES_PROGRAMS_RUN_PROGRAM_HPP_
#define MLA_EXAMPLES_PROGRAMS_RUN_PROGRAM_HPP_

#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "files.hpp"
#include "interrupt.hpp"

namespace mla::programs {

/// Exit status.
inline constexpr int kDone = 0, kFailed = 1, kWrongUsage = 2, kInterrupted = 128 + SIGINT;

/// One line on standard error, whatever is in `message`.
inline void complain(const char* program, std::string message) {
  std::ranges::replace_if(
      message, [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\177'; }, ' ');
  std::fprintf(stderr, "%s: %s\n", program, message.c_str());
}

/// A program's main(). parse(words) makes options of the arguments and throws std::invalid_argument
/// for wrong usage; run(options) does the work. Whatever is thrown becomes one line on standard
/// error and an exit status.
template <class Parse, class Run>
int run_program(const char* name, const char* usage, int argc, char** argv, const Parse& parse,
                const Run& run) {
  const auto fail = [&](const std::string& message, int status) {
    complain(name, message);
    return status;
  };
  catch_interrupts();
  const std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
  try {
    if (std::ranges::any_of(words, [](const auto& w) { return w == "--help" || w == "-h"; })) {
      write_output(usage);
      return kDone;
    }
    const auto options = [&] {
      try {
        return parse(words);
      } catch (const std::invalid_argument& error) {
        throw std::pair(std::string(error.what()), kWrongUsage);
      }
    }();
    run(options);
    close_output();
    return kDone;
  } catch (const std::pair<std::string, int>& wrong_usage) {
    return fail(wrong_usage.first + " (--help for usage)", wrong_usage.second);
  } catch (const Interrupted& error) {
    return fail(error.what(), kInterrupted);
  } catch (const std::bad_alloc&) {
    return fail("not enough memory", kFailed);
  } catch (const std::exception& error) {
    return fail(error.what(), kFailed);
  }
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_RUN_PROGRAM_HPP_
