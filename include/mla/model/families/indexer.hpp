#ifndef MLA_MODEL_FAMILIES_INDEXER_HPP_
#define MLA_MODEL_FAMILIES_INDEXER_HPP_

#include <algorithm>
#include <string>
#include <vector>

#include "mla/core/attention_config.hpp"
#include "mla/core/tensor.hpp"
#include "mla/io/config_reader.hpp"
#include "mla/io/json.hpp"
#include "mla/model/model_config.hpp"

// What the families with DeepSeek Sparse Attention share: how their files describe the indexer, and
// which layers have one.

namespace mla::families {

/// `interleave`: how pairs are rotated where the file does not say.
inline IndexerConfig read_indexer(const ConfigReader& config, bool interleave) {
  return {.type = IndexerType::full,
          .heads = config.size("index_n_heads"),
          .head_dim = config.size("index_head_dim"),
          .topk = config.size("index_topk"),
          .rope_interleave = config.boolean("indexer_rope_interleave", interleave)};
}

using IndexerTypes = std::vector<IndexerType>;

/// By `indexer_types`: "full" or "shared" for each layer.
inline IndexerTypes read_indexer_list(const ConfigReader& config) {
  IndexerTypes types;
  for (const nlohmann::json& type : config.array("indexer_types")) {
    const std::string& name = json_string(type, config.where() + "indexer_types");
    if (name != "full" && name != "shared")
      config.fail("indexer_types must be full or shared, got ", name, " for layer ", types.size());
    types.push_back(name == "full" ? IndexerType::full : IndexerType::shared);
  }
  return types;
}

/// By `index_topk_pattern`: a letter F or S for each layer.
inline IndexerTypes read_indexer_pattern(const ConfigReader& config) {
  IndexerTypes types;
  for (const char letter : config.string("index_topk_pattern")) {
    if (letter != 'F' && letter != 'S')
      config.fail("index_topk_pattern must be of F and S, got ",
                  config.string("index_topk_pattern"));
    types.push_back(letter == 'F' ? IndexerType::full : IndexerType::shared);
  }
  return types;
}

/// By `index_topk_freq` and `index_skip_topk_offset`: the first `offset` layers are full, and from
/// there on each `freq`-th.
inline IndexerTypes read_indexer_frequency(const ConfigReader& config, Index layers) {
  const Index every = config.find("index_topk_freq") ? config.size("index_topk_freq") : 1;
  const Index offset =
      config.find("index_skip_topk_offset") ? config.size("index_skip_topk_offset") : 2;
  if (every < 1) config.fail("index_topk_freq must be positive, got ", every);
  IndexerTypes types;
  for (Index layer = 0; layer < layers; ++layer)
    types.push_back(std::max<Index>(layer - offset + 1, 0) % every == 0 ? IndexerType::full
                                                                        : IndexerType::shared);
  return types;
}

/// Which layers have an indexer of their own. A file may say so in three ways, which must not
/// contradict each other; but a pattern, where there is one, stands above the frequency.
inline void read_indexer_types(const ConfigReader& config, ModelConfig& model) {
  const bool pattern = config.find("index_topk_pattern") != nullptr;
  const bool frequency = config.find("index_topk_freq") || config.find("index_skip_topk_offset");
  const IndexerTypes computed = pattern ? read_indexer_pattern(config)
                                        : read_indexer_frequency(config, model.num_hidden_layers);
  const bool listed = config.find("indexer_types") != nullptr;
  model.indexer_types = listed ? read_indexer_list(config) : computed;
  if (listed && (pattern || frequency) && model.indexer_types != computed)
    config.fail("indexer_types contradicts ", pattern ? "index_topk_pattern" : "index_topk_freq",
                pattern ? "" : " and index_skip_topk_offset");
}

}  // namespace mla::families

#endif  // MLA_MODEL_FAMILIES_INDEXER_HPP_
