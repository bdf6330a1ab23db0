/* gptoss-client: one question, a chat, a request that is picked up again; or what the pipeline does: the
 * status, live (top), for Prometheus (metrics), step by step (trace). */
#include <string.h>
#include <unistd.h>

#include "client/client.h"

static void complain(const char *text)
{
    struct text clean = {0};
    view_clean(&clean, text, strlen(text));
    fprintf(stderr, "gptoss-client: %s\n", clean.bytes);
    text_free(&clean);
}

static int exit_code_of(enum session_end end)
{
    switch (end) {
    case SESSION_DONE: return EXIT_DONE;
    case SESSION_INTERRUPTED: return 130;
    default: return EXIT_COORDINATOR;
    }
}

/* What a complete answer means for the exit code; says why it failed. */
static int judge(const struct answer *a)
{
    bool cancelled =
        a->state == ANSWER_FINISHED && a->reason == GPTOSS__FINISHED__REASON__CANCELLED;
    bool failed = a->state == ANSWER_REFUSED || a->reason == GPTOSS__FINISHED__REASON__ERROR;
    if (!failed && !cancelled)
        return EXIT_DONE;
    struct text t = {0};
    text_print(&t, "%s",
               cancelled                    ? "cancelled"
               : a->state == ANSWER_REFUSED ? "refused"
                                            : "failed");
    if (failed)
        text_print(&t, ": %s", a->error.size > 0 ? a->error.bytes : answer_code_name(a->code));
    if (a->retry_ms > 0)
        text_print(&t, " (try again in %.1f s)", (double)a->retry_ms / 1000);
    complain(t.bytes);
    text_free(&t);
    return EXIT_FAILED;
}

static int send_resume(struct session *s, const struct options *o, const struct text *id, char *err,
                       size_t err_size)
{
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__Resume resume = GPTOSS__RESUME__INIT;
    resume.request_id = (ProtobufCBinaryData){id->size, (uint8_t *)id->bytes};
    resume.from_index = o->resume_from;
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_RESUME;
    message.resume = &resume;
    return proto_send(s->socket, &message.base, err, err_size) == 0 ? 0 : -1;
}

/* A question, or a request that is picked up again. */
static int ask(struct session *s, const struct options *o, struct view *v)
{
    char err[1024] = "";
    struct conversation c = {0};
    struct answer a = {0};
    struct text id = {0};
    const char *given = o->task == TASK_RESUME ? o->resume : o->request_id;
    if (given != NULL)
        text_print(&id, "%s", given);
    else
        session_new_id(&id);
    answer_start(&a, &id, o->task == TASK_RESUME ? o->resume_from : 0);

    int sent;
    if (o->task == TASK_RESUME)
        sent = send_resume(s, o, &id, err, sizeof err);
    else {
        bool chat = !o->raw && !o->by_ids;
        if (chat && o->system != NULL)
            conversation_add(&c, GPTOSS__MESSAGE__ROLE__SYSTEM, "", o->system, strlen(o->system));
        if (chat)
            conversation_add(&c, GPTOSS__MESSAGE__ROLE__USER, "", o->prompt.bytes, o->prompt.size);
        v->echo = o->raw && !o->quiet ? &o->prompt : NULL;
        sent = conversation_send(s->socket, o, chat ? &c : NULL, &id, err, sizeof err);
    }
    int code = EXIT_FAILED;
    if (sent == 0) {
        enum session_end end = session_wait(s, o, &a, v, err, sizeof err);
        code = end == SESSION_DONE ? judge(&a) : exit_code_of(end);
        view_statistics(v, &a);
        if (end == SESSION_DONE || (end == SESSION_INTERRUPTED && a.state == ANSWER_FINISHED))
            err[0] = '\0';
    }
    if (err[0] != '\0' && code != 130)
        complain(err);
    if (o->json)
        json_answer(stdout, o, &a, err[0] != '\0' ? err : NULL);
    text_free(&id);
    answer_free(&a);
    conversation_free(&c);
    return code;
}

static int show_status(struct session *s, const struct options *o)
{
    char err[1024] = "";
    Gptoss__ServerMessage *status = NULL;
    enum session_end end = session_status(s, o, &status, err, sizeof err);
    if (end != SESSION_DONE)
        complain(err);
    else if (o->json)
        json_status(stdout, status->status);
    else
        status_print(stdout, o->endpoint, status->status);
    if (status != NULL)
        proto_free(&status->base);
    return exit_code_of(end);
}

static int show_metrics(struct session *s, const struct options *o)
{
    char err[1024] = "";
    Gptoss__ServerMessage *answer = NULL;
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__MetricsRequest request = GPTOSS__METRICS_REQUEST__INIT;
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_METRICS;
    message.metrics = &request;
    enum session_end end =
        session_ask(s, o, &message, GPTOSS__SERVER_MESSAGE__BODY_METRICS, &answer, err, sizeof err);
    if (end != SESSION_DONE)
        complain(err);
    else {
        struct text t = {0};
        view_clean(&t, (const char *)answer->metrics->text.data, answer->metrics->text.len);
        fwrite(t.bytes, 1, t.size, stdout);
        text_free(&t);
        proto_free(&answer->base);
    }
    return exit_code_of(end);
}

/* What looks for a while and says on stdout what it saw. */
static int watch(struct session *s, const struct options *o)
{
    char err[1024] = "";
    int code =
        o->task == TASK_TOP ? top_run(s, o, err, sizeof err) : trace_run(s, o, err, sizeof err);
    if (err[0] != '\0')
        complain(err);
    return code;
}

int main(int argc, char **argv)
{
    char err[1024];
    struct options o = {0};
    struct session s = {0};
    struct view v;
    log_open("client");
    int parsed = commands_known(argc, argv)
                     ? commands_read(&o, argc, argv)
                     : options_read(&o, argc, argv, isatty(STDIN_FILENO) == 1);
    if (parsed != 0) {
        options_free(&o);
        return parsed > 0 ? EXIT_DONE : EXIT_USAGE;
    }
    int code;
    view_init(&v, &o, stdout, stderr);
    if (session_open(&s, &o, err, sizeof err) != 0) {
        complain(err);
        code = EXIT_USAGE; /* a malformed endpoint is all that can be wrong here */
    } else if (o.task == TASK_STATUS)
        code = show_status(&s, &o);
    else if (o.task == TASK_METRICS)
        code = show_metrics(&s, &o);
    else if (o.task == TASK_TOP || o.task == TASK_TRACE)
        code = watch(&s, &o);
    else if (o.task == TASK_CHAT)
        code = chat_run(&s, &o, &v, stdin);
    else
        code = ask(&s, &o, &v);
    session_close(&s);
    options_free(&o);
    if (fflush(stdout) != 0 && code == EXIT_DONE)
        code = EXIT_FAILED;
    return code;
}
