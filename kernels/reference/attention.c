#include "kernels/reference/reference.h"

#include <math.h>
#include <string.h>

/* Pairs are halves of a head: (x_i, x_{i + head_dim/2}). */
static void rotate(float *x, uint32_t heads, uint32_t head_dim, const float *cosine,
                   const float *sine)
{
    uint32_t half = head_dim / 2;
    for (uint32_t head = 0; head < heads; head++)
        for (uint32_t i = 0; i < half; i++) {
            float *a = &x[(uint64_t)head * head_dim + i], *b = a + half;
            double a0 = (double)*a, b0 = (double)*b, c = (double)cosine[i], s = (double)sine[i];
            *a = (float)(a0 * c - b0 * s);
            *b = (float)(b0 * c + a0 * s);
        }
}

static void store(unsigned char *at, enum kernels_kv_type type, float value)
{
    if (type == KERNELS_KV_F32) {
        memcpy(at, &value, 4);
    } else if (type == KERNELS_KV_F16) {
        uint16_t half = gguf_float_to_half(value);
        memcpy(at, &half, 2);
    } else {
        gguf_from_float(GGUF_BF16, &value, at, 1);
    }
}

static float load(const unsigned char *at, enum kernels_kv_type type)
{
    float value = 0;
    enum gguf_type file_type = type == KERNELS_KV_F32   ? GGUF_F32
                               : type == KERNELS_KV_F16 ? GGUF_F16
                                                        : GGUF_BF16;
    gguf_to_float(file_type, at, &value, 1);
    return value;
}

/* Element d of the key or value of one head at a position. */
static unsigned char *element(const struct host_kv *kv, const uint32_t *blocks, uint32_t position,
                              bool is_value, uint32_t head, uint32_t d)
{
    uint64_t tokens = kv->block_tokens, dim = kv->head_dim, in_block = position % kv->block_tokens;
    uint64_t index = is_value ? kv->kv_heads * dim * tokens + (head * tokens + in_block) * dim + d
                              : (head * dim + d) * tokens + in_block;
    return kv->base + blocks[position / kv->block_tokens] * kv->block_bytes +
           index * host_kv_element_bytes(kv->type);
}

static void store_token(const struct host_attention *a, const struct host_sequence *s, uint32_t i)
{
    const struct host_kv *kv = &a->kv;
    for (uint32_t head = 0; head < kv->kv_heads; head++)
        for (uint32_t d = 0; d < kv->head_dim; d++) {
            uint64_t at = ((uint64_t)(s->first + i) * kv->kv_heads + head) * kv->head_dim + d;
            uint32_t position = s->position + i;
            store(element(kv, s->blocks, position, false, head, d), kv->type, a->k[at]);
            store(element(kv, s->blocks, position, true, head, d), kv->type, a->v[at]);
        }
}

/* Softmax over the scores of the keys and the sink, which has no value. The maximum, the sum and the
 * values in three passes over the keys, so that nothing but one head's sum is kept. */
static void attend_head(const struct host_attention *a, const struct host_sequence *s, uint32_t i,
                        uint32_t head)
{
    const struct host_kv *kv = &a->kv;
    uint32_t dim = kv->head_dim, kv_head = head / (a->heads / kv->kv_heads);
    uint32_t position = s->position + i;
    uint32_t begin = a->window && position + 1 > a->window ? position + 1 - a->window : 0;
    const float *q = a->q + ((uint64_t)(s->first + i) * a->heads + head) * dim;
    float *out = a->out + (s->first + i) * a->out_stride + (uint64_t)head * dim;

    double most = (double)a->sinks[head], sum = 0;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1) {
            sum = exp((double)a->sinks[head] - most);
            for (uint32_t d = 0; d < dim; d++)
                out[d] = 0;
        }
        for (uint32_t p = begin; p <= position; p++) {
            double score = 0;
            for (uint32_t d = 0; d < dim; d++)
                score += (double)q[d] *
                         (double)load(element(kv, s->blocks, p, false, kv_head, d), kv->type);
            score /= sqrt((double)dim);
            if (pass == 0) {
                most = fmax(most, score);
                continue;
            }
            double e = exp(score - most);
            sum += e;
            for (uint32_t d = 0; d < dim; d++)
                out[d] += (float)(e * (double)load(element(kv, s->blocks, p, true, kv_head, d),
                                                   kv->type));
        }
    }
    for (uint32_t d = 0; d < dim; d++)
        out[d] = (float)((double)out[d] / sum);
}

void reference_store(const struct host_context *c, const struct host_attention *a)
{
    (void)c;
    uint32_t half = a->kv.head_dim / 2;
    for (uint32_t r = 0; r < a->n_sequences; r++) {
        const struct host_sequence *s = &a->sequences[r];
        for (uint32_t i = 0; i < s->count; i++) {
            uint64_t t = s->first + i, angle = (uint64_t)(s->position + i) * half;
            if (a->rotation.cosine) {
                rotate(a->q + t * a->heads * a->kv.head_dim, a->heads, a->kv.head_dim,
                       a->rotation.cosine + angle, a->rotation.sine + angle);
                rotate(a->k + t * a->kv.kv_heads * a->kv.head_dim, a->kv.kv_heads, a->kv.head_dim,
                       a->rotation.cosine + angle, a->rotation.sine + angle);
            }
            store_token(a, s, i);
        }
    }
}

void reference_attend(const struct host_context *c, const struct host_attention *a)
{
    (void)c;
    for (uint32_t r = 0; r < a->n_sequences; r++)
        for (uint32_t i = 0; i < a->sequences[r].count; i++)
            for (uint32_t head = 0; head < a->heads; head++)
                attend_head(a, &a->sequences[r], i, head);
}
