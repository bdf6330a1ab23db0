/*
 * view: an answer as it streams. The final text is plain. On a terminal the chain of thought is dim
 * and stands before it; elsewhere it is left out, or goes to stderr where it was asked for. A call of
 * a tool is shown as → name(arguments). Progress is one line on stderr that is replaced.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/client.h"

#define DIM   "\033[2m"
#define CYAN  "\033[36m"
#define PLAIN "\033[0m"

void view_init(struct view *v, const struct options *o, FILE *out, FILE *talk)
{
    const char *no_color = getenv("NO_COLOR"), *terminal = getenv("TERM");
    *v = (struct view){.out = out, .talk = talk, .line_start = true};
    v->out_terminal = isatty(fileno(out)) == 1;
    v->talk_terminal = isatty(fileno(talk)) == 1;
    v->colour = (no_color == NULL || no_color[0] == '\0') &&
                (terminal == NULL || strcmp(terminal, "dumb") != 0);
    v->silent = o->json;
    v->quiet = o->quiet;
    v->reasoning = (v->out_terminal && !o->quiet) || o->reasoning_text;
}

void view_clean(struct text *out, const char *bytes, size_t size)
{
    size_t from = 0; /* start of the stretch that is copied as it is */
    for (size_t i = 0; i < size;) {
        unsigned char c = (unsigned char)bytes[i];
        size_t length = text_utf8_length(bytes + i, size - i, NULL);
        bool control = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f ||
                       (c == 0xc2 && length == 2 && (unsigned char)bytes[i + 1] < 0xa0);
        if (length > 0 && !control) {
            i += length;
            continue;
        }
        text_add(out, bytes + from, i - from);
        text_add(out, "\xef\xbf\xbd", 3);
        i += length > 0 ? length : 1;
        from = i;
    }
    text_add(out, bytes + from, size - from);
}

static bool is_terminal(const struct view *v)
{
    return v->to == v->out ? v->out_terminal : v->talk_terminal;
}

static void style(struct view *v, const char *sequence)
{
    if (v->colour && is_terminal(v))
        fputs(sequence, v->to);
}

static void put(struct view *v, const char *bytes, size_t size)
{
    if (size == 0)
        return;
    if (is_terminal(v)) {
        struct text clean = {0};
        view_clean(&clean, bytes, size);
        fwrite(clean.bytes, 1, clean.size, v->to);
        text_free(&clean);
    } else
        fwrite(bytes, 1, size, v->to);
    v->line_start = bytes[size - 1] == '\n';
}

void view_status(struct view *v, const char *text)
{
    if (!v->talk_terminal || v->quiet || (text == NULL && !v->status_shown))
        return;
    struct text line = {0};
    if (text != NULL)
        view_clean(&line, text, strlen(text));
    fprintf(v->talk, "\r\033[K%s%s%s", v->colour && text != NULL ? DIM : "",
            text != NULL ? line.bytes : "", v->colour && text != NULL ? PLAIN : "");
    fflush(v->talk);
    text_free(&line);
    v->status_shown = text != NULL;
}

void view_progress(struct view *v, const Gptoss__Progress *p)
{
    char line[160];
    if (v->any)
        return; /* in the middle of a text there is no place for it */
    if (!p->ready)
        snprintf(line, sizeof line, "waiting for the ranks");
    else if (p->queued_before > 0)
        snprintf(line, sizeof line, "waiting: %u request%s in front", p->queued_before,
                 p->queued_before == 1 ? "" : "s");
    else if (p->prompt_tokens > 0)
        snprintf(line, sizeof line, "reading the prompt: %u of %u tokens", p->prompt_tokens_done,
                 p->prompt_tokens);
    else
        snprintf(line, sizeof line, "waiting");
    view_status(v, line);
}

/* Ends the part that is being written, and its line. */
static void close_part(struct view *v)
{
    if (v->kind == VIEW_NOTHING)
        return;
    if (v->kind == VIEW_CALL)
        put(v, ")", 1);
    if (v->kind == VIEW_REASONING)
        style(v, PLAIN);
    if (!v->line_start)
        put(v, "\n", 1);
    fflush(v->to);
    v->kind = VIEW_NOTHING;
}

static void open_part(struct view *v, const struct answer_part *part)
{
    bool was_reasoning = v->kind == VIEW_REASONING;
    enum view_kind kind = answer_is_call(part)                                ? VIEW_CALL
                          : part->channel == GPTOSS__PIECE__CHANNEL__ANALYSIS ? VIEW_REASONING
                                                                              : VIEW_TEXT;
    close_part(v);
    v->to = kind != VIEW_REASONING ? v->out
            : !v->reasoning        ? NULL
            : v->out_terminal      ? v->out
                                   : v->talk;
    if (v->to == NULL)
        return;
    view_status(v, NULL);
    v->kind = kind;
    v->line_start = true;
    if (v->any && was_reasoning != (kind == VIEW_REASONING) && is_terminal(v))
        put(v, "\n", 1);
    if (!v->any && v->echo != NULL && v->out_terminal) {
        style(v, DIM);
        put(v, v->echo->bytes, v->echo->size);
        style(v, PLAIN);
    }
    v->any = true;
    if (kind == VIEW_REASONING)
        style(v, DIM);
    else if (kind == VIEW_CALL) {
        const char *name = answer_call_name(part);
        style(v, CYAN);
        put(v, "→ ", strlen("→ "));
        style(v, PLAIN);
        put(v, name, strlen(name));
        put(v, "(", 1);
    }
}

void view_piece(void *view, const struct answer_part *part, bool first, const char *bytes,
                size_t size)
{
    struct view *v = view;
    if (v->silent)
        return;
    if (first)
        open_part(v, part);
    if (v->to != NULL)
        put(v, bytes, size);
}

void view_end(struct view *v)
{
    view_status(v, NULL);
    if (!v->silent) {
        close_part(v);
        fflush(v->out);
    }
    v->any = false;
    v->to = NULL;
}

void view_statistics(struct view *v, const struct answer *a)
{
    if (!v->talk_terminal || v->quiet || v->silent || a->state != ANSWER_FINISHED)
        return;
    char time[32];
    struct text t = {0};
    double decoding = a->total_seconds - a->first_token_seconds;
    text_print(&t, "%u token%s", a->sampled_tokens, a->sampled_tokens == 1 ? "" : "s");
    if (a->reasoning_tokens > 0)
        text_print(&t, ", %u of them reasoning", a->reasoning_tokens);
    if (a->sampled_tokens > 1 && decoding > 0)
        text_print(&t, " · %.1f tokens/s", (a->sampled_tokens - 1) / decoding);
    if (a->sampled_tokens > 0)
        text_print(&t, " · first after %s", text_seconds(time, a->first_token_seconds));
    text_print(&t, " · prompt %u", a->prompt_tokens);
    if (a->cached_tokens > 0)
        text_print(&t, ", %u from the cache", a->cached_tokens);
    if (a->reason == GPTOSS__FINISHED__REASON__LENGTH)
        text_print(&t, " · cut at the limit of tokens");
    else if (a->reason == GPTOSS__FINISHED__REASON__CANCELLED)
        text_print(&t, " · cancelled");
    fprintf(v->talk, "%s%s%s\n", v->colour ? DIM : "", t.bytes, v->colour ? PLAIN : "");
    fflush(v->talk);
    text_free(&t);
}
