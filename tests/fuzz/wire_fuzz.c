/*
 * Fuzzes what reaches the coordinator: messages of clients and of ranks, records of a journal, in any
 * order and at any time. The input is a small program: an operation, a size, its bytes. Some operations
 * send well-formed messages, so that the deeper states are reached: a world of ranks joins, loads, serves,
 * and answers steps with tokens of the input's choice.
 *
 * Held: nothing crashes, whatever is sent out can be read, steps are within the plan.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/coordinator.h"
#include "coordinator/core.h"

#define STEPS 64

enum op {
    CLIENT,
    RANK,
    TICK,
    GONE,
    IDS,
    TEXT,
    HELLO,
    JOIN,
    READY,
    RESULT,
    RESTORE,
    KEPT,
    CHANGED,
    RESUME,
    CANCEL,
    DRAIN,
    OPS,
};

static struct gguf_file *file;
static struct gguf_model *model;

struct fuzz {
    struct coordinator *c;
    uint64_t now, epoch, records;
    uint8_t last[1024]; /* the last message of a client */
    size_t last_size;
    Gptoss__SupervisorMessage *steps[STEPS]; /* that are not answered */
    size_t n_steps;
};

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    char err[512];
    (void)argc;
    (void)argv;
    const char *path = getenv("GPTOSS_TEST_MODEL");
    if (!path || gguf_open(&file, path, err, sizeof err) ||
        gguf_model_create(&model, file, err, sizeof err)) {
        fprintf(stderr, "GPTOSS_TEST_MODEL names no model\n");
        exit(1);
    }
    return 0;
}

static void take_supervisor(struct fuzz *f, const struct coordinator_event *e)
{
    char err[256];
    Gptoss__SupervisorMessage *m = (Gptoss__SupervisorMessage *)proto_unpack(
        &gptoss__supervisor_message__descriptor, e->bytes, e->size, err, sizeof err);
    if (!m)
        abort();
    if (m->body_case == GPTOSS__SUPERVISOR_MESSAGE__BODY_WELCOME)
        f->epoch = m->epoch;
    if (m->body_case == GPTOSS__SUPERVISOR_MESSAGE__BODY_STEP && f->n_steps < STEPS)
        f->steps[f->n_steps++] = m;
    else
        proto_free(&m->base);
}

static void pump(struct fuzz *f)
{
    struct coordinator_event e;
    char err[256];
    while (coordinator_take(f->c, &e)) {
        if (e.kind == COORDINATOR_KEEP)
            f->records++;
        if (e.kind != COORDINATOR_SEND)
            continue;
        if (e.side == COORDINATOR_RANKS) {
            take_supervisor(f, &e);
            continue;
        }
        ProtobufCMessage *m =
            proto_unpack(&gptoss__server_message__descriptor, e.bytes, e.size, err, sizeof err);
        if (!m)
            abort();
        proto_free(m);
    }
}

static void send(struct fuzz *f, enum coordinator_side side, char peer, const void *bytes,
                 size_t size)
{
    if (side == COORDINATOR_CLIENTS && size <= sizeof f->last) {
        memcpy(f->last, bytes, size);
        f->last_size = size;
    }
    coordinator_receive(f->c, side, &peer, 1, bytes, size, f->now);
}

static void send_message(struct fuzz *f, enum coordinator_side side, char peer,
                         const ProtobufCMessage *m)
{
    size_t size;
    void *bytes = proto_pack(m, &size);
    send(f, side, peer, bytes, size);
    free(bytes);
}

