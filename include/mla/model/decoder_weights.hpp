#ifndef MLA_MODEL_DECODER_WEIGHTS_HPP_
#define MLA_MODEL_DECODER_WEIGHTS_HPP_

#include <optional>
#include <vector>

#include "mla/core/weight_view.hpp"
#include "mla/model/decoder_layer.hpp"

namespace mla {

/// Weights of the module for multi-token prediction under their published names.
struct MultiTokenPredictionWeights {
  WeightView embed_tokens;  ///< [vocab_size, hidden_size], the model's where it has none of its own
  WeightView enorm;         ///< [1, hidden_size]
  WeightView hnorm;         ///< [1, hidden_size]
  WeightView eh_proj;       ///< [hidden_size, 2 * hidden_size]: embedding, then hidden state
  bool hidden_first =
      false;  ///< or the other way round, as the report's formula and lessons have it
  DecoderLayerWeights layer;
  WeightView shared_head_norm;  ///< [1, hidden_size]; lessons have none
  WeightView shared_head;       ///< [vocab_size, hidden_size], the model's where it has none
};

/// Weights of a whole model under their published names: views into a checkpoint.
struct DecoderWeights {
  WeightView embed_tokens;  ///< [vocab_size, hidden_size]
  std::vector<DecoderLayerWeights> layers;
  WeightView norm;     ///< [1, hidden_size]
  WeightView lm_head;  ///< [vocab_size, hidden_size]; embed_tokens itself where they are tied
  std::optional<MultiTokenPredictionWeights> prediction;
};

}  // namespace mla

#endif  // MLA_MODEL_DECODER_WEIGHTS_HPP_
