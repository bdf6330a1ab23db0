/*
 * stage_open: a stage is made of a plan: checked, loaded, connected; and taken apart.
 */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/base.h"
#include "worker/stage.h"

#define LANES_MAX        256u
#define STEP_ROWS_MAX    (1u << 16)
#define STEP_TOKENS_MAX  (1u << 18)
#define STEP_SAMPLES_MAX (1u << 16)
#define SLOTS_MAX        (1u << 20)
#define HEAD_JOBS_MAX    64u
/* The other end may be loading still. Should it never come, the coordinator is told by its silence. */
#define OPEN_DEADLINE_MS (30 * 60 * 1000)

/* ── the plan ──────────────────────────────────────────────────────────────────────────────── */

static int refuse(char *err, size_t err_size, const char *what, uint64_t value)
{
    snprintf(err, err_size, "the coordinator's plan cannot be: %s (%" PRIu64 ")", what, value);
    return -1;
}

/* The rows of the output matrix on each stage, where the plan cuts the head. */
static int check_head(const Gptoss__Plan *plan, const struct gguf_model *model, char *err,
                      size_t err_size)
{
    uint64_t begin = 0, own = 0;
    if (plan->head_first > model->vocabulary ||
        plan->head_count > model->vocabulary - plan->head_first)
        return refuse(err, err_size, "rows of the output matrix that are not there",
                      plan->head_first);
    if (plan->n_head_counts == 0) {
        uint32_t whole = plan->stage + 1 == plan->stages ? model->vocabulary : 0;
        return plan->head_count == whole
                   ? 0
                   : refuse(err, err_size, "a head that is not cut is the last stage's",
                            plan->head_count);
    }
    if (plan->n_head_counts != plan->stages)
        return refuse(err, err_size, "rows of the head for another number of stages",
                      plan->n_head_counts);
    for (uint32_t s = 0; s < plan->stages; s++) {
        own = s == plan->stage ? begin : own;
        begin += plan->head_counts[s];
    }
    if (begin != model->vocabulary)
        return refuse(err, err_size, "the parts of the head are not the model's", begin);
    if (plan->head_counts[plan->stages - 1] == 0)
        return refuse(err, err_size, "the last stage has no rows of the output matrix", 0);
    if (plan->head_counts[plan->stage] != plan->head_count ||
        (plan->head_count && plan->head_first != own))
        return refuse(err, err_size, "another part of the head for this stage than in its list",
                      plan->head_first);
    if (plan->head_jobs == 0 || plan->head_jobs > HEAD_JOBS_MAX)
        return refuse(err, err_size, "jobs of the head at a time", plan->head_jobs);
    return 0;
}

/* Some stage besides the last one has a part of the head. */
static bool is_cut(const Gptoss__Plan *plan, const struct gguf_model *model)
{
    return plan->n_head_counts && plan->head_counts[plan->stages - 1] != model->vocabulary;
}

static int check_plan(const Gptoss__Plan *plan, const struct worker_world_info *world,
                      const struct gguf_model *model, char *err, size_t err_size)
{
    bool last = plan->stage + 1 == plan->stages;
    if (plan->stages != world->size)
        return refuse(err, err_size, "as many stages as ranks are needed", plan->stages);
    if (plan->stage != world->rank)
        return refuse(err, err_size, "stage s must be rank s", plan->stage);
    if (plan->layer_count == 0 || plan->layer_first >= model->n_layers ||
        plan->layer_count > model->n_layers - plan->layer_first)
        return refuse(err, err_size, "layers that the model does not have", plan->layer_first);
    if ((plan->layer_first == 0) != (plan->stage == 0) ||
        (plan->layer_first + plan->layer_count == model->n_layers) != last)
        return refuse(err, err_size,
                      "the first layer belongs to the first stage, the last to the last",
                      plan->layer_first);
    if (check_head(plan, model, err, err_size))
        return -1;
    if (plan->kv_type > GPTOSS__PLAN__KV_TYPE__BF16)
        return refuse(err, err_size, "unknown type of KV", plan->kv_type);
    if (plan->kv_block_tokens == 0 || plan->kv_block_tokens & (plan->kv_block_tokens - 1))
        return refuse(err, err_size, "tokens of a block are no power of two",
                      plan->kv_block_tokens);
    if (plan->context == 0 || plan->context > INT32_MAX)
        return refuse(err, err_size, "context", plan->context);
    if (plan->sequences == 0 || plan->sequences > SLOTS_MAX)
        return refuse(err, err_size, "sequences at a time", plan->sequences);
    if (plan->step_rows == 0 || plan->step_rows > STEP_ROWS_MAX)
        return refuse(err, err_size, "rows of a step", plan->step_rows);
    if (plan->step_tokens == 0 || plan->step_tokens > STEP_TOKENS_MAX)
        return refuse(err, err_size, "tokens of a step", plan->step_tokens);
    if (plan->step_samples == 0 || plan->step_samples > STEP_SAMPLES_MAX)
        return refuse(err, err_size, "samples of a step", plan->step_samples);
    if (plan->steps_in_flight == 0 || plan->steps_in_flight > LANES_MAX)
        return refuse(err, err_size, "steps in flight", plan->steps_in_flight);
    return 0;
}

