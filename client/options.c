/* options: what the command line asks for, checked as far as it can be checked here. */
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "client/client.h"

#define SILENCE_SECONDS 15.0 /* Progress or Output come about once a second */
#define TOOLS_MAX       ((size_t)1 << 20)
#define IDS_MAX         ((size_t)1 << 20)

__attribute__((format(printf, 1, 2))) static int wrong(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "gptoss-client: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\ngptoss-client --help lists the options\n");
    va_end(args);
    return -1;
}

/* All of a file, at most `limit` bytes. */
static int read_all(FILE *file, const char *name, size_t limit, struct text *out)
{
    char bytes[65536];
    size_t size;
    text_add(out, "", 0);
    while ((size = fread(bytes, 1, sizeof bytes, file)) > 0) {
        text_add(out, bytes, size);
        if (out->size > limit)
            return wrong("%s is larger than %zu MiB, which is more than a message may be", name,
                         limit >> 20);
    }
    if (ferror(file))
        return wrong("cannot read %s: %m", name);
    return 0;
}

static int read_tools(struct options *o, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return wrong("cannot read the tools %s: %m", path);
    int status = read_all(file, path, TOOLS_MAX, &o->tools);
    fclose(file);
    return status;
}

static int read_seed(struct options *o, const char *text)
{
    char *end;
    errno = 0;
    o->seed = strtoull(text, &end, 10);
    o->seed_given = true;
    if (end == text || *end != '\0' || errno != 0 || text[0] == '-')
        return wrong("--seed takes a whole number from 0 to 2⁶⁴ − 1, not \"%s\"", text);
    return 0;
}

/* Ids between commas or spaces. */
static int read_ids(struct options *o, const char *p)
{
    size_t capacity = 0;
    for (;;) {
        p += strspn(p, " ,\t\r\n");
        if (*p == '\0')
            break;
        char *end;
        errno = 0;
        unsigned long id = *p >= '0' && *p <= '9' ? strtoul(p, &end, 10) : ULONG_MAX;
        if (id > UINT32_MAX || errno != 0 || (*end != '\0' && strchr(" ,\t\r\n", *end) == NULL))
            return wrong("--prompt-ids takes token ids, as in 1,2,3; \"%.20s\" is none", p);
        if (o->n_ids == IDS_MAX)
            return wrong("--prompt-ids: more than %zu ids", IDS_MAX);
        o->ids = base_grow(o->ids, &capacity, o->n_ids + 1, sizeof *o->ids);
        o->ids[o->n_ids++] = (uint32_t)id;
        p = end;
    }
    if (o->n_ids == 0)
        return wrong("--prompt-ids takes token ids, as in 1,2,3; there is none");
    return 0;
}

static int read_reasoning(struct options *o, const char *word)
{
    static const struct {
        const char *word;
        Gptoss__Chat__Reasoning value;
    } known[] = {{"low", GPTOSS__CHAT__REASONING__LOW},
                 {"medium", GPTOSS__CHAT__REASONING__MEDIUM},
                 {"high", GPTOSS__CHAT__REASONING__HIGH}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(word, known[i].word) == 0) {
            o->reasoning = known[i].value;
            return 0;
        }
    return wrong("--reasoning is low, medium or high, not \"%s\"", word);
}

static bool is_date(const char *text)
{
    if (strlen(text) != 10)
        return false;
    for (int i = 0; i < 10; i++)
        if (i == 4 || i == 7 ? text[i] != '-' : text[i] < '0' || text[i] > '9')
            return false;
    return true;
}

/* The limits of the schema that can be told without the model. */
static int check(const struct options *o)
{
    if (o->stop.n > 16)
        return wrong("--stop: at most 16 texts, not %zu", o->stop.n);
    for (size_t i = 0; i < o->stop.n; i++)
        if (o->stop.items[i][0] == '\0' || strlen(o->stop.items[i]) > 256)
            return wrong("--stop takes a text of 1 to 256 bytes");
    if (o->date != NULL && !is_date(o->date))
        return wrong("--date takes YYYY-MM-DD, not \"%s\"", o->date);
    const char *id = o->resume != NULL ? o->resume : o->request_id;
    if (id != NULL && (id[0] == '\0' || strlen(id) > 64))
        return wrong("%s takes 1 to 64 bytes", o->resume != NULL ? "--resume" : "--request-id");
    return 0;
}

