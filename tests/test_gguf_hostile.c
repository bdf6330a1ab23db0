/*
 * gguf: files that are cut short, damaged or made to harm are refused with a sentence, and never
 * crash. The files are built here byte by byte.
 */
#include "test.h"

#include "gguf/gguf.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define TINY GPTOSS_SOURCE_DIR "/models/gptoss-tiny-mxfp4.gguf"

static char path[] = "/tmp/gptoss-test-hostile-XXXXXX";
static char err[512];

/* ── building files ────────────────────────────────────────────────────────────────────────── */

struct blob {
    unsigned char *bytes;
    size_t size, capacity;
};

static void add(struct blob *b, const void *bytes, size_t size)
{
    if (b->size + size > b->capacity) {
        b->capacity = 2 * b->capacity + size + 64;
        b->bytes = realloc(b->bytes, b->capacity);
        assert_non_null(b->bytes);
    }
    memcpy(b->bytes + b->size, bytes, size);
    b->size += size;
}

static void u32(struct blob *b, uint32_t value)
{
    add(b, &value, 4);
}

static void u64(struct blob *b, uint64_t value)
{
    add(b, &value, 8);
}

static void string(struct blob *b, const char *text)
{
    u64(b, strlen(text));
    add(b, text, strlen(text));
}

static void zeros(struct blob *b, size_t size)
{
    static const unsigned char zero[4096];
    for (; size > sizeof zero; size -= sizeof zero)
        add(b, zero, sizeof zero);
    add(b, zero, size);
}

static void pad(struct blob *b)
{
    zeros(b, (32 - b->size % 32) % 32);
}

static struct blob start(uint32_t version, uint64_t n_tensors, uint64_t n_keys)
{
    struct blob b = {0};
    add(&b, "GGUF", 4);
    u32(&b, version);
    u64(&b, n_tensors);
    u64(&b, n_keys);
    return b;
}

static void key_u32(struct blob *b, const char *name, uint32_t value)
{
    string(b, name);
    u32(b, GGUF_VALUE_U32);
    u32(b, value);
}

static void tensor(struct blob *b, const char *name, uint32_t type, uint64_t ne0, uint64_t ne1,
                   uint64_t offset)
{
    string(b, name);
    u32(b, 2);
    u64(b, ne0);
    u64(b, ne1);
    u32(b, type);
    u64(b, offset);
}

static void save(const struct blob *b)
{
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(b->bytes, 1, b->size, out), b->size);
    fclose(out);
}

/* What is opened is closed; the status of gguf_open and then gguf_model_create. */
static int try_open(bool model_too)
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

/* Opening the blob, which is freed, must fail with a sentence that names the file and has `words`. */
static void refuses(struct blob b, const char *words)
{
    save(&b);
    free(b.bytes);
    if (try_open(false) != -1)
        fail_msg("opened, though it should say: %s", words);
    if (!strstr(err, words) || strncmp(err, path, strlen(path)) != 0)
        fail_msg("says \"%s\", not \"%s\"", err, words);
}

static void accepts(struct blob b)
{
    save(&b);
    free(b.bytes);
    if (try_open(false))
        fail_msg("%s", err);
}

/* ── a model, with one thing changed ───────────────────────────────────────────────────────── */

enum {
    HIDDEN = 64,
    HEADS = 4,
    KV_HEADS = 2,
    HEAD_DIM = 16,
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
    const char *slack; /* not NULL: data begin where the header ends, after so many bytes more */
};

struct building {
    const struct change *change;
    struct blob keys, infos;
    uint64_t n_keys, n_tensors, offset;
    bool changed; /* the key was met */
};

static void key(struct building *b, const char *name, char kind, double number, const char *text)
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

static void info(struct building *b, const char *name, uint32_t type, uint64_t ne0, uint64_t ne1,
                 uint64_t ne2)
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

static struct blob build_model(const struct change *change)
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

static void refuses_model(struct change change, const char *words)
{
    struct blob b = build_model(&change);
    save(&b);
    free(b.bytes);
    if (try_open(true) != -1)
        fail_msg("accepted, though it should say: %s", words);
    if (!strstr(err, words) || strncmp(err, path, strlen(path)) != 0)
        fail_msg("says \"%s\", not \"%s\"", err, words);
}

