// Decoders whose indexers select what tokens attend to: which layers have one, and that results do
// not depend on how a text is computed. Tiny published layouts (tests/data/models); their goldens
// are compared in tests/conformance.

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "mla/model/decoder_model.hpp"
#include "mla/model/decoder_snapshot.hpp"
#include "support/compare.hpp"
#include "support/executors.hpp"
#include "support/message_of.hpp"
#include "support/random.hpp"
#include "support/safetensors_writer.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

std::filesystem::path sparse_folder(const std::string& name) {
  return std::filesystem::path(MLA_TEST_DATA) / "models" / name;
}

// GLM-5.2's layout: layers F F S S F S, 9 keys of each token's.
const DecoderModel& shared_indexers() {
  static const DecoderModel model = DecoderModel::load(sparse_folder("glm52"));
  return model;
}
const DecoderModel& own_indexers() {
  static const DecoderModel model = DecoderModel::load(sparse_folder("dsv32"));
  return model;
}

std::vector<TokenId> sparse_text(const DecoderModel& model, Index count, std::uint64_t seed) {
  Random random(seed);
  std::vector<TokenId> tokens;
  for (Index i = 0; i < count; ++i)
    tokens.push_back(static_cast<TokenId>(random.integer(3, model.vocab_size() - 30)));
  return tokens;
}

std::span<const TokenId> part(const std::vector<TokenId>& tokens, Index first, Index count) {
  return std::span(tokens).subspan(static_cast<std::size_t>(first),
                                   static_cast<std::size_t>(count));
}

// The published config with a patch, beside the published weights.
class PatchedModel {
 public:
  PatchedModel(const std::string& folder, const nlohmann::json& patch) {
    const auto published = sparse_folder(folder);
    std::filesystem::create_symlink(published / "model.safetensors",
                                    directory_ / "model.safetensors");
    nlohmann::json config = parse_json_file(published / "config.json");
    config.merge_patch(patch);
    write_file(directory_ / "config.json", config.dump());
  }
  DecoderModel load() const { return DecoderModel::load(directory_.path()); }

 private:
  TemporaryDirectory directory_;
};

TEST(SparseDecoder, KeepsIndexKeysWhereALayerHasAnIndexer) {
  const DecoderState state(shared_indexers().config(), CacheFormat::int8);
  const bool full[] = {true, true, false, false, true, false};
  for (Index layer = 0; layer < 6; ++layer) {
    const PagedRows* const keys = state.layer(layer).index_keys();
    ASSERT_EQ(keys != nullptr, full[layer]) << layer;
    if (keys) {
      EXPECT_EQ(keys->layout(), row_layout(CacheFormat::fp8, 36, 0));
    }
  }
  ASSERT_NE(state.prediction(), nullptr);
  EXPECT_NE(state.prediction()->index_keys(), nullptr);
}

TEST(SparseDecoder, GivesTheSameBitsInChunksBatchesAndOnThreads) {
  for (const DecoderModel* model : {&shared_indexers(), &own_indexers()})
    for (const CacheFormat format :
         {CacheFormat::float32, CacheFormat::bfloat16, CacheFormat::int8})
      for (const AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
        const auto tokens = sparse_text(*model, 80, 1), other = sparse_text(*model, 33, 2);
        DecoderState state(model->config(), format), other_state(model->config(), format);
        const RowMajorMatrix once = model->forward(tokens, state, {.mode = mode});
        const RowMajorMatrix other_once = model->forward(other, other_state, {.mode = mode});

        DecoderState chunked(model->config(), format);
        EXPECT_TRUE(
            same_bits(model->forward(tokens, chunked, {.mode = mode, .chunk_tokens = 7}), once));
        for (const Index threads : {1, 2, 3}) {
          ThreadExecutor executor(threads);
          Context context(executor);
          DecoderState a(model->config(), format), b(model->config(), format);
          RowMajorMatrix logits(113, model->vocab_size()), last(1, model->vocab_size());
          const TextStep texts[] = {{&a, part(tokens, 0, 79), 79}, {&b, other, 33}};
          model->forward(texts, logits.topRows(112), context, {.mode = mode});
          EXPECT_TRUE(same_bits(logits.topRows(79), once.topRows(79)));
          EXPECT_TRUE(same_bits(logits.middleRows(79, 33), other_once));
          model->forward(part(tokens, 79, 1), a, last, context, {.mode = mode});
          EXPECT_TRUE(same_bits(last, once.bottomRows(1)));
        }
      }
}

