/*
 * gguf: files that are cut short, damaged or made to harm are refused with a sentence, and never
 * crash.
 */
#include "test.h"

#include "gguf_blob.h"

#include <sys/stat.h>
#include <time.h>

#define TINY GPTOSS_SOURCE_DIR "/models/gptoss-tiny-mxfp4.gguf"

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

/* The header of a published 20b file in size: 201,088 tokens, 446,189 merges, 459 tensors, and 12 GB of
 * data, which are a hole in the file. */
static void opens_a_file_of_12_gb_in_half_a_second(void **state)
{
    (void)state;
    struct blob b = start(3, 459, 35);
    const struct {
        const char *name;
        uint64_t n;
    } arrays[] = {{"tokenizer.ggml.tokens", 201088}, {"tokenizer.ggml.merges", 446189}};
    char text[32];
    for (int i = 0; i < 2; i++) {
        string(&b, arrays[i].name);
        u32(&b, GGUF_VALUE_ARRAY);
        u32(&b, GGUF_VALUE_STRING);
        u64(&b, arrays[i].n);
        for (uint64_t k = 0; k < arrays[i].n; k++) {
            snprintf(text, sizeof text, "%llx word", (unsigned long long)(k * 40503));
            string(&b, text);
        }
    }
    for (uint32_t i = 0; i < 33; i++) {
        snprintf(text, sizeof text, "gpt-oss.key.%u", i);
        key_u32(&b, text, i);
    }
    uint64_t offset = 0;
    for (uint32_t i = 0; i < 459; i++) {
        snprintf(text, sizeof text, "blk.%u.tensor", i);
        tensor(&b, text, GGUF_Q8_0, 2880, 8600, offset);
        offset += 8600ull * 3060;
    }
    pad(&b);
    save(&b);
    assert_true(offset > 12000000000ull && b.size > 12000000);
    assert_int_equal(truncate(path, (off_t)(b.size + offset)), 0);
    free(b.bytes);
    clock_t before = clock();
    assert_int_equal(try_open(false), 0);
    double seconds = (double)(clock() - before) / CLOCKS_PER_SEC;
    print_message("%.3f s\n", seconds);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(seconds < 0.5);
#endif
    assert_int_equal(truncate(path, 0), 0);
}

/* ── flaws that have bitten readers of this format ─────────────────────────────────────────── */

/* The infos end at the last byte of the file: the padding to the data must not wrap or pass it. */
static void padding_does_not_wrap_after_the_check(void **state)
{
    (void)state;
    for (uint32_t alignment = 1; alignment <= 1u << 20; alignment *= 4) {
        struct blob b = start(3, 1, 1);
        key_u32(&b, "general.alignment", alignment);
        tensor(&b, "t", GGUF_F32, 1, 1, 0);
        size_t at = b.size;
        zeros(&b, (alignment - b.size % alignment) % alignment);
        u32(&b, 0);
        struct blob cut = {0};
        add(&cut, b.bytes, at);
        refuses(cut, "the file is cut short");
        accepts(b);
    }
    /* An offset that the padded start takes beyond 2^64. */
    struct blob b = start(3, 1, 1);
    key_u32(&b, "general.alignment", 1u << 20);
    tensor(&b, "t", GGUF_F32, 8, 8, UINT64_MAX - (1u << 20) + 1);
    zeros(&b, 1u << 21);
    refuses(b, "beyond what any file could hold");
}

/* Every tensor would fit by itself, their sum wraps to a small number. */
static void sums_of_tensor_sizes_do_not_wrap(void **state)
{
    (void)state;
    struct blob b = start(3, 3, 0);
    tensor(&b, "a", GGUF_F32, (uint64_t)1 << 60, 1, 0);
    tensor(&b, "b", GGUF_F32, (uint64_t)1 << 60, 1, (uint64_t)1 << 62);
    tensor(&b, "c", GGUF_F32, (uint64_t)1 << 60, 1, (uint64_t)1 << 63);
    pad(&b);
    zeros(&b, 256);
    refuses(b, "the file is cut short");
    b = start(3, 2, 0);
    tensor(&b, "a", GGUF_F32, 8, 8, 0);
    tensor(&b, "b", GGUF_F32, ((uint64_t)1 << 61) - 8, 1, 256); /* 2^63 − 32 bytes and 256 */
    pad(&b);
    zeros(&b, 512);
    refuses(b, "the file is cut short");
}

/* 64 elements lie in 256 bytes of data, 64 floats and one do not: bytes are counted, not elements. */
static void bytes_are_checked_and_not_elements(void **state)
{
    (void)state;
    accepts(one_tensor("t", GGUF_F32, 64, 1, 0));
    refuses(one_tensor("t", GGUF_F32, 256, 1, 0), "ends at byte 1120 of a file of 352 bytes");
    refuses(one_tensor("t", GGUF_F16, 130, 1, 0), "the file is cut short");
    accepts(one_tensor("t", GGUF_MXFP4, 480, 1, 0)); /* 15 blocks of 17 */
    refuses(one_tensor("t", GGUF_MXFP4, 512, 1, 0), "the file is cut short");
    refuses(one_tensor("t", GGUF_Q8_0, 256, 1, 0), "the file is cut short");
}

static void offsets_may_go_backwards_and_never_overlap(void **state)
{
    (void)state;
    accepts(two_tensors("a", 128, "b", 0));
    refuses(two_tensors("a", 128, "b", 96), "tensors b and a overlap");
    refuses(two_tensors("a", 128, "b", 112), "no multiple of the alignment 32");
    refuses(two_tensors("a", 224, "b", 0), "tensor a ends at byte");
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
        cmocka_unit_test(opens_a_file_of_12_gb_in_half_a_second),
        cmocka_unit_test(padding_does_not_wrap_after_the_check),
        cmocka_unit_test(sums_of_tensor_sizes_do_not_wrap),
        cmocka_unit_test(bytes_are_checked_and_not_elements),
        cmocka_unit_test(offsets_may_go_backwards_and_never_overlap),
        cmocka_unit_test(survives_flipped_bytes),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
