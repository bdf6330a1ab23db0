/*
 * gguf: models in several files, opened by the first; parts that are missing, doubled, mixed up or
 * damaged are refused with a sentence.
 */
#include "test.h"

#include "gguf_blob.h"

#define PARTS 3

/* folder/model-0000N-of-00003.gguf */
static char part_paths[PARTS][128];

struct shape {
    uint32_t count, no[PARTS], total; /* as the parts say */
    const char *names[PARTS];         /* of the tensor in each; NULL: none */
    uint32_t alignment[PARTS];
};

static const struct shape sound = {
    .count = PARTS, .no = {0, 1, 2}, .total = 3, .names = {"a", "b", "c"}};

static void key_u16(struct blob *b, const char *name, uint16_t value)
{
    string(b, name);
    u32(b, GGUF_VALUE_U16);
    add(b, &value, 2);
}

static void write_part(const char *to, const struct shape *shape, uint32_t i)
{
    uint32_t alignment = shape->alignment[i] ? shape->alignment[i] : 32;
    struct blob b = start(3, shape->names[i] != NULL, 3 + (i == 0) + (shape->alignment[i] != 0));
    if (i == 0) {
        string(&b, "general.name");
        u32(&b, GGUF_VALUE_STRING);
        string(&b, "split");
    }
    key_u16(&b, "split.no", (uint16_t)shape->no[i]);
    key_u16(&b, "split.count", (uint16_t)shape->count);
    string(&b, "split.tensors.count");
    u32(&b, GGUF_VALUE_I32);
    u32(&b, shape->total);
    if (shape->alignment[i])
        key_u32(&b, "general.alignment", alignment);
    if (shape->names[i])
        tensor(&b, shape->names[i], GGUF_F32, 8, 2, 0);
    zeros(&b, (alignment - b.size % alignment) % alignment);
    unsigned char data[64];
    memset(data, 'A' + (int)i, sizeof data);
    add(&b, data, sizeof data);
    FILE *out = fopen(to, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(b.bytes, 1, b.size, out), b.size);
    fclose(out);
    free(b.bytes);
}

static void write_parts(const struct shape *shape)
{
    for (uint32_t i = 0; i < PARTS; i++)
        write_part(part_paths[i], shape, i);
}

static void refuses(const char *first, const char *words)
{
    struct gguf_file *file;
    strcpy(err, "no sentence");
    if (!gguf_open(&file, first, err, sizeof err))
        fail_msg("opened, though it should say: %s", words);
    assert_null(file);
    if (!strstr(err, words))
        fail_msg("says \"%s\", not \"%s\"", err, words);
}

static void opens_all_parts_by_the_first(void **state)
{
    (void)state;
    struct gguf_file *file;
    struct shape shape = sound;
    shape.alignment[1] = 256; /* each part has its own */
    write_parts(&shape);
    if (gguf_open(&file, part_paths[0], err, sizeof err))
        fail_msg("%s", err);
    assert_int_equal(gguf_n_tensors(file), 3);
    assert_int_equal(gguf_n_parts(file), 3);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < PARTS; i++) {
        const struct gguf_tensor *t = gguf_tensor_find(file, shape.names[i]);
        assert_ptr_equal(t, gguf_tensor_at(file, i));
        assert_int_equal(t->part, i);
        assert_string_equal(gguf_part_path(file, i), part_paths[i]);
        for (int k = 0; k < 64; k++)
            assert_int_equal(t->data[k], 'A' + (int)i);
        FILE *in = fopen(part_paths[i], "rb");
        fseek(in, 0, SEEK_END);
        bytes += (uint64_t)ftell(in);
        fclose(in);
    }
    assert_int_equal(gguf_tensor_at(file, 1)->offset % 256, 0);
    assert_int_equal(gguf_file_bytes(file), bytes);
    assert_null(gguf_part_path(file, 3));
    assert_non_null(gguf_key_find(file, "general.name"));
    gguf_close(file);

    shape = (struct shape){.count = PARTS, .no = {0, 1, 2}, .total = 2, .names = {NULL, "b", "c"}};
    write_parts(&shape); /* the first may hold none */
    if (gguf_open(&file, part_paths[0], err, sizeof err))
        fail_msg("%s", err);
    assert_int_equal(gguf_n_tensors(file), 2);
    gguf_close(file);
}

