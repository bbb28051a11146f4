#ifndef MLA_BENCH_ONEDNN_PROJECTION_HPP_
#define MLA_BENCH_ONEDNN_PROJECTION_HPP_

#include <omp.h>

#include <dnnl.hpp>

#include "mla/core/float16.hpp"
#include "mla/core/tensor.hpp"

namespace mla::bench {

/// y = x * weight^T by oneDNN on one thread: x [tokens, in] and weight [out, in] in bfloat16, y
/// [tokens, out] in float32; the weights are packed once, in its constructor.
class OneDnnProjection {
 public:
  OneDnnProjection(bfloat16* x, bfloat16* weight, float* y, Index tokens, Index in, Index out) {
    using dnnl::memory;
    omp_set_num_threads(1);
    const auto bf16 = memory::data_type::bf16, f32 = memory::data_type::f32;
    const memory::desc x_desc({tokens, in}, bf16, memory::format_tag::ab);
    const memory::desc y_desc({tokens, out}, f32, memory::format_tag::ab);
    const memory::desc any({in, out}, bf16, memory::format_tag::any);
    const dnnl::matmul::primitive_desc chosen(dnnl::matmul::desc(x_desc, any, y_desc), engine_);
    memory rows({{in, out}, bf16, memory::format_tag::ba}, engine_, weight);
    memory packed(chosen.weights_desc(), engine_);
    dnnl::reorder(rows, packed).execute(stream_, rows, packed);
    stream_.wait();
    product_ = dnnl::matmul(chosen);
    arguments_ = {{DNNL_ARG_SRC, memory(x_desc, engine_, x)},
                  {DNNL_ARG_WEIGHTS, packed},
                  {DNNL_ARG_DST, memory(y_desc, engine_, y)}};
  }

  void run() {
    product_.execute(stream_, arguments_);
    stream_.wait();
  }

 private:
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  dnnl::matmul product_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

}  // namespace mla::bench

#endif  // MLA_BENCH_ONEDNN_PROJECTION_HPP_
