/*
 * log: one record, one line, one write, so that lines of several threads and processes on one
 * terminal do not mix.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"

#define LINE_MAX_BYTES 8192

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static const char *const level_colours[] = {"\033[1;31m", "\033[33m", "\033[36m", "\033[2m"};

static char process_name[64];
static enum log_level most = LOG_INFO;
static bool is_open, colour;

void log_open(const char *process)
{
    snprintf(process_name, sizeof process_name, "%s", process);
    const char *no_color = getenv("NO_COLOR");
    colour = isatty(STDERR_FILENO) == 1 && (no_color == NULL || no_color[0] == '\0');
    is_open = true;
    const char *wanted = getenv("GPTOSS_LOG");
    if (wanted == NULL || wanted[0] == '\0')
        return;
    for (size_t i = 0; i < sizeof level_names / sizeof *level_names; i++)
        if (strcmp(wanted, level_names[i]) == 0) {
            most = (enum log_level)i;
            return;
        }
    static bool told;
    if (!told)
        log_warn("GPTOSS_LOG=%s is not a level; use error, warn, info or debug", wanted);
    told = true;
}

bool log_enabled(enum log_level level)
{
    if (!is_open)
        log_open(program_invocation_short_name);
    return level <= most;
}

void log_write(enum log_level level, const char *format, ...)
{
    if (!log_enabled(level))
        return;
    int saved = errno; /* %m in `format` is the caller's */
    struct timespec now;
    struct tm utc;
    char when[32], line[LINE_MAX_BYTES];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &utc);

    const char *dim = colour ? "\033[2m" : "", *plain = colour ? "\033[0m" : "";
    int head = snprintf(line, sizeof line, "%s%s.%03dZ%s %s%-5s%s %s  ", dim, when,
                        (int)(now.tv_nsec / 1000000), plain, colour ? level_colours[level] : "",
                        level_names[level], plain, process_name);
    size_t size = (size_t)head;
    size_t room = sizeof line - size - 1; /* the newline takes the terminator's place */
    va_list args;
    va_start(args, format);
    errno = saved;
    int wrote = vsnprintf(line + size, room, format, args);
    va_end(args);
    if (wrote < 0)
        wrote = 0;
    size_t text_size = (size_t)wrote < room ? (size_t)wrote : room - 1;

    /* Text may quote what came from outside: no line breaks, no escape sequences. */
    for (size_t i = size; i < size + text_size; i++) {
        unsigned char c = (unsigned char)line[i];
        if (c == '\n' || c == '\t' || c == '\r')
            line[i] = ' ';
        else if (c < 0x20 || c == 0x7f)
            line[i] = '?';
    }
    size += text_size;
    while (size > (size_t)head && line[size - 1] == ' ')
        size--;
    line[size++] = '\n';
    for (size_t done = 0; done < size;) {
        ssize_t n = write(STDERR_FILENO, line + done, size - done);
        if (n < 0 && errno != EINTR)
            break;
        if (n > 0)
            done += (size_t)n;
    }
    errno = saved;
}
