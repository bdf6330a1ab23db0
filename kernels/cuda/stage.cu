/*
 * Stage: a range of layers on one GPU. Memory is three device allocations (weights, KV pools, all
 * else) and one of pinned host memory; one function says where everything lies and, without memory,
 * measures: so what was planned and what is taken cannot differ.
 */
#include "kernels/cuda/device.cuh"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ── layout ────────────────────────────────────────────────────────────────────────────────── */

struct arena {
    unsigned char *base; /* NULL: measure */
    uint64_t used;
    bool overflow;
};

template <class T> static T *take(struct arena *a, uint64_t rows, uint64_t columns)
{
    uint64_t n, bytes, begin = (a->used + 255) / 256 * 256, end;
    if (__builtin_mul_overflow(rows, columns, &n) ||
        __builtin_mul_overflow(n, (uint64_t)sizeof(T), &bytes) ||
        __builtin_add_overflow(begin, bytes, &end) || end > UINT64_MAX / 4) {
        a->overflow = true;
        return NULL;
    }
    a->used = end;
    return a->base ? (T *)(a->base + begin) : NULL;
}

static void lay_out_lane(struct arena *device, struct arena *pinned, struct cuda_stage *stage,
                         struct cuda_lane *lane)
{
    const struct kernels_stage_options *o = &stage->base.options;
    uint32_t hidden = stage->base.model->hidden;
    if (!stage->base.embeds)
        lane->input = take<float>(device, o->step_tokens, hidden);
    if (!stage->base.samples)
        lane->output = take<float>(device, o->step_tokens, hidden);
    lane->sampled = take<int32_t>(device, o->step_samples, 1);
    if (stage->base.samples) {
        lane->samples = take<struct kernels_sample>(pinned, o->step_samples, 1);
        if (stage->base.cut)
            lane->picked = take<float>(pinned, o->step_samples, hidden);
        if (o->keep_logits) {
            if (!stage->base.cut)
                lane->logits = take<float>(device, o->step_samples, o->head_count);
            lane->host_logits = take<float>(pinned, o->step_samples, stage->base.model->vocabulary);
        }
    }
    lane->report = take<struct cuda_report>(pinned, 1, 1);
    lane->step = (struct cuda_step *)take<unsigned char>(pinned, stage->step_bytes, 1);
    lane->ring_slots = take<uint32_t>(pinned, o->step_samples, 1);
}

static struct cuda_moe moe_shape(const struct cuda_stage *stage)
{
    const struct gguf_model *m = stage->base.model;
    struct cuda_moe moe = {};
    moe.gate_up = &stage->layers[0].gate_up;
    moe.down = &stage->layers[0].down;
    moe.hidden = m->hidden;
    moe.ffn = m->expert_ffn;
    moe.experts = m->experts;
    moe.active = m->active;
    return moe;
}

/* Of a cut head. */
static void lay_out_jobs(struct arena *a, struct arena *pinned, struct cuda_stage *stage)
{
    const struct kernels_stage_options *o = &stage->base.options;
    const struct gguf_model *m = stage->base.model;
    bool cut = stage->base.cut;
    uint64_t rows = CUDA_HEAD_ROWS;
    if (rows > o->step_samples)
        rows = o->step_samples;
    stage->job_step = (struct cuda_step *)take<unsigned char>(a, cuda_job_bytes(), 1);
    stage->job_x = take<float>(a, rows, m->hidden);
    stage->job_blocks =
        take<struct kernels_slice_block>(a, rows, kernels_slice_blocks(o->head_count));
    stage->job_tops = take<struct kernels_slice_top>(a, rows, 1);
    if (cut) {
        stage->merge_blocks =
            take<struct kernels_slice_block>(a, rows, kernels_slice_blocks(m->vocabulary));
        stage->merge_tops = take<struct kernels_slice_top>(a, rows, o->n_head_parts);
        stage->merge_logits = take<float>(a, rows, m->vocabulary);
    }
    stage->head_clock = take<struct cuda_clock>(a, 1, 1);
    for (uint32_t i = 0; i < o->head_jobs; i++) {
        struct cuda_job *job = &stage->jobs[i];
        job->step = (struct cuda_step *)take<unsigned char>(pinned, cuda_job_bytes(), 1);
        if (!cut)
            job->input = take<float>(pinned, rows, m->hidden);
        for (uint32_t p = 0; p < (cut ? o->n_head_parts : 1); p++)
            job->replies[p] =
                take<unsigned char>(pinned,
                                    kernels_reply_bytes(cut ? o->head_parts[p] : o->head_count,
                                                        (uint32_t)rows, (uint32_t)rows),
                                    1);
    }
}

