/* table: columns that line up, for people, as Markdown, as CSV. */
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

struct table {
    size_t columns, rows, capacity;
    char **cells; /* [1 + rows, columns]: the first row is the headings */
};

static char *copy(const char *text)
{
    if (text == NULL)
        text = "";
    size_t size = strlen(text) + 1;
    return memcpy(base_alloc(size, 1), text, size);
}

static void add_row(struct table *table, const char *const *cells)
{
    size_t n = table->rows * table->columns;
    table->cells = base_grow(table->cells, &table->capacity, n + table->columns, sizeof(char *));
    for (size_t i = 0; i < table->columns; i++)
        table->cells[n + i] = copy(cells[i]);
    table->rows++;
}

struct table *table_create(size_t columns, const char *const *headings)
{
    struct table *table = base_alloc(1, sizeof *table);
    table->columns = columns;
    add_row(table, headings);
    return table;
}

void table_row(struct table *table, const char *const *cells)
{
    add_row(table, cells);
}

void table_destroy(struct table *table)
{
    if (table == NULL)
        return;
    for (size_t i = 0; i < table->rows * table->columns; i++)
        free(table->cells[i]);
    free(table->cells);
    free(table);
}

static bool is_number(const char *cell)
{
    return (cell[0] >= '0' && cell[0] <= '9') || cell[0] == '-' || cell[0] == '+';
}

/* Columns on a terminal: one for each character that is not a continuation byte. */
static size_t width_of(const char *cell)
{
    size_t width = 0;
    for (; *cell != '\0'; cell++)
        width += ((unsigned char)*cell & 0xc0) != 0x80;
    return width;
}

static void print_spaces(FILE *out, size_t n)
{
    fprintf(out, "%*s", (int)n, "");
}

static void print_csv(const struct table *table, FILE *out)
{
    for (size_t row = 0; row < table->rows; row++)
        for (size_t column = 0; column < table->columns; column++) {
            const char *cell = table->cells[row * table->columns + column];
            bool quoted = strpbrk(cell, ",\"\n\r") != NULL;
            fputs(quoted ? "\"" : "", out);
            for (; *cell != '\0'; cell++)
                fprintf(out, quoted && *cell == '"' ? "%c\"" : "%c", *cell);
            fputs(quoted ? "\"" : "", out);
            fputc(column + 1 < table->columns ? ',' : '\n', out);
        }
}

/* What each column needs: its width, and whether its heading stands right because all its cells do. */
static void measure(const struct table *table, bool markdown, size_t *widths, bool *right)
{
    for (size_t column = 0; column < table->columns; column++) {
        bool any = false, all = true;
        widths[column] = markdown ? 3 : 0;
        for (size_t row = 0; row < table->rows; row++) {
            const char *cell = table->cells[row * table->columns + column];
            size_t width = width_of(cell);
            for (const char *p = cell; markdown && *p != '\0'; p++)
                width += *p == '|';
            if (width > widths[column])
                widths[column] = width;
            if (row > 0 && cell[0] != '\0') {
                any = true;
                all = all && is_number(cell);
            }
        }
        right[column] = any && all;
    }
}

static void print_cell(const char *cell, size_t width, bool right, bool last, bool markdown,
                       FILE *out)
{
    size_t have = width_of(cell);
    for (const char *p = cell; markdown && *p != '\0'; p++)
        have += *p == '|';
    if (right)
        print_spaces(out, width - have);
    for (const char *p = cell; *p != '\0'; p++)
        fprintf(out, markdown && *p == '|' ? "\\%c" : "%c", *p);
    if (!right && !last)
        print_spaces(out, width - have);
}

static void print_rule(const struct table *table, const size_t *widths, const bool *right,
                       FILE *out)
{
    for (size_t column = 0; column < table->columns; column++) {
        fputs(column == 0 ? "| " : " | ", out);
        for (size_t i = 0; i + 1 < widths[column]; i++)
            fputc('-', out);
        fputc(right[column] ? ':' : '-', out);
    }
    fputs(" |\n", out);
}

void table_print(const struct table *table, enum table_format format, FILE *out)
{
    if (format == TABLE_CSV) {
        print_csv(table, out);
        return;
    }
    bool markdown = format == TABLE_MARKDOWN;
    size_t *widths = base_alloc(table->columns, sizeof *widths);
    bool *right = base_alloc(table->columns, sizeof *right);
    measure(table, markdown, widths, right);
    for (size_t row = 0; row < table->rows; row++) {
        for (size_t column = 0; column < table->columns; column++) {
            const char *cell = table->cells[row * table->columns + column];
            bool to_the_right = row == 0 ? right[column] : is_number(cell);
            bool last = column + 1 == table->columns;
            fputs(markdown ? (column == 0 ? "| " : " | ") : (column == 0 ? "" : "  "), out);
            print_cell(cell, widths[column], to_the_right, last && !markdown, markdown, out);
        }
        fputs(markdown ? " |\n" : "\n", out);
        if (row == 0 && markdown)
            print_rule(table, widths, right, out);
    }
    free(right);
    free(widths);
}
