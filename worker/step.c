#include "worker/step.h"

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ── the wire form ─────────────────────────────────────────────────────────────────────────── */

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire form is the memory's");

#define STEP_MAGIC 0x50545347u /* "GSTP" */

struct wire_head {
    uint32_t magic, version;
    uint64_t epoch;
    uint64_t step;
    uint32_t n_rows, n_tokens, n_samples, n_blocks;
};
static_assert(sizeof(struct wire_head) == 40, "no padding");

#define WIRE_RESTART 1u

struct wire_row {
    uint64_t seed;
    uint32_t slot, position, count, sample_from;
    uint32_t full_given, window_given, full_freed, window_freed;
    uint32_t flags, top_k, top_logits;
    float temperature, top_p, min_p;
};
static_assert(sizeof(struct wire_row) == 64, "no padding");
static_assert(sizeof(struct wire_head) % 8 == 0, "rows are aligned");

size_t step_bytes_max(const struct step_bounds *bounds)
{
    /* No step names more blocks than a message from the coordinator can hold. */
    uint64_t blocks = (uint64_t)bounds->rows * bounds->blocks;
    blocks = blocks > PROTO_MESSAGE_MAX / 2 ? PROTO_MESSAGE_MAX : 2 * blocks;
    return sizeof(struct wire_head) + (size_t)bounds->rows * sizeof(struct wire_row) +
           (size_t)blocks * sizeof(uint32_t);
}

int step_init(struct step *step, const struct step_bounds *bounds, int with_tokens)
{
    *step = (struct step){0};
    step->bytes = malloc(step_bytes_max(bounds));
    step->rows = calloc(bounds->rows, sizeof *step->rows);
    if (with_tokens)
        step->tokens = calloc(bounds->tokens, sizeof *step->tokens);
    if (step->bytes && step->rows && (step->tokens || !with_tokens))
        return 0;
    step_free(step);
    return -1;
}

void step_free(struct step *step)
{
    free(step->bytes);
    free(step->rows);
    free(step->tokens);
    *step = (struct step){0};
}

/* ── reading ───────────────────────────────────────────────────────────────────────────────── */

static enum step_status bad(const struct step *step, char *err, size_t err_size, const char *what,
                            uint64_t is, uint64_t bound)
{
    snprintf(err, err_size, "step %llu has %llu %s, allowed are %llu",
             (unsigned long long)step->number, (unsigned long long)is, what,
             (unsigned long long)bound);
    return STEP_BAD;
}

static enum step_status bad_row(const struct step *step, uint32_t row, char *err, size_t err_size,
                                const char *what, uint64_t is)
{
    snprintf(err, err_size, "step %llu, row %u: %s (%llu)", (unsigned long long)step->number, row,
             what, (unsigned long long)is);
    return STEP_BAD;
}

/* Not negative, no infinity, not a NaN. */
static bool is_sane(float value)
{
    return value >= 0 && value <= 3.4e38f;
}

static enum step_status check_row(const struct step *step, uint32_t i, const struct wire_row *row,
                                  const struct step_bounds *bounds, char *err, size_t err_size)
{
    if (row->slot >= bounds->slots)
        return bad_row(step, i, err, err_size, "no such slot", row->slot);
    if (row->count == 0)
        return bad_row(step, i, err, err_size, "no tokens", 0);
    if (row->position >= bounds->context || row->count > bounds->context - row->position)
        return bad_row(step, i, err, err_size, "its last position is beyond the context",
                       (uint64_t)row->position + row->count - 1);
    if (row->sample_from > row->count)
        return bad_row(step, i, err, err_size, "samples from beyond its end", row->sample_from);
    if (row->full_given > bounds->blocks || row->window_given > bounds->blocks)
        return bad_row(step, i, err, err_size, "more blocks than a sequence has",
                       row->full_given > row->window_given ? row->full_given : row->window_given);
    if (row->flags & ~WIRE_RESTART)
        return bad_row(step, i, err, err_size, "unknown flags", row->flags);
    if (row->top_logits > KERNELS_TOP_MAX)
        return bad_row(step, i, err, err_size, "too many logits to report", row->top_logits);
    if (!is_sane(row->temperature) || !is_sane(row->top_p) || !is_sane(row->min_p))
        return bad_row(step, i, err, err_size, "temperature, top-p or min-p is no number ≥ 0", 0);
    return STEP_OK;
}

