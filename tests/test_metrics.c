/*
 * What the coordinator counts: rates and latencies of the last seconds, and Prometheus' text, read back.
 */
#include "tests/test.h"

#include <time.h>

#include "coordinator/exposition.h"
#include "coordinator/recent.h"
#include "tests/tiny.h"
#include "tests/world.h"

/* ── the last seconds ──────────────────────────────────────────────────────────────────────── */

static void a_rate_is_of_the_window_alone(void **state)
{
    (void)state;
    struct recent_rate r = {0};
    uint64_t now = 1000000000;
    assert_true(recent_rate(&r, 5, 0, now) == 0);
    for (int i = 0; i < 1000; i++) { /* 10 seconds of 200 a second, then 10 of nothing */
        recent_count(&r, 2, now);
        now += 10000;
    }
    assert_true(fabs(recent_rate(&r, 5, 0, now) - 200) < 15);
    assert_true(fabs(recent_rate(&r, 5, 0, now + 2500000) - 100) < 15);
    assert_true(recent_rate(&r, 5, 0, now + 10000000) == 0);
    /* Slots are used again. */
    now += 60000000;
    recent_count(&r, 7, now);
    assert_true(fabs(recent_rate(&r, 1, 0, now + 500000) - 7 / 0.9) < 7);
}

static void a_young_coordinator_divides_by_its_age(void **state)
{
    (void)state;
    struct recent_rate r = {0};
    uint64_t begin = 500000000;
    recent_count(&r, 100, begin + 100000);
    assert_true(fabs(recent_rate(&r, 5, begin, begin + 1000000) - 100) < 1e-9);
}

static void percentiles_are_within_three_percent(void **state)
{
    (void)state;
    static struct recent_durations d;
    memset(&d, 0, sizeof d);
    d.slot_us = 1000000;
    Gptoss__Latency l;
    recent_latency(&d, 5000000, &l);
    assert_int_equal(l.count, 0);
    uint64_t now = 7000000000;
    for (uint64_t i = 1; i <= 1000; i++)
        recent_duration(&d, i * 100, now); /* 100 µs … 100 ms */
    recent_latency(&d, now + 9000000, &l);
    assert_int_equal(l.count, 1000);
    assert_true(fabs(l.mean - 0.05005) < 1e-9);
    assert_true(fabs(l.p50 / 0.050 - 1) < 0.033);
    assert_true(fabs(l.p90 / 0.090 - 1) < 0.033);
    assert_true(fabs(l.p99 / 0.099 - 1) < 0.033);
    recent_latency(&d, now + 10000000, &l);
    assert_int_equal(l.count, 0);
    for (uint64_t us = 1; us < 4000000000; us += us / 7 + 1) {
        static struct recent_durations one;
        memset(&one, 0, sizeof one);
        one.slot_us = 1000000;
        recent_duration(&one, us, now);
        recent_latency(&one, now, &l);
        if (fabs(l.p50 * 1e6 / (double)us - 1) > 0.032)
            fail_msg("%llu µs are taken for %g", (unsigned long long)us, l.p50 * 1e6);
    }
    recent_duration(&d, 0, now + 11000000);
    recent_duration(&d, UINT64_MAX / 4, now + 11000000);
    recent_latency(&d, now + 11000000, &l);
    assert_int_equal(l.count, 2);
    assert_true(l.p50 == 0 && l.p99 > 1000);
}

/* ── the text format ───────────────────────────────────────────────────────────────────────── */

#define FAMILIES_MAX 64

struct family {
    char name[128], kind[16];
    uint32_t samples;
    /* of a histogram */
    double last_edge;
    uint64_t last_bucket, count;
    bool open, infinite, counted, summed;
};

struct exposition {
    struct family families[FAMILIES_MAX];
    size_t n;
    char labels[512]; /* of the sample that was looked for, raw */
    double value;
    bool found;
};