static void lay_out_activations(struct arena *a, struct arena *pinned, struct cuda_stage *stage)
{
    const struct kernels_stage_options *o = &stage->base.options;
    const struct gguf_model *m = stage->base.model;
    uint64_t tokens = o->step_tokens, q_width = (uint64_t)m->heads * m->head_dim;
    uint64_t kv_width = (uint64_t)m->kv_heads * m->head_dim;
    uint64_t context = (uint64_t)stage->base.table_entries * o->block_tokens;
    stage->x = take<float>(a, tokens, m->hidden);
    stage->h = take<__half>(a, tokens, m->hidden);
    stage->qkv = take<float>(a, tokens, q_width + 2 * kv_width);
    stage->q = take<__half>(a, tokens, q_width);
    stage->attended = take<__half>(a, tokens, q_width);
    stage->partial = take<float>(
        a, o->step_rows,
        cuda_attention_partial_floats(m->heads, m->kv_heads, m->head_dim, (uint32_t)context));
    stage->router_logits = take<float>(a, tokens, m->experts);
    stage->choice = take<int32_t>(a, tokens, m->active);
    stage->choice_weight = take<float>(a, tokens, m->active);
    stage->attention_tickets = take<uint32_t>(a, o->step_rows, m->heads);
    stage->router_tickets = take<uint32_t>(a, tokens, 1);
    stage->finish_ticket = take<uint32_t>(a, 1, 1);
    if (cuda_solo_supports(m))
        stage->router_partial = take<float>(a, cuda_solo_partial_floats(m), 1);
    stage->clock = take<struct cuda_clock>(a, 1, 1);
    if (o->head_count) {
        bool whole = stage->base.samples && !stage->base.cut;
        stage->head_h = take<__half>(a, CUDA_HEAD_ROWS, m->hidden);
        if (!whole || !o->keep_logits)
            stage->logits = take<float>(a, CUDA_HEAD_ROWS, o->head_count);
        if (whole)
            stage->sample_blocks = take<struct kernels_slice_block>(
                a, CUDA_HEAD_ROWS, kernels_slice_blocks(o->head_count));
        else
            lay_out_jobs(a, pinned, stage);
    }
    const struct cuda_moe moe = moe_shape(stage);
    uint32_t rows = o->step_tokens > CUDA_HEAD_ROWS ? o->step_tokens : CUDA_HEAD_ROWS;
    stage->matmul_scratch = take<unsigned char>(a, cuda_matmul_scratch_bytes(&moe, rows), 1);
}

/* -1: something overflows, or err says what cannot be computed. */
static int lay_out(struct cuda_stage *stage, char *err, size_t err_size)
{
    const struct kernels_stage_options *o = &stage->base.options;
    const struct gguf_model *m = stage->base.model;
    struct arena device = {stage->memory, 0, false}, pinned = {stage->pinned, 0, false};
    struct arena kv = {stage->kv_memory, 0, false};
    if (cuda_load_layout(stage, err, err_size))
        return -1;
    snprintf(err, err_size, "the stage's buffers overflow: ask for fewer slots, lanes or tokens");

    stage->step_bytes = cuda_step_bytes(stage);
    if (stage->step_bytes > UINT32_MAX)
        return -1;
    stage->progress = take<struct cuda_progress>(&pinned, 1, 1);
    stage->head_progress = take<struct cuda_progress>(&pinned, 1, 1);
    for (uint32_t i = 0; i < o->lanes; i++)
        lay_out_lane(&device, &pinned, stage, &stage->lanes[i]);
    stage->step = (struct cuda_step *)take<unsigned char>(&device, stage->step_bytes, 1);
    if (stage->base.has_full)
        stage->full_table = take<uint32_t>(&device, o->slots, stage->base.table_entries);
    if (stage->base.has_window)
        stage->window_table = take<uint32_t>(&device, o->slots, stage->base.table_entries);
    stage->slot_token = take<int32_t>(&device, o->slots, 1);
    stage->cosine = take<float>(&device, o->context, m->head_dim / 2);
    stage->sine = take<float>(&device, o->context, m->head_dim / 2);
    lay_out_activations(&device, &pinned, stage);

    for (uint32_t i = 0; o->experts && i < o->layer_count; i++)
        stage->layers[i].forced = take<int32_t>(&device, o->context, m->active);

    uint64_t element = o->kv_type == KERNELS_KV_F32 ? 4 : 2, block_bytes;
    if (__builtin_mul_overflow(2 * (uint64_t)m->kv_heads * m->head_dim, o->block_tokens * element,
                               &block_bytes))
        return -1;
    for (uint32_t i = 0; i < o->layer_count; i++)
        stage->layers[i].kv = take<unsigned char>(
            &kv, stage->layers[i].sliding ? o->window_blocks : o->full_blocks, block_bytes);
    stage->activation_bytes = device.used;
    stage->pinned_bytes = pinned.used;
    stage->kv_bytes = kv.used;
    return device.overflow || pinned.overflow || kv.overflow ? -1 : 0;
}

