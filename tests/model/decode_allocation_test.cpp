// What generating text allocates.
#include <gtest/gtest.h>

#include <new>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "mla/model/generate.hpp"
#include "mla/model/sampler.hpp"
#include "model/synthetic_checkpoint.hpp"
#include "model/test_sampler.hpp"
#include "model/trained_decoder.hpp"
#include "support/compare.hpp"
#include "support/counting_operator_new.hpp"

namespace mla::test {
namespace {

TEST(DecodeAllocation, ATokenAllocatesNothingFromTheSecondStepOn) {
  const Goldens goldens(kModel);
  struct Drafting {
    bool speculative;
    Index drafts, lookup;
  };
  for (const auto [speculative, drafts, lookup] :
       {Drafting{false, 1, 0}, Drafting{true, 1, 0}, Drafting{true, 4, 0}, Drafting{true, 4, 2}}) {
    for (const double temperature : {0.0, 0.9}) {
      DecoderState state(trained_model().config(), CacheFormat::bfloat16);
      TestSampler sampler(trained_model().vocab_size(), temperature, 1);
      Context context;
      std::vector<long> counts;
      counts.reserve(200);
      const AllocationCount allocations;
      generate(trained_model(), state, goldens.prompt("medium"), sampler, context,
               {.max_tokens = 150,
                .speculative = speculative,
                .draft_tokens = drafts,
                .lookup = lookup,
                .on_token = [&](TokenId) {
                  counts.push_back(allocations.count());
                  return true;
                }});
      ASSERT_EQ(counts.size(), 150u);
      // A call without drafts and one with them.
      const auto seen = static_cast<std::size_t>(4 + 2 * drafts);
      EXPECT_EQ(counts[149], counts[seen]) << "speculative " << speculative << " " << drafts;
    }
  }
}

TEST(DecodeAllocation, AForwardPassOfAKnownSizeAllocatesNothing) {
  const Goldens goldens(kModel);
  const auto tokens = goldens.prompt("long");
  DecoderState state(trained_model().config());
  state.reserve(200);
  Context context;
  RowMajorMatrix logits(1, trained_model().vocab_size());
  trained_model().forward(tokens, state, logits, context);
  state.clear();
  const AllocationCount allocations;
  trained_model().forward(tokens, state, logits, context);
  EXPECT_EQ(allocations.count(), 0);
}

// Chunks bound the scratch memory: ten times the prompt takes no more of it.
TEST(DecodeAllocation, ALongPromptTakesNoMoreScratchMemoryThanAChunk) {
  const std::vector<TokenId> tokens(250, 5);
  std::vector<std::size_t> bytes;
  for (const std::size_t count : {25u, 250u}) {
    DecoderState state(trained_model().config());
    Context context;
    RowMajorMatrix logits(1, trained_model().vocab_size());
    trained_model().forward(std::span(tokens).first(count), state, logits, context,
                            {.mode = AttentionForm::absorbed, .chunk_tokens = 25});
    bytes.push_back(context.workspace().bytes_allocated());
  }
  EXPECT_EQ(bytes[1], bytes[0]);
}

// One layer with experts and the module for multi-token prediction.
nlohmann::json smallest_config() {
  nlohmann::json config = synthetic_config();
  config.update({{"num_hidden_layers", 1},
                 {"first_k_dense_replace", 0},
                 {"n_routed_experts", 2},
                 {"n_group", 1},
                 {"topk_group", 1}});
  return config;
}

TEST(AllocationFailure, WhileAModelIsLoadedLeaksNothing) {
  const SyntheticCheckpoint checkpoint(smallest_config());
  EXPECT_GT(fail_each_allocation([&] { DecoderModel::load(checkpoint.path()); }, [] {}), 1000);
}

TEST(AllocationFailure, InAForwardPassLeavesTheStateAsItWas) {
  const SyntheticCheckpoint checkpoint(smallest_config());
  const DecoderModel model = DecoderModel::load(checkpoint.path());
  const auto tokens = random_tokens(73, model.vocab_size(), 1);
  RowMajorMatrix logits(1, model.vocab_size());
  const auto forward_all = [&] {
    DecoderState state(model.config(), CacheFormat::bfloat16);
    Context context;
    Index done = 0;
    try {
      for (const Index until : {3, 72, 73}) {
        const auto part = std::span(tokens).subspan(static_cast<std::size_t>(done),
                                                    static_cast<std::size_t>(until - done));
        model.forward(part, state, logits, context);
        done = until;
      }
    } catch (const std::bad_alloc&) {
      EXPECT_EQ(state.size(), done);
      throw;
    }
  };
  forward_all();
  const RowMajorMatrix expected = logits;
  EXPECT_GT(fail_each_allocation(forward_all, [] {}), 15);
  EXPECT_TRUE(same_bits(logits, expected));
}

TEST(AllocationFailure, WhileTextIsGeneratedLeaksNothing) {
  const SyntheticCheckpoint checkpoint(smallest_config());
  const DecoderModel model = DecoderModel::load(checkpoint.path());
  const auto prompt = random_tokens(20, model.vocab_size(), 1);
  const auto generate_some = [&] {
    DecoderState state(model.config());
    Sampler sampler(model.vocab_size());
    Context context;
    generate(model, state, prompt, sampler, context, {.max_tokens = 10, .speculative = true});
  };
  EXPECT_GT(fail_each_allocation(generate_some, [] {}), 20);
}

}  // namespace
}  // namespace mla::test
