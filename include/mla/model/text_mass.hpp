#ifndef MLA_MODEL_TEXT_MASS_HPP_
#define MLA_MODEL_TEXT_MASS_HPP_

#include <cstddef>
#include <vector>

#include "mla/attention/attention_mass.hpp"
#include "mla/core/error.hpp"
#include "mla/core/tensor.hpp"
#include "mla/model/decoder_state.hpp"

namespace mla {

/// The attention that the cached tokens of a text got in each layer, from the tokens of the calls
/// that it was given to (TextStep::mass): from the last tokens of a prompt, as SnapKV has it (Li et
/// al. 2024), or from all since the last eviction, as H2O does (Zhang et al. 2023).
class TextMass {
 public:
  explicit TextMass(Index layers) : layers_(static_cast<std::size_t>(layers)) {}

  Index layers() const noexcept { return std::ssize(layers_); }
  AttentionMass& layer(Index i) noexcept { return layers_[static_cast<std::size_t>(i)]; }
  const AttentionMass& layer(Index i) const noexcept {
    return layers_[static_cast<std::size_t>(i)];
  }
  void clear() noexcept {
    for (AttentionMass& mass : layers_) mass.clear();
  }

 private:
  std::vector<AttentionMass> layers_;
};

/// Forgets, in each layer, the tokens of a text that got the least attention, as least_attended()
/// has it; others in each layer. The tokens that are left keep their positions. Returns how many
/// are gone from each layer. Throws std::invalid_argument for options that cannot be, for a `mass`
/// that was not counted up to the last token of the state, and for options without a recent token,
/// with nothing changed.
inline Index evict_least_attended(DecoderState& state, TextMass& mass,
                                  const MassEviction& options) {
  require(mass.layers() == state.layers(), "the attention was counted in ", mass.layers(),
          " layers, the state has ", state.layers());
  require(options.recent > 0, "the last token must stay: recent must be positive, got ",
          options.recent);
  std::vector<std::vector<Index>> rows;
  for (Index layer = 0; layer < state.layers(); ++layer) {
    const auto counted = mass.layer(layer).rows();
    require(std::ssize(counted) == state.size(), "the attention was counted for ", counted.size(),
            " tokens, the state has ", state.size());
    rows.push_back(least_attended(counted, options));
  }
  state.evict(rows);
  for (Index layer = 0; layer < state.layers(); ++layer)
    mass.layer(layer).evict(rows[static_cast<std::size_t>(layer)]);
  return std::ssize(rows.front());
}

}  // namespace mla

#endif  // MLA_MODEL_TEXT_MASS_HPP_
