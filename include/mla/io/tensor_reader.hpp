#ifndef MLA_IO_TENSOR_READER_HPP_
#define MLA_IO_TENSOR_READER_HPP_

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/safetensors.hpp"

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
  TensorReader under(const std::string& module) const {
    TensorReader reader = *this;
    reader.prefix_ += module + ".";
    return reader;
  }

  bool contains(const std::string& name) const { return checkpoint_->contains(prefix_ + name); }

  /// Names of all tensors, taken or not, as this reader's functions want them.
  std::vector<std::string> names() const {
    std::vector<std::string> result = checkpoint_->names(prefix_);
    for (std::string& name : result) name.erase(0, prefix_.size());
    return result;
  }

  /// Weight [rows, cols], with the scales of one that is F8_E4M3. Throws when it is missing or has
  /// another shape, or an element type that is none of a weight.
  WeightView matrix(const std::string& name, Index rows, Index cols) {
    const std::string& weight = take(name);
    const WeightView view = checkpoint_->matrix(weight, rows, cols);
    if (checkpoint_->tensor(weight).dtype == SafetensorsDType::float8_e4m3)
      take(name + "_scale_inv");
    return view;
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