/* A name, and labels in their quotes; returns what follows. */
static const char *sample_name(const char *line, char *name, size_t size, char *labels,
                               size_t labels_size)
{
    size_t n = strspn(line, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
    assert_true(n > 0 && n < size);
    memcpy(name, line, n);
    name[n] = labels[0] = 0;
    if (line[n] != '{')
        return line + n;
    const char *begin = line + n + 1, *p = begin;
    for (;;) {
        size_t word = strspn(p, "abcdefghijklmnopqrstuvwxyz_");
        assert_true(word > 0 && p[word] == '=' && p[word + 1] == '"');
        for (p += word + 2; *p != '"'; p++) {
            assert_true(*p != '\n' && *p != 0);
            if (*p == '\\') {
                p++;
                assert_true(*p == '\\' || *p == '"' || *p == 'n');
            }
        }
        p++;
        if (*p == '}')
            break;
        assert_int_equal(*p++, ',');
    }
    assert_true((size_t)(p - begin) < labels_size);
    memcpy(labels, begin, (size_t)(p - begin));
    labels[p - begin] = 0;
    return p + 1;
}

static double value_of(const char *text)
{
    char *end;
    if (strncmp(text, "+Inf\n", 5) == 0)
        return INFINITY;
    double value = strtod(text, &end);
    assert_true(end != text && *end == '\n');
    return value;
}

static void take_bucket(struct family *f, const char *labels, double value)
{
    const char *le = strstr(labels, "le=\"");
    assert_non_null(le);
    double edge = strncmp(le + 4, "+Inf", 4) == 0 ? INFINITY : strtod(le + 4, NULL);
    assert_true(!f->infinite && (!f->open || edge > f->last_edge));
    assert_true((uint64_t)value >= f->last_bucket);
    f->open = true;
    f->last_edge = edge;
    f->last_bucket = (uint64_t)value;
    f->infinite = isinf(edge);
}

/* Reads all of it; looks for the sample `name` whose labels contain `part`. */
static struct exposition *read_text(const char *text, const char *want, const char *part)
{
    static struct exposition e;
    memset(&e, 0, sizeof e);
    struct family *f = NULL;
    char name[128], labels[512];
    for (const char *line = text, *end; *line; line = end + 1) {
        end = strchr(line, '\n');
        assert_non_null(end); /* the last line ends too */
        if (strncmp(line, "# HELP ", 7) == 0) {
            assert_true(e.n < FAMILIES_MAX);
            f = &e.families[e.n++];
            assert_int_equal(sscanf(line, "# HELP %127s", f->name), 1);
            assert_int_equal(strncmp(f->name, "gptoss_", 7), 0);
            for (size_t i = 0; i + 1 < e.n; i++)
                assert_string_not_equal(e.families[i].name, f->name); /* once */
            continue;
        }
        assert_non_null(f);
        if (strncmp(line, "# TYPE ", 7) == 0) {
            assert_string_equal(f->kind, "");
            assert_int_equal(sscanf(line, "# TYPE %127s %15s", name, f->kind), 2);
            assert_string_equal(name, f->name);
            assert_true(strcmp(f->kind, "counter") == 0 || strcmp(f->kind, "gauge") == 0 ||
                        strcmp(f->kind, "histogram") == 0);
            continue;
        }
        const char *rest = sample_name(line, name, sizeof name, labels, sizeof labels);
        assert_int_equal(*rest, ' ');
        double value = value_of(rest + 1);
        size_t n = strlen(f->name);
        assert_int_equal(strncmp(name, f->name, n), 0); /* under its own head */
        f->samples++;
        if (strcmp(f->kind, "histogram") != 0) {
            assert_string_equal(name, f->name);
        } else if (strcmp(name + n, "_bucket") == 0) {
            take_bucket(f, labels, value);
        } else if (strcmp(name + n, "_count") == 0) {
            f->counted = true;
            f->count = (uint64_t)value;
        } else {
            assert_string_equal(name + n, "_sum");
            f->summed = true;
        }
        if (strcmp(name, want) == 0 && strstr(labels, part)) {
            assert_false(e.found);
            e.found = true;
            e.value = value;
            snprintf(e.labels, sizeof e.labels, "%s", labels);
        }
    }
    for (size_t i = 0; i < e.n; i++) {
        const struct family *g = &e.families[i];
        assert_true(g->kind[0] != 0);
        if (strcmp(g->kind, "histogram") == 0) {
            assert_true(g->infinite && g->counted && g->summed);
            assert_int_equal(g->last_bucket, g->count);
        }
    }
    return &e;
}

static void labels_are_escaped_and_always_utf8(void **state)
{
    (void)state;
    struct text labels = {0}, t = {0};
    exposition_label(&labels, "host", "a\\b\"c\nd");
    exposition_label(&labels, "device", "H100 \xff µ");
    assert_string_equal(labels.bytes, "host=\"a\\\\b\\\"c\\nd\",device=\"H100 \xef\xbf\xbd µ\"");
    exposition_head(&t, "x", "gauge", "Help.");
    exposition_sample(&t, "x", &labels, 1.5);
    exposition_sample(&t, "x", NULL, INFINITY);
    struct exposition *e = read_text(t.bytes, "gptoss_x", "host");
    assert_true(e->found && e->value == 1.5);
    text_free(&labels);
    text_free(&t);
}

static void buckets_hold_what_is_at_most_their_edge(void **state)
{
    (void)state;
    static const double edges[] = {1, 2, 5};
    static const double values[] = {0, 1, 1.5, 2, 4, 100};
    struct exposition_histogram h = {0};
    struct text t = {0};
    for (size_t i = 0; i < 6; i++)
        exposition_observe(&h, edges, 3, values[i]);
    exposition_histogram(&t, "h", "Help.", &h, edges, 3);
    assert_string_equal(t.bytes, "# HELP gptoss_h Help.\n"
                                 "# TYPE gptoss_h histogram\n"
                                 "gptoss_h_bucket{le=\"1\"} 2\n"
                                 "gptoss_h_bucket{le=\"2\"} 4\n"
                                 "gptoss_h_bucket{le=\"5\"} 5\n"
                                 "gptoss_h_bucket{le=\"+Inf\"} 6\n"
                                 "gptoss_h_sum 108.5\n"
                                 "gptoss_h_count 6\n");
    read_text(t.bytes, "", "");
    text_free(&t);
}

/* ── of a coordinator ──────────────────────────────────────────────────────────────────────── */

/* Sends a message and takes the one answer that is no token, before world.c does. */
static Gptoss__ServerMessage *ask(struct fake *f, const Gptoss__ClientMessage *m)
{
    struct coordinator_event e;
    uint8_t bytes[256];
    char err[256];
    assert_true(gptoss__client_message__get_packed_size(m) <= sizeof bytes);
    size_t size = gptoss__client_message__pack(m, bytes);
    fake_pump(f);
    coordinator_receive(f->c, COORDINATOR_CLIENTS, "observer", 8, bytes, size, f->now);
    assert_true(coordinator_take(f->c, &e));
    assert_int_equal(e.kind, COORDINATOR_SEND);
    assert_true(e.size <= PROTO_MESSAGE_MAX);
    Gptoss__ServerMessage *answer = (Gptoss__ServerMessage *)proto_unpack(
        &gptoss__server_message__descriptor, e.bytes, e.size, err, sizeof err);
    assert_non_null(answer);
    while (coordinator_take(f->c, &e)) /* a status asks the ranks anew */
        assert_true(e.kind == COORDINATOR_SEND && e.side == COORDINATOR_RANKS);
    return answer;
}

static char *metrics(struct fake *f)
{
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__MetricsRequest request = GPTOSS__METRICS_REQUEST__INIT;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_METRICS;
    m.metrics = &request;
    Gptoss__ServerMessage *answer = ask(f, &m);
    assert_int_equal(answer->body_case, GPTOSS__SERVER_MESSAGE__BODY_METRICS);
    char *text = calloc(answer->metrics->text.len + 1, 1);
    memcpy(text, answer->metrics->text.data, answer->metrics->text.len);
    proto_free(&answer->base);
    return text;
}

static double metric(struct fake *f, const char *name, const char *labels)
{
    char *text = metrics(f);
    struct exposition *e = read_text(text, name, labels);
    if (!e->found)
        fail_msg("no %s{%s} in\n%s", name, labels, text);
    free(text);
    return e->value;
}

static void the_counters_are_those_of_the_requests(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 2, (struct coordinator_options){.context = 512});
    uint32_t ids[30];
    for (uint32_t i = 0; i < 30; i++)
        ids[i] = 7 + i;
    assert_true(metric(f, "gptoss_num_requests_running", "") == 0);
    assert_true(metric(f, "gptoss_build_info", "version=") == 1);
    fake_start(f);
    strcpy(f->c->world.ranks[0].device, "odd \"card\" \\ 1");
    assert_true(metric(f, "gptoss_rank_up", "rank=\"1\",host=\"here\"") == 1);
    assert_true(metric(f, "gptoss_rank_up", "device=\"odd \\\"card\\\" \\\\ 1\"") == 1);
    for (uint32_t r = 0; r < 3; r++) { /* no two begin alike */
        ids[0] = 100 + r;
        fake_ask(f, r, r, ids, 30, 10, r);
    }
    ids[0] = 200;
    fake_ask(f, 0, 5, ids, 0, 10, 1); /* an empty prompt is refused */
    fake_run(f);
    size_t sampled = 0, spaced = 0;
    for (uint32_t r = 0; r < 3; r++) {
        sampled += f->requests[r].tokens.count;
        spaced += f->requests[r].tokens.count - 1;
    }
    assert_true(metric(f, "gptoss_prompt_tokens_total", "") == 90);
    assert_true(metric(f, "gptoss_generation_tokens_total", "") == (double)sampled);
    assert_true(metric(f, "gptoss_time_to_first_token_seconds_count", "") == 3);
    assert_true(metric(f, "gptoss_inter_token_latency_seconds_count", "") == (double)spaced);
    assert_true(metric(f, "gptoss_e2e_request_latency_seconds_count", "") == 3);
    assert_true(metric(f, "gptoss_request_prompt_tokens_sum", "") == 90);
    assert_true(metric(f, "gptoss_request_generation_tokens_sum", "") == (double)sampled);
    assert_true(metric(f, "gptoss_requests_refused_total", "code=\"invalid\"") == 1);
    assert_true(metric(f, "gptoss_request_success_total", "\"length\"") +
                    metric(f, "gptoss_request_success_total", "\"stop\"") ==
                3);
    assert_true(metric(f, "gptoss_steps_total", "") == (double)f->steps);
    /* A step's tokens: the prompts, and all sampled tokens that were an input, some in vain. */
    assert_true(metric(f, "gptoss_iteration_tokens_total_count", "") == (double)f->steps);
    assert_true(metric(f, "gptoss_iteration_tokens_total_sum", "") >= (double)(90 + spaced));
    assert_true(metric(f, "gptoss_kv_blocks", "pool=\"full\"") > 0);
    assert_true(metric(f, "gptoss_kv_blocks_used", "pool=\"full\"") == 0);

    fake_ask(f, 0, 9, ids, 30, 400, 1);
    for (int i = 0; i < 3; i++) {
        fake_tick(f, 10);
        fake_step(f);
    }
    assert_true(metric(f, "gptoss_num_requests_running", "") == 1);
    assert_true(metric(f, "gptoss_kv_cache_usage_perc", "") > 0);
    fake_kill(f);
    assert_true(metric(f, "gptoss_rank_restarts_total", "") == 1);
    assert_true(metric(f, "gptoss_requests_replayed_total", "") == 1);
    fake_start(f);
    fake_cancel(f, 0, 9);
    assert_true(metric(f, "gptoss_request_success_total", "\"cancelled\"") == 1);
    fake_destroy(f);
}

