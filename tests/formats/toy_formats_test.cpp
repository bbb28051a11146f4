// Formats of this program's own, with the one function (two for a cache) and the one table row that
// a format owes, are right on every instruction set, in every shape and in both forms.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "conformance/attention_case.hpp"
#include "conformance/run_layer.hpp"
#include "mla/mla.hpp"
#include "support/compare.hpp"
#include "support/isas.hpp"
#include "support/kernel_oracle.hpp"
#include "support/random.hpp"

namespace mla::test {
namespace {

// Memory of weights in the toy format, and of what they decode to.
class ToyWeights {
 public:
  // The nearest that the format has.
  WeightView quantise(const WeightView& exact) {
    RowMajorMatrix values(exact.rows, exact.cols);
    info_of(exact.format).widen(exact, {values.data(), exact.rows, exact.cols});
    const Index groups = (exact.cols + kGroup - 1) / kGroup;
    auto& codes = codes_.emplace_back(static_cast<std::size_t>(exact.rows * exact.cols));
    const Index stride = groups + 1;  // NaN behind the scales of each row
    auto& scales = scales_.emplace_back(static_cast<std::size_t>(exact.rows * stride),
                                        std::numeric_limits<float>::quiet_NaN());
    for (Index r = 0; r < exact.rows; ++r)
      for (Index g = 0; g < groups; ++g) {
        const Index first = g * kGroup, count = std::min(kGroup, exact.cols - first);
        const float scale = values.row(r).segment(first, count).cwiseAbs().maxCoeff() / 127.0f;
        scales[static_cast<std::size_t>(r * stride + g)] = scale;
        for (Index c = first; c < first + count; ++c)
          codes[static_cast<std::size_t>(r * exact.cols + c)] =
              static_cast<std::int8_t>(scale == 0.0f ? 0.0f : std::nearbyint(values(r, c) / scale));
      }
    return {codes.data(), WeightFormat::extra, exact.rows, exact.cols,
            Scales{.data = scales.data(), .block_cols = kGroup, .stride = stride}};
  }

  // What they are by definition.
  WeightView decode(const WeightView& toy) {
    auto& values = decoded_.emplace_back(toy.rows, toy.cols);
    info_of(toy.format).widen(toy, {values.data(), toy.rows, toy.cols});
    return WeightView(values);
  }

 private:
  static constexpr Index kGroup = 8;
  std::list<std::vector<std::int8_t>> codes_;
  std::list<std::vector<float>> scales_;
  std::list<RowMajorMatrix> decoded_;
};

bool same_elements(const GuardedMatrix<float>& a, const GuardedMatrix<float>& b) {
  for (Index r = 0; r < a.view().rows; ++r)
    if (std::memcmp(a.view().row(r), b.view().row(r),
                    static_cast<std::size_t>(a.view().cols) * sizeof(float)) != 0)
      return false;
  return a.gaps_are_untouched();
}

class ToyFormat : public EveryIsa {
 protected:
  float* scratch() {
    scratch_ = AlignedBuffer<float>(static_cast<std::size_t>(kernels().linear_scratch));
    std::fill(scratch_.begin(), scratch_.end(), std::numeric_limits<float>::quiet_NaN());
    return scratch_.data();
  }

  // Of the same view, in the toy format and decoded.
  void expect_same_products(const WeightView& toy, const WeightView& decoded, Index tokens,
                            Random& random) {
    const simd::LinearKernels& own = kernels().of(WeightFormat::extra);
    const simd::LinearKernels& plain = kernels().of(WeightFormat::float32);
    const GuardedMatrix<float> x(tokens, toy.cols, random), y(tokens, toy.rows, random);
    GuardedMatrix<float> actual(tokens, toy.rows), expected(tokens, toy.rows);
    own.linear(x.view(), nullptr, toy, actual.view(), scratch());
    plain.linear(x.view(), nullptr, decoded, expected.view(), scratch());
    ASSERT_TRUE(same_elements(actual, expected)) << tokens << " " << toy.rows << " " << toy.cols;
    GuardedMatrix<float> back(tokens, toy.cols), expected_back(tokens, toy.cols);
    own.linear_transposed(y.view(), toy, back.view(), scratch());
    plain.linear_transposed(y.view(), decoded, expected_back.view(), scratch());
    ASSERT_TRUE(same_elements(back, expected_back))
        << tokens << " " << toy.rows << " " << toy.cols << " transposed";
  }

