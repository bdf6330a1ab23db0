/* Rendering chats: against OpenAI's library (tests/data/harmony-chats.json, made by
 * scripts/harmony-vectors), and against the prompts that the tiny model was trained on. */
#include "tests/harmony_data.h"

static struct tokenizer *tokenizer;
static json_t *chats;

static int open_all(void **state)
{
    (void)state;
    tokenizer = data_tokenizer(TINY_MODEL);
    chats = data_json(GPTOSS_SOURCE_DIR "/tests/data/harmony-chats.json");
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    json_decref(chats);
    tokenizer_destroy(tokenizer);
    return 0;
}

/* The prompt as one text, special tokens by their names; *specials counts them. */
static void prompt_text(const struct prompt *p, const struct tokenizer *t, struct text *out,
                        size_t *specials)
{
    *specials = 0;
    for (size_t i = 0; i < p->n_parts; i++) {
        const struct prompt_part *part = &p->parts[i];
        if (part->id < 0) {
            assert_true(part->size > 0 && part->first + part->size <= p->text.size);
            text_add(out, p->text.bytes + part->first, part->size);
            continue;
        }
        size_t size;
        const char *name = tokenizer_bytes(t, (uint32_t)part->id, &size);
        assert_non_null(name);
        assert_true(tokenizer_is_special(t, (uint32_t)part->id));
        text_add(out, name, size);
        ++*specials;
    }
}

static void render(struct prompt *p, const struct tokenizer *t, const json_t *json,
                   enum harmony_start *start)
{
    char err[256] = "";
    Gptoss__Chat *chat = data_chat(json);
    if (harmony_render(p, t, chat, start, err, sizeof err) != 0)
        fail_msg("%s: %s", data_string(json, "name"), err);
    data_chat_free(chat);
}

static const json_t *chat_named(const char *name)
{
    for (size_t i = 0; i < json_array_size(chats); i++)
        if (strcmp(data_string(json_array_get(chats, i), "name"), name) == 0)
            return json_array_get(chats, i);
    fail_msg("no chat is named %s", name);
    return NULL;
}

static void text_is(const struct text *got, const char *want, size_t want_size, const char *what)
{
    size_t same = 0;
    while (same < got->size && same < want_size && got->bytes[same] == want[same])
        same++;
    if (same < got->size || same < want_size)
        fail_msg("%s: differs at byte %zu of %zu (want %zu): got \"%.60s\", want \"%.60s\"", what,
                 same, got->size, want_size, got->bytes + same, want + same);
}

static void renders_every_chat_as_the_library_of_openai(void **state)
{
    (void)state;
    size_t n = json_array_size(chats);
    assert_true(n >= 100);
    for (size_t i = 0; i < n; i++) {
        const json_t *json = json_array_get(chats, i), *want = json_object_get(json, "text");
        struct prompt p = {0};
        struct text got = {0};
        enum harmony_start start;
        size_t specials;
        render(&p, tokenizer, json, &start);
        prompt_text(&p, tokenizer, &got, &specials);
        text_is(&got, json_string_value(want), json_string_length(want), data_string(json, "name"));
        assert_int_equal(specials, json_integer_value(json_object_get(json, "specials")));
        assert_int_equal(start, json_object_get(json, "prefix") != NULL ? HARMONY_START_FINAL
                                                                        : HARMONY_START_HEADER);
        text_free(&got);
        prompt_free(&p);
    }
}

static uint64_t fnv(const struct tokens *ids)
{
    uint64_t value = 0xcbf29ce484222325u;
    for (size_t i = 0; i < ids->count; i++)
        for (int shift = 0; shift < 32; shift += 8)
            value = (value ^ (ids->ids[i] >> shift & 0xff)) * 0x100000001b3u;
    return value;
}

/* With the full vocabulary only: GPTOSS_TEST_O200K=FILE.gguf, see scripts/tokenizer-vectors. */
static void gives_the_ids_of_the_library_of_openai(void **state)
{
    (void)state;
    const char *path = getenv("GPTOSS_TEST_O200K");
    if (path == NULL)
        skip();
    struct tokenizer *full = data_tokenizer(path);
    for (size_t i = 0; i < json_array_size(chats); i++) {
        const json_t *json = json_array_get(chats, i);
        struct prompt p = {0};
        struct tokens ids = {0};
        enum harmony_start start;
        char hash[20];
        render(&p, full, json, &start);
        assert_int_equal(prompt_encode(&p, full, 0, &ids), 1);
        snprintf(hash, sizeof hash, "%016llx", (unsigned long long)fnv(&ids));
        if (strcmp(hash, data_string(json, "fnv")) != 0)
            fail_msg("%s: %zu ids, want %lld", data_string(json, "name"), ids.count,
                     json_integer_value(json_object_get(json, "tokens")));
        tokens_free(&ids);
        prompt_free(&p);
    }
    tokenizer_destroy(full);
}