/* A stage without memory on the device. */
static struct cuda_stage *prepare(const struct kernels *k, const struct gguf_model *model,
                                  const struct kernels_stage_options *o)
{
    struct cuda_stage *stage = (struct cuda_stage *)calloc(1, sizeof *stage);
    if (!stage)
        return NULL;
    stage->device = (const struct cuda_device *)k;
    stage->base.k = (struct kernels *)k;
    stage->base.model = model;
    stage->base.options = *o;
    stage->base.table_entries = (o->context + o->block_tokens - 1) / o->block_tokens;
    stage->base.embeds = o->layer_first == 0;
    stage->base.samples = kernels_is_last(model, o) && o->head_count;
    stage->base.cut = stage->base.samples && o->n_head_parts;
    for (uint32_t i = 0; i < o->layer_count; i++) {
        bool sliding = model->layers[o->layer_first + i].sliding;
        stage->base.has_window = stage->base.has_window || sliding;
        stage->base.has_full = stage->base.has_full || !sliding;
    }
    uint32_t rows = o->step_rows < o->slots ? o->step_rows : o->slots;
    stage->given_capacity = (uint64_t)rows * stage->base.table_entries;
    stage->layers = (struct cuda_layer *)calloc(o->layer_count, sizeof *stage->layers);
    stage->lanes = (struct cuda_lane *)calloc(o->lanes, sizeof *stage->lanes);
    stage->full_span = (struct kernels_span *)calloc(o->slots, sizeof *stage->full_span);
    stage->window_span = (struct kernels_span *)calloc(o->slots, sizeof *stage->window_span);
    stage->slot_serial = (uint64_t *)calloc(o->slots, sizeof *stage->slot_serial);
    stage->jobs = (struct cuda_job *)calloc(o->head_jobs + 1, sizeof *stage->jobs);
    if (stage->layers && stage->lanes && stage->full_span && stage->window_span &&
        stage->slot_serial && stage->jobs)
        return stage;
    cuda_stage_destroy(&stage->base);
    return NULL;
}

int cuda_footprint(const struct kernels *k, const struct gguf_model *model,
                   const struct kernels_stage_options *options, struct kernels_footprint *footprint)
{
    char err[200];
    struct cuda_stage *stage = prepare(k, model, options);
    int status = stage ? lay_out(stage, err, sizeof err) : -1;
    if (!status)
        *footprint = (struct kernels_footprint){stage->weights_bytes, stage->kv_bytes,
                                                stage->activation_bytes};
    if (stage)
        cuda_stage_destroy(&stage->base);
    return status;
}

/* ── making ────────────────────────────────────────────────────────────────────────────────── */

static int refuse_shapes(const struct gguf_model *m, char *err, size_t err_size)
{
    const char *why = cuda_router_refuses(m->hidden, m->experts, m->active);
    if (!cuda_attention_supports(m->head_dim)) {
        snprintf(err, err_size, "heads of %u: the cuda backend attends with heads of 64; use cpu",
                 m->head_dim);
        return -1;
    }
    if (!why && (m->hidden % 8 || m->expert_ffn % 8))
        why = "a hidden or expert size that is no multiple of 8";
    if (!why)
        return 0;
    snprintf(err, err_size, "the model has %s: the cuda backend cannot compute with it; use cpu",
             why);
    return -1;
}

static int refuse_memory(const struct cuda_stage *stage, char *err, size_t err_size)
{
    size_t free_bytes = 0, all_bytes = 0;
    uint64_t wanted = stage->weights_bytes + stage->kv_bytes + stage->activation_bytes;
    if (cudaMemGetInfo(&free_bytes, &all_bytes) != cudaSuccess || wanted <= free_bytes)
        return 0;
    const double gib = 1 << 30;
    snprintf(
        err, err_size,
        "GPU %d has %.2f GiB free; layers %u…%u take %.2f (weights %.2f, KV cache %.2f, buffers "
        "%.2f): lower --context or --sequences, or use more ranks",
        stage->device->index, (double)free_bytes / gib, stage->base.options.layer_first,
        stage->base.options.layer_first + stage->base.options.layer_count - 1, (double)wanted / gib,
        (double)stage->weights_bytes / gib, (double)stage->kv_bytes / gib,
        (double)stage->activation_bytes / gib);
    return -1;
}

