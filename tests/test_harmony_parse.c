/* Parsing answers: against OpenAI's streaming parser where it has an opinion
 * (tests/data/harmony-streams.json, made by scripts/harmony-vectors), and what the model is known to
 * write besides. */
#include "tests/harmony_data.h"

#define C "<|channel|>"
#define M "<|message|>"
#define E "<|end|>"
#define S "<|start|>"
#define K "<|call|>"
#define R "<|return|>"
#define J "<|constrain|>json"

static struct tokenizer *tokenizer;
static uint32_t byte_ids[256]; /* the token of each single byte */

static int open_all(void **state)
{
    (void)state;
    tokenizer = data_tokenizer(TINY_MODEL);
    for (uint32_t id = 0; id < tokenizer_size(tokenizer); id++) {
        size_t size;
        const char *bytes = tokenizer_bytes(tokenizer, id, &size);
        if (bytes != NULL && size == 1 && !tokenizer_is_special(tokenizer, id))
            byte_ids[(unsigned char)*bytes] = id;
    }
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    tokenizer_destroy(tokenizer);
    return 0;
}

/* ── streams ───────────────────────────────────────────────────────────────────────────────── */

/* The ids of a text in which special tokens stand by their names; text byte by byte, or by BPE. */
static void encode(const char *stream, bool by_bytes, struct tokens *ids)
{
    size_t size = strlen(stream), at = 0;
    while (at < size) {
        size_t text = at;
        int64_t special = -1;
        size_t name = 0;
        for (; text < size; text++) {
            const char *end =
                strncmp(stream + text, "<|", 2) == 0 ? strstr(stream + text, "|>") : NULL;
            if (end == NULL)
                continue;
            name = (size_t)(end + 2 - (stream + text));
            char *copy = strndup(stream + text, name);
            special = tokenizer_special(tokenizer, copy);
            free(copy);
            if (special >= 0)
                break;
        }
        size_t position = 0;
        if (by_bytes)
            for (; at < text; at++)
                tokens_add(ids, byte_ids[(unsigned char)stream[at]]);
        else if (text > at)
            tokenizer_encode(tokenizer, stream + at, text - at, &position, 0, ids);
        if (special >= 0)
            tokens_add(ids, (uint32_t)special);
        at = special >= 0 ? text + name : text;
    }
}

/* What was told: a line for each message, "analysis: …", "commentary to functions.f: …". */
struct heard {
    struct text lines;
    uint32_t message;
    bool any;
    size_t pieces;
    Gptoss__Piece__Channel channel;
    char recipient[1024];
};

static void hear(void *arg, const struct harmony_piece *piece)
{
    static const char *const names[] = {"raw", "analysis", "commentary", "final"};
    struct heard *h = arg;
    h->pieces++;
    assert_true(piece->channel <= GPTOSS__PIECE__CHANNEL__FINAL);
    assert_true(piece->size > 0 || piece->recipient[0] != '\0');
    for (size_t i = 0; i < piece->size;) {
        size_t length = text_utf8_length(piece->text + i, piece->size - i, NULL);
        assert_true(length > 0);
        i += length;
    }
    if (h->any && h->message == piece->message) {
        assert_int_equal(h->channel, piece->channel);
        assert_string_equal(h->recipient, piece->recipient);
    } else {
        assert_true(!h->any || piece->message > h->message);
        text_print(&h->lines, "%s%s%s%s: ", h->any ? "\n" : "", names[piece->channel],
                   piece->recipient[0] != '\0' ? " to " : "", piece->recipient);
        snprintf(h->recipient, sizeof h->recipient, "%s", piece->recipient);
        h->channel = piece->channel;
        h->message = piece->message;
        h->any = true;
    }
    text_add(&h->lines, piece->text, piece->size);
}

static struct harmony_parser *parse(const struct tokens *ids, enum harmony_start start,
                                    struct heard *h)
{
    struct harmony_parser *p = harmony_parser_create(tokenizer, start);
    for (size_t i = 0; i < ids->count; i++)
        harmony_parser_add(p, ids->ids[i], hear, h);
    return p;
}

static void gives_from(enum harmony_start start, const char *stream, const char *want)
{
    for (int by_bytes = 0; by_bytes < 2; by_bytes++) {
        struct tokens ids = {0};
        struct heard h = {0};
        encode(stream, by_bytes, &ids);
        struct harmony_parser *p = parse(&ids, start, &h);
        harmony_parser_end(p, hear, &h);
        const char *got = h.lines.bytes != NULL ? h.lines.bytes : "";
        if (strcmp(got, want) != 0)
            fail_msg("%s\ngives\n%s\nwant\n%s", stream, got, want);
        harmony_parser_destroy(p);
        text_free(&h.lines);
        tokens_free(&ids);
    }
}

