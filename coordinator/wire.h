/*
 * wire: protobuf's encoding by hand, for the two messages that leave thousands of times a second: a
 * token to its client, a step to stage 0. The same bytes as protobuf-c writes (a test fills every field
 * that the schema has and compares), in a third of the time: from the last field to the first, so that
 * the length of a part is known when it is due.
 */
#ifndef GPTOSS_COORDINATOR_WIRE_H
#define GPTOSS_COORDINATOR_WIRE_H

#include "base/base.h"
#include "proto/proto.h"

/* Packs the message into the text, whose memory is used again. False: it is none of the two. */
bool wire_pack(const ProtobufCMessage *message, struct text *out);

#endif
