/*
 * Step: its description packed, its kernels queued.
 *
 * Eight kernels a layer: QKV, attention (two where rows have several tokens), output; norm + router,
 * those of the experts, their sum + norm of the next layer. A step of one token has five (solo.cuh).
 * Steps whose rows have one token each are replayed from a graph, captured when the stage is made for
 * each of some numbers of rows and three lengths of attention: rows beyond the step's are computed
 * and belong to nobody. Other steps are launched kernel by kernel. The bits are the same.
 */
#include "kernels/cuda/device.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GRAPH_ROWS_MAX 256

static void fail(struct cuda_stage *stage, const char *what)
{
    cudaError_t error = cudaGetLastError();
    if (!stage->failed)
        snprintf(stage->error, sizeof stage->error, "GPU %d failed %s (%s): the rank must restart",
                 stage->device->index, what, cudaGetErrorString(error));
    stage->failed = true;
}

/* ── packing ───────────────────────────────────────────────────────────────────────────────── */

static uint64_t padded(uint64_t bytes)
{
    return (bytes + 15) / 16 * 16;
}

uint64_t cuda_step_bytes(const struct cuda_stage *stage)
{
    const struct kernels_stage_options *o = &stage->base.options;
    return padded(sizeof(struct cuda_step)) + padded(o->step_rows * sizeof(struct cuda_row)) +
           padded(o->step_tokens * sizeof(struct cuda_token)) +
           padded(o->step_samples * sizeof(struct cuda_pick)) +
           2 * padded(stage->given_capacity * sizeof(struct cuda_entry)) +
           padded(o->step_tokens * sizeof(struct cuda_tile)) +
           padded(o->step_rows * sizeof(struct cuda_single));
}

/* The next array of a description under construction. */
template <class T> static T *begin_part(struct cuda_step *step, uint32_t *at)
{
    *at = (uint32_t)padded(step->bytes);
    return (T *)((char *)step + *at);
}

template <class T> static void end_part(struct cuda_step *step, uint32_t at, uint32_t count)
{
    step->bytes = at + count * (uint32_t)sizeof(T);
}

static uint32_t pack_given(struct kernels_span *span, uint32_t base, bool restart,
                           const uint32_t *given, uint32_t n_given, uint32_t n_freed,
                           struct cuda_entry *to)
{
    if (restart)
        *span = (struct kernels_span){0, 0};
    for (uint32_t i = 0; i < n_given; i++)
        to[i] = (struct cuda_entry){base + span->count + i, given[i]};
    span->count += n_given;
    span->first += n_freed;
    return n_given;
}

static void pack_rows(struct cuda_step *to, const struct kernels_step *step)
{
    struct cuda_row *rows = begin_part<struct cuda_row>(to, &to->rows);
    for (uint32_t i = 0; i < step->n_rows; i++) {
        const struct kernels_row *r = &step->rows[i];
        rows[i] = (struct cuda_row){r->seed,  r->top_k, r->top_logits, r->temperature,
                                    r->top_p, r->min_p, r->slot};
    }
    end_part<struct cuda_row>(to, to->rows, step->n_rows);

    struct cuda_token *tokens = begin_part<struct cuda_token>(to, &to->tokens);
    for (uint32_t i = 0, t = 0; i < step->n_rows; i++)
        for (uint32_t j = 0; j < step->rows[i].count; j++, t++)
            tokens[t] = (struct cuda_token){step->tokens ? step->tokens[t] : 0, step->rows[i].slot,
                                            step->rows[i].position + j, i};
    end_part<struct cuda_token>(to, to->tokens, step->n_tokens);

    struct cuda_pick *picks = begin_part<struct cuda_pick>(to, &to->picks);
    uint32_t n = 0;
    for (uint32_t i = 0, t = 0; i < step->n_rows; t += step->rows[i++].count)
        for (uint32_t j = step->rows[i].sample_from; j < step->rows[i].count; j++)
            picks[n++] = (struct cuda_pick){t + j, i};
    end_part<struct cuda_pick>(to, to->picks, n);
}

