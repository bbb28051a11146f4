// The extension module mla._mla. mla/__init__.pyi documents shapes for readers of Python.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <Eigen/Core>
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "mla/attention/attention_weights.hpp"
#include "mla/attention/multihead_latent_attention.hpp"
#include "mla/core/cache_format.hpp"
#include "mla/core/eigen_executor.hpp"
#include "mla/io/cache_snapshot.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/load_attention_weights.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/model/decoder_snapshot.hpp"
#include "mla/model/generate.hpp"
#include "mla/model/read_attention_config.hpp"
#include "mla/model/sampler.hpp"
#include "mla/text/streaming_decoder.hpp"
#include "mla/text/tokenizer.hpp"
#include "mla/version.hpp"

#include "arrays.hpp"
#include "programs/processors.hpp"

namespace mla::python {
namespace {

using Rows = Eigen::Map<RowMajorMatrix, 0, Eigen::OuterStride<>>;
using ConstRows = Eigen::Map<const RowMajorMatrix, 0, Eigen::OuterStride<>>;
using FloatArray = py::array_t<float>;

Rows rows_of(MatrixView<float> m) {
  return {m.data, m.rows, m.cols, Eigen::OuterStride<>(m.stride)};
}
ConstRows rows_of(MatrixView<const float> m) {
  return {m.data, m.rows, m.cols, Eigen::OuterStride<>(m.stride)};
}

CacheFormat cache_format_of(const std::string& name) {
  std::string known;
  for (std::size_t i = 0; i < kCacheFormatCount; ++i) {
    if (kCacheFormats[i].name == name) return static_cast<CacheFormat>(i);
    known += (i > 0 ? ", " : "") + std::string(kCacheFormats[i].name);
  }
  throw_invalid("cache_format must be one of ", known, "; got ", name);
}

AttentionForm form_of(const std::string& name) {
  if (name == "automatic") return AttentionForm::automatic;
  if (name == "absorbed") return AttentionForm::absorbed;
  require(name == "decompressed", "mode must be automatic, absorbed or decompressed, got ", name);
  return AttentionForm::decompressed;
}

/// Marks an object as in use for as long as it lives: what runs without the GIL must not meet a
/// second call.
class InUse {
 public:
  InUse(std::atomic<bool>& flag, const char* what) : flag_(&flag) {
    require(!flag.exchange(true), "the ", what, " is in use by another call or generation");
  }
  InUse(InUse&& other) noexcept : flag_(std::exchange(other.flag_, nullptr)) {}
  InUse& operator=(InUse&&) = delete;
  ~InUse() {
    if (flag_) flag_->store(false);
  }

 private:
  std::atomic<bool>* flag_;
};

/// Threads, kernels and scratch memory. Calls take turns.
class Machine {
 public:
  Machine(int threads, const std::string& precision, std::ptrdiff_t hidden_size)
      : executor_(make_executor(threads, hidden_size)),
        context_(*executor_, kernels_of(precision)) {}

  Context& context() noexcept { return context_; }
  std::mutex& turn() noexcept { return turn_; }
  Index threads() const noexcept { return executor_->concurrency(); }
  /// The cache that goes with the arithmetic.
  CacheFormat cache_format() const noexcept {
    if (exact_) return CacheFormat::float32;
    return context_.kernels().of(CacheFormat::bfloat16).arithmetic == Arithmetic::float32
               ? CacheFormat::float16
               : CacheFormat::bfloat16;
  }

 private:
  static std::unique_ptr<Executor> make_executor(int threads, std::ptrdiff_t hidden_size) {
    require(threads >= 0 && threads <= 1024, "threads must be from 0 to 1024, got ", threads);
    if (threads == 0) threads = programs::default_threads(hidden_size);
    if (threads > 1) return std::make_unique<EigenExecutor>(threads);
    return std::make_unique<SerialExecutor>();
  }
  const simd::Kernels& kernels_of(const std::string& precision) {
    exact_ = precision == "exact";
    require(exact_ || precision == "fast", "precision must be fast or exact, got ", precision);
    return simd::kernels(exact_ ? Arithmetic::float32 : Arithmetic::bfloat16);
  }

