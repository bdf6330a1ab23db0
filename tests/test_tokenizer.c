/*
 * tokenizer: pieces, ids, classes and cleaned text are those of other people's libraries (the vectors
 * are written by scripts/tokenizer-vectors), and any bytes become text.
 */
#include "test.h"

#include "coordinator/pretokenize.h"
#include "coordinator/tokenizer.h"
#include "coordinator/unicode.h"

#define TINY    GPTOSS_SOURCE_DIR "/models/gptoss-tiny-mxfp4.gguf"
#define VECTORS GPTOSS_SOURCE_DIR "/tests/data/tokenizer-"

static char err[512];

static struct tokenizer *open_tokenizer(const char *path)
{
    struct gguf_file *file;
    struct tokenizer *t;
    if (gguf_open(&file, path, err, sizeof err) || tokenizer_create(&t, file, err, sizeof err))
        fail_msg("%s", err);
    gguf_close(file);
    return t;
}

/* Encodes in calls of `budget` bytes. */
static void encode(const struct tokenizer *t, const char *text, size_t size, size_t budget,
                   struct tokens *out)
{
    size_t position = 0;
    out->count = 0;
    while (tokenizer_encode(t, text, size, &position, budget, out) == 0)
        assert_true(budget > 0 && position < size);
    assert_int_equal(position, size);
}

static void decode(const struct tokenizer *t, const struct tokens *ids, struct text *out)
{
    text_clear(out);
    for (size_t i = 0; i < ids->count; i++) {
        size_t size;
        const char *bytes = tokenizer_bytes(t, ids->ids[i], &size);
        assert_non_null(bytes);
        text_add(out, bytes, size);
    }
}

/* ── vectors ───────────────────────────────────────────────────────────────────────────────── */

struct vectors {
    FILE *file;
    char *line;
    size_t capacity;
    unsigned number; /* of the line */
};

static struct vectors vectors_open(const char *path)
{
    struct vectors v = {.file = fopen(path, "r")};
    if (v.file == NULL)
        fail_msg("%s cannot be opened", path);
    return v;
}

/* The next line without its end; NULL and everything freed at the end. *rest: what follows the tab. */
static char *vectors_next(struct vectors *v, char **rest)
{
    ssize_t size;
    while ((size = getline(&v->line, &v->capacity, v->file)) > 0) {
        v->number++;
        if (v->number <= 2) /* two lines say what it is */
            continue;
        v->line[size - 1] = '\0';
        *rest = strchr(v->line, '\t');
        if (*rest != NULL)
            *(*rest)++ = '\0';
        return v->line;
    }
    free(v->line);
    fclose(v->file);
    return NULL;
}

static void add_utf8(struct text *out, uint32_t c)
{
    char b[4];
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n; i-- > 1; c >>= 6)
        b[i] = (char)(0x80 | (c & 0x3f));
    b[0] = (char)(n == 1 ? c : (0xf00u >> n & 0xf0u) | c);
    text_add(out, b, n);
}

static void unescape(const char *p, struct text *out)
{
    text_clear(out);
    while (*p != '\0') {
        if (*p != '\\') {
            text_add(out, p++, 1);
            continue;
        }
        char *end = (char *)p + 2;
        switch (p[1]) {
        case 'n': text_add(out, "\n", 1); break;
        case 'r': text_add(out, "\r", 1); break;
        case 't': text_add(out, "\t", 1); break;
        case '\\': text_add(out, "\\", 1); break;
        default: add_utf8(out, (uint32_t)strtoul(p + 3, &end, 16)); end++;
        }
        p = end;
    }
}

static void unhex(const char *p, struct text *out)
{
    text_clear(out);
    for (unsigned byte; sscanf(p, "%2x", &byte) == 1; p += 2) {
        char c = (char)byte;
        text_add(out, &c, 1);
    }
}

static void numbers(const char *p, struct tokens *out)
{
    out->count = 0;
    for (char *end; *p != '\0'; p = end)
        tokens_add(out, (uint32_t)strtoul(p, &end, 10));
}

static void expect(const struct vectors *v, const struct tokens *got, const struct tokens *want)
{
    for (size_t i = 0; i < got->count || i < want->count; i++)
        if (i >= got->count || i >= want->count || got->ids[i] != want->ids[i])
            fail_msg("line %u: number %zu is %u, want %u (%zu numbers, want %zu)", v->number, i,
                     i < got->count ? got->ids[i] : 0, i < want->count ? want->ids[i] : 0,
                     got->count, want->count);
}