enum step_status step_decode(struct step *step, const struct step_bounds *bounds, uint64_t epoch,
                             char *err, size_t err_size)
{
    struct wire_head head;
    if (step->size < sizeof head) {
        snprintf(err, err_size, "a step header of %zu bytes is cut short", step->size);
        return STEP_BAD;
    }
    memcpy(&head, step->bytes, sizeof head);
    if (head.magic != STEP_MAGIC || head.version != STEP_VERSION) {
        snprintf(
            err, err_size,
            "a step header of version %u was received, expected %u: all ranks must run the same "
            "gptoss-worker",
            head.magic == STEP_MAGIC ? head.version : 0, STEP_VERSION);
        return STEP_BAD;
    }
    if (head.epoch != epoch)
        return STEP_STALE;
    step->number = head.step;
    if (head.n_rows == 0 || head.n_rows > bounds->rows)
        return bad(step, err, err_size, "rows", head.n_rows, bounds->rows);
    if (head.n_tokens > bounds->tokens)
        return bad(step, err, err_size, "tokens", head.n_tokens, bounds->tokens);
    if (head.n_samples > bounds->samples)
        return bad(step, err, err_size, "samples", head.n_samples, bounds->samples);
    uint64_t want = sizeof head + (uint64_t)head.n_rows * sizeof(struct wire_row) +
                    (uint64_t)head.n_blocks * sizeof(uint32_t);
    if (want != step->size || want > step_bytes_max(bounds))
        return bad(step, err, err_size, "bytes", step->size, want);

    const unsigned char *rows = step->bytes + sizeof head;
    const uint32_t *blocks = (const uint32_t *)(rows + head.n_rows * sizeof(struct wire_row));
    uint64_t n_tokens = 0, n_samples = 0, n_blocks = 0;
    for (uint32_t i = 0; i < head.n_rows; i++) {
        struct wire_row row;
        memcpy(&row, rows + i * sizeof row, sizeof row);
        if (check_row(step, i, &row, bounds, err, err_size))
            return STEP_BAD;
        if (n_blocks + row.full_given + row.window_given > head.n_blocks)
            return bad_row(step, i, err, err_size, "its blocks are not all there", head.n_blocks);
        const uint32_t *full = blocks + n_blocks, *window = full + row.full_given;
        for (uint32_t b = 0; b < row.full_given; b++)
            if (full[b] >= bounds->full_blocks)
                return bad_row(step, i, err, err_size, "no such block of the full pool", full[b]);
        for (uint32_t b = 0; b < row.window_given; b++)
            if (window[b] >= bounds->window_blocks)
                return bad_row(step, i, err, err_size, "no such block of the window pool",
                               window[b]);
        step->rows[i] = (struct kernels_row){
            .slot = row.slot,
            .position = row.position,
            .count = row.count,
            .sample_from = row.sample_from,
            .full_given = full,
            .window_given = window,
            .full_given_count = row.full_given,
            .window_given_count = row.window_given,
            .full_freed = row.full_freed,
            .window_freed = row.window_freed,
            .restart = row.flags & WIRE_RESTART,
            .temperature = row.temperature,
            .top_k = row.top_k,
            .top_p = row.top_p,
            .min_p = row.min_p,
            .seed = row.seed,
            .top_logits = row.top_logits,
        };
        n_tokens += row.count;
        n_samples += row.count - row.sample_from;
        n_blocks += row.full_given + row.window_given;
    }
    if (n_tokens != head.n_tokens)
        return bad(step, err, err_size, "tokens in its rows", n_tokens, head.n_tokens);
    if (n_samples != head.n_samples)
        return bad(step, err, err_size, "samples in its rows", n_samples, head.n_samples);
    if (n_blocks != head.n_blocks)
        return bad(step, err, err_size, "blocks in its rows", n_blocks, head.n_blocks);
    step->view = (struct kernels_step){
        .n_rows = head.n_rows,
        .n_tokens = head.n_tokens,
        .n_samples = head.n_samples,
        .rows = step->rows,
        .tokens = step->tokens,
    };
    return STEP_OK;
}

/* ── writing ───────────────────────────────────────────────────────────────────────────────── */

