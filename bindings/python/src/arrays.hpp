#ifndef MLA_BINDINGS_PYTHON_ARRAYS_HPP_
#define MLA_BINDINGS_PYTHON_ARRAYS_HPP_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/token.hpp"
#include "mla/core/weight_view.hpp"

// Arrays of Python as matrices of the library, without copying: NumPy's, and those of any library
// that speaks DLPack.

namespace mla::python {

namespace py = pybind11;

/// DLPack 0.6, as its specification lays it out.
struct DlTensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t ndim;
  std::uint8_t type_code, bits;
  std::uint16_t lanes;
  std::int64_t* shape;
  std::int64_t* strides;  // elements; nullptr: row-major without gaps
  std::uint64_t byte_offset;
};

/// A weight of Python's: a view, and the object that keeps its memory.
struct OwnedWeight {
  WeightView view;
  py::object owner;
};

/// What an array is, whoever made it.
struct ArrayShape {
  const void* data = nullptr;
  WeightFormat format = WeightFormat::float32;
  std::vector<Index> shape, strides;  // strides in elements
};

/// A matrix [rows, cols] in rows; a vector is one row. Throws std::invalid_argument unless rows are
/// contiguous and apart by at least their width.
inline WeightView matrix_of(const std::string& name, const ArrayShape& array) {
  require(array.shape.size() == 1 || array.shape.size() == 2, name,
          " must have 1 or 2 dimensions, has ", array.shape.size());
  const bool vector = array.shape.size() == 1;
  const Index rows = vector ? 1 : array.shape[0], cols = array.shape.back();
  require(cols <= 1 || array.strides.back() == 1, name,
          " must be contiguous along its last dimension, elements are ", array.strides.back(),
          " apart: pass a contiguous copy");
  WeightView view(array.data, array.format, rows, cols);
  if (!vector && rows > 1) view.stride = array.strides[0];
  require(view.stride >= cols, name, " has rows of ", cols, " elements ", view.stride, " apart");
  return view;
}

inline WeightFormat format_of(const std::string& name, const py::dtype& dtype) {
  const std::string type = py::str(dtype.attr("name"));
  if (type == "float32") return WeightFormat::float32;
  if (type == "float16") return WeightFormat::float16;
  if (type == "bfloat16") return WeightFormat::bfloat16;  // of the package ml_dtypes
  throw_invalid(name, " must be float32, float16 or bfloat16, is ", type);
}

inline ArrayShape shape_of(const std::string& name, const py::array& array) {
  ArrayShape shape;
  shape.data = array.data();
  shape.format = format_of(name, array.dtype());
  const py::dtype dtype = array.dtype();
  const bool native = dtype.attr("isnative").cast<bool>();
  require(native, name, " must have the byte order of this machine");
  for (py::ssize_t d = 0; d < array.ndim(); ++d) {
    require(array.strides(d) % dtype.itemsize() == 0, name, " has a stride of ", array.strides(d),
            " bytes, which is no whole number of elements");
    shape.shape.push_back(array.shape(d));
    shape.strides.push_back(array.strides(d) / dtype.itemsize());
  }
  return shape;
}

/// Of the capsule that `__dlpack__()` gave.
inline ArrayShape shape_of(const std::string& name, const DlTensor& tensor) {
  constexpr std::int32_t kCpu = 1;
  constexpr std::uint8_t kFloat = 2, kBfloat = 4;
  require(tensor.device_type == kCpu, name, " is on a device of type ", tensor.device_type,
          ", must be in this machine's memory");
  require(tensor.lanes == 1, name, " has vectors of ", tensor.lanes, " elements");
  ArrayShape shape;
  const auto type = std::make_pair(int{tensor.type_code}, int{tensor.bits});
  if (type == std::make_pair(int{kFloat}, 32))
    shape.format = WeightFormat::float32;
  else if (type == std::make_pair(int{kFloat}, 16))
    shape.format = WeightFormat::float16;
  else if (type == std::make_pair(int{kBfloat}, 16))
    shape.format = WeightFormat::bfloat16;
  else
    throw_invalid(name, " must be float32, float16 or bfloat16, is DLPack's type ", type.first,
                  " with ", type.second, " bits");
  shape.data = static_cast<const char*>(tensor.data) + tensor.byte_offset;
  Index stride = 1;
  shape.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  shape.strides.resize(shape.shape.size());
  for (std::size_t d = shape.shape.size(); d-- > 0; stride *= shape.shape[d])
    shape.strides[d] = tensor.strides ? tensor.strides[d] : stride;
  return shape;
}

