/* responses_read: the body of /v1/responses. What was said before comes as a list of items. */
#include <string.h>

#include "client/gateway/gateway.h"

static const json_t *item_field(const json_t *items, size_t i, const char *name)
{
    const json_t *value = json_object_get(json_array_get(items, i), name);
    return value != NULL && !json_is_null(value) ? value : NULL;
}

static bool is_type(const json_t *items, size_t i, const char *type)
{
    const char *have = json_string_value(item_field(items, i, "type"));
    return have != NULL && strcmp(have, type) == 0;
}

/* Whether a call of the same turn follows: then what the assistant said before it was no answer. */
static bool call_follows(const json_t *items, size_t i)
{
    for (i++; i < json_array_size(items); i++)
        if (!is_type(items, i, "reasoning"))
            return is_type(items, i, "function_call");
    return false;
}

static int read_message(struct call *call, const json_t *items, size_t i, const char *path,
                        struct problem *p)
{
    static const struct field fields[] = {
        {"type", FIELD_READ, NULL}, {"role", FIELD_READ, NULL},   {"content", FIELD_READ, NULL},
        {"id", FIELD_FREE, NULL},   {"status", FIELD_FREE, NULL}, {"phase", FIELD_FREE, NULL}};
    const char *role = json_string_value(item_field(items, i, "role"));
    char param[80];
    if (fields_check(json_array_get(items, i), path, fields, sizeof fields / sizeof *fields, p) !=
        0)
        return -1;
    bool assistant = role != NULL && strcmp(role, "assistant") == 0,
         user = role != NULL && strcmp(role, "user") == 0;
    if (role == NULL ||
        (!assistant && !user && strcmp(role, "system") != 0 && strcmp(role, "developer") != 0)) {
        snprintf(param, sizeof param, "%s.role", path);
        problem_set(p, 400, "unsupported_value", param,
                    "%s is none of developer, system, user, assistant", param);
        return -1;
    }
    struct text text = {0};
    text_add(&text, "", 0);
    snprintf(param, sizeof param, "%s.content", path);
    int status = content_read(item_field(items, i, "content"), param,
                              "input_text\toutput_text\ttext", &text, p);
    if (status == 0 && assistant)
        conversation_add_said(&call->conversation, call_follows(items, i) ? "commentary" : "final",
                              "", text.bytes, text.size);
    else if (status == 0)
        conversation_add(&call->conversation,
                         user ? GPTOSS__MESSAGE__ROLE__USER : GPTOSS__MESSAGE__ROLE__SYSTEM, "",
                         text.bytes, text.size);
    text_free(&text);
    return status;
}

static int read_call(struct call *call, const json_t *items, size_t i, const char *path,
                     struct problem *p)
{
    static const struct field fields[] = {
        {"type", FIELD_READ, NULL}, {"call_id", FIELD_READ, NULL},
        {"name", FIELD_READ, NULL}, {"arguments", FIELD_READ, NULL},
        {"id", FIELD_FREE, NULL},   {"status", FIELD_FREE, NULL}};
    const json_t *item = json_array_get(items, i), *arguments = item_field(items, i, "arguments");
    const char *name = json_string_value(item_field(items, i, "name"));
    if (fields_check(item, path, fields, sizeof fields / sizeof *fields, p) != 0)
        return -1;
    if (name == NULL || !json_is_string(arguments) ||
        !json_is_string(item_field(items, i, "call_id")))
        return wrong_type(p, path, "a call with call_id, name and arguments, all strings", item);
    conversation_add_said(&call->conversation, "commentary", name, json_string_value(arguments),
                          json_string_length(arguments));
    called_note(call, json_string_value(item_field(items, i, "call_id")),
                item_field(items, i, "name"));
    return 0;
}

