#include "kernels/backend.h"

#include <math.h>
#include <stdio.h>

/* Options and steps come from a plan and from messages: every number is looked at here, once. */

static bool is_power_of_two(uint32_t n)
{
    return n && !(n & (n - 1));
}

/* The parts of a head that is cut. */
static int check_head(const struct gguf_model *model, const struct kernels_stage_options *o,
                      char *err, size_t err_size)
{
    bool whole = o->head_count == model->vocabulary;
    uint64_t begin = 0;
    if (!o->head_count || (whole && kernels_is_last(model, o) && !o->n_head_parts))
        return 0;
    if (o->head_first % KERNELS_SLICE_BLOCK ||
        (o->head_count % KERNELS_SLICE_BLOCK &&
         o->head_first + o->head_count != model->vocabulary)) {
        snprintf(err, err_size, "head rows %u+%u: a head is cut at multiples of %d rows",
                 o->head_first, o->head_count, KERNELS_SLICE_BLOCK);
        return -1;
    }
    if (!o->head_jobs || o->head_jobs > 1024) {
        snprintf(err, err_size, "head_jobs is %u: 1…1024 is possible where a head is cut",
                 o->head_jobs);
        return -1;
    }
    if (!kernels_is_last(model, o))
        return 0;
    if (!o->n_head_parts || o->n_head_parts > KERNELS_SLICES_MAX || !o->head_parts) {
        snprintf(err, err_size,
                 "the last stage holds head rows %u+%u of %u and is told of %u parts of the head: "
                 "1…%d are possible",
                 o->head_first, o->head_count, model->vocabulary, o->n_head_parts,
                 KERNELS_SLICES_MAX);
        return -1;
    }
    for (uint32_t i = 0; i < o->n_head_parts; i++) {
        if (begin % KERNELS_SLICE_BLOCK && o->head_parts[i]) {
            snprintf(err, err_size, "part %u of the head begins at row %llu: no multiple of %d", i,
                     (unsigned long long)begin, KERNELS_SLICE_BLOCK);
            return -1;
        }
        begin += o->head_parts[i];
    }
    if (begin != model->vocabulary || o->head_parts[o->n_head_parts - 1] != o->head_count ||
        o->head_first + o->head_count != model->vocabulary) {
        snprintf(err, err_size,
                 "the last stage holds head rows %u+%u: the parts of the head, %llu rows together, "
                 "must be the model's %u and end with them",
                 o->head_first, o->head_count, (unsigned long long)begin, model->vocabulary);
        return -1;
    }
    return 0;
}

int kernels_check_options(const struct gguf_model *model, const struct kernels_stage_options *o,
                          char *err, size_t err_size)
{
    uint64_t end = (uint64_t)o->layer_first + o->layer_count;
    if (!o->layer_count || end > model->n_layers) {
        snprintf(
            err, err_size,
            "stage of layers %u…%llu: the model has layers 0…%u, and a stage needs at least one",
            o->layer_first, (unsigned long long)end - 1, model->n_layers - 1);
        return -1;
    }
    if ((uint64_t)o->head_first + o->head_count > model->vocabulary) {
        snprintf(err, err_size, "head rows %u+%u: the model's output matrix has %u rows",
                 o->head_first, o->head_count, model->vocabulary);
        return -1;
    }
    if (check_head(model, o, err, err_size))
        return -1;
    if (o->kv_type != KERNELS_KV_F32 && o->kv_type != KERNELS_KV_F16 &&
        o->kv_type != KERNELS_KV_BF16) {
        snprintf(err, err_size, "KV type %d: it is f32, f16 or bf16", (int)o->kv_type);
        return -1;
    }
    if (!is_power_of_two(o->block_tokens) || o->block_tokens > 1u << 16) {
        snprintf(err, err_size, "KV blocks of %u positions: a power of two up to 65536 is needed",
                 o->block_tokens);
        return -1;
    }
    const struct {
        const char *what;
        uint32_t value, most;
    } counts[] = {
        {"slots", o->slots, 1u << 20},
        {"context", o->context, 1u << 28},
        {"lanes", o->lanes, 1u << 16},
        {"step_rows", o->step_rows, 1u << 20},
        {"step_tokens", o->step_tokens, 1u << 20},
    };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (!counts[i].value || counts[i].value > counts[i].most) {
            snprintf(err, err_size, "%s is %u: 1…%u is possible", counts[i].what, counts[i].value,
                     counts[i].most);
            return -1;
        }
    if (o->step_samples > 1u << 20) {
        snprintf(err, err_size, "step_samples is %u: 0…%u is possible", o->step_samples, 1u << 20);
        return -1;
    }
    return 0;
}

