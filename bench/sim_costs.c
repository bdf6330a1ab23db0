#include "bench/simulate.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

static double number(const json_t *object, const char *name, double fallback)
{
    const json_t *value = json_object_get(object, name);
    return json_is_number(value) ? json_number_value(value) : fallback;
}

static void read_curve(const json_t *list, double *curve)
{
    for (size_t i = 0; i < COST_CURVE; i++) {
        const json_t *value = json_array_get(list, i);
        double v = json_is_number(value) ? json_number_value(value) : 1;
        curve[i] = v > 0.01 && v < 100 ? v : 1;
    }
}

static void read_spread(const json_t *list, double spread[COST_SPREAD])
{
    double sum = 0;
    for (size_t i = 0; i < COST_SPREAD; i++) {
        const json_t *value = json_array_get(list, i);
        double v = json_is_number(value) ? json_number_value(value) : 1;
        spread[i] = v > 0.01 && v < 100 ? v : 1;
        sum += spread[i];
    }
    for (size_t i = 0; i < COST_SPREAD; i++)
        spread[i] *= COST_SPREAD / sum;
}

static int read_stage(const json_t *from, struct cost_stage *stage)
{
    const json_t *factors = json_object_get(from, "factors");
    if (!json_is_object(factors))
        return -1;
    /* Steps that something held up are part of a run. */
    double bias = number(from, "bias", 1);
    bias = bias > 0.5 && bias < 2 ? bias : 1;
    for (int i = 0; i < COST_TERMS; i++) {
        double factor = bias * number(factors, cost_term_name((enum cost_term)i), 1);
        stage->factor[i] = factor > 0 && factor < 1e6 ? factor : 1;
        stage->unit[i] =
            number(json_object_get(from, "seconds"), cost_term_name((enum cost_term)i), 0);
    }
    read_curve(json_object_get(from, "curve"), stage->curve[0]);
    read_curve(json_object_get(from, "prompt_curve"), stage->curve[1]);
    stage->observed = number(from, "steps", 0);
    stage->error = number(from, "error", 0);
    return 0;
}

int sim_costs_read(struct sim_costs *costs, const char *path, char *err, size_t err_size)
{
    *costs = (struct sim_costs){0};
    json_error_t where;
    json_t *root = json_load_file(path, 0, &where);
    const json_t *stages = json_object_get(root, "stages");
    size_t n = json_array_size(stages);
    if (!root) {
        snprintf(err, err_size, "%s:%d: %s", path, where.line, where.text);
        return -1;
    }
    if (n == 0 || n > 4096) {
        snprintf(err, err_size,
                 "%s has no stages: make it with gptoss-coordinator --costs, and let it serve "
                 "some requests",
                 path);
        goto fail;
    }
    costs->stages = base_alloc(n, sizeof *costs->stages);
    costs->spread = base_alloc(n, sizeof *costs->spread);
    costs->n = (uint32_t)n;
    for (size_t s = 0; s < n; s++) {
        if (read_stage(json_array_get(stages, s), &costs->stages[s])) {
            snprintf(err, err_size, "%s: stage %zu has no factors", path, s);
            goto fail;
        }
        read_spread(json_object_get(json_array_get(stages, s), "spread"), costs->spread[s]);
        costs->observed += costs->stages[s].observed / (double)n;
        costs->error += costs->stages[s].error / (double)n;
    }
    costs->gpu = json_is_true(json_object_get(root, "gpu"));
    costs->bandwidth = number(root, "bandwidth", 0);
    costs->flops = number(root, "flops", 0);
    costs->memory_bytes = (uint64_t)number(root, "memory_bytes", 0);
    costs->context = (uint32_t)number(root, "context", 0);
    costs->sequences = (uint32_t)number(root, "sequences", 0);
    costs->step_tokens = (uint32_t)number(root, "step_tokens", 0);
    costs->kv_type = (enum plan_kv_type)number(root, "kv_type", PLAN_KV_F32);
    json_decref(root);
    return 0;
fail:
    json_decref(root);
    sim_costs_free(costs);
    return -1;
}

void sim_costs_free(struct sim_costs *costs)
{
    free(costs->stages);
    free(costs->spread);
    *costs = (struct sim_costs){0};
}

void sim_costs_spread(const struct sim_costs *costs, uint32_t s, uint32_t n,
                      double spread[COST_SPREAD])
{
    uint32_t known = costs ? costs->n : 0;
    for (int i = 0; i < COST_SPREAD; i++) {
        double sum = 0;
        for (uint32_t k = 0; k < known; k++)
            sum += costs->spread[k][i];
        spread[i] = known == 0 ? 1 : known == n ? costs->spread[s][i] : sum / known;
    }
}

void sim_costs_stage(const struct sim_costs *costs, const struct gguf_model *model,
                     const struct plan *plan, uint32_t s, struct cost_stage *stage)
{
    struct plan_rank rank = {
        .bandwidth = costs->bandwidth, .flops = costs->flops, .weights_in_place = !costs->gpu};
    cost_stage_init(stage, model, plan, s, &rank);
    bool same = costs->n == plan->n_stages;
    for (int i = 0; i < COST_TERMS && costs->n; i++) {
        /* The mean over the stages that have such work: a head is on one of them, say. */
        double sum = 0, weight = 0;
        for (uint32_t k = 0; k < costs->n; k++) {
            double seconds = costs->stages[k].unit[i];
            sum += seconds * costs->stages[k].factor[i];
            weight += seconds;
        }
        stage->factor[i] = same ? costs->stages[s].factor[i] : weight > 0 ? sum / weight : 1;
    }
    for (int kind = 0; kind < 2 && costs->n; kind++)
        for (int i = 0; i < COST_CURVE; i++) {
            double sum = 0;
            for (uint32_t k = 0; k < costs->n; k++)
                sum += costs->stages[k].curve[kind][i];
            stage->curve[kind][i] = same ? costs->stages[s].curve[kind][i] : sum / costs->n;
        }
}
