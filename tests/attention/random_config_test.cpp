// Two hundred random layers, each held to everything that is promised of all.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "support/executors.hpp"
#include "support/isas.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

// Measured over these layers: at most 2.8e-6. Tiny dims average less than those of
// reference_agreement_test.cpp, so single roundings show.
constexpr double kTolerance = 1e-5;

AttentionConfig random_config(Random& random) {
  AttentionConfig c;
  c.hidden_size = random.integer(1, 70);
  c.num_attention_heads = random.chance(0.05) ? random.integer(20, 130) : random.integer(1, 9);
  c.q_lora_rank = random.chance(0.3) ? 0 : random.integer(1, 70);
  c.kv_lora_rank = random.integer(1, 70);
  c.qk_nope_head_dim = random.integer(1, 40);
  c.qk_rope_head_dim = 2 * random.integer(1, 17);
  c.v_head_dim = random.integer(1, 40);
  c.rope_theta = random.one_of({10.0, 500.0, 10000.0, 8e6});
  c.rope_interleave = random.chance(0.5);
  c.query_norm = random.chance(0.7);
  c.rope_key_per_head = random.chance(0.3);
  c.q_a_layernorm_eps = random.one_of({1e-6, 1e-5, 0.1});
  c.kv_a_layernorm_eps = random.one_of({1e-6, 1e-5, 0.1});
  c.rope_scaling.type =
      random.one_of({RopeScalingType::none, RopeScalingType::linear, RopeScalingType::ntk,
                     RopeScalingType::yarn, RopeScalingType::yarn});
  c.rope_scaling.factor = random.uniform(1.0, 50.0);
  c.rope_scaling.original_max_position_embeddings = random.integer(4, 4096);
  c.rope_scaling.beta_slow = random.uniform(0.5, 2.0);
  c.rope_scaling.beta_fast = c.rope_scaling.beta_slow + random.uniform(0.0, 40.0);
  c.rope_scaling.mscale = random.uniform(0.0, 1.0);
  c.rope_scaling.mscale_all_dim = random.uniform(0.0, 1.0);
  return c;
}

// Ends of the parts of [0, tokens), some of them empty.
std::vector<Index> random_parts(Index tokens, Random& random) {
  std::vector<Index> ends;
  for (Index parts = random.integer(1, 5); parts > 1; --parts)
    ends.push_back(random.integer(0, tokens));
  ends.push_back(tokens);
  std::sort(ends.begin(), ends.end());
  return ends;
}

void check_layer(std::uint64_t seed) {
  Random random(seed);
  const AttentionConfig config = random_config(random);
  const bool split = random.chance(0.3);
  const WeightOptions weights = {.dtype = DType::float32,
                                 .mixed_dtypes = random.chance(0.5),
                                 .split = split,
                                 .biases = !split && random.chance(0.3)};
  const Index tokens = random.chance(0.1) ? random.integer(250, 330) : random.integer(1, 140);
  const auto isas = supported_isas(Precision::float32);
  const simd::Isa isa = isas[random.bits() % isas.size()];
  SCOPED_TRACE(::testing::Message()
               << "seed " << seed << ": " << describe(config) << " split " << weights.split
               << " biases " << weights.biases << " mixed " << weights.mixed_dtypes << " tokens "
               << tokens << " isa " << simd::name_of(isa));

  TestLayer layer(config, weights, seed);
  const RowMajorMatrix x = layer.input(tokens);
  const std::vector<Index> positions = with_gaps(tokens, random.one_of({1, 3, 100}), random);
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(tokens), 1);
  if (random.chance(0.4))
    for (auto& m : mask) m = random.chance(0.3) ? 0 : 1;
  DoubleMatrix expected = reference_output(layer, x, positions, mask);
  for (Index t = 0; t < tokens; ++t)
    if (!mask[static_cast<std::size_t>(t)]) expected.row(t).setZero();

  for (Mode mode : {Mode::absorbed, Mode::decompressed}) {
    Context context(simd::kernels_for(isa));
    const ForwardOptions options = {
        .mode = mode, .position_ids = positions, .attention_mask = mask};
    LatentKVCache<float> once(config);
    const RowMajorMatrix out = run(layer, x, once, context, options);
    EXPECT_TRUE(close(out, expected, kTolerance)) << "mode " << static_cast<int>(mode);

    // On threads, in parts, each part in a batch between other sequences.
    ThreadExecutor threads(random.integer(1, 4));
    Context threaded(threads, simd::kernels_for(isa));
    LatentKVCache<float> cache(config), before(config), after(config);
    Index first = 0;
    for (Index end : random_parts(tokens, random)) {
      const Index count = end - first, others[] = {random.integer(0, 3), random.integer(0, 3)};
      const Index rows = others[0] + count + others[1];
      RowMajorMatrix part(rows, x.cols()), part_out(rows, x.cols());
      part << layer.input(others[0]), x.middleRows(first, count), layer.input(others[1]);
      std::vector<Index> ids = consecutive(before.next_position(), others[0]);
      std::vector<std::uint8_t> part_mask(static_cast<std::size_t>(others[0]), 1);
      ids.insert(ids.end(), positions.begin() + first, positions.begin() + end);
      part_mask.insert(part_mask.end(), mask.begin() + first, mask.begin() + end);
      for (Index i = 0; i < others[1]; ++i) {
        ids.push_back(after.next_position() + i);
        part_mask.push_back(1);
      }
      const std::vector<Sequence<float>> batch = {
          {&before, others[0]}, {&cache, count}, {&after, others[1]}};
      layer.layer.forward(part, batch, part_out, threaded,
                          {.mode = mode, .position_ids = ids, .attention_mask = part_mask});
      EXPECT_TRUE(same_bits(part_out.middleRows(others[0], count), out.middleRows(first, count)))
          << "mode " << static_cast<int>(mode) << " tokens " << first << " to " << end;
      first = end;
    }
    EXPECT_EQ(CacheContents(cache), CacheContents(once));
  }
}

TEST(RandomLayers, AreTheReferenceInBothModesForAnyChunksBatchesAndThreads) {
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    check_layer(seed);
    if (::testing::Test::HasFailure()) return;  // the first one says enough
  }
}

}  // namespace
}  // namespace mla::test
