/*
 * serve_report: a run as two tables for people (what was done, what clients waited), or as one flat
 * record for programs, with the names that vLLM's bench has for the same things.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/fields.h"
#include "bench/serve.h"

static const double percents[] = {50, 90, 95, 99};
enum { N_PERCENTS = sizeof percents / sizeof *percents };

enum { DONE_COLUMNS = 14, WAIT_COLUMNS = 8, CELL = 48 };

static const char *const done_headings[DONE_COLUMNS] = {
    "load",      "requests",   "refused", "failed", "seconds", "output t/s",     "at full load",
    "total t/s", "requests/s", "steps",   "bubble", "hop",     "busy of stages", "load generator"};
static const char *const wait_headings[WAIT_COLUMNS] = {"load", "ms",  "mean", "p50",
                                                        "p90",  "p95", "p99",  "max"};

struct serve_report {
    enum bench_format format;
    size_t n;
    struct table *done, *waits;
};

struct serve_report *serve_report_create(enum bench_format format)
{
    struct serve_report *report = base_alloc(1, sizeof *report);
    report->format = format;
    if (format == BENCH_MD) {
        report->done = table_create(DONE_COLUMNS, done_headings);
        report->waits = table_create(WAIT_COLUMNS, wait_headings);
    }
    return report;
}

struct speeds {
    double seconds, output, total, requests, full; /* full < 0: the load was never full */
};

static struct speeds speeds_of(const struct serve_log *log)
{
    double seconds = log->end - log->begin, full = log->full_until - log->full_since;
    struct speeds s = {.seconds = seconds, .full = -1};
    if (seconds > 0) {
        s.output = (double)log->tokens / seconds;
        s.total = (double)(log->tokens + log->prompt_tokens) / seconds;
        s.requests = (double)log->finished / seconds;
    }
    if (log->full_since > 0 && full > 0)
        s.full = (double)log->full_tokens / full;
    return s;
}

struct named {
    const char *title, *name;
    const struct serve_times *times;
};
enum { N_TIMES = 4 };

static void name_times(const struct serve_log *log, struct named named[N_TIMES])
{
    named[0] = (struct named){"first token", "ttft", &log->first};
    named[1] = (struct named){"between tokens", "itl", &log->gap};
    named[2] = (struct named){"a token, mean of each answer", "tpot", &log->token};
    named[3] = (struct named){"whole answer", "e2el", &log->whole};
}

static void load_of(const struct serve_result *result, char *text, size_t text_size)
{
    if (result->clients)
        snprintf(text, text_size, "%" PRIu32 " client%s", result->clients,
                 result->clients == 1 ? "" : "s");
    else
        snprintf(text, text_size, "%g a second", result->options->rate);
}

static void add_rows(struct serve_report *report, const struct serve_result *result)
{
    const struct serve_log *log = result->log;
    struct speeds speeds = speeds_of(log);
    struct named named[N_TIMES];
    char cells[DONE_COLUMNS][CELL] = {""};
    const char *pointers[DONE_COLUMNS];
    for (int i = 0; i < DONE_COLUMNS; i++)
        pointers[i] = cells[i];
    load_of(result, cells[0], CELL);
    snprintf(cells[1], CELL, "%" PRIu32, log->finished);
    snprintf(cells[2], CELL, "%" PRIu32, log->refused);
    snprintf(cells[3], CELL, "%" PRIu32, log->failed);
    snprintf(cells[4], CELL, "%.2f", speeds.seconds);
    snprintf(cells[5], CELL, "%.1f", speeds.output);
    if (speeds.full >= 0)
        snprintf(cells[6], CELL, "%.1f", speeds.full);
    snprintf(cells[7], CELL, "%.1f", speeds.total);
    snprintf(cells[8], CELL, "%.2f", speeds.requests);
    if (result->steps >= 0)
        snprintf(cells[9], CELL, "%.0f", result->steps);
    if (result->bubble >= 0)
        snprintf(cells[10], CELL, "%.1f %%", 100 * result->bubble);
    if (result->hop_us >= 0)
        snprintf(cells[11], CELL, "%.1f µs", result->hop_us);
    for (uint32_t s = 0; result->bubble >= 0 && s < result->stages && s < 8; s++) {
        size_t used = strlen(cells[12]);
        snprintf(cells[12] + used, CELL - used, "%s%.0f%s", s ? ", " : "", 100 * result->busy[s],
                 s + 1 == result->stages ? " %" : "");
    }
    snprintf(cells[13], CELL, "%.1f %% of a core", 100 * result->cpu);
    table_row(report->done, pointers);

    name_times(log, named);
    for (int t = 0; t < N_TIMES; t++) {
        if (named[t].times->n == 0)
            continue;
        snprintf(cells[1], CELL, "%s", named[t].title);
        snprintf(cells[2], CELL, "%.2f", 1e3 * serve_times_mean(named[t].times));
        for (int p = 0; p < N_PERCENTS; p++)
            snprintf(cells[3 + p], CELL, "%.2f",
                     1e3 * serve_times_percentile(named[t].times, percents[p]));
        snprintf(cells[3 + N_PERCENTS], CELL, "%.2f", 1e3 * named[t].times->max);
        table_row(report->waits, pointers);
    }
}

