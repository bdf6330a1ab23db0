/*
 * harmony_head: what the header of a message says, well-formed or not.
 *
 *   assistant to=functions.f<|channel|>commentary <|constrain|>json
 *   ROLE      RECIPIENT              CHANNEL                   CONTENT TYPE
 *
 * The header is kept as it was sampled: the bytes of its text tokens, and where among them a
 * <|channel|> or <|constrain|> stood. Words that are no part of this grammar are text.
 */
#ifndef GPTOSS_COORDINATOR_HARMONY_HEAD_H
#define GPTOSS_COORDINATOR_HARMONY_HEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/base.h"

#define HARMONY_HEAD_TOKENS 256 /* a header of more is none */
#define HARMONY_HEAD_BYTES  4096
#define HARMONY_HEAD_WORDS  8 /* neither is one with more words outside the grammar */

enum head_mark { HEAD_PLAIN, HEAD_CHANNEL, HEAD_CONSTRAIN };
enum head_channel { HEAD_NO_CHANNEL, HEAD_UNKNOWN, HEAD_ANALYSIS, HEAD_COMMENTARY, HEAD_FINAL };

/* A header as far as it came. Zero-initialise; reset with head_clear. */
struct head {
    struct text text;
    struct {
        enum head_mark mark;
        size_t first; /* byte of `text` */
    } stretches[HARMONY_HEAD_TOKENS + 1];
    size_t n_stretches;
    uint32_t tokens; /* <|start|> included */
    bool has_role;   /* a <|start|> stands in front: the first word should be a role */
};

/* What it means. */
struct head_meaning {
    enum head_channel channel;
    struct text recipient; /* "functions.NAME", or empty */
    struct text rest;      /* words outside the grammar */
    size_t rest_words;
};

void head_clear(struct head *h, bool has_role);
void head_free(struct head *h);
void head_add_mark(struct head *h, enum head_mark mark);
void head_add_text(struct head *h, const void *bytes, size_t size);
bool head_is_full(const struct head *h);

/* Reads the header into *m (zero-initialised; head_meaning_free).
 * complete: a <|message|> followed, and the rest are the words that do not belong.
 * Otherwise the rest is all that follows the part that is well-formed: the content of a message
 * whose <|message|> is missing.
 * A rest of a header with a <|channel|> that holds neither letters nor digits is dropped. */
void head_read(const struct head *h, bool complete, struct head_meaning *m);
void head_meaning_free(struct head_meaning *m);

#endif
