/* test_base: map, text, table, log, clock. */
#include "tests/test.h"

#include <unistd.h>

#include "base/base.h"

/* ── map ───────────────────────────────────────────────────────────────────────────────────── */

static void map_holds_what_a_plain_array_holds(void **state)
{
    (void)state;
    enum { KEYS = 600 };
    uint32_t want[KEYS];
    memset(want, 0xff, sizeof want);
    size_t count = 0;
    uint64_t random = 1;
    struct map *map = map_create(0);
    for (int i = 0; i < 200000; i++) {
        size_t k = test_random(&random) % KEYS;
        uint64_t key = k << (k % 3 == 0 ? 48 : 0); /* some that differ in the high bits alone */
        if (k == 0 || test_random(&random) % 2 == 0) {
            count += want[k] == MAP_NONE;
            want[k] = (uint32_t)test_random(&random) >> 1;
            map_set(map, key, want[k]);
        } else {
            count -= want[k] != MAP_NONE;
            want[k] = MAP_NONE;
            map_remove(map, key);
        }
        size_t other = test_random(&random) % KEYS;
        assert_int_equal(map_get(map, other << (other % 3 == 0 ? 48 : 0)), want[other]);
        assert_int_equal(map_count(map), count);
    }
    map_destroy(map);
    map_destroy(NULL);
}

static void map_set_of_none_removes(void **state)
{
    (void)state;
    struct map *map = map_create(1000);
    map_set(map, UINT64_MAX, 7);
    map_set(map, UINT64_MAX, MAP_NONE);
    assert_int_equal(map_count(map), 0);
    assert_int_equal(map_get(map, UINT64_MAX), MAP_NONE);
    map_destroy(map);
}

static void hashes_of_near_inputs_are_far_apart(void **state)
{
    (void)state;
    unsigned char bytes[33] = {0};
    uint64_t seen[4096];
    size_t n = 0;
    for (size_t size = 0; size <= 33; size++) /* zeros of every length differ */
        seen[n++] = map_hash(bytes, size, 0);
    for (size_t bit = 0; bit < 33 * 8; bit++) {
        bytes[bit / 8] ^= (unsigned char)(1u << bit % 8);
        seen[n++] = map_hash(bytes, 33, 0);
        seen[n++] = map_hash(bytes, 33, 1);
        uint64_t flipped = map_hash(bytes, 33, 0) ^ map_hash((unsigned char[33]){0}, 33, 0);
        int bits = __builtin_popcountll(flipped);
        assert_in_range(bits, 12, 52);
        bytes[bit / 8] = 0;
    }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            assert_true(seen[i] != seen[j]);
}

/* ── text ──────────────────────────────────────────────────────────────────────────────────── */

static void json_strings_escape_and_replace_what_is_invalid(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t size;
        const char *json;
    } cases[] = {
        {"", 0, "\"\""},
        {"a\"b\\c", 5, "\"a\\\"b\\\\c\""},
        {"\n\r\t\x01\x7f\0z", 7, "\"\\n\\r\\t\\u0001\\u007f\\u0000z\""},
        {"Ἑλλάς 🏛", 16, "\"Ἑλλάς 🏛\""},
        {"a\xff"
         "b",
         3,
         "\"a\xef\xbf\xbd"
         "b\""},
        {"\xf0\x9f\x8f", 3, "\"\xef\xbf\xbd\""},                         /* cut: one part */
        {"\xf0\x9f\x8fx", 4, "\"\xef\xbf\xbdx\""},                       /* cut in the middle */
        {"\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""}, /* a surrogate: three */
        {"\xc0\xaf", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\""},                 /* overlong: two */
        {"\xe2\x82\xe2\x82\xac", 5, "\"\xef\xbf\xbd€\""},
    };
    struct text t = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        text_clear(&t);
        text_json_string(&t, cases[i].bytes, cases[i].size);
        assert_string_equal(t.bytes, cases[i].json);
        assert_int_equal(t.size, strlen(cases[i].json));
    }
    text_free(&t);
    text_free(&t);
}

