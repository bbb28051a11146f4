#ifndef MLA_MODEL_TRAINED_DECODER_HPP_
#define MLA_MODEL_TRAINED_DECODER_HPP_

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "mla/io/safetensors.hpp"
#include "mla/model/decoder_model.hpp"

// The trained models in models/ and what they must compute.

namespace mla::test {

inline const std::filesystem::path kModel =
    std::filesystem::path(MLA_MODELS) / "tiny-shakespeare-v3";
inline const std::filesystem::path kFp8Model =
    std::filesystem::path(MLA_MODELS) / "tiny-shakespeare-v3-fp8";
inline const std::filesystem::path kUe8m0Model =
    std::filesystem::path(MLA_MODELS) / "tiny-shakespeare-v3-fp8-ue8m0";
inline const std::filesystem::path kInt4Model =
    std::filesystem::path(MLA_MODELS) / "tiny-shakespeare-v3-int4";

inline constexpr const char* kPrompts[] = {"short", "medium", "long"};

/// Logits and hidden states: the bound that the project promises for float32. The goldens differ
/// from float64 by 1.8e-5, this library by about as much.
inline constexpr float kLogitTolerance = 2e-4f;

inline const DecoderModel& trained_model() {
  static const DecoderModel model = DecoderModel::load(kModel);
  return model;
}
inline const DecoderModel& fp8_model() {
  static const DecoderModel model = DecoderModel::load(kFp8Model);
  return model;
}
/// With scales that are powers of two, but for those of o_proj.
inline const DecoderModel& ue8m0_model() {
  static const DecoderModel model = DecoderModel::load(kUe8m0Model);
  return model;
}
/// Routed experts in int4.
inline const DecoderModel& int4_model() {
  static const DecoderModel model = DecoderModel::load(kInt4Model);
  return model;
}

/// goldens.safetensors of a model.
class Goldens {
 public:
  explicit Goldens(const std::filesystem::path& directory)
      : file_(directory / "goldens.safetensors") {}

  bool contains(const std::string& name) const { return file_.contains(name); }

  /// A matrix [rows, cols] of F32.
  RowMajorMatrix matrix(const std::string& name) const {
    const SafetensorsTensor& tensor = file_.tensor(name);
    return Eigen::Map<const RowMajorMatrix>(tensor.values<float>().data(), tensor.shape.at(0),
                                            tensor.shape.at(1));
  }
  /// A vector or matrix of I32, row by row.
  std::span<const std::int32_t> integers(const std::string& name) const {
    return file_.tensor(name).values<std::int32_t>();
  }
  std::span<const float> floats(const std::string& name) const {
    return file_.tensor(name).values<float>();
  }
  std::span<const TokenId> prompt(const std::string& name) const {
    return integers(name + ".input_ids");
  }

 private:
  SafetensorsFile file_;
};

/// Keeps all that an observer sees of one call, by the names of the goldens.
class Recorder final : public DecoderObserver {
 public:
  struct Routing {
    RowMajorMatrix scores;
    std::vector<Index> experts;  // [tokens, num_experts_per_tok]
    RowMajorMatrix weights;
  };

  void on_embedding(MatrixView<const float> hidden) override { append(embed, hidden); }
  void on_norm(MatrixView<const float> hidden) override { append(norm, hidden); }
  void on_layer(Index layer, MatrixView<const float> hidden) override {
    append(at(layers, layer), hidden);
  }
  void on_experts(Index layer, const ExpertChoice& choice) override {
    Routing& routing = at(routings, layer);
    append(routing.scores, choice.scores);
    append(routing.weights, choice.weights);
    for (Index t = 0; t < choice.experts.rows; ++t)
      routing.experts.insert(routing.experts.end(), choice.experts.row(t),
                             choice.experts.row(t) + choice.experts.cols);
  }

  RowMajorMatrix embed, norm;
  std::vector<RowMajorMatrix> layers;
  std::vector<Routing> routings;

 private:
  template <class Element>
  static Element& at(std::vector<Element>& all, Index i) {
    if (std::ssize(all) <= i) all.resize(static_cast<std::size_t>(i) + 1);
    return all[static_cast<std::size_t>(i)];
  }
  static void append(RowMajorMatrix& all, MatrixView<const float> rows) {
    const Index old = all.rows();
    all.conservativeResize(old + rows.rows, rows.cols);
    for (Index t = 0; t < rows.rows; ++t)
      for (Index i = 0; i < rows.cols; ++i) all(old + t, i) = rows(t, i);
  }
};

/// The token with the largest logit; the first of equal ones.
inline TokenId best_token(const Eigen::Ref<const RowMajorMatrix>& logits, Index row) {
  Index best = 0;
  logits.row(row).maxCoeff(&best);
  return static_cast<TokenId>(best);
}

}  // namespace mla::test

#endif  // MLA_MODEL_TRAINED_DECODER_HPP_
