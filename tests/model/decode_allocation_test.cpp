// What generating text allocates.
#include <gtest/gtest.h>

#include <vector>

#include "mla/model/generate.hpp"
#include "model/test_sampler.hpp"
#include "model/trained_decoder.hpp"
#include "support/counting_operator_new.hpp"

namespace mla::test {
namespace {

TEST(DecodeAllocation, ATokenAllocatesNothingFromTheSecondStepOn) {
  const Goldens goldens(kModel);
  for (const bool speculative : {false, true}) {
    for (const double temperature : {0.0, 0.9}) {
      DecoderState<bfloat16> state(trained_model().config());
      TestSampler sampler(trained_model().vocab_size(), temperature, 1);
      Context context;
      std::vector<long> counts;
      counts.reserve(200);
      const AllocationCount allocations;
      generate(trained_model(), state, goldens.prompt("medium"), sampler, context,
               {.max_tokens = 150, .speculative = speculative, .on_token = [&](TokenId) {
                  counts.push_back(allocations.count());
                  return true;
                }});
      ASSERT_EQ(counts.size(), 150u);
      EXPECT_EQ(counts[149], counts[4]) << "speculative " << speculative;
    }
  }
}

TEST(DecodeAllocation, AForwardPassOfAKnownSizeAllocatesNothing) {
  const Goldens goldens(kModel);
  const auto tokens = goldens.prompt("long");
  DecoderState<float> state(trained_model().config());
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
    DecoderState<float> state(trained_model().config());
    Context context;
    RowMajorMatrix logits(1, trained_model().vocab_size());
    trained_model().forward(std::span(tokens).first(count), state, logits, context,
                            {.mode = Mode::absorbed, .chunk_tokens = 25});
    bytes.push_back(context.workspace().bytes_allocated());
  }
  EXPECT_EQ(bytes[1], bytes[0]);
}

}  // namespace
}  // namespace mla::test
