/*
 * The angles of RoPE with YaRN, as OpenAI's model has them: the ends of the ramp are not rounded.
 */
#include "gguf/private.h"

#include <math.h>

#define PI 3.14159265358979323846

/* The (fractional) pair that turns `turns` times within the original context. */
static double pair_of_turns(const struct gguf_model *m, double turns)
{
    return m->head_dim * log((double)m->yarn_context / (turns * 2 * PI)) /
           (2 * log((double)m->rope_theta));
}

double gguf_model_rope(const struct gguf_model *model, double *omega)
{
    uint32_t pairs = model->head_dim / 2;
    double factor = (double)model->yarn_factor;
    for (uint32_t i = 0; i < pairs; i++)
        omega[i] = pow((double)model->rope_theta, -2.0 * i / model->head_dim);
    if (!(factor > 1))
        return 1;

    /* Fast pairs (before low) keep their angle, slow ones (after high) are slowed by the factor. */
    double low = fmax(pair_of_turns(model, (double)model->yarn_beta_fast), 0);
    double high = fmin(pair_of_turns(model, (double)model->yarn_beta_slow), model->head_dim - 1);
    double width = fmax(high - low, 0.001);
    for (uint32_t i = 0; i < pairs; i++) {
        double keep = 1 - fmin(fmax((i - low) / width, 0), 1);
        omega[i] *= keep + (1 - keep) / factor;
    }

    float attention = 1;
    if (model->file)
        gguf_get_f32(model->file, "gpt-oss.rope.scaling.attn_factor", &attention, NULL, 0);
    return (1 + 0.1 * log(factor)) * (double)attention;
}
