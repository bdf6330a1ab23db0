/*
 * gptoss-worker: one rank of the pipeline.
 */
#include <stdio.h>
#include <string.h>

#include "base/base.h"
#include "worker/worker.h"

static const char *const devices[] = {"auto", "cpu", "cuda", "reference"};

int main(int argc, char **argv)
{
    struct worker_options options = {.coordinator = "tcp://127.0.0.1:5556", .connect_timeout = 20};
    int64_t threads = 0;
    const struct cli_option table[] = {
        {.type = CLI_GROUP, .text = "Options"},
        {.type = CLI_STRING,
         .name = "coordinator",
         .letter = 'c',
         .value = "ENDPOINT",
         .text = "where the coordinator listens for workers",
         .fallback = "tcp://127.0.0.1:5556",
         .env = "GPTOSS_COORDINATOR",
         .out = &options.coordinator},
        {.type = CLI_STRING,
         .name = "key",
         .value = "FILE",
         .text = "the keys to show to a coordinator that runs with --keys",
         .env = "GPTOSS_KEY",
         .out = &options.key},
        {.type = CLI_STRING,
         .name = "server-key",
         .value = "KEY|FILE",
         .text = "the coordinator's public key",
         .fallback = "that of the key file",
         .env = "GPTOSS_SERVER_KEY",
         .out = &options.server_key},
        {.type = CLI_STRING,
         .name = "device",
         .value = "auto|cpu|cuda|reference",
         .text = "what to compute on",
         .fallback = "as the coordinator says",
         .env = "GPTOSS_DEVICE",
         .out = &options.device},
        {.type = CLI_INT,
         .name = "threads",
         .letter = 't',
         .value = "T",
         .text = "threads of this rank on the CPU; 0: the host's CPUs divided among its ranks",
         .fallback = "as the coordinator says",
         .env = "GPTOSS_THREADS",
         .out = &threads,
         .min = 0,
         .max = 4096},
        {.type = CLI_FLOAT,
         .name = "connect-timeout",
         .value = "S",
         .text = "seconds to wait for the coordinator",
         .fallback = "20",
         .env = "GPTOSS_CONNECT_TIMEOUT",
         .out = &options.connect_timeout,
         .min = 0.1,
         .max = 86400},
    };
    const struct cli cli = {
        .program = "gptoss-worker",
        .summary = "One stage of the pipeline: asks the coordinator for its layers and runs them.",
        .usage = "mpirun -np N gptoss-worker [OPTION]…",
        .examples = "  mpirun -np 4 gptoss-worker\n"
                    "  mpirun --oversubscribe -np 4 gptoss-worker    more ranks than cores\n"
                    "  gptoss-worker --threads 2                     one rank, without mpirun\n"
                    "  mpirun -np 2 --host a,b gptoss-worker --coordinator tcp://a:5556\n",
        .notes =
            "Every rank becomes one stage. As root, mpirun wants --allow-run-as-root. A binding of "
            "ranks to cores that mpirun chose by itself is undone; --bind-to is obeyed.",
        .options = table,
        .n_options = sizeof table / sizeof *table,
        .exit_codes = 1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_MODEL |
                      1u << EXIT_MEMORY | 1u << EXIT_COORDINATOR | 1u << EXIT_DEVICE,
    };
    char **args;
    int n_args;
    int parsed = cli_parse(&cli, argc, argv, &args, &n_args);
    if (parsed)
        return parsed > 0 ? EXIT_DONE : EXIT_USAGE;
    bool known = options.device == NULL;
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        known |= options.device && strcmp(options.device, devices[i]) == 0;
    if (n_args || !known) {
        fprintf(stderr, "gptoss-worker: %s \"%s\"\nTry 'gptoss-worker --help'.\n",
                n_args ? "no argument is expected, but there is" : "no such device",
                n_args ? args[0] : options.device);
        return EXIT_USAGE;
    }
    options.threads = (uint32_t)threads;

    char err[1024], process[32];
    struct worker_world *world;
    struct worker *worker;
    log_open("worker");
    if (worker_world_create(&world, err, sizeof err)) {
        log_error("%s", err);
        worker_world_abort(NULL, EXIT_DEVICE);
    }
    snprintf(process, sizeof process, "rank %u", worker_world_info(world)->rank);
    log_open(process);
    if (worker_create(&worker, world, &options, err, sizeof err)) {
        log_error("%s", err);
        worker_world_abort(world, EXIT_USAGE);
    }
    int code = worker_run(worker);
    if (code != EXIT_DONE)
        worker_world_abort(world, code);
    worker_world_leave(world, code);
    worker_destroy(worker);
    worker_world_destroy(world);
    return code;
}
