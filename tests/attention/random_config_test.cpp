// Random layers, each held to everything that is promised of all: both forms are the reference, and
// neither chunks, batches, threads, the order of sequences nor a truncated draft change a bit.
//
//   MLA_RANDOM_CONFIGS=50000   as many layers, in place of 600
//   MLA_RANDOM_SEED=1234       the first seed, in place of 1
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <limits>
#include <ostream>
#include <sstream>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention/random_layer_case.hpp"
#include "attention/tolerances.hpp"
#include "support/executors.hpp"
#include "support/isas.hpp"
#include "support/test_configs.hpp"
#include "support/test_layer.hpp"

namespace mla::test {
namespace {

using ::testing::AssertionFailure;
using ::testing::AssertionResult;
using ::testing::AssertionSuccess;
using Case = RandomLayerCase;

// Some layers magnify roundings: a norm over one or two numbers near zero divides by little. Their
// tolerance is a multiple of what float32 arithmetic in another order, or inputs that are rounded
// differently, do to the reference.
constexpr double kTimesUnavoidable = 10.0;

/// Largest relative error of rounding to T: 24, 8 and 11 significant bits.
template <StorageElement T>
constexpr double kRounding = std::is_same_v<T, float>      ? 0x1p-24
                             : std::is_same_v<T, bfloat16> ? 0x1p-8
                                                           : 0x1p-11;

/// Tokens of one sequence: any part of a prompt.
struct Tokens {
  RowMajorMatrix x;  // [tokens, hidden_size]
  std::vector<Index> positions;
  std::vector<std::uint8_t> mask;

  Index size() const noexcept { return x.rows(); }
  Tokens part(Index first, Index end) const {
    return {x.middleRows(first, end - first),
            {positions.begin() + first, positions.begin() + end},
            {mask.begin() + first, mask.begin() + end}};
  }
};

/// Some tokens that continue a cache.
template <StorageElement T>
struct Continued {
  LatentKVCache<T>* cache;
  Tokens tokens;
};

/// A layer of random weights and a prompt for it.
template <StorageElement T>
class RandomLayer {
 public:
  explicit RandomLayer(const Case& c)
      : case_(c),
        random_(~c.seed),
        layer_(c.config, c.weights, c.seed),
        prompt_(make_tokens(c.tokens)),
        threads_(c.threads) {}

  AssertionResult keeps_all_promises() {
    std::vector<CacheContents> contents;
    for (AttentionForm mode : {AttentionForm::absorbed, AttentionForm::decompressed}) {
      mode_ = mode;
      LatentKVCache<T> cache(case_.config);
      Context context(kernels());
      const RowMajorMatrix out = forward({{&cache, prompt_}}, context);
      contents.emplace_back(cache);
      if (auto ok = contents.front() == contents.back() ? AssertionSuccess() : AssertionFailure();
          !ok)
        return ok << "both forms do not cache the same";
      for (const auto& [name, promise] : promises())
        if (auto ok = promise(out, cache); !ok)
          return ok << "; " << name
                    << (mode == AttentionForm::absorbed ? ", absorbed" : ", decompressed");
    }
    return AssertionSuccess();
  }

 private:
  using Promise = std::function<AssertionResult(const RowMajorMatrix&, const LatentKVCache<T>&)>;

  // Each takes what one call for the whole prompt gave, on one thread.
  std::vector<std::pair<const char*, Promise>> promises() {
    const auto member = [this](auto function) {
      return [this, function](const RowMajorMatrix& out, const LatentKVCache<T>& cache) {
        return (this->*function)(out, cache);
      };
    };
    return {{"the reference", member(&RandomLayer::is_the_reference)},
            {"token by token", member(&RandomLayer::is_the_same_token_by_token)},
            {"chunks in batches on threads", member(&RandomLayer::is_the_same_in_parts)},
            {"after a truncated draft", member(&RandomLayer::is_the_same_after_a_draft)},
            {"order of sequences", member(&RandomLayer::is_the_same_in_any_order)}};
  }