static void knows_the_class_of_every_code_point(void **state)
{
    (void)state;
    struct vectors v = vectors_open(VECTORS "classes.txt");
    char *rest;
    unsigned first, class = 0, c = 0;
    for (char *line; (line = vectors_next(&v, &rest)) != NULL;) {
        unsigned next;
        assert_int_equal(sscanf(line, "%x %u", &first, &next), 2);
        for (; c < first; c++)
            if (unicode_class(c) != class)
                fail_msg("U+%04X is of class %d, want %u", c, (int)unicode_class(c), class);
        class = next;
    }
    for (; c < 0x110000; c++)
        assert_int_equal(unicode_class(c), class);
    assert_int_equal(unicode_class(UINT32_MAX), UNICODE_OTHER);
}

static void splits_text_into_the_pieces_of_the_expression(void **state)
{
    (void)state;
    struct vectors v = vectors_open(VECTORS "pieces.txt");
    struct text text = {0};
    struct tokens got = {0}, want = {0};
    char *rest;
    for (char *line; (line = vectors_next(&v, &rest)) != NULL;) {
        unescape(line, &text);
        numbers(rest, &want);
        got.count = 0;
        for (size_t at = 0; at < text.size; at += got.ids[got.count - 1])
            tokens_add(&got, (uint32_t)pretokenize_next(text.bytes + at, text.size - at));
        expect(&v, &got, &want);
    }
    assert_true(v.number > 3000);
    tokens_free(&want);
    tokens_free(&got);
    text_free(&text);
}

static void encodes_with_the_bundled_vocabulary(void **state)
{
    const struct tokenizer *t = *state;
    struct vectors v = vectors_open(VECTORS "tiny.txt");
    struct text text = {0}, back = {0};
    struct tokens got = {0}, want = {0};
    char *rest;
    for (char *line; (line = vectors_next(&v, &rest)) != NULL;) {
        unescape(line, &text);
        numbers(rest, &want);
        for (size_t budget = 0; budget < 8; budget = 2 * budget + 1) {
            encode(t, text.bytes, text.size, budget, &got);
            expect(&v, &got, &want);
        }
        decode(t, &got, &back);
        assert_int_equal(back.size, text.size);
        assert_memory_equal(back.bytes, text.bytes, text.size);
    }
    assert_true(v.number > 1000);
    tokens_free(&want);
    tokens_free(&got);
    text_free(&back);
    text_free(&text);
}

static void encodes_known_texts_with_the_full_vocabulary(void **state)
{
    (void)state;
    const char *path = getenv("GPTOSS_TEST_O200K"); /* a GGUF with the keys of gpt-oss */
    if (path == NULL)
        skip();
    static const struct {
        const char *text, *ids;
    } known[] = {
        {"Hello world", "13225 2375"},
        {"Hello, World!", "13225 11 5922 0"},
        {"  leading", "220 8117"},
        {"trailing  ", "371 24408 256"},
        {"a\n\nb", "64 279 65"},
        {"1234567", "7633 19354 22"},
        {"it's I'LL", "64190 3413 7454"},
        {"HelloWorld", "13225 13046"},
        {"ПриветМир", "23881 131903 4474 2479"},
        {"नमस्ते दुनिया", "998 1637 14681 628 64593"},
        {"日本語テキスト", "9048 40909 16056 18368 38236"},
        {"👍🏽", "82514 52622 121"},
        {"foo/bar//baz\n/x", "16660 106617 393 91457 198 22739"},
        {"\t\tx = 1;\r\n", "197 21395 314 220 16 610"},
        {"aaaaaaaaaaaaaaaaaaaa", "117525 117525 45037"},
        {"<|endoftext|>", "27 91 419 1440 919 91 29"},
        {"system", "17360"},
        {"developer", "77944"},
        {"user", "1428"},
        {"assistant", "173781"},
        {"analysis", "35644"},
        {"commentary", "12606 815"},
        {"final", "17196"},
        {" to=functions.get_weather", "316 28 44580 775 170154"},
    };
    struct tokenizer *t = open_tokenizer(path);
    struct tokens got = {0}, want = {0};
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++) {
        numbers(known[i].ids, &want);
        encode(t, known[i].text, strlen(known[i].text), 0, &got);
        expect(&(struct vectors){.number = i}, &got, &want);
    }
    assert_int_equal(tokenizer_size(t), 201088);
    assert_int_equal(tokenizer_limit(t), 200019);
    assert_int_equal(tokenizer_special(t, "<|call|>"), 200012);
    tokens_free(&want);
    tokens_free(&got);
    tokenizer_destroy(t);
}

