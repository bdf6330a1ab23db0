/*
 * Ops: the second door (kernels/ops.h): single operations on host data, with the kernels of the steps.
 * Everything is allocated and copied for one call.
 */
#include "kernels/cuda/device.cuh"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ALLOCATIONS 24

/* What one call has allocated on the device; `bad` once anything has failed. */
struct bench {
    cudaStream_t stream;
    cudaEvent_t begin, end;
    void *memory[ALLOCATIONS];
    int n;
    bool bad;
};

static void check(struct bench *b, cudaError_t error)
{
    b->bad = b->bad || error != cudaSuccess;
}

static void open_bench(struct bench *b, const struct kernels *k)
{
    *b = (struct bench){};
    cudaGetLastError();
    check(b, cudaSetDevice(((const struct cuda_device *)k)->index));
    check(b, cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking));
    check(b, cudaEventCreate(&b->begin));
    check(b, cudaEventCreate(&b->end));
}

static int close_bench(struct bench *b)
{
    if (b->stream)
        check(b, cudaStreamSynchronize(b->stream));
    for (int i = 0; i < b->n; i++)
        cudaFree(b->memory[i]);
    if (b->begin)
        cudaEventDestroy(b->begin);
    if (b->end)
        cudaEventDestroy(b->end);
    if (b->stream)
        cudaStreamDestroy(b->stream);
    return b->bad ? -1 : 0;
}

/* n of them on the device: copied from host memory, or zeros where `from` is NULL. */
template <class T> static T *give(struct bench *b, uint64_t n, const void *from)
{
    T *to = NULL;
    if (b->bad || b->n == ALLOCATIONS || n > UINT64_MAX / 64) {
        b->bad = true;
        return NULL;
    }
    check(b, cudaMalloc(&to, n * sizeof(T) + 256));
    if (b->bad)
        return NULL;
    b->memory[b->n++] = to;
    if (from)
        check(b, cudaMemcpyAsync(to, from, n * sizeof(T), cudaMemcpyHostToDevice, b->stream));
    else
        check(b, cudaMemsetAsync(to, 0, n * sizeof(T) + 256, b->stream));
    return to;
}

static void bring(struct bench *b, void *to, const void *from, uint64_t bytes)
{
    if (!b->bad)
        check(b, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, b->stream));
    if (!b->bad)
        check(b, cudaStreamSynchronize(b->stream));
}

/* Repetitions 0 … repeat − 1 as a graph, as steps run: kernels of microseconds would otherwise wait for
 * their launches. */
template <class Queue> static cudaGraphExec_t capture(struct bench *b, uint32_t repeat, Queue queue)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    check(b, cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal));
    for (uint32_t i = 0; !b->bad && i < repeat; i++)
        if (queue(i))
            b->bad = true;
    if (cudaStreamEndCapture(b->stream, &graph) != cudaSuccess)
        b->bad = true;
    if (!b->bad)
        check(b, cudaGraphInstantiate(&exec, graph, 0));
    if (graph)
        cudaGraphDestroy(graph);
    return exec;
}

/* Runs queue(i) for i < repeat. Of a repeated operation all is run once before it is timed. */
template <class Queue>
static void run(struct bench *b, uint32_t repeat, double *seconds, Queue queue)
{
    float ms = 0;
    cudaGraphExec_t exec = NULL;
    /* The first run loads the code, which a capture may not. */
    if (!b->bad && repeat > 1 && queue(0u))
        b->bad = true;
    if (!b->bad && repeat > 1)
        exec = capture(b, repeat, queue);
    if (exec)
        check(b, cudaGraphLaunch(exec, b->stream));
    if (!b->bad)
        check(b, cudaEventRecord(b->begin, b->stream));
    if (!b->bad && exec)
        check(b, cudaGraphLaunch(exec, b->stream));
    else if (!b->bad && queue(0u))
        b->bad = true;
    if (!b->bad) {
        check(b, cudaEventRecord(b->end, b->stream));
        check(b, cudaEventSynchronize(b->end));
        check(b, cudaEventElapsedTime(&ms, b->begin, b->end));
    }
    if (exec)
        cudaGraphExecDestroy(exec);
    if (seconds)
        *seconds = (double)ms * 1e-3 / repeat;
}

