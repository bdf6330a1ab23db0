/*
 * tokenizer: the vocabulary of a file and byte-level BPE over it.
 *
 * In the file every byte of a token is one character of the "byte to unicode" alphabet: printable
 * Latin-1 stands for itself, the other 68 bytes are U+0100 … U+0143 in order. Tokens are held here as
 * bytes, in one block, and found by a hash index; a merge is found by its pair of ids.
 *
 * A piece that is a token is that token. Otherwise its bytes are merged: short pieces by looking for
 * the lowest rank again after each merge, long ones with a heap of pairs, so that no piece takes more
 * than O(n log n). Both take the leftmost of equal ranks.
 *
 * What tokenizer.h says about UTF-8 is in unicode.c.
 */
#include "coordinator/tokenizer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/heap.h"
#include "coordinator/pretokenize.h"

#define NONE UINT32_MAX
/* Up to this many bytes the search for the lowest rank is faster than the heap. */
#define SHORT_PIECE 96

enum token_kind { TOKEN_TEXT, TOKEN_SPECIAL, TOKEN_UNUSED };

/* Hash index over tokens: a slot is 0 or the upper half of the hash and the id + 1. */
struct index {
    uint64_t *slots; /* [mask + 1] */
    size_t mask;
};

struct merge {
    uint32_t left, right;
    uint32_t rank; /* NONE: an empty slot */
};

struct tokenizer {
    uint32_t n_tokens, limit, n_merges;
    char *bytes;               /* of all tokens, one after the other */
    uint32_t *offsets;         /* [n_tokens + 1] in bytes */
    uint8_t *kinds;            /* [n_tokens] enum token_kind */
    bool *ends;                /* [n_tokens] generation ends with it */
    struct index texts, names; /* of text tokens; of the others */
    struct merge *merges;      /* [merges_mask + 1] by (left, right), open addressing */
    size_t merges_mask;
    uint32_t *merged;           /* [n_merges] rank → id */
    uint32_t byte_ids[256];     /* byte → id */
    uint32_t byte_ranks[65536]; /* first · 256 + second → rank of the merge of two bytes, or NONE */
};

void tokens_add(struct tokens *t, uint32_t id)
{
    if (t->count == t->capacity)
        t->ids = base_grow(t->ids, &t->capacity, t->count + 1, sizeof *t->ids);
    t->ids[t->count++] = id;
}

void tokens_free(struct tokens *t)
{
    free(t->ids);
    *t = (struct tokens){0};
}

/* ── finding tokens and merges ─────────────────────────────────────────────────────────────── */

static inline size_t token_size(const struct tokenizer *t, uint32_t id)
{
    return t->offsets[id + 1] - t->offsets[id];
}

/* The slot of these bytes: theirs, or the empty one where they belong. */
static inline size_t index_slot(const struct tokenizer *t, const struct index *index,
                                const void *bytes, size_t size, uint64_t hash)
{
    size_t i = hash & index->mask;
    for (; index->slots[i] != 0; i = (i + 1) & index->mask) {
        uint32_t id = (uint32_t)index->slots[i] - 1;
        if (index->slots[i] >> 32 == hash >> 32 && token_size(t, id) == size &&
            memcmp(t->bytes + t->offsets[id], bytes, size) == 0)
            break;
    }
    return i;
}

/* The token with these bytes, or NONE. */
static inline uint32_t index_find_hash(const struct tokenizer *t, const struct index *index,
                                       const void *bytes, size_t size, uint64_t hash)
{
    size_t slot = index_slot(t, index, bytes, size, hash);
    return (uint32_t)index->slots[slot] - 1; /* an empty slot gives NONE */
}

static inline uint32_t index_find(const struct tokenizer *t, const struct index *index,
                                  const void *bytes, size_t size)
{
    return index_find_hash(t, index, bytes, size, map_hash(bytes, size, 0));
}

