/*
 * cpu_speed: times whole steps of one stage that holds the whole model, on the CPU backend, by
 * kernels_stage_busy_seconds.
 *
 *     cpu_speed [fast|float] [isa:NAME] [threads:N] MODEL [tg:STEPS[:DEPTH[:BATCH]]]… [pp:TOKENS]…
 *               [deep:STEPS:DEPTH]…
 *
 * For each tg: BATCH sequences decode from DEPTH on; each pp: a prompt of so many tokens. The median
 * and the best of REPEAT are told: on a machine that others use, the best is what the code can do.
 */
#include "gguf/gguf.h"
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BLOCK = 64, STEP = 512, CONTEXT = 4096, SLOTS = 16, REPEAT = 5 };

static struct kernels *device;
static struct kernels_stage *stage;
static const struct gguf_model *model;
static uint64_t random_state = 1;
static char err[256];

static int die(void)
{
    fprintf(stderr, "%s\n", err);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int32_t random_token(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((random_state >> 33) % model->vocabulary);
}

/* Blocks are dealt so that slot s has blocks s · entries …; the window's likewise, none is freed. */
static void give(struct kernels_row *row, uint32_t *blocks)
{
    uint32_t have = (row->position + BLOCK - 1) / BLOCK;
    uint32_t need = (row->position + row->count + BLOCK - 1) / BLOCK;
    for (uint32_t i = have; i < need; i++)
        blocks[i - have] = row->slot * (CONTEXT / BLOCK) + i;
    row->full_given = row->window_given = blocks;
    row->full_given_count = row->window_given_count = need - have;
    row->restart = row->position == 0;
}

/* `count` tokens of each of `batch` sequences, from slot `first` on, at `position`; the last ones are
 * sampled. */
static double step_at(uint32_t first, uint32_t batch, uint32_t position, uint32_t count)
{
    static struct kernels_row rows[SLOTS];
    static uint32_t blocks[SLOTS][CONTEXT / BLOCK];
    static int32_t tokens[STEP];
    for (uint32_t s = 0; s < batch; s++) {
        rows[s] = (struct kernels_row){.slot = first + s,
                                       .position = position,
                                       .count = count,
                                       .sample_from = count - 1,
                                       .top_p = 1};
        give(&rows[s], blocks[s]);
    }
    for (uint32_t i = 0; i < batch * count; i++)
        tokens[i] = random_token();
    const struct kernels_step all = {.n_rows = batch,
                                     .n_tokens = batch * count,
                                     .n_samples = batch,
                                     .rows = rows,
                                     .tokens = tokens};
    double busy = kernels_stage_busy_seconds(stage);
    int done;
    if (kernels_stage_step(stage, 0, &all, err, sizeof err))
        die();
    struct timespec pause = {0, 20000};
    while (!(done = kernels_stage_test(stage, 0, err, sizeof err)))
        nanosleep(&pause, NULL);
    if (done < 0)
        die();
    return kernels_stage_busy_seconds(stage) - busy;
}

static double step(uint32_t batch, uint32_t position, uint32_t count)
{
    return step_at(0, batch, position, count);
}

static double prompt_at(uint32_t first, uint32_t slots, uint32_t n)
{
    double seconds = 0;
    for (uint32_t at = 0, most = STEP / slots; at < n; at += most)
        seconds += step_at(first, slots, at, n - at < most ? n - at : most);
    return seconds;
}

static double prompt(uint32_t slots, uint32_t n)
{
    return prompt_at(0, slots, n);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One sequence at depth 1 and one at DEPTH decode in turn, token by token: what the machine gives
 * changes from second to second, so that only their ratio tells what depth costs. */
static void compare_depths(const char *what)
{
    static double shallow[CONTEXT], deep[CONTEXT], ratio[CONTEXT];
    unsigned n = 0, depth = 0;
    if (sscanf(what, "deep:%u:%u", &n, &depth) != 2 || !n || !depth || n + depth > CONTEXT) {
        fprintf(stderr, "%s: deep:STEPS:DEPTH\n", what);
        exit(2);
    }
    prompt_at(0, 1, 1);
    prompt_at(1, 1, depth);
    for (unsigned i = 0; i < n; i++) {
        shallow[i] = step_at(0, 1, 1 + i, 1);
        deep[i] = step_at(1, 1, depth + i, 1);
        ratio[i] = shallow[i] / deep[i];
    }
    qsort(shallow, n, sizeof *shallow, ascending);
    qsort(deep, n, sizeof *deep, ascending);
    qsort(ratio, n, sizeof *ratio, ascending);
    printf("%-12s median %9.2f tok/s at depth 1, %9.2f at depth %u: of the pairs %.3f (%.3f to "
           "%.3f)\n",
           what, 1 / shallow[n / 2], 1 / deep[n / 2], depth, ratio[n / 2], ratio[n / 4],
           ratio[3 * n / 4]);
    fflush(stdout);
}

static void run(const char *what)
{
    if (!strncmp(what, "deep:", 5)) {
        compare_depths(what);
        return;
    }
    unsigned n = 0, depth = 0, batch = 1;
    double seconds[REPEAT], tokens;
    bool decode = !strncmp(what, "tg:", 3);
    if (sscanf(what + 3, "%u:%u:%u", &n, &depth, &batch) < 1 || !n || n > CONTEXT ||
        depth > CONTEXT || REPEAT * n + depth > CONTEXT || !batch || batch > SLOTS) {
        fprintf(stderr, "%s: tg:STEPS[:DEPTH[:BATCH]] or pp:TOKENS\n", what);
        exit(2);
    }
    tokens = (double)n * batch;
    unsigned at = depth ? depth : 1;
    if (decode)
        prompt(batch, at);
    for (int r = 0; r < REPEAT; r++) {
        if (decode) { /* goes on where the last repetition ended: a long prompt is read once */
            seconds[r] = 0;
            for (unsigned i = 0; i < n; i++)
                seconds[r] += step(batch, at++, 1);
        } else {
            seconds[r] = prompt(1, n);
        }
    }
    qsort(seconds, REPEAT, sizeof *seconds, ascending);
    printf("%-12s median %9.2f tok/s, best %9.2f\n", what, tokens / seconds[REPEAT / 2],
           tokens / seconds[0]);
    fflush(stdout);
}

static void open_model(const char *path, const struct kernels_options *options)
{
    struct gguf_file *file;
    struct gguf_model *m;
    struct kernels_info info;
    if (gguf_open(&file, path, err, sizeof err) || gguf_model_create(&m, file, err, sizeof err) ||
        kernels_create(&device, options, err, sizeof err))
        die();
    model = m;
    kernels_info(device, &info);
    printf("%s; reads %.1f GB/s\n", info.device, info.bandwidth * 1e-9);
    const struct kernels_stage_options o = {.layer_count = m->n_layers,
                                            .head_count = m->vocabulary,
                                            .block_tokens = BLOCK,
                                            .full_blocks = SLOTS * CONTEXT / BLOCK,
                                            .window_blocks = SLOTS * CONTEXT / BLOCK,
                                            .slots = SLOTS,
                                            .context = CONTEXT,
                                            .lanes = 1,
                                            .step_rows = SLOTS,
                                            .step_tokens = STEP,
                                            .step_samples = SLOTS};
    double begin = now();
    if (kernels_stage_create(&stage, device, m, &o, err, sizeof err))
        die();
    printf("loaded in %.2f s\n", now() - begin);
}

int main(int argc, char **argv)
{
    struct kernels_options options = {.device = "cpu", .threads = 2};
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (!strcmp(a, "fast") || !strcmp(a, "float"))
            options.fast = a[1] == 'a';
        else if (!strncmp(a, "isa:", 4))
            options.isa = a + 4;
        else if (!strncmp(a, "threads:", 8))
            options.threads = (uint32_t)atoi(a + 8);
        else if (!stage)
            open_model(a, &options);
        else
            run(a);
    }
    kernels_stage_destroy(stage);
    kernels_destroy(device);
    return 0;
}