static void generate(struct fuzz *f, char peer, const uint8_t *p, size_t n, bool text)
{
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__Generate g = GPTOSS__GENERATE__INIT;
    Gptoss__TokenIds ids = GPTOSS__TOKEN_IDS__INIT;
    Gptoss__Sampling sampling = GPTOSS__SAMPLING__INIT;
    ProtobufCBinaryData stop = {n > 2 ? 1 : 0, (uint8_t *)(uintptr_t)p};
    uint32_t list[256];
    if (n < 4)
        return;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    m.generate = &g;
    g.request_id = (ProtobufCBinaryData){1, (uint8_t *)(uintptr_t)p};
    g.sampling = &sampling;
    g.max_tokens = p[1];
    g.top_logits = p[2] & 3;
    g.linger_ms = (uint64_t)(p[2] >> 2 & 3) * 1000;
    g.ignore_eos = p[2] & 16;
    g.deadline_ms = p[3];
    if (p[2] & 32) {
        g.stop = &stop;
        g.n_stop = 1;
    }
    if (text) {
        g.prompt_case = GPTOSS__GENERATE__PROMPT_TEXT;
        g.text = (ProtobufCBinaryData){n - 4, (uint8_t *)(uintptr_t)(p + 4)};
    } else {
        g.prompt_case = GPTOSS__GENERATE__PROMPT_IDS;
        g.ids = &ids;
        for (; ids.n_ids < n - 4 && ids.n_ids < 256; ids.n_ids++)
            list[ids.n_ids] = p[4 + ids.n_ids];
        ids.ids = list;
    }
    send_message(f, COORDINATOR_CLIENTS, peer, &m.base);
}

static void rank(struct fuzz *f, enum op op, const uint8_t *p, size_t n)
{
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    Gptoss__Hello hello = GPTOSS__HELLO__INIT;
    Gptoss__Join join = GPTOSS__JOIN__INIT;
    Gptoss__Ready ready = GPTOSS__READY__INIT;
    uint32_t number = n > 0 ? p[0] & 3 : 0, size = n > 1 ? 1 + (p[1] & 3) : 1;
    m.epoch = f->epoch;
    if (op == HELLO) {
        m.epoch = 0;
        m.body_case = GPTOSS__RANK_MESSAGE__BODY_HELLO;
        m.hello = &hello;
        hello.world = n > 2 ? p[2] : 1;
        hello.rank = number;
        hello.size = size;
        hello.protocol = PROTO_VERSION;
    } else if (op == JOIN) {
        m.body_case = GPTOSS__RANK_MESSAGE__BODY_JOIN;
        m.join = &join;
        join.rank = number;
        join.size = size;
        join.host = join.device = join.backend = join.transports = (char *)(uintptr_t) "cpu";
        join.memory_free_bytes = (uint64_t)1 << (n > 2 ? p[2] & 63 : 40);
        join.header_digest = gguf_header_digest(file);
        join.bandwidth = n > 3 ? p[3] : 1e9;
    } else {
        m.body_case = GPTOSS__RANK_MESSAGE__BODY_READY;
        m.ready = &ready;
    }
    send_message(f, COORDINATOR_RANKS, (char)('0' + number), &m.base);
}

/* The oldest step is done: its samples are the input's. */
static void result(struct fuzz *f, const uint8_t *p, size_t n)
{
    if (!f->n_steps)
        return;
    Gptoss__SupervisorMessage *from = f->steps[0];
    memmove(f->steps, f->steps + 1, --f->n_steps * sizeof *f->steps);
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    Gptoss__StepResult r = GPTOSS__STEP_RESULT__INIT;
    static Gptoss__Sample samples[256], *pointers[256];
    static uint32_t tops[4];
    static float logits[4];
    m.epoch = from->epoch;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_RESULT;
    m.result = &r;
    r.step = from->step->step;
    r.samples = pointers;
    for (uint32_t i = 0; i < from->step->n_rows; i++) {
        const Gptoss__Row *row = from->step->rows[i];
        for (uint32_t k = row->sample_from; k < row->count && r.n_samples < 256; k++) {
            Gptoss__Sample *s = &samples[r.n_samples];
            gptoss__sample__init(s);
            s->row = i;
            s->position = row->position + k;
            s->token = n ? p[r.n_samples % n] * 16u : 7;
            s->n_top_ids = s->n_top_logits = row->top_logits < 4 ? row->top_logits : 4;
            s->top_ids = tops;
            s->top_logits = logits;
            pointers[r.n_samples++] = s;
        }
    }
    if (n > 1 && p[0] == 0xff && r.n_samples) /* what a broken rank would say */
        (p[1] & 1 ? &samples[0].position : &samples[0].row)[0] += p[1];
    send_message(f, COORDINATOR_RANKS, '0', &m.base);
    proto_free(&from->base);
}

