/*
 * gptoss-gguf show: header, keys, tensors, layers, bytes by kind and by type.
 */
#include "tools/show.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tools/tools.h"

#define COLUMNS_SHOWN  60 /* of a string or a list */
#define ELEMENTS_SHOWN 4

/* Text of a file in one line for a terminal: control characters and what is no UTF-8 become '?'. */
static void plain(struct text *out, const char *bytes, uint64_t size, uint64_t max)
{
    uint64_t columns = 0, i = 0;
    while (i < size && columns < max) {
        size_t n = text_utf8_length(bytes + i, (size_t)(size - i), NULL);
        unsigned char c = (unsigned char)bytes[i];
        bool control =
            c < 0x20 || c == 0x7f || (c == 0xc2 && n == 2 && (unsigned char)bytes[i + 1] < 0xa0);
        if (n == 0 || control)
            text_add(out, c == '\n' ? " " : "?", 1);
        else
            text_add(out, bytes + i, n);
        i += n ? n : 1;
        columns++;
    }
    if (i < size)
        text_print(out, "… (%" PRIu64 " bytes)", size);
}

static void value(struct text *out, const struct gguf_key *key, bool whole)
{
    uint64_t cursor = 0, columns = whole ? UINT64_MAX : COLUMNS_SHOWN;
    if (key->type == GGUF_VALUE_STRING) {
        plain(out, (const char *)key->data, key->size, columns);
        return;
    }
    uint64_t shown = whole || key->count <= 2 * ELEMENTS_SHOWN ? key->count : ELEMENTS_SHOWN;
    for (uint64_t i = 0; i < shown; i++) {
        if (i)
            text_print(out, ", ");
        float f32;
        double f64;
        switch (key->element) {
        case GGUF_VALUE_STRING: {
            struct gguf_string text = gguf_next_string(key, &cursor);
            text_print(out, "\"");
            plain(out, text.bytes, text.size, columns);
            text_print(out, "\"");
            break;
        }
        case GGUF_VALUE_F32:
            memcpy(&f32, key->data + 4 * i, 4);
            text_print(out, "%.7g", (double)f32);
            break;
        case GGUF_VALUE_F64:
            memcpy(&f64, key->data + 8 * i, 8);
            text_print(out, "%.15g", f64);
            break;
        case GGUF_VALUE_BOOL: text_print(out, gguf_integer_at(key, i) ? "true" : "false"); break;
        default: text_print(out, "%" PRId64, gguf_integer_at(key, i));
        }
    }
    if (shown < key->count)
        text_print(out, ", …");
}

static void print_header(const struct gguf_file *file)
{
    char size[32], header[32];
    for (uint32_t i = 0; i < gguf_n_parts(file); i++)
        printf("%s\n", gguf_part_path(file, i));
    printf("GGUF version %" PRIu32 ", %s (%" PRIu64 " bytes), %" PRIu64 " keys, %" PRIu64
           " tensors\n",
           gguf_version(file), text_bytes(size, gguf_file_bytes(file)), gguf_file_bytes(file),
           gguf_n_keys(file), gguf_n_tensors(file));
    printf("header of %s, digest %016" PRIx64 ", data aligned to %" PRIu64 "\n",
           text_bytes(header, gguf_header_bytes(file)), gguf_header_digest(file),
           gguf_alignment(file));
}

/* Not a table of base/: in one, a value that begins with a digit would be set right. */
static void print_keys(const struct show *show)
{
    struct text name = {0}, type = {0}, words = {0};
    int width = 0;
    for (uint64_t i = 0; i < gguf_n_keys(show->file); i++) {
        uint64_t size = gguf_key_at(show->file, i)->name.size;
        if (size <= COLUMNS_SHOWN && (int)size > width)
            width = (int)size;
    }
    printf("\n%-*s  %-14s  value\n", width, "key", "type");
    for (uint64_t i = 0; i < gguf_n_keys(show->file); i++) {
        const struct gguf_key *key = gguf_key_at(show->file, i);
        bool array = key->type == GGUF_VALUE_ARRAY;
        text_clear(&name);
        text_clear(&type);
        text_clear(&words);
        plain(&name, key->name.bytes, key->name.size, COLUMNS_SHOWN);
        text_print(&type, "%s", gguf_value_type_name(key->element));
        if (array)
            text_print(&type, "[%" PRIu64 "]", key->count);
        value(&words, key, show->whole);
        printf("%-*s  %-14s  %s%s%s\n", width, name.bytes, type.bytes, array ? "[" : "",
               words.bytes ? words.bytes : "", array ? "]" : "");
    }
    text_free(&name);
    text_free(&type);
    text_free(&words);
}

