/*
 * harmony_tools: function definitions in OpenAI's JSON form → the "# Tools" section of harmony's
 * developer message, a TypeScript-like text. Byte for byte what OpenAI's library writes, its oddities
 * included (a description of several lines is marked as a comment on its first line only).
 */
#ifndef GPTOSS_COORDINATOR_HARMONY_TOOLS_H
#define GPTOSS_COORDINATOR_HARMONY_TOOLS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/base.h"

#define HARMONY_TOOLS_JSON_MAX ((size_t)256 << 10) /* bytes of JSON */
#define HARMONY_TOOLS_TEXT_MAX ((size_t)4 << 20)   /* bytes of text that come of it */
#define HARMONY_TOOLS_DEPTH    64                  /* schemas within schemas */

/* Appends the section to *out, nothing for an empty list; *count is the number of tools.
 * -1 and a sentence if the text is not JSON, or not a list of functions, or beyond the bounds above;
 * *out is undefined then. */
int harmony_tools_render(const void *json, size_t size, struct text *out, size_t *count, char *err,
                         size_t err_size);

/* Whether a name can stand in a message's header: 1 to 128 bytes of well-formed UTF-8 without
 * spaces and control characters. */
bool harmony_name_is_valid(const char *name);
bool harmony_has_namespace(const char *name); /* functions.NAME */

#endif