static void text_grows_and_stays_terminated(void **state)
{
    (void)state;
    struct text t = {0};
    text_clear(&t);
    text_add(&t, "", 0);
    assert_string_equal(t.bytes, "");
    for (int i = 0; i < 1000; i++)
        text_print(&t, "%d,", i);
    assert_int_equal(t.size, strlen(t.bytes));
    assert_string_equal(t.bytes + t.size - 8, "998,999,");
    text_free(&t);
}

/* Decodes without looking at how text_utf8_length does it. */
static size_t plain_utf8_length(const unsigned char *p, size_t size)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = p[0] < 0x80         ? 1
               : (p[0] >> 5) == 6  ? 2
               : (p[0] >> 4) == 14 ? 3
               : (p[0] >> 3) == 30 ? 4
                                   : 0;
    if (n == 0 || n > size)
        return 0;
    uint32_t c = n == 1 ? p[0] : p[0] & (0xffu >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if (p[i] >> 6 != 2)
            return 0;
        c = c << 6 | (p[i] & 0x3f);
    }
    return c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : n;
}

static void utf8_lengths_are_those_of_a_plain_decoder(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 1u << 24; i++) { /* all of three bytes, then a continuation */
        unsigned char p[4] = {i & 0xff, i >> 8 & 0xff, i >> 16, 0xbf};
        size_t size = p[0] >= 0xf0 ? 4 : 3;
        size_t got = text_utf8_length(p, size, NULL);
        if (got != plain_utf8_length(p, size))
            fail_msg("%02x %02x %02x: %zu", p[0], p[1], p[2], got);
    }
}

static void utf8_incomplete_means_that_more_bytes_could_help(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 1u << 16; i++) {
        unsigned char p[4] = {i & 0xff, i >> 8, 0, 0};
        for (size_t size = 1; size <= 2; size++) {
            bool could = false, incomplete;
            for (unsigned c = 0; c < 256 && !could && p[0] >= 0xc0; c++) {
                unsigned char q[4] = {p[0], size > 1 ? p[1] : (unsigned char)c, 0x80, 0x80};
                for (size_t n = size + 1; n <= 4; n++)
                    could = could || plain_utf8_length(q, n) > size;
                if (size > 1)
                    break;
            }
            size_t length = text_utf8_length(p, size, &incomplete);
            could = could && plain_utf8_length(p, size) == 0;
            if (incomplete != could)
                fail_msg("%02x %02x, %zu bytes: length %zu, incomplete %d", p[0], p[1], size,
                         length, incomplete);
        }
    }
}

static void sizes_and_times_are_for_people(void **state)
{
    (void)state;
    char b[32];
    assert_string_equal(text_bytes(b, 0), "0 B");
    assert_string_equal(text_bytes(b, 1023), "1023 B");
    assert_string_equal(text_bytes(b, 1024), "1.00 KiB");
    assert_string_equal(text_bytes(b, 12101107712u), "11.27 GiB");
    assert_string_equal(text_bytes(b, (1u << 20) - 1), "1.00 MiB");
    assert_string_equal(text_bytes(b, UINT64_MAX), "16.00 EiB");
    assert_string_equal(text_seconds(b, 0), "0 s");
    assert_string_equal(text_seconds(b, 4e-9), "4 ns");
    assert_string_equal(text_seconds(b, 830e-6), "830 µs");
    assert_string_equal(text_seconds(b, 0.0123), "12.3 ms");
    assert_string_equal(text_seconds(b, 0.9999), "1.00 s");
    assert_string_equal(text_seconds(b, 1.24), "1.24 s");
    assert_string_equal(text_seconds(b, 59.999), "1 min 00 s");
    assert_string_equal(text_seconds(b, 61), "1 min 01 s");
    assert_string_equal(text_seconds(b, 3 * 3600 + 120), "3 h 02 min");
    assert_string_equal(text_seconds(b, 90000), "1 d 01 h");
    assert_string_equal(text_seconds(b, -1.5), "-1.50 s");
    assert_string_equal(text_seconds(b, (double)NAN), "unknown");
}

