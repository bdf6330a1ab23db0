/* harmony_head: one pass over the words of a header. */
#include "coordinator/harmony_head.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "coordinator/harmony_tools.h"
#include "coordinator/tokenizer.h"

/* One word: between spaces, within one stretch. */
struct word {
    const char *bytes;
    size_t size, first; /* first: its place in the header's text */
    enum head_mark mark;
    bool opens; /* the first word after its mark */
    bool last;  /* of its stretch */
    bool typed; /* a content type follows, and nothing else */
};

void head_clear(struct head *h, bool has_role)
{
    text_clear(&h->text);
    h->stretches[0].mark = HEAD_PLAIN;
    h->stretches[0].first = 0;
    h->n_stretches = 1;
    h->tokens = 0;
    h->has_role = has_role;
}

void head_free(struct head *h)
{
    text_free(&h->text);
}

void head_add_mark(struct head *h, enum head_mark mark)
{
    h->tokens++;
    if (h->n_stretches == sizeof h->stretches / sizeof *h->stretches)
        return;
    h->stretches[h->n_stretches].mark = mark;
    h->stretches[h->n_stretches].first = h->text.size;
    h->n_stretches++;
}

void head_add_text(struct head *h, const void *bytes, size_t size)
{
    h->tokens++;
    text_add(&h->text, bytes, size);
}

bool head_is_full(const struct head *h)
{
    return h->tokens >= HARMONY_HEAD_TOKENS || h->text.size >= HARMONY_HEAD_BYTES;
}

void head_meaning_free(struct head_meaning *m)
{
    text_free(&m->recipient);
    text_free(&m->rest);
}

/* ── words ─────────────────────────────────────────────────────────────────────────────────── */

static bool is_space(char c)
{
    return (unsigned char)c <= 0x20 || c == 0x7f;
}

static bool is_name_char(char c)
{
    return isalnum((unsigned char)c) || (unsigned char)c >= 0x80 || strchr("_-./+", c) != NULL;
}

static size_t name_length(const char *s, size_t size)
{
    size_t n = 0;
    while (n < size && s[n] != '\0' && is_name_char(s[n]))
        n++;
    return n;
}

static bool is_word(const struct word *w, const char *s)
{
    return w->size == strlen(s) && memcmp(w->bytes, s, w->size) == 0;
}

static bool is_one_of(const struct word *w, const char *const *words)
{
    while (*words != NULL && !is_word(w, *words))
        words++;
    return *words != NULL;
}

static bool is_content_type(const struct word *w)
{
    static const char *const types[] = {"json", "code",     "text",   "yaml",
                                        "xml",  "markdown", "python", NULL};
    return is_one_of(w, types);
}

/* assistant, or assistant:NAME */
static bool is_role(struct word w)
{
    static const char *const roles[] = {"assistant", "user", "system", "developer", "tool", NULL};
    const char *colon = memchr(w.bytes, ':', w.size);
    if (colon != NULL)
        w.size = (size_t)(colon - w.bytes);
    return is_one_of(&w, roles);
}

static size_t stretch_end(const struct head *h, size_t i)
{
    return i + 1 < h->n_stretches ? h->stretches[i + 1].first : h->text.size;
}

/* The next run of bytes that are no spaces, at or after byte `at` of stretch i. */
static bool word_span(const struct head *h, size_t i, size_t at, struct word *w)
{
    const char *s = h->text.bytes;
    size_t end = stretch_end(h, i);
    while (at < end && is_space(s[at]))
        at++;
    size_t stop = at;
    while (stop < end && !is_space(s[stop]))
        stop++;
    *w = (struct word){.bytes = s + at, .size = stop - at, .first = at};
    while (stop < end && is_space(s[stop]))
        stop++;
    w->last = stop == end;
    return w->size > 0;
}

/* The word at or after byte `at` of stretch i; false if there is none. */
static bool word_find(const struct head *h, size_t i, size_t at, struct word *w)
{
    if (!word_span(h, i, at, w))
        return false;
    size_t start = h->stretches[i].first, before = w->first;
    while (before > start && is_space(h->text.bytes[before - 1]))
        before--;
    w->mark = h->stretches[i].mark;
    w->opens = before == start;
    struct word after;
    if (w->last)
        w->typed = i + 1 < h->n_stretches && h->stretches[i + 1].mark == HEAD_CONSTRAIN;
    else
        w->typed =
            word_span(h, i, w->first + w->size, &after) && after.last && is_content_type(&after);
    return true;
}

/* ── the grammar ───────────────────────────────────────────────────────────────────────────── */

/* How many bytes at the start of the word are the name of a channel, which may be glued to what
 * follows ("analysis?", "finalThe answer"). */
static size_t channel_match(const struct word *w, enum head_channel *channel)
{
    static const char *const names[] = {"analysis", "commentary", "final"};
    for (size_t i = 0; i < 3; i++) {
        size_t n = strlen(names[i]);
        if (w->size < n || strncasecmp(w->bytes, names[i], n) != 0)
            continue;
        if (w->size > n && (islower((unsigned char)w->bytes[n]) ||
                            isdigit((unsigned char)w->bytes[n]) || strchr("_-", w->bytes[n])))
            continue;
        *channel = HEAD_ANALYSIS + i;
        return n;
    }
    return 0;
}

