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

/// The same as a run-time value.
enum class DType { float32, bfloat16, float16 };

template <StorageElement T>
inline constexpr DType kDTypeOf = std::is_same_v<T, float>      ? DType::float32
                                  : std::is_same_v<T, bfloat16> ? DType::bfloat16
                                                                : DType::float16;

constexpr Index bytes_of(DType dtype) noexcept { return dtype == DType::float32 ? 4 : 2; }

constexpr const char* name_of(DType dtype) noexcept {
  return dtype == DType::float32 ? "f32" : dtype == DType::bfloat16 ? "bf16" : "f16";
}

/// A row-major matrix in somebody else's memory: row r starts at data + r * stride.
template <class T>
struct MatrixView {
  T* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index stride = 0;  ///< elements from one row to the next, >= cols

  MatrixView() = default;
  MatrixView(T* data, Index rows, Index cols) : MatrixView(data, rows, cols, cols) {}
  MatrixView(T* data, Index rows, Index cols, Index stride)
      : data(data), rows(rows), cols(cols), stride(stride) {}

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

/// Weights [rows, cols] = [out_features, in_features], row-major and dense as in the checkpoint, of
/// any storage type; not owned and never copied. A vector is a matrix of one row.
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::float32;
  Index rows = 0;
  Index cols = 0;

  WeightView() = default;
  template <StorageElement T>
  WeightView(const T* data, Index rows, Index cols)
      : data(data), dtype(kDTypeOf<T>), rows(rows), cols(cols) {}
  WeightView(const void* data, DType dtype, Index rows, Index cols)
      : data(data), dtype(dtype), rows(rows), cols(cols) {}

  explicit operator bool() const noexcept { return data != nullptr; }
  Index bytes() const noexcept { return rows * cols * bytes_of(dtype); }

  template <StorageElement T>
  MatrixView<const T> as() const noexcept {
    return {static_cast<const T*>(data), rows, cols};
  }
};

/// Calls visitor(MatrixView<const T>) with the element type that `weight` has.
template <class Visitor>
decltype(auto) visit(const WeightView& weight, Visitor&& visitor) {
  switch (weight.dtype) {
    case DType::bfloat16:
      return visitor(weight.as<bfloat16>());
    case DType::float16:
      return visitor(weight.as<float16>());
    default:
      return visitor(weight.as<float>());
  }
}

/// Memory for `size` elements, aligned to a cache line and not initialised.
template <class T>
class AlignedBuffer {
  static_assert(std::is_trivially_copyable_v<T>, "AlignedBuffer holds plain data only");

 public:
  static constexpr std::size_t kAlignment = 64;

  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t size)
      : data_(static_cast<T*>(::operator new (size * sizeof(T), std::align_val_t{kAlignment}))),
        size_(size) {}
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
