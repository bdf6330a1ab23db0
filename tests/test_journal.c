/*
 * The journal: the file (whole records come back, whatever was done to it), and the coordinator that goes
 * on from records, in a fake world (world.h).
 */
#include "tests/test.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "coordinator/journal.h"
#include "coordinator/records.h"
#include "tests/tiny.h"
#include "tests/world.h"

static char path[256], err[512];

/* ── the file ──────────────────────────────────────────────────────────────────────────────── */

struct seen {
    char text[4096]; /* kind and serial of each record */
    size_t n;
};

static int see(void *arg, const void *bytes, size_t size, char *why, size_t why_size)
{
    struct seen *seen = arg;
    const uint8_t *p = bytes;
    (void)why;
    (void)why_size;
    assert_true(size >= 9);
    size_t at = strlen(seen->text);
    if (at < sizeof seen->text - 16)
        snprintf(seen->text + at, sizeof seen->text - at, "%c%u ", "?ATE"[p[0] & 3], p[1]);
    seen->n++;
    return 0;
}

static struct journal *open_it(struct seen *seen, struct journal_report *report)
{
    struct journal *j;
    *seen = (struct seen){0};
    if (journal_open(&j, path, 7, see, seen, report, err, sizeof err))
        fail_msg("%s", err);
    return j;
}

static void append(struct journal *j, enum record_kind kind, uint8_t serial, size_t size, bool soon)
{
    uint8_t *bytes = calloc(1, size);
    bytes[0] = (uint8_t)kind;
    bytes[1] = serial;
    journal_append(j, bytes, size, soon);
    free(bytes);
}

static void wait_until_kept(struct journal *j, uint64_t records)
{
    uint64_t kept = 0;
    for (int i = 0; i < 2000 && kept < records; i++) {
        assert_int_equal(journal_kept(j, &kept, err, sizeof err), 0);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    assert_true(kept >= records);
}

static void write_some(void)
{
    struct seen seen;
    struct journal_report report;
    unlink(path);
    struct journal *j = open_it(&seen, &report);
    append(j, RECORD_ACCEPT, 1, 50, true);
    append(j, RECORD_ACCEPT, 2, 60, true);
    append(j, RECORD_TOKENS, 1, 20, false);
    append(j, RECORD_END, 1, 9, false);
    append(j, RECORD_TOKENS, 2, 21, false);
    append(j, RECORD_ACCEPT, 3, 9, true);
    wait_until_kept(j, 6);
    append(j, RECORD_TOKENS, 3, 22, false); /* nobody waits for it: it is written at the end */
    journal_close(j);
}

static void what_is_over_does_not_come_back(void **state)
{
    (void)state;
    struct seen seen;
    struct journal_report report;
    write_some();
    struct journal *j = open_it(&seen, &report);
    assert_int_equal(report.records, 7);
    assert_int_equal(report.cut_bytes, 0);
    assert_string_equal(seen.text, "A2 T2 A3 T3 ");
    journal_close(j);
    j = open_it(&seen, &report); /* it was written anew */
    assert_int_equal(report.records, 4);
    struct journal *second;
    assert_int_equal(journal_open(&second, path, 7, see, &seen, &report, err, sizeof err), -1);
    assert_non_null(strstr(err, "another coordinator"));
    journal_close(j);
    assert_int_equal(journal_open(&j, path, 8, see, &seen, &report, err, sizeof err), -1);
    assert_non_null(strstr(err, "another model"));
}

static size_t read_file(uint8_t *bytes, size_t most)
{
    FILE *journal_file = fopen(path, "rb");
    assert_non_null(journal_file);
    size_t size = fread(bytes, 1, most, journal_file);
    fclose(journal_file);
    return size;
}

static void write_file(const uint8_t *bytes, size_t size)
{
    FILE *journal_file = fopen(path, "wb");
    assert_non_null(journal_file);
    assert_int_equal(fwrite(bytes, 1, size, journal_file), size);
    fclose(journal_file);
}

static void a_file_that_is_cut_anywhere_gives_the_records_before(void **state)
{
    (void)state;
    uint8_t bytes[4096];
    struct seen seen;
    struct journal_report report;
    write_some();
    size_t size = read_file(bytes, sizeof bytes), before = 0;
    for (size_t cut = 0; cut <= size; cut++) {
        write_file(bytes, cut);
        journal_close(open_it(&seen, &report));
        assert_true(report.records >= before); /* the more, the longer it is */
        before = report.records;
    }
    assert_int_equal(before, 7);
}

static void a_file_with_any_wrong_byte_is_refused_or_ends_there(void **state)
{
    (void)state;
    uint8_t bytes[4096];
    struct seen seen;
    struct journal_report report;
    struct journal *j;
    write_some();
    size_t size = read_file(bytes, sizeof bytes);
    for (size_t i = 0; i < size; i++) {
        bytes[i] ^= (uint8_t)(1 << i % 8);
        write_file(bytes, size);
        if (journal_open(&j, path, 7, see, &seen, &report, err, sizeof err) == 0) {
            assert_true(i >= 32);
            assert_true(report.records < 7 && report.cut_bytes > 0);
            journal_close(j);
        } else {
            assert_true(i < 32); /* the header; the file is left alone */
            uint8_t after[4096];
            assert_int_equal(read_file(after, sizeof after), size);
            assert_memory_equal(after, bytes, size);
        }
        bytes[i] ^= (uint8_t)(1 << i % 8);
    }
}

static void it_is_written_anew_when_it_has_grown(void **state)
{
    (void)state;
    struct seen seen;
    struct journal_report report;
    struct stat status;
    unlink(path);
    struct journal *j = open_it(&seen, &report);
    journal_set_bound(j, 10000);
    append(j, RECORD_ACCEPT, 200, 100, true);
    for (unsigned i = 1; i < 100; i++) {
        append(j, RECORD_ACCEPT, (uint8_t)i, 1000, true);
        append(j, RECORD_END, (uint8_t)i, 9, false);
        wait_until_kept(j, 2 * i);
    }
    journal_close(j);
    assert_int_equal(stat(path, &status), 0);
    assert_true(status.st_size < 13000);
    journal_close(open_it(&seen, &report));
    assert_string_equal(seen.text, "A200 ");
}

/* ── the coordinator ───────────────────────────────────────────────────────────────────────── */

static int open_journal(void **state)
{
    snprintf(path, sizeof path, "/tmp/gptoss-test-journal-%d", (int)getpid());
    return open_model(state);
}

static int close_journal(void **state)
{
    char name[300];
    const char *const suffixes[] = {"", ".lock", ".new", ".damaged"};
    for (size_t i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "%s%s", path, suffixes[i]);
        unlink(name);
    }
    return close_model(state);
}

