/* responses_read: the body of /v1/responses. */
#include "client/gateway/gateway.h"

int responses_read(struct call *call, struct problem *p)
{
    (void)call;
    problem_set(p, 501, "not_implemented", "", "not yet");
    return -1;
}
