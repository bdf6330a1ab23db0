/*
 * harmony_parse: sampled tokens → pieces of text.
 *
 *                <|start|>, text,                    <|message|>, or what can
 *                <|channel|>, <|constrain|>          be no header any more
 *   BETWEEN ───────────────────────────▶ HEADER ───────────────────────▶ CONTENT
 *      ▲                                    │ ▲                            │  │
 *      │         an end, without words      │ │      <|start|>, <|channel|>│  │
 *      ├────────────────────────────────────┘ └────────────────────────────┘  │
 *      └──────────────────────────────────────────────────────────────────────┘
 *                           <|end|>, <|return|>, <|call|>, <|endoftext|>
 *
 * Every token has a meaning in every state:
 *  - A header that ends without <|message|>, or grows beyond all bounds, was none: what follows its
 *    well-formed part is the content of a message.
 *  - A header that is complete but holds other words gives them as a message of their own, without a
 *    recipient, so that they never stand among the arguments of a call.
 *  - A channel that is unknown or missing is final, or commentary where there is a recipient: all
 *    calls are commentary, those on the analysis channel too.
 *  - Special tokens that mean nothing where they stand are skipped.
 */
#include "coordinator/harmony.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/harmony_head.h"
#include "coordinator/harmony_tools.h"

enum state { STATE_RAW, STATE_BETWEEN, STATE_HEADER, STATE_CONTENT };

struct harmony_parser {
    const struct tokenizer *tokenizer;
    int64_t start, end, message, channel, constrain, call;
    enum state state;
    struct head head;

    /* The message whose content is being read. */
    Gptoss__Piece__Channel message_channel;
    const char *recipient;
    uint32_t messages; /* begun so far; the message's own number is one less */
    bool spoke;        /* a piece of it was told */
    struct utf8_stream utf8;
    struct text piece; /* memory of the last piece told */

    bool called;    /* a message with a recipient ended */
    bool last_call; /* the last token was a message's <|call|> */
    uint32_t reasoning_tokens;
    char **recipients; /* every recipient so far, for pieces that outlive their message */
    size_t n_recipients, recipients_capacity;
};

/* Where the pieces of one call go. */
struct sink {
    harmony_sink tell;
    void *arg;
};

struct harmony_parser *harmony_parser_create(const struct tokenizer *t, enum harmony_start start)
{
    struct harmony_parser *p = base_alloc(1, sizeof *p);
    p->tokenizer = t;
    p->start = tokenizer_special(t, "<|start|>");
    p->end = tokenizer_special(t, "<|end|>");
    p->message = tokenizer_special(t, "<|message|>");
    p->channel = tokenizer_special(t, "<|channel|>");
    p->constrain = tokenizer_special(t, "<|constrain|>");
    p->call = tokenizer_special(t, "<|call|>");
    p->recipient = "";
    head_clear(&p->head, false);
    if (start == HARMONY_START_HEADER) {
        p->state = STATE_HEADER;
    } else {
        p->state = start == HARMONY_START_FINAL ? STATE_CONTENT : STATE_RAW;
        p->message_channel = start == HARMONY_START_FINAL ? GPTOSS__PIECE__CHANNEL__FINAL
                                                          : GPTOSS__PIECE__CHANNEL__RAW;
        p->messages = 1;
    }
    return p;
}

static void tell_nobody(void *arg, const struct harmony_piece *piece)
{
    (void)arg;
    (void)piece;
}

void harmony_parser_destroy(struct harmony_parser *p)
{
    if (p == NULL)
        return;
    for (size_t i = 0; i < p->n_recipients; i++)
        free(p->recipients[i]);
    free(p->recipients);
    head_free(&p->head);
    text_free(&p->piece);
    free(p);
}

bool harmony_parser_called(const struct harmony_parser *p)
{
    return p->called || p->last_call;
}

uint32_t harmony_parser_reasoning_tokens(const struct harmony_parser *p)
{
    return p->reasoning_tokens;
}

/* ── messages ──────────────────────────────────────────────────────────────────────────────── */

static void piece_tell(struct harmony_parser *p, struct sink sink)
{
    struct harmony_piece piece = {.channel = p->message_channel,
                                  .recipient = p->recipient,
                                  .text = p->piece.size > 0 ? p->piece.bytes : "",
                                  .size = p->piece.size,
                                  .message = p->messages - 1};
    p->spoke = true;
    sink.tell(sink.arg, &piece);
}

