#ifndef MLA_EXAMPLES_PROGRAMS_RUN_PROGRAM_HPP_
#define MLA_EXAMPLES_PROGRAMS_RUN_PROGRAM_HPP_

#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "files.hpp"
#include "interrupt.hpp"
#include "isa_names.hpp"
#include "printable.hpp"

#include "mla/version.hpp"

namespace mla::programs {

/// Exit status; after Ctrl-C it is kInterrupted.
inline constexpr int kDone = 0, kFailed = 1, kWrongUsage = 2;

/// One line on standard error, whatever is in `message`.
inline void complain(const char* program, std::string_view message) {
  std::fprintf(stderr, "%s: %s\n", program, printable(message).c_str());
}

/// What a user asked for cannot be done with any model, or not with this one.
struct WrongUsage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// check(), whose std::invalid_argument is WrongUsage.
template <class Check>
auto check_usage(const Check& check) {
  try {
    return check();
  } catch (const std::invalid_argument& error) {
    throw WrongUsage(error.what());
  }
}

/// What `--help` or `--version` among the arguments asks for.
inline std::optional<std::string> information(std::span<const std::string> words,
                                              std::string_view program, const std::string& usage) {
  for (const std::string& word : words) {
    if (word == "--help" || word == "-h") return usage;
    if (word == "--version") return std::string(program) + " " MLA_VERSION "\n";
  }
  return std::nullopt;
}

/// A program's main(). parse(words) makes options of the arguments and throws std::invalid_argument
/// for wrong usage; run(options) does the work. Whatever is thrown becomes one line on standard
/// error and an exit status.
template <class Parse, class Run>
int run_program(const char* name, const std::string& usage, int argc, char** argv,
                const Parse& parse, const Run& run) {
  const auto fail = [&](const std::string& message, int status) {
    complain(name, message);
    return status;
  };
  end_at_interrupt(name);
  const std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
  try {
    if (const auto text = information(words, name, usage)) {
      write_output(*text);
    } else {
      const auto options = check_usage([&] { return parse(words); });
      if (const auto complaint = complaint_of_isa_variable(); !complaint.empty())
        complain(name, complaint);
      run(options);
    }
    close_output();
    return kDone;
  } catch (const WrongUsage& error) {
    return fail(error.what() + std::string(" (--help for usage)"), kWrongUsage);
  } catch (const std::bad_alloc&) {
    return fail("not enough memory", kFailed);
  } catch (const std::exception& error) {
    return fail(error.what(), kFailed);
  }
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_RUN_PROGRAM_HPP_
