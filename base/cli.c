/*
 * cli: options out of the environment and argv, into the places that the table names. Names are
 * written out (no abbreviations: they turn ambiguous as options are added), and a near miss is told.
 */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cli.h"

extern char **environ;

#define NAME_MAX_BYTES 48 /* longer words are nobody's near miss */

/* Variables of all programs: exported for one, they are no mistake in the others. */
/* clang-format off */
static const char *const shared_variables[] = {
    "GPTOSS_ALLOW",
    "GPTOSS_API_KEY_FILE",
    "GPTOSS_BENCH_CLIENTS",
    "GPTOSS_BENCH_DEPTH",
    "GPTOSS_BENCH_GEN",
    "GPTOSS_BENCH_NO_WARMUP",
    "GPTOSS_BENCH_OUTPUT",
    "GPTOSS_BENCH_PROMPT",
    "GPTOSS_BENCH_RATE",
    "GPTOSS_BENCH_REPETITIONS",
    "GPTOSS_BENCH_REPLICAS",
    "GPTOSS_BENCH_REQUESTS",
    "GPTOSS_BENCH_SCALING",
    "GPTOSS_BENCH_SEQUENCES",
    "GPTOSS_BENCH_SHARED_PREFIX",
    "GPTOSS_BENCH_STAGES",
    "GPTOSS_BENCH_THROUGH",
    "GPTOSS_BENCH_UBATCH",
    "GPTOSS_BIND",
    "GPTOSS_CLIENT_QUEUE",
    "GPTOSS_CONNECT",
    "GPTOSS_CONNECT_TIMEOUT",
    "GPTOSS_CONTEXT",
    "GPTOSS_COSTS",
    "GPTOSS_COORDINATOR",
    "GPTOSS_DATE",
    "GPTOSS_DEADLINE",
    "GPTOSS_DEVICE",
    "GPTOSS_DRAIN_TIMEOUT",
    "GPTOSS_FAST",
    "GPTOSS_HEAD",
    "GPTOSS_HOST",
    "GPTOSS_HTTP_CONNECTIONS",
    "GPTOSS_INSECURE",
    "GPTOSS_JOURNAL",
    "GPTOSS_KEY",
    "GPTOSS_KEYS",
    "GPTOSS_KV_TOKENS",
    "GPTOSS_KV_TYPE",
    "GPTOSS_LAUNCH",
    "GPTOSS_LAYERS",
    "GPTOSS_LOG",
    "GPTOSS_MAX_CLIENT",
    "GPTOSS_MAX_QUEUE",
    "GPTOSS_MAX_QUEUE_MIB",
    "GPTOSS_MAX_TOKENS",
    "GPTOSS_MIN_P",
    "GPTOSS_MODEL",
    "GPTOSS_MODEL_NAME",
    "GPTOSS_NO_PREFIX_CACHE",
    "GPTOSS_PORT",
    "GPTOSS_REASONING",
    "GPTOSS_RECONNECT",
    "GPTOSS_REQUEST_TIMEOUT",
    "GPTOSS_SEED",
    "GPTOSS_SEQUENCES",
    "GPTOSS_SERVER_KEY",
    "GPTOSS_SILENCE",
    "GPTOSS_STAGES",
    "GPTOSS_STEP_DEADLINE",
    "GPTOSS_STEP_TOKENS",
    "GPTOSS_SYSTEM",
    "GPTOSS_TEMPERATURE",
    "GPTOSS_THREADS",
    "GPTOSS_TIMEOUT",
    "GPTOSS_TOKEN_GAP",
    "GPTOSS_TOOLS",
    "GPTOSS_TOP_K",
    "GPTOSS_TOP_P",
    "GPTOSS_TRANSPORT",
    "GPTOSS_WORKER",
    "GPTOSS_WORKERS_BIND",
};
/* clang-format on */

/* ── near misses ───────────────────────────────────────────────────────────────────────────── */

