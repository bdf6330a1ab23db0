/*
 * cuda_speed: times whole steps of one stage that holds the whole model, on the device itself
 * (kernels_stage_busy_seconds) and by the wall clock.
 *
 *     cuda_speed MODEL DEPTH BATCH… [pp:TOKENS]… [variant:BITS]… [pause:SECONDS] [profile]
 *
 * For each BATCH: that many sequences of random tokens decode from DEPTH on; for each pp: a prompt of
 * so many tokens in chunks of at most 2,048. With variants all of it is done with each, twice, in turn
 * (CUDA_VARIANT_… in kernels/cuda/device.cuh; the model is loaded each time), with pause:SECONDS
 * between, to cool. After `profile` each is run once more between
 * cudaProfilerStart and cudaProfilerStop (ncu --profile-from-start off).
 */
#include "gguf/gguf.h"
#include "kernels/kernels.h"

#include <cuda_profiler_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BLOCK = 64, STEP = 2048, LANES = 4 };

extern uint32_t cuda_variant; /* kernels/cuda/device.cuh */

static struct kernels_stage *stage;
static const struct gguf_model *model;
static uint64_t random_state = 1;
static char err[256];
static bool profile;

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

static void die(void)
{
    fprintf(stderr, "%s\n", err);
    exit(1);
}

static void wait_for(uint32_t lane)
{
    int done;
    while (!(done = kernels_stage_test(stage, lane, err, sizeof err)))
        ;
    if (done < 0)
        die();
}

/* Blocks are dealt so that slot s has blocks s · entries …; the window's likewise, none is freed. */
static void give(struct kernels_row *row, uint32_t entries, uint32_t *blocks)
{
    uint32_t have = (row->position + BLOCK - 1) / BLOCK;
    uint32_t need = (row->position + row->count + BLOCK - 1) / BLOCK;
    for (uint32_t i = have; i < need; i++)
        blocks[i - have] = row->slot * entries + i;
    row->full_given = row->window_given = blocks;
    row->full_given_count = row->window_given_count = need - have;
    row->restart = row->position == 0;
}

static void prefill(uint32_t slot, uint32_t n, uint32_t entries, bool wait)
{
    static int32_t tokens[STEP];
    static uint32_t blocks[1 << 16];
    static uint32_t lane;
    for (uint32_t at = 0; at < n; at += STEP) {
        uint32_t count = n - at < STEP ? n - at : STEP;
        for (uint32_t i = 0; i < count; i++)
            tokens[i] = random_token();
        struct kernels_row row = {.slot = slot,
                                  .position = at,
                                  .count = count,
                                  .sample_from = at + count == n ? count - 1 : count,
                                  .top_p = 1};
        give(&row, entries, blocks);
        struct kernels_step step = {.n_rows = 1,
                                    .n_tokens = count,
                                    .n_samples = count - row.sample_from,
                                    .rows = &row,
                                    .tokens = tokens};
        wait_for(lane);
        if (kernels_stage_step(stage, lane, &step, err, sizeof err))
            die();
        uint32_t used = lane;
        lane = (lane + 1) % LANES;
        if (at + count == n) {
            if (kernels_stage_ring(stage, used, &slot, 1, err, sizeof err))
                die();
            if (wait)
                wait_for(used);
        }
    }
}

static void decode(uint32_t batch, uint32_t depth, uint32_t steps, uint32_t entries)
{
    static struct kernels_row rows[256];
    static uint32_t blocks[256][4], slots[256];
    static int32_t tokens[256];
    for (uint32_t s = 0; s < batch; s++)
        prefill(s, depth, entries, true);
    double begin = 0, busy = 0;
    uint32_t warm = 10;
    for (uint32_t i = 0; i < steps + warm; i++) {
        uint32_t lane = i % LANES;
        wait_for(lane);
        if (profile && i + 1 == steps + warm)
            cudaProfilerStart();
        if (i == warm) {
            for (uint32_t l = 0; l < LANES; l++)
                wait_for(l);
            begin = now();
            busy = kernels_stage_busy_seconds(stage);
        }
        for (uint32_t s = 0; s < batch; s++) {
            rows[s] = (struct kernels_row){.slot = s,
                                           .position = depth + i,
                                           .count = 1,
                                           .temperature = 1,
                                           .top_p = 1,
                                           .seed = s};
            give(&rows[s], entries, blocks[s]);
            tokens[s] = KERNELS_TOKEN_SAMPLED;
            slots[s] = s;
        }
        struct kernels_step step = {
            .n_rows = batch, .n_tokens = batch, .n_samples = batch, .rows = rows, .tokens = tokens};
        if (kernels_stage_step(stage, lane, &step, err, sizeof err) ||
            kernels_stage_ring(stage, lane, slots, batch, err, sizeof err))
            die();
    }
    for (uint32_t l = 0; l < LANES; l++)
        wait_for(l);
    cudaProfilerStop();
    double wall = (now() - begin) / steps,
           device = (kernels_stage_busy_seconds(stage) - busy) / steps;
    printf("tg   batch %3u depth %5u: %8.1f tok/s   %8.1f us a step, %8.1f on the device\n", batch,
           depth, batch / wall, wall * 1e6, device * 1e6);
    fflush(stdout);
}