static __half *give_halves(struct bench *b, uint64_t n, const float *from)
{
    float *floats = give<float>(b, n, from);
    __half *halves = give<__half>(b, n, NULL);
    if (!b->bad && cuda_to_half(floats, halves, n, b->stream))
        b->bad = true;
    return halves;
}

int cuda_op_rmsnorm(struct kernels *k, const struct kernels_op_rmsnorm *op, double *seconds)
{
    struct bench b;
    uint64_t n = (uint64_t)op->n * op->columns;
    __half *host = (__half *)malloc(n * sizeof *host);
    open_bench(&b, k);
    b.bad = b.bad || !host;
    const float *x = give<float>(&b, n, op->x), *weight = give<float>(&b, op->columns, op->weight);
    __half *out = give<__half>(&b, n, NULL);
    run(&b, op->repeat ? op->repeat : 1, seconds, [&](uint32_t) {
        return cuda_rmsnorm(x, weight, op->n, op->columns, op->eps, out, true, b.stream);
    });
    bring(&b, host, out, n * sizeof *host);
    for (uint64_t i = 0; !b.bad && i < n; i++)
        op->out[i] = gguf_half_to_float(*(const uint16_t *)&host[i]);
    free(host);
    return close_bench(&b);
}

/* For rows of a file's `type`. */
static struct cuda_matrix give_matrix(struct bench *b, enum gguf_type type, uint32_t rows,
                                      uint32_t columns, uint32_t count)
{
    struct cuda_matrix m = {NULL, rows, columns, count, cuda_held_type(type)};
    m.data = give<unsigned char>(b, cuda_matrix_bytes(m.type, rows, columns, count), NULL);
    return m;
}

static void repack(struct bench *b, struct cuda_matrix *m, enum gguf_type type, const void *from,
                   uint32_t raw_rows, uint32_t row_first, uint32_t row_stride)
{
    uint64_t values = (uint64_t)m->columns * raw_rows * m->count;
    uint64_t bytes = gguf_row_bytes(m->type, m->columns) * raw_rows * m->count;
    unsigned char *held = (unsigned char *)malloc(bytes);
    b->bad = b->bad || !held;
    if (held)
        cuda_convert(type, (const unsigned char *)from, m->type, held, values);
    const unsigned char *raw = give<unsigned char>(b, bytes, held);
    if (!b->bad &&
        cuda_matrix_repack(m, raw, raw_rows, row_first, row_stride, 0, m->count, b->stream))
        b->bad = true;
    if (!b->bad)
        check(b, cudaStreamSynchronize(b->stream));
    free(held);
}

int cuda_op_linear(struct kernels *k, const struct kernels_op_linear *op, double *seconds)
{
    struct bench b;
    struct cuda_moe none = {};
    struct cuda_matrix m;
    uint64_t n_y = (uint64_t)op->n * op->rows;
    if (op->columns % 8)
        return -1;
    open_bench(&b, k);
    uint32_t copies = op->copies ? op->copies : 1;
    enum gguf_type held = cuda_held_type(op->type);
    uint64_t copy_bytes = (cuda_matrix_bytes(held, op->rows, op->columns, 1) + 255) / 256 * 256;
    m = (struct cuda_matrix){give<unsigned char>(&b, copies * copy_bytes, NULL), op->rows,
                             op->columns, 1, held};
    repack(&b, &m, op->type, op->weight, op->rows, 0, 1);
    for (uint32_t i = 1; !b.bad && i < copies; i++)
        check(&b, cudaMemcpyAsync(m.data + i * copy_bytes, m.data, copy_bytes,
                                  cudaMemcpyDeviceToDevice, b.stream));
    none.gate_up = none.down = &m;
    none.hidden = none.ffn = op->columns;
    none.experts = none.active = 1;
    const float *bias = op->bias ? give<float>(&b, op->rows, op->bias) : NULL;
    const __half *x = give_halves(&b, (uint64_t)op->n * op->columns, op->x);
    float *y = give<float>(&b, n_y, op->add ? op->y : NULL);
    void *scratch =
        give<unsigned char>(&b, cuda_matmul_scratch_bytes(&none, op->n > 64 ? op->n : 64), NULL);
    run(&b, op->repeat && !op->add ? op->repeat : 1, seconds, [&](uint32_t i) {
        struct cuda_matrix copy = m;
        copy.data += i % copies * copy_bytes;
        return cuda_linear(&copy, bias, x, y, op->n, op->add, scratch, b.stream);
    });
    bring(&b, op->y, y, n_y * sizeof *y);
    return close_bench(&b);
}

