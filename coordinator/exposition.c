#include "coordinator/exposition.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

void exposition_observe(struct exposition_histogram *h, const double *edges, size_t n_edges,
                        double value)
{
    size_t i = 0;
    while (i < n_edges && value > edges[i])
        i++;
    h->counts[i]++;
    h->count++;
    h->sum += value;
}

void exposition_head(struct text *out, const char *name, const char *kind, const char *help)
{
    text_print(out, "# HELP gptoss_%s %s\n# TYPE gptoss_%s %s\n", name, help, name, kind);
}

static void number(struct text *out, double value)
{
    if (isnan(value) || isinf(value))
        text_print(out, isnan(value) ? "NaN" : value > 0 ? "+Inf" : "-Inf");
    else
        text_print(out, "%.9g", value);
}

static void name_and_labels(struct text *out, const char *name, const struct text *labels)
{
    text_print(out, "gptoss_%s", name);
    if (labels && labels->size)
        text_print(out, "{%s}", labels->bytes);
    text_print(out, " ");
}

void exposition_sample(struct text *out, const char *name, const struct text *labels, double value)
{
    name_and_labels(out, name, labels);
    number(out, value);
    text_print(out, "\n");
}

void exposition_count(struct text *out, const char *name, const struct text *labels, uint64_t value)
{
    name_and_labels(out, name, labels);
    text_print(out, "%" PRIu64 "\n", value);
}

void exposition_label(struct text *labels, const char *name, const char *value)
{
    text_print(labels, "%s%s=\"", labels->size ? "," : "", name);
    for (size_t size = strlen(value), i = 0; i < size;) {
        size_t length = text_utf8_length(value + i, size - i, NULL);
        if (length == 0)
            text_print(labels, "\xef\xbf\xbd");
        else if (value[i] == '\\' || value[i] == '"')
            text_print(labels, "\\%c", value[i]);
        else if (value[i] == '\n')
            text_print(labels, "\\n");
        else
            text_add(labels, value + i, length);
        i += length ? length : 1;
    }
    text_print(labels, "\"");
}

void exposition_histogram(struct text *out, const char *name, const char *help,
                          const struct exposition_histogram *h, const double *edges, size_t n_edges)
{
    exposition_head(out, name, "histogram", help);
    uint64_t below = 0;
    for (size_t i = 0; i <= n_edges; i++) {
        below += h->counts[i];
        text_print(out, "gptoss_%s_bucket{le=\"", name);
        number(out, i < n_edges ? edges[i] : INFINITY);
        text_print(out, "\"} %" PRIu64 "\n", below);
    }
    text_print(out, "gptoss_%s_sum ", name);
    number(out, h->sum);
    text_print(out, "\ngptoss_%s_count %" PRIu64 "\n", name, h->count);
}
