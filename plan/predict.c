/*
 * predict: how fast a plan would be.
 */
#include <math.h>

#include "plan/plan.h"

#define DEPTH       512   /* positions before the rows of a step, and before a prompt's chunk */
#define HOP_SECONDS 20e-6 /* from one stage to the next, the ring included */

void plan_predict(const struct plan *plan, const struct gguf_model *model,
                  const struct plan_rank *ranks, const struct plan_rank *rank,
                  struct plan_prediction *prediction)
{
    struct cost_work one = {0}, many = {0}, prompt = {0};
    cost_add(&one, model, DEPTH, 1, 1);
    for (int i = 0; i < PLAN_MANY; i++)
        cost_add(&many, model, DEPTH, 1, 1);
    cost_add(&prompt, model, DEPTH, plan->step_tokens, 0);
    double all = 0, slowest = 0, slowest_prompt = 0;
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        struct cost_stage stage;
        cost_stage_init(&stage, model, plan, s, ranks ? &ranks[s] : rank);
        all += cost_seconds(&stage, &one) + (plan->n_stages > 1 ? HOP_SECONDS : 0);
        slowest = fmax(slowest, cost_seconds(&stage, &many));
        slowest_prompt = fmax(slowest_prompt, cost_seconds(&stage, &prompt));
    }
    *prediction = (struct plan_prediction){
        .one = 1 / all, .many = PLAN_MANY / slowest, .prompt = plan->step_tokens / slowest_prompt};
}