/* False if another token has the same bytes. */
static bool index_add(const struct tokenizer *t, struct index *index, uint32_t id)
{
    const char *bytes = t->bytes + t->offsets[id];
    uint64_t hash = map_hash(bytes, token_size(t, id), 0);
    size_t slot = index_slot(t, index, bytes, token_size(t, id), hash);
    if (index->slots[slot] != 0)
        return false;
    index->slots[slot] = hash >> 32 << 32 | (id + 1);
    return true;
}

/* Where the search for a merge begins. */
static inline size_t merge_home(const struct tokenizer *t, uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    return (h ^ h >> 32) & t->merges_mask;
}

static inline struct merge *merge_slot(const struct tokenizer *t, uint32_t left, uint32_t right)
{
    size_t i = merge_home(t, left, right);
    while (t->merges[i].rank != NONE && (t->merges[i].left != left || t->merges[i].right != right))
        i = (i + 1) & t->merges_mask;
    return &t->merges[i];
}

static inline uint32_t rank_of(const struct tokenizer *t, uint32_t left, uint32_t right)
{
    return merge_slot(t, left, right)->rank;
}

/* ── reading the file ──────────────────────────────────────────────────────────────────────── */

/* Everything that tokenizer_create needs while it reads. */
struct reading {
    struct tokenizer *t;
    const struct gguf_file *file;
    int16_t alphabet[0x144]; /* code point → byte, or −1 */
    char *err;
    size_t err_size;
};

#define refuse(r, format, ...)                                                                     \
    (snprintf((r)->err, (r)->err_size,                                                             \
              "%s: " format ": the file does not hold a tokenizer that this program can use",      \
              gguf_path((r)->file), __VA_ARGS__),                                                  \
     -1)

static int out_of_memory(const struct reading *r)
{
    snprintf(r->err, r->err_size, "%s: no memory for the vocabulary: free some and start again",
             gguf_path(r->file));
    return -1;
}

static void make_alphabet(int16_t alphabet[0x144])
{
    memset(alphabet, 0xff, 0x144 * sizeof *alphabet);
    int next = 0x100;
    for (int byte = 0; byte < 256; byte++) {
        bool itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
        alphabet[itself ? byte : next++] = (int16_t)byte;
    }
}

/* The bytes that `size` bytes of alphabet stand for; at most as many. −1: other characters in it. */
static int64_t decode(const struct reading *r, const char *from, uint64_t size, char *to)
{
    const unsigned char *p = (const unsigned char *)from, *end = p + size;
    char *at = to;
    while (p < end) {
        uint32_t c = *p++;
        if (c >= 0x80) {
            if (c < 0xc2 || c > 0xc5 || p == end || (*p & 0xc0) != 0x80)
                return -1;
            c = (c & 0x1f) << 6 | (*p++ & 0x3f);
        }
        if (c >= 0x144 || r->alphabet[c] < 0)
            return -1;
        *at++ = (char)r->alphabet[c];
    }
    return at - to;
}

static int check_string(const struct reading *r, const char *name, const char *want)
{
    struct gguf_string value;
    int status = gguf_get_string(r->file, name, &value, r->err, r->err_size);
    if (status < 0)
        return -1;
    if (status > 0)
        return refuse(r, "the key %s is missing", name);
    if (value.size == strlen(want) && memcmp(value.bytes, want, value.size) == 0)
        return 0;
    char shown[64] = "";
    for (size_t i = 0; i < value.size && i + 1 < sizeof shown; i++) {
        char c = value.bytes[i];
        shown[i] = '?';
        if (c >= ' ' && c <= '~')
            shown[i] = c;
    }
    return refuse(r, "%s is \"%s\", and only \"%s\" is known", name, shown, want);
}

static int find_array(const struct reading *r, const char *name, bool strings,
                      const struct gguf_key **out)
{
    const struct gguf_key *key = gguf_key_find(r->file, name);
    if (key == NULL)
        return refuse(r, "the key %s is missing", name);
    bool right = key->type == GGUF_VALUE_ARRAY;
    if (strings)
        right = right && key->element == GGUF_VALUE_STRING;
    else
        right = right && key->element != GGUF_VALUE_STRING && key->element != GGUF_VALUE_F32 &&
                key->element != GGUF_VALUE_F64 && key->element != GGUF_VALUE_BOOL;
    if (!right)
        return refuse(r, "%s is no array of %s", name, strings ? "strings" : "integers");
    if (key->count >= INT32_MAX || key->size >= INT32_MAX)
        return refuse(r, "%s is too long", name);
    *out = key;
    return 0;
}