  bool exact_ = true;
  std::unique_ptr<Executor> executor_;
  Context context_;
  std::mutex turn_;
};

// ------------------------------------------------------------------------------------------ models

struct PyModel {
  PyModel(const std::string& path, int threads, const std::string& precision)
      : model(DecoderModel::load(path)), machine(threads, precision, model.hidden_size()) {
    if (std::filesystem::exists(std::filesystem::path(path) / "tokenizer.json"))
      tokenizer = std::make_shared<const Tokenizer>(std::filesystem::path(path));
  }
  DecoderModel model;
  Machine machine;
  std::shared_ptr<const Tokenizer> tokenizer;  // nullptr: the directory has none
};
using ModelPointer = std::shared_ptr<PyModel>;

struct PyState {
  PyState(ModelPointer of, CacheFormat format)
      : model(std::move(of)), state(model->model.config(), format) {}
  PyState(ModelPointer of, DecoderState&& with) : model(std::move(of)), state(std::move(with)) {}
  ModelPointer model;
  DecoderState state;
  std::atomic<bool> in_use{false};

  InUse use() { return {in_use, "state"}; }
};
using StatePointer = std::shared_ptr<PyState>;

/// One text of a batch, as Python gives it.
struct PyStep {
  std::vector<TokenId> tokens;
  StatePointer state;
  Index wanted;
};

PyStep step_of(const PyModel& model, const py::object& tokens, const StatePointer& state,
               std::optional<Index> last) {
  require(state != nullptr, "the state is None");
  require(&state->model->model == &model.model, "the state was made for another model");
  PyStep step = {tokens_of("tokens", tokens), state, 0};
  const Index count = std::ssize(step.tokens);
  step.wanted = last.value_or(count);
  require(step.wanted >= 0 && step.wanted <= count, "last must be from 0 to ", count, ", got ",
          step.wanted);
  return step;
}

/// Logits [last, vocab_size] of each text.
std::vector<FloatArray> forward(PyModel& model, const std::vector<PyStep>& steps) {
  std::vector<InUse> in_use;
  std::vector<TextStep> batch;
  Index wanted = 0;
  for (const PyStep& step : steps) {
    in_use.push_back(step.state->use());
    batch.push_back({&step.state->state, step.tokens, step.wanted});
    wanted += step.wanted;
  }
  const Index vocab = model.model.vocab_size();
  FloatArray all(std::vector<py::ssize_t>{wanted, vocab});
  {
    const py::gil_scoped_release release;
    const std::lock_guard turn(model.machine.turn());
    Eigen::Map<RowMajorMatrix> logits(all.mutable_data(), wanted, vocab);
    model.model.forward(batch, logits, model.machine.context());
  }
  std::vector<FloatArray> results;
  Index row = 0;
  for (const PyStep& step : steps) {  // views of the whole
    results.emplace_back(std::vector<py::ssize_t>{step.wanted, vocab}, all.data() + row * vocab,
                         all);
    row += step.wanted;
  }
  return results;
}

/// An iterator over what a model writes: text, or tokens.
class PyGeneration {
 public:
  PyGeneration(ModelPointer model, StatePointer state, std::vector<TokenId> prompt, bool text,
               const SamplerOptions& sampling, GenerationOptions options)
      : model_(std::move(model)),
        state_(std::move(state)),
        in_use_(state_->use()),
        text_(text),
        sampler_(model_->model.vocab_size(), sampling) {
    require(&state_->model->model == &model_->model, "the state was made for another model");
    require(!text || model_->tokenizer, "the model has no tokenizer.json: generate tokens");
    if (text) decoder_.emplace(*model_->tokenizer);
    options.on_token = [this](TokenId token) {
      fresh_.push_back(token);
      return true;
    };
    const GenerationTask<Sampler> task = {&state_->state, prompt, &sampler_, options};
    generation_.emplace(model_->model, std::span(&task, 1), model_->machine.context());
  }
  PyGeneration(const PyGeneration&) = delete;
  PyGeneration& operator=(const PyGeneration&) = delete;
  ~PyGeneration() { finish(); }

