/*
 * attention: rotation, the cache, softmax(q · Kᵀ / √head_dim, sink) · V.
 *
 * A task is a few queries of one sequence and one KV head with its group of query heads. It walks the
 * keys in chunks of CHUNK_KEYS absolute positions and keeps, for each query and head, the largest
 * score so far, the sum of exponentials (16 partial sums) and the weighted values. Where a chunk
 * begins depends on the position alone, so a query gives the same bits in prefill and in decode.
 *
 * Keys lie side by side in a block, so 16 scores are summed at once without adding lanes. Caches that
 * are not float32, blocks of fewer than 16 positions and odd head sizes go through a copy of the
 * chunk in the same layout.
 */
#include "kernels/cpu/local.h"

#include <math.h>

#define SUBTILES (CHUNK_KEYS / 16)

struct attention {
    const struct host_attention *a;
    const struct host_context *c;
};

static uint64_t kv_offset(const struct host_kv *kv, bool is_value, uint32_t head, uint32_t in_block)
{
    uint64_t plane = (uint64_t)kv->block_tokens * kv->head_dim;
    return is_value ? (kv->kv_heads + head) * plane + (uint64_t)in_block * kv->head_dim
                    : head * plane + in_block;
}

static unsigned char *block_of(const struct host_kv *kv, const struct host_sequence *s,
                               uint32_t position)
{
    return kv->base + s->blocks[position / kv->block_tokens] * kv->block_bytes;
}

/* ── keys and values into the cache ────────────────────────────────────────────────────────── */

/* Pairs are halves of a head. */
static void rotate(float *x, uint32_t heads, uint32_t head_dim, const float *cosine,
                   const float *sine)
{
    uint32_t half = head_dim / 2;
    for (uint32_t head = 0; head < heads; head++, x += head_dim) {
        uint32_t i = 0;
        for (; i + 16 <= half; i += 16) {
            v16 a = v_load(x + i), b = v_load(x + half + i);
            v16 c = v_load(cosine + i), s = v_load(sine + i);
            v_store(x + i, v_sub(v_mul(a, c), v_mul(b, s)));
            v_store(x + half + i, v_add(v_mul(b, c), v_mul(a, s)));
        }
        for (; i < half; i++) {
            float a = x[i], b = x[half + i];
            x[i] = a * cosine[i] - b * sine[i];
            x[half + i] = b * cosine[i] + a * sine[i];
        }
    }
}

/* head_dim floats to elements of the cache, `stride` elements apart. */
static void store_head(const struct host_kv *kv, unsigned char *to, uint64_t stride, const float *x)
{
    if (kv->type == KERNELS_KV_F32) {
        float *at = (float *)(void *)to;
        for (uint32_t d = 0; d < kv->head_dim; d++)
            at[d * stride] = x[d];
        return;
    }
    uint16_t *at = (uint16_t *)(void *)to, narrow[16];
    for (uint32_t d = 0; d < kv->head_dim; d += 16) {
        uint32_t here = kv->head_dim - d < 16 ? kv->head_dim - d : 16;
        if (kv->type == KERNELS_KV_F16)
            v_store_f16(narrow, v_load_part(x + d, here));
        else
            for (uint32_t i = 0; i < here; i++)
                narrow[i] = bf16_of(x[d + i]);
        for (uint32_t i = 0; i < here; i++)
            at[(d + i) * stride] = narrow[i];
    }
}

static void store_token(const struct host_attention *a, const struct host_sequence *s, uint32_t i)
{
    const struct host_kv *kv = &a->kv;
    uint64_t t = s->first + i, element = host_kv_element_bytes(kv->type);
    uint32_t position = s->position + i, in_block = position % kv->block_tokens;
    float *k = a->k + t * kv->kv_heads * kv->head_dim;
    const float *v = a->v + t * kv->kv_heads * kv->head_dim;
    if (a->rotation.cosine) {
        uint64_t angle = (uint64_t)position * (kv->head_dim / 2);
        const float *cosine = a->rotation.cosine + angle, *sine = a->rotation.sine + angle;
        rotate(a->q + t * a->heads * kv->head_dim, a->heads, kv->head_dim, cosine, sine);
        rotate(k, kv->kv_heads, kv->head_dim, cosine, sine);
    }
    unsigned char *block = block_of(kv, s, position);
    for (uint32_t head = 0; head < kv->kv_heads; head++) {
        uint64_t from = (uint64_t)head * kv->head_dim;
        store_head(kv, block + kv_offset(kv, false, head, in_block) * element, kv->block_tokens,
                   k + from);
        store_head(kv, block + kv_offset(kv, true, head, in_block) * element, 1, v + from);
    }
}

