/*
 * Load: the stage's weights from the mapped file into device memory.
 *
 * cuda_load_layout says where each weight lies (without memory it measures). cuda_load lists pieces of
 * at most PIECE_BYTES; reader threads take them in turn, look for numbers and scales that are not
 * finite, bring them from the map into pinned memory in a type that the device holds (convert.cu), from
 * there to the device, and repack them there, two pieces of a thread under way at a time. Small tensors
 * that change their form (router, interleaved biases) are made on the host first.
 */
#include "kernels/cuda/device.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PIECE_BYTES ((size_t)8 << 20)
#define SLICE_BYTES ((size_t)256 << 10) /* looked at and then copied, out of a core's cache */
#define READERS_MAX 8

/* ── where things lie ──────────────────────────────────────────────────────────────────────── */

struct place {
    unsigned char *base; /* NULL: measure */
    uint64_t used;
    bool overflow;
};

static unsigned char *take(struct place *p, uint64_t bytes)
{
    uint64_t begin = (p->used + 255) / 256 * 256;
    if (bytes > UINT64_MAX / 8 || begin > UINT64_MAX / 8) {
        p->overflow = true;
        return NULL;
    }
    p->used = begin + bytes;
    return p->base ? p->base + begin : NULL;
}

static float *take_floats(struct place *p, uint64_t n)
{
    return (float *)take(p, n * sizeof(float));
}

static struct cuda_matrix take_matrix(struct place *p, enum gguf_type type, uint64_t rows,
                                      uint64_t columns, uint32_t count)
{
    struct cuda_matrix m = {NULL, (uint32_t)rows, (uint32_t)columns, count, type};
    m.data = take(p, cuda_matrix_bytes(type, m.rows, m.columns, count));
    return m;
}

static int refuse_rows(const struct gguf_tensor *tensor, char *err, size_t err_size)
{
    if (tensor->ne[0] <= PIECE_BYTES / sizeof(float))
        return 0;
    snprintf(err, err_size, "tensor %s has rows of %llu: the cuda backend loads up to %zu; use cpu",
             tensor->name, (unsigned long long)tensor->ne[0], PIECE_BYTES / sizeof(float));
    return -1;
}

int cuda_load_layout(struct cuda_stage *stage, char *err, size_t err_size)
{
    const struct gguf_model *m = stage->base.model;
    const struct kernels_stage_options *o = &stage->base.options;
    uint64_t q_width = (uint64_t)m->heads * m->head_dim;
    uint64_t kv_width = (uint64_t)m->kv_heads * m->head_dim;
    struct place p = {stage->weights_memory, 0, false};
    for (uint32_t i = 0; i < o->layer_count; i++) {
        const struct gguf_layer *l = &m->layers[o->layer_first + i];
        struct cuda_layer *to = &stage->layers[i];
        const struct gguf_linear *qkv[3] = {&l->attn_q, &l->attn_k, &l->attn_v};
        enum gguf_type type[3];
        for (uint32_t j = 0; j < 3; j++)
            type[j] = cuda_held_type(qkv[j]->weight->type);
        to->sliding = l->sliding;
        to->n_qkv = type[1] == type[0] && type[2] == type[0] ? 1 : 3;
        if (refuse_rows(l->attn_q.weight, err, err_size) ||
            refuse_rows(l->attn_out.weight, err, err_size) ||
            refuse_rows(l->down.weight, err, err_size))
            return -1;
        if (to->n_qkv == 1)
            to->qkv[0] = take_matrix(&p, type[0], q_width + 2 * kv_width, m->hidden, 1);
        for (uint32_t j = 0; to->n_qkv == 3 && j < 3; j++)
            to->qkv[j] = take_matrix(&p, type[j], j ? kv_width : q_width, m->hidden, 1);
        to->out = take_matrix(&p, cuda_held_type(l->attn_out.weight->type), m->hidden, q_width, 1);
        to->gate_up =
            take_matrix(&p, cuda_held_type_of_both(l->gate.weight->type, l->up.weight->type),
                        2 * (uint64_t)m->expert_ffn, m->hidden, m->experts);
        to->down = take_matrix(&p, cuda_held_type(l->down.weight->type), m->hidden, m->expert_ffn,
                               m->experts);
        to->qkv_bias = take_floats(&p, q_width + 2 * kv_width);
        to->out_bias = take_floats(&p, m->hidden);
        to->gate_up_bias = take_floats(&p, (uint64_t)m->experts * 2 * m->expert_ffn);
        to->down_bias = take_floats(&p, (uint64_t)m->experts * m->hidden);
        to->attn_norm = take_floats(&p, m->hidden);
        to->ffn_norm = take_floats(&p, m->hidden);
        to->sinks = take_floats(&p, m->heads);
        to->router = take_floats(&p, (uint64_t)m->experts * m->hidden);
        to->router_bias = take_floats(&p, m->experts);
    }
    if (stage->base.embeds) {
        stage->embedding_type = cuda_held_type(m->embedding->type);
        stage->embedding =
            take(&p, m->vocabulary * gguf_row_bytes(stage->embedding_type, m->hidden));
    }
    if (o->head_count) {
        stage->output_norm = take_floats(&p, m->hidden);
        stage->head = take_matrix(&p, cuda_held_type(m->output->type), o->head_count, m->hidden, 1);
    }
    stage->weights_bytes = p.used;
    if (p.overflow) {
        snprintf(err, err_size, "the stage's weights overflow a 64-bit size");
        return -1;
    }
    return 0;
}

