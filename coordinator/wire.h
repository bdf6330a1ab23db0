/*
 * wire: protobuf's encoding by hand, for the messages that come and go thousands of times a second: a
 * token to its client, a step to stage 0, a step's result. Packed are the same bytes that protobuf-c
 * writes (a test fills every field that the schema has and compares), in a third of the time: from the
 * last field to the first, so that the length of a part is known when it is due.
 */
#ifndef GPTOSS_COORDINATOR_WIRE_H
#define GPTOSS_COORDINATOR_WIRE_H

#include "base/base.h"
#include "proto/proto.h"

/* Packs the message into the text, whose memory is used again. False: it is none of the two. */
bool wire_pack(const ProtobufCMessage *message, struct text *out);

/* Where a result is unpacked to; its memory is used again. Zero-initialise. */
struct wire_result {
    Gptoss__RankMessage message;
    Gptoss__StepResult result;
    Gptoss__Sample *samples; /* [capacity] */
    Gptoss__Sample **pointers;
    size_t capacity, n_pointers;
};
/* A RankMessage that is a plain StepResult: samples without lists of logits, no error. NULL: it is
 * another, or malformed: proto_unpack knows. The message is valid until the next call. */
const Gptoss__RankMessage *wire_unpack_result(const void *bytes, size_t size,
                                              struct wire_result *out);
void wire_result_free(struct wire_result *out);

#endif