/* Only what decides about memory is checked here; step_decode() then checks what was written. */
static enum step_status take_row(struct step *step, uint32_t i, const Gptoss__Row *row,
                                 const struct step_bounds *bounds, struct wire_head *head,
                                 uint32_t *blocks, char *err, size_t err_size)
{
    bool sampled = row->n_tokens == 0;
    if (row->count == 0 || row->sample_from > row->count)
        return bad_row(step, i, err, err_size, "its counts contradict", row->count);
    if (sampled ? row->count != 1 : row->n_tokens != row->count)
        return bad_row(step, i, err, err_size, "it must name as many tokens as it counts",
                       row->n_tokens);
    if (row->count > bounds->tokens - head->n_tokens)
        return bad(step, err, err_size, "tokens", (uint64_t)head->n_tokens + row->count,
                   bounds->tokens);
    if (row->n_full_blocks > bounds->blocks || row->n_window_blocks > bounds->blocks)
        return bad_row(step, i, err, err_size, "more blocks than a sequence has",
                       row->n_full_blocks + row->n_window_blocks);
    uint64_t room =
        (step_bytes_max(bounds) - sizeof *head - head->n_rows * sizeof(struct wire_row)) /
        sizeof *blocks;
    if (head->n_blocks + row->n_full_blocks + row->n_window_blocks > room)
        return bad_row(step, i, err, err_size, "more blocks than a step holds", head->n_blocks);

    int32_t *tokens = step->tokens + head->n_tokens;
    for (uint32_t t = 0; t < row->n_tokens; t++) {
        if (row->tokens[t] > INT32_MAX)
            return bad_row(step, i, err, err_size, "no such token", row->tokens[t]);
        tokens[t] = (int32_t)row->tokens[t];
    }
    if (sampled)
        tokens[0] = KERNELS_TOKEN_SAMPLED;
    if (row->n_full_blocks)
        memcpy(blocks + head->n_blocks, row->full_blocks, row->n_full_blocks * sizeof *blocks);
    head->n_blocks += (uint32_t)row->n_full_blocks;
    if (row->n_window_blocks)
        memcpy(blocks + head->n_blocks, row->window_blocks, row->n_window_blocks * sizeof *blocks);
    head->n_blocks += (uint32_t)row->n_window_blocks;
    head->n_tokens += row->count;
    head->n_samples += row->count - row->sample_from;

    struct wire_row wire = {
        .seed = row->seed,
        .slot = row->slot,
        .position = row->position,
        .count = row->count,
        .sample_from = row->sample_from,
        .full_given = (uint32_t)row->n_full_blocks,
        .window_given = (uint32_t)row->n_window_blocks,
        .full_freed = row->full_freed,
        .window_freed = row->window_freed,
        .flags = row->restart ? WIRE_RESTART : 0,
        .top_k = row->top_k,
        .top_logits = row->top_logits,
        .temperature = row->temperature,
        .top_p = row->top_p,
        .min_p = row->min_p,
    };
    memcpy(step->bytes + sizeof *head + i * sizeof wire, &wire, sizeof wire);
    return STEP_OK;
}

enum step_status step_from_message(struct step *step, const Gptoss__Step *message,
                                   const struct step_bounds *bounds, uint64_t epoch, char *err,
                                   size_t err_size)
{
    assert(step->tokens);
    step->number = message->step;
    if (message->n_rows == 0 || message->n_rows > bounds->rows)
        return bad(step, err, err_size, "rows", message->n_rows, bounds->rows);
    struct wire_head head = {
        .magic = STEP_MAGIC,
        .version = STEP_VERSION,
        .epoch = epoch,
        .step = message->step,
        .n_rows = (uint32_t)message->n_rows,
    };
    uint32_t *blocks =
        (uint32_t *)(step->bytes + sizeof head + head.n_rows * sizeof(struct wire_row));
    for (uint32_t i = 0; i < head.n_rows; i++)
        if (take_row(step, i, message->rows[i], bounds, &head, blocks, err, err_size))
            return STEP_BAD;
    memcpy(step->bytes, &head, sizeof head);
    step->size =
        sizeof head + head.n_rows * sizeof(struct wire_row) + head.n_blocks * sizeof *blocks;
    return step_decode(step, bounds, epoch, err, err_size);
}