static void pack_tables(struct cuda_stage *stage, struct cuda_step *to,
                        const struct kernels_step *step)
{
    uint32_t entries = stage->base.table_entries;
    struct cuda_entry *full = begin_part<struct cuda_entry>(to, &to->full);
    for (uint32_t i = 0; stage->base.has_full && i < step->n_rows; i++) {
        const struct kernels_row *r = &step->rows[i];
        to->n_full +=
            pack_given(&stage->full_span[r->slot], r->slot * entries, r->restart, r->full_given,
                       r->full_given_count, r->full_freed, full + to->n_full);
    }
    end_part<struct cuda_entry>(to, to->full, to->n_full);
    struct cuda_entry *window = begin_part<struct cuda_entry>(to, &to->window);
    for (uint32_t i = 0; stage->base.has_window && i < step->n_rows; i++) {
        const struct kernels_row *r = &step->rows[i];
        to->n_window +=
            pack_given(&stage->window_span[r->slot], r->slot * entries, r->restart, r->window_given,
                       r->window_given_count, r->window_freed, window + to->n_window);
    }
    end_part<struct cuda_entry>(to, to->window, to->n_window);
}

static void pack_tiles(const struct cuda_stage *stage, struct cuda_step *to,
                       const struct kernels_step *step)
{
    const struct gguf_model *m = stage->base.model;
    uint32_t tile_tokens = cuda_attention_tile_tokens(m->heads, m->kv_heads);
    struct cuda_tile *tiles = begin_part<struct cuda_tile>(to, &to->tiles);
    for (uint32_t i = 0, t = 0; i < step->n_rows; t += step->rows[i++].count)
        for (uint32_t j = 0; step->rows[i].count > 1 && j < step->rows[i].count; j += tile_tokens) {
            uint32_t left = step->rows[i].count - j;
            tiles[to->n_tiles++] =
                (struct cuda_tile){t + j, left < tile_tokens ? left : tile_tokens};
        }
    end_part<struct cuda_tile>(to, to->tiles, to->n_tiles);
}

/* Returns the positions of the longest single. */
static uint32_t pack_singles(struct cuda_step *to, const struct kernels_step *step)
{
    uint32_t at, longest = 0;
    struct cuda_single *singles = begin_part<struct cuda_single>(to, &at);
    for (uint32_t i = 0, t = 0; i < step->n_rows; t += step->rows[i++].count)
        if (step->rows[i].count == 1) {
            uint32_t position = step->rows[i].position;
            singles[to->n_single++] = (struct cuda_single){t, step->rows[i].slot, position};
            longest = position + 1 > longest ? position + 1 : longest;
        }
    end_part<struct cuda_single>(to, at, to->n_single);
    return longest;
}

/* ── queueing ──────────────────────────────────────────────────────────────────────────────── */

/* How many of everything the kernels are launched for: at least as many as the step has. */
struct extent {
    uint32_t tokens, samples, singles, groups, tiles;
    bool own;                     /* single tokens of different slots alone: attention stores */
    const struct cuda_lane *lane; /* NULL where a graph is captured */
};

static struct cuda_solo solo_of(struct cuda_stage *stage)
{
    struct cuda_solo s = {};
    s.step = stage->step;
    s.model = stage->base.model;
    s.x = stage->x;
    s.attended = stage->attended;
    s.act = (__half *)stage->matmul_scratch;
    s.partial = stage->router_partial;
    s.choice = stage->choice;
    s.choice_weight = stage->choice_weight;
    return s;
}

