// Sampling and generation.

#include <string>
#include <utility>
#include <vector>

#include "mla/model/generate.hpp"
#include "mla/model/sampler.hpp"

#include "context.hpp"
#include "model.hpp"

namespace mla::c {
namespace {

mla_sampler_options default_sampler_options() {
  const SamplerOptions defaults;
  mla_sampler_options options = {};
  options.temperature = defaults.temperature;
  options.top_k = defaults.top_k;
  options.top_p = defaults.top_p;
  options.min_p = defaults.min_p;
  options.repetition_penalty = defaults.repetition_penalty;
  options.seed = defaults.seed;
  return options;
}

mla_generation_options default_generation_options() {
  const GenerationOptions defaults;
  mla_generation_options options = {};
  options.max_tokens = defaults.max_tokens;
  options.stop_at_eos = defaults.stop_at_eos;
  options.speculative = defaults.speculative;
  options.prefill_mode = MLA_FORM_AUTOMATIC;
  options.decode_mode = MLA_FORM_ABSORBED;
  options.chunk_tokens = defaults.chunk_tokens;
  options.draft_tokens = defaults.draft_tokens;
  options.lookup = defaults.lookup;
  return options;
}

mla_stop_reason stop_reason_of(StopReason reason) {
  switch (reason) {
    case StopReason::end_of_text:
      return MLA_STOP_END_OF_TEXT;
    case StopReason::max_tokens:
      return MLA_STOP_MAX_TOKENS;
    case StopReason::context_full:
      return MLA_STOP_CONTEXT_FULL;
    case StopReason::cancelled:
      return MLA_STOP_CANCELLED;
  }
  __builtin_unreachable();
}

mla_generation_result result_of(const GenerationResult& from) {
  mla_generation_result result = {};
  result.stop = stop_reason_of(from.stop);
  result.prompt_tokens = from.prompt_tokens;
  result.generated_tokens = from.generated_tokens;
  result.drafted_tokens = from.drafted_tokens;
  result.accepted_tokens = from.accepted_tokens;
  result.prefill_seconds = from.prefill_seconds;
  result.decode_seconds = from.decode_seconds;
  result.decode_calls = from.decode_calls;
  return result;
}

GenerationOptions generation_options_of(const mla_generation_options& from) {
  const mla_cancel_flag* const cancel = from.cancel ? &object(from.cancel) : nullptr;
  const auto cancelled = [cancel] { return cancel && cancel->set.load(std::memory_order_relaxed); };
  GenerationOptions options;
  options.max_tokens = from.max_tokens;
  options.stop_at_eos = from.stop_at_eos != 0;
  options.speculative = from.speculative != 0;
  options.prefill_mode = form_of("prefill_mode", from.prefill_mode);
  options.decode_mode = form_of("decode_mode", from.decode_mode);
  options.chunk_tokens = from.chunk_tokens;
  options.draft_tokens = from.draft_tokens;
  options.lookup = from.lookup;
  options.on_token = [=, on_token = from.on_token, user = from.user](TokenId token) {
    const bool stop = on_token && on_token(user, token) != 0;
    return !stop && !cancelled();
  };
  options.on_prefill = [=, on_prefill = from.on_prefill, user = from.user](Index done, Index all) {
    const bool stop = on_prefill && on_prefill(user, done, all) != 0;
    return !stop && !cancelled();
  };
  return options;
}

/// The texts of a call as the library has them, their states and samplers marked as in use.
class Generations {
 public:
  Generations(const DecoderModel& model, std::span<const mla_generation> texts) {
    greedy_.reserve(texts.size());
    tasks_.reserve(texts.size());
    for (const mla_generation& text : texts) add(model, text);
  }

  const std::vector<GenerationTask<Sampler>>& tasks() const noexcept { return tasks_; }

 private:
  void add(const DecoderModel& model, const mla_generation& text) {
    const auto options =
        read_options("mla_generation_options", text.options, default_generation_options());
    mla_state& state = object(text.state);
    in_use_.emplace_back(state);
    Sampler* sampler = nullptr;
    if (options.sampler) {
      in_use_.emplace_back(object(options.sampler));
      sampler = &options.sampler->sampler;
      require(sampler->vocab_size() == model.vocab_size(), "the sampler is for a vocabulary of ",
              sampler->vocab_size(), ", the model has ", model.vocab_size());
    } else {
      sampler = &greedy_.emplace_back(model.vocab_size(), SamplerOptions{.temperature = 0.0});
    }
    tasks_.push_back({&state.state, array("prompt", text.prompt, text.prompt_count), sampler,
                      generation_options_of(options)});
  }

