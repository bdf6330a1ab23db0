#include "bench/fields.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNKNOWN "null"

static char *next(struct fields *fields, const char *name, bool is_number)
{
    fields->list[fields->n].name = name;
    fields->list[fields->n].is_number = is_number;
    fields->list[fields->n].array = NULL;
    return fields->list[fields->n++].text;
}

enum { SIZE = sizeof((struct fields *)0)->list[0].text };

void fields_text(struct fields *fields, const char *name, const char *text)
{
    snprintf(next(fields, name, false), SIZE, "%s", text);
}

void fields_integer(struct fields *fields, const char *name, uint64_t value)
{
    snprintf(next(fields, name, true), SIZE, "%" PRIu64, value);
}

void fields_real(struct fields *fields, const char *name, double value)
{
    snprintf(next(fields, name, true), SIZE, "%.6f", value);
}

void fields_known(struct fields *fields, const char *name, double value)
{
    if (value < 0)
        snprintf(next(fields, name, true), SIZE, UNKNOWN);
    else
        fields_real(fields, name, value);
}

void fields_array(struct fields *fields, const char *name, const double *values, size_t n,
                  double scale, int digits)
{
    struct text out = {0};
    text_print(&out, "[");
    for (size_t i = 0; i < n; i++)
        text_print(&out, "%s%.*f", i ? ", " : "", digits, values[i] * scale);
    text_print(&out, "]");
    next(fields, name, true);
    fields->list[fields->n - 1].array = out.bytes;
}

static void print_csv(const struct fields *f, bool head)
{
    const char *between = "";
    for (size_t i = 0; head && i < f->n; i++)
        if (!f->list[i].array) {
            printf("%s%s", between, f->list[i].name);
            between = ",";
        }
    printf("%s", head ? "\n" : "");
    between = "";
    for (size_t i = 0; i < f->n; i++) {
        const char *text = f->list[i].text;
        if (f->list[i].array)
            continue;
        if (f->list[i].is_number && strcmp(text, UNKNOWN) == 0)
            text = "";
        printf("%s\"", between);
        for (const char *c = text; *c; c++)
            printf(*c == '"' ? "%c\"" : "%c", *c);
        putchar('"');
        between = ",";
    }
    putchar('\n');
}

static void print_json(const struct fields *f, bool lines, bool first)
{
    const char *between = lines ? ", " : ",\n    ";
    struct text out = {0};
    text_print(&out, lines ? "{" : first ? "[\n  {\n    " : ",\n  {\n    ");
    for (size_t i = 0; i < f->n; i++) {
        text_print(&out, "%s\"%s\": ", i ? between : "", f->list[i].name);
        if (f->list[i].is_number)
            text_print(&out, "%s", f->list[i].array ? f->list[i].array : f->list[i].text);
        else
            text_json_string(&out, f->list[i].text, strlen(f->list[i].text));
    }
    text_print(&out, lines ? "}\n" : "\n  }");
    fputs(out.bytes, stdout);
    text_free(&out);
}

void fields_print(struct fields *fields, enum bench_format format, size_t i)
{
    if (format == BENCH_CSV)
        print_csv(fields, i == 0);
    else if (format != BENCH_MD)
        print_json(fields, format == BENCH_JSONL, i == 0);
    for (size_t k = 0; k < fields->n; k++)
        free(fields->list[k].array);
    fields->n = 0;
    fflush(stdout);
}

void fields_finish(enum bench_format format, size_t n)
{
    if (format == BENCH_JSON)
        puts(n ? "\n]" : "[]");
    fflush(stdout);
}