static struct gguf_model *accepts_model(struct change change, struct gguf_file **file)
{
    struct gguf_model *model;
    struct blob b = build_model(&change);
    save(&b);
    free(b.bytes);
    if (gguf_open(file, path, err, sizeof err) || gguf_model_create(&model, *file, err, sizeof err))
        fail_msg("%s", err);
    return model;
}

static void close_model(struct gguf_model *model, struct gguf_file *file)
{
    gguf_model_destroy(model);
    gguf_close(file);
}

/* ── cut short ─────────────────────────────────────────────────────────────────────────────── */

static void refuses_every_cut(size_t from, size_t stride)
{
    for (size_t size = from; size < SIZE_MAX / 2; size -= stride) {
        assert_int_equal(truncate(path, (off_t)size), 0);
        if (try_open(true) != -1)
            fail_msg("opened %zu bytes of it", size);
        if (!strstr(err, "the file is cut short, fetch it again"))
            fail_msg("cut after %zu bytes, says: %s", size, err);
        if (size == 0)
            break;
        if (size < stride)
            size = stride;
    }
}

static void refuses_a_file_cut_at_any_byte(void **state)
{
    (void)state;
    struct blob b = build_model(&(struct change){0});
    save(&b);
    assert_int_equal(try_open(true), 0);
    refuses_every_cut(b.size - 64, 4096); /* the last tensor is padded at its end */
    save(&b);
    free(b.bytes);
    struct gguf_file *file;
    assert_int_equal(gguf_open(&file, path, err, sizeof err), 0);
    size_t header = gguf_header_bytes(file);
    gguf_close(file);
    assert_true(header > 3000);
    refuses_every_cut(header, 1);
}

static void refuses_the_bundled_model_cut_anywhere_in_its_header(void **state)
{
    (void)state;
    struct gguf_file *file;
    assert_int_equal(gguf_open(&file, TINY, err, sizeof err), 0);
    size_t header = gguf_header_bytes(file);
    struct blob b = {0};
    FILE *in = fopen(TINY, "rb");
    b.bytes = malloc(header);
    b.size = header;
    assert_int_equal(fread(b.bytes, 1, header, in), header);
    fclose(in);
    gguf_close(file);
    save(&b);
    free(b.bytes);
    refuses_every_cut(header, 97);
}

/* ── the start of a file ───────────────────────────────────────────────────────────────────── */

static struct blob text_file(const char *bytes, size_t size)
{
    struct blob b = {0};
    add(&b, bytes, size);
    zeros(&b, 64);
    return b;
}

static void says_what_another_file_seems_to_be(void **state)
{
    (void)state;
    refuses(text_file("PK\3\4", 4), "seems to be a ZIP archive or PyTorch checkpoint");
    refuses(text_file("\x80\1\0\0\0\0\0\0{\"__metadata__\"", 24), "seems to be a safetensors file");
    refuses(text_file("lmgg", 4), "seems to be a GGML file of 2023");
    refuses(text_file("tjgg", 4), "seems to be a GGML file of 2023");
    refuses(text_file("<!DOCTYPE html>", 15), "seems to be a web page");
    refuses(text_file("version https://git-lfs.github.com", 34), "seems to be a Git LFS pointer");
    refuses(text_file("\x1f\x8b\x08", 3), "compressed with gzip");
    refuses(text_file("{\n", 2), "seems to be JSON text");
    refuses(text_file("FUGG", 4), "a big-endian GGUF file");
    refuses(text_file("\x1b[2J", 4), "it begins with \"?[2J\", not with \"GGUF\"");
}

static void refuses_other_versions(void **state)
{
    (void)state;
    refuses(start(0, 0, 0), "is GGUF version 0; gptoss reads 2 and 3");
    refuses(start(1, 0, 0), "is GGUF version 1, of 2023");
    refuses(start(4, 0, 0), "is GGUF version 4; gptoss reads 2 and 3");
    refuses(start(0x03000000, 0, 0), "is a big-endian GGUF file");
    accepts(start(2, 0, 0));
    accepts(start(3, 0, 0));
}

