/*
 * The header of a file: magic, version, counts, keys, tensor infos; all of it is hostile.
 *
 * Two things hold throughout: no byte is read before it is known to lie in the file, and nothing is
 * allocated for a count before the bytes that are left could hold so many of the smallest entries.
 */
#include "gguf/index.h"
#include "gguf/private.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY_BYTES_MIN    (8u + 1 + 4 + 1)         /* name, type, value */
#define TENSOR_BYTES_MIN (8u + 1 + 4 + 8 + 4 + 8) /* name, n_dims, ne[0], type, offset */
#define CUT              "the file is cut short, fetch it again"
#define DAMAGED          "the file is damaged, fetch it again"

/* Where we are in the file, and what we are reading, for the sentence. */
struct reader {
    struct gguf_file *file;
    uint64_t at;
    char what[160];
    char *err;
    size_t err_size;
};

#define fail_at(r, ...) gguf_fail((r)->err, (r)->err_size, __VA_ARGS__)

static uint64_t left(const struct reader *r)
{
    return r->file->size - r->at;
}

/* `size` more bytes; NULL if the file ends before. */
static const unsigned char *take(struct reader *r, uint64_t size)
{
    if (size > left(r)) {
        fail_at(r, "%s: ends at byte %" PRIu64 ", inside %s: " CUT, r->file->path, r->file->size,
                r->what);
        return NULL;
    }
    const unsigned char *bytes = r->file->map + r->at;
    r->at += size;
    return bytes;
}

static int take_u32(struct reader *r, uint32_t *out)
{
    const unsigned char *bytes = take(r, 4);
    if (!bytes)
        return -1;
    memcpy(out, bytes, 4);
    return 0;
}

static int take_u64(struct reader *r, uint64_t *out)
{
    const unsigned char *bytes = take(r, 8);
    if (!bytes)
        return -1;
    memcpy(out, bytes, 8);
    return 0;
}

static int take_string(struct reader *r, uint64_t max, struct gguf_string *out)
{
    uint64_t size;
    if (take_u64(r, &size))
        return -1;
    if (size > max)
        return fail_at(r,
                       "%s: %s has a string of %" PRIu64 " bytes, more than %" PRIu64 ": " DAMAGED,
                       r->file->path, r->what, size, max);
    out->bytes = (const char *)take(r, size);
    out->size = size;
    return out->bytes ? 0 : -1;
}

/* ── magic and version ─────────────────────────────────────────────────────────────────────── */

static const struct magic {
    const char *bytes;
    unsigned char size, at;
    const char *what;
} magics[] = {
    {"FUGG", 4, 0, "a big-endian GGUF file; convert it to little-endian"},
    {"lmgg", 4, 0, "a GGML file of 2023; convert it to GGUF"},
    {"fmgg", 4, 0, "a GGML file of 2023; convert it to GGUF"},
    {"tjgg", 4, 0, "a GGML file of 2023; convert it to GGUF"},
    {"algg", 4, 0, "a GGML adapter; give the model itself"},
    {"PK\3\4", 4, 0, "a ZIP archive or PyTorch checkpoint; convert it to GGUF, or unpack it"},
    {"\x89HDF", 4, 0, "an HDF5 file; convert it to GGUF"},
    {"\x93NUMPY", 6, 0, "a NumPy array; convert the model to GGUF"},
    {"\x1f\x8b", 2, 0, "compressed with gzip; unpack it"},
    {"\xfd"
     "7zXZ",
     5, 0, "compressed with xz; unpack it"},
    {"\x28\xb5\x2f\xfd", 4, 0, "compressed with zstd; unpack it"},
    {"BZh", 3, 0, "compressed with bzip2; unpack it"},
    {"\x7f"
     "ELF",
     4, 0, "a program"},
    {"version https://git-lfs", 23, 0, "a Git LFS pointer; run `git lfs pull` to fetch the file"},
    {"<!DOCTYPE", 9, 0, "a web page, perhaps an error of the download; fetch it again"},
    {"<!doctype", 9, 0, "a web page, perhaps an error of the download; fetch it again"},
    {"<html", 5, 0, "a web page, perhaps an error of the download; fetch it again"},
    {"{\"", 2, 8, "a safetensors file; convert it to GGUF"},
    {"{", 1, 0, "JSON text"},
};

