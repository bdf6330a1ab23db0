/* text: strings that grow, sizes and times for people, UTF-8. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

void text_add(struct text *t, const void *bytes, size_t size)
{
    t->bytes = base_grow(t->bytes, &t->capacity, t->size + size + 1, 1);
    if (size > 0)
        memcpy(t->bytes + t->size, bytes, size);
    t->size += size;
    t->bytes[t->size] = '\0';
}

void text_print(struct text *t, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int size = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (size >= 0) {
        t->bytes = base_grow(t->bytes, &t->capacity, t->size + (size_t)size + 1, 1);
        vsnprintf(t->bytes + t->size, (size_t)size + 1, format, again);
        t->size += (size_t)size;
    }
    va_end(again);
}

void text_clear(struct text *t)
{
    t->size = 0;
    if (t->bytes != NULL)
        t->bytes[0] = '\0';
}

void text_free(struct text *t)
{
    free(t->bytes);
    *t = (struct text){0};
}

const char *text_bytes(char buffer[32], uint64_t bytes)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < 1024) {
        snprintf(buffer, 32, "%u B", (unsigned)bytes);
        return buffer;
    }
    double value = (double)bytes / 1024;
    size_t unit = 0;
    while (value >= 1023.995 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1024;
        unit++;
    }
    snprintf(buffer, 32, "%.2f %s", value, units[unit]);
    return buffer;
}

const char *text_seconds(char buffer[32], double seconds)
{
    const char *sign = seconds < 0 ? "-" : "";
    double s = fabs(seconds);
    if (!isfinite(s))
        snprintf(buffer, 32, "%s", isnan(s) ? "unknown" : "for ever");
    else if (s == 0)
        snprintf(buffer, 32, "0 s");
    else if (s < 999.5e-9)
        snprintf(buffer, 32, "%s%.0f ns", sign, s * 1e9);
    else if (s < 999.5e-6)
        snprintf(buffer, 32, "%s%.*f µs", sign, s < 9.995e-6 ? 2 : 0, s * 1e6);
    else if (s < 999.5e-3)
        snprintf(buffer, 32, "%s%.*f ms", sign, s < 99.95e-3 ? 1 : 0, s * 1e3);
    else if (s < 59.995)
        snprintf(buffer, 32, "%s%.2f s", sign, s);
    else if (s < 3599.5) {
        unsigned n = (unsigned)(s + 0.5);
        snprintf(buffer, 32, "%s%u min %02u s", sign, n / 60, n % 60);
    } else if (s < 86400 - 30) {
        unsigned n = (unsigned)(s / 60 + 0.5);
        snprintf(buffer, 32, "%s%u h %02u min", sign, n / 60, n % 60);
    } else {
        double days = floor((s + 1800) / 86400);
        snprintf(buffer, 32, "%s%.0f d %02.0f h", sign, days,
                 floor((s + 1800 - days * 86400) / 3600));
    }
    return buffer;
}

/* Well-formed sequences, as Unicode's table 3-7 has them: the range of the second byte depends on the
 * first, the others are 80–BF. */
size_t text_utf8_length(const void *bytes, size_t size, bool *incomplete)
{
    const unsigned char *p = bytes;
    if (incomplete != NULL)
        *incomplete = false;
    if (size == 0)
        return 0;
    unsigned char first = p[0];
    if (first < 0x80)
        return 1;
    if (first < 0xc2 || first > 0xf4)
        return 0;
    size_t length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    unsigned char low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    unsigned char high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    for (size_t i = 1; i < length; i++) {
        if (i == size) {
            if (incomplete != NULL)
                *incomplete = true;
            return 0;
        }
        if (p[i] < low || p[i] > high)
            return 0;
        low = 0x80;
        high = 0xbf;
    }
    return length;
}