  AssertionResult is_the_reference(const RowMajorMatrix& out, const LatentKVCache<T>& cache) {
    Tokens real = {RowMajorMatrix(cache.size(), prompt_.x.cols()), {}, {}};  // without padding
    RowMajorMatrix real_out = real.x;
    DoubleMatrix expected = real.x.cast<double>();
    DoubleMatrix rows(cache.size(), cache.layout().width()), expected_rows = rows;
    for (Index t = 0, i = 0; t < prompt_.size(); ++t) {
      if (!prompt_.mask[static_cast<std::size_t>(t)]) {
        if (!out.row(t).isZero(0.0f)) return AssertionFailure() << "padding " << t << " is not 0";
        continue;
      }
      if (i == cache.size()) return AssertionFailure() << "only " << i << " tokens are cached";
      real.x.row(i) = prompt_.x.row(t);
      real.positions.push_back(prompt_.positions[static_cast<std::size_t>(t)]);
      real_out.row(i) = out.row(t);
      expected.row(i) = exact_.output.row(t);
      expected_rows.row(i) = exact_.rows.row(t);
      for (Index c = 0; c < rows.cols(); ++c) rows(i, c) = static_cast<float>(cache.row(i)[c]);
      ++i;
    }
    // Beyond the rounding to T.
    const DoubleMatrix rounding = (kRounding<T> * expected_rows.array().abs() + 0x1p-25).matrix();
    const DoubleMatrix beyond = ((rows - expected_rows).cwiseAbs() - rounding).cwiseMax(0.0);
    if (auto ok = small(beyond, expected_rows, &ReferenceResult::rows); !ok)
      return ok << " of the cached rows";
    const auto near = [&](const DoubleMatrix& outputs) {
      return small(real_out.cast<double>() - outputs, outputs, &ReferenceResult::output);
    };
    if (auto ok = near(reference_output_over(layer_, real.x, real.positions, rows)); !ok)
      return ok << " of the attention over the cached rows";
    return std::is_same_v<T, float> ? near(expected) : AssertionSuccess();
  }

  AssertionResult is_the_same_token_by_token(const RowMajorMatrix& out,
                                             const LatentKVCache<T>& once) {
    LatentKVCache<T> cache(case_.config);
    Context context(kernels());
    for (Index t = 0; t < prompt_.size(); ++t)
      if (auto ok = same_bits(forward({{&cache, prompt_.part(t, t + 1)}}, context), out.row(t));
          !ok)
        return ok << " of token " << t;
    return same(cache, once);
  }

  // On threads, in parts, each part in a batch between other sequences.
  AssertionResult is_the_same_in_parts(const RowMajorMatrix& out, const LatentKVCache<T>& once) {
    Context context(threads_, kernels());
    LatentKVCache<T> cache(case_.config), before(case_.config), after(case_.config);
    Index first = 0;
    for (Index end : random_parts(prompt_.size())) {
      const Index others = random_.integer(0, 3);
      const RowMajorMatrix all =
          forward({{&before, make_tokens(others, before.next_position())},
                   {&cache, prompt_.part(first, end)},
                   {&after, make_tokens(random_.integer(0, 3), after.next_position())}},
                  context);
      if (auto ok =
              same_bits(all.middleRows(others, end - first), out.middleRows(first, end - first));
          !ok)
        return ok << " of tokens " << first << " to " << end;
      first = end;
    }
    return same(cache, once);
  }

  AssertionResult is_the_same_after_a_draft(const RowMajorMatrix& out,
                                            const LatentKVCache<T>& once) {
    const Index keep = random_.integer(0, prompt_.size());
    Context context(kernels());
    LatentKVCache<T> cache(case_.config);
    forward({{&cache, prompt_.part(0, keep)}}, context);
    const Index size = cache.size();
    forward({{&cache, make_tokens(random_.integer(1, 70), cache.next_position())}}, context);
    cache.truncate(size);
    const Tokens rest = prompt_.part(keep, prompt_.size());
    if (auto ok = same_bits(forward({{&cache, rest}}, context), out.bottomRows(rest.size())); !ok)
      return ok << " of the tokens from " << keep << " on";
    return same(cache, once);
  }

  AssertionResult is_the_same_in_any_order(const RowMajorMatrix& out,
                                           const LatentKVCache<T>& once) {
    const Tokens others[] = {make_tokens(random_.integer(1, 20)),
                             make_tokens(random_.integer(0, 3))};
    const Index first = others[0].size(), second = others[1].size(), tokens = prompt_.size();
    LatentKVCache<T> a(case_.config), b(case_.config), cache(case_.config);
    Context context(kernels());
    const RowMajorMatrix forwards =
        forward({{&a, others[0]}, {&b, others[1]}, {&cache, prompt_}}, context);
    LatentKVCache<T> a2(case_.config), b2(case_.config), cache2(case_.config);
    BackwardExecutor backward;
    Context tasks_backward(backward, kernels());
    const RowMajorMatrix backwards =
        forward({{&cache2, prompt_}, {&b2, others[1]}, {&a2, others[0]}}, tasks_backward);
    if (auto ok = same_bits(forwards.bottomRows(tokens), out); !ok) return ok << ", last";
    if (auto ok = same_bits(backwards.topRows(tokens), out); !ok) return ok << ", first";
    if (auto ok = same_bits(forwards.topRows(first), backwards.bottomRows(first)); !ok) return ok;
    if (auto ok =
            same_bits(forwards.middleRows(first, second), backwards.middleRows(tokens, second));
        !ok)
      return ok;
    for (auto ok : {same(cache, once), same(cache2, once), same(a, a2), same(b, b2)})
      if (!ok) return ok;
    return AssertionSuccess();
  }