static void a_call_and_its_result_continue_the_prompt_they_answer(void **state)
{
    (void)state;
    const char *before = data_string(chat_named("example B"), "text");
    const char *after = data_string(chat_named("example B, after the call"), "text");
    static const char model[] =
        "<|channel|>analysis<|message|>Need to use function get_current_weather.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.get_current_weather "
        "<|constrain|>json<|message|>{\"location\":\"San Francisco\"}<|call|>";
    assert_memory_equal(after, before, strlen(before));
    assert_memory_equal(after + strlen(before), model, sizeof model - 1);
    assert_string_equal(after + strlen(before) + sizeof model - 1,
                        "<|start|>functions.get_current_weather to=assistant<|channel|>commentary"
                        "<|message|>{\"sunny\": true, \"temperature\": 20}<|end|>"
                        "<|start|>assistant");
}

/* ── the tiny model's prompts ──────────────────────────────────────────────────────────────── */

static char *between(const char *text, const char *before, const char *after)
{
    const char *from = strstr(text, before), *to;
    if (from == NULL || (to = strstr(from + strlen(before), after)) == NULL)
        return NULL;
    from += strlen(before);
    return strndup(from, (size_t)(to - from));
}

/* The chat that the prompt was made of, read back from its text. */
static json_t *chat_of(const char *text)
{
    json_t *chat = json_object(), *messages = json_array();
    char *date = between(text, "Current date: ", "\n");
    char *reasoning = between(text, "Reasoning: ", "\n");
    char *user = between(text, "<|start|>user<|message|>", "<|end|>");
    char *call = between(text, "<|constrain|>json<|message|>", "<|call|>");
    char *result = between(text, " to=assistant<|channel|>commentary<|message|>", "<|end|>");
    json_array_append_new(messages, json_pack("{ss ss}", "role", "user", "content", user));
    if (call != NULL) {
        json_array_append_new(messages, json_pack("{ss ss ss}", "role", "assistant", "content",
                                                  call, "recipient", "functions.get_weather"));
        json_array_append_new(messages, json_pack("{ss ss ss}", "role", "tool", "content", result,
                                                  "name", "get_weather"));
    }
    json_object_set_new(chat, "messages", messages);
    json_object_set_new(chat, "reasoning", json_string(reasoning));
    json_object_set_new(chat, "date", json_string(date != NULL ? date : ""));
    if (strstr(text, "# Tools") != NULL) {
        json_t *tools = data_json(GPTOSS_SOURCE_DIR "/models/get_weather.json");
        char *json = json_dumps(tools, 0);
        json_object_set_new(chat, "tools", json_string(json));
        free(json);
        json_decref(tools);
    }
    free(date);
    free(reasoning);
    free(user);
    free(call);
    free(result);
    return chat;
}

static void makes_the_prompts_that_the_tiny_model_was_trained_on(void **state)
{
    (void)state;
    json_t *cases = data_json(GPTOSS_SOURCE_DIR "/models/gptoss-tiny-mxfp4.golden.json");
    size_t seen = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *wanted = json_array_get(cases, i);
        const char *text = data_string(wanted, "text");
        if (strncmp(text, "<|start|>", 9) != 0)
            continue;
        json_t *json = chat_of(text);
        const json_t *want = json_object_get(wanted, "prompt");
        struct prompt p = {0};
        struct text got = {0};
        struct tokens ids = {0};
        enum harmony_start start;
        size_t specials;
        render(&p, tokenizer, json, &start);
        prompt_text(&p, tokenizer, &got, &specials);
        text_is(&got, text, strlen(text), data_string(wanted, "name"));
        assert_int_equal(prompt_encode(&p, tokenizer, 0, &ids), 1);
        assert_int_equal(ids.count, json_array_size(want));
        for (size_t k = 0; k < ids.count; k++)
            assert_int_equal(ids.ids[k], json_integer_value(json_array_get(want, k)));
        tokens_free(&ids);
        text_free(&got);
        prompt_free(&p);
        json_decref(json);
        seen++;
    }
    assert_true(seen >= 10);
    json_decref(cases);
}

