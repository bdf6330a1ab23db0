#include "kernels/host/host.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/pool.h"

/* ── device ────────────────────────────────────────────────────────────────────────────────── */

void host_destroy(struct kernels *k)
{
    free((struct host_device *)k);
}

void host_info(const struct kernels *k, struct kernels_info *info)
{
    const struct host_device *device = (const struct host_device *)k;
    char name[64], boot[40] = "";
    host_device_text(name, sizeof name);
    snprintf(info->backend, sizeof info->backend, "%s", k->backend->name);
    snprintf(info->device, sizeof info->device, "%s, %s, %u thread%s", name, device->isa,
             device->threads, device->threads == 1 ? "" : "s");
    if (device->fast && strlen(info->device) + sizeof ", fast" <= sizeof info->device)
        strcat(info->device, ", fast");
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (file) {
        if (!fgets(boot, sizeof boot, file))
            boot[0] = '\0';
        fclose(file);
    }
    boot[strcspn(boot, "\n")] = '\0';
    snprintf(info->uuid, sizeof info->uuid, "cpu-%s", boot);
    info->memory_free_bytes = host_memory_free();
    info->threads = device->threads;
    info->fast = device->fast;
    info->bandwidth = host_bandwidth(device->threads);
}

/* ── loading ───────────────────────────────────────────────────────────────────────────────── */

int host_footprint(const struct kernels *k, const struct gguf_model *model,
                   const struct kernels_stage_options *options, struct kernels_footprint *footprint)
{
    struct host_stage stage;
    host_stage_prepare(&stage, (const struct host_device *)k, model, options);
    if (host_layout(&stage))
        return -1;
    footprint->weights_bytes = stage.weights_bytes;
    footprint->kv_bytes = stage.kv_bytes;
    footprint->activation_bytes = sizeof stage + stage.activation_bytes;
    return 0;
}

static int fill_rotation(struct host_stage *stage, char *err, size_t err_size)
{
    const struct gguf_model *m = stage->base.model;
    uint32_t half = m->head_dim / 2;
    double *omega = calloc(half + 1, sizeof *omega);
    if (!omega) {
        snprintf(err, err_size, "no memory for the angles of a head of %u", m->head_dim);
        return -1;
    }
    double magnitude = gguf_model_rope(m, omega);
    for (uint32_t p = 0; p < stage->base.options.context; p++)
        for (uint32_t i = 0; i < half; i++) {
            double sine, cosine;
            sincos(p * omega[i], &sine, &cosine);
            stage->cosine[(uint64_t)p * half + i] = (float)(magnitude * cosine);
            stage->sine[(uint64_t)p * half + i] = (float)(magnitude * sine);
        }
    free(omega);
    return 0;
}

static unsigned char *map_memory(uint64_t bytes)
{
    void *memory = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    /* A refusal costs speed alone. */
    madvise(memory, bytes ? bytes : 1, MADV_HUGEPAGE);
    return memory;
}

int host_stage_create(struct kernels_stage **out, struct kernels *k, const struct gguf_model *model,
                      const struct kernels_stage_options *options, char *err, size_t err_size)
{
    const struct host_device *device = (const struct host_device *)k;
    struct host_stage *stage = malloc(sizeof *stage);
    if (!stage) {
        snprintf(err, err_size, "no memory for a stage");
        return -1;
    }
    host_stage_prepare(stage, device, model, options);
    stage->base.k = k;
    if (host_layout(stage)) {
        snprintf(err, err_size,
                 "the stage's buffers overflow: ask for fewer slots, lanes or tokens");
        goto fail;
    }
    stage->memory = map_memory(stage->activation_bytes);
    stage->kv_memory = map_memory(stage->kv_bytes);
    if (!stage->memory || !stage->kv_memory) {
        snprintf(err, err_size,
                 "no memory for %llu bytes of KV cache and %llu of buffers: lower --context or "
                 "--sequences",
                 (unsigned long long)stage->kv_bytes, (unsigned long long)stage->activation_bytes);
        goto fail;
    }
    host_layout(stage);
    for (uint32_t i = 0; i < options->slots; i++)
        stage->slot_token[i] = -1;
    if (fill_rotation(stage, err, err_size) ||
        pool_create(&stage->context.pool, stage->threads, err, err_size))
        goto fail;

    if (host_load(stage, err, err_size))
        goto fail;
    if (host_stream_start(stage, err, err_size))
        goto fail;
    *out = &stage->base;
    return 0;

fail:
    host_stage_destroy(&stage->base);
    return -1;
}

