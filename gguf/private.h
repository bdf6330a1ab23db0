/*
 * What the files of gguf/ share.
 */
#ifndef GPTOSS_GGUF_PRIVATE_H
#define GPTOSS_GGUF_PRIVATE_H

#include "gguf/gguf.h"

/* ── limits of the format, ours where the format has none ──────────────────────────────────── */

#define GGUF_NAME_MAX      65535u              /* bytes of a key's name */
#define GGUF_LENGTH_MAX    ((uint64_t)1 << 30) /* bytes of a string, elements of an array */
#define GGUF_COUNT_MAX     ((uint64_t)1 << 30) /* keys, tensors */
#define GGUF_ALIGNMENT_MAX ((uint64_t)1 << 20)
#define GGUF_SPAN_MAX      (1u << 30) /* positions, tokens of a vocabulary */
#define GGUF_ALIGNMENT     32u        /* where general.alignment is not given */

/* ── names → positions ─────────────────────────────────────────────────────────────────────── */

struct gguf_slot {
    uint64_t hash; /* of the name */
    uint64_t at;   /* 1 + position; 0: free */
};

struct gguf_index {          /* see index.h */
    struct gguf_slot *slots; /* [mask + 1] */
    uint64_t mask;
    uint64_t seed;
};

struct gguf_file {
    char *path;
    const unsigned char *map; /* the whole file */
    uint64_t size;
    uint32_t version;
    uint64_t alignment;
    uint64_t header_bytes;
    uint64_t digest;
    struct gguf_key *keys; /* [n_keys] */
    uint64_t n_keys;
    struct gguf_tensor *tensors; /* [n_tensors] */
    uint64_t n_tensors;
    struct gguf_index key_index, tensor_index;
    struct gguf_file **parts; /* [n_parts − 1], the others of a split model; see split.c */
    uint32_t n_parts;         /* 1: not split */
};

/* One file by itself: mapped, its header parsed. */
int gguf_part_open(struct gguf_file **out, const char *path, char *err, size_t err_size);
/* Opens the other parts of a split model and takes their tensors; fine where it is not split. */
int gguf_split_join(struct gguf_file *file, char *err, size_t err_size);

/* Parses and checks file->map (size bytes); fills the rest. What it allocates, gguf_close frees. */
int gguf_header_parse(struct gguf_file *file, char *err, size_t err_size);

/* Of their names, as the indexes see them. */
struct gguf_string gguf_key_name(const struct gguf_file *file, uint64_t i);
struct gguf_string gguf_tensor_name(const struct gguf_file *file, uint64_t i);

uint64_t gguf_hash(const void *bytes, uint64_t size, uint64_t seed);

/* Bytes of one value of a type; 0: a string, an array, or no type. */
uint32_t gguf_value_bytes(uint32_t type);

/* Writes the sentence; returns −1. */
int gguf_fail(char *err, size_t err_size, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A name from a file as it may be shown to a person: control bytes become '?', long ones are cut. */
#define GGUF_SHOWN 80
const char *gguf_shown(char shown[GGUF_SHOWN], const char *bytes, uint64_t size);

/* Formats of kquants.c: Q4_0 … Q5_1 and Q2_K … Q6_K. */
void gguf_legacy_to_float(enum gguf_type type, const unsigned char *src, float *dst,
                          uint64_t blocks);
void gguf_blocks_from_float(enum gguf_type type, const float *x, unsigned char *p,
                            uint64_t blocks); /* quantize.c */
void gguf_kquant_to_float(enum gguf_type type, const unsigned char *src, float *dst,
                          uint64_t blocks);

#endif
