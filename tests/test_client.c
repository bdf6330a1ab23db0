/* test_client: gptoss-client as a program that other programs run. */
#include "tests/client_process.h"

#include <jansson.h>
#include <netinet/in.h>
#include <sys/socket.h>

static void reply_refuse(void)
{
    Gptoss__Refused refused = GPTOSS__REFUSED__INIT;
    refused.request_id = request_id();
    refused.code = GPTOSS__CODE__TOO_LONG;
    refused.text = (char *)"the prompt has 9000 tokens, the context 4096: shorten it";
    tell(GPTOSS__SERVER_MESSAGE__BODY_REFUSED, &refused);
}

static void reply_garbage(void)
{
    char err[256];
    proto_send_bytes(router, frame.peer, frame.peer_size, "\xff\xff\xff", 3, err, sizeof err);
}

static void reply_two_frames(void)
{
    zmq_send(router, frame.peer, frame.peer_size, ZMQ_SNDMORE);
    zmq_send(router, "a", 1, ZMQ_SNDMORE);
    zmq_send(router, "b", 1, 0);
}

static void reply_with_a_gap(void)
{
    accept_it();
    token(5, GPTOSS__PIECE__CHANNEL__FINAL, 0, "", "late");
}

static void reply_status(void)
{
    Gptoss__StageStatus stage = GPTOSS__STAGE_STATUS__INIT, *stages[] = {&stage};
    stage.host = (char *)"node\0331";
    stage.device = (char *)"cpu";
    stage.layer_count = 6;
    stage.weights_bytes = 12101107712u;
    stage.busy_seconds = 1;
    stage.up_seconds = 4;
    stage.loaded = 1;
    Gptoss__Status s = GPTOSS__STATUS__INIT;
    s.version = (char *)"0.1.0";
    s.model = (char *)"/m.gguf";
    s.state = (char *)"serving";
    s.ready = true;
    s.stages = stages;
    s.n_stages = 1;
    s.requests_running = 3;
    s.kv_full_blocks = 200;
    s.kv_full_blocks_used = 50;
    stage.state = (char *)"ready";
    stage.pid = 711;
    Gptoss__StepPlace place = GPTOSS__STEP_PLACE__INIT, *places[] = {&place};
    place.step = 9;
    place.stage = 2;
    place.seconds = 0.25;
    s.flight = places;
    s.n_flight = 1;
    /* Of the second stage nothing was told. */
    int32_t at[14] = {-20, 30, 50, 5, 40, 25, 10, -1, -1, -1, -1, -1, -1, -1};
    Gptoss__TraceStep step = GPTOSS__TRACE_STEP__INIT, *steps[] = {&step};
    step.step = 8;
    step.issued_us = 1000000;
    step.at = at;
    step.n_at = 14;
    s.recent_steps = steps;
    s.n_recent_steps = 1;
    Gptoss__Loss loss = GPTOSS__LOSS__INIT;
    loss.stage_given_case = GPTOSS__LOSS__STAGE_GIVEN_STAGE;
    loss.text = (char *)"rank 0 died";
    loss.over = true;
    s.last_loss = &loss;
    tell(GPTOSS__SERVER_MESSAGE__BODY_STATUS, &s);
}

static char said[65536]; /* its stderr */

static void slurp(FILE *file, char *into)
{
    rewind(file);
    into[fread(into, 1, 65535, file)] = '\0';
    fclose(file);
}

/* Runs it with `input` on its stdin; its exit code, or 1000 + the signal that ended it. */
static int run(const char *input, const char *const *words)
{
    FILE *in = tmpfile(), *o = tmpfile(), *e = tmpfile();
    fputs(input, in);
    fflush(in);
    rewind(in);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(fileno(in), 0);
        dup2(fileno(o), 1);
        dup2(fileno(e), 2);
        become_the_client(words);
    }
    int status;
    waitpid(pid, &status, 0);
    fclose(in);
    slurp(o, out);
    slurp(e, said);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

#define RUN(input, ...) run(input, (const char *[]){__VA_ARGS__, NULL})

static json_t *parse(void)
{
    json_error_t error;
    json_t *json = json_loads(out, 0, &error); /* refuses anything but one object */
    if (json == NULL)
        fail_msg("%s: %s", error.text, out);
    assert_int_equal(strchr(out, '\n') - out, strlen(out) - 1);
    return json;
}