/* x → x + attention; h holds the layer's first norm, but where `solo` is given. */
static int queue_attention(struct cuda_stage *stage, const struct cuda_layer *l,
                           const struct extent *e, struct cuda_solo *solo)
{
    const struct gguf_model *m = stage->base.model;
    const struct kernels_stage_options *o = &stage->base.options;
    uint32_t q_width = m->heads * m->head_dim, kv_width = m->kv_heads * m->head_dim;
    uint32_t all = q_width + 2 * kv_width;
    struct cuda_attention a = {};
    float *to[3] = {stage->qkv, stage->qkv + (uint64_t)o->step_tokens * q_width,
                    stage->qkv + (uint64_t)o->step_tokens * (q_width + kv_width)};
    const uint32_t bias[3] = {0, q_width, q_width + kv_width};
    bool one = l->n_qkv == 1;
    a.q = to[0];
    a.k = one ? a.q + q_width : to[1];
    a.v = one ? a.k + kv_width : to[2];
    a.q_stride = one ? all : q_width;
    a.kv_stride = one ? all : kv_width;
    if (solo) {
        memcpy(solo->qkv, to, sizeof to);
        if (cuda_solo_qkv(solo, l, l != stage->layers, stage->stream))
            return -1;
    }
    for (uint32_t i = 0; !solo && i < l->n_qkv; i++)
        if (cuda_linear(&l->qkv[i], l->qkv_bias + bias[i], stage->h, to[i], e->tokens, false,
                        stage->matmul_scratch, stage->stream))
            return -1;
    a.step = stage->step;
    a.kv.base = l->kv;
    a.kv.table = l->sliding ? stage->window_table : stage->full_table;
    a.kv.block_bytes =
        2 * (uint64_t)kv_width * o->block_tokens * (o->kv_type == KERNELS_KV_F32 ? 4 : 2);
    a.kv.entries = stage->base.table_entries;
    a.kv.block_shift = (uint32_t)__builtin_ctz(o->block_tokens);
    a.kv.kv_heads = m->kv_heads;
    a.kv.type = o->kv_type;
    a.cosine = stage->cosine;
    a.sine = stage->sine;
    a.sinks = l->sinks;
    a.heads = m->heads;
    a.head_dim = m->head_dim;
    a.window = l->sliding ? m->window : 0;
    a.rotated = e->own ? NULL : stage->q;
    a.out = stage->attended;
    a.partial = stage->partial;
    a.tickets = stage->attention_tickets;
    if ((!e->own && cuda_attention_store(&a, e->tokens, stage->stream)) ||
        cuda_attention_run(&a, e->singles, e->groups, e->tiles, stage->stream))
        return -1;
    if (solo)
        return cuda_solo_out(solo, l, stage->stream);
    return cuda_linear(&l->out, l->out_bias, stage->attended, stage->x, e->tokens, true,
                       stage->matmul_scratch, stage->stream);
}

/* x → x + experts; h then holds the norm with which the next layer begins. */
static int queue_experts(struct cuda_stage *stage, const struct cuda_layer *l,
                         const float *next_norm, const struct extent *e)
{
    const struct gguf_model *m = stage->base.model;
    struct cuda_router r = {};
    r.step = stage->step;
    r.x = stage->x;
    r.norm = l->ffn_norm;
    r.eps = m->norm_eps;
    r.weight = l->router;
    r.bias = l->router_bias;
    r.hidden = m->hidden;
    r.experts = m->experts;
    r.active = m->active;
    r.h = stage->h;
    r.logits = stage->router_logits;
    r.choice = stage->choice;
    r.choice_weight = stage->choice_weight;
    r.tickets = stage->router_tickets;
    r.forced = l->forced;
    struct cuda_moe moe = {};
    moe.gate_up = &l->gate_up;
    moe.down = &l->down;
    moe.gate_up_bias = l->gate_up_bias;
    moe.down_bias = l->down_bias;
    moe.hidden = m->hidden;
    moe.ffn = m->expert_ffn;
    moe.experts = m->experts;
    moe.active = m->active;
    moe.alpha = m->swiglu_alpha;
    moe.limit = m->swiglu_limit;
    return cuda_router_run(&r, e->tokens, stage->stream) ||
           cuda_moe_run(&moe, stage->h, stage->choice, stage->choice_weight, NULL, e->tokens,
                        stage->matmul_scratch, stage->stream) ||
           cuda_combine(cuda_moe_parts(&moe, e->tokens, stage->matmul_scratch),
                        stage->choice_weight, m->active, stage->x, next_norm, e->tokens, m->hidden,
                        m->norm_eps, stage->h, stage->stream);
}

