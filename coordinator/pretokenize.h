/*
 * pretokenize: cuts text into the pieces of the o200k expression (see docs/model.md):
 *
 *   [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?
 *   [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?
 *   \p{N}{1,3}
 *    ?[^\s\p{L}\p{N}]+[\r\n/]*
 *   \s*[\r\n]+
 *   \s+(?!\S)
 *   \s+
 */
#ifndef GPTOSS_COORDINATOR_PRETOKENIZE_H
#define GPTOSS_COORDINATOR_PRETOKENIZE_H

#include <stddef.h>

/* Length in bytes of the piece that begins at `text`, which is well-formed UTF-8 and `size` > 0 bytes
 * long; ≥ 1. Nothing before `text` matters. Linear over a whole text for any input. */
size_t pretokenize_next(const char *text, size_t size);

#endif
