#include "mla/model/decoder_model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "model/synthetic_checkpoint.hpp"
#include "support/compare.hpp"
#include "support/executors.hpp"
#include "support/test_layer.hpp"

// What a checkpoint must have, and what a call must not ask for.

namespace mla::test {
namespace {

// Loading the tensors of a small model after `change` fails with all of `parts` in the message.
template <class Change>
::testing::AssertionResult loading_fails(const nlohmann::json& config, const Change& change,
                                         const std::vector<std::string>& parts) {
  std::vector<SyntheticTensor> tensors = synthetic_tensors(config);
  change(tensors);
  const SyntheticCheckpoint files(config, tensors);
  return fails_naming([&] { DecoderModel::load(files.path()); }, parts);
}

TEST(LoadDecoder, EveryTensorIsMissedByName) {
  for (const nlohmann::json& config :
       {synthetic_config(), synthetic_v2_config("group_limited_greedy")}) {
    const auto all = synthetic_tensors(config);
    for (std::size_t i = 0; i < all.size(); ++i) {
      // What multi-token prediction shares with the model where it has none of its own.
      if (all[i].name == "model.layers.3.embed_tokens.weight" ||
          all[i].name == "model.layers.3.shared_head.head.weight")
        continue;
      EXPECT_TRUE(loading_fails(
          config, [&](auto& tensors) { tensors.erase(tensors.begin() + static_cast<Index>(i)); },
          {all[i].name, "is missing"}))
          << all[i].name;
    }
  }
}

TEST(LoadDecoder, EveryShapeIsChecked) {
  const auto all = synthetic_tensors(synthetic_config());
  for (std::size_t i = 0; i < all.size(); ++i)
    EXPECT_TRUE(loading_fails(synthetic_config(), [&](auto& tensors) { ++tensors[i].shape.back(); },
                              {all[i].name, "has shape", shape_text(all[i].shape)}))
        << all[i].name;
}

TEST(LoadDecoder, ATensorThatIsNotUsedIsRefused) {
  const auto refused = [](const nlohmann::json& config, const std::string& name) {
    EXPECT_TRUE(loading_fails(config,
                              [&](auto& tensors) {
                                tensors.push_back({name, {4}, 1.0});
                              },
                              {name, "not used"}));
  };
  for (const char* name :
       {"model.layers.1.mlp.experts.6.gate_proj.weight", "model.layers.1.mlp.gate_proj.weight",
        "model.layers.1.mlp.gate.bias", "model.layers.1.self_attn.q_norm.weight",
        "model.layers.4.enorm.weight", "model.layers.30.mlp.up_proj.weight", "vision.weight"})
    refused(synthetic_config(), name);
  refused(synthetic_v2_config("greedy"), "model.layers.1.mlp.gate.e_score_correction_bias");
  refused(synthetic_v2_config("greedy"), "model.layers.3.enorm.weight");
}

TEST(LoadDecoder, HarmlessTensorsAreIgnored) {
  nlohmann::json config = synthetic_config();
  config["num_nextn_predict_layers"] = 2;
  auto tensors = synthetic_tensors(config);
  tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", {3}, 1.0});
  tensors.push_back({"model.layers.4.enorm.weight", {22}, 1.0});  // of the second module
  const SyntheticCheckpoint files(config, tensors);
  EXPECT_NE(DecoderModel::load(files.path()).prediction(), nullptr);
}

// As transformers does: num_nextn_predict_layers decides, the file's module is ignored.
TEST(LoadDecoder, AModuleThatTheConfigDoesNotCountIsIgnored) {
  const auto tensors = synthetic_tensors(synthetic_config());
  for (const nlohmann::json& count : {nlohmann::json(0), nlohmann::json(nullptr)}) {
    nlohmann::json config = synthetic_config();
    config["num_nextn_predict_layers"] = count;
    const SyntheticCheckpoint files(config, tensors);
    const DecoderModel model = DecoderModel::load(files.path());
    EXPECT_EQ(model.prediction(), nullptr);
    EXPECT_EQ(model.config().num_nextn_predict_layers, 0);
  }
}

// A fourth layer of a model of three is not a module: it has no eh_proj.
TEST(LoadDecoder, ALayerMoreThanTheConfigCountsIsRefused) {
  nlohmann::json config = synthetic_config();
  config.update({{"num_hidden_layers", 4}, {"num_nextn_predict_layers", 0}});
  const auto tensors = synthetic_tensors(config);
  config["num_hidden_layers"] = 3;
  const SyntheticCheckpoint files(config, tensors);
  EXPECT_TRUE(
      fails_naming([&] { DecoderModel::load(files.path()); }, {"model.layers.3.", "not used"}));
}

// A copy of the tensors of `files` in one file, and one more: `name`, with the elements of `like`.
void add_copy(const SyntheticCheckpoint& files, const std::string& name, const std::string& like,
              bool change_a_bit, const std::filesystem::path& path) {
  const SafetensorsFile from(files.path() / "model.safetensors");
  SafetensorsWriter writer;
  const auto add = [&](const std::string& as, const SafetensorsTensor& tensor, bool change) {
    std::vector<std::byte> bytes(tensor.bytes.begin(), tensor.bytes.end());
    if (change) bytes.back() ^= std::byte{1};
    writer.add(as, std::string(name_of(tensor.dtype)), tensor.shape, bytes);
  };
  for (const auto& [own_name, tensor] : from.tensors()) add(own_name, tensor, false);
  add(name, from.tensor(like), change_a_bit);
  writer.write(path);
}

TEST(LoadDecoder, TheHeadOfATiedModelMustBeACopyOfTheEmbedding) {
  nlohmann::json config = synthetic_config();
  config["tie_word_embeddings"] = true;
  const SyntheticCheckpoint files(config);
  for (const bool different : {false, true}) {
    const TemporaryDirectory directory;
    write_file(directory / "config.json", config.dump());
    add_copy(files, "lm_head.weight", "model.embed_tokens.weight", different,
             directory / "model.safetensors");
    if (different)
      EXPECT_TRUE(fails_naming(
          [&] { DecoderModel::load(directory.path()); },
          {"tensor lm_head.weight", "model.embed_tokens.weight", "tie_word_embeddings"}));
    else
      EXPECT_NO_THROW(DecoderModel::load(directory.path()));
  }
}

// Converted checkpoints keep num_nextn_predict_layers but lack the module.
TEST(LoadDecoder, WithoutItsTensorsThereIsNoMultiTokenPrediction) {
  auto tensors = synthetic_tensors(synthetic_config());
  std::erase_if(tensors, [](const SyntheticTensor& tensor) {
    return tensor.name.starts_with("model.layers.3.");
  });
  const SyntheticCheckpoint files(synthetic_config(), tensors);
  const DecoderModel model = DecoderModel::load(files.path());
  EXPECT_EQ(model.prediction(), nullptr);
  EXPECT_EQ(model.config().num_nextn_predict_layers, 1) << "the config stays as it was read";
}

TEST(LoadDecoder, MultiTokenPredictionSharesWhatItDoesNotHave) {
  auto tensors = synthetic_tensors(synthetic_config());
  std::erase_if(tensors, [](const SyntheticTensor& tensor) {
    return tensor.name == "model.layers.3.embed_tokens.weight" ||
           tensor.name == "model.layers.3.shared_head.head.weight";
  });
  const SyntheticCheckpoint files(synthetic_config(), tensors);
  const Checkpoint checkpoint(files.path());
  const DecoderWeights weights = load_decoder_weights(checkpoint, load_model_config(files.path()));
  ASSERT_TRUE(weights.prediction);
  EXPECT_EQ(weights.prediction->embed_tokens.data, weights.embed_tokens.data);
  EXPECT_EQ(weights.prediction->shared_head.data, weights.lm_head.data);
}

// Published checkpoints hold embedding and head a second time; one copy in the caches is enough.
TEST(LoadDecoder, MultiTokenPredictionSharesWhatItHasACopyOf) {
  const auto shares = [](const std::filesystem::path& directory) {
    const Checkpoint checkpoint(directory);
    const DecoderWeights weights = load_decoder_weights(checkpoint, load_model_config(directory));
    return weights.prediction->shared_head.data == weights.lm_head.data &&
           weights.prediction->embed_tokens.data == weights.embed_tokens.data;
  };
  EXPECT_TRUE(shares(std::filesystem::path(MLA_MODELS) / "tiny-shakespeare-v3"));
  EXPECT_FALSE(shares(SyntheticCheckpoint(synthetic_config()).path())) << "matrices of its own";
}

// Views into the mapped file: nothing is copied or converted.
TEST(LoadDecoder, WeightsAreWhereTheFileIsMapped) {
  const SyntheticCheckpoint files(synthetic_config());
  const Checkpoint checkpoint(files.path());
  const DecoderWeights weights = load_decoder_weights(checkpoint, load_model_config(files.path()));
  EXPECT_EQ(weights.lm_head.data, checkpoint.tensor("lm_head.weight").bytes.data());
  const auto& experts = std::get<MixtureOfExpertsWeights>(weights.layers[1].mlp);
  EXPECT_EQ(experts.experts[4].up_proj.data,
            checkpoint.tensor("model.layers.1.mlp.experts.4.up_proj.weight").bytes.data());
}

TEST(LoadDecoder, TheModelMayMove) {
  const SyntheticCheckpoint files(synthetic_config());
  DecoderModel first = DecoderModel::load(files.path());
  const auto tokens = random_tokens(10, first.vocab_size(), 1);
  DecoderState a(first.config());
  const RowMajorMatrix expected = first.forward(tokens, a);
  const DecoderModel second = std::move(first);
  DecoderState b(second.config());
  EXPECT_TRUE(same_bits(second.forward(tokens, b), expected));
}

class DecoderCall : public ::testing::Test {
 protected:
  template <class Call>
  void refused(const Call& call, std::initializer_list<const char*> parts) {
    EXPECT_TRUE(refuses(call, parts));
    expect_unchanged();
  }
  void expect_unchanged() {
    EXPECT_EQ(state.size(), 20);
    for (Index layer = 0; layer < state.layers(); ++layer)
      EXPECT_EQ(CacheContents(state.layer(layer)), before[static_cast<std::size_t>(layer)]);
  }

