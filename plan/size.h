/*
 * size: bytes as people write them. Private to plan/, which may not include base/.
 */
#ifndef GPTOSS_PLAN_SIZE_H
#define GPTOSS_PLAN_SIZE_H

#include <stdint.h>

enum { SIZE_TEXT = 32 };

/* "11.27 GiB", "340 B", into `text`, which is returned. */
const char *size_text(char text[SIZE_TEXT], uint64_t bytes);

#endif
