/* responses_write: answers of /v1/responses. */
#include "client/gateway/gateway.h"

const struct api api_responses = {.id_prefix = "resp_", .read = responses_read};
