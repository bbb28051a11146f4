#ifndef MLA_BINDINGS_C_MODEL_HPP_
#define MLA_BINDINGS_C_MODEL_HPP_

#include <atomic>
#include <memory>
#include <utility>

#include "mla/model/decoder_model.hpp"
#include "mla/model/decoder_state.hpp"
#include "mla/model/sampler.hpp"

#include "handle.hpp"

struct mla_model : mla::c::Handle<mla::c::Kind::model> {
  explicit mla_model(mla::DecoderModel&& loaded)
      : model(std::make_shared<const mla::DecoderModel>(std::move(loaded))) {}
  std::shared_ptr<const mla::DecoderModel> model;
};

struct mla_state : mla::c::Handle<mla::c::Kind::state> {
  mla_state(std::shared_ptr<const mla::DecoderModel> of, mla::DecoderState&& with)
      : model(std::move(of)), state(std::move(with)) {}
  std::shared_ptr<const mla::DecoderModel> model;
  mla::DecoderState state;
};

struct mla_sampler : mla::c::Handle<mla::c::Kind::sampler> {
  mla_sampler(mla::Index vocab_size, const mla::SamplerOptions& options)
      : sampler(vocab_size, options) {}
  mla::Sampler sampler;
};

struct mla_cancel_flag : mla::c::Handle<mla::c::Kind::cancel_flag> {
  std::atomic<bool> set{false};
  static_assert(std::atomic<bool>::is_always_lock_free, "signal handlers may set it");
};

#endif  // MLA_BINDINGS_C_MODEL_HPP_