  py::object next() {
    const InUse stepping(stepping_, "generation");
    while (true) {
      while (!fresh_.empty()) {
        const TokenId token = fresh_.front();
        fresh_.pop_front();
        tokens_.push_back(token);
        if (!text_) return py::int_(token);
        const bool known = token < model_->tokenizer->vocab_size();
        const std::string piece = known ? decoder_->push(token) : std::string();
        if (!piece.empty()) return py::str(piece);
      }
      if (PyErr_CheckSignals() != 0) {  // Ctrl-C, also between the chunks of a long prompt
        finish();
        throw py::error_already_set();
      }
      if (!generation_ || !advance()) break;
    }
    finish();
    const std::string rest = text_ ? decoder_->finish() : std::string();
    if (!rest.empty()) return py::str(rest);
    throw py::stop_iteration();
  }

  /// The state is free again, with what was written in it.
  void close() {
    const InUse stepping(stepping_, "generation");
    finish();
  }

  const std::vector<TokenId>& tokens() const noexcept { return tokens_; }
  GenerationResult result() const { return generation_ ? generation_->results().front() : result_; }
  py::object stop_reason() const {
    if (!done_) return py::none();
    return py::str(std::string(name_of(result_.stop)));
  }

 private:
  void finish() {
    if (!generation_) return;
    generation_->stop();
    result_ = generation_->results().front();
    generation_.reset();
    in_use_.reset();
  }

  // A round; false after the last one.
  bool advance() {
    const py::gil_scoped_release release;
    const std::lock_guard turn(model_->machine.turn());
    try {
      if (generation_->round()) return true;
    } catch (...) {
      result_ = generation_->results().front();
      generation_.reset();
      in_use_.reset();
      throw;
    }
    done_ = true;
    return false;
  }

  ModelPointer model_;
  StatePointer state_;
  std::optional<InUse> in_use_;
  bool text_;
  Sampler sampler_;
  std::optional<StreamingDecoder> decoder_;
  std::deque<TokenId> fresh_;  // generated, not yet returned
  std::vector<TokenId> tokens_;
  std::optional<mla::detail::Generation<Sampler>> generation_;
  GenerationResult result_;
  bool done_ = false;
  std::atomic<bool> stepping_{false};  // on some thread, perhaps without the GIL
};

std::unique_ptr<PyGeneration> generate(const ModelPointer& model, const py::object& prompt,
                                       StatePointer state, bool text, Index max_tokens,
                                       double temperature, Index top_k, double top_p, double min_p,
                                       double repetition_penalty, std::uint64_t seed,
                                       bool stop_at_eos, bool speculative, Index draft_tokens,
                                       Index lookup, Index chunk_tokens) {
  if (!state) state = std::make_shared<PyState>(model, model->machine.cache_format());
  std::vector<TokenId> tokens;
  if (py::isinstance<py::str>(prompt)) {
    require(model->tokenizer != nullptr, "the model has no tokenizer.json: pass tokens");
    // A text that goes on does not begin again.
    const bool add_bos = model->tokenizer->adds_bos() && state->state.size() == 0;
    tokens = model->tokenizer->encode(prompt.cast<std::string>(), add_bos);
  } else {
    tokens = tokens_of("prompt", prompt);
  }
  GenerationOptions options;
  options.max_tokens = max_tokens;
  options.stop_at_eos = stop_at_eos;
  options.speculative = speculative;
  options.draft_tokens = draft_tokens;
  options.lookup = lookup;
  options.chunk_tokens = chunk_tokens;
  const SamplerOptions sampling = {.temperature = temperature,
                                   .top_k = top_k,
                                   .top_p = top_p,
                                   .min_p = min_p,
                                   .repetition_penalty = repetition_penalty,
                                   .seed = seed};
  return std::make_unique<PyGeneration>(model, std::move(state), std::move(tokens), text, sampling,
                                        options);
}

// ------------------------------------------------------------------------------------- attention

/// A layer, with all that its weights lie in.
struct PyAttention {
  AttentionConfig config;
  std::vector<py::object> owners;  // of the weights, if they are Python's
  std::shared_ptr<const Checkpoint> checkpoint;
  std::unique_ptr<MultiheadLatentAttention> layer;
  std::unique_ptr<Machine> machine;
};
using AttentionPointer = std::shared_ptr<PyAttention>;

struct PyCache {
  PyCache(AttentionPointer of, CacheFormat format)
      : attention(std::move(of)), cache(attention->config, format) {}
  AttentionPointer attention;
  LatentCache cache;
  std::atomic<bool> in_use{false};