static void run(struct fuzz *f, enum op op, char peer, const uint8_t *p, size_t n)
{
    uint8_t changed[sizeof f->last];
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__Resume resume = GPTOSS__RESUME__INIT;
    Gptoss__Cancel cancel = GPTOSS__CANCEL__INIT;
    char err[256];
    switch (op) {
    case CLIENT: send(f, COORDINATOR_CLIENTS, peer, p, n); break;
    case RANK: send(f, COORDINATOR_RANKS, peer, p, n); break;
    case TICK:
        f->now += n ? (uint64_t)p[0] * p[0] * 100 : 1;
        coordinator_tick(f->c, f->now);
        break;
    case GONE:
        coordinator_gone(f->c, n ? COORDINATOR_CLIENTS : COORDINATOR_RANKS, &peer, 1, f->now);
        break;
    case IDS: generate(f, peer, p, n, false); break;
    case TEXT: generate(f, peer, p, n, true); break;
    case HELLO:
    case JOIN:
    case READY: rank(f, op, p, n); break;
    case RESULT: result(f, p, n); break;
    case RESTORE: coordinator_restore(f->c, p, n, f->now, err, sizeof err); break;
    case KEPT: coordinator_kept(f->c, f->records, f->now); break;
    case CHANGED:
        memcpy(changed, f->last, f->last_size);
        for (size_t i = 0; i + 1 < n && f->last_size; i += 2)
            changed[p[i] % f->last_size] = p[i + 1];
        send(f, COORDINATOR_CLIENTS, peer, changed, f->last_size);
        break;
    case RESUME:
        m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_RESUME;
        m.resume = &resume;
        resume.request_id = (ProtobufCBinaryData){n ? 1 : 0, (uint8_t *)(uintptr_t)p};
        resume.from_index = n > 1 ? p[1] : 0;
        send_message(f, COORDINATOR_CLIENTS, peer, &m.base);
        break;
    case CANCEL:
        m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_CANCEL;
        m.cancel = &cancel;
        cancel.request_id = (ProtobufCBinaryData){n ? 1 : 0, (uint8_t *)(uintptr_t)p};
        send_message(f, COORDINATOR_CLIENTS, peer, &m.base);
        break;
    case DRAIN:
        if (n > 20)
            coordinator_drain(f->c, f->now);
        break;
    case OPS: break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz f = {.now = 1000000};
    char err[512];
    if (size < 1)
        return 0;
    struct coordinator_options options = {.model = model,
                                          .model_path = "/model",
                                          .context = 256,
                                          .sequences = 4,
                                          .max_queue = 8,
                                          .journal = data[0] & 1,
                                          .no_prefix_cache = data[0] & 2};
    if (coordinator_create(&f.c, &options, err, sizeof err))
        abort();
    coordinator_tick(f.c, f.now);
    for (size_t at = 1; at + 2 <= size;) {
        enum op op = (enum op)(data[at] % OPS);
        char peer = (char)('0' + (data[at] >> 4 & 3));
        size_t n = data[at + 1] < size - at - 2 ? data[at + 1] : size - at - 2;
        run(&f, op, peer, data + at + 2, n);
        coordinator_tick(f.c, f.now);
        pump(&f);
        at += 2 + n;
    }
    coordinator_stop(f.c, "the end", f.now);
    pump(&f);
    coordinator_destroy(f.c);
    while (f.n_steps)
        proto_free(&f.steps[--f.n_steps]->base);
    return 0;
}
