// 200 random layers give the bits that tests/data/digests.txt has recorded, on every instruction
// set: who changes the code and not what it computes sees here that this is so. Numbers come from
// integers and powers of two, so that every platform and compiler begins with the same ones.
//
//   MLA_WRITE_DIGESTS=file   appends the digests of this build to `file`, and to `file`.layers one
//                            per layer: the first difference of two builds is where to look
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <limits>
#include <map>
#include <ostream>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "mla/attention/multihead_latent_attention.hpp"
#include "support/isas.hpp"
#include "support/random.hpp"
#include "support/test_configs.hpp"

namespace mla::test {
namespace {

constexpr int kDigestLayers = 200, kDigestGroup = 20;

#if defined(__x86_64__)
constexpr const char* kArchitecture = "x86-64";
#elif defined(__aarch64__)
constexpr const char* kArchitecture = "aarch64";
#else
constexpr const char* kArchitecture = "other";
#endif

/// FNV-1a of 64 bits.
class Digest {
 public:
  void add(const void* data, std::size_t bytes) noexcept {
    for (std::size_t i = 0; i < bytes; ++i)
      value_ = (value_ ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3u;
  }
  std::string text() const {
    std::ostringstream hex;
    hex << std::hex << std::setw(16) << std::setfill('0') << value_;
    return hex.str();
  }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325u;
};

/// In [-1, 1), of 24 bits: exact in float32.
float exact_number(Random& random) {
  return static_cast<float>(static_cast<std::int32_t>(random.bits() >> 40) - (1 << 23)) * 0x1p-23f;
}

/// The larger power of two of the two around 1 / sqrt(n).
float power_near_inverse_root(Index n) {
  float power = 1.0f;
  for (; n >= 4; n /= 4) power /= 2.0f;
  return power;
}

struct DigestCase {
  std::uint64_t seed = 0;
  AttentionConfig config;
  int weights = 0;  // 0, 1, 2: the WeightFormat of all tensors; 3: each has one of its own
  WeightFormat cache = WeightFormat::float32;
  bool split = false, biases = false, gaps = false, padded = false;
  bool spoiled = false;  // one more call has a NaN, which some of its tokens do not see
  Index history = 0;     // tokens that are appended to the first sequence
  std::vector<std::array<Index, 2>> calls;  // tokens of each of two sequences
  std::vector<AttentionForm> modes;
};

std::ostream& operator<<(std::ostream& text, const DigestCase& c) {
  text << describe(c.config) << " weights " << c.weights << " cache " << name_of(c.cache)
       << " split " << c.split << " biases " << c.biases << " gaps " << c.gaps << " padded "
       << c.padded << " spoiled " << c.spoiled << " history " << c.history << " calls";
  for (const auto& [first, second] : c.calls) text << " " << first << "+" << second;
  return text;
}

/// Random weights and their memory.
class ExactWeights {
 public:
  explicit ExactWeights(const DigestCase& c) : weights_(c.weights), random_(c.seed) {
    const AttentionConfig& config = c.config;
    const Index heads = config.num_attention_heads, hidden = config.hidden_size;
    const Index rank = config.kv_lora_rank, query_rank = config.q_lora_rank;
    const Index nope = config.qk_nope_head_dim, rope = config.qk_rope_head_dim;
    const Index v = config.v_head_dim, row = config.cache_row_width();
    constexpr float kSharp = 4.0f;  // queries that make softmax far from a plain mean

    AttentionWeights& w = views_;
    if (query_rank == 0) {
      w.q_proj = projection(heads * (nope + rope), hidden, kSharp);
    } else {
      w.q_a_proj = projection(query_rank, hidden);
      if (config.query_norm) w.q_a_layernorm = tensor(1, query_rank, 0.25f, 1.0f);
      if (c.biases) w.q_a_proj_bias = tensor(1, query_rank, 0.5f);
      if (c.split) {
        w.q_b_nope_proj = projection(heads * nope, query_rank, kSharp);
        w.q_b_rope_proj = projection(heads * rope, query_rank, kSharp);
      } else {
        w.q_b_proj = projection(heads * (nope + rope), query_rank, kSharp);
      }
    }
    if (c.split) {
      w.kv_a_proj = projection(rank, hidden);
      w.k_rope_proj = projection(row - rank, hidden);
      w.k_b_proj = projection(heads * nope, rank);
      w.v_b_proj = projection(heads * v, rank);
    } else {
      w.kv_a_proj_with_mqa = projection(row, hidden);
      if (c.biases) w.kv_a_proj_with_mqa_bias = tensor(1, row, 0.5f);
      w.kv_b_proj = projection(heads * (nope + v), rank);
    }
    w.kv_a_layernorm = tensor(1, rank, 0.25f, 1.0f);
    w.o_proj = projection(hidden, heads * v);
    if (c.biases) w.o_proj_bias = tensor(1, hidden, 0.5f);
  }