/* ── pieces ────────────────────────────────────────────────────────────────────────────────── */

struct piece {
    const struct gguf_tensor *tensor; /* NULL: of ours, F32 */
    const unsigned char *from;
    uint64_t rows, columns; /* of `type` */
    enum gguf_type type, held;
    unsigned char *to;          /* device: copied as it is; or NULL: */
    struct cuda_matrix *matrix; /* repacked into this one */
    uint32_t raw_rows, row_first, row_stride, first, n;
};

struct loading {
    struct cuda_stage *stage;
    struct piece *pieces;
    uint32_t n_pieces, size;
    void **made; /* host memory of tensors in another form */
    uint32_t n_made;
    bool no_memory;
    uint32_t next;                      /* piece */
    uint64_t done, all;                 /* bytes of the file */
    int error;                          /* a cudaError_t */
    const struct gguf_tensor *poisoned; /* has a number or scale that is not finite */
    uint32_t readers;                   /* still running */
};

static uint64_t piece_bytes(const struct piece *piece)
{
    return piece->rows * gguf_row_bytes(piece->type, piece->columns);
}

static void add_piece(struct loading *l, struct piece piece)
{
    if (l->n_pieces == l->size) {
        uint32_t size = l->size ? 2 * l->size : 1024;
        void *more = realloc(l->pieces, size * sizeof *l->pieces);
        if (!more) {
            l->no_memory = true;
            return;
        }
        l->pieces = (struct piece *)more;
        l->size = size;
    }
    l->pieces[l->n_pieces++] = piece;
    l->all += piece_bytes(&piece);
}

/* Floats of ours. */
static void add_copy(struct loading *l, const float *from, uint64_t n, float *to)
{
    const uint64_t at_once = PIECE_BYTES / sizeof(float);
    for (uint64_t at = 0; at < n; at += at_once) {
        struct piece piece = {};
        piece.from = (const unsigned char *)(from + at);
        piece.rows = 1;
        piece.columns = n - at < at_once ? n - at : at_once;
        piece.type = piece.held = GGUF_F32;
        piece.to = (unsigned char *)(to + at);
        add_piece(l, piece);
    }
}

/* Row by row, unlike a matrix. */
static void add_rows(struct loading *l, const struct gguf_tensor *tensor, enum gguf_type held,
                     unsigned char *to)
{
    uint64_t rows = tensor->bytes / tensor->row_bytes;
    uint64_t held_bytes = gguf_row_bytes(held, tensor->ne[0]), at_once = PIECE_BYTES / held_bytes;
    for (uint64_t r = 0; r < rows; r += at_once) {
        struct piece piece = {};
        piece.tensor = tensor;
        piece.from = tensor->data + r * tensor->row_bytes;
        piece.rows = rows - r < at_once ? rows - r : at_once;
        piece.columns = tensor->ne[0];
        piece.type = tensor->type;
        piece.held = held;
        piece.to = to + r * held_bytes;
        add_piece(l, piece);
    }
}

