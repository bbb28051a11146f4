// Models, states, forward passes.

#include "model.hpp"

#include <Eigen/Core>
#include <string>

#include "mla/model/decoder_snapshot.hpp"

#include "context.hpp"

namespace mla::c {
namespace {

mla_model_info info_of(const DecoderModel& model) {
  const ModelConfig& config = model.config();
  mla_model_info info = {};
  info.vocab_size = model.vocab_size();
  info.hidden_size = model.hidden_size();
  info.num_hidden_layers = config.num_hidden_layers;
  info.max_position_embeddings = model.max_position_embeddings();
  info.num_nextn_predict_layers = config.num_nextn_predict_layers;
  info.bos_token_id = config.bos_token_id.value_or(-1);
  info.eos_token_id = config.eos_token_ids.empty() ? -1 : config.eos_token_ids.front();
  info.model_type = config.model_type.c_str();
  return info;
}

/// Checks the texts of a call, marks their states as in use, and writes them as the library has
/// them.
class Steps {
 public:
  Steps(mla_context& context, std::span<const mla_text_step> steps) : context_(context) {
    context.steps.reserve(steps.size());
    context.states_in_use.reserve(steps.size());
    try {
      for (const mla_text_step& step : steps) add(step);
    } catch (...) {
      clear();
      throw;
    }
  }
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;
  ~Steps() { clear(); }

  std::span<const TextStep> get() const noexcept { return context_.steps; }
  Index wanted() const noexcept { return wanted_; }

 private:
  void add(const mla_text_step& step) {
    mla_state& state = object(step.state);
    const auto tokens = array("tokens", step.tokens, step.token_count);
    require(step.wanted <= step.token_count, "a text of ", step.token_count,
            " tokens cannot give the last ", step.wanted);
    context_.states_in_use.emplace_back(state);
    context_.steps.push_back({&state.state, tokens, static_cast<Index>(step.wanted)});
    wanted_ += static_cast<Index>(step.wanted);
  }
  void clear() noexcept {
    context_.states_in_use.clear();
    context_.steps.clear();
  }

  mla_context& context_;
  Index wanted_ = 0;
};

}  // namespace
}  // namespace mla::c

extern "C" {

mla_status mla_model_load(const char* directory, mla_model** model) {
  return mla::c::guarded(
      [&] { mla::c::make(model, mla::DecoderModel::load(mla::c::text("directory", directory))); });
}

void mla_model_destroy(mla_model* model) { mla::c::destroy(model); }

mla_status mla_model_get_info(const mla_model* model, mla_model_info* info) {
  return mla::c::guarded([&] {
    mla::c::write_sized("mla_model_info", mla::c::info_of(*mla::c::object(model).model), info);
  });
}

mla_status mla_model_eos_token_ids(const mla_model* model, std::int32_t* ids, std::size_t capacity,
                                   std::size_t* count) {
  return mla::c::guarded([&] {
    const auto& eos = mla::c::object(model).model->config().eos_token_ids;
    mla::c::write_array("ids", std::span(eos), ids, capacity, count);
  });
}

mla_status mla_state_new(const mla_model* model, const char* cache_format, mla_state** state) {
  return mla::c::guarded([&] {
    const auto& of = mla::c::object(model).model;
    mla::c::make(state, of, mla::DecoderState(of->config(), mla::c::cache_format_of(cache_format)));
  });
}

void mla_state_destroy(mla_state* state) { mla::c::destroy(state); }

std::int64_t mla_state_size(const mla_state* state) {
  const mla_state* const found = mla::c::object_or_null(state);
  return found ? found->state.size() : 0;
}
std::uint64_t mla_state_bytes_used(const mla_state* state) {
  const mla_state* const found = mla::c::object_or_null(state);
  return found ? found->state.bytes_used() : 0;
}
std::uint64_t mla_state_bytes_allocated(const mla_state* state) {
  const mla_state* const found = mla::c::object_or_null(state);
  return found ? found->state.bytes_allocated() : 0;
}
std::uint64_t mla_state_bytes_per_token(const mla_state* state) {
  const mla_state* const found = mla::c::object_or_null(state);
  return found ? found->state.bytes_per_token() : 0;
}
const char* mla_state_format(const mla_state* state) {
  const mla_state* const found = mla::c::object_or_null(state);
  return found ? mla::name_of(found->state.format()).data() : nullptr;
}

mla_status mla_state_reserve(mla_state* state, std::int64_t tokens) {
  return mla::c::guarded([&] {
    mla_state& found = mla::c::object(state);
    const mla::c::InUse in_use(found);
    const mla::Index most = found.model->max_position_embeddings();
    mla::require(tokens >= 0 && tokens <= most, "tokens must be from 0 to max_position_embeddings ",
                 most, ", got ", tokens);
    found.state.reserve(tokens);
  });
}

mla_status mla_state_fork(const mla_state* state, std::int64_t tokens, mla_state** fork) {
  return mla::c::guarded([&] {
    const mla_state& found = mla::c::object(state);
    const mla::c::InUse in_use(found);
    mla::c::make(fork, found.model, found.state.fork(tokens));
  });
}

mla_status mla_state_evict(mla_state* state, const std::int64_t* rows, std::size_t count) {
  return mla::c::guarded([&] {
    mla_state& found = mla::c::object(state);
    const mla::c::InUse in_use(found);
    static_assert(std::is_same_v<mla::Index, std::int64_t>);
    found.state.evict(mla::c::array("rows", rows, count));
  });
}

mla_status mla_state_truncate(mla_state* state, std::int64_t tokens) {
  return mla::c::guarded([&] {
    mla_state& found = mla::c::object(state);
    const mla::c::InUse in_use(found);
    found.state.truncate(tokens);
  });
}

mla_status mla_state_save(const mla_state* state, const char* path, const char* label) {
  return mla::c::guarded([&] {
    const mla_state& found = mla::c::object(state);
    const mla::c::InUse in_use(found);
    mla::save_snapshot(mla::c::text("path", path), found.model->config(), found.state,
                       mla::c::text_or(label, ""));
  });
}

mla_status mla_state_restore(mla_state* state, const char* path, const char* label) {
  return mla::c::guarded([&] {
    mla_state& found = mla::c::object(state);
    const mla::c::InUse in_use(found);
    mla::restore_snapshot(mla::c::text("path", path), found.model->config(), found.state,
                          mla::c::text_or(label, ""));
  });
}

mla_status mla_forward(const mla_model* model, mla_context* context, const mla_text_step* steps,
                       std::size_t step_count, float* logits, std::size_t logits_count) {
  return mla::c::guarded([&] {
    const mla::DecoderModel& found = *mla::c::object(model).model;
    mla_context& on = mla::c::object(context);
    const mla::c::InUse in_use(on);
    const mla::c::Steps texts(on, mla::c::array("steps", steps, step_count));
    const auto values = mla::c::array("logits", logits, logits_count);
    const mla::Index vocab = found.vocab_size();
    mla::require(std::ssize(values) == texts.wanted() * vocab, "logits must have ", texts.wanted(),
                 " x ", vocab, " numbers, got ", logits_count);
    Eigen::Map<mla::RowMajorMatrix> out(logits, texts.wanted(), vocab);
    found.forward(texts.get(), out, on.context);
  });
}

}  // extern "C"
