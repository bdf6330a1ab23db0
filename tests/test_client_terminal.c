/* test_client_terminal: gptoss-client as a person sees it. */
#include "tests/client_process.h"

#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>

static void reply_nothing(void)
{
}

static int terminal;
static pid_t on_terminal;
static size_t got, seen;

static void open_terminal(const char *const *words)
{
    fflush(stdout);
    on_terminal = forkpty(&terminal, NULL, NULL, NULL);
    if (on_terminal == 0)
        become_the_client(words);
    got = seen = 0;
    out[0] = '\0';
}

/* Reads until `part` is there, after what was expected before; all that came is in `out`. */
static void expect(const char *part)
{
    double end = clock_seconds() + 10;
    while (strstr(out + seen, part) == NULL) {
        struct pollfd p = {.fd = terminal, .events = POLLIN};
        if (clock_seconds() > end || poll(&p, 1, 10000) <= 0)
            fail_msg("\"%s\" does not come:\n%s", part, out);
        ssize_t n = read(terminal, out + got, sizeof out - 1 - got);
        if (n <= 0)
            fail_msg("\"%s\" did not come:\n%s", part, out);
        got += (size_t)n;
        out[got] = '\0';
    }
    seen = (size_t)(strstr(out + seen, part) - out) + strlen(part);
}

/* Waits until the coordinator has answered `n` messages of a kind. */
static void wait_for(atomic_int *count, int n)
{
    for (int i = 0; i < 1000 && *count < n; i++)
        usleep(10000);
    assert_int_equal(*count, n);
}

static void type(const char *text)
{
    assert_int_equal(write(terminal, text, strlen(text)), strlen(text));
}

