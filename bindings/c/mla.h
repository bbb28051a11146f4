#ifndef MLA_H_
#define MLA_H_

/*
 * mla in C: models, tokenizers, generation, and the attention layer alone. See docs/c.md.
 *
 * Objects are handles. A function that makes one writes it through its last parameter, and the
 * caller destroys it; NULL may be destroyed. Objects hold what they were made from, so that they
 * can be destroyed in any order.
 *
 * Functions return a status. Where it is not MLA_OK nothing has changed, nothing is written through
 * a pointer unless the function says so, and mla_last_error() has a message with the field and the
 * numbers. A handle that is NULL, of another kind or, as a rule, destroyed gives
 * MLA_INVALID_ARGUMENT. Getters that return a value give 0 or NULL for such a handle.
 *
 * Models, tokenizers and attention layers do not change: threads may share them. Contexts, states,
 * caches, samplers and text streams are for one thread at a time; where a call finds one in use by
 * another call it returns MLA_BUSY.
 *
 * Structs of options begin with their size, in bytes, and have a function that fills in the
 * defaults. A program that was compiled with an older header, whose struct is shorter, gets the
 * defaults for the rest; a longer one is refused unless what is unknown in it is 0.
 *
 * Matrices are row-major float unless stated otherwise. Texts are UTF-8.
 */

#include <stddef.h>
#include <stdint.h>

#if defined(MLA_BUILDING_LIBRARY)
#define MLA_API __attribute__((visibility("default")))
#else
#define MLA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Goes up by one with every change that old programs cannot live with. It is in the SONAME. */
#define MLA_ABI_VERSION 1

/* MLA_ABI_VERSION of the library that is linked. */
MLA_API int32_t mla_abi_version(void);
/* "major.minor.patch" of that library. */
MLA_API const char* mla_library_version(void);

typedef int32_t mla_status;
enum {
  MLA_OK = 0,
  MLA_INVALID_ARGUMENT = 1, /* the caller passed something that does not fit */
  MLA_RUNTIME_ERROR = 2,    /* a file or the system did not deliver */
  MLA_OUT_OF_MEMORY = 3,
  MLA_BUSY = 4,             /* an object is in use by another call */
  MLA_BUFFER_TOO_SMALL = 5, /* the count that was needed has been written */
  MLA_INTERNAL_ERROR = 6    /* none of these: a callback threw a C++ exception */
};

/* "invalid argument" */
MLA_API const char* mla_status_text(mla_status status);
/* Message of the last call of this thread that failed, until the next one fails. Never NULL. */
MLA_API const char* mla_last_error(void);

typedef struct mla_context mla_context;
typedef struct mla_model mla_model;
typedef struct mla_state mla_state;
typedef struct mla_sampler mla_sampler;
typedef struct mla_cancel_flag mla_cancel_flag;
typedef struct mla_tokenizer mla_tokenizer;
typedef struct mla_text_stream mla_text_stream;
typedef struct mla_attention mla_attention;
typedef struct mla_cache mla_cache;

/* Form of attention: the two are equal but for rounding. */
typedef int32_t mla_attention_form;
enum {
  MLA_FORM_AUTOMATIC = 0, /* the faster one by the library's estimate, for each sequence */
  MLA_FORM_ABSORBED = 1,
  MLA_FORM_DECOMPRESSED = 2
};

/* ------------------------------------------------------------------------------------- context --
 * Threads, instruction set and scratch memory. Keep one for each thread that calls, from step to
 * step: after the first calls nothing is allocated. */

/* Calls body(data, task, worker) once for every task from 0 to tasks - 1, and returns when all are
 * done. `worker` is below the `threads` of the context; tasks that run at the same time have
 * different ones. */
typedef void (*mla_parallel_for)(void* user, int64_t tasks,
                                 void (*body)(void* data, int64_t task, int64_t worker),
                                 void* data);

typedef struct mla_context_options {
  size_t size;
  int32_t threads; /* 1: the calling thread. 0: a thread per core. Results do not depend on it */
  const char* arithmetic; /* "float32" (default), or "bfloat16": faster where the machine can */
  const char* isa;        /* at most these kernels: "avx2". NULL: the best, or MLA_ISA */
  /* Your own threads, in place of the library's; `threads` is then how many there are. NULL: the
   * library's own. */
  mla_parallel_for parallel_for;
  void* user;
} mla_context_options;

