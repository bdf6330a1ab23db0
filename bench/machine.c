#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/bench.h"

void bench_cpu_info(char *text, size_t text_size)
{
    snprintf(text, text_size, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (!file)
        return;
    char line[512];
    while (fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon)
            continue;
        colon += 1 + strspn(colon + 1, " ");
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(text, text_size, "%s", colon);
        break;
    }
    fclose(file);
}

static uint64_t elements(const struct gguf_tensor *tensor)
{
    return tensor ? tensor->ne[0] * tensor->ne[1] * tensor->ne[2] * tensor->ne[3] : 0;
}

static uint64_t linear_elements(const struct gguf_linear *linear)
{
    return elements(linear->weight) + elements(linear->bias);
}

uint64_t bench_model_parameters(const struct gguf_model *model)
{
    uint64_t n = elements(model->embedding) + elements(model->output_norm);
    if (model->output != model->embedding)
        n += elements(model->output);
    for (uint32_t i = 0; i < model->n_layers; i++) {
        const struct gguf_layer *l = &model->layers[i];
        n += elements(l->attn_norm) + linear_elements(&l->attn_q) + linear_elements(&l->attn_k) +
             linear_elements(&l->attn_v) + linear_elements(&l->attn_out) + elements(l->sinks) +
             elements(l->ffn_norm) + linear_elements(&l->router) + linear_elements(&l->gate) +
             linear_elements(&l->up) + linear_elements(&l->down);
    }
    return n;
}

/* "20.9B", "23.4M". */
static void count_text(uint64_t n, char *text, size_t text_size)
{
    const char *unit = n >= 1000000000 ? "B" : n >= 1000000 ? "M" : "K";
    double value = (double)n / (n >= 1000000000 ? 1e9 : n >= 1000000 ? 1e6 : 1e3);
    snprintf(text, text_size, value < 100 ? "%.1f%s" : "%.0f%s", value, unit);
}

void bench_model_type(const struct gguf_model *model, char *text, size_t text_size)
{
    char size[32], err[256];
    struct gguf_string label;
    if (gguf_get_string(model->file, "general.size_label", &label, err, sizeof err) == 0 &&
        label.size > 0 && label.size < 16)
        snprintf(size, sizeof size, "%.*s", (int)label.size, label.bytes);
    else
        count_text(bench_model_parameters(model), size, sizeof size);
    snprintf(text, text_size, "gpt-oss %s %s MoE", size,
             gguf_type_name(model->layers[0].gate.weight->type));
}

void bench_vocabulary(const struct gguf_model *model, struct bench_vocabulary *vocabulary)
{
    enum { UNUSED = 5 };
    const struct gguf_key *types = gguf_key_find(model->file, "tokenizer.ggml.token_type");
    if (types && (types->type != GGUF_VALUE_ARRAY || types->element > GGUF_VALUE_I32 ||
                  types->count != model->vocabulary))
        types = NULL;
    vocabulary->types = types;
    vocabulary->limit = model->vocabulary;
    while (types && vocabulary->limit > 1 &&
           gguf_integer_at(types, vocabulary->limit - 1) == UNUSED)
        vocabulary->limit--;
}

/* SplitMix64. */
uint64_t bench_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

double bench_random_exponential(uint64_t *state)
{
    return -log(((double)(bench_random(state) >> 11) + 0.5) * 0x1p-53);
}

void bench_prompt(const struct bench_vocabulary *vocabulary, uint64_t seed, uint32_t sequence,
                  uint32_t *ids, uint32_t n)
{
    enum { NORMAL = 1, TRIES = 64 };
    uint64_t state = seed;
    state = bench_random(&state) + sequence;
    for (uint32_t i = 0; i < n; i++)
        for (int t = 0; t < TRIES; t++) {
            ids[i] = (uint32_t)(bench_random(&state) % vocabulary->limit);
            if (!vocabulary->types || gguf_integer_at(vocabulary->types, ids[i]) == NORMAL)
                break;
        }
}

uint32_t bench_test_samples(const struct bench_test *test)
{
    return test->n_gen + (test->n_prompt > 0);
}

void bench_test_name(const struct bench_test *test, char *name, size_t name_size)
{
    char prompt[24] = "", gen[24] = "", depth[24] = "";
    if (test->n_prompt)
        snprintf(prompt, sizeof prompt, "pp%" PRIu32, test->n_prompt);
    if (test->n_gen)
        snprintf(gen, sizeof gen, "%stg%" PRIu32, test->n_prompt ? "+" : "", test->n_gen);
    if (test->n_depth)
        snprintf(depth, sizeof depth, " @ d%" PRIu32, test->n_depth);
    snprintf(name, name_size, "%s%s%s", prompt, gen, depth);
}