static int read_output(struct call *call, const json_t *items, size_t i, const char *path,
                       struct problem *p)
{
    static const struct field fields[] = {{"type", FIELD_READ, NULL},
                                          {"call_id", FIELD_READ, NULL},
                                          {"output", FIELD_READ, NULL},
                                          {"id", FIELD_FREE, NULL},
                                          {"status", FIELD_FREE, NULL}};
    const char *name = called_name(call, json_string_value(item_field(items, i, "call_id")));
    char param[80];
    if (fields_check(json_array_get(items, i), path, fields, sizeof fields / sizeof *fields, p) !=
        0)
        return -1;
    if (name == NULL) {
        snprintf(param, sizeof param, "%s.call_id", path);
        problem_set(p, 400, "invalid_value", param,
                    "%s is not that of a function_call in the items before", param);
        return -1;
    }
    struct text text = {0};
    text_add(&text, "", 0);
    snprintf(param, sizeof param, "%s.output", path);
    int status = content_read(item_field(items, i, "output"), param, "input_text\ttext", &text, p);
    if (status == 0)
        conversation_add(&call->conversation, GPTOSS__MESSAGE__ROLE__TOOL, name, text.bytes,
                         text.size);
    text_free(&text);
    return status;
}

static int read_reasoning(struct call *call, const json_t *items, size_t i, const char *path,
                          struct problem *p)
{
    static const struct field fields[] = {
        {"type", FIELD_READ, NULL},    {"id", FIELD_FREE, NULL},
        {"content", FIELD_READ, NULL}, {"status", FIELD_FREE, NULL},
        {"summary", FIELD_FREE, NULL}, {"encrypted_content", FIELD_ONLY, ""}};
    const json_t *content = item_field(items, i, "content");
    char param[80];
    if (fields_check(json_array_get(items, i), path, fields, sizeof fields / sizeof *fields, p) !=
        0)
        return -1;
    if (content == NULL)
        return 0;
    struct text text = {0};
    snprintf(param, sizeof param, "%s.content", path);
    int status = content_read(content, param, "reasoning_text\ttext", &text, p);
    if (status == 0 && text.size > 0)
        conversation_add_said(&call->conversation, "analysis", "", text.bytes, text.size);
    text_free(&text);
    return status;
}

static int read_item(struct call *call, const json_t *items, size_t i, struct problem *p)
{
    char path[48];
    snprintf(path, sizeof path, "input[%zu]", i);
    if (!json_is_object(json_array_get(items, i)))
        return wrong_type(p, path, "an object", json_array_get(items, i));
    const char *type = json_string_value(item_field(items, i, "type"));
    if (type == NULL || strcmp(type, "message") == 0)
        return read_message(call, items, i, path, p);
    if (strcmp(type, "function_call") == 0)
        return read_call(call, items, i, path, p);
    if (strcmp(type, "function_call_output") == 0)
        return read_output(call, items, i, path, p);
    if (strcmp(type, "reasoning") == 0)
        return read_reasoning(call, items, i, path, p);
    problem_set(p, 400, "unsupported_value", path,
                "%s is of type %.40s; there are message, reasoning, function_call and "
                "function_call_output",
                path, type);
    return -1;
}

static int read_input(struct call *call, struct problem *p)
{
    const json_t *input = json_object_get(call->root, "input"),
                 *instructions = json_object_get(call->root, "instructions");
    if (instructions != NULL && !json_is_null(instructions)) {
        if (!json_is_string(instructions))
            return wrong_type(p, "instructions", "a string", instructions);
        conversation_add(&call->conversation, GPTOSS__MESSAGE__ROLE__SYSTEM, "",
                         json_string_value(instructions), json_string_length(instructions));
    }
    if (json_is_string(input)) {
        conversation_add(&call->conversation, GPTOSS__MESSAGE__ROLE__USER, "",
                         json_string_value(input), json_string_length(input));
        return 0;
    }
    if (!json_is_array(input) || json_array_size(input) == 0)
        return wrong_type(p, "input", "a string, or a list of at least one item", input);
    for (size_t i = 0; i < json_array_size(input); i++)
        if (read_item(call, input, i, p) != 0)
            return -1;
    return 0;
}

/* What stands in objects of its own: reasoning, text, include, stream_options. */
static int read_parts(struct call *call, struct problem *p)
{
    static const struct field of_reasoning[] = {{"effort", FIELD_READ, NULL},
                                                {"summary", FIELD_ONLY, ""},
                                                {"generate_summary", FIELD_ONLY, ""}};
    static const struct field of_text[] = {{"format", FIELD_ONLY, "{\"type\": \"text\"}"},
                                           {"verbosity", FIELD_ONLY, "\"medium\""}};
    static const struct field of_stream[] = {{"include_obfuscation", FIELD_ONLY, "false"}};
    const struct {
        const char *name;
        const struct field *fields;
        size_t n;
    } objects[] = {
        {"reasoning", of_reasoning, 3}, {"text", of_text, 2}, {"stream_options", of_stream, 1}};
    for (size_t i = 0; i < sizeof objects / sizeof *objects; i++) {
        const json_t *object = json_object_get(call->root, objects[i].name);
        if (object == NULL || json_is_null(object))
            continue;
        if (!json_is_object(object))
            return wrong_type(p, objects[i].name, "an object", object);
        if (fields_check(object, objects[i].name, objects[i].fields, objects[i].n, p) != 0)
            return -1;
    }
    const char *effort = NULL;
    if (field_string(json_object_get(call->root, "reasoning"), "effort", &effort, p) < 0)
        return -1;
    return parameters_effort(call, "reasoning.effort", effort, p);
}