  std::vector<Sampler> greedy_;
  std::vector<InUse> in_use_;
  std::vector<GenerationTask<Sampler>> tasks_;
};

/// The caller's results, whose size may be that of another version.
class Results {
 public:
  Results(mla_generation_result* first, std::size_t count) : first_(first), count_(count) {
    if (!first || count == 0) return;
    size_ = first->size;
    require(size_ >= sizeof(std::size_t) && size_ <= (1u << 16), "mla_generation_result.size is ",
            size_, ", set it to sizeof(mla_generation_result)");
    for (std::size_t i = 0; i < count; ++i)
      require(at(i)->size == size_, "mla_generation_result.size is ", size_, " in result 0, but ",
              at(i)->size, " in result ", i);
  }

  void write(const std::vector<GenerationResult>& results) const {
    for (std::size_t i = 0; first_ && i < count_; ++i)
      write_options(result_of(results[i]), at(i), size_);
  }

 private:
  mla_generation_result* at(std::size_t i) const noexcept {
    auto* const bytes = reinterpret_cast<std::byte*>(first_);
    return reinterpret_cast<mla_generation_result*>(bytes + i * size_);
  }

  mla_generation_result* first_;
  std::size_t count_, size_ = 0;
};

}  // namespace
}  // namespace mla::c

extern "C" {

void mla_sampler_options_init(mla_sampler_options* options, std::size_t size) {
  mla::c::write_options(mla::c::default_sampler_options(), options, size);
}

mla_status mla_sampler_new(std::int64_t vocab_size, const mla_sampler_options* options,
                           mla_sampler** sampler) {
  return mla::c::guarded([&] {
    const auto all =
        mla::c::read_options("mla_sampler_options", options, mla::c::default_sampler_options());
    mla::c::make(sampler, vocab_size,
                 mla::SamplerOptions{.temperature = all.temperature,
                                     .top_k = all.top_k,
                                     .top_p = all.top_p,
                                     .min_p = all.min_p,
                                     .repetition_penalty = all.repetition_penalty,
                                     .seed = all.seed});
  });
}

void mla_sampler_destroy(mla_sampler* sampler) { mla::c::destroy(sampler); }

mla_status mla_sampler_next(mla_sampler* sampler, const float* logits, std::size_t vocab_size,
                            const std::int32_t* history, std::size_t history_count,
                            std::int32_t* token) {
  return mla::c::guarded([&] {
    mla_sampler& found = mla::c::object(sampler);
    const mla::c::InUse in_use(found);
    mla::require(token != nullptr, "the pointer for the token is NULL");
    *token = found.sampler.next(mla::c::array("logits", logits, vocab_size),
                                mla::c::array("history", history, history_count));
  });
}

mla_status mla_cancel_flag_new(mla_cancel_flag** flag) {
  return mla::c::guarded([&] { mla::c::make(flag); });
}

void mla_cancel_flag_destroy(mla_cancel_flag* flag) { mla::c::destroy(flag); }

void mla_cancel_flag_set(mla_cancel_flag* flag) {
  if (mla::c::object_or_null(flag)) flag->set.store(true, std::memory_order_relaxed);
}
void mla_cancel_flag_clear(mla_cancel_flag* flag) {
  if (mla::c::object_or_null(flag)) flag->set.store(false, std::memory_order_relaxed);
}
int mla_cancel_flag_is_set(const mla_cancel_flag* flag) {
  return mla::c::object_or_null(flag) && flag->set.load(std::memory_order_relaxed) ? 1 : 0;
}

void mla_generation_options_init(mla_generation_options* options, std::size_t size) {
  mla::c::write_options(mla::c::default_generation_options(), options, size);
}

mla_status mla_generate(const mla_model* model, mla_context* context, const mla_generation* texts,
                        std::size_t count, mla_generation_result* results) {
  return mla::c::guarded([&] {
    const mla::DecoderModel& found = *mla::c::object(model).model;
    mla_context& on = mla::c::object(context);
    const mla::c::InUse in_use(on);
    const mla::c::Results out(results, count);
    const mla::c::Generations generations(found, mla::c::array("texts", texts, count));
    out.write(mla::generate(found, generations.tasks(), on.context));
  });
}

}  // extern "C"
