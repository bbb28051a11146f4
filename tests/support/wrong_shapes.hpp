#ifndef MLA_SUPPORT_WRONG_SHAPES_HPP_
#define MLA_SUPPORT_WRONG_SHAPES_HPP_

#include <gtest/gtest.h>

#include <cstddef>
#include <functional>
#include <list>
#include <stdexcept>
#include <utility>
#include <vector>

#include "mla/core/tensor.hpp"

namespace mla::test {

/// Views of memory that is just as large as they say, for the address sanitizer to see what is read
/// or written beside it.
class ExactViews {
 public:
  /// [rows, cols], dense, 0.5 everywhere.
  MatrixView<float> make(Index rows, Index cols) {
    auto& memory = memory_.emplace_back(static_cast<std::size_t>(rows * cols), 0.5f);
    return {memory.data(), rows, cols};
  }

  /// call(views) must hold for views of these shapes, and throw std::invalid_argument for each with
  /// one of its dims one smaller or larger.
  using Views = std::vector<MatrixView<float>>;
  void expect_only(const std::vector<std::pair<Index, Index>>& shapes,
                   const std::function<void(const Views&)>& call) {
    const auto views_of = [&](std::size_t changed, Index rows, Index cols) {
      Views views;
      for (std::size_t i = 0; i < shapes.size(); ++i)
        views.push_back(make(shapes[i].first + (i == changed ? rows : 0),
                             shapes[i].second + (i == changed ? cols : 0)));
      return views;
    };
    EXPECT_NO_THROW(call(views_of(shapes.size(), 0, 0)));
    for (std::size_t i = 0; i < shapes.size(); ++i)
      for (const auto& [rows, cols] : {std::pair{0, -1}, {0, 1}, {-1, 0}, {1, 0}}) {
        // One matrix alone may have any number of rows.
        if (shapes.size() == 1 && rows != 0) continue;
        EXPECT_THROW(call(views_of(i, rows, cols)), std::invalid_argument)
            << "view " << i << ", " << rows << " rows, " << cols << " columns";
      }
  }

 private:
  std::list<std::vector<float>> memory_;
};

}  // namespace mla::test

#endif  // MLA_SUPPORT_WRONG_SHAPES_HPP_