/* What belongs to chat means nothing for a plain completion: told, unless it is the environment's. */
static int check_kind(const struct options *o, const char *tools)
{
    const struct {
        const char *option, *value, *variable;
    } of_chat[] = {{"--system", o->system, "GPTOSS_SYSTEM"},
                   {"--tools", tools, "GPTOSS_TOOLS"},
                   {"--date", o->date, "GPTOSS_DATE"},
                   {"--assistant-prefix", o->prefix, NULL}};
    if (o->raw && o->by_ids)
        return wrong("--raw and --prompt-ids do not go together: the prompt is text, or ids");
    for (size_t i = 0; (o->raw || o->by_ids) && i < sizeof of_chat / sizeof *of_chat; i++)
        if (of_chat[i].value != NULL &&
            (of_chat[i].variable == NULL || of_chat[i].value != getenv(of_chat[i].variable)))
            return wrong("%s and %s do not go together: a plain completion has no messages",
                         o->raw ? "--raw" : "--prompt-ids", of_chat[i].option);
    return 0;
}

/* Where the prompt comes from: the words, the standard input, or a terminal. */
static int read_prompt(struct options *o, char **words, int n_words, bool terminal)
{
    bool from_stdin = n_words == 1 && strcmp(words[0], "-") == 0;
    if (o->task == TASK_STATUS || o->task == TASK_RESUME || o->by_ids) {
        if (n_words > 0)
            return wrong("there is no place for the PROMPT \"%.40s\" beside %s", words[0],
                         o->by_ids                ? "--prompt-ids"
                         : o->task == TASK_STATUS ? "--status"
                                                  : "--resume");
        return 0;
    }
    if (n_words == 0 && terminal) {
        if (o->raw || o->json || o->request_id != NULL)
            return wrong("%s needs a PROMPT", o->raw    ? "--raw"
                                              : o->json ? "--json"
                                                        : "--request-id");
        o->task = TASK_CHAT;
        return 0;
    }
    if (n_words == 0 || from_stdin) {
        if (read_all(stdin, "the standard input", PROTO_MESSAGE_MAX, &o->prompt) != 0)
            return -1;
        /* The newline that ends a line of text is part of a text to complete, not of a message. */
        if (!o->raw && o->prompt.size > 0 && o->prompt.bytes[o->prompt.size - 1] == '\n')
            o->prompt.bytes[--o->prompt.size] = '\0';
        if (o->prompt.size == 0)
            return wrong("there is no PROMPT, and nothing on the standard input");
        return 0;
    }
    for (int i = 0; i < n_words; i++)
        text_print(&o->prompt, "%s%s", i == 0 ? "" : " ", words[i]);
    return 0;
}

static const char examples[] =
    "  gptoss-client                                    a chat, in turns\n"
    "  gptoss-client \"What is the capital of Greece?\"   one question\n"
    "  gptoss-client --reasoning high --system \"Be brief.\" \"Why is the sky blue?\"\n"
    "  gptoss-client --raw \"In the beginning\" --max-tokens 32 --temperature 0\n"
    "  gptoss-client --tools models/get_weather.json \"What is the weather in Paris?\"\n"
    "  gptoss-client --json - < question.txt            one JSON object for a program\n"
    "  gptoss-client --status                           what the coordinator does\n"
    "  gptoss-client top                                the pipeline, live\n"
    "  gptoss-client metrics                            for Prometheus\n"
    "  gptoss-client trace --seconds 5 -o trace.json    every step, for ui.perfetto.dev\n";