static int read_include(struct call *call, struct problem *p)
{
    const json_t *include = json_object_get(call->root, "include");
    int64_t top = 0;
    if (include != NULL && !json_is_null(include) && !json_is_array(include))
        return wrong_type(p, "include", "a list", include);
    for (size_t i = 0; i < json_array_size(include); i++) {
        const char *what = json_string_value(json_array_get(include, i));
        if (what == NULL || strcmp(what, "message.output_text.logprobs") != 0) {
            problem_set(p, 400, "unsupported_value", "include",
                        "include: %.60s is not supported; message.output_text.logprobs is",
                        what != NULL ? what : "what is no string");
            return -1;
        }
        call->logprobs = true;
    }
    int given = field_int(call->root, "top_logprobs", 0, 20, &top, p);
    if (given < 0)
        return -1;
    if (top > 0 && !call->logprobs) {
        problem_set(p, 400, "invalid_value", "top_logprobs",
                    "top_logprobs needs include: [\"message.output_text.logprobs\"]");
        return -1;
    }
    call->top_logprobs = (uint32_t)top;
    if (call->logprobs)
        call->request.top_logits = top > 0 ? top : 1;
    return 0;
}

int responses_read(struct call *call, struct problem *p)
{
    static const struct field fields[] = {
        {"input", FIELD_READ, NULL},
        {"instructions", FIELD_READ, NULL},
        {"model", FIELD_READ, NULL},
        {"stream", FIELD_READ, NULL},
        {"stream_options", FIELD_READ, NULL},
        {"temperature", FIELD_READ, NULL},
        {"top_p", FIELD_READ, NULL},
        {"top_k", FIELD_READ, NULL},
        {"min_p", FIELD_READ, NULL},
        {"seed", FIELD_READ, NULL},
        {"stop", FIELD_READ, NULL},
        {"ignore_eos", FIELD_READ, NULL},
        {"max_output_tokens", FIELD_READ, NULL},
        {"reasoning", FIELD_READ, NULL},
        {"text", FIELD_READ, NULL},
        {"tools", FIELD_READ, NULL},
        {"tool_choice", FIELD_READ, NULL},
        {"include", FIELD_READ, NULL},
        {"top_logprobs", FIELD_READ, NULL},
        {"metadata", FIELD_FREE, NULL},
        {"user", FIELD_FREE, NULL},
        {"safety_identifier", FIELD_FREE, NULL},
        {"prompt_cache_key", FIELD_FREE, NULL},
        {"prompt_cache_retention", FIELD_FREE, NULL},
        {"parallel_tool_calls", FIELD_FREE, NULL}, /* the model makes one call at a time */
        {"service_tier", FIELD_ONLY, "\"auto\"\t\"default\""},
        {"truncation", FIELD_ONLY, "\"disabled\""},
        {"store", FIELD_ONLY, "false"}, /* nothing is kept: what was said before is sent again */
        {"background", FIELD_ONLY, "false"},
        {"previous_response_id", FIELD_ONLY, ""},
        {"conversation", FIELD_ONLY, ""},
        {"max_tool_calls", FIELD_ONLY, ""},
        {"prompt", FIELD_ONLY, ""},
    };
    call->chat = true;
    if (fields_check(call->root, "", fields, sizeof fields / sizeof *fields, p) != 0 ||
        parameters_read(call, p) != 0 || read_parts(call, p) != 0 || read_include(call, p) != 0 ||
        field_int(call->root, "max_output_tokens", 1, UINT32_MAX, &call->request.max_tokens, p) <
            0 ||
        tools_read(call, true, p) != 0)
        return -1;
    return read_input(call, p);
}
