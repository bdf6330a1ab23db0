/*
 * unicode: the class of a code point, as far as the o200k expression tells code points apart.
 *
 * The table (unicode_table.h) is written by scripts/unicode-table for one Unicode version, the
 * one that the reference libraries (tokenizers, tiktoken) carry: with another version, text in newly
 * added scripts would be cut elsewhere.
 */
#ifndef GPTOSS_COORDINATOR_UNICODE_H
#define GPTOSS_COORDINATOR_UNICODE_H

#include <stdint.h>

/* In the order of the expression's sets; scripts/unicode-table has the same numbers. */
enum unicode_class {
    UNICODE_OTHER = 0,   /* punctuation, symbols, controls, unassigned */
    UNICODE_NEWLINE = 1, /* \r \n; they are \s too */
    UNICODE_SPACE = 2,   /* the rest of \s, that is White_Space */
    UNICODE_UPPER = 3,   /* \p{Lu} \p{Lt} */
    UNICODE_LOWER = 4,   /* \p{Ll} */
    UNICODE_LETTER = 5,  /* \p{Lm} \p{Lo}: letters of either set */
    UNICODE_MARK = 6,    /* \p{M}: of either set, but no letter */
    UNICODE_NUMBER = 7,  /* \p{N} */
};

#define UNICODE_BLOCK 128     /* code points of a block */
#define UNICODE_END   0xe0200 /* from here on all are UNICODE_OTHER */

extern const uint8_t unicode_blocks[UNICODE_END / UNICODE_BLOCK];
extern const uint8_t unicode_classes[]
                                    [UNICODE_BLOCK / 2]; /* two a byte, the first in the low half */

static inline enum unicode_class unicode_class(uint32_t c)
{
    if (c >= UNICODE_END)
        return UNICODE_OTHER;
    uint8_t two = unicode_classes[unicode_blocks[c / UNICODE_BLOCK]][c % UNICODE_BLOCK / 2];
    return (enum unicode_class)(two >> c % 2 * 4 & 15);
}

#endif