/* A table of a power of two of elements that is at most half full; NULL without memory. */
static void *make_slots(size_t n, size_t size, size_t *mask)
{
    size_t slots = 16;
    while (slots / 2 < n)
        slots *= 2;
    *mask = slots - 1;
    return calloc(slots, size);
}

static int read_tokens(struct reading *r)
{
    struct tokenizer *t = r->t;
    const struct gguf_key *tokens, *types;
    if (find_array(r, "tokenizer.ggml.tokens", true, &tokens) != 0 ||
        find_array(r, "tokenizer.ggml.token_type", false, &types) != 0)
        return -1;
    if (types->count != tokens->count)
        return refuse(r, "there are %llu tokens and %llu types of tokens",
                      (unsigned long long)tokens->count, (unsigned long long)types->count);
    t->n_tokens = (uint32_t)tokens->count;
    t->bytes = malloc(tokens->size + 1);
    t->offsets = calloc((size_t)t->n_tokens + 1, sizeof *t->offsets);
    t->kinds = calloc((size_t)t->n_tokens + 1, sizeof *t->kinds);
    t->ends = calloc((size_t)t->n_tokens + 1, sizeof *t->ends);
    t->texts.slots = make_slots(t->n_tokens, sizeof *t->texts.slots, &t->texts.mask);
    t->names.slots = make_slots(t->n_tokens, sizeof *t->names.slots, &t->names.mask);
    if (t->bytes == NULL || t->offsets == NULL || t->kinds == NULL || t->ends == NULL ||
        t->texts.slots == NULL || t->names.slots == NULL)
        return out_of_memory(r);

    uint64_t cursor = 0;
    for (uint32_t id = 0; id < t->n_tokens; id++) {
        struct gguf_string s = gguf_next_string(tokens, &cursor);
        int64_t type = gguf_integer_at(types, id), size = (int64_t)s.size;
        char *to = t->bytes + t->offsets[id];
        switch (type) {
        case 1: t->kinds[id] = TOKEN_TEXT; break;
        case 2: /* unknown */
        case 3: /* control */
        case 4: /* user-defined */ t->kinds[id] = TOKEN_SPECIAL; break;
        case 5: t->kinds[id] = TOKEN_UNUSED; break;
        default: return refuse(r, "token %u has type %lld", id, (long long)type);
        }
        if (t->kinds[id] == TOKEN_TEXT)
            size = decode(r, s.bytes, s.size, to);
        else
            memcpy(to, s.bytes, s.size);
        if (size <= 0)
            return refuse(r, "token %u is empty, or has characters that stand for no byte", id);
        t->offsets[id + 1] = t->offsets[id] + (uint32_t)size;
        if (t->kinds[id] != TOKEN_UNUSED)
            t->limit = id + 1;
        /* Of special tokens with the same name the first counts. */
        if (t->kinds[id] != TOKEN_TEXT)
            index_add(t, &t->names, id);
        else if (!index_add(t, &t->texts, id))
            return refuse(r, "token %u is there twice", id);
    }
    for (unsigned i = 0; i < 256; i++) {
        unsigned char byte = (unsigned char)i;
        t->byte_ids[i] = index_find(t, &t->texts, &byte, 1);
        if (t->byte_ids[i] == NONE)
            return refuse(r, "no token is the single byte 0x%02x", i);
    }
    return 0;
}

/* One string of tokenizer.ggml.merges, as it is read. */
struct merge_line {
    const char *bytes; /* of left and right, without the blank */
    size_t n_left, n_right;
    uint64_t left_hash, right_hash;
    uint32_t left, right;
};