/* cos and sin of position · omega, times the magnitude, made in double. */
static int fill_rotation(struct cuda_stage *stage, char *err, size_t err_size)
{
    const struct gguf_model *m = stage->base.model;
    uint32_t half = m->head_dim / 2, context = stage->base.options.context;
    double *omega = (double *)calloc(half + 1, sizeof *omega);
    float *cosine = (float *)calloc((size_t)context * half + 1, sizeof *cosine);
    float *sine = (float *)calloc((size_t)context * half + 1, sizeof *sine);
    cudaError_t error = cudaErrorMemoryAllocation;
    if (omega && cosine && sine) {
        double magnitude = gguf_model_rope(m, omega);
        for (uint32_t p = 0; p < context; p++)
            for (uint32_t i = 0; i < half; i++) {
                double s, c;
                sincos(p * omega[i], &s, &c);
                cosine[(size_t)p * half + i] = (float)(magnitude * c);
                sine[(size_t)p * half + i] = (float)(magnitude * s);
            }
        size_t bytes = (size_t)context * half * sizeof(float);
        error = cudaMemcpy(stage->cosine, cosine, bytes, cudaMemcpyHostToDevice);
        if (error == cudaSuccess)
            error = cudaMemcpy(stage->sine, sine, bytes, cudaMemcpyHostToDevice);
    }
    free(omega);
    free(cosine);
    free(sine);
    if (error == cudaSuccess)
        return 0;
    snprintf(err, err_size, "the angles of %u positions did not reach GPU %d (%s)", context,
             stage->device->index, cudaGetErrorString(error));
    return -1;
}

/* For tests: the experts that the router is to choose. */
static int fill_forced(struct cuda_stage *stage, char *err, size_t err_size)
{
    const struct kernels_stage_options *o = &stage->base.options;
    uint64_t n = (uint64_t)o->context * stage->base.model->active;
    for (uint32_t i = 0; o->experts && i < o->layer_count; i++)
        if (cudaMemcpy(stage->layers[i].forced, o->experts + i * n, n * sizeof *o->experts,
                       cudaMemcpyHostToDevice) != cudaSuccess) {
            snprintf(err, err_size, "the experts of layer %u did not reach GPU %d", i,
                     stage->device->index);
            return -1;
        }
    return 0;
}

static int take_memory(struct cuda_stage *stage, char *err, size_t err_size)
{
    uint64_t slots = stage->base.options.slots;
    int lowest = 0, highest = 0;
    cudaError_t error = cudaStreamCreateWithFlags(&stage->stream, cudaStreamNonBlocking);
    if (error == cudaSuccess)
        error = cudaDeviceGetStreamPriorityRange(&lowest, &highest);
    if (error == cudaSuccess)
        error = cudaStreamCreateWithPriority(&stage->head_stream, cudaStreamNonBlocking, highest);
    if (error == cudaSuccess)
        error = cudaMalloc(&stage->weights_memory, stage->weights_bytes + 1);
    if (error == cudaSuccess)
        error = cudaMalloc(&stage->kv_memory, stage->kv_bytes + 1);
    if (error == cudaSuccess)
        error = cudaMalloc(&stage->memory, stage->activation_bytes + 1);
    if (error == cudaSuccess)
        error = cudaHostAlloc(&stage->pinned, stage->pinned_bytes + 1, cudaHostAllocDefault);
    if (error == cudaSuccess)
        error = cudaMemset(stage->memory, 0, stage->activation_bytes);
    if (error != cudaSuccess) {
        cudaGetLastError();
        snprintf(err, err_size,
                 "GPU %d gave no memory for %llu bytes of weights, %llu of KV cache and %llu of "
                 "buffers, %llu pinned (%s): lower --context or --sequences",
                 stage->device->index, (unsigned long long)stage->weights_bytes,
                 (unsigned long long)stage->kv_bytes, (unsigned long long)stage->activation_bytes,
                 (unsigned long long)stage->pinned_bytes, cudaGetErrorString(error));
        return -1;
    }
    memset(stage->pinned, 0, stage->pinned_bytes);
    if (lay_out(stage, err, err_size))
        return -1;
    error = cudaMemset(stage->slot_token, 0xff, slots * sizeof *stage->slot_token);
    if (error == cudaSuccess)
        error = cudaDeviceSynchronize();
    if (error == cudaSuccess)
        return 0;
    snprintf(err, err_size, "GPU %d: %s", stage->device->index, cudaGetErrorString(error));
    return -1;
}

/* ── telling that work is done ─────────────────────────────────────────────────────────────── */