/* ── any text ──────────────────────────────────────────────────────────────────────────────── */

static void gives_every_text_back_at_every_budget(void **state)
{
    const struct tokenizer *t = *state;
    static const char *const parts[] = {"a",  "A", "Ab", "é",  "中",     "\u0301", "7",
                                        "!",  "/", " ",  "  ", "\n",     "\r\n",   "\t",
                                        "'s", "'", "👍",  "ſ",  "\u3000", "ǅ"};
    uint64_t seed = 7;
    struct text text = {0}, back = {0};
    struct tokens all = {0}, some = {0};
    for (int round = 0; round < 3000; round++) {
        text_clear(&text);
        for (uint64_t n = test_random(&seed) % 60; n > 0; n--) {
            const char *part = parts[test_random(&seed) % (sizeof parts / sizeof *parts)];
            text_add(&text, part, strlen(part));
        }
        text_add(&text, "", 0);
        encode(t, text.bytes, text.size, 0, &all);
        encode(t, text.bytes, text.size, 1 + test_random(&seed) % 40, &some);
        expect(&(struct vectors){0}, &some, &all);
        decode(t, &all, &back);
        assert_int_equal(back.size, text.size);
        if (text.size > 0)
            assert_memory_equal(back.bytes, text.bytes, text.size);
    }
    tokens_free(&some);
    tokens_free(&all);
    text_free(&back);
    text_free(&text);
}

static void takes_a_megabyte_of_one_kind(void **state)
{
    const struct tokenizer *t = *state;
    static const char *const kinds[] = {"a",  "A",   " ",       "\n",     "\n ", "=",  "7",
                                        "中", "中A", "\u0301A", "\u0301", " a",  "'s", "the"};
    struct text text = {0}, back = {0};
    struct tokens ids = {0};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        text_clear(&text);
        while (text.size < 1000000)
            text_add(&text, kinds[k], strlen(kinds[k]));
        encode(t, text.bytes, text.size, 0, &ids);
        decode(t, &ids, &back);
        assert_int_equal(back.size, text.size);
        assert_memory_equal(back.bytes, text.bytes, text.size);
    }
    tokens_free(&ids);
    text_free(&back);
    text_free(&text);
}

static void cleans_malformed_utf8_as_others_do(void **state)
{
    (void)state;
    struct vectors v = vectors_open(VECTORS "utf8.txt");
    struct text raw = {0}, want = {0}, got = {0};
    char *rest;
    for (char *line; (line = vectors_next(&v, &rest)) != NULL;) {
        unhex(line, &raw);
        unhex(rest, &want);
        text_clear(&got);
        tokenizer_clean(raw.bytes, raw.size, &got);
        if (got.size != want.size || memcmp(got.bytes, want.bytes, want.size) != 0)
            fail_msg("line %u: %zu bytes, want %zu", v.number, got.size, want.size);
    }
    assert_true(v.number > 1000);
    text_free(&got);
    text_free(&want);
    text_free(&raw);
}

static bool whole_characters(const struct text *t)
{
    for (size_t at = 0, n; at < t->size; at += n)
        if ((n = text_utf8_length(t->bytes + at, t->size - at, NULL)) == 0)
            return false;
    return true;
}

/* However the bytes are cut, the stream gives what cleaning all of them gives, and at any time whole
 * characters. */