uint64_t kernels_check_bytes(const struct kernels_stage_options *o)
{
    uint64_t per_slot = 2 * sizeof(struct kernels_span) + sizeof(uint64_t);
    return o->slots * per_slot + 2 * (uint64_t)o->step_rows * sizeof(struct kernels_span) +
           o->lanes + o->n_head_parts * sizeof *o->head_parts + o->head_jobs;
}

static int check_sampling(const struct kernels_row *row, uint32_t i, char *err, size_t err_size)
{
    /* Written so that NaN is refused. */
    if (!(row->temperature >= 0 && row->temperature < INFINITY) ||
        !(row->top_p >= 0 && row->top_p <= 1) || !(row->min_p >= 0 && row->min_p <= 1)) {
        snprintf(err, err_size,
                 "row %u samples with temperature %g, top_p %g, min_p %g: the first is at least 0, "
                 "the others are 0…1",
                 i, (double)row->temperature, (double)row->top_p, (double)row->min_p);
        return -1;
    }
    if (row->top_logits > KERNELS_TOP_MAX) {
        snprintf(err, err_size, "row %u asks for the %u best logits: %d are possible", i,
                 row->top_logits, KERNELS_TOP_MAX);
        return -1;
    }
    return 0;
}

static int check_numbers(const struct kernels_stage *stage, const struct kernels_row *row,
                         uint32_t i, char *err, size_t err_size)
{
    const struct kernels_stage_options *o = &stage->options;
    if (row->slot >= o->slots) {
        snprintf(err, err_size, "row %u is of slot %u: the stage has %u slots", i, row->slot,
                 o->slots);
        return -1;
    }
    if (!row->count || row->sample_from > row->count) {
        snprintf(err, err_size, "row %u has %u tokens and samples from token %u", i, row->count,
                 row->sample_from);
        return -1;
    }
    if ((uint64_t)row->position + row->count > o->context) {
        snprintf(err, err_size, "row %u ends at position %llu of a context of %u", i,
                 (unsigned long long)row->position + row->count, o->context);
        return -1;
    }
    return check_sampling(row, i, err, err_size);
}

/* One pool's part of a row; the span is moved even when -1 is returned: the caller undoes it. */
static int check_blocks(const struct kernels_stage *stage, const struct kernels_row *row,
                        uint32_t i, const char *pool, struct kernels_span *span,
                        const uint32_t *given, uint32_t n_given, uint32_t n_freed,
                        uint32_t pool_blocks, uint32_t first_needed, char *err, size_t err_size)
{
    uint32_t tokens = stage->options.block_tokens;
    if (row->restart)
        *span = (struct kernels_span){0};
    if (n_given && !given) {
        snprintf(err, err_size, "row %u is given %u %s blocks without their numbers", i, n_given,
                 pool);
        return -1;
    }
    for (uint32_t b = 0; b < n_given; b++)
        if (given[b] >= pool_blocks) {
            snprintf(err, err_size, "row %u is given %s block %u: the pool has %u blocks", i, pool,
                     given[b], pool_blocks);
            return -1;
        }
    if (n_given > stage->table_entries - span->count) {
        snprintf(err, err_size, "row %u is given %s blocks beyond its slot's %u entries", i, pool,
                 stage->table_entries);
        return -1;
    }
    span->count += n_given;
    if (n_freed > span->count - span->first) {
        snprintf(err, err_size, "row %u frees %u %s blocks: its slot has %u", i, n_freed, pool,
                 span->count - span->first);
        return -1;
    }
    span->first += n_freed;
    uint64_t end = (uint64_t)span->count * tokens, begin = (uint64_t)span->first * tokens;
    if ((uint64_t)row->position + row->count > end) {
        snprintf(err, err_size, "row %u ends at position %llu, its %s blocks at %llu", i,
                 (unsigned long long)row->position + row->count, pool, (unsigned long long)end);
        return -1;
    }
    if (begin > first_needed) {
        snprintf(err, err_size, "row %u needs position %u, its %s blocks begin at %llu", i,
                 first_needed, pool, (unsigned long long)begin);
        return -1;
    }
    return 0;
}