static int queue_head(struct cuda_stage *stage, const struct extent *e)
{
    const struct gguf_model *m = stage->base.model;
    const struct kernels_stage_options *o = &stage->base.options;
    for (uint32_t first = 0; first < e->samples; first += CUDA_HEAD_ROWS) {
        uint32_t n = e->samples - first < CUDA_HEAD_ROWS ? e->samples - first : CUDA_HEAD_ROWS;
        float *logits =
            o->keep_logits ? e->lane->logits + (uint64_t)first * o->head_count : stage->logits;
        struct cuda_sampling s = {};
        s.step = stage->step;
        s.logits = logits;
        s.count = o->head_count;
        s.ids = kernels_ids(m, o);
        s.blocks = stage->sample_blocks;
        if (cuda_rmsnorm_picked(stage->step, first, stage->x, stage->output_norm, n, m->hidden,
                                m->norm_eps, stage->head_h, stage->stream) ||
            cuda_linear(&stage->head, NULL, stage->head_h, logits, n, false, stage->matmul_scratch,
                        stage->stream) ||
            cuda_sample_run(&s, first, n, stage->stream))
            return -1;
    }
    if (!o->keep_logits || !e->samples)
        return 0;
    return cudaMemcpyAsync(e->lane->host_logits, e->lane->logits,
                           (uint64_t)e->samples * o->head_count * sizeof(float),
                           cudaMemcpyDeviceToHost, stage->stream) == cudaSuccess
               ? 0
               : -1;
}

static int queue(struct cuda_stage *stage, const struct extent *e)
{
    const struct gguf_model *m = stage->base.model;
    struct cuda_begin b = {};
    b.step = stage->step;
    b.full_table = stage->full_table;
    b.window_table = stage->window_table;
    b.slot_token = stage->slot_token;
    b.embedding = stage->embedding;
    b.type = stage->embedding_type;
    b.row_bytes = gguf_row_bytes(stage->embedding_type, m->hidden);
    b.hidden = m->hidden;
    b.vocabulary = m->vocabulary;
    b.x = stage->x;
    b.clock = stage->clock;
    struct cuda_solo solo = solo_of(stage);
    bool alone = e->tokens == 1 && stage->router_partial;
    /* The first kernel of a layer waits for all that the step began with, and with it all that comes
     * behind. */
    if (cuda_begin(&b, e->tokens, stage->stream) ||
        (!alone && cuda_rmsnorm(stage->x, stage->layers[0].attn_norm, e->tokens, m->hidden,
                                m->norm_eps, stage->h, false, stage->stream)))
        return -1;
    for (uint32_t i = 0; i < stage->base.options.layer_count; i++) {
        const struct cuda_layer *l = &stage->layers[i];
        bool last = i + 1 == stage->base.options.layer_count;
        if (queue_attention(stage, l, e, alone ? &solo : NULL) ||
            (alone ? cuda_solo_experts(&solo, l, stage->stream)
                   : queue_experts(stage, l, last ? NULL : l[1].attn_norm, e)))
            return -1;
    }
    if (stage->base.samples && !stage->base.cut && queue_head(stage, e))
        return -1;
    uint32_t rows = !stage->base.samples ? e->tokens : stage->base.cut ? e->samples : 0;
    return cuda_finish(stage->step, stage->x, m->hidden, rows, stage->finish_ticket, stage->clock,
                       stage->progress, stage->stream);
}

/* ── graphs ────────────────────────────────────────────────────────────────────────────────── */