static void the_status_has_rates_and_latencies(void **state)
{
    (void)state;
    struct fake *f = fake_create(model, 2, (struct coordinator_options){.context = 512});
    uint32_t ids[30];
    for (uint32_t i = 0; i < 30; i++)
        ids[i] = 7 + i;
    f->now += 100000000;
    fake_tick(f, 10);
    fake_start(f);
    fake_tick(f, 10000000);
    fake_ask(f, 0, 1, ids, 30, 60, 3);
    for (int i = 0; i < 400 && !f->requests[1].finished; i++) {
        fake_tick(f, 10000);
        fake_step(f);
    }
    double n = (double)f->requests[1].tokens.count;
    assert_true(n > 4);
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__StatusRequest request = GPTOSS__STATUS_REQUEST__INIT;
    request.window_seconds = 5;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_STATUS;
    m.status = &request;
    Gptoss__ServerMessage *answer = ask(f, &m);
    assert_int_equal(answer->body_case, GPTOSS__SERVER_MESSAGE__BODY_STATUS);
    const Gptoss__Status *s = answer->status;
    assert_true(s->sampled_per_second >= n / 5.5 && s->sampled_per_second <= n);
    assert_true(s->prompt_per_second >= 30 / 5.5);
    assert_true(s->steps_per_second > 0);
    assert_int_equal(s->first_token->count, 1);
    assert_int_equal(s->between_tokens->count, (uint64_t)n - 1);
    assert_true(s->between_tokens->p50 > 0.009 && s->between_tokens->p50 < 0.012);
    assert_true(s->first_token->p50 >= 0.0095);
    proto_free(&answer->base);
    fake_destroy(f);
}