static int refuse_magic(struct reader *r)
{
    const struct gguf_file *file = r->file;
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++) {
        const struct magic *m = &magics[i];
        if (file->size >= m->at + m->size && !memcmp(file->map + m->at, m->bytes, m->size))
            return fail_at(r, "%s: is no GGUF file: it seems to be %s", file->path, m->what);
    }
    char shown[GGUF_SHOWN];
    gguf_shown(shown, (const char *)file->map, file->size < 4 ? file->size : 4);
    return fail_at(r, "%s: is no GGUF file: it begins with \"%s\", not with \"GGUF\"", file->path,
                   shown);
}

static int read_start(struct reader *r, uint64_t *n_tensors, uint64_t *n_keys)
{
    struct gguf_file *file = r->file;
    snprintf(r->what, sizeof r->what, "the first 24 bytes");
    if (memcmp(file->map, "GGUF", file->size < 4 ? (size_t)file->size : 4))
        return refuse_magic(r);
    if (!take(r, 4) || take_u32(r, &file->version))
        return -1;
    if ((file->version & 0xffff) == 0 && file->version != 0)
        return fail_at(r, "%s: is a big-endian GGUF file: convert it to little-endian", file->path);
    if (file->version == 1)
        return fail_at(
            r, "%s: is GGUF version 1, of 2023; gptoss reads 2 and 3: convert the model anew",
            file->path);
    if (file->version != 2 && file->version != 3)
        return fail_at(r, "%s: is GGUF version %" PRIu32 "; gptoss reads 2 and 3", file->path,
                       file->version);
    return take_u64(r, n_tensors) || take_u64(r, n_keys) ? -1 : 0;
}

/* A count of entries of at least `entry_bytes` each: more than the rest of the file holds is refused
 * before anything is allocated for them. */
static int check_count(struct reader *r, const char *things, uint64_t count, uint64_t entry_bytes)
{
    if (count > GGUF_COUNT_MAX)
        return fail_at(r, "%s: says that it has %" PRIu64 " %s: " DAMAGED, r->file->path, count,
                       things);
    if (count > left(r) / entry_bytes)
        return fail_at(
            r, "%s: says that it has %" PRIu64 " %s, and ends %" PRIu64 " bytes later: " CUT,
            r->file->path, count, things, left(r));
    return 0;
}

/* ── keys ──────────────────────────────────────────────────────────────────────────────────── */

static int read_array(struct reader *r, struct gguf_key *key)
{
    const char *path = r->file->path;
    uint32_t element;
    if (take_u32(r, &element) || take_u64(r, &key->count))
        return -1;
    if (element == GGUF_VALUE_ARRAY)
        return fail_at(r, "%s: %s is an array of arrays, which the format leaves out: " DAMAGED,
                       path, r->what);
    if (element > GGUF_VALUE_F64)
        return fail_at(r, "%s: %s is an array of values of unknown type %" PRIu32 ": " DAMAGED,
                       path, r->what, element);
    if (key->count > GGUF_LENGTH_MAX)
        return fail_at(r, "%s: %s is an array of %" PRIu64 " elements: " DAMAGED, path, r->what,
                       key->count);
    key->element = (enum gguf_value_type)element;
    uint64_t start = r->at;
    key->data = r->file->map + start;
    if (element == GGUF_VALUE_STRING) {
        for (uint64_t i = 0; i < key->count; i++) {
            struct gguf_string element_text;
            if (take_string(r, GGUF_LENGTH_MAX, &element_text))
                return -1;
        }
    } else if (!take(r, key->count * gguf_value_bytes(element))) {
        return -1; /* the product is below 2^33 */
    }
    key->size = r->at - start;
    return 0;
}

static int read_value(struct reader *r, struct gguf_key *key)
{
    uint32_t type;
    if (take_u32(r, &type))
        return -1;
    if (type > GGUF_VALUE_F64)
        return fail_at(r, "%s: %s has a value of unknown type %" PRIu32 ": " DAMAGED, r->file->path,
                       r->what, type);
    key->type = (enum gguf_value_type)type;
    if (type == GGUF_VALUE_ARRAY)
        return read_array(r, key);
    key->element = key->type;
    key->count = 1;
    if (type == GGUF_VALUE_STRING) {
        struct gguf_string text;
        if (take_string(r, GGUF_LENGTH_MAX, &text))
            return -1;
        key->data = (const unsigned char *)text.bytes;
        key->size = text.size;
        return 0;
    }
    key->size = gguf_value_bytes(type);
    key->data = take(r, key->size);
    return key->data ? 0 : -1;
}

