/*
 * harmony_data: what the tests of harmony share: the tokenizer, and chats made of JSON.
 */
#ifndef GPTOSS_TESTS_HARMONY_DATA_H
#define GPTOSS_TESTS_HARMONY_DATA_H

#include "tests/test.h"

#include <jansson.h>

#include "coordinator/harmony.h"

#define TINY_MODEL GPTOSS_SOURCE_DIR "/models/gptoss-tiny-mxfp4.gguf"

/* The tokenizer of a model file. */
static inline struct tokenizer *data_tokenizer(const char *path)
{
    char err[512] = "";
    struct gguf_file *file;
    struct tokenizer *t = NULL;
    if (gguf_open(&file, path, err, sizeof err) != 0 ||
        tokenizer_create(&t, file, err, sizeof err) != 0)
        fail_msg("%s", err);
    gguf_close(file);
    return t;
}

static inline json_t *data_json(const char *path)
{
    json_error_t error;
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (root == NULL)
        fail_msg("%s: line %d: %s", path, error.line, error.text);
    return root;
}

/* A member that is a string, or "". */
static inline char *data_string(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return (char *)(uintptr_t)(s != NULL ? s : "");
}

static inline ProtobufCBinaryData data_bytes(const json_t *object, const char *key)
{
    const json_t *s = json_object_get(object, key);
    return (ProtobufCBinaryData){.len = json_string_length(s),
                                 .data = (uint8_t *)data_string(object, key)};
}

/* A chat whose strings live in `json`; data_chat_free. */
static inline Gptoss__Chat *data_chat(const json_t *json)
{
    Gptoss__Chat *chat = calloc(1, sizeof *chat);
    gptoss__chat__init(chat);
    const json_t *messages = json_object_get(json, "messages");
    chat->n_messages = json_array_size(messages);
    chat->messages = calloc(chat->n_messages + 1, sizeof *chat->messages);
    for (size_t i = 0; i < chat->n_messages; i++) {
        const json_t *said = json_array_get(messages, i);
        Gptoss__Message *m = chat->messages[i] = calloc(1, sizeof *m);
        gptoss__message__init(m);
        const char *role = data_string(said, "role");
        m->role = strcmp(role, "user") == 0        ? GPTOSS__MESSAGE__ROLE__USER
                  : strcmp(role, "system") == 0    ? GPTOSS__MESSAGE__ROLE__SYSTEM
                  : strcmp(role, "assistant") == 0 ? GPTOSS__MESSAGE__ROLE__ASSISTANT
                                                   : GPTOSS__MESSAGE__ROLE__TOOL;
        m->content = data_bytes(said, "content");
        m->channel = data_string(said, "channel");
        m->recipient = data_string(said, "recipient");
        m->name = data_string(said, "name");
    }
    const char *reasoning = data_string(json, "reasoning");
    chat->reasoning = strcmp(reasoning, "low") == 0    ? GPTOSS__CHAT__REASONING__LOW
                      : strcmp(reasoning, "high") == 0 ? GPTOSS__CHAT__REASONING__HIGH
                                                       : GPTOSS__CHAT__REASONING__MEDIUM;
    chat->tools_json = data_bytes(json, "tools");
    chat->assistant_prefix = data_bytes(json, "prefix");
    chat->date = data_string(json, "date");
    return chat;
}

static inline void data_chat_free(Gptoss__Chat *chat)
{
    for (size_t i = 0; i < chat->n_messages; i++)
        free(chat->messages[i]);
    free(chat->messages);
    free(chat);
}

#endif
