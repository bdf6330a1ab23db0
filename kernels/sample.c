/*
 * sample: from logits to a token, the one rule of kernels.h.
 *
 * What costs is the vocabulary: 201,088 logits are passed over a few times, and only what can matter
 * is looked at closely. Sorting is done where a filter needs the order, and of the best alone: a
 * histogram of the logits' leading bits says where they begin. Without filters the draw compares
 * y + g(id); g has a bound that a few bits of its random word give, and most ids end there.
 *
 *   g = −ln(−ln u), u = (word + ½) / 2³²; word (id mod 4) of Philox 4×32-10 with
 *   key (seed mod 2³², seed / 2³²), counter (id / 4, position, 0, 0).
 *
 * A whole vocabulary is one slice, and slices are merged block by block in the order of ids: so the
 * bits are the same however a vocabulary is cut.
 */
#include "kernels/ops.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define BLOCK   KERNELS_SLICE_BLOCK
#define BUCKETS 4096 /* of the histogram: the 12 leading bits of an ordered logit */

struct scratch {
    struct kernels_slice_block *blocks; /* [⌈n / BLOCK⌉] */
    uint32_t *ids, *ids_other;          /* [n] */
    uint32_t *keys, *keys_other;        /* [n]; descending y is ascending key */
    uint32_t *buckets;                  /* [BUCKETS] ids in each */
    float *masses;                      /* [BUCKETS] about the sum of their exponentials */
};

static uint32_t blocks_of(uint32_t n)
{
    return n / BLOCK + (n % BLOCK != 0);
}

size_t kernels_sample_scratch_bytes(uint32_t n)
{
    return blocks_of(n) * sizeof(struct kernels_slice_block) +
           ((size_t)n * 4 + BUCKETS) * sizeof(uint32_t) + BUCKETS * sizeof(float);
}

static struct scratch scratch_of(void *memory, uint32_t n)
{
    struct kernels_slice_block *blocks = memory;
    uint32_t *words = (uint32_t *)(void *)(blocks + blocks_of(n));
    return (struct scratch){
        .blocks = blocks,
        .ids = words,
        .ids_other = words + (size_t)n,
        .keys = words + (size_t)n * 2,
        .keys_other = words + (size_t)n * 3,
        .buckets = words + (size_t)n * 4,
        .masses = (float *)(void *)(words + (size_t)n * 4 + BUCKETS),
    };
}

/* ── sums ──────────────────────────────────────────────────────────────────────────────────── */

/* eˣ for x ≤ 0 to about 2 ulp, without calls and branches so that the loop below is vectorised.
 * x = k·ln 2 + r, |r| ≤ ln 2 / 2; a polynomial in r; k goes into the exponent. */