static int parse_merge(const struct reading *r, struct gguf_string s, char *to,
                       struct merge_line *line)
{
    const char *blank = s.size > 0 ? memchr(s.bytes, ' ', s.size) : NULL;
    if (blank == NULL)
        return -1;
    uint64_t head = (uint64_t)(blank - s.bytes);
    int64_t n_left = decode(r, s.bytes, head, to);
    int64_t n_right = n_left < 0 ? -1 : decode(r, blank + 1, s.size - head - 1, to + n_left);
    if (n_right < 0)
        return -1;
    line->bytes = to;
    line->n_left = (size_t)n_left;
    line->n_right = (size_t)n_right;
    line->left_hash = map_hash(to, line->n_left, 0);
    line->right_hash = map_hash(to + n_left, line->n_right, 0);
    return 0;
}

/* The token that left and right make. Merges are mostly sorted by it, so that it is the one of the
 * line before or the next. */
static uint32_t find_near(const struct tokenizer *t, const struct merge_line *line, uint32_t near)
{
    size_t size = line->n_left + line->n_right;
    for (uint32_t id = near; id < t->n_tokens && id - near < 2; id++)
        if (t->kinds[id] == TOKEN_TEXT && token_size(t, id) == size &&
            memcmp(t->bytes + t->offsets[id], line->bytes, size) == 0)
            return id;
    return index_find(t, &t->texts, line->bytes, size);
}

/* Looking things up is nothing but waiting for memory: it is done for a batch of lines at a time,
 * with what the next step looks at fetched ahead. */
enum { MERGE_BATCH = 32 };

static int read_merge_batch(struct reading *r, const struct gguf_key *key, uint64_t *cursor,
                            uint32_t first, uint32_t count, char *to)
{
    struct tokenizer *t = r->t;
    struct merge_line lines[MERGE_BATCH];
    for (uint32_t i = 0; i < count; i++) {
        if (parse_merge(r, gguf_next_string(key, cursor), to, &lines[i]) != 0)
            return refuse(r, "merge %u is not two tokens with a blank between them", first + i);
        to += lines[i].n_left + lines[i].n_right;
        __builtin_prefetch(&t->texts.slots[lines[i].left_hash & t->texts.mask]);
        __builtin_prefetch(&t->texts.slots[lines[i].right_hash & t->texts.mask]);
    }
    uint32_t near = first > 0 ? t->merged[first - 1] : 0;
    for (uint32_t i = 0; i < count; i++) {
        struct merge_line *l = &lines[i];
        l->left = index_find_hash(t, &t->texts, l->bytes, l->n_left, l->left_hash);
        l->right = index_find_hash(t, &t->texts, l->bytes + l->n_left, l->n_right, l->right_hash);
        near = find_near(t, l, near);
        if (l->left == NONE || l->right == NONE || near == NONE)
            return refuse(r, "merge %u names what is no token", first + i);
        t->merged[first + i] = near;
        __builtin_prefetch(&t->merges[merge_home(t, l->left, l->right)]);
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct merge_line *l = &lines[i];
        *merge_slot(t, l->left, l->right) = (struct merge){l->left, l->right, first + i};
        if (l->n_left == 1 && l->n_right == 1)
            t->byte_ranks[(unsigned char)l->bytes[0] << 8 | (unsigned char)l->bytes[1]] = first + i;
    }
    return 0;
}

static int read_merges(struct reading *r)
{
    struct tokenizer *t = r->t;
    const struct gguf_key *key;
    if (find_array(r, "tokenizer.ggml.merges", true, &key) != 0)
        return -1;
    t->n_merges = (uint32_t)key->count;
    t->merges = make_slots(t->n_merges, sizeof *t->merges, &t->merges_mask);
    t->merged = calloc((size_t)t->n_merges + 1, sizeof *t->merged);
    char *scratch = malloc(key->size + 1);
    int status = -1;
    if (t->merges == NULL || t->merged == NULL || scratch == NULL) {
        out_of_memory(r);
        goto end;
    }
    memset(t->merges, 0xff, (t->merges_mask + 1) * sizeof *t->merges);
    memset(t->byte_ranks, 0xff, sizeof t->byte_ranks);
    uint64_t cursor = 0;
    for (uint32_t first = 0; first < t->n_merges; first += MERGE_BATCH) {
        uint32_t count = t->n_merges - first < MERGE_BATCH ? t->n_merges - first : MERGE_BATCH;
        if (read_merge_batch(r, key, &cursor, first, count, scratch) != 0)
            goto end;
    }
    status = 0;
end:
    free(scratch);
    return status;
}