/* A description of one row: `all` tokens from position 0, of which those from `first` are attended. */
static struct cuda_step *describe(const struct kernels_op_attention *op, uint32_t tile_tokens)
{
    uint32_t all = op->first + op->count;
    struct cuda_step *step = (struct cuda_step *)calloc(
        1, sizeof *step + sizeof(struct cuda_single) +
               all * (sizeof(struct cuda_token) + sizeof(struct cuda_tile)));
    if (!step)
        return NULL;
    step->n_rows = 1;
    step->n_tokens = all;
    step->tokens = sizeof *step + sizeof(struct cuda_single);
    step->tiles = step->tokens + all * (uint32_t)sizeof(struct cuda_token);
    struct cuda_token *tokens = cuda_part<struct cuda_token>(step, step->tokens);
    for (uint32_t i = 0; i < all; i++)
        tokens[i].position = i;
    struct cuda_tile *tiles = cuda_part<struct cuda_tile>(step, step->tiles);
    for (uint32_t i = 0; op->count > 1 && i < op->count; i += tile_tokens) {
        uint32_t left = op->count - i;
        tiles[step->n_tiles++] =
            (struct cuda_tile){op->first + i, left < tile_tokens ? left : tile_tokens};
    }
    step->n_single = op->count == 1;
    *(struct cuda_single *)(step + 1) = (struct cuda_single){op->first, 0, op->first};
    step->bytes = step->tiles + step->n_tiles * (uint32_t)sizeof(struct cuda_tile);
    return step;
}

static void rotation(float *cosine, float *sine, const struct kernels_op_attention *op)
{
    uint32_t half = op->head_dim / 2;
    for (uint32_t p = 0; p < op->first + op->count; p++)
        for (uint32_t i = 0; i < half; i++) {
            double angle = op->omega ? p * op->omega[i] : 0;
            double magnitude = op->omega ? op->magnitude : 1;
            cosine[(uint64_t)p * half + i] = (float)(magnitude * cos(angle));
            sine[(uint64_t)p * half + i] = (float)(magnitude * sin(angle));
        }
}

