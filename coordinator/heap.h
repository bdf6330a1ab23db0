/*
 * heap: the least of many numbers, in an array that its owner provides (large enough for every push).
 */
#ifndef GPTOSS_COORDINATOR_HEAP_H
#define GPTOSS_COORDINATOR_HEAP_H

#include <stddef.h>
#include <stdint.h>

struct heap {
    uint64_t *values; /* [count] the least first; the children of i are 2i + 1 and 2i + 2 */
    size_t count;
};

/* Moves the value at `at` down until no child is less. */
static inline void heap_sink(struct heap *h, size_t at)
{
    uint64_t value = h->values[at];
    for (size_t child; (child = 2 * at + 1) < h->count; at = child) {
        if (child + 1 < h->count && h->values[child + 1] < h->values[child])
            child++;
        if (h->values[child] >= value)
            break;
        h->values[at] = h->values[child];
    }
    h->values[at] = value;
}

/* Makes a heap of values in any order. */
static inline void heap_order(struct heap *h)
{
    for (size_t i = h->count / 2; i-- > 0;)
        heap_sink(h, i);
}

static inline void heap_push(struct heap *h, uint64_t value)
{
    size_t at = h->count++;
    for (; at > 0 && h->values[(at - 1) / 2] > value; at = (at - 1) / 2)
        h->values[at] = h->values[(at - 1) / 2];
    h->values[at] = value;
}

/* Takes the least; count > 0. */
static inline uint64_t heap_pop(struct heap *h)
{
    uint64_t least = h->values[0];
    h->values[0] = h->values[--h->count];
    if (h->count > 0)
        heap_sink(h, 0);
    return least;
}

#endif