MLA_API void mla_context_options_init(mla_context_options* options, size_t size);
/* `options` may be NULL. */
MLA_API mla_status mla_context_new(const mla_context_options* options, mla_context** context);
MLA_API void mla_context_destroy(mla_context* context);
MLA_API int32_t mla_context_threads(const mla_context* context);
/* "avx512", as long as the program runs. */
MLA_API const char* mla_context_isa(const mla_context* context);
/* Of products with bfloat16 weights: "float32" or "bfloat16". */
MLA_API const char* mla_context_arithmetic(const mla_context* context);

/* --------------------------------------------------------------------------------------- model --
 */

typedef struct mla_model_info {
  size_t size;
  int64_t vocab_size;
  int64_t hidden_size;
  int64_t num_hidden_layers;
  int64_t max_position_embeddings;  /* tokens that a text may have in all */
  int64_t num_nextn_predict_layers; /* 0: no multi-token prediction */
  int32_t bos_token_id;             /* -1: none */
  int32_t eos_token_id;             /* the first of them; -1: none */
  const char* model_type;           /* "deepseek_v3", as long as the model lives */
} mla_model_info;

/* The model in a directory, as it was downloaded. Files are mapped, not copied. */
MLA_API mla_status mla_model_load(const char* directory, mla_model** model);
MLA_API void mla_model_destroy(mla_model* model);
/* Fills in `info` but for its first field, which says how much of it there is. */
MLA_API mla_status mla_model_get_info(const mla_model* model, mla_model_info* info);
/* The tokens that end a text, of which `count` fit. */
MLA_API mla_status mla_model_eos_token_ids(const mla_model* model, int32_t* ids, size_t capacity,
                                           size_t* count);

/* --------------------------------------------------------------------------------------- state --
 * What a model remembers of one text: a latent cache per layer. */

/* `cache_format`: "f32", "f16", "bf16", "int8", "fp8" or "int4"; NULL is "f32". */
MLA_API mla_status mla_state_new(const mla_model* model, const char* cache_format,
                                 mla_state** state);
MLA_API void mla_state_destroy(mla_state* state);
/* Tokens in it. */
MLA_API int64_t mla_state_size(const mla_state* state);
/* Bytes of the cached rows, over all layers. */
MLA_API uint64_t mla_state_bytes_used(const mla_state* state);
/* Bytes of all pages, also of those that hold no token yet. */
MLA_API uint64_t mla_state_bytes_allocated(const mla_state* state);
MLA_API uint64_t mla_state_bytes_per_token(const mla_state* state);
/* "f32", as long as the program runs. */
MLA_API const char* mla_state_format(const mla_state* state);
/* Makes room for `tokens` in all: up to there nothing is allocated. */
MLA_API mla_status mla_state_reserve(mla_state* state, int64_t tokens);
/* A state of the first `tokens`, which goes on as if it had been computed on its own, and shares
 * all memory with this one until one of them writes. */
MLA_API mla_status mla_state_fork(const mla_state* state, int64_t tokens, mla_state** fork);
/* Forgets the tokens of these rows, which rise, in every layer. The others keep their positions. */
MLA_API mla_status mla_state_evict(mla_state* state, const int64_t* rows, size_t count);
/* Forgets all but the first `tokens`, exactly. */
MLA_API mla_status mla_state_truncate(mla_state* state, int64_t tokens);
/* Writes a snapshot; a file that is there is replaced as a whole or not at all. `label` says which
 * weights it was made with; NULL is "". */
MLA_API mla_status mla_state_save(const mla_state* state, const char* path, const char* label);
/* Replaces the text by that of a snapshot of the same model, format and label. */
MLA_API mla_status mla_state_restore(mla_state* state, const char* path, const char* label);

/* ------------------------------------------------------------------------------------- forward --
 */

/* One text of a call. This struct does not grow. */
typedef struct mla_text_step {
  mla_state* state;
  const int32_t* tokens; /* [token_count] that continue the text */
  size_t token_count;
  size_t wanted; /* rows of logits: those of the last tokens, 0 to all */
} mla_text_step;

