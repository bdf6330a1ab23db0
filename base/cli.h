/* cli.h: what cli.c and cli_help.c share; private to base/. */
#ifndef GPTOSS_BASE_CLI_H
#define GPTOSS_BASE_CLI_H

#include "base/base.h"

/* --help, on `out`, in lines of at most `width` columns; `bold` marks headings. */
void cli_help(const struct cli *cli, FILE *out, size_t width, bool bold);

/* Whether a GPTOSS_ variable means something to this program or to another one of ours. */
bool cli_knows_variable(const struct cli *cli, const char *name);

#endif
