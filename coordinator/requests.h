/*
 * requests: what requests.c, admit.c, intake.c and answer.c share.
 */
#ifndef GPTOSS_COORDINATOR_REQUESTS_H
#define GPTOSS_COORDINATOR_REQUESTS_H

#include "coordinator/core.h"

/* intake.c: a request out of a Generate, every field checked; state ENCODING, or NULL and a sentence.
 * The caller sets client, serial, slot and times. */
struct request *intake_request(struct coordinator *c, const Gptoss__Generate *m, uint64_t now,
                               char *err, size_t err_size);

/* requests.c */
void requests_set_state(struct coordinator *c, struct request *r, enum request_state state);
uint32_t requests_before(const struct coordinator *c, const struct request *r); /* that wait */

/* admit.c: a request is accepted, or refused. */
void admit_generate(struct coordinator *c, const struct core_peer *peer, const Gptoss__Generate *m,
                    uint64_t now);
void admit_encode(struct coordinator *c, uint64_t now);   /* a bounded amount, oldest first */
void admit_finished(struct coordinator *c, uint64_t now); /* a request ended: how fast that goes */

/* answer.c: the text that becomes certain with a token, after stop texts were looked for. */
struct answer_piece {
    Gptoss__Piece piece;
    size_t at, size; /* in answer.text */
};
struct answer {
    struct text text;          /* of all pieces */
    struct answer_piece *list; /* [n_pieces] */
    size_t n_pieces, capacity;
    Gptoss__Piece **pointers; /* [n_pointers] */
    size_t n_pointers;
};
/* Sets r->stopped when a stop text was met; text from there on is not part of the answer. */
void answer_token(struct request *r, uint32_t id, struct answer *answer);
void answer_end(struct request *r, struct answer *answer);
/* The pieces as protobuf wants them; valid until the answer changes or is freed, and as long as the
 * request's parser lives. */
Gptoss__Piece **answer_pieces(struct answer *answer);
void answer_clear(struct answer *answer); /* keeps the memory */
void answer_free(struct answer *answer);

#endif