TEST(SparseDecoder, ForksTruncatesAndRestores) {
  const TemporaryDirectory directory;
  for (const DecoderModel* model : {&shared_indexers(), &own_indexers()}) {
    const auto tokens = sparse_text(*model, 70, 3), detour = sparse_text(*model, 12, 4);
    DecoderState state(model->config()), again(model->config()), restored(model->config());
    const RowMajorMatrix once =
        model->forward(tokens, state, {.mode = AttentionForm::absorbed}).bottomRows(20);
    const auto goes_on = [&](DecoderState& from) {
      return same_bits(
          model->forward(part(tokens, 50, 20), from, {.mode = AttentionForm::absorbed}), once);
    };
    model->forward(part(tokens, 0, 50), again, {.mode = AttentionForm::absorbed});
    DecoderState fork = again.fork(50);
    save_snapshot(directory / "state", model->config(), again);
    model->forward(detour, again);
    again.truncate(50);
    EXPECT_TRUE(goes_on(again));
    EXPECT_TRUE(goes_on(fork));
    restore_snapshot(directory / "state", model->config(), restored);
    EXPECT_TRUE(goes_on(restored));
  }
}

TEST(SparseDecoder, EvictsTheSameRowsFromAllLayersOnly) {
  const DecoderModel& model = shared_indexers();
  DecoderState state(model.config());
  model.forward(sparse_text(model, 40, 5), state);
  std::vector<std::vector<Index>> rows(6, {3, 4, 9});
  rows[3] = {3, 4, 10};
  EXPECT_EQ(message_of([&] { state.evict(rows); }),
            "layers that share a selection must forget the same rows: layer 3 would forget others "
            "than layer 0");
  EXPECT_EQ(state.size(), 40);
  rows[3] = rows[0];
  state.evict(rows);
  EXPECT_EQ(state.size(), 37);
  EXPECT_TRUE(model.forward(sparse_text(model, 3, 6), state).allFinite());
}

TEST(SparseDecoder, DoesNotCountAttention) {
  const DecoderModel& model = own_indexers();
  DecoderState state(model.config());
  TextMass mass(model.config().attentions());
  const auto tokens = sparse_text(model, 3, 7);
  const TextStep step = {.state = &state, .tokens = tokens, .mass = &mass};
  RowMajorMatrix logits(1, model.vocab_size());
  Context context;
  EXPECT_EQ(message_of([&] { model.forward(std::span(&step, 1), logits, context); }),
            "attention is not counted where an indexer selects the keys");
}

// ---- config.json and tensors

TEST(SparseDecoder, TakesTheLayersWithAnIndexerFromAListAPatternOrAFrequency) {
  const auto types = [](const nlohmann::json& patch) {
    nlohmann::json config = parse_json_file(sparse_folder("glm52") / "config.json");
    for (const char* key : {"indexer_types", "index_topk_freq", "index_skip_topk_offset"})
      config.erase(key);
    config.merge_patch(patch);
    std::string letters;
    for (const IndexerType type : read_model_config(config).indexer_types)
      letters += type == IndexerType::full ? 'F' : 'S';
    return letters;
  };
  EXPECT_EQ(types(nlohmann::json::object()), "FFFFFF");
  EXPECT_EQ(types({{"index_topk_freq", 3}}), "FFSSFS");  // the offset is 2
  EXPECT_EQ(types({{"index_topk_freq", 4}, {"index_skip_topk_offset", 3}}), "FFFSSS");
  EXPECT_EQ(types({{"index_topk_pattern", "FSSFSF"}}), "FSSFSF");
  EXPECT_EQ(types({{"index_topk_pattern", "FSSFSF"}, {"index_topk_freq", 3}}), "FSSFSF");
  EXPECT_EQ(types({{"indexer_types", {"full", "shared", "full", "full", "full", "shared"}}}),
            "FSFFFS");
}