static void store_task(void *arg, uint32_t task, uint32_t thread)
{
    (void)thread;
    const struct host_attention *a = ((const struct attention *)arg)->a;
    const struct host_tile *tile = &a->tiles[task];
    for (uint32_t i = 0; i < tile->count; i++)
        store_token(a, &a->sequences[tile->sequence], tile->first + i);
}

/* ── a chunk of keys ───────────────────────────────────────────────────────────────────────── */

/* Where a chunk's keys and values are: key p of the chunk is lane p % 16 of the vectors at
 * k[p / 16] + d · k_stride; its values are at v[p / 16] + (p % 16) · v_stride. */
struct chunk {
    const float *k[SUBTILES], *v[SUBTILES];
    uint64_t k_stride, v_stride;
    struct ahead {
        const unsigned char *k[SUBTILES], *v[SUBTILES];
        uint64_t k_stride, v_stride; /* bytes */
    } ahead;                         /* the next chunk in the cache */
};

static float load_element(enum kernels_kv_type type, const unsigned char *at)
{
    uint16_t narrow[4] = {0};
    float value;
    if (type == KERNELS_KV_F32) {
        memcpy(&value, at, sizeof value);
        return value;
    }
    memcpy(narrow, at, sizeof *narrow);
    if (type == KERNELS_KV_F16)
        return v_half(narrow);
    uint32_t bits = (uint32_t)*narrow << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE v16 load_elements(enum kernels_kv_type type, const unsigned char *at)
{
    return type == KERNELS_KV_F32   ? v_load((const float *)(const void *)at)
           : type == KERNELS_KV_F16 ? v_load_f16(at)
                                    : v_load_bf16(at);
}

/* Copies keys from…to−1 (positions) of the chunk at `start` to k [SUBTILES, head_dim, 16] and their
 * values to v [CHUNK_KEYS, padded(head_dim)]. `type` is a constant. */
INLINE void copy_chunk(const struct host_attention *a, const struct host_sequence *s,
                       enum kernels_kv_type type, uint32_t head, uint32_t start, uint32_t from,
                       uint32_t to, float *k, float *v)
{
    const struct host_kv *kv = &a->kv;
    uint32_t dim = kv->head_dim;
    uint64_t element = host_kv_element_bytes(type), v_stride = host_padded(dim);
    for (uint32_t p = from / 16 * 16; p < to && kv->block_tokens >= 16; p += 16) {
        const unsigned char *keys =
            block_of(kv, s, p) + kv_offset(kv, false, head, p % kv->block_tokens) * element;
        float *at = k + (uint64_t)(p - start) * dim;
        for (uint32_t d = 0; d < dim; d++)
            v_store(at + (uint64_t)d * 16,
                    load_elements(type, keys + d * kv->block_tokens * element));
    }
    for (uint32_t p = from; p < to; p++) {
        const unsigned char *block = block_of(kv, s, p);
        uint32_t in_block = p % kv->block_tokens, d = 0;
        if (kv->block_tokens < 16) {
            const unsigned char *key = block + kv_offset(kv, false, head, in_block) * element;
            float *at = k + (uint64_t)((p - start) / 16) * 16 * dim + (p - start) % 16;
            for (uint32_t i = 0; i < dim; i++)
                at[(uint64_t)i * 16] = load_element(type, key + i * kv->block_tokens * element);
        }
        const unsigned char *value = block + kv_offset(kv, true, head, in_block) * element;
        float *row = v + (p - start) * v_stride;
        for (; d + 16 <= dim; d += 16)
            v_store(row + d, load_elements(type, value + d * element));
        for (; d < v_stride; d++)
            row[d] = d < dim ? load_element(type, value + d * element) : 0;
    }
}

static void find_chunk(const struct host_attention *a, const struct host_sequence *s, uint32_t head,
                       uint32_t start, uint32_t from, uint32_t to, float *copy, struct chunk *chunk)
{
    const struct host_kv *kv = &a->kv;
    uint64_t v_stride = host_padded(kv->head_dim);
    bool in_place =
        kv->type == KERNELS_KV_F32 && kv->block_tokens >= 16 && v_stride == kv->head_dim;
    float *v = copy + (uint64_t)kv->head_dim * CHUNK_KEYS;
    chunk->k_stride = in_place ? kv->block_tokens : 16;
    chunk->v_stride = v_stride;
    if (!in_place && kv->type == KERNELS_KV_F16)
        copy_chunk(a, s, KERNELS_KV_F16, head, start, from, to, copy, v);
    else if (!in_place && kv->type == KERNELS_KV_BF16)
        copy_chunk(a, s, KERNELS_KV_BF16, head, start, from, to, copy, v);
    else if (!in_place)
        copy_chunk(a, s, KERNELS_KV_F32, head, start, from, to, copy, v);
    for (uint32_t i = from / 16 % SUBTILES; i <= (to - 1) / 16 % SUBTILES; i++) {
        uint32_t p = start + i * 16;
        chunk->k[i] = copy + (uint64_t)i * 16 * kv->head_dim;
        chunk->v[i] = v + i * 16 * v_stride;
        if (in_place) {
            const float *block = (const float *)(const void *)block_of(kv, s, p);
            chunk->k[i] = block + kv_offset(kv, false, head, p % kv->block_tokens);
            chunk->v[i] = block + kv_offset(kv, true, head, p % kv->block_tokens);
        }
    }
}

/* Where the processor should look for the chunk at `start`, of which positions before `to` are there:
 * its own prefetching stops at every page, and a chunk of a head is four to eight of them. */
static void find_ahead(const struct host_attention *a, const struct host_sequence *s, uint32_t head,
                       uint32_t start, uint32_t to, struct ahead *ahead)
{
    const struct host_kv *kv = &a->kv;
    uint64_t element = host_kv_element_bytes(kv->type);
    ahead->k_stride = kv->block_tokens * element;
    ahead->v_stride = kv->head_dim * element;
    for (uint32_t i = 0; i < SUBTILES; i++) {
        uint32_t p = start + i * 16 < to ? start + i * 16 : to - 1, in_block = p % kv->block_tokens;
        const unsigned char *block = block_of(kv, s, p);
        ahead->k[i] = block + kv_offset(kv, false, head, in_block) * element;
        ahead->v[i] = block + kv_offset(kv, true, head, in_block) * element;
    }
}

/* ── scores and values ─────────────────────────────────────────────────────────────────────── */

/* Heads of a group that read a key or a value together, and vectors of keys or values at a time: as
 * many sums as fit the registers, so that loads are fewer than multiplications. */
#if T_LANES == 16
#define HEADS   4
#define VECTORS 4
#else
#define HEADS   2
#define VECTORS 2
#endif

/* scores[h][key] = q_h · key, for `heads` heads and `n` subtiles from i on, both constants. */
INLINE void score_some(const struct chunk *chunk, uint32_t i, uint32_t n, const float *q,
                       uint32_t heads, uint32_t head_dim, bool look_ahead, float *scores)
{
    v16 s[HEADS][VECTORS];
    const float *keys[VECTORS];
#pragma GCC unroll 4
    for (uint32_t j = 0; j < n; j++)
        keys[j] = chunk->k[i + j];
#pragma GCC unroll 4
    for (uint32_t h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (uint32_t j = 0; j < n; j++)
            s[h][j] = v_zero();
    for (uint32_t d = 0; d < head_dim; d++) {
        v16 key[VECTORS];
#pragma GCC unroll 4
        for (uint32_t j = 0; j < n && look_ahead; j++)
            __builtin_prefetch(chunk->ahead.k[i + j] + d * chunk->ahead.k_stride, 0, 2);
#pragma GCC unroll 4
        for (uint32_t j = 0; j < n; j++)
            key[j] = v_load(keys[j] + d * chunk->k_stride);
#pragma GCC unroll 4
        for (uint32_t h = 0; h < heads; h++) {
            v16 q_h = v_set(q[h * head_dim + d]);
#pragma GCC unroll 4
            for (uint32_t j = 0; j < n; j++)
                s[h][j] = v_fma(q_h, key[j], s[h][j]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (uint32_t j = 0; j < n; j++)
            v_store(scores + h * CHUNK_KEYS + (i + j) * 16, s[h][j]);
}

/* Subtiles first…last of the chunk, for `heads` heads, a constant. */
INLINE void score(const struct chunk *chunk, uint32_t first, uint32_t last, const float *q,
                  uint32_t heads, uint32_t head_dim, bool look_ahead, float *scores)
{
    uint32_t i = first;
    for (; i + VECTORS <= last + 1; i += VECTORS)
        score_some(chunk, i, VECTORS, q, heads, head_dim, look_ahead, scores);
    for (; i <= last; i++)
        score_some(chunk, i, 1, q, heads, head_dim, look_ahead, scores);
}

/* sums[h] = sums[h] · factor[h] + Σ over keys from…to−1 of p_h · v, for `n` vectors of values. */
INLINE void add_some(const struct chunk *chunk, uint32_t from, uint32_t to, const float *p,
                     const float *factor, uint32_t heads, uint32_t n, uint64_t column,
                     bool look_ahead, float *sums)
{
    v16 s[HEADS][VECTORS];
#pragma GCC unroll 4
    for (uint32_t h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (uint32_t j = 0; j < n; j++)
            s[h][j] = v_mul(v_load(sums + h * chunk->v_stride + column + j * 16), v_set(factor[h]));
    for (uint32_t key = from; key < to;) {
        const float *v = chunk->v[key / 16] + key % 16 * chunk->v_stride + column;
        const unsigned char *ahead = chunk->ahead.v[key / 16] + 4 * column;
        uint32_t end = key / 16 * 16 + 16 < to ? key / 16 * 16 + 16 : to;
        for (; key < end; key++, v += chunk->v_stride) {
            v16 value[VECTORS];
#pragma GCC unroll 4
            for (uint32_t j = 0; j < n && look_ahead; j++)
                __builtin_prefetch(ahead + key % 16 * chunk->ahead.v_stride + 64 * j, 0, 2);
#pragma GCC unroll 4
            for (uint32_t j = 0; j < n; j++)
                value[j] = v_load(v + j * 16);
#pragma GCC unroll 4
            for (uint32_t h = 0; h < heads; h++) {
                v16 p_h = v_set(p[h * CHUNK_KEYS + key]);
#pragma GCC unroll 4
                for (uint32_t j = 0; j < n; j++)
                    s[h][j] = v_fma(p_h, value[j], s[h][j]);
            }
        }
    }
#pragma GCC unroll 4
    for (uint32_t h = 0; h < heads; h++)
#pragma GCC unroll 4
        for (uint32_t j = 0; j < n; j++)
            v_store(sums + h * chunk->v_stride + column + j * 16, s[h][j]);
}

INLINE void add_values(const struct chunk *chunk, uint32_t from, uint32_t to, const float *p,
                       const float *factor, uint32_t heads, bool look_ahead, float *sums)
{
    uint64_t column = 0;
    for (; column + 16 * VECTORS <= chunk->v_stride; column += 16 * VECTORS)
        add_some(chunk, from, to, p, factor, heads, VECTORS, column, look_ahead, sums);
    for (; column < chunk->v_stride; column += 16)
        add_some(chunk, from, to, p, factor, heads, 1, column, look_ahead, sums);
}

/* What a query's head knows after some chunks. */
struct state {
    float *most;     /* [group] the largest score, or the sink */
    float *exp_sums; /* [group, 16] */
    float *sums;     /* [group, padded(head_dim)] of weighted values */
};

/* The scores of one head become its share of the sum, e to their distance from the largest so far;
 * what is summed up shrinks by the factor that is returned. */
INLINE float weigh(float *s, uint32_t from, uint32_t to, float scale, float *most, float *exp_sums)
{
    uint32_t first = from / 16, last = (to - 1) / 16;
    v16 top = v_set(*most), v[SUBTILES];
    for (uint32_t i = first; i <= last; i++) {
        uint32_t lane_from = from > i * 16 ? from - i * 16 : 0;
        uint32_t lane_to = to < i * 16 + 16 ? to - i * 16 : 16;
        v[i] = v_mul(v_load(s + i * 16), v_set(scale));
        if (lane_from || lane_to < 16)
            v[i] = v_keep(v[i], lane_from, lane_to, v_set(-INFINITY));
        top = v_max(v[i], top);
    }
    float now = v_most(top), factor = *most < now ? scalar_exp(*most - now) : 1.0f;
    *most = now;
    v16 sum = v_mul(v_load(exp_sums), v_set(factor));
    for (uint32_t i = first; i <= last; i++) {
        uint32_t lane_from = from > i * 16 ? from - i * 16 : 0;
        uint32_t lane_to = to < i * 16 + 16 ? to - i * 16 : 16;
        v16 e = v_exp(v_sub(v[i], v_set(now)));
        if (lane_from || lane_to < 16)
            e = v_keep(e, lane_from, lane_to, v_zero());
        v_store(s + i * 16, e);
        sum = v_add(sum, e);
    }
    v_store(exp_sums, sum);
    return factor;
}

/* Keys from…to−1 of the chunk (counted from its start) for `heads` heads, a constant. */
INLINE void attend_heads(const struct chunk *chunk, uint32_t from, uint32_t to, const float *q,
                         uint32_t heads, uint32_t head_dim, float scale, bool look_ahead,
                         float *scores, float *most, float *exp_sums, float *sums)
{
    float factor[HEADS];
    score(chunk, from / 16, (to - 1) / 16, q, heads, head_dim, look_ahead, scores);
    for (uint32_t h = 0; h < heads; h++)
        factor[h] = weigh(scores + h * CHUNK_KEYS, from, to, scale, &most[h], exp_sums + h * 16);
    add_values(chunk, from, to, scores, factor, heads, look_ahead, sums);
}

/* All heads of the group, of which the first look ahead. */
static void attend_chunk(const struct chunk *chunk, uint32_t from, uint32_t to, const float *q,
                         uint32_t group, uint32_t head_dim, float scale, bool look_ahead,
                         float *scores, const struct state *state)
{
    for (uint32_t h = 0; h < group;) {
        uint32_t heads = group - h >= HEADS ? HEADS : group - h >= 2 ? 2 : 1;
        const float *q_h = q + (uint64_t)h * head_dim;
        float *most = state->most + h, *exp_sums = state->exp_sums + (uint64_t)h * 16;
        float *sums = state->sums + h * chunk->v_stride;
#define ATTEND(n)                                                                                  \
    attend_heads(chunk, from, to, q_h, n, head_dim, scale, false, scores, most, exp_sums, sums)
        if (heads == HEADS && h == 0 && look_ahead)
            attend_heads(chunk, from, to, q_h, HEADS, head_dim, scale, true, scores, most, exp_sums,
                         sums);
        else if (heads == HEADS)
            ATTEND(HEADS);
        else if (heads == 2)
            ATTEND(2);
        else
            ATTEND(1);
#undef ATTEND
        h += heads;
    }
}

/* ── the operation ─────────────────────────────────────────────────────────────────────────── */

uint64_t CPU_NAME(attention_scratch)(uint32_t group, uint32_t head_dim)
{
    uint64_t copy = (uint64_t)head_dim * CHUNK_KEYS + CHUNK_KEYS * (uint64_t)host_padded(head_dim);
    uint64_t query = (uint64_t)group * (16 + 16 + host_padded(head_dim));
    return copy + (uint64_t)group * CHUNK_KEYS + TILE_QUERIES * query;
}

static void attend_task(void *arg, uint32_t task, uint32_t thread)
{
    const struct attention *attention = arg;
    const struct host_attention *a = attention->a;
    const struct host_kv *kv = &a->kv;
    const struct host_tile *tile = &a->tiles[task / kv->kv_heads];
    const struct host_sequence *s = &a->sequences[tile->sequence];
    uint32_t kv_head = task % kv->kv_heads, dim = kv->head_dim, group = a->heads / kv->kv_heads;
    uint64_t padded = host_padded(dim);
    float scale = 1.0f / sqrtf((float)dim);

    float *copy = (float *)(void *)(attention->c->scratch + thread * attention->c->scratch_bytes);
    float *scores = copy + (uint64_t)dim * CHUNK_KEYS + CHUNK_KEYS * padded;
    float *next = scores + (uint64_t)group * CHUNK_KEYS;
    struct state states[TILE_QUERIES];
    for (uint32_t i = 0; i < tile->count; i++) {
        states[i].most = next;
        states[i].exp_sums = next + (uint64_t)group * 16;
        states[i].sums = next + (uint64_t)group * 32;
        next += group * (32 + padded);
        for (uint32_t g = 0; g < group; g++)
            states[i].most[g] = a->sinks[kv_head * group + g];
        memset(states[i].exp_sums, 0, (uint64_t)group * (16 + padded) * sizeof(float));
    }

    uint32_t first = s->position + tile->first, last = first + tile->count - 1;
    uint32_t begin = a->window && first + 1 > a->window ? first + 1 - a->window : 0;
    for (uint32_t start = begin / CHUNK_KEYS * CHUNK_KEYS; start <= last; start += CHUNK_KEYS) {
        uint32_t from = start > begin ? start : begin;
        uint32_t to = last + 1 - start < CHUNK_KEYS ? last + 1 : start + CHUNK_KEYS;
        struct chunk chunk;
        find_chunk(a, s, kv_head, start, from, to, copy, &chunk);
        uint32_t after = last - start >= CHUNK_KEYS ? start + CHUNK_KEYS : start;
        find_ahead(a, s, kv_head, after, last + 1, &chunk.ahead);
        for (uint32_t i = 0; i < tile->count; i++) {
            uint32_t position = first + i;
            uint32_t seen = a->window && position + 1 > a->window ? position + 1 - a->window : 0;
            uint32_t query_from = from > seen ? from : seen;
            uint32_t query_to = to < position + 1 ? to : position + 1;
            if (query_from >= query_to)
                continue;
            const float *q = a->q + ((uint64_t)(s->first + tile->first + i) * a->heads +
                                     (uint64_t)kv_head * group) *
                                        dim;
            attend_chunk(&chunk, query_from - start, query_to - start, q, group, dim, scale, i == 0,
                         scores, &states[i]);
        }
    }
    for (uint32_t i = 0; i < tile->count; i++) {
        float *out =
            a->out + (s->first + tile->first + i) * a->out_stride + (uint64_t)kv_head * group * dim;
        for (uint32_t g = 0; g < group; g++) {
            /* The sink has a share of the sum, and no value. */
            float sum = v_sum(v_load(states[i].exp_sums + g * 16)) +
                        scalar_exp(a->sinks[kv_head * group + g] - states[i].most[g]);
            for (uint32_t d = 0; d < dim; d++)
                out[(uint64_t)g * dim + d] = states[i].sums[g * padded + d] / sum;
        }
    }
}

static uint32_t cut(const struct host_attention *a)
{
    uint32_t n = 0;
    for (uint32_t r = 0; r < a->n_sequences; r++)
        for (uint32_t i = 0; i < a->sequences[r].count; i += TILE_QUERIES) {
            uint32_t left = a->sequences[r].count - i;
            a->tiles[n++] = (struct host_tile){r, i, left < TILE_QUERIES ? left : TILE_QUERIES};
        }
    return n;
}

void op_store(const struct host_context *c, const struct host_attention *a)
{
    struct attention attention = {a, c};
    double work = 8.0 * a->heads * a->kv.head_dim * a->n_tokens;
    pool_run(cpu_pool_for(c, work), cut(a), store_task, &attention);
}

void op_attend(const struct host_context *c, const struct host_attention *a)
{
    struct attention attention = {a, c};
    double work = 0;
    for (uint32_t r = 0; r < a->n_sequences; r++) {
        double keys = (double)a->sequences[r].position + a->sequences[r].count;
        if (a->window && keys > a->window)
            keys = a->window;
        work += 2.0 * a->sequences[r].count * a->heads * a->kv.head_dim * keys;
    }
    pool_run(cpu_pool_for(c, work), cut(a) * a->kv.kv_heads, attend_task, &attention);
}
