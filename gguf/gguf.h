/*
 * gguf: a model file in the GGUF format, mapped into memory and checked.
 *
 * The file: magic "GGUF", version, counts, key/value pairs, tensor infos, padding, tensor data;
 * little-endian. Three levels, each usable without the next:
 *
 *   struct gguf_file    the container: keys and tensor infos, every count, length, type and offset
 *                       checked with overflow-checked arithmetic before anything is allocated for it
 *   block formats       bytes of one row of a tensor ↔ floats
 *   struct gguf_model   what the gpt-oss architecture makes of the file: sizes from metadata,
 *                       tensors by role and layer, every shape and type checked
 *
 *     struct gguf_file *file;
 *     struct gguf_model *model;
 *     if (gguf_open(&file, path, err, sizeof err) || gguf_model_create(&model, file, err, sizeof err))
 *         … err says what is wrong, where, and what to do …
 *     model->layers[3].attn_q.weight->data      [q_width, hidden] in blocks of …->type
 *     gguf_model_destroy(model);
 *     gguf_close(file);
 *
 * Caveats: pointers to names, values and data point into the mapped file and live until gguf_close.
 * A file that is truncated by someone else while it is mapped raises SIGBUS at the next access.
 * Tensor data is not looked at when a file is opened. Nothing here is changed after it was opened,
 * so any number of threads may read.
 */
#ifndef GPTOSS_GGUF_H
#define GPTOSS_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ── container ─────────────────────────────────────────────────────────────────────────────── */

struct gguf_file;

struct gguf_string {
    const char *bytes; /* not terminated */
    uint64_t size;
};

enum gguf_value_type {
    GGUF_VALUE_U8 = 0,
    GGUF_VALUE_I8 = 1,
    GGUF_VALUE_U16 = 2,
    GGUF_VALUE_I16 = 3,
    GGUF_VALUE_U32 = 4,
    GGUF_VALUE_I32 = 5,
    GGUF_VALUE_F32 = 6,
    GGUF_VALUE_BOOL = 7,
    GGUF_VALUE_STRING = 8,
    GGUF_VALUE_ARRAY = 9,
    GGUF_VALUE_U64 = 10,
    GGUF_VALUE_I64 = 11,
    GGUF_VALUE_F64 = 12,
};

struct gguf_key {
    struct gguf_string name;
    enum gguf_value_type type;    /* of a scalar, or GGUF_VALUE_ARRAY */
    enum gguf_value_type element; /* of an array's elements; == type for a scalar */
    uint64_t count;               /* elements of an array; 1 for a scalar */
    const unsigned char *data;    /* the value (of an array: its first element), unaligned */
    uint64_t size;                /* bytes of it */
};

/* Types of tensor data, with the ids of the format. Those of GGUF_TYPES in gguf/blocks.c are known
 * to us; others are refused by name when a model needs them. */
enum gguf_type {
    GGUF_F32 = 0,
    GGUF_F16 = 1,
    GGUF_Q4_0 = 2,
    GGUF_Q4_1 = 3,
    GGUF_Q5_0 = 6,
    GGUF_Q5_1 = 7,
    GGUF_Q8_0 = 8,
    GGUF_Q2_K = 10,
    GGUF_Q3_K = 11,
    GGUF_Q4_K = 12,
    GGUF_Q5_K = 13,
    GGUF_Q6_K = 14,
    GGUF_BF16 = 30,
    GGUF_MXFP4 = 39,
};

struct gguf_tensor {
    char name[64]; /* terminated */
    enum gguf_type type;
    uint32_t n_dims;
    uint64_t ne[4];     /* elements, innermost first (a row is ne[0] long); 1 beyond n_dims */
    uint64_t row_bytes; /* rows are contiguous */
    uint64_t bytes;     /* of all rows */
    uint64_t offset;    /* in its file */
    uint32_t part;      /* of a split model: the file that it is in, from 0 */
    const unsigned char *data;
};

/* Opens and checks the container; of a split model (NAME-00001-of-00003.gguf) all parts, given the
 * first: their tensors are those of one file, the keys are the first's. 0, or -1 with *out NULL and a
 * sentence in err. */
int gguf_open(struct gguf_file **out, const char *path, char *err, size_t err_size);
void gguf_close(struct gguf_file *file); /* NULL is fine */

const char *gguf_path(const struct gguf_file *file);
uint32_t gguf_version(const struct gguf_file *file);
uint64_t gguf_alignment(const struct gguf_file *file);
uint64_t gguf_file_bytes(const struct gguf_file *file);    /* of all parts */
uint64_t gguf_header_bytes(const struct gguf_file *file);  /* where the first data section begins */
uint64_t gguf_header_digest(const struct gguf_file *file); /* of all headers; tells files apart */
uint32_t gguf_n_parts(const struct gguf_file *file);       /* 1: not split */
const char *gguf_part_path(const struct gguf_file *file, uint32_t part);