/* Insertions, deletions, changes and swaps of neighbours that turn a into b; '_' is '-'. */
static unsigned distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    if (n > NAME_MAX_BYTES || m > NAME_MAX_BYTES)
        return 1000;
    unsigned rows[3][NAME_MAX_BYTES + 1]; /* of i, i−1, i−2, in turn */
    for (size_t j = 0; j <= m; j++)
        rows[0][j] = (unsigned)j;
    for (size_t i = 1; i <= n; i++) {
        unsigned *row = rows[i % 3], *above = rows[(i + 2) % 3], *above2 = rows[(i + 1) % 3];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= m; j++) {
            char x = a[i - 1] == '_' ? '-' : a[i - 1], y = b[j - 1] == '_' ? '-' : b[j - 1];
            unsigned best = above[j - 1] + (x != y);
            if (above[j] + 1 < best)
                best = above[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                above2[j - 2] + 1 < best)
                best = above2[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[n % 3][m];
}

/* Keeps in *best the name nearest to `word`, if it is near enough to be meant. */
static void consider(const char *word, const char *name, const char **best, unsigned *best_off)
{
    size_t size = strlen(word);
    unsigned off = distance(word, name);
    if (size >= 3 && strncmp(word, name, size) == 0)
        off = 1; /* an abbreviation */
    if (off <= (size < 4 ? 1 : size / 3) && off < *best_off) {
        *best = name;
        *best_off = off;
    }
}

/* ── errors ────────────────────────────────────────────────────────────────────────────────── */

__attribute__((format(printf, 2, 3))) static int wrong(const struct cli *cli, const char *format,
                                                       ...)
{
    struct text t = {0};
    va_list args;
    char line[512];
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    text_print(&t, "%s: %s\n%s --help lists the options\n", cli->program, line, cli->program);
    fputs(t.bytes, stderr);
    text_free(&t);
    return -1;
}

static int unknown_option(const struct cli *cli, const char *word, const char *name)
{
    const char *best = NULL;
    unsigned off = UINT32_MAX;
    for (size_t i = 0; i < cli->n_options; i++)
        if (cli->options[i].type != CLI_GROUP)
            consider(name, cli->options[i].name, &best, &off);
    consider(name, "help", &best, &off);
    consider(name, "version", &best, &off);
    if (best != NULL)
        return wrong(cli, "there is no option %s; did you mean --%s?", word, best);
    return wrong(cli, "there is no option %s", word);
}

/* ── values ────────────────────────────────────────────────────────────────────────────────── */

static int out_of_range(const struct cli *cli, const struct cli_option *o, const char *given,
                        const char *value)
{
    if (o->max >= 9e15 || isinf(o->max))
        return wrong(cli, "%s: %s is out of range; it must be at least %.15g", given, value,
                     o->min);
    return wrong(cli, "%s: %s is out of range; it must be from %.15g to %.15g", given, value,
                 o->min, o->max);
}

/* `given` is what the user wrote: "--threads" or the variable's name. */
static int set_value(const struct cli *cli, const struct cli_option *o, const char *given,
                     const char *value)
{
    bool bounded = o->min != 0 || o->max != 0;
    char *end;
    errno = 0;
    if (o->type == CLI_STRING)
        *(const char **)o->out = value;
    else if (o->type == CLI_LIST) {
        struct cli_list *list = o->out;
        bool from_environment = given == o->env;
        if (list->from_environment && !from_environment)
            list->n = 0;
        list->from_environment = from_environment;
        list->items = base_grow(list->items, &list->capacity, list->n + 1, sizeof(char *));
        list->items[list->n++] = value;
    } else if (o->type == CLI_INT) {
        long long number = strtoll(value, &end, 10);
        if (end == value || *end != '\0' || errno != 0)
            return wrong(cli, "%s takes a whole number, not \"%s\"", given, value);
        if (bounded && ((double)number < o->min || (double)number > o->max))
            return out_of_range(cli, o, given, value);
        *(int64_t *)o->out = number;
    } else if (o->type == CLI_FLOAT) {
        double number = strtod(value, &end);
        if (end == value || *end != '\0' || !isfinite(number))
            return wrong(cli, "%s takes a number, not \"%s\"", given, value);
        if (bounded && (number < o->min || number > o->max))
            return out_of_range(cli, o, given, value);
        *(double *)o->out = number;
    }
    if (o->given != NULL)
        *o->given = true;
    return 0;
}

static void set_flag(const struct cli_option *o, bool value)
{
    *(bool *)o->out = value;
    if (o->given != NULL)
        *o->given = true;
}

/* ── the environment ───────────────────────────────────────────────────────────────────────── */

static bool is_one_of(const char *word, const char *const *words)
{
    for (; *words != NULL; words++)
        if (strcasecmp(word, *words) == 0)
            return true;
    return false;
}

bool cli_knows_variable(const struct cli *cli, const char *name)
{
    for (size_t i = 0; i < sizeof shared_variables / sizeof *shared_variables; i++)
        if (strcmp(name, shared_variables[i]) == 0)
            return true;
    for (size_t i = 0; i < cli->n_options; i++)
        if (cli->options[i].env != NULL && strcmp(name, cli->options[i].env) == 0)
            return true;
    return strncmp(name, "GPTOSS_TEST_", 12) == 0;
}

static void warn_of_unknown_variables(const struct cli *cli)
{
    static bool warned;
    if (warned)
        return;
    warned = true;
    for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
        if (strncmp(*entry, "GPTOSS_", 7) != 0)
            continue;
        char name[NAME_MAX_BYTES + 1];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(*entry, "="), *entry);
        if (cli_knows_variable(cli, name))
            continue;
        const char *best = NULL;
        unsigned off = UINT32_MAX;
        for (size_t i = 0; i < sizeof shared_variables / sizeof *shared_variables; i++)
            consider(name + 7, shared_variables[i] + 7, &best, &off);
        for (size_t i = 0; i < cli->n_options; i++)
            if (cli->options[i].env != NULL)
                consider(name + 7, cli->options[i].env + 7, &best, &off);
        if (best != NULL)
            log_warn("%s in the environment means nothing to %s; did you mean GPTOSS_%s?", name,
                     cli->program, best);
        else
            log_warn("%s in the environment means nothing to %s", name, cli->program);
    }
}