/* ── prompts ───────────────────────────────────────────────────────────────────────────────── */

static void encodes_the_same_ids_for_every_budget(void **state)
{
    (void)state;
    const json_t *json = chat_named("long");
    struct tokens whole = {0};
    static const size_t budgets[] = {0, 1, 2, 7, 64, 1000, 1000000};
    for (size_t b = 0; b < sizeof budgets / sizeof *budgets; b++) {
        struct prompt p = {0};
        struct tokens ids = {0};
        enum harmony_start start;
        render(&p, tokenizer, json, &start);
        size_t calls = 1, text = p.text.size;
        while (prompt_encode(&p, tokenizer, budgets[b], &ids) == 0)
            assert_true(++calls < 2 * text + 10);
        assert_true(2 * calls * (budgets[b] + 8) >= text || budgets[b] == 0);
        if (b == 0) {
            whole = ids;
        } else {
            assert_int_equal(ids.count, whole.count);
            assert_memory_equal(ids.ids, whole.ids, whole.count * sizeof *whole.ids);
            tokens_free(&ids);
        }
        prompt_free(&p);
    }
    tokens_free(&whole);
}

static void text_becomes_one_clean_part(void **state)
{
    (void)state;
    struct prompt p = {0};
    prompt_from_text(&p, "a\xff<|end|>\xe2\x82", 11);
    assert_int_equal(p.n_parts, 1);
    assert_int_equal(p.parts[0].id, -1);
    assert_string_equal(p.text.bytes, "a\xef\xbf\xbd<|end|>\xef\xbf\xbd");
    struct tokens ids = {0};
    assert_int_equal(prompt_encode(&p, tokenizer, 0, &ids), 1);
    for (size_t i = 0; i < ids.count; i++)
        assert_false(tokenizer_is_special(tokenizer, ids.ids[i]));
    tokens_free(&ids);
    prompt_free(&p);

    prompt_from_text(&p, "", 0);
    assert_int_equal(prompt_encode(&p, tokenizer, 0, &ids), 1);
    assert_int_equal(ids.count, 0);
    prompt_free(&p);
}

static void malformed_text_in_a_chat_becomes_replacement_characters(void **state)
{
    (void)state;
    json_t *json = json_pack("{s[{ss}{ss}]}", "messages", "role", "system", "role", "user");
    Gptoss__Chat *chat = data_chat(json);
    uint8_t bad[] = {'x', 0xc3, 'y'};
    chat->messages[0]->content = chat->messages[1]->content = chat->assistant_prefix =
        (ProtobufCBinaryData){.len = sizeof bad, .data = bad};
    struct prompt p = {0};
    struct text got = {0};
    enum harmony_start start;
    char err[256];
    size_t specials, found = 0;
    assert_int_equal(harmony_render(&p, tokenizer, chat, &start, err, sizeof err), 0);
    prompt_text(&p, tokenizer, &got, &specials);
    for (const char *s = got.bytes; (s = strstr(s, "x\xef\xbf\xbdy")) != NULL; s++)
        found++;
    assert_int_equal(found, 3);
    text_free(&got);
    prompt_free(&p);
    data_chat_free(chat);
    json_decref(json);
}

/* ── what is refused ───────────────────────────────────────────────────────────────────────── */

/* `json` is the chat; the sentence must hold `words`. */
static void is_refused(const char *json, const char *words)
{
    json_error_t error;
    json_t *root = json_loads(json, 0, &error);
    if (root == NULL)
        fail_msg("%s: %s", json, error.text);
    Gptoss__Chat *chat = data_chat(root);
    struct prompt p = {0};
    enum harmony_start start;
    char err[256] = "";
    if (harmony_render(&p, tokenizer, chat, &start, err, sizeof err) != -1)
        fail_msg("%s: not refused", json);
    if (strstr(err, words) == NULL)
        fail_msg("%s: \"%s\" does not say \"%s\"", json, err, words);
    prompt_free(&p);
    data_chat_free(chat);
    json_decref(root);
}