/* A step may sample hundreds of tokens: counting must not be seen beside the rest of the coordinator. */
static void counting_a_token_takes_a_fraction_of_a_microsecond(void **state)
{
    (void)state;
    enum { TOKENS = 200000 };
    struct fake *f = fake_create(model, 1, (struct coordinator_options){.context = 512});
    struct request r = {.accepted_us = 1, .first_token_us = 2, .last_token_us = 3};
    struct timespec begin, end;
    double best = 1e9;
    for (int round = 0; round < 5; round++) {
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
        for (uint32_t i = 0; i < TOKENS; i++)
            metrics_token(f->c, &r, r.last_token_us + 9000 + i % 4096);
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
        double ns =
            ((double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec)) /
            TOKENS;
        best = ns < best ? ns : best;
    }
    print_message("counting a token takes %.0f ns\n", best);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(best < 300);
#endif
    fake_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rate_is_of_the_window_alone),
        cmocka_unit_test(a_young_coordinator_divides_by_its_age),
        cmocka_unit_test(percentiles_are_within_three_percent),
        cmocka_unit_test(labels_are_escaped_and_always_utf8),
        cmocka_unit_test(buckets_hold_what_is_at_most_their_edge),
        cmocka_unit_test(the_counters_are_those_of_the_requests),
        cmocka_unit_test(the_status_has_rates_and_latencies),
        cmocka_unit_test(counting_a_token_takes_a_fraction_of_a_microsecond),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