/* ── table ─────────────────────────────────────────────────────────────────────────────────── */

static void prints(const struct table *table, enum table_format format, const char *want)
{
    char *got = NULL;
    size_t size;
    FILE *out = open_memstream(&got, &size);
    table_print(table, format, out);
    fclose(out);
    assert_string_equal(got, want);
    free(got);
}

static void tables_line_up_in_every_format(void **state)
{
    (void)state;
    struct table *table = table_create(3, (const char *[]){"name", "size", "what|is"});
    table_row(table, (const char *[]){"µ", "1.5 GiB", "a \"b\", c"});
    table_row(table, (const char *[]){"longer", "-", ""});
    prints(table, TABLE_TEXT,
           "name       size  what|is\n"
           "µ       1.5 GiB  a \"b\", c\n"
           "longer        -  \n");
    prints(table, TABLE_MARKDOWN,
           "| name   |    size | what\\|is |\n"
           "| ------ | ------: | -------- |\n"
           "| µ      | 1.5 GiB | a \"b\", c |\n"
           "| longer |       - |          |\n");
    prints(table, TABLE_CSV,
           "name,size,what|is\n"
           "µ,1.5 GiB,\"a \"\"b\"\", c\"\n"
           "longer,-,\n");
    table_destroy(table);
    table_destroy(NULL);
}

/* ── log ───────────────────────────────────────────────────────────────────────────────────── */

static void log_writes_one_clean_line_a_record(void **state)
{
    (void)state;
    char got[20000], huge[12000];
    FILE *file = tmpfile();
    int err = dup(2);
    memset(huge, 'x', sizeof huge - 1);
    huge[sizeof huge - 1] = '\0';
    setenv("GPTOSS_LOG", "info", 1);
    dup2(fileno(file), 2);
    log_open("rank 3");
    log_info("two\nlines and \033[31mred\n");
    log_debug("not this");
    log_error("%s", huge);
    dup2(err, 2);
    close(err);
    rewind(file);
    size_t size = fread(got, 1, sizeof got - 1, file);
    got[size] = '\0';
    fclose(file);
    char *end = strchr(got, '\n');
    assert_non_null(end);
    *end = '\0';
    /* 2026-11-23T15:41:25.123Z info   rank 3  … */
    assert_int_equal(got[10], 'T');
    assert_int_equal(got[23], 'Z');
    assert_string_equal(got + 24, " info  rank 3  two lines and ?[31mred");
    assert_int_equal(got[size - 1], '\n');
    assert_ptr_equal(strchr(end + 1, '\n'), got + size - 1);
    assert_true(size < 9000);
    assert_false(log_enabled(LOG_DEBUG));
    assert_true(log_enabled(LOG_WARN));
}

static void the_clock_goes_forward(void **state)
{
    (void)state;
    uint64_t a = clock_us();
    double s = clock_seconds();
    usleep(2000);
    assert_true(clock_us() >= a + 2000);
    assert_true(clock_seconds() >= s + 0.002 && clock_seconds() < s + 30);
    assert_true(fabs(clock_seconds() - (double)clock_us() * 1e-6) < 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(map_holds_what_a_plain_array_holds),
        cmocka_unit_test(map_set_of_none_removes),
        cmocka_unit_test(hashes_of_near_inputs_are_far_apart),
        cmocka_unit_test(json_strings_escape_and_replace_what_is_invalid),
        cmocka_unit_test(text_grows_and_stays_terminated),
        cmocka_unit_test(utf8_lengths_are_those_of_a_plain_decoder),
        cmocka_unit_test(utf8_incomplete_means_that_more_bytes_could_help),
        cmocka_unit_test(sizes_and_times_are_for_people),
        cmocka_unit_test(tables_line_up_in_every_format),
        cmocka_unit_test(log_writes_one_clean_line_a_record),
        cmocka_unit_test(the_clock_goes_forward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