static void refuses_chats_that_make_no_sense(void **state)
{
    (void)state;
    is_refused("{\"messages\":[]}", "no message");
    static const char *const days[] = {"2025-6-28",  "2025-02-29", "1900-02-29", "2025-13-01",
                                       "2025-00-10", "2025-01-00", "20250628",   "2025-06-31",
                                       "0000-01-01", "today",      "2025-06-2a", "2025-06-28 ",
                                       "2025/06/28"};
    for (size_t i = 0; i < sizeof days / sizeof *days; i++) {
        char json[200];
        snprintf(json, sizeof json, "{\"date\":\"%s\",\"messages\":[{\"role\":\"user\"}]}",
                 days[i]);
        is_refused(json, "YYYY-MM-DD");
    }
    is_refused("{\"messages\":[{\"role\":\"user\"},{\"role\":\"tool\"}]}", "message 1 is a tool's");
    is_refused("{\"messages\":[{\"role\":\"tool\",\"name\":\"a b\"}]}", "without spaces");
    is_refused("{\"messages\":[{\"role\":\"user\",\"channel\":\"final\"}]}", "only an assistant's");
    is_refused("{\"messages\":[{\"role\":\"user\",\"recipient\":\"f\"}]}", "only an assistant's");
    is_refused("{\"messages\":[{\"role\":\"user\",\"name\":\"Ann\"}]}", "only a tool's");
    is_refused("{\"messages\":[{\"role\":\"assistant\",\"channel\":\"x\"}]}", "none of analysis");
    is_refused("{\"messages\":[{\"role\":\"assistant\",\"recipient\":\"a\\nb\"}]}",
               "no tool's name");
    is_refused(
        "{\"messages\":[{\"role\":\"assistant\",\"recipient\":\"f\",\"channel\":\"final\"}]}",
        "calls go to commentary");
}

static void refuses_an_unknown_role_and_reasoning(void **state)
{
    (void)state;
    Gptoss__Chat *chat = data_chat(chat_named("example A"));
    struct prompt p = {0};
    enum harmony_start start;
    char err[256] = "";
    chat->messages[0]->role = (Gptoss__Message__Role)9;
    assert_int_equal(harmony_render(&p, tokenizer, chat, &start, err, sizeof err), -1);
    assert_non_null(strstr(err, "role"));
    chat->messages[0]->role = GPTOSS__MESSAGE__ROLE__USER;
    chat->reasoning = (Gptoss__Chat__Reasoning)-1;
    assert_int_equal(harmony_render(&p, tokenizer, chat, &start, err, sizeof err), -1);
    assert_non_null(strstr(err, "reasoning"));
    prompt_free(&p);
    data_chat_free(chat);
}

/* `tools` is the text of the tools. */
static void tools_are_refused(const char *tools, const char *words)
{
    json_t *json = json_pack("{s[{ss}]ss}", "messages", "role", "user", "tools", tools);
    char *text = json_dumps(json, 0);
    is_refused(text, words);
    free(text);
    json_decref(json);
}

static void refuses_tools_that_are_not_in_the_form_of_openai(void **state)
{
    (void)state;
    tools_are_refused("[", "not JSON: line 1");
    tools_are_refused("[{\"type\":\"function\",\"type\":\"function\"}]", "not JSON");
    tools_are_refused("{}", "must be a JSON list");
    tools_are_refused("[1]", "element 0 is not of the form");
    tools_are_refused("[{\"type\":\"function\"}]", "element 0 is not of the form");
    tools_are_refused("[{\"type\":\"function\",\"function\":{}}]", "needs a name");
    tools_are_refused("[{\"type\":\"function\",\"function\":{\"name\":\"a b\"}}]", "needs a name");
    tools_are_refused("[{\"type\":\"function\",\"function\":{\"name\":\"a\",\"description\":1}}]",
                      "description that is not a string");
    tools_are_refused("[{\"type\":\"function\",\"function\":{\"name\":\"a\",\"parameters\":[]}}]",
                      "parameters that are not an object");
    tools_are_refused("[{\"type\":\"function\",\"function\":{\"name\":\"a\"}},null]", "element 1");
}

