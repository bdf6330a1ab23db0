/*
 * The labels of published files and what they mean for each tensor of a gpt-oss model. (Source:
 * llama.cpp's quantiser, whose choices for gpt-oss-120b these rules reproduce.)
 */
#include "tools/mix.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const struct mix mixes[] = {
    {"mxfp4", 38, GGUF_Q8_0, true}, /* and the experts MXFP4 */
    {"f32", 0, GGUF_F32, true},       {"f16", 1, GGUF_F16, true},
    {"bf16", 32, GGUF_BF16, true},    {"q8_0", 7, GGUF_Q8_0, true},
    {"q6_k", 18, GGUF_Q6_K, false},   {"q5_k_m", 17, GGUF_Q5_K, false},
    {"q5_k_s", 16, GGUF_Q5_K, false}, {"q4_k_m", 15, GGUF_Q4_K, false},
    {"q4_k_s", 14, GGUF_Q4_K, false}, {"q3_k_l", 13, GGUF_Q3_K, false},
    {"q3_k_m", 12, GGUF_Q3_K, false}, {"q3_k_s", 11, GGUF_Q3_K, false},
    {"q2_k", 10, GGUF_Q2_K, false},   {"q2_k_s", 21, GGUF_Q2_K, false},
    {"q5_1", 9, GGUF_Q5_1, false},    {"q5_0", 8, GGUF_Q5_0, false},
    {"q4_1", 3, GGUF_Q4_1, false},    {"q4_0", 2, GGUF_Q4_0, false},
};

#define N_MIXES (sizeof mixes / sizeof *mixes)

const struct mix *mix_find(const char *label)
{
    if (!strcasecmp(label, "mxfp4_moe"))
        return &mixes[0];
    for (size_t i = 0; i < N_MIXES; i++)
        if (!strcasecmp(mixes[i].label, label))
            return &mixes[i];
    return NULL;
}

void mix_labels(struct text *out)
{
    for (size_t i = 0; i < N_MIXES; i++)
        text_print(out, "%s%s", i == 0 ? "" : i + 1 == N_MIXES ? " and " : ", ", mixes[i].label);
}

int mix_type_find(const char *name, enum gguf_type *out)
{
    for (uint32_t type = 0; type < 64; type++)
        if (gguf_type_block_values(type) && !strcasecmp(gguf_type_name(type), name)) {
            float zeros[256] = {0};
            unsigned char block[1024];
            *out = (enum gguf_type)type;
            return gguf_from_float(*out, zeros, block, gguf_type_block_values(type));
        }
    return -1;
}

void mix_types(struct text *out)
{
    for (uint32_t type = 0; type < 64; type++) {
        enum gguf_type found;
        const char *name = gguf_type_name(type);
        if (!gguf_type_block_values(type) || mix_type_find(name, &found))
            continue;
        if (out->size)
            text_print(out, ", ");
        for (; *name; name++)
            text_print(out, "%c", tolower((unsigned char)*name));
    }
}

const char *mix_role(const char *name, uint32_t *layer)
{
    *layer = 0;
    if (strncmp(name, "blk.", 4) != 0)
        return name;
    char *end;
    *layer = (uint32_t)strtoul(name + 4, &end, 10);
    return *end == '.' ? end + 1 : name;
}

enum gguf_type mix_fallback(enum gguf_type type, uint64_t ne0)
{
    if (ne0 % gguf_type_block_values(type) == 0)
        return type;
    switch (type) {
    case GGUF_Q2_K:
    case GGUF_Q3_K: return mix_fallback(GGUF_Q4_0, ne0);
    case GGUF_Q4_K: return mix_fallback(GGUF_Q5_0, ne0);
    case GGUF_Q5_K: return mix_fallback(GGUF_Q5_1, ne0);
    case GGUF_Q6_K: return mix_fallback(GGUF_Q8_0, ne0);
    default: return type; /* nothing holds them: the caller tells */
    }
}

/* More bits for the first and last eighth of the layers and every third between. */
static bool wants_more(uint32_t layer, uint32_t n)
{
    return layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
}

/* The type of values (attn_v) or of the experts' down, before the fallback. */
static enum gguf_type values_or_down(const struct mix *mix, bool down, uint32_t layer, uint32_t n)
{
    switch (mix->file_type) {
    case 17: /* Q5_K_M */
    case 15: /* Q4_K_M */ return wants_more(layer, n) ? GGUF_Q6_K : mix->base;
    case 14: /* Q4_K_S */ return layer < (down ? n / 8 : 4) ? GGUF_Q5_K : GGUF_Q4_K;
    case 13: /* Q3_K_L */ return GGUF_Q5_K;
    case 12: /* Q3_K_M */ return layer < (down ? n / 16 : 2) ? GGUF_Q5_K : GGUF_Q4_K;
    case 10: /* Q2_K */ return down ? GGUF_Q3_K : GGUF_Q4_K;
    case 21: /* Q2_K_S */ return !down || layer < n / 8 ? GGUF_Q4_K : GGUF_Q2_K;
    default: return mix->base;
    }
}

static enum gguf_type attention_output(const struct mix *mix)
{
    switch (mix->file_type) {
    case 13: /* Q3_K_L */ return GGUF_Q5_K;
    case 12: /* Q3_K_M */ return GGUF_Q4_K;
    case 10: /* Q2_K */ return GGUF_Q3_K;
    default: return mix->base;
    }
}

enum gguf_type mix_type(const struct mix *mix, const char *name, uint32_t n_layers, uint64_t ne0)
{
    uint32_t layer;
    const char *role = mix_role(name, &layer);
    bool experts = strstr(role, "_exps.weight") != NULL;
    bool matrix = experts || (!strncmp(role, "attn_", 5) && strstr(role, ".weight") &&
                              !strstr(role, "norm") && !strstr(role, "sinks"));
    enum gguf_type type = mix->base;
    if (!strcmp(role, "output.weight"))
        type = mix->plain ? mix->base : GGUF_Q6_K;
    else if (!matrix && strcmp(role, "token_embd.weight") != 0)
        return GGUF_F32;
    else if (mix->file_type == 38 && experts)
        type = GGUF_MXFP4;
    else if (!strcmp(role, "attn_v.weight"))
        type = values_or_down(mix, false, layer, n_layers);
    else if (!strcmp(role, "ffn_down_exps.weight"))
        type = values_or_down(mix, true, layer, n_layers);
    else if (!strcmp(role, "attn_output.weight"))
        type = attention_output(mix);
    return mix_fallback(type, ne0);
}
