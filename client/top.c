/*
 * top: asks for the status again and again, and draws it. On a terminal it has a screen of its own, which
 * every way out gives back: q, Ctrl-C, SIGTERM, SIGHUP, Ctrl-Z.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>
#include <zmq.h>

#include "client/client.h"

#define COLUMNS_DEFAULT 100
#define COLUMNS_MAX     400
#define ENTER_SCREEN    "\033[?1049h\033[?25l\033[?7l" /* another page, no cursor, no wrapping */
#define LEAVE_SCREEN    "\033[?7h\033[?25h\033[?1049l"

static volatile sig_atomic_t ended, resized, paused;

static void on_end(int number)
{
    ended = number;
}

static void on_resize(int number)
{
    (void)number;
    resized = 1;
}

static void on_pause(int number)
{
    (void)number;
    paused = 1;
}

struct top {
    struct session *session;
    const struct options *o;
    bool live, keys; /* a terminal to draw on; keys to read */
    struct termios before;
    struct top_screen screen;
    struct top_history history;
    Gptoss__ServerMessage *status; /* the last one; NULL: none yet */
    double heard, asked, drawn;    /* when; 0: never */
    bool waiting;                  /* for an answer */
};

/* ── the terminal ──────────────────────────────────────────────────────────────────────────── */

static void put(const char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t n = write(STDOUT_FILENO, bytes, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            ended = ended ? ended : SIGPIPE; /* nobody reads any more */
            return;
        }
        bytes += n;
        size -= (size_t)n;
    }
}