/// A NumPy array, a pair (uint16 array, "bf16"), or an object with `__dlpack__`. The memory is the
/// object's, which the result keeps.
inline OwnedWeight weight_of(const std::string& name, const py::object& object) {
  if (py::isinstance<py::tuple>(object)) {
    const auto pair = object.cast<py::tuple>();
    require(
        pair.size() == 2 && py::isinstance<py::array>(pair[0]) && py::isinstance<py::str>(pair[1]),
        name, " must be an array, or a pair of a uint16 array and \"bf16\"");
    const auto bits = pair[0].cast<py::array>();
    const std::string format = pair[1].cast<std::string>();
    require(format == "bf16" && bits.dtype().is(py::dtype::of<std::uint16_t>()), name,
            " must be an array, or a pair of a uint16 array and \"bf16\"");
    ArrayShape shape;
    shape.data = bits.data();
    shape.format = WeightFormat::bfloat16;
    for (py::ssize_t d = 0; d < bits.ndim(); ++d) {
      shape.shape.push_back(bits.shape(d));
      shape.strides.push_back(bits.strides(d) / bits.itemsize());
    }
    return {matrix_of(name, shape), pair[0]};
  }
  if (py::isinstance<py::array>(object))
    return {matrix_of(name, shape_of(name, object.cast<py::array>())), object};
  if (py::hasattr(object, "__dlpack__")) {
    // The capsule owns the tensor until it is renamed, which nobody does: it is the owner.
    const py::object capsule = object.attr("__dlpack__")();
    auto* const tensor =
        static_cast<const DlTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (!tensor) throw py::error_already_set();
    return {matrix_of(name, shape_of(name, *tensor)), capsule};
  }
  throw_invalid(name, " must be a NumPy array or have __dlpack__, is ",
                std::string(py::str(py::type::of(object))));
}

/// float32 [rows, cols] to read from.
inline MatrixView<const float> input_of(const std::string& name, const py::array& array) {
  const WeightView view = matrix_of(name, shape_of(name, array));
  require(view.format == WeightFormat::float32, name, " must be float32, is ",
          std::string(py::str(array.dtype())));
  require(array.ndim() == 2, name, " must have 2 dimensions, has ", array.ndim());
  return view.as<float>();
}

/// float32 [rows, cols] to write to.
inline MatrixView<float> output_of(const std::string& name, py::array& array) {
  const MatrixView<const float> view = input_of(name, array);
  require(array.writeable(), name, " is read-only");
  return {const_cast<float*>(view.data), view.rows, view.cols, view.stride};
}

inline std::vector<TokenId> tokens_of(const std::string& name, const py::object& object) {
  using Ids = py::array_t<std::int64_t, py::array::c_style>;
  const py::array any = py::array::ensure(object);
  if (!any) throw py::error_already_set();
  const char kind = any.dtype().kind();
  require(any.size() == 0 || kind == 'i' || kind == 'u', name, " must be integers, are ",
          std::string(py::str(any.dtype())));
  require(any.ndim() == 1, name, " must have 1 dimension, have ", any.ndim());
  const Ids ids = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>::ensure(any);
  std::vector<TokenId> tokens;
  tokens.reserve(static_cast<std::size_t>(ids.size()));
  for (py::ssize_t i = 0; i < ids.size(); ++i) {
    const std::int64_t id = ids.at(i);
    require(id >= 0 && id <= INT32_MAX, name, " has ", id, ", which is no token");
    tokens.push_back(static_cast<TokenId>(id));
  }
  return tokens;
}

}  // namespace mla::python

#endif  // MLA_BINDINGS_PYTHON_ARRAYS_HPP_