  const simd::Kernels& kernels() const noexcept { return simd::kernels_for(case_.isa); }

  // The outputs of a batch, one sequence after the other.
  RowMajorMatrix forward(const std::vector<Continued<T>>& sequences, Context& context) const {
    Index rows = 0;
    for (const auto& [cache, tokens] : sequences) rows += tokens.size();
    RowMajorMatrix x(rows, case_.config.hidden_size);
    RowMajorMatrix out =
        RowMajorMatrix::Constant(rows, x.cols(), std::numeric_limits<float>::quiet_NaN());
    std::vector<Index> positions;
    std::vector<std::uint8_t> mask;
    std::vector<Sequence> batch;
    for (const auto& [cache, tokens] : sequences) {
      x.middleRows(std::ssize(positions), tokens.size()) = tokens.x;
      positions.insert(positions.end(), tokens.positions.begin(), tokens.positions.end());
      mask.insert(mask.end(), tokens.mask.begin(), tokens.mask.end());
      batch.push_back({cache, tokens.size()});
    }
    layer_.layer.forward(x, batch, out, context,
                         {.mode = mode_, .position_ids = positions, .attention_mask = mask});
    return out;
  }

  Tokens make_tokens(Index count) { return make_tokens(count, case_.first_position); }
  Tokens make_tokens(Index count, Index first_position) {
    Tokens tokens = {layer_.input(count), with_gaps(count, case_.largest_gap, random_),
                     std::vector<std::uint8_t>(static_cast<std::size_t>(count), 1)};
    for (Index& position : tokens.positions) position += first_position;
    if (case_.padded)
      for (auto& m : tokens.mask) m = random_.chance(0.3) ? 0 : 1;
    return tokens;
  }

  // Ends of the parts of [0, tokens), some of them empty.
  std::vector<Index> random_parts(Index tokens) {
    std::vector<Index> ends;
    for (Index parts = random_.integer(1, 5); parts > 1; --parts)
      ends.push_back(random_.integer(0, tokens));
    ends.push_back(tokens);
    std::sort(ends.begin(), ends.end());
    return ends;
  }

  static AssertionResult same(const LatentKVCache<T>& a, const LatentKVCache<T>& b) {
    if (CacheContents(a) == CacheContents(b)) return AssertionSuccess();
    return AssertionFailure() << "the caches differ";
  }

  // Whether a difference is no larger than what float32 has to lose, as a part of the largest
  // element. What that is where kTinyFloat32Tolerance is too little is found out only there.
  AssertionResult small(const DoubleMatrix& difference, const DoubleMatrix& expected,
                        DoubleMatrix ReferenceResult::*what) {
    if (expected.size() == 0) return AssertionSuccess();
    const double largest = expected.cwiseAbs().maxCoeff();
    const double error = difference.cwiseAbs().template maxCoeff<Eigen::PropagateNaN>() / largest;
    if (error <= (rounds() ? kTinyBFloat16Tolerance : kTinyFloat32Tolerance))
      return AssertionSuccess();
    const auto& [x, positions, mask] = prompt_;
    const auto distance = [&](const ReferenceResult& other) {
      return (other.*what - exact_.*what).cwiseAbs().maxCoeff() /
             (exact_.*what).cwiseAbs().maxCoeff();
    };
    double unavoidable = distance(reference_result_in_float(layer_, x, positions, mask));
    for (int i = 0; i < 3; ++i) {
      const RowMajorMatrix noise =
          random_matrix(x.rows(), x.cols(), random_) * (rounds() ? 0x1p-9f : 0x1p-23f);
      const RowMajorMatrix rounded = x + x.cwiseProduct(noise);
      unavoidable =
          std::max(unavoidable, distance(reference_result(layer_, rounded, positions, mask)));
    }
    if (error <= kTimesUnavoidable * unavoidable) return AssertionSuccess();
    return AssertionFailure() << "relative error " << error << ", unavoidable are " << unavoidable;
  }

  // Whether products with weights or the cache are taken with numbers rounded to bfloat16.
  bool rounds() const noexcept {
    return simd::arithmetic_of(case_.isa) == Arithmetic::bfloat16 &&
           (case_.cache == CacheFormat::bfloat16 || case_.weights.mixed_formats ||
            case_.weights.format == WeightFormat::bfloat16);
  }