static void refuses_what_is_no_file(void **state)
{
    (void)state;
    struct gguf_file *file;
    assert_int_equal(gguf_open(&file, "/tmp", err, sizeof err), -1);
    assert_non_null(strstr(err, "/tmp: is a directory: give the path of the .gguf file in it"));
    assert_int_equal(gguf_open(&file, "/no/such/model.gguf", err, sizeof err), -1);
    assert_non_null(strstr(err, "/no/such/model.gguf: No such file or directory"));
    assert_int_equal(gguf_open(&file, "/dev/null", err, sizeof err), -1);
    assert_non_null(strstr(err, "is not a regular file"));
    assert_null(file);

    char pipe_path[64];
    snprintf(pipe_path, sizeof pipe_path, "%s.pipe", path);
    assert_int_equal(mkfifo(pipe_path, 0600), 0);
    assert_int_equal(gguf_open(&file, pipe_path, err, sizeof err), -1); /* and does not wait */
    unlink(pipe_path);
    assert_non_null(strstr(err, "is not a regular file"));

    struct blob b = start(3, 0, 0);
    save(&b);
    free(b.bytes);
    if (geteuid() != 0) {
        chmod(path, 0);
        assert_int_equal(gguf_open(&file, path, err, sizeof err), -1);
        assert_non_null(strstr(err, "Permission denied"));
        chmod(path, 0600);
    }
}

static void refuses_counts_that_the_file_cannot_hold(void **state)
{
    (void)state;
    refuses(start(3, 0, 1),
            "says that it has 1 keys, and ends 0 bytes later: the file is cut short");
    refuses(start(3, 1000, 0), "says that it has 1000 tensors");
    refuses(start(3, 0, UINT64_MAX),
            "says that it has 18446744073709551615 keys: the file is damaged");
    refuses(start(3, (uint64_t)1 << 61, 0), "tensors: the file is damaged");
    struct blob b = start(3, 0, 100);
    zeros(&b, 100);
    refuses(b, "says that it has 100 keys");
}

/* ── keys ──────────────────────────────────────────────────────────────────────────────────── */

static struct blob one_key(const char *name, uint32_t type)
{
    struct blob b = start(3, 0, 1);
    string(&b, name);
    u32(&b, type);
    return b;
}

static struct blob one_array(uint32_t element, uint64_t count)
{
    struct blob b = one_key("list", GGUF_VALUE_ARRAY);
    u32(&b, element);
    u64(&b, count);
    zeros(&b, 256);
    return b;
}

static void refuses_keys_that_lie(void **state)
{
    (void)state;
    struct blob b = one_key("k", 13);
    zeros(&b, 64);
    refuses(b, "key k has a value of unknown type 13: the file is damaged");
    b = one_key("", GGUF_VALUE_U32);
    zeros(&b, 64);
    refuses(b, "key 1 of 1 has no name");
    b = one_key("s", GGUF_VALUE_STRING);
    u64(&b, UINT64_MAX - 7);
    zeros(&b, 64);
    refuses(b, "key s has a string of 18446744073709551608 bytes");
    b = one_key("s", GGUF_VALUE_STRING);
    u64(&b, 65);
    zeros(&b, 64);
    refuses(b, "inside key s: the file is cut short");
    b = start(3, 0, 1);
    u64(&b, (uint64_t)1 << 63);
    zeros(&b, 64);
    refuses(b, "key 1 of 1 has a string of 9223372036854775808 bytes");
    b = start(3, 0, 2);
    key_u32(&b, "twice", 1);
    key_u32(&b, "twice", 1);
    refuses(b, "key twice is there twice");
    b = one_key("bad\x1b]0;name", GGUF_VALUE_U64);
    refuses(b, "inside key bad?]0;name");
}

static void refuses_arrays_that_lie(void **state)
{
    (void)state;
    refuses(one_array(GGUF_VALUE_ARRAY, 1), "key list is an array of arrays");
    refuses(one_array(99, 1), "key list is an array of values of unknown type 99");
    refuses(one_array(GGUF_VALUE_U64, UINT64_MAX / 8 + 2), "elements: the file is damaged");
    refuses(one_array(GGUF_VALUE_U8, UINT64_MAX), "elements: the file is damaged");
    refuses(one_array(GGUF_VALUE_U64, 33), "inside key list: the file is cut short");
    refuses(one_array(GGUF_VALUE_STRING, 33), "inside key list: the file is cut short");
    accepts(one_array(GGUF_VALUE_U64, 32));
    accepts(one_array(GGUF_VALUE_STRING, 32));
    accepts(one_array(GGUF_VALUE_F64, 0));
}