static int read_ends(struct reading *r)
{
    struct tokenizer *t = r->t;
    uint32_t id;
    int status = gguf_get_u32(r->file, "tokenizer.ggml.eos_token_id", &id, r->err, r->err_size);
    if (status < 0)
        return -1;
    if (status == 0 && id >= t->n_tokens)
        return refuse(r, "tokenizer.ggml.eos_token_id is %u, and there are %u tokens", id,
                      t->n_tokens);
    if (status == 0)
        t->ends[id] = true;
    static const char *const names[] = {"<|return|>", "<|call|>", "<|endoftext|>"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int64_t end = tokenizer_special(t, names[i]);
        if (end >= 0)
            t->ends[end] = true;
    }
    return 0;
}

int tokenizer_create(struct tokenizer **out, const struct gguf_file *file, char *err,
                     size_t err_size)
{
    *out = NULL;
    struct reading r = {.file = file, .err = err, .err_size = err_size};
    make_alphabet(r.alphabet);
    r.t = calloc(1, sizeof *r.t);
    if (r.t == NULL)
        return out_of_memory(&r);
    if (check_string(&r, "tokenizer.ggml.model", "gpt2") != 0 ||
        check_string(&r, "tokenizer.ggml.pre", "gpt-4o") != 0 || read_tokens(&r) != 0 ||
        read_merges(&r) != 0 || read_ends(&r) != 0) {
        tokenizer_destroy(r.t);
        return -1;
    }
    *out = r.t;
    return 0;
}

void tokenizer_destroy(struct tokenizer *t)
{
    if (t == NULL)
        return;
    free(t->merged);
    free(t->merges);
    free(t->names.slots);
    free(t->texts.slots);
    free(t->ends);
    free(t->kinds);
    free(t->offsets);
    free(t->bytes);
    free(t);
}

/* ── asking ────────────────────────────────────────────────────────────────────────────────── */

uint32_t tokenizer_size(const struct tokenizer *t)
{
    return t->n_tokens;
}

uint32_t tokenizer_limit(const struct tokenizer *t)
{
    return t->limit;
}

const char *tokenizer_bytes(const struct tokenizer *t, uint32_t id, size_t *size)
{
    if (id >= t->n_tokens) {
        *size = 0;
        return NULL;
    }
    *size = token_size(t, id);
    return t->bytes + t->offsets[id];
}

bool tokenizer_is_special(const struct tokenizer *t, uint32_t id)
{
    return id < t->n_tokens && t->kinds[id] != TOKEN_TEXT;
}

int64_t tokenizer_special(const struct tokenizer *t, const char *name)
{
    uint32_t id = index_find(t, &t->names, name, strlen(name));
    return id == NONE ? -1 : (int64_t)id;
}

bool tokenizer_is_end(const struct tokenizer *t, uint32_t id)
{
    return id < t->n_tokens && t->ends[id];
}

/* ── encoding ──────────────────────────────────────────────────────────────────────────────── */