/* ── tests ─────────────────────────────────────────────────────────────────────────────────── */

static void completes_plain_text_with_all_options(void **state)
{
    (void)state;
    start(reply_raw);
    int code =
        RUN("", "--raw", "--max-tokens", "7", "--temperature", "0", "--top-k", "5", "--top-p=0.5",
            "--min-p", "0.25", "--seed", "18446744073709551615", "--stop", "a", "--stop", "b\xff",
            "--ignore-eos", "--top-logits", "2", "--deadline", "1.5", "--linger", "2",
            "--request-id", "mine", "--json", "\xff\xfein the", "beginning");
    halt();
    assert_int_equal(code, 0);
    assert_string_equal(said, "");
    Gptoss__Generate *g = asked->generate;
    assert_int_equal(g->prompt_case, GPTOSS__GENERATE__PROMPT_TEXT);
    assert_int_equal(g->text.len, 18);
    assert_memory_equal(g->text.data, "\xff\xfein the beginning", 18);
    assert_memory_equal(g->request_id.data, "mine", 4);
    assert_int_equal(g->max_tokens, 7);
    assert_int_equal(g->sampling->temperature_given_case, 1);
    assert_true(g->sampling->temperature == 0);
    assert_int_equal(g->sampling->top_k, 5);
    assert_true(g->sampling->top_p == 0.5f && g->sampling->min_p == 0.25f);
    assert_true(g->sampling->seed == UINT64_MAX);
    assert_int_equal(g->n_stop, 2);
    assert_memory_equal(g->stop[1].data, "b\xff", 2);
    assert_true(g->ignore_eos);
    assert_int_equal(g->deadline_ms, 1500);
    assert_int_equal(g->linger_ms, 2000);
    forget();

    json_t *json = parse();
    assert_string_equal(json_string_value(json_object_get(json, "text")), " the heaven €");
    assert_string_equal(json_string_value(json_object_get(json, "finish")), "length");
    json_t *tokens = json_object_get(json, "tokens"), *top = json_object_get(json, "top");
    assert_int_equal(json_array_size(tokens), 2);
    assert_int_equal(json_integer_value(json_array_get(tokens, 1)), 101);
    json_t *best = json_array_get(json_array_get(top, 1), 0);
    assert_int_equal(json_integer_value(json_array_get(best, 0)), 101);
    assert_true((float)json_number_value(json_array_get(best, 1)) == 17.1234567f);
    json_t *timing = json_object_get(json, "timing"), *usage = json_object_get(json, "usage");
    assert_true(json_number_value(json_object_get(timing, "first_token")) == 0.25);
    assert_true(json_number_value(json_object_get(timing, "total")) == 1.25);
    assert_int_equal(json_integer_value(json_object_get(usage, "cached_tokens")), 4);
    assert_int_equal(json_integer_value(json_object_get(json, "seed")), 77);
    json_decref(json);
}

static void chat_is_the_default_and_shows_the_final_text_alone(void **state)
{
    (void)state;
    start(reply_chat);
    int code =
        RUN("", "--system", "Be brief.", "--reasoning", "high", "--date", "2026-11-23", "--tools",
            GPTOSS_SOURCE_DIR "/models/get_weather.json", "--assistant-prefix", "It is", "What?");
    halt();
    assert_int_equal(code, 0);
    assert_string_equal(out, "Athens.\n");
    assert_string_equal(said, "");
    Gptoss__Generate *g = asked->generate;
    assert_int_equal(g->prompt_case, GPTOSS__GENERATE__PROMPT_CHAT);
    assert_int_equal(g->sampling->temperature_given_case, 0);
    assert_int_equal(g->sampling->seed_given_case, 0);
    assert_int_equal(g->max_tokens, 0);
    assert_true(g->request_id.len > 8 && g->request_id.len <= 64);
    Gptoss__Chat *chat = g->chat;
    assert_int_equal(chat->n_messages, 2);
    assert_int_equal(chat->messages[0]->role, GPTOSS__MESSAGE__ROLE__SYSTEM);
    assert_memory_equal(chat->messages[0]->content.data, "Be brief.", 9);
    assert_int_equal(chat->messages[1]->role, GPTOSS__MESSAGE__ROLE__USER);
    assert_int_equal(chat->reasoning, GPTOSS__CHAT__REASONING__HIGH);
    assert_string_equal(chat->date, "2026-11-23");
    assert_memory_equal(chat->assistant_prefix.data, "It is", 5);
    assert_true(chat->tools_json.len > 100);
    forget();

    start(reply_chat);
    code = RUN("What?\n", "--reasoning-text", "-");
    halt();
    assert_int_equal(code, 0);
    assert_string_equal(out, "Athens.\n");
    assert_has(said, "Think");
    assert_int_equal(asked->generate->chat->messages[0]->content.len, 5);
    forget();

    start(reply_raw);
    code = RUN("Once\n", "--raw");
    halt();
    assert_int_equal(asked->generate->text.len, 5);
    forget();
    assert_int_equal(code, 0);
    assert_string_equal(out, " the heaven €\n");
}

