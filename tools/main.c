/*
 * gptoss-gguf: looks at model files and makes them.
 */
#include <stdio.h>
#include <string.h>

#include "base/base.h"
#include "tools/tools.h"

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"show", tools_show},
    {"synth", tools_synth},
};

static const struct cli cli = {
    .program = "gptoss-gguf",
    .summary = "Looks at model files in the GGUF format, and makes them.",
    .usage = "gptoss-gguf COMMAND [OPTION…] …",
    .examples = "  gptoss-gguf show model.gguf          what the file is\n"
                "  gptoss-gguf show --json model.gguf   the same for programs\n"
                "  gptoss-gguf synth --like 20b big.gguf\n"
                "                                       a file of random weights, to measure with",
    .notes =
        "Commands: show (header, keys, tensors, layers, bytes) and synth (random weights of any "
        "sizes). Each has its own help: gptoss-gguf show --help",
    .exit_codes = 1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_MODEL,
};

int main(int argc, char **argv)
{
    if (argc >= 2)
        for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
            if (!strcmp(argv[1], commands[i].name))
                return commands[i].run(argc - 1, argv + 1);

    char **args;
    int n_args;
    int status = cli_parse(&cli, argc, argv, &args, &n_args);
    if (status)
        return status > 0 ? EXIT_DONE : EXIT_USAGE;
    if (n_args)
        fprintf(stderr, "gptoss-gguf: there is no command %s; show and synth are\n", args[0]);
    else
        fprintf(stderr, "gptoss-gguf: name a command: show or synth\n");
    fprintf(stderr, "gptoss-gguf --help tells more\n");
    return EXIT_USAGE;
}