static inline float exp_negative(float x)
{
    x = x > -87.0f ? x : -87.0f;                   /* also turns NaN into a number */
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 · 2²³: rounds to an integer */
    float k = shifted - 12582912.0f;
    float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    int32_t bits = ((int32_t)k + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* Σ exp(x − most) over ids begin…end−1 of one block: 16 partial sums, added in a fixed order. */
static double block_sum(const float *x, uint32_t begin, uint32_t end, float scale, float most)
{
    float part[16] = {0};
    uint32_t i = begin;
    for (; i + 16 <= end; i += 16)
        for (uint32_t j = 0; j < 16; j++)
            part[j] += exp_negative((x[i + j] - most) * scale);
    for (uint32_t j = 0; i < end; i++, j++)
        part[j] += exp_negative((x[i] - most) * scale);
    for (uint32_t width = 8; width; width /= 2)
        for (uint32_t j = 0; j < width; j++)
            part[j] += part[j + width];
    return (double)part[0];
}

/* Σ exp((x − most) · scale) over blocks in order. */
static double sum_exp(const float *x, uint32_t n, float scale, float most)
{
    double sum = 0;
    for (uint32_t begin = 0; begin < n; begin += BLOCK)
        sum += block_sum(x, begin, n - begin > BLOCK ? begin + BLOCK : n, scale, most);
    return sum;
}

/* The largest of x[n]; −∞ where there is none. */
static float largest(const float *x, uint32_t n)
{
    float part[16], most = -INFINITY;
    uint32_t i = 0;
    for (uint32_t j = 0; j < 16; j++)
        part[j] = -INFINITY;
    for (; i + 16 <= n; i += 16)
        for (uint32_t j = 0; j < 16; j++)
            part[j] = x[i + j] > part[j] ? x[i + j] : part[j];
    for (; i < n; i++)
        part[0] = x[i] > part[0] ? x[i] : part[0];
    for (uint32_t j = 0; j < 16; j++)
        most = part[j] > most ? part[j] : most;
    return most;
}

/* ── the best K ────────────────────────────────────────────────────────────────────────────── */

static void find_top(const float *x, uint32_t first, uint32_t n, uint32_t wanted,
                     struct kernels_slice_top *top)
{
    uint32_t have = 0;
    float least = -INFINITY; /* what an id must exceed once the list is full */
    for (uint32_t i = 0; i < n && wanted; i++) {
        float value = x[i];
        if (have == wanted ? !(value > least) : value != value)
            continue;
        uint32_t at = have < wanted ? have++ : wanted - 1;
        for (; at && top->of[at - 1].logit < value; at--)
            top->of[at] = top->of[at - 1];
        top->of[at].id = (int32_t)(first + i);
        top->of[at].logit = value;
        least = top->of[have - 1].logit;
    }
    top->n = have;
}

/* Lists of slices in the order of their ids into one. */
static void merge_tops(const struct kernels_slice *slices, uint32_t n_slices, uint32_t wanted,
                       struct kernels_sample *sample)
{
    uint32_t taken[KERNELS_SLICES_MAX] = {0}, have = 0;
    for (; have < wanted; have++) {
        uint32_t from = n_slices;
        for (uint32_t s = 0; s < n_slices; s++)
            if (taken[s] < slices[s].top->n &&
                (from == n_slices ||
                 slices[s].top->of[taken[s]].logit > slices[from].top->of[taken[from]].logit))
                from = s;
        if (from == n_slices)
            break;
        sample->top[have].id = slices[from].top->of[taken[from]].id;
        sample->top[have].logit = slices[from].top->of[taken[from]].logit;
        taken[from]++;
    }
    sample->n_top = have;
}

/* ── order ─────────────────────────────────────────────────────────────────────────────────── */

/* Larger y, smaller key; −0 and +0 are one, NaN comes last. */
static inline uint32_t key_of(float y)
{
    if (!(y == y))
        return UINT32_MAX;
    y += 0.0f;
    uint32_t bits;
    memcpy(&bits, &y, sizeof bits);
    return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

static inline float value_of(uint32_t key)
{
    uint32_t bits = key & 0x80000000u ? key : 0x7fffffffu - key;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

/* Sorts count (key, id) pairs by key; equal keys keep their order. */
static void sort_pairs(struct scratch *s, uint32_t count)
{
    if (count <= 64) {
        for (uint32_t i = 1; i < count; i++) {
            uint32_t key = s->keys[i], id = s->ids[i], at = i;
            for (; at && s->keys[at - 1] > key; at--) {
                s->keys[at] = s->keys[at - 1];
                s->ids[at] = s->ids[at - 1];
            }
            s->keys[at] = key;
            s->ids[at] = id;
        }
        return;
    }
    for (unsigned shift = 0; shift < 32; shift += 11) {
        uint32_t starts[2048] = {0}, at = 0;
        for (uint32_t i = 0; i < count; i++)
            starts[s->keys[i] >> shift & 2047]++;
        for (uint32_t b = 0; b < 2048; b++) {
            uint32_t here = starts[b];
            starts[b] = at;
            at += here;
        }
        for (uint32_t i = 0; i < count; i++) {
            uint32_t to = starts[s->keys[i] >> shift & 2047]++;
            s->keys_other[to] = s->keys[i];
            s->ids_other[to] = s->ids[i];
        }
        uint32_t *swap = s->keys;
        s->keys = s->keys_other;
        s->keys_other = swap;
        swap = s->ids;
        s->ids = s->ids_other;
        s->ids_other = swap;
    }
}

/* Puts the ids of the first `end` buckets at s->ids, their keys at s->keys, sorted; returns how many
 * those are. */
static uint32_t gather(struct scratch *s, const float *x, uint32_t n, float temperature,
                       uint32_t end)
{
    uint32_t at = 0;
    uint64_t below = (uint64_t)end << 20;
    for (uint32_t id = 0; id < n; id++) {
        uint32_t key = key_of(x[id] / temperature);
        s->ids[at] = id; /* written always, kept if it belongs here */
        s->keys[at] = key;
        at += key < below;
    }
    sort_pairs(s, at);
    return at;
}

/* The number of leading buckets that hold `wanted` ids. */
static uint32_t buckets_of_count(const struct scratch *s, uint32_t wanted)
{
    uint32_t end = 0;
    for (uint32_t count = 0; end < BUCKETS && count < wanted; end++)
        count += s->buckets[end];
    return end;
}

/* The same for about a mass. */
static uint32_t buckets_of_mass(const struct scratch *s, double wanted)
{
    uint32_t end = 0;
    for (double mass = 0; end < BUCKETS && mass < wanted; end++)
        mass += (double)s->masses[end];
    return end;
}

/* ── noise ─────────────────────────────────────────────────────────────────────────────────── */

static void philox(uint64_t seed, uint32_t position, uint32_t group, uint32_t word[4])
{
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    uint32_t c0 = group, c1 = position, c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ key0, n2 = (uint32_t)(a >> 32) ^ c3 ^ key1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        c0 = n0;
        c2 = n2;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    word[0] = c0;
    word[1] = c1;
    word[2] = c2;
    word[3] = c3;
}

static double gumbel(uint32_t word)
{
    return -log(-log(((double)word + 0.5) * 0x1p-32));
}

/* The draw so far. */
struct draw {
    uint64_t seed;
    uint32_t position, group; /* whose words are at word[] */
    uint32_t word[4];
    double best;
    uint32_t id;
};

/* g ≤ −ln(1 − u) because −ln u ≥ 1 − u, and 1 − u > 2^−(z+1) for a word that begins with z ones: so
 * g < (z + 1) · ln 2. An id that cannot win even so needs no logarithm. */
static inline void consider(struct draw *draw, uint32_t id, float y)
{
    if (!(y + 23.0 >= draw->best)) /* 33 · ln 2 < 23: what no word can exceed */
        return;
    if (id / 4 != draw->group) {
        draw->group = id / 4;
        philox(draw->seed, draw->position, draw->group, draw->word);
    }
    uint32_t word = draw->word[id % 4];
    int ones = word == UINT32_MAX ? 32 : __builtin_clz(~word);
    if (!(y + (ones + 1) * 0.6931471805599454 >= draw->best))
        return;
    double value = y + gumbel(word);
    if (value > draw->best || (value == draw->best && id < draw->id)) {
        draw->best = value;
        draw->id = id;
    }
}

/* ── the rule ──────────────────────────────────────────────────────────────────────────────── */

/* The first ids in order that top_k and top_p keep; their y by value_of(keys). */
static uint32_t keep_best(struct scratch *s, const float *x, uint32_t n,
                          const struct kernels_row *row, float most)
{
    float temperature = row->temperature, y_most = most / temperature;
    bool cut_k = row->top_k && row->top_k < n, cut_p = row->top_p < 1;
    uint32_t kept = cut_k ? row->top_k : n, ordered;
    memset(s->buckets, 0, BUCKETS * sizeof *s->buckets);
    memset(s->masses, 0, BUCKETS * sizeof *s->masses);
    for (uint32_t id = 0; id < n; id++) {
        float y = x[id] / temperature;
        uint32_t bucket = key_of(y) >> 20;
        s->buckets[bucket]++;
        if (cut_p && !cut_k && y > y_most - 30) /* below is no mass to speak of */
            s->masses[bucket] += exp_negative(y - y_most);
    }
    if (cut_k) {
        ordered = gather(s, x, n, temperature, buckets_of_count(s, kept));
        if (!cut_p)
            return kept;
    }
    /* The mass of all that top_k keeps, then the shortest prefix that reaches top_p of it. */
    double mass = 0, sum = 0;
    if (cut_k) {
        for (uint32_t i = 0; i < kept; i++)
            mass += (double)exp_negative(value_of(s->keys[i]) - y_most);
    } else {
        mass = sum_exp(x, n, 1 / temperature, most);
        double about = (double)row->top_p * mass * 1.001;
        ordered = gather(s, x, n, temperature, buckets_of_mass(s, about));
    }
    for (uint32_t i = 0; i < kept; i++) {
        if (i == ordered) /* what was about right was too little */
            ordered = gather(s, x, n, temperature, BUCKETS);
        sum += (double)exp_negative(value_of(s->keys[i]) - y_most);
        if (sum >= (double)row->top_p * mass)
            return i + 1;
    }
    return kept;
}

/* Of a row with filters, whose logits are all here. */
static uint32_t draw_filtered(const float *x, uint32_t n, const struct kernels_row *row,
                              uint32_t position, uint32_t best, struct scratch *s)
{
    float most = x[best], temperature = row->temperature;
    float floor = row->min_p > 0 ? most / temperature + logf(row->min_p) : -INFINITY;
    struct draw draw = {.seed = row->seed,
                        .position = position,
                        .group = UINT32_MAX,
                        .best = -INFINITY,
                        .id = best};
    if (row->top_p < 1 || (row->top_k && row->top_k < n)) {
        uint32_t kept = keep_best(s, x, n, row, most);
        for (uint32_t i = 0; i < kept; i++) {
            float y = value_of(s->keys[i]);
            if (y >= floor)
                consider(&draw, s->ids[i], y);
        }
        return draw.id;
    }
    /* The likeliest first: it sets a mark that most others miss. */
    consider(&draw, best, most / temperature);
    for (uint32_t id = 0; id < n; id++) {
        float y = x[id] / temperature;
        if (y >= floor)
            consider(&draw, id, y);
    }
    return draw.id;
}

bool kernels_row_filters(const struct kernels_row *row, uint32_t n)
{
    return row->temperature > 0 &&
           (row->top_p < 1 || (row->top_k && row->top_k < n) || row->min_p > 0);
}

/* ── slices ────────────────────────────────────────────────────────────────────────────────── */

#define NONE UINT32_MAX

/* The draw among all ids of the slice, to its first block. */
static void draw_slice(const float *x, uint32_t first, uint32_t n, const struct kernels_row *row,
                       uint32_t position, uint32_t best, struct kernels_slice_block *block)
{
    struct draw draw = {.seed = row->seed,
                        .position = position,
                        .group = UINT32_MAX,
                        .best = -INFINITY,
                        .id = NONE};
    consider(&draw, first + best, x[best] / row->temperature);
    for (uint32_t i = 0; i < n; i++)
        consider(&draw, first + i, x[i] / row->temperature);
    if (draw.id == NONE)
        return;
    block->draw = draw.best;
    block->draw_id = draw.id;
    block->draw_logit = x[draw.id - first];
}

void kernels_slice(const float *x, uint32_t first, uint32_t count, uint32_t n,
                   const struct kernels_row *row, uint32_t position,
                   struct kernels_slice_block *blocks, struct kernels_slice_top *top)
{
    uint32_t here = n <= first ? 0 : n - first < count ? n - first : count, best_block = 0;
    float most = -INFINITY;
    for (uint32_t b = 0; b < blocks_of(count); b++) {
        uint32_t begin = b * BLOCK, end = here < begin           ? begin
                                          : here < begin + BLOCK ? here
                                                                 : begin + BLOCK;
        struct kernels_slice_block *block = &blocks[b];
        *block = (struct kernels_slice_block){
            .most = -INFINITY, .id = NONE, .draw_id = NONE, .draw = -INFINITY};
        if (begin == end)
            continue;
        block->most = largest(x + begin, end - begin);
        block->sum = (float)block_sum(x, begin, end, 1, block->most);
        if (block->most > most) {
            most = block->most;
            best_block = b;
        }
    }
    find_top(x, first, here, row->top_logits, top);
    uint32_t best = best_block * BLOCK;
    while (best < here && x[best] != most)
        best++;
    if (best >= here) /* no ids, or nothing but NaN */
        return;
    blocks[best / BLOCK].id = first + best;
    blocks[best / BLOCK].most = x[best];
    if (row->temperature > 0 && !kernels_row_filters(row, n))
        draw_slice(x, first, here, row, position, best, blocks);
}

void kernels_merge(const struct kernels_slice *slices, uint32_t n_slices, const float *logits,
                   uint32_t n, const struct kernels_row *row, uint32_t position,
                   struct kernels_sample *sample, void *scratch)
{
    float most = -INFINITY;
    uint32_t best = NONE;
    const struct kernels_slice_block *drawn = NULL;
    for (uint32_t s = 0; s < n_slices; s++)
        for (uint32_t b = 0; b < slices[s].n_blocks; b++) {
            const struct kernels_slice_block *block = &slices[s].blocks[b];
            if (block->most > most || (best == NONE && block->most == most)) {
                most = block->most;
                best = block->id;
            }
            if (block->draw_id != NONE && (!drawn || block->draw > drawn->draw))
                drawn = block;
        }
    double sum = 0;
    for (uint32_t s = 0; s < n_slices; s++)
        for (uint32_t b = 0; b < slices[s].n_blocks; b++) {
            const struct kernels_slice_block *block = &slices[s].blocks[b];
            sum += block->most == most
                       ? (double)block->sum
                       : (double)block->sum * exp((double)block->most - (double)most);
        }
    sample->log_sum_exp = (float)((double)most + log(sum));
    merge_tops(slices, n_slices, row->top_logits, sample);

    sample->token = best == NONE ? 0 : (int32_t)best;
    sample->logit = best == NONE ? NAN : most;
    /* Logits that are no numbers, or a temperature so small that y overflows: the best token. */
    if (!(row->temperature > 0 && isfinite(most) && isfinite(most / row->temperature)))
        return;
    if (kernels_row_filters(row, n)) {
        struct scratch s = scratch_of(scratch, n);
        sample->token = (int32_t)draw_filtered(logits, n, row, position, best, &s);
        sample->logit = logits[sample->token];
    } else if (drawn) {
        sample->token = (int32_t)drawn->draw_id;
        sample->logit = drawn->draw_logit;
    }
}

void kernels_sample(const float *logits, uint32_t n, uint32_t limit, const struct kernels_row *row,
                    uint32_t position, struct kernels_sample *sample, void *scratch)
{
    struct kernels_slice_top top;
    struct scratch s = scratch_of(scratch, n);
    if (limit && limit < n)
        n = limit;
    kernels_slice(logits, 0, n, n, row, position, s.blocks, &top);
    const struct kernels_slice slice = {s.blocks, blocks_of(n), &top};
    kernels_merge(&slice, 1, logits, n, row, position, sample, scratch);
}