uint64_t gguf_n_keys(const struct gguf_file *file);
const struct gguf_key *gguf_key_at(const struct gguf_file *file, uint64_t i);
const struct gguf_key *gguf_key_find(const struct gguf_file *file, const char *name); /* or NULL */

uint64_t gguf_n_tensors(const struct gguf_file *file);
const struct gguf_tensor *gguf_tensor_at(const struct gguf_file *file, uint64_t i);
const struct gguf_tensor *gguf_tensor_find(const struct gguf_file *file, const char *name);

/* Scalars, converted where no value is lost (any integer type; f32 from f64). 0; 1 if the key is not
 * there (*out is left alone); -1 and a sentence if it has another type or does not fit. */
int gguf_get_u32(const struct gguf_file *file, const char *name, uint32_t *out, char *err,
                 size_t err_size);
int gguf_get_f32(const struct gguf_file *file, const char *name, float *out, char *err,
                 size_t err_size);
int gguf_get_string(const struct gguf_file *file, const char *name, struct gguf_string *out,
                    char *err, size_t err_size);

/* Walks an array of strings in one pass: start with *cursor = 0, call key->count times. */
struct gguf_string gguf_next_string(const struct gguf_key *key, uint64_t *cursor);
/* Element i of an array of integers of any width. */
int64_t gguf_integer_at(const struct gguf_key *key, uint64_t i);

const char *gguf_value_type_name(enum gguf_value_type type);

/* ── block formats ─────────────────────────────────────────────────────────────────────────── */

const char *gguf_type_name(uint32_t type);      /* "MXFP4"; also of types we cannot compute with;
                                                   "type 77" for what nobody knows (static memory) */
bool gguf_type_supported(uint32_t type);        /* kernels compute with it */
uint32_t gguf_type_block_values(uint32_t type); /* 1 or 32 or 256; 0: type unknown */
uint32_t gguf_type_block_bytes(uint32_t type);  /* 0: type unknown */
uint64_t gguf_row_bytes(uint32_t type, uint64_t values); /* values: a multiple of the block */
/* Of a type that is not supported, what to use in its place: "Q4_0 or MXFP4". */
const char *gguf_type_instead(uint32_t type);

/* The definition of each format: `values` floats from the blocks at src. Plain C; kernels have
 * faster ways and are checked against this one. */
void gguf_to_float(enum gguf_type type, const void *src, float *dst, uint64_t values);
/* The way back, to every type that is supported; K-quants by the range of each part, the others with
 * llama.cpp's rounding. −1: a number that is not finite, or no such type. */
int gguf_from_float(enum gguf_type type, const float *src, void *dst, uint64_t values);

float gguf_half_to_float(uint16_t half);
uint16_t gguf_float_to_half(float value);

/* ── the gpt-oss model ─────────────────────────────────────────────────────────────────────── */

/* A matrix and its bias. */
struct gguf_linear {
    const struct gguf_tensor *weight; /* [out, in] in blocks, ne[0] = in */
    const struct gguf_tensor *bias;   /* [out] F32 */
};

/* Expert matrices: expert e begins at data + e · out · row_bytes. */
struct gguf_layer {
    const struct gguf_tensor *attn_norm; /* [hidden] F32 */
    struct gguf_linear attn_q;           /* [heads · head_dim, hidden] */
    struct gguf_linear attn_k;           /* [kv_heads · head_dim, hidden] */
    struct gguf_linear attn_v;           /* [kv_heads · head_dim, hidden] */
    struct gguf_linear attn_out;         /* [hidden, heads · head_dim] */
    const struct gguf_tensor *sinks;     /* [heads] F32 */
    const struct gguf_tensor *ffn_norm;  /* [hidden] F32; named post_attention_norm in the file */
    struct gguf_linear router;           /* [experts, hidden] */
    struct gguf_linear gate; /* [experts, expert_ffn, hidden]; bias [experts, expert_ffn] */
    struct gguf_linear up;   /* [experts, expert_ffn, hidden]; bias [experts, expert_ffn] */
    struct gguf_linear down; /* [experts, hidden, expert_ffn]; bias [experts, hidden] */
    uint64_t bytes;          /* of all tensors of the layer */
    bool sliding;            /* attends to the last `window` positions only */
};