void host_stage_destroy(struct kernels_stage *base)
{
    struct host_stage *stage = (struct host_stage *)base;
    host_stream_stop(stage);
    pool_destroy(stage->context.pool);
    if (stage->packed_memory)
        munmap(stage->packed_memory, stage->packed_bytes);
    if (stage->memory)
        munmap(stage->memory, stage->activation_bytes ? stage->activation_bytes : 1);
    if (stage->kv_memory)
        munmap(stage->kv_memory, stage->kv_bytes ? stage->kv_bytes : 1);
    free(stage);
}

/* ── use ───────────────────────────────────────────────────────────────────────────────────── */

static struct host_lane *lane_of(const struct kernels_stage *base, uint32_t lane)
{
    return &((const struct host_stage *)base)->lanes[lane];
}

/* Copies one list of block numbers behind those copied so far. */
static void copy_given(const uint32_t **list, uint32_t count, uint32_t *to, uint64_t *used)
{
    if (!to || !count) /* a pool without layers here */
        return;
    memcpy(to + *used, *list, count * sizeof **list);
    *list = to + *used;
    *used += count;
}

void host_step(struct kernels_stage *base, uint32_t lane_index, const struct kernels_step *step)
{
    struct host_stage *stage = (struct host_stage *)base;
    struct host_lane *lane = lane_of(base, lane_index);
    lane->step = *step;
    lane->step.rows = lane->rows;
    lane->step.tokens = lane->tokens;
    memcpy(lane->rows, step->rows, step->n_rows * sizeof *step->rows);
    if (lane->tokens)
        memcpy(lane->tokens, step->tokens, step->n_tokens * sizeof *step->tokens);
    uint64_t full_used = 0, window_used = 0;
    for (uint32_t i = 0; i < step->n_rows; i++) {
        struct kernels_row *row = &lane->rows[i];
        copy_given(&row->full_given, row->full_given_count, lane->full_given, &full_used);
        copy_given(&row->window_given, row->window_given_count, lane->window_given, &window_used);
    }
    atomic_store(&lane->failed, false);
    host_stream_put(stage, lane_index, HOST_STEP);
}

void host_ring(struct kernels_stage *base, uint32_t lane_index, const uint32_t *slots,
               uint32_t count)
{
    struct host_lane *lane = lane_of(base, lane_index);
    if (count)
        memcpy(lane->ring_slots, slots, count * sizeof *slots);
    lane->ring_count = count;
    host_stream_put((struct host_stage *)base, lane_index, HOST_RING);
}

int host_test(struct kernels_stage *base, uint32_t lane_index, char *err, size_t err_size)
{
    struct host_lane *lane = lane_of(base, lane_index);
    if (atomic_load(&lane->pending))
        return 0;
    if (!atomic_load(&lane->failed))
        return 1;
    snprintf(err, err_size, "%s", lane->error);
    return -1;
}

double host_busy_seconds(const struct kernels_stage *base)
{
    return (double)atomic_load(&((const struct host_stage *)base)->busy_ns) * 1e-9;
}

float *host_input(struct kernels_stage *base, uint32_t lane)
{
    return lane_of(base, lane)->input;
}

float *host_output(struct kernels_stage *base, uint32_t lane)
{
    return lane_of(base, lane)->output;
}

int32_t *host_sampled(struct kernels_stage *base, uint32_t lane)
{
    return lane_of(base, lane)->sampled;
}

void *host_stream(struct kernels_stage *base)
{
    (void)base;
    return NULL;
}

const struct kernels_sample *host_sample(const struct kernels_stage *base, uint32_t lane,
                                         uint32_t i)
{
    return &lane_of(base, lane)->samples[i];
}

const float *host_logits(const struct kernels_stage *base, uint32_t lane, uint32_t i)
{
    return lane_of(base, lane)->logits + (uint64_t)i * base->model->vocabulary;
}
