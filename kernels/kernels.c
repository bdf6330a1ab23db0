#include "kernels/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The door: chooses the backend, checks what comes in, forwards. */

int kernels_create(struct kernels **out, const struct kernels_options *options, char *err,
                   size_t err_size)
{
    static const struct kernels_options defaults;
    *out = NULL;
    if (!options)
        options = &defaults;
    const char *device = options->device ? options->device : "auto";
    const struct kernels_backend *backend = NULL;
#if GPTOSS_HAVE_CUDA
    if (!strcmp(device, "cuda")) {
        backend = &kernels_backend_cuda;
    } else if (!strcmp(device, "auto") &&
               !kernels_backend_cuda.create(out, options, err, err_size)) {
        (*out)->backend = &kernels_backend_cuda;
        return 0;
    }
#endif
    if (!strcmp(device, "auto") || !strcmp(device, "cpu"))
        backend = &kernels_backend_cpu;
    else if (!strcmp(device, "reference"))
        backend = &kernels_backend_reference;
    if (!backend) {
        if (!strcmp(device, "cuda"))
            snprintf(err, err_size, "device cuda: this build has no CUDA, use cpu");
        else
            snprintf(err, err_size, "device %s is unknown: auto, cpu, cuda or reference", device);
        return -1;
    }
    if (options->threads > 1024) {
        snprintf(err, err_size, "%u threads: at most 1024 are possible", options->threads);
        return -1;
    }
    if (backend->create(out, options, err, err_size))
        return -1;
    (*out)->backend = backend;
    return 0;
}

void kernels_destroy(struct kernels *k)
{
    if (k)
        k->backend->destroy(k);
}

void kernels_info(const struct kernels *k, struct kernels_info *info)
{
    memset(info, 0, sizeof *info);
    k->backend->info(k, info);
}

void kernels_stage_footprint(const struct kernels *k, const struct gguf_model *model,
                             const struct kernels_stage_options *options,
                             struct kernels_footprint *footprint)
{
    char err[160];
    memset(footprint, 0, sizeof *footprint);
    if (kernels_check_options(model, options, err, sizeof err) ||
        k->backend->footprint(k, model, options, footprint)) {
        /* What cannot be made takes more than there is. */
        *footprint = (struct kernels_footprint){UINT64_MAX / 4, UINT64_MAX / 4, UINT64_MAX / 4};
        return;
    }
    footprint->activation_bytes += kernels_check_bytes(options);
}

int kernels_stage_create(struct kernels_stage **out, struct kernels *k,
                         const struct gguf_model *model,
                         const struct kernels_stage_options *options, char *err, size_t err_size)
{
    struct kernels_stage *stage = NULL;
    *out = NULL;
    if (kernels_check_options(model, options, err, err_size))
        return -1;
    struct kernels_span *full = calloc(options->slots, sizeof *full);
    struct kernels_span *window = calloc(options->slots, sizeof *window);
    struct kernels_span *undo_full = calloc(options->step_rows, sizeof *undo_full);
    struct kernels_span *undo_window = calloc(options->step_rows, sizeof *undo_window);
    uint64_t *seen = calloc(options->slots, sizeof *seen);
    unsigned char *rung = calloc(options->lanes, 1);
    uint32_t *head_parts = calloc(options->n_head_parts + 1, sizeof *head_parts);
    unsigned char *head_made = calloc(options->head_jobs + 1, 1);
    struct kernels_stage_options own = *options;
    if (!full || !window || !undo_full || !undo_window || !seen || !rung || !head_parts ||
        !head_made) {
        snprintf(err, err_size, "no memory for the tables of %u slots", options->slots);
        goto fail;
    }
    if (options->n_head_parts)
        memcpy(head_parts, options->head_parts, options->n_head_parts * sizeof *head_parts);
    own.head_parts = head_parts;
    if (k->backend->stage_create(&stage, k, model, &own, err, err_size))
        goto fail;
    stage->full = full;
    stage->window = window;
    stage->undo_full = undo_full;
    stage->undo_window = undo_window;
    stage->seen = seen;
    stage->rung = rung;
    stage->head_parts = head_parts;
    stage->head_made = head_made;
    *out = stage;
    return 0;

fail:
    free(full);
    free(window);
    free(undo_full);
    free(undo_window);
    free(seen);
    free(rung);
    free(head_parts);
    free(head_made);
    return -1;
}

void kernels_stage_destroy(struct kernels_stage *stage)
{
    if (!stage)
        return;
    free(stage->full);
    free(stage->window);
    free(stage->undo_full);
    free(stage->undo_window);
    free(stage->seen);
    free(stage->rung);
    free(stage->head_made);
    uint32_t *head_parts = stage->head_parts;
    stage->k->backend->stage_destroy(stage);
    free(head_parts); /* the options name it */
}

