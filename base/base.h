/*
 * base: what the programs share. No library folder (gguf, kernels, proto, plan) includes it.
 *
 *   cli    one table of options → flags, GPTOSS_* variables, --help
 *   log    one line a record on stderr
 *   map    u64 → u32
 *   text   growing strings, sizes and times for people, tables, JSON
 *   clock  time
 *
 * Running out of memory in a small allocation ends the process here (base_alloc): what is large, or
 * sized by a file or a message, is not allocated through this door.
 */
#ifndef GPTOSS_BASE_H
#define GPTOSS_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* ── exit codes, the same in all programs ──────────────────────────────────────────────────── */

enum {
    EXIT_DONE = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_MODEL = 3,       /* the model file was refused */
    EXIT_MEMORY = 4,      /* it does not fit */
    EXIT_COORDINATOR = 5, /* not reachable, or lost */
    EXIT_DEVICE = 6,      /* device or transport failed */
};

/* ── cli ───────────────────────────────────────────────────────────────────────────────────── */

enum cli_type {
    CLI_FLAG,   /* bool *out */
    CLI_STRING, /* const char **out; points into argv or the environment */
    CLI_INT,    /* int64_t *out, min ≤ value ≤ max */
    CLI_FLOAT,  /* double *out, min ≤ value ≤ max */
    CLI_LIST,   /* struct cli_list *out: may be given several times; of the environment, one item */
    CLI_GROUP,  /* no option: a heading for --help, its words in `text` */
};

/* What CLI_LIST collects; free(items) when done. The strings point into argv or the environment. */
struct cli_list {
    const char **items;
    size_t n, capacity;
    bool from_environment; /* so far; the first item of argv replaces them */
};

struct cli_option {
    enum cli_type type;
    const char *name;     /* long name without dashes */
    char letter;          /* short name, or 0 */
    const char *value;    /* what follows, in capitals; NULL for a flag */
    const char *text;     /* one sentence, lower case, no full stop */
    const char *fallback; /* the default as --help shows it, or NULL */
    const char *env;      /* GPTOSS_…, or NULL */
    void *out;
    double min, max; /* of numbers; both 0: any */
    bool *given;     /* set when it was given; may be NULL */
};

struct cli {
    const char *program;
    const char *summary;  /* what it does, one or two lines */
    const char *usage;    /* lines after "usage: " */
    const char *examples; /* lines, each two spaces in */
    const char *notes;    /* paragraphs at the end of --help (exit codes are added by cli_parse) */
    const struct cli_option *options; /* --help and --version are added */
    size_t n_options;
    unsigned exit_codes; /* bit c set: --help explains exit code c */
};

/* Reads the environment, then argv. Long options may be written --name VALUE or --name=VALUE; "--"
 * ends them; words that are no options are collected in place at *args. Flags given in the
 * environment are true for 1, true, yes, on. 0: go on; 1: --help or --version was printed on stdout;
 * -1: wrong use, two lines on stderr (what, and where help is; a near miss is named). */
int cli_parse(const struct cli *cli, int argc, char **argv, char ***args, int *n_args);

/* ── log ───────────────────────────────────────────────────────────────────────────────────── */

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

/* `process` stands in each line: "coordinator", "rank 3". GPTOSS_LOG=error|warn|info|debug sets the
 * level (default info). Lines: UTC time, level, process, text. Colour on a terminal without NO_COLOR. */
void log_open(const char *process);
bool log_enabled(enum log_level level);
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)

/* ── memory ────────────────────────────────────────────────────────────────────────────────── */

/* Zeroed memory for n elements of `size` bytes; ends the process where there is none. */
void *base_alloc(size_t n, size_t size);
/* Grows *array of elements of `size` bytes so that it holds `need`; capacity at *capacity. Contents
 * beyond the old capacity are undefined. Returns the (possibly moved) array. */
void *base_grow(void *array, size_t *capacity, size_t need, size_t size);

/* ── map: u64 → u32, open addressing ───────────────────────────────────────────────────────── */

struct map; /* any key, any value but MAP_NONE */
#define MAP_NONE UINT32_MAX
struct map *map_create(size_t expected);
void map_destroy(struct map *map);                           /* NULL is fine */
void map_set(struct map *map, uint64_t key, uint32_t value); /* replaces */
uint32_t map_get(const struct map *map, uint64_t key);       /* MAP_NONE: not there */
void map_remove(struct map *map, uint64_t key);
size_t map_count(const struct map *map);
uint64_t map_hash(const void *bytes, size_t size, uint64_t seed); /* a good 64-bit hash of bytes */

/* ── text ──────────────────────────────────────────────────────────────────────────────────── */

/* A string that grows. bytes is always terminated (once something was added); zero-initialise. */
struct text {
    char *bytes;
    size_t size, capacity;
};
void text_add(struct text *t, const void *bytes, size_t size);
void text_print(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_json_string(struct text *t, const void *bytes,
                      size_t size); /* quoted and escaped; invalid
                                                                          UTF-8 becomes U+FFFD */
void text_clear(struct text *t);    /* keeps the memory */
void text_free(struct text *t);

/* "11.27 GiB", "340 B"; "1.24 s", "830 µs". Into `buffer` of at least 32 bytes, which is returned. */
const char *text_bytes(char buffer[32], uint64_t bytes);
const char *text_seconds(char buffer[32], double seconds);
/* Length of the well-formed UTF-8 sequence at bytes (1–4), or 0 if it is malformed; `size` bytes are
 * there. *incomplete (may be NULL) is set if more bytes could make it well-formed. */
size_t text_utf8_length(const void *bytes, size_t size, bool *incomplete);

/* Columns that line up. Cells are copied; a cell that begins with a digit, '-' or '+' is set right. */
struct table;
struct table *table_create(size_t columns, const char *const *headings);
void table_row(struct table *table, const char *const *cells);
enum table_format { TABLE_TEXT, TABLE_MARKDOWN, TABLE_CSV };
void table_print(const struct table *table, enum table_format format, FILE *out);
void table_destroy(struct table *table);

/* ── clock ─────────────────────────────────────────────────────────────────────────────────── */

uint64_t clock_us(void);    /* monotonic, from an arbitrary start */
double clock_seconds(void); /* the same in seconds */

#endif
