/* chat_read: the body of /v1/chat/completions. */
#include <stdlib.h>
#include <string.h>

#include "client/gateway/gateway.h"

/* The words under which models' thoughts come back from clients. */
static const char *const reasoning_names[] = {"reasoning_content", "reasoning"};

static int message_text(const json_t *message, const char *path, const char *types,
                        struct text *out, struct problem *p)
{
    char param[128];
    snprintf(param, sizeof param, "%s.content", path);
    const json_t *content = json_object_get(message, "content");
    return content_read(content, param, types, out, p);
}

static int read_calls(struct call *call, const json_t *message, const char *path, struct problem *p)
{
    const json_t *calls = json_object_get(message, "tool_calls");
    char param[128];
    snprintf(param, sizeof param, "%s.tool_calls", path);
    if (calls == NULL || json_is_null(calls))
        return 0;
    if (!json_is_array(calls))
        return wrong_type(p, param, "a list", calls);
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *one = json_array_get(calls, i), *function = json_object_get(one, "function");
        const char *name = json_string_value(json_object_get(function, "name"));
        const json_t *arguments = json_object_get(function, "arguments");
        snprintf(param, sizeof param, "%s.tool_calls[%zu]", path, i);
        if (name == NULL || !json_is_string(json_object_get(one, "id")) ||
            !json_is_string(arguments))
            return wrong_type(p, param,
                              "a call: {id, type, function: {name, arguments}}, all strings", one);
        conversation_add_said(&call->conversation, "commentary", name, json_string_value(arguments),
                              json_string_length(arguments));
        called_note(call, json_string_value(json_object_get(one, "id")),
                    json_object_get(function, "name"));
    }
    return 0;
}

static int read_assistant(struct call *call, const json_t *message, const char *path,
                          struct problem *p)
{
    static const struct field fields[] = {
        {"role", FIELD_READ, NULL},        {"content", FIELD_READ, NULL},
        {"tool_calls", FIELD_READ, NULL},  {"reasoning_content", FIELD_READ, NULL},
        {"reasoning", FIELD_READ, NULL},   {"refusal", FIELD_ONLY, ""},
        {"audio", FIELD_ONLY, ""},         {"function_call", FIELD_ONLY, ""},
        {"annotations", FIELD_FREE, NULL}, {"name", FIELD_ONLY, ""},
    };
    struct conversation *c = &call->conversation;
    const json_t *content = json_object_get(message, "content"),
                 *calls = json_object_get(message, "tool_calls");
    bool calling = json_array_size(calls) > 0;
    if (fields_check(message, path, fields, sizeof fields / sizeof *fields, p) != 0)
        return -1;
    for (size_t i = 0; i < 2; i++) {
        const json_t *thought = json_object_get(message, reasoning_names[i]);
        if (thought == NULL || json_is_null(thought))
            continue;
        if (!json_is_string(thought))
            return wrong_type(p, path, "a message whose reasoning is a string", thought);
        if (json_string_length(thought) > 0)
            conversation_add_said(c, "analysis", "", json_string_value(thought),
                                  json_string_length(thought));
        break;
    }
    if (content != NULL && !json_is_null(content)) {
        struct text text = {0};
        text_add(&text, "", 0);
        int status = message_text(message, path, "text", &text, p);
        if (status == 0 && (text.size > 0 || !calling))
            conversation_add_said(c, calling ? "commentary" : "final", "", text.bytes, text.size);
        text_free(&text);
        if (status != 0)
            return -1;
    } else if (!calling) {
        problem_set(p, 400, "invalid_value", path, "%s has neither content nor tool_calls", path);
        return -1;
    }
    return read_calls(call, message, path, p);
}

static int read_message(struct call *call, const json_t *messages, size_t i, struct problem *p)
{
    static const struct field plain[] = {
        {"role", FIELD_READ, NULL}, {"content", FIELD_READ, NULL}, {"name", FIELD_ONLY, ""}};
    static const struct field tool[] = {{"role", FIELD_READ, NULL},
                                        {"content", FIELD_READ, NULL},
                                        {"tool_call_id", FIELD_READ, NULL},
                                        {"name", FIELD_FREE, NULL}};
    const json_t *message = json_array_get(messages, i);
    const char *role = json_string_value(json_object_get(message, "role")), *name = "";
    char path[48], param[80];
    snprintf(path, sizeof path, "messages[%zu]", i);
    if (role == NULL)
        return wrong_type(p, path, "an object with a role", message);
    if (strcmp(role, "assistant") == 0)
        return read_assistant(call, message, path, p);
    bool is_tool = strcmp(role, "tool") == 0, user = strcmp(role, "user") == 0;
    if (!is_tool && !user && strcmp(role, "system") != 0 && strcmp(role, "developer") != 0) {
        snprintf(param, sizeof param, "%s.role", path);
        problem_set(p, 400, "unsupported_value", param,
                    "%s is \"%.40s\", none of developer, system, user, assistant, tool", param,
                    role);
        return -1;
    }
    if (fields_check(message, path, is_tool ? tool : plain, is_tool ? 4 : 3, p) != 0)
        return -1;
    if (is_tool) {
        const char *id = json_string_value(json_object_get(message, "tool_call_id"));
        name = called_name(call, id);
        if (name == NULL) {
            snprintf(param, sizeof param, "%s.tool_call_id", path);
            problem_set(p, 400, "invalid_value", param,
                        "%s is not the id of a tool call in the messages before", param);
            return -1;
        }
    }
    struct text text = {0};
    text_add(&text, "", 0);
    int status = message_text(message, path, "text", &text, p);
    if (status == 0)
        conversation_add(&call->conversation,
                         is_tool ? GPTOSS__MESSAGE__ROLE__TOOL
                         : user  ? GPTOSS__MESSAGE__ROLE__USER
                                 : GPTOSS__MESSAGE__ROLE__SYSTEM,
                         name, text.bytes, text.size);
    text_free(&text);
    return status;
}