  const AttentionWeights& views() const noexcept { return views_; }

 private:
  WeightView projection(Index rows, Index cols, float scale = 1.0f) {
    return tensor(rows, cols, 2.0f * scale * power_near_inverse_root(cols));
  }

  WeightView tensor(Index rows, Index cols, float scale, float center = 0.0f) {
    const Index type = weights_ < 3 ? weights_ : random_.integer(0, 2);
    if (type == 0) return tensor_of<float>(rows, cols, scale, center);
    if (type == 1) return tensor_of<bfloat16>(rows, cols, scale, center);
    return tensor_of<float16>(rows, cols, scale, center);
  }

  template <StorageElement T>
  WeightView tensor_of(Index rows, Index cols, float scale, float center) {
    std::vector<T> elements(static_cast<std::size_t>(rows * cols));
    for (T& element : elements) element = static_cast<T>(center + scale * exact_number(random_));
    auto& memory = std::get<std::deque<std::vector<T>>>(memory_);
    memory.push_back(std::move(elements));
    return {memory.back().data(), rows, cols};
  }

  int weights_;
  Random random_;
  std::tuple<std::deque<std::vector<float>>, std::deque<std::vector<bfloat16>>,
             std::deque<std::vector<float16>>>
      memory_;
  AttentionWeights views_;
};

RopeScaling random_scaling(Random& random) {
  RopeScaling scaling;
  scaling.type = random.one_of({RopeScalingType::none, RopeScalingType::linear,
                                RopeScalingType::yarn, RopeScalingType::yarn});
  scaling.factor = random.one_of({1.0, 2.5, 8.0, 40.0});
  scaling.original_max_position_embeddings = random.integer(4, 4096);
  scaling.beta_fast = random.one_of({1.0, 16.0, 32.0});
  scaling.mscale = random.one_of({0.0, 0.5, 1.0});
  scaling.mscale_all_dim = random.one_of({0.0, 0.75, 1.0});
  return scaling;
}

AttentionConfig small_random_config(Random& random) {
  AttentionConfig c;
  const bool whole_tiles = random.integer(0, 2) == 0;  // or tails of vectors and tiles
  const auto dim = [&](Index most, Index unit) {
    return whole_tiles ? unit * random.integer(1, 4) : random.integer(1, most);
  };
  c.hidden_size = dim(70, 32);
  c.num_attention_heads = random.integer(1, 9);
  if (random.integer(0, 9) == 0) c.num_attention_heads = random.one_of({20, 33});
  c.q_lora_rank = random.integer(0, 2) == 0 ? 0 : dim(70, 32);
  c.kv_lora_rank = dim(70, 32);
  c.qk_nope_head_dim = dim(40, 16);
  c.qk_rope_head_dim = 2 * dim(17, 8);
  c.v_head_dim = dim(40, 16);
  c.query_norm = random.integer(0, 3) != 0;
  c.rope_key_per_head = random.integer(0, 3) == 0;
  return c;
}

DigestCase small_case(Random& random) {
  DigestCase c;
  c.config = small_random_config(random);
  c.split = random.integer(0, 3) == 0;
  c.biases = !c.split && random.integer(0, 3) == 0;
  c.gaps = random.integer(0, 2) == 0;
  c.padded = random.integer(0, 4) == 0;
  c.spoiled = random.integer(0, 4) == 0;
  c.modes = {AttentionForm::absorbed, AttentionForm::decompressed, AttentionForm::automatic};
  const bool batch = random.integer(0, 2) == 0;
  const auto second = [&] { return batch ? random.integer(0, 3) : Index{0}; };
  Index prompt = random.integer(1, 200);
  for (Index part = random.integer(2, 3); part > 1 && prompt > 0; --part) {
    const Index tokens = random.integer(1, prompt);
    c.calls.push_back({tokens, second()});
    prompt -= tokens;
  }
  c.calls.push_back({prompt, batch ? random.integer(1, 70) : Index{0}});
  for (Index i = random.integer(1, 3); i > 0; --i) c.calls.push_back({1, second()});
  return c;
}

/// Tiny dims and up to three parts of 1024 keys.
DigestCase long_case(Random& random) {
  DigestCase c;
  c.config.hidden_size = random.integer(5, 20);
  c.config.num_attention_heads = random.integer(1, 3);
  c.config.q_lora_rank = 0;
  c.config.kv_lora_rank = random.integer(8, 24);
  c.config.qk_nope_head_dim = random.integer(1, 9);
  c.config.qk_rope_head_dim = 2 * random.integer(1, 4);
  c.config.v_head_dim = random.integer(1, 9);
  c.config.rope_key_per_head = random.integer(0, 1) == 0;
  c.modes = {AttentionForm::absorbed, AttentionForm::decompressed, AttentionForm::automatic};
  c.history = random.integer(1000, 2060);
  c.calls = {{random.integer(30, 70), 9}, {1, 0}, {1, 1}};
  return c;
}

/// A model's dims and two parts of 1024 keys. Decompression, which costs more, seldom.
DigestCase large_case(Random& random, int number) {
  DigestCase c;
  const bool decompressed = number % 4 == 1;
  c.config = make_config(256, decompressed ? 4 : 16, random.one_of({0, 96}), 512, 128, 64, 128);
  c.modes = {decompressed ? AttentionForm::decompressed : AttentionForm::absorbed,
             AttentionForm::automatic};
  c.history = random.integer(1020, 1100);
  c.calls = {{random.integer(9, 12), 0}, {1, 2}};
  return c;
}

DigestCase digest_case(int layer) {
  Random random(0x6d6c6100u + static_cast<std::uint64_t>(layer));
  DigestCase c = layer % 25 == 24   ? large_case(random, layer / 25)
                 : layer % 13 == 12 ? long_case(random)
                                    : small_case(random);
  c.seed = random.bits();
  c.weights = layer % 4;
  c.cache =
      std::array{WeightFormat::float32, WeightFormat::bfloat16, WeightFormat::float16}[layer % 3];
  c.config.rope_scaling = random_scaling(random);
  c.config.rope_interleave = random.integer(0, 1) == 0;
  c.config.rope_theta = random.one_of({10.0, 500.0, 10000.0, 8e6});
  c.config.q_a_layernorm_eps = random.one_of({1e-6, 1e-5, 0.125});
  c.config.kv_a_layernorm_eps = random.one_of({1e-6, 1e-5, 0.125});
  return c;
}

/// The output for x: tokens[0] of the first sequence, then tokens[1] of the second.
template <StorageElement T>
RowMajorMatrix output_of_batch(const MultiheadLatentAttention& layer, const RowMajorMatrix& x,
                               std::array<LatentKVCache<T>, 2>& caches,
                               const std::array<Index, 2>& tokens, Context& context,
                               const ForwardOptions& options) {
  RowMajorMatrix out =
      RowMajorMatrix::Constant(x.rows(), x.cols(), std::numeric_limits<float>::quiet_NaN());
  if (tokens[1] == 0) {
    layer.forward(x, caches[0], out, context, options);
  } else {
    const std::vector<Sequence> batch = {{&caches[0], tokens[0]}, {&caches[1], tokens[1]}};
    layer.forward(x, batch, out, context, options);
  }
  return out;
}

/// Runs a layer, and adds to `digest` what comes out of it and what stays in the caches.
template <StorageElement T>
class DigestRun {
 public:
  DigestRun(const DigestCase& c, const MultiheadLatentAttention& layer, AttentionForm mode,
            Context& context)
      : case_(c),
        layer_(layer),
        mode_(mode),
        context_(context),
        random_(~c.seed),
        caches_{LatentKVCache<T>(c.config), LatentKVCache<T>(c.config)} {}