static void content_add(struct harmony_parser *p, const void *bytes, size_t size, struct sink sink)
{
    text_clear(&p->piece);
    if (size > 0)
        utf8_stream_add(&p->utf8, bytes, size, &p->piece);
    if (p->piece.size > 0)
        piece_tell(p, sink);
}

static void content_end(struct harmony_parser *p, struct sink sink)
{
    text_clear(&p->piece);
    utf8_stream_end(&p->utf8, &p->piece);
    if (p->piece.size > 0)
        piece_tell(p, sink);
}

static const char *recipient_keep(struct harmony_parser *p, const struct text *name)
{
    if (name->size == 0)
        return "";
    if (p->n_recipients > 0 && strcmp(p->recipients[p->n_recipients - 1], name->bytes) == 0)
        return p->recipients[p->n_recipients - 1];
    p->recipients = base_grow(p->recipients, &p->recipients_capacity, p->n_recipients + 1,
                              sizeof *p->recipients);
    char *copy = base_alloc(name->size + 1, 1);
    memcpy(copy, name->bytes, name->size);
    p->recipients[p->n_recipients++] = copy;
    return copy;
}

static void message_begin(struct harmony_parser *p, Gptoss__Piece__Channel channel,
                          const struct text *recipient)
{
    p->state = STATE_CONTENT;
    p->message_channel = channel;
    p->recipient = recipient_keep(p, recipient);
    p->messages++;
    p->spoke = false;
    p->utf8 = (struct utf8_stream){0};
}

/* A call without arguments is told as an empty piece: nobody would know of it otherwise. */
static void message_end(struct harmony_parser *p, struct sink sink)
{
    content_end(p, sink);
    if (p->recipient[0] != '\0') {
        if (!p->spoke)
            piece_tell(p, sink);
        p->called = true;
    }
    p->state = STATE_BETWEEN;
}

/* ── headers ───────────────────────────────────────────────────────────────────────────────── */

static Gptoss__Piece__Channel piece_channel(const struct head_meaning *m)
{
    if (m->recipient.size > 0)
        return GPTOSS__PIECE__CHANNEL__COMMENTARY;
    switch (m->channel) {
    case HEAD_ANALYSIS: return GPTOSS__PIECE__CHANNEL__ANALYSIS;
    case HEAD_COMMENTARY: return GPTOSS__PIECE__CHANNEL__COMMENTARY;
    default: return GPTOSS__PIECE__CHANNEL__FINAL;
    }
}

static void header_begin(struct harmony_parser *p, bool has_role)
{
    p->state = STATE_HEADER;
    head_clear(&p->head, has_role);
}

/* From a header to the content of its message. */
static void header_end(struct harmony_parser *p, const struct head_meaning *m)
{
    Gptoss__Piece__Channel channel = piece_channel(m);
    message_begin(p, channel, &m->recipient);
    if (channel == GPTOSS__PIECE__CHANNEL__ANALYSIS)
        p->reasoning_tokens += p->head.tokens;
}

/* A <|message|> came. */
static void header_complete(struct harmony_parser *p, struct sink sink)
{
    struct head_meaning m = {0};
    head_read(&p->head, true, &m);
    if (m.rest.size > 0) {
        message_begin(p, piece_channel(&m), &(struct text){0});
        content_add(p, m.rest.bytes, m.rest.size, sink);
        message_end(p, sink);
    }
    header_end(p, &m);
    head_meaning_free(&m);
}

/* No <|message|> will come. Whether the header held a message after all: words beyond its
 * well-formed part, or, where a <|call|> follows, a recipient. */
static bool header_abandon(struct harmony_parser *p, bool call, struct sink sink)
{
    struct head_meaning m = {0};
    head_read(&p->head, false, &m);
    bool found = m.rest.size > 0 || (call && m.recipient.size > 0);
    if (found) {
        header_end(p, &m);
        content_add(p, m.rest.bytes, m.rest.size, sink);
    }
    head_meaning_free(&m);
    return found;
}

/* After each token of a header: is it still one? */
static void header_check(struct harmony_parser *p, struct sink sink)
{
    struct head_meaning m = {0};
    head_read(&p->head, false, &m);
    if (head_is_full(&p->head) || m.rest_words > HARMONY_HEAD_WORDS) {
        header_end(p, &m);
        content_add(p, m.rest.bytes, m.rest.size, sink);
    }
    head_meaning_free(&m);
}

