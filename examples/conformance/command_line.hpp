#ifndef MLA_EXAMPLES_CONFORMANCE_COMMAND_LINE_HPP_
#define MLA_EXAMPLES_CONFORMANCE_COMMAND_LINE_HPP_

#include <charconv>
#include <cmath>
#include <cstddef>
#include <exception>
#include <new>
#include <ostream>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "model_case.hpp"
#include "programs/cache_formats.hpp"
#include "programs/isa_names.hpp"
#include "programs/printable.hpp"
#include "programs/run_program.hpp"
#include "report.hpp"
#include "run_case.hpp"
#include "run_path.hpp"

#include "mla/core/cache_format.hpp"
#include "mla/core/error.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/simd/isa.hpp"

namespace mla::conformance {

inline std::string usage() {
  return "usage: mla-conformance PATH... [--isa ISA] [--mode absorbed|decompressed]\n"
         "                       [--weights f32|bf16] [--cache FORMAT] [--tolerance 1e-3]\n"
         "                       [--model DIR]\n"
         "PATH is a case file, a directory of them (*.safetensors), or the directory of a model\n"
         "with a goldens.safetensors; --tolerance is for models, --weights is not. --model is the\n"
         "model of eviction cases. ISA is one of\n"
         "  " +
         programs::isa_names() + "\nand FORMAT one of\n  " + programs::cache_names() +
         "\n"
         "See docs/conformance.md. --version prints the version, and nothing else.\n"
         "Exit status: 0 all cases pass, 1 some fail, 2 wrong usage or a file that cannot be\n"
         "used, 130 interrupted.\n";
}

namespace detail {

struct Arguments {
  Options options;
  std::vector<std::string> paths;
};

inline WeightFormat read_weights(const std::string& name) {
  for (const auto format : {WeightFormat::float32, WeightFormat::bfloat16})
    if (name == name_of(format)) return format;
  throw_invalid("--weights must be f32 or bf16, got ", name);
}

inline AttentionForm read_mode(const std::string& name) {
  require(name == "absorbed" || name == "decompressed",
          "--mode must be absorbed or decompressed, got ", name);
  return name == "absorbed" ? AttentionForm::absorbed : AttentionForm::decompressed;
}

inline double read_tolerance(const std::string& text) {
  double value = 0.0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  require(error == std::errc() && at == end && value >= 0.0 && std::isfinite(value),
          "--tolerance must be a number from 0 on, got ", text);
  return value;
}

// Throws std::invalid_argument for wrong usage.
inline Arguments read_arguments(std::span<const std::string> words) {
  Arguments arguments;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (!word.starts_with("-")) {
      arguments.paths.push_back(word);
      continue;
    }
    const bool known = word == "--isa" || word == "--mode" || word == "--weights" ||
                       word == "--cache" || word == "--tolerance" || word == "--model";
    require(known, "unknown option ", word);
    require(i + 1 < words.size(), word, " needs a value");
    const std::string& value = words[++i];
    if (word == "--isa") arguments.options.kernels = programs::parse_isa(value);
    if (word == "--mode") arguments.options.modes = {read_mode(value)};
    if (word == "--weights") arguments.options.weights = read_weights(value);
    if (word == "--cache") arguments.options.cache = programs::parse_cache(value);
    if (word == "--model") arguments.options.model = value;
    if (word == "--tolerance") arguments.options.model_tolerance = read_tolerance(value);
  }
  require(!arguments.paths.empty(), "no case file or directory given");
  return arguments;
}

struct Tally {
  int passed = 0;
  int failed = 0;
  int unusable = 0;
};

inline void complain(std::ostream& err, std::string_view message) {
  err << "mla-conformance: " << programs::printable(message) << std::endl;
}

// Calls `action`; an exception becomes one line on `err` that begins with `path`.
template <class Action>
void attempt(const std::string& path, Tally& tally, std::ostream& err, const Action& action) {
  std::string what;
  try {
    action();
    return;
  } catch (const std::bad_alloc&) {
    what = "not enough memory";
  } catch (const std::exception& error) {
    what = error.what();
  }
  ++tally.unusable;
  complain(err, (what.starts_with(path) ? "" : path + ": ") + what);
}

inline void print(const Report& report, Tally& tally, std::ostream& out) {
  out << report.line() << std::endl;
  ++(report.passed() ? tally.passed : tally.failed);
}

inline void run_directory_of_model(const std::string& path, const Options& options, Tally& tally,
                                   std::ostream& out) {
  out << "# " << programs::printable(path) << ", weights as they are" << std::endl;
  const auto unread =
      run_model(path, options, [&](const Report& report) { print(report, tally, out); });
  if (unread.empty()) return;
  out << "# not compared:";
  for (const std::string& name : unread) out << " " << name;
  out << std::endl;
}

}  // namespace detail

/// The program: `words` are its arguments, the result its exit status.
inline int run_command_line(std::span<const std::string> words, std::ostream& out,
                            std::ostream& err) {
  if (const auto text = programs::information(words, "mla-conformance", usage())) {
    out << *text << std::flush;
    return 0;
  }
  detail::Arguments arguments;
  try {
    arguments = detail::read_arguments(words);
  } catch (const std::invalid_argument& error) {
    detail::complain(err, std::string(error.what()) + " (--help for usage)");
    return 2;
  }
  if (const auto complaint = programs::complaint_of_isa_variable(); !complaint.empty())
    detail::complain(err, complaint);

  const Options& options = arguments.options;
  out << "# " << simd::name_of(options.kernels->isa) << ", " << name_of(options.weights)
      << " weights, " << name_of(options.cache)
      << " cache: largest error (relative to the largest value, tolerance)" << std::endl;
  detail::Tally tally;
  for (const std::string& path : arguments.paths)
    detail::attempt(path, tally, err, [&] {
      if (is_model(path)) return detail::run_directory_of_model(path, options, tally, out);
      for (const auto& file : case_files(path))
        detail::attempt(file.string(), tally, err, [&] {
          run_file(file, options, [&](const Report& report) { detail::print(report, tally, out); });
        });
    });
  out << "# " << tally.passed << " pass, " << tally.failed << " fail" << std::endl;
  return tally.unusable > 0 ? 2 : tally.failed > 0 ? 1 : 0;
}

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_COMMAND_LINE_HPP_
