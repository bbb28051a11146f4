// Models, states, tokenizers and generation of mla._mla.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "machine.hpp"
#include "mla/model/decoder_model.hpp"
#include "mla/model/decoder_snapshot.hpp"
#include "mla/model/generate.hpp"
#include "mla/model/sampler.hpp"
#include "mla/text/streaming_decoder.hpp"
#include "mla/text/tokenizer.hpp"

namespace mla::python {
namespace {

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

}  // namespace

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

}  // namespace mla::python