int cuda_op_attention(struct kernels *k, const struct kernels_op_attention *op, double *seconds)
{
    struct bench b;
    uint32_t all = op->first + op->count, q_width = op->heads * op->head_dim;
    uint32_t kv_width = op->kv_heads * op->head_dim;
    uint32_t n_blocks = (all + op->block_tokens - 1) / op->block_tokens;
    uint64_t angles = (uint64_t)all * (op->head_dim / 2), n_out = (uint64_t)op->count * q_width;
    if (!cuda_attention_supports(op->head_dim))
        return -1;
    struct cuda_step *step = describe(op, cuda_attention_tile_tokens(op->heads, op->kv_heads));
    float *cosine = (float *)calloc(angles, sizeof *cosine);
    float *sine = (float *)calloc(angles, sizeof *sine);
    uint32_t *blocks = (uint32_t *)calloc(n_blocks, sizeof *blocks);
    float *q = (float *)calloc((uint64_t)all * q_width, sizeof *q);
    __half *host = (__half *)calloc(n_out, sizeof *host);
    open_bench(&b, k);
    b.bad = b.bad || !step || !cosine || !sine || !blocks || !q || !host;
    if (!b.bad) {
        struct cuda_attention a = {};
        rotation(cosine, sine, op);
        for (uint32_t i = 0; i < n_blocks; i++) /* not in order */
            blocks[i] = n_blocks - 1 - i;
        memcpy(q + (uint64_t)op->first * q_width, op->q, n_out * sizeof *q);
        a.step = (struct cuda_step *)give<unsigned char>(&b, step->bytes, step);
        a.kv.block_bytes =
            2 * (uint64_t)kv_width * op->block_tokens * (op->kv_type == KERNELS_KV_F32 ? 4 : 2);
        a.kv.base = give<unsigned char>(&b, n_blocks * a.kv.block_bytes, NULL);
        a.kv.table = give<uint32_t>(&b, n_blocks, blocks);
        a.kv.entries = n_blocks;
        a.kv.block_shift = (uint32_t)__builtin_ctz(op->block_tokens);
        a.kv.kv_heads = op->kv_heads;
        a.kv.type = op->kv_type;
        a.q = give<float>(&b, (uint64_t)all * q_width, q);
        a.k = give<float>(&b, (uint64_t)all * kv_width, op->k);
        a.v = give<float>(&b, (uint64_t)all * kv_width, op->v);
        a.q_stride = q_width;
        a.kv_stride = kv_width;
        a.cosine = give<float>(&b, angles, cosine);
        a.sine = give<float>(&b, angles, sine);
        a.sinks = give<float>(&b, op->heads, op->sinks);
        a.heads = op->heads;
        a.head_dim = op->head_dim;
        a.window = op->window;
        a.rotated = give<__half>(&b, (uint64_t)all * q_width, NULL);
        a.out = give<__half>(&b, (uint64_t)all * q_width, NULL);
        a.partial = give<float>(&b,
                                cuda_attention_partial_floats(op->heads, op->kv_heads, op->head_dim,
                                                              n_blocks * op->block_tokens),
                                NULL);
        a.tickets = give<uint32_t>(&b, op->heads, NULL);
        if (!b.bad && cuda_attention_store(&a, all, b.stream))
            b.bad = true;
        run(&b, op->repeat ? op->repeat : 1, seconds, [&](uint32_t) {
            return cuda_attention_run(&a, step->n_single, cuda_attention_groups(all), step->n_tiles,
                                      b.stream);
        });
        bring(&b, host, a.out + (uint64_t)op->first * q_width, n_out * sizeof *host);
        for (uint64_t i = 0; !b.bad && i < n_out; i++)
            op->out[i] = gguf_half_to_float(*(const uint16_t *)&host[i]);
    }
    free(step);
    free(cosine);
    free(sine);
    free(blocks);
    free(q);
    free(host);
    return close_bench(&b);
}

int cuda_op_moe(struct kernels *k, const struct kernels_op_moe *op, double *seconds)
{
    struct bench b;
    uint64_t inner = (uint64_t)op->experts * op->expert_ffn;
    uint64_t pairs = (uint64_t)op->n * op->active, n_x = (uint64_t)op->n * op->hidden;
    uint64_t n_router = (uint64_t)op->experts * op->hidden;
    if (cuda_router_refuses(op->hidden, op->experts, op->active) || op->hidden % 8 ||
        op->expert_ffn % 8)
        return -1;
    float *router = (float *)malloc(n_router * sizeof *router);
    float *bias = (float *)malloc(2 * inner * sizeof *bias);
    open_bench(&b, k);
    b.bad = b.bad || !router || !bias;
    if (!b.bad) {
        struct cuda_matrix gate_up, down;
        struct cuda_router r = {};
        struct cuda_moe moe = {};
        gguf_to_float(op->router_type, op->router, router, n_router);
        for (uint64_t i = 0; i < inner; i++) {
            bias[2 * i] = op->gate_bias[i];
            bias[2 * i + 1] = op->up_bias[i];
        }
        gate_up = give_matrix(&b, op->type, 2 * op->expert_ffn, op->hidden, op->experts);
        down = give_matrix(&b, op->type, op->hidden, op->expert_ffn, op->experts);
        repack(&b, &gate_up, op->type, op->gate, op->expert_ffn, 0, 2);
        repack(&b, &gate_up, op->type, op->up, op->expert_ffn, 1, 2);
        repack(&b, &down, op->type, op->down, op->hidden, 0, 1);
        uint32_t inputs = op->inputs ? op->inputs : 1;
        const float *h = give<float>(&b, n_x * inputs, op->h);
        r.weight = give<float>(&b, n_router, router);
        r.bias = give<float>(&b, op->experts, op->router_bias);
        r.hidden = op->hidden;
        r.experts = op->experts;
        r.active = op->active;
        r.h = give<__half>(&b, n_x, NULL);
        r.logits = give<float>(&b, (uint64_t)op->n * op->experts, NULL);
        r.choice = give<int32_t>(&b, pairs, NULL);
        r.choice_weight = give<float>(&b, pairs, NULL);
        r.tickets = give<uint32_t>(&b, op->n, NULL);
        moe.gate_up = &gate_up;
        moe.down = &down;
        moe.gate_up_bias = give<float>(&b, 2 * inner, bias);
        moe.down_bias = give<float>(&b, (uint64_t)op->experts * op->hidden, op->down_bias);
        moe.hidden = op->hidden;
        moe.ffn = op->expert_ffn;
        moe.experts = op->experts;
        moe.active = op->active;
        moe.alpha = op->alpha;
        moe.limit = op->limit;
        float *x = give<float>(&b, n_x, op->x);
        void *scratch = give<unsigned char>(&b, cuda_matmul_scratch_bytes(&moe, op->n), NULL);
        run(&b, op->repeat ? op->repeat : 1, seconds, [&](uint32_t i) {
            r.x = h + i % inputs * n_x;
            if (cuda_router_run(&r, op->n, b.stream))
                return -1;
            return op->route_only ? 0
                                  : cuda_moe_run(&moe, r.h, r.choice, r.choice_weight, x, op->n,
                                                 scratch, b.stream);
        });
        bring(&b, op->x, x, n_x * sizeof *x);
        if (op->chosen)
            bring(&b, op->chosen, r.choice, pairs * sizeof *op->chosen);
        if (op->weight)
            bring(&b, op->weight, r.choice_weight, pairs * sizeof *op->weight);
    }
    free(router);
    free(bias);
    return close_bench(&b);
}