static void add_tensor(struct loading *l, const struct gguf_tensor *tensor, float *to)
{
    add_rows(l, tensor, GGUF_F32, (unsigned char *)to);
}

/* Rows begin…begin+rows−1 of each of the tensor's matrices. */
static void add_matrix(struct loading *l, const struct gguf_tensor *tensor, uint64_t begin,
                       uint64_t rows, struct cuda_matrix *matrix, uint32_t row_first,
                       uint32_t row_stride)
{
    uint64_t held_bytes = gguf_row_bytes(matrix->type, matrix->columns);
    uint64_t matrix_bytes = held_bytes * rows;
    uint32_t at_once = matrix_bytes < PIECE_BYTES ? (uint32_t)(PIECE_BYTES / matrix_bytes) : 1;
    uint64_t rows_at_once = held_bytes < PIECE_BYTES ? PIECE_BYTES / held_bytes : 1;
    for (uint32_t e = 0; e < matrix->count; e += at_once) {
        uint32_t n = matrix->count - e < at_once ? matrix->count - e : at_once;
        for (uint64_t r = 0; r < rows; r += rows_at_once) {
            uint64_t some = rows - r < rows_at_once ? rows - r : rows_at_once;
            struct piece piece = {};
            piece.tensor = tensor;
            piece.from = tensor->data + (e * rows + begin + r) * tensor->row_bytes;
            piece.rows = n * some;
            piece.columns = matrix->columns;
            piece.type = tensor->type;
            piece.held = matrix->type;
            piece.matrix = matrix;
            piece.raw_rows = (uint32_t)some;
            piece.row_first = row_first + (uint32_t)r * row_stride;
            piece.row_stride = row_stride;
            piece.first = e;
            piece.n = n;
            add_piece(l, piece);
        }
    }
}

/* What is brought in another form is looked at here, all else by the readers. */
static void look_at(struct loading *l, const struct gguf_tensor *tensor)
{
    char err[200];
    if (!l->poisoned && gguf_check_tensor(NULL, tensor, err, sizeof err))
        l->poisoned = tensor;
}

static float *make(struct loading *l, uint64_t floats)
{
    void *memory = malloc(floats * sizeof(float));
    void **more = (void **)realloc(l->made, (l->n_made + 1) * sizeof *l->made);
    if (more)
        l->made = more;
    if (!memory || !more) {
        l->no_memory = true;
        free(memory);
        return NULL;
    }
    l->made[l->n_made++] = memory;
    return (float *)memory;
}

static void add_floats(struct loading *l, const struct gguf_tensor *tensor, float *to)
{
    uint64_t n = tensor->ne[0] * tensor->ne[1];
    float *floats = make(l, n);
    if (!floats)
        return;
    look_at(l, tensor);
    gguf_to_float(tensor->type, tensor->data, floats, n);
    add_copy(l, floats, n, to);
}

/* Biases of gate and up, row by row as the rows of their matrix. */
static void add_interleaved(struct loading *l, const struct gguf_tensor *gate,
                            const struct gguf_tensor *up, uint64_t n, float *to)
{
    float *floats = make(l, 2 * n);
    if (!floats)
        return;
    look_at(l, gate);
    look_at(l, up);
    for (uint64_t i = 0; i < n; i++) {
        memcpy(&floats[2 * i], gate->data + i * sizeof(float), sizeof(float));
        memcpy(&floats[2 * i + 1], up->data + i * sizeof(float), sizeof(float));
    }
    add_copy(l, floats, 2 * n, to);
}