  Case case_;
  Random random_;
  TestLayer layer_;
  Tokens prompt_;
  ThreadExecutor threads_;
  ReferenceResult exact_ = reference_result(layer_, prompt_.x, prompt_.positions, prompt_.mask);
  AttentionForm mode_ = AttentionForm::absorbed;
};

AssertionResult keeps_all_promises(const Case& c) {
  try {
    switch (c.cache) {
      case CacheFormat::float32:
        return RandomLayer<float>(c).keeps_all_promises();
      case CacheFormat::bfloat16:
        return RandomLayer<bfloat16>(c).keeps_all_promises();
      case CacheFormat::float16:
        return RandomLayer<float16>(c).keeps_all_promises();
      case CacheFormat::int8:
      case CacheFormat::fp8:
      case CacheFormat::int4:
        return AssertionFailure() << "quantised_cache_test.cpp has these";
    }
    __builtin_unreachable();
  } catch (const std::exception& error) {
    return AssertionFailure() << "threw " << error.what();
  }
}

// `c` with one thing simpler, in every way that there is.
std::vector<Case> simpler_cases(const Case& c) {
  std::vector<Case> cases;
  const auto add = [&](auto change) {
    Case simpler = c;
    change(simpler);
    std::ostringstream before, after;
    before << c;
    after << simpler;
    if (after.str() != before.str()) cases.push_back(simpler);
  };
  add([](Case& s) { s.tokens = std::max<Index>(1, s.tokens / 2); });
  add([](Case& s) { s.tokens = std::max<Index>(1, s.tokens - 1); });
  add([](Case& s) { s.threads = 1; });
  add([](Case& s) { s.padded = false; });
  add([](Case& s) { s.first_position = 0; });
  add([](Case& s) { s.largest_gap = 1; });
  add([](Case& s) { s.isa = simd::Isa::scalar; });
  add([](Case& s) { s.cache = CacheFormat::float32; });
  add([](Case& s) { s.weights = {}; });
  add([](Case& s) { s.config.rope_scaling = {}; });
  add([](Case& s) { s.config.rope_theta = 10000.0; });
  add([](Case& s) { s.config.q_a_layernorm_eps = s.config.kv_a_layernorm_eps = 1e-6; });
  add([](Case& s) { s.config.q_latent_scale = s.config.kv_latent_scale = 1.0; });
  add([](Case& s) { s.config.query_temperature_beta = 0.0; });
  add([](Case& s) {
    s.config.q_lora_rank = 0;
    s.config.q_latent_scale = 1.0;
  });
  add([](Case& s) { s.config.query_norm = s.config.rope_interleave = true; });
  add([](Case& s) { s.config.rope_key_per_head = false; });
  for (Index AttentionConfig::*dim :
       {&AttentionConfig::hidden_size, &AttentionConfig::num_attention_heads,
        &AttentionConfig::kv_lora_rank, &AttentionConfig::qk_nope_head_dim,
        &AttentionConfig::v_head_dim}) {
    add([dim](Case& s) { s.config.*dim = 1; });
    add([dim](Case& s) { s.config.*dim = (s.config.*dim + 1) / 2; });
  }
  add([](Case& s) {
    if (s.config.rope_scaling.type == RopeScalingType::longrope) s.config.rope_scaling = {};
    s.config.qk_rope_head_dim = 2;
  });
  return cases;
}

// The simplest case that still fails, found step by step.
Case shrunk(Case c) {
  for (bool found = true; found;) {
    found = false;
    for (const Case& simpler : simpler_cases(c))
      if (!keeps_all_promises(simpler)) {
        c = simpler;
        found = true;
        break;
      }
  }
  return c;
}

std::uint64_t number_from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::stoull(text) : otherwise;
}

// Eight shares, which can run at the same time.
class RandomLayers : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Share, RandomLayers, ::testing::Range(0, 8));

TEST_P(RandomLayers, KeepAllPromises) {
  const std::uint64_t first = number_from_environment("MLA_RANDOM_SEED", 1);
  const std::uint64_t configs = number_from_environment("MLA_RANDOM_CONFIGS", 600);
  for (auto i = static_cast<std::uint64_t>(GetParam()); i < configs; i += 8) {
    const Case c = random_case(first + i);
    const AssertionResult result = keeps_all_promises(c);
    if (result) continue;
    const Case simplest = shrunk(c);
    FAIL() << result.message() << "\nRepeat with MLA_RANDOM_CONFIGS=1 MLA_RANDOM_SEED=" << c.seed
           << " --gtest_filter='*RandomLayers*/0'\nConfig: " << c << "\nFails as well ("
           << keeps_all_promises(simplest).message() << "): " << simplest;
  }
}

}  // namespace
}  // namespace mla::test
