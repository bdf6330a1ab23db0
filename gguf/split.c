/*
 * Models in several files, as llama.cpp cuts them: PREFIX-00001-of-00003.gguf and so on, each with
 * split.no (from 0), split.count and split.tensors.count (of all parts). The model's keys are in the
 * first; every part has tensor infos and data of its own.
 */
#include "gguf/index.h"
#include "gguf/private.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUFFIX_BYTES 20 /* "-00001-of-00003.gguf" */
#define PARTS_MAX    99999u

struct split {
    uint32_t no, count, n_tensors; /* count 0: not split; n_tensors UINT32_MAX: not said */
};

static int read_split(const struct gguf_file *part, struct split *s, char *err, size_t err_size)
{
    *s = (struct split){.n_tensors = UINT32_MAX};
    if (gguf_get_u32(part, "split.count", &s->count, err, err_size) < 0 ||
        gguf_get_u32(part, "split.no", &s->no, err, err_size) < 0 ||
        gguf_get_u32(part, "split.tensors.count", &s->n_tensors, err, err_size) < 0)
        return -1;
    if (s->count <= 1)
        s->count = 0;
    if (s->count > PARTS_MAX || (s->count && s->no >= s->count))
        return gguf_fail(err, err_size,
                         "%s: says that it is part %" PRIu64 " of %" PRIu32
                         ": the file is damaged, fetch it again",
                         part->path, (uint64_t)s->no + 1, s->count);
    return 0;
}

/* The path of a part, from that of part `no`; NULL if that is not named as a part is, or for want of
 * memory. The caller frees. */
static char *part_path(const char *path, const struct split *s, uint32_t wanted)
{
    char suffix[32];
    size_t size = strlen(path);
    snprintf(suffix, sizeof suffix, "-%05u-of-%05u.gguf", s->no + 1, s->count);
    if (size < SUFFIX_BYTES || strcmp(path + size - SUFFIX_BYTES, suffix) != 0)
        return NULL;
    char *other = strdup(path);
    if (other)
        snprintf(other + size - SUFFIX_BYTES, SUFFIX_BYTES + 1, "-%05u-of-%05u.gguf", wanted + 1,
                 s->count);
    return other;
}

static int refuse_name(const struct gguf_file *file, const struct split *s, char *err,
                       size_t err_size)
{
    char *first = part_path(file->path, s, 0);
    if (!first)
        gguf_fail(err, err_size,
                  "%s: is part %" PRIu32 " of %" PRIu32
                  " of a split model, and its name does not end in -%05" PRIu32 "-of-%05" PRIu32
                  ".gguf: give the parts the names back that they came with",
                  file->path, s->no + 1, s->count, s->no + 1, s->count);
    else
        gguf_fail(err, err_size,
                  "%s: is part %" PRIu32 " of %" PRIu32 " of a split model: give the first, %s",
                  file->path, s->no + 1, s->count, first);
    free(first);
    return -1;
}

static int open_part(struct gguf_file *file, const struct split *s, uint32_t i, char *err,
                     size_t err_size)
{
    char *path = part_path(file->path, s, i);
    struct gguf_file *part = NULL;
    struct split own;
    int status = -1;
    if (!path) {
        refuse_name(file, s, err, err_size);
        goto done;
    }
    if (access(path, F_OK)) {
        gguf_fail(err, err_size,
                  "%s: is not there, and %s is part 1 of %" PRIu32
                  " of a split model: fetch all parts into one folder",
                  path, file->path, s->count);
        goto done;
    }
    if (gguf_part_open(&part, path, err, err_size) || read_split(part, &own, err, err_size))
        goto done;
    if (own.no != i || own.count != s->count || own.n_tensors != s->n_tensors) {
        gguf_fail(err, err_size,
                  "%s: says that it is part %" PRIu32 " of %" PRIu32
                  ", and is no part of the same model as %s: fetch both again",
                  path, own.no + 1, own.count, file->path);
        goto done;
    }
    file->parts[i - 1] = part;
    part = NULL;
    status = 0;
done:
    gguf_close(part);
    free(path);
    return status;
}

/* All tensors in one array with one index. */
static int take_tensors(struct gguf_file *file, const struct split *s, char *err, size_t err_size)
{
    uint64_t total = file->n_tensors;
    for (uint32_t i = 1; i < file->n_parts; i++)
        total += file->parts[i - 1]->n_tensors; /* each is bounded by its file */
    if (s->n_tensors != UINT32_MAX && total != s->n_tensors)
        return gguf_fail(err, err_size,
                         "%s: says that its parts have %" PRIu32 " tensors, and they have %" PRIu64
                         ": fetch them again",
                         file->path, s->n_tensors, total);
    struct gguf_tensor *all = calloc(total ? total : 1, sizeof *all);
    free(file->tensor_index.slots);
    file->tensor_index.slots = NULL;
    if (!all || gguf_index_create(&file->tensor_index, total)) {
        free(all);
        return gguf_fail(err, err_size, "%s: out of memory for %" PRIu64 " tensors", file->path,
                         total);
    }
    uint64_t own = file->n_tensors;
    memcpy(all, file->tensors, own * sizeof *all);
    free(file->tensors);
    file->tensors = all;
    file->n_tensors = 0;
    for (uint32_t part = 0; part < file->n_parts; part++) {
        const struct gguf_file *from = part ? file->parts[part - 1] : file;
        uint64_t n = part ? from->n_tensors : own;
        for (uint64_t i = 0; i < n; i++) {
            struct gguf_tensor *t = &all[file->n_tensors];
            if (part)
                *t = from->tensors[i];
            t->part = part;
            uint64_t twin =
                gguf_index_add(&file->tensor_index, gguf_tensor_name, file, file->n_tensors++);
            if (twin)
                return gguf_fail(
                    err, err_size, "%s: tensor %s is there, and in %s too: fetch both again",
                    gguf_part_path(file, part), t->name, gguf_part_path(file, all[twin - 1].part));
        }
    }
    return 0;
}

int gguf_split_join(struct gguf_file *file, char *err, size_t err_size)
{
    struct split s;
    if (read_split(file, &s, err, err_size))
        return -1;
    if (!s.count)
        return 0;
    if (s.no)
        return refuse_name(file, &s, err, err_size);
    file->parts = calloc(s.count, sizeof *file->parts);
    uint64_t *digests = calloc(s.count, sizeof *digests);
    int status = -1;
    if (!file->parts || !digests) {
        gguf_fail(err, err_size, "%s: out of memory for %" PRIu32 " parts", file->path, s.count);
        goto done;
    }
    digests[0] = file->digest;
    for (uint32_t i = 1; i < s.count; i++) {
        if (open_part(file, &s, i, err, err_size))
            goto done;
        file->n_parts = i + 1;
        digests[i] = file->parts[i - 1]->digest;
    }
    if (take_tensors(file, &s, err, err_size))
        goto done;
    file->digest = gguf_hash(digests, s.count * sizeof *digests, 0);
    status = 0;
done:
    free(digests);
    return status;
}
