/* test_client_answer: what becomes of messages, good and bad ones, and how it is printed. */
#include "tests/test.h"

#include "client/client.h"

static struct answer a;
static struct text shown; /* what the sink saw: "[" where a part begins */
static char err[256];

static void sink(void *arg, const struct answer_part *part, bool first, const char *bytes,
                 size_t size)
{
    (void)arg;
    assert_true(part->text.size >= size);
    assert_memory_equal(part->text.bytes + part->text.size - size, bytes, size);
    text_print(&shown, "%s%.*s", first ? "[" : "", (int)size, bytes);
}

static int fresh(void **state)
{
    (void)state;
    struct text id = {0};
    text_print(&id, "me");
    answer_start(&a, &id, 0);
    text_free(&id);
    text_clear(&shown);
    text_add(&shown, "", 0);
    err[0] = '\0';
    return 0;
}

static int clear(void **state)
{
    (void)state;
    answer_free(&a);
    answer_free(&a);
    text_free(&shown);
    return 0;
}

static ProtobufCBinaryData binary(const char *text)
{
    return (ProtobufCBinaryData){strlen(text), (uint8_t *)text};
}

static Gptoss__Piece piece(Gptoss__Piece__Channel channel, uint32_t message, const char *recipient,
                           const char *text)
{
    Gptoss__Piece p = GPTOSS__PIECE__INIT;
    p.channel = channel;
    p.message = message;
    p.recipient = (char *)recipient;
    p.text = binary(text);
    return p;
}

/* Takes Output{id, one token with one piece}. */
static int take_token(const char *id, uint32_t index, uint32_t token_id, Gptoss__Piece p)
{
    Gptoss__Logit best = GPTOSS__LOGIT__INIT, *top[] = {&best};
    best.id = token_id;
    best.logit = 0.1f;
    Gptoss__Piece *pieces[] = {&p};
    Gptoss__Token token = GPTOSS__TOKEN__INIT, *tokens[] = {&token};
    token.index = index;
    token.id = token_id;
    token.pieces = pieces;
    token.n_pieces = 1;
    token.logit = 0.1f;
    token.log_sum_exp = 1;
    token.top = top;
    token.n_top = 1;
    Gptoss__Output output = GPTOSS__OUTPUT__INIT;
    output.request_id = binary(id);
    output.tokens = tokens;
    output.n_tokens = 1;
    Gptoss__ServerMessage m = GPTOSS__SERVER_MESSAGE__INIT;
    m.body_case = GPTOSS__SERVER_MESSAGE__BODY_OUTPUT;
    m.output = &output;
    return answer_take(&a, &m, sink, NULL, err, sizeof err);
}

static int take_finished(const char *id, Gptoss__Finished__Reason reason, uint32_t tokens)
{
    Gptoss__Finished finished = GPTOSS__FINISHED__INIT;
    finished.request_id = binary(id);
    finished.reason = reason;
    finished.tokens = tokens;
    finished.total_seconds = 2.5;
    Gptoss__ServerMessage m = GPTOSS__SERVER_MESSAGE__INIT;
    m.body_case = GPTOSS__SERVER_MESSAGE__BODY_FINISHED;
    m.finished = &finished;
    return answer_take(&a, &m, sink, NULL, err, sizeof err);
}

static int take_refused(const char *id)
{
    Gptoss__Refused refused = GPTOSS__REFUSED__INIT;
    refused.request_id = binary(id);
    refused.code = GPTOSS__CODE__BUSY;
    refused.text = (char *)"the queue is full";
    refused.retry_ms = 1500;
    Gptoss__ServerMessage m = GPTOSS__SERVER_MESSAGE__INIT;
    m.body_case = GPTOSS__SERVER_MESSAGE__BODY_REFUSED;
    m.refused = &refused;
    return answer_take(&a, &m, sink, NULL, err, sizeof err);
}

#define ANALYSIS   GPTOSS__PIECE__CHANNEL__ANALYSIS
#define COMMENTARY GPTOSS__PIECE__CHANNEL__COMMENTARY
#define FINAL      GPTOSS__PIECE__CHANNEL__FINAL
#define RAW        GPTOSS__PIECE__CHANNEL__RAW