static const struct coordinator_options journaled = {.context = 512, .journal = true};

/* The coordinator dies; the next one has the first `n` records. */
static void restart(struct fake *f, size_t n)
{
    struct coordinator_options options = journaled;
    options.model = model;
    options.model_path = "/models/fake.gguf";
    options.seed = ++f->random; /* as another run's */
    fake_kill(f);
    coordinator_destroy(f->c);
    if (coordinator_create(&f->c, &options, err, sizeof err))
        fail_msg("%s", err);
    for (size_t i = 0; i < n; i++)
        if (coordinator_restore(f->c, f->records[i].bytes, f->records[i].size, f->now, err,
                                sizeof err))
            fail_msg("record %zu: %s", i, err);
    while (f->n_records > n)
        text_free(&f->records[--f->n_records]);
    fake_pump(f);
    fake_start(f);
}

static void resume(struct fake *f, uint32_t request)
{
    char id[8];
    snprintf(id, sizeof id, "r%04u", request);
    Gptoss__Resume ask = GPTOSS__RESUME__INIT;
    ask.request_id = core_binary(id, 5);
    ask.from_index = (uint32_t)f->requests[request].tokens.count;
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_RESUME;
    m.resume = &ask;
    fake_send(f, request, &m);
}

static void accepted_requests_survive_any_number_of_restarts(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct fake *f = fake_create(model, 2, journaled);
        f->random = seed;
        fake_start(f);
        enum { REQUESTS = 12 };
        uint32_t ids[REQUESTS][40], n[REQUESTS], most[REQUESTS];
        for (uint32_t i = 0; i < REQUESTS; i++) {
            n[i] = 1 + (uint32_t)(test_random(&f->random) % 40);
            most[i] = 1 + (uint32_t)(test_random(&f->random) % 60);
            for (uint32_t k = 0; k < n[i]; k++)
                ids[i][k] = (uint32_t)(test_random(&f->random) % 3000);
            fake_ask(f, i, i, ids[i], n[i], most[i], seed + i);
        }
        fake_tick(f, 10);
        size_t accepted = f->n_records; /* on disk; all after it may be lost */
        for (int kill = 0; kill < 6; kill++) {
            for (uint64_t steps = test_random(&f->random) % 12; steps; steps--)
                fake_step(f);
            size_t all = f->n_records - accepted;
            restart(f, accepted + (all ? test_random(&f->random) % (all + 1) : 0));
            for (uint32_t i = 0; i < REQUESTS; i++)
                if (!f->requests[i].finished)
                    resume(f, i);
        }
        fake_run(f);
        for (uint32_t i = 0; i < REQUESTS; i++) {
            struct tokens want = {0};
            fake_answer(f->c, ids[i], n[i], most[i], seed + i, &want);
            if (!f->requests[i].finished || f->requests[i].refused)
                fail_msg("seed %u, request %u: %s", (unsigned)seed, i, f->requests[i].refusal);
            assert_int_equal(f->requests[i].tokens.count, want.count);
            assert_memory_equal(f->requests[i].tokens.ids, want.ids, want.count * sizeof *want.ids);
            tokens_free(&want);
        }
        fake_destroy(f);
    }
}

