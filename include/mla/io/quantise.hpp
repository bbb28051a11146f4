#ifndef MLA_IO_QUANTISE_HPP_
#define MLA_IO_QUANTISE_HPP_

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "mla/core/error.hpp"
#include "mla/core/executor.hpp"
#include "mla/core/float8.hpp"
#include "mla/core/tensor.hpp"
#include "mla/core/weight_view.hpp"
#include "mla/io/checkpoint.hpp"

// Weights in fewer bits than they were published in, in the layouts of compressed-tensors, so that
// they are read, and saved, as those of a published model.

namespace mla {

/// Says how a matrix, "model.layers.0.mlp.gate_proj.weight", is to be quantised; std::nullopt: not.
/// int8 and int4 are possible, with a scale per row (block_cols 0) or per block_cols inputs of it.
using QuantisationPolicy = std::function<std::optional<WeightScheme>(std::string_view name)>;

/// What is asked of quantise().
struct QuantiseOptions {
  Executor* executor = nullptr;  ///< nullptr: the calling thread
  /// Called after each matrix with how many are done, and how many there are.
  std::function<void(Index done, Index all)> on_progress = nullptr;
};

/// The usual policy for int8 or int4: all matrices of attention but kv_b_proj, all of the MLPs and
/// experts, and the head. int8 has a scale per row. int4 has one per 32 inputs; its head is int8.
/// Norms, embeddings, routers and what is not known stay as they are. Throws std::invalid_argument
/// for other formats.
inline QuantisationPolicy default_policy(WeightFormat format) {
  require(format == WeightFormat::int8 || format == WeightFormat::int4,
          "weights are quantised to int8 or int4, got ",
          static_cast<std::size_t>(format) < kWeightFormatCount ? name_of(format) : "no format");
  return [format](std::string_view name) -> std::optional<WeightScheme> {
    const WeightScheme int8 = {WeightFormat::int8, 1, 0}, int4 = {WeightFormat::int4, 1, 32};
    if (name == "lm_head.weight" || name.ends_with(".lm_head.weight") ||
        name.ends_with(".shared_head.head.weight"))
      return int8;
    for (const char* projection : {"q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj",
                                   "gate_proj", "up_proj", "down_proj"})
      if (name.ends_with("." + std::string(projection) + ".weight"))
        return format == WeightFormat::int8 ? int8 : int4;
    return std::nullopt;
  };
}

namespace detail {

/// Calls step(first, count) for pieces of [0, n): kLanes at a time, which compilers know, then
/// ones.
template <class Step>
void for_lanes(Index n, const Step& step) {
  constexpr int kLanes = 8;
  Index i = 0;
  for (; i + kLanes <= n; i += kLanes) step(i, std::integral_constant<int, kLanes>());
  for (; i < n; ++i) step(i, std::integral_constant<int, 1>());
}

inline float peak_of(const float* x, Index n) noexcept {
  float peak = 0.0f;
  for (Index i = 0; i < n; ++i) peak = std::max(peak, std::abs(x[i]));
  return peak;
}

/// Codes of x [n] for a scale, and the sum of their squared errors.
inline double quantise_with(const float* x, Index n, float scale, float least, float most,
                            float* codes) noexcept {
  double sums[8] = {};
  for_lanes(n, [&](Index i, auto lanes) {
    for (int k = 0; k < lanes.value; ++k) {
      float code = nearest_integer(x[i + k] / scale);
      code = code < least ? least : code;
      code = code > most ? most : code;
      codes[i + k] = code;
      const auto error = static_cast<double>(x[i + k] - scale * code);
      sums[k] += error * error;
    }
  });
  double sum = 0.0;
  for (const double lane : sums) sum += lane;
  return sum;
}

/// A group of weights that share a scale, and memory to quantise it. A group of zeros, or as good
/// as, has the scale 1.
class GroupQuantiser {
 public:
  explicit GroupQuantiser(Index most)
      : codes_(static_cast<std::size_t>(most)), tried_(static_cast<std::size_t>(most)) {}

  /// The codes that the last call made.
  const std::vector<float>& codes() const noexcept { return codes_; }

  /// scale = amax / 127, codes = round(x / scale).
  float int8(const float* x, Index n) noexcept {
    const float scale = peak_of(x, n) / 127.0f;
    if (!(scale > 0.0f)) return zeros();
    quantise_with(x, n, scale, -127.0f, 127.0f, codes_.data());
    return scale;
  }

