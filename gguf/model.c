/*
 * The gpt-oss model in a file: made, or looked through for all that is wrong with it.
 */
#include "gguf/binder.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

int gguf_refuse(struct binder *b, const char *format, ...)
{
    char sentence[SENTENCE_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    b->findings++;
    if (b->found)
        b->found(b->arg, sentence);
    else
        gguf_fail(b->err, b->err_size, "%s", sentence);
    return -1;
}

int gguf_model_create(struct gguf_model **out, const struct gguf_file *file, char *err,
                      size_t err_size)
{
    struct binder binder = {.file = file, .err = err, .err_size = err_size};
    *out = NULL;
    binder.model = calloc(1, sizeof *binder.model);
    if (!binder.model)
        return gguf_fail(err, err_size, "%s: out of memory", file->path);
    binder.model->file = file;
    if (gguf_read_sizes(&binder) || gguf_bind_tensors(&binder)) {
        gguf_model_destroy(binder.model);
        return -1;
    }
    *out = binder.model;
    return 0;
}

uint64_t gguf_check_model(const struct gguf_file *file, gguf_found found, void *arg)
{
    struct gguf_model model = {.file = file};
    struct binder binder = {.model = &model, .file = file, .found = found, .arg = arg};
    bool ours = !gguf_read_sizes(&binder) ||
                gguf_key_find(file, "gpt-oss.block_count"); /* not of another architecture */
    if (ours)
        gguf_bind_tensors(&binder);
    free(model.layers);
    free(model.views);
    return binder.findings;
}

void gguf_model_destroy(struct gguf_model *model)
{
    if (!model)
        return;
    free(model->layers);
    free(model->views);
    free(model);
}