static void list_pieces(struct loading *l)
{
    struct cuda_stage *stage = l->stage;
    const struct gguf_model *m = stage->base.model;
    const struct kernels_stage_options *o = &stage->base.options;
    uint32_t q_width = m->heads * m->head_dim, kv_width = m->kv_heads * m->head_dim;
    for (uint32_t i = 0; i < o->layer_count; i++) {
        const struct gguf_layer *from = &m->layers[o->layer_first + i];
        struct cuda_layer *to = &stage->layers[i];
        const struct gguf_linear *qkv[3] = {&from->attn_q, &from->attn_k, &from->attn_v};
        for (uint32_t j = 0, row = 0; j < 3; j++) {
            uint32_t rows = j ? kv_width : q_width;
            add_matrix(l, qkv[j]->weight, 0, rows, &to->qkv[to->n_qkv == 1 ? 0 : j],
                       to->n_qkv == 1 ? row : 0, 1);
            add_tensor(l, qkv[j]->bias, to->qkv_bias + row);
            row += rows;
        }
        add_matrix(l, from->attn_out.weight, 0, m->hidden, &to->out, 0, 1);
        add_tensor(l, from->attn_out.bias, to->out_bias);
        add_matrix(l, from->gate.weight, 0, m->expert_ffn, &to->gate_up, 0, 2);
        add_matrix(l, from->up.weight, 0, m->expert_ffn, &to->gate_up, 1, 2);
        add_interleaved(l, from->gate.bias, from->up.bias, (uint64_t)m->experts * m->expert_ffn,
                        to->gate_up_bias);
        add_matrix(l, from->down.weight, 0, m->hidden, &to->down, 0, 1);
        add_tensor(l, from->down.bias, to->down_bias);
        add_tensor(l, from->attn_norm, to->attn_norm);
        add_tensor(l, from->ffn_norm, to->ffn_norm);
        add_tensor(l, from->sinks, to->sinks);
        add_floats(l, from->router.weight, to->router);
        add_tensor(l, from->router.bias, to->router_bias);
    }
    if (stage->base.embeds)
        add_rows(l, m->embedding, stage->embedding_type, stage->embedding);
    if (o->head_count) {
        add_tensor(l, m->output_norm, stage->output_norm);
        add_matrix(l, m->output, o->head_first, o->head_count, &stage->head, 0, 1);
    }
}

/* ── readers ───────────────────────────────────────────────────────────────────────────────── */

struct reader {
    struct loading *loading;
    pthread_t thread;
    bool started;
    unsigned char *pinned, *device; /* [2, PIECE_BYTES] each */
    cudaStream_t stream;
    cudaEvent_t done[2];
};

static int reader_open(struct reader *r)
{
    cudaError_t error = cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking);
    for (int i = 0; i < 2 && error == cudaSuccess; i++)
        error = cudaEventCreateWithFlags(&r->done[i], cudaEventDisableTiming);
    if (error == cudaSuccess)
        error = cudaHostAlloc(&r->pinned, 2 * PIECE_BYTES, cudaHostAllocDefault);
    if (error == cudaSuccess)
        error = cudaMalloc(&r->device, 2 * PIECE_BYTES);
    return error;
}

static void reader_close(struct reader *r)
{
    cudaFree(r->device);
    cudaFreeHost(r->pinned);
    for (int i = 0; i < 2; i++)
        if (r->done[i])
            cudaEventDestroy(r->done[i]);
    if (r->stream)
        cudaStreamDestroy(r->stream);
}

/* A slice of rows at a time. -1: a number or a scale is not finite. */
static int bring_piece(const struct piece *piece, unsigned char *to)
{
    char err[200];
    uint64_t from_bytes = gguf_row_bytes(piece->type, piece->columns);
    uint64_t held_bytes = gguf_row_bytes(piece->held, piece->columns);
    uint64_t at_once = from_bytes < SLICE_BYTES ? SLICE_BYTES / from_bytes : 1;
    for (uint64_t r = 0; r < piece->rows; r += at_once) {
        uint64_t rows = piece->rows - r < at_once ? piece->rows - r : at_once;
        const unsigned char *from = piece->from + r * from_bytes;
        if (piece->tensor) {
            struct gguf_tensor slice = *piece->tensor;
            slice.data = from;
            slice.bytes = rows * from_bytes;
            if (gguf_check_tensor(NULL, &slice, err, sizeof err))
                return -1;
        }
        cuda_convert(piece->type, from, piece->held, to + r * held_bytes, rows * piece->columns);
    }
    return 0;
}

