/*
 * harmony_tools: JSON schema → TypeScript-like text.
 *
 *   {"type": "integer"}                          number
 *   {"type": "string", "enum": ["a", "b"]}       "a" | "b"
 *   {"type": "array", "items": X}                X[]            without items: Array<any>
 *   {"type": ["string", "null"]}                 string | null
 *   {"type": "object", "properties": {…}}        { a line or more for each property }
 *   {"oneOf": [X, Y]}                            X and Y on lines of their own, after " | "
 *   anything else ($ref, anyOf, no type)         any
 *
 * `indent` is the number of spaces in front of the lines of an object's properties, and of its
 * closing brace.
 */
#include "coordinator/harmony_tools.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#define NAME_MAX_BYTES 128

struct writer {
    struct text *out;
    int depth;         /* of schemas that are being written */
    bool real_numbers; /* all numbers were read as reals: see parse */
    const char *problem;
};

static void type_write(struct writer *w, const json_t *schema, size_t indent);

static void add(struct writer *w, const char *string)
{
    text_add(w->out, string, strlen(string));
}

static void add_indent(struct writer *w, size_t indent)
{
    static const char spaces[] = "                                ";
    while (indent > 0) {
        size_t n = indent < sizeof spaces - 1 ? indent : sizeof spaces - 1;
        text_add(w->out, spaces, n);
        indent -= n;
    }
}

/* A line of its own: "// " and the words between `before` and `after`. */
static void add_comment(struct writer *w, size_t indent, const char *before, const char *words,
                        const char *after)
{
    add_indent(w, indent);
    add(w, "// ");
    add(w, before);
    add(w, words);
    add(w, after);
    add(w, "\n");
}

static bool enter(struct writer *w)
{
    if (++w->depth > HARMONY_TOOLS_DEPTH)
        w->problem = "is nested more than 64 levels deep";
    else if (w->out->size > HARMONY_TOOLS_TEXT_MAX)
        w->problem = "becomes a text of more than 4 MiB";
    return w->problem == NULL;
}

static const char *string_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

/* ── values as compact JSON ────────────────────────────────────────────────────────────────── */

static void string_write(struct writer *w, const char *s)
{
    add(w, "\"");
    for (; *s != '\0'; s++) {
        unsigned char c = (unsigned char)*s;
        static const char letters[] = "\b\f\n\r\t\"\\", escapes[] = "bfnrt\"\\";
        const char *found = strchr(letters, c);
        if (found != NULL)
            text_print(w->out, "\\%c", escapes[found - letters]);
        else if (c < 0x20)
            text_print(w->out, "\\u%04x", c);
        else
            text_add(w->out, s, 1);
    }
    add(w, "\"");
}

/* The fewest digits that read back as the same number, always with a point or an exponent: 1.0, 0.25,
 * 1e16, 1.5e-7. */
static void real_write(struct writer *w, double value)
{
    if (w->real_numbers && value == floor(value) && fabs(value) < 1e20) {
        text_print(w->out, "%.0f", value);
        return;
    }
    char buffer[40];
    int digits = 1;
    do
        snprintf(buffer, sizeof buffer, "%.*e", digits - 1, value);
    while (strtod(buffer, NULL) != value && ++digits <= 17);
    char *e = strchr(buffer, 'e');
    int exponent = atoi(e + 1);
    if (exponent >= 16 || exponent < -5) {
        *e = '\0';
        text_print(w->out, "%se%d", buffer, exponent);
    } else {
        int decimals = digits - 1 - exponent;
        text_print(w->out, "%.*f", decimals < 1 ? 1 : decimals, value);
    }
}