static struct blob aligned_to(uint32_t type, uint64_t value, size_t bytes)
{
    struct blob b = one_key("general.alignment", type);
    add(&b, &value, bytes);
    return b;
}

static void refuses_alignments_that_are_none(void **state)
{
    (void)state;
    refuses(aligned_to(GGUF_VALUE_U32, 0, 4), "general.alignment is 0, not a power of two");
    refuses(aligned_to(GGUF_VALUE_U32, 48, 4), "general.alignment is 48, not a power of two");
    refuses(aligned_to(GGUF_VALUE_U32, 1u << 31, 4),
            "general.alignment is 2147483648, not a power");
    refuses(aligned_to(GGUF_VALUE_U64, (uint64_t)1 << 63, 8), "key general.alignment is 92233");
    refuses(aligned_to(GGUF_VALUE_I32, UINT32_MAX, 4), "key general.alignment is -1, not between");
    refuses(aligned_to(GGUF_VALUE_F32, 0x42000000, 4), "general.alignment is of type f32, not an");
    accepts(aligned_to(GGUF_VALUE_U32, 1, 4));
    accepts(aligned_to(GGUF_VALUE_U32, 4096, 4)); /* of no tensors, so the padding may be missing */
}

/* ── tensors ───────────────────────────────────────────────────────────────────────────────── */

/* A file with one tensor and 256 bytes of data. */
static struct blob one_tensor(const char *name, uint32_t type, uint64_t ne0, uint64_t ne1,
                              uint64_t offset)
{
    struct blob b = start(3, 1, 0);
    tensor(&b, name, type, ne0, ne1, offset);
    pad(&b);
    zeros(&b, 256);
    return b;
}

static void refuses_tensors_that_lie(void **state)
{
    (void)state;
    accepts(one_tensor("t", GGUF_F32, 8, 8, 0));
    refuses(one_tensor("t", GGUF_F32, 8, 8, 32),
            "tensor t ends at byte 384 of a file of 352 bytes");
    struct blob b = one_tensor("t", GGUF_F32, 8, 8, 0);
    b.size--;
    refuses(b, "the file is cut short, fetch it again");
    refuses(one_tensor("t", GGUF_F32, 65, 1, 0), "the file is cut short, fetch it again");
    refuses(one_tensor("t", GGUF_F32, 8, 8, 31), "offset 31, no multiple of the alignment 32");
    refuses(one_tensor("t", GGUF_F32, 8, 8, UINT64_MAX - 31), "beyond what any file could hold");
    refuses(one_tensor("t", GGUF_F32, 8, 8, UINT64_MAX - 95), "beyond what any file could hold");
    refuses(one_tensor("t", GGUF_F32, (uint64_t)1 << 62, 1, 0), "more elements than any file");
    refuses(one_tensor("t", GGUF_F32, (uint64_t)1 << 33, (uint64_t)1 << 33, 0), "more elements");
    refuses(one_tensor("t", GGUF_F32, 0, 8, 0), "has no elements (dimension 0 is 0)");
    refuses(one_tensor("t", GGUF_F32, 8, 0, 0), "has no elements (dimension 1 is 0)");
    refuses(one_tensor("t", GGUF_Q8_0, 33, 1, 0),
            "rows of 33 values, no multiple of 32, the block of Q8_0");
    refuses(one_tensor("t", GGUF_Q4_K, 192, 1, 0), "no multiple of 256, the block of Q4_K");
    refuses(one_tensor("t", 4, 32, 1, 0), "files of Ollama's own gpt-oss flavour");
    refuses(one_tensor("t", 36, 32, 1, 0), "data of type 36 (IQ4_NL_4_4 (retired))");
    refuses(one_tensor("t", 77, 32, 1, 0), "data of type 77 (type 77)");
    refuses(one_tensor("t", UINT32_MAX, 32, 1, 0), "data of type 4294967295");
    refuses(one_tensor("", GGUF_F32, 8, 8, 0), "has a name of 0 bytes; 1 to 63");
    char name[65];
    memset(name, 'n', 64);
    name[64] = 0;
    refuses(one_tensor(name, GGUF_F32, 8, 8, 0), "has a name of 64 bytes; 1 to 63");
    accepts(one_tensor(name + 1, GGUF_F32, 8, 8, 0));
}

