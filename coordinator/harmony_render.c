/*
 * harmony_render: a chat → the parts of a prompt.
 *
 *   <|start|>HEADER<|message|>CONTENT<|end|>     <|call|> ends the message that calls a tool
 *
 *   system      system
 *   developer   developer
 *   user        user
 *   assistant   assistant<|channel|>CHANNEL
 *   a call      assistant<|channel|>commentary to=functions.NAME <|constrain|>json
 *   a result    functions.NAME to=assistant<|channel|>commentary
 *
 * What a header says is tokenised piece by piece as it stands in this table, so the ids are those of
 * OpenAI's library. There is one difference: its renderer writes the recipient of a call in front of
 * the channel. The model writes it behind, and a prompt that repeats the model's own words finds them
 * in the KV cache.
 */
#include "coordinator/harmony.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/harmony_tools.h"

static const char identity[] = "You are ChatGPT, a large language model trained by OpenAI.\n"
                               "Knowledge cutoff: 2024-06";
static const char channels[] = "# Valid channels: analysis, commentary, final. "
                               "Channel must be included for every message.";
static const char call_channel[] =
    "\nCalls to these tools must go to the commentary channel: 'functions'.";

/* The special tokens that rendering places. */
struct marks {
    int64_t start, end, message, channel, constrain, call;
};

/* ── prompts ───────────────────────────────────────────────────────────────────────────────── */

void prompt_free(struct prompt *p)
{
    text_free(&p->text);
    free(p->parts);
    *p = (struct prompt){0};
}

static void part_add(struct prompt *p, struct prompt_part part)
{
    p->parts = base_grow(p->parts, &p->parts_capacity, p->n_parts + 1, sizeof *p->parts);
    p->parts[p->n_parts++] = part;
}

static void special_add(struct prompt *p, int64_t id)
{
    part_add(p, (struct prompt_part){.id = id});
}

/* What was appended to p->text from `first` on becomes a part. */
static void text_part_end(struct prompt *p, size_t first)
{
    if (p->text.size > first)
        part_add(p, (struct prompt_part){.id = -1, .first = first, .size = p->text.size - first});
}

static void string_add(struct prompt *p, const char *string)
{
    size_t first = p->text.size;
    text_add(&p->text, string, strlen(string));
    text_part_end(p, first);
}

static void bytes_add(struct prompt *p, const void *bytes, size_t size)
{
    size_t first = p->text.size;
    tokenizer_clean(bytes, size, &p->text);
    text_part_end(p, first);
}

void prompt_from_text(struct prompt *p, const void *bytes, size_t size)
{
    bytes_add(p, bytes, size);
}

int prompt_encode(struct prompt *p, const struct tokenizer *t, size_t budget, struct tokens *out)
{
    size_t left = budget;
    for (; p->part < p->n_parts; p->part++, p->position = 0) {
        const struct prompt_part *part = &p->parts[p->part];
        if (part->id >= 0) {
            tokens_add(out, (uint32_t)part->id);
            continue;
        }
        if (budget > 0 && left == 0)
            return 0;
        size_t before = p->position;
        int done =
            tokenizer_encode(t, p->text.bytes + part->first, part->size, &p->position, left, out);
        size_t taken = p->position - before;
        left = left > taken ? left - taken : 0;
        if (!done)
            return 0;
    }
    return 1;
}

/* ── messages ──────────────────────────────────────────────────────────────────────────────── */

static void system_message_add(struct prompt *p, const struct marks *m, const Gptoss__Chat *chat,
                               bool has_tools)
{
    static const char *const efforts[] = {
        [GPTOSS__CHAT__REASONING__MEDIUM] = "medium",
        [GPTOSS__CHAT__REASONING__LOW] = "low",
        [GPTOSS__CHAT__REASONING__HIGH] = "high",
    };
    special_add(p, m->start);
    string_add(p, "system");
    special_add(p, m->message);
    size_t first = p->text.size;
    text_print(&p->text, "%s", identity);
    if (chat->date[0] != '\0')
        text_print(&p->text, "\nCurrent date: %s", chat->date);
    text_print(&p->text, "\n\nReasoning: %s\n\n%s%s", efforts[chat->reasoning], channels,
               has_tools ? call_channel : "");
    text_part_end(p, first);
    special_add(p, m->end);
}

/* Instructions and tools; nothing if there are neither. */
static void developer_message_add(struct prompt *p, const struct marks *m, const Gptoss__Chat *chat,
                                  const struct text *tools)
{
    struct text words = {0};
    for (size_t i = 0; i < chat->n_messages; i++) {
        const Gptoss__Message *message = chat->messages[i];
        if (message->role != GPTOSS__MESSAGE__ROLE__SYSTEM || message->content.len == 0)
            continue;
        text_print(&words, "%s\n\n", words.size == 0 ? "# Instructions" : "");
        tokenizer_clean(message->content.data, message->content.len, &words);
    }
    if (tools->size > 0) {
        if (words.size > 0)
            text_add(&words, "\n\n", 2);
        text_add(&words, tools->bytes, tools->size);
    }
    if (words.size > 0) {
        special_add(p, m->start);
        string_add(p, "developer");
        special_add(p, m->message);
        size_t first = p->text.size;
        text_add(&p->text, words.bytes, words.size);
        text_part_end(p, first);
        special_add(p, m->end);
    }
    text_free(&words);
}

