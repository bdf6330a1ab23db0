/*
 * serve: load on a coordinator, and what its clients see. Private to bench/.
 *
 * serve.c drives one connection with many requests; serve_log.c turns what was sent and what came, and
 * when, into figures (pure); serve_report.c prints them; serve_options.c reads the options.
 */
#ifndef GPTOSS_BENCH_SERVE_H
#define GPTOSS_BENCH_SERVE_H

#include "bench/bench.h"
#include "proto/proto.h"

/* ── a distribution of times ───────────────────────────────────────────────────────────────── */

/* Buckets that are 0.5 % wide, from a microsecond to hours, so memory does not grow with the number of
 * tokens; a percentile is within 0.25 % of the exact one. Sum, least and largest are exact. */
enum { SERVE_BUCKETS = 4700 };
struct serve_times {
    uint64_t n;
    double sum, min, max;
    uint64_t buckets[SERVE_BUCKETS];
};
void serve_times_add(struct serve_times *times, double seconds);
/* The least time that `percent` of all are no longer than; 0 where there are none. */
double serve_times_percentile(const struct serve_times *times, double percent);
double serve_times_mean(const struct serve_times *times);

/* ── lengths ───────────────────────────────────────────────────────────────────────────────── */

enum { SERVE_LENGTHS = 16 };
/* Of each request one of the parts by chance: a number, a range, or exponential with a mean. */
struct serve_lengths {
    size_t n;
    struct {
        uint32_t min, max;
        bool exponential; /* min: the mean, max: eight times it, where it is cut off */
    } parts[SERVE_LENGTHS];
    uint32_t max;
};
/* "1000", "100-2000", "~500", and these with commas. -1 and a sentence. */
int serve_lengths_parse(const char *option, const char *text, uint32_t limit,
                        struct serve_lengths *lengths, char *err, size_t err_size);
uint32_t serve_lengths_draw(const struct serve_lengths *lengths, uint64_t *random);

/* ── a run ─────────────────────────────────────────────────────────────────────────────────── */

struct serve_request {
    double begin, first, last; /* seconds; first 0: no token yet */
    uint32_t prompt, wanted, tokens;
    bool done;
};

struct serve_log {
    struct serve_request *requests; /* [n] */
    uint32_t n, sent, active,
        full; /* full: as many under way at once are the load that was asked for */
    uint32_t finished, refused, failed;
    uint64_t prompt_tokens, tokens; /* of finished requests' prompts; all tokens that came */
    double begin, end;              /* first request, last message */
    double full_since, full_until;  /* the load was full; 0: never */
    uint64_t full_tokens;           /* that came meanwhile */
    struct serve_times first, gap, token, whole;
};
void serve_log_create(struct serve_log *log, uint32_t n, uint32_t full);
void serve_log_free(struct serve_log *log);
/* Request i, in order from 0, was sent (or was due) at `time`. */
void serve_log_sent(struct serve_log *log, uint32_t i, uint32_t prompt, uint32_t wanted,
                    double time);
void serve_log_tokens(struct serve_log *log, uint32_t i, uint32_t n, double time);
enum serve_end { SERVE_FINISHED, SERVE_REFUSED, SERVE_FAILED };
void serve_log_end(struct serve_log *log, uint32_t i, enum serve_end end, double time);

/* ── options ───────────────────────────────────────────────────────────────────────────────── */

struct serve_options {
    const char *connect, *key, *server_key; /* key NULL: none is shown */
    const char *model, *device, *kv_type, *output, *clients_text, *prompt_text, *gen_text;
    int64_t launch, requests, shared, seed, threads, context, sequences, step_tokens, warmup,
        vocabulary;
    double rate, temperature;
    bool fast;
    struct bench_list clients;
    struct serve_lengths prompt, gen;
    enum bench_format format;
    char **extra; /* [n_extra] words for gptoss-coordinator */
    int n_extra;
};
/* 0: go on; 1: --help was printed; -1: wrong use, told on stderr. */
int serve_parse(struct serve_options *options, int argc, char **argv);

/* What was measured with one number of clients, or one rate. */
struct serve_result {
    const struct serve_options *options;
    uint32_t clients; /* 0: by rate */
    char time[32];
    const struct serve_log *log;
    /* Of the ranks and the coordinator, over the run; < 0: not known. */
    uint32_t stages;
    char model[512], device[128];
    double steps, bubble, hop_us;
    double busy[64]; /* share of each stage, of the first 64 */
    double cpu;      /* share of a core that this program took */
};

struct serve_report;
struct serve_report *serve_report_create(enum bench_format format);
void serve_report_add(struct serve_report *report, const struct serve_result *result);
void serve_report_finish(struct serve_report *report); /* prints what is left, and frees */

#endif