/* ── memory ────────────────────────────────────────────────────────────────────────────────── */

static int make_lanes(struct worker_stage *stage)
{
    stage->lanes = calloc(stage->n_lanes, sizeof *stage->lanes);
    if (stage->lanes == NULL)
        return -1;
    for (uint32_t i = 0; i < stage->n_lanes; i++) {
        struct lane *lane = &stage->lanes[i];
        if (step_init(&lane->step, &stage->bounds, stage_is_first(stage)))
            return -1;
        lane->sampled_slots = calloc(stage->bounds.samples, sizeof *lane->sampled_slots);
        if (lane->sampled_slots == NULL)
            return -1;
        lane->header.what = "header";
        lane->input.what = lane->output.what = "activations";
        lane->ring.what = "sampled tokens";
        lane->input.buffer = lane->output.buffer = lane->ring.buffer = i;
    }
    stage->header.what = "header";
    stage->header.patient = true;
    return 0;
}

static int make_result(struct worker_stage *stage)
{
    size_t n = stage->bounds.samples;
    stage->samples = calloc(n, sizeof *stage->samples);
    stage->sample_list = calloc(n, sizeof *stage->sample_list);
    stage->top_ids = calloc(n * KERNELS_TOP_MAX, sizeof *stage->top_ids);
    stage->top_logits = calloc(n * KERNELS_TOP_MAX, sizeof *stage->top_logits);
    if (!stage->samples || !stage->sample_list || !stage->top_ids || !stage->top_logits)
        return -1;
    for (size_t i = 0; i < n; i++) {
        gptoss__sample__init(&stage->samples[i]);
        stage->samples[i].top_ids = stage->top_ids + i * KERNELS_TOP_MAX;
        stage->samples[i].top_logits = stage->top_logits + i * KERNELS_TOP_MAX;
        stage->sample_list[i] = &stage->samples[i];
    }
    gptoss__step_result__init(&stage->result);
    stage->result.samples = stage->sample_list;
    return 0;
}

/* After the kernels' stage was made. */
static int make_head(struct worker_stage *stage, const Gptoss__Plan *plan,
                     const struct gguf_model *model)
{
    struct head *head = &stage->head;
    if (!is_cut(plan, model) || plan->head_count == 0)
        return 0;
    head->parts = calloc(stage->count, sizeof *head->parts);
    if (head->parts == NULL)
        return -1;
    for (uint32_t s = 0; s < stage->count; s++)
        head->parts[s] = plan->head_counts[s];
    return head_init(head, stage_is_last(stage) ? stage->count : 1, plan->head_jobs,
                     kernels_stage_head_rows(stage->kernels));
}

static void notify(void *arg)
{
    struct worker_stage *stage = arg;
    uint64_t one = 1;
    (void)!write(stage->notified, &one, sizeof one);
}

static void progress(void *arg, uint64_t bytes_done, uint64_t bytes_all)
{
    struct worker_stage *stage = arg;
    if (stage->options.progress)
        stage->options.progress(stage->options.arg, bytes_done, bytes_all);
}