static void pieces_are_gathered_by_message(void **state)
{
    (void)state;
    assert_int_equal(take_token("me", 0, 10, piece(ANALYSIS, 0, "", "Let me ")), 1);
    assert_int_equal(take_token("me", 1, 11, piece(ANALYSIS, 0, "", "think.")), 1);
    assert_int_equal(take_token("me", 2, 12, piece(COMMENTARY, 1, "functions.f", "{\"a\":")), 1);
    assert_int_equal(take_token("me", 3, 13, piece(COMMENTARY, 1, "functions.f", "1}")), 1);
    assert_int_equal(take_token("me", 4, 14, piece(COMMENTARY, 2, "functions.f", "{}")), 1);
    assert_int_equal(take_token("me", 5, 15, piece(FINAL, 3, "", "Yes")), 1);
    assert_int_equal(take_finished("me", GPTOSS__FINISHED__REASON__STOP, 6), 1);
    assert_int_equal(a.state, ANSWER_FINISHED);
    assert_int_equal(a.n_parts, 4);
    assert_true(answer_is_call(&a.parts[1]));
    assert_string_equal(answer_call_name(&a.parts[1]), "f");
    assert_string_equal(a.parts[1].text.bytes, "{\"a\":1}");
    assert_string_equal(a.parts[2].text.bytes, "{}");
    assert_string_equal(shown.bytes, "[Let me think.[{\"a\":1}[{}[Yes");
}

static void another_request_s_messages_are_left_alone(void **state)
{
    (void)state;
    assert_int_equal(take_token("other", 0, 10, piece(RAW, 0, "", "x")), 0);
    assert_int_equal(take_finished("", GPTOSS__FINISHED__REASON__STOP, 0), 0);
    assert_int_equal(take_refused("other"), 0);
    assert_int_equal(a.state, ANSWER_WAITING);
    assert_int_equal(take_refused(""), 1); /* of a message that could not be read: it was ours */
    assert_int_equal(a.state, ANSWER_REFUSED);
    assert_string_equal(a.error.bytes, "the queue is full");
    assert_int_equal(take_token("me", 0, 10, piece(RAW, 0, "", "x")), 0); /* nothing follows */
}

static void repeated_tokens_are_dropped_and_gaps_are_an_error(void **state)
{
    (void)state;
    assert_int_equal(take_token("me", 0, 10, piece(RAW, 0, "", "a")), 1);
    assert_int_equal(take_token("me", 0, 10, piece(RAW, 0, "", "a")), 1);
    assert_string_equal(shown.bytes, "[a");
    assert_int_equal(take_token("me", 2, 12, piece(RAW, 0, "", "c")), -1);
    assert_string_equal(err, "token 2 came where token 1 was due");
    assert_int_equal(take_finished("me", GPTOSS__FINISHED__REASON__STOP, 7), -1);
    assert_string_equal(err, "7 tokens were sampled, but 1 came");
}

static void a_resumed_answer_begins_at_its_index(void **state)
{
    (void)state;
    struct text id = {0};
    text_print(&id, "me");
    answer_start(&a, &id, 5);
    text_free(&id);
    assert_int_equal(take_token("me", 4, 14, piece(RAW, 0, "", "d")), 1);
    assert_int_equal(take_token("me", 5, 15, piece(RAW, 0, "", "e")), 1);
    assert_int_equal(take_finished("me", GPTOSS__FINISHED__REASON__LENGTH, 6), 1);
    assert_int_equal(a.n_tokens, 1);
    assert_int_equal(a.tokens[0].id, 15);
}

static void an_answer_that_never_ends_is_bounded(void **state)
{
    (void)state;
    size_t size = 4 << 20;
    char *text = malloc(size + 1);
    memset(text, 'x', size);
    text[size] = '\0';
    int status = 1;
    uint32_t n = 0;
    for (; status == 1 && n < 100; n++)
        status = take_token("me", n, 1, piece(RAW, 0, "", n == 0 ? "x" : text));
    assert_int_equal(status, -1);
    assert_string_equal(err, "the answer is larger than 256 MiB");
    free(text);
}

static char *json(const struct options *o, const char *failure)
{
    char *bytes = NULL;
    size_t size;
    FILE *out = open_memstream(&bytes, &size);
    json_answer(out, o, &a, failure);
    fclose(out);
    return bytes;
}

