/*
 * tokenizer_ids MODEL.gguf: the tokenizer for programs in other languages; scripts/tokenizer-vectors
 * compares it with other people's.
 *
 * Reads texts from standard input: a u32 with the size, then as many bytes. Writes for each: a u32
 * with the count of pieces and their sizes in bytes, then a u32 with the count of ids and the ids.
 * All little-endian. Texts are cleaned first (U+FFFD for what is malformed). At the end a line on
 * standard error says how long creating and encoding took.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/base.h"
#include "coordinator/pretokenize.h"
#include "coordinator/tokenizer.h"
#include "gguf/gguf.h"

static void put(uint32_t value)
{
    fwrite(&value, sizeof value, 1, stdout);
}

static void put_all(const struct tokens *t)
{
    put((uint32_t)t->count);
    fwrite(t->ids, sizeof *t->ids, t->count, stdout);
}

int main(int argc, char **argv)
{
    char err[512];
    struct gguf_file *file;
    struct tokenizer *t;
    if (argc != 2) {
        fprintf(stderr, "usage: tokenizer_ids MODEL.gguf <TEXTS >IDS\n");
        return EXIT_USAGE;
    }
    if (gguf_open(&file, argv[1], err, sizeof err) != 0) {
        fprintf(stderr, "%s\n", err);
        return EXIT_MODEL;
    }
    double start = clock_seconds(), creating, encoding = 0, splitting = 0;
    int status = tokenizer_create(&t, file, err, sizeof err);
    creating = clock_seconds() - start;
    gguf_close(file);
    if (status != 0) {
        fprintf(stderr, "%s\n", err);
        return EXIT_MODEL;
    }

    uint32_t size;
    uint64_t total = 0;
    char *bytes = NULL;
    size_t capacity = 0;
    struct text text = {0};
    struct tokens ids = {0}, pieces = {0};
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        bytes = base_grow(bytes, &capacity, size, 1);
        if (fread(bytes, 1, size, stdin) != size)
            break;
        text_clear(&text);
        tokenizer_clean(bytes, size, &text);
        ids.count = pieces.count = 0;

        start = clock_seconds();
        size_t position = 0;
        tokenizer_encode(t, text.bytes, text.size, &position, 0, &ids);
        encoding += clock_seconds() - start;

        start = clock_seconds();
        for (position = 0; position < text.size; position += pieces.ids[pieces.count - 1])
            tokens_add(&pieces,
                       (uint32_t)pretokenize_next(text.bytes + position, text.size - position));
        splitting += clock_seconds() - start;

        total += text.size;
        put_all(&pieces);
        put_all(&ids);
    }
    fprintf(stderr, "created in %.1f ms; %.2f MB encoded at %.1f MB/s, split alone at %.1f MB/s\n",
            creating * 1e3, (double)total / 1e6, (double)total / 1e6 / encoding,
            (double)total / 1e6 / splitting);
    tokens_free(&pieces);
    tokens_free(&ids);
    text_free(&text);
    free(bytes);
    tokenizer_destroy(t);
    return EXIT_DONE;
}
