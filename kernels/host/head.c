#include "kernels/host/host.h"

#include <string.h>

/* Jobs of a head that is cut by vocabulary: this stage's part of the logits, as a reply; and, on the
 * last stage, the replies of all parts as samples. */

struct slicing {
    struct host_stage *stage;
    struct host_job *job;
    const float *logits; /* [n, head_count] */
    unsigned char *reply;
    uint32_t logits_at[HOST_HEAD_ROWS]; /* of a whole row: its place among them */
};

static struct kernels_slice_block *blocks_of(unsigned char *reply, uint32_t head_count, uint32_t i)
{
    return (struct kernels_slice_block *)(void *)reply +
           (uint64_t)i * kernels_slice_blocks(head_count);
}

static struct kernels_slice_top *top_of(unsigned char *reply, uint32_t head_count, uint32_t n,
                                        uint32_t i)
{
    return (struct kernels_slice_top *)(void *)(reply + kernels_reply_tops(head_count, n)) + i;
}

static float *logits_of(unsigned char *reply, uint32_t head_count, uint32_t n, uint32_t at)
{
    return (float *)(void *)(reply + kernels_reply_logits(head_count, n)) +
           (uint64_t)at * head_count;
}

/* Whole rows have their logits one behind another. */
static void place_logits(const struct host_job *job, uint32_t at[HOST_HEAD_ROWS])
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < job->n; i++) {
        at[i] = n;
        n += job->whole[i];
    }
}

static void slice_row(void *arg, uint32_t i, uint32_t thread)
{
    const struct slicing *s = arg;
    const struct host_job *job = s->job;
    const struct kernels_stage_options *o = &s->stage->base.options;
    const float *logits = s->logits + (uint64_t)i * o->head_count;
    (void)thread;
    kernels_slice(logits, o->head_first, o->head_count, kernels_ids(s->stage->base.model, o),
                  &job->rows[i], job->position[i], blocks_of(s->reply, o->head_count, i),
                  top_of(s->reply, o->head_count, job->n, i));
    if (job->whole[i])
        memcpy(logits_of(s->reply, o->head_count, job->n, s->logits_at[i]), logits,
               o->head_count * sizeof *logits);
}

void host_head_run(struct host_stage *stage, struct host_job *job)
{
    const struct gguf_model *m = stage->base.model;
    const struct host_context *c = &stage->context;
    uint32_t h_stride = host_padded(m->hidden), parts = stage->base.options.n_head_parts;
    struct slicing s = {.stage = stage, .job = job, .logits = stage->logits};
    s.reply = job->replies[stage->base.cut ? parts - 1 : 0];
    place_logits(job, s.logits_at);
    stage->table->rmsnorm(c, job->x, m->hidden, (const float *)m->output_norm->data, job->n,
                          m->hidden, m->norm_eps, stage->sample_h, h_stride);
    const struct host_product product = {.matrix = host_head_matrix(stage),
                                         .y = stage->logits,
                                         .stride = stage->base.options.head_count};
    stage->table->linear(c, &product, 1, stage->sample_h, h_stride, job->n);
    stage->table->run(c, job->n, slice_row, &s);
}

struct merging {
    struct host_stage *stage;
    struct host_job *job;
    uint32_t logits_at[HOST_HEAD_ROWS];
};

static void merge_row(void *arg, uint32_t i, uint32_t thread)
{
    const struct merging *m = arg;
    struct host_stage *stage = m->stage;
    const struct kernels_stage_options *o = &stage->base.options;
    const struct host_job *job = m->job;
    uint32_t vocabulary = stage->base.model->vocabulary, first = 0, n_slices = 0;
    struct kernels_slice slices[KERNELS_SLICES_MAX];
    float *row = o->keep_logits ? job->lane->logits + (uint64_t)(job->first + i) * vocabulary
                                : stage->whole_row + (uint64_t)thread * vocabulary;
    for (uint32_t p = 0; p < o->n_head_parts; first += o->head_parts[p++]) {
        uint32_t count = o->head_parts[p];
        if (!count)
            continue;
        slices[n_slices++] = (struct kernels_slice){blocks_of(job->replies[p], count, i),
                                                    kernels_slice_blocks(count),
                                                    top_of(job->replies[p], count, job->n, i)};
        if (job->whole[i])
            memcpy(row + first, logits_of(job->replies[p], count, job->n, m->logits_at[i]),
                   count * sizeof *row);
    }
    struct kernels_sample *sample = &job->lane->samples[job->first + i];
    kernels_merge(slices, n_slices, row, kernels_ids(stage->base.model, o), &job->rows[i],
                  job->position[i], sample,
                  stage->sample_scratch + thread * stage->sample_scratch_bytes);
    job->lane->sampled[job->first + i] = sample->token;
}

void host_merge_run(struct host_stage *stage, struct host_job *job)
{
    struct merging m = {.stage = stage, .job = job};
    place_logits(job, m.logits_at);
    stage->table->run(&stage->context, job->n, merge_row, &m);
}

/* ── the door ──────────────────────────────────────────────────────────────────────────────── */

static struct host_job *job_of(const struct kernels_stage *base, uint32_t slot)
{
    return &((const struct host_stage *)base)->jobs[slot];
}

uint32_t host_head_rows(const struct kernels_stage *base)
{
    (void)base;
    return HOST_HEAD_ROWS;
}

const float *host_picked(const struct kernels_stage *base, uint32_t lane)
{
    return ((const struct host_stage *)base)->lanes[lane].picked;
}

float *host_head_input(struct kernels_stage *base, uint32_t slot)
{
    return job_of(base, slot)->input;
}

void *host_head_reply(struct kernels_stage *base, uint32_t slot, uint32_t part)
{
    return job_of(base, slot)->replies[part];
}

void host_head(struct kernels_stage *base, uint32_t slot, uint32_t lane,
               const struct kernels_pick *picks, uint32_t first, uint32_t count)
{
    struct host_stage *stage = (struct host_stage *)base;
    struct host_job *job = job_of(base, slot);
    job->lane = &stage->lanes[lane];
    job->first = first;
    job->n = count;
    job->x = base->cut ? job->lane->picked + (uint64_t)first * base->model->hidden : job->input;
    for (uint32_t i = 0; i < count; i++) {
        job->rows[i] = *picks[i].row;
        job->position[i] = picks[i].position;
        job->whole[i] = picks[i].whole;
    }
    host_stream_put_job(stage, slot, HOST_HEAD);
}

/* The next tokens wait for it. Without whole rows it takes microseconds and needs nothing of the
 * stream's, so it does not wait until the layers under way let it pass. */
void host_merge(struct kernels_stage *base, uint32_t slot)
{
    struct host_stage *stage = (struct host_stage *)base;
    struct merging m = {.stage = stage, .job = job_of(base, slot)};
    for (uint32_t i = 0; i < m.job->n; i++)
        if (m.job->whole[i]) {
            host_stream_put_job(stage, slot, HOST_MERGE);
            return;
        }
    for (uint32_t i = 0; i < m.job->n; i++)
        merge_row(&m, i, 0);
}

int host_head_test(struct kernels_stage *base, uint32_t slot, char *err, size_t err_size)
{
    (void)err;
    (void)err_size;
    return !atomic_load(&job_of(base, slot)->pending);
}
