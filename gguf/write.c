/*
 * Writing a file: the header is collected in memory, the data go straight to the disk. Everything is
 * written to PATH.part, which takes the place of PATH when it is complete.
 */
#include "gguf/private.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct bytes {
    unsigned char *data;
    size_t size, capacity;
};

struct declared {
    char name[64];
    uint64_t bytes;
};

/* Invariant: tensors[0 … current) are complete, tensors[current] has `written` of its bytes, and
 * `padding` zero bytes stand between it and its predecessor. */
struct gguf_writer {
    char *path, *part;
    FILE *out;
    struct bytes keys, infos;
    uint64_t n_keys, n_tensors;
    struct declared *tensors;
    size_t tensors_capacity;
    uint64_t offset; /* of the next tensor that is declared */
    uint64_t current, written;
    bool begun, finished;
    char wrong[256]; /* the first thing that was declared wrongly; told by begin */
};

static void wrong(struct gguf_writer *w, const char *what, const char *name)
{
    if (!w->wrong[0])
        snprintf(w->wrong, sizeof w->wrong, "%s: %.80s", what, name);
}

/* ── the header in memory ──────────────────────────────────────────────────────────────────── */

static void add(struct gguf_writer *w, struct bytes *b, const void *data, size_t size)
{
    if (size > b->capacity - b->size) {
        size_t capacity = b->capacity ? b->capacity : 4096;
        while (capacity - b->size < size)
            capacity *= 2;
        unsigned char *grown = realloc(b->data, capacity);
        if (!grown) {
            wrong(w, "out of memory", "the header");
            return;
        }
        b->data = grown;
        b->capacity = capacity;
    }
    if (size)
        memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void add_u32(struct gguf_writer *w, struct bytes *b, uint32_t value)
{
    add(w, b, &value, sizeof value);
}

static void add_u64(struct gguf_writer *w, struct bytes *b, uint64_t value)
{
    add(w, b, &value, sizeof value);
}

static void add_string(struct gguf_writer *w, struct bytes *b, const char *text, uint64_t size)
{
    add_u64(w, b, size);
    add(w, b, text, (size_t)size);
}

static void add_key(struct gguf_writer *w, const char *key, enum gguf_value_type type)
{
    if (w->begun)
        wrong(w, "a key was declared after the header was written", key);
    add_string(w, &w->keys, key, strlen(key));
    add_u32(w, &w->keys, type);
    w->n_keys++;
}

void gguf_writer_u32(struct gguf_writer *w, const char *key, uint32_t value)
{
    add_key(w, key, GGUF_VALUE_U32);
    add_u32(w, &w->keys, value);
}

void gguf_writer_f32(struct gguf_writer *w, const char *key, float value)
{
    add_key(w, key, GGUF_VALUE_F32);
    add(w, &w->keys, &value, sizeof value);
}

void gguf_writer_string(struct gguf_writer *w, const char *key, const char *value)
{
    add_key(w, key, GGUF_VALUE_STRING);
    add_string(w, &w->keys, value, strlen(value));
}

static void add_array(struct gguf_writer *w, const char *key, enum gguf_value_type element,
                      uint64_t count)
{
    add_key(w, key, GGUF_VALUE_ARRAY);
    add_u32(w, &w->keys, element);
    add_u64(w, &w->keys, count);
}

void gguf_writer_strings(struct gguf_writer *w, const char *key, const struct gguf_string *values,
                         uint64_t count)
{
    add_array(w, key, GGUF_VALUE_STRING, count);
    for (uint64_t i = 0; i < count; i++)
        add_string(w, &w->keys, values[i].bytes, values[i].size);
}

void gguf_writer_i32s(struct gguf_writer *w, const char *key, const int32_t *values, uint64_t count)
{
    add_array(w, key, GGUF_VALUE_I32, count);
    add(w, &w->keys, values, (size_t)count * sizeof *values);
}

void gguf_writer_key(struct gguf_writer *w, const struct gguf_key *key)
{
    char shown[GGUF_SHOWN];
    if (w->begun)
        wrong(w, "a key was declared after the header was written",
              gguf_shown(shown, key->name.bytes, key->name.size));
    add_string(w, &w->keys, key->name.bytes, key->name.size);
    add_u32(w, &w->keys, key->type);
    if (key->type == GGUF_VALUE_ARRAY) {
        add_u32(w, &w->keys, key->element);
        add_u64(w, &w->keys, key->count);
    } else if (key->type == GGUF_VALUE_STRING) {
        add_u64(w, &w->keys, key->size);
    }
    add(w, &w->keys, key->data, (size_t)key->size);
    w->n_keys++;
}

static uint64_t padded(uint64_t size)
{
    return (size + GGUF_ALIGNMENT - 1) / GGUF_ALIGNMENT * GGUF_ALIGNMENT;
}

void gguf_writer_tensor(struct gguf_writer *w, const char *name, enum gguf_type type,
                        uint32_t n_dims, const uint64_t *ne)
{
    uint32_t block = gguf_type_block_values(type);
    uint64_t bytes = 0;
    bool wraps = true;
    if (n_dims >= 1 && n_dims <= 4 && block && ne[0] && ne[0] % block == 0)
        wraps = __builtin_mul_overflow(ne[0] / block, gguf_type_block_bytes(type), &bytes);
    for (uint32_t d = 1; d < n_dims && !wraps; d++)
        wraps = !ne[d] || __builtin_mul_overflow(bytes, ne[d], &bytes);
    if (wraps || bytes > (uint64_t)1 << 60 || w->offset > (uint64_t)1 << 60)
        return wrong(w, "a tensor's shape does not go with its type", name);
    if (!name[0] || strlen(name) >= sizeof w->tensors->name)
        return wrong(w, "a tensor's name has not 1 to 63 bytes", name);
    if (w->begun)
        return wrong(w, "a tensor was declared after the header was written", name);

    if (w->n_tensors == w->tensors_capacity) {
        size_t capacity = w->tensors_capacity ? 2 * w->tensors_capacity : 64;
        struct declared *grown = realloc(w->tensors, capacity * sizeof *grown);
        if (!grown)
            return wrong(w, "out of memory", name);
        w->tensors = grown;
        w->tensors_capacity = capacity;
    }
    struct declared *t = &w->tensors[w->n_tensors++];
    snprintf(t->name, sizeof t->name, "%s", name);
    t->bytes = bytes;
    add_string(w, &w->infos, name, strlen(name));
    add_u32(w, &w->infos, n_dims);
    add(w, &w->infos, ne, n_dims * sizeof *ne);
    add_u32(w, &w->infos, type);
    add_u64(w, &w->infos, w->offset);
    w->offset += padded(bytes);
}

/* ── the file ──────────────────────────────────────────────────────────────────────────────── */

int gguf_writer_create(struct gguf_writer **out, const char *path, char *err, size_t err_size)
{
    struct gguf_writer *w = calloc(1, sizeof *w);
    *out = NULL;
    if (!w || !(w->path = strdup(path)) || !(w->part = malloc(strlen(path) + 6))) {
        gguf_fail(err, err_size, "%s: out of memory", path);
        goto fail;
    }
    sprintf(w->part, "%s.part", path);
    w->out = fopen(w->part, "wbe");
    if (!w->out) {
        gguf_fail(err, err_size, "%s: cannot be written: %m", w->part);
        goto fail;
    }
    *out = w;
    return 0;

fail:
    gguf_writer_destroy(w);
    return -1;
}

static int put(struct gguf_writer *w, const void *bytes, size_t size, char *err, size_t err_size)
{
    if (size && fwrite(bytes, 1, size, w->out) != size)
        return gguf_fail(err, err_size, "%s: cannot be written: %m", w->part);
    return 0;
}

static int put_padding(struct gguf_writer *w, uint64_t size, char *err, size_t err_size)
{
    static const unsigned char zeros[GGUF_ALIGNMENT];
    return put(w, zeros, (size_t)(padded(size) - size), err, err_size);
}

int gguf_writer_begin(struct gguf_writer *w, char *err, size_t err_size)
{
    if (w->wrong[0])
        return gguf_fail(err, err_size, "%s: %s", w->path, w->wrong);
    struct bytes start = {0};
    add(w, &start, "GGUF", 4);
    add_u32(w, &start, 3);
    add_u64(w, &start, w->n_tensors);
    add_u64(w, &start, w->n_keys);
    int status = start.size == 24 ? 0 : gguf_fail(err, err_size, "%s: out of memory", w->path);
    if (!status)
        status = put(w, start.data, start.size, err, err_size);
    if (!status)
        status = put(w, w->keys.data, w->keys.size, err, err_size);
    if (!status)
        status = put(w, w->infos.data, w->infos.size, err, err_size);
    if (!status)
        status = put_padding(w, start.size + w->keys.size + w->infos.size, err, err_size);
    free(start.data);
    w->begun = !status;
    return status;
}

int gguf_writer_data(struct gguf_writer *w, const void *bytes, size_t size, char *err,
                     size_t err_size)
{
    const unsigned char *p = bytes;
    if (!w->begun)
        return gguf_fail(err, err_size, "%s: data before the header", w->path);
    while (size) {
        if (w->current == w->n_tensors)
            return gguf_fail(err, err_size, "%s: %zu bytes more than the tensors have", w->path,
                             size);
        const struct declared *t = &w->tensors[w->current];
        uint64_t more = t->bytes - w->written;
        size_t n = size < more ? size : (size_t)more;
        if (put(w, p, n, err, err_size))
            return -1;
        p += n;
        size -= n;
        w->written += n;
        if (w->written == t->bytes) {
            if (put_padding(w, t->bytes, err, err_size))
                return -1;
            w->current++;
            w->written = 0;
        }
    }
    return 0;
}

int gguf_writer_finish(struct gguf_writer *w, char *err, size_t err_size)
{
    if (w->wrong[0])
        return gguf_fail(err, err_size, "%s: %s", w->path, w->wrong);
    if (!w->begun || w->current != w->n_tensors)
        return gguf_fail(err, err_size, "%s: the data of tensor %s are not complete", w->path,
                         w->begun ? w->tensors[w->current].name : "1");
    FILE *out = w->out;
    w->out = NULL;
    if (fclose(out))
        return gguf_fail(err, err_size, "%s: cannot be written: %m", w->part);
    if (rename(w->part, w->path))
        return gguf_fail(err, err_size, "%s: cannot take the place of %s: %m", w->part, w->path);
    w->finished = true;
    return 0;
}

void gguf_writer_destroy(struct gguf_writer *w)
{
    if (!w)
        return;
    if (w->out)
        fclose(w->out);
    if ((w->out || w->begun) && !w->finished)
        unlink(w->part);
    free(w->keys.data);
    free(w->infos.data);
    free(w->tensors);
    free(w->part);
    free(w->path);
    free(w);
}
