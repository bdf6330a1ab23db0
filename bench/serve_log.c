#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/serve.h"

/* ── times ─────────────────────────────────────────────────────────────────────────────────── */

#define TIME_MIN 1e-6
#define WIDTH    1.005

void serve_times_add(struct serve_times *times, double seconds)
{
    double at = seconds > TIME_MIN ? log(seconds / TIME_MIN) / log(WIDTH) : 0;
    times->buckets[at < SERVE_BUCKETS - 1 ? (size_t)at : SERVE_BUCKETS - 1]++;
    times->sum += seconds;
    if (times->n == 0 || seconds < times->min)
        times->min = seconds;
    if (times->n == 0 || seconds > times->max)
        times->max = seconds;
    times->n++;
}

double serve_times_percentile(const struct serve_times *times, double percent)
{
    uint64_t rank = (uint64_t)ceil(percent / 100 * (double)times->n), seen = 0;
    if (times->n == 0)
        return 0;
    if (rank <= 1)
        return times->min;
    if (rank >= times->n)
        return times->max;
    size_t i = 0;
    while ((seen += times->buckets[i]) < rank)
        i++;
    double value = i ? TIME_MIN * pow(WIDTH, (double)i + 0.5) : 0;
    return value < times->min ? times->min : value > times->max ? times->max : value;
}

double serve_times_mean(const struct serve_times *times)
{
    return times->n ? times->sum / (double)times->n : 0;
}

/* ── lengths ───────────────────────────────────────────────────────────────────────────────── */

static int wrong_length(const char *option, const char *text, char *err, size_t err_size)
{
    snprintf(err, err_size,
             "%s: \"%s\" is no length: give 1000, a range 100-2000, ~500 (exponential with this "
             "mean), or several with commas",
             option, text);
    return -1;
}

int serve_lengths_parse(const char *option, const char *text, uint32_t limit,
                        struct serve_lengths *lengths, char *err, size_t err_size)
{
    *lengths = (struct serve_lengths){0};
    for (const char *at = text;; at++) {
        char *end;
        bool exponential = *at == '~';
        at += exponential;
        if (*at < '0' || *at > '9' || lengths->n == SERVE_LENGTHS)
            return wrong_length(option, text, err, err_size);
        errno = 0;
        unsigned long min = strtoul(at, &end, 10), max = exponential ? min * 8 : min;
        if (*end == '-' && !exponential && end[1] >= '0' && end[1] <= '9')
            max = strtoul(end + 1, &end, 10);
        if (errno || min < 1 || max < min || (*end && *end != ','))
            return wrong_length(option, text, err, err_size);
        if (max > limit && exponential)
            max = limit;
        if (max > limit || min > limit) {
            snprintf(err, err_size, "%s: \"%s\" is longer than %" PRIu32, option, text, limit);
            return -1;
        }
        lengths->parts[lengths->n].min = (uint32_t)min;
        lengths->parts[lengths->n].max = (uint32_t)max;
        lengths->parts[lengths->n++].exponential = exponential;
        if (max > lengths->max)
            lengths->max = (uint32_t)max;
        if (*end == '\0')
            return 0;
        at = end;
    }
}

uint32_t serve_lengths_draw(const struct serve_lengths *lengths, uint64_t *random)
{
    size_t part = lengths->n > 1 ? bench_random(random) % lengths->n : 0;
    uint32_t min = lengths->parts[part].min, max = lengths->parts[part].max;
    if (!lengths->parts[part].exponential)
        return min + (max > min ? (uint32_t)(bench_random(random) % (max - min + 1)) : 0);
    double value = 1 + (min - 1) * bench_random_exponential(random);
    return value < max ? (uint32_t)value : max;
}

/* ── a run ─────────────────────────────────────────────────────────────────────────────────── */

void serve_log_create(struct serve_log *log, uint32_t n, uint32_t full)
{
    *log = (struct serve_log){.n = n, .full = full};
    log->requests = base_alloc(n, sizeof *log->requests);
}

void serve_log_free(struct serve_log *log)
{
    free(log->requests);
    log->requests = NULL;
}

void serve_log_sent(struct serve_log *log, uint32_t i, uint32_t prompt, uint32_t wanted,
                    double time)
{
    log->requests[i] = (struct serve_request){.begin = time, .prompt = prompt, .wanted = wanted};
    if (log->sent++ == 0)
        log->begin = log->end = time;
    log->active++;
    if (log->active == log->full && log->full_since <= 0)
        log->full_since = time;
    /* From the last request on, clients run out of work. */
    if (log->sent == log->n && log->full_since > 0)
        log->full_until = time;
}

void serve_log_tokens(struct serve_log *log, uint32_t i, uint32_t n, double time)
{
    struct serve_request *request = &log->requests[i];
    for (uint32_t k = 0; k < n; k++) {
        if (request->tokens++ == 0) {
            request->first = time;
            serve_times_add(&log->first, time - request->begin);
        } else {
            serve_times_add(&log->gap, time - request->last);
        }
        request->last = time;
    }
    log->tokens += n;
    if (log->full_since > 0 && log->full_until <= 0)
        log->full_tokens += n;
    log->end = time;
}

void serve_log_end(struct serve_log *log, uint32_t i, enum serve_end end, double time)
{
    struct serve_request *request = &log->requests[i];
    request->done = true;
    log->active--;
    log->end = time;
    log->finished += end == SERVE_FINISHED;
    log->refused += end == SERVE_REFUSED;
    log->failed += end == SERVE_FAILED;
    if (end != SERVE_FINISHED)
        return;
    log->prompt_tokens += request->prompt;
    serve_times_add(&log->whole, time - request->begin);
    if (request->tokens > 1)
        serve_times_add(&log->token, (request->last - request->first) / (request->tokens - 1));
}
