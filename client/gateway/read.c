/*
 * read: fields of a JSON body, and what is wrong with them.
 *
 * jansson's trees are many times as large as their text ("[[],[],…" some 40 times), so what it allocates
 * is counted, and reading a body fails beyond JSON_BYTES_MAX.
 */
#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/gateway/gateway.h"

#define DEPTH_MAX  64
#define TRIM_BYTES ((size_t)8 << 20)

static size_t json_bytes;      /* allocated by jansson */
static size_t json_bytes_most; /* that may be */
static size_t json_bytes_peak; /* since memory was last given back */

static void *counted_malloc(size_t size)
{
    if (size > json_bytes_most || json_bytes > json_bytes_most - size)
        return NULL;
    void *memory = malloc(size);
    if (memory != NULL)
        json_bytes += malloc_usable_size(memory);
    if (json_bytes > json_bytes_peak)
        json_bytes_peak = json_bytes;
    return memory;
}

static void counted_free(void *memory)
{
    if (memory != NULL)
        json_bytes -= malloc_usable_size(memory);
    free(memory);
}

void json_memory_init(void)
{
    json_bytes_most = SIZE_MAX;
    json_set_alloc_funcs(counted_malloc, counted_free);
}

size_t json_memory_used(void)
{
    return json_bytes;
}

void json_memory_return(void)
{
    if (json_bytes_peak - json_bytes < TRIM_BYTES)
        return;
    malloc_trim(0);
    json_bytes_peak = json_bytes;
}

/* jansson's own bound is 2048 levels; nobody needs so many. */
static bool too_deep(const struct text *body)
{
    size_t depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < body->size; i++) {
        char c = body->bytes[i];
        if (quoted) {
            if (c == '\\')
                i++;
            else if (c == '"')
                quoted = false;
        } else if (c == '"')
            quoted = true;
        else if ((c == '[' || c == '{') && ++depth > DEPTH_MAX)
            return true;
        else if ((c == ']' || c == '}') && depth > 0)
            depth--;
    }
    return false;
}

json_t *json_body(const struct text *body, struct problem *p)
{
    json_error_t error;
    if (too_deep(body)) {
        problem_set(p, 400, "invalid_json", "", "the body is nested more than %d levels deep",
                    DEPTH_MAX);
        return NULL;
    }
    json_bytes_most = json_bytes + JSON_BYTES_MAX;
    json_t *root = json_loadb(body->size > 0 ? body->bytes : "", body->size,
                              JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    json_bytes_most = SIZE_MAX;
    if (root == NULL) {
        for (char *c = error.text; *c != '\0'; c++) /* it may quote the body */
            if ((unsigned char)*c < ' ')
                *c = ' ';
        problem_set(p, 400, "invalid_json", "", "the body is not JSON: line %d, column %d: %s",
                    error.line, error.column, error.text);
        json_memory_return();
        return NULL;
    }
    if (!json_is_object(root)) {
        problem_set(p, 400, "invalid_json", "", "the body has to be a JSON object");
        json_decref(root);
        json_memory_return();
        return NULL;
    }
    return root;
}

static const char *type_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "a whole number";
    case JSON_REAL: return "a number";
    case JSON_NULL: return "null";
    default: return "a truth value";
    }
}

int wrong_type(struct problem *p, const char *param, const char *wanted, const json_t *got)
{
    problem_set(p, 400, "invalid_type", param, "%s has to be %s, not %s", param, wanted,
                got != NULL ? type_name(got) : "absent");
    return -1;
}

/* ── which fields there are ────────────────────────────────────────────────────────────────── */

static bool same(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b))
        return json_number_value(a) == json_number_value(b);
    return json_equal(a, b);
}

static bool is_one_of(const json_t *value, const char *texts)
{
    char text[256];
    for (const char *at = texts; *at != '\0';) {
        size_t size = strcspn(at, "\t");
        snprintf(text, sizeof text, "%.*s", (int)size, at);
        json_t *other = json_loads(text, JSON_DECODE_ANY, NULL);
        bool equal = other != NULL && same(value, other);
        json_decref(other);
        if (equal)
            return true;
        at += size + (at[size] == '\t');
    }
    return false;
}