  DecoderCall() {
    model.forward(random_tokens(20, model.vocab_size(), 1), state);
    for (Index layer = 0; layer < state.layers(); ++layer) before.emplace_back(state.layer(layer));
  }

  SyntheticCheckpoint files{synthetic_config()};
  DecoderModel model = DecoderModel::load(files.path());
  DecoderState state{model.config()};
  std::vector<CacheContents> before;
  Context context;
};

TEST_F(DecoderCall, RefusesWhatDoesNotFitAndLeavesTheStateAsItWas) {
  const auto tokens = random_tokens(300, model.vocab_size(), 2);
  const auto some = std::span(tokens).first(5);
  RowMajorMatrix logits(5, 37);
  refused([&] { model.forward(tokens, state); }, {"20 + 300", "max_position_embeddings 200"});
  refused(
      [&] {
        model.forward(std::vector<TokenId>{3, 37}, state);
      },
      {"token 37", "place 1", "37"});
  refused([&] { model.forward(std::vector<TokenId>{-1}, state); }, {"token -1"});
  refused([&] { model.forward(some, state, {.chunk_tokens = 0}); }, {"chunk_tokens", "0"});
  refused([&] { model.forward(some.first(4), state, logits, context); },
          {"4 tokens", "the last 5"});
  refused([&] { model.forward(some, state, logits.leftCols(36), context); }, {"37", "36"});
  refused([&] { model.forward_hidden(some, state, logits, context); }, {"hidden", "22", "37"});
  RowMajorMatrix hidden(5, 22);
  refused([&] { model.head(hidden, logits.topRows(4), context); }, {"[4, 22]", "[5, 22]"});
  refused([&] { state.truncate(21); }, {"20", "21"});
  refused([&] { state.truncate(-1); }, {"-1"});

  ModelConfig config = model.config();
  config.num_hidden_layers = 2;
  DecoderState other(config);
  refused([&] { model.forward(some, other); }, {"state", "2 layers", "3"});
  config = model.config();
  config.attention.kv_lora_rank = 19;
  DecoderState wider(config);
  refused([&] { model.forward(some, wider); }, {"19 + 6", "17 + 6"});
  EXPECT_EQ(model.forward(std::span(tokens).first(180), state).rows(), 180) << "a full context";
}

TEST_F(DecoderCall, AFailureInABatchLeavesAllStatesAsTheyWere) {
  const auto tokens = random_tokens(30, model.vocab_size(), 3);
  DecoderState second(model.config());
  int failures = 0;
  for (bool failed = true; failed; ++failures) {
    FailingExecutor executor(failures);
    Context failing(executor);
    RowMajorMatrix logits(2, 37);
    const TextStep batch[] = {{&state, tokens, 1}, {&second, tokens, 1}};
    try {
      model.forward(batch, logits, failing, {.chunk_tokens = 12});
      EXPECT_EQ(second.size(), 30);
      state.truncate(20);
      second.clear();
    } catch (const std::runtime_error&) {
    }
    failed = executor.failed();
    expect_unchanged();
    for (Index layer = 0; layer < second.layers(); ++layer)
      EXPECT_EQ(second.layer(layer).size(), 0);
  }
  EXPECT_GT(failures, 20) << "in every chunk and layer";
}

TEST_F(DecoderCall, PredictionRefusesWhatDoesNotFit) {
  const auto tokens = random_tokens(4, model.vocab_size(), 2);
  RowMajorMatrix hidden = RowMajorMatrix::Ones(4, 22), logits(4, 37);
  LatentCache& cache = *state.prediction();
  const auto call = [&](const RowMajorMatrix& h, std::span<const TokenId> next, Index position,
                        Eigen::Ref<RowMajorMatrix> out) {
    model.prediction()->forward(h, next, position, cache, out, context);
  };
  EXPECT_TRUE(refuses([&] { call(hidden.topRows(3), tokens, 0, logits); }, {"hidden", "4", "3"}));
  EXPECT_TRUE(refuses([&] { call(hidden, std::vector<TokenId>{0, 1, 2, 99}, 0, logits); }, {"99"}));
  EXPECT_TRUE(refuses([&] { call(hidden, tokens, 0, logits.leftCols(5)); }, {"logits", "37", "5"}));
  call(hidden, tokens, 3, logits);
  EXPECT_TRUE(refuses([&] { call(hidden, tokens, 6, logits); }, {"position_ids", "6"}));
  EXPECT_EQ(cache.size(), 4);
  state.truncate(5);  // position 3 was made with token 4, position 4 with one that is gone
  EXPECT_EQ(cache.size(), 1);
  state.truncate(0);
  EXPECT_EQ(cache.size(), 0);
}

// Of tokens whose prediction nobody asks for only the cache rows are computed.
TEST_F(DecoderCall, PredictionsOfTheLastTokensAreThoseOfAll) {
  const auto tokens = random_tokens(20, model.vocab_size(), 5);
  const RowMajorMatrix hidden = RowMajorMatrix::Random(20, 22);
  RowMajorMatrix all(20, 37);
  const auto predict = [&](Eigen::Ref<RowMajorMatrix> logits) {
    state.prediction()->clear();
    model.prediction()->forward(hidden, tokens, 3, *state.prediction(), logits, context,
                                AttentionForm::absorbed);
    return CacheContents(*state.prediction());
  };
  const CacheContents expected = predict(all);
  for (const Index wanted : {0, 1, 2, 19}) {
    RowMajorMatrix logits(wanted, 37);
    EXPECT_EQ(predict(logits), expected) << wanted;
    EXPECT_TRUE(same_bits(logits, all.bottomRows(wanted))) << wanted;
  }
}

TEST_F(DecoderCall, AFailureOfPredictionLeavesItsCacheAsItWas) {
  const auto tokens = random_tokens(9, model.vocab_size(), 5);
  const RowMajorMatrix hidden = RowMajorMatrix::Random(9, 22);
  RowMajorMatrix logits(2, 37);
  int failures = 0;
  for (bool failed = true; failed; ++failures) {
    FailingExecutor executor(failures);
    Context failing(executor);
    const CacheContents before_call(*state.prediction());
    try {
      model.prediction()->forward(hidden, tokens, 0, *state.prediction(), logits, failing);
      state.prediction()->clear();
    } catch (const std::runtime_error&) {
    }
    failed = executor.failed();
    EXPECT_EQ(CacheContents(*state.prediction()), before_call);
  }
  EXPECT_GT(failures, 3);
}

TEST_F(DecoderCall, AFailureAnywhereLeavesTheStateAsItWas) {
  const auto tokens = random_tokens(30, model.vocab_size(), 3);
  int failures = 0;
  for (bool failed = true; failed; ++failures) {
    FailingExecutor executor(failures);
    Context failing(executor);
    RowMajorMatrix logits(30, 37);
    try {
      model.forward(tokens, state, logits, failing, {.chunk_tokens = 12});
      state.truncate(20);
    } catch (const std::runtime_error&) {
    }
    failed = executor.failed();
    expect_unchanged();
  }
  EXPECT_GT(failures, 20) << "in every chunk and layer";
}

TEST_F(DecoderCall, NoTokensAreNothing) {
  EXPECT_EQ(model.forward({}, state).rows(), 0);
  expect_unchanged();
}

TEST_F(DecoderCall, LogitsOfTheLastTokensAreThoseOfAll) {
  const auto tokens = random_tokens(50, model.vocab_size(), 4);
  const DecoderOptions options = {.mode = AttentionForm::absorbed, .chunk_tokens = 16};
  const RowMajorMatrix all = model.forward(tokens, state, options);
  for (const Index wanted : {0, 1, 2, 3, 17, 49, 50}) {
    state.truncate(20);
    RowMajorMatrix logits(wanted, 37);
    model.forward(tokens, state, logits, context, options);
    EXPECT_TRUE(same_bits(logits, all.bottomRows(wanted))) << wanted;
    EXPECT_EQ(state.size(), 70);
  }
}

TEST_F(DecoderCall, TheStateKnowsItsBytes) {
  EXPECT_EQ(state.bytes_per_token(), 4u * 23 * 4);
  EXPECT_EQ(state.bytes_used(), 20u * 3 * 23 * 4) << "prediction has seen nothing";
  EXPECT_GE(state.bytes_allocated(), state.bytes_used());
  state.clear();
  EXPECT_EQ(state.size(), 0);
  EXPECT_EQ(state.bytes_used(), 0u);
}

}  // namespace
}  // namespace mla::test