static void prompt(uint32_t n, uint32_t entries)
{
    prefill(0, n, entries, true);
    double begin = now();
    uint32_t rounds = n <= 512 ? 6 : 3;
    for (uint32_t i = 0; i < rounds; i++)
        prefill(0, n, entries, true);
    double wall = (now() - begin) / rounds;
    if (profile) {
        cudaProfilerStart();
        prefill(0, n, entries, true);
        cudaProfilerStop();
    }
    printf("pp   %5u tokens:          %8.1f tok/s   %8.1f us\n", n, n / wall, wall * 1e6);
    fflush(stdout);
}

/* What an argument asks for: 0 where it is of another kind. */
static uint32_t number_of(const char *argument, const char *kind)
{
    size_t n = strlen(kind);
    return strncmp(argument, kind, n) ? 0 : (uint32_t)atoi(argument + n);
}

/* Makes the stage and does all that is asked for. */
static void run(struct kernels *k, const struct kernels_stage_options *options, uint32_t depth,
                int argc, char **argv)
{
    struct kernels_footprint footprint;
    uint32_t entries = options->context / BLOCK;
    kernels_stage_footprint(k, model, options, &footprint);
    double begin = now();
    if (kernels_stage_create(&stage, k, model, options, err, sizeof err))
        die();
    printf("variant %u, loaded in %.2f s: weights %.2f GB, KV %.2f, buffers %.2f\n", cuda_variant,
           now() - begin, (double)footprint.weights_bytes * 1e-9, (double)footprint.kv_bytes * 1e-9,
           (double)footprint.activation_bytes * 1e-9);
    fflush(stdout);
    for (int i = 3; i < argc; i++)
        if (!strcmp(argv[i], "profile"))
            profile = true;
        else if (number_of(argv[i], "pp:"))
            prompt(number_of(argv[i], "pp:"), entries);
        else if (number_of(argv[i], ""))
            decode(number_of(argv[i], ""), depth, profile ? 2 : 100, entries);
    kernels_stage_destroy(stage);
}

int main(int argc, char **argv)
{
    struct gguf_file *file;
    struct gguf_model *m;
    struct kernels *k;
    uint32_t most = 1, depth = argc > 2 ? (uint32_t)atoi(argv[2]) : 0, longest = depth + 256;
    uint32_t pause = 0;
    bool varied = false;
    if (argc < 3) {
        fprintf(stderr, "usage: cuda_speed MODEL DEPTH BATCH... [pp:TOKENS]... [variant:BITS]... "
                        "[pause:SECONDS] [profile]\n");
        return 2;
    }
    for (int i = 3; i < argc; i++) {
        uint32_t batch = number_of(argv[i], ""), tokens = number_of(argv[i], "pp:");
        most = batch > most ? batch : most;
        longest = tokens > longest ? tokens : longest;
        pause += number_of(argv[i], "pause:");
    }
    if (gguf_open(&file, argv[1], err, sizeof err) ||
        gguf_model_create(&m, file, err, sizeof err) ||
        kernels_create(&k, &(struct kernels_options){.device = "cuda"}, err, sizeof err))
        die();
    model = m;
    uint32_t entries = (longest + BLOCK - 1) / BLOCK;
    const struct kernels_stage_options options = {.layer_count = m->n_layers,
                                                  .head_count = m->vocabulary,
                                                  .kv_type = KERNELS_KV_F16,
                                                  .block_tokens = BLOCK,
                                                  .full_blocks = most * entries,
                                                  .window_blocks = most * entries,
                                                  .slots = most,
                                                  .context = entries * BLOCK,
                                                  .lanes = LANES,
                                                  .step_rows = most,
                                                  .step_tokens = STEP,
                                                  .step_samples = most};
    for (int round = 0; round < 2; round++)
        for (int i = 3; i < argc; i++) {
            if (strncmp(argv[i], "variant:", 8))
                continue;
            varied = true;
            cuda_variant = number_of(argv[i], "variant:");
            run(k, &options, depth, argc, argv);
            nanosleep(&(struct timespec){.tv_sec = pause}, NULL);
        }
    if (!varied)
        run(k, &options, depth, argc, argv);
    kernels_destroy(k);
    gguf_model_destroy(m);
    gguf_close(file);
    return 0;
}
