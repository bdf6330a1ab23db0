/*
 * Head: jobs of a head that is cut by vocabulary: this stage's part of the logits as a reply, and on the
 * last stage the replies of all parts as samples.
 *
 * Jobs have a stream of their own, of higher priority than that of the steps, so that they do not wait
 * for layers that are queued, nor where those wait for a neighbour who waits for a reply: so nothing of
 * a job may use what layers occupy while they wait (copy.cu). Their buffers on the device are their own
 * too, one set, as jobs follow each other. A job is described as a step is (device.cuh): token i of it
 * is its sample i, and the token's `slot` is the place of the row among those whose logits are all
 * passed on.
 */
#include "kernels/cuda/device.cuh"

#include <stdio.h>
#include <string.h>

static uint64_t padded(uint64_t bytes)
{
    return (bytes + 15) / 16 * 16;
}

uint64_t cuda_job_bytes(void)
{
    return padded(sizeof(struct cuda_step)) + padded(CUDA_HEAD_ROWS * sizeof(struct cuda_row)) +
           padded(CUDA_HEAD_ROWS * sizeof(struct cuda_token)) +
           padded(CUDA_HEAD_ROWS * sizeof(struct cuda_pick));
}

static struct cuda_job *job_of(struct kernels_stage *base, uint32_t slot)
{
    return &((struct cuda_stage *)base)->jobs[slot];
}

/* Only the first failure is told; the stage is then dead. */
static int check(struct cuda_stage *stage, cudaError_t error)
{
    if (error == cudaSuccess)
        return 0;
    cudaGetLastError();
    if (!stage->failed)
        snprintf(stage->error, sizeof stage->error,
                 "GPU %d failed in the head (%s): the rank must restart", stage->device->index,
                 cudaGetErrorString(error));
    stage->failed = true;
    return -1;
}

static int copy_pieces(struct cuda_stage *stage, const struct cuda_piece *pieces, uint32_t n)
{
    return cuda_copy(pieces, n, stage->head_stream) ? check(stage, cudaErrorLaunchFailure) : 0;
}

static struct cuda_piece piece_of(void *to, const void *from, uint64_t bytes)
{
    return {to, from, (uint32_t)bytes, 1, 0, 0};
}

/* ── time and progress ─────────────────────────────────────────────────────────────────────── */

static __global__ void begin_kernel(struct cuda_clock *clock)
{
    clock->begun = ptx_now_ns();
}

/* Behind copies to host memory: what they wrote is there before the host sees this. */
static __global__ void end_kernel(struct cuda_clock *clock, struct cuda_progress *progress,
                                  uint64_t serial)
{
    clock->busy_ns += ptx_now_ns() - clock->begun;
    progress->busy_ns = clock->busy_ns;
    __threadfence_system();
    progress->serial = serial;
}

static int begin(struct cuda_stage *stage)
{
    begin_kernel<<<1, 1, 0, stage->head_stream>>>(stage->head_clock);
    return check(stage, cudaGetLastError());
}

static int end(struct cuda_stage *stage, struct cuda_job *job)
{
    end_kernel<<<1, 1, 0, stage->head_stream>>>(stage->head_clock, stage->head_progress,
                                                job->serial);
    return check(stage, cudaGetLastError());
}

/* ── a part's reply ────────────────────────────────────────────────────────────────────────── */

static void describe(struct cuda_job *job, const struct kernels_pick *picks, uint32_t first,
                     uint32_t count)
{
    struct cuda_step *to = job->step;
    *to = (struct cuda_step){};
    to->n_rows = to->n_tokens = to->n_samples = count;
    to->rows = (uint32_t)padded(sizeof *to);
    to->tokens = to->rows + (uint32_t)padded(count * sizeof(struct cuda_row));
    to->picks = to->tokens + (uint32_t)padded(count * sizeof(struct cuda_token));
    to->bytes = to->picks + count * (uint32_t)sizeof(struct cuda_pick);
    to->sampled = job->lane->sampled + first;
    to->samples = job->lane->samples ? job->lane->samples + first : NULL;
    job->n_whole = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct kernels_row *r = picks[i].row;
        cuda_part<struct cuda_row>(to, to->rows)[i] = (struct cuda_row){
            r->seed, r->top_k, r->top_logits, r->temperature, r->top_p, r->min_p, r->slot};
        cuda_part<struct cuda_token>(to, to->tokens)[i] =
            (struct cuda_token){0, job->n_whole, picks[i].position, i};
        cuda_part<struct cuda_pick>(to, to->picks)[i] = (struct cuda_pick){i, i};
        job->whole[i] = picks[i].whole;
        job->n_whole += picks[i].whole;
    }
}