/* Of a tool: `before`, then its name with the namespace, as one part. */
static void tool_name_add(struct prompt *p, const char *before, const char *name)
{
    size_t first = p->text.size;
    text_print(&p->text, "%s%s%s", before, harmony_has_namespace(name) ? "" : "functions.", name);
    text_part_end(p, first);
}

static bool is_call(const Gptoss__Message *message)
{
    return message->recipient[0] != '\0';
}

static const char *channel_of(const Gptoss__Message *message)
{
    if (message->channel[0] != '\0')
        return message->channel;
    return is_call(message) ? "commentary" : "final";
}

static void message_add(struct prompt *p, const struct marks *m, const Gptoss__Message *message)
{
    special_add(p, m->start);
    switch (message->role) {
    case GPTOSS__MESSAGE__ROLE__TOOL:
        tool_name_add(p, "", message->name);
        string_add(p, " to=assistant");
        special_add(p, m->channel);
        string_add(p, "commentary");
        break;
    case GPTOSS__MESSAGE__ROLE__ASSISTANT:
        string_add(p, "assistant");
        special_add(p, m->channel);
        string_add(p, channel_of(message));
        if (is_call(message)) {
            tool_name_add(p, " to=", message->recipient);
            string_add(p, " ");
            special_add(p, m->constrain);
            string_add(p, "json");
        }
        break;
    default: string_add(p, "user"); break;
    }
    special_add(p, m->message);
    bytes_add(p, message->content.data, message->content.len);
    special_add(p, is_call(message) ? m->call : m->end);
}

/* ── checks ────────────────────────────────────────────────────────────────────────────────── */

static int digits(const char *s, int n)
{
    int value = 0;
    for (int i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9')
            return -1;
        value = 10 * value + (s[i] - '0');
    }
    return value;
}

