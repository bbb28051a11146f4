/* mla-c-example MODEL_DIR PROMPT: continues a text, and runs an attention layer, in C. */

#include <mla.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(mla_status status) {
  if (status == MLA_OK) return;
  fprintf(stderr, "%s: %s\n", mla_status_text(status), mla_last_error());
  exit(1);
}

static int print_token(void* stream, int32_t token) {
  char text[1024]; /* a token has few characters */
  size_t bytes;
  check(mla_text_stream_push(stream, token, text, sizeof text, &bytes));
  fputs(text, stdout);
  return 0; /* go on */
}

static void generate(const char* directory, const char* prompt, mla_context* context) {
  mla_model* model;
  mla_tokenizer* tokenizer;
  mla_text_stream* stream;
  mla_state* state; /* the latent caches of one text */
  mla_generation_options options;
  mla_generation text;
  int32_t ids[256];
  size_t count, bytes;
  char rest[8];

  check(mla_model_load(directory, &model)); /* maps the files */
  check(mla_tokenizer_load(directory, &tokenizer));
  check(mla_text_stream_new(tokenizer, 1, &stream));
  check(mla_state_new(model, "f32", &state));
  check(mla_tokenizer_encode(tokenizer, prompt, strlen(prompt), -1, ids, 256, &count));

  mla_generation_options_init(&options, sizeof options);
  options.max_tokens = 64;
  options.on_token = print_token;
  options.user = stream;
  text.state = state;
  text.prompt = ids;
  text.prompt_count = count;
  text.options = &options;
  check(mla_generate(model, context, &text, 1, NULL));
  check(mla_text_stream_finish(stream, rest, sizeof rest, &bytes));
  printf("%s\n", rest);

  mla_state_destroy(state);
  mla_text_stream_destroy(stream);
  mla_tokenizer_destroy(tokenizer);
  mla_model_destroy(model);
}

static void run_layer(const char* directory, mla_context* context) {
  enum { kTokens = 10 };
  mla_attention* attention;
  mla_attention_config config;
  mla_cache* cache;
  mla_sequence sequence;
  float *x, *out;
  size_t i, size;

  check(mla_attention_load(directory, 0, &attention));
  config.size = sizeof config;
  check(mla_attention_get_config(attention, &config));
  check(mla_cache_new(attention, "bf16", &cache));
  size = (size_t)config.hidden_size * kTokens;
  x = malloc(2 * size * sizeof *x);
  if (!x) exit(1);
  out = x + size;
  for (i = 0; i < size; ++i) x[i] = (float)(i % 7) - 3.0f;

  sequence.cache = cache;
  sequence.tokens = kTokens;
  check(mla_attention_forward(attention, context, &sequence, 1, x, out, NULL));
  fprintf(stderr, "layer 0: %d tokens in %d bytes\n", (int)mla_cache_size(cache),
          (int)mla_cache_bytes_used(cache));

  free(x);
  mla_cache_destroy(cache);
  mla_attention_destroy(attention);
}

int main(int argc, char** argv) {
  mla_context* context;
  if (argc != 3) {
    fprintf(stderr, "usage: mla-c-example MODEL_DIR PROMPT\n");
    return 2;
  }
  check(mla_context_new(NULL, &context)); /* threads, kernels, scratch memory */
  generate(argv[1], argv[2], context);
  run_layer(argv[1], context);
  mla_context_destroy(context);
  return 0;
}
