/*
 * pretokenize: the o200k expression as a scanner. What its alternatives mean, in order:
 *
 *   1, 2  a word: one optional character that is neither letter, number nor newline, then a run that
 *         turns from upper to lower case at most once, then perhaps a contraction. \p{Lm}, \p{Lo} and
 *         \p{M} are in the sets of both cases; marks can be the optional character as well.
 *   3     up to three numbers
 *   4     the rest: perhaps a blank, characters that are neither \s, letter nor number, then newlines
 *         and slashes
 *   5     \s with newlines in it: up to the last newline of the run
 *   6     \s before something else: all but the last, which belongs to what follows
 *   7     a single \s
 *
 * Every alternative is matched as a backtracking matcher would find it, without backtracking: each
 * comment below says which match is the first. A run is scanned by at most three calls, so the time
 * for a whole text is linear.
 */
#include "coordinator/pretokenize.h"

#include <stdbool.h>

#include "coordinator/unicode.h"

struct scan {
    const unsigned char *p; /* the current character; never past end */
    const unsigned char *end;
    enum unicode_class class; /* of the current character; at the end UNICODE_OTHER with size 0 */
    unsigned size;            /* in bytes */
};

#define IN(class, set) ((1u << (class) & (set)) != 0)
enum {
    SET_UPPER = 1u << UNICODE_UPPER | 1u << UNICODE_LETTER | 1u << UNICODE_MARK,
    SET_LOWER = 1u << UNICODE_LOWER | 1u << UNICODE_LETTER | 1u << UNICODE_MARK,
    SET_BOTH = 1u << UNICODE_LETTER | 1u << UNICODE_MARK,
    SET_SPACE = 1u << UNICODE_NEWLINE | 1u << UNICODE_SPACE,
    SET_REST = 1u << UNICODE_OTHER | 1u << UNICODE_MARK,
    SET_PREFIX = 1u << UNICODE_OTHER | 1u << UNICODE_MARK | 1u << UNICODE_SPACE,
};

/* Reads the character at s->p. Text is well-formed; should it not be, nothing past the end is read. */
static inline void look(struct scan *s)
{
    size_t left = (size_t)(s->end - s->p);
    if (left == 0) {
        s->class = UNICODE_OTHER;
        s->size = 0;
        return;
    }
    uint32_t c = s->p[0];
    unsigned size = c < 0xc0 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    if (size > left)
        size = 1;
    if (size == 2)
        c = (c & 0x1f) << 6 | (s->p[1] & 0x3f);
    else if (size == 3)
        c = (c & 0x0f) << 12 | (s->p[1] & 0x3fu) << 6 | (s->p[2] & 0x3f);
    else if (size == 4)
        c = (c & 0x07) << 18 | (s->p[1] & 0x3fu) << 12 | (s->p[2] & 0x3fu) << 6 | (s->p[3] & 0x3f);
    s->class = unicode_class(c);
    s->size = size;
}

static inline bool at_end(const struct scan *s)
{
    return s->size == 0;
}

static inline void step(struct scan *s)
{
    s->p += s->size;
    look(s);
}

static inline void skip(struct scan *s, unsigned set)
{
    while (IN(s->class, set) && !at_end(s))
        step(s);
}

static inline struct scan scan_at(const unsigned char *p, const unsigned char *end)
{
    struct scan s = {.p = p, .end = end};
    look(&s);
    return s;
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)? at p: where it ends. U+017F is a case of s. */
static const unsigned char *skip_contraction(const unsigned char *p, const unsigned char *end)
{
    size_t left = (size_t)(end - p);
    if (left < 2 || p[0] != '\'')
        return p;
    unsigned char a = p[1] | 0x20, b = left > 2 ? p[2] | 0x20 : 0;
    if (p[1] < 0x80 && (a == 's' || a == 't' || a == 'm' || a == 'd'))
        return p + 2;
    if (left > 2 && p[1] < 0x80 && p[2] < 0x80 &&
        ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')))
        return p + 3;
    if (left > 2 && p[1] == 0xc5 && p[2] == 0xbf)
        return p + 3;
    return p;
}

/* [upper]*[lower]+ at s: the end of the first match, or NULL. *uppers is the end of [upper]*, for
 * the second alternative. [upper]* is greedy: if a lower follows it, [lower]+ begins there. Otherwise
 * it gives characters back up to the last one that is in both sets, which is then all of [lower]+. */
static const unsigned char *first_alternative(struct scan s, const unsigned char **uppers)
{
    const unsigned char *after_both = NULL;
    for (; IN(s.class, SET_UPPER); step(&s))
        if (IN(s.class, SET_BOTH))
            after_both = s.p + s.size;
    *uppers = s.p;
    if (s.class != UNICODE_LOWER)
        return after_both;
    skip(&s, SET_LOWER);
    return s.p;
}

/* Alternatives 1 and 2 at s, before the contraction; NULL: no word begins here. */
static const unsigned char *skip_word(struct scan s)
{
    const unsigned char *uppers, *match;
    if (!IN(s.class, SET_PREFIX) || at_end(&s)) {
        match = first_alternative(s, &uppers);
        if (match == NULL && uppers > s.p) /* upper case only */
            match = uppers;
        return match;
    }
    struct scan rest = s;
    step(&rest);
    match = first_alternative(rest, &uppers);
    if (match != NULL)
        return match;
    /* No lower and none of both sets follows the prefix. Without a prefix the first alternative needs
     * a mark here, and gives back everything behind it; then the second one with the prefix. */
    if (s.class == UNICODE_MARK)
        return rest.p;
    return uppers > rest.p ? uppers : NULL;
}

/* Alternatives 5 to 7 at s, which is at a \s. */
static const unsigned char *skip_space(struct scan s)
{
    const unsigned char *after_newline = NULL, *last = s.p;
    size_t count = 0;
    for (; IN(s.class, SET_SPACE); step(&s)) {
        last = s.p;
        count++;
        if (s.class == UNICODE_NEWLINE)
            after_newline = s.p + s.size;
    }
    if (after_newline != NULL)
        return after_newline;
    return at_end(&s) || count == 1 ? s.p : last;
}

size_t pretokenize_next(const char *text, size_t size)
{
    const unsigned char *begin = (const unsigned char *)text, *end = begin + size;
    struct scan s = scan_at(begin, end);
    const unsigned char *word = skip_word(s);
    if (word != NULL)
        return (size_t)(skip_contraction(word, end) - begin);
    if (s.class == UNICODE_NUMBER) {
        for (int i = 0; i < 3 && s.class == UNICODE_NUMBER; i++)
            step(&s);
        return (size_t)(s.p - begin);
    }
    struct scan rest = s;
    if (*begin == ' ')
        step(&rest);
    if (IN(rest.class, SET_REST) && !at_end(&rest)) {
        skip(&rest, SET_REST);
        while (rest.p < end && (*rest.p == '\r' || *rest.p == '\n' || *rest.p == '/'))
            rest.p++;
        return (size_t)(rest.p - begin);
    }
    return (size_t)(skip_space(s) - begin);
}