struct gguf_model {
    const struct gguf_file *file;
    uint32_t n_layers;
    uint32_t hidden;
    uint32_t heads, kv_heads, head_dim;
    uint32_t experts, active; /* active: experts chosen for each token */
    uint32_t expert_ffn;
    uint32_t vocabulary; /* rows of the embedding and output matrices */
    uint32_t window;
    uint32_t context; /* positions the model was made for */
    float norm_eps;
    float rope_theta;
    float yarn_factor;                    /* 1: no YaRN */
    uint32_t yarn_context;                /* original context length */
    float yarn_beta_fast, yarn_beta_slow; /* 32 and 1 where the file does not say */
    float swiglu_alpha, swiglu_limit;     /* 1.702 and 7; in no key of the format */

    const struct gguf_tensor *embedding;   /* [vocabulary, hidden] */
    const struct gguf_tensor *output_norm; /* [hidden] F32 */
    const struct gguf_tensor *output;      /* [vocabulary, hidden]; the embedding where tied */
    struct gguf_layer *layers;             /* [n_layers] */
    uint64_t bytes;                        /* of all tensors */
    struct gguf_tensor *views; /* rows of attn_qkv as q, k and v, where a file has them in one */
};

/* Reads the sizes and finds every tensor. -1 and a sentence for another architecture (by name), a
 * missing key or tensor, a wrong shape, a type that is not supported, sizes that contradict. */
int gguf_model_create(struct gguf_model **out, const struct gguf_file *file, char *err,
                      size_t err_size);
void gguf_model_destroy(struct gguf_model *model); /* NULL is fine */

/* ── checking ──────────────────────────────────────────────────────────────────────────────── */

/* Called with a sentence for each thing that is wrong. */
typedef void (*gguf_found)(void *arg, const char *sentence);

/* Everything for which gguf_model_create() would refuse the file, not only the first. How many. */
uint64_t gguf_check_model(const struct gguf_file *file, gguf_found found, void *arg);
/* The tokenizer's arrays: lengths, ids in range, no token twice, merges of tokens into tokens. */
uint64_t gguf_check_vocabulary(const struct gguf_file *file, gguf_found found, void *arg);
/* The tensor's data: no float and no scale of a block is NaN or infinite. 0, or -1 and a sentence with
 * tensor, row and block (`file` names the path there; may be NULL). Reads the data once, at the speed
 * of memory. */
int gguf_check_tensor(const struct gguf_file *file, const struct gguf_tensor *tensor, char *err,
                      size_t err_size);

/* omega[head_dim / 2]: the angle of one position for each pair, YaRN applied with OpenAI's unrounded
 * ramp; returns the factor on cos and sin. (Source: openai/gpt-oss, torch/model.py.) */
double gguf_model_rope(const struct gguf_model *model, double *omega);

/* ── writing ───────────────────────────────────────────────────────────────────────────────── */

/* Writes a file: keys, then tensors declared, then their data in the order of declaration.
 *
 *     gguf_writer_create(&w, path, err, n);
 *     gguf_writer_u32(w, "gpt-oss.block_count", 24); …
 *     gguf_writer_tensor(w, "token_embd.weight", GGUF_Q8_0, 2, (uint64_t[]){2880, 201088}); …
 *     gguf_writer_begin(w, err, n);                       header is written, infos complete
 *     gguf_writer_data(w, bytes, size, err, n); …         padding to alignment is added between
 *     gguf_writer_finish(w, err, n);                      0 only if everything declared was written
 *     gguf_writer_destroy(w);                             removes the file if it is not finished
 */
struct gguf_writer;
int gguf_writer_create(struct gguf_writer **out, const char *path, char *err, size_t err_size);
void gguf_writer_u32(struct gguf_writer *w, const char *key, uint32_t value);
void gguf_writer_f32(struct gguf_writer *w, const char *key, float value);
void gguf_writer_string(struct gguf_writer *w, const char *key, const char *value);
void gguf_writer_strings(struct gguf_writer *w, const char *key, const struct gguf_string *values,
                         uint64_t count);
void gguf_writer_i32s(struct gguf_writer *w, const char *key, const int32_t *values,
                      uint64_t count);
void gguf_writer_key(struct gguf_writer *w, const struct gguf_key *key); /* a copy, of any type */
void gguf_writer_tensor(struct gguf_writer *w, const char *name, enum gguf_type type,
                        uint32_t n_dims, const uint64_t *ne);
int gguf_writer_begin(struct gguf_writer *w, char *err, size_t err_size);
int gguf_writer_data(struct gguf_writer *w, const void *bytes, size_t size, char *err,
                     size_t err_size);
int gguf_writer_finish(struct gguf_writer *w, char *err, size_t err_size);
void gguf_writer_destroy(struct gguf_writer *w);

#endif