static const char notes[] =
    "In chat the answer is on stdout. The chain of thought is shown dim on a terminal, and left "
    "out "
    "where stdout is none. Ctrl-C cancels the request; the exit code is then 130.\n"
    "\n"
    "--json prints: tokens, text, reasoning, commentary, tool_calls [{name, arguments}], top and "
    "logprobs (with --top-logits), finish (stop, length, tool_calls, cancelled, error), timing in "
    "seconds {queued, first_token, total}, usage {prompt_tokens, cached_tokens, completion_tokens, "
    "reasoning_tokens}, seed, request_id, and error {code, text} where there is one.\n"
    "\n"
    "top, metrics and trace are commands when they are the first word, each with a --help of its "
    "own; "
    "gptoss-client -- top asks the model.\n";

int options_read(struct options *o, int argc, char **argv, bool terminal)
{
    const char *reasoning = NULL, *tools = NULL, *seed = NULL, *ids = NULL;
    bool status = false;
    int64_t from = 0;
    o->endpoint = CLIENT_ENDPOINT;
    o->timeout_seconds = 5;
    o->silence_seconds = SILENCE_SECONDS;
    const struct cli_option table[] = {
        {.type = CLI_GROUP, .text = "the coordinator"},
        {CLI_STRING, "connect", 'c', "ENDPOINT", "where it listens: tcp://HOST:PORT or ipc://PATH",
         CLIENT_ENDPOINT, "GPTOSS_CONNECT", &o->endpoint, 0, 0, NULL},
        {CLI_FLOAT, "timeout", 0, "SECONDS", "give up if it does not answer for so long", "5",
         "GPTOSS_TIMEOUT", &o->timeout_seconds, 0.1, 86400, NULL},
        {CLI_FLAG, "status", 0, NULL, "show its stages, requests and KV cache", NULL, NULL, &status,
         0, 0, NULL},

        {.type = CLI_GROUP, .text = "the prompt"},
        {CLI_STRING, "system", 's', "TEXT", "instructions that come before the conversation", NULL,
         "GPTOSS_SYSTEM", &o->system, 0, 0, NULL},
        {CLI_STRING, "reasoning", 'r', "EFFORT", "how long to think: low, medium or high", "medium",
         "GPTOSS_REASONING", &reasoning, 0, 0, NULL},
        {CLI_STRING, "tools", 0, "FILE", "tools to call: JSON in OpenAI's form", NULL,
         "GPTOSS_TOOLS", &tools, 0, 0, NULL},
        {CLI_STRING, "date", 0, "YYYY-MM-DD", "today's date, for the model to know", "none",
         "GPTOSS_DATE", &o->date, 0, 0, NULL},
        {CLI_STRING, "assistant-prefix", 0, "TEXT", "the first words of the answer", NULL, NULL,
         &o->prefix, 0, 0, NULL},
        {CLI_FLAG, "raw", 0, NULL, "no chat: complete PROMPT as plain text", NULL, NULL, &o->raw, 0,
         0, NULL},
        {CLI_STRING, "prompt-ids", 0, "1,2,3", "no chat: complete these tokens; - reads stdin",
         NULL, NULL, &ids, 0, 0, NULL},

        {.type = CLI_GROUP, .text = "sampling"},
        {CLI_INT, "max-tokens", 'n', "N", "tokens to sample at most; 0: all that fit", "0",
         "GPTOSS_MAX_TOKENS", &o->max_tokens, 0, 4294967295.0, NULL},
        {CLI_FLOAT, "temperature", 0, "T", "0: always the best token; higher: more varied", "1",
         "GPTOSS_TEMPERATURE", &o->temperature, 0, 100, &o->temperature_given},
        {CLI_INT, "top-k", 0, "K", "of the K best tokens alone; 0: off", "0", "GPTOSS_TOP_K",
         &o->top_k, 0, 4294967295.0, NULL},
        {CLI_FLOAT, "top-p", 0, "P", "of the best tokens that hold this probability; 1: off", "1",
         "GPTOSS_TOP_P", &o->top_p, 0, 1, &o->top_p_given},
        {CLI_FLOAT, "min-p", 0, "P", "not below this part of the best token's probability", "0",
         "GPTOSS_MIN_P", &o->min_p, 0, 1, NULL},
        {CLI_STRING, "seed", 0, "N", "the same seed gives the same answer", "random", "GPTOSS_SEED",
         &seed, 0, 0, NULL},
        {CLI_LIST, "stop", 0, "TEXT", "end before this text; may be given 16 times", NULL, NULL,
         &o->stop, 0, 0, NULL},
        {CLI_FLAG, "ignore-eos", 0, NULL, "go on past the end of the turn", NULL, NULL,
         &o->ignore_eos, 0, 0, NULL},

        {.type = CLI_GROUP, .text = "the request"},
        {CLI_FLOAT, "deadline", 0, "SECONDS", "give up this long after acceptance; 0: never", "0",
         "GPTOSS_DEADLINE", &o->deadline_seconds, 0, 1e9, NULL},
        {CLI_STRING, "request-id", 0, "ID", "name the request, so that it can be resumed", "random",
         NULL, &o->request_id, 0, 0, NULL},
        {CLI_FLOAT, "linger", 0, "SECONDS", "keep it this long when the client is gone", "0", NULL,
         &o->linger_seconds, 0, 600, NULL},
        {CLI_STRING, "resume", 0, "ID", "pick up a request that lingers", NULL, NULL, &o->resume, 0,
         0, NULL},
        {CLI_INT, "from", 0, "INDEX", "with --resume: from this token on", "0", NULL, &from, 0,
         4294967295.0, NULL},

        {.type = CLI_GROUP, .text = "what is printed"},
        {CLI_FLAG, "json", 'j', NULL, "one JSON object when all is done", NULL, NULL, &o->json, 0,
         0, NULL},
        {CLI_INT, "top-logits", 0, "K", "with --json: the K best logits of each token", "0", NULL,
         &o->top_logits, 0, 32, NULL},
        {CLI_FLAG, "reasoning-text", 0, NULL,
         "the chain of thought in any case: on stderr where stdout is no terminal", NULL, NULL,
         &o->reasoning_text, 0, 0, NULL},
        {CLI_FLAG, "quiet", 'q', NULL, "the answer alone", NULL, NULL, &o->quiet, 0, 0, NULL},
    };
    const struct cli cli = {
        .program = "gptoss-client",
        .summary = "asks a gpt-oss pipeline, and streams the answer",
        .usage = "gptoss-client [OPTION]... [PROMPT]\n"
                 "gptoss-client [OPTION]... -          the prompt is read from stdin\n"
                 "gptoss-client top|metrics|trace [OPTION]...\n",
        .examples = examples,
        .notes = notes,
        .options = table,
        .n_options = sizeof table / sizeof *table,
        .exit_codes =
            1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_COORDINATOR,
    };
    char **words;
    int n_words;
    int parsed = cli_parse(&cli, argc, argv, &words, &n_words);
    if (parsed != 0)
        return parsed;

    o->by_ids = ids != NULL;
    o->task = status ? TASK_STATUS : o->resume != NULL ? TASK_RESUME : TASK_ASK;
    o->resume_from = (uint32_t)from;
    if (reasoning != NULL && read_reasoning(o, reasoning) != 0)
        return -1;
    if (seed != NULL && read_seed(o, seed) != 0)
        return -1;
    if (from != 0 && o->resume == NULL)
        return wrong("--from needs --resume");
    if (check(o) != 0 || check_kind(o, tools) != 0)
        return -1;
    if (tools != NULL && !o->raw && !o->by_ids && read_tools(o, tools) != 0)
        return -1;
    if (ids != NULL && strcmp(ids, "-") == 0) {
        struct text text = {0};
        int read = read_all(stdin, "the standard input", 4 * PROTO_MESSAGE_MAX, &text);
        if (read == 0)
            read = read_ids(o, text.bytes);
        text_free(&text);
        if (read != 0)
            return -1;
    } else if (ids != NULL && read_ids(o, ids) != 0)
        return -1;
    return read_prompt(o, words, n_words, terminal);
}

void options_free(struct options *o)
{
    text_free(&o->prompt);
    text_free(&o->tools);
    free(o->ids);
    free(o->stop.items);
    *o = (struct options){0};
}
