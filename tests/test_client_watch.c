/*
 * What gptoss-client top and trace make of what they are told: a frame, a trace file.
 */
#include "tests/test.h"

#include <jansson.h>

#include "client/client.h"

/* ── top ───────────────────────────────────────────────────────────────────────────────────── */

static Gptoss__Status status;
static Gptoss__StageStatus stages[12], *stage_list[12];
static Gptoss__Latency first_token, between_tokens;
static struct top_history history;
static struct text frame;

static int fresh(void **state)
{
    (void)state;
    static char device[] = "Some\033[31m card", host[] = "node\n1", text[] = "serving",
                model[] = "/models/a.gguf", version[] = "0.1.0";
    gptoss__status__init(&status);
    gptoss__latency__init(&first_token);
    gptoss__latency__init(&between_tokens);
    status.version = version;
    status.model = model;
    status.state = text;
    status.ready = true;
    status.uptime_seconds = 75;
    status.requests_running = 12;
    status.requests_waiting = 3;
    status.requests_finished = 1204;
    status.steps_in_flight = 4;
    status.window_seconds = 5;
    status.bubble_share = 0.25;
    status.hop_seconds = 31e-6;
    status.steps_per_second = 95.2;
    status.sampled_per_second = 1234567;
    status.prompt_per_second = 3.25;
    status.kv_full_blocks = 2000;
    status.kv_full_blocks_used = 500;
    status.first_token = &first_token;
    status.between_tokens = &between_tokens;
    first_token.count = 3;
    first_token.p50 = 0.012;
    first_token.p99 = 0.09;
    status.stages = stage_list;
    status.n_stages = 2;
    for (uint32_t i = 0; i < 12; i++) {
        gptoss__stage_status__init(&stages[i]);
        stages[i].stage = i;
        stages[i].host = host;
        stages[i].device = device;
        stages[i].layer_first = 2 * i;
        stages[i].layer_count = 2;
        stages[i].busy_share = 0.5;
        stages[i].queue = 2;
        stages[i].steps = 1000;
        stages[i].hop_seconds = i ? 31e-6 : 0;
        stage_list[i] = &stages[i];
    }
    memset(&history, 0, sizeof history);
    text_clear(&frame);
    return 0;
}

static void draw(size_t columns, size_t rows, bool colour, bool ascii)
{
    const struct top_screen screen = {
        .columns = columns, .rows = rows, .colour = colour, .ascii = ascii};
    text_clear(&frame);
    top_frame(&frame, "ipc:///tmp/x", &status, &history, &screen);
}

#define assert_has(part)                                                                           \
    do {                                                                                           \
        if (strstr(frame.bytes, part) == NULL)                                                     \
            fail_msg("lacks \"%s\":\n%s", part, frame.bytes);                                      \
    } while (0)

/* Of each line; colours have no width. */
static void assert_fits(size_t columns, size_t rows)
{
    size_t lines = 0, width = 0;
    for (const char *p = frame.bytes; *p; p++) {
        if (*p == '\n') {
            lines++;
            width = 0;
        } else if (*p == '\033') {
            assert_int_equal(p[1], '[');
            while (*p != 'm')
                p++;
        } else if (((unsigned char)*p & 0xc0) != 0x80 && ++width > columns)
            fail_msg("a line is wider than %zu:\n%s", columns, frame.bytes);
    }
    if (rows && lines > rows)
        fail_msg("%zu lines, room for %zu:\n%s", lines, rows, frame.bytes);
}

static void a_frame_says_what_the_pipeline_does(void **state)
{
    (void)state;
    draw(120, 0, false, true);
    assert_has("12 running  3 waiting  1,204 finished");
    assert_has("1,234,567 decode  3.2 prompt  95 steps/s  4 in flight");
    assert_has("busy 75.0 %  bubble 25.0 %  hop 31 µs  of the last 5.00 s");
    assert_has("first token p50 12.0 ms");
    assert_has("[######                  ]  25 %  500 of 2,000 blocks");
    assert_has("[############            ]  50.0 %");
    assert_has("node 1");
    assert_has("a.gguf");
    assert_null(strchr(frame.bytes, '\033')); /* no colour, and nothing of the device's name */
    assert_fits(120, 0);
}

static void a_frame_fits_any_terminal(void **state)
{
    (void)state;
    status.n_stages = 12;
    for (int i = 0; i < 300; i++) {
        status.sampled_per_second = i;
        top_remember(&history, &status);
    }
    assert_int_equal(history.n, TOP_HISTORY);
    for (size_t columns = 20; columns <= 200; columns += 7)
        for (int colour = 0; colour < 2; colour++) {
            draw(columns, 0, colour, !colour);
            assert_fits(columns, 0);
            draw(columns, 16, colour, colour);
            assert_fits(columns, 16);
        }
    draw(100, 16, false, false);
    assert_has("more stages");
    draw(100, 4, false, false);
    assert_fits(100, 4);
}

