// The attention layer alone.

#include "mla/attention/multihead_latent_attention.hpp"

#include <Eigen/Core>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mla/attention/attention_weights.hpp"
#include "mla/core/attention_config.hpp"
#include "mla/io/cache_snapshot.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/load_attention_weights.hpp"
#include "mla/model/read_attention_config.hpp"

#include "context.hpp"

namespace mla::c {

/// A layer and the checkpoint that its weights lie in, if it is from one.
struct LoadedAttention {
  std::shared_ptr<const Checkpoint> checkpoint;
  MultiheadLatentAttention layer;
};

}  // namespace mla::c

struct mla_attention : mla::c::Handle<mla::c::Kind::attention> {
  explicit mla_attention(mla::c::LoadedAttention&& loaded)
      : attention(std::make_shared<const mla::c::LoadedAttention>(std::move(loaded))) {}
  std::shared_ptr<const mla::c::LoadedAttention> attention;
};

struct mla_cache : mla::c::Handle<mla::c::Kind::cache> {
  mla_cache(const mla::AttentionConfig& of, mla::CacheFormat format)
      : config(of), cache(of, format) {}
  mla::AttentionConfig config;
  mla::LatentCache cache;
};

namespace mla::c {
namespace {

constexpr RopeScalingType kRopeScalingTypes[] = {RopeScalingType::none, RopeScalingType::linear,
                                                 RopeScalingType::ntk, RopeScalingType::yarn};

RopeScalingType rope_scaling_type_of(const char* name) {
  for (const RopeScalingType type : kRopeScalingTypes)
    if (name_of(type) == text_or(name, "none")) return type;
  throw_invalid("rope_scaling_type must be none, linear, ntk or yarn, got ", name);
}

AttentionConfig config_of(const mla_attention_config& from) {
  AttentionConfig config;
  config.hidden_size = from.hidden_size;
  config.num_attention_heads = from.num_attention_heads;
  config.q_lora_rank = from.q_lora_rank;
  config.kv_lora_rank = from.kv_lora_rank;
  config.qk_nope_head_dim = from.qk_nope_head_dim;
  config.qk_rope_head_dim = from.qk_rope_head_dim;
  config.v_head_dim = from.v_head_dim;
  config.rope_theta = from.rope_theta;
  config.rope_interleave = from.rope_interleave != 0;
  config.rope_scaling = {
      .type = rope_scaling_type_of(from.rope_scaling_type),
      .factor = from.rope_factor,
      .original_max_position_embeddings = from.rope_original_max_position_embeddings,
      .beta_fast = from.rope_beta_fast,
      .beta_slow = from.rope_beta_slow,
      .mscale = from.rope_mscale,
      .mscale_all_dim = from.rope_mscale_all_dim};
  config.q_a_layernorm_eps = from.q_a_layernorm_eps;
  config.kv_a_layernorm_eps = from.kv_a_layernorm_eps;
  config.query_norm = from.query_norm != 0;
  config.rope_key_per_head = from.rope_key_per_head != 0;
  config.q_latent_scale = from.q_latent_scale;
  config.kv_latent_scale = from.kv_latent_scale;
  config.query_temperature_beta = from.query_temperature_beta;
  config.query_temperature_length = from.query_temperature_length;
  return config;
}

mla_attention_config c_config_of(const AttentionConfig& from) {
  mla_attention_config config = {};
  config.hidden_size = from.hidden_size;
  config.num_attention_heads = from.num_attention_heads;
  config.q_lora_rank = from.q_lora_rank;
  config.kv_lora_rank = from.kv_lora_rank;
  config.qk_nope_head_dim = from.qk_nope_head_dim;
  config.qk_rope_head_dim = from.qk_rope_head_dim;
  config.v_head_dim = from.v_head_dim;
  config.rope_theta = from.rope_theta;
  config.rope_interleave = from.rope_interleave;
  config.rope_scaling_type = name_of(from.rope_scaling.type).data();
  config.rope_factor = from.rope_scaling.factor;
  config.rope_original_max_position_embeddings = from.rope_scaling.original_max_position_embeddings;
  config.rope_beta_fast = from.rope_scaling.beta_fast;
  config.rope_beta_slow = from.rope_scaling.beta_slow;
  config.rope_mscale = from.rope_scaling.mscale;
  config.rope_mscale_all_dim = from.rope_scaling.mscale_all_dim;
  config.q_a_layernorm_eps = from.q_a_layernorm_eps;
  config.kv_a_layernorm_eps = from.kv_a_layernorm_eps;
  config.query_norm = from.query_norm;
  config.rope_key_per_head = from.rope_key_per_head;
  config.q_latent_scale = from.q_latent_scale;
  config.kv_latent_scale = from.kv_latent_scale;
  config.query_temperature_beta = from.query_temperature_beta;
  config.query_temperature_length = from.query_temperature_length;
  return config;
}

WeightFormat weight_format_of(const mla_weight& weight) {
  const std::string_view name = text("the format of a weight", weight.format);
  std::string known;
  for (std::size_t i = 0; i < kWeightFormatCount; ++i) {
    if (kWeightFormats[i].name == name) return static_cast<WeightFormat>(i);
    known += (known.empty() ? "" : ", ") + std::string(kWeightFormats[i].name);
  }
  throw_invalid("tensor ", weight.name, " has format ", name, ", there are ", known);
}

struct ScaleFormatName {
  std::string_view name;
  ScaleFormat format;
};
constexpr ScaleFormatName kScaleFormats[] = {{"f32", ScaleFormat::float32},
                                             {"bf16", ScaleFormat::bfloat16},
                                             {"f16", ScaleFormat::float16},
                                             {"e8m0", ScaleFormat::fp8_e8m0},
                                             {"e4m3", ScaleFormat::fp8_e4m3}};

mla_scales default_scales() {
  mla_scales scales = {};
  scales.format = "f32";
  scales.block_rows = scales.block_cols = 1;
  scales.factor = 1.0;
  return scales;
}

Scales scales_of(const mla_weight& weight) {
  if (!weight.scales) return {};
  const mla_scales from = read_options("mla_scales", weight.scales, default_scales());
  const std::string_view name = text_or(from.format, "f32");
  const auto* const format = std::ranges::find(kScaleFormats, name, &ScaleFormatName::name);
  require(format != std::end(kScaleFormats), "tensor ", weight.name, " has scales of format ", name,
          ", which does not exist");
  Scales scales;
  scales.data = from.data;
  scales.format = format->format;
  scales.block_rows = from.block_rows;
  scales.block_cols = from.block_cols;
  scales.stride = from.stride;
  scales.factor = static_cast<float>(from.factor);
  scales.zero_points = from.zero_points;
  return scales;
}

AttentionWeights weights_of(std::span<const mla_weight> given) {
  AttentionWeights weights;
  for (const mla_weight& weight : given) {
    const std::string_view name = text("the name of a weight", weight.name);
    const auto* const found =
        std::ranges::find(kAttentionWeightFields, name, &AttentionWeightField::name);
    require(found != std::end(kAttentionWeightFields), "there is no tensor ", name);
    require(weight.data != nullptr, "the data of tensor ", name, " is NULL");
    require(!(weights.*found->field), "tensor ", name, " is given twice");
    WeightView view(weight.data, weight_format_of(weight), weight.rows, weight.cols,
                    scales_of(weight));
    if (weight.stride != 0) view.stride = weight.stride;
    weights.*found->field = view;
  }
  return weights;
}

LoadedAttention load_attention(const char* directory, std::int64_t layer) {
  require(layer >= 0, "layer must not be negative, got ", layer);
  const AttentionConfig config = load_attention_config(directory);
  auto checkpoint = std::make_shared<const Checkpoint>(directory);
  const std::string prefix = "model.layers." + std::to_string(layer) + ".self_attn";
  const AttentionWeights weights = load_attention_weights(*checkpoint, prefix, config);
  return {std::move(checkpoint), MultiheadLatentAttention(config, weights)};
}

mla_attention_options default_attention_options() {
  mla_attention_options options = {};
  options.mode = MLA_FORM_AUTOMATIC;
  return options;
}

/// The sequences of a call as the library has them, their caches marked as in use.
class Sequences {
 public:
  Sequences(mla_context& context, std::span<const mla_sequence> sequences) : context_(context) {
    context.sequences.reserve(sequences.size());
    context.states_in_use.reserve(sequences.size());
    try {
      for (const mla_sequence& sequence : sequences) add(sequence);
    } catch (...) {
      clear();
      throw;
    }
  }
  Sequences(const Sequences&) = delete;
  Sequences& operator=(const Sequences&) = delete;
  ~Sequences() { clear(); }