static void nothing_is_accepted_before_it_is_on_disk(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 1, journaled);
    fake_start(f);
    f->disk_is_slow = true;
    uint32_t ids[3] = {1, 2, 3};
    fake_ask(f, 0, 0, ids, 3, 5, 1);
    for (int i = 0; i < 20; i++)
        fake_tick(f, 1000);
    assert_int_equal(f->n_records, 1);
    assert_false(f->requests[0].accepted);
    assert_true(coordinator_next(f->c, f->now) > f->now); /* and nothing spins meanwhile */
    f->disk_is_slow = false;
    fake_sync(f);
    assert_true(f->requests[0].accepted);
    fake_run(f);
    assert_true(f->requests[0].finished);
    fake_tick(f, 2 * RECORDS_LINGER_US);
    fake_tick(f, 1);
    assert_int_equal(f->records[f->n_records - 1].bytes[0], RECORD_END);
    assert_int_equal(f->c->n_requests, 0);
    fake_destroy(f);
}

static void a_seed_and_a_deadline_outlive_the_coordinator(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 1, journaled);
    fake_start(f);
    uint32_t ids[3] = {1, 2, 3};
    Gptoss__TokenIds prompt = GPTOSS__TOKEN_IDS__INIT;
    prompt.n_ids = 3;
    prompt.ids = ids;
    Gptoss__Generate g = GPTOSS__GENERATE__INIT;
    g.request_id = core_binary("r0000", 5);
    g.prompt_case = GPTOSS__GENERATE__PROMPT_IDS;
    g.ids = &prompt;
    g.max_tokens = 50;
    g.deadline_ms = 5000;
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    m.generate = &g;
    fake_send(f, 0, &m);
    fake_tick(f, 1000);
    uint64_t seed = f->c->requests[0]->seed, deadline = f->c->requests[0]->deadline_us;
    fake_tick(f, 1000000);
    restart(f, f->n_records);
    assert_int_equal(f->c->n_requests, 1);
    assert_true(f->c->requests[0]->seed == seed);
    assert_true(f->c->requests[0]->deadline_us == deadline);
    fake_destroy(f);
}

static void records_that_make_no_sense_are_left_out(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 1, journaled);
    fake_start(f);
    uint32_t ids[3] = {1, 2, 3};
    fake_ask(f, 0, 0, ids, 3, 20, 1);
    fake_ask(f, 1, 1, ids, 2, 20, 2);
    fake_run(f);
    uint64_t random = 5;
    size_t refused = 0;
    for (int round = 0; round < 3000; round++) {
        struct coordinator *c;
        struct coordinator_options options = journaled;
        if (round % 30 == 0) {
            options.model = model;
            options.model_path = "/models/fake.gguf";
            coordinator_destroy(f->c);
            assert_int_equal(coordinator_create(&f->c, &options, err, sizeof err), 0);
        }
        c = f->c;
        const struct text *from = &f->records[test_random(&random) % f->n_records];
        uint8_t bytes[512];
        size_t size = from->size < sizeof bytes ? from->size : sizeof bytes;
        memcpy(bytes, from->bytes, size);
        for (uint64_t i = test_random(&random) % 3; i; i--)
            bytes[test_random(&random) % size] = (uint8_t)test_random(&random);
        if (test_random(&random) % 4 == 0)
            size = test_random(&random) % (size + 1);
        refused += coordinator_restore(c, bytes, size, f->now, err, sizeof err) != 0;
        struct coordinator_event e;
        while (coordinator_take(c, &e))
            ;
    }
    assert_true(refused > 300);
    fake_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_over_does_not_come_back),
        cmocka_unit_test(a_file_that_is_cut_anywhere_gives_the_records_before),
        cmocka_unit_test(a_file_with_any_wrong_byte_is_refused_or_ends_there),
        cmocka_unit_test(it_is_written_anew_when_it_has_grown),
        cmocka_unit_test(accepted_requests_survive_any_number_of_restarts),
        cmocka_unit_test(nothing_is_accepted_before_it_is_on_disk),
        cmocka_unit_test(a_seed_and_a_deadline_outlive_the_coordinator),
        cmocka_unit_test(records_that_make_no_sense_are_left_out),
    };
    return cmocka_run_group_tests(tests, open_journal, close_journal);
}
