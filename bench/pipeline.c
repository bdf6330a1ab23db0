/*
 * pipeline: worlds of ranks, and the order in which tests are run in them.
 *
 * Worlds that are to be compared (a pipeline driven both ways, its replicas) make a group. On CPUs the
 * group's worlds are there together and take turns repetition by repetition, because what such a
 * machine gives changes from minute to minute; on GPUs, whose memory one world fills, they come one
 * after the other.
 */
#include "bench/pipeline.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A test as one world runs it. */
struct variant {
    size_t index; /* of the test */
    bool weak;
    struct bench_test test;
};

/* What one world measured in one variant. */
struct cell {
    bool measured;
    char time[32];
    double *seconds, *speed, *busy; /* [repetitions] */
};

struct entrant {
    const struct bench_driver *driver;
    size_t driver_index;
    bool replicas;
    char label[64];
    struct bench_world *world;
    struct bench_world_info info;
    struct cell *cells; /* [n_variants] */
};

enum { ENTRANTS_MAX = 4 };

struct group {
    struct pipeline *p;
    size_t stage_index, thread_index;
    struct bench_world_options options;
    struct entrant entrants[ENTRANTS_MAX];
    size_t n_entrants;
    struct variant *variants; /* [n_variants] */
    size_t n_variants;
    size_t n_reported; /* variants */
};

static void iso_time(char *text, size_t text_size)
{
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(text, text_size, "%Y-%m-%dT%H:%M:%SZ", &utc);
}

/* ── a group ───────────────────────────────────────────────────────────────────────────────── */

static void make_variants(struct group *g)
{
    const struct pipeline *p = g->p;
    g->variants = base_alloc(2 * p->n_tests, sizeof *g->variants);
    for (size_t i = 0; i < p->n_tests; i++)
        for (int weak = 0; weak < 2; weak++) {
            /* With one stage the two are one. */
            if (weak ? !p->weak || (p->strong && g->options.stages == 1) : !p->strong)
                continue;
            struct variant *v = &g->variants[g->n_variants++];
            *v = (struct variant){i, weak, p->tests[i]};
            if (weak)
                v->test.sequences *= g->options.stages;
        }
}

static void add_entrant(struct group *g, size_t driver, bool replicas)
{
    const struct pipeline *p = g->p;
    struct entrant *e = &g->entrants[g->n_entrants++];
    e->driver = p->drivers[driver];
    e->driver_index = driver;
    e->replicas = replicas;
    snprintf(e->label, sizeof e->label, "%" PRIu32 " %s%s, %s", g->options.stages,
             replicas ? "replica" : "stage", g->options.stages == 1 ? "" : "s", e->driver->name);
    e->cells = base_alloc(g->n_variants, sizeof *e->cells);
    for (size_t v = 0; v < g->n_variants; v++) {
        e->cells[v].seconds = base_alloc(p->repetitions, sizeof(double));
        e->cells[v].speed = base_alloc(p->repetitions, sizeof(double));
        e->cells[v].busy = base_alloc(p->repetitions, sizeof(double));
    }
}

static void free_group(struct group *g)
{
    for (size_t i = 0; i < g->n_entrants; i++) {
        bench_world_close(g->entrants[i].world);
        for (size_t v = 0; v < g->n_variants; v++) {
            free(g->entrants[i].cells[v].seconds);
            free(g->entrants[i].cells[v].speed);
            free(g->entrants[i].cells[v].busy);
        }
        free(g->entrants[i].cells);
    }
    free(g->variants);
}

static int open_entrant(struct group *g, struct entrant *e)
{
    char err[1024] = "";
    fprintf(stderr, "# %s: starting\n", e->label);
    int code =
        bench_world_open(&e->world, e->driver, &g->options, e->replicas, &e->info, err, sizeof err);
    if (code)
        fprintf(stderr, "gptoss-bench: %s: %s\n", e->label, err);
    else
        fprintf(stderr, "# %s: layers %s on %s\n", e->label, e->info.layers, e->info.device);
    return code;
}

/* ── running ───────────────────────────────────────────────────────────────────────────────── */

/* Repetition r, from 0; −1: the warm-up. Every repetition has prompts of its own, so that a coordinator
 * that remembers prompts gains nothing; in every world they are the same. */