static int read_keys(struct reader *r, uint64_t count)
{
    struct gguf_file *file = r->file;
    if (check_count(r, "keys", count, KEY_BYTES_MIN))
        return -1;
    file->keys = calloc(count ? count : 1, sizeof *file->keys);
    if (!file->keys || gguf_index_create(&file->key_index, count))
        return fail_at(r, "%s: out of memory for %" PRIu64 " keys", file->path, count);
    for (uint64_t i = 0; i < count; i++) {
        struct gguf_key *key = &file->keys[i];
        char shown[GGUF_SHOWN];
        snprintf(r->what, sizeof r->what, "key %" PRIu64 " of %" PRIu64, i + 1, count);
        if (take_string(r, GGUF_NAME_MAX, &key->name))
            return -1;
        if (!key->name.size)
            return fail_at(r, "%s: %s has no name: " DAMAGED, file->path, r->what);
        snprintf(r->what, sizeof r->what, "key %s",
                 gguf_shown(shown, key->name.bytes, key->name.size));
        if (read_value(r, key))
            return -1;
        file->n_keys = i + 1;
        if (gguf_index_add(&file->key_index, gguf_key_name, file, i))
            return fail_at(r, "%s: %s is there twice: " DAMAGED, file->path, r->what);
    }
    return 0;
}

static int read_alignment(struct reader *r)
{
    uint32_t alignment = GGUF_ALIGNMENT;
    if (gguf_get_u32(r->file, "general.alignment", &alignment, r->err, r->err_size) < 0)
        return -1;
    if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > GGUF_ALIGNMENT_MAX)
        return fail_at(
            r, "%s: general.alignment is %" PRIu32 ", not a power of two up to 1048576: " DAMAGED,
            r->file->path, alignment);
    r->file->alignment = alignment;
    return 0;
}

/* ── tensors ───────────────────────────────────────────────────────────────────────────────── */

static int refuse_type(struct reader *r, uint32_t type)
{
    if (type == 4) /* retired; given a new meaning by one program */
        return fail_at(
            r,
            "%s: %s has the retired type 4, as in files of Ollama's own gpt-oss flavour: "
            "take a file converted by llama.cpp",
            r->file->path, r->what);
    return fail_at(r,
                   "%s: %s has data of type %" PRIu32
                   " (%s), of which gptoss knows no layout: " DAMAGED ", or give another file",
                   r->file->path, r->what, type, gguf_type_name(type));
}

static int read_tensor(struct reader *r, struct gguf_tensor *t)
{
    const char *path = r->file->path;
    struct gguf_string name;
    char shown[GGUF_SHOWN];
    if (take_string(r, GGUF_NAME_MAX, &name))
        return -1;
    snprintf(r->what, sizeof r->what, "tensor %s", gguf_shown(shown, name.bytes, name.size));
    if (!name.size || name.size >= sizeof t->name || memchr(name.bytes, 0, (size_t)name.size))
        return fail_at(
            r, "%s: %s has a name of %" PRIu64 " bytes; 1 to 63 without zeros are valid: " DAMAGED,
            path, r->what, name.size);
    memcpy(t->name, name.bytes, (size_t)name.size);

    if (take_u32(r, &t->n_dims))
        return -1;
    if (t->n_dims < 1 || t->n_dims > 4)
        return fail_at(r, "%s: %s has %" PRIu32 " dimensions; 1 to 4 are valid: " DAMAGED, path,
                       r->what, t->n_dims);
    for (uint32_t d = 0; d < 4; d++) {
        t->ne[d] = 1;
        if (d < t->n_dims && take_u64(r, &t->ne[d]))
            return -1;
        if (!t->ne[d])
            return fail_at(r, "%s: %s has no elements (dimension %" PRIu32 " is 0): " DAMAGED, path,
                           r->what, d);
    }

    uint32_t type;
    if (take_u32(r, &type) || take_u64(r, &t->offset))
        return -1;
    uint32_t block = gguf_type_block_values(type);
    if (!block)
        return refuse_type(r, type);
    t->type = (enum gguf_type)type;
    if (t->ne[0] % block)
        return fail_at(r,
                       "%s: %s has rows of %" PRIu64 " values, no multiple of %" PRIu32
                       ", the block of %s: " DAMAGED,
                       path, r->what, t->ne[0], block, gguf_type_name(type));
    bool wraps =
        __builtin_mul_overflow(t->ne[0] / block, gguf_type_block_bytes(type), &t->row_bytes);
    t->bytes = t->row_bytes;
    for (int d = 1; d < 4; d++)
        wraps |= __builtin_mul_overflow(t->bytes, t->ne[d], &t->bytes);
    if (wraps || t->bytes > INT64_MAX)
        return fail_at(r, "%s: %s has more elements than any file could hold: " DAMAGED, path,
                       r->what);
    if (t->offset % r->file->alignment)
        return fail_at(r,
                       "%s: %s begins at offset %" PRIu64 ", no multiple of the alignment %" PRIu64
                       ": " DAMAGED,
                       path, r->what, t->offset, r->file->alignment);
    return 0;
}

