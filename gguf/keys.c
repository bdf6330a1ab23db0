/*
 * The keys of a file: found by name, values converted where nothing is lost.
 */
#include "gguf/index.h"
#include "gguf/private.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

static const struct {
    const char *name;
    uint32_t bytes; /* 0: its length stands in the file */
} value_types[] = {
    [GGUF_VALUE_U8] = {"u8", 1},         [GGUF_VALUE_I8] = {"i8", 1},
    [GGUF_VALUE_U16] = {"u16", 2},       [GGUF_VALUE_I16] = {"i16", 2},
    [GGUF_VALUE_U32] = {"u32", 4},       [GGUF_VALUE_I32] = {"i32", 4},
    [GGUF_VALUE_F32] = {"f32", 4},       [GGUF_VALUE_BOOL] = {"bool", 1},
    [GGUF_VALUE_STRING] = {"string", 0}, [GGUF_VALUE_ARRAY] = {"array", 0},
    [GGUF_VALUE_U64] = {"u64", 8},       [GGUF_VALUE_I64] = {"i64", 8},
    [GGUF_VALUE_F64] = {"f64", 8},
};

#define N_VALUE_TYPES (sizeof value_types / sizeof *value_types)

uint32_t gguf_value_bytes(uint32_t type)
{
    return type < N_VALUE_TYPES ? value_types[type].bytes : 0;
}

const char *gguf_value_type_name(enum gguf_value_type type)
{
    return (size_t)type < N_VALUE_TYPES ? value_types[type].name : "unknown";
}

uint64_t gguf_n_keys(const struct gguf_file *file)
{
    return file->n_keys;
}

const struct gguf_key *gguf_key_at(const struct gguf_file *file, uint64_t i)
{
    return i < file->n_keys ? &file->keys[i] : NULL;
}

struct gguf_string gguf_key_name(const struct gguf_file *file, uint64_t i)
{
    return file->keys[i].name;
}

const struct gguf_key *gguf_key_find(const struct gguf_file *file, const char *name)
{
    uint64_t at = gguf_index_find(&file->key_index, gguf_key_name, file, name, strlen(name));
    return at ? &file->keys[at - 1] : NULL;
}

/* ── integers ──────────────────────────────────────────────────────────────────────────────── */

#define READ(type, value)                                                                          \
    do {                                                                                           \
        type read_;                                                                                \
        memcpy(&read_, data, sizeof read_);                                                        \
        (value) = read_;                                                                           \
    } while (0)

static bool is_integer(enum gguf_value_type type)
{
    return gguf_value_bytes(type) && type != GGUF_VALUE_F32 && type != GGUF_VALUE_F64 &&
           type != GGUF_VALUE_BOOL;
}

int64_t gguf_integer_at(const struct gguf_key *key, uint64_t i)
{
    assert(i < key->count);
    const unsigned char *data = key->data + i * gguf_value_bytes(key->element);
    int64_t value = 0;
    switch (key->element) {
    case GGUF_VALUE_U8: READ(uint8_t, value); break;
    case GGUF_VALUE_I8: READ(int8_t, value); break;
    case GGUF_VALUE_U16: READ(uint16_t, value); break;
    case GGUF_VALUE_I16: READ(int16_t, value); break;
    case GGUF_VALUE_U32: READ(uint32_t, value); break;
    case GGUF_VALUE_I32: READ(int32_t, value); break;
    case GGUF_VALUE_I64: READ(int64_t, value); break;
    case GGUF_VALUE_BOOL: value = *data != 0; break;
    case GGUF_VALUE_U64: {
        uint64_t wide;
        READ(uint64_t, wide);
        value = wide > INT64_MAX ? INT64_MAX : (int64_t)wide;
        break;
    }
    default: assert(!"an integer key");
    }
    return value;
}

int gguf_get_u32(const struct gguf_file *file, const char *name, uint32_t *out, char *err,
                 size_t err_size)
{
    const struct gguf_key *key = gguf_key_find(file, name);
    if (!key)
        return 1;
    if (!is_integer(key->type))
        return gguf_fail(err, err_size,
                         "%s: key %s is of type %s, not an integer: the file is "
                         "damaged or not of this architecture",
                         file->path, name, gguf_value_type_name(key->type));
    int64_t value = gguf_integer_at(key, 0);
    if (value < 0 || value > UINT32_MAX)
        return gguf_fail(err, err_size, "%s: key %s is %" PRId64 ", not between 0 and %" PRIu32,
                         file->path, name, value, UINT32_MAX);
    *out = (uint32_t)value;
    return 0;
}

/* ── floats and strings ────────────────────────────────────────────────────────────────────── */

int gguf_get_f32(const struct gguf_file *file, const char *name, float *out, char *err,
                 size_t err_size)
{
    const struct gguf_key *key = gguf_key_find(file, name);
    if (!key)
        return 1;
    const unsigned char *data = key->data;
    double value;
    if (key->type == GGUF_VALUE_F32)
        READ(float, value);
    else if (key->type == GGUF_VALUE_F64)
        READ(double, value);
    else if (is_integer(key->type))
        value = (double)gguf_integer_at(key, 0);
    else
        return gguf_fail(err, err_size,
                         "%s: key %s is of type %s, not a number: the file is damaged "
                         "or not of this architecture",
                         file->path, name, gguf_value_type_name(key->type));
    if ((isfinite(value) && !isfinite((float)value)) ||
        (is_integer(key->type) && (double)(float)value != value))
        return gguf_fail(err, err_size, "%s: key %s is %.17g, which no 32-bit float holds",
                         file->path, name, value);
    *out = (float)value;
    return 0;
}

int gguf_get_string(const struct gguf_file *file, const char *name, struct gguf_string *out,
                    char *err, size_t err_size)
{
    const struct gguf_key *key = gguf_key_find(file, name);
    if (!key)
        return 1;
    if (key->type != GGUF_VALUE_STRING)
        return gguf_fail(err, err_size,
                         "%s: key %s is of type %s, not a string: the file is damaged "
                         "or not of this architecture",
                         file->path, name, gguf_value_type_name(key->type));
    *out = (struct gguf_string){.bytes = (const char *)key->data, .size = key->size};
    return 0;
}

struct gguf_string gguf_next_string(const struct gguf_key *key, uint64_t *cursor)
{
    struct gguf_string text = {.bytes = "", .size = 0};
    if (key->element != GGUF_VALUE_STRING)
        return text;
    if (key->type == GGUF_VALUE_STRING) { /* a scalar stands without its length */
        if (*cursor == 0)
            text = (struct gguf_string){.bytes = (const char *)key->data, .size = key->size};
        *cursor = key->size + 1;
        return text;
    }
    if (key->size < 8 || *cursor > key->size - 8)
        return text;
    memcpy(&text.size, key->data + *cursor, 8);
    text.bytes = (const char *)key->data + *cursor + 8;
    *cursor += 8 + text.size;
    return text;
}