  InUse use() { return {in_use, "cache"}; }
};

AttentionPointer make_attention(const AttentionConfig& config, const py::dict& weights, int threads,
                                const std::string& precision) {
  auto attention = std::make_shared<PyAttention>();
  attention->config = config;
  AttentionWeights views;
  for (const auto& [key, value] : weights) {
    const std::string name = py::str(key);
    const auto* const field = std::ranges::find_if(
        kAttentionWeightFields, [&](const AttentionWeightField& f) { return name == f.name; });
    require(field != std::end(kAttentionWeightFields), "there is no weight ", name);
    OwnedWeight weight = weight_of(name, py::reinterpret_borrow<py::object>(value));
    views.*field->field = weight.view;
    attention->owners.push_back(std::move(weight.owner));
  }
  attention->layer = std::make_unique<MultiheadLatentAttention>(config, views);
  attention->machine = std::make_unique<Machine>(threads, precision, config.hidden_size);
  return attention;
}

AttentionPointer load_attention(const std::string& path, Index layer, int threads,
                                const std::string& precision) {
  require(layer >= 0, "layer must not be negative, got ", layer);
  auto attention = std::make_shared<PyAttention>();
  attention->config = load_attention_config(path);
  attention->checkpoint = std::make_shared<const Checkpoint>(path);
  attention->layer = std::make_unique<MultiheadLatentAttention>(
      attention->config,
      load_attention_weights(*attention->checkpoint,
                             "model.layers." + std::to_string(layer) + ".self_attn",
                             attention->config));
  attention->machine = std::make_unique<Machine>(threads, precision, attention->config.hidden_size);
  return attention;
}

py::array forward_attention(PyAttention& attention, const py::array& x,
                            const std::vector<std::shared_ptr<PyCache>>& caches,
                            const std::vector<Index>& lengths,
                            const std::optional<std::vector<Index>>& position_ids,
                            const std::optional<std::vector<bool>>& attention_mask,
                            const std::string& mode, std::optional<py::array> out) {
  const MatrixView<const float> input = input_of("x", x);
  const Index width = attention.config.hidden_size;
  require(input.cols == width, "x must have hidden_size ", width, " columns, has ", input.cols);
  require(caches.size() == lengths.size(), "there are ", caches.size(), " caches, but ",
          lengths.size(), " lengths");
  if (!out) out = FloatArray(std::vector<py::ssize_t>{input.rows, width});
  const MatrixView<float> output = output_of("out", *out);
  std::vector<InUse> in_use;
  std::vector<Sequence> sequences;
  Index tokens = 0;
  for (std::size_t i = 0; i < caches.size(); ++i) {
    require(caches[i] != nullptr, "cache ", i, " is None");
    require(lengths[i] >= 0 && lengths[i] <= input.rows - tokens, "lengths must sum to ",
            input.rows, ", the rows of x");
    in_use.push_back(caches[i]->use());
    sequences.push_back({&caches[i]->cache, lengths[i]});
    tokens += lengths[i];
  }
  require(tokens == input.rows, "lengths must sum to ", input.rows, ", the rows of x, but sum to ",
          tokens);
  ForwardOptions options;
  options.mode = form_of(mode);
  if (position_ids) {
    require(std::ssize(*position_ids) == tokens, "position_ids must have ", tokens, ", got ",
            position_ids->size());
    options.position_ids = *position_ids;
  }
  std::vector<std::uint8_t> mask;
  if (attention_mask) {
    require(std::ssize(*attention_mask) == tokens, "attention_mask must have ", tokens, ", got ",
            attention_mask->size());
    mask.assign(attention_mask->begin(), attention_mask->end());
    options.attention_mask = mask;
  }
  {
    const py::gil_scoped_release release;
    const std::lock_guard turn(attention.machine->turn());
    attention.layer->forward(rows_of(input), sequences, rows_of(output),
                             attention.machine->context(), options);
  }
  return *out;
}

AttentionConfig config_of(const py::kwargs& fields) {
  AttentionConfig config;
  py::object object = py::cast(config);
  for (const auto& [name, value] : fields) {
    const std::string field = py::str(name);
    require(py::hasattr(object, field.c_str()), "AttentionConfig has no field ", field);
    py::setattr(object, name, value);
  }
  config = object.cast<AttentionConfig>();
  config.validate();
  return config;
}

RopeScalingType rope_type_of(const std::string& name) {
  for (const auto type : {RopeScalingType::none, RopeScalingType::linear, RopeScalingType::ntk,
                          RopeScalingType::yarn})
    if (name_of(type) == name) return type;
  throw_invalid("rope_scaling_type must be none, linear, ntk or yarn, got ", name);
}

template <class Member>
void scaling_field(py::class_<AttentionConfig>& type, const char* name, Member member) {
  type.def_property(
      name, [member](const AttentionConfig& c) { return c.rope_scaling.*member; },
      [member](AttentionConfig& c,
               const std::decay_t<decltype(std::declval<RopeScaling>().*member)>& value) {
        c.rope_scaling.*member = value;
      });
}

void define_attention(py::module_& module) {
  py::class_<AttentionConfig> config(module, "AttentionConfig");
  config.def(py::init(&config_of))
      .def_readwrite("hidden_size", &AttentionConfig::hidden_size)
      .def_readwrite("num_attention_heads", &AttentionConfig::num_attention_heads)
      .def_readwrite("q_lora_rank", &AttentionConfig::q_lora_rank)
      .def_readwrite("kv_lora_rank", &AttentionConfig::kv_lora_rank)
      .def_readwrite("qk_nope_head_dim", &AttentionConfig::qk_nope_head_dim)
      .def_readwrite("qk_rope_head_dim", &AttentionConfig::qk_rope_head_dim)
      .def_readwrite("v_head_dim", &AttentionConfig::v_head_dim)
      .def_readwrite("rope_theta", &AttentionConfig::rope_theta)
      .def_readwrite("rope_interleave", &AttentionConfig::rope_interleave)
      .def_readwrite("q_a_layernorm_eps", &AttentionConfig::q_a_layernorm_eps)
      .def_readwrite("kv_a_layernorm_eps", &AttentionConfig::kv_a_layernorm_eps)
      .def_readwrite("query_norm", &AttentionConfig::query_norm)
      .def_readwrite("rope_key_per_head", &AttentionConfig::rope_key_per_head)
      .def_readwrite("q_latent_scale", &AttentionConfig::q_latent_scale)
      .def_readwrite("kv_latent_scale", &AttentionConfig::kv_latent_scale)
      .def_readwrite("query_temperature_beta", &AttentionConfig::query_temperature_beta)
      .def_readwrite("query_temperature_length", &AttentionConfig::query_temperature_length)
      .def_property(
          "rope_scaling_type",
          [](const AttentionConfig& c) { return std::string(name_of(c.rope_scaling.type)); },
          [](AttentionConfig& c, const std::string& name) {
            c.rope_scaling.type = rope_type_of(name);
          });
  scaling_field(config, "rope_factor", &RopeScaling::factor);
  scaling_field(config, "rope_original_max_position_embeddings",
                &RopeScaling::original_max_position_embeddings);
  scaling_field(config, "rope_beta_fast", &RopeScaling::beta_fast);
  scaling_field(config, "rope_beta_slow", &RopeScaling::beta_slow);
  scaling_field(config, "rope_mscale", &RopeScaling::mscale);
  scaling_field(config, "rope_mscale_all_dim", &RopeScaling::mscale_all_dim);

  py::class_<PyCache, std::shared_ptr<PyCache>>(module, "Cache")
      .def("__len__", [](const PyCache& self) { return self.cache.size(); })
      .def_property_readonly(
          "format", [](const PyCache& self) { return std::string(name_of(self.cache.format())); })
      .def_property_readonly("bytes_used",
                             [](const PyCache& self) { return self.cache.bytes_used(); })
      .def_property_readonly("bytes_per_token",
                             [](const PyCache& self) { return self.cache.bytes_per_token(); })
      .def(
          "truncate",
          [](PyCache& self, Index tokens) {
            const InUse in_use = self.use();
            self.cache.truncate(tokens);
          },
          py::arg("tokens"))
      .def(
          "save",
          [](PyCache& self, const std::string& path, const std::string& label) {
            const InUse in_use = self.use();
            save_snapshot(path, self.attention->config, self.cache, label);
          },
          py::arg("path"), py::arg("label") = "")
      .def(
          "restore",
          [](PyCache& self, const std::string& path, const std::string& label) {
            const InUse in_use = self.use();
            restore_snapshot(path, self.attention->config, self.cache, label);
          },
          py::arg("path"), py::arg("label") = "");

  py::class_<PyAttention, AttentionPointer>(module, "AttentionLayer")
      .def(py::init(&make_attention), py::arg("config"), py::arg("weights"), py::kw_only(),
           py::arg("threads") = 0, py::arg("precision") = "exact")
      .def_static("load", &load_attention, py::arg("path"), py::arg("layer") = 0, py::kw_only(),
                  py::arg("threads") = 0, py::arg("precision") = "exact")
      .def_readonly("config", &PyAttention::config)
      .def(
          "cache",
          [](const AttentionPointer& self, const std::optional<std::string>& format) {
            const CacheFormat chosen =
                format ? cache_format_of(*format) : self->machine->cache_format();
            return std::make_shared<PyCache>(self, chosen);
          },
          py::arg("format") = py::none())
      .def(
          "forward",
          [](PyAttention& self, const py::array& x, const std::shared_ptr<PyCache>& cache,
             const std::optional<std::vector<Index>>& position_ids,
             const std::optional<std::vector<bool>>& attention_mask, const std::string& mode,
             const std::optional<py::array>& out) {
            const Index tokens = x.ndim() > 0 ? x.shape(0) : 0;
            return forward_attention(self, x, {cache}, {tokens}, position_ids, attention_mask, mode,
                                     out);
          },
          py::arg("x"), py::arg("cache"), py::kw_only(), py::arg("position_ids") = py::none(),
          py::arg("attention_mask") = py::none(), py::arg("mode") = "automatic",
          py::arg("out") = py::none())
      .def("forward_batch", &forward_attention, py::arg("x"), py::arg("caches"), py::arg("lengths"),
           py::kw_only(), py::arg("position_ids") = py::none(),
           py::arg("attention_mask") = py::none(), py::arg("mode") = "automatic",
           py::arg("out") = py::none());
}

void define_models(py::module_& module) {
  py::class_<Tokenizer, std::shared_ptr<Tokenizer>>(module, "Tokenizer")
      .def(py::init([](const std::string& path) {
             return std::make_shared<Tokenizer>(std::filesystem::path(path));
           }),
           py::arg("path"))
      .def_property_readonly("vocab_size", &Tokenizer::vocab_size)
      .def_property_readonly("bos_id", &Tokenizer::bos_id)
      .def_property_readonly("eos_ids", &Tokenizer::eos_ids)
      .def(
          "encode",
          [](const Tokenizer& self, const std::string& text, std::optional<bool> add_bos) {
            const py::gil_scoped_release release;
            return self.encode(text, add_bos.value_or(self.adds_bos()));
          },
          py::arg("text"), py::arg("add_bos") = py::none())
      .def(
          "decode",
          [](const Tokenizer& self, const py::object& tokens, bool skip_special) {
            return self.decode(tokens_of("tokens", tokens), skip_special);
          },
          py::arg("tokens"), py::arg("skip_special") = true)
      .def(
          "token_id",
          [](const Tokenizer& self, const std::string& text) { return self.token_id(text); },
          py::arg("text"));

  py::class_<PyState, StatePointer>(module, "State")
      .def("__len__", [](const PyState& self) { return self.state.size(); })
      .def_property_readonly(
          "format", [](const PyState& self) { return std::string(name_of(self.state.format())); })
      .def_property_readonly("bytes_used",
                             [](const PyState& self) { return self.state.bytes_used(); })
      .def_property_readonly("bytes_per_token",
                             [](const PyState& self) { return self.state.bytes_per_token(); })
      .def(
          "reserve",
          [](PyState& self, Index tokens) {
            const InUse in_use = self.use();
            const Index most = self.model->model.max_position_embeddings();
            require(tokens >= 0 && tokens <= most, "tokens must be from 0 to ", most, ", got ",
                    tokens);
            self.state.reserve(tokens);
          },
          py::arg("tokens"))
      .def(
          "fork",
          [](PyState& self, std::optional<Index> tokens) {
            const InUse in_use = self.use();
            return std::make_shared<PyState>(self.model,
                                             self.state.fork(tokens.value_or(self.state.size())));
          },
          py::arg("tokens") = py::none())
      .def(
          "evict",
          [](PyState& self, const std::vector<Index>& rows) {
            const InUse in_use = self.use();
            self.state.evict(std::span<const Index>(rows));
          },
          py::arg("rows"))
      .def(
          "truncate",
          [](PyState& self, Index tokens) {
            const InUse in_use = self.use();
            self.state.truncate(tokens);
          },
          py::arg("tokens"))
      .def(
          "save",
          [](PyState& self, const std::string& path, const std::string& label) {
            const InUse in_use = self.use();
            save_snapshot(path, self.model->model.config(), self.state, label);
          },
          py::arg("path"), py::arg("label") = "")
      .def(
          "restore",
          [](PyState& self, const std::string& path, const std::string& label) {
            const InUse in_use = self.use();
            restore_snapshot(path, self.model->model.config(), self.state, label);
          },
          py::arg("path"), py::arg("label") = "");

  py::class_<PyGeneration>(module, "Generation")
      .def("__iter__", [](const py::object& self) { return self; })
      .def("__next__", &PyGeneration::next)
      .def("__enter__", [](const py::object& self) { return self; })
      .def("__exit__", [](PyGeneration& self, const py::args&) { self.close(); })
      .def("close", &PyGeneration::close)
      .def_property_readonly("tokens", &PyGeneration::tokens)
      .def_property_readonly("stop_reason", &PyGeneration::stop_reason)
      .def_property_readonly("prompt_tokens",
                             [](const PyGeneration& self) { return self.result().prompt_tokens; })
      .def_property_readonly(
          "generated_tokens",
          [](const PyGeneration& self) { return self.result().generated_tokens; })
      .def_property_readonly("drafted_tokens",
                             [](const PyGeneration& self) { return self.result().drafted_tokens; })
      .def_property_readonly("accepted_tokens",
                             [](const PyGeneration& self) { return self.result().accepted_tokens; })
      .def_property_readonly("decode_calls",
                             [](const PyGeneration& self) { return self.result().decode_calls; });

  py::class_<PyModel, ModelPointer> model(module, "Model");
  model
      .def(py::init([](const std::string& path, int threads, const std::string& precision) {
             const py::gil_scoped_release release;
             return std::make_shared<PyModel>(path, threads, precision);
           }),
           py::arg("path"), py::kw_only(), py::arg("threads") = 0, py::arg("precision") = "fast")
      .def_property_readonly("vocab_size",
                             [](const PyModel& self) { return self.model.vocab_size(); })
      .def_property_readonly("hidden_size",
                             [](const PyModel& self) { return self.model.hidden_size(); })
      .def_property_readonly(
          "num_hidden_layers",
          [](const PyModel& self) { return self.model.config().num_hidden_layers; })
      .def_property_readonly(
          "max_position_embeddings",
          [](const PyModel& self) { return self.model.max_position_embeddings(); })
      .def_property_readonly("model_type",
                             [](const PyModel& self) { return self.model.config().model_type; })
      .def_property_readonly("bos_token_id",
                             [](const PyModel& self) { return self.model.config().bos_token_id; })
      .def_property_readonly("eos_token_ids",
                             [](const PyModel& self) { return self.model.config().eos_token_ids; })
      .def_property_readonly("threads", [](const PyModel& self) { return self.machine.threads(); })
      .def_property_readonly(
          "tokenizer",
          [](const PyModel& self) { return std::const_pointer_cast<Tokenizer>(self.tokenizer); })
      .def(
          "state",
          [](const ModelPointer& self, const std::optional<std::string>& format) {
            const CacheFormat chosen =
                format ? cache_format_of(*format) : self->machine.cache_format();
            return std::make_shared<PyState>(self, chosen);
          },
          py::arg("cache_format") = py::none())
      .def(
          "forward",
          [](PyModel& self, const py::object& tokens, const StatePointer& state,
             std::optional<Index> last) {
            return forward(self, {step_of(self, tokens, state, last)}).front();
          },
          py::arg("tokens"), py::arg("state"), py::kw_only(), py::arg("last") = py::none())
      .def(
          "forward_batch",
          [](PyModel& self, const std::vector<py::object>& tokens,
             const std::vector<StatePointer>& states, std::optional<Index> last) {
            require(tokens.size() == states.size(), "there are ", tokens.size(), " texts, but ",
                    states.size(), " states");
            std::vector<PyStep> steps;
            for (std::size_t i = 0; i < tokens.size(); ++i)
              steps.push_back(step_of(self, tokens[i], states[i], last));
            return forward(self, steps);
          },
          py::arg("tokens"), py::arg("states"), py::kw_only(), py::arg("last") = py::none());
  const auto define_generate = [&](const char* name, bool text) {
    model.def(
        name,
        [text](const ModelPointer& self, const py::object& prompt, const StatePointer& state,
               Index max_tokens, double temperature, Index top_k, double top_p, double min_p,
               double repetition_penalty, std::uint64_t seed, bool stop_at_eos, bool speculative,
               Index draft_tokens, Index lookup, Index chunk_tokens) {
          return generate(self, prompt, state, text, max_tokens, temperature, top_k, top_p, min_p,
                          repetition_penalty, seed, stop_at_eos, speculative, draft_tokens, lookup,
                          chunk_tokens);
        },
        py::arg("prompt"), py::kw_only(), py::arg("state") = py::none(),
        py::arg("max_tokens") = 128, py::arg("temperature") = 0.0, py::arg("top_k") = 0,
        py::arg("top_p") = 1.0, py::arg("min_p") = 0.0, py::arg("repetition_penalty") = 1.0,
        py::arg("seed") = 0, py::arg("stop_at_eos") = true, py::arg("speculative") = false,
        py::arg("draft_tokens") = 1, py::arg("lookup") = 0, py::arg("chunk_tokens") = 256);
  };
  define_generate("generate", true);
  define_generate("generate_tokens", false);
}

}  // namespace
}  // namespace mla::python

PYBIND11_MODULE(_mla, module) {
  module.attr("__version__") = MLA_VERSION;
  mla::python::define_attention(module);
  mla::python::define_models(module);
}