TEST(SparseDecoder, RefusesByName) {
  const auto refused = [](const char* folder, const nlohmann::json& patch,
                          std::vector<std::string> parts) {
    nlohmann::json config = parse_json_file(sparse_folder(folder) / "config.json");
    config.merge_patch(patch);
    parts.push_back("config.json: ");
    EXPECT_TRUE(fails_naming([&] { read_model_config(config); }, parts)) << patch;
  };
  for (const char* folder : {"dsv32", "glm5", "glm52"}) {
    refused(folder, {{"index_topk", 0}}, {"index_topk must be between 1 and", "got 0"});
    refused(folder, {{"index_topk", nullptr}}, {"index_topk"});
    refused(folder, {{"index_n_heads", 0}}, {"index_n_heads"});
    refused(folder, {{"index_head_dim", 4}}, {"index_head_dim", "qk_rope_head_dim"});
    refused(folder, {{"q_lora_rank", nullptr}}, {"q_lora_rank"});
    refused(folder, {{"index_future", 1}}, {"index_future"});
  }
  refused("dsv32", {{"indexer_types", {"full", "full", "full", "shared"}}}, {"indexer_types"});
  refused("dsv32", {{"index_topk_freq", 4}}, {"index_topk_freq"});
  refused("glm52", {{"index_topk_freq", 2}}, {"indexer_types contradicts index_topk_freq"});
  refused("glm52", {{"index_topk_pattern", "FFFFFF"}},
          {"indexer_types contradicts index_topk_pattern"});
  refused("glm52", {{"index_topk_pattern", "FFxFFF"}}, {"index_topk_pattern", "FFxFFF"});
  refused("glm52", {{"indexer_types", {"full", "half", "full", "full", "full", "full"}}},
          {"indexer_types", "half"});
  refused("glm52", {{"indexer_types", nullptr}, {"index_topk_pattern", "FSF"}},
          {"indexer_types", "6", "3"});
  refused("glm52", {{"indexer_types", nullptr}, {"index_topk_pattern", "SFSSFS"}},
          {"indexer_types must begin with full"});
  refused("glm52", {{"indexer_types", nullptr}, {"index_topk_freq", 0}}, {"index_topk_freq"});
}

TEST(SparseDecoder, NamesTheTensorOfAnIndexerThatIsMissing) {
  const PatchedModel files("glm52",
                           {{"indexer_types", {"full", "full", "shared", "full", "full", "shared"}},
                            {"index_topk_freq", nullptr},
                            {"index_skip_topk_offset", nullptr}});
  EXPECT_TRUE(
      fails_naming([&] { files.load(); }, {"model.layers.3.self_attn.indexer.wq_b.weight"}));
}

// Conversions hold copies for every layer.
TEST(SparseDecoder, IgnoresTheIndexerOfALayerThatSharesASelection) {
  const PatchedModel files(
      "glm52", {{"indexer_types", {"full", "full", "shared", "shared", "shared", "shared"}},
                {"index_topk_freq", nullptr},
                {"index_skip_topk_offset", nullptr}});
  const DecoderModel model = files.load();
  DecoderState state(model.config());
  EXPECT_EQ(state.layer(4).index_keys(), nullptr);
  EXPECT_TRUE(model.forward(sparse_text(model, 30, 8), state).allFinite());
}

}  // namespace
}  // namespace mla::test