static int read_environment(const struct cli *cli)
{
    static const char *const yes[] = {"1", "true", "yes", "on", NULL};
    static const char *const no[] = {"0", "false", "no", "off", NULL};
    for (size_t i = 0; i < cli->n_options; i++) {
        const struct cli_option *o = &cli->options[i];
        const char *value = o->env != NULL ? getenv(o->env) : NULL;
        if (value == NULL || value[0] == '\0')
            continue;
        if (o->type != CLI_FLAG) {
            if (set_value(cli, o, o->env, value) != 0)
                return -1;
        } else if (is_one_of(value, yes))
            set_flag(o, true);
        else if (is_one_of(value, no))
            set_flag(o, false);
        else
            return wrong(cli, "%s is 1 or 0, not \"%s\"", o->env, value);
    }
    warn_of_unknown_variables(cli);
    return 0;
}

/* ── argv ──────────────────────────────────────────────────────────────────────────────────── */

static const struct cli_option *find(const struct cli *cli, const char *name, size_t size,
                                     char letter)
{
    for (size_t i = 0; i < cli->n_options; i++) {
        const struct cli_option *o = &cli->options[i];
        if (o->type == CLI_GROUP)
            continue;
        if (name != NULL ? strlen(o->name) == size && memcmp(o->name, name, size) == 0
                         : o->letter != 0 && o->letter == letter)
            return o;
    }
    return NULL;
}

static int print_help(const struct cli *cli)
{
    struct winsize size;
    size_t width = 100;
    bool terminal = isatty(STDOUT_FILENO) == 1;
    const char *no_color = getenv("NO_COLOR");
    if (terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        width = size.ws_col < 60 ? 60 : size.ws_col > 100 ? 100 : size.ws_col;
    cli_help(cli, stdout, width, terminal && (no_color == NULL || no_color[0] == '\0'));
    return 1;
}

static int print_version(const struct cli *cli)
{
    printf("%s %s\n", cli->program, GPTOSS_VERSION);
    return 1;
}

/* A word that begins with "--". Returns as cli_parse does. */
static int long_option(const struct cli *cli, int argc, char **argv, int *i)
{
    const char *word = argv[*i], *name = word + 2;
    size_t size = strcspn(name, "=");
    char shown[NAME_MAX_BYTES + 3];
    snprintf(shown, sizeof shown, "%.*s", (int)(size + 2 > 40 ? 40 : size + 2), word);
    const struct cli_option *o = find(cli, name, size, 0);
    if (o == NULL && strcmp(name, "help") == 0)
        return print_help(cli);
    if (o == NULL && strcmp(name, "version") == 0)
        return print_version(cli);
    if (o == NULL)
        return unknown_option(cli, shown, shown + 2);
    if (o->type == CLI_FLAG) {
        if (name[size] == '=')
            return wrong(cli, "--%s takes no value", o->name);
        set_flag(o, true);
        return 0;
    }
    if (name[size] == '=')
        return set_value(cli, o, shown, name + size + 1);
    if (*i + 1 >= argc)
        return wrong(cli, "--%s needs a value: --%s %s", o->name, o->name, o->value);
    return set_value(cli, o, shown, argv[++*i]);
}

/* A word of short options: -v, -vx, -m FILE, -mFILE. */
static int short_options(const struct cli *cli, int argc, char **argv, int *i)
{
    for (const char *p = argv[*i] + 1; *p != '\0'; p++) {
        const struct cli_option *o = find(cli, NULL, 0, *p);
        char shown[3] = {'-', *p, '\0'};
        if (o == NULL && *p == 'h')
            return print_help(cli);
        if (o == NULL) {
            char word[42];
            snprintf(word, sizeof word, "%.40s", argv[*i]);
            return unknown_option(cli, word, word + 1);
        }
        if (o->type == CLI_FLAG) {
            set_flag(o, true);
            continue;
        }
        if (p[1] != '\0')
            return set_value(cli, o, shown, p + 1);
        if (*i + 1 >= argc)
            return wrong(cli, "%s needs a value: %s %s", shown, shown, o->value);
        return set_value(cli, o, shown, argv[++*i]);
    }
    return 0;
}

int cli_parse(const struct cli *cli, int argc, char **argv, char ***args, int *n_args)
{
    /* Help comes before anything in the environment or in front of it can be wrong. */
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0)
            return print_help(cli);
    if (read_environment(cli) != 0)
        return -1;

    int n = 0;
    char **words = argv + (argc > 0);
    for (int i = 1; i < argc; i++) {
        int status = 0;
        if (strcmp(argv[i], "--") == 0) {
            for (i++; i < argc; i++)
                words[n++] = argv[i];
            break;
        }
        if (argv[i][0] != '-' || argv[i][1] == '\0')
            words[n++] = argv[i];
        else if (argv[i][1] == '-')
            status = long_option(cli, argc, argv, &i);
        else
            status = short_options(cli, argc, argv, &i);
        if (status != 0)
            return status;
    }
    *args = words;
    *n_args = n;
    return 0;
}