static int close_terminal(void)
{
    int status;
    char rest[4096];
    while (read(terminal, rest, sizeof rest) > 0)
        ;
    waitpid(on_terminal, &status, 0);
    close(terminal);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

#define OPEN_TERMINAL(...) open_terminal((const char *[]){__VA_ARGS__, NULL})

static void a_terminal_shows_reasoning_dim_and_statistics(void **state)
{
    (void)state;
    start(reply_chat);
    OPEN_TERMINAL("What?");
    expect("from the cache");
    assert_int_equal(close_terminal(), 0);
    halt();
    forget();
    assert_has(out, "\033[2mThink\xef\xbf\xbd[31m.\033[0m\r\n\r\nAthens.\r\n");
    assert_has(out, "3 tokens · 2.0 tokens/s · first after 250 ms · prompt 9, 4 from the cache");
}

static void a_terminal_shows_the_prompt_before_its_completion(void **state)
{
    (void)state;
    start(reply_raw);
    OPEN_TERMINAL("--raw", "In");
    expect("cut at the limit");
    assert_int_equal(close_terminal(), 0);
    halt();
    forget();
    assert_has(out, "\033[2mIn\033[0m the heaven €\r\n");
}

static void an_interrupt_cancels_the_request(void **state)
{
    (void)state;
    start(reply_until_cancelled);
    OPEN_TERMINAL("--request-id", "mine", "Tell me a story");
    expect("Once upon");
    type("\003");
    assert_int_equal(close_terminal(), 130);
    halt();
    forget();
    assert_string_equal(log_of_cancels.bytes, "mine");
}

static void two_interrupts_leave_at_once(void **state)
{
    (void)state;
    start(reply_nothing);
    OPEN_TERMINAL("hi");
    wait_for(&n_generate, 1);
    double before = clock_seconds();
    type("\003");
    wait_for(&n_cancel, 1);
    type("\003");
    assert_int_equal(close_terminal(), 130);
    assert_true(clock_seconds() - before < 2.5);
    halt();
    forget();
}

static void a_chat_remembers_its_turns(void **state)
{
    (void)state;
    start(reply_chat);
    OPEN_TERMINAL("--system", "Be brief.");
    expect("> ");
    type("One?\n");
    expect("> ");
    type("Two\\\nlines?\n");
    wait_for(&n_generate, 2);
    expect("> ");
    type("\004");
    assert_int_equal(close_terminal(), 0);
    halt();
    Gptoss__Chat *chat = asked->generate->chat;
    assert_int_equal(chat->n_messages, 5);
    assert_memory_equal(chat->messages[1]->content.data, "One?", 4);
    assert_string_equal(chat->messages[2]->channel, "analysis");
    assert_string_equal(chat->messages[3]->channel, "final");
    assert_memory_equal(chat->messages[3]->content.data, "Athens.", 7);
    assert_int_equal(chat->messages[4]->content.len, 10);
    assert_memory_equal(chat->messages[4]->content.data, "Two\nlines?", 10);
    forget();
}

static void a_chat_asks_for_the_results_of_tools(void **state)
{
    (void)state;
    start(reply_call);
    OPEN_TERMINAL("--quiet");
    expect("> ");
    type("Weather?\n");
    expect("get_weather returns: ");
    type("{\"sky\":\"clear\"}\n");
    expect("Sunny.");
    type("\004");
    assert_int_equal(close_terminal(), 0);
    halt();
    Gptoss__Chat *chat = asked->generate->chat;
    assert_int_equal(chat->n_messages, 4);
    assert_string_equal(chat->messages[2]->recipient, "functions.get_weather");
    assert_int_equal(chat->messages[3]->role, GPTOSS__MESSAGE__ROLE__TOOL);
    assert_string_equal(chat->messages[3]->name, "functions.get_weather");
    assert_memory_equal(chat->messages[3]->content.data, "{\"sky\":\"clear\"}", 15);
    forget();
}

static void an_interrupted_chat_goes_on(void **state)
{
    (void)state;
    start(reply_until_cancelled);
    OPEN_TERMINAL("--quiet");
    expect("> ");
    type("One?\n");
    expect("Once upon");
    type("\003");
    expect("> ");
    type("Two?\n");
    expect("Once upon");
    type("\003");
    expect("> ");
    assert_int_equal(n_generate, 2);
    type("\004");
    assert_int_equal(close_terminal(), 0);
    halt();
    forget();
}

/* ── top ───────────────────────────────────────────────────────────────────────────────────── */

static atomic_int n_status;

static void reply_status(void)
{
    Gptoss__Status s = GPTOSS__STATUS__INIT;
    char state[] = "serving", model[] = "m.gguf", host[] = "node", version[] = "1";
    Gptoss__StageStatus stage = GPTOSS__STAGE_STATUS__INIT, *stages[] = {&stage};
    s.version = version;
    s.state = state;
    s.model = model;
    s.ready = true;
    s.uptime_seconds = 9;
    s.requests_running = (uint32_t)++n_status;
    s.window_seconds = asked->status->window_seconds;
    stage.host = host;
    stage.device = host;
    stage.busy_share = 0.5;
    s.stages = stages;
    s.n_stages = 1;
    tell(GPTOSS__SERVER_MESSAGE__BODY_STATUS, &s);
}

static void resize(unsigned short columns, unsigned short rows)
{
    const struct winsize size = {.ws_col = columns, .ws_row = rows};
    assert_int_equal(ioctl(terminal, TIOCSWINSZ, &size), 0);
}

static void assert_given_back(const struct termios *before)
{
    struct termios after;
    assert_int_equal(tcgetattr(terminal, &after), 0);
    assert_int_equal(after.c_lflag, before->c_lflag);
    assert_int_equal(after.c_iflag, before->c_iflag);
}

/* Until the screen is left; then the terminal is as it was, and nothing follows but the end. */
static void top_ends(const struct termios *before, int code)
{
    expect("\033[?7h\033[?25h\033[?1049l");
    assert_string_equal(out + seen, "");
    for (int i = 0; i < 200; i++) { /* the settings follow the bytes */
        struct termios now;
        tcgetattr(terminal, &now);
        if (now.c_lflag == before->c_lflag)
            break;
        usleep(10000);
    }
    assert_given_back(before);
    assert_int_equal(close_terminal(), code);
    halt();
    forget();
}

static void open_top(struct termios *before)
{
    n_status = 0;
    start(reply_status);
    OPEN_TERMINAL("top", "--interval", "0.1", "--window", "3");
    assert_int_equal(tcgetattr(terminal, before), 0);
    expect("\033[?1049h");
    expect("1 running");
}

static void top_redraws_until_q_and_gives_the_terminal_back(void **state)
{
    (void)state;
    struct termios before, live;
    open_top(&before);
    expect("3 running");
    assert_has(out, "of the last 3.00 s");
    tcgetattr(terminal, &live);
    assert_false(live.c_lflag & (ICANON | ECHO));
    type("q");
    top_ends(&before, 0);
}

static void top_fits_a_terminal_that_is_resized(void **state)
{
    (void)state;
    struct termios before;
    open_top(&before);
    resize(40, 6);
    char part[32];
    snprintf(part, sizeof part, "%d running", n_status + 2);
    expect(part);
    size_t from = seen;
    snprintf(part, sizeof part, "%d running", n_status + 2);
    expect(part);
    int lines = 0, width = 0;
    for (const char *p = out + from; p < out + seen; p++) {
        if (*p == '\033') {
            p += strcspn(p, "mHJK");
            width = *p == 'H' ? 0 : width; /* the next frame */
        } else if (*p == '\n') {
            lines++;
            width = 0;
        } else if (((unsigned char)*p & 0xc0) != 0x80 && *p != '\r')
            assert_true(++width <= 40);
    }
    assert_true(lines > 0 && lines < 2 * 6);
    type("q");
    top_ends(&before, 0);
}

static void an_interrupt_or_a_signal_gives_the_terminal_back(void **state)
{
    (void)state;
    struct termios before;
    open_top(&before);
    type("\003");
    top_ends(&before, 0);
    open_top(&before);
    kill(on_terminal, SIGTERM);
    top_ends(&before, 128 + SIGTERM);
    open_top(&before);
    kill(on_terminal, SIGHUP);
    top_ends(&before, 128 + SIGHUP);
}

static void top_goes_on_after_a_pause(void **state)
{
    (void)state;
    struct termios before;
    int status;
    open_top(&before);
    kill(on_terminal, SIGTSTP);
    expect("\033[?1049l");
    assert_int_equal(waitpid(on_terminal, &status, WUNTRACED), on_terminal);
    assert_true(WIFSTOPPED(status));
    assert_given_back(&before);
    kill(on_terminal, SIGCONT);
    expect("\033[?1049h");
    expect(" running");
    type("q");
    top_ends(&before, 0);
}

static void top_says_when_nobody_answers_any_more(void **state)
{
    (void)state;
    struct termios before;
    open_top(&before);
    reply = reply_nothing;
    expect("no answer for");
    reply = reply_status;
    type("q");
    top_ends(&before, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_terminal_shows_reasoning_dim_and_statistics, tidy),
        cmocka_unit_test_teardown(a_terminal_shows_the_prompt_before_its_completion, tidy),
        cmocka_unit_test_teardown(an_interrupt_cancels_the_request, tidy),
        cmocka_unit_test_teardown(two_interrupts_leave_at_once, tidy),
        cmocka_unit_test_teardown(a_chat_remembers_its_turns, tidy),
        cmocka_unit_test_teardown(a_chat_asks_for_the_results_of_tools, tidy),
        cmocka_unit_test_teardown(an_interrupted_chat_goes_on, tidy),
        cmocka_unit_test_teardown(top_redraws_until_q_and_gives_the_terminal_back, tidy),
        cmocka_unit_test_teardown(top_fits_a_terminal_that_is_resized, tidy),
        cmocka_unit_test_teardown(an_interrupt_or_a_signal_gives_the_terminal_back, tidy),
        cmocka_unit_test_teardown(top_goes_on_after_a_pause, tidy),
        cmocka_unit_test_teardown(top_says_when_nobody_answers_any_more, tidy),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