  void add_to(Digest& digest) {
    if (case_.history > 0) layer_.append(input(case_.history), caches_[0], context_);
    for (const std::array<Index, 2>& tokens : case_.calls) {
      const RowMajorMatrix out = output(input(tokens[0] + tokens[1]), tokens);
      ASSERT_TRUE(out.allFinite()) << case_;
      digest.add(out.data(), static_cast<std::size_t>(out.size()) * sizeof(float));
    }
    const auto width = static_cast<std::size_t>(case_.config.cache_row_width());
    for (const LatentKVCache<T>& cache : caches_)
      for (Index i = 0; i < cache.size(); ++i) digest.add(cache.row(i), width * sizeof(T));
    if (case_.spoiled) add_spoiled_to(digest);
  }

 private:
  // Which NaN a result is depends on the compiler: that it is one does not.
  void add_spoiled_to(Digest& digest) {
    RowMajorMatrix x = input(6);
    x(4, 0) = std::numeric_limits<float>::quiet_NaN();
    const RowMajorMatrix out = output(x, {6, 0});
    digest.add(out.data(), 4 * static_cast<std::size_t>(out.cols()) * sizeof(float));
    for (Index i = 4 * out.cols(); i < out.size(); ++i) {
      const bool number = out.data()[i] == out.data()[i];
      digest.add(&number, 1);
    }
  }