static int check_lane(const struct kernels_stage *stage, uint32_t lane, char *err, size_t err_size)
{
    if (lane < stage->options.lanes)
        return 0;
    snprintf(err, err_size, "lane %u: the stage has %u", lane, stage->options.lanes);
    return -1;
}

int kernels_stage_step(struct kernels_stage *stage, uint32_t lane, const struct kernels_step *step,
                       char *err, size_t err_size)
{
    const struct kernels_backend *backend = stage->k->backend;
    if (check_lane(stage, lane, err, err_size))
        return -1;
    char ignored[8];
    if (backend->test(stage, lane, ignored, sizeof ignored) == 0) {
        snprintf(err, err_size, "lane %u still has work queued: wait for it before its next step",
                 lane);
        return -1;
    }
    if (kernels_check_step(stage, step, err, err_size))
        return -1;
    stage->rung[lane] = 0;
    if (step->bring && !backend->stream(stage)) /* else the backend calls it */
        step->bring(step->bring_arg);
    backend->step(stage, lane, step);
    return 0;
}

int kernels_stage_ring(struct kernels_stage *stage, uint32_t lane, const uint32_t *slots,
                       uint32_t count, char *err, size_t err_size)
{
    const struct kernels_backend *backend = stage->k->backend;
    if (check_lane(stage, lane, err, err_size))
        return -1;
    if (count > stage->options.step_samples) {
        snprintf(err, err_size, "a ring call of %u tokens: a lane holds %u", count,
                 stage->options.step_samples);
        return -1;
    }
    for (uint32_t i = 0; i < count; i++)
        if (slots[i] >= stage->options.slots) {
            snprintf(err, err_size, "a ring call names slot %u: the stage has %u slots", slots[i],
                     stage->options.slots);
            return -1;
        }
    char ignored[8];
    if (stage->rung[lane] && backend->test(stage, lane, ignored, sizeof ignored) == 0) {
        snprintf(err, err_size, "lane %u still has a ring call queued", lane);
        return -1;
    }
    stage->rung[lane] = 1;
    backend->ring(stage, lane, slots, count);
    return 0;
}

int kernels_stage_test(struct kernels_stage *stage, uint32_t lane, char *err, size_t err_size)
{
    if (check_lane(stage, lane, err, err_size))
        return -1;
    return stage->k->backend->test(stage, lane, err, err_size);
}

double kernels_stage_busy_seconds(const struct kernels_stage *stage)
{
    return stage->k->backend->busy_seconds(stage);
}

float *kernels_stage_input(struct kernels_stage *stage, uint32_t lane)
{
    return lane < stage->options.lanes ? stage->k->backend->input(stage, lane) : NULL;
}

float *kernels_stage_output(struct kernels_stage *stage, uint32_t lane)
{
    return lane < stage->options.lanes ? stage->k->backend->output(stage, lane) : NULL;
}

int32_t *kernels_stage_sampled(struct kernels_stage *stage, uint32_t lane)
{
    return lane < stage->options.lanes ? stage->k->backend->sampled(stage, lane) : NULL;
}

void *kernels_stage_stream(struct kernels_stage *stage)
{
    return stage->k->backend->stream(stage);
}

const struct kernels_sample *kernels_stage_sample(const struct kernels_stage *stage, uint32_t lane,
                                                  uint32_t i)
{
    if (!stage->samples || lane >= stage->options.lanes || i >= stage->options.step_samples)
        return NULL;
    return stage->k->backend->sample(stage, lane, i);
}

const float *kernels_stage_logits(const struct kernels_stage *stage, uint32_t lane, uint32_t i)
{
    if (!stage->samples || !stage->options.keep_logits || lane >= stage->options.lanes ||
        i >= stage->options.step_samples)
        return NULL;
    return stage->k->backend->logits(stage, lane, i);
}

/* ── a cut head ────────────────────────────────────────────────────────────────────────────── */

static int check_slot(const struct kernels_stage *stage, uint32_t slot, char *err, size_t err_size)
{
    if (stage->options.head_count && slot < stage->options.head_jobs &&
        (stage->cut || !stage->samples))
        return 0;
    snprintf(err, err_size, "head job %u: the stage has %u rows of the head, and %u jobs", slot,
             stage->options.head_count, stage->options.head_jobs);
    return -1;
}

uint32_t kernels_stage_head_rows(const struct kernels_stage *stage)
{
    return stage->k->backend->head_rows(stage);
}

