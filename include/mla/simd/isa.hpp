#ifndef MLA_SIMD_ISA_HPP_
#define MLA_SIMD_ISA_HPP_

#include <array>
#include <cstdlib>
#include <optional>
#include <string_view>

namespace mla::simd {

/// Instruction sets that kernels exist for, weakest first within an architecture.
enum class Isa {
  scalar,  ///< what the compiler takes for granted, products and sums rounded apart
  avx2,    ///< AVX2, FMA, F16C
  avx512,  ///< AVX-512 F, BW, DQ, VL
  neon,    ///< AArch64, every one of which has it
};

inline constexpr std::array kAllIsas = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::neon};

constexpr std::string_view name_of(Isa isa) noexcept {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::neon:
      return "neon";
    default:
      return "scalar";
  }
}

inline std::optional<Isa> isa_from_name(std::string_view name) noexcept {
  for (Isa isa : kAllIsas)
    if (name_of(isa) == name) return isa;
  return std::nullopt;
}

/// Whether this machine, and this build, can run the kernels of `isa`.
inline bool is_supported(Isa isa) noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Every processor with AVX2 has F16C; clang 16 cannot ask for it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#elif defined(__aarch64__)
  if (isa == Isa::neon) return true;
#endif
  return isa == Isa::scalar;
}

/// The strongest supported instruction set that is not above `limit`.
inline Isa best_isa(Isa limit = kAllIsas.back()) noexcept {
  Isa best = Isa::scalar;
  for (Isa isa : kAllIsas)
    if (isa <= limit && is_supported(isa)) best = isa;
  return best;
}

/// best_isa(), lowered by the environment variable MLA_ISA (a name from name_of) where it is set.
/// A name that is not known changes nothing.
inline Isa default_isa() noexcept {
  const char* wanted = std::getenv("MLA_ISA");
  const std::optional<Isa> limit = wanted ? isa_from_name(wanted) : std::nullopt;
  return limit ? best_isa(*limit) : best_isa();
}

}  // namespace mla::simd

#endif  // MLA_SIMD_ISA_HPP_
