#ifndef MLA_SIMD_ISA_HPP_
#define MLA_SIMD_ISA_HPP_

#include "mla/core/compiler.hpp"

#include <array>
#include <cstddef>
#include <cstdlib>
#include <optional>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

namespace mla::simd {

/// Instruction sets that kernels exist for, weakest first within an architecture.
enum class Isa {
  scalar,       ///< what the compiler takes for granted, products and sums rounded apart
  avx2,         ///< AVX2, FMA, F16C
  avx512,       ///< AVX-512 F, BW, DQ, VL
  avx512_bf16,  ///< and dot products of bfloat16 (VDPBF16PS)
  amx,          ///< and tiles of them (AMX-TILE, AMX-BF16)
  neon,         ///< AArch64, every one of which has it
  neon_bf16,    ///< and products of bfloat16 (BFMMLA)
};

inline constexpr std::array kAllIsas = {Isa::scalar, Isa::avx2, Isa::avx512,   Isa::avx512_bf16,
                                        Isa::amx,    Isa::neon, Isa::neon_bf16};

/// How products with weights or a cache of bfloat16 are computed.
enum class Precision {
  float32,   ///< bfloat16 widened, which is exact; products and sums in float32
  bfloat16,  ///< the other factor rounded to bfloat16, sums in float32, subnormals are 0; sums are
             ///< rounded as the instructions do it, to nearest or (BFMMLA) to odd
};

/// The arithmetic of an instruction set's kernels for bfloat16. Weights and caches of float32 and
/// float16 are computed in float32 by all.
constexpr Precision precision_of(Isa isa) noexcept {
  const bool rounds = isa == Isa::avx512_bf16 || isa == Isa::amx || isa == Isa::neon_bf16;
  return rounds ? Precision::bfloat16 : Precision::float32;
}

constexpr std::string_view name_of(Isa isa) noexcept {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::amx:
      return "amx";
    case Isa::neon:
      return "neon";
    case Isa::neon_bf16:
      return "neon_bf16";
    default:
      return "scalar";
  }
}

inline std::optional<Isa> isa_from_name(std::string_view name) noexcept {
  for (Isa isa : kAllIsas)
    if (name_of(isa) == name) return isa;
  return std::nullopt;
}

#if defined(__x86_64__)
namespace detail {

// AMX-TILE and AMX-BF16 in the processor, and the system's permission for this process to use their
// state, which Linux gives once it is asked (arch_prctl ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
inline bool has_amx() noexcept {
#if defined(__linux__)
  static const bool granted = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return (d & kTile) != 0 && (d & kBf16) != 0 &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
#else
  return false;
#endif
}

}  // namespace detail
#elif defined(__aarch64__)
namespace detail {

// FEAT_BF16, as the system tells: the register that says so is not for programs to read.
inline bool has_neon_bf16() noexcept {
#if defined(__linux__)
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16, which older headers do not have
  return (getauxval(AT_HWCAP2) & kBf16) != 0;
#elif defined(__APPLE__)
  int there = 0;
  std::size_t size = sizeof(there);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &there, &size, nullptr, 0) == 0 && there != 0;
#else
  return false;
#endif
}

}  // namespace detail
#endif

/// Whether this machine, and this build, can run the kernels of `isa`. Asking for `amx`, or for the
/// best with Precision::bfloat16, asks Linux for this process's permission to use its state, which
/// stays: alternate signal stacks must then be large enough for it (AT_MINSIGSTKSZ).
inline bool is_supported(Isa isa) noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Every processor with AVX2 has F16C; clang 16 cannot ask for it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  switch (isa) {
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx512;
    case Isa::avx512_bf16:
      return avx512_bf16;
    case Isa::amx:
      return avx512_bf16 && detail::has_amx();
    default:
      break;
  }
#elif defined(__aarch64__)
  if (isa == Isa::neon) return true;
  if (isa == Isa::neon_bf16) return detail::has_neon_bf16();
#endif
  return isa == Isa::scalar;
}

/// The strongest supported instruction set that is not above `limit` and computes with no less than
/// `precision`.
inline Isa best_isa(Precision precision = Precision::float32,
                    Isa limit = kAllIsas.back()) noexcept {
  Isa best = Isa::scalar;
  for (Isa isa : kAllIsas)
    if (isa <= limit && precision_of(isa) <= precision && is_supported(isa)) best = isa;
  return best;
}

/// best_isa(), lowered by the environment variable MLA_ISA (a name from name_of) where it is set.
/// A name that is not known changes nothing.
inline Isa default_isa(Precision precision = Precision::float32) noexcept {
  const char* wanted = std::getenv("MLA_ISA");
  const std::optional<Isa> limit = wanted ? isa_from_name(wanted) : std::nullopt;
  return limit ? best_isa(precision, *limit) : best_isa(precision);
}

}  // namespace mla::simd

namespace mla {
using simd::Precision;
}

#endif  // MLA_SIMD_ISA_HPP_