static int load(struct worker_stage *stage, const struct worker_stage_options *options, char *err,
                size_t err_size)
{
    const Gptoss__Plan *plan = options->plan;
    const struct kernels_stage_options o = {
        .layer_first = plan->layer_first,
        .layer_count = plan->layer_count,
        .head_first = plan->head_first,
        .head_count = plan->head_count,
        .head_parts = plan->head_counts,
        .n_head_parts = is_cut(plan, options->model) ? (uint32_t)plan->n_head_counts : 0,
        .head_jobs = is_cut(plan, options->model) ? plan->head_jobs : 0,
        .vocabulary_limit = plan->vocabulary_limit,
        .kv_type = (enum kernels_kv_type)plan->kv_type,
        .block_tokens = plan->kv_block_tokens,
        .full_blocks = plan->kv_full_blocks,
        .window_blocks = plan->kv_window_blocks,
        .slots = plan->sequences,
        .context = plan->context,
        .lanes = plan->steps_in_flight,
        .step_rows = plan->step_rows,
        .step_tokens = plan->step_tokens,
        .step_samples = plan->step_samples,
        .progress = progress,
        .notify = notify,
        .arg = stage,
    };
    static_assert((int)KERNELS_KV_F16 == (int)GPTOSS__PLAN__KV_TYPE__F16 &&
                      (int)KERNELS_KV_BF16 == (int)GPTOSS__PLAN__KV_TYPE__BF16,
                  "the two enums agree");
    struct kernels_info info;
    double begin = clock_seconds();
    kernels_stage_footprint(options->kernels, options->model, &o, &stage->footprint);
    if (kernels_stage_create(&stage->kernels, options->kernels, options->model, &o, err,
                             err_size)) {
        kernels_info(options->kernels, &info);
        uint64_t need = stage->footprint.kv_bytes + stage->footprint.activation_bytes;
        return info.memory_free_bytes && need > info.memory_free_bytes ? 1 : -1;
    }
    stage->load_seconds = clock_seconds() - begin;
    kernels_info(options->kernels, &info);
    snprintf(stage->device_uuid, sizeof stage->device_uuid, "%s", info.uuid);
    return 0;
}

/* ── edges ─────────────────────────────────────────────────────────────────────────────────── */

/* Where transfers of an edge go to at its receiving end: input or sampled tokens of each lane. */
static void **list_buffers(struct worker_stage *stage, bool ring)
{
    void **buffers = base_alloc(stage->n_lanes, sizeof *buffers);
    for (uint32_t i = 0; i < stage->n_lanes; i++)
        buffers[i] = ring ? (void *)kernels_stage_sampled(stage->kernels, i)
                          : (void *)kernels_stage_input(stage->kernels, i);
    return buffers;
}

int stage_open_edge(struct worker_stage *stage, struct transport_edge **edge,
                    const struct transport *transport, uint32_t from, uint32_t to,
                    enum transport_channel channel, char *err, size_t err_size)
{
    bool ring = to == 0, device = transport->device_memory && to == stage->index;
    void **buffers = device ? list_buffers(stage, ring) : NULL;
    const struct transport_options options = {
        .world = stage->world,
        .from = from,
        .to = to,
        .channel = channel,
        .epoch = stage->epoch,
        .stream = kernels_stage_stream(stage->kernels),
        .device_uuid = stage->device_uuid,
        .buffers = buffers,
        .n_buffers = device ? stage->n_lanes : 0,
        .buffer_bytes = ring ? stage->bounds.samples * sizeof(int32_t)
                             : (size_t)stage->bounds.tokens * stage->hidden * sizeof(float),
        .open_deadline_ms = OPEN_DEADLINE_MS,
        .deadline_ms = stage->step_deadline_ms,
        .idle = stage->options.idle,
        .arg = stage->options.arg,
    };
    if (*edge) {
        snprintf(err, err_size, "the plan names the edge %u → %u twice", from, to);
        free(buffers);
        return -1;
    }
    int status = transport_open(edge, transport, &options, err, err_size);
    free(buffers);
    return status;
}

/* All ranks go through the plan's list in its order, so that nobody waits in a circle. */
static int open_edges(struct worker_stage *stage, const Gptoss__Plan *plan, char *err,
                      size_t err_size)
{
    for (size_t i = 0; i < plan->n_edges; i++) {
        uint32_t from = plan->edges[i]->from, to = plan->edges[i]->to;
        bool sends = from == stage->index, ring = from + 1 == stage->count && to == 0;
        if (from == to || from >= stage->count || to >= stage->count || (!ring && to != from + 1)) {
            snprintf(err, err_size, "the plan names an edge %u → %u, which no stage needs", from,
                     to);
            return -1;
        }
        if (!sends && to != stage->index)
            continue;
        const struct transport *transport = transport_find(plan->edges[i]->transport);
        if (transport == NULL) {
            snprintf(
                err, err_size,
                "the plan asks for transport \"%s\", which this gptoss-worker was built without",
                plan->edges[i]->transport);
            return -1;
        }
        if (transport->device_memory != (kernels_stage_stream(stage->kernels) != NULL)) {
            snprintf(
                err, err_size,
                "the plan asks for transport \"%s\" on the edge %u → %u, which does not move what "
                "this stage's buffers are in",
                transport->name, from, to);
            return -1;
        }
        struct transport_edge **edge = ring    ? (sends ? &stage->ring_out : &stage->ring_in)
                                       : sends ? &stage->data_out
                                               : &stage->data_in;
        if (stage_open_edge(stage, edge, transport, from, to, TRANSPORT_DATA, err, err_size))
            return -1;
        if (ring)
            continue;
        edge = sends ? &stage->headers_out : &stage->headers_in;
        if (stage_open_edge(stage, edge, &transport_mpi, from, to, TRANSPORT_HEADERS, err,
                            err_size))
            return -1;
    }
    bool first = stage_is_first(stage), last = stage_is_last(stage), alone = stage->count == 1;
    if ((!first && !stage->data_in) || (!last && !stage->data_out) ||
        (!alone && ((first && !stage->ring_in) || (last && !stage->ring_out)))) {
        snprintf(err, err_size, "the plan leaves out an edge that stage %u needs", stage->index);
        return -1;
    }
    return 0;
}

