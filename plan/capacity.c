#include "plan/capacity.h"

#include <inttypes.h>

#include "plan/stage.h"

enum {
    USUAL_LENGTH = 8192
}; /* sequences of this length are counted besides those of the context */

/*
 * A sequence holds window blocks for the window before its next position and for a row of the step that
 * is being formed; what the window has passed is given back when the next step begins. At any offset
 * within a block, window + count − 1 positions touch
 *     (block − 1 + window + count − 2) / block + 1   blocks,
 * so a row of one token needs `window_each` and a longer one up to ⌈(count − 1) / block⌉ more; the sum of
 * these over the rows of a step is bounded by its tokens.
 */
void capacity_window(struct plan *plan, uint32_t window)
{
    uint64_t block = plan->block_tokens, sequences = plan->sequences, tokens = plan->step_tokens;
    uint64_t each = (block - 1 + window - 1) / block + 1;
    uint64_t whole = stage_blocks(plan->context);
    uint64_t long_rows = sequences < tokens / 2 ? sequences : tokens / 2;
    uint64_t blocks = each * sequences + (tokens + long_rows * (block - 2) + block - 1) / block;
    if (blocks > whole * sequences)
        blocks = whole * sequences;
    plan->window_each = (uint32_t)(each < whole ? each : whole);
    plan->window_blocks = (uint32_t)blocks;
}

void plan_capacity(const struct plan *plan, uint32_t length, struct plan_capacity *capacity)
{
    uint64_t full_layers = 0, window_layers = 0, blocks = stage_blocks(length);
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        full_layers += plan->stages[s].full_layers;
        window_layers += plan->stages[s].window_layers;
    }
    uint64_t window = plan->window_each < blocks ? plan->window_each : blocks;
    /* Of all layers a block takes the same. */
    uint64_t here = blocks * full_layers + window * window_layers;
    uint64_t all = blocks * (full_layers + window_layers);
    uint64_t memory = plan->full_blocks * full_layers + plan->window_blocks * window_layers;
    *capacity = (struct plan_capacity){
        .positions = (uint64_t)plan->full_blocks * plan->block_tokens,
        .sequences = plan->full_blocks / blocks,
        .all_layers = (double)memory / (double)all,
        .ratio = (double)all / (double)here,
    };
    if (window && plan->window_blocks / window < capacity->sequences)
        capacity->sequences = plan->window_blocks / window;
}

static void print_length(FILE *out, const struct plan *plan, uint32_t length)
{
    struct plan_capacity c;
    plan_capacity(plan, length, &c);
    fprintf(out,
            "Sequences of %" PRIu32 ": %" PRIu64
            "; an engine that keeps the KV of every layer would "
            "hold %.1f in as many bytes, because one takes %.2f times as much there.\n",
            length, c.sequences, c.all_layers, c.ratio);
}

void capacity_print(FILE *out, const struct plan *plan)
{
    struct plan_capacity c;
    plan_capacity(plan, plan->context, &c);
    fprintf(out, "KV for %" PRIu64 " positions: %" PRIu64 " sequence%s of %" PRIu32, c.positions,
            c.sequences, c.sequences == 1 ? "" : "s", plan->context);
    if (c.sequences < plan->sequences)
        fprintf(out,
                " at a time, of %" PRIu32 " asked for; shorter ones share the room, others wait",
                plan->sequences);
    fprintf(out, ".\n");
    if (plan->context > USUAL_LENGTH)
        print_length(out, plan, USUAL_LENGTH);
    print_length(out, plan, plan->context);
}
