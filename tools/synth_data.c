/*
 * Random tensors at the speed of the disk: for each format and scale one tile of random blocks is
 * made, and a tensor is that tile again and again from a random block on. A tile has a prime number
 * of blocks, so that rows, experts and layers differ.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/synth.h"

#define POOL        (32749u * 32) /* 32749 is prime */
#define POOL_SINGLE 1047961u      /* the largest prime below POOL, for formats without blocks */
#define TILES_MAX   256

struct tile {
    enum gguf_type type;
    double mean, deviation;
    unsigned char *bytes; /* [blocks, block_bytes] */
    uint64_t blocks;
};

struct synth_data {
    uint64_t random;
    float *pool;   /* [POOL], normal, deviation 1 */
    float *scaled; /* [POOL] */
    struct tile tiles[TILES_MAX];
    size_t n_tiles;
};

/* SplitMix64. */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* In (0, 1). */
static double uniform(uint64_t *state)
{
    return ((double)(draw(state) >> 11) + 0.5) * 0x1p-53;
}

struct synth_data *synth_data_create(uint64_t seed)
{
    struct synth_data *data = base_alloc(1, sizeof *data);
    data->random = seed;
    data->pool = base_alloc(POOL, sizeof *data->pool);
    data->scaled = base_alloc(POOL, sizeof *data->scaled);
    for (size_t i = 0; i < POOL; i += 2) { /* Box and Muller */
        double radius = sqrt(-2 * log(uniform(&data->random)));
        double angle = 2 * 3.14159265358979323846 * uniform(&data->random);
        data->pool[i] = (float)(radius * cos(angle));
        data->pool[i + 1] = (float)(radius * sin(angle));
    }
    return data;
}

void synth_data_destroy(struct synth_data *data)
{
    if (!data)
        return;
    for (size_t i = 0; i < data->n_tiles; i++)
        free(data->tiles[i].bytes);
    free(data->pool);
    free(data->scaled);
    free(data);
}

static const struct tile *find_tile(struct synth_data *data, enum gguf_type type, double mean,
                                    double deviation)
{
    for (size_t i = 0; i < data->n_tiles; i++) {
        const struct tile *t = &data->tiles[i];
        if (t->type == type && t->mean == mean && t->deviation == deviation)
            return t;
    }
    if (data->n_tiles == TILES_MAX) /* cannot be: there are fewer kinds of tensors */
        return NULL;
    struct tile *t = &data->tiles[data->n_tiles++];
    uint32_t block = gguf_type_block_values(type);
    *t = (struct tile){.type = type, .mean = mean, .deviation = deviation};
    t->blocks = block == 1 ? POOL_SINGLE : POOL / block;
    t->bytes = base_alloc(t->blocks, gguf_type_block_bytes(type));
    for (size_t i = 0; i < POOL; i++)
        data->scaled[i] = (float)(mean + deviation * (double)data->pool[i]);
    gguf_from_float(type, data->scaled, t->bytes, t->blocks * block);
    return t;
}

int synth_data_write(struct synth_data *data, struct gguf_writer *w, enum gguf_type type,
                     uint64_t values, double mean, double deviation, char *err, size_t err_size)
{
    const struct tile *tile = find_tile(data, type, mean, deviation);
    if (!tile)
        return -1;
    uint64_t left = values / gguf_type_block_values(type), bytes = gguf_type_block_bytes(type);
    uint64_t at = draw(&data->random) % tile->blocks;
    while (left) {
        uint64_t n = tile->blocks - at < left ? tile->blocks - at : left;
        if (gguf_writer_data(w, tile->bytes + at * bytes, (size_t)(n * bytes), err, err_size))
            return -1;
        left -= n;
        at = 0;
    }
    return 0;
}
