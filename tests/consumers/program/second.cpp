#include <mla/mla.hpp>
#ifdef CONSUMER_USES_IO
#include <mla/io/safetensors.hpp>
#include <stdexcept>
#endif

mla::Index cache_row_width_in_second_file() {
  return mla::AttentionConfig::deepseek_v3().cache_row_width();
}

bool refuses_missing_checkpoint() {
#ifdef CONSUMER_USES_IO
  try {
    mla::SafetensorsFile file("no such file.safetensors");
    return false;
  } catch (const std::runtime_error&) {
    return true;
  }
#else
  return true;
#endif
}