/* ── life ──────────────────────────────────────────────────────────────────────────────────── */

int worker_stage_create(struct worker_stage **out, struct worker_world *world,
                        const struct worker_stage_options *options, char *err, size_t err_size)
{
    *out = NULL;
    const Gptoss__Plan *plan = options->plan;
    if (check_plan(plan, &world->info, options->model, err, err_size))
        return -1;
    int status = -1;
    struct worker_stage *stage = base_alloc(1, sizeof *stage);
    stage->world = world;
    stage->options = *options;
    stage->options.plan = NULL;
    stage->index = plan->stage;
    stage->count = plan->stages;
    stage->hidden = options->model->hidden;
    stage->epoch = options->epoch;
    stage->step_deadline_ms = plan->step_deadline_ms;
    stage->n_lanes = plan->steps_in_flight;
    stage->oldest = 1;
    stage->bounds = (struct step_bounds){
        .rows = plan->step_rows,
        .tokens = plan->step_tokens,
        .samples = plan->step_samples,
        .slots = plan->sequences,
        .context = plan->context,
        .blocks = (plan->context + plan->kv_block_tokens - 1) / plan->kv_block_tokens,
        .full_blocks = plan->kv_full_blocks,
        .window_blocks = plan->kv_window_blocks,
    };
    wait_moved(&stage->wait);
    if ((stage->notified = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0) {
        snprintf(err, err_size, "eventfd: %m");
        goto fail;
    }
    stage->sampled_by = calloc(plan->sequences, sizeof *stage->sampled_by);
    if (make_lanes(stage) || stage->sampled_by == NULL ||
        (stage_is_last(stage) && make_result(stage))) {
        snprintf(err, err_size, "no memory for %u steps in flight of %u tokens",
                 plan->steps_in_flight, plan->step_tokens);
        status = 1;
        goto fail;
    }
    if ((status = load(stage, options, err, err_size)))
        goto fail;
    status = -1;
    if (make_head(stage, plan, options->model)) {
        snprintf(err, err_size, "no memory for the head's jobs");
        goto fail;
    }
    if (open_edges(stage, plan, err, err_size) || head_open(stage, err, err_size))
        goto fail;
    *out = stage;
    return 0;

fail:
    worker_stage_destroy(stage);
    return status;
}

void worker_stage_stop(struct worker_stage *stage)
{
    struct transport_edge *const edges[] = {stage->headers_in, stage->headers_out, stage->data_in,
                                            stage->data_out,   stage->ring_in,     stage->ring_out};
    /* All are told before one is waited for: in one stream they stand behind each other. */
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
        if (edges[i])
            transport_abort(edges[i]);
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
        transport_close(edges[i]);
    stage->headers_in = stage->headers_out = stage->data_in = stage->data_out = NULL;
    stage->ring_in = stage->ring_out = NULL;
    head_close(&stage->head);
}

void worker_stage_destroy(struct worker_stage *stage)
{
    if (stage == NULL)
        return;
    worker_stage_stop(stage);
    kernels_stage_destroy(stage->kernels);
    for (uint32_t i = 0; stage->lanes && i < stage->n_lanes; i++) {
        step_free(&stage->lanes[i].step);
        free(stage->lanes[i].sampled_slots);
    }
    free(stage->lanes);
    head_free(&stage->head);
    free(stage->sampled_by);
    free(stage->samples);
    free(stage->sample_list);
    free(stage->top_ids);
    free(stage->top_logits);
    if (stage->notified >= 0)
        close(stage->notified);
    free(stage);
}
