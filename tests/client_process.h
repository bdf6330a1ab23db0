/*
 * client_process.h: gptoss-client as a process, against a coordinator that is a thread of the test and
 * says what the test wants it to say. Included by one file of each test program.
 */
#ifndef GPTOSS_TESTS_CLIENT_PROCESS_H
#define GPTOSS_TESTS_CLIENT_PROCESS_H

#include "tests/test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include "client/client.h"

/* ── the coordinator ───────────────────────────────────────────────────────────────────────── */

typedef void (*reply_function)(void);

static char folder[] = "/tmp/gptoss-client-XXXXXX", endpoint[128];
static pthread_t thread;
static atomic_bool stop;
static reply_function reply; /* called for each message */
static void *router;
static struct proto_frame frame;     /* the last message, with its sender */
static Gptoss__ClientMessage *asked; /* the same; the test looks at it once the thread has ended */
static struct text log_of_cancels;   /* ids of cancelled requests */
static atomic_int n_generate, n_cancel;

static void *serve(void *arg)
{
    char err[256];
    while (!stop) {
        zmq_pollitem_t item = {.socket = router, .events = ZMQ_POLLIN};
        zmq_poll(&item, 1, 10);
        while (proto_receive(router, &frame, err, sizeof err) == 1) {
            if (asked != NULL)
                proto_free(&asked->base);
            asked = (Gptoss__ClientMessage *)proto_unpack(&gptoss__client_message__descriptor,
                                                          frame.bytes, frame.size, err, sizeof err);
            if (asked == NULL)
                continue;
            reply();
            n_generate += asked->body_case == GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
            n_cancel += asked->body_case == GPTOSS__CLIENT_MESSAGE__BODY_CANCEL;
        }
    }
    return arg;
}

static void *context;
static bool running;

static void start(reply_function how)
{
    char err[256];
    reply = how;
    stop = false;
    n_generate = 0;
    n_cancel = 0;
    text_clear(&log_of_cancels);
    context = zmq_ctx_new();
    if (proto_bind(&router, context, endpoint, err, sizeof err) != 0)
        fail_msg("%s", err);
    assert_int_equal(pthread_create(&thread, NULL, serve, NULL), 0);
    running = true;
}

static void halt(void)
{
    running = false;
    stop = true;
    pthread_join(thread, NULL);
    proto_close(router);
    zmq_ctx_term(context);
    proto_frame_free(&frame);
}

static void forget(void)
{
    if (asked != NULL)
        proto_free(&asked->base);
    asked = NULL;
}

static void tell(Gptoss__ServerMessage__BodyCase which, void *body)
{
    char err[256];
    size_t size;
    Gptoss__ServerMessage m = GPTOSS__SERVER_MESSAGE__INIT;
    m.body_case = which;
    m.accepted = body; /* a union */
    void *bytes = proto_pack(&m.base, &size);
    proto_send_bytes(router, frame.peer, frame.peer_size, bytes, size, err, sizeof err);
    free(bytes);
}

static ProtobufCBinaryData request_id(void)
{
    switch (asked->body_case) {
    case GPTOSS__CLIENT_MESSAGE__BODY_GENERATE: return asked->generate->request_id;
    case GPTOSS__CLIENT_MESSAGE__BODY_CANCEL: return asked->cancel->request_id;
    case GPTOSS__CLIENT_MESSAGE__BODY_RESUME: return asked->resume->request_id;
    default: return (ProtobufCBinaryData){0};
    }
}

static void accept_it(void)
{
    Gptoss__Accepted accepted = GPTOSS__ACCEPTED__INIT;
    accepted.request_id = request_id();
    accepted.seed = 77;
    tell(GPTOSS__SERVER_MESSAGE__BODY_ACCEPTED, &accepted);
}

static void token(uint32_t index, Gptoss__Piece__Channel channel, uint32_t message,
                  const char *recipient, const char *text)
{
    Gptoss__Piece piece = GPTOSS__PIECE__INIT, *pieces[] = {&piece};
    piece.channel = channel;
    piece.message = message;
    piece.recipient = (char *)recipient;
    piece.text = (ProtobufCBinaryData){strlen(text), (uint8_t *)text};
    Gptoss__Logit best[2] = {GPTOSS__LOGIT__INIT, GPTOSS__LOGIT__INIT}, *top[] = {best, best + 1};
    best[0].id = 100 + index;
    best[0].logit = 17.1234567f;
    best[1].id = 3;
    best[1].logit = -0.25f;
    Gptoss__Token t = GPTOSS__TOKEN__INIT, *tokens[] = {&t};
    t.index = index;
    t.id = 100 + index;
    t.pieces = pieces;
    t.n_pieces = 1;
    t.top = top;
    t.n_top =
        asked->body_case == GPTOSS__CLIENT_MESSAGE__BODY_GENERATE ? asked->generate->top_logits : 0;
    t.n_top = t.n_top > 2 ? 2 : t.n_top;
    Gptoss__Output output = GPTOSS__OUTPUT__INIT;
    output.request_id = request_id();
    output.tokens = tokens;
    output.n_tokens = 1;
    tell(GPTOSS__SERVER_MESSAGE__BODY_OUTPUT, &output);
}

