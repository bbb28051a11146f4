#include <cstdio>
#include <mla/mla.hpp>
#include <mla/version.hpp>
#include <string_view>
#ifdef CONSUMER_USES_IO
#include <mla/io/safetensors.hpp>
#endif
#ifdef CONSUMER_USES_MODEL
#include <mla/model/read_model_config.hpp>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef CONSUMER_VERSION
static_assert(std::string_view(MLA_VERSION) == CONSUMER_VERSION, "the package's is another one");
#endif
#ifdef CONSUMER_IS_COMPILED
#if CONSUMER_IS_COMPILED != defined(MLA_COMPILED)
#error "the flags of one mode came with the library of the other"
#endif
#endif

mla::Index cache_row_width_in_second_file();
bool refuses_missing_checkpoint();

// The library in two files of one program: they must link, and agree.
int main() {
  const auto config = mla::AttentionConfig::deepseek_v3();
  config.validate();
  std::printf("DeepSeek-V3 caches %td elements a token and layer\n", config.cache_row_width());
#ifdef CONSUMER_USES_IO
  if (bytes_of(mla::SafetensorsDType::bfloat16) != 2) return 1;
#endif
#ifdef CONSUMER_USES_MODEL
  if (mla::ModelConfig().hidden_size() != config.hidden_size) return 1;
#endif
#ifdef _OPENMP
  const int threads = omp_get_max_threads();
#else
  const int threads = 1;
#endif
  if (mla::Context().executor().concurrency() != threads) return 1;
  return config.cache_row_width() == cache_row_width_in_second_file() &&
                 refuses_missing_checkpoint()
             ? 0
             : 1;
}
