#ifndef MLA_EXAMPLES_PROGRAMS_ISA_NAMES_HPP_
#define MLA_EXAMPLES_PROGRAMS_ISA_NAMES_HPP_

#include <cstdlib>
#include <optional>
#include <string>

#include "mla/core/error.hpp"
#include "mla/simd/isa.hpp"
#include "mla/simd/kernels.hpp"

namespace mla::programs {

/// "scalar, avx2, ..."
inline std::string isa_names() {
  std::string names;
  for (const simd::Isa isa : simd::kAllIsas)
    names += (names.empty() ? "" : ", ") + std::string(simd::name_of(isa));
  return names;
}

/// The kernels that `--isa` names. Throws std::invalid_argument.
inline const simd::Kernels* parse_isa(const std::string& name) {
  const std::optional<simd::Isa> isa = simd::isa_from_name(name);
  require(isa.has_value(), "--isa must be one of ", isa_names(), "; got ", name);
  require(simd::is_supported(*isa), "--isa ", name, " is not supported by this machine");
  return &simd::kernels_for(*isa);
}

/// What is wrong with MLA_ISA in the environment, which the library does not complain of; empty if
/// nothing is.
inline std::string complaint_of_isa_variable() {
  const char* name = std::getenv("MLA_ISA");
  if (!name || !*name) return "";
  const std::optional<simd::Isa> isa = simd::isa_from_name(name);
  if (!isa) return "MLA_ISA=" + std::string(name) + " changes nothing: known are " + isa_names();
  if (simd::is_supported(*isa)) return "";
  return "MLA_ISA=" + std::string(name) + " is not supported by this machine";
}

}  // namespace mla::programs

#endif  // MLA_EXAMPLES_PROGRAMS_ISA_NAMES_HPP_