static bool date_is_valid(const char *date)
{
    static const int days[] = {31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (strlen(date) != 10 || date[4] != '-' || date[7] != '-')
        return false;
    int year = digits(date, 4), month = digits(date + 5, 2), day = digits(date + 8, 2);
    if (year < 1 || month < 1 || month > 12 || day < 1 || day > days[month - 1])
        return false;
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return month != 2 || day < 29 || leap;
}

static bool is_one_of(const char *word, const char *const *words)
{
    while (*words != NULL && strcmp(word, *words) != 0)
        words++;
    return *words != NULL;
}

/* What makes no sense about a message, or NULL. */
static const char *message_problem(const Gptoss__Message *message)
{
    static const char *const known[] = {"", "analysis", "commentary", "final", NULL};
    bool assistant = message->role == GPTOSS__MESSAGE__ROLE__ASSISTANT;
    bool tool = message->role == GPTOSS__MESSAGE__ROLE__TOOL;
    if (message->role < GPTOSS__MESSAGE__ROLE__USER || message->role > GPTOSS__MESSAGE__ROLE__TOOL)
        return "has a role that is none of user, system, assistant, tool";
    if (tool && !harmony_name_is_valid(message->name))
        return "is a tool's and needs the tool's name: 1 to 128 bytes without spaces";
    if (!tool && message->name[0] != '\0')
        return "has a name, which only a tool's message has";
    if (!assistant && (message->channel[0] != '\0' || is_call(message)))
        return "has a channel or a recipient, which only an assistant's message has";
    if (!is_one_of(message->channel, known))
        return "has a channel that is none of analysis, commentary, final";
    if (is_call(message) && !harmony_name_is_valid(message->recipient))
        return "has a recipient that is no tool's name: 1 to 128 bytes without spaces";
    if (is_call(message) && strcmp(message->channel, "final") == 0)
        return "calls a tool on the final channel; calls go to commentary";
    return NULL;
}

static int chat_check(const Gptoss__Chat *chat, char *err, size_t err_size)
{
    if (chat->n_messages == 0) {
        snprintf(err, err_size, "chat: there is no message");
        return -1;
    }
    if (chat->date[0] != '\0' && !date_is_valid(chat->date)) {
        snprintf(err, err_size, "chat: the date must be a day as YYYY-MM-DD, or empty");
        return -1;
    }
    if (chat->reasoning < GPTOSS__CHAT__REASONING__MEDIUM ||
        chat->reasoning > GPTOSS__CHAT__REASONING__HIGH) {
        snprintf(err, err_size, "chat: reasoning is %d, none of medium (0), low (1), high (2)",
                 (int)chat->reasoning);
        return -1;
    }
    for (size_t i = 0; i < chat->n_messages; i++) {
        const char *problem = message_problem(chat->messages[i]);
        if (problem != NULL) {
            snprintf(err, err_size, "chat: message %zu %s", i, problem);
            return -1;
        }
    }
    return 0;
}

static int marks_find(struct marks *m, const struct tokenizer *t, char *err, size_t err_size)
{
    const struct {
        int64_t *id;
        const char *name;
    } table[] = {
        {&m->start, "<|start|>"},     {&m->end, "<|end|>"},   {&m->message, "<|message|>"},
        {&m->channel, "<|channel|>"}, {&m->call, "<|call|>"}, {&m->constrain, "<|constrain|>"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        *table[i].id = tokenizer_special(t, table[i].name);
        if (*table[i].id < 0) {
            snprintf(err, err_size,
                     "the model's vocabulary has no token %s: it is not one for chats, send the "
                     "prompt as text",
                     table[i].name);
            return -1;
        }
    }
    return 0;
}

/* ── the chat ──────────────────────────────────────────────────────────────────────────────── */

/* One more than the index of the last final answer: thoughts before it are of turns that ended. */
static size_t ended_turns(const Gptoss__Chat *chat)
{
    size_t n = chat->n_messages;
    for (; n > 0; n--) {
        const Gptoss__Message *message = chat->messages[n - 1];
        if (message->role == GPTOSS__MESSAGE__ROLE__ASSISTANT &&
            strcmp(channel_of(message), "final") == 0)
            break;
    }
    return n;
}

/* A call on the analysis channel is no thought: without it its result would hang in the air. */
static bool is_thought(const Gptoss__Message *message)
{
    return message->role == GPTOSS__MESSAGE__ROLE__ASSISTANT && !is_call(message) &&
           strcmp(channel_of(message), "analysis") == 0;
}

/* The head of the call that the model has to make, or of any call. */
static void choice_add(struct prompt *p, const struct marks *m, const char *choice)
{
    special_add(p, m->channel);
    string_add(p, "commentary");
    if (strcmp(choice, "required") == 0) {
        string_add(p, " to=functions");
        return;
    }
    tool_name_add(p, " to=", choice);
    string_add(p, " ");
    special_add(p, m->constrain);
    string_add(p, "json");
    special_add(p, m->message);
}

static int choice_check(const Gptoss__Chat *chat, size_t n_tools, char *err, size_t err_size)
{
    const char *choice = chat->tool_choice;
    if (choice[0] == '\0')
        return 0;
    if (n_tools > 0 && harmony_name_is_valid(choice) && chat->assistant_prefix.len == 0)
        return 0;
    snprintf(err, err_size,
             n_tools == 0 ? "chat: tool_choice wants a call, but there are no tools"
             : chat->assistant_prefix.len > 0
                 ? "chat: tool_choice and assistant_prefix exclude each other"
                 : "chat: tool_choice is no tool's name: 1 to 128 bytes without spaces");
    return -1;
}

int harmony_render(struct prompt *p, const struct tokenizer *t, const Gptoss__Chat *chat,
                   enum harmony_start *start, char *err, size_t err_size)
{
    struct marks m;
    struct text tools = {0};
    size_t n_tools = 0;
    if (chat_check(chat, err, err_size) != 0 || marks_find(&m, t, err, err_size) != 0)
        return -1;
    if (chat->tools_json.len > 0 &&
        harmony_tools_render(chat->tools_json.data, chat->tools_json.len, &tools, &n_tools, err,
                             err_size) != 0) {
        text_free(&tools);
        return -1;
    }
    if (choice_check(chat, n_tools, err, err_size) != 0) {
        text_free(&tools);
        return -1;
    }
    system_message_add(p, &m, chat, n_tools > 0);
    developer_message_add(p, &m, chat, &tools);
    text_free(&tools);

    size_t ended = ended_turns(chat);
    for (size_t i = 0; i < chat->n_messages; i++) {
        const Gptoss__Message *message = chat->messages[i];
        if (message->role != GPTOSS__MESSAGE__ROLE__SYSTEM && !(i < ended && is_thought(message)))
            message_add(p, &m, message);
    }
    special_add(p, m.start);
    string_add(p, "assistant");
    *start = HARMONY_START_HEADER;
    if (chat->tool_choice[0] != '\0')
        choice_add(p, &m, chat->tool_choice);
    if (chat->assistant_prefix.len > 0) {
        special_add(p, m.channel);
        string_add(p, "final");
        special_add(p, m.message);
        bytes_add(p, chat->assistant_prefix.data, chat->assistant_prefix.len);
        *start = HARMONY_START_FINAL;
    }
    return 0;
}
