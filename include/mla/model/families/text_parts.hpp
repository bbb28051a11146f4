#ifndef MLA_MODEL_FAMILIES_TEXT_PARTS_HPP_
#define MLA_MODEL_FAMILIES_TEXT_PARTS_HPP_

#include <string_view>

#include "mla/model/families/family.hpp"

// Models that see, with the decoder of a family inside: only that is run. Keys and tensors of the
// other parts are listed here, so that what is unknown is still refused.

namespace mla::families {

inline constexpr std::string_view kMistral3Types[] = {"mistral3"};
inline constexpr std::string_view kMistral3Architectures[] = {"Mistral3ForConditionalGeneration"};
inline constexpr std::string_view kMistral3Keys[] = {"text_config",
                                                     "vision_config",
                                                     "image_token_index",
                                                     "image_token_id",
                                                     "multimodal_projector_bias",
                                                     "projector_hidden_act",
                                                     "spatial_merge_size",
                                                     "vision_feature_layer"};
inline constexpr std::string_view kMistral3Parts[] = {"vision_tower.", "multi_modal_projector."};
inline constexpr TextPart kMistral3 = {.model_types = kMistral3Types,
                                       .architectures = kMistral3Architectures,
                                       .keys = kMistral3Keys,
                                       .config_key = "text_config",
                                       .model_type = "mistral4",
                                       .prefix = "language_model.",
                                       .other_parts = kMistral3Parts};

inline constexpr std::string_view kKimiVlTypes[] = {"kimi_vl"};
inline constexpr std::string_view kKimiVlArchitectures[] = {"KimiVLForConditionalGeneration"};
inline constexpr std::string_view kKimiVlKeys[] = {"text_config", "vision_config", "ignore_index",
                                                   "media_placeholder_token_id"};
inline constexpr TextPart kKimiVl = {.model_types = kKimiVlTypes,
                                     .architectures = kKimiVlArchitectures,
                                     .keys = kKimiVlKeys,
                                     .config_key = "text_config",
                                     .model_type = "deepseek_v3",
                                     .prefix = "language_model.",
                                     .other_parts = kMistral3Parts};

inline constexpr std::string_view kKimiK25Types[] = {"kimi_k25"};
inline constexpr std::string_view kKimiK25Architectures[] = {"KimiK25ForConditionalGeneration"};
inline constexpr std::string_view kKimiK25Keys[] = {"text_config",
                                                    "vision_config",
                                                    "ignore_index",
                                                    "media_placeholder_token_id",
                                                    "use_unified_vision_chunk",
                                                    "video_placeholder"};
inline constexpr std::string_view kKimiK25Parts[] = {"vision_tower.", "mm_projector."};
inline constexpr TextPart kKimiK25 = {.model_types = kKimiK25Types,
                                      .architectures = kKimiK25Architectures,
                                      .keys = kKimiK25Keys,
                                      .config_key = "text_config",
                                      .model_type = "kimi_k2",
                                      .prefix = "language_model.",
                                      .other_parts = kKimiK25Parts};

inline constexpr std::string_view kDeepSeekVl2Types[] = {"deepseek_vl_v2"};
inline constexpr std::string_view kDeepSeekVl2Architectures[] = {"DeepseekVLV2ForCausalLM"};
inline constexpr std::string_view kDeepSeekVl2Keys[] = {
    "language_config", "vision_config",   "projector_config",
    "tile_tag",        "global_view_pos", "candidate_resolutions"};
inline constexpr std::string_view kDeepSeekVl2Parts[] = {"vision.", "projector.", "image_newline",
                                                         "view_seperator"};
inline constexpr TextPart kDeepSeekVl2 = {
    .model_types = kDeepSeekVl2Types,
    .architectures = kDeepSeekVl2Architectures,
    .keys = kDeepSeekVl2Keys,
    .config_key = "language_config",
    .model_type = "deepseek_v2",
    // as its configuration class has them
    .defaults = R"({"rope_theta": 10000, "rms_norm_eps": 1e-6})",
    .prefix = "language.",
    .other_parts = kDeepSeekVl2Parts};

}  // namespace mla::families

#endif  // MLA_MODEL_FAMILIES_TEXT_PARTS_HPP_