static void enter(struct top *top)
{
    if (top->keys) {
        struct termios raw = top->before;
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        raw.c_cc[VMIN] = 0;
        raw.c_cc[VTIME] = 0;
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    put(ENTER_SCREEN, strlen(ENTER_SCREEN));
}

static void leave(struct top *top)
{
    put(LEAVE_SCREEN, strlen(LEAVE_SCREEN));
    if (top->keys)
        tcsetattr(STDIN_FILENO, TCSANOW, &top->before);
}

static void measure(struct top *top)
{
    struct winsize size;
    const char *columns = getenv("COLUMNS");
    long given = columns ? strtol(columns, NULL, 10) : 0;
    top->screen.columns = given >= 20 ? (size_t)given : COLUMNS_DEFAULT;
    if (top->live && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
        top->screen.columns = size.ws_col;
        top->screen.rows = size.ws_row > 1 ? size.ws_row : 0;
    }
    if (top->screen.columns > COLUMNS_MAX)
        top->screen.columns = COLUMNS_MAX;
}

/* Nothing else is said of the character set: today's terminals speak UTF-8. */
static bool plain_characters(void)
{
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (size_t i = 0; i < 3; i++) {
        const char *value = getenv(names[i]);
        if (value == NULL || value[0] == '\0')
            continue;
        return strstr(value, "UTF-8") == NULL && strstr(value, "utf8") == NULL &&
               strstr(value, "UTF8") == NULL && strstr(value, "utf-8") == NULL;
    }
    return false;
}

static void pause_here(struct top *top)
{
    paused = 0;
    leave(top);
    raise(SIGSTOP);
    enter(top);
    measure(top);
}

/* ── frames ────────────────────────────────────────────────────────────────────────────────── */

static void draw(struct top *top)
{
    struct text frame = {0}, out = {0};
    char notice[128], time[32];
    double silence = clock_seconds() - top->heard;
    top->screen.notice = NULL;
    if (silence > 3 * top->o->interval_seconds + 2) {
        snprintf(notice, sizeof notice, "no answer for %s; asking on",
                 text_seconds(time, (double)(long)silence));
        top->screen.notice = notice;
    }
    top_frame(&frame, top->o->endpoint, top->status->status, &top->history, &top->screen);
    if (!top->live)
        text_add(&out, frame.bytes, frame.size);
    else { /* each line replaces the old one, then what is below goes: nothing flickers */
        text_print(&out, "\033[H");
        for (size_t i = 0; i < frame.size; i++) {
            bool last = i + 1 == frame.size;
            if (frame.bytes[i] == '\n')
                text_print(&out, last ? "\033[K" : "\033[K\r\n");
            else
                text_add(&out, frame.bytes + i, 1);
        }
        text_print(&out, "\033[J");
    }
    if (!top->live && !top->o->once)
        text_print(&out, "\n");
    put(out.bytes, out.size);
    text_free(&frame);
    text_free(&out);
    top->drawn = clock_seconds();
}

static int ask(struct top *top, char *err, size_t err_size)
{
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__StatusRequest request = GPTOSS__STATUS_REQUEST__INIT;
    request.window_seconds = top->o->window_seconds;
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_STATUS;
    message.status = &request;
    top->asked = clock_seconds();
    top->waiting = true;
    return proto_send(top->session->socket, &message.base, err, err_size) < 0 ? -1 : 0;
}

/* Takes what came; draws if it was a status. */
static int take(struct top *top, char *err, size_t err_size)
{
    Gptoss__ServerMessage *message = NULL;
    int got;
    while ((got = session_next(top->session, &message, err, err_size)) == 1) {
        if (message->body_case != GPTOSS__SERVER_MESSAGE__BODY_STATUS) {
            proto_free(&message->base);
            continue;
        }
        if (top->status)
            proto_free(&top->status->base);
        top->status = message;
        top->heard = clock_seconds();
        top->waiting = false;
        top_remember(&top->history, message->status);
        draw(top);
    }
    return got;
}

static void read_keys(void)
{
    char keys[32];
    ssize_t n = read(STDIN_FILENO, keys, sizeof keys);
    for (ssize_t i = 0; i < n; i++)
        if (keys[i] == 'q' || keys[i] == 'Q' || keys[i] == 4)
            ended = SIGINT;
}

static int run(struct top *top, char *err, size_t err_size)
{
    while (!ended) {
        double now = clock_seconds(), due = top->asked + top->o->interval_seconds;
        if (top->waiting && due < top->asked + 2)
            due = top->asked + 2; /* an old question comes first: they would pile up */
        if (now >= due) {
            if (ask(top, err, err_size))
                return -1;
            if (top->live && now - top->heard > 2)
                draw(top); /* says that nothing is heard */
            continue;
        }
        zmq_pollitem_t items[2] = {{.socket = top->session->socket, .events = ZMQ_POLLIN},
                                   {.fd = STDIN_FILENO, .events = ZMQ_POLLIN}};
        double wait = due - now < 0.2 ? due - now : 0.2; /* a signal just before it is seen soon */
        zmq_poll(items, top->keys ? 2 : 1, (long)(wait * 1000) + 1);
        if (top->keys && items[1].revents)
            read_keys();
        if (paused && top->live)
            pause_here(top);
        if (resized) {
            resized = 0;
            measure(top);
            draw(top);
        }
        if (take(top, err, err_size) < 0)
            return -1;
    }
    return 0;
}

int top_run(struct session *s, const struct options *o, char *err, size_t err_size)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGTSTP};
    enum { N_SIGNALS = sizeof signals / sizeof *signals };
    struct sigaction before[N_SIGNALS];
    const char *no_color = getenv("NO_COLOR"), *terminal = getenv("TERM");
    bool dumb = terminal == NULL || strcmp(terminal, "dumb") == 0;
    struct top top = {.session = s, .o = o};
    top.live = !o->once && isatty(STDOUT_FILENO) == 1 && !dumb;
    top.keys = top.live && tcgetattr(STDIN_FILENO, &top.before) == 0;
    top.screen.colour = isatty(STDOUT_FILENO) == 1 && !dumb && (!no_color || !no_color[0]);
    top.screen.ascii = o->ascii || plain_characters();
    measure(&top);
    /* The first answer decides whether there is anything to look at. */
    enum session_end end = session_status(s, o, &top.status, err, err_size);
    if (end != SESSION_DONE)
        return EXIT_COORDINATOR;
    top.heard = top.asked = clock_seconds();
    top_remember(&top.history, top.status->status);
    ended = resized = paused = 0;
    for (int i = 0; i < N_SIGNALS; i++) {
        struct sigaction action = {.sa_handler = signals[i] == SIGWINCH  ? on_resize
                                                 : signals[i] == SIGTSTP ? on_pause
                                                                         : on_end};
        if (signals[i] == SIGTSTP && !top.live)
            action.sa_handler = SIG_DFL;
        sigaction(signals[i], &action, &before[i]);
    }
    signal(SIGPIPE, SIG_IGN);
    if (top.live)
        enter(&top);
    draw(&top);
    int status = o->once ? 0 : run(&top, err, err_size);
    if (top.live)
        leave(&top);
    for (int i = 0; i < N_SIGNALS; i++)
        sigaction(signals[i], &before[i], NULL);
    proto_free(&top.status->base);
    if (status)
        return EXIT_COORDINATOR;
    return ended == SIGTERM || ended == SIGHUP || ended == SIGQUIT ? 128 + ended : EXIT_DONE;
}
