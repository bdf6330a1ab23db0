/* test_cli: options out of a table, what is said of wrong ones, and --help. */
#include "tests/test.h"

#include <dirent.h>
#include <unistd.h>

#include "base/cli.h"

static struct {
    bool verbose, threads_given;
    const char *model;
    int64_t threads;
    double temperature;
    struct cli_list stop;
} o;

static const struct cli_option table[] = {
    {.type = CLI_GROUP, .text = "what runs"},
    {CLI_STRING, "model", 'm', "FILE", "the model file", NULL, "GPTOSS_MODEL", &o.model, 0, 0,
     NULL},
    {CLI_INT, "threads", 't', "N", "threads to use", "all", "GPTOSS_THREADS", &o.threads, 1, 64,
     &o.threads_given},
    {.type = CLI_GROUP, .text = "how"},
    {CLI_FLOAT, "temperature", 0, "T",
     "randomness, and a sentence long enough that it has to be "
     "wrapped into a second line of the help",
     "1", "GPTOSS_TEMPERATURE", &o.temperature, 0, 10, NULL},
    {CLI_FLAG, "verbose", 'v', NULL, "say more", NULL, "GPTOSS_VERBOSE", &o.verbose, 0, 0, NULL},
    {CLI_LIST, "stop", 's', "TEXT", "end here", NULL, "GPTOSS_STOP", &o.stop, 0, 0, NULL},
};
static const struct cli cli = {
    .program = "gptoss-example",
    .summary = "shows what a table of options becomes",
    .usage = "gptoss-example [OPTION]... [WORD]...",
    .examples = "  gptoss-example --model a.gguf word\n",
    .notes = "A note.",
    .options = table,
    .n_options = sizeof table / sizeof *table,
    .exit_codes = 1u << EXIT_DONE | 1u << EXIT_USAGE,
};

static char **words;
static int n_words;
static char said[65536]; /* on stdout and stderr */

/* Parses, with stdout and stderr caught in `said`. */
static int parse_with(int argc, char **argv)
{
    FILE *file = tmpfile();
    fflush(stdout);
    fflush(stderr);
    int out = dup(1), err = dup(2);
    dup2(fileno(file), 1);
    dup2(fileno(file), 2);
    int status = cli_parse(&cli, argc, argv, &words, &n_words);
    fflush(stdout);
    fflush(stderr);
    dup2(out, 1);
    dup2(err, 2);
    close(out);
    close(err);
    rewind(file);
    said[fread(said, 1, sizeof said - 1, file)] = '\0';
    fclose(file);
    return status;
}

/* PARSE("x", words…): the first is the program's name. */
#define PARSE(...) parse_words((const char *[]){__VA_ARGS__, NULL})
static int parse_words(const char **argv)
{
    int argc = 0;
    while (argv[argc] != NULL)
        argc++;
    return parse_with(argc, (char **)argv);
}

static int fresh(void **state)
{
    (void)state;
    free(o.stop.items);
    memset(&o, 0, sizeof o);
    static const char *const names[] = {"MODEL", "THREADS", "TEMPERATURE", "VERBOSE", "STOP"};
    for (size_t i = 0; i < 5; i++) {
        char name[32];
        snprintf(name, sizeof name, "GPTOSS_%s", names[i]);
        unsetenv(name);
    }
    return 0;
}

static int count(const char *text, const char *part)
{
    int n = 0;
    for (; (text = strstr(text, part)) != NULL; text++)
        n++;
    return n;
}

static void reads_options_in_every_form_and_keeps_the_words(void **state)
{
    (void)state;
    assert_int_equal(PARSE("x", "one", "--model", "a.gguf", "-v", "--threads=7", "two",
                           "--temperature", "-0", "-"),
                     0);
    assert_string_equal(o.model, "a.gguf");
    assert_true(o.verbose);
    assert_int_equal(o.threads, 7);
    assert_true(o.threads_given);
    assert_int_equal(n_words, 3);
    assert_string_equal(words[0], "one");
    assert_string_equal(words[1], "two");
    assert_string_equal(words[2], "-");

    fresh(NULL);
    assert_int_equal(PARSE("x", "-vt3", "-mb", "--model="), 0);
    assert_true(o.verbose);
    assert_int_equal(o.threads, 3);
    assert_string_equal(o.model, "");
}