static void print_fields(struct serve_report *report, const struct serve_result *result)
{
    /* Names outlive this call until fields_print. */
    static char names[N_TIMES][N_PERCENTS + 2][24];
    const struct serve_log *log = result->log;
    const struct serve_options *o = result->options;
    struct speeds speeds = speeds_of(log);
    struct named named[N_TIMES];
    struct fields f = {.n = 0};
    fields_text(&f, "date", result->time);
    fields_text(&f, "model_filename", result->model);
    fields_text(&f, "device", result->device);
    fields_integer(&f, "stages", result->stages);
    fields_integer(&f, "clients", result->clients);
    fields_known(&f, "request_rate", o->rate > 0 ? o->rate : -1);
    fields_integer(&f, "num_prompts", log->n);
    fields_text(&f, "n_prompt", o->prompt_text);
    fields_text(&f, "n_gen", o->gen_text);
    fields_integer(&f, "shared_prefix", (uint64_t)o->shared);
    fields_integer(&f, "seed", (uint64_t)o->seed);
    fields_integer(&f, "completed", log->finished);
    fields_integer(&f, "refused", log->refused);
    fields_integer(&f, "failed", log->failed);
    fields_real(&f, "duration", speeds.seconds);
    fields_integer(&f, "total_input_tokens", log->prompt_tokens);
    fields_integer(&f, "total_output_tokens", log->tokens);
    fields_real(&f, "request_throughput", speeds.requests);
    fields_real(&f, "output_throughput", speeds.output);
    fields_known(&f, "full_load_output_throughput", speeds.full);
    fields_real(&f, "total_token_throughput", speeds.total);
    fields_known(&f, "steps", result->steps);
    fields_known(&f, "bubble", result->bubble);
    fields_known(&f, "hop_us", result->hop_us);
    fields_array(&f, "busy", result->busy, result->stages < 64 ? result->stages : 64, 1, 6);
    fields_real(&f, "load_generator_cpu", result->cpu);
    name_times(log, named);
    for (int t = 0; t < N_TIMES; t++) {
        snprintf(names[t][0], sizeof names[t][0], "mean_%s_ms", named[t].name);
        fields_known(&f, names[t][0],
                     named[t].times->n ? 1e3 * serve_times_mean(named[t].times) : -1);
        for (int p = 0; p < N_PERCENTS; p++) {
            snprintf(names[t][1 + p], sizeof names[t][0], "p%.0f_%s_ms", percents[p],
                     named[t].name);
            fields_known(
                &f, names[t][1 + p],
                named[t].times->n ? 1e3 * serve_times_percentile(named[t].times, percents[p]) : -1);
        }
        snprintf(names[t][1 + N_PERCENTS], sizeof names[t][0], "max_%s_ms", named[t].name);
        fields_known(&f, names[t][1 + N_PERCENTS],
                     named[t].times->n ? 1e3 * named[t].times->max : -1);
    }
    fields_print(&f, report->format, report->n);
}

void serve_report_add(struct serve_report *report, const struct serve_result *result)
{
    if (report->format == BENCH_MD)
        add_rows(report, result);
    else
        print_fields(report, result);
    report->n++;
}

void serve_report_finish(struct serve_report *report)
{
    if (report->format == BENCH_MD && report->n) {
        table_print(report->done, TABLE_MARKDOWN, stdout);
        putchar('\n');
        table_print(report->waits, TABLE_MARKDOWN, stdout);
    }
    fields_finish(report->format, report->n);
    table_destroy(report->done);
    table_destroy(report->waits);
    free(report);
}