static void gives(const char *stream, const char *want)
{
    gives_from(HARMONY_START_HEADER, stream, want);
}

static void reads_what_the_library_of_openai_reads(void **state)
{
    (void)state;
    json_t *streams = data_json(GPTOSS_SOURCE_DIR "/tests/data/harmony-streams.json");
    assert_true(json_array_size(streams) >= 20);
    for (size_t i = 0; i < json_array_size(streams); i++) {
        const json_t *stream = json_array_get(streams, i);
        const json_t *messages = json_object_get(stream, "messages");
        struct text want = {0};
        text_print(&want, "%s", "");
        for (size_t k = 0; k < json_array_size(messages); k++) {
            const char *channel, *recipient, *text;
            assert_int_equal(
                json_unpack(json_array_get(messages, k), "[sss]", &channel, &recipient, &text), 0);
            text_print(&want, "%s%s%s%s: %s", k > 0 ? "\n" : "", channel,
                       recipient[0] != '\0' ? " to " : "", recipient, text);
        }
        gives(data_string(stream, "stream"), want.bytes);
        text_free(&want);
    }
    json_decref(streams);
}

static void a_second_channel_corrects_the_first(void **state)
{
    (void)state;
    gives(C "commentary" C "analysis" M "x" E, "analysis: x");
    gives(C "commentary to=assistant" C "analysis" M "x" E S "assistant" C "final" M "y" R,
          "analysis: x\nfinal: y");
    gives(C C C "final" M "x" R, "final: x");
    gives(C "banana" C "final" M "x" R, "final: x");
    gives(C "final" C "banana" M "x" R, "final: x");
    gives(C "commentary to=functions.f" C "commentary " J M "{}" K,
          "commentary to functions.f: {}");
    gives(C "commentary I look it up. " C "commentary to=functions.f " J M "{}" K,
          "commentary: I look it up. \ncommentary to functions.f: {}");
}

static void noise_behind_a_channel_is_dropped_and_words_are_kept(void **state)
{
    (void)state;
    gives(C "analysis?" M "x" E, "analysis: x");
    gives(C "analysis?" C "analysis" M "x" E, "analysis: x");
    gives(C "final ..." M "x" R, "final: x");
    gives(C "Final" M "x" R, "final: x");
    gives(C "analysis We need more" M " thought" E, "analysis: We need more\nanalysis:  thought");
    gives(C "finalThe answer" M " is 4." R, "final: The answer\nfinal:  is 4.");
    gives(C "commentary I look it up to=functions.f " J M "{}" K,
          "commentary: I look it up\ncommentary to functions.f: {}");
    gives(C "final 日本" M "x" R, "final: 日本\nfinal: x");
}

static void an_unknown_or_missing_channel_is_final(void **state)
{
    (void)state;
    gives(C "thinking" M "x" R, "final: x");
    gives(C "thinking hard" M "x" R, "final: thinking hard\nfinal: x");
    gives(C "analysis_2" M "x" R, "final: x");
    gives(C M "x" R, "final: x");
    gives(M "x" R, "final: x");
    gives(" " M "x" R, "final: x");
    gives(C "thinking to=functions.f " J M "{}" K, "commentary to functions.f: {}");
    gives(C "thinking functions.f" M "{}" K, "commentary to functions.f: {}");
    gives(" to=functions.f" M "{}" K, "commentary to functions.f: {}");
}

static void a_missing_message_token_is_survived(void **state)
{
    (void)state;
    gives("Hello, the answer is 4." R, "final: Hello, the answer is 4.");
    gives("assistant is a word" R, "final: assistant is a word");
    gives("4" R, "final: 4");
    gives("?!" R, "final: ?!");
    gives(C "final The answer is 4." R, "final: The answer is 4.");
    gives(C "finalThe answer is 4." R, "final: The answer is 4.");
    gives(C "Paris is the capital." R, "final: Paris is the capital.");
    gives(C "analysis I think so." E S "assistant" C "final" M "y" R,
          "analysis: I think so.\nfinal: y");
    gives(C "commentary to=functions.f " J "{\"a\":1}" K, "commentary to functions.f: {\"a\":1}");
    gives(C "commentary to=functions.f{\"a\": 1}" K, "commentary to functions.f: {\"a\": 1}");
    gives(C "commentary to=functions.f " J K, "commentary to functions.f: ");
    gives(C "commentary to=functions.f " J E, "");
    gives(C "final" E, "");
    gives(C "final", "");
    gives(C "fin", "");
    gives(C "final the", "final: the");
    gives(S "assistant" C "final <|constrain|>", "");
    gives("", "");
}

