/*
 * unicode: the table of classes, and the UTF-8 part of tokenizer.h.
 *
 * What is malformed is replaced as Unicode recommends (chapter 3.9, "U+FFFD Substitution of Maximal
 * Subparts"), as most libraries do: a beginning that some character has is one U+FFFD, any other byte
 * is one U+FFFD by itself.
 */
#include "coordinator/unicode.h"

#include <assert.h>
#include <string.h>

#include "coordinator/tokenizer.h"
#include "coordinator/unicode_table.h"

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

enum utf8_state {
    UTF8_WHOLE,
    UTF8_CUT, /* the beginning of a character, and nothing follows */
    UTF8_BAD,
};

/* Size of the character at p or, if it is malformed, of its maximal subpart: the longest beginning
 * that some character has, at least one byte. `size` > 0. */
static size_t utf8_next(const unsigned char *p, size_t size, enum utf8_state *state)
{
    unsigned char c = p[0], low = 0x80, high = 0xbf;
    size_t need = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
    *state = UTF8_BAD;
    if (need == 0)
        return 1;
    if (c == 0xe0)
        low = 0xa0; /* not shorter than it could be */
    else if (c == 0xed)
        high = 0x9f; /* no surrogates */
    else if (c == 0xf0)
        low = 0x90;
    else if (c == 0xf4)
        high = 0x8f; /* up to U+10FFFF */
    for (size_t i = 1; i < need; i++) {
        if (i == size) {
            *state = UTF8_CUT;
            return i;
        }
        if (p[i] < low || p[i] > high)
            return i;
        low = 0x80;
        high = 0xbf;
    }
    *state = UTF8_WHOLE;
    return need;
}

/* Appends bytes with what is malformed replaced, up to a cut character; returns where that begins. */
static size_t add_clean(const unsigned char *p, size_t size, struct text *out)
{
    size_t at = 0, good = 0; /* [good, at) is well-formed and not added yet */
    enum utf8_state state = UTF8_WHOLE;
    while (at < size) {
        size_t n = utf8_next(p + at, size - at, &state);
        if (state == UTF8_CUT)
            break;
        if (state == UTF8_BAD) {
            text_add(out, p + good, at - good);
            text_add(out, replacement, 3);
            good = at + n;
        }
        at += n;
    }
    if (at > good) /* p may be NULL where there is nothing */
        text_add(out, p + good, at - good);
    return at;
}

void tokenizer_clean(const void *bytes, size_t size, struct text *out)
{
    if (add_clean(bytes, size, out) < size)
        text_add(out, replacement, 3);
}

void utf8_stream_add(struct utf8_stream *s, const void *bytes, size_t size, struct text *out)
{
    const unsigned char *p = bytes, *end = p + size;
    while (s->n_held > 0 && p < end) {
        enum utf8_state state;
        s->held[s->n_held] = *p;
        size_t n = utf8_next(s->held, s->n_held + 1, &state);
        if (state == UTF8_BAD) { /* it was the end of a subpart; *p begins something new */
            assert(n == s->n_held);
            text_add(out, replacement, 3);
            s->n_held = 0;
            break;
        }
        s->n_held++;
        p++;
        if (state == UTF8_WHOLE) {
            text_add(out, s->held, n);
            s->n_held = 0;
        }
    }
    if (p == end)
        return;
    size_t left = (size_t)(end - p), cut = add_clean(p, left, out);
    s->n_held = (uint32_t)(left - cut);
    memcpy(s->held, p + cut, left - cut);
}

void utf8_stream_end(struct utf8_stream *s, struct text *out)
{
    if (s->n_held > 0)
        text_add(out, replacement, 3);
    s->n_held = 0;
}