static void a_curve_rises_with_the_values(void **state)
{
    (void)state;
    for (int i = 0; i <= 8; i++) {
        status.sampled_per_second = 10 * i;
        top_remember(&history, &status);
    }
    draw(120, 0, false, false);
    assert_has(" ▁▂▃▄▅▆▇█  most 80");
    draw(120, 0, false, true);
    assert_has(" .:-=+*#@  most 80");
}

static void nonsense_from_outside_is_drawn_all_the_same(void **state)
{
    (void)state;
    status.bubble_share = NAN;
    status.sampled_per_second = INFINITY;
    status.uptime_seconds = -NAN;
    status.kv_full_blocks_used = UINT32_MAX;
    status.hop_seconds = 1e300;
    stages[0].busy_share = NAN;
    stages[1].busy_share = -5;
    stages[1].hop_seconds = INFINITY;
    first_token.p50 = NAN;
    top_remember(&history, &status);
    top_remember(&history, &status);
    draw(80, 24, true, false);
    assert_fits(80, 24);
    status.ready = false;
    stages[0].loaded = 1e9;
    status.first_token = NULL;
    draw(80, 24, true, false);
    assert_fits(80, 24);
    assert_has("100 % loaded");
}

/* ── trace ─────────────────────────────────────────────────────────────────────────────────── */

enum { STAGES = 3, STEPS = 20 };

static void fill(struct trace *t, uint64_t first, uint64_t n, char *err, size_t err_size)
{
    Gptoss__TracePart part = GPTOSS__TRACE_PART__INIT;
    static Gptoss__TraceStep steps[STEPS];
    Gptoss__TraceStep *list[STEPS];
    static int32_t at[STEPS][TRACE_NUMBERS * STAGES];
    for (uint64_t i = 0; i < n; i++) {
        gptoss__trace_step__init(&steps[i]);
        steps[i].step = first + i;
        steps[i].issued_us = 5000000 + 1000 * (first + i);
        steps[i].done = 3500;
        steps[i].rows = 2;
        steps[i].decode_rows = (uint32_t)(i % 3);
        steps[i].prompt_tokens = (uint32_t)(i % 2);
        steps[i].at = at[i];
        steps[i].n_at = TRACE_NUMBERS * STAGES;
        for (int32_t s = 0; s < STAGES; s++) {
            /* The head's part is in the middle of the next step's wait. */
            const int32_t when[TRACE_NUMBERS] = {20 + 1000 * s, 30, 930, 40, 900, 60, 50};
            memcpy(at[i] + TRACE_NUMBERS * s, when, sizeof when);
        }
        list[i] = &steps[i];
    }
    if (first == 5) /* stage 1 said nothing of it */
        for (int k = 0; k < TRACE_NUMBERS; k++)
            at[0][TRACE_NUMBERS + k] = -1;
    if (first == 9) /* noticed late: its work reaches into the step before */
        at[0][4] = 1400;
    part.n_steps = n;
    part.steps = list;
    assert_int_equal(trace_take(t, &part, err, err_size), 0);
}

static void begin(struct trace *t)
{
    char err[256], host[] = "node \"1\"", device[] = "a\\card";
    Gptoss__TracePart part = GPTOSS__TRACE_PART__INIT;
    Gptoss__TraceStage stage[STAGES], *list[STAGES];
    for (uint32_t s = 0; s < STAGES; s++) {
        gptoss__trace_stage__init(&stage[s]);
        stage[s].host = host;
        stage[s].device = device;
        stage[s].layer_first = 8 * s;
        stage[s].layer_count = 8;
        list[s] = &stage[s];
    }
    part.n_stages = STAGES;
    part.stages = list;
    assert_int_equal(trace_take(t, &part, err, sizeof err), 0);
    assert_int_equal(trace_take(t, &part, err, sizeof err), -1); /* twice */
}

static json_t *written(const struct trace *t)
{
    char *bytes = NULL;
    size_t size = 0;
    json_error_t error;
    FILE *out = open_memstream(&bytes, &size);
    trace_json(out, t);
    fclose(out);
    json_t *all = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &error);
    if (all == NULL)
        fail_msg("line %d: %s\n%s", error.line, error.text, bytes);
    free(bytes);
    return all;
}

static const char *word(const json_t *event, const char *name)
{
    const char *value = json_string_value(json_object_get(event, name));
    return value ? value : "";
}

static int64_t integer(const json_t *event, const char *name)
{
    const json_t *value = json_object_get(event, name);
    assert_true(json_is_integer(value));
    return json_integer_value(value);
}