static cudaError_t read_piece(struct reader *r, const struct piece *piece, uint32_t turn)
{
    unsigned char *pinned = r->pinned + turn * PIECE_BYTES, *raw = r->device + turn * PIECE_BYTES;
    cudaError_t error = cudaEventSynchronize(r->done[turn]);
    if (error != cudaSuccess)
        return error;
    if (bring_piece(piece, pinned)) {
        __atomic_store_n(&r->loading->poisoned, piece->tensor, __ATOMIC_RELAXED);
        return cudaErrorInvalidValue;
    }
    unsigned char *to = piece->to ? piece->to : raw;
    error = cudaMemcpyAsync(to, pinned, piece->rows * gguf_row_bytes(piece->held, piece->columns),
                            cudaMemcpyHostToDevice, r->stream);
    if (error == cudaSuccess && piece->matrix &&
        cuda_matrix_repack(piece->matrix, raw, piece->raw_rows, piece->row_first, piece->row_stride,
                           piece->first, piece->n, r->stream))
        error = cudaErrorUnknown;
    if (error == cudaSuccess)
        error = cudaEventRecord(r->done[turn], r->stream);
    return error;
}

static void *reader_main(void *arg)
{
    struct reader *r = (struct reader *)arg;
    struct loading *l = r->loading;
    cudaSetDevice(l->stage->device->index);
    cudaError_t error = (cudaError_t)reader_open(r);
    for (uint32_t turn = 0; error == cudaSuccess; turn ^= 1) {
        uint32_t i = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED);
        if (i >= l->n_pieces || __atomic_load_n(&l->error, __ATOMIC_RELAXED))
            break;
        error = read_piece(r, &l->pieces[i], turn);
        __atomic_fetch_add(&l->done, piece_bytes(&l->pieces[i]), __ATOMIC_RELAXED);
    }
    if (error == cudaSuccess)
        error = cudaStreamSynchronize(r->stream);
    reader_close(r);
    if (error != cudaSuccess)
        __atomic_store_n(&l->error, (int)error, __ATOMIC_RELAXED);
    __atomic_fetch_sub(&l->readers, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void tell(const struct loading *l, uint64_t done)
{
    const struct kernels_stage_options *o = &l->stage->base.options;
    if (o->progress)
        o->progress(o->arg, done, l->all);
}

int cuda_load(struct cuda_stage *stage, char *err, size_t err_size)
{
    struct loading loading = {};
    struct reader readers[READERS_MAX] = {};
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t n = processors < 2 ? 1 : processors > READERS_MAX ? READERS_MAX : (uint32_t)processors;
    uint32_t started = 0;
    loading.stage = stage;
    list_pieces(&loading);
    loading.readers = n;
    for (uint32_t i = 0; i < n && !loading.no_memory && !loading.poisoned; i++) {
        readers[i].loading = &loading;
        readers[i].started = !pthread_create(&readers[i].thread, NULL, reader_main, &readers[i]);
        started += readers[i].started;
        if (!readers[i].started)
            __atomic_fetch_sub(&loading.readers, 1, __ATOMIC_RELAXED);
    }
    while (started && __atomic_load_n(&loading.readers, __ATOMIC_ACQUIRE)) {
        const struct timespec pause = {0, 10000000};
        nanosleep(&pause, NULL);
        uint64_t done = __atomic_load_n(&loading.done, __ATOMIC_RELAXED);
        if (done < loading.all)
            tell(&loading, done);
    }
    for (uint32_t i = 0; i < n; i++)
        if (readers[i].started)
            pthread_join(readers[i].thread, NULL);
    int status = 0;
    if (loading.poisoned) {
        gguf_check_tensor(stage->base.model->file, loading.poisoned, err, err_size);
        status = -1;
    } else if (loading.no_memory || !started) {
        snprintf(err, err_size, "loading: no host memory or no threads for reading the weights");
        status = -1;
    } else if (loading.error) {
        snprintf(err, err_size, "loading: the weights did not reach GPU %d (%s)",
                 stage->device->index, cudaGetErrorString((cudaError_t)loading.error));
        status = -1;
    } else {
        tell(&loading, loading.all);
    }
    for (uint32_t i = 0; i < loading.n_made; i++)
        free(loading.made[i]);
    free(loading.made);
    free(loading.pieces);
    return status;
}