 private:
  AlignedBuffer<float> scratch_;
};
MLA_FOR_EVERY_ISA(ToyFormat);

TEST_P(ToyFormat, ProductsAreThoseOfTheDecodedWeightsToTheLastBit) {
  Random random(1);
  ToyWeights weights;
  for (const Index rows : {1, 3, 65, 270})
    for (const Index cols : {1, 7, 8, 129, 770}) {
      const GuardedMatrix<float> exact(rows, cols, random);
      const WeightView toy = weights.quantise(exact.view()), decoded = weights.decode(toy);
      for (const Index tokens : {1, 2, 16, 17, 200, 600}) {
        if (rows * cols > 30000 && tokens > 200) continue;
        expect_same_products(toy, decoded, tokens, random);
      }
      // Heads and shares that begin in the middle of a scale's block.
      if (rows > 5 && cols > 20)
        expect_same_products(toy.row_range(3, rows - 4).col_range(5, cols - 9),
                             decoded.row_range(3, rows - 4).col_range(5, cols - 9), 18, random);
    }
}

// All matrices of a layer in the toy format; norms and biases as they are.
AttentionWeights map_matrices(const AttentionWeights& weights,
                              const std::function<WeightView(const WeightView&)>& map) {
  AttentionWeights mapped = weights;
  for (WeightView* matrix :
       {&mapped.q_proj, &mapped.q_a_proj, &mapped.q_b_proj, &mapped.q_b_nope_proj,
        &mapped.q_b_rope_proj, &mapped.kv_a_proj_with_mqa, &mapped.kv_a_proj, &mapped.k_rope_proj,
        &mapped.kv_b_proj, &mapped.k_b_proj, &mapped.v_b_proj, &mapped.o_proj})
    if (*matrix) *matrix = map(*matrix);
  return mapped;
}

// The output of all of a case's tokens in one call, a cache per sequence.
RowMajorMatrix run_case(const conformance::AttentionCase& c, const AttentionWeights& weights,
                        std::vector<LatentCache>& caches, AttentionForm mode,
                        const simd::Kernels& kernels) {
  const MultiheadLatentAttention layer(c.config, weights);
  Context context(kernels);
  std::vector<Sequence> batch;
  for (LatentCache& cache : caches) batch.push_back({&cache, c.tokens});
  RowMajorMatrix out(c.rows(), c.config.hidden_size);
  layer.forward(c.hidden_states, batch, out, context,
                {.mode = mode, .position_ids = c.position_ids, .attention_mask = c.attention_mask});
  return out;
}

std::vector<LatentCache> caches_of(const conformance::AttentionCase& c, CacheFormat format) {
  std::vector<LatentCache> caches;
  for (Index s = 0; s < c.sequences; ++s) caches.emplace_back(c.config, format);
  return caches;
}

// The largest error of tokens whose output the golden has, relative to the largest output.
double error_of(const RowMajorMatrix& output, const conformance::AttentionCase& c) {
  double worst = 0.0, largest = 0.0;
  for (Index row = 0; row < c.rows(); ++row) {
    if (!c.has_output(row)) continue;
    const auto expected = c.expected.output.row(row).cast<double>();
    worst = std::max(worst, (output.row(row).cast<double>() - expected).cwiseAbs().maxCoeff());
    largest = std::max(largest, expected.cwiseAbs().maxCoeff());
  }
  return worst / largest;
}

std::filesystem::path golden_path(const std::string& name) {
  return std::filesystem::path(MLA_TEST_DATA) / "goldens" / (name + ".safetensors");
}

class ToyGolden : public ::testing::TestWithParam<const char*> {
 protected:
  std::vector<conformance::AttentionCase> cases() const {
    return conformance::read_attention_cases(file_, WeightFormat::float32);
  }
  // 8 bits move outputs by some thousandths. Logits of 300 turn that into other weights
  // altogether, and their golden only bounds the definition, bit for bit.
  double tolerance() const { return GetParam() == std::string_view("nasty_logits") ? 10.0 : 0.05; }