/* Takes a recipient; false if it cannot be one. Assistant, user and all are not tools. */
static bool recipient_set(struct head_meaning *m, const char *name, size_t size)
{
    static const char *const people[] = {"assistant", "user", "all", "", NULL};
    struct word w = {.bytes = name, .size = size};
    struct text full = {0};
    bool valid = true;
    if (!is_one_of(&w, people)) {
        tokenizer_clean(name, size, &full);
        if (!harmony_has_namespace(full.bytes)) {
            struct text bare = full;
            full = (struct text){0};
            text_print(&full, "functions.%s", bare.bytes);
            text_free(&bare);
        }
        valid = harmony_name_is_valid(full.bytes) && strlen(full.bytes) == full.size;
    }
    if (!valid) {
        text_free(&full);
        return false;
    }
    text_free(&m->recipient);
    m->recipient = full;
    return true;
}

/* The recipient's name ends where JSON or text may begin without a space. */
static size_t recipient_length(const char *s, size_t size)
{
    size_t n = 0;
    while (n < size && s[n] != '\0' && strchr("<{(\"", s[n]) == NULL)
        n++;
    return n;
}

/* A recipient without "to=": functions.NAME, or in a complete header any name on the commentary
 * channel that a content type follows. */
static bool is_bare_recipient(const struct word *w, bool complete, const struct head_meaning *m)
{
    if (name_length(w->bytes, w->size) != w->size)
        return false;
    if (w->size > 10 && strncmp(w->bytes, "functions.", 10) == 0)
        return true;
    return complete && m->rest.size == 0 && w->typed && m->channel == HEAD_COMMENTARY &&
           m->recipient.size == 0;
}

static bool recipient_follows(const struct head *h, size_t at)
{
    while (at < h->text.size && is_space(h->text.bytes[at]))
        at++;
    return strncmp(h->text.bytes + at, "to=", 3) == 0 ||
           strncmp(h->text.bytes + at, "functions.", 10) == 0;
}

/* How many bytes of the word belong to the grammar; 0: it is text. */
static size_t word_read(const struct head *h, const struct word *w, bool complete,
                        struct head_meaning *m)
{
    if (w->opens && w->mark == HEAD_CONSTRAIN)
        return name_length(w->bytes, w->size);
    if (w->opens && w->mark == HEAD_CHANNEL) {
        size_t n = channel_match(w, &m->channel);
        if (n > 0)
            return n;
        if (m->channel == HEAD_NO_CHANNEL)
            m->channel = HEAD_UNKNOWN;
        /* One word alone, or before a recipient or type, is a name that we do not know. */
        bool alone = w->last || w->typed || recipient_follows(h, w->first + w->size);
        return alone && name_length(w->bytes, w->size) == w->size ? w->size : 0;
    }
    if (w->opens && w->mark == HEAD_PLAIN && is_role(*w))
        return w->size;
    if (w->size >= 3 && memcmp(w->bytes, "to=", 3) == 0) {
        size_t n = recipient_length(w->bytes + 3, w->size - 3);
        return recipient_set(m, w->bytes + 3, n) ? 3 + n : 0;
    }
    if (is_content_type(w) && w->last)
        return w->size;
    if (is_bare_recipient(w, complete, m) && recipient_set(m, w->bytes, w->size))
        return w->size;
    return 0;
}

static size_t words_count(const char *s, size_t size)
{
    size_t n = 0;
    for (size_t i = 0; i < size; i++)
        n += !is_space(s[i]) && (i + 1 == size || is_space(s[i + 1]));
    return n;
}

/* Letters, digits, or anything beyond ASCII. */
static bool says_something(const struct text *t)
{
    for (size_t i = 0; i < t->size; i++)
        if (isalnum((unsigned char)t->bytes[i]) || (unsigned char)t->bytes[i] >= 0x80)
            return true;
    return false;
}

void head_read(const struct head *h, bool complete, struct head_meaning *m)
{
    size_t rest_end = 0; /* where the last word of the rest ended */
    bool has_channel = false, whole = false;
    for (size_t i = 0; i < h->n_stretches && !whole; i++) {
        struct word w;
        size_t at = h->stretches[i].first;
        has_channel |= h->stretches[i].mark == HEAD_CHANNEL;
        while (!whole && h->text.size > 0 && word_find(h, i, at, &w)) {
            size_t n = word_read(h, &w, complete, m);
            at = w.first + n;
            if (n > 0)
                continue;
            if (!complete) {
                /* "assistant" is a word like others where nothing else looks like a header. */
                bool head = h->has_role || has_channel || m->recipient.size > 0;
                size_t from = head ? w.first : 0;
                text_add(&m->rest, h->text.bytes + from, h->text.size - from);
                whole = true;
                break;
            }
            size_t from = m->rest.size == 0 ? w.first : rest_end;
            text_add(&m->rest, h->text.bytes + from, w.first + w.size - from);
            rest_end = at = w.first + w.size;
        }
    }
    m->rest_words = words_count(m->rest.bytes, m->rest.size);
    if (has_channel && !says_something(&m->rest))
        text_clear(&m->rest);
}