#define WATCH_SPINS 20000u /* looks before it begins to sleep between them */

/* What was done on both streams; each counts by one. */
static uint64_t done_of(const struct cuda_stage *stage)
{
    return stage->progress->serial + stage->head_progress->serial;
}

/* Looks at the progress that the device writes to host memory. While steps are quick it never sleeps:
 * a host function on the stream would hold up the kernels behind it for longer. */
static void *watcher_main(void *arg)
{
    struct cuda_stage *stage = (struct cuda_stage *)arg;
    uint64_t told = 0;
    for (;;) {
        pthread_mutex_lock(&stage->mutex);
        while (!stage->quit && stage->queued <= told)
            pthread_cond_wait(&stage->wake, &stage->mutex);
        bool quit = stage->quit;
        pthread_mutex_unlock(&stage->mutex);
        if (quit)
            return NULL;
        for (uint32_t spins = 0; done_of(stage) == told; spins++) {
            if (__atomic_load_n(&stage->quit, __ATOMIC_RELAXED))
                return NULL;
            if (spins < WATCH_SPINS) {
                __builtin_ia32_pause();
                continue;
            }
            const struct timespec pause = {0, 20000};
            nanosleep(&pause, NULL);
            if (spins % 1024 == 0) { /* a dead device writes nothing: let the owner look */
                cudaSetDevice(stage->device->index);
                cudaError_t error = cudaStreamQuery(stage->stream);
                if (error != cudaSuccess && error != cudaErrorNotReady)
                    break;
            }
        }
        told = done_of(stage);
        stage->base.options.notify(stage->base.options.arg);
        if (stage->failed)
            return NULL;
    }
}

static int start_watcher(struct cuda_stage *stage, char *err, size_t err_size)
{
    if (!stage->base.options.notify)
        return 0;
    pthread_mutex_init(&stage->mutex, NULL);
    pthread_cond_init(&stage->wake, NULL);
    if (pthread_create(&stage->watcher, NULL, watcher_main, stage)) {
        snprintf(err, err_size, "cannot start the stage's thread: too many processes or threads?");
        return -1;
    }
    stage->watching = true;
    return 0;
}

int cuda_stage_create(struct kernels_stage **out, struct kernels *k, const struct gguf_model *model,
                      const struct kernels_stage_options *options, char *err, size_t err_size)
{
    if (refuse_shapes(model, err, err_size))
        return -1;
    cudaSetDevice(((struct cuda_device *)k)->index);
    struct cuda_stage *stage = prepare(k, model, options);
    if (!stage) {
        snprintf(err, err_size, "no memory for a stage");
        return -1;
    }
    if (lay_out(stage, err, err_size) || refuse_memory(stage, err, err_size) ||
        take_memory(stage, err, err_size) || fill_rotation(stage, err, err_size) ||
        fill_forced(stage, err, err_size) || cuda_load(stage, err, err_size) ||
        cuda_step_capture(stage, err, err_size) || start_watcher(stage, err, err_size)) {
        cuda_stage_destroy(&stage->base);
        return -1;
    }
    *out = &stage->base;
    return 0;
}

void cuda_stage_destroy(struct kernels_stage *base)
{
    struct cuda_stage *stage = (struct cuda_stage *)base;
    cudaSetDevice(stage->device->index);
    if (stage->watching) {
        pthread_mutex_lock(&stage->mutex);
        __atomic_store_n(&stage->quit, true, __ATOMIC_RELAXED);
        pthread_cond_signal(&stage->wake);
        pthread_mutex_unlock(&stage->mutex);
        pthread_join(stage->watcher, NULL);
        pthread_cond_destroy(&stage->wake);
        pthread_mutex_destroy(&stage->mutex);
    }
    if (stage->stream) {
        cudaStreamSynchronize(stage->stream);
        for (uint32_t i = 0; i < stage->n_graphs; i++)
            cudaGraphExecDestroy(stage->graphs[i].exec);
        cudaStreamDestroy(stage->stream);
    }
    if (stage->head_stream) {
        cudaStreamSynchronize(stage->head_stream);
        cudaStreamDestroy(stage->head_stream);
    }
    free(stage->graphs);
    if (stage->weights_memory)
        cudaFree(stage->weights_memory);
    if (stage->kv_memory)
        cudaFree(stage->kv_memory);
    if (stage->memory)
        cudaFree(stage->memory);
    if (stage->pinned)
        cudaFreeHost(stage->pinned);
    free(stage->layers);
    free(stage->lanes);
    free(stage->full_span);
    free(stage->window_span);
    free(stage->slot_serial);
    free(stage->jobs);
    free(stage);
}
