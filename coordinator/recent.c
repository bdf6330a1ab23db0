#include "coordinator/recent.h"

#include <math.h>
#include <string.h>

void recent_count(struct recent_rate *r, uint64_t count, uint64_t now)
{
    uint64_t slot = now / RECENT_RATE_SLOT_US;
    uint32_t i = slot % RECENT_RATE_SLOTS;
    if (r->slot[i] != slot) {
        r->slot[i] = slot;
        r->count[i] = 0;
    }
    r->count[i] += count;
}

double recent_rate(const struct recent_rate *r, double seconds, uint64_t since_us, uint64_t now)
{
    uint64_t slot = now / RECENT_RATE_SLOT_US, count = 0;
    uint64_t back = (uint64_t)(seconds * 1e6 / RECENT_RATE_SLOT_US);
    back = back < 1 ? 1 : back >= RECENT_RATE_SLOTS ? RECENT_RATE_SLOTS - 1 : back;
    uint64_t first = slot > back ? slot - back : 0;
    if (since_us / RECENT_RATE_SLOT_US > first)
        first = since_us / RECENT_RATE_SLOT_US;
    for (uint32_t i = 0; i < RECENT_RATE_SLOTS; i++)
        if (r->slot[i] >= first && r->slot[i] <= slot)
            count += r->count[i];
    uint64_t from = first * RECENT_RATE_SLOT_US;
    from = from > since_us ? from : since_us;
    return now > from ? (double)count * 1e6 / (double)(now - from) : 0;
}

/* Below 16 each µs has its own; then each doubling has 16 of equal width. */
static uint32_t bucket(uint64_t us)
{
    if (us < 16)
        return (uint32_t)us;
    uint32_t shift = 59 - (uint32_t)__builtin_clzll(us); /* us >> shift is 16 … 31 */
    uint64_t place = (uint64_t)16 * shift + (us >> shift);
    return place < RECENT_BUCKETS ? (uint32_t)place : RECENT_BUCKETS - 1;
}

/* The middle of a bucket, in seconds. */
static double middle(uint32_t i)
{
    if (i < 16)
        return i * 1e-6;
    return ldexp((i % 16) + 16.5, (int)(i / 16) - 1) * 1e-6;
}

void recent_duration(struct recent_durations *d, uint64_t us, uint64_t now)
{
    uint64_t slot = now / d->slot_us;
    uint32_t i = slot % RECENT_SLOTS;
    if (d->slot[i] != slot) {
        d->slot[i] = slot;
        d->sums_us[i] = 0;
        memset(d->counts[i], 0, sizeof d->counts[i]);
    }
    d->counts[i][bucket(us)]++;
    d->sums_us[i] += us;
}

void recent_latency(const struct recent_durations *d, uint64_t now, Gptoss__Latency *out)
{
    uint64_t all[RECENT_BUCKETS] = {0}, slot = now / d->slot_us, sum = 0;
    gptoss__latency__init(out);
    for (uint32_t i = 0; i < RECENT_SLOTS; i++) {
        if (d->slot[i] + RECENT_SLOTS <= slot || d->slot[i] > slot)
            continue;
        sum += d->sums_us[i];
        for (uint32_t b = 0; b < RECENT_BUCKETS; b++) {
            all[b] += d->counts[i][b];
            out->count += d->counts[i][b];
        }
    }
    if (out->count == 0)
        return;
    out->mean = (double)sum * 1e-6 / (double)out->count;
    const struct {
        double share;
        double *value;
    } wanted[] = {{0.5, &out->p50}, {0.9, &out->p90}, {0.99, &out->p99}};
    for (size_t w = 0; w < sizeof wanted / sizeof *wanted; w++) {
        uint64_t below = 0, rank = (uint64_t)ceil(wanted[w].share * (double)out->count);
        uint32_t b = 0;
        while ((below += all[b]) < rank)
            b++;
        *wanted[w].value = middle(b);
    }
}
