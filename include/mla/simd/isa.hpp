#ifndef MLA_SIMD_ISA_HPP_
#define MLA_SIMD_ISA_HPP_

#include "mla/core/compiler.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
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

/// Instruction sets that kernels exist for. Says what a machine has; what may be rounded is
/// Arithmetic's business.
enum class Isa : std::uint8_t {
  scalar,       ///< what the compiler takes for granted, products and sums rounded apart
  avx2,         ///< AVX2, FMA, F16C
  avx512,       ///< AVX-512 F, BW, DQ, VL
  avx512_bf16,  ///< and dot products of bfloat16 (VDPBF16PS)
  amx,          ///< and tiles of them (AMX-TILE, AMX-BF16)
  neon,         ///< AArch64, every one of which has it
  neon_bf16,    ///< and products of bfloat16 (BFMMLA)
};

/// What a product with weights or a cache may round, from nothing on: each allows all before it.
enum class Arithmetic : std::uint8_t {
  float32,   ///< stored numbers widened, which is exact; products and sums in float32
  bfloat16,  ///< of bfloat16 numbers: the other factor rounded to bfloat16, sums in float32,
             ///< subnormals are 0; sums are rounded as the instructions do it, to nearest or
             ///< (BFMMLA) to odd
  int8,      ///< of 8-bit numbers: the other factor rounded to 8 bits. No format uses it yet.
};

constexpr std::string_view name_of(Arithmetic arithmetic) noexcept {
  switch (arithmetic) {
    case Arithmetic::float32:
      return "float32";
    case Arithmetic::bfloat16:
      return "bfloat16";
    case Arithmetic::int8:
      return "int8";
  }
  __builtin_unreachable();
}

/// Features of a processor, as bits of a mask.
namespace feature {
inline constexpr unsigned kAvx2 = 1;          ///< AVX2, FMA, F16C
inline constexpr unsigned kAvx512 = 1u << 1;  ///< F, BW, DQ, VL
inline constexpr unsigned kAvx512Bf16 = 1u << 2;
inline constexpr unsigned kAmxBf16 = 1u << 3;  ///< AMX-TILE, AMX-BF16 and the system's permission
inline constexpr unsigned kNeon = 1u << 4;
inline constexpr unsigned kNeonBf16 = 1u << 5;
}  // namespace feature

/// What the library knows of an instruction set.
struct IsaInfo {
  std::string_view name;
  unsigned features;  ///< that a processor must have
  Isa isa;
  Arithmetic arithmetic;  ///< the most that its own kernels round
};

/// All of them, the best first.
inline constexpr IsaInfo kIsas[] = {
    {"amx", feature::kAvx2 | feature::kAvx512 | feature::kAvx512Bf16 | feature::kAmxBf16, Isa::amx,
     Arithmetic::bfloat16},
    {"avx512_bf16", feature::kAvx2 | feature::kAvx512 | feature::kAvx512Bf16, Isa::avx512_bf16,
     Arithmetic::bfloat16},
    {"avx512", feature::kAvx2 | feature::kAvx512, Isa::avx512, Arithmetic::float32},
    {"avx2", feature::kAvx2, Isa::avx2, Arithmetic::float32},
    {"neon_bf16", feature::kNeon | feature::kNeonBf16, Isa::neon_bf16, Arithmetic::bfloat16},
    {"neon", feature::kNeon, Isa::neon, Arithmetic::float32},
    {"scalar", 0, Isa::scalar, Arithmetic::float32},
};

/// All of them, the weakest first within an architecture.
inline constexpr std::array kAllIsas = {Isa::scalar, Isa::avx2, Isa::avx512,   Isa::avx512_bf16,
                                        Isa::amx,    Isa::neon, Isa::neon_bf16};
static_assert(std::size(kIsas) == kAllIsas.size() &&
              static_cast<std::size_t>(Isa::neon_bf16) + 1 == std::size(kIsas));

constexpr const IsaInfo& info_of(Isa isa) noexcept {
  for (const IsaInfo& info : kIsas)
    if (info.isa == isa) return info;
  __builtin_unreachable();
}
constexpr std::string_view name_of(Isa isa) noexcept { return info_of(isa).name; }

/// The most that an instruction set's own kernels round.
constexpr Arithmetic arithmetic_of(Isa isa) noexcept { return info_of(isa).arithmetic; }

inline std::optional<Isa> isa_from_name(std::string_view name) noexcept {
  for (const IsaInfo& info : kIsas)
    if (info.name == name) return info.isa;
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

/// Which features of `wanted` this machine has. Wanting kAmxBf16 asks Linux for this process's
/// permission to use its state, which stays: alternate signal stacks must then be large enough for
/// it (AT_MINSIGSTKSZ).
inline unsigned features_of_machine(unsigned wanted) noexcept {
  unsigned features = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Every processor with AVX2 has F16C; clang 16 cannot ask for it.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) features |= feature::kAvx2;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    features |= feature::kAvx512;
  if (__builtin_cpu_supports("avx512bf16")) features |= feature::kAvx512Bf16;
  if ((wanted & feature::kAmxBf16) != 0 && detail::has_amx()) features |= feature::kAmxBf16;
#elif defined(__aarch64__)
  features |= feature::kNeon;
  if (detail::has_neon_bf16()) features |= feature::kNeonBf16;
#endif
  return features & wanted;
}

/// Whether this machine, and this build, can run the kernels of `isa`. Asking for `amx`, or for the
/// best with Arithmetic::bfloat16, asks for the permission to use it, see features_of_machine().
inline bool is_supported(Isa isa) noexcept {
  const unsigned required = info_of(isa).features;
  return features_of_machine(required) == required;
}

/// The best supported instruction set that is not above `limit` and rounds no more than
/// `arithmetic` allows. A limit of another architecture is none.
inline Isa best_isa(Arithmetic arithmetic = Arithmetic::float32,
                    Isa limit = kAllIsas.back()) noexcept {
  for (const IsaInfo& info : kIsas)
    if (info.isa <= limit && info.arithmetic <= arithmetic && is_supported(info.isa))
      return info.isa;
  return Isa::scalar;
}

/// best_isa(), lowered by the environment variable MLA_ISA (a name from name_of) where it is set.
/// A name that is not known changes nothing.
inline Isa default_isa(Arithmetic arithmetic = Arithmetic::float32) noexcept {
  const char* wanted = std::getenv("MLA_ISA");
  const std::optional<Isa> limit = wanted ? isa_from_name(wanted) : std::nullopt;
  return limit ? best_isa(arithmetic, *limit) : best_isa(arithmetic);
}

}  // namespace mla::simd

namespace mla {
using simd::Arithmetic;
}

#endif  // MLA_SIMD_ISA_HPP_