static int read_messages(struct call *call, struct problem *p)
{
    const json_t *messages = json_object_get(call->root, "messages");
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return wrong_type(p, "messages", "a list of at least one message", messages);
    for (size_t i = 0; i < json_array_size(messages); i++)
        if (read_message(call, messages, i, p) != 0)
            return -1;
    return 0;
}

int stream_options_read(struct call *call, struct problem *p)
{
    static const struct field fields[] = {{"include_usage", FIELD_READ, NULL},
                                          {"include_obfuscation", FIELD_ONLY, "false"}};
    const json_t *options = json_object_get(call->root, "stream_options");
    if (options == NULL || json_is_null(options))
        return 0;
    if (!json_is_object(options))
        return wrong_type(p, "stream_options", "an object", options);
    if (!call->stream) {
        problem_set(p, 400, "invalid_value", "stream_options",
                    "stream_options means nothing without stream: true");
        return -1;
    }
    if (fields_check(options, "stream_options", fields, 2, p) != 0 ||
        field_bool(options, "include_usage", &call->include_usage, p) < 0)
        return -1;
    return 0;
}

static int read_logprobs(struct call *call, struct problem *p)
{
    int64_t top = 0;
    int given = field_int(call->root, "top_logprobs", 0, 20, &top, p);
    if (given < 0 || field_bool(call->root, "logprobs", &call->logprobs, p) < 0)
        return -1;
    if (given > 0 && top > 0 && !call->logprobs) {
        problem_set(p, 400, "invalid_value", "top_logprobs",
                    "top_logprobs means nothing without logprobs: true");
        return -1;
    }
    call->top_logprobs = (uint32_t)top;
    if (call->logprobs)
        call->request.top_logits = top > 0 ? top : 1;
    return 0;
}

int chat_read(struct call *call, struct problem *p)
{
    static const struct field fields[] = {
        {"messages", FIELD_READ, NULL},
        {"model", FIELD_READ, NULL},
        {"stream", FIELD_READ, NULL},
        {"stream_options", FIELD_READ, NULL},
        {"temperature", FIELD_READ, NULL},
        {"top_p", FIELD_READ, NULL},
        {"top_k", FIELD_READ, NULL},
        {"min_p", FIELD_READ, NULL},
        {"seed", FIELD_READ, NULL},
        {"stop", FIELD_READ, NULL},
        {"n", FIELD_READ, NULL},
        {"max_tokens", FIELD_READ, NULL},
        {"max_completion_tokens", FIELD_READ, NULL},
        {"reasoning_effort", FIELD_READ, NULL},
        {"tools", FIELD_READ, NULL},
        {"tool_choice", FIELD_READ, NULL},
        {"logprobs", FIELD_READ, NULL},
        {"top_logprobs", FIELD_READ, NULL},
        {"ignore_eos", FIELD_READ, NULL},
        {"user", FIELD_FREE, NULL},
        {"metadata", FIELD_FREE, NULL},
        {"safety_identifier", FIELD_FREE, NULL},
        {"prompt_cache_key", FIELD_FREE, NULL},
        {"prompt_cache_retention", FIELD_FREE, NULL},
        {"parallel_tool_calls", FIELD_FREE, NULL}, /* the model makes one call at a time */
        {"service_tier", FIELD_ONLY, "\"auto\"\t\"default\""},
        {"store", FIELD_ONLY, "false"},
        {"response_format", FIELD_ONLY, "{\"type\": \"text\"}"},
        {"modalities", FIELD_ONLY, "[\"text\"]"},
        {"logit_bias", FIELD_ONLY, "{}"},
        {"frequency_penalty", FIELD_ONLY, "0"},
        {"presence_penalty", FIELD_ONLY, "0"},
        {"verbosity", FIELD_ONLY, "\"medium\""},
        {"audio", FIELD_ONLY, ""},
        {"prediction", FIELD_ONLY, ""},
        {"web_search_options", FIELD_ONLY, ""},
        {"functions", FIELD_ONLY, ""},
        {"function_call", FIELD_ONLY, ""},
    };
    const char *effort = NULL;
    int64_t n = 1;
    struct options *o = &call->request;
    call->chat = true;
    if (fields_check(call->root, "", fields, sizeof fields / sizeof *fields, p) != 0 ||
        parameters_read(call, p) != 0 || stream_options_read(call, p) != 0 ||
        read_logprobs(call, p) != 0 || field_int(call->root, "n", 1, CHOICES_MAX, &n, p) < 0 ||
        field_int(call->root, "max_tokens", 1, UINT32_MAX, &o->max_tokens, p) < 0 ||
        field_int(call->root, "max_completion_tokens", 1, UINT32_MAX, &o->max_tokens, p) < 0 ||
        field_string(call->root, "reasoning_effort", &effort, p) < 0 ||
        parameters_effort(call, "reasoning_effort", effort, p) != 0 ||
        tools_read(call, false, p) != 0)
        return -1;
    call->n = (uint32_t)n;
    return read_messages(call, p);
}
