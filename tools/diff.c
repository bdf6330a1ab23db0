/*
 * gptoss-gguf diff: what two files have in common and what not, key by key and tensor by tensor.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "gguf/gguf.h"
#include "tools/tools.h"

struct diff {
    const struct gguf_file *a, *b;
    uint64_t keys, tensors; /* that differ */
    uint64_t same_keys, same_tensors;
    bool data;
};

/* A name as it may be printed: gguf has checked lengths, not characters. */
static const char *shown(char out[80], const char *bytes, uint64_t size)
{
    size_t n = size < 76 ? (size_t)size : 76;
    for (size_t i = 0; i < n; i++)
        out[i] = (unsigned char)bytes[i] < 0x20 || (unsigned char)bytes[i] >= 0x7f ? '?' : bytes[i];
    strcpy(out + n, n < size ? "..." : "");
    return out;
}

/* ── keys ──────────────────────────────────────────────────────────────────────────────────── */

static const struct gguf_key *twin_of(const struct gguf_file *file, const struct gguf_key *key)
{
    char *name = base_alloc((size_t)key->name.size + 1, 1);
    memcpy(name, key->name.bytes, (size_t)key->name.size);
    const struct gguf_key *twin = gguf_key_find(file, name);
    free(name);
    return twin;
}

static void value(struct text *out, const struct gguf_key *key)
{
    char text[80];
    float f32;
    double f64;
    if (key->type == GGUF_VALUE_ARRAY)
        text_print(out, "%s[%" PRIu64 "]", gguf_value_type_name(key->element), key->count);
    else if (key->type == GGUF_VALUE_STRING)
        text_print(out, "\"%s\"", shown(text, (const char *)key->data, key->size));
    else if (key->type == GGUF_VALUE_F32)
        text_print(out, "%.9g", (double)*(float *)memcpy(&f32, key->data, 4));
    else if (key->type == GGUF_VALUE_F64)
        text_print(out, "%.17g", *(double *)memcpy(&f64, key->data, 8));
    else
        text_print(out, "%" PRId64 " (%s)", gguf_integer_at(key, 0),
                   gguf_value_type_name(key->type));
}

static void diff_keys(struct diff *d)
{
    char name[80];
    for (uint64_t i = 0; i < gguf_n_keys(d->a); i++) {
        const struct gguf_key *a = gguf_key_at(d->a, i), *b = twin_of(d->b, a);
        if (b && a->type == b->type && a->element == b->element && a->size == b->size &&
            !memcmp(a->data, b->data, (size_t)a->size)) {
            d->same_keys++;
            continue;
        }
        struct text was = {0}, is = {0};
        value(&was, a);
        text_print(&is, "(none)");
        if (b) {
            text_clear(&is);
            value(&is, b);
        }
        printf("key %s: %s -> %s\n", shown(name, a->name.bytes, a->name.size), was.bytes, is.bytes);
        text_free(&was);
        text_free(&is);
        d->keys++;
    }
    for (uint64_t i = 0; i < gguf_n_keys(d->b); i++) {
        const struct gguf_key *b = gguf_key_at(d->b, i);
        if (twin_of(d->a, b))
            continue;
        struct text is = {0};
        value(&is, b);
        printf("key %s: (none) -> %s\n", shown(name, b->name.bytes, b->name.size), is.bytes);
        text_free(&is);
        d->keys++;
    }
}

/* ── tensors ───────────────────────────────────────────────────────────────────────────────── */

static void shape(struct text *out, const struct gguf_tensor *t)
{
    text_print(out, "%s ", gguf_type_name(t->type));
    for (uint32_t k = t->n_dims; k-- > 0;)
        text_print(out, "%" PRIu64 "%s", t->ne[k], k ? " × " : "");
}

/* The error of b's values as a share of a's, both root mean squares; NaN where it cannot be told. */
static double relative_error(const struct gguf_tensor *a, const struct gguf_tensor *b, double *most)
{
    uint64_t values = a->ne[0], rows = a->ne[1] * a->ne[2] * a->ne[3];
    float *x = base_alloc(values, sizeof *x), *y = base_alloc(values, sizeof *y);
    double off = 0, all = 0;
    *most = 0;
    for (uint64_t r = 0; r < rows; r++) {
        gguf_to_float(a->type, a->data + r * a->row_bytes, x, values);
        gguf_to_float(b->type, b->data + r * b->row_bytes, y, values);
        for (uint64_t i = 0; i < values; i++) {
            double apart = fabs((double)x[i] - (double)y[i]);
            *most = apart > *most ? apart : *most;
            off += apart * apart;
            all += (double)x[i] * (double)x[i];
        }
    }
    free(x);
    free(y);
    return sqrt(off / (all > 0 ? all : 1));
}