static void refuses_shapes_of_no_or_many_dimensions(void **state)
{
    (void)state;
    for (uint32_t n = 0; n <= 6; n++) {
        struct blob b = start(3, 1, 0);
        string(&b, "t");
        u32(&b, n == 6 ? UINT32_MAX : n);
        for (uint32_t i = 0; i < n; i++)
            u64(&b, 2);
        u32(&b, GGUF_F32);
        u64(&b, 0);
        pad(&b);
        zeros(&b, 256);
        if (n >= 1 && n <= 4)
            accepts(b);
        else
            refuses(b, "dimensions; 1 to 4 are valid: the file is damaged");
    }
}

static void refuses_names_with_zeros(void **state)
{
    (void)state;
    struct blob b = start(3, 1, 0);
    u64(&b, 3);
    add(&b, "a\0b", 3);
    u32(&b, 1);
    u64(&b, 8);
    u32(&b, GGUF_F32);
    u64(&b, 0);
    pad(&b);
    zeros(&b, 256);
    refuses(b, "tensor a?b has a name of 3 bytes; 1 to 63 without zeros");
}

static struct blob two_tensors(const char *first, uint64_t at, const char *second, uint64_t then)
{
    struct blob b = start(3, 2, 0);
    tensor(&b, first, GGUF_F32, 8, 2, at);
    tensor(&b, second, GGUF_F32, 8, 2, then);
    pad(&b);
    zeros(&b, 256);
    return b;
}

static void refuses_tensors_that_overlap_or_share_a_name(void **state)
{
    (void)state;
    accepts(two_tensors("a", 0, "b", 64));
    accepts(two_tensors("a", 64, "b", 0));   /* any order */
    accepts(two_tensors("a", 192, "b", 32)); /* with gaps */
    refuses(two_tensors("a", 0, "b", 32), "tensors a and b overlap");
    refuses(two_tensors("a", 32, "b", 0), "tensors b and a overlap");
    refuses(two_tensors("a", 64, "b", 64), "overlap: the file is damaged");
    refuses(two_tensors("a", 0, "a", 64), "tensor a is there twice");
}

static void opens_a_hundred_thousand_names_quickly(void **state)
{
    (void)state;
    enum { N = 100000 };
    struct blob b = start(3, N, N);
    char name[64];
    for (uint32_t i = 0; i < N; i++) {
        snprintf(name, sizeof name, "a.common.beginning.of.all.names.%u", i);
        key_u32(&b, name, i);
    }
    for (uint32_t i = 0; i < N; i++) { /* from the end to the beginning */
        snprintf(name, sizeof name, "a.common.beginning.of.all.names.%u", i);
        tensor(&b, name, GGUF_F32, 8, 1, 32ull * (N - 1 - i));
    }
    pad(&b);
    save(&b);
    assert_int_equal(truncate(path, (off_t)(b.size + 32ull * N)), 0);
    free(b.bytes);
    clock_t before = clock();
    assert_int_equal(try_open(false), 0);
    assert_true(clock() - before < 5 * CLOCKS_PER_SEC);
}

/* ── models ────────────────────────────────────────────────────────────────────────────────── */

static void reads_a_model_of_any_sizes(void **state)
{
    (void)state;
    struct gguf_file *file;
    struct gguf_model *model = accepts_model((struct change){0}, &file);
    assert_int_equal(model->hidden, HIDDEN);
    assert_int_equal(model->head_dim, HEAD_DIM);
    assert_int_equal(model->expert_ffn, FFN); /* from feed_forward_length */
    assert_int_equal(model->vocabulary, VOCABULARY);
    assert_int_equal(model->window, 37);
    assert_true(model->yarn_factor == 1);
    close_model(model, file);

    model = accepts_model((struct change){.tensor = "output.weight"}, &file);
    assert_ptr_equal(model->output, model->embedding);
    close_model(model, file);
    model = accepts_model((struct change){.key = "gpt-oss.attention.key_length"}, &file);
    assert_int_equal(model->head_dim, HIDDEN / HEADS);
    close_model(model, file);
    model = accepts_model(
        (struct change){.key = "gpt-oss.rope.scaling.factor", .kind = 'f', .number = 8}, &file);
    assert_true(model->yarn_factor == 8 && model->yarn_context == 1024 / 8);
    close_model(model, file);
    const struct change attention = {
        .key = "gpt-oss.rope.scaling.attn_factor", .kind = 'f', .number = 0.5};
    model = accepts_model(attention, &file);
    close_model(model, file);
    model = accepts_model(
        (struct change){.key = "gpt-oss.expert_count", .kind = 'i', .number = EXPERTS}, &file);
    close_model(model, file);
}