/* A second <|channel|> corrects the first, unless there is text between them. */
static void header_channel(struct harmony_parser *p, struct sink sink)
{
    struct head_meaning m = {0};
    head_read(&p->head, false, &m);
    bool text = m.rest.size > 0;
    head_meaning_free(&m);
    if (text) {
        header_abandon(p, false, sink);
        message_end(p, sink);
        header_begin(p, false);
    }
    head_add_mark(&p->head, HEAD_CHANNEL);
}

/* ── tokens ────────────────────────────────────────────────────────────────────────────────── */

static void raw_add(struct harmony_parser *p, uint32_t id, struct sink sink)
{
    size_t size;
    const char *bytes = tokenizer_bytes(p->tokenizer, id, &size);
    if (bytes != NULL)
        content_add(p, bytes, size, sink);
}

static void header_add(struct harmony_parser *p, uint32_t id, struct sink sink)
{
    if (id == p->message) {
        p->head.tokens++;
        header_complete(p, sink);
        return;
    }
    size_t size;
    const char *bytes = tokenizer_bytes(p->tokenizer, id, &size);
    if (id == p->channel)
        header_channel(p, sink);
    else if (id == p->constrain)
        head_add_mark(&p->head, HEAD_CONSTRAIN);
    else if (bytes != NULL && !tokenizer_is_special(p->tokenizer, id))
        head_add_text(&p->head, bytes, size);
    else
        p->head.tokens++;
    header_check(p, sink);
}

void harmony_parser_choose(struct harmony_parser *p, const char *tool_choice)
{
    struct text head = {0};
    bool any = strcmp(tool_choice, "required") == 0;
    text_print(&head, "commentary to=functions");
    if (!any)
        text_print(&head, ".%s ", tool_choice + (harmony_has_namespace(tool_choice) ? 10 : 0));
    head_add_mark(&p->head, HEAD_CHANNEL);
    head_add_text(&p->head, head.bytes, head.size);
    text_free(&head);
    if (any)
        return;
    head_add_mark(&p->head, HEAD_CONSTRAIN);
    head_add_text(&p->head, "json", 4);
    header_complete(p, (struct sink){tell_nobody, NULL});
}

static void content_token_add(struct harmony_parser *p, uint32_t id, struct sink sink)
{
    if (id == p->channel) {
        message_end(p, sink);
        header_begin(p, false);
        header_add(p, id, sink);
        return;
    }
    if (p->message_channel == GPTOSS__PIECE__CHANNEL__ANALYSIS)
        p->reasoning_tokens++;
    size_t size;
    const char *bytes = tokenizer_bytes(p->tokenizer, id, &size);
    if (bytes != NULL && !tokenizer_is_special(p->tokenizer, id))
        content_add(p, bytes, size, sink);
}

/* <|end|>, <|return|>, <|call|> and the like. */
static void end_add(struct harmony_parser *p, uint32_t id, struct sink sink)
{
    bool call = id == p->call;
    if (p->state == STATE_HEADER && !header_abandon(p, call, sink))
        p->state = STATE_BETWEEN;
    if (p->state != STATE_CONTENT)
        return;
    if (p->message_channel == GPTOSS__PIECE__CHANNEL__ANALYSIS)
        p->reasoning_tokens++;
    message_end(p, sink);
    p->last_call = call;
}

void harmony_parser_add(struct harmony_parser *p, uint32_t id, harmony_sink tell, void *arg)
{
    struct sink sink = {tell, arg};
    p->last_call = false;
    if (p->state == STATE_RAW) {
        raw_add(p, id, sink);
    } else if (id == p->end || tokenizer_is_end(p->tokenizer, id)) {
        end_add(p, id, sink);
    } else if (id == p->start) {
        if (p->state == STATE_HEADER)
            header_abandon(p, false, sink);
        if (p->state == STATE_CONTENT)
            message_end(p, sink);
        header_begin(p, true);
        p->head.tokens++;
    } else if (p->state == STATE_CONTENT) {
        content_token_add(p, id, sink);
    } else {
        bool skipped = id != p->message && id != p->channel && id != p->constrain &&
                       tokenizer_is_special(p->tokenizer, id);
        if (p->state == STATE_BETWEEN && skipped)
            return;
        if (p->state == STATE_BETWEEN)
            header_begin(p, false);
        header_add(p, id, sink);
    }
}

void harmony_parser_end(struct harmony_parser *p, harmony_sink tell, void *arg)
{
    struct sink sink = {tell, arg};
    if (p->state == STATE_HEADER)
        header_abandon(p, false, sink);
    if (p->state == STATE_CONTENT || p->state == STATE_RAW)
        content_end(p, sink);
    if (p->state != STATE_RAW)
        p->state = STATE_BETWEEN;
}
