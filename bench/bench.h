/*
 * bench: how fast the pipeline is, in llama-bench's words.
 *
 * A test is a prompt of n_prompt tokens, or n_gen tokens generated one after the other, or both, for
 * `sequences` sequences at a time, each with n_depth tokens before it in its KV cache. A *driver* runs
 * tests on a world of ranks that it has started: `loop` plays the coordinator's part towards the ranks
 * itself, `served` asks a real coordinator as a client does. The same test with the same seed gives
 * the same tokens in every world; verify.c holds them against each other.
 */
#ifndef GPTOSS_BENCH_BENCH_H
#define GPTOSS_BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/base.h"
#include "gguf/gguf.h"
#include "plan/plan.h"

/* The commands: everything after the program's name. They return an exit code. */
int bench_pipeline(int argc, char **argv);
int bench_serve(int argc, char **argv);
int bench_kernels(int argc, char **argv);
int bench_simulate(int argc, char **argv);
int bench_perplexity(int argc, char **argv);

/* Whether Ctrl-C or SIGTERM came; every wait looks at it. */
bool bench_interrupted(void);

/* ── tests ─────────────────────────────────────────────────────────────────────────────────── */

struct bench_test {
    uint32_t n_prompt, n_gen, n_depth;
    uint32_t sequences;
    uint32_t sequence_first; /* its number; what a sequence is prompted with depends on its own */
};

/* Tokens that each sequence samples: one after a prompt, one for each generated position. */
uint32_t bench_test_samples(const struct bench_test *test);
/* "pp512", "tg128 @ d4096", "pp512+tg128". */
void bench_test_name(const struct bench_test *test, char *name, size_t name_size);

struct bench_sample {
    double seconds;
    double tokens; /* that went through in this time, of all sequences */
    double busy;   /* seconds that all ranks together worked in this time; < 0: not known */
    uint32_t *ids; /* [sequences, bench_test_samples], the caller's */
};

/* Ordinary tokens: ids that a prompt may be made of, and the end of those that are sampled. */
struct bench_vocabulary {
    uint32_t limit;
    const struct gguf_key *types; /* tokenizer.ggml.token_type, or NULL */
};
void bench_vocabulary(const struct gguf_model *model, struct bench_vocabulary *vocabulary);
/* ids[n]: random, the same for the same seed and sequence. */
void bench_prompt(const struct bench_vocabulary *vocabulary, uint64_t seed, uint32_t sequence,
                  uint32_t *ids, uint32_t n);

uint64_t bench_random(uint64_t *state);           /* of all 64-bit numbers */
double bench_random_exponential(uint64_t *state); /* with mean 1 */

/* ── worlds ────────────────────────────────────────────────────────────────────────────────── */

struct bench_world_options {
    const struct gguf_model *model;
    const char *path; /* absolute */
    struct bench_vocabulary vocabulary;
    uint32_t stages, threads;       /* threads: of a rank; 0: the ranks choose */
    const char *device, *transport; /* transport: as coordinator_transport's wanted */
    enum plan_head head;
    enum plan_kv_type kv_type;
    bool fast;                   /* products with int8 activations */
    uint32_t context, sequences; /* the largest of all tests */
    uint32_t step_tokens;        /* of a prefill step */
    int gpu; /* the only one that the ranks see, of those that we see; < 0: all */
};

/* What the ranks said they are. */
struct bench_world_info {
    char backend[16]; /* "CPU", "CUDA", "reference" */
    char device[96];
    uint32_t threads; /* of a rank; 0: not known */
    char layers[256]; /* "16,8" */
    double bandwidth; /* bytes a second that all ranks read, as they measured; 0: not known */
};

struct bench_driver {
    const char *name; /* of --through */
    /* Starts the ranks and waits until they are ready. 0, or an exit code and a sentence. */
    int (*open)(void **world, const struct bench_world_options *options,
                struct bench_world_info *info, char *err, size_t err_size);
    /* NULL, or why the test cannot be measured this way. */
    const char *(*cannot)(const struct bench_test *test);
    int (*run)(void *world, const struct bench_test *test, uint64_t seed,
               struct bench_sample *sample, char *err, size_t err_size);
    void (*idle)(
        void *world); /* now and then between runs: the ranks want to hear us; may be NULL */
    void (*close)(void *world); /* ends the ranks; NULL is fine */
};
extern const struct bench_driver bench_loop, bench_served;

/* Either one pipeline of options->stages ranks, or as many pipelines of one rank each (replicas), which
 * get the sequences of a test dealt and run at the same time. */
struct bench_world;
int bench_world_open(struct bench_world **out, const struct bench_driver *driver,
                     const struct bench_world_options *options, bool replicas,
                     struct bench_world_info *info, char *err, size_t err_size);
int bench_world_run(struct bench_world *world, const struct bench_test *test, uint64_t seed,
                    struct bench_sample *sample, char *err, size_t err_size);
void bench_world_close(struct bench_world *world); /* NULL is fine */

/* ── cost.c: what a test has to do ─────────────────────────────────────────────────────────── */