static void finish(Gptoss__Finished__Reason reason, uint32_t tokens)
{
    Gptoss__Finished f = GPTOSS__FINISHED__INIT;
    f.request_id = request_id();
    f.reason = reason;
    f.tokens = tokens;
    f.prompt_tokens = 9;
    f.cached_tokens = 4;
    f.first_token_seconds = 0.25;
    f.total_seconds = 1.25;
    tell(GPTOSS__SERVER_MESSAGE__BODY_FINISHED, &f);
}

static void reply_raw(void)
{
    accept_it();
    token(0, GPTOSS__PIECE__CHANNEL__RAW, 0, "", " the");
    token(1, GPTOSS__PIECE__CHANNEL__RAW, 0, "", " heaven €");
    finish(GPTOSS__FINISHED__REASON__LENGTH, 2);
}

static void reply_chat(void)
{
    accept_it();
    token(0, GPTOSS__PIECE__CHANNEL__ANALYSIS, 0, "", "Think\033[31m.");
    token(1, GPTOSS__PIECE__CHANNEL__FINAL, 1, "", "Ath");
    token(2, GPTOSS__PIECE__CHANNEL__FINAL, 1, "", "ens.");
    finish(GPTOSS__FINISHED__REASON__STOP, 3);
}

static void reply_call(void)
{
    accept_it();
    if (asked->generate->chat->n_messages > 1) { /* with the result */
        token(0, GPTOSS__PIECE__CHANNEL__FINAL, 0, "", "Sunny.");
        finish(GPTOSS__FINISHED__REASON__STOP, 1);
        return;
    }
    token(0, GPTOSS__PIECE__CHANNEL__ANALYSIS, 0, "", "Call it.");
    token(1, GPTOSS__PIECE__CHANNEL__COMMENTARY, 1, "functions.get_weather", "{\"city\":");
    token(2, GPTOSS__PIECE__CHANNEL__COMMENTARY, 1, "functions.get_weather", "\"Paris\"}");
    finish(GPTOSS__FINISHED__REASON__TOOL_CALLS, 3);
}

/* Goes on for ever, until it is cancelled. */
static void reply_until_cancelled(void)
{
    if (asked->body_case == GPTOSS__CLIENT_MESSAGE__BODY_CANCEL) {
        text_add(&log_of_cancels, asked->cancel->request_id.data, asked->cancel->request_id.len);
        finish(GPTOSS__FINISHED__REASON__CANCELLED, 1);
        return;
    }
    accept_it();
    token(0, GPTOSS__PIECE__CHANNEL__FINAL, 0, "", "Once upon");
}

/* ── the client ────────────────────────────────────────────────────────────────────────────── */

static const char *const program = GPTOSS_BINARY_DIR "/bin/gptoss-client";
static char out[65536]; /* its stdout, or all that its terminal shows */

static void become_the_client(const char *const *words)
{
    const char *argv[40] = {"gptoss-client", "--connect", endpoint};
    int n = 3;
    while (*words != NULL && n < 39)
        argv[n++] = *words++;
    unsetenv("NO_COLOR");
    setenv("TERM", "xterm", 1);
    execv(program, (char **)argv);
    _exit(127);
}

#define assert_has(text, part)                                                                     \
    do {                                                                                           \
        if (strstr(text, part) == NULL)                                                            \
            fail_msg("lacks \"%s\":\n%s", part, text);                                             \
    } while (0)

/* After a test that failed in the middle. */
static int tidy(void **state)
{
    (void)state;
    if (running)
        halt();
    forget();
    return 0;
}

static int make_folder(void **state)
{
    (void)state;
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(endpoint, sizeof endpoint, "ipc://%s/socket", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "%s/socket", folder);
    unlink(path);
    text_free(&log_of_cancels);
    return rmdir(folder);
}

#endif
