/*
 * A file: opened, mapped, closed. What its bytes mean is in header.c.
 */
#include "gguf/index.h"
#include "gguf/private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int gguf_fail(char *err, size_t err_size, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (err && err_size)
        vsnprintf(err, err_size, format, args);
    va_end(args);
    return -1;
}

const char *gguf_shown(char shown[GGUF_SHOWN], const char *bytes, uint64_t size)
{
    size_t n = size < GGUF_SHOWN - 4 ? (size_t)size : GGUF_SHOWN - 4;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)bytes[i];
        shown[i] = c < 0x20 || c >= 0x7f ? '?' : (char)c;
    }
    strcpy(shown + n, n < size ? "..." : "");
    return shown;
}

/* Four independent lanes of 8 bytes keep the multiplier busy: several GB/s. */
uint64_t gguf_hash(const void *bytes, uint64_t size, uint64_t seed)
{
    const unsigned char *p = bytes;
    const uint64_t odd = 0xd6e8feb86659fd93u;
    uint64_t lanes[4] = {seed ^ size, seed + odd, seed ^ ~odd, seed - size * odd};
    for (; size >= 32; p += 32, size -= 32)
        for (int i = 0; i < 4; i++) {
            uint64_t word;
            memcpy(&word, p + 8 * i, 8);
            lanes[i] = (lanes[i] ^ word) * odd;
            lanes[i] ^= lanes[i] >> 31;
        }
    unsigned char tail[32] = {0};
    memcpy(tail, p, size);
    uint64_t hash = size;
    for (int i = 0; i < 4; i++) {
        uint64_t word;
        memcpy(&word, tail + 8 * i, 8);
        hash = (hash ^ lanes[i]) * odd;
        hash ^= hash >> 32;
        hash = (hash ^ word) * odd;
        hash ^= hash >> 29;
    }
    return hash;
}

int gguf_part_open(struct gguf_file **out, const char *path, char *err, size_t err_size)
{
    struct gguf_file *file = NULL;
    int fd = -1;
    *out = NULL;

    /* Not to wait for a writer where the path names a pipe. */
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        gguf_fail(err, err_size, "%s: %m%s", path,
                  errno == ENOENT ? ": give the path of a .gguf file" : "");
        goto fail;
    }
    struct stat about;
    if (fstat(fd, &about)) {
        gguf_fail(err, err_size, "%s: %m", path);
        goto fail;
    }
    if (S_ISDIR(about.st_mode)) {
        gguf_fail(err, err_size, "%s: is a directory: give the path of the .gguf file in it", path);
        goto fail;
    }
    if (!S_ISREG(about.st_mode)) {
        gguf_fail(
            err, err_size,
            "%s: is not a regular file, so it cannot be mapped: give the path of a .gguf file",
            path);
        goto fail;
    }
    if (about.st_size == 0) {
        gguf_fail(err, err_size, "%s: is empty: the file is cut short, fetch it again", path);
        goto fail;
    }

    file = calloc(1, sizeof *file);
    if (!file || !(file->path = strdup(path))) {
        gguf_fail(err, err_size, "%s: out of memory", path);
        goto fail;
    }
    file->n_parts = 1;
    file->size = (uint64_t)about.st_size;
    void *map = file->size > SIZE_MAX
                    ? MAP_FAILED
                    : mmap(NULL, (size_t)file->size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        gguf_fail(err, err_size, "%s: cannot be mapped: %m", path);
        goto fail;
    }
    file->map = map;
    close(fd);
    fd = -1;

    if (gguf_header_parse(file, err, err_size))
        goto fail;
    file->digest = gguf_hash(file->map, file->header_bytes, 0);
    *out = file;
    return 0;

fail:
    if (fd >= 0)
        close(fd);
    gguf_close(file);
    return -1;
}

int gguf_open(struct gguf_file **out, const char *path, char *err, size_t err_size)
{
    if (gguf_part_open(out, path, err, err_size))
        return -1;
    if (!gguf_split_join(*out, err, err_size))
        return 0;
    gguf_close(*out);
    *out = NULL;
    return -1;
}

void gguf_close(struct gguf_file *file)
{
    if (!file)
        return;
    for (uint32_t i = 1; file->parts && i < file->n_parts; i++)
        gguf_close(file->parts[i - 1]);
    free(file->parts);
    free(file->key_index.slots);
    free(file->tensor_index.slots);
    free(file->tensors);
    free(file->keys);
    if (file->map)
        munmap((void *)(uintptr_t)file->map, (size_t)file->size);
    free(file->path);
    free(file);
}

const char *gguf_path(const struct gguf_file *file)
{
    return file->path;
}

uint32_t gguf_version(const struct gguf_file *file)
{
    return file->version;
}

uint64_t gguf_alignment(const struct gguf_file *file)
{
    return file->alignment;
}

uint64_t gguf_file_bytes(const struct gguf_file *file)
{
    uint64_t bytes = file->size;
    for (uint32_t i = 1; i < file->n_parts; i++)
        bytes += file->parts[i - 1]->size;
    return bytes;
}

uint32_t gguf_n_parts(const struct gguf_file *file)
{
    return file->n_parts;
}

const char *gguf_part_path(const struct gguf_file *file, uint32_t part)
{
    if (part >= file->n_parts)
        return NULL;
    return part ? file->parts[part - 1]->path : file->path;
}

uint64_t gguf_header_bytes(const struct gguf_file *file)
{
    return file->header_bytes;
}

uint64_t gguf_header_digest(const struct gguf_file *file)
{
    return file->digest;
}

uint64_t gguf_n_tensors(const struct gguf_file *file)
{
    return file->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf_file *file, uint64_t i)
{
    return i < file->n_tensors ? &file->tensors[i] : NULL;
}

struct gguf_string gguf_tensor_name(const struct gguf_file *file, uint64_t i)
{
    const char *name = file->tensors[i].name;
    return (struct gguf_string){.bytes = name, .size = strlen(name)};
}

const struct gguf_tensor *gguf_tensor_find(const struct gguf_file *file, const char *name)
{
    uint64_t at = gguf_index_find(&file->tensor_index, gguf_tensor_name, file, name, strlen(name));
    return at ? &file->tensors[at - 1] : NULL;
}