static uint32_t next_rows(uint32_t rows)
{
    uint32_t step = rows < 8     ? 1
                    : rows < 16  ? 2
                    : rows < 32  ? 4
                    : rows < 64  ? 8
                    : rows < 128 ? 16
                                 : 32;
    return (rows / step + 1) * step;
}

static int capture(struct cuda_stage *stage, struct cuda_graph *graph)
{
    const struct extent e = {graph->rows, graph->rows, graph->rows, graph->groups, 0, true, NULL};
    cudaGraph_t captured = NULL;
    if (cudaStreamBeginCapture(stage->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess)
        return -1;
    int status = queue(stage, &e);
    if (cudaStreamEndCapture(stage->stream, &captured) != cudaSuccess || status)
        status = -1;
    if (!status && cudaGraphInstantiate(&graph->exec, captured, 0) != cudaSuccess)
        status = -1;
    if (!status && cudaGraphUpload(graph->exec, stage->stream) != cudaSuccess)
        status = -1;
    if (captured)
        cudaGraphDestroy(captured);
    return status;
}

int cuda_step_capture(struct cuda_stage *stage, char *err, size_t err_size)
{
    const struct kernels_stage_options *o = &stage->base.options;
    /* Logits that are kept lie in the lane: such steps are launched. */
    if ((o->keep_logits && !stage->base.cut) || cuda_variant & CUDA_VARIANT_SERIAL)
        return 0;
    uint32_t most = o->step_rows < GRAPH_ROWS_MAX ? o->step_rows : GRAPH_ROWS_MAX;
    most = o->step_tokens < most ? o->step_tokens : most;
    const uint32_t positions[] = {1024, 8192, o->context};
    uint32_t count = 0;
    for (uint32_t rows = 1; rows <= most; rows = next_rows(rows))
        count += 3;
    stage->graphs = (struct cuda_graph *)calloc(count, sizeof *stage->graphs);
    if (!stage->graphs) {
        snprintf(err, err_size, "no memory for %u graphs", count);
        return -1;
    }
    for (uint32_t rows = 1; rows <= most; rows = next_rows(rows))
        for (uint32_t i = 0; i < 3; i++) {
            if (i < 2 && positions[i] >= o->context)
                continue;
            struct cuda_graph *graph = &stage->graphs[stage->n_graphs];
            graph->rows = rows;
            graph->groups = cuda_attention_groups(positions[i]);
            if (capture(stage, graph)) {
                snprintf(err, err_size, "GPU %d: a step of %u rows could not be captured (%s)",
                         stage->device->index, rows, cudaGetErrorString(cudaGetLastError()));
                return -1;
            }
            stage->n_graphs++;
        }
    if (cudaStreamSynchronize(stage->stream) == cudaSuccess)
        return 0;
    snprintf(err, err_size, "GPU %d: %s", stage->device->index,
             cudaGetErrorString(cudaGetLastError()));
    return -1;
}

static const struct cuda_graph *find_graph(const struct cuda_stage *stage, uint32_t rows,
                                           uint32_t groups)
{
    for (uint32_t i = 0; i < stage->n_graphs; i++)
        if (stage->graphs[i].rows >= rows && stage->graphs[i].groups >= groups)
            return &stage->graphs[i];
    return NULL;
}

/* No slot has two rows. */
static bool slots_differ(struct cuda_stage *stage, const struct kernels_step *step)
{
    for (uint32_t i = 0; i < step->n_rows; i++) {
        if (stage->slot_serial[step->rows[i].slot] == stage->serial)
            return false;
        stage->slot_serial[step->rows[i].slot] = stage->serial;
    }
    return true;
}

/* ── the door ──────────────────────────────────────────────────────────────────────────────── */

void cuda_stage_queued(struct cuda_stage *stage)
{
    if (!stage->watching)
        return;
    pthread_mutex_lock(&stage->mutex);
    stage->queued = stage->serial + stage->head_serial;
    pthread_cond_signal(&stage->wake);
    pthread_mutex_unlock(&stage->mutex);
}

void cuda_stage_step(struct kernels_stage *base, uint32_t lane_index,
                     const struct kernels_step *step)
{
    struct cuda_stage *stage = (struct cuda_stage *)base;
    struct cuda_lane *lane = &stage->lanes[lane_index];
    struct cuda_step *to = lane->step;
    *to = (struct cuda_step){};
    to->bytes = sizeof *to;
    to->n_rows = step->n_rows;
    to->n_tokens = step->n_tokens;
    to->n_samples = stage->base.samples ? step->n_samples : 0;
    to->serial = lane->serial = ++stage->serial;
    to->input = lane->input;
    to->output = lane->output;
    to->picked = lane->picked;
    to->sampled = lane->sampled;
    to->samples = lane->samples;
    to->report = lane->report;
    *lane->report = (struct cuda_report){};
    uint32_t longest = pack_singles(to, step);
    pack_rows(to, step);
    pack_tables(stage, to, step);
    pack_tiles(stage, to, step);
    uint32_t groups = cuda_attention_groups(longest);
    if (stage->failed)
        return;

    cudaSetDevice(stage->device->index);
    const struct cuda_piece description = {stage->step, to, (uint32_t)padded(to->bytes), 1, 0, 0};
    if (cuda_copy(&description, 1, stage->stream)) {
        fail(stage, "copying a step");
        return;
    }
    if (step->bring)
        step->bring(step->bring_arg);
    const struct cuda_graph *graph = NULL;
    if (to->n_tokens == to->n_rows && slots_differ(stage, step))
        graph = find_graph(stage, to->n_rows, groups);
    const struct extent e = {to->n_tokens, to->n_samples, to->n_single, groups,
                             to->n_tiles,  false,         lane};
    if (graph ? cudaGraphLaunch(graph->exec, stage->stream) != cudaSuccess : queue(stage, &e))
        fail(stage, "starting a step");
    cuda_stage_queued(stage);
}

void cuda_stage_ring(struct kernels_stage *base, uint32_t lane_index, const uint32_t *slots,
                     uint32_t count)
{
    struct cuda_stage *stage = (struct cuda_stage *)base;
    struct cuda_lane *lane = &stage->lanes[lane_index];
    lane->serial = ++stage->serial;
    if (count)
        memcpy(lane->ring_slots, slots, count * sizeof *slots);
    if (stage->failed)
        return;
    cudaSetDevice(stage->device->index);
    if (cuda_ring(stage->slot_token, lane->sampled, lane->ring_slots, count, lane->serial,
                  stage->progress, stage->stream))
        fail(stage, "starting a ring call");
    cuda_stage_queued(stage);
}

int cuda_stage_test(struct kernels_stage *base, uint32_t lane_index, char *err, size_t err_size)
{
    struct cuda_stage *stage = (struct cuda_stage *)base;
    const struct cuda_lane *lane = &stage->lanes[lane_index];
    if (!stage->failed && stage->progress->serial < lane->serial) {
        /* A device that has failed writes no progress: the stream tells, now and then. */
        if (++stage->looks % 4096)
            return 0;
        cudaSetDevice(stage->device->index);
        cudaError_t error = cudaStreamQuery(stage->stream);
        if (error == cudaSuccess || error == cudaErrorNotReady)
            return 0;
        fail(stage, "a step");
    }
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (stage->failed) {
        snprintf(err, err_size, "%s", stage->error);
        return -1;
    }
    if (!lane->report->failed_row)
        return 1;
    snprintf(err, err_size,
             "row %u of the step continues its slot with the token sampled last, which is %d: the "
             "ring brought none",
             lane->report->failed_row - 1, lane->report->failed_token);
    return -1;
}

double cuda_stage_busy(const struct kernels_stage *stage)
{
    const struct cuda_stage *s = (const struct cuda_stage *)stage;
    return (double)(s->progress->busy_ns + s->head_progress->busy_ns) * 1e-9;
}
