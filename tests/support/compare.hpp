#ifndef MLA_SUPPORT_COMPARE_HPP_
#define MLA_SUPPORT_COMPARE_HPP_

#include <gtest/gtest.h>

#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "mla/core/tensor.hpp"

namespace mla::test {

using DoubleMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Equal to the last bit: tells -0 from 0 and NaNs apart.
inline ::testing::AssertionResult same_bits(const Eigen::Ref<const RowMajorMatrix>& a,
                                            const Eigen::Ref<const RowMajorMatrix>& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols())
    return ::testing::AssertionFailure() << "shapes [" << a.rows() << ", " << a.cols() << "] and ["
                                         << b.rows() << ", " << b.cols() << "]";
  for (Index r = 0; r < a.rows(); ++r)
    for (Index c = 0; c < a.cols(); ++c)
      if (std::bit_cast<std::uint32_t>(a(r, c)) != std::bit_cast<std::uint32_t>(b(r, c)))
        return ::testing::AssertionFailure()
               << "element (" << r << ", " << c << "): " << a(r, c) << " and " << b(r, c);
  return ::testing::AssertionSuccess();
}

/// Largest difference, as a part of the largest expected value; NaN if anything is NaN.
inline double relative_error(const Eigen::Ref<const RowMajorMatrix>& actual,
                             const DoubleMatrix& expected) {
  double worst = 0.0, largest = 1e-30;
  for (Index r = 0; r < actual.rows(); ++r)
    for (Index c = 0; c < actual.cols(); ++c) {
      const double difference = std::abs(static_cast<double>(actual(r, c)) - expected(r, c));
      if (std::isnan(difference)) return difference;
      worst = std::max(worst, difference);
      largest = std::max(largest, std::abs(expected(r, c)));
    }
  return worst / largest;
}

/// relative_error() is at most `tolerance`.
inline ::testing::AssertionResult close(const Eigen::Ref<const RowMajorMatrix>& actual,
                                        const DoubleMatrix& expected, double tolerance) {
  if (actual.rows() != expected.rows() || actual.cols() != expected.cols())
    return ::testing::AssertionFailure()
           << "shapes [" << actual.rows() << ", " << actual.cols() << "] and [" << expected.rows()
           << ", " << expected.cols() << "]";
  const double error = relative_error(actual, expected);
  if (error <= tolerance) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "relative error " << error << " above " << tolerance;
}

/// Calls `function`, which must throw an Exception whose message has all of `parts`.
template <class Exception, class Function>
::testing::AssertionResult throws(const Function& function,
                                  std::initializer_list<const char*> parts) {
  try {
    function();
  } catch (const Exception& error) {
    const std::string message = error.what();
    for (const char* part : parts)
      if (message.find(part) == std::string::npos)
        return ::testing::AssertionFailure() << "no \"" << part << "\" in: " << message;
    return ::testing::AssertionSuccess();
  } catch (const std::exception& error) {
    return ::testing::AssertionFailure() << "threw something else: " << error.what();
  }
  return ::testing::AssertionFailure() << "did not throw";
}

template <class Function>
::testing::AssertionResult refuses(const Function& function,
                                   std::initializer_list<const char*> parts) {
  return throws<std::invalid_argument>(function, parts);
}

}  // namespace mla::test

#endif  // MLA_SUPPORT_COMPARE_HPP_