/* Distinct experts that `rows` tokens choose in a layer, if each chooses evenly and by itself. */
double bench_experts(const struct gguf_model *model, uint32_t rows);
/* Bytes that are read when a step of `rows` tokens, each at `depth`, passes all layers and the head. */
double bench_step_bytes(const struct gguf_model *model, enum plan_kv_type kv_type, uint32_t rows,
                        double depth);
/* Tokens of one sequence each in a decode step: the sequences are dealt into a group a stage. */
uint32_t bench_step_rows(const struct bench_test *test, uint32_t stages);
/* Bytes that a test without prompt reads; 0 for one with a prompt, which is bound by arithmetic. */
double bench_test_bytes(const struct gguf_model *model, enum plan_kv_type kv_type,
                        const struct bench_test *test, uint32_t stages);

/* ── list.c ────────────────────────────────────────────────────────────────────────────────── */

/* Options that the commands share. Which of md, csv, json, jsonl (enum bench_format); which of f32, f16,
 * bf16 (enum kernels_kv_type, enum plan_kv_type). -1: none of them. */
int bench_format_find(const char *text);
int bench_kv_type_find(const char *text);
/* llama-bench's -dev, up to a "--", becomes --device. */
void bench_device_word(int argc, char **argv);

struct bench_list {
    uint32_t *values; /* free() */
    size_t n;
};
/* "1,2,4", "1-4" (1,2,3,4), "0-64+16", "128-1024*2", mixed by commas. -1 and a sentence. */
int bench_list_parse(const char *option, const char *text, uint32_t min, uint32_t max,
                     struct bench_list *list, char *err, size_t err_size);
/* "512,128": a prompt and a generation. */
int bench_pair_parse(const char *option, const char *text, uint32_t *n_prompt, uint32_t *n_gen,
                     char *err, size_t err_size);

/* ── child.c ───────────────────────────────────────────────────────────────────────────────── */

struct bench_child {
    pid_t pid; /* leads a process group; 0: none */
    char name[32];
    int gpu; /* before it is started: the one that it sees, of those that we see, plus one; 0: all */
};
/* argv[0] is looked up in PATH. The child's stdout is our stderr; it is told to end should we die. */
int bench_child_start(struct bench_child *child, const char *const *argv, char *err,
                      size_t err_size);
bool bench_child_ended(struct bench_child *child, int *code);
/* Gives it `seconds` to end, then asks, then kills the group. */
void bench_child_stop(struct bench_child *child, double seconds);
/* The program `name` beside this one, else in PATH. */
void bench_beside(const char *name, char *path, size_t path_size);
/* A new folder for sockets, for 64 bytes; and its removal with what the sockets left in it. */
int bench_folder_create(char *path, size_t path_size, char *err, size_t err_size);
void bench_folder_remove(const char *path);

/* ── report.c ──────────────────────────────────────────────────────────────────────────────── */

enum bench_format { BENCH_MD, BENCH_CSV, BENCH_JSON, BENCH_JSONL };

struct bench_result {
    const struct bench_world_options *options;
    const struct bench_world_info *info;
    const char *through;
    bool replicas, weak;
    struct bench_test test;
    char time[32];                        /* when it began, ISO 8601, UTC */
    size_t n;                             /* repetitions */
    const double *seconds, *speed, *busy; /* [n]; speed in tokens a second, busy as in a sample */
    double one_stage; /* tokens a second of one stage in the test it is compared with; 0: unknown */
    const double *replica_speed; /* [n]: of as many replicas, by turns with it; NULL: unknown */
};

/* Shares and times that follow from a result; < 0: not known. */
struct bench_derived {
    double bubble; /* share of the ranks' time in which they had nothing to do */
    double hop_us; /* one sequence: from the end of a stage's work to the start of the next one's */
    double bound;  /* share of the bandwidth that reading the weights and KV takes */
    double experts;  /* distinct ones a layer in a step */
    double speedup;  /* over one stage */
    double replicas; /* tokens a second over those of the replicas: median of the repetitions */
};
void bench_derive(const struct bench_result *result, struct bench_derived *derived);

struct bench_report;
struct bench_report *bench_report_create(enum bench_format format, const struct gguf_model *model);
void bench_report_add(struct bench_report *report, const struct bench_result *result);
/* Prints what is left to print on stdout, and frees. */
void bench_report_finish(struct bench_report *report);

void bench_statistics(const double *values, size_t n, double *mean, double *deviation);

/* ── machine.c ─────────────────────────────────────────────────────────────────────────────── */

void bench_cpu_info(char *text, size_t text_size);
/* "gpt-oss 20.9B MXFP4 MoE" */
void bench_model_type(const struct gguf_model *model, char *text, size_t text_size);
uint64_t bench_model_parameters(const struct gguf_model *model);

/* ── verify.c ──────────────────────────────────────────────────────────────────────────────── */

struct bench_verify;
struct bench_verify *bench_verify_create(size_t n_tests, size_t repetitions);
void bench_verify_destroy(struct bench_verify *verify);
/* The tokens of one repetition in one world. Those of the first world are kept; a difference from them
 * is told on stderr. */
void bench_verify_add(struct bench_verify *verify, size_t test_index, size_t repetition,
                      const struct bench_test *test, const uint32_t *ids, const char *world);
/* The last line, on stderr. Whether no token differed. */
bool bench_verify_finish(const struct bench_verify *verify);

#endif
