/*
 * chat: turns at a terminal. A line is a message; a line that ends with a backslash goes on in the
 * next one. When the model calls a tool, its result is asked for.
 */
#include <stdlib.h>
#include <string.h>

#include "client/client.h"

#define BOLD  "\033[1m"
#define DIM   "\033[2m"
#define PLAIN "\033[0m"

static void prompt(const struct view *v, const char *text)
{
    if (!v->out_terminal)
        return;
    fprintf(v->out, "%s%s%s", v->colour ? BOLD : "", text, v->colour ? PLAIN : "");
    fflush(v->out);
}

static void say(const struct view *v, const char *text)
{
    fprintf(v->talk, "%s%s%s\n", v->colour && v->talk_terminal ? DIM : "", text,
            v->colour && v->talk_terminal ? PLAIN : "");
}

/* A message from `in`, without its last newline. 0, or -1 at the end of the input. */
static int read_message(const struct view *v, FILE *in, const char *mark, struct text *out)
{
    char *line = NULL;
    size_t capacity = 0;
    text_clear(out);
    for (bool more = true; more;) {
        prompt(v, mark);
        ssize_t size = getline(&line, &capacity, in);
        if (size < 0) {
            free(line);
            return -1;
        }
        if (size > 0 && line[size - 1] == '\n')
            size--;
        more = size > 0 && line[size - 1] == '\\';
        text_add(out, line, (size_t)size - more);
        if (more)
            text_add(out, "\n", 1);
        mark = "… ";
    }
    free(line);
    return 0;
}

/* Asks for the result of each call of the answer; 0, or -1 at the end of the input. */
static int read_results(struct conversation *c, const struct view *v, FILE *in,
                        const struct answer *a)
{
    struct text mark = {0}, result = {0};
    int status = 0;
    for (size_t i = 0; i < a->n_parts && status == 0; i++) {
        if (!answer_is_call(&a->parts[i]))
            continue;
        const char *name = answer_call_name(&a->parts[i]);
        text_clear(&mark);
        view_clean(&mark, name, strlen(name));
        text_print(&mark, " returns: ");
        status = read_message(v, in, mark.bytes, &result);
        if (status == 0)
            conversation_add(c, GPTOSS__MESSAGE__ROLE__TOOL, a->parts[i].recipient, result.bytes,
                             result.size);
    }
    text_free(&mark);
    text_free(&result);
    return status;
}

/* One answer to what the conversation holds. 0: go on; else the exit code of a chat that is over.
 * *calls: the model waits for results of tools. A question that got no answer is taken back. */
static int answer_turn(struct session *s, const struct options *o, struct view *v,
                       struct conversation *c, size_t before, struct answer *a, bool *calls)
{
    char err[512];
    struct text id = {0};
    session_new_id(&id);
    answer_start(a, &id, 0);
    text_free(&id);
    *calls = false;
    if (conversation_send(s, o, c, &a->id, err, sizeof err) != 0) {
        fprintf(v->talk, "gptoss-client: %s\n", err);
        conversation_cut(c, before);
        return 0;
    }
    enum session_end end = session_wait(s, o, a, v, err, sizeof err);
    if (end != SESSION_DONE && end != SESSION_INTERRUPTED) {
        fprintf(v->talk, "gptoss-client: %s\n", err);
        return EXIT_COORDINATOR;
    }
    if (end == SESSION_INTERRUPTED && a->state != ANSWER_FINISHED)
        return 130;
    bool failed = a->state == ANSWER_REFUSED || a->reason == GPTOSS__FINISHED__REASON__ERROR;
    if (failed) {
        struct text clean = {0};
        view_clean(&clean, a->error.bytes, a->error.size);
        fprintf(v->talk, "gptoss-client: %s\n", clean.bytes != NULL ? clean.bytes : "failed");
        text_free(&clean);
        conversation_cut(c, before);
        return 0;
    }
    view_statistics(v, a);
    conversation_add_answer(c, a, o->prefix);
    *calls = a->reason == GPTOSS__FINISHED__REASON__TOOL_CALLS;
    return 0;
}

int chat_run(struct session *s, const struct options *o, struct view *v, FILE *in)
{
    struct conversation c = {0};
    struct answer a = {0};
    struct text message = {0};
    int code = 0;
    if (v->talk_terminal && !o->quiet)
        say(v, "Ctrl-C stops an answer, Ctrl-D leaves; /new begins again, \\ continues a line");
    if (o->system != NULL)
        conversation_add(&c, GPTOSS__MESSAGE__ROLE__SYSTEM, "", o->system, strlen(o->system));
    size_t first = c.n;
    while (code == 0 && read_message(v, in, "> ", &message) == 0) {
        if (message.size == 0)
            continue;
        if (strcmp(message.bytes, "/new") == 0) {
            conversation_cut(&c, first);
            continue;
        }
        if (strcmp(message.bytes, "/quit") == 0 || strcmp(message.bytes, "/exit") == 0)
            break;
        size_t before = c.n;
        conversation_add(&c, GPTOSS__MESSAGE__ROLE__USER, "", message.bytes, message.size);
        bool calls = true;
        while (calls && code == 0) {
            code = answer_turn(s, o, v, &c, before, &a, &calls);
            if (calls && code == 0 && read_results(&c, v, in, &a) != 0)
                goto done;
        }
        prompt(v, "\n");
    }
done:
    if (code == 0)
        prompt(v, "\n");
    text_free(&message);
    answer_free(&a);
    conversation_free(&c);
    return code;
}
