/*
 * A byte-level vocabulary of any size: the 256 single bytes in the order of o200k, made-up words each
 * of which is an earlier token and one letter (so that the merges are complete), and the special
 * tokens of harmony.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "tools/synth.h"

#define FULL_SIZE     201088 /* of the published models: their ids are kept for it */
#define FULL_SPECIALS 199998 /* the first special id then */

enum { TYPE_NORMAL = 1, TYPE_CONTROL = 3, TYPE_UNUSED = 5 };

static const char *const specials[] = {"<|startoftext|>",
                                       "<|endoftext|>",
                                       NULL,
                                       NULL,
                                       "<|return|>",
                                       "<|constrain|>",
                                       NULL,
                                       "<|channel|>",
                                       "<|start|>",
                                       "<|end|>",
                                       "<|message|>",
                                       NULL,
                                       NULL,
                                       NULL,
                                       "<|call|>",
                                       NULL,
                                       NULL,
                                       NULL,
                                       NULL,
                                       NULL,
                                       "<|endofprompt|>"}; /* NULL: <|reserved_ID|> */

#define N_SPECIALS ((uint32_t)(sizeof specials / sizeof *specials))

static bool prints(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/* The byte of id 0 … 255: those that print first, then the others. */
static unsigned byte_of(uint32_t id)
{
    for (int printing = 1; printing >= 0; printing--)
        for (unsigned byte = 0; byte < 256; byte++)
            if (prints(byte) == (printing != 0) && id-- == 0)
                return byte;
    return 0;
}

/* The character that stands for a byte: itself, or one from U+0100 on if it does not print. */
static void add_byte(struct text *pool, unsigned byte)
{
    unsigned point = byte;
    if (!prints(byte)) {
        point = 0x100;
        for (unsigned other = 0; other < byte; other++)
            point += !prints(other);
    }
    char utf8[2] = {(char)(0xc0 | point >> 6), (char)(0x80 | (point & 0x3f))};
    if (point < 0x80)
        text_print(pool, "%c", (int)point);
    else
        text_add(pool, utf8, 2);
}

/* Strings are positions while the pool grows. */
static struct gguf_string since(const struct text *pool, size_t start)
{
    return (struct gguf_string){.bytes = (const char *)(uintptr_t)start,
                                .size = pool->size - start};
}

static void settle(const struct text *pool, struct gguf_string *strings, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        strings[i].bytes = pool->bytes + (uintptr_t)strings[i].bytes;
}

/* Made-up word f: a space or a letter and a letter (27 · 26 of them), or word (f − 702) / 26 and a
 * letter. Every beginning of a word is a word, two letters or longer. */
static void add_word(struct synth_vocabulary *v, uint32_t id)
{
    const uint32_t pairs = 27 * 26;
    uint32_t f = id - 256;
    char letter = (char)('a' + f % 26);
    size_t start = v->pool.size;
    struct text left = {0};
    if (f < pairs && f / 26 == 0)
        text_print(&left, "\u0120"); /* the space */
    else if (f < pairs)
        text_print(&left, "%c", (int)('a' + f / 26 - 1));
    else {
        struct gguf_string word = v->tokens[256 + (f - pairs) / 26];
        text_add(&left, v->pool.bytes + (uintptr_t)word.bytes, (size_t)word.size);
    }
    text_print(&v->pool, "%s%c", left.bytes, letter);
    v->tokens[id] = since(&v->pool, start);
    start = v->pool.size;
    text_print(&v->pool, "%s %c", left.bytes, letter);
    v->merges[v->n_merges++] = since(&v->pool, start);
    text_free(&left);
}

void synth_vocabulary_create(struct synth_vocabulary *v, uint32_t size)
{
    *v = (struct synth_vocabulary){.size = size};
    v->tokens = base_alloc(size, sizeof *v->tokens);
    v->merges = base_alloc(size, sizeof *v->merges);
    v->types = base_alloc(size, sizeof *v->types);
    uint32_t first = size == FULL_SIZE ? FULL_SPECIALS : size - N_SPECIALS;
    for (uint32_t id = 0; id < size; id++) {
        size_t start = v->pool.size;
        v->types[id] = TYPE_NORMAL;
        if (id >= 256 && id < first) {
            add_word(v, id);
            continue;
        }
        if (id < 256) {
            add_byte(&v->pool, byte_of(id));
        } else if (id < first + N_SPECIALS) {
            v->types[id] = TYPE_CONTROL;
            if (specials[id - first])
                text_print(&v->pool, "%s", specials[id - first]);
            else
                text_print(&v->pool, "<|reserved_%" PRIu32 "|>", id);
        } else {
            v->types[id] = TYPE_UNUSED;
            text_print(&v->pool, "[PAD%" PRIu32 "]", id);
        }
        v->tokens[id] = since(&v->pool, start);
    }
    settle(&v->pool, v->tokens, size);
    settle(&v->pool, v->merges, v->n_merges);
    v->bos = first;
    v->padding = first + 1;
    v->eos = first + 4;
}

void synth_vocabulary_free(struct synth_vocabulary *v)
{
    free(v->tokens);
    free(v->merges);
    free(v->types);
    text_free(&v->pool);
}