static void takes_token_ids(void **state)
{
    (void)state;
    start(reply_raw);
    int code = RUN("", "--prompt-ids", "1, 2,4294967295");
    halt();
    assert_int_equal(code, 0);
    assert_int_equal(asked->generate->prompt_case, GPTOSS__GENERATE__PROMPT_IDS);
    assert_int_equal(asked->generate->ids->n_ids, 3);
    assert_true(asked->generate->ids->ids[2] == UINT32_MAX);
    forget();
    start(reply_raw);
    code = RUN("7\n8\n", "--prompt-ids", "-", "--json");
    halt();
    assert_int_equal(asked->generate->ids->n_ids, 2);
    forget();
    json_t *json = parse();
    assert_string_equal(json_string_value(json_object_get(json, "text")), " the heaven €");
    json_decref(json);
}

static void a_tool_call_is_shown_as_a_call(void **state)
{
    (void)state;
    start(reply_call);
    int code = RUN("", "What is the weather in Paris?");
    assert_int_equal(code, 0);
    assert_string_equal(out, "→ get_weather({\"city\":\"Paris\"})\n");
    code = RUN("", "--json", "What is the weather in Paris?");
    halt();
    forget();
    json_t *json = parse(), *call = json_array_get(json_object_get(json, "tool_calls"), 0);
    assert_string_equal(json_string_value(json_object_get(call, "name")), "get_weather");
    assert_string_equal(json_string_value(json_object_get(call, "arguments")),
                        "{\"city\":\"Paris\"}");
    assert_string_equal(json_string_value(json_object_get(json, "finish")), "tool_calls");
    assert_string_equal(json_string_value(json_object_get(json, "reasoning")), "Call it.");
    json_decref(json);
}

static void a_refusal_is_told_in_both_forms(void **state)
{
    (void)state;
    start(reply_refuse);
    assert_int_equal(RUN("", "hi"), EXIT_FAILED);
    assert_string_equal(out, "");
    assert_string_equal(said,
                        "gptoss-client: refused: the prompt has 9000 tokens, the context 4096: "
                        "shorten it\n");
    assert_int_equal(RUN("", "hi", "--json"), EXIT_FAILED);
    halt();
    forget();
    json_t *json = parse(), *error = json_object_get(json, "error");
    assert_string_equal(json_string_value(json_object_get(error, "code")), "too_long");
    assert_string_equal(json_string_value(json_object_get(json, "finish")), "error");
    json_decref(json);
}

static void no_coordinator_is_said_soon_with_what_to_do(void **state)
{
    (void)state;
    double before = clock_seconds();
    assert_int_equal(RUN("", "hi", "--timeout", "0.3", "--json"), EXIT_COORDINATOR);
    assert_true(clock_seconds() - before < 3);
    assert_has(said, "no coordinator answers at ipc:///tmp/");
    assert_has(said, "gptoss-coordinator --launch 1 --model FILE.gguf --bind ipc:///");
    json_t *json = parse();
    json_decref(json);
    assert_int_equal(RUN("", "--status", "--timeout", "0.3"), EXIT_COORDINATOR);
    assert_has(said, "no coordinator answers");
}