static void calls_are_commentary_with_the_name_of_a_function(void **state)
{
    (void)state;
    gives(C "commentary to=get_weather " J M "{}" K, "commentary to functions.get_weather: {}");
    gives(C "commentary get_weather " J M "{}" K, "commentary to functions.get_weather: {}");
    gives(C "commentary get_weather json" M "{}" K, "commentary to functions.get_weather: {}");
    gives(C "commentary to=browser.search" M "{}" K, "commentary to functions.browser.search: {}");
    gives(C "analysis to=functions.f code" M "{}" K, "commentary to functions.f: {}");
    gives(C "final to=functions.f" M "{}" K, "commentary to functions.f: {}");
    gives(S "functions.f" C "commentary " J M "{}" K, "commentary to functions.f: {}");
    gives(C "commentary to= functions.f " J M "{}" K, "commentary to functions.f: {}");
    gives(C "commentary to=functions.f" M K, "commentary to functions.f: ");
    gives(C "commentary json" M "{}" E, "commentary: {}");
    gives(C "commentary <|constrain|>" M "{}" E, "commentary: {}");
    gives(C "final " J M "{\"a\": 1}" R, "final: {\"a\": 1}");
    gives(C "final" J M "{\"a\": 1}" R, "final: {\"a\": 1}");
    gives(C "final json" M "{\"a\": 1}" R, "final: {\"a\": 1}");
    gives(C "commentary to=functions." M "{}" K, "commentary to functions.functions.: {}");
    gives(C "commentary to=all" M "hello" E, "commentary: hello");
}

static void a_message_may_begin_where_none_should(void **state)
{
    (void)state;
    gives(C "analysis" M "a" S "assistant" C "final" M "b" R, "analysis: a\nfinal: b");
    gives(C "analysis" M "a" C "final" M "b" R, "analysis: a\nfinal: b");
    gives(C "analysis" M "a" E C "final" M "b" R, "analysis: a\nfinal: b");
    gives(C "analysis" M "a" E "assistant" C "final" M "b" R, "analysis: a\nfinal: b");
    gives(C "analysis" M "a" E M "b" R, "analysis: a\nfinal: b");
    gives(C "analysis" M "a" E "b" R, "analysis: a\nfinal: b");
    gives(C "analysis" M "a" E E R E S S "assistant" S "assistant" C "final" M "b",
          "analysis: a\nfinal: b");
    gives(C "final" M "a" R S "assistant" C "final" M "b" R, "final: a\nfinal: b");
    gives(C "final" M "a" R "b c", "final: a\nfinal: b c");
    gives(S "assistant:bob" C "final" M "b" R, "final: b");
    gives(S "The answer" R, "final: The answer");
}

static void special_tokens_inside_a_text_are_skipped(void **state)
{
    (void)state;
    gives(C "final" M "a" M "b<|constrain|>c" R, "final: abc");
    gives(C "final" M "a <|end |> b" R, "final: a <|end |> b");
    for (uint32_t id = 0; id < tokenizer_size(tokenizer); id++) {
        size_t size;
        const char *bytes = tokenizer_bytes(tokenizer, id, &size);
        if (bytes == NULL || !tokenizer_is_special(tokenizer, id) ||
            tokenizer_is_end(tokenizer, id))
            continue;
        char stream[600], name[200];
        snprintf(name, sizeof name, "%.*s", (int)size, bytes);
        if (strcmp(name, C) == 0 || strcmp(name, S) == 0 || strcmp(name, E) == 0)
            continue;
        snprintf(stream, sizeof stream, C "final" M "a%sb" E "%s" S "assistant" C "final" M "c",
                 name, strcmp(name, M) == 0 ? "" : name);
        gives(stream, "final: ab\nfinal: c");
    }
}