static void two_dashes_end_the_options(void **state)
{
    (void)state;
    assert_int_equal(PARSE("x", "-v", "--", "--model", "--"), 0);
    assert_null(o.model);
    assert_int_equal(n_words, 2);
    assert_string_equal(words[0], "--model");
    assert_string_equal(words[1], "--");
}

static void the_command_line_wins_over_the_environment(void **state)
{
    (void)state;
    setenv("GPTOSS_MODEL", "env.gguf", 1);
    setenv("GPTOSS_THREADS", "9", 1);
    setenv("GPTOSS_VERBOSE", "on", 1);
    setenv("GPTOSS_STOP", "env", 1);
    assert_int_equal(PARSE("x", "--threads", "3"), 0);
    assert_string_equal(o.model, "env.gguf");
    assert_int_equal(o.threads, 3);
    assert_true(o.verbose);
    assert_int_equal(o.stop.n, 1);
    assert_int_equal(PARSE("x", "-s", "a", "-s", "b"), 0);
    assert_int_equal(o.stop.n, 2);
    assert_string_equal(o.stop.items[0], "a");
    assert_string_equal(o.stop.items[1], "b");
}

static void an_empty_variable_is_none_and_a_wrong_one_is_refused(void **state)
{
    (void)state;
    setenv("GPTOSS_THREADS", "", 1);
    assert_int_equal(PARSE("x"), 0);
    assert_false(o.threads_given);
    setenv("GPTOSS_THREADS", "many", 1);
    assert_int_equal(PARSE("x"), -1);
    assert_non_null(strstr(said, "GPTOSS_THREADS takes a whole number, not \"many\""));
    unsetenv("GPTOSS_THREADS");
    setenv("GPTOSS_VERBOSE", "maybe", 1);
    assert_int_equal(PARSE("x"), -1);
    assert_non_null(strstr(said, "GPTOSS_VERBOSE is 1 or 0, not \"maybe\""));
    assert_int_equal(PARSE("x", "--help"), 1); /* help is never refused */
}

static void wrong_use_is_told_in_two_lines(void **state)
{
    (void)state;
    static const struct {
        const char *first, *second, *says;
    } cases[] = {
        {"--modle", "x", "there is no option --modle; did you mean --model?"},
        {"--temp=1", NULL, "there is no option --temp; did you mean --temperature?"},
        {"--tempreature=1", NULL, "did you mean --temperature?"},
        {"--hlep", NULL, "did you mean --help?"},
        {"--banana", NULL, "there is no option --banana\n"},
        {"-x", NULL, "there is no option -x\n"},
        {"-vx", NULL, "there is no option -vx\n"},
        {"--model", NULL, "--model needs a value: --model FILE"},
        {"-m", NULL, "-m needs a value: -m FILE"},
        {"--verbose=yes", NULL, "--verbose takes no value"},
        {"--threads", "0", "--threads: 0 is out of range; it must be from 1 to 64"},
        {"--threads", "65", "out of range"},
        {"--threads", "3x", "--threads takes a whole number, not \"3x\""},
        {"--threads", "", "takes a whole number"},
        {"--threads", "99999999999999999999", "takes a whole number"},
        {"--temperature", "nan", "--temperature takes a number, not \"nan\""},
        {"--temperature", "-1", "from 0 to 10"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(PARSE("x", cases[i].first, cases[i].second), -1);
        if (strstr(said, cases[i].says) == NULL)
            fail_msg("%s: says %s instead of %s", cases[i].first, said, cases[i].says);
        assert_int_equal(count(said, "\n"), 2);
        assert_non_null(strstr(said, "gptoss-example --help lists the options\n"));
    }
}

static void help_shows_examples_defaults_variables_and_exit_codes(void **state)
{
    (void)state;
    assert_int_equal(PARSE("x", "--nonsense", "--help"), 1);
    static const char *const parts[] = {
        "gptoss-example: shows what",
        "usage: gptoss-example [OPTION]",
        "examples:\n  gptoss-example --model",
        "what runs:\n",
        "-m, --model FILE",
        "threads to use (default all; GPTOSS_THREADS)",
        "(default 1; GPTOSS_TEMPERATURE)",
        "the model file (GPTOSS_MODEL)",
        "-h, --help",
        "GPTOSS_LOG=LEVEL",
        "A note.",
        "exit codes:\n  0  done\n  2  wrong use",
    };
    const char *at = said;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strstr(said, parts[i]) == NULL)
            fail_msg("--help lacks \"%s\":\n%s", parts[i], said);
    assert_null(strstr(said, "\n  3  "));
    for (; *at != '\0'; at += strcspn(at, "\n") + 1)
        assert_true(strcspn(at, "\n") <= 100);
    /* All texts begin in one column. */
    const char *model = strstr(said, "the model file"), *threads = strstr(said, "threads to use");
    const char *line1 = model, *line2 = threads;
    while (line1[-1] != '\n')
        line1--;
    while (line2[-1] != '\n')
        line2--;
    assert_int_equal(model - line1, threads - line2);
}

