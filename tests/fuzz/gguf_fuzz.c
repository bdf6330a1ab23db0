/*
 * A libFuzzer target: any bytes as a GGUF file, and everything that looks at one. An input that holds a
 * second "GGUF" after a multiple of 32 bytes is the two parts of a split model.
 */
#include "gguf/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t seen; /* what is read, so that it is read */

static void found(void *arg, const char *sentence)
{
    (void)arg;
    seen += strlen(sentence);
}

static void look_at_keys(const struct gguf_file *file)
{
    for (uint64_t i = 0; i < gguf_n_keys(file); i++) {
        const struct gguf_key *key = gguf_key_at(file, i);
        uint64_t cursor = 0;
        for (uint64_t n = 0; n < key->count; n++)
            if (key->element == GGUF_VALUE_STRING) {
                struct gguf_string text = gguf_next_string(key, &cursor);
                seen += text.size ? (unsigned char)text.bytes[text.size - 1] : 0;
            } else if (key->element != GGUF_VALUE_F32 && key->element != GGUF_VALUE_F64) {
                seen += (uint64_t)gguf_integer_at(key, n);
            }
        seen += strlen(gguf_value_type_name(key->type));
    }
}

static void look_at_tensors(const struct gguf_file *file)
{
    char err[512];
    for (uint64_t i = 0; i < gguf_n_tensors(file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(file, i);
        float block[256];
        seen += t->data[0] + t->data[t->bytes - 1];
        seen += gguf_tensor_find(file, t->name) == t;
        seen += (uint64_t)gguf_check_tensor(file, t, err, sizeof err);
        if (!gguf_type_supported(t->type))
            continue;
        gguf_to_float(t->type, t->data, block, gguf_type_block_values(t->type));
        seen += block[0] > 0;
    }
}

static void look_at_model(const struct gguf_model *m)
{
    double *omega = calloc(m->head_dim, sizeof *omega);
    seen += omega && gguf_model_rope(m, omega) > 1;
    free(omega);
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const struct gguf_tensor *v = m->layers[i].attn_v.weight, *b = m->layers[i].attn_v.bias;
        seen += v->data[v->bytes - 1] + b->data[b->bytes - 1];
    }
}

static void put(const char *path, const uint8_t *data, size_t size)
{
    FILE *out = fopen(path, "wb");
    if (!out || fwrite(data, 1, size, out) != size)
        abort();
    fclose(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char one[64], parts[2][64];
    if (!one[0]) {
        int fd = memfd_create("gguf", MFD_CLOEXEC);
        snprintf(one, sizeof one, "/proc/self/fd/%d", fd);
        for (int i = 0; i < 2; i++)
            snprintf(parts[i], sizeof *parts, "/dev/shm/gguf-fuzz-%d-%05d-of-00002.gguf", getpid(),
                     i + 1);
    }
    const uint8_t *second = NULL;
    for (size_t at = 32; at + 4 <= size && !second; at += 32)
        if (!memcmp(data + at, "GGUF", 4))
            second = data + at;
    if (second) {
        put(parts[0], data, (size_t)(second - data));
        put(parts[1], second, size - (size_t)(second - data));
    } else {
        put(one, data, size);
    }

    char err[512];
    struct gguf_file *file;
    struct gguf_model *model;
    if (!gguf_open(&file, second ? parts[0] : one, err, sizeof err)) {
        look_at_keys(file);
        look_at_tensors(file);
        uint64_t wrong = gguf_check_model(file, found, NULL);
        seen += gguf_check_vocabulary(file, found, NULL);
        int status = gguf_model_create(&model, file, err, sizeof err);
        if ((status == 0) != (wrong == 0)) /* the two must agree */
            abort();
        if (!status)
            look_at_model(model);
        gguf_model_destroy(model);
        gguf_close(file);
    }
    for (int i = 0; i < 2 && second; i++)
        unlink(parts[i]);
    return 0;
}
