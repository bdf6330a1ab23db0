/*
 * 100,000 answers of random tokens, special ones among them: the parser gives each a meaning. Text comes in
 * whole characters, messages are numbered in order, and a raw answer is its tokens' text.
 */
#include "tests/harmony_data.h"

#include "base/base.h"

#define STREAMS 100000

static struct tokenizer *tokenizer;
static uint32_t specials[32], n_specials;

static int open_all(void **state)
{
    (void)state;
    tokenizer = data_tokenizer(TINY_MODEL);
    for (uint32_t id = 0; id < tokenizer_size(tokenizer) && n_specials < 32; id++)
        if (tokenizer_is_special(tokenizer, id))
            specials[n_specials++] = id;
    return n_specials > 0 ? 0 : -1;
}

static int close_all(void **state)
{
    (void)state;
    tokenizer_destroy(tokenizer);
    return 0;
}

struct heard {
    uint32_t message;
    struct text text;
};

static void hear(void *arg, const struct harmony_piece *piece)
{
    struct heard *heard = arg;
    for (size_t i = 0; i < piece->size;) {
        size_t n = text_utf8_length(piece->text + i, piece->size - i, NULL);
        if (n == 0)
            fail_msg("a piece is no whole UTF-8: %.*s", (int)piece->size, piece->text);
        i += n;
    }
    if (piece->message < heard->message || piece->recipient == NULL ||
        (unsigned)piece->channel > GPTOSS__PIECE__CHANNEL__FINAL)
        fail_msg("message %u after %u, channel %u", piece->message, heard->message,
                 (unsigned)piece->channel);
    heard->message = piece->message;
    text_add(&heard->text, piece->text, piece->size);
}

static void every_stream_of_tokens_has_a_meaning(void **state)
{
    (void)state;
    uint64_t random = 1;
    struct heard heard = {0};
    struct text want = {0}, clean = {0};
    for (unsigned i = 0; i < STREAMS; i++) {
        enum harmony_start start = (enum harmony_start)(test_random(&random) % 3);
        struct harmony_parser *p = harmony_parser_create(tokenizer, start);
        uint32_t length = (uint32_t)(test_random(&random) % 48);
        uint32_t one_in = 1 + (uint32_t)(test_random(&random) % 8); /* that is special */
        heard.message = 0;
        text_clear(&heard.text);
        text_clear(&want);
        for (uint32_t k = 0; k < length; k++) {
            uint64_t draw = test_random(&random);
            uint32_t id = draw % one_in == 0 ? specials[(draw >> 32) % n_specials]
                                             : (uint32_t)(draw >> 32) % tokenizer_size(tokenizer);
            size_t size = 0;
            const char *bytes = tokenizer_bytes(tokenizer, id, &size);
            if (bytes != NULL)
                text_add(&want, bytes, size);
            harmony_parser_add(p, id, hear, &heard);
        }
        harmony_parser_end(p, hear, &heard);
        if (harmony_parser_reasoning_tokens(p) > length)
            fail_msg("stream %u: more tokens of reasoning than there are", i);
        if (start == HARMONY_START_RAW) {
            text_clear(&clean);
            text_add(&clean, "", 0);
            tokenizer_clean(want.bytes != NULL ? want.bytes : "", want.size, &clean);
            if (heard.text.size != clean.size ||
                memcmp(heard.text.bytes != NULL ? heard.text.bytes : "", clean.bytes, clean.size))
                fail_msg("stream %u: a raw answer is not its tokens' text", i);
        }
        harmony_parser_destroy(p);
    }
    text_free(&heard.text);
    text_free(&want);
    text_free(&clean);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_stream_of_tokens_has_a_meaning),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