static void version_is_one_line(void **state)
{
    (void)state;
    assert_int_equal(PARSE("x", "--version"), 1);
    assert_string_equal(said, "gptoss-example " GPTOSS_VERSION "\n");
}

static void warns_once_of_a_variable_that_nobody_reads(void **state)
{
    (void)state;
    setenv("GPTOSS_TEMPRATURE", "1", 1);
    setenv("GPTOSS_TEST_ANYTHING", "1", 1);
    setenv("GPTOSS_LAUNCH", "4", 1); /* another program's */
    setenv("GPTOSS_ZZZZZZ", "1", 1);
    /* The first parse of the process warns: this test comes before the others. */
    assert_int_equal(PARSE("x"), 0);
    assert_non_null(strstr(said, "GPTOSS_TEMPRATURE in the environment means nothing to "
                                 "gptoss-example; did you mean GPTOSS_TEMPERATURE?"));
    assert_non_null(strstr(said, "GPTOSS_ZZZZZZ in the environment means nothing to "));
    assert_null(strstr(said, "GPTOSS_TEST"));
    assert_null(strstr(said, "GPTOSS_LAUNCH"));
    assert_int_equal(PARSE("x"), 0);
    assert_string_equal(said, "");
    unsetenv("GPTOSS_TEMPRATURE");
    unsetenv("GPTOSS_TEST_ANYTHING");
    unsetenv("GPTOSS_LAUNCH");
    unsetenv("GPTOSS_ZZZZZZ");
}

/* A variable that one program reads must not make the others warn: base/cli.c lists them all. */
static void knows_the_variables_of_all_programs(void **state)
{
    (void)state;
    static const struct cli none = {.program = "none"};
    static const char *const folders[] = {"client", "coordinator", "worker", "tools", "bench"};
    static char source[1 << 20];
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", GPTOSS_SOURCE_DIR, folders[i]);
        DIR *folder = opendir(path);
        for (struct dirent *e; folder != NULL && (e = readdir(folder)) != NULL;) {
            size_t size = strlen(e->d_name);
            if (size < 3 || strcmp(e->d_name + size - 2, ".c") != 0)
                continue;
            snprintf(path, sizeof path, "%s/%s/%s", GPTOSS_SOURCE_DIR, folders[i], e->d_name);
            FILE *file = fopen(path, "r");
            assert_non_null(file);
            source[fread(source, 1, sizeof source - 1, file)] = '\0';
            fclose(file);
            for (const char *p = source; (p = strstr(p, "\"GPTOSS_")) != NULL; p++) {
                char name[64];
                size_t length = strspn(p + 1, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_");
                if (p[1 + length] != '"' || length >= sizeof name || length == strlen("GPTOSS_"))
                    continue;
                snprintf(name, sizeof name, "%.*s", (int)length, p + 1);
                if (!cli_knows_variable(&none, name))
                    fail_msg("%s reads %s, which base/cli.c's shared_variables lacks", path, name);
            }
        }
        if (folder != NULL)
            closedir(folder);
    }
}

int main(void)
{
    setenv("GPTOSS_LOG", "warn", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(warns_once_of_a_variable_that_nobody_reads, fresh),
        cmocka_unit_test_setup(reads_options_in_every_form_and_keeps_the_words, fresh),
        cmocka_unit_test_setup(two_dashes_end_the_options, fresh),
        cmocka_unit_test_setup(the_command_line_wins_over_the_environment, fresh),
        cmocka_unit_test_setup(an_empty_variable_is_none_and_a_wrong_one_is_refused, fresh),
        cmocka_unit_test_setup(wrong_use_is_told_in_two_lines, fresh),
        cmocka_unit_test_setup(help_shows_examples_defaults_variables_and_exit_codes, fresh),
        cmocka_unit_test_setup(version_is_one_line, fresh),
        cmocka_unit_test(knows_the_variables_of_all_programs),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    fresh(NULL);
    return failed;
}
