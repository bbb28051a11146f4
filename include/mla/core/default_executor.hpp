#ifndef MLA_CORE_DEFAULT_EXECUTOR_HPP_
#define MLA_CORE_DEFAULT_EXECUTOR_HPP_

#include "mla/core/executor.hpp"
#if defined(_OPENMP)
#include "mla/core/openmp_executor.hpp"
#endif

namespace mla {

/// One executor of type E for the whole program, made when it is first used.
template <class E>
struct SharedExecutor {
  static Executor& get() noexcept {
    static E executor;
    return executor;
  }
};

/// What runs the tasks where the caller has nothing to say: OpenMP's threads in a file compiled
/// with it (-fopenmp, or CMake's OpenMP::OpenMP_CXX), the calling thread in others. OpenMP's are as
/// many as omp_get_max_threads() says at the first use. Several threads may use it at the same
/// time. Inside a parallel region of the caller's it has the threads that OpenMP allows there: by
/// default the calling one alone.
// Some files of a program may be compiled with OpenMP and others not, and the linker keeps one copy
// of functions of the same name. Here the name of the type, and with it that of every function that
// takes one, says which it is, so each file gets what it was compiled for. An inline function that
// makes a Context of its own (MultiheadLatentAttention::forward without one) is still one for the
// whole program and may run on either; its results are the same.
#if defined(_OPENMP)
using DefaultExecutor = SharedExecutor<OpenMpExecutor>;
#else
using DefaultExecutor = SharedExecutor<SerialExecutor>;
#endif

}  // namespace mla

#endif  // MLA_CORE_DEFAULT_EXECUTOR_HPP_