static int run_once(struct group *g, struct entrant *e, size_t v, int64_t r)
{
    struct pipeline *p = g->p;
    const struct variant *variant = &g->variants[v];
    const struct bench_test *test = &variant->test;
    struct cell *cell = &e->cells[v];
    char name[64], err[1024] = "";
    bench_test_name(test, name, sizeof name);
    const char *why = e->driver->cannot ? e->driver->cannot(test) : NULL;
    if (why) {
        if (r == 0)
            fprintf(stderr, "# %s: %s is left out: %s\n", e->label, name, why);
        return EXIT_DONE;
    }
    if (r <= 0)
        iso_time(cell->time, sizeof cell->time);
    struct bench_sample sample = {.busy = -1};
    sample.ids = base_alloc((size_t)bench_test_samples(test) * test->sequences, sizeof *sample.ids);
    uint64_t seed = ((uint64_t)variant->index << 32) + (uint64_t)(r + 1);
    int status = bench_world_run(e->world, test, seed, &sample, err, sizeof err);
    if (status)
        fprintf(stderr, "gptoss-bench: %s: %s: %s\n", e->label, name, err);
    else if (r >= 0) {
        /* Weak tests have other sequences for each number of stages. */
        size_t kind = variant->weak && g->options.stages > 1 ? 1 + g->stage_index : 0;
        cell->seconds[r] = sample.seconds;
        cell->speed[r] = sample.tokens / sample.seconds;
        cell->busy[r] = sample.busy;
        bench_verify_add(p->verify, kind * p->n_tests + variant->index, (size_t)r, test, sample.ids,
                         e->label);
        cell->measured = (size_t)r + 1 == p->repetitions;
    }
    free(sample.ids);
    return status ? EXIT_FAILED : EXIT_DONE;
}

static void say(const struct group *g, const struct entrant *e, size_t v)
{
    const struct variant *variant = &g->variants[v];
    double mean, deviation;
    char name[64];
    if (!e->cells[v].measured)
        return;
    bench_test_name(&variant->test, name, sizeof name);
    bench_statistics(e->cells[v].speed, g->p->repetitions, &mean, &deviation);
    fprintf(stderr, "# %s: %s, %" PRIu32 " sequence%s: %.2f ± %.2f t/s\n", e->label, name,
            variant->test.sequences, variant->test.sequences == 1 ? "" : "s", mean, deviation);
}

/* Those from `first` on, `n` of them, in one variant, turn by turn. */
static int run_variant(struct group *g, size_t first, size_t n, size_t v)
{
    int code = EXIT_DONE;
    for (int64_t r = g->p->choice.no_warmup ? 0 : -1; r < (int64_t)g->p->repetitions; r++)
        for (size_t i = 0; i < n && code == EXIT_DONE; i++) {
            size_t turn = r % 2 ? i : n - 1 - i; /* who went first goes last */
            code = run_once(g, &g->entrants[first + turn], v, r);
        }
    for (size_t i = 0; i < n && code == EXIT_DONE; i++)
        say(g, &g->entrants[first + i], v);
    return code;
}

static double *one_stage_of(const struct group *g, const struct entrant *e, size_t v)
{
    const struct pipeline *p = g->p;
    return &p->one_stage[(g->thread_index * p->n_drivers + e->driver_index) * p->n_tests +
                         g->variants[v].index];
}

static void report_variant(struct group *g, size_t v)
{
    for (size_t i = 0; i < g->n_entrants; i++) {
        const struct entrant *e = &g->entrants[i];
        const struct cell *cell = &e->cells[v], *other = NULL;
        if (!cell->measured)
            continue;
        for (size_t k = 0; k < g->n_entrants && !e->replicas; k++)
            if (g->entrants[k].replicas && g->entrants[k].driver == e->driver &&
                g->entrants[k].cells[v].measured)
                other = &g->entrants[k].cells[v];
        double deviation, *one_stage = one_stage_of(g, e, v);
        if (g->options.stages == 1)
            bench_statistics(cell->speed, g->p->repetitions, one_stage, &deviation);
        struct bench_result result = {.options = &g->options,
                                      .info = &e->info,
                                      .through = e->driver->name,
                                      .replicas = e->replicas,
                                      .weak = g->variants[v].weak,
                                      .test = g->variants[v].test,
                                      .n = g->p->repetitions,
                                      .seconds = cell->seconds,
                                      .speed = cell->speed,
                                      .busy = cell->busy,
                                      .one_stage = *one_stage,
                                      .replica_speed = other ? other->speed : NULL};
        snprintf(result.time, sizeof result.time, "%s", cell->time);
        bench_report_add(g->p->report, &result);
    }
}

