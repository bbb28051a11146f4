#ifndef MLA_IO_TENSOR_READER_HPP_
#define MLA_IO_TENSOR_READER_HPP_

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/safetensors.hpp"
#include "mla/io/safetensors_dtype.hpp"

namespace mla {

/// Takes tensors out of a checkpoint by their names and remembers which, so that one that nobody
/// asked for is found: it belongs to another kind of model.
///
/// Errors are std::runtime_error with the checkpoint's path and the tensor's full name. The
/// checkpoint must outlive the reader and the views that it gives.
class TensorReader {
 public:
  /// Of all tensors.
  explicit TensorReader(const Checkpoint& checkpoint) : checkpoint_(&checkpoint) {}

  /// Of the tensors of one module: under("model.layers.0").matrix("mlp.gate.weight", ...) takes
  /// model.layers.0.mlp.gate.weight. What it takes, this reader has taken.
  TensorReader under(const std::string& module) const { return beginning(module + "."); }
  /// Of the tensors whose names begin so.
  TensorReader beginning(const std::string& prefix) const {
    TensorReader reader = *this;
    reader.prefix_ += prefix;
    return reader;
  }

  /// Whether the numbers of tensors may be looked at.
  TensorData use() const noexcept { return checkpoint_->use(); }

  bool contains(const std::string& name) const { return checkpoint_->contains(prefix_ + name); }

  /// Names of all tensors, taken or not, as this reader's functions want them.
  std::vector<std::string> names() const {
    std::vector<std::string> result = checkpoint_->names(prefix_);
    for (std::string& name : result) name.erase(0, prefix_.size());
    return result;
  }

  /// Whether a matrix is there, in whatever format: "X.weight" may be X.weight_packed.
  bool contains_matrix(const std::string& name) const {
    return checkpoint_->contains_matrix(prefix_ + name);
  }

  /// Weight [rows, cols] in any format; takes its scales, too. Throws when something of it is
  /// missing or has another shape, or an element type that is none of a weight.
  WeightView matrix(const std::string& name, Index rows, Index cols) {
    const std::string& weight = take(name);
    for (std::string& part : checkpoint_->parts_of_matrix(weight)) taken_->insert(std::move(part));
    return checkpoint_->matrix(weight, rows, cols);
  }

  /// Several weights [rows, cols] of the same shape in one tensor [count, rows, cols], one below
  /// the other: [count * rows, cols]. Throws as matrix() does; quantised tensors are not taken.
  WeightView stack(const std::string& name, Index count, Index rows, Index cols) {
    const SafetensorsTensor& tensor = checkpoint_->tensor(take(name));
    if (tensor.shape != std::vector<Index>{count, rows, cols})
      fail(name, " has shape ", shape_text(tensor.shape), ", expected ",
           shape_text({count, rows, cols}));
    const std::optional<WeightFormat> format = weight_format_of(tensor.dtype);
    if (!format)
      fail(name, " has dtype ", name_of(tensor.dtype), ", which cannot be used as a weight here");
    return {tensor.bytes.data(), *format, count * rows, cols};
  }

  /// Norm or bias [1, size], stored as [size]. Throws as matrix() does.
  WeightView vector(const std::string& name, Index size) {
    return checkpoint_->vector(take(name), size);
  }
  /// The same, or an empty view where it is missing.
  WeightView optional_vector(const std::string& name, Index size) {
    return contains(name) ? vector(name, size) : WeightView();
  }

  /// Lets a tensor pass that changes nothing, if it is there.
  void ignore(const std::string& name) { take(name); }

  /// Throws for the first tensor that was not taken.
  void refuse_unused() const {
    for (const std::string& name : names())
      if (!taken_->contains(prefix_ + name)) fail(name, " is not used by this configuration");
  }

  /// Throws with `parts` after the name: fail("a.bias", " is missing").
  template <class... Parts>
  [[noreturn]] void fail(const std::string& name, const Parts&... parts) const {
    throw_runtime(checkpoint_->path(), ": tensor ", prefix_, name, parts...);
  }

 private:
  const std::string& take(const std::string& name) { return *taken_->insert(prefix_ + name).first; }

  const Checkpoint* checkpoint_;
  std::string prefix_;
  std::shared_ptr<std::set<std::string>> taken_ = std::make_shared<std::set<std::string>>();
};

}  // namespace mla

#endif  // MLA_IO_TENSOR_READER_HPP_