static void print_tensors(const struct show *show)
{
    struct table *table =
        table_create(5, (const char *const[]){"tensor", "type", "shape", "bytes", "offset"});
    struct text name = {0}, shape = {0};
    for (uint64_t i = 0; i < gguf_n_tensors(show->file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(show->file, i);
        char bytes[32], offset[32];
        text_clear(&name);
        text_clear(&shape);
        plain(&name, t->name, strlen(t->name), COLUMNS_SHOWN);
        for (uint32_t d = t->n_dims; d-- > 0;) /* outermost first, as in the sources */
            text_print(&shape, "%s%" PRIu64, shape.size ? " × " : "", t->ne[d]);
        snprintf(bytes, sizeof bytes, "%" PRIu64, t->bytes);
        snprintf(offset, sizeof offset, "%" PRIu64, t->offset);
        table_row(table, (const char *const[]){name.bytes, gguf_type_name(t->type), shape.bytes,
                                               bytes, offset});
    }
    printf("\n");
    table_print(table, TABLE_TEXT, stdout);
    table_destroy(table);
    text_free(&name);
    text_free(&shape);
}

static void print_layers(const struct gguf_model *m)
{
    struct table *table = table_create(
        5, (const char *const[]){"layer", "attends to", "attention in", "experts in", "bytes"});
    for (uint32_t i = 0; i < m->n_layers; i++) {
        const struct gguf_layer *layer = &m->layers[i];
        struct text attention = {0}, experts = {0};
        char number[32], span[32] = "everything", bytes[32];
        snprintf(number, sizeof number, "%" PRIu32, i);
        if (layer->sliding)
            snprintf(span, sizeof span, "the last %" PRIu32, m->window);
        snprintf(bytes, sizeof bytes, "%" PRIu64, layer->bytes);
        show_layer_types(&attention, layer, false);
        show_layer_types(&experts, layer, true);
        table_row(table,
                  (const char *const[]){number, span, attention.bytes, experts.bytes, bytes});
        text_free(&attention);
        text_free(&experts);
    }
    printf("\n");
    table_print(table, TABLE_TEXT, stdout);
    table_destroy(table);
}

static void print_shares(const char *heading, const struct share *shares, size_t n)
{
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++)
        total += shares[i].bytes;
    struct table *table =
        table_create(5, (const char *const[]){heading, "tensors", "bytes", "", "share"});
    for (size_t i = 0; i < n; i++) {
        char tensors[32], bytes[32], size[32], percent[32];
        snprintf(tensors, sizeof tensors, "%" PRIu64, shares[i].tensors);
        snprintf(bytes, sizeof bytes, "%" PRIu64, shares[i].bytes);
        snprintf(percent, sizeof percent, "%.1f %%",
                 100.0 * (double)shares[i].bytes / (double)(total ? total : 1));
        table_row(table, (const char *const[]){shares[i].name, tensors, bytes,
                                               text_bytes(size, shares[i].bytes), percent});
    }
    printf("\n");
    table_print(table, TABLE_TEXT, stdout);
    table_destroy(table);
}

static void print_model(const struct gguf_model *m)
{
    printf("\ngpt-oss: %" PRIu32 " layers, hidden %" PRIu32 ", %" PRIu32 " query and %" PRIu32
           " kv heads of %" PRIu32 ", %" PRIu32 " of %" PRIu32 " experts of %" PRIu32
           ",\n         vocabulary %" PRIu32 "%s, window %" PRIu32 ", context %" PRIu32,
           m->n_layers, m->hidden, m->heads, m->kv_heads, m->head_dim, m->active, m->experts,
           m->expert_ffn, m->vocabulary, m->output == m->embedding ? " (tied)" : "", m->window,
           m->context);
    if (m->yarn_factor > 1)
        printf(" (YaRN: %g × %" PRIu32 ")", (double)m->yarn_factor, m->yarn_context);
    printf("\n");
}

static void print_all(const struct show *show, bool brief)
{
    print_header(show->file);
    print_keys(show);
    if (!brief)
        print_tensors(show);
    if (show->model && !brief)
        print_layers(show->model);
    print_shares("kind", show->kinds, show->n_kinds);
    print_shares("type", show->types, show->n_types);
    if (show->model)
        print_model(show->model);
}

int tools_show(int argc, char **argv)
{
    bool json = false, brief = false, whole = false;
    const struct cli_option options[] = {
        {.type = CLI_FLAG,
         .name = "json",
         .text = "one JSON object instead of tables",
         .out = &json},
        {.type = CLI_FLAG,
         .name = "brief",
         .text = "leave out the tables of tensors and layers",
         .out = &brief},
        {.type = CLI_FLAG,
         .name = "full",
         .text = "long strings and arrays in full",
         .out = &whole},
    };
    const struct cli cli = {
        .program = "gptoss-gguf show",
        .summary =
            "Shows what a model file in the GGUF format is: header, keys, tensors, layers, and "
            "where its bytes are.",
        .usage = "gptoss-gguf show [OPTION…] FILE",
        .examples = "  gptoss-gguf show --brief models/gptoss-tiny-mxfp4.gguf\n"
                    "  gptoss-gguf show --json model.gguf | jq '.types'\n",
        .notes =
            "The whole header is checked first; of the tensors' data nothing is read. Files that "
            "are sound but hold another model, or types that gptoss does not compute with, are "
            "shown as far as they can be, and the exit code says that they were refused.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_USAGE | 1u << EXIT_MODEL,
    };
    char **args, err[512], refused[512];
    int n_args;
    int status = cli_parse(&cli, argc, argv, &args, &n_args);
    if (status)
        return status > 0 ? EXIT_DONE : EXIT_USAGE;
    if (n_args != 1) {
        fprintf(stderr,
                "gptoss-gguf show: give one file, not %d\ngptoss-gguf show --help tells more\n",
                n_args);
        return EXIT_USAGE;
    }

    struct gguf_file *file;
    struct gguf_model *model;
    if (gguf_open(&file, args[0], err, sizeof err)) {
        fprintf(stderr, "gptoss-gguf: %s\n", err);
        return EXIT_MODEL;
    }
    bool sound = !gguf_model_create(&model, file, refused, sizeof refused);
    struct show show = {
        .file = file, .model = model, .refused = sound ? NULL : refused, .whole = whole};
    show_count(&show);
    if (json) {
        struct text out = {0};
        show_json(&out, &show);
        fwrite(out.bytes, 1, out.size, stdout);
        text_free(&out);
    } else {
        print_all(&show, brief);
    }
    fflush(stdout);
    if (!sound)
        fprintf(stderr, "gptoss-gguf: %s\n", refused);
    gguf_model_destroy(model);
    gguf_close(file);
    return sound ? EXIT_DONE : EXIT_MODEL;
}