static int run_group(struct group *g)
{
    struct pipeline *p = g->p;
    int code = EXIT_DONE;
    make_variants(g);
    for (int replicas = 0; replicas <= (p->choice.replicas && g->options.stages > 1); replicas++)
        for (size_t d = 0; d < p->n_drivers; d++)
            add_entrant(g, d, replicas);
    if ((code = open_entrant(g, &g->entrants[0])))
        goto done;
    bool together = strcmp(g->entrants[0].info.backend, "CUDA") != 0;
    size_t each = together ? g->n_entrants : 1;
    for (size_t first = 0; first < g->n_entrants && code == EXIT_DONE; first += each) {
        for (size_t i = first; i < first + each && code == EXIT_DONE; i++)
            if (!g->entrants[i].world)
                code = open_entrant(g, &g->entrants[i]);
        for (size_t v = 0; v < g->n_variants && code == EXIT_DONE; v++) {
            code = run_variant(g, first, each, v);
            if (code == EXIT_DONE && each == g->n_entrants)
                report_variant(g, g->n_reported++);
        }
        for (size_t i = first; i < first + each; i++) {
            bench_world_close(g->entrants[i].world);
            g->entrants[i].world = NULL;
        }
    }
    while (code == EXIT_DONE && g->n_reported < g->n_variants)
        report_variant(g, g->n_reported++);
done:
    free_group(g);
    return code;
}

static int run_all(struct pipeline *p)
{
    int code = EXIT_DONE;
    p->report = bench_report_create(p->format, p->model);
    p->verify = bench_verify_create(p->n_tests * (1 + p->stages.n), p->repetitions);
    p->one_stage = base_alloc(p->threads.n * p->n_drivers * p->n_tests + 1, sizeof *p->one_stage);
    for (size_t s = 0; s < p->stages.n; s++)
        for (size_t t = 0; t < p->threads.n && code == EXIT_DONE; t++) {
            struct group group = {.p = p,
                                  .stage_index = s,
                                  .thread_index = t,
                                  .options = {.model = p->model,
                                              .path = p->path,
                                              .head = p->head,
                                              .device = p->choice.device,
                                              .transport = p->choice.transport,
                                              .kv_type = p->kv_type,
                                              .fast = p->choice.fast,
                                              .step_tokens = p->step_tokens,
                                              .stages = p->stages.values[s],
                                              .threads = p->threads.values[t],
                                              .gpu = -1}};
            bench_vocabulary(p->model, &group.options.vocabulary);
            pipeline_size(p, group.options.stages, &group.options);
            code = run_group(&group);
        }
    bench_report_finish(p->report);
    if (code == EXIT_DONE && !bench_verify_finish(p->verify))
        code = EXIT_FAILED;
    bench_verify_destroy(p->verify);
    free(p->one_stage);
    return code;
}

int bench_pipeline(int argc, char **argv)
{
    struct pipeline p = {0};
    char err[1024] = "";
    int code = EXIT_USAGE;
    int status = pipeline_parse(&p, argc, argv);
    if (status) {
        code = status > 0 ? EXIT_DONE : EXIT_USAGE;
        goto done;
    }
    code = EXIT_MODEL;
    if (!realpath(p.choice.model, p.path))
        snprintf(err, sizeof err, "%s: %m", p.choice.model);
    else if (gguf_open(&p.file, p.path, err, sizeof err) == 0 &&
             gguf_model_create(&p.model, p.file, err, sizeof err) == 0)
        code = pipeline_tests(&p) ? EXIT_USAGE : run_all(&p);
    if (err[0])
        fprintf(stderr, "gptoss-bench: %s\n", err);
done:
    gguf_model_destroy(p.model);
    gguf_close(p.file);
    pipeline_free(&p);
    return code;
}
