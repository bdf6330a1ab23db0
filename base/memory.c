/* memory: small allocations that either succeed or end the process. */
#include <stdlib.h>

#include "base/base.h"

static _Noreturn void end_for_lack_of_memory(size_t n, size_t size)
{
    log_error("out of memory: no room for %zu × %zu bytes", n, size);
    _Exit(EXIT_MEMORY);
}

void *base_alloc(size_t n, size_t size)
{
    void *memory = calloc(n > 0 ? n : 1, size > 0 ? size : 1);
    if (memory == NULL)
        end_for_lack_of_memory(n, size);
    return memory;
}

void *base_grow(void *array, size_t *capacity, size_t need, size_t size)
{
    if (need <= *capacity)
        return array;
    size_t more = *capacity + *capacity / 2;
    if (more < need)
        more = need;
    if (more < 8)
        more = 8;
    size_t bytes;
    if (__builtin_mul_overflow(more, size, &bytes))
        end_for_lack_of_memory(more, size);
    array = realloc(array, bytes);
    if (array == NULL)
        end_for_lack_of_memory(more, size);
    *capacity = more;
    return array;
}