int fields_check(const json_t *object, const char *path, const struct field *fields, size_t n,
                 struct problem *p)
{
    const char *name;
    json_t *value;
    char param[128], only[256];
    json_object_foreach((json_t *)object, name, value)
    {
        size_t i = 0;
        while (i < n && strcmp(fields[i].name, name) != 0)
            i++;
        snprintf(param, sizeof param, "%s%s%s", path, path[0] != '\0' ? "." : "", name);
        if (json_is_null(value))
            continue;
        if (i == n) {
            problem_set(p, 400, "unknown_parameter", param, "there is no parameter %s", param);
            return -1;
        }
        if (fields[i].kind != FIELD_ONLY || is_one_of(value, fields[i].only))
            continue;
        snprintf(only, sizeof only, "%s", fields[i].only);
        for (char *tab = only; (tab = strchr(tab, '\t')) != NULL;)
            *tab = ' ';
        problem_set(p, 400, "unsupported_parameter", param,
                    only[0] != '\0' ? "%s is not supported: leave it out, or give %s"
                                    : "%s is not supported: leave it out",
                    param, only);
        return -1;
    }
    return 0;
}

/* ── their values ──────────────────────────────────────────────────────────────────────────── */

static const json_t *field_of(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    return value != NULL && !json_is_null(value) ? value : NULL;
}

int field_bool(const json_t *object, const char *name, bool *out, struct problem *p)
{
    const json_t *value = field_of(object, name);
    if (value == NULL)
        return 0;
    if (!json_is_boolean(value))
        return wrong_type(p, name, "true or false", value);
    *out = json_is_true(value);
    return 1;
}

int field_int(const json_t *object, const char *name, int64_t min, int64_t max, int64_t *out,
              struct problem *p)
{
    const json_t *value = field_of(object, name);
    if (value == NULL)
        return 0;
    if (!json_is_integer(value))
        return wrong_type(p, name, "a whole number", value);
    *out = json_integer_value(value);
    if (*out >= min && *out <= max)
        return 1;
    problem_set(p, 400, "invalid_value", name, "%s has to be from %lld to %lld", name,
                (long long)min, (long long)max);
    return -1;
}

int field_number(const json_t *object, const char *name, double min, double max, double *out,
                 struct problem *p)
{
    const json_t *value = field_of(object, name);
    if (value == NULL)
        return 0;
    if (!json_is_number(value))
        return wrong_type(p, name, "a number", value);
    *out = json_number_value(value);
    if (*out >= min && *out <= max)
        return 1;
    problem_set(p, 400, "invalid_value", name, "%s has to be from %g to %g", name, min, max);
    return -1;
}

int field_string(const json_t *object, const char *name, const char **out, struct problem *p)
{
    const json_t *value = field_of(object, name);
    if (value == NULL)
        return 0;
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
        return wrong_type(p, name, "a string", value);
    *out = json_string_value(value);
    return 1;
}

int content_read(const json_t *content, const char *param, const char *types, struct text *out,
                 struct problem *p)
{
    if (json_is_string(content)) {
        text_add(out, json_string_value(content), json_string_length(content));
        return 0;
    }
    if (!json_is_array(content))
        return wrong_type(p, param, "a string or a list of parts", content);
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i);
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *text = json_object_get(part, "text");
        char where[128];
        snprintf(where, sizeof where, "%s[%zu]", param, i);
        if (type == NULL)
            return wrong_type(p, where, "a part with a type", part);
        size_t size = strlen(type);
        const char *found = strstr(types, type);
        if (size == 0 || found == NULL || (found > types && found[-1] != '\t') ||
            (found[size] != '\t' && found[size] != '\0')) {
            problem_set(p, 400, "unsupported_content", where,
                        "%s is of type %.40s; the model reads text alone", where, type);
            return -1;
        }
        if (!json_is_string(text))
            return wrong_type(p, where, "a part with a text", part);
        if (i > 0)
            text_print(out, "\n");
        text_add(out, json_string_value(text), json_string_length(text));
    }
    return 0;
}
