/* top_frame: the pipeline as a few lines of text. */
#include <stdlib.h>
#include <string.h>

#include "client/client.h"

#define BAR_WIDTH 24

#define BOLD   "\033[1m"
#define DIM    "\033[2m"
#define GREEN  "\033[32m"
#define YELLOW "\033[33m"
#define RED    "\033[31m"
#define PLAIN  "\033[0m"

struct frame {
    struct text *out;
    const struct top_screen *screen;
    struct text line;
    size_t lines;
};

void top_remember(struct top_history *h, const Gptoss__Status *s)
{
    if (h->n == TOP_HISTORY) {
        memmove(h->tokens, h->tokens + 1, (TOP_HISTORY - 1) * sizeof *h->tokens);
        memmove(h->busy, h->busy + 1, (TOP_HISTORY - 1) * sizeof *h->busy);
        h->n--;
    }
    h->tokens[h->n] = s->sampled_per_second > 0 ? s->sampled_per_second : 0;
    h->busy[h->n++] = s->window_seconds > 0 ? 1 - s->bubble_share : 0;
}

/* ── lines ─────────────────────────────────────────────────────────────────────────────────── */

/* The line is cut where the screen ends; what steers colours has no width. */
static void end_line(struct frame *f)
{
    size_t columns = 0, i = 0;
    const struct text *t = &f->line;
    if (f->screen->rows && f->lines >= f->screen->rows) {
        text_clear(&f->line);
        return;
    }
    while (i < t->size) {
        size_t length = 1;
        if (t->bytes[i] == '\033') {
            while (i + length < t->size && t->bytes[i + length - 1] != 'm')
                length++;
        } else {
            length = text_utf8_length(t->bytes + i, t->size - i, NULL);
            length = length ? length : 1;
            if (++columns > f->screen->columns)
                break;
        }
        text_add(f->out, t->bytes + i, length);
        i += length;
    }
    if (i < t->size && f->screen->colour)
        text_print(f->out, PLAIN);
    text_print(f->out, "\n");
    text_clear(&f->line);
    f->lines++;
}

static void style(struct frame *f, const char *sequence)
{
    if (f->screen->colour)
        text_print(&f->line, "%s", sequence);
}

static void name(struct frame *f, const char *word)
{
    style(f, BOLD);
    text_print(&f->line, "%-10s ", word);
    style(f, PLAIN);
}

/* Text of the coordinator, on one line. */
static void foreign(struct text *t, const char *text)
{
    struct text clean = {0};
    text_add(&clean, "", 0);
    view_clean(&clean, text, strlen(text));
    for (size_t i = 0; i < clean.size; i++)
        if (clean.bytes[i] == '\n' || clean.bytes[i] == '\t')
            clean.bytes[i] = ' ';
    text_add(t, clean.bytes, clean.size);
    text_free(&clean);
}

static double within(double x, double low, double high)
{
    return x > low ? x < high ? x : high : low; /* NaN is low */
}

static void bar(struct frame *f, double share, size_t width, const char *colour)
{
    static const char *const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    share = within(share, 0, 1);
    size_t eighth = (size_t)(share * (double)width * 8 + 0.5), full = eighth / 8, column = full;
    text_print(&f->line, "[");
    style(f, colour);
    for (size_t i = 0; i < full; i++)
        text_print(&f->line, f->screen->ascii ? "#" : "█");
    if (!f->screen->ascii && eighth % 8) {
        text_print(&f->line, "%s", eighths[eighth % 8]);
        column++;
    }
    style(f, PLAIN);
    text_print(&f->line, "%*s]", (int)(width - column), "");
}

