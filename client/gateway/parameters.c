/* parameters: what calls of all kinds share. */
#include <stdlib.h>
#include <string.h>

#include "client/gateway/gateway.h"

#define STOPS_MAX      16
#define STOP_BYTES_MAX 256
#define TOOLS_MAX      128
#define NAME_MAX_SIZE  64

/* ── sampling ──────────────────────────────────────────────────────────────────────────────── */

static int read_stop(struct call *call, struct problem *p)
{
    const json_t *stop = json_object_get(call->root, "stop");
    bool list = json_is_array(stop);
    size_t n = stop == NULL || json_is_null(stop) ? 0 : list ? json_array_size(stop) : 1;
    if (n > STOPS_MAX) {
        problem_set(p, 400, "invalid_value", "stop", "stop has %zu texts, at most %d are possible",
                    n, STOPS_MAX);
        return -1;
    }
    struct cli_list *out = &call->request.stop;
    for (size_t i = 0; i < n; i++) {
        const json_t *text = list ? json_array_get(stop, i) : stop;
        if (!json_is_string(text))
            return wrong_type(p, "stop", "a string or a list of strings", text);
        size_t size = json_string_length(text);
        if (size < 1 || size > STOP_BYTES_MAX || strlen(json_string_value(text)) != size) {
            problem_set(p, 400, "invalid_value", "stop",
                        "a text of stop has from 1 to %d bytes, and no NUL", STOP_BYTES_MAX);
            return -1;
        }
        out->items = base_grow(out->items, &out->capacity, out->n + 1, sizeof *out->items);
        out->items[out->n++] = json_string_value(text);
    }
    return 0;
}

static int read_model(struct call *call, struct problem *p)
{
    const char *wanted = NULL, *have = routes_model(call->gateway);
    if (field_string(call->root, "model", &wanted, p) < 0)
        return -1;
    if (wanted == NULL || have[0] == '\0' || strcmp(wanted, have) == 0)
        return 0;
    problem_set(
        p, 404, "model_not_found", "model",
        "the model \"%.80s\" is not served here; \"%.80s\" is (--model-name gives it another "
        "name)",
        wanted, have);
    return -1;
}

int parameters_read(struct call *call, struct problem *p)
{
    struct options *o = &call->request;
    const json_t *root = call->root;
    int64_t seed = 0;
    o->linger_seconds = call->gateway->options->client.linger_seconds;
    int t = field_number(root, "temperature", 0, 2, &o->temperature, p);
    int top_p = field_number(root, "top_p", 0, 1, &o->top_p, p);
    int s = field_int(root, "seed", INT64_MIN, INT64_MAX, &seed, p);
    if (t < 0 || top_p < 0 || s < 0 || field_bool(root, "stream", &call->stream, p) < 0 ||
        field_int(root, "top_k", 0, 1 << 30, &o->top_k, p) < 0 ||
        field_number(root, "min_p", 0, 1, &o->min_p, p) < 0 ||
        field_bool(root, "ignore_eos", &o->ignore_eos, p) < 0)
        return p->status != 0 ? -1 : 0;
    o->temperature_given = t > 0;
    o->top_p_given = top_p > 0;
    o->seed_given = s > 0;
    o->seed = (uint64_t)seed;
    return read_model(call, p) != 0 || read_stop(call, p) != 0 ? -1 : 0;
}

int parameters_effort(struct call *call, const char *param, const char *effort, struct problem *p)
{
    static const struct {
        const char *word;
        Gptoss__Chat__Reasoning value;
    } known[] = {{"low", GPTOSS__CHAT__REASONING__LOW},
                 {"medium", GPTOSS__CHAT__REASONING__MEDIUM},
                 {"high", GPTOSS__CHAT__REASONING__HIGH}};
    for (size_t i = 0; effort != NULL && i < sizeof known / sizeof *known; i++)
        if (strcmp(effort, known[i].word) == 0) {
            call->request.reasoning = known[i].value;
            return 0;
        }
    if (effort == NULL)
        return 0;
    problem_set(p, 400, "unsupported_value", param, "%s is low, medium or high, not \"%.40s\"",
                param, effort);
    return -1;
}

/* ── calls in what was said before ─────────────────────────────────────────────────────────── */

void called_note(struct call *call, const char *id, const json_t *name)
{
    if (call->names == NULL)
        call->names = json_object();
    json_object_set(call->names, id, (json_t *)(uintptr_t)name);
}

const char *called_name(const struct call *call, const char *id)
{
    return id != NULL ? json_string_value(json_object_get(call->names, id)) : NULL;
}

/* ── tools ─────────────────────────────────────────────────────────────────────────────────── */

static bool is_name(const char *name)
{
    size_t size = name != NULL ? strlen(name) : 0;
    return size >= 1 && size <= NAME_MAX_SIZE &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == size;
}

static int to_text(const char *bytes, size_t size, void *text)
{
    text_add(text, bytes, size);
    return 0;
}