static void value_write(struct writer *w, const json_t *value)
{
    if (!enter(w)) {
        w->depth--;
        return;
    }
    switch (json_typeof(value)) {
    case JSON_OBJECT: {
        const char *key, *comma = "";
        json_t *member;
        add(w, "{");
        json_object_foreach((json_t *)(uintptr_t)value, key, member)
        {
            add(w, comma);
            string_write(w, key);
            add(w, ":");
            value_write(w, member);
            comma = ",";
        }
        add(w, "}");
        break;
    }
    case JSON_ARRAY:
        add(w, "[");
        for (size_t i = 0; i < json_array_size(value); i++) {
            add(w, i > 0 ? "," : "");
            value_write(w, json_array_get(value, i));
        }
        add(w, "]");
        break;
    case JSON_STRING: string_write(w, json_string_value(value)); break;
    case JSON_INTEGER:
        text_print(w->out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        break;
    case JSON_REAL: real_write(w, json_real_value(value)); break;
    case JSON_TRUE: add(w, "true"); break;
    case JSON_FALSE: add(w, "false"); break;
    case JSON_NULL: add(w, "null"); break;
    }
    w->depth--;
}

/* ── schemas ───────────────────────────────────────────────────────────────────────────────── */

/* "default: V": strings in quotes, of an enumeration without. */
static void default_write(struct writer *w, const json_t *schema)
{
    const json_t *value = json_object_get(schema, "default");
    add(w, "default: ");
    if (!json_is_string(value)) {
        value_write(w, value);
        return;
    }
    bool quoted = json_array_size(json_object_get(schema, "enum")) == 0;
    add(w, quoted ? "\"" : "");
    add(w, json_string_value(value));
    add(w, quoted ? "\"" : "");
}

/* The type, and " | null" where the schema says so and the type does not already. */
static void nullable_type_write(struct writer *w, const json_t *schema, size_t indent)
{
    size_t start = w->out->size;
    type_write(w, schema, indent);
    if (json_is_true(json_object_get(schema, "nullable")) &&
        (w->out->size == start || strstr(w->out->bytes + start, "null") == NULL))
        add(w, " | null");
}

/* One variant of a oneOf, with its description and default as a comment behind it. */
static void variant_write(struct writer *w, const json_t *schema, size_t indent,
                          const char *description, bool property)
{
    add_indent(w, indent);
    add(w, " | ");
    nullable_type_write(w, schema, indent + 3);
    const json_t *value = json_object_get(schema, "default");
    if (description == NULL && value == NULL)
        return;
    add(w, " // ");
    if (description != NULL)
        add(w, description);
    if (value == NULL)
        return;
    add(w, description != NULL ? " " : "");
    /* OpenAI's library quotes the default of an enumeration here, unless it is a property's. */
    if (json_is_string(value) && !property &&
        json_array_size(json_object_get(schema, "enum")) > 0) {
        add(w, "default: ");
        value_write(w, value);
    } else
        default_write(w, schema);
}

static void one_of_write(struct writer *w, const json_t *variants, size_t indent)
{
    for (size_t i = 0; i < json_array_size(variants) && w->problem == NULL; i++) {
        const json_t *variant = json_array_get(variants, i);
        add(w, "\n");
        variant_write(w, variant, indent, string_of(variant, "description"), false);
    }
}

/* A property that is a oneOf: its description is told once, above or behind the first variant. */
static void one_of_property_write(struct writer *w, const char *name, const json_t *schema,
                                  bool required, size_t indent)
{
    const json_t *variants = json_object_get(schema, "oneOf");
    const char *description = string_of(schema, "description");
    const char *first = string_of(json_array_get(variants, 0), "description");
    bool above = description != NULL && (first == NULL || strcmp(description, first) != 0);
    if (above)
        add_comment(w, indent, "", description, "");
    if (json_object_get(schema, "default") != NULL) {
        add_indent(w, indent);
        add(w, "// ");
        default_write(w, schema);
        add(w, "\n");
    }
    add_indent(w, indent);
    add(w, name);
    add(w, required ? ":\n" : "?:\n");
    for (size_t i = 0; i < json_array_size(variants) && w->problem == NULL; i++) {
        const json_t *variant = json_array_get(variants, i);
        const char *words = string_of(variant, "description");
        if ((i == 0 && above) ||
            (words != NULL && description != NULL && strcmp(words, description) == 0))
            words = NULL;
        variant_write(w, variant, indent, words, true);
        add(w, "\n");
    }
    add_indent(w, indent);
    add(w, ",\n");
}

static void property_write(struct writer *w, const char *name, const json_t *schema, bool required,
                           size_t indent)
{
    const char *title = string_of(schema, "title");
    if (title != NULL) {
        add_comment(w, indent, "", title, "");
        add_indent(w, indent);
        add(w, "//\n");
    }
    const json_t *one_of = json_object_get(schema, "oneOf");
    const char *description = string_of(schema, "description");
    if (one_of == NULL && description != NULL)
        add_comment(w, indent, "", description, "");
    const json_t *examples = json_object_get(schema, "examples");
    if (json_array_size(examples) > 0)
        add_comment(w, indent, "", "Examples:", "");
    for (size_t i = 0; i < json_array_size(examples); i++) {
        const json_t *example = json_array_get(examples, i);
        if (json_is_string(example))
            add_comment(w, indent, "- \"", json_string_value(example), "\"");
    }
    if (json_is_array(one_of)) {
        one_of_property_write(w, name, schema, required, indent);
        return;
    }
    add_indent(w, indent);
    add(w, name);
    add(w, required ? ": " : "?: ");
    nullable_type_write(w, schema, indent + 4);
    add(w, ",");
    if (one_of == NULL && json_object_get(schema, "default") != NULL) {
        add(w, " // ");
        default_write(w, schema);
    }
    add(w, "\n");
}

static void object_write(struct writer *w, const json_t *schema, size_t indent)
{
    const char *description = string_of(schema, "description");
    if (description != NULL)
        add_comment(w, indent, "", description, "");
    add(w, "{\n");
    /* A set of the required names: a list of thousands must not be searched for each property. */
    const json_t *required = json_object_get(schema, "required");
    json_t *names = json_object();
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        if (name != NULL)
            json_object_set_new(names, name, json_true());
    }
    const char *name;
    json_t *property;
    json_object_foreach(json_object_get(schema, "properties"), name, property)
    {
        if (w->problem != NULL)
            break;
        property_write(w, name, property, json_object_get(names, name) != NULL, indent);
    }
    json_decref(names);
    add_indent(w, indent);
    add(w, "}");
}

