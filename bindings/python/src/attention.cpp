// Attention layers, their configs and caches of mla._mla.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "machine.hpp"
#include "mla/attention/attention_weights.hpp"
#include "mla/attention/multihead_latent_attention.hpp"
#include "mla/io/cache_snapshot.hpp"
#include "mla/io/checkpoint.hpp"
#include "mla/io/load_attention_weights.hpp"
#include "mla/model/read_attention_config.hpp"

namespace mla::python {
namespace {

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

}  // namespace

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

}  // namespace mla::python