/* A function whose parameters are `n` times `open`, then `middle`, then `n` times `close`. */
static char *nested_tools(size_t n, const char *open, const char *middle, const char *close)
{
    struct text t = {0};
    text_print(&t, "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":");
    for (size_t i = 0; i < n; i++)
        text_print(&t, "%s", open);
    text_print(&t, "%s", middle);
    for (size_t i = 0; i < n; i++)
        text_print(&t, "%s", close);
    text_print(&t, "}}]");
    return t.bytes;
}

static void refuses_tools_beyond_all_bounds(void **state)
{
    (void)state;
    static const char object[] = "{\"type\":\"object\",\"properties\":{\"a\":";
    static const char array[] = "{\"type\":\"array\",\"items\":";
    char *tools = nested_tools(65, object, "{}", "}}");
    tools_are_refused(tools, "64 levels");
    free(tools);
    tools = nested_tools(2000, array, "{}", "}");
    tools_are_refused(tools, "64 levels");
    free(tools);
    tools = nested_tools(100000, "{\"a\":", "1", "}");
    tools_are_refused(tools, "at most");
    free(tools);
    tools = nested_tools(10000, "{\"a\":", "1", "}");
    tools_are_refused(tools, "not JSON");
    free(tools);
    struct text wide = {0};
    text_print(&wide, "{\"type\":\"object\",\"properties\":{");
    for (int i = 0; i < 20000; i++)
        text_print(&wide, "%s\"%d\":0", i > 0 ? "," : "", i);
    text_print(&wide, "}}");
    tools = nested_tools(60, object, wide.bytes, "}}");
    tools_are_refused(tools, "4 MiB");
    free(tools);
    text_free(&wide);
}

static void takes_integers_of_64_bits_without_sign(void **state)
{
    (void)state;
    static const char tools[] =
        "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\","
        "\"properties\":{\"n\":{\"type\":\"integer\",\"maximum\":18446744073709551615,"
        "\"default\":7}}}}}]";
    json_t *json = json_pack("{s[{ss}]ss}", "messages", "role", "user", "tools", tools);
    struct prompt p = {0};
    enum harmony_start start;
    render(&p, tokenizer, json, &start);
    assert_non_null(strstr(p.text.bytes, "n?: number, // default: 7\n"));
    prompt_free(&p);
    json_decref(json);
}

static void the_prompt_ends_with_the_head_of_a_chosen_call(void **state)
{
    (void)state;
    static const char tools[] = "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]";
    static const struct {
        const char *choice, *end;
    } cases[] = {
        {"f",
         "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>"},
        {"required", "<|start|>assistant<|channel|>commentary to=functions"},
        {"", "<|start|>assistant"},
    };
    json_t *json = json_pack("{s[{ss}]ss}", "messages", "role", "user", "tools", tools);
    char err[256];
    enum harmony_start start;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Gptoss__Chat *chat = data_chat(json);
        struct prompt p = {0};
        struct text got = {0};
        size_t specials;
        chat->tool_choice = (char *)(uintptr_t)cases[i].choice;
        assert_int_equal(harmony_render(&p, tokenizer, chat, &start, err, sizeof err), 0);
        assert_int_equal(start, HARMONY_START_HEADER);
        prompt_text(&p, tokenizer, &got, &specials);
        size_t size = strlen(cases[i].end);
        assert_true(got.size > size);
        assert_string_equal(got.bytes + got.size - size, cases[i].end);
        text_free(&got);
        prompt_free(&p);
        if (i == 0) { /* without tools there is nothing to choose */
            struct prompt none = {0};
            chat->tools_json.len = 0;
            assert_int_equal(harmony_render(&none, tokenizer, chat, &start, err, sizeof err), -1);
            assert_non_null(strstr(err, "no tools"));
            prompt_free(&none);
        }
        chat->tool_choice = (char *)protobuf_c_empty_string;
        data_chat_free(chat);
    }
    json_decref(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(renders_every_chat_as_the_library_of_openai),
        cmocka_unit_test(gives_the_ids_of_the_library_of_openai),
        cmocka_unit_test(a_call_and_its_result_continue_the_prompt_they_answer),
        cmocka_unit_test(makes_the_prompts_that_the_tiny_model_was_trained_on),
        cmocka_unit_test(encodes_the_same_ids_for_every_budget),
        cmocka_unit_test(text_becomes_one_clean_part),
        cmocka_unit_test(malformed_text_in_a_chat_becomes_replacement_characters),
        cmocka_unit_test(refuses_chats_that_make_no_sense),
        cmocka_unit_test(refuses_an_unknown_role_and_reasoning),
        cmocka_unit_test(refuses_tools_that_are_not_in_the_form_of_openai),
        cmocka_unit_test(refuses_tools_beyond_all_bounds),
        cmocka_unit_test(takes_integers_of_64_bits_without_sign),
        cmocka_unit_test(the_prompt_ends_with_the_head_of_a_chosen_call),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