/* Strings of `list` with `separator` between them; whether there was any. */
static bool strings_write(struct writer *w, const json_t *list, const char *quote, bool types)
{
    bool any = false;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *s = json_string_value(json_array_get(list, i));
        if (s == NULL)
            continue;
        add(w, any ? " | " : "");
        add(w, quote);
        add(w, types && strcmp(s, "integer") == 0 ? "number" : s);
        add(w, quote);
        any = true;
    }
    return any;
}

static void type_write(struct writer *w, const json_t *schema, size_t indent)
{
    if (!enter(w)) {
        w->depth--;
        return;
    }
    const json_t *one_of = json_object_get(schema, "oneOf");
    const json_t *items = json_object_get(schema, "items");
    const char *type = string_of(schema, "type");
    if (json_is_array(one_of)) {
        one_of_write(w, one_of, indent);
    } else if (type == NULL) {
        if (!strings_write(w, json_object_get(schema, "type"), "", true))
            add(w, "any");
    } else if (strcmp(type, "object") == 0) {
        object_write(w, schema, indent);
    } else if (strcmp(type, "string") == 0) {
        if (!strings_write(w, json_object_get(schema, "enum"), "\"", false))
            add(w, "string");
    } else if (strcmp(type, "number") == 0 || strcmp(type, "integer") == 0) {
        add(w, "number");
    } else if (strcmp(type, "boolean") == 0) {
        add(w, "boolean");
    } else if (strcmp(type, "array") == 0 && items != NULL) {
        type_write(w, items, indent);
        add(w, "[]");
    } else {
        add(w, strcmp(type, "array") == 0 ? "Array<any>" : "any");
    }
    w->depth--;
}

/* ── tools ─────────────────────────────────────────────────────────────────────────────────── */