/* Continues several texts, each with its own state: logits [sum of wanted, vocab_size], one text
 * after the other. Every text gets the bits that it would get alone, and weights are read once for
 * all. `logits_count`: floats that there is room for; must be what is needed. */
MLA_API mla_status mla_forward(const mla_model* model, mla_context* context,
                               const mla_text_step* steps, size_t step_count, float* logits,
                               size_t logits_count);

/* ------------------------------------------------------------------------------------ sampling --
 */

typedef struct mla_sampler_options {
  size_t size;
  double temperature;        /* 0: always the most likely token. Default 1 */
  int64_t top_k;             /* only the k most likely; 0: all (default) */
  double top_p;              /* only the fewest most likely that together reach p. Default 1 */
  double min_p;              /* only those at least this times as likely as the best. Default 0 */
  double repetition_penalty; /* above 1: tokens seen before are less likely. Default 1 */
  uint64_t seed;             /* default 0 */
} mla_sampler_options;

MLA_API void mla_sampler_options_init(mla_sampler_options* options, size_t size);
/* `options` may be NULL. */
MLA_API mla_status mla_sampler_new(int64_t vocab_size, const mla_sampler_options* options,
                                   mla_sampler** sampler);
MLA_API void mla_sampler_destroy(mla_sampler* sampler);
/* A token to follow `history`, by logits [vocab_size]. */
MLA_API mla_status mla_sampler_next(mla_sampler* sampler, const float* logits, size_t vocab_size,
                                    const int32_t* history, size_t history_count, int32_t* token);

/* ---------------------------------------------------------------------------------- generation --
 */

/* Ends generation from wherever it is set: another thread, a signal handler, a callback. */
MLA_API mla_status mla_cancel_flag_new(mla_cancel_flag** flag);
/* Not while a call of mla_generate() has it. */
MLA_API void mla_cancel_flag_destroy(mla_cancel_flag* flag);
MLA_API void mla_cancel_flag_set(mla_cancel_flag* flag);
MLA_API void mla_cancel_flag_clear(mla_cancel_flag* flag);
MLA_API int mla_cancel_flag_is_set(const mla_cancel_flag* flag);

typedef struct mla_generation_options {
  size_t size;
  int64_t max_tokens;  /* default 128 */
  int32_t stop_at_eos; /* default 1 */
  int32_t speculative; /* drafts by multi-token prediction. Default 0 */
  mla_attention_form prefill_mode;
  mla_attention_form decode_mode; /* default MLA_FORM_ABSORBED */
  int64_t chunk_tokens;           /* of the prompt at a time. Default 256 */
  /* How tokens are chosen; NULL: always the most likely one. */
  mla_sampler* sampler;
  /* Called with every token as soon as it is certain; anything but 0 ends the text after it. */
  int (*on_token)(void* user, int32_t token);
  /* Called with the tokens of the prompt that are done; anything but 0 ends the text. */
  int (*on_prefill)(void* user, int64_t done, int64_t all);
  void* user;                    /* for both */
  const mla_cancel_flag* cancel; /* looked at with every token and chunk; may be NULL */
  int64_t draft_tokens;          /* drafts at a time, 1 to 64. Default 1 */
  /* Above 0: drafts are what followed the last tokens of the text where they occurred before, at
   * least so many of them, up to 32. Default 0 */
  int64_t lookup;
} mla_generation_options;

MLA_API void mla_generation_options_init(mla_generation_options* options, size_t size);

typedef int32_t mla_stop_reason;
enum {
  MLA_STOP_END_OF_TEXT = 0, /* the model ended it */
  MLA_STOP_MAX_TOKENS = 1,
  MLA_STOP_CONTEXT_FULL = 2, /* max_position_embeddings */
  MLA_STOP_CANCELLED = 3     /* a callback or the flag said so */
};

/* One text of a call. This struct does not grow. */
typedef struct mla_generation {
  mla_state* state;
  const int32_t* prompt; /* [prompt_count], at least one */
  size_t prompt_count;
  const mla_generation_options* options; /* NULL: the defaults */
} mla_generation;

typedef struct mla_generation_result {
  size_t size;
  mla_stop_reason stop;
  int64_t prompt_tokens;
  int64_t generated_tokens;
  int64_t drafted_tokens;
  int64_t accepted_tokens; /* of the drafted ones */
  double prefill_seconds;
  double decode_seconds;
  int64_t decode_calls; /* passes through the model after the prompt */
} mla_generation_result;