static void what_is_not_an_answer_ends_it(void **state)
{
    (void)state;
    static const struct {
        reply_function reply;
        const char *says;
    } cases[] = {{reply_garbage, "not a gptoss.ServerMessage"},
                 {reply_two_frames, "a message of 2 frames"},
                 {reply_with_a_gap, "token 5 came where token 0 was due"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        start(cases[i].reply);
        assert_int_equal(RUN("", "hi"), EXIT_COORDINATOR);
        halt();
        forget();
        assert_has(said, "is not an answer");
        assert_has(said, cases[i].says);
    }
}

/* In this process, as the time it takes is an option that the command line has not. */
static void a_coordinator_that_falls_silent_is_lost(void **state)
{
    (void)state;
    char err[512];
    struct options o = {.endpoint = endpoint, .timeout_seconds = 5, .silence_seconds = 0.3};
    struct session s;
    struct answer a = {0};
    struct view v;
    struct text id = {0};
    FILE *null = fopen("/dev/null", "w");
    text_print(&id, "x");
    text_print(&o.prompt, "hi");
    o.raw = true;
    start(reply_until_cancelled);
    assert_int_equal(session_open(&s, &o, err, sizeof err), 0);
    view_init(&v, &o, null, null);
    answer_start(&a, &id, 0);
    assert_int_equal(conversation_send(&s, &o, NULL, &id, err, sizeof err), 0);
    assert_int_equal(session_wait(&s, &o, &a, &v, err, sizeof err), SESSION_LOST);
    assert_has(err, "has been silent for 300 ms: it is lost");
    assert_int_equal(a.n_tokens, 1); /* what came is kept */
    session_close(&s);
    halt();
    forget();
    answer_free(&a);
    text_free(&id);
    options_free(&o);
    fclose(null);
}

/* The refusal may come before the question is sent: it is told then too. The greeting of a coordinator
 * with keys (ZMTP 3.0), from a socket that does not hang up first. */
static void a_coordinator_with_keys_is_named_before_the_question_is_sent(void **state)
{
    (void)state;
    static const char greeting[64] = {[0] = '\xff', [9] = '\x7f', [10] = 3,   [12] = 'C',
                                      [13] = 'U',   [14] = 'R',   [15] = 'V', [16] = 'E'};
    char err[512], where[64];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, size), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    snprintf(where, sizeof where, "tcp://127.0.0.1:%d", ntohs(address.sin_port));

    struct options o = {.endpoint = where, .timeout_seconds = 20, .raw = true};
    struct session s;
    struct answer a = {0};
    struct view v;
    struct text id = {0};
    FILE *null = fopen("/dev/null", "w");
    text_print(&id, "x");
    text_print(&o.prompt, "hi");
    assert_int_equal(session_open(&s, &o, err, sizeof err), 0);
    int peer = accept(listener, NULL, NULL);
    assert_int_equal(write(peer, greeting, sizeof greeting), sizeof greeting);
    zmq_pollitem_t refused = {.socket = s.watch, .events = ZMQ_POLLIN};
    assert_int_equal(zmq_poll(&refused, 1, 10000), 1);
    zmq_pollitem_t dropped = {.socket = s.socket, .events = ZMQ_POLLIN};
    assert_int_equal(zmq_poll(&dropped, 1, 200), 0); /* the socket hears that its pipe is gone */
    view_init(&v, &o, null, null);
    answer_start(&a, &id, 0);
    assert_int_equal(conversation_send(&s, &o, NULL, &id, err, sizeof err), 0);
    assert_int_equal(session_wait(&s, &o, &a, &v, err, sizeof err), SESSION_ABSENT);
    assert_has(err, "one side uses keys and the other does not");
    session_close(&s);
    close(peer);
    close(listener);
    answer_free(&a);
    text_free(&id);
    options_free(&o);
    fclose(null);
}