  /// scale = bfloat16(amax / d) for d = 7, 7 1/8, ... 9 1/2, that with the smallest sum of squared
  /// errors, the first of equals; codes = round(x / scale), -8 to 7.
  bfloat16 int4(const float* x, Index n) noexcept {
    const float peak = peak_of(x, n);
    bfloat16 best(0.0f), last(0.0f);
    double least = std::numeric_limits<double>::infinity();
    for (int step = 0; step <= 20; ++step) {
      const bfloat16 candidate(peak / (7.0f + 0.125f * static_cast<float>(step)));
      const float scale = static_cast<float>(candidate);
      if (!(scale > 0.0f) || candidate == last) continue;
      last = candidate;
      const double error = quantise_with(x, n, scale, -8.0f, 7.0f, tried_.data());
      if (!(error < least)) continue;
      least = error;
      best = candidate;
      std::swap(codes_, tried_);
    }
    return best == bfloat16(0.0f) ? bfloat16(zeros()) : best;
  }

 private:
  float zeros() noexcept {
    std::ranges::fill(codes_, 0.0f);
    return 1.0f;
  }

  std::vector<float> codes_, tried_;
};

/// One matrix in the tensors of compressed-tensors: int-quantized or pack-quantized.
class MatrixQuantiser {
 public:
  /// `source` [rows, cols], which must outlive the object, as matrix `name`.
  MatrixQuantiser(std::string name, const WeightView& source, const WeightScheme& scheme)
      : name_(std::move(name)),
        source_(source),
        scheme_(scheme),
        group_(scheme.block_cols == 0 ? source.cols : scheme.block_cols),
        groups_((source.cols + group_ - 1) / group_) {
    const bool int4 = scheme.format == WeightFormat::int4;
    words_ = (source.cols + 7) / 8;
    codes_ = int4 ? make("_packed", SafetensorsDType::int32, {source.rows, words_})
                  : make("", SafetensorsDType::int8, {source.rows, source.cols});
    scales_ = make("_scale", int4 ? SafetensorsDType::bfloat16 : SafetensorsDType::float32,
                   {source.rows, groups_});
  }

  /// Its tensors. Throws std::runtime_error for a weight that is not finite.
  std::vector<Checkpoint::OwnTensor> run(const std::string& origin, Executor& executor) {
    constexpr Index kRows = 16;
    std::atomic<Index> bad = -1;  // a row that cannot be quantised
    std::vector<Worker> workers(static_cast<std::size_t>(executor.concurrency()),
                                Worker(source_.cols, std::min(group_, source_.cols)));
    executor.parallel_for((source_.rows + kRows - 1) / kRows, [&](Index task, Index worker) {
      for (Index r = task * kRows; r < std::min((task + 1) * kRows, source_.rows); ++r)
        if (!quantise_row(r, workers[static_cast<std::size_t>(worker)])) bad = r;
    });
    if (bad >= 0)
      throw_runtime(origin, ": tensor ", name_, " has a weight in row ", bad.load(),
                    " that is not finite");
    std::vector<Checkpoint::OwnTensor> tensors;
    tensors.push_back(std::move(codes_));
    tensors.push_back(std::move(scales_));
    if (scheme_.format == WeightFormat::int4) tensors.push_back(make_shape());
    return tensors;
  }

 private:
  // Memory of a thread.
  struct Worker {
    Worker(Index cols, Index group) : row(static_cast<std::size_t>(cols)), quantiser(group) {}
    std::vector<float> row;
    GroupQuantiser quantiser;
  };

  Checkpoint::OwnTensor make(const char* suffix, SafetensorsDType dtype,
                             const std::vector<Index>& shape) const {
    Index bytes = bytes_of(dtype);
    for (const Index dim : shape) bytes *= dim;
    AlignedBuffer<std::byte> memory(static_cast<std::size_t>(bytes));
    const std::span<const std::byte> view(memory.data(), memory.size());
    return {{name_ + suffix, dtype, shape, view}, std::move(memory)};
  }
  Checkpoint::OwnTensor make_shape() const {
    auto tensor = make("_shape", SafetensorsDType::int32, {2});
    auto* const shape = reinterpret_cast<std::int32_t*>(tensor.memory.data());
    shape[0] = static_cast<std::int32_t>(source_.rows);
    shape[1] = static_cast<std::int32_t>(source_.cols);
    return tensor;
  }

