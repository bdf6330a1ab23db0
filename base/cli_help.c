/*
 * cli_help: --help out of the table of options: what it is, how it is used, examples, the options
 * in their groups with default and variable, notes, exit codes.
 */
#include <string.h>

#include "base/cli.h"

#define HARD     '\1'
#define LEFT_MAX 32 /* an option's left side longer than this has its text on the next line */

static const char *const exit_texts[] = {
    [EXIT_DONE] = "done",
    [EXIT_FAILED] = "failed; the last line on stderr says why",
    [EXIT_USAGE] = "wrong use of options or arguments",
    [EXIT_MODEL] = "the model file was refused",
    [EXIT_MEMORY] = "it does not fit into memory",
    [EXIT_COORDINATOR] = "the coordinator cannot be reached, or was lost",
    [EXIT_DEVICE] = "a device or the transport failed",
};

static size_t columns_of(const char *text, size_t size)
{
    size_t n = 0;
    for (size_t i = 0; i < size; i++)
        n += ((unsigned char)text[i] & 0xc0) != 0x80;
    return n;
}

/* Words of `text`, wrapped; the cursor stands at column `indent` and ends after a newline. A HARD
 * space is never broken. */
static void print_wrapped(FILE *out, const char *text, size_t indent, size_t width)
{
    size_t column = indent;
    for (bool first = true; *text != '\0'; first = false) {
        size_t size = strcspn(text, " ");
        size_t columns = columns_of(text, size);
        if (!first && column + 1 + columns > width) {
            fprintf(out, "\n%*s", (int)indent, "");
            column = indent;
        } else if (!first) {
            fputc(' ', out);
            column++;
        }
        for (size_t i = 0; i < size; i++)
            fputc(text[i] == HARD ? ' ' : text[i], out);
        column += columns;
        text += size;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

static void heading(FILE *out, const char *text, bool bold)
{
    fprintf(out, bold ? "\n\033[1m%s\033[0m\n" : "\n%s\n", text);
}

static void option_left(struct text *t, const struct cli_option *o)
{
    if (o->letter != 0)
        text_print(t, "-%c, ", o->letter);
    else
        text_print(t, "    ");
    text_print(t, "--%s", o->name);
    if (o->value != NULL)
        text_print(t, " %s", o->value);
}

static void option_line(FILE *out, const struct cli_option *o, size_t left, size_t width)
{
    struct text t = {0};
    option_left(&t, o);
    size_t columns = columns_of(t.bytes, t.size);
    fprintf(out, "  %s", t.bytes);
    size_t at = 2 + left + 2;
    if (columns > left)
        fprintf(out, "\n%*s", (int)at, "");
    else
        fprintf(out, "%*s", (int)(left - columns + 2), "");

    text_clear(&t);
    text_print(&t, "%s", o->text);
    size_t words = t.size + 1;
    if (o->fallback != NULL && o->env != NULL)
        text_print(&t, " (default %s; %s)", o->fallback, o->env);
    else if (o->fallback != NULL)
        text_print(&t, " (default %s)", o->fallback);
    else if (o->env != NULL)
        text_print(&t, " (%s)", o->env);
    for (size_t i = words; i < t.size; i++)
        if (t.bytes[i] == ' ')
            t.bytes[i] = HARD;
    print_wrapped(out, t.bytes, at, width);
    text_free(&t);
}

static size_t left_width(const struct cli *cli)
{
    size_t most = strlen("GPTOSS_LOG=LEVEL");
    struct text t = {0};
    for (size_t i = 0; i < cli->n_options; i++) {
        if (cli->options[i].type == CLI_GROUP)
            continue;
        text_clear(&t);
        option_left(&t, &cli->options[i]);
        size_t columns = columns_of(t.bytes, t.size);
        if (columns > most && columns <= LEFT_MAX)
            most = columns;
    }
    text_free(&t);
    return most;
}

/* Paragraphs, given as lines; a line that begins with a space is left as it is. */
static void print_notes(FILE *out, const char *notes, size_t width)
{
    struct text line = {0};
    fputc('\n', out);
    while (*notes != '\0') {
        size_t size = strcspn(notes, "\n");
        text_clear(&line);
        text_add(&line, notes, size);
        if (size == 0 || notes[0] == ' ')
            fprintf(out, "%s\n", line.bytes);
        else
            print_wrapped(out, line.bytes, 0, width);
        notes += size + (notes[size] == '\n');
    }
    text_free(&line);
}

void cli_help(const struct cli *cli, FILE *out, size_t width, bool bold)
{
    static const struct cli_option last[] = {
        {.name = "help", .letter = 'h', .text = "print this"},
        {.name = "version", .text = "print the version"},
    };
    fprintf(out, bold ? "\033[1m%s\033[0m: " : "%s: ", cli->program);
    print_wrapped(out, cli->summary, strlen(cli->program) + 2, width);
    if (cli->usage != NULL)
        for (const char *p = cli->usage, *lead = "usage: "; *p != '\0'; lead = "       ") {
            size_t size = strcspn(p, "\n");
            fprintf(out, "%s%s%.*s\n",
                    lead == cli->usage ? ""
                    : p == cli->usage  ? "\n"
                                       : "",
                    lead, (int)size, p);
            p += size + (p[size] == '\n');
        }
    if (cli->examples != NULL) {
        size_t size = strlen(cli->examples);
        heading(out, "examples:", bold);
        fprintf(out, "%s%s", cli->examples,
                size > 0 && cli->examples[size - 1] != '\n' ? "\n" : "");
    }

    size_t left = left_width(cli);
    for (size_t i = 0; i < cli->n_options; i++) {
        const struct cli_option *o = &cli->options[i];
        if (i == 0 && o->type != CLI_GROUP)
            heading(out, "options:", bold);
        if (o->type == CLI_GROUP) {
            struct text t = {0};
            text_print(&t, "%s:", o->text);
            heading(out, t.bytes, bold);
            text_free(&t);
        } else
            option_line(out, o, left, width);
    }
    heading(out, "about:", bold);
    for (size_t i = 0; i < sizeof last / sizeof *last; i++)
        option_line(out, &last[i], left, width);
    fprintf(out, "  %-*s  ", (int)left, "GPTOSS_LOG=LEVEL");
    print_wrapped(out, "what is logged on stderr: error, warn, info or debug (default info)",
                  left + 4, width);

    if (cli->notes != NULL)
        print_notes(out, cli->notes, width);
    if (cli->exit_codes != 0)
        heading(out, "exit codes:", bold);
    for (unsigned c = 0; c < sizeof exit_texts / sizeof *exit_texts; c++)
        if (cli->exit_codes >> c & 1)
            fprintf(out, "  %u  %s\n", c, exit_texts[c]);
}
