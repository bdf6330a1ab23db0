/*
 * gptoss-bench: measurements, each a subcommand.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    interrupted = number;
}

bool bench_interrupted(void)
{
    return interrupted != 0;
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv); /* argv[0] is the subcommand */
    const char *text;
} commands[] = {
    {"pipeline", bench_pipeline, "prompt and generation speed, for any number of stages"},
    {"kernels", bench_kernels, "each operation of a layer beside the device's limits"},
    {"serve", bench_serve, "what the clients of a coordinator under load see"},
    {"simulate", bench_simulate, "what more stages or another load would give, in virtual time"},
    {"perplexity", bench_perplexity, "how well a model foretells a text, exact or fast"},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_help(FILE *out)
{
    fprintf(out, "gptoss-bench measures how fast gpt-oss models run here.\n\n"
                 "usage: gptoss-bench COMMAND [options]\n\ncommands:\n");
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].text);
    fprintf(out, "\nexamples:\n"
                 "  gptoss-bench pipeline -m models/gptoss-tiny-mxfp4.gguf --stages 1,2,4\n"
                 "  gptoss-bench serve -m models/gptoss-tiny-mxfp4.gguf --launch 2 -c 1,8\n"
                 "  gptoss-bench COMMAND --help\n"
                 "\nexit codes: those of the command, which its --help explains\n");
}

int main(int argc, char **argv)
{
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        print_help(stdout);
        return EXIT_DONE;
    }
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        printf("gptoss-bench %s\n", GPTOSS_VERSION);
        return EXIT_DONE;
    }
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name))
            continue;
        /* Children are brought down in good order, and folders removed, on the way out. */
        struct sigaction action = {.sa_handler = on_signal};
        sigaction(SIGINT, &action, NULL);
        sigaction(SIGTERM, &action, NULL);
        signal(SIGPIPE, SIG_IGN);
        /* The ranks would talk between the lines of progress. */
        setenv("GPTOSS_LOG", "warn", 0);
        int code = commands[i].run(argc - 1, argv + 1);
        return interrupted ? 128 + interrupted : code;
    }
    fprintf(stderr, "gptoss-bench: there is no command %s\ngptoss-bench --help lists them\n",
            argv[1]);
    return EXIT_USAGE;
}