static void diff_tensor(struct diff *d, const struct gguf_tensor *a, const struct gguf_tensor *b)
{
    bool same_shape = !memcmp(a->ne, b->ne, sizeof a->ne);
    if (same_shape && a->type == b->type &&
        (!d->data || !memcmp(a->data, b->data, (size_t)a->bytes))) {
        d->same_tensors++;
        return;
    }
    struct text was = {0}, is = {0};
    char name[80];
    shape(&was, a);
    shape(&is, b);
    d->tensors++;
    printf("tensor %s: %s", shown(name, a->name, strlen(a->name)), was.bytes);
    if (!same_shape || a->type != b->type)
        printf(" -> %s", is.bytes);
    if (same_shape && d->data && gguf_type_supported(a->type) && gguf_type_supported(b->type)) {
        double most, error = relative_error(a, b, &most);
        printf(": off by %.3g of its size, %.3g at most", error, most);
    }
    printf("\n");
    text_free(&was);
    text_free(&is);
}

static void diff_tensors(struct diff *d)
{
    char name[80];
    for (uint64_t i = 0; i < gguf_n_tensors(d->a); i++) {
        const struct gguf_tensor *a = gguf_tensor_at(d->a, i), *b = gguf_tensor_find(d->b, a->name);
        if (b) {
            diff_tensor(d, a, b);
        } else {
            printf("tensor %s: only in the first\n", shown(name, a->name, strlen(a->name)));
            d->tensors++;
        }
    }
    for (uint64_t i = 0; i < gguf_n_tensors(d->b); i++) {
        const struct gguf_tensor *b = gguf_tensor_at(d->b, i);
        if (gguf_tensor_find(d->a, b->name))
            continue;
        printf("tensor %s: only in the second\n", shown(name, b->name, strlen(b->name)));
        d->tensors++;
    }
}

int tools_diff(int argc, char **argv)
{
    bool no_data = false;
    const struct cli_option options[] = {
        {.type = CLI_FLAG,
         .name = "no-data",
         .out = &no_data,
         .text = "compare keys, shapes and types alone"},
    };
    const struct cli cli = {
        .program = "gptoss-gguf diff",
        .summary = "Compares two model files: keys, tensors, shapes, types and data.",
        .usage = "gptoss-gguf diff [OPTION…] A B",
        .examples = "  gptoss-gguf diff model-mxfp4.gguf model-q4_k_m.gguf\n",
        .notes =
            "A line for each difference, the last line sums up. Data of two types are compared "
            "as numbers: the root of the mean square of the difference over that of the first "
            "file's values, and the largest difference. The exit code is 1 where they differ.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_MODEL,
    };
    char **args, err[512];
    int n_args;
    int status = cli_parse(&cli, argc, argv, &args, &n_args);
    if (status)
        return status > 0 ? EXIT_DONE : EXIT_USAGE;
    if (n_args != 2) {
        fprintf(stderr,
                "gptoss-gguf diff: give two files, not %d\ngptoss-gguf diff --help tells more\n",
                n_args);
        return EXIT_USAGE;
    }
    struct gguf_file *a = NULL, *b = NULL;
    if (gguf_open(&a, args[0], err, sizeof err) || gguf_open(&b, args[1], err, sizeof err)) {
        fprintf(stderr, "gptoss-gguf: %s\n", err);
        gguf_close(a);
        return EXIT_MODEL;
    }
    struct diff d = {.a = a, .b = b, .data = !no_data};
    diff_keys(&d);
    diff_tensors(&d);
    printf("%" PRIu64 " keys and %" PRIu64 " tensors differ, %" PRIu64 " and %" PRIu64
           " are the same\n",
           d.keys, d.tensors, d.same_keys, d.same_tensors);
    gguf_close(a);
    gguf_close(b);
    return d.keys + d.tensors ? EXIT_FAILED : EXIT_DONE;
}