int cuda_op_sample(struct kernels *k, const struct kernels_op_sample *op, double *seconds)
{
    struct bench b;
    uint32_t n = op->n;
    uint64_t bytes =
        sizeof(struct cuda_step) +
        n * (sizeof(struct cuda_row) + sizeof(struct cuda_token) + sizeof(struct cuda_pick));
    struct cuda_step *step = (struct cuda_step *)calloc(1, bytes);
    open_bench(&b, k);
    b.bad = b.bad || !step;
    if (!b.bad) {
        step->n_rows = step->n_tokens = step->n_samples = n;
        step->rows = sizeof *step;
        step->tokens = step->rows + n * (uint32_t)sizeof(struct cuda_row);
        step->picks = step->tokens + n * (uint32_t)sizeof(struct cuda_token);
        step->bytes = (uint32_t)bytes;
        for (uint32_t i = 0; i < n; i++) {
            struct cuda_row *row = &cuda_part<struct cuda_row>(step, step->rows)[i];
            row->seed = i;
            row->top_k = op->top_k;
            row->temperature = op->temperature;
            row->top_p = op->top_p;
            row->min_p = op->min_p;
            cuda_part<struct cuda_pick>(step, step->picks)[i] = (struct cuda_pick){i, i};
        }
        step->samples = give<struct kernels_sample>(&b, n, NULL);
        step->sampled = give<int32_t>(&b, n, NULL);
        struct cuda_sampling s = {};
        const float *logits = give<float>(&b, (uint64_t)n * op->vocabulary, op->logits);
        s.step = (struct cuda_step *)give<unsigned char>(&b, bytes, step);
        s.count = s.ids = op->vocabulary;
        s.blocks = give<struct kernels_slice_block>(
            &b, (uint64_t)CUDA_HEAD_ROWS * kernels_slice_blocks(op->vocabulary), NULL);
        run(&b, op->repeat ? op->repeat : 1, seconds, [&](uint32_t) {
            for (uint32_t first = 0; first < n; first += CUDA_HEAD_ROWS) {
                uint32_t left = n - first;
                s.logits = logits + (uint64_t)first * op->vocabulary;
                if (cuda_sample_run(&s, first, left < CUDA_HEAD_ROWS ? left : CUDA_HEAD_ROWS,
                                    b.stream))
                    return -1;
            }
            return 0;
        });
        bring(&b, op->tokens, step->sampled, n * sizeof *op->tokens);
    }
    free(step);
    return close_bench(&b);
}
