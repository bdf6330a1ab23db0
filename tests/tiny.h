/*
 * tiny: the bundled model, open while a group of tests runs:
 *
 *     return cmocka_run_group_tests(tests, open_model, close_model);
 */
#ifndef GPTOSS_TESTS_TINY_H
#define GPTOSS_TESTS_TINY_H

#include <stdio.h>

#include "gguf/gguf.h"

static struct gguf_file *file;
static struct gguf_model *model;

static int open_model(void **state)
{
    (void)state;
    char text[512];
    if (gguf_open(&file, GPTOSS_SOURCE_DIR "/models/gptoss-tiny-mxfp4.gguf", text, sizeof text) ||
        gguf_model_create(&model, file, text, sizeof text)) {
        fprintf(stderr, "%s\n", text);
        return -1;
    }
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    gguf_model_destroy(model);
    gguf_close(file);
    return 0;
}

#endif