static void curve(struct frame *f, const double *values, size_t n, double most, size_t width)
{
    static const char *const blocks[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    static const char plain[] = " .:-=+*#@";
    size_t first = n > width ? n - width : 0;
    for (size_t i = first; i < n; i++) {
        size_t level = most > 0 ? (size_t)(within(values[i] / most, 0, 1) * 8 + 0.5) : 0;
        if (level == 0 && values[i] > 0)
            level = 1;
        if (f->screen->ascii)
            text_print(&f->line, "%c", plain[level]);
        else
            text_print(&f->line, "%s", blocks[level]);
    }
}

/* 1,234,567 */
static void count(struct text *t, uint64_t n)
{
    char digits[32];
    int size = snprintf(digits, sizeof digits, "%llu", (unsigned long long)n);
    for (int i = 0; i < size; i++)
        text_print(t, "%s%c", i > 0 && (size - i) % 3 == 0 ? "," : "", digits[i]);
}

static void rate(struct text *t, double per_second)
{
    per_second = within(per_second, 0, 1e15);
    if (per_second > 0 && per_second < 10)
        text_print(t, "%.1f", per_second);
    else
        count(t, (uint64_t)(per_second + 0.5));
}

/* ── what is shown ─────────────────────────────────────────────────────────────────────────── */

static void head(struct frame *f, const char *endpoint, const Gptoss__Status *s)
{
    char time[32];
    const char *model = strrchr(s->model, '/');
    style(f, BOLD);
    text_print(&f->line, "gptoss ");
    foreign(&f->line, s->version);
    style(f, PLAIN);
    text_print(&f->line, "  ");
    style(f, s->ready ? GREEN : YELLOW);
    foreign(&f->line, s->state);
    style(f, PLAIN);
    text_print(&f->line, "  up %s  %s  ", text_seconds(time, within(s->uptime_seconds, 0, 1e12)),
               endpoint);
    foreign(&f->line, model ? model + 1 : s->model);
    end_line(f);
}

static void requests(struct frame *f, const Gptoss__Status *s)
{
    name(f, "requests");
    text_print(&f->line, "%u running  %u waiting  ", s->requests_running, s->requests_waiting);
    count(&f->line, s->requests_finished);
    text_print(&f->line, " finished  ");
    count(&f->line, s->requests_refused);
    text_print(&f->line, " refused");
    if (s->preemptions) {
        text_print(&f->line, "  ");
        count(&f->line, s->preemptions);
        text_print(&f->line, " preempted");
    }
    if (s->restarts)
        text_print(&f->line, "  ranks lost %llu times", (unsigned long long)s->restarts);
    end_line(f);
    name(f, "tokens/s");
    rate(&f->line, s->sampled_per_second);
    text_print(&f->line, " decode  ");
    rate(&f->line, s->prompt_per_second);
    text_print(&f->line, " prompt  ");
    rate(&f->line, s->steps_per_second);
    text_print(&f->line, " steps/s  %u in flight", s->steps_in_flight);
    end_line(f);
}

static void latency(struct frame *f, const char *what, const Gptoss__Latency *l)
{
    char a[32], b[32], c[32];
    text_print(&f->line, "%s ", what);
    if (l == NULL || l->count == 0)
        text_print(&f->line, "-");
    else
        text_print(&f->line, "p50 %s p90 %s p99 %s", text_seconds(a, within(l->p50, 0, 1e9)),
                   text_seconds(b, within(l->p90, 0, 1e9)),
                   text_seconds(c, within(l->p99, 0, 1e9)));
}

static void pool(struct frame *f, const char *word, uint32_t used, uint32_t cached, uint32_t all)
{
    double share = all ? (double)used / all : 0;
    name(f, word);
    bar(f, share, BAR_WIDTH, share > 0.95 ? RED : share > 0.8 ? YELLOW : GREEN);
    text_print(&f->line, " %3.0f %%  ", 100 * within(share, 0, 1));
    count(&f->line, used);
    text_print(&f->line, " of ");
    count(&f->line, all);
    text_print(&f->line, " blocks");
    if (cached) {
        text_print(&f->line, ", ");
        count(&f->line, cached);
        text_print(&f->line, " cached");
    }
    end_line(f);
}

static void history(struct frame *f, const struct top_history *h)
{
    double most = 0;
    size_t width = f->screen->columns > 40 ? f->screen->columns - 30 : 10;
    for (size_t i = h->n > width ? h->n - width : 0; i < h->n; i++)
        most = h->tokens[i] > most ? h->tokens[i] : most;
    name(f, "tokens/s");
    curve(f, h->tokens, h->n, most, width);
    text_print(&f->line, "  most ");
    rate(&f->line, most);
    end_line(f);
    name(f, "busy");
    curve(f, h->busy, h->n, 1, width);
    text_print(&f->line, "  of 100 %%");
    end_line(f);
}

static const char *busy_colour(double share)
{
    return share >= 0.9 ? GREEN : share >= 0.5 ? YELLOW : RED;
}

/* The widest of the stages' texts, so that columns line up. */
static size_t widest(const Gptoss__Status *s, bool device, size_t most)
{
    size_t width = device ? 6 : 4;
    for (size_t i = 0; i < s->n_stages; i++) {
        const char *text = device ? s->stages[i]->device : s->stages[i]->host;
        width = strlen(text) > width ? strlen(text) : width;
    }
    return width < most ? width : most;
}

static void cell(struct frame *f, const char *text, size_t width)
{
    struct text t = {0};
    size_t columns = 0, i = 0;
    text_add(&t, "", 0);
    foreign(&t, text);
    for (; i < t.size && columns < width; columns++) {
        size_t length = text_utf8_length(t.bytes + i, t.size - i, NULL);
        i += length ? length : 1;
    }
    text_add(&f->line, t.bytes, i);
    text_print(&f->line, "%*s  ", (int)(width - columns), "");
    text_free(&t);
}

static void stages(struct frame *f, const Gptoss__Status *s)
{
    size_t host = widest(s, false, 16), device = widest(s, true, 32);
    size_t bars = f->screen->columns >= 116 ? BAR_WIDTH : f->screen->columns >= 90 ? 16 : 10;
    /* The device's name gets what the others leave. */
    size_t others = 7 + host + 2 + 9 + bars + 10 + 7 + 12 + 12;
    size_t left = f->screen->columns > others + 2 ? f->screen->columns - others - 2 : 0;
    device = device < left ? device : left;
    bool wide = device >= 8;
    style(f, BOLD);
    text_print(&f->line, "stage  %-*s  ", (int)host, "host");
    if (wide)
        text_print(&f->line, "%-*s  ", (int)device, "device");
    text_print(&f->line, "layers   %-*s  queue  %10s  %10s", (int)bars + 10, "busy", "hop",
               "steps");
    style(f, PLAIN);
    end_line(f);
    for (size_t i = 0; i < s->n_stages; i++) {
        const Gptoss__StageStatus *g = s->stages[i];
        char layers[32], hop[32] = "-";
        if (f->screen->rows && f->lines + 1 >= f->screen->rows && i + 1 < s->n_stages) {
            text_print(&f->line, "and %zu more stages", s->n_stages - i);
            end_line(f);
            return;
        }
        text_print(&f->line, "%-5u  ", g->stage);
        cell(f, g->host, host);
        if (wide)
            cell(f, g->device, device);
        snprintf(layers, sizeof layers, "%u-%u", g->layer_first,
                 g->layer_count ? g->layer_first + g->layer_count - 1 : 0);
        text_print(&f->line, "%-7s  ", g->layer_count ? layers : "-");
        if (!s->ready) {
            bar(f, g->loaded, bars, YELLOW);
            text_print(&f->line, " %3.0f %% loaded", 100 * within(g->loaded, 0, 1));
            end_line(f);
            continue;
        }
        bar(f, g->busy_share, bars, busy_colour(g->busy_share));
        text_print(&f->line, " %5.1f %%", 100 * within(g->busy_share, 0, 1));
        if (g->hop_seconds > 0)
            text_seconds(hop, within(g->hop_seconds, 0, 1e9));
        /* µ has two bytes and one column. */
        int pad = 10 + (strstr(hop, "µ") != NULL);
        text_print(&f->line, "  %5u  %*s  %10llu", g->queue, pad, hop,
                   (unsigned long long)g->steps);
        end_line(f);
    }
}

void top_frame(struct text *out, const char *endpoint, const Gptoss__Status *s,
               const struct top_history *h, const struct top_screen *screen)
{
    char time[32];
    struct frame f = {.out = out, .screen = screen};
    if (screen->notice) {
        style(&f, RED);
        text_print(&f.line, "%s", screen->notice);
        style(&f, PLAIN);
        end_line(&f);
    }
    head(&f, endpoint, s);
    requests(&f, s);
    name(&f, "latency");
    latency(&f, "first token", s->first_token);
    text_print(&f.line, "   ");
    latency(&f, "next", s->between_tokens);
    end_line(&f);
    name(&f, "pipeline");
    if (s->window_seconds > 0) {
        text_print(&f.line, "busy %.1f %%  bubble %.1f %%", 100 * (1 - s->bubble_share),
                   100 * s->bubble_share);
        if (s->hop_seconds > 0)
            text_print(&f.line, "  hop %s", text_seconds(time, within(s->hop_seconds, 0, 1e9)));
        text_print(&f.line, "  of the last %s",
                   text_seconds(time, within(s->window_seconds, 0, 1e9)));
    } else
        text_print(&f.line, "-");
    end_line(&f);
    pool(&f, "KV full", s->kv_full_blocks_used, s->kv_full_blocks_cached, s->kv_full_blocks);
    pool(&f, "KV window", s->kv_window_blocks_used, s->kv_window_blocks_cached,
         s->kv_window_blocks);
    if (h->n > 1)
        history(&f, h);
    end_line(&f);
    stages(&f, s);
    text_free(&f.line);
}