static void json_has_all_that_came(void **state)
{
    (void)state;
    struct options o = {.top_logits = 1};
    take_token("me", 0, 10, piece(ANALYSIS, 0, "", "hm \"\xff"));
    take_token("me", 1, 11, piece(COMMENTARY, 1, "functions.f", "{\"a\":1}"));
    take_token("me", 2, 4000000000u, piece(FINAL, 2, "", "Ναι"));
    take_finished("me", GPTOSS__FINISHED__REASON__TOOL_CALLS, 3);
    char *got = json(&o, NULL);
    assert_string_equal(
        got,
        "{\"tokens\": [10, 11, 4000000000], \"text\": \"Ναι\", \"reasoning\": \"hm "
        "\\\"\xef\xbf\xbd\", "
        "\"commentary\": \"\", \"tool_calls\": [{\"name\": \"f\", \"arguments\": "
        "\"{\\\"a\\\":1}\"}], "
        "\"top\": [[[10, 0.100000001]], [[11, 0.100000001]], [[4000000000, 0.100000001]]], "
        "\"logprobs\": [-0.899999999, -0.899999999, -0.899999999], \"finish\": \"tool_calls\", "
        "\"timing\": {\"queued\": 0, \"first_token\": 0, \"total\": 2.5}, "
        "\"usage\": {\"prompt_tokens\": 0, \"cached_tokens\": 0, \"completion_tokens\": 3, "
        "\"reasoning_tokens\": 0}, \"seed\": 0, \"request_id\": \"me\"}\n");
    free(got);
}

static void json_tells_refusals_and_losses(void **state)
{
    (void)state;
    struct options o = {.raw = true};
    take_refused("me");
    char *got = json(&o, NULL);
    assert_non_null(strstr(got, "\"finish\": \"error\""));
    assert_non_null(strstr(got, "\"error\": {\"code\": \"busy\", \"text\": \"the queue is full\", "
                                "\"retry_ms\": 1500}"));
    free(got);
    fresh(NULL);
    take_token("me", 0, 10, piece(RAW, 0, "", "half"));
    got = json(&o, "it is lost");
    assert_non_null(strstr(got, "\"text\": \"half\""));
    assert_non_null(strstr(got, "\"finish\": \"error\""));
    assert_non_null(
        strstr(got, "\"error\": {\"code\": \"coordinator\", \"text\": \"it is lost\"}"));
    free(got);
}

static void text_for_a_terminal_cannot_steer_it(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to;
    } cases[] = {
        {"plain\n\ttext €", "plain\n\ttext €"},
        {"\033[2J", "\xef\xbf\xbd[2J"},
        {"a\rb\x7f\x08", "a\xef\xbf\xbd"
                         "b\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xc2\x9b"
         "31m",
         "\xef\xbf\xbd"
         "31m"}, /* a control of one character */
        {"\x9b", "\xef\xbf\xbd"},
        {"\xc2\xa0", "\xc2\xa0"},
    };
    struct text t = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        text_clear(&t);
        view_clean(&t, cases[i].from, strlen(cases[i].from));
        assert_string_equal(t.bytes, cases[i].to);
    }
    text_free(&t);
}

static void an_answer_becomes_messages_of_the_next_turn(void **state)
{
    (void)state;
    struct conversation c = {0};
    conversation_add(&c, GPTOSS__MESSAGE__ROLE__USER, "", "hi", 2);
    take_token("me", 0, 10, piece(ANALYSIS, 0, "", "hm"));
    take_token("me", 1, 11, piece(COMMENTARY, 1, "functions.f", "{}"));
    take_token("me", 2, 12, piece(FINAL, 2, "", "ends."));
    conversation_add_answer(&c, &a, "It ");
    assert_int_equal(c.n, 4);
    assert_string_equal(c.messages[1].channel, "analysis");
    assert_string_equal(c.messages[2].recipient, "functions.f");
    assert_string_equal(c.messages[2].channel, "commentary");
    assert_string_equal(c.messages[3].channel, "final");
    assert_string_equal(c.messages[3].content.bytes, "It ends.");
    conversation_cut(&c, 1);
    assert_int_equal(c.n, 1);
    conversation_free(&c);
    conversation_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pieces_are_gathered_by_message, fresh, clear),
        cmocka_unit_test_setup_teardown(another_request_s_messages_are_left_alone, fresh, clear),
        cmocka_unit_test_setup_teardown(repeated_tokens_are_dropped_and_gaps_are_an_error, fresh,
                                        clear),
        cmocka_unit_test_setup_teardown(a_resumed_answer_begins_at_its_index, fresh, clear),
        cmocka_unit_test_setup_teardown(an_answer_that_never_ends_is_bounded, fresh, clear),
        cmocka_unit_test_setup_teardown(json_has_all_that_came, fresh, clear),
        cmocka_unit_test_setup_teardown(json_tells_refusals_and_losses, fresh, clear),
        cmocka_unit_test(text_for_a_terminal_cannot_steer_it),
        cmocka_unit_test_setup_teardown(an_answer_becomes_messages_of_the_next_turn, fresh, clear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
