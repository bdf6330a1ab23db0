/*
 * gguf_blob: GGUF files built byte by byte, sound or not, for the tests of gguf/.
 */
#ifndef GPTOSS_TESTS_GGUF_BLOB_H
#define GPTOSS_TESTS_GGUF_BLOB_H

#include "test.h"

#include "gguf/gguf.h"

#include <unistd.h>

static char path[] = "/tmp/gptoss-test-gguf-XXXXXX";
static char err[512];

/* ── building files ────────────────────────────────────────────────────────────────────────── */

struct blob {
    unsigned char *bytes;
    size_t size, capacity;
};

static inline void add(struct blob *b, const void *bytes, size_t size)
{
    if (b->size + size > b->capacity) {
        b->capacity = 2 * b->capacity + size + 64;
        b->bytes = realloc(b->bytes, b->capacity);
        assert_non_null(b->bytes);
    }
    memcpy(b->bytes + b->size, bytes, size);
    b->size += size;
}

static inline void u32(struct blob *b, uint32_t value)
{
    add(b, &value, 4);
}

static inline void u64(struct blob *b, uint64_t value)
{
    add(b, &value, 8);
}

static inline void string(struct blob *b, const char *text)
{
    u64(b, strlen(text));
    add(b, text, strlen(text));
}

static inline void zeros(struct blob *b, size_t size)
{
    static const unsigned char zero[4096];
    for (; size > sizeof zero; size -= sizeof zero)
        add(b, zero, sizeof zero);
    add(b, zero, size);
}

static inline void pad(struct blob *b)
{
    zeros(b, (32 - b->size % 32) % 32);
}

static inline struct blob start(uint32_t version, uint64_t n_tensors, uint64_t n_keys)
{
    struct blob b = {0};
    add(&b, "GGUF", 4);
    u32(&b, version);
    u64(&b, n_tensors);
    u64(&b, n_keys);
    return b;
}

static inline void key_u32(struct blob *b, const char *name, uint32_t value)
{
    string(b, name);
    u32(b, GGUF_VALUE_U32);
    u32(b, value);
}

static inline void tensor(struct blob *b, const char *name, uint32_t type, uint64_t ne0,
                          uint64_t ne1, uint64_t offset)
{
    string(b, name);
    u32(b, 2);
    u64(b, ne0);
    u64(b, ne1);
    u32(b, type);
    u64(b, offset);
}

static inline void save(const struct blob *b)
{
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(b->bytes, 1, b->size, out), b->size);
    fclose(out);
}

/* What is opened is closed; the status of gguf_open and then gguf_model_create. */
static inline int try_open(bool model_too)
{
    struct gguf_file *file;
    struct gguf_model *model = NULL;
    strcpy(err, "no sentence");
    int status = gguf_open(&file, path, err, sizeof err);
    if (status) {
        assert_null(file);
        return status;
    }
    if (model_too) {
        status = gguf_model_create(&model, file, err, sizeof err);
        if (status)
            assert_null(model);
    }
    gguf_model_destroy(model);
    gguf_close(file);
    return status;
}

/* ── a model, with one thing changed ───────────────────────────────────────────────────────── */

enum {
    HIDDEN = 64,
    HEADS = 4,
    KV_HEADS = 2,
    HEAD_DIM = 16,
    QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM,
    EXPERTS = 4,
    FFN = 32,
    VOCABULARY = 40
};

struct change {
    const char *key; /* dropped, or given another value */
    char kind;       /* 0: dropped; 'u' u32, 'f' f32, 's' string, 'i' i32, 'b' array of bools */
    double number;
    const char *text;
    const char *tensor; /* dropped, or given another type or shape */
    bool other;
    uint32_t type;
    uint64_t ne[3];
    const char *extra_tensor;
    bool fused;        /* attn_qkv in place of the three */
    const char *slack; /* not NULL: data begin where the header ends, after so many bytes more */
};

struct building {
    const struct change *change;
    struct blob keys, infos;
    uint64_t n_keys, n_tensors, offset;
    bool changed; /* the key was met */
};

static inline void key(struct building *b, const char *name, char kind, double number,
                       const char *text)
{
    const struct change *c = b->change;
    if (c->key && !strcmp(c->key, name)) {
        b->changed = true;
        if (!c->kind)
            return;
        kind = c->kind;
        number = c->number;
        text = c->text;
    }
    b->n_keys++;
    string(&b->keys, name);
    if (kind == 'u') {
        u32(&b->keys, GGUF_VALUE_U32);
        u32(&b->keys, (uint32_t)number);
    } else if (kind == 'i') {
        u32(&b->keys, GGUF_VALUE_I32);
        u32(&b->keys, (uint32_t)(int32_t)number);
    } else if (kind == 'f') {
        float value = (float)number;
        u32(&b->keys, GGUF_VALUE_F32);
        add(&b->keys, &value, 4);
    } else if (kind == 's') {
        u32(&b->keys, GGUF_VALUE_STRING);
        string(&b->keys, text);
    } else { /* truth values, as many as `number` */
        u32(&b->keys, GGUF_VALUE_ARRAY);
        u32(&b->keys, GGUF_VALUE_BOOL);
        u64(&b->keys, (uint64_t)number);
        for (int i = 0; i < (int)number; i++)
            add(&b->keys, i ? "\1" : "\0", 1);
    }
}

