/* options: what the command line of gptoss-gateway asks for. */
#include <stdlib.h>
#include <string.h>

#include "client/gateway/gateway.h"

static const char examples[] =
    "  gptoss-gateway                               for programs, and a browser, on this host\n"
    "  gptoss-gateway --coordinator ipc:///run/gptoss/clients --port 9000\n"
    "  gptoss-gateway --host 0.0.0.0 --api-key-file keys    for others, who show a key\n"
    "  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n"
    "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'\n";

static const char notes[] = "Routes: /v1/chat/completions, /v1/completions, /v1/responses (plain, "
                            "and as server-sent events "
                            "with \"stream\": true), /v1/models, /metrics (Prometheus), /pipeline "
                            "(the coordinator's status, twice a "
                            "second, as server-sent events), /health and /readyz (503 until the "
                            "ranks serve), /livez, and / (a page "
                            "with a chat and the pipeline at work).\n"
                            "\n"
                            "A key file holds one key a line; clients send one as Authorization: "
                            "Bearer KEY. /, /health, /livez and "
                            "/readyz are open to all.\n"
                            "\n"
                            "Requests outlive a connection to the coordinator that breaks, and a "
                            "coordinator that is started again "
                            "with its journal: the answer goes on where it was.\n";

int gateway_options_read(struct gateway_options *o, int argc, char **argv)
{
    struct options *c = &o->client;
    c->endpoint = CLIENT_ENDPOINT;
    c->timeout_seconds = 5;
    c->reconnect_seconds = 30;
    c->linger_seconds = 30;
    o->host = "127.0.0.1";
    o->port = 8000;
    o->connections = 4096;
    o->drain_seconds = 30;
    o->request_seconds = 30;
    const struct cli_option table[] = {
        {.type = CLI_GROUP, .text = "the coordinator"},
        {CLI_STRING, "coordinator", 'c', "ENDPOINT",
         "where it listens to clients: tcp://HOST:PORT or ipc://PATH", CLIENT_ENDPOINT,
         "GPTOSS_CONNECT", &c->endpoint, 0, 0, NULL},
        {CLI_STRING, "key", 0, "FILE", "the keys to show to a coordinator that runs with --keys",
         NULL, "GPTOSS_KEY", &c->key, 0, 0, NULL},
        {CLI_STRING, "server-key", 0, "KEY|FILE", "the coordinator's public key",
         "that of the key file", "GPTOSS_SERVER_KEY", &c->server_key, 0, 0, NULL},
        {CLI_FLOAT, "timeout", 0, "SECONDS",
         "refuse a request if no coordinator answers for so long", "5", "GPTOSS_TIMEOUT",
         &c->timeout_seconds, 0.1, 86400, NULL},
        {CLI_FLOAT, "reconnect", 0, "SECONDS",
         "a connection that breaks is tried again for so long, and answers go on", "30",
         "GPTOSS_RECONNECT", &c->reconnect_seconds, 0, 600, NULL},

        {.type = CLI_GROUP, .text = "HTTP"},
        {CLI_STRING, "host", 0, "ADDRESS", "where to listen", "127.0.0.1", "GPTOSS_HOST", &o->host,
         0, 0, NULL},
        {CLI_INT, "port", 'p', "PORT", "0: any that is free", "8000", "GPTOSS_PORT", &o->port, 0,
         65535, NULL},
        {CLI_STRING, "api-key-file", 0, "FILE", "clients have to show one of the keys in it", NULL,
         "GPTOSS_API_KEY_FILE", &o->api_key_file, 0, 0, NULL},
        {CLI_FLAG, "insecure", 0, NULL,
         "without keys, listen where other hosts can reach it: everybody there may ask", NULL,
         "GPTOSS_INSECURE", &o->insecure, 0, 0, NULL},
        {CLI_STRING, "model-name", 0, "NAME", "what clients call the model", "that of its file",
         "GPTOSS_MODEL_NAME", &o->model_name, 0, 0, NULL},
        {CLI_INT, "connections", 0, "N", "at most; others wait", "4096", "GPTOSS_HTTP_CONNECTIONS",
         &o->connections, 1, 1000000, NULL},
        {CLI_FLOAT, "request-timeout", 0, "SECONDS",
         "for all headers of a request, and for its body", "30", "GPTOSS_REQUEST_TIMEOUT",
         &o->request_seconds, 1, 3600, NULL},
        {CLI_FLOAT, "drain-timeout", 0, "SECONDS",
         "after SIGINT or SIGTERM: let answers go on for so long", "30", "GPTOSS_DRAIN_TIMEOUT",
         &o->drain_seconds, 0, 86400, NULL},
    };
    const struct cli cli = {
        .program = "gptoss-gateway",
        .summary = "lets programs that speak OpenAI's HTTP interface, and browsers, ask a gpt-oss "
                   "pipeline",
        .usage = "gptoss-gateway [OPTION]...\n",
        .examples = examples,
        .notes = notes,
        .options = table,
        .n_options = sizeof table / sizeof *table,
        .exit_codes =
            1u << EXIT_DONE | 1u << EXIT_FAILED | 1u << EXIT_USAGE | 1u << EXIT_COORDINATOR,
    };
    char **words;
    int n_words;
    int parsed = cli_parse(&cli, argc, argv, &words, &n_words);
    if (parsed == 0 && n_words > 0) {
        fprintf(stderr,
                "gptoss-gateway: \"%.40s\" is no option\ngptoss-gateway --help lists them\n",
                words[0]);
        return -1;
    }
    return parsed;
}
