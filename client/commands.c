/* commands: the command line of gptoss-client top, metrics and trace. */
#include <string.h>

#include "client/client.h"

#define INTERVAL_MIN 0.1

struct command {
    const char *name;
    enum client_task task;
    const char *summary, *usage, *examples, *notes;
};

static const struct command commands[] = {
    {"top", TASK_TOP, "shows live what each stage of the pipeline does",
     "gptoss-client top [OPTION]...\n",
     "  gptoss-client top\n"
     "  gptoss-client top --interval 0.5 --window 2\n"
     "  gptoss-client top --once                         one frame, for a pipe or a script\n",
     "q or Ctrl-C ends it. Where stdout is no terminal, frames are printed one after another, "
     "without "
     "colour, of COLUMNS characters (100). NO_COLOR is respected.\n"
     "\n"
     "busy: share of the last seconds that the stage's device worked. bubble: what is missing to "
     "100 % "
     "over all stages. hop: mean time from the end of a step on one stage until its inputs are on "
     "the "
     "next. first token: from a request's acceptance.\n"},
    {"metrics", TASK_METRICS, "prints the coordinator's counters in Prometheus' text format",
     "gptoss-client metrics [OPTION]...\n",
     "  gptoss-client metrics | grep gptoss_kv\n"
     "  gptoss-client metrics > /var/lib/node_exporter/gptoss.prom.tmp\n",
     "Counters and histograms count from the coordinator's start, those of a rank from the "
     "rank's.\n"},
    {"trace", TASK_TRACE, "writes down when each step was where, for a trace viewer",
     "gptoss-client trace [OPTION]...\n",
     "  gptoss-client trace --seconds 5 -o trace.json    open it at ui.perfetto.dev\n"
     "  gptoss-client trace --past --seconds 0           what the coordinator still remembers\n",
     "A process is a stage, with its device's work and waits, its outputs on their way, and its "
     "queue; "
     "arrows follow a step from stage to stage; the coordinator has each step from its issue to "
     "its "
     "result, and the KV blocks in use. Ctrl-C ends the trace early and keeps what there is.\n"},
};

/* The command, and at *where its word: what every command has may stand before it. */
static const struct command *find(int argc, char **argv, int *where)
{
    int i = 1;
    for (; i < argc; i++) {
        const char *word = argv[i];
        if (strcmp(word, "--connect") == 0 || strcmp(word, "-c") == 0 ||
            strcmp(word, "--timeout") == 0)
            i++; /* its value */
        else if (strncmp(word, "--connect=", 10) != 0 && strncmp(word, "--timeout=", 10) != 0)
            break;
    }
    *where = i;
    for (size_t k = 0; i < argc && k < sizeof commands / sizeof *commands; k++)
        if (strcmp(argv[i], commands[k].name) == 0)
            return &commands[k];
    return NULL;
}

bool commands_known(int argc, char **argv)
{
    int where;
    return find(argc, argv, &where) != NULL;
}

int commands_read(struct options *o, int argc, char **argv)
{
    int where;
    const struct command *command = find(argc, argv, &where);
    memmove(argv + where, argv + where + 1,
            (size_t)(argc - where) * sizeof *argv); /* with the NULL */
    argc--;
    o->task = command->task;
    o->endpoint = CLIENT_ENDPOINT;
    o->timeout_seconds = 5;
    o->silence_seconds = 15;
    o->interval_seconds = 1;
    o->window_seconds = 5;
    o->trace_seconds = 5;
    o->output = "trace.json";
    /* What all have comes first; the rest is of one command. */
    struct cli_option table[8] = {
        {.type = CLI_GROUP, .text = "the coordinator"},
        {CLI_STRING, "connect", 'c', "ENDPOINT", "where it listens: tcp://HOST:PORT or ipc://PATH",
         CLIENT_ENDPOINT, "GPTOSS_CONNECT", &o->endpoint, 0, 0, NULL},
        {CLI_FLOAT, "timeout", 0, "SECONDS", "give up if it does not answer for so long", "5",
         "GPTOSS_TIMEOUT", &o->timeout_seconds, 0.1, 86400, NULL},
    };
    static const struct cli_option none = {.type = CLI_GROUP};
    const struct cli_option of_top[] = {
        {.type = CLI_GROUP, .text = "what is shown"},
        {CLI_FLOAT, "interval", 'i', "SECONDS", "draw it anew after so long", "1", NULL,
         &o->interval_seconds, INTERVAL_MIN, 3600, NULL},
        {CLI_FLOAT, "window", 'w', "SECONDS", "what shares and rates are of", "5", NULL,
         &o->window_seconds, 1, 15, NULL},
        {CLI_FLAG, "once", '1', NULL, "one frame", NULL, NULL, &o->once, 0, 0, NULL},
        {CLI_FLAG, "ascii", 0, NULL, "bars and curves of plain characters", NULL, NULL, &o->ascii,
         0, 0, NULL},
    };
    const struct cli_option of_trace[] = {
        {.type = CLI_GROUP, .text = "what is written"},
        {CLI_FLOAT, "seconds", 's', "SECONDS", "from now on, at most 600", "5", NULL,
         &o->trace_seconds, 0, 600, NULL},
        {CLI_FLAG, "past", 0, NULL, "and before that the steps that the coordinator remembers",
         NULL, NULL, &o->past, 0, 0, NULL},
        {CLI_STRING, "output", 'o', "FILE", "where to; - is stdout", "trace.json", NULL, &o->output,
         0, 0, NULL},
    };
    const struct cli_option *more = &none;
    size_t n_more = 0;
    if (command->task == TASK_TOP) {
        more = of_top;
        n_more = sizeof of_top / sizeof *of_top;
    } else if (command->task == TASK_TRACE) {
        more = of_trace;
        n_more = sizeof of_trace / sizeof *of_trace;
    }
    memcpy(table + 3, more, n_more * sizeof *more);
    char program[32];
    snprintf(program, sizeof program, "gptoss-client %s", command->name);
    const struct cli cli = {
        .program = program,
        .summary = command->summary,
        .usage = command->usage,
        .examples = command->examples,
        .notes = command->notes,
        .options = table,
        .n_options = 3 + n_more,
        .exit_codes =
            1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_COORDINATOR,
    };
    char **words;
    int n_words;
    int parsed = cli_parse(&cli, argc, argv, &words, &n_words);
    if (parsed != 0)
        return parsed;
    if (n_words > 0) {
        fprintf(stderr,
                "%s: takes no word, but got \"%.40s\"\n"
                "%s --help lists the options; to ask the model: gptoss-client -- %s %.40s\n",
                program, words[0], program, command->name, words[0]);
        return -1;
    }
    return 0;
}