bool harmony_name_is_valid(const char *name)
{
    size_t size = strlen(name);
    if (size == 0 || size > NAME_MAX_BYTES)
        return false;
    for (size_t i = 0; i < size;) {
        size_t length = text_utf8_length(name + i, size - i, NULL);
        if (length == 0 || (unsigned char)name[i] <= 0x20 || name[i] == 0x7f)
            return false;
        i += length;
    }
    return true;
}

bool harmony_has_namespace(const char *name)
{
    return strncmp(name, "functions.", 10) == 0 && name[10] != '\0';
}

/* Each line of the description becomes a comment; a line ends with \n or \r\n. */
static void description_write(struct writer *w, const char *s)
{
    while (*s != '\0') {
        size_t line = strcspn(s, "\n"), next = line + (s[line] == '\n');
        add(w, "// ");
        text_add(w->out, s, line > 0 && s[line] == '\n' && s[line - 1] == '\r' ? line - 1 : line);
        add(w, "\n");
        s += next;
    }
}

/* What is wrong with the tool's JSON, or NULL after it was written. */
static const char *tool_write(struct writer *w, const json_t *tool)
{
    const char *type = string_of(tool, "type");
    const json_t *function = json_object_get(tool, "function");
    if (type == NULL || strcmp(type, "function") != 0 || !json_is_object(function))
        return "is not of the form {\"type\": \"function\", \"function\": {…}}";
    const char *name = string_of(function, "name");
    if (name == NULL || !harmony_name_is_valid(name))
        return "needs a name: a string of 1 to 128 bytes without spaces";
    const json_t *description = json_object_get(function, "description");
    if (json_is_string(description))
        description_write(w, json_string_value(description));
    else if (description != NULL && !json_is_null(description))
        return "has a description that is not a string";
    const json_t *parameters = json_object_get(function, "parameters");
    add(w, "type ");
    add(w, name);
    if (json_is_object(parameters)) {
        add(w, " = (_: ");
        type_write(w, parameters, 0);
        add(w, ") => any;\n\n");
    } else if (parameters == NULL || json_is_null(parameters)) {
        add(w, " = () => any;\n\n");
    } else
        return "has parameters that are not an object (a JSON schema)";
    return w->problem;
}

/* jansson refuses integers beyond 63 bits, which schemas made from unsigned types hold: then all
 * numbers are read as reals. */
static json_t *parse(const char *json, size_t size, bool *real_numbers, json_error_t *error)
{
    *real_numbers = false;
    json_t *root = json_loadb(json, size, JSON_REJECT_DUPLICATES, error);
    if (root == NULL && json_error_code(error) == json_error_numeric_overflow) {
        *real_numbers = true;
        root = json_loadb(json, size, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, error);
    }
    return root;
}

int harmony_tools_render(const void *json, size_t size, struct text *out, size_t *count, char *err,
                         size_t err_size)
{
    *count = 0;
    if (size > HARMONY_TOOLS_JSON_MAX) {
        snprintf(err, err_size, "tools: %zu bytes of JSON, at most %zu are taken", size,
                 HARMONY_TOOLS_JSON_MAX);
        return -1;
    }
    struct writer w = {.out = out};
    json_error_t error;
    json_t *root = parse(json, size, &w.real_numbers, &error);
    if (root == NULL) {
        snprintf(err, err_size, "tools are not JSON: line %d, column %d: %s", error.line,
                 error.column, error.text);
        return -1;
    }
    int status = -1;
    if (!json_is_array(root)) {
        snprintf(err, err_size,
                 "tools must be a JSON list: [{\"type\": \"function\", \"function\": {…}}, …]");
        goto done;
    }
    size_t n = json_array_size(root);
    if (n > 0)
        add(&w, "# Tools\n\n## functions\n\nnamespace functions {\n\n");
    for (size_t i = 0; i < n; i++) {
        const char *problem = tool_write(&w, json_array_get(root, i));
        if (problem != NULL) {
            snprintf(err, err_size, "tools: element %zu %s", i, problem);
            goto done;
        }
    }
    if (n > 0)
        add(&w, "} // namespace functions");
    *count = n;
    status = 0;
done:
    json_decref(root);
    return status;
}
