/*
 * Fuzzes the parser of answers: any tokens. Held: all text is well-formed UTF-8 in whole characters,
 * messages are numbered in order, recipients are named, and a raw answer is its tokens' text.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "coordinator/harmony.h"

static struct tokenizer *tokenizer;
static uint32_t specials[64], n_specials;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    char err[512];
    struct gguf_file *file;
    (void)argc;
    (void)argv;
    const char *path = getenv("GPTOSS_TEST_MODEL");
    if (!path || gguf_open(&file, path, err, sizeof err) ||
        tokenizer_create(&tokenizer, file, err, sizeof err)) {
        fprintf(stderr, "GPTOSS_TEST_MODEL names no model\n");
        exit(1);
    }
    gguf_close(file);
    for (uint32_t id = 0; id < tokenizer_size(tokenizer) && n_specials < 64; id++)
        if (tokenizer_is_special(tokenizer, id))
            specials[n_specials++] = id;
    return 0;
}

static void look(void *arg, const struct harmony_piece *piece)
{
    uint32_t *message = arg;
    for (size_t i = 0; i < piece->size;) {
        size_t n = text_utf8_length(piece->text + i, piece->size - i, NULL);
        if (n == 0)
            abort();
        i += n;
    }
    if (piece->message < *message || (unsigned)piece->channel > GPTOSS__PIECE__CHANNEL__FINAL)
        abort();
    if (text_utf8_length("", 0, NULL) != 0 || !piece->recipient || strlen(piece->recipient) > 4096)
        abort();
    *message = piece->message;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    uint32_t message = 0, tokens = 0;
    struct harmony_parser *p = harmony_parser_create(tokenizer, (enum harmony_start)(data[0] % 3));
    for (size_t i = 1; i < size; tokens++) {
        uint32_t id;
        if (data[i] < 64 && n_specials) { /* one byte: a special token */
            id = specials[data[i++] % n_specials];
        } else { /* two: any */
            id = (uint32_t)(data[i] - 64) << 8 | (i + 1 < size ? data[i + 1] : 0);
            i += 2;
        }
        harmony_parser_add(p, id, look, &message); /* ids beyond the vocabulary too */
        if (harmony_parser_reasoning_tokens(p) > tokens + 1)
            abort();
    }
    harmony_parser_end(p, look, &message);
    harmony_parser_called(p);
    harmony_parser_destroy(p);
    return 0;
}
