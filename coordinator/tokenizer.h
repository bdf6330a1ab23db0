/*
 * tokenizer: text ↔ token ids. Byte-level BPE with the o200k split, exact on every input.
 *
 * Encoding has two halves: pretokenize.c cuts the text into pieces (the o200k expression, scanned by
 * hand over a generated table of Unicode classes), tokenizer.c merges the bytes of each piece. Ranks
 * come from the file: a piece's adjacent pair whose concatenation has the lowest id is merged first,
 * leftmost first; where the file has merges that are not sorted so, their order rules.
 *
 * Special tokens are never recognised in text: they are placed by id alone.
 * Pure: no file is read after tokenizer_create, nothing is printed, any number of threads may read.
 */
#ifndef GPTOSS_COORDINATOR_TOKENIZER_H
#define GPTOSS_COORDINATOR_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/base.h"
#include "gguf/gguf.h"

struct tokenizer;

/* Token ids that grow; zero-initialise, tokens_free. */
struct tokens {
    uint32_t *ids;
    size_t count, capacity;
};
void tokens_add(struct tokens *t, uint32_t id);
void tokens_free(struct tokens *t);

/* From tokenizer.ggml.* of the file. -1 and a sentence if keys are missing or contradict each other
 * (another model than gpt2, another pre-tokenizer than gpt-4o, lengths that disagree, merges that
 * name no token, single bytes that are no tokens). `file` may be closed afterwards. */
int tokenizer_create(struct tokenizer **out, const struct gguf_file *file, char *err,
                     size_t err_size);
void tokenizer_destroy(struct tokenizer *t); /* NULL is fine */

uint32_t tokenizer_size(const struct tokenizer *t);
/* One more than the last id that is not marked as unused: ids from here on are never sampled. */
uint32_t tokenizer_limit(const struct tokenizer *t);

/* Well-formed UTF-8 out of any bytes: each maximal part that is malformed (Unicode's "maximal
 * subpart") becomes one U+FFFD. Appends to `out`. */
void tokenizer_clean(const void *bytes, size_t size, struct text *out);

/* Encodes well-formed UTF-8 from *position on and appends the ids, for about `budget` bytes of text
 * (0: all); *position moves on. 1: the end was reached; 0: call again, so that a huge prompt need not
 * hold up others. The result does not depend on the budget. Time is O(n log n) for any input, one
 * piece of a megabyte included. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t size, size_t *position,
                     size_t budget, struct tokens *out);

/* The bytes of a token: text (perhaps part of a character), or of a special token its name. NULL for
 * an id that is none. */
const char *tokenizer_bytes(const struct tokenizer *t, uint32_t id, size_t *size);
bool tokenizer_is_special(const struct tokenizer *t,
                          uint32_t id); /* control, user-defined, unused */
/* The id of a special token such as "<|start|>", or -1. */
int64_t tokenizer_special(const struct tokenizer *t, const char *name);
/* tokenizer.ggml.eos_token_id, <|return|>, <|call|>, <|endoftext|>: generation ends. Not <|end|>. */
bool tokenizer_is_end(const struct tokenizer *t, uint32_t id);

/* Turns the bytes of tokens into text that is whole characters at any time: an incomplete character
 * is held back, what can never become one is U+FFFD (as in tokenizer_clean). Zero-initialise. */
struct utf8_stream {
    unsigned char held[4];
    uint32_t n_held;
};
void utf8_stream_add(struct utf8_stream *s, const void *bytes, size_t size, struct text *out);
void utf8_stream_end(struct utf8_stream *s, struct text *out); /* what is held becomes U+FFFD */

#endif