/* Continues several texts together, each by its prompt and then by what the model writes. Every
 * text gets the tokens that it would get alone. Afterwards each state has all of its text but the
 * last generated token. `results` [count] may be NULL; the size of each must be set. Where the
 * status is not MLA_OK all states are as before. */
MLA_API mla_status mla_generate(const mla_model* model, mla_context* context,
                                const mla_generation* texts, size_t count,
                                mla_generation_result* results);

/* ----------------------------------------------------------------------------------- tokenizer --
 */

/* A model's directory, or its tokenizer.json. */
MLA_API mla_status mla_tokenizer_load(const char* path, mla_tokenizer** tokenizer);
MLA_API void mla_tokenizer_destroy(mla_tokenizer* tokenizer);
/* Ids are below this. */
MLA_API int64_t mla_tokenizer_vocab_size(const mla_tokenizer* tokenizer);
/* The tokens of `text` [bytes]. `add_bos`: 1, 0, or -1 for what the tokenizer's files say. Where
 * MLA_BUFFER_TOO_SMALL is returned `count` has been written. */
MLA_API mla_status mla_tokenizer_encode(const mla_tokenizer* tokenizer, const char* text,
                                        size_t bytes, int add_bos, int32_t* ids, size_t capacity,
                                        size_t* count);
/* The text of `ids`, and a NUL behind it, which `capacity` counts and `bytes` does not. Where
 * MLA_BUFFER_TOO_SMALL is returned `bytes` has been written. */
MLA_API mla_status mla_tokenizer_decode(const mla_tokenizer* tokenizer, const int32_t* ids,
                                        size_t count, int skip_special, char* text, size_t capacity,
                                        size_t* bytes);
/* The id of a token as the file writes it: "<s>". */
MLA_API mla_status mla_tokenizer_token_id(const mla_tokenizer* tokenizer, const char* token,
                                          int32_t* id);

/* Decodes tokens as they come, into whole characters. */
MLA_API mla_status mla_text_stream_new(const mla_tokenizer* tokenizer, int skip_special,
                                       mla_text_stream** stream);
MLA_API void mla_text_stream_destroy(mla_text_stream* stream);
/* The characters that `token` completes, often none; otherwise as mla_tokenizer_decode(). */
MLA_API mla_status mla_text_stream_push(mla_text_stream* stream, int32_t token, char* text,
                                        size_t capacity, size_t* bytes);
/* The end: what is no whole character becomes U+FFFD. The stream is as new afterwards. */
MLA_API mla_status mla_text_stream_finish(mla_text_stream* stream, char* text, size_t capacity,
                                          size_t* bytes);

/* ---------------------------------------------------------------------------- attention alone --
 * One MLA layer over its own weights and cache, for engines that have the rest. */

/* Names and meanings are those of config.json; the defaults are DeepSeek-V3's, without YaRN. */
typedef struct mla_attention_config {
  size_t size;
  int64_t hidden_size;
  int64_t num_attention_heads;
  int64_t q_lora_rank; /* 0: queries come from q_proj */
  int64_t kv_lora_rank;
  int64_t qk_nope_head_dim;
  int64_t qk_rope_head_dim;
  int64_t v_head_dim;
  double rope_theta;
  int32_t rope_interleave;       /* 1: rotary pairs (2i, 2i+1); 0: (i, i + dim/2) */
  const char* rope_scaling_type; /* "none" (default), "linear", "ntk" or "yarn" */
  double rope_factor;
  int64_t rope_original_max_position_embeddings;
  double rope_beta_fast;
  double rope_beta_slow;
  double rope_mscale;
  double rope_mscale_all_dim;
  double q_a_layernorm_eps;
  double kv_a_layernorm_eps;
  int32_t query_norm;        /* 1: there is a q_a_layernorm */
  int32_t rope_key_per_head; /* 0: one rotary key for all heads */
  double q_latent_scale;     /* factors on the normalised latents (LongCat). Default 1 */
  double kv_latent_scale;
  /* Queries times 1 + beta * ln(1 + floor(position / length)) (Mistral 4). Default 0: they are not
   */
  double query_temperature_beta;
  int64_t query_temperature_length;
} mla_attention_config;