static inline void info(struct building *b, const char *name, uint32_t type, uint64_t ne0,
                        uint64_t ne1, uint64_t ne2)
{
    const struct change *c = b->change;
    if (c->tensor && !strcmp(c->tensor, name)) {
        if (!c->other)
            return;
        type = c->type;
        ne0 = c->ne[0] ? c->ne[0] : ne0;
        ne1 = c->ne[1] ? c->ne[1] : ne1;
        ne2 = c->ne[2] ? c->ne[2] : ne2;
    }
    b->n_tensors++;
    string(&b->infos, name);
    u32(&b->infos, 3);
    u64(&b->infos, ne0);
    u64(&b->infos, ne1);
    u64(&b->infos, ne2);
    u32(&b->infos, type);
    u64(&b->infos, b->offset);
    b->offset += (gguf_row_bytes(type, ne0) * ne1 * ne2 + 31) / 32 * 32;
}

static inline struct blob build_model(const struct change *change)
{
    struct building b = {.change = change};
    key(&b, "general.architecture", 's', 0, "gpt-oss");
    key(&b, "gpt-oss.block_count", 'u', 2, NULL);
    key(&b, "gpt-oss.context_length", 'u', 1024, NULL);
    key(&b, "gpt-oss.embedding_length", 'u', HIDDEN, NULL);
    key(&b, "gpt-oss.feed_forward_length", 'u', FFN, NULL);
    key(&b, "gpt-oss.attention.head_count", 'u', HEADS, NULL);
    key(&b, "gpt-oss.attention.head_count_kv", 'u', KV_HEADS, NULL);
    key(&b, "gpt-oss.attention.key_length", 'u', HEAD_DIM, NULL);
    key(&b, "gpt-oss.attention.sliding_window", 'u', 37, NULL);
    key(&b, "gpt-oss.attention.layer_norm_rms_epsilon", 'f', 1e-5, NULL);
    key(&b, "gpt-oss.rope.freq_base", 'f', 150000, NULL);
    key(&b, "gpt-oss.expert_count", 'u', EXPERTS, NULL);
    key(&b, "gpt-oss.expert_used_count", 'u', 3, NULL);
    if (change->key && change->kind && !b.changed)
        key(&b, change->key, 0, 0, NULL);
    if (change->slack)
        key(&b, "slack", 's', 0, change->slack);

    info(&b, "token_embd.weight", GGUF_Q8_0, HIDDEN, VOCABULARY, 1);
    info(&b, "output_norm.weight", GGUF_F32, HIDDEN, 1, 1);
    info(&b, "output.weight", GGUF_Q8_0, HIDDEN, VOCABULARY, 1);
    for (uint32_t i = 0; i < 2; i++) {
        const struct {
            const char *name;
            uint32_t type;
            uint64_t ne0, ne1, ne2;
        } layer[] = {
            {"attn_norm.weight", GGUF_F32, HIDDEN, 1, 1},
            {"attn_qkv.weight", GGUF_Q8_0, HIDDEN, QKV, 1},
            {"attn_qkv.bias", GGUF_F32, QKV, 1, 1},
            {"attn_q.weight", GGUF_Q8_0, HIDDEN, HEADS * HEAD_DIM, 1},
            {"attn_q.bias", GGUF_F32, HEADS * HEAD_DIM, 1, 1},
            {"attn_k.weight", GGUF_F16, HIDDEN, KV_HEADS * HEAD_DIM, 1},
            {"attn_k.bias", GGUF_F32, KV_HEADS * HEAD_DIM, 1, 1},
            {"attn_v.weight", GGUF_BF16, HIDDEN, KV_HEADS * HEAD_DIM, 1},
            {"attn_v.bias", GGUF_F32, KV_HEADS * HEAD_DIM, 1, 1},
            {"attn_output.weight", GGUF_Q8_0, HEADS * HEAD_DIM, HIDDEN, 1},
            {"attn_output.bias", GGUF_F32, HIDDEN, 1, 1},
            {"attn_sinks.weight", GGUF_F32, HEADS, 1, 1},
            {"post_attention_norm.weight", GGUF_F32, HIDDEN, 1, 1},
            {"ffn_gate_inp.weight", GGUF_F32, HIDDEN, EXPERTS, 1},
            {"ffn_gate_inp.bias", GGUF_F32, EXPERTS, 1, 1},
            {"ffn_gate_exps.weight", GGUF_MXFP4, HIDDEN, FFN, EXPERTS},
            {"ffn_gate_exps.bias", GGUF_F32, FFN, EXPERTS, 1},
            {"ffn_up_exps.weight", GGUF_MXFP4, HIDDEN, FFN, EXPERTS},
            {"ffn_up_exps.bias", GGUF_F32, FFN, EXPERTS, 1},
            {"ffn_down_exps.weight", GGUF_MXFP4, FFN, HIDDEN, EXPERTS},
            {"ffn_down_exps.bias", GGUF_F32, HIDDEN, EXPERTS, 1},
        };
        for (size_t k = 0; k < sizeof layer / sizeof *layer; k++) {
            char full[64];
            bool three = strncmp(layer[k].name, "attn_", 5) == 0 &&
                         strchr("qkv", layer[k].name[5]) && layer[k].name[6] == '.';
            if (change->fused ? three : !strncmp(layer[k].name, "attn_qkv", 8))
                continue;
            snprintf(full, sizeof full, "blk.%u.%s", i, layer[k].name);
            info(&b, full, layer[k].type, layer[k].ne0, layer[k].ne1, layer[k].ne2);
        }
    }
    if (change->extra_tensor)
        info(&b, change->extra_tensor, GGUF_F32, 1, 1, 1);

    struct blob all = start(3, b.n_tensors, b.n_keys);
    add(&all, b.keys.bytes, b.keys.size);
    add(&all, b.infos.bytes, b.infos.size);
    if (!change->slack)
        pad(&all);
    zeros(&all, (size_t)b.offset);
    free(b.keys.bytes);
    free(b.infos.bytes);
    return all;
}

static inline int make_path(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 || close(fd);
}

static inline int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

#endif