/* One tool, appended in chat's form. */
static int tool_read(const json_t *tool, bool flat, const char *param, struct text *out,
                     struct problem *p)
{
    static const struct field of_chat[] = {{"type", FIELD_READ, NULL},
                                           {"function", FIELD_READ, NULL}};
    static const struct field of_function[] = {
        {"type", FIELD_READ, NULL},        {"name", FIELD_READ, NULL},
        {"description", FIELD_READ, NULL}, {"parameters", FIELD_READ, NULL},
        {"strict", FIELD_ONLY, "false"},
    };
    const char *type = json_string_value(json_object_get(tool, "type"));
    if (!json_is_object(tool) || type == NULL)
        return wrong_type(p, param, "an object with a type", tool);
    if (strcmp(type, "function") != 0) {
        problem_set(p, 400, "unsupported_value", param,
                    "%s is of type %.40s; there are functions alone", param, type);
        return -1;
    }
    const json_t *function = flat ? tool : json_object_get(tool, "function");
    char path[64];
    snprintf(path, sizeof path, "%s%s", param, flat ? "" : ".function");
    if (!flat && fields_check(tool, param, of_chat, 2, p) != 0)
        return -1;
    if (!json_is_object(function))
        return wrong_type(p, path, "an object", function);
    if (fields_check(function, path, of_function, 5, p) != 0)
        return -1;
    if (!is_name(json_string_value(json_object_get(function, "name")))) {
        problem_set(p, 400, "invalid_value", path,
                    "%s needs a name of 1 to %d letters, digits, _ and -", path, NAME_MAX_SIZE);
        return -1;
    }
    const json_t *description = json_object_get(function, "description"),
                 *parameters = json_object_get(function, "parameters");
    if (description != NULL && !json_is_null(description) && !json_is_string(description))
        return wrong_type(p, path, "a function whose description is a string", description);
    if (parameters != NULL && !json_is_null(parameters) && !json_is_object(parameters))
        return wrong_type(p, path, "a function whose parameters are an object", parameters);
    text_print(out, "%s{\"type\":\"function\",\"function\":{\"name\":", out->size > 1 ? "," : "");
    write_string(out, json_string_value(json_object_get(function, "name")));
    if (json_is_string(description)) {
        text_print(out, ",\"description\":");
        text_json_string(out, json_string_value(description), json_string_length(description));
    }
    if (json_is_object(parameters)) {
        text_print(out, ",\"parameters\":");
        json_dump_callback(parameters, to_text, out, JSON_COMPACT);
    }
    text_print(out, "}}");
    return 0;
}

static bool has_tool(const json_t *tools, bool flat, const char *name)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        const char *other = json_string_value(
            json_object_get(flat ? tool : json_object_get(tool, "function"), "name"));
        if (other != NULL && strcmp(name, other) == 0)
            return true;
    }
    return false;
}

static int choice_read(struct call *call, const json_t *tools, bool flat, struct problem *p)
{
    const json_t *choice = json_object_get(call->root, "tool_choice");
    const char *word = json_string_value(choice), *name = NULL, *type;
    if (choice == NULL || json_is_null(choice) || (word != NULL && strcmp(word, "auto") == 0))
        return 0;
    if (word != NULL && strcmp(word, "none") == 0) {
        text_clear(&call->request.tools);
        return 0;
    }
    if (word != NULL && strcmp(word, "required") == 0)
        name = "";
    else if (json_is_object(choice)) {
        type = json_string_value(json_object_get(choice, "type"));
        if (type != NULL && strcmp(type, "function") == 0)
            name = json_string_value(
                json_object_get(flat ? choice : json_object_get(choice, "function"), "name"));
    }
    if (name == NULL) {
        problem_set(p, 400, "unsupported_value", "tool_choice",
                    "tool_choice is none, auto, required, or names a function");
        return -1;
    }
    if (name[0] != '\0' ? !has_tool(tools, flat, name) : json_array_size(tools) == 0) {
        problem_set(p, 400, "invalid_value", "tool_choice",
                    name[0] != '\0' ? "tool_choice names %.64s, which is not among the tools"
                                    : "tool_choice is required, but there are no tools%.0s",
                    name);
        return -1;
    }
    call->request.tool_choice = name[0] != '\0' ? name : "required";
    return 0;
}

int tools_read(struct call *call, bool flat, struct problem *p)
{
    const json_t *tools = json_object_get(call->root, "tools");
    struct text *out = &call->request.tools;
    char param[32];
    if (tools != NULL && !json_is_null(tools) && !json_is_array(tools))
        return wrong_type(p, "tools", "a list", tools);
    size_t n = json_array_size(tools);
    if (n > TOOLS_MAX) {
        problem_set(p, 400, "invalid_value", "tools",
                    "there are %zu tools, at most %d are possible", n, TOOLS_MAX);
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        snprintf(param, sizeof param, "tools[%zu]", i);
        if (i == 0)
            text_print(out, "[");
        if (tool_read(json_array_get(tools, i), flat, param, out, p) != 0)
            return -1;
    }
    if (n > 0)
        text_print(out, "]");
    return choice_read(call, tools, flat, p);
}
