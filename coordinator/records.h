/*
 * records: what a journal keeps of requests (records.c).
 */
#ifndef GPTOSS_COORDINATOR_RECORDS_H
#define GPTOSS_COORDINATOR_RECORDS_H

#include "coordinator/core.h"

#define RECORDS_LINGER_US                                                                          \
    10000000 /* every request lingers so long at least, where there is a journal */
#define RECORDS_RETURN_US                                                                          \
    60000000 /* after a restart its client has so long to come back, at least */

enum record_kind { RECORD_ACCEPT = 1, RECORD_TOKENS = 2, RECORD_END = 3 };

/* A request begins: what was asked is remembered until it is accepted. False: it is too large. */
bool records_take(struct coordinator *c, struct request *r, const Gptoss__Generate *m);
/* True: it is written down, and may be told as accepted when that is on disk. */
bool records_accept(struct coordinator *c, struct request *r);
void records_token(struct coordinator *c, struct request *r, const Gptoss__Sample *sample);
void records_end(struct coordinator *c, struct request *r);

#endif