static struct cuda_sampling sampling_of(const struct cuda_stage *stage)
{
    const struct kernels_stage_options *o = &stage->base.options;
    struct cuda_sampling s = {};
    s.step = stage->job_step;
    s.logits = stage->logits;
    s.first_id = o->head_first;
    s.count = o->head_count;
    s.ids = kernels_ids(stage->base.model, o);
    s.blocks = stage->job_blocks;
    s.tops = stage->job_tops;
    return s;
}

static int queue_part(struct cuda_stage *stage, struct cuda_job *job)
{
    const struct gguf_model *m = stage->base.model;
    const struct kernels_stage_options *o = &stage->base.options;
    const struct cuda_sampling s = sampling_of(stage);
    unsigned char *reply = job->replies[stage->base.cut ? o->n_head_parts - 1 : 0];
    uint32_t n = job->n;
    const struct cuda_piece in[] = {
        piece_of(stage->job_step, job->step, padded(job->step->bytes)),
        piece_of(stage->job_x, job->x, (uint64_t)n * m->hidden * sizeof(float))};
    if (copy_pieces(stage, in, 2) || begin(stage))
        return -1;
    if (cuda_rmsnorm_picked(stage->job_step, 0, stage->job_x, stage->output_norm, n, m->hidden,
                            m->norm_eps, stage->head_h, stage->head_stream) ||
        cuda_linear(&stage->head, NULL, stage->head_h, stage->logits, n, false, NULL,
                    stage->head_stream) ||
        cuda_sample_slice(&s, n, stage->head_stream))
        return check(stage, cudaErrorLaunchFailure);
    struct cuda_piece out[2 + CUDA_HEAD_ROWS];
    uint32_t n_out = 0;
    out[n_out++] = piece_of(reply, s.blocks, kernels_reply_tops(o->head_count, n));
    out[n_out++] = piece_of(reply + kernels_reply_tops(o->head_count, n), s.tops,
                            n * sizeof(struct kernels_slice_top));
    float *logits = (float *)(reply + kernels_reply_logits(o->head_count, n));
    for (uint32_t i = 0; i < n; i++)
        if (job->whole[i]) {
            out[n_out++] = piece_of(logits, stage->logits + (uint64_t)i * o->head_count,
                                    o->head_count * sizeof(float));
            logits += o->head_count;
        }
    if (copy_pieces(stage, out, n_out))
        return -1;
    return end(stage, job);
}

/* ── samples from all parts ────────────────────────────────────────────────────────────────── */

