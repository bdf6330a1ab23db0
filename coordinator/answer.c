/*
 * answer: from sampled tokens to the pieces of text that a client gets. The parser gives channels;
 * here stop texts are looked for in what a person reads (raw completions and the final channel): text
 * that may be the beginning of one is held until the next token decides.
 */
#include <stdlib.h>
#include <string.h>

#include "coordinator/requests.h"

struct sink {
    struct request *request;
    struct answer *answer;
};

/* `recipient` is the parser's memory. */
static void add_piece(struct answer *answer, Gptoss__Piece__Channel channel, const char *recipient,
                      uint32_t message, const char *bytes, size_t size)
{
    answer->list =
        base_grow(answer->list, &answer->capacity, answer->n_pieces + 1, sizeof *answer->list);
    struct answer_piece *p = &answer->list[answer->n_pieces++];
    gptoss__piece__init(&p->piece);
    p->piece.channel = channel;
    p->piece.message = message;
    p->piece.recipient = (char *)(uintptr_t)recipient;
    p->at = answer->text.size;
    p->size = size;
    text_add(&answer->text, bytes, size);
}

Gptoss__Piece **answer_pieces(struct answer *answer)
{
    answer->pointers = base_grow(answer->pointers, &answer->n_pointers, answer->n_pieces,
                                 sizeof *answer->pointers);
    for (size_t i = 0; i < answer->n_pieces; i++) {
        struct answer_piece *p = &answer->list[i];
        p->piece.text = core_binary(answer->text.bytes + p->at, p->size);
        answer->pointers[i] = &p->piece;
    }
    return answer->pointers;
}

void answer_clear(struct answer *answer)
{
    answer->n_pieces = 0;
    text_clear(&answer->text);
}

void answer_free(struct answer *answer)
{
    text_free(&answer->text);
    free(answer->list);
    free(answer->pointers);
    *answer = (struct answer){0};
}

static void emit_held(struct request *r, struct answer *answer, size_t size)
{
    if (size)
        add_piece(answer, r->held_channel, "", r->held_message, r->held.bytes, size);
    memmove(r->held.bytes, r->held.bytes + size, r->held.size - size);
    r->held.size -= size;
}

/* Where the earliest stop text begins in what is held; SIZE_MAX: nowhere. */
static size_t find_stop(const struct request *r)
{
    size_t best = SIZE_MAX;
    for (uint32_t i = 0; i < r->n_stops; i++) {
        const char *at =
            r->held.size ? memmem(r->held.bytes, r->held.size, r->stops[i].bytes, r->stops[i].size)
                         : NULL;
        if (at && (size_t)(at - r->held.bytes) < best)
            best = (size_t)(at - r->held.bytes);
    }
    return best;
}

/* How many bytes at the end of what is held are the beginning of a stop text, at most. */
static size_t possible_stop(const struct request *r)
{
    size_t most = 0;
    for (uint32_t i = 0; i < r->n_stops; i++) {
        size_t size = r->stops[i].size - 1 < r->held.size ? r->stops[i].size - 1 : r->held.size;
        for (; size > most; size--)
            if (memcmp(r->held.bytes + r->held.size - size, r->stops[i].bytes, size) == 0) {
                most = size;
                break;
            }
    }
    return most;
}

static void take_piece(void *arg, const struct harmony_piece *piece)
{
    struct sink *sink = arg;
    struct request *r = sink->request;
    if (r->stopped)
        return;
    bool watched = r->n_stops && !piece->recipient[0] &&
                   (piece->channel == GPTOSS__PIECE__CHANNEL__RAW ||
                    piece->channel == GPTOSS__PIECE__CHANNEL__FINAL);
    if (r->held.size && (!watched || r->held_message != piece->message))
        emit_held(r, sink->answer, r->held.size);
    if (!watched) {
        add_piece(sink->answer, piece->channel, piece->recipient, piece->message, piece->text,
                  piece->size);
        return;
    }
    r->held_channel = piece->channel;
    r->held_message = piece->message;
    text_add(&r->held, piece->text, piece->size);
    size_t stop = find_stop(r);
    if (stop != SIZE_MAX) {
        emit_held(r, sink->answer, stop);
        r->held.size = 0;
        r->stopped = true;
        return;
    }
    emit_held(r, sink->answer, r->held.size - possible_stop(r));
}

void answer_token(struct request *r, uint32_t id, struct answer *answer)
{
    struct sink sink = {r, answer};
    harmony_parser_add(r->parser, id, take_piece, &sink);
}

void answer_end(struct request *r, struct answer *answer)
{
    struct sink sink = {r, answer};
    if (!r->parser)
        return;
    harmony_parser_end(r->parser, take_piece, &sink);
    if (r->held.size && !r->stopped)
        emit_held(r, answer, r->held.size);
}
