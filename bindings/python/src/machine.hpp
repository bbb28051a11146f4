#ifndef MLA_BINDINGS_PYTHON_MACHINE_HPP_
#define MLA_BINDINGS_PYTHON_MACHINE_HPP_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <Eigen/Core>
#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "arrays.hpp"
#include "mla/attention/cost_model.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/eigen_executor.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/ops/context.hpp"
#include "programs/processors.hpp"

// What models and attention layers of Python share: names, matrices, threads.

namespace mla::python {

/// Adds the classes of models and generation, of attention layers, and of conformance cases.
void define_models(py::module_& module);
void define_attention(py::module_& module);
void define_conformance(py::module_& module);

using Rows = Eigen::Map<RowMajorMatrix, 0, Eigen::OuterStride<>>;
using ConstRows = Eigen::Map<const RowMajorMatrix, 0, Eigen::OuterStride<>>;
using FloatArray = py::array_t<float>;

inline Rows rows_of(MatrixView<float> m) {
  return {m.data, m.rows, m.cols, Eigen::OuterStride<>(m.stride)};
}
inline ConstRows rows_of(MatrixView<const float> m) {
  return {m.data, m.rows, m.cols, Eigen::OuterStride<>(m.stride)};
}

inline CacheFormat cache_format_of(const std::string& name) {
  std::string known;
  for (std::size_t i = 0; i < kCacheFormatCount; ++i) {
    if (kCacheFormats[i].name == name) return static_cast<CacheFormat>(i);
    known += (i > 0 ? ", " : "") + std::string(kCacheFormats[i].name);
  }
  throw_invalid("cache_format must be one of ", known, "; got ", name);
}

inline AttentionForm form_of(const std::string& name) {
  if (name == "automatic") return AttentionForm::automatic;
  if (name == "absorbed") return AttentionForm::absorbed;
  require(name == "decompressed", "mode must be automatic, absorbed or decompressed, got ", name);
  return AttentionForm::decompressed;
}

/// Marks an object as in use for as long as it lives: what runs without the GIL must not meet a
/// second call.
class InUse {
 public:
  InUse(std::atomic<bool>& flag, const char* what) : flag_(&flag) {
    require(!flag.exchange(true), "the ", what, " is in use by another call or generation");
  }
  InUse(InUse&& other) noexcept : flag_(std::exchange(other.flag_, nullptr)) {}
  InUse& operator=(InUse&&) = delete;
  ~InUse() {
    if (flag_) flag_->store(false);
  }

 private:
  std::atomic<bool>* flag_;
};

/// Threads, kernels and scratch memory. Calls take turns.
class Machine {
 public:
  Machine(int threads, const std::string& precision, std::ptrdiff_t hidden_size)
      : executor_(make_executor(threads, hidden_size)),
        context_(*executor_, kernels_of(precision)) {}

  Context& context() noexcept { return context_; }
  std::mutex& turn() noexcept { return turn_; }
  Index threads() const noexcept { return executor_->concurrency(); }
  /// The cache that goes with the arithmetic.
  CacheFormat cache_format() const noexcept {
    if (exact_) return CacheFormat::float32;
    return context_.kernels().of(CacheFormat::bfloat16).arithmetic == Arithmetic::float32
               ? CacheFormat::float16
               : CacheFormat::bfloat16;
  }

 private:
  static std::unique_ptr<Executor> make_executor(int threads, std::ptrdiff_t hidden_size) {
    require(threads >= 0 && threads <= 1024, "threads must be from 0 to 1024, got ", threads);
    if (threads == 0) threads = programs::default_threads(hidden_size);
    if (threads > 1) return std::make_unique<EigenExecutor>(threads);
    return std::make_unique<SerialExecutor>();
  }
  const simd::Kernels& kernels_of(const std::string& precision) {
    exact_ = precision == "exact";
    require(exact_ || precision == "fast", "precision must be fast or exact, got ", precision);
    return simd::kernels(exact_ ? Arithmetic::float32 : Arithmetic::bfloat16);
  }

  bool exact_ = true;
  std::unique_ptr<Executor> executor_;
  Context context_;
  std::mutex turn_;
};

}  // namespace mla::python

#endif  // MLA_BINDINGS_PYTHON_MACHINE_HPP_
