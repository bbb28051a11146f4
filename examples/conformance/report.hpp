#ifndef MLA_EXAMPLES_CONFORMANCE_REPORT_HPP_
#define MLA_EXAMPLES_CONFORMANCE_REPORT_HPP_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

namespace mla::conformance {

/// One comparison with what a case file states.
struct Check {
  std::string name;
  double error = 0.0;      ///< largest absolute difference
  double largest = 0.0;    ///< largest absolute value expected
  double tolerance = 0.0;  ///< of error / largest
  bool shown = true;       ///< also where it passes

  double relative() const noexcept { return error == 0.0 ? 0.0 : error / largest; }
  bool passed() const noexcept { return relative() <= tolerance; }

  void compare(double expected, double actual) noexcept {
    const double difference = std::abs(actual - expected);
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    error = std::isfinite(difference) ? std::max(error, difference) : kInfinity;
    largest = std::max(largest, std::abs(expected));
  }

  /// "output 1.4e-06 (3.8e-07 <= 2.0e-05)"
  std::string text() const {
    std::array<char, 64> numbers{};
    std::snprintf(numbers.data(), numbers.size(), " %.1e (%.1e %s %.1e)", error, relative(),
                  passed() ? "<=" : ">", tolerance);
    return name + numbers.data();
  }
};

/// What there is to say about one case, one line when printed.
struct Report {
  std::string name;
  std::string mode;
  std::vector<Check> checks;
  std::string reason;  ///< where the tolerance comes from

  bool passed() const noexcept { return std::ranges::all_of(checks, &Check::passed); }

  std::string line() const {
    const auto padded = [](std::string text, std::size_t width) {
      text.resize(std::max(width, text.size()), ' ');
      return text;
    };
    std::string text = padded(name, 16) + " " + padded(mode, 12);
    for (const Check& check : checks)
      if (check.shown || !check.passed()) text += "  " + check.text();
    return text + "  " + reason + (passed() ? "  pass" : "  FAIL");
  }
};

}  // namespace mla::conformance

#endif  // MLA_EXAMPLES_CONFORMANCE_REPORT_HPP_