static void slides_as_the_pattern_says(void **state)
{
    (void)state;
    static const char pattern[] = "gpt-oss.attention.sliding_window_pattern";
    const struct {
        char kind;
        double number;
        bool sliding[2];
    } cases[] = {{0, 0, {true, false}},  {'u', 2, {true, false}}, {'u', 1, {false, false}},
                 {'u', 0, {true, true}}, {'u', 3, {true, true}},  {'b', 2, {false, true}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gguf_file *file;
        struct change change = {.key = pattern, .kind = cases[i].kind, .number = cases[i].number};
        struct gguf_model *model = accepts_model(change, &file);
        assert_int_equal(model->layers[0].sliding, cases[i].sliding[0]);
        assert_int_equal(model->layers[1].sliding, cases[i].sliding[1]);
        close_model(model, file);
    }
    refuses_model((struct change){.key = pattern, .kind = 'b', .number = 3},
                  "an array of 3 values of type bool, not of 2");
}

static void refuses_other_architectures_by_name(void **state)
{
    (void)state;
    const char *key_name = "general.architecture";
    refuses_model((struct change){.key = key_name, .kind = 's', .text = "llama"},
                  "is a model of architecture llama; gptoss runs gpt-oss models");
    refuses_model((struct change){.key = key_name, .kind = 's', .text = "gptoss"},
                  "Ollama's own flavour of gpt-oss");
    refuses_model((struct change){.key = key_name, .kind = 'u', .number = 3},
                  "key general.architecture is of type u32, not a string");
    refuses_model((struct change){.key = key_name}, "has no key general.architecture");
    refuses_model((struct change){.key = "split.count", .kind = 'u', .number = 3},
                  "is part 1 of 3 of a split model");
}

static void refuses_sizes_that_contradict(void **state)
{
    (void)state;
    const struct {
        const char *key;
        char kind;
        double number;
        const char *words;
    } cases[] = {
        {"gpt-oss.block_count", 'u', 0, "gpt-oss.block_count is 0, not between 1 and"},
        {"gpt-oss.block_count", 'u', 3, "says that it has 3 layers, and has 41 tensors"},
        {"gpt-oss.block_count", 'u', 4000000000.0,
         "gpt-oss.block_count is 4000000000, not between"},
        {"gpt-oss.block_count", 'u', 1,
         "says that it has 1 layers, and has tensor blk.1.attn_norm"},
        {"gpt-oss.block_count", 'i', -2, "gpt-oss.block_count is -2, not between 0 and"},
        {"gpt-oss.block_count", 'f', 2, "key gpt-oss.block_count is of type f32, not an integer"},
        {"gpt-oss.embedding_length", 'u', 32,
         "token_embd.weight has the shape 64x40x1x1, and its keys say 32x40x1"},
        {"gpt-oss.embedding_length", 0, 0, "key gpt-oss.embedding_length is missing"},
        {"gpt-oss.attention.head_count", 'u', 3, "3 query heads are no multiple of 2 kv heads"},
        {"gpt-oss.attention.head_count_kv", 'u', 0, "head_count_kv is 0, not between"},
        {"gpt-oss.attention.head_count_kv", 'u', 8, "4 query heads are no multiple of 8 kv heads"},
        {"gpt-oss.attention.head_count_kv", 0, 0, "blk.0.attn_k.weight has the shape 64x32"},
        {"gpt-oss.attention.key_length", 'u', 15, "the size of a head is 15, and must be even"},
        {"gpt-oss.attention.key_length", 'u', 32, "blk.0.attn_q.weight has the shape 64x64"},
        {"gpt-oss.attention.value_length", 'u', 8, "keys of 16 values and values of 8"},
        {"gpt-oss.rope.dimension_count", 'u', 8, "8 of 16 values of a head are rotated"},
        {"gpt-oss.attention.sliding_window", 'u', 0, "sliding_window is 0, not between"},
        {"gpt-oss.attention.sliding_window", 0, 0, "sliding_window is missing"},
        {"gpt-oss.expert_used_count", 'u', 5, "5 experts are active of 4"},
        {"gpt-oss.expert_used_count", 'u', 0, "expert_used_count is 0"},
        {"gpt-oss.expert_count", 'u', 8, "blk.0.ffn_gate_inp.weight has the shape 64x4"},
        {"gpt-oss.expert_feed_forward_length", 'u', 64,
         "ffn_gate_exps.weight has the shape 64x32x4x1, and its keys say 64x64x4"},
        {"gpt-oss.feed_forward_length", 0, 0, "feed_forward_length is missing"},
        {"gpt-oss.context_length", 0, 0, "context_length is missing"},
        {"gpt-oss.attention.layer_norm_rms_epsilon", 'f', -1, "layer_norm_rms_epsilon is -1, not"},
        {"gpt-oss.attention.layer_norm_rms_epsilon", 'f', NAN,
         "layer_norm_rms_epsilon is nan, not"},
        {"gpt-oss.rope.freq_base", 'f', INFINITY, "rope.freq_base is inf, not between"},
        {"gpt-oss.rope.freq_base", 's', 0,
         "key gpt-oss.rope.freq_base is of type string, not a number"},
        {"gpt-oss.rope.freq_base_swa", 'f', 10000, "sliding layers have a RoPE base of their own"},
        {"gpt-oss.rope.scaling.type", 's', 0, "rope.scaling.type is linear; gptoss knows yarn"},
        {"gpt-oss.rope.scaling.factor", 'f', 0, "rope.scaling.factor is 0, not between 1"},
        {"gpt-oss.rope.scaling.yarn_beta_slow", 'f', 64,
         "yarn_beta_fast (32) is not above yarn_beta_slow (64)"},
        {"gpt-oss.vocab_size", 'u', 41,
         "token_embd.weight has 40 rows, and gpt-oss.vocab_size says 41"},
        {"tokenizer.ggml.tokens", 'b', 41,
         "token_embd.weight has 40 rows, and tokenizer.ggml.tokens says 41"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuses_model((struct change){.key = cases[i].key,
                                      .kind = cases[i].kind,
                                      .number = cases[i].number,
                                      .text = "linear"},
                      cases[i].words);
}

static void refuses_tensors_missing_or_of_another_shape_or_type(void **state)
{
    (void)state;
    static const char *const needed[] = {
        "token_embd.weight",       "output_norm.weight",       "blk.0.attn_norm.weight",
        "blk.1.attn_q.bias",       "blk.1.attn_sinks.weight",  "blk.0.post_attention_norm.weight",
        "blk.1.ffn_gate_inp.bias", "blk.0.ffn_up_exps.weight", "blk.1.ffn_down_exps.bias"};
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        char words[80];
        snprintf(words, sizeof words, "tensor %s is missing", needed[i]);
        /* One in place of the missing one, so that their number does not tell. */
        refuses_model((struct change){.tensor = needed[i], .extra_tensor = "other"}, words);
    }
#define OTHER(name, ...) ((struct change){.tensor = (name), .other = true, __VA_ARGS__})
    refuses_model(OTHER("blk.1.attn_output.weight", .type = GGUF_Q8_0, .ne = {32}),
                  "blk.1.attn_output.weight has the shape 32x64x1x1, and its keys say 64x64x1");
    refuses_model(OTHER("blk.0.ffn_down_exps.weight", .type = GGUF_MXFP4, .ne = {0, 0, 5}),
                  "blk.0.ffn_down_exps.weight has the shape 32x64x5x1");
    refuses_model(OTHER("blk.0.ffn_down_exps.bias", .type = GGUF_F32, .ne = {32}),
                  "blk.0.ffn_down_exps.bias has the shape 32x4x1x1");
    refuses_model(OTHER("output.weight", .type = GGUF_Q8_0, .ne = {0, 41}),
                  "output.weight has the shape 64x41x1x1");
    refuses_model(OTHER("blk.0.attn_q.weight", .type = GGUF_Q5_0),
                  "blk.0.attn_q.weight has type Q5_0, which gptoss does not compute with");
    refuses_model(OTHER("blk.0.ffn_up_exps.weight", .type = 20), "has type IQ4_NL, which");
    refuses_model(OTHER("blk.0.attn_norm.weight", .type = GGUF_F16),
                  "blk.0.attn_norm.weight has type F16; norms, biases and sinks must be F32");
    refuses_model((struct change){.extra_tensor = "blk.0.attn_qkv.weight"},
                  "query, key and value in one");
#undef OTHER
}

static void refuses_floats_at_odd_addresses(void **state)
{
    (void)state;
    int accepted = 0;
    for (size_t slack = 0; slack < 4; slack++) {
        struct change change = {
            .key = "general.alignment", .kind = 'u', .number = 1, .slack = "four" + slack};
        struct blob b = build_model(&change);
        save(&b);
        free(b.bytes);
        if (!try_open(true))
            accepted++;
        else if (!strstr(err, "begins at the odd address"))
            fail_msg("%s", err);
    }
    assert_int_equal(accepted, 1);
}

/* ── noise ─────────────────────────────────────────────────────────────────────────────────── */

static volatile uint64_t seen; /* what is read of the files that open */

static void look_at_everything(const struct gguf_file *file)
{
    for (uint64_t i = 0; i < gguf_n_keys(file); i++) {
        const struct gguf_key *k = gguf_key_at(file, i);
        uint64_t cursor = 0;
        for (uint64_t n = 0; n < k->count && k->element == GGUF_VALUE_STRING; n++) {
            struct gguf_string text = gguf_next_string(k, &cursor);
            seen += text.size ? (uint64_t)text.bytes[text.size - 1] : 0;
        }
        seen += k->size ? k->data[k->size - 1] : 0;
    }
    for (uint64_t i = 0; i < gguf_n_tensors(file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(file, i);
        seen += t->data[0] + t->data[t->bytes - 1];
        assert_ptr_equal(gguf_tensor_find(file, t->name), t);
    }
}

static void survives_flipped_bytes(void **state)
{
    (void)state;
    struct blob b = build_model(&(struct change){0});
    size_t header = b.size < 4000 ? b.size : 4000;
    uint64_t random = 7;
    int opened = 0, refused = 0;
    for (int round = 0; round < 4000; round++) {
        unsigned char saved[4000];
        memcpy(saved, b.bytes, header);
        for (uint64_t flips = 1 + test_random(&random) % 4; flips; flips--) {
            uint64_t draw = test_random(&random);
            b.bytes[24 * (draw & 3 ? 1 : 0) + (draw >> 8) % (header - 24)] =
                draw & 4 ? 0xff : (unsigned char)(draw >> 3);
        }
        save(&b);
        struct gguf_file *file;
        struct gguf_model *model = NULL;
        if (gguf_open(&file, path, err, sizeof err)) {
            refused++;
        } else {
            opened++;
            look_at_everything(file);
            gguf_model_create(&model, file, err, sizeof err);
            gguf_model_destroy(model);
            gguf_close(file);
        }
        memcpy(b.bytes, saved, header);
    }
    free(b.bytes);
    assert_true(refused > 500);
    assert_true(opened > 50);
}

static int make_path(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 || close(fd);
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_a_file_cut_at_any_byte),
        cmocka_unit_test(refuses_the_bundled_model_cut_anywhere_in_its_header),
        cmocka_unit_test(says_what_another_file_seems_to_be),
        cmocka_unit_test(refuses_other_versions),
        cmocka_unit_test(refuses_what_is_no_file),
        cmocka_unit_test(refuses_counts_that_the_file_cannot_hold),
        cmocka_unit_test(refuses_keys_that_lie),
        cmocka_unit_test(refuses_arrays_that_lie),
        cmocka_unit_test(refuses_alignments_that_are_none),
        cmocka_unit_test(refuses_tensors_that_lie),
        cmocka_unit_test(refuses_shapes_of_no_or_many_dimensions),
        cmocka_unit_test(refuses_names_with_zeros),
        cmocka_unit_test(refuses_tensors_that_overlap_or_share_a_name),
        cmocka_unit_test(opens_a_hundred_thousand_names_quickly),
        cmocka_unit_test(reads_a_model_of_any_sizes),
        cmocka_unit_test(slides_as_the_pattern_says),
        cmocka_unit_test(refuses_other_architectures_by_name),
        cmocka_unit_test(refuses_sizes_that_contradict),
        cmocka_unit_test(refuses_tensors_missing_or_of_another_shape_or_type),
        cmocka_unit_test(refuses_floats_at_odd_addresses),
        cmocka_unit_test(survives_flipped_bytes),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