/* The bundled model, cut after tensor 200 and after tensor 300. */
static void a_model_in_parts_is_the_model_in_one(void **state)
{
    (void)state;
    struct gguf_file *whole, *file;
    struct gguf_model *model;
    const uint64_t ends[PARTS] = {200, 300, 459};
    assert_int_equal(
        gguf_open(&whole, GPTOSS_SOURCE_DIR "/models/gptoss-tiny-mxfp4.gguf", err, sizeof err), 0);
    for (uint32_t part = 0; part < PARTS; part++) {
        struct gguf_writer *w;
        uint64_t first = part ? ends[part - 1] : 0;
        assert_int_equal(gguf_writer_create(&w, part_paths[part], err, sizeof err), 0);
        for (uint64_t i = 0; !part && i < gguf_n_keys(whole); i++)
            gguf_writer_key(w, gguf_key_at(whole, i));
        gguf_writer_u32(w, "split.no", part);
        gguf_writer_u32(w, "split.count", PARTS);
        gguf_writer_u32(w, "split.tensors.count", 459);
        for (uint64_t i = first; i < ends[part]; i++) {
            const struct gguf_tensor *t = gguf_tensor_at(whole, i);
            gguf_writer_tensor(w, t->name, t->type, t->n_dims, t->ne);
        }
        assert_int_equal(gguf_writer_begin(w, err, sizeof err), 0);
        for (uint64_t i = first; i < ends[part]; i++) {
            const struct gguf_tensor *t = gguf_tensor_at(whole, i);
            assert_int_equal(gguf_writer_data(w, t->data, t->bytes, err, sizeof err), 0);
        }
        assert_int_equal(gguf_writer_finish(w, err, sizeof err), 0);
        gguf_writer_destroy(w);
    }
    if (gguf_open(&file, part_paths[0], err, sizeof err) ||
        gguf_model_create(&model, file, err, sizeof err))
        fail_msg("%s", err);
    assert_int_equal(gguf_n_tensors(file), 459);
    assert_int_equal(model->bytes, 16533696 - 156864);
    for (uint64_t i = 0; i < 459; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(whole, i);
        const struct gguf_tensor *twin = gguf_tensor_find(file, t->name);
        assert_int_equal(twin->bytes, t->bytes);
        assert_memory_equal(twin->data, t->data, t->bytes);
    }
    gguf_model_destroy(model);
    gguf_close(file);
    gguf_close(whole);
}

static void refuses_to_be_given_another_part_than_the_first(void **state)
{
    (void)state;
    write_parts(&sound);
    refuses(part_paths[1], "is part 2 of 3 of a split model: give the first, ");
    assert_non_null(strstr(err, part_paths[0]));
}

static void refuses_parts_that_are_not_there_or_cut_short(void **state)
{
    (void)state;
    write_parts(&sound);
    assert_int_equal(truncate(part_paths[2], 100), 0);
    refuses(part_paths[0], "the file is cut short, fetch it again");
    assert_int_equal(strncmp(err, part_paths[2], strlen(part_paths[2])), 0);
    unlink(part_paths[2]);
    refuses(part_paths[0], "is part 1 of 3 of a split model: fetch all parts into one folder");
    assert_int_equal(strncmp(err, part_paths[2], strlen(part_paths[2])), 0);
}

static void refuses_parts_that_contradict_each_other(void **state)
{
    (void)state;
    struct shape shape = sound;
    shape.no[2] = 1;
    write_parts(&shape);
    refuses(part_paths[0], "says that it is part 2 of 3, and is no part of the same model as");
    shape = sound;
    write_parts(&shape);
    shape.count = 4;
    write_part(part_paths[1], &shape, 1);
    refuses(part_paths[0], "says that it is part 2 of 4");
    shape = sound;
    shape.total = 4;
    write_parts(&shape);
    refuses(part_paths[0], "says that its parts have 4 tensors, and they have 3");
    shape = sound;
    shape.names[2] = "a";
    write_parts(&shape);
    refuses(part_paths[0], "tensor a is there, and in ");
    shape = sound;
    shape.no[0] = 3;
    write_parts(&shape);
    refuses(part_paths[0], "says that it is part 4 of 3: the file is damaged");
    shape.no[0] = 0;
    shape.total = UINT32_MAX; /* −1 */
    write_parts(&shape);
    refuses(part_paths[0], "split.tensors.count is -1, not between");
}

static void refuses_a_part_under_another_name(void **state)
{
    (void)state;
    write_part(path, &sound, 0);
    refuses(path, "its name does not end in -00001-of-00003.gguf");
    write_part(path, &sound, 1);
    refuses(path, "its name does not end in -00002-of-00003.gguf");
    struct shape alone = sound;
    alone.count = 1; /* a part of one is the whole */
    write_part(path, &alone, 0);
    struct gguf_file *file;
    assert_int_equal(gguf_open(&file, path, err, sizeof err), 0);
    assert_int_equal(gguf_n_parts(file), 1);
    gguf_close(file);
}

static void digests_cover_the_headers_of_all_parts(void **state)
{
    (void)state;
    uint64_t digests[3];
    for (int i = 0; i < 3; i++) {
        struct shape shape = sound;
        shape.names[2] = i == 1 ? "d" : "c";
        struct gguf_file *file;
        write_parts(&shape);
        assert_int_equal(gguf_open(&file, part_paths[0], err, sizeof err), 0);
        digests[i] = gguf_header_digest(file);
        gguf_close(file);
    }
    assert_true(digests[0] == digests[2]);
    assert_true(digests[0] != digests[1]);
}

static int make_paths(void **state)
{
    if (make_path(state))
        return -1;
    for (uint32_t i = 0; i < PARTS; i++)
        snprintf(part_paths[i], sizeof part_paths[i], "%s-%05u-of-%05u.gguf", path, i + 1, PARTS);
    return 0;
}

static int remove_paths(void **state)
{
    for (uint32_t i = 0; i < PARTS; i++)
        unlink(part_paths[i]);
    return remove_path(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_all_parts_by_the_first),
        cmocka_unit_test(a_model_in_parts_is_the_model_in_one),
        cmocka_unit_test(refuses_to_be_given_another_part_than_the_first),
        cmocka_unit_test(refuses_parts_that_are_not_there_or_cut_short),
        cmocka_unit_test(refuses_parts_that_contradict_each_other),
        cmocka_unit_test(refuses_a_part_under_another_name),
        cmocka_unit_test(digests_cover_the_headers_of_all_parts),
    };
    return cmocka_run_group_tests(tests, make_paths, remove_paths);
}
