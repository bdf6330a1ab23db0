/* keys: who may ask. A file of keys, one a line. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "client/gateway/gateway.h"

#define KEY_MIN 8
#define KEY_MAX 256

/* 1: a key; 0: none on this line; -1: what stands there is none. */
static int line_read(struct api_keys *k, char *line)
{
    line[strcspn(line, "\r\n")] = '\0';
    char *key = line + strspn(line, " \t");
    size_t size = strcspn(key, " \t#");
    if (size == 0 && (key[0] == '\0' || key[0] == '#'))
        return 0;
    if (size < KEY_MIN || size > KEY_MAX)
        return -1;
    for (size_t i = 0; i < size; i++)
        if (key[i] <= ' ' || key[i] > '~')
            return -1;
    k->keys = base_grow(k->keys, &k->capacity, k->n + 1, sizeof *k->keys);
    k->keys[k->n] = base_alloc(KEY_MAX + 1, 1); /* all of one size, zeros behind: see admit */
    memcpy(k->keys[k->n++], key, size);
    return 1;
}

int api_keys_read(struct api_keys *k, const char *path, char *err, size_t err_size)
{
    char line[1024];
    struct stat status;
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        snprintf(err, err_size, "cannot read the keys %s: %m", path);
        return -1;
    }
    if (fstat(fileno(file), &status) == 0 && (status.st_mode & (S_IRGRP | S_IROTH)) != 0) {
        snprintf(err, err_size, "others may read the keys %s: chmod 600 it", path);
        goto fail;
    }
    for (int number = 1; fgets(line, sizeof line, file) != NULL; number++)
        if ((strchr(line, '\n') == NULL && !feof(file)) || line_read(k, line) < 0) {
            snprintf(err, err_size,
                     "%s:%d: a key is %d to %d visible characters, a line at most %zu; # begins a "
                     "comment",
                     path, number, KEY_MIN, KEY_MAX, sizeof line - 2);
            goto fail;
        }
    if (k->n == 0) {
        snprintf(err, err_size, "there is no key in %s: one a line", path);
        goto fail;
    }
    fclose(file);
    return 0;
fail:
    fclose(file);
    return -1;
}

void api_keys_free(struct api_keys *k)
{
    for (size_t i = 0; i < k->n; i++)
        free(k->keys[i]);
    free(k->keys);
    *k = (struct api_keys){0};
}

bool api_keys_admit(const struct api_keys *k, const char *authorization)
{
    char given[KEY_MAX + 1] = {0};
    if (authorization == NULL || strncasecmp(authorization, "Bearer ", 7) != 0)
        return false;
    const char *key = authorization + 7 + strspn(authorization + 7, " ");
    size_t size = strlen(key);
    if (size == 0 || size > KEY_MAX)
        return false;
    memcpy(given, key, size);
    /* Every key, and every byte of it, is looked at whatever is found. */
    unsigned admitted = 0;
    for (size_t i = 0; i < k->n; i++) {
        volatile unsigned char differs = 0;
        for (size_t b = 0; b <= KEY_MAX; b++)
            differs |= (unsigned char)(given[b] ^ k->keys[i][b]);
        admitted |= differs == 0;
    }
    return admitted != 0;
}