  // With positions that have gaps, and padding, where the case says so.
  RowMajorMatrix output(const RowMajorMatrix& x, const std::array<Index, 2>& tokens) {
    const std::vector<Index> positions = next_positions(tokens);
    std::vector<std::uint8_t> mask;
    for (Index t = 0; case_.padded && t < x.rows(); ++t)
      mask.push_back(random_.integer(0, 3) != 0 ? 1 : 0);
    return output_of_batch(layer_, x, caches_, tokens, context_,
                           {.mode = mode_, .position_ids = positions, .attention_mask = mask});
  }

  RowMajorMatrix input(Index tokens) {
    RowMajorMatrix x(tokens, case_.config.hidden_size);
    for (Index t = 0; t < tokens; ++t)
      for (Index i = 0; i < x.cols(); ++i) x(t, i) = 2.0f * exact_number(random_);
    return x;
  }

  // None, or some with gaps; those of the second sequence are far from 0.
  std::vector<Index> next_positions(const std::array<Index, 2>& tokens) {
    std::vector<Index> positions;
    if (!case_.gaps) return positions;
    for (std::size_t s = 0; s < 2; ++s) {
      Index next = std::max(caches_[s].next_position(), s == 0 ? Index{0} : Index{100'000});
      for (Index i = 0; i < tokens[s]; ++i) {
        positions.push_back(next + random_.integer(0, 2));
        next = positions.back() + 1;
      }
    }
    return positions;
  }

  const DigestCase& case_;
  const MultiheadLatentAttention& layer_;
  AttentionForm mode_;
  Context& context_;
  Random random_;
  std::array<LatentKVCache<T>, 2> caches_;
};

Digest digest_of(const DigestCase& c, const MultiheadLatentAttention& layer, simd::Isa isa) {
  Digest digest;
  Context context(simd::kernels_for(isa));
  for (AttentionForm mode : c.modes) {
    if (c.cache == WeightFormat::float32) DigestRun<float>(c, layer, mode, context).add_to(digest);
    if (c.cache == WeightFormat::bfloat16)
      DigestRun<bfloat16>(c, layer, mode, context).add_to(digest);
    if (c.cache == WeightFormat::float16)
      DigestRun<float16>(c, layer, mode, context).add_to(digest);
  }
  return digest;
}

/// "x86-64 avx2 3" -> "0123456789abcdef"
std::map<std::string, std::string> recorded_digests() {
  std::map<std::string, std::string> digests;
  std::ifstream file(MLA_TEST_DATA "/digests.txt");
  EXPECT_TRUE(file) << MLA_TEST_DATA "/digests.txt cannot be read";
  for (std::string line; std::getline(file, line);) {
    const std::size_t space = line.rfind(' ');
    if (!line.starts_with("#") && space != std::string::npos)
      digests[line.substr(0, space)] = line.substr(space + 1);
  }
  return digests;
}

class RecordedBits : public ::testing::TestWithParam<int> {
 protected:
  // The digest of each instruction set by its line's beginning: all layers of this group.
  static std::map<std::string, std::string> digests_of_this_build(const char* written) {
    std::ofstream layers;
    if (written) layers.open(std::string(written) + ".layers", std::ios::app);
    std::map<std::string, Digest> digests;
    const int first = GetParam() * kDigestGroup;
    for (int i = first; i < first + kDigestGroup; ++i) {
      const DigestCase c = digest_case(i);
      const ExactWeights weights(c);
      const MultiheadLatentAttention layer(c.config, weights.views());
      for (simd::Isa isa : supported_isas()) {
        const std::string tier = std::string(kArchitecture) + " " + std::string(name_of(isa)) + " ";
        const std::string digest = digest_of(c, layer, isa).text();
        digests[tier + std::to_string(GetParam())].add(digest.data(), digest.size());
        if (written) layers << tier << "layer " << i << " " << digest << " " << c << "\n";
      }
    }
    std::map<std::string, std::string> texts;
    for (const auto& [line, digest] : digests) texts[line] = digest.text();
    return texts;
  }
};
INSTANTIATE_TEST_SUITE_P(Layers, RecordedBits, ::testing::Range(0, kDigestLayers / kDigestGroup),
                         [](const ::testing::TestParamInfo<int>& group) {
                           const int first = group.param * kDigestGroup;
                           return std::to_string(first) + "To" +
                                  std::to_string(first + kDigestGroup - 1);
                         });

TEST_P(RecordedBits, OfOutputsAndCachesAreUnchanged) {
  const char* written = std::getenv("MLA_WRITE_DIGESTS");
  const auto digests = digests_of_this_build(written);
  if (written) {
    std::ofstream file(written, std::ios::app);
    for (const auto& [line, digest] : digests) file << line << " " << digest << "\n";
    return;
  }
  const auto recorded = recorded_digests();
  const auto any = recorded.lower_bound(kArchitecture);
  if (any == recorded.end() || !any->first.starts_with(kArchitecture)) {
    std::cout << "digests.txt has none of " << kArchitecture << ": nothing to compare with\n";
    return;
  }
  for (const auto& [line, digest] : digests) {
    const auto found = recorded.find(line);
    ASSERT_NE(found, recorded.end()) << "digests.txt has no line " << line << " " << digest;
    EXPECT_EQ(digest, found->second) << line;
  }
}

}  // namespace
}  // namespace mla::test