  // Whether all weights of the row are finite.
  bool quantise_row(Index r, Worker& worker) noexcept {
    info_of(source_.format).widen(source_.row_range(r, 1), {worker.row.data(), 1, source_.cols});
    if (!std::ranges::all_of(worker.row, [](float x) { return std::isfinite(x); })) return false;
    const bool int4 = scheme_.format == WeightFormat::int4;
    if (int4) std::fill_n(elements<std::uint32_t>(codes_) + r * words_, words_, 0u);
    for (Index g = 0; g < groups_; ++g) {
      const Index first = g * group_, count = std::min(group_, source_.cols - first);
      const float* const x = worker.row.data() + first;
      if (int4)
        elements<bfloat16>(scales_)[r * groups_ + g] = worker.quantiser.int4(x, count);
      else
        elements<float>(scales_)[r * groups_ + g] = worker.quantiser.int8(x, count);
      const std::vector<float>& codes = worker.quantiser.codes();
      for (Index i = 0; i < count; ++i)
        store(r, first + i, static_cast<int>(codes[static_cast<std::size_t>(i)]));
    }
    return true;
  }

  // int4: eight codes per word, the first in the lowest bits, 8 added.
  void store(Index r, Index c, int code) noexcept {
    if (scheme_.format == WeightFormat::int4)
      elements<std::uint32_t>(codes_)[r * words_ + c / 8] |= static_cast<std::uint32_t>(code + 8)
                                                             << (c % 8 * 4);
    else
      elements<std::int8_t>(codes_)[r * source_.cols + c] = static_cast<std::int8_t>(code);
  }

  template <class T>
  static T* elements(const Checkpoint::OwnTensor& tensor) noexcept {
    return reinterpret_cast<T*>(tensor.memory.data());
  }

  std::string name_;
  WeightView source_;
  WeightScheme scheme_;
  Index group_, groups_, words_ = 0;
  Checkpoint::OwnTensor codes_, scales_;
};

/// What `policy` makes of `name`; std::nullopt also where the weights have no more bits already.
inline std::optional<WeightScheme> wanted_scheme(const QuantisationPolicy& policy,
                                                 const std::string& name,
                                                 const SafetensorsTensor& tensor) {
  if (!name.ends_with(".weight") || tensor.shape.size() != 2 || tensor.bytes.empty())
    return std::nullopt;
  const std::optional<WeightFormat> quantised = quantised_format_of(tensor);
  const std::optional<WeightFormat> stored = quantised ? quantised : weight_format_of(tensor.dtype);
  const std::optional<WeightScheme> scheme = stored ? policy(name) : std::nullopt;
  if (!scheme) return std::nullopt;
  require((scheme->format == WeightFormat::int8 || scheme->format == WeightFormat::int4) &&
              scheme->block_rows == 1 && scheme->block_cols >= 0 && !scheme->zero_points,
          "the policy for ", name,
          " must be int8 or int4 with a scale per row or group of inputs, without zero points");
  if (info_of(*stored).bits <= info_of(scheme->format).bits) return std::nullopt;
  return scheme;
}

}  // namespace detail

/// The model with the matrices quantised that `policy` says, the others as they are; those that
/// have no more bits already are left alone. Published weights of 8 bits are decoded first. int4
/// searches the scale with the smallest squared error. One matrix at a time on all threads of the
/// executor, whose source is let go of: memory holds the result and one matrix. Throws
/// std::invalid_argument for a policy that cannot be followed, and std::runtime_error naming the
/// tensor for a weight that is not finite.
inline Checkpoint quantise(Checkpoint checkpoint, const QuantisationPolicy& policy,
                           const QuantiseOptions& options = {}) {
  std::vector<std::pair<std::string, WeightScheme>> work;
  for (const std::string& name : checkpoint.names())
    if (const auto scheme = detail::wanted_scheme(policy, name, checkpoint.tensor(name)))
      work.emplace_back(name, *scheme);
  SerialExecutor serial;
  Executor& executor = options.executor ? *options.executor : serial;
  Index done = 0;
  for (const auto& [name, scheme] : work) {
    const std::vector<Index> shape = checkpoint.tensor(name).shape;
    const WeightView source = checkpoint.matrix(name, shape[0], shape[1]);
    auto tensors = detail::MatrixQuantiser(name, source, scheme).run(checkpoint.path(), executor);
    checkpoint.replace_matrix(name, std::move(tensors), scheme);
    if (options.on_progress) options.on_progress(++done, std::ssize(work));
  }
  return checkpoint;
}

}  // namespace mla

#endif  // MLA_IO_QUANTISE_HPP_