MLA_API void mla_attention_config_init(mla_attention_config* config, size_t size);

/* The scales of a matrix in fewer than 16 bits: one number per block. */
typedef struct mla_scales {
  size_t size;
  const void* data;   /* [blocks of rows, blocks of columns]; the last blocks may be smaller */
  const char* format; /* "f32" (default), "bf16", "f16", "e4m3" or "e8m0" */
  int64_t block_rows; /* default 1 */
  int64_t block_cols; /* default 1 */
  int64_t stride;     /* scales from one row of blocks to the next */
  double factor;      /* all scales are multiplied by it. Default 1 */
  /* Of int4 with zero points: [ceil(rows / 8), blocks of columns] words, four bits per row. */
  const uint32_t* zero_points;
} mla_scales;

MLA_API void mla_scales_init(mla_scales* scales, size_t size);

/* A matrix [rows, cols] = [out_features, in_features] in the caller's memory. This struct does not
 * grow. */
typedef struct mla_weight {
  const char* name;   /* "q_a_proj", "kv_b_proj", "o_proj", "kv_a_layernorm", ... (docs/c.md) */
  const char* format; /* "f32", "bf16", "f16"; with scales "fp8", "int8", "int4", "fp4" */
  const void* data;   /* row-major */
  int64_t rows;       /* 1 for norms and biases */
  int64_t cols;
  int64_t stride;           /* elements from one row to the next; 0: cols */
  const mla_scales* scales; /* NULL: none. May go once the layer is made; what it points to stays */
} mla_weight;

/* A layer over `weights`, whose data is not copied and must stay until the layer is destroyed. */
MLA_API mla_status mla_attention_new(const mla_attention_config* config, const mla_weight* weights,
                                     size_t weight_count, mla_attention** attention);
/* Layer `layer` of the checkpoint in a directory. */
MLA_API mla_status mla_attention_load(const char* directory, int64_t layer,
                                      mla_attention** attention);
MLA_API void mla_attention_destroy(mla_attention* attention);
/* Fills in `config` but for its first field, which says how much of it there is. */
MLA_API mla_status mla_attention_get_config(const mla_attention* attention,
                                            mla_attention_config* config);

/* The cache of one sequence for one layer: kv_lora_rank + rotary numbers per token. */
MLA_API mla_status mla_cache_new(const mla_attention* attention, const char* format,
                                 mla_cache** cache);
MLA_API void mla_cache_destroy(mla_cache* cache);
MLA_API int64_t mla_cache_size(const mla_cache* cache);
MLA_API uint64_t mla_cache_bytes_used(const mla_cache* cache);
MLA_API uint64_t mla_cache_bytes_per_token(const mla_cache* cache);
MLA_API mla_status mla_cache_reserve(mla_cache* cache, int64_t tokens);
MLA_API mla_status mla_cache_truncate(mla_cache* cache, int64_t tokens);
MLA_API mla_status mla_cache_save(const mla_cache* cache, const char* path, const char* label);
MLA_API mla_status mla_cache_restore(mla_cache* cache, const char* path, const char* label);

/* One sequence of a batch. This struct does not grow. */
typedef struct mla_sequence {
  mla_cache* cache;
  size_t tokens; /* of the call that continue it */
} mla_sequence;

typedef struct mla_attention_options {
  size_t size;
  mla_attention_form mode;
  int64_t x_stride;   /* floats from one row of x to the next; 0: hidden_size */
  int64_t out_stride; /* of out likewise */
  /* [tokens] position of each token, rising within a sequence; NULL: those that follow. */
  const int64_t* position_ids;
  /* [tokens] 1 for a token, 0 for padding; NULL: no padding. */
  const uint8_t* attention_mask;
} mla_attention_options;

MLA_API void mla_attention_options_init(mla_attention_options* options, size_t size);

/* Appends x [tokens, hidden_size] to the caches and writes the attention output to
 * out [tokens, hidden_size], which may not overlap x; the tokens of the sequences one after the
 * other. `options` may be NULL. */
MLA_API mla_status mla_attention_forward(const mla_attention* attention, mla_context* context,
                                         const mla_sequence* sequences, size_t sequence_count,
                                         const float* x, float* out,
                                         const mla_attention_options* options);

#ifdef __cplusplus
}
#endif

#endif /* MLA_H_ */