static void a_header_that_never_ends_becomes_text(void **state)
{
    (void)state;
    /* Words: they come out long before the end. */
    struct tokens ids = {0};
    struct heard h = {0};
    encode(C "analysis one two three four five six seven eight nine ten", false, &ids);
    struct harmony_parser *p = parse(&ids, HARMONY_START_HEADER, &h);
    assert_non_null(h.lines.bytes);
    assert_string_equal(h.lines.bytes,
                        "analysis: one two three four five six seven eight nine ten");
    assert_true(h.pieces > 1);
    assert_int_equal(harmony_parser_reasoning_tokens(p), ids.count);
    harmony_parser_destroy(p);
    text_free(&h.lines);
    tokens_free(&ids);

    /* One word without end. */
    struct text stream = {0}, want = {0};
    text_print(&stream, "x");
    text_print(&want, "final: x");
    for (int i = 0; i < 3000; i++) {
        text_print(&stream, "yz");
        text_print(&want, "yz");
    }
    gives(stream.bytes, want.bytes);
    h = (struct heard){0};
    ids = (struct tokens){0};
    encode(stream.bytes, true, &ids);
    ids.count = 300;
    p = parse(&ids, HARMONY_START_HEADER, &h);
    assert_true(h.pieces > 30);
    harmony_parser_destroy(p);
    text_free(&h.lines);
    tokens_free(&ids);

    /* Marks without words, and a recipient without end. */
    text_clear(&stream);
    for (int i = 0; i < 1000; i++)
        text_print(&stream, "%s", i % 2 != 0 ? "<|constrain|>" : C);
    text_print(&stream, M "x");
    gives(stream.bytes, "final: x");
    text_clear(&stream);
    text_print(&stream, C "commentary to=");
    text_clear(&want);
    text_print(&want, "commentary: to=");
    for (int i = 0; i < 300; i++) {
        text_print(&stream, "abc");
        text_print(&want, "abc");
    }
    text_print(&stream, R);
    gives(stream.bytes, want.bytes);
    text_free(&stream);
    text_free(&want);
}

static void goes_on_from_an_assistant_prefix(void **state)
{
    (void)state;
    gives_from(HARMONY_START_FINAL, " is 4." R, "final:  is 4.");
    gives_from(HARMONY_START_FINAL, "a" E S "assistant" C "analysis" M "b" E,
               "final: a\nanalysis: b");
    gives_from(HARMONY_START_FINAL, R, "");
}

static void raw_text_names_its_special_tokens(void **state)
{
    (void)state;
    gives_from(HARMONY_START_RAW, "a" E S C "final" M "b" R "c",
               "raw: a" E S C "final" M "b" R "c");
}

/* ── streaming ─────────────────────────────────────────────────────────────────────────────── */

static void content_comes_out_with_its_token(void **state)
{
    (void)state;
    struct tokens ids = {0};
    struct heard h = {0};
    encode(C "final" M, false, &ids);
    struct harmony_parser *p = parse(&ids, HARMONY_START_HEADER, &h);
    assert_int_equal(h.pieces, 0);
    for (const char *s = "Hello"; *s != '\0'; s++) {
        size_t before = h.pieces;
        harmony_parser_add(p, byte_ids[(unsigned char)*s], hear, &h);
        assert_int_equal(h.pieces, before + 1);
    }
    harmony_parser_destroy(p);
    text_free(&h.lines);
    tokens_free(&ids);
}

static void half_a_character_waits_and_is_flushed_at_the_end(void **state)
{
    (void)state;
    static const enum harmony_start starts[] = {HARMONY_START_FINAL, HARMONY_START_RAW};
    for (size_t i = 0; i < 2; i++) {
        struct heard h = {0};
        struct harmony_parser *p = harmony_parser_create(tokenizer, starts[i]);
        for (const char *s = "\xf0\x9f\x91"; *s != '\0'; s++)
            harmony_parser_add(p, byte_ids[(unsigned char)*s], hear, &h);
        assert_int_equal(h.pieces, 0);
        harmony_parser_add(p, byte_ids[0x8d], hear, &h);
        assert_int_equal(h.pieces, 1);
        harmony_parser_add(p, byte_ids[0xff], hear, &h);
        harmony_parser_add(p, byte_ids[0xc3], hear, &h);
        harmony_parser_end(p, hear, &h);
        assert_string_equal(h.lines.bytes, i == 0 ? "final: 👍\xef\xbf\xbd\xef\xbf\xbd"
                                                  : "raw: 👍\xef\xbf\xbd\xef\xbf\xbd");
        harmony_parser_destroy(p);
        text_free(&h.lines);
    }
    gives(C "final" M "a\xc3" E S "assistant" C "final" M "\xa9" R,
          "final: a\xef\xbf\xbd\nfinal: \xef\xbf\xbd");
    gives(C "final x\xc3", "final: x\xef\xbf\xbd");
    gives(C "commentary to=functions.\xff\xfe " J M "{}" K,
          "commentary to functions.\xef\xbf\xbd\xef\xbf\xbd: {}");
}