static int queue_merge(struct cuda_stage *stage, struct cuda_job *job)
{
    const struct kernels_stage_options *o = &stage->base.options;
    uint64_t vocabulary = stage->base.model->vocabulary, n_blocks = 0;
    const uint64_t block = sizeof(struct kernels_slice_block),
                   top = sizeof(struct kernels_slice_top);
    struct cuda_sampling s = sampling_of(stage);
    s.first_id = 0;
    s.count = (uint32_t)vocabulary;
    s.logits = stage->merge_logits;
    s.blocks = stage->merge_blocks;
    s.tops = stage->merge_tops;
    s.n_tops = o->n_head_parts;
    n_blocks = kernels_slice_blocks(s.count);
    struct cuda_piece in[1 + 3 * KERNELS_SLICES_MAX];
    uint32_t n_in = 0;
    in[n_in++] = piece_of(stage->job_step, job->step, padded(job->step->bytes));
    for (uint32_t p = 0, first = 0; p < o->n_head_parts; first += o->head_parts[p++]) {
        const uint32_t count = o->head_parts[p], n = job->n;
        const uint64_t width = block * kernels_slice_blocks(count), row = count * sizeof(float);
        const unsigned char *reply = job->replies[p];
        /* The lists of an empty part are empty. */
        in[n_in++] = {s.tops + p,     count ? reply + kernels_reply_tops(count, n) : NULL,
                      (uint32_t)top,  n,
                      top * s.n_tops, top};
        if (count == 0)
            continue;
        in[n_in++] = {s.blocks + first / KERNELS_SLICE_BLOCK,
                      reply,
                      (uint32_t)width,
                      n,
                      block * n_blocks,
                      width};
        in[n_in++] = {stage->merge_logits + first,
                      reply + kernels_reply_logits(count, n),
                      (uint32_t)row,
                      job->n_whole,
                      vocabulary * sizeof(float),
                      row};
    }
    if (begin(stage) || copy_pieces(stage, in, n_in))
        return -1;
    if (o->keep_logits && /* for tests */
        check(stage, cudaMemcpyAsync(job->lane->host_logits + job->first * vocabulary,
                                     stage->merge_logits, job->n * vocabulary * sizeof(float),
                                     cudaMemcpyDeviceToHost, stage->head_stream)))
        return -1;
    if (cuda_sample_merge(&s, job->n, stage->head_stream))
        return check(stage, cudaErrorLaunchFailure);
    return end(stage, job);
}

/* ── the door ──────────────────────────────────────────────────────────────────────────────── */

uint32_t cuda_head_rows(const struct kernels_stage *stage)
{
    (void)stage;
    return CUDA_HEAD_ROWS;
}

const float *cuda_picked(const struct kernels_stage *stage, uint32_t lane)
{
    return ((const struct cuda_stage *)stage)->lanes[lane].picked;
}

float *cuda_head_input(struct kernels_stage *stage, uint32_t slot)
{
    return job_of(stage, slot)->input;
}

void *cuda_head_reply(struct kernels_stage *stage, uint32_t slot, uint32_t part)
{
    return job_of(stage, slot)->replies[part];
}

void cuda_head(struct kernels_stage *base, uint32_t slot, uint32_t lane,
               const struct kernels_pick *picks, uint32_t first, uint32_t count)
{
    struct cuda_stage *stage = (struct cuda_stage *)base;
    struct cuda_job *job = job_of(base, slot);
    job->lane = &stage->lanes[lane];
    job->first = first;
    job->n = count;
    job->x = base->cut ? job->lane->picked + (uint64_t)first * base->model->hidden : job->input;
    job->serial = ++stage->head_serial;
    describe(job, picks, first, count);
    if (stage->failed)
        return;
    cudaSetDevice(stage->device->index);
    queue_part(stage, job);
    cuda_stage_queued(stage);
}

void cuda_merge(struct kernels_stage *base, uint32_t slot)
{
    struct cuda_stage *stage = (struct cuda_stage *)base;
    struct cuda_job *job = job_of(base, slot);
    job->serial = ++stage->head_serial;
    if (stage->failed)
        return;
    cudaSetDevice(stage->device->index);
    queue_merge(stage, job);
    cuda_stage_queued(stage);
}

int cuda_head_test(struct kernels_stage *base, uint32_t slot, char *err, size_t err_size)
{
    struct cuda_stage *stage = (struct cuda_stage *)base;
    if (!stage->failed && stage->head_progress->serial < job_of(base, slot)->serial) {
        /* A device that has failed writes no progress: the stream tells, now and then. */
        if (++stage->looks % 4096)
            return 0;
        cudaSetDevice(stage->device->index);
        cudaError_t error = cudaStreamQuery(stage->head_stream);
        if (error == cudaErrorNotReady || check(stage, error) == 0)
            return 0;
    }
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (!stage->failed)
        return 1;
    snprintf(err, err_size, "%s", stage->error);
    return -1;
}
