/*
 * map: u64 → u32, open addressing with linear probing in a power of two of slots, at most 3/4 full.
 * A slot whose value is MAP_NONE is empty. Removal closes the gap it makes, so there are no
 * tombstones and a map that lives long does not slow down.
 */
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

struct map {
    uint64_t *keys;   /* [slots] */
    uint32_t *values; /* [slots] */
    size_t slots, count;
};

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93u;
    return x ^ (x >> 32);
}

static void make_slots(struct map *map, size_t slots)
{
    map->slots = slots;
    map->count = 0;
    map->keys = base_alloc(slots, sizeof *map->keys);
    map->values = base_alloc(slots, sizeof *map->values);
    memset(map->values, 0xff, slots * sizeof *map->values);
}

struct map *map_create(size_t expected)
{
    struct map *map = base_alloc(1, sizeof *map);
    size_t slots = 16;
    while (slots / 4 * 3 < expected && slots < SIZE_MAX / 2)
        slots *= 2;
    make_slots(map, slots);
    return map;
}

void map_destroy(struct map *map)
{
    if (map == NULL)
        return;
    free(map->keys);
    free(map->values);
    free(map);
}

/* The slot that holds `key`, or the empty one where it belongs. */
static size_t find(const struct map *map, uint64_t key)
{
    size_t i = mix(key) & (map->slots - 1);
    while (map->values[i] != MAP_NONE && map->keys[i] != key)
        i = (i + 1) & (map->slots - 1);
    return i;
}

static void double_slots(struct map *map)
{
    struct map old = *map;
    make_slots(map, old.slots * 2);
    for (size_t i = 0; i < old.slots; i++)
        if (old.values[i] != MAP_NONE) {
            size_t to = find(map, old.keys[i]);
            map->keys[to] = old.keys[i];
            map->values[to] = old.values[i];
        }
    map->count = old.count;
    free(old.keys);
    free(old.values);
}

void map_set(struct map *map, uint64_t key, uint32_t value)
{
    if (value == MAP_NONE) {
        map_remove(map, key);
        return;
    }
    size_t i = find(map, key);
    if (map->values[i] == MAP_NONE) {
        if (map->count + 1 > map->slots / 4 * 3) {
            double_slots(map);
            i = find(map, key);
        }
        map->count++;
        map->keys[i] = key;
    }
    map->values[i] = value;
}

uint32_t map_get(const struct map *map, uint64_t key)
{
    return map->values[find(map, key)];
}

void map_remove(struct map *map, uint64_t key)
{
    size_t gap = find(map, key);
    if (map->values[gap] == MAP_NONE)
        return;
    map->count--;
    /* Whatever follows in the same run moves back into the gap, if the gap is not before its home. */
    size_t mask = map->slots - 1;
    for (size_t i = (gap + 1) & mask; map->values[i] != MAP_NONE; i = (i + 1) & mask) {
        size_t home = mix(map->keys[i]) & mask;
        if (((i - home) & mask) < ((i - gap) & mask))
            continue;
        map->keys[gap] = map->keys[i];
        map->values[gap] = map->values[i];
        gap = i;
    }
    map->values[gap] = MAP_NONE;
}

size_t map_count(const struct map *map)
{
    return map->count;
}

uint64_t map_hash(const void *bytes, size_t size, uint64_t seed)
{
    const unsigned char *p = bytes;
    uint64_t h = mix(seed + 0x9e3779b97f4a7c15u) ^ size;
    while (size > 0) {
        uint64_t word = 0;
        size_t n = size < 8 ? size : 8;
        memcpy(&word, p, n);
        h ^= word * 0xc6a4a7935bd1e995u;
        h = ((h << 29) | (h >> 35)) * 0x9fb21c651e98df25u;
        h ^= h >> 28;
        p += n;
        size -= n;
    }
    return mix(h);
}
