/*
 * coordinator_speed [SEQUENCES [REQUESTS [STEPS]]]: the coordinator's own time a step, without sockets:
 * requests that decode, one rank that answers at once. Prints µs a step, nothing is asserted.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "coordinator/coordinator.h"
#include "gguf/gguf.h"

enum { PARTS = 3 };
static const char *const parts[PARTS] = {"results in", "steps out", "events taken"};

struct speed {
    struct coordinator *c;
    uint64_t now, epoch;
    uint64_t header_digest, header_bytes;
    struct text steps[16];
    size_t n_steps;
    uint64_t rows, answered, outputs;
    double seconds[PARTS];
};

static void rank_send(struct speed *s, Gptoss__RankMessage *m)
{
    size_t size;
    m->epoch = s->epoch;
    void *bytes = proto_pack(&m->base, &size);
    double begin = clock_seconds();
    coordinator_receive(s->c, COORDINATOR_RANKS, "rank", 4, bytes, size, s->now);
    s->seconds[0] += clock_seconds() - begin;
    free(bytes);
}

static void rank_join(struct speed *s)
{
    Gptoss__Join join = GPTOSS__JOIN__INIT;
    join.size = 1;
    join.host = join.device = (char *)(uintptr_t) "here";
    join.device_uuid = (char *)(uintptr_t) "one";
    join.backend = (char *)(uintptr_t) "cuda";
    join.transports = (char *)(uintptr_t) "mpi";
    join.memory_free_bytes = (uint64_t)1 << 40;
    join.header_digest = s->header_digest;
    join.header_bytes = s->header_bytes;
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_JOIN;
    m.join = &join;
    rank_send(s, &m);
}

static void hear(struct speed *s, const struct text *bytes)
{
    char err[256];
    Gptoss__SupervisorMessage *m = (Gptoss__SupervisorMessage *)proto_unpack(
        &gptoss__supervisor_message__descriptor, bytes->bytes, bytes->size, err, sizeof err);
    Gptoss__RankMessage reply = GPTOSS__RANK_MESSAGE__INIT;
    if (m->body_case == GPTOSS__SUPERVISOR_MESSAGE__BODY_WELCOME) {
        s->epoch = m->epoch;
        rank_join(s);
    } else if (m->body_case == GPTOSS__SUPERVISOR_MESSAGE__BODY_PLAN) {
        Gptoss__Ready ready = GPTOSS__READY__INIT;
        reply.body_case = GPTOSS__RANK_MESSAGE__BODY_READY;
        reply.ready = &ready;
        rank_send(s, &reply);
    } else if (m->body_case == GPTOSS__SUPERVISOR_MESSAGE__BODY_STEP) {
        text_clear(&s->steps[s->n_steps]);
        text_add(&s->steps[s->n_steps++], bytes->bytes, bytes->size);
    }
    proto_free(&m->base);
}

static void take(struct speed *s)
{
    static struct text heard[64];
    for (bool again = true; again;) {
        size_t n = 0;
        struct coordinator_event e;
        double begin = clock_seconds();
        while (n < 64 && (again = coordinator_take(s->c, &e))) {
            s->outputs += e.kind == COORDINATOR_SEND && e.side == COORDINATOR_CLIENTS;
            if (e.kind != COORDINATOR_SEND || e.side == COORDINATOR_CLIENTS)
                continue;
            text_clear(&heard[n]);
            text_add(&heard[n++], e.bytes, e.size);
        }
        s->seconds[2] += clock_seconds() - begin;
        again |= n > 0;
        for (size_t i = 0; i < n; i++)
            hear(s, &heard[i]);
    }
}

static void tick(struct speed *s)
{
    double begin = clock_seconds();
    coordinator_tick(s->c, s->now);
    coordinator_next(s->c, s->now);
    s->seconds[1] += clock_seconds() - begin;
    take(s);
}

static void answer(struct speed *s)
{
    static Gptoss__Sample samples[4096], *pointers[4096];
    char err[256];
    struct text bytes = s->steps[0];
    Gptoss__SupervisorMessage *m = (Gptoss__SupervisorMessage *)proto_unpack(
        &gptoss__supervisor_message__descriptor, bytes.bytes, bytes.size, err, sizeof err);
    memmove(s->steps, s->steps + 1, --s->n_steps * sizeof *s->steps);
    s->steps[s->n_steps] = bytes;
    Gptoss__StepResult result = GPTOSS__STEP_RESULT__INIT;
    result.step = m->step->step;
    result.samples = pointers;
    for (size_t i = 0; i < m->step->n_rows; i++) {
        const Gptoss__Row *row = m->step->rows[i];
        for (uint32_t k = row->sample_from; k < row->count; k++) {
            Gptoss__Sample *sample = &samples[result.n_samples];
            gptoss__sample__init(sample);
            sample->row = (uint32_t)i;
            sample->position = row->position + k;
            sample->token = 300 + (sample->position * 7 + row->slot) % 1000;
            sample->logit = 1;
            sample->log_sum_exp = 2;
            pointers[result.n_samples++] = sample;
        }
    }
    s->rows += m->step->n_rows;
    s->answered++;
    Gptoss__RankMessage reply = GPTOSS__RANK_MESSAGE__INIT;
    reply.body_case = GPTOSS__RANK_MESSAGE__BODY_RESULT;
    reply.result = &result;
    s->now += 10000;
    rank_send(s, &reply);
    proto_free(&m->base);
    tick(s);
}

static void ask(struct speed *s, uint32_t request, uint32_t max_tokens)
{
    uint32_t ids[64];
    char id[32];
    snprintf(id, sizeof id, "request %u", request);
    for (uint32_t i = 0; i < 64; i++)
        ids[i] = 300 + (request * 31 + i * 17) % 1000;
    Gptoss__TokenIds prompt = GPTOSS__TOKEN_IDS__INIT;
    prompt.n_ids = 64;
    prompt.ids = ids;
    Gptoss__Generate g = GPTOSS__GENERATE__INIT;
    g.request_id = (ProtobufCBinaryData){.data = (uint8_t *)id, .len = strlen(id)};
    g.prompt_case = GPTOSS__GENERATE__PROMPT_IDS;
    g.ids = &prompt;
    g.max_tokens = max_tokens;
    g.ignore_eos = true;
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    m.generate = &g;
    size_t size;
    void *bytes = proto_pack(&m.base, &size);
    coordinator_receive(s->c, COORDINATOR_CLIENTS, "client", 6, bytes, size, s->now);
    free(bytes);
    take(s);
}

int main(int argc, char **argv)
{
    uint32_t sequences = argc > 1 ? (uint32_t)atoi(argv[1]) : 256;
    uint32_t requests = argc > 2 ? (uint32_t)atoi(argv[2]) : 1000;
    uint32_t steps = argc > 3 ? (uint32_t)atoi(argv[3]) : 1000;
    char err[512];
    struct gguf_file *file;
    struct gguf_model *model;
    if (gguf_open(&file, GPTOSS_SOURCE_DIR "/models/gptoss-tiny-mxfp4.gguf", err, sizeof err) ||
        gguf_model_create(&model, file, err, sizeof err)) {
        fprintf(stderr, "%s\n", err);
        return 1;
    }
    struct speed s = {.now = 1000000,
                      .header_digest = gguf_header_digest(file),
                      .header_bytes = gguf_header_bytes(file)};
    struct coordinator_options options = {.model = model,
                                          .model_path = "/models/fake.gguf",
                                          .context = 4096,
                                          .sequences = sequences,
                                          .max_queue = 100000};
    if (coordinator_create(&s.c, &options, err, sizeof err)) {
        fprintf(stderr, "%s\n", err);
        return 1;
    }
    Gptoss__Hello hello = GPTOSS__HELLO__INIT;
    hello.world = 1;
    hello.size = 1;
    hello.protocol = PROTO_VERSION;
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_HELLO;
    m.hello = &hello;
    rank_send(&s, &m);
    take(&s);
    for (uint32_t i = 0; i < requests; i++)
        ask(&s, i, 4000);
    tick(&s);
    for (uint32_t i = 0; i < 50 + sequences * 64 / 2048; i++)
        answer(&s);
    memset(s.seconds, 0, sizeof s.seconds);
    s.rows = s.answered = s.outputs = 0;
    for (uint32_t i = 0; i < steps; i++)
        answer(&s);
    double sum = 0, n = (double)s.answered;
    printf("%.1f rows a step, %.1f messages to clients\n", (double)s.rows / n,
           (double)s.outputs / n);
    for (int i = 0; i < PARTS; i++) {
        printf("  %-14s %6.1f us\n", parts[i], s.seconds[i] / n * 1e6);
        sum += s.seconds[i];
    }
    printf("  %-14s %6.1f us a step\n", "all", sum / n * 1e6);
    coordinator_destroy(s.c);
    for (int i = 0; i < 16; i++)
        text_free(&s.steps[i]);
    gguf_model_destroy(model);
    gguf_close(file);
    return 0;
}