  std::span<const Sequence> get() const noexcept { return context_.sequences; }
  Index tokens() const noexcept { return tokens_; }

 private:
  void add(const mla_sequence& sequence) {
    constexpr Index kMaxTokens = Index{1} << 40;
    mla_cache& cache = object(sequence.cache);
    require(sequence.tokens <= static_cast<std::size_t>(kMaxTokens - tokens_),
            "a call cannot have ", sequence.tokens, " tokens");
    context_.states_in_use.emplace_back(cache);
    context_.sequences.push_back({&cache.cache, static_cast<Index>(sequence.tokens)});
    tokens_ += static_cast<Index>(sequence.tokens);
  }
  void clear() noexcept {
    context_.states_in_use.clear();
    context_.sequences.clear();
  }

  mla_context& context_;
  Index tokens_ = 0;
};

void forward(const MultiheadLatentAttention& layer, mla_context& context,
             std::span<const mla_sequence> sequences, const float* x, float* out,
             const mla_attention_options& options) {
  const Sequences batch(context, sequences);
  const Index tokens = batch.tokens(), width = layer.config().hidden_size;
  const auto stride = [&](const char* name, std::int64_t given) {
    require(given == 0 || given >= width, name, " must be 0 or at least hidden_size ", width,
            ", got ", given);
    return Eigen::OuterStride<>(given == 0 ? width : given);
  };
  const auto x_stride = stride("x_stride", options.x_stride);
  const auto out_stride = stride("out_stride", options.out_stride);
  require(tokens == 0 || (x != nullptr && out != nullptr), x == nullptr ? "x" : "out", " is NULL");

  ForwardOptions forward_options;
  forward_options.mode = form_of("mode", options.mode);
  const auto count = static_cast<std::size_t>(tokens);
  static_assert(std::is_same_v<Index, std::int64_t>);
  if (options.position_ids) forward_options.position_ids = {options.position_ids, count};
  if (options.attention_mask) forward_options.attention_mask = {options.attention_mask, count};

  using Rows = Eigen::Map<RowMajorMatrix, 0, Eigen::OuterStride<>>;
  using ConstRows = Eigen::Map<const RowMajorMatrix, 0, Eigen::OuterStride<>>;
  layer.forward(ConstRows(x, tokens, width, x_stride), batch.get(),
                Rows(out, tokens, width, out_stride), context.context, forward_options);
}

}  // namespace
}  // namespace mla::c