int kernels_check_step(struct kernels_stage *stage, const struct kernels_step *step, char *err,
                       size_t err_size)
{
    const struct kernels_stage_options *o = &stage->options;
    const struct gguf_model *model = stage->model;
    if (!step->n_rows || step->n_rows > o->step_rows || step->n_tokens > o->step_tokens ||
        step->n_samples > o->step_samples || !step->rows) {
        snprintf(err, err_size,
                 "a step of %u rows, %u tokens, %u samples: this stage takes up to %u, %u, %u",
                 step->n_rows, step->n_tokens, step->n_samples, o->step_rows, o->step_tokens,
                 o->step_samples);
        return -1;
    }
    uint64_t n_tokens = 0, n_samples = 0;
    for (uint32_t i = 0; i < step->n_rows; i++) {
        if (check_numbers(stage, &step->rows[i], i, err, err_size))
            return -1;
        n_tokens += step->rows[i].count;
        n_samples += step->rows[i].count - step->rows[i].sample_from;
    }
    if (n_tokens != step->n_tokens || n_samples != step->n_samples) {
        snprintf(err, err_size,
                 "a step says %u tokens and %u samples, its rows sum to %llu and %llu",
                 step->n_tokens, step->n_samples, (unsigned long long)n_tokens,
                 (unsigned long long)n_samples);
        return -1;
    }
    if (stage->embeds) {
        if (!step->tokens) {
            snprintf(err, err_size, "a step without tokens reached the stage of layer 0");
            return -1;
        }
        for (uint32_t t = 0; t < step->n_tokens; t++)
            if (step->tokens[t] != KERNELS_TOKEN_SAMPLED &&
                (step->tokens[t] < 0 || (uint32_t)step->tokens[t] >= model->vocabulary)) {
                snprintf(err, err_size, "token %u of the step is %d: the vocabulary has %u", t,
                         step->tokens[t], model->vocabulary);
                return -1;
            }
    }

    /* The tables, row by row; on a refusal the spans are put back in the opposite order. */
    uint64_t serial = ++stage->steps;
    uint32_t i;
    for (i = 0; i < step->n_rows; i++) {
        const struct kernels_row *row = &step->rows[i];
        stage->undo_full[i] = stage->full[row->slot];
        stage->undo_window[i] = stage->window[row->slot];
        if (row->restart && stage->seen[row->slot] == serial) {
            snprintf(err, err_size,
                     "row %u restarts slot %u, which has a row before it in the step", i,
                     row->slot);
            break;
        }
        stage->seen[row->slot] = serial;
        uint32_t window_first =
            row->position + 1 > model->window ? row->position + 1 - model->window : 0;
        if (stage->has_full &&
            check_blocks(stage, row, i, "full", &stage->full[row->slot], row->full_given,
                         row->full_given_count, row->full_freed, o->full_blocks, 0, err, err_size))
            break;
        if (stage->has_window &&
            check_blocks(stage, row, i, "window", &stage->window[row->slot], row->window_given,
                         row->window_given_count, row->window_freed, o->window_blocks, window_first,
                         err, err_size))
            break;
    }
    if (i == step->n_rows)
        return 0;
    for (uint32_t back = i + 1; back-- > 0;) {
        stage->full[step->rows[back].slot] = stage->undo_full[back];
        stage->window[step->rows[back].slot] = stage->undo_window[back];
    }
    return -1;
}

uint32_t kernels_pick(const struct kernels_stage *stage, const struct kernels_step *step,
                      uint32_t first, uint32_t count, struct kernels_pick *picks)
{
    const struct kernels_stage_options *o = &stage->options;
    uint32_t ids = kernels_ids(stage->model, o), n = 0;
    uint64_t at = 0; /* samples of the rows so far */
    for (uint32_t i = 0; i < step->n_rows && n < count; i++) {
        const struct kernels_row *row = &step->rows[i];
        uint32_t samples = row->count - row->sample_from;
        for (uint32_t j = at < first ? (uint32_t)(first - at) : 0; j < samples && n < count; j++)
            picks[n++] = (struct kernels_pick){
                .row = row,
                .position = row->position + row->sample_from + j,
                .whole = o->keep_logits || kernels_row_filters(row, ids),
            };
        at += samples;
    }
    return n;
}

int kernels_check_job(const struct kernels_stage *stage, const struct kernels_step *step,
                      uint32_t first, uint32_t count, char *err, size_t err_size)
{
    for (uint32_t i = 0; i < step->n_rows; i++) {
        const struct kernels_row *row = &step->rows[i];
        if (row->sample_from > row->count) {
            snprintf(err, err_size, "row %u has %u tokens and samples from token %u", i, row->count,
                     row->sample_from);
            return -1;
        }
        if (check_sampling(row, i, err, err_size))
            return -1;
    }
    if (!count || count > stage->k->backend->head_rows(stage) ||
        (uint64_t)first + count > stage->options.step_samples) {
        snprintf(err, err_size, "a job of samples %u+%u: up to %u of a step's %u are possible",
                 first, count, stage->k->backend->head_rows(stage), stage->options.step_samples);
        return -1;
    }
    return 0;
}
