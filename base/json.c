/* json: what programs write of it. */
#include "base/base.h"

/* Length of the invalid part at p that one U+FFFD stands for: the longest prefix of a well-formed
 * sequence, at least one byte. */
static size_t invalid_part(const unsigned char *p, size_t size)
{
    size_t n = 1;
    bool incomplete;
    while (n < size && n < 4) {
        text_utf8_length(p, n + 1, &incomplete);
        if (!incomplete)
            break;
        n++;
    }
    text_utf8_length(p, 1, &incomplete);
    return incomplete ? n : 1;
}

void text_json_string(struct text *t, const void *bytes, size_t size)
{
    const unsigned char *p = bytes;
    text_add(t, "\"", 1);
    size_t from = 0; /* start of the stretch that is copied as it is */
    for (size_t i = 0; i < size;) {
        unsigned char c = p[i];
        size_t length = text_utf8_length(p + i, size - i, NULL);
        if (length > 0 && c >= 0x20 && c != '"' && c != '\\' && c != 0x7f) {
            i += length;
            continue;
        }
        text_add(t, p + from, i - from);
        if (length == 0) {
            length = invalid_part(p + i, size - i);
            text_add(t, "\xef\xbf\xbd", 3);
        } else if (c == '"' || c == '\\')
            text_print(t, "\\%c", c);
        else if (c == '\n')
            text_add(t, "\\n", 2);
        else if (c == '\r')
            text_add(t, "\\r", 2);
        else if (c == '\t')
            text_add(t, "\\t", 2);
        else
            text_print(t, "\\u%04x", c);
        i += length;
        from = i;
    }
    text_add(t, p + from, size - from);
    text_add(t, "\"", 1);
}