static void wrong_use_has_exit_code_2(void **state)
{
    (void)state;
    static const char *const cases[][4] = {
        {"--reasoning", "much", "hi", "--reasoning is low, medium or high"},
        {"--prompt-ids", "1,x", NULL, "\"x\" is none"},
        {"--prompt-ids", "1,4294967296", NULL, "is none"},
        {"--prompt-ids", "", NULL, "there is none"},
        {"--prompt-ids", "1", "hi", "no place for the PROMPT"},
        {"--status", "hi", NULL, "no place for the PROMPT"},
        {"--seed", "-1", "hi", "--seed takes"},
        {"--date", "23.11.2026", "hi", "--date takes YYYY-MM-DD"},
        {"--stop", "", "hi", "--stop takes a text of 1 to 256 bytes"},
        {"--top-logits", "33", "hi", "out of range"},
        {"--tools", "/nonexistent.json", "hi", "cannot read the tools /nonexistent.json: No such"},
        {"--raw", "--system=x", "hi", "--raw and --system do not go together"},
        {"--raw", "--prompt-ids", "1", "--raw and --prompt-ids do not go together"},
        {"--connect=nonsense", "hi", NULL, "\"nonsense\" is not an endpoint"},
        {"--from", "1", "hi", "--from needs --resume"},
        {"-", NULL, NULL, "there is no PROMPT"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int code = run("", (const char *[]){cases[i][0], cases[i][1], cases[i][2], NULL});
        if (code != EXIT_USAGE)
            fail_msg("%s: exit code %d: %s", cases[i][0], code, said);
        assert_has(said, cases[i][3]);
        assert_string_equal(out, "");
    }
}

static void status_is_a_table_or_json(void **state)
{
    (void)state;
    start(reply_status);
    assert_int_equal(RUN("", "--status"), 0);
    assert_has(out, "gptoss 0.1.0 at ipc:///");
    assert_has(out, "serving");
    assert_has(out, "3 running");
    assert_has(out, "full 50 of 200 blocks (25 %)");
    assert_has(out, "node\xef\xbf\xbd"
                    "1");
    assert_has(out, "11.27 GiB");
    assert_has(out, "25.0 %");
    assert_int_equal(RUN("", "--status", "--json"), 0);
    halt();
    forget();
    json_t *json = parse(), *stage = json_array_get(json_object_get(json, "stages"), 0);
    assert_int_equal(json_integer_value(json_object_get(stage, "layer_count")), 6);
    assert_string_equal(json_string_value(json_object_get(stage, "state")), "ready");
    assert_int_equal(json_integer_value(json_object_get(stage, "pid")), 711);
    json_t *place = json_array_get(json_object_get(json, "flight"), 0);
    assert_int_equal(json_integer_value(json_object_get(place, "stage")), 2);
    json_t *step = json_array_get(json_object_get(json, "recent_steps"), 0);
    json_t *times = json_array_get(json_object_get(step, "stages"), 0);
    static const int64_t want[] = {20, 60, 75, 85}; /* began, ended; the head began, ended */
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(json_integer_value(json_array_get(times, i)), want[i]);
    assert_true(json_is_null(json_array_get(json_object_get(step, "stages"), 1)));
    json_t *loss = json_object_get(json, "last_loss");
    assert_true(json_is_true(json_object_get(loss, "over")));
    assert_int_equal(json_integer_value(json_object_get(loss, "stage")), 0);
    json_decref(json);
}

static void reply_resume(void)
{
    accept_it();
    token(2, GPTOSS__PIECE__CHANNEL__RAW, 0, "", " rest");
    finish(GPTOSS__FINISHED__REASON__STOP, 3);
}

static void a_request_is_picked_up_from_an_index(void **state)
{
    (void)state;
    start(reply_resume);
    assert_int_equal(RUN("", "--resume", "job", "--from", "2", "--json"), 0);
    halt();
    assert_int_equal(asked->body_case, GPTOSS__CLIENT_MESSAGE__BODY_RESUME);
    assert_memory_equal(asked->resume->request_id.data, "job", 3);
    assert_int_equal(asked->resume->from_index, 2);
    forget();
    json_t *json = parse();
    assert_string_equal(json_string_value(json_object_get(json, "text")), " rest");
    json_decref(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(completes_plain_text_with_all_options, tidy),
        cmocka_unit_test_teardown(chat_is_the_default_and_shows_the_final_text_alone, tidy),
        cmocka_unit_test_teardown(takes_token_ids, tidy),
        cmocka_unit_test_teardown(a_tool_call_is_shown_as_a_call, tidy),
        cmocka_unit_test_teardown(a_refusal_is_told_in_both_forms, tidy),
        cmocka_unit_test_teardown(no_coordinator_is_said_soon_with_what_to_do, tidy),
        cmocka_unit_test_teardown(what_is_not_an_answer_ends_it, tidy),
        cmocka_unit_test(a_coordinator_with_keys_is_named_before_the_question_is_sent),
        cmocka_unit_test_teardown(a_coordinator_that_falls_silent_is_lost, tidy),
        cmocka_unit_test_teardown(wrong_use_has_exit_code_2, tidy),
        cmocka_unit_test_teardown(status_is_a_table_or_json, tidy),
        cmocka_unit_test_teardown(a_request_is_picked_up_from_an_index, tidy),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