extern "C" {

void mla_attention_config_init(mla_attention_config* config, std::size_t size) {
  mla::c::write_options(mla::c::c_config_of({}), config, size);
}

void mla_scales_init(mla_scales* scales, std::size_t size) {
  mla::c::write_options(mla::c::default_scales(), scales, size);
}

mla_status mla_attention_new(const mla_attention_config* config, const mla_weight* weights,
                             std::size_t weight_count, mla_attention** attention) {
  return mla::c::guarded([&] {
    mla::require(config != nullptr, "the mla_attention_config is NULL");
    const auto all = mla::c::read_options("mla_attention_config", config, mla::c::c_config_of({}));
    const auto given = mla::c::array("weights", weights, weight_count);
    mla::c::make(attention, mla::c::LoadedAttention{
                                nullptr, mla::MultiheadLatentAttention(mla::c::config_of(all),
                                                                       mla::c::weights_of(given))});
  });
}

mla_status mla_attention_load(const char* directory, std::int64_t layer,
                              mla_attention** attention) {
  return mla::c::guarded([&] {
    mla::c::make(attention, mla::c::load_attention(mla::c::text("directory", directory), layer));
  });
}

void mla_attention_destroy(mla_attention* attention) { mla::c::destroy(attention); }

mla_status mla_attention_get_config(const mla_attention* attention, mla_attention_config* config) {
  return mla::c::guarded([&] {
    const auto& found = mla::c::object(attention).attention->layer.config();
    mla::c::write_sized("mla_attention_config", mla::c::c_config_of(found), config);
  });
}

mla_status mla_cache_new(const mla_attention* attention, const char* format, mla_cache** cache) {
  return mla::c::guarded([&] {
    mla::c::make(cache, mla::c::object(attention).attention->layer.config(),
                 mla::c::cache_format_of(format));
  });
}

void mla_cache_destroy(mla_cache* cache) { mla::c::destroy(cache); }

std::int64_t mla_cache_size(const mla_cache* cache) {
  return mla::c::object_or_null(cache) ? cache->cache.size() : 0;
}
std::uint64_t mla_cache_bytes_used(const mla_cache* cache) {
  return mla::c::object_or_null(cache) ? cache->cache.bytes_used() : 0;
}
std::uint64_t mla_cache_bytes_per_token(const mla_cache* cache) {
  return mla::c::object_or_null(cache) ? cache->cache.bytes_per_token() : 0;
}

mla_status mla_cache_reserve(mla_cache* cache, std::int64_t tokens) {
  return mla::c::guarded([&] {
    mla_cache& found = mla::c::object(cache);
    const mla::c::InUse in_use(found);
    constexpr std::int64_t kMaxTokens = std::int64_t{1} << 40;
    mla::require(tokens >= 0 && tokens <= kMaxTokens, "tokens must be from 0 to 2^40, got ",
                 tokens);
    found.cache.reserve(tokens);
  });
}

mla_status mla_cache_truncate(mla_cache* cache, std::int64_t tokens) {
  return mla::c::guarded([&] {
    mla_cache& found = mla::c::object(cache);
    const mla::c::InUse in_use(found);
    found.cache.truncate(tokens);
  });
}

mla_status mla_cache_save(const mla_cache* cache, const char* path, const char* label) {
  return mla::c::guarded([&] {
    const mla_cache& found = mla::c::object(cache);
    const mla::c::InUse in_use(found);
    mla::save_snapshot(mla::c::text("path", path), found.config, found.cache,
                       mla::c::text_or(label, ""));
  });
}

mla_status mla_cache_restore(mla_cache* cache, const char* path, const char* label) {
  return mla::c::guarded([&] {
    mla_cache& found = mla::c::object(cache);
    const mla::c::InUse in_use(found);
    mla::restore_snapshot(mla::c::text("path", path), found.config, found.cache,
                          mla::c::text_or(label, ""));
  });
}

void mla_attention_options_init(mla_attention_options* options, std::size_t size) {
  mla::c::write_options(mla::c::default_attention_options(), options, size);
}

mla_status mla_attention_forward(const mla_attention* attention, mla_context* context,
                                 const mla_sequence* sequences, std::size_t sequence_count,
                                 const float* x, float* out, const mla_attention_options* options) {
  return mla::c::guarded([&] {
    const mla::MultiheadLatentAttention& layer = mla::c::object(attention).attention->layer;
    mla_context& on = mla::c::object(context);
    const mla::c::InUse in_use(on);
    const auto all =
        mla::c::read_options("mla_attention_options", options, mla::c::default_attention_options());
    mla::c::forward(layer, on, mla::c::array("sequences", sequences, sequence_count), x, out, all);
  });
}

}  // extern "C"
