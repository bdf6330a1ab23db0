#include <string.h>

#include "coordinator/coordinator.h"

static const char *const known[] = {"nccl", "ipc-host", "ipc", "mpi"}; /* best first */

static bool names(const char *list, const char *name)
{
    size_t size = strlen(name);
    for (; *list; list += *list == ',') {
        size_t n = strcspn(list, ",");
        if (n == size && memcmp(list, name, n) == 0)
            return true;
        list += n;
    }
    return false;
}

bool coordinator_transport_known(const char *wanted)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(wanted, known[i]) == 0)
            return true;
    return strcmp(wanted, "auto") == 0;
}

/* What is possible; and what nobody should get who did not ask for it. */
static bool joins(const char *name, bool one_host, bool one_device, bool asked)
{
    if (strcmp(name, "nccl") == 0)
        return !one_device || asked; /* NCCL itself refuses, in words */
    if (strcmp(name, "ipc-host") == 0)
        return one_host && (one_device || asked);
    return strcmp(name, "ipc") != 0 || one_host;
}

const char *coordinator_transport(const struct coordinator_end *from,
                                  const struct coordinator_end *to, const char *wanted)
{
    bool one_host = strcmp(from->host, to->host) == 0;
    bool one_device =
        one_host && from->device_uuid[0] && strcmp(from->device_uuid, to->device_uuid) == 0;
    bool asked = wanted && strcmp(wanted, "auto") != 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if ((!asked || strcmp(wanted, known[i]) == 0) && names(from->transports, known[i]) &&
            names(to->transports, known[i]) && joins(known[i], one_host, one_device, asked))
            return known[i];
    return NULL;
}

uint32_t coordinator_edge(uint32_t n, uint32_t i)
{
    uint32_t even = (n + 1) / 2;
    return i < even ? 2 * i : 2 * (i - even) + 1;
}