static int read_tensors(struct reader *r, uint64_t count)
{
    struct gguf_file *file = r->file;
    if (check_count(r, "tensors", count, TENSOR_BYTES_MIN))
        return -1;
    file->tensors = calloc(count ? count : 1, sizeof *file->tensors);
    if (!file->tensors || gguf_index_create(&file->tensor_index, count))
        return fail_at(r, "%s: out of memory for %" PRIu64 " tensors", file->path, count);
    for (uint64_t i = 0; i < count; i++) {
        snprintf(r->what, sizeof r->what, "tensor %" PRIu64 " of %" PRIu64, i + 1, count);
        if (read_tensor(r, &file->tensors[i]))
            return -1;
        file->n_tensors = i + 1;
        if (gguf_index_add(&file->tensor_index, gguf_tensor_name, file, i))
            return fail_at(r, "%s: %s is there twice: " DAMAGED, file->path, r->what);
    }
    return 0;
}

/* ── data ──────────────────────────────────────────────────────────────────────────────────── */

/* Tensors → places in the file: every one lies in it. */
static int place_tensors(struct reader *r)
{
    struct gguf_file *file = r->file;
    uint64_t start = (r->at + file->alignment - 1) & ~(file->alignment - 1);
    for (uint64_t i = 0; i < file->n_tensors; i++) {
        struct gguf_tensor *t = &file->tensors[i];
        uint64_t end;
        bool wraps = __builtin_add_overflow(t->offset, start, &t->offset);
        wraps |= __builtin_add_overflow(t->offset, t->bytes, &end);
        if (wraps)
            return fail_at(r, "%s: tensor %s ends beyond what any file could hold: " DAMAGED,
                           file->path, t->name);
        if (end > file->size)
            return fail_at(
                r, "%s: tensor %s ends at byte %" PRIu64 " of a file of %" PRIu64 " bytes: " CUT,
                file->path, t->name, end, file->size);
        t->data = file->map + t->offset;
    }
    /* Without tensors the padding may be missing. */
    file->header_bytes = start < file->size ? start : file->size;
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const struct gguf_tensor *x = *(const struct gguf_tensor *const *)a;
    const struct gguf_tensor *y = *(const struct gguf_tensor *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static int check_overlap(struct reader *r)
{
    const struct gguf_file *file = r->file;
    const struct gguf_tensor **sorted = calloc(file->n_tensors + 1, sizeof *sorted);
    int status = 0;
    if (!sorted)
        return fail_at(r, "%s: out of memory for %" PRIu64 " tensors", file->path, file->n_tensors);
    for (uint64_t i = 0; i < file->n_tensors; i++)
        sorted[i] = &file->tensors[i];
    qsort(sorted, file->n_tensors, sizeof *sorted, by_offset);
    for (uint64_t i = 1; i < file->n_tensors && !status; i++)
        if (sorted[i - 1]->offset + sorted[i - 1]->bytes > sorted[i]->offset)
            status = fail_at(r, "%s: tensors %s and %s overlap: " DAMAGED, file->path,
                             sorted[i - 1]->name, sorted[i]->name);
    free(sorted);
    return status;
}

int gguf_header_parse(struct gguf_file *file, char *err, size_t err_size)
{
    struct reader reader = {.file = file, .err = err, .err_size = err_size};
    struct reader *r = &reader;
    uint64_t n_tensors = 0, n_keys = 0;
    if (read_start(r, &n_tensors, &n_keys) || read_keys(r, n_keys) || read_alignment(r) ||
        read_tensors(r, n_tensors) || place_tensors(r) || check_overlap(r))
        return -1;
    return 0;
}
