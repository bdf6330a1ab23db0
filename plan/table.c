#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/capacity.h"
#include "plan/plan.h"
#include "plan/size.h"

const char *size_text(char text[SIZE_TEXT], uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    unsigned unit = 0;
    while (value >= 1024 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1024;
        unit++;
    }
    snprintf(text, SIZE_TEXT, unit == 0 ? "%.0f %s" : "%.2f %s", value, units[unit]);
    return text;
}

static const char *seconds_text(char text[SIZE_TEXT], double seconds)
{
    if (seconds >= 1)
        snprintf(text, SIZE_TEXT, "%.2f s", seconds);
    else if (seconds >= 1e-3)
        snprintf(text, SIZE_TEXT, "%.2f ms", seconds * 1e3);
    else
        snprintf(text, SIZE_TEXT, "%.1f us", seconds * 1e6);
    return text;
}

enum {
    STAGE,
    HOST,
    DEVICE,
    LAYERS,
    KINDS,
    HEAD,
    WEIGHTS,
    KV,
    ACTIVATIONS,
    TOTAL,
    MEMORY,
    HEADROOM,
    TOKEN,
    N_COLUMNS
};

enum { CELL = 96 };

struct row {
    char cells[N_COLUMNS][CELL];
};

static const struct row headings = {{"stage", "host", "device", "layers", "full+window", "head",
                                     "weights", "KV", "activations", "total", "memory free",
                                     "headroom", "a token"}};

static void set(char cell[CELL], const char *text)
{
    snprintf(cell, CELL, "%s", text && *text ? text : "-");
}

static void set_bytes(char cell[CELL], uint64_t bytes)
{
    char text[SIZE_TEXT];
    set(cell, size_text(text, bytes));
}

static void fill_row(struct row *row, uint32_t s, const struct plan_stage *stage,
                     const struct plan_rank *rank)
{
    char text[SIZE_TEXT];
    snprintf(row->cells[STAGE], CELL, "%" PRIu32, s);
    set(row->cells[HOST], rank ? rank->host : NULL);
    set(row->cells[DEVICE], rank ? rank->device : NULL);
    snprintf(row->cells[LAYERS], CELL, "%" PRIu32 "-%" PRIu32, stage->layer_first,
             stage->layer_first + stage->layer_count - 1);
    snprintf(row->cells[KINDS], CELL, "%" PRIu32 "+%" PRIu32, stage->full_layers,
             stage->window_layers);
    set(row->cells[HEAD], NULL);
    if (stage->head_count > 0)
        snprintf(row->cells[HEAD], CELL, "%" PRIu32, stage->head_count);
    set_bytes(row->cells[WEIGHTS], stage->weights_bytes);
    set_bytes(row->cells[KV], stage->kv_bytes);
    set_bytes(row->cells[ACTIVATIONS], stage->activation_bytes);
    set_bytes(row->cells[TOTAL], stage->total_bytes);
    set(row->cells[MEMORY], NULL);
    set(row->cells[HEADROOM], NULL);
    if (stage->memory_bytes > 0) {
        set_bytes(row->cells[MEMORY], stage->memory_bytes);
        bool less = stage->memory_bytes < stage->total_bytes;
        uint64_t apart = less ? stage->total_bytes - stage->memory_bytes
                              : stage->memory_bytes - stage->total_bytes;
        snprintf(row->cells[HEADROOM], CELL, "%s%s", less ? "-" : "", size_text(text, apart));
    }
    set(row->cells[TOKEN],
        stage->token_seconds > 0 ? seconds_text(text, stage->token_seconds) : NULL);
}

static void fill_totals(struct row *row, const struct plan *plan)
{
    struct plan_stage sum = {0};
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        const struct plan_stage *stage = &plan->stages[s];
        sum.layer_count += stage->layer_count;
        sum.full_layers += stage->full_layers;
        sum.window_layers += stage->window_layers;
        sum.head_count += stage->head_count;
        sum.weights_bytes += stage->weights_bytes;
        sum.kv_bytes += stage->kv_bytes;
        sum.activation_bytes += stage->activation_bytes;
        sum.total_bytes += stage->total_bytes;
        sum.token_seconds += stage->token_seconds;
    }
    fill_row(row, 0, &sum, NULL);
    set(row->cells[STAGE], "all");
    snprintf(row->cells[LAYERS], CELL, "%" PRIu32, sum.layer_count);
}

static void print_speed(FILE *out, const struct plan *plan)
{
    double all = 0, slowest = 0;
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        double seconds = plan->stages[s].token_seconds;
        if (!(seconds > 0))
            return;
        all += seconds;
        if (seconds > slowest)
            slowest = seconds;
    }
    char one[SIZE_TEXT], stage[SIZE_TEXT];
    fprintf(
        out,
        "Reading weights alone, a token passes in %s (one sequence: at most %.3g tokens/s), the "
        "slowest stage in %s (sequences in turn: at most %.3g tokens/s).\n",
        seconds_text(one, all), 1 / all, seconds_text(stage, slowest), 1 / slowest);
}

static void print_in_place(FILE *out, const struct plan *plan, const struct plan_rank *ranks)
{
    for (uint32_t s = 0; ranks && s < plan->n_stages; s++) {
        const struct plan_stage *stage = &plan->stages[s];
        if (!ranks[s].weights_in_place || stage->memory_bytes == 0 ||
            stage->total_bytes <= stage->memory_bytes)
            continue;
        fprintf(out,
                "Stage %" PRIu32
                " reads its weights from the mapped file and has not the memory to "
                "keep them: expect it to wait for the disk.\n",
                s);
    }
}

static void print_row(FILE *out, const struct row *row, const size_t *width)
{
    for (unsigned c = 0; c < N_COLUMNS; c++) {
        bool left = c <= LAYERS;
        fprintf(out, left ? "%-*s" : "%*s", (int)width[c], row->cells[c]);
        fprintf(out, c + 1 < N_COLUMNS ? "  " : "\n");
    }
}

static void print_table(FILE *out, const struct plan *plan, const struct plan_rank *ranks,
                        struct row *rows)
{
    size_t width[N_COLUMNS] = {0};
    uint32_t n_rows = plan->n_stages + 1;
    for (uint32_t s = 0; s < plan->n_stages; s++)
        fill_row(&rows[s], s, &plan->stages[s], ranks ? &ranks[s] : NULL);
    fill_totals(&rows[plan->n_stages], plan);
    for (unsigned c = 0; c < N_COLUMNS; c++) {
        width[c] = strlen(headings.cells[c]);
        for (uint32_t r = 0; r < n_rows; r++)
            if (strlen(rows[r].cells[c]) > width[c])
                width[c] = strlen(rows[r].cells[c]);
    }
    print_row(out, &headings, width);
    for (uint32_t r = 0; r < n_rows; r++)
        print_row(out, &rows[r], width);
    capacity_print(out, plan);
    print_speed(out, plan);
    print_in_place(out, plan, ranks);
}

char *plan_table(const struct plan *plan, const struct plan_rank *ranks)
{
    char *text = NULL;
    size_t size = 0;
    struct row *rows = calloc((size_t)plan->n_stages + 1, sizeof *rows);
    FILE *out = rows ? open_memstream(&text, &size) : NULL;
    if (!out) {
        free(rows);
        return NULL;
    }
    print_table(out, plan, ranks, rows);
    free(rows);
    if (fclose(out)) {
        free(text);
        return NULL;
    }
    return text;
}