static void tells_calls_from_answers(void **state)
{
    (void)state;
    static const struct {
        const char *stream;
        bool called;
    } cases[] = {
        {C "final" M "a" R, false},
        {C "commentary to=functions.f " J M "{", false},
        {C "commentary to=functions.f " J M "{}" K, true},
        {C "commentary to=functions.f " J M "{}" E, true},
        {C "commentary to=functions.f " J M "{}" R, true},
        {C "commentary to=functions.f " J M "{}" S, true},
        {C "commentary to=functions.f " J M "{}" E S "assistant" C "final" M "a" R, true},
        {C "commentary to=functions.f " J "{}" K, true},
        {C "commentary" M "{}" K, true}, /* whom it called is not known */
        {C "commentary" M "{}" K S, false},
        {C "commentary" M "preamble" E, false},
        {C "commentary to=functions.f " J, false},
        {C "commentary" K, false},
        {K, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tokens ids = {0};
        struct heard h = {0};
        encode(cases[i].stream, false, &ids);
        struct harmony_parser *p = parse(&ids, HARMONY_START_HEADER, &h);
        bool called = harmony_parser_called(p);
        harmony_parser_end(p, hear, &h);
        if (called != cases[i].called)
            fail_msg("%s: called is %d", cases[i].stream, called);
        harmony_parser_destroy(p);
        text_free(&h.lines);
        tokens_free(&ids);
    }
}

static void counts_the_tokens_of_thoughts(void **state)
{
    (void)state;
    static const struct {
        const char *thought, *after;
    } cases[] = {
        {C "analysis" M "User asks: 2 + 2." E, S "assistant" C "final" M "4." R},
        {C "analysis" M "a" E S "assistant" C "analysis" M "b" E, S "assistant" C "final" M "4"},
        {C "analysis" M "a", ""},
        {C "analysis" M "a", S "assistant" C "final" M "4"},
        {C "analysis" M "a", C "final" M "4"},
        {C "analysis I think so." E, S "assistant"},
        {"", C "commentary" M "b" E},
        {"", C "analysis to=functions.f" M "b" K},
        {"", C "analysis"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tokens ids = {0};
        struct heard h = {0};
        encode(cases[i].thought, false, &ids);
        size_t want = ids.count;
        encode(cases[i].after, false, &ids);
        struct harmony_parser *p = parse(&ids, HARMONY_START_HEADER, &h);
        harmony_parser_end(p, hear, &h);
        if (harmony_parser_reasoning_tokens(p) != want)
            fail_msg("%s%s: %u tokens of thought, want %zu", cases[i].thought, cases[i].after,
                     harmony_parser_reasoning_tokens(p), want);
        harmony_parser_destroy(p);
        text_free(&h.lines);
        tokens_free(&ids);
    }
}

/* ── any sequence ──────────────────────────────────────────────────────────────────────────── */

/* Marked words, two at a time, among special tokens and words of the grammar: each must come out,
 * in order. Alone the first word behind <|constrain|> is a content type, whatever it is. */
static void no_word_is_lost_in_any_order_of_tokens(void **state)
{
    (void)state;
    static const char *const others[] = {C,
                                         M,
                                         E,
                                         S,
                                         K,
                                         R,
                                         "<|constrain|>",
                                         "assistant",
                                         " to=",
                                         " functions.",
                                         " commentary",
                                         "analysis",
                                         "final",
                                         " json",
                                         "?",
                                         " to=functions.f",
                                         "\n",
                                         "user"};
    uint64_t random = 5;
    for (int round = 0; round < 4000; round++) {
        struct text stream = {0};
        bool typed[64] = {false}, constrained = false;
        unsigned words = 0;
        size_t items = 1 + test_random(&random) % 24;
        for (size_t i = 0; i < items; i++) {
            if (test_random(&random) % 3 == 0) {
                typed[words] = constrained;
                text_print(&stream, " zq%02uz zq%02uz", words, words + 1);
                words += 2;
                constrained = false;
                continue;
            }
            const char *other = others[test_random(&random) % (sizeof others / sizeof *others)];
            if (strcmp(other, "\n") != 0)
                constrained = strcmp(other, "<|constrain|>") == 0;
            text_print(&stream, "%s", other);
        }
        struct tokens ids = {0};
        struct heard h = {0};
        encode(stream.bytes, test_random(&random) % 2 != 0, &ids);
        struct harmony_parser *p = parse(&ids, HARMONY_START_HEADER, &h);
        harmony_parser_end(p, hear, &h);
        const char *got = h.lines.bytes != NULL ? h.lines.bytes : "";
        for (unsigned i = 0; i < words; i++) {
            char word[16];
            snprintf(word, sizeof word, "zq%02uz", i);
            if (strstr(got, word) == NULL && !typed[i])
                fail_msg("%s\nloses %s:\n%s", stream.bytes, word, got);
        }
        harmony_parser_destroy(p);
        text_free(&h.lines);
        tokens_free(&ids);
        text_free(&stream);
    }
}

static void any_ids_are_survived(void **state)
{
    (void)state;
    static const char *const specials[] = {C, M, E, S, K, R, "<|constrain|>", "<|endoftext|>"};
    uint64_t random = 11;
    for (int round = 0; round < 600; round++) {
        struct tokens ids = {0};
        struct heard h = {0};
        size_t n = test_random(&random) % 700;
        unsigned often = 1 + test_random(&random) % 40;
        for (size_t i = 0; i < n; i++) {
            uint64_t r = test_random(&random);
            int64_t id = r % often == 0 ? tokenizer_special(tokenizer, specials[(r >> 32) % 8])
                                        : (int64_t)(r >> 32) % (tokenizer_size(tokenizer) + 9);
            tokens_add(&ids, id >= 0 ? (uint32_t)id : UINT32_MAX);
        }
        struct harmony_parser *p = parse(&ids, (enum harmony_start)(round % 3), &h);
        harmony_parser_end(p, hear, &h);
        assert_true(harmony_parser_reasoning_tokens(p) <= n);
        harmony_parser_destroy(p);
        text_free(&h.lines);
        tokens_free(&ids);
    }
}

/* From where the prompt of a chat with a tool_choice leaves off. */
static void goes_on_from_a_chosen_tool(void **state)
{
    (void)state;
    static const struct {
        const char *choice, *stream, *want;
    } cases[] = {
        {"get_weather", "{\"city\":1}<|call|>",
         "commentary to functions.get_weather: {\"city\":1}"},
        {"functions.f", "<|call|>", "commentary to functions.f: "},
        {"required", ".f <|constrain|>json<|message|>{}<|call|>", "commentary to functions.f: {}"},
        {"required",
         ".f<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>x<|return|>",
         "commentary to functions.f: {}\nfinal: x"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tokens ids = {0};
        struct heard h = {0};
        struct harmony_parser *p = harmony_parser_create(tokenizer, HARMONY_START_HEADER);
        harmony_parser_choose(p, cases[i].choice);
        encode(cases[i].stream, false, &ids);
        for (size_t k = 0; k < ids.count; k++)
            harmony_parser_add(p, ids.ids[k], hear, &h);
        assert_true(harmony_parser_called(p));
        assert_int_equal(harmony_parser_reasoning_tokens(p), 0);
        harmony_parser_end(p, hear, &h);
        assert_string_equal(h.lines.bytes, cases[i].want);
        harmony_parser_destroy(p);
        text_free(&h.lines);
        tokens_free(&ids);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_the_library_of_openai_reads),
        cmocka_unit_test(a_second_channel_corrects_the_first),
        cmocka_unit_test(noise_behind_a_channel_is_dropped_and_words_are_kept),
        cmocka_unit_test(an_unknown_or_missing_channel_is_final),
        cmocka_unit_test(a_missing_message_token_is_survived),
        cmocka_unit_test(calls_are_commentary_with_the_name_of_a_function),
        cmocka_unit_test(a_message_may_begin_where_none_should),
        cmocka_unit_test(special_tokens_inside_a_text_are_skipped),
        cmocka_unit_test(a_header_that_never_ends_becomes_text),
        cmocka_unit_test(goes_on_from_an_assistant_prefix),
        cmocka_unit_test(goes_on_from_a_chosen_tool),
        cmocka_unit_test(raw_text_names_its_special_tokens),
        cmocka_unit_test(content_comes_out_with_its_token),
        cmocka_unit_test(half_a_character_waits_and_is_flushed_at_the_end),
        cmocka_unit_test(tells_calls_from_answers),
        cmocka_unit_test(counts_the_tokens_of_thoughts),
        cmocka_unit_test(no_word_is_lost_in_any_order_of_tokens),
        cmocka_unit_test(any_ids_are_survived),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
