/*
 * The arrays of the tokenizer against each other. The coordinator reads them with checks of its own;
 * this tells everything that is wrong at once.
 */
#include "gguf/binder.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define TELLS_MAX 20 /* of one kind */

/* Texts → ids, open addressing, at most half full. */
struct tokens {
    struct gguf_string *texts; /* [n] */
    uint32_t *slots;           /* [mask + 1] id + 1, or 0 */
    uint64_t n, mask;
};

static uint32_t *slot_of(const struct tokens *t, const char *bytes, uint64_t size)
{
    uint64_t i = gguf_hash(bytes, size, 0) & t->mask;
    for (; t->slots[i]; i = (i + 1) & t->mask) {
        const struct gguf_string *text = &t->texts[t->slots[i] - 1];
        if (text->size == size && !memcmp(text->bytes, bytes, (size_t)size))
            break;
    }
    return &t->slots[i];
}

static const struct gguf_key *array(struct binder *b, const char *name, bool strings, bool needed)
{
    const struct gguf_key *key = gguf_key_find(b->file, name);
    if (!key) {
        if (needed)
            gguf_refuse(b, "%s: key %s is missing: the file holds no tokenizer", b->file->path,
                        name);
        return NULL;
    }
    bool right = key->type == GGUF_VALUE_ARRAY && strings == (key->element == GGUF_VALUE_STRING);
    if (right)
        return key;
    gguf_refuse(b, "%s: key %s is no array of %s", b->file->path, name,
                strings ? "strings" : "numbers");
    return NULL;
}

static int index_tokens(struct binder *b, const struct gguf_key *key, struct tokens *t)
{
    uint64_t cursor = 0, slots = 16, told = 0;
    char shown[GGUF_SHOWN];
    while (slots < 2 * key->count)
        slots *= 2;
    t->texts = calloc(key->count + 1, sizeof *t->texts);
    t->slots = calloc(slots, sizeof *t->slots);
    t->n = key->count;
    t->mask = slots - 1;
    if (!t->texts || !t->slots)
        return gguf_refuse(b, "%s: out of memory for %" PRIu64 " tokens", b->file->path,
                           key->count);
    for (uint64_t id = 0; id < t->n; id++) {
        struct gguf_string text = gguf_next_string(key, &cursor);
        t->texts[id] = text;
        uint32_t *slot = slot_of(t, text.bytes, text.size);
        if (*slot && told++ < TELLS_MAX)
            gguf_refuse(b, "%s: tokens %" PRIu32 " and %" PRIu64 " are the same text, %s",
                        b->file->path, *slot - 1, id, gguf_shown(shown, text.bytes, text.size));
        else if (!*slot)
            *slot = (uint32_t)id + 1;
    }
    return 0;
}

static void check_lengths(struct binder *b, uint64_t n)
{
    static const char *const names[] = {"tokenizer.ggml.token_type", "tokenizer.ggml.scores"};
    for (int i = 0; i < 2; i++) {
        const struct gguf_key *key = array(b, names[i], false, i == 0);
        if (key && key->count != n)
            gguf_refuse(b, "%s: there are %" PRIu64 " tokens, and %" PRIu64 " elements of %s",
                        b->file->path, n, key->count, names[i]);
    }
}

static void check_ids(struct binder *b, uint64_t n)
{
    static const char *const names[] = {
        "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.padding_token_id", "tokenizer.ggml.unknown_token_id"};
    uint32_t id;
    for (size_t i = 0; n && i < sizeof names / sizeof *names; i++)
        gguf_size_if_there(b, names[i], 0, (uint32_t)(n - 1), &id);
}

/* A merge is "left right": the three of them, left, right and both together, are tokens. */
static bool merge_is_sound(const struct tokens *t, struct gguf_string merge, char **joined,
                           size_t *capacity)
{
    const char *space =
        merge.size > 2 ? memchr(merge.bytes + 1, ' ', (size_t)merge.size - 2) : NULL;
    if (!space)
        return false;
    uint64_t left = (uint64_t)(space - merge.bytes), right = merge.size - left - 1;
    if (merge.size > *capacity) {
        char *grown = realloc(*joined, (size_t)merge.size);
        if (!grown)
            return false;
        *joined = grown;
        *capacity = (size_t)merge.size;
    }
    memcpy(*joined, merge.bytes, (size_t)left);
    memcpy(*joined + left, space + 1, (size_t)right);
    return *slot_of(t, merge.bytes, left) && *slot_of(t, space + 1, right) &&
           *slot_of(t, *joined, left + right);
}

static void check_merges(struct binder *b, const struct tokens *t)
{
    const struct gguf_key *key = array(b, "tokenizer.ggml.merges", true, true);
    uint64_t cursor = 0, wrong = 0;
    char *joined = NULL, shown[GGUF_SHOWN];
    size_t capacity = 0;
    for (uint64_t i = 0; key && i < key->count; i++) {
        struct gguf_string merge = gguf_next_string(key, &cursor);
        if (!merge_is_sound(t, merge, &joined, &capacity) && wrong++ < TELLS_MAX)
            gguf_refuse(b, "%s: merge %" PRIu64 ", %s, is not two tokens that make a third",
                        b->file->path, i, gguf_shown(shown, merge.bytes, merge.size));
    }
    if (wrong > TELLS_MAX)
        gguf_refuse(b, "%s: and %" PRIu64 " merges more", b->file->path, wrong - TELLS_MAX);
    free(joined);
}

uint64_t gguf_check_vocabulary(const struct gguf_file *file, gguf_found found, void *arg)
{
    struct binder b = {.file = file, .found = found, .arg = arg};
    struct tokens tokens = {0};
    const struct gguf_key *key = array(&b, "tokenizer.ggml.tokens", true, true);
    if (key && key->count >= GGUF_SPAN_MAX) {
        gguf_refuse(&b, "%s: the vocabulary of %" PRIu64 " tokens is too large", file->path,
                    key->count);
    } else if (key && !index_tokens(&b, key, &tokens)) {
        check_lengths(&b, tokens.n);
        check_ids(&b, tokens.n);
        check_merges(&b, &tokens);
    }
    free(tokens.texts);
    free(tokens.slots);
    return b.findings;
}