  conformance::CaseFile file_{golden_path(GetParam())};
};

TEST_P(ToyGolden, HoldsWithToyWeightsAndIsThatOfTheDecodedOnes) {
  for (const conformance::AttentionCase& c : cases()) {
    ToyWeights memory;
    const AttentionWeights toy = map_matrices(
        c.weights->views(), [&](const WeightView& matrix) { return memory.quantise(matrix); });
    const AttentionWeights decoded =
        map_matrices(toy, [&](const WeightView& matrix) { return memory.decode(matrix); });
    for (const simd::Isa isa : supported_isas())
      for (const AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
        const simd::Kernels& kernels = simd::kernels_for(isa);
        auto caches = caches_of(c, CacheFormat::float32),
             others = caches_of(c, CacheFormat::float32);
        const RowMajorMatrix actual = run_case(c, toy, caches, mode, kernels);
        EXPECT_TRUE(same_bits(actual, run_case(c, decoded, others, mode, kernels)));
        EXPECT_LT(error_of(actual, c), tolerance()) << simd::name_of(isa);
      }
  }
}

// With the toy cache, and attention over it is attention over its decoded rows, to the last bit.
TEST_P(ToyGolden, HoldsWithAToyCache) {
  for (const conformance::AttentionCase& c : cases())
    for (const simd::Isa isa : supported_isas())
      for (const AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
        const simd::Kernels& kernels = simd::kernels_for(isa);
        auto caches = caches_of(c, CacheFormat::extra);
        EXPECT_LT(error_of(run_case(c, c.weights->views(), caches, mode, kernels), c), tolerance())
            << simd::name_of(isa);

        const LatentCache& cache = caches.front();
        LatentCache decoded(c.config, CacheFormat::float32);
        RowMajorMatrix rows(cache.size(), cache.layout().width());
        for (Index i = 0; i < cache.size(); ++i)
          info_of(cache.format()).widen(cache.layout(), cache.rows().row(i), rows.row(i).data());
        decoded.append(view_of(rows), cache.positions());
        const auto attend = [&](const LatentCache& from) {
          Context context(kernels);
          const Index tokens = std::min<Index>(5, from.size());
          const CachedTokens last = CachedTokens::ending_in(from, 0, tokens);
          const AttentionConfig& config = c.config;
          const bool absorbed = mode == AttentionForm::absorbed;
          const Index key =
              absorbed ? config.kv_lora_rank + config.qk_rope_head_dim : config.qk_head_dim();
          const Index value = absorbed ? config.kv_lora_rank : config.v_head_dim;
          Random random(3);
          const RowMajorMatrix queries =
              random_matrix(tokens, config.num_attention_heads * key, random);
          RowMajorMatrix values(tokens, config.num_attention_heads * value);
          const LatentDecompression decompression(config, c.weights->views());
          if (absorbed)
            AbsorbedAttention(config, 0.3)
                .forward({&last, 1}, view_of(queries), mutable_view_of(values), context);
          else
            DecompressedAttention(config, 0.3, decompression)
                .forward({&last, 1}, view_of(queries), mutable_view_of(values), context);
          return values;
        };
        EXPECT_TRUE(same_bits(attend(cache), attend(decoded))) << simd::name_of(isa);
      }
}

INSTANTIATE_TEST_SUITE_P(Files, ToyGolden,
                         ::testing::Values("chunked", "decode", "nasty_logits", "padded_left",
                                           "rope_pair", "tutorial_lesson", "tutorial_mini",
                                           "v2lite_mini", "v3_mini", "yarn", "yarn_gaps",
                                           "yarn_mscale"),
                         [](const auto& name) { return std::string(name.param); });

TEST(ToyFormats, AreRefusedWithoutScales) {
  const std::int8_t codes[16] = {};
  const auto message = [&](const WeightView& weight) {
    std::string text;
    try {
      require_shape("kv_b_proj", weight, 2, 8);
    } catch (const std::invalid_argument& error) {
      text = error.what();
    }
    return text;
  };
  const float scales[2] = {};
  EXPECT_EQ(message({codes, WeightFormat::extra, 2, 8}),
            "tensor kv_b_proj of format toy needs scales");
  EXPECT_EQ(
      message(
          {codes, WeightFormat::extra, 2, 8, Scales{.data = scales, .block_cols = 4, .stride = 1}}),
      "tensor kv_b_proj has scales for blocks of 1 x 4 with a stride of 1, which do not cover "
      "8 columns");
  EXPECT_EQ(message({codes, WeightFormat::extra, 2, 8,
                     Scales{.data = scales, .block_cols = 8, .stride = 1}}),
            "");
}

}  // namespace
}  // namespace mla::test
