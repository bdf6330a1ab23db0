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
    {"show", tools_show}, {"check", tools_check}, {"plan", tools_plan},
    {"diff", tools_diff}, {"synth", tools_synth}, {"quantize", tools_quantize},
};

static const struct cli cli = {
    .program = "gptoss-gguf",
    .summary = "Looks at model files in the GGUF format, and makes them.",
    .usage = "gptoss-gguf COMMAND [OPTION…] …",
    .examples =
        "  gptoss-gguf show model.gguf                     what the file is\n"
        "  gptoss-gguf check model.gguf                    whether it is sound\n"
        "  gptoss-gguf plan --stages 4 model.gguf          what each rank would need\n"
        "  gptoss-gguf diff a.gguf b.gguf                  what differs\n"
        "  gptoss-gguf quantize --to q8_0 in.gguf out.gguf the same model in other types\n"
        "  gptoss-gguf synth --like 20b big.gguf           random weights, to measure with\n",
    .notes = "Each command has its own help: gptoss-gguf plan --help",
    .exit_codes = 1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_MODEL |
                  1u << EXIT_MEMORY,
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
        fprintf(stderr,
                "gptoss-gguf: there is no command %s; show, check, plan, diff, synth and "
                "quantize are\n",
                args[0]);
    else
        fprintf(stderr,
                "gptoss-gguf: name a command: show, check, plan, diff, synth or quantize\n");
    fprintf(stderr, "gptoss-gguf --help tells more\n");
    return EXIT_USAGE;
}
