#ifndef MLA_CORE_TENSOR_HPP_
#define MLA_CORE_TENSOR_HPP_

#include <Eigen/Core>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "mla/core/error.hpp"
#include "mla/core/float16.hpp"

namespace mla {

/// Sizes and indices of tensors.
using Index = std::ptrdiff_t;

/// The matrix type of public signatures: rows are tokens, columns are features.
using RowMajorMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Element types that weights and caches are stored in.
template <class T>
inline constexpr bool kIsStorageElement =
    std::is_same_v<T, float> || std::is_same_v<T, bfloat16> || std::is_same_v<T, float16>;
template <class T>
concept StorageElement = kIsStorageElement<T>;

/// A row-major matrix in somebody else's memory: row r starts at data + r * stride.
template <class T>
struct MatrixView {
  T* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index stride = 0;  ///< elements from one row to the next, >= cols

  MatrixView() = default;
  MatrixView(T* elements, Index row_count, Index col_count)
      : MatrixView(elements, row_count, col_count, col_count) {}
  MatrixView(T* elements, Index row_count, Index col_count, Index row_stride)
      : data(elements), rows(row_count), cols(col_count), stride(row_stride) {}

  T* row(Index r) const noexcept { return data + r * stride; }
  T& operator()(Index r, Index c) const noexcept { return data[r * stride + c]; }

  MatrixView row_range(Index first, Index count) const noexcept {
    return {row(first), count, cols, stride};
  }
  MatrixView col_range(Index first, Index count) const noexcept {
    return {data + first, rows, count, stride};
  }

  operator MatrixView<const T>() const noexcept {  // NOLINT(google-explicit-constructor)
    return {data, rows, cols, stride};
  }
};

/// An Eigen matrix, or a block of one, as a view.
inline MatrixView<const float> view_of(const Eigen::Ref<const RowMajorMatrix>& matrix) noexcept {
  return {matrix.data(), matrix.rows(), matrix.cols(), matrix.outerStride()};
}
template <class Matrix>
MatrixView<float> mutable_view_of(Matrix& matrix) noexcept {
  return {matrix.data(), matrix.rows(), matrix.cols(), matrix.outerStride()};
}

/// Throws std::invalid_argument unless `matrix` is [rows, cols], rows at least as far apart as they
/// are wide. `name` is for the message.
template <class T>
void require_matrix(const char* name, MatrixView<T> matrix, Index rows, Index cols) {
  require(matrix.rows == rows && matrix.cols == cols, name, " must have shape [", rows, ", ", cols,
          "], got [", matrix.rows, ", ", matrix.cols, "]");
  require(rows <= 1 || matrix.stride >= cols, name, " has rows of ", cols, " elements ",
          matrix.stride, " apart");
}

/// Memory for `size` elements, aligned to a cache line and not initialised.
template <class T>
class AlignedBuffer {
  static_assert(std::is_trivially_copyable_v<T>, "AlignedBuffer holds plain data only");

 public:
  static constexpr std::size_t kAlignment = 64;

  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t count)
      : data_(static_cast<T*>(::operator new (count * sizeof(T), std::align_val_t{kAlignment}))),
        size_(count) {}
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::move(other.data_)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    data_ = std::move(other.data_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  T* data() const noexcept { return data_.get(); }
  std::size_t size() const noexcept { return size_; }
  T& operator[](std::size_t i) const noexcept { return data_.get()[i]; }
  T* begin() const noexcept { return data(); }
  T* end() const noexcept { return data() + size_; }

 private:
  struct Delete {
    void operator()(T* p) const noexcept { ::operator delete (p, std::align_val_t{kAlignment}); }
  };
  std::unique_ptr<T[], Delete> data_;
  std::size_t size_ = 0;
};

}  // namespace mla

#endif  // MLA_CORE_TENSOR_HPP_