static void merge_short(const struct tokenizer *t, const unsigned char *piece, size_t n,
                        struct tokens *out)
{
    uint32_t ids[SHORT_PIECE];
    uint32_t ranks[SHORT_PIECE]; /* of ids[i] with ids[i + 1] */
    for (size_t i = 0; i < n; i++)
        ids[i] = t->byte_ids[piece[i]];
    for (size_t i = 0; i + 1 < n; i++)
        ranks[i] = t->byte_ranks[piece[i] << 8 | piece[i + 1]];
    while (n > 1) {
        size_t at = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (ranks[i] < ranks[at])
                at = i;
        if (ranks[at] == NONE)
            break;
        ids[at] = t->merged[ranks[at]];
        n--;
        memmove(ids + at + 1, ids + at + 2, (n - at - 1) * sizeof *ids);
        memmove(ranks + at, ranks + at + 1, (n - at - 1) * sizeof *ranks);
        if (at > 0)
            ranks[at - 1] = rank_of(t, ids[at - 1], ids[at]);
        if (at + 1 < n)
            ranks[at] = rank_of(t, ids[at], ids[at + 1]);
    }
    for (size_t i = 0; i < n; i++)
        tokens_add(out, ids[i]);
}

/* A symbol of a long piece, in a list; a pair is named by its left symbol. */
struct symbol {
    uint32_t previous, next; /* NONE at the ends */
    uint32_t id;
    uint32_t rank; /* of the pair with the next; NONE: no merge, or the symbol is gone */
};

/* Sets the rank of the pair that begins at symbol i, and enters it if it can be merged. */
static void enter_pair(const struct tokenizer *t, struct symbol *symbols, uint32_t i,
                       struct heap *heap)
{
    uint32_t next = symbols[i].next;
    symbols[i].rank = next == NONE ? NONE : rank_of(t, symbols[i].id, symbols[next].id);
    if (symbols[i].rank != NONE)
        heap_push(heap, (uint64_t)symbols[i].rank << 32 | i);
}

/* The heap holds pairs by rank, then from the left: rank · 2^32 + symbol. Pairs that changed since
 * they were entered stay in it, and are known by their rank when they come up. */
static void merge_long(const struct tokenizer *t, const unsigned char *piece, size_t n,
                       struct tokens *out)
{
    assert(n < NONE);
    struct symbol *symbols = base_alloc(n, sizeof *symbols);
    /* One pair for each two neighbours, and each of the n − 1 merges takes one and enters two. */
    struct heap heap = {.values = base_alloc(2 * n, sizeof *heap.values)};
    for (size_t i = 0; i < n; i++) {
        bool last = i + 1 == n;
        uint32_t rank = last ? NONE : t->byte_ranks[piece[i] << 8 | piece[i + 1]];
        symbols[i] = (struct symbol){.previous = i == 0 ? NONE : (uint32_t)i - 1,
                                     .next = last ? NONE : (uint32_t)i + 1,
                                     .id = t->byte_ids[piece[i]],
                                     .rank = rank};
        if (rank != NONE)
            heap.values[heap.count++] = (uint64_t)rank << 32 | i;
    }
    heap_order(&heap);
    while (heap.count > 0) {
        uint64_t pair = heap_pop(&heap);
        uint32_t at = (uint32_t)pair;
        struct symbol *left = &symbols[at];
        if (left->rank != pair >> 32)
            continue;
        struct symbol *right = &symbols[left->next];
        left->id = t->merged[left->rank];
        left->next = right->next;
        right->rank = NONE;
        if (left->next != NONE)
            symbols[left->next].previous = at;
        enter_pair(t, symbols, at, &heap);
        if (left->previous != NONE)
            enter_pair(t, symbols, left->previous, &heap);
    }
    for (uint32_t i = 0; i != NONE; i = symbols[i].next)
        tokens_add(out, symbols[i].id);
    free(heap.values);
    free(symbols);
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t size, size_t *position,
                     size_t budget, struct tokens *out)
{
    size_t begin = *position;
    while (*position < size && (budget == 0 || *position - begin < budget)) {
        const char *piece = text + *position;
        size_t n = pretokenize_next(piece, size - *position);
        uint32_t whole = index_find(t, &t->texts, piece, n);
        if (whole != NONE)
            tokens_add(out, whole);
        else if (n <= SHORT_PIECE)
            merge_short(t, (const unsigned char *)piece, n, out);
        else
            merge_long(t, (const unsigned char *)piece, n, out);
        *position += n;
    }
    return *position >= size;
}