static void every_step_is_on_every_stage_once_and_slices_do_not_overlap(void **state)
{
    (void)state;
    struct trace t = {0};
    char err[256];
    static int work[STAGES + 1][STEPS + 1];
    int64_t ends[STAGES + 1][3];
    int heads = 0, flows = 0, begins = 0, opened = 0, closed = 0;
    memset(work, 0, sizeof work);
    memset(ends, 0x80, sizeof ends);
    begin(&t);
    fill(&t, 1, 4, err, sizeof err);
    fill(&t, 5, 4, err, sizeof err);
    fill(&t, 9, 12, err, sizeof err);
    json_t *all = written(&t), *events = json_object_get(all, "traceEvents"), *event;
    size_t i;
    json_array_foreach(events, i, event)
    {
        const char *kind = word(event, "ph");
        int64_t pid = integer(event, "pid"), tid = integer(event, "tid");
        assert_in_range(pid, 0, STAGES);
        flows += strcmp(kind, "f") == 0;
        begins += strcmp(kind, "s") == 0;
        opened += strcmp(kind, "b") == 0;
        closed += strcmp(kind, "e") == 0;
        if (strcmp(kind, "C") == 0 && strcmp(word(event, "name"), "queue") == 0)
            assert_in_range(integer(json_object_get(event, "args"), "steps"), 0, STEPS);
        if (strcmp(kind, "X") != 0)
            continue;
        int64_t from = integer(event, "ts"), length = integer(event, "dur");
        assert_true(tid == 1 || tid == 2);
        assert_true(length >= 0 && from >= ends[pid][tid]);
        ends[pid][tid] = from + length;
        int64_t step = integer(json_object_get(event, "args"), "step");
        assert_in_range(step, 1, STEPS);
        heads += strcmp(word(event, "name"), "head") == 0;
        if (tid == 1 && strcmp(word(event, "name"), "wait for inputs") != 0 &&
            strcmp(word(event, "name"), "head") != 0)
            work[pid][step]++;
    }
    for (int s = 1; s <= STAGES; s++)
        for (int step = 1; step <= STEPS; step++)
            assert_int_equal(work[s][step], s == 2 && step == 5 ? 0 : 1);
    assert_int_equal(flows, begins);
    assert_int_equal(heads, STAGES * STEPS - 1);
    assert_int_equal(flows, (STAGES - 1) * STEPS - 2);
    assert_int_equal(opened, STEPS);
    assert_int_equal(closed, STEPS);
    json_decref(all);
    trace_free(&t);
}

static void an_empty_trace_is_a_file_too(void **state)
{
    (void)state;
    struct trace t = {0};
    json_decref(written(&t));
    begin(&t);
    json_decref(written(&t));
    trace_free(&t);
}

static void parts_that_contradict_are_refused(void **state)
{
    (void)state;
    struct trace t = {0};
    char err[256] = "";
    begin(&t);
    fill(&t, 3, 2, err, sizeof err);
    Gptoss__TracePart part = GPTOSS__TRACE_PART__INIT;
    Gptoss__TraceStep step = GPTOSS__TRACE_STEP__INIT, *list[] = {&step};
    int32_t at[TRACE_NUMBERS * STAGES] = {0};
    part.n_steps = 1;
    part.steps = list;
    step.at = at;
    step.n_at = TRACE_NUMBERS * STAGES;
    step.step = 4; /* again */
    step.issued_us = 9000000;
    assert_int_equal(trace_take(&t, &part, err, sizeof err), -1);
    step.step = 5;
    step.n_at = TRACE_NUMBERS * STAGES - 1;
    assert_int_equal(trace_take(&t, &part, err, sizeof err), -1);
    step.n_at = TRACE_NUMBERS * STAGES;
    step.issued_us = UINT64_MAX;
    assert_int_equal(trace_take(&t, &part, err, sizeof err), -1);
    step.issued_us = 17; /* before the first */
    assert_int_equal(trace_take(&t, &part, err, sizeof err), -1);
    step.issued_us = 9000000;
    for (int i = 0; i < TRACE_NUMBERS * STAGES; i++)
        at[i] = i % 2 ? INT32_MAX : INT32_MIN;
    assert_int_equal(trace_take(&t, &part, err, sizeof err), 0);
    json_decref(written(&t));
    trace_free(&t);
}

static int forget(void **state)
{
    (void)state;
    text_free(&frame);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_frame_says_what_the_pipeline_does, fresh),
        cmocka_unit_test_setup(a_frame_fits_any_terminal, fresh),
        cmocka_unit_test_setup(a_curve_rises_with_the_values, fresh),
        cmocka_unit_test_setup(nonsense_from_outside_is_drawn_all_the_same, fresh),
        cmocka_unit_test(every_step_is_on_every_stage_once_and_slices_do_not_overlap),
        cmocka_unit_test(an_empty_trace_is_a_file_too),
        cmocka_unit_test(parts_that_contradict_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, forget);
}
