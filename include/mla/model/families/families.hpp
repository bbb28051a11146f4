#ifndef MLA_MODEL_FAMILIES_FAMILIES_HPP_
#define MLA_MODEL_FAMILIES_FAMILIES_HPP_

#include <string_view>

#include "mla/model/families/axk1.hpp"
#include "mla/model/families/deepseek.hpp"
#include "mla/model/families/deepseek_v32.hpp"
#include "mla/model/families/family.hpp"
#include "mla/model/families/glm4_moe_lite.hpp"
#include "mla/model/families/glm_moe_dsa.hpp"
#include "mla/model/families/longcat_flash.hpp"
#include "mla/model/families/minicpm3.hpp"
#include "mla/model/families/mistral4.hpp"
#include "mla/model/families/plm.hpp"
#include "mla/model/families/sarvam_mla.hpp"
#include "mla/model/families/text_parts.hpp"
#include "mla/model/families/youtu.hpp"

namespace mla {

/// The families that the library reads.
inline constexpr Family kFamilies[] = {
    families::kDeepSeekV2,  families::kDeepSeekV3, families::kJoyAI,        families::kYoutu,
    families::kGlm4MoeLite, families::kPlm,        families::kMiniCpm3,     families::kMistral4,
    families::kSarvam,      families::kAxk1,       families::kLongcatFlash, families::kDeepSeekV32,
    families::kGlmMoeDsa};

/// Models with a decoder of one of them inside.
inline constexpr TextPart kTextParts[] = {families::kMistral3, families::kKimiVl,
                                          families::kKimiK25, families::kDeepSeekVl2};

/// A published model type that is refused, and why.
struct RefusedFamily {
  std::string_view model_type;
  std::string_view reason;
};
inline constexpr RefusedFamily kRefusedFamilies[] = {
    {"kimi_linear", "its Kimi Delta Attention keeps a state that is no latent cache"},
    {"kimi_k3", "its Kimi Delta Attention keeps a state that is no latent cache"},
    {"bailing_hybrid", "its linear attention keeps a state that is no latent cache"},
    {"hy_v4", "sparse attention, output gates and attention sinks are not supported"},
    {"deepseek_v4", "it has no MLA but compressed streams of one key head"},
    {"longcat_flash_ngram", "embeddings of n-grams are not supported"},
    {"pangu_ultra_moe", "its sandwich norms were not verified"},
};

}  // namespace mla

#endif  // MLA_MODEL_FAMILIES_FAMILIES_HPP_