size_t kernels_stage_reply_bytes(const struct kernels_stage *stage, uint32_t head_count,
                                 const struct kernels_step *step, uint32_t first, uint32_t count)
{
    struct kernels_pick picks[KERNELS_HEAD_ROWS_MAX];
    uint32_t most = count < KERNELS_HEAD_ROWS_MAX ? count : KERNELS_HEAD_ROWS_MAX, whole = 0;
    uint32_t n = kernels_pick(stage, step, first, most, picks);
    for (uint32_t i = 0; i < n; i++)
        whole += picks[i].whole;
    return kernels_reply_bytes(head_count, n, whole);
}

const float *kernels_stage_picked(const struct kernels_stage *stage, uint32_t lane)
{
    return stage->cut && lane < stage->options.lanes ? stage->k->backend->picked(stage, lane)
                                                     : NULL;
}

float *kernels_stage_head_input(struct kernels_stage *stage, uint32_t slot)
{
    return slot < stage->options.head_jobs ? stage->k->backend->head_input(stage, slot) : NULL;
}

void *kernels_stage_head_reply(struct kernels_stage *stage, uint32_t slot, uint32_t part)
{
    if (slot >= stage->options.head_jobs || part >= (stage->cut ? stage->options.n_head_parts : 1))
        return NULL;
    return stage->k->backend->head_reply(stage, slot, part);
}

int kernels_stage_head(struct kernels_stage *stage, uint32_t slot, uint32_t lane,
                       const struct kernels_step *step, uint32_t first, uint32_t count, char *err,
                       size_t err_size)
{
    const struct kernels_backend *backend = stage->k->backend;
    struct kernels_pick picks[KERNELS_HEAD_ROWS_MAX];
    char ignored[8];
    if (check_slot(stage, slot, err, err_size) || check_lane(stage, lane, err, err_size) ||
        kernels_check_job(stage, step, first, count, err, err_size))
        return -1;
    if (backend->head_test(stage, slot, ignored, sizeof ignored) == 0) {
        snprintf(err, err_size, "head job %u is still under way", slot);
        return -1;
    }
    if (kernels_pick(stage, step, first, count, picks) != count) {
        snprintf(err, err_size, "a job of samples %u+%u of a step that has not as many", first,
                 count);
        return -1;
    }
    stage->head_made[slot] = 1;
    backend->head(stage, slot, lane, picks, first, count);
    return 0;
}

int kernels_stage_merge(struct kernels_stage *stage, uint32_t slot, char *err, size_t err_size)
{
    const struct kernels_backend *backend = stage->k->backend;
    char ignored[8];
    if (check_slot(stage, slot, err, err_size))
        return -1;
    if (!stage->cut || !stage->head_made[slot] ||
        backend->head_test(stage, slot, ignored, sizeof ignored) == 0) {
        snprintf(err, err_size, "head job %u cannot be merged: it is not made, or under way", slot);
        return -1;
    }
    stage->head_made[slot] = 0;
    backend->merge(stage, slot);
    return 0;
}

int kernels_stage_head_test(struct kernels_stage *stage, uint32_t slot, char *err, size_t err_size)
{
    if (check_slot(stage, slot, err, err_size))
        return -1;
    return stage->k->backend->head_test(stage, slot, err, err_size);
}

/* ── the second door ───────────────────────────────────────────────────────────────────────── */

int kernels_op_rmsnorm(struct kernels *k, const struct kernels_op_rmsnorm *op, double *seconds)
{
    return k->backend->op_rmsnorm ? k->backend->op_rmsnorm(k, op, seconds) : -1;
}

int kernels_op_linear(struct kernels *k, const struct kernels_op_linear *op, double *seconds)
{
    return k->backend->op_linear ? k->backend->op_linear(k, op, seconds) : -1;
}

int kernels_op_attention(struct kernels *k, const struct kernels_op_attention *op, double *seconds)
{
    return k->backend->op_attention ? k->backend->op_attention(k, op, seconds) : -1;
}

int kernels_op_moe(struct kernels *k, const struct kernels_op_moe *op, double *seconds)
{
    return k->backend->op_moe ? k->backend->op_moe(k, op, seconds) : -1;
}

int kernels_op_sample(struct kernels *k, const struct kernels_op_sample *op, double *seconds)
{
    return k->backend->op_sample ? k->backend->op_sample(k, op, seconds) : -1;
}

int kernels_limits(struct kernels *k, struct kernels_limits *limits)
{
    *limits = (struct kernels_limits){.unit = ""};
    return k->backend->limits ? k->backend->limits(k, limits) : -1;
}
