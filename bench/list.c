#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"

enum { VALUES_MAX = 10000 };

struct reader {
    const char *option, *text, *at;
    uint32_t min, max;
    char *err;
    size_t err_size;
};

static int wrong(const struct reader *r, const char *what)
{
    snprintf(r->err, r->err_size,
             "%s: \"%s\" %s: give numbers such as 1,2,4 or ranges such as 1-4, 0-64+16, 128-1024*2",
             r->option, r->text, what);
    return -1;
}

static int read_number(struct reader *r, uint32_t *value)
{
    char *end;
    errno = 0;
    if (*r->at < '0' || *r->at > '9')
        return wrong(r, "is no list of numbers");
    unsigned long number = strtoul(r->at, &end, 10);
    if (errno || number > r->max || number < r->min) {
        snprintf(r->err, r->err_size, "%s: %.*s is out of range: %" PRIu32 " to %" PRIu32,
                 r->option, (int)(end - r->at), r->at, r->min, r->max);
        return -1;
    }
    *value = (uint32_t)number;
    r->at = end;
    return 0;
}

static int add(struct reader *r, struct bench_list *list, size_t *capacity, uint64_t value)
{
    if (list->n == VALUES_MAX)
        return wrong(r, "has too many values");
    list->values = base_grow(list->values, capacity, list->n + 1, sizeof *list->values);
    list->values[list->n++] = (uint32_t)value;
    return 0;
}

/* first-last, with +step or *factor. */
static int add_range(struct reader *r, struct bench_list *list, size_t *capacity, uint32_t first)
{
    uint32_t last, by = 1;
    char how = '+';
    r->at++;
    if (read_number(r, &last))
        return -1;
    if (*r->at == '+' || *r->at == '*') {
        struct reader number = *r;
        how = *number.at++;
        number.min = 0;
        number.max = UINT32_MAX;
        if (read_number(&number, &by))
            return -1;
        r->at = number.at;
    }
    if (last < first)
        return wrong(r, "has a range that ends before it begins");
    if (how == '+' ? by == 0 : by < 2 || first == 0)
        return wrong(r, "has a range that never ends");
    for (uint64_t value = first; value <= last; value = how == '+' ? value + by : value * by)
        if (add(r, list, capacity, value))
            return -1;
    return 0;
}

int bench_list_parse(const char *option, const char *text, uint32_t min, uint32_t max,
                     struct bench_list *list, char *err, size_t err_size)
{
    struct reader r = {option, text, text, min, max, err, err_size};
    size_t capacity = 0;
    *list = (struct bench_list){0};
    for (;;) {
        uint32_t value;
        if (read_number(&r, &value))
            goto fail;
        if (*r.at == '-' ? add_range(&r, list, &capacity, value) : add(&r, list, &capacity, value))
            goto fail;
        if (*r.at == '\0')
            return 0;
        if (*r.at++ != ',') {
            wrong(&r, "is no list of numbers");
            goto fail;
        }
    }
fail:
    free(list->values);
    *list = (struct bench_list){0};
    return -1;
}

int bench_pair_parse(const char *option, const char *text, uint32_t *n_prompt, uint32_t *n_gen,
                     char *err, size_t err_size)
{
    struct bench_list list;
    if (bench_list_parse(option, text, 1, 1u << 24, &list, err, err_size))
        return -1;
    int status = 0;
    if (list.n == 2) {
        *n_prompt = list.values[0];
        *n_gen = list.values[1];
    } else {
        snprintf(err, err_size, "%s: \"%s\" is no pair: give PROMPT,GENERATED such as 512,128",
                 option, text);
        status = -1;
    }
    free(list.values);
    return status;
}

static int find(const char *text, const char *const *names, int n)
{
    for (int i = 0; i < n; i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    return -1;
}

int bench_format_find(const char *text)
{
    return find(text, (const char *const[]){"md", "csv", "json", "jsonl"}, 4);
}

int bench_kv_type_find(const char *text)
{
    return find(text, (const char *const[]){"f32", "f16", "bf16"}, 3);
}

void bench_device_word(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "-dev") == 0)
            argv[i] = (char *)(uintptr_t) "--device";
}
