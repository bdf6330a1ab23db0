/* status: what the coordinator does, for people. */
#include <stdlib.h>
#include <string.h>

#include "client/client.h"

/* A text from outside, cleaned; the caller frees it. */
static char *clean(const char *text)
{
    struct text t = {0};
    text_add(&t, "", 0);
    view_clean(&t, text, strlen(text));
    for (size_t i = 0; i < t.size; i++)
        if (t.bytes[i] == '\n' || t.bytes[i] == '\t')
            t.bytes[i] = ' ';
    return t.bytes;
}

static void line(FILE *out, const char *name, const char *value)
{
    char *cleaned = clean(value);
    fprintf(out, "  %-9s %s\n", name, cleaned);
    free(cleaned);
}

static void print_pool(struct text *t, const char *name, uint32_t used, uint32_t all)
{
    text_print(t, "%s%s %u of %u blocks", t->size > 0 ? ", " : "", name, used, all);
    if (all > 0)
        text_print(t, " (%.0f %%)", 100.0 * used / all);
}

/* What the last seconds were like. */
static void print_recent(struct text *t, const Gptoss__Status *s)
{
    char time[32];
    text_print(t, "%.1f tokens/s sampled, %.1f of prompts, %.1f steps/s", s->sampled_per_second,
               s->prompt_per_second, s->steps_per_second);
    if (s->window_seconds > 0)
        text_print(t, ", bubble %.1f %%", 100 * s->bubble_share);
    if (s->hop_seconds > 0)
        text_print(t, ", hop %s", text_seconds(time, s->hop_seconds));
    if (s->first_token && s->first_token->count)
        text_print(t, ", first token %s", text_seconds(time, s->first_token->p50));
    if (s->between_tokens && s->between_tokens->count)
        text_print(t, ", next %s", text_seconds(time, s->between_tokens->p50));
}

static void print_stages(FILE *out, const Gptoss__Status *s)
{
    static const char *const headings[] = {"stage",   "host",  "device",  "layers",
                                           "weights", "kv",    "buffers", "free",
                                           "busy",    "queue", "steps",   "loaded"};
    enum { COLUMNS = sizeof headings / sizeof *headings };
    struct table *table = table_create(COLUMNS, headings);
    for (size_t i = 0; i < s->n_stages; i++) {
        const Gptoss__StageStatus *g = s->stages[i];
        char cells[COLUMNS][32];
        const char *row[COLUMNS];
        for (size_t c = 0; c < COLUMNS; c++)
            row[c] = cells[c];
        char *host = clean(g->host), *device = clean(g->device);
        row[1] = host;
        row[2] = device;
        snprintf(cells[0], 32, "%u", g->stage);
        if (g->layer_count > 0)
            snprintf(cells[3], 32, "%u–%u", g->layer_first, g->layer_first + g->layer_count - 1);
        else
            snprintf(cells[3], 32, "-");
        text_bytes(cells[4], g->weights_bytes);
        text_bytes(cells[5], g->kv_bytes);
        text_bytes(cells[6], g->activation_bytes);
        text_bytes(cells[7], g->memory_free_bytes);
        if (s->window_seconds > 0)
            snprintf(cells[8], 32, "%.1f %%", 100 * g->busy_share);
        else if (g->up_seconds > 0)
            snprintf(cells[8], 32, "%.1f %%", 100 * g->busy_seconds / g->up_seconds);
        else
            snprintf(cells[8], 32, "-");
        snprintf(cells[9], 32, "%u", g->queue);
        snprintf(cells[10], 32, "%llu", (unsigned long long)g->steps);
        snprintf(cells[11], 32, "%.0f %%", 100 * g->loaded);
        table_row(table, row);
        free(host);
        free(device);
    }
    fputc('\n', out);
    table_print(table, TABLE_TEXT, out);
    table_destroy(table);
}

void status_print(FILE *out, const char *endpoint, const Gptoss__Status *s)
{
    char time[32];
    struct text t = {0};
    char *version = clean(s->version), *state = clean(s->state);
    fprintf(out, "gptoss %s at %s: %s, up %s\n", version, endpoint, state,
            text_seconds(time, s->uptime_seconds));
    line(out, "model", s->model);
    if (s->fast)
        line(out, "products", "with int8 activations (--fast)");
    text_print(&t, "%u running, %u waiting, %llu finished, %llu refused", s->requests_running,
               s->requests_waiting, (unsigned long long)s->requests_finished,
               (unsigned long long)s->requests_refused);
    line(out, "requests", t.bytes);
    text_clear(&t);
    text_print(&t, "%llu of prompts, %llu sampled", (unsigned long long)s->prompt_tokens,
               (unsigned long long)s->sampled_tokens);
    line(out, "tokens", t.bytes);
    text_clear(&t);
    text_print(&t, "%llu issued, %u in flight", (unsigned long long)s->steps, s->steps_in_flight);
    line(out, "steps", t.bytes);
    text_clear(&t);
    print_recent(&t, s);
    line(out, "recently", t.bytes);
    text_clear(&t);
    print_pool(&t, "full", s->kv_full_blocks_used, s->kv_full_blocks);
    print_pool(&t, "window", s->kv_window_blocks_used, s->kv_window_blocks);
    text_print(&t, "; %u tokens a block", s->kv_block_tokens);
    line(out, "KV cache", t.bytes);
    text_clear(&t);
    text_print(&t, "%u full and %u window blocks; %llu tokens were not computed again",
               s->kv_full_blocks_cached, s->kv_window_blocks_cached,
               (unsigned long long)s->prefix_hit_tokens);
    line(out, "prefixes", t.bytes);
    text_clear(&t);
    text_print(&t, "%u sequences of %u tokens", s->sequences, s->context);
    line(out, "room for", t.bytes);
    if (s->n_stages > 0)
        print_stages(out, s);
    free(version);
    free(state);
    text_free(&t);
}
