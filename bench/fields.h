/*
 * fields: a result as named values, written as CSV or JSON. Private to bench/.
 */
#ifndef GPTOSS_BENCH_FIELDS_H
#define GPTOSS_BENCH_FIELDS_H

#include "bench/bench.h"

enum { FIELDS_MAX = 64 };

struct fields {
    struct {
        const char *name;
        bool is_number;
        char text[512];
        char *array; /* of numbers, JSON only; free() */
    } list[FIELDS_MAX];
    size_t n;
};

void fields_text(struct fields *fields, const char *name, const char *text);
void fields_integer(struct fields *fields, const char *name, uint64_t value);
void fields_real(struct fields *fields, const char *name, double value);
/* As fields_real; < 0 is not known: null in JSON, nothing in CSV. */
void fields_known(struct fields *fields, const char *name, double value);
/* [n] numbers times `scale`; left out of CSV. */
void fields_array(struct fields *fields, const char *name, const double *values, size_t n,
                  double scale, int digits);

/* Prints result number `i` from 0 on stdout, and empties `fields`. */
void fields_print(struct fields *fields, enum bench_format format, size_t i);
/* What follows the last of n results. */
void fields_finish(enum bench_format format, size_t n);

#endif