static void streams_whole_characters_however_bytes_are_cut(void **state)
{
    (void)state;
    static const unsigned char interesting[] = {0x41, 0x80, 0x8f, 0x90, 0x9f, 0xa0,
                                                0xbf, 0xc1, 0xc3, 0xe0, 0xe2, 0xed,
                                                0xef, 0xf0, 0xf3, 0xf4, 0xf5, 0xff};
    static const char good[] = "é中👍\u0800\ud7ff\ue000\uffff𐀀\U0010ffff";
    uint64_t seed = 3;
    struct text want = {0}, got = {0};
    for (int round = 0; round < 20000; round++) {
        unsigned char bytes[40];
        size_t size = test_random(&seed) % sizeof bytes;
        for (size_t i = 0; i < size; i++) {
            uint64_t random = test_random(&seed);
            if (random % 4 == 0)
                bytes[i] = interesting[random / 4 % sizeof interesting];
            else /* mostly as it would be in order */
                bytes[i] = (unsigned char)good[(i + (size_t)round) % (sizeof good - 1)];
        }
        text_clear(&want);
        tokenizer_clean(bytes, size, &want);
        struct utf8_stream stream = {0};
        text_clear(&got);
        for (size_t at = 0, n; at < size; at += n) {
            n = test_random(&seed) % 4;
            if (n > size - at)
                n = size - at;
            utf8_stream_add(&stream, bytes + at, n, &got);
            assert_true(whole_characters(&got));
        }
        utf8_stream_end(&stream, &got);
        assert_int_equal(got.size, want.size);
        if (want.size > 0)
            assert_memory_equal(got.bytes, want.bytes, want.size);
        assert_int_equal(stream.n_held, 0);
    }
    text_free(&got);
    text_free(&want);
}

static void streams_a_character_as_soon_as_it_is_whole(void **state)
{
    (void)state;
    struct utf8_stream stream = {0};
    struct text out = {0};
    utf8_stream_add(&stream, "x\xf0\x9f", 3, &out);
    assert_int_equal(out.size, 1);
    utf8_stream_add(&stream, "\x91", 1, &out);
    assert_int_equal(out.size, 1);
    utf8_stream_add(&stream, "\x8d", 1, &out);
    assert_string_equal(out.bytes, "x👍");
    utf8_stream_end(&stream, &out);
    assert_string_equal(out.bytes, "x👍");
    text_free(&out);
}

/* ── special tokens ────────────────────────────────────────────────────────────────────────── */

static void knows_special_tokens_by_name_and_never_in_text(void **state)
{
    const struct tokenizer *t = *state;
    static const char *const names[] = {"<|startoftext|>", "<|endoftext|>", "<|return|>",
                                        "<|constrain|>",   "<|channel|>",   "<|start|>",
                                        "<|end|>",         "<|message|>",   "<|call|>"};
    struct tokens ids = {0};
    assert_int_equal(tokenizer_size(t), 4096);
    assert_int_equal(tokenizer_limit(t), 4096);
    for (uint32_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t size;
        uint32_t id = 4086 + i;
        assert_int_equal(tokenizer_special(t, names[i]), id);
        assert_true(tokenizer_is_special(t, id));
        assert_memory_equal(tokenizer_bytes(t, id, &size), names[i], strlen(names[i]));
        assert_int_equal(size, strlen(names[i]));
        bool end = i == 1 || i == 2 || i == 8;
        assert_int_equal(tokenizer_is_end(t, id), end);
        encode(t, names[i], size, 0, &ids);
        assert_true(ids.count > 1);
        for (size_t k = 0; k < ids.count; k++)
            assert_false(tokenizer_is_special(t, ids.ids[k]));
    }
    assert_int_equal(tokenizer_special(t, "<|no|>"), -1);
    assert_int_equal(tokenizer_special(t, "the"), -1);
    assert_false(tokenizer_is_special(t, 300));
    assert_false(tokenizer_is_special(t, 4096));
    assert_false(tokenizer_is_end(t, UINT32_MAX));
    size_t size;
    assert_null(tokenizer_bytes(t, 4096, &size));
    tokens_free(&ids);
}

static int open_tiny(void **state)
{
    *state = open_tokenizer(TINY);
    return 0;
}

static int close_tiny(void **state)
{
    tokenizer_destroy(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(knows_the_class_of_every_code_point),
        cmocka_unit_test(splits_text_into_the_pieces_of_the_expression),
        cmocka_unit_test(encodes_with_the_bundled_vocabulary),
        cmocka_unit_test(encodes_known_texts_with_the_full_vocabulary),
        cmocka_unit_test(gives_every_text_back_at_every_budget),
        cmocka_unit_test(takes_a_megabyte_of_one_kind),
        cmocka_unit_test(cleans_malformed_utf8_as_others_do),
        cmocka_unit_test(streams_whole_characters_however_bytes_are_cut),
        cmocka_unit_test(streams_a_character_as_soon_as_it_is_whole),
        cmocka_unit_test(knows_special_tokens_by_name_and_never_in_text),
    };
    return cmocka_run_group_tests(tests, open_tiny, close_tiny);
}
