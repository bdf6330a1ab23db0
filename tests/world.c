#include "tests/test.h"

#include "coordinator/kv.h"
#include "tests/world.h"

#define check(x)                                                                                   \
    do {                                                                                           \
        if (!(x))                                                                                  \
            fail_msg("%s:%d: %s", __FILE__, __LINE__, #x);                                         \
    } while (0)

static struct core_peer peer_of(char kind, uint64_t world, uint32_t i)
{
    struct core_peer peer;
    peer.size = (size_t)snprintf((char *)peer.bytes, sizeof peer.bytes, "%c%llu.%u", kind,
                                 (unsigned long long)world, i);
    return peer;
}

struct fake *fake_create(const struct gguf_model *model, uint32_t ranks,
                         struct coordinator_options options)
{
    struct fake *f = base_alloc(1, sizeof *f);
    f->model = model;
    f->ranks = ranks;
    f->now = 1000000;
    f->random = 42;
    f->memory_free = (uint64_t)1 << 40;
    options.model = model;
    options.model_path = "/models/fake.gguf";
    char err[512];
    if (coordinator_create(&f->c, &options, err, sizeof err))
        fail_msg("%s", err);
    return f;
}

static void make_pools(struct fake *f)
{
    size_t full = f->plan->kv_full_blocks, window = f->plan->kv_window_blocks;
    f->full_pool = base_alloc(full * f->plan->kv_block_tokens, sizeof(uint32_t));
    f->window_pool = base_alloc(window * f->plan->kv_block_tokens, sizeof(uint32_t));
    f->full_shared = base_alloc(full, sizeof *f->full_shared);
    f->window_shared = base_alloc(window, sizeof *f->window_shared);
}

static void free_pools(struct fake *f)
{
    free(f->full_pool);
    free(f->window_pool);
    free(f->full_shared);
    free(f->window_shared);
    f->full_pool = f->window_pool = NULL;
    f->full_shared = f->window_shared = NULL;
}

void fake_forget(struct fake *f)
{
    for (size_t i = 0; i < f->queued; i++)
        free(f->queue[i].bytes);
    f->queued = 0;
    if (f->plan)
        gptoss__plan__free_unpacked(f->plan, NULL);
    f->plan = NULL;
    free_pools(f);
    memset(f->slots, 0, sizeof f->slots);
    f->alive = false;
}

void fake_destroy(struct fake *f)
{
    fake_forget(f);
    for (size_t i = 0; i < WORLD_REQUESTS; i++) {
        tokens_free(&f->requests[i].tokens);
        text_free(&f->requests[i].text);
        text_free(&f->requests[i].reasoning);
    }
    for (size_t i = 0; i < f->n_records; i++)
        text_free(&f->records[i]);
    free(f->records);
    coordinator_destroy(f->c);
    free(f);
}

/* ── ranks ─────────────────────────────────────────────────────────────────────────────────── */

static void rank_send(struct fake *f, uint32_t rank, Gptoss__RankMessage *m)
{
    struct core_peer peer = peer_of('r', f->world_id, rank);
    uint8_t *bytes = base_alloc(gptoss__rank_message__get_packed_size(m) + 1, 1);
    size_t size = gptoss__rank_message__pack(m, bytes);
    coordinator_receive(f->c, COORDINATOR_RANKS, peer.bytes, peer.size, bytes, size, f->now);
    free(bytes);
}

static void rank_join(struct fake *f, uint32_t rank)
{
    Gptoss__Join join = GPTOSS__JOIN__INIT;
    join.rank = rank;
    join.size = f->ranks;
    join.host = (char *)(uintptr_t) "here";
    join.device = (char *)(uintptr_t) "a fake";
    join.device_uuid = (char *)(uintptr_t) "one";
    join.backend = (char *)(uintptr_t) "cpu";
    join.transports = (char *)(uintptr_t) "mpi";
    join.memory_free_bytes = f->memory_free;
    join.fast = rank < f->fast_ranks;
    join.header_digest = gguf_header_digest(f->model->file);
    join.header_bytes = gguf_header_bytes(f->model->file);
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.epoch = f->epoch;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_JOIN;
    m.join = &join;
    rank_send(f, rank, &m);
}

static void rank_ready(struct fake *f, uint32_t rank)
{
    Gptoss__Ready ready = GPTOSS__READY__INIT;
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.epoch = f->epoch;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_READY;
    m.ready = &ready;
    rank_send(f, rank, &m);
}

static void rank_beat(struct fake *f, uint32_t rank)
{
    Gptoss__RankHeartbeat beat = GPTOSS__RANK_HEARTBEAT__INIT;
    beat.rank = rank;
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.epoch = f->epoch;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_HEARTBEAT;
    m.heartbeat = &beat;
    rank_send(f, rank, &m);
}

void fake_plan(struct fake *f, const Gptoss__Plan *plan)
{
    if (!f->plan) {
        uint8_t *bytes = base_alloc(gptoss__plan__get_packed_size(plan) + 1, 1);
        size_t size = gptoss__plan__pack(plan, bytes);
        f->plan = gptoss__plan__unpack(NULL, size, bytes);
        free(bytes);
        make_pools(f);
        check(plan->sequences <= WORLD_SLOTS);
    }
}

static void rank_receive(struct fake *f, uint32_t rank, const Gptoss__SupervisorMessage *m)
{
    switch (m->body_case) {
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_WELCOME:
        f->epoch = m->epoch;
        rank_join(f, rank);
        break;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_PLAN:
        fake_plan(f, m->plan);
        rank_ready(f, m->plan->stage);
        break;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_STEP: {
        check(rank == 0 && m->epoch == f->epoch);
        check(f->queued < sizeof f->queue / sizeof f->queue[0]);
        struct world_step *s = &f->queue[f->queued++];
        s->bytes = base_alloc(gptoss__step__get_packed_size(m->step) + 1, 1);
        s->size = gptoss__step__pack(m->step, s->bytes);
        if (f->queued > f->max_queued)
            f->max_queued = f->queued;
        check(f->queued <= f->plan->steps_in_flight);
        break;
    }
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_HEARTBEAT: rank_beat(f, rank); break;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_REFUSED:
        f->n_rank_refused++;
        snprintf(f->rank_refusal, sizeof f->rank_refusal, "%s", m->refused->text);
        break;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_SHUTDOWN:
        if (f->alive)
            fake_forget(f);
        break;
    default: fail_msg("a message to rank %u has no body", rank);
    }
}

void fake_pools(struct fake *f, uint32_t full, uint32_t window)
{
    f->plan->kv_full_blocks = full;
    f->plan->kv_window_blocks = window;
    free_pools(f);
    make_pools(f);
    kv_destroy(f->c);
    f->c->world.plan->full_blocks = full;
    f->c->world.plan->window_blocks = window;
    kv_create(f->c);
}

void fake_start(struct fake *f)
{
    f->world_id++;
    f->alive = true;
    for (uint32_t i = 0; i < f->ranks; i++) {
        Gptoss__Hello hello = GPTOSS__HELLO__INIT;
        hello.world = f->world_id;
        hello.rank = i;
        hello.size = f->ranks;
        hello.protocol = PROTO_VERSION;
        Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
        m.body_case = GPTOSS__RANK_MESSAGE__BODY_HELLO;
        m.hello = &hello;
        rank_send(f, i, &m);
    }
    fake_pump(f);
}

void fake_kill(struct fake *f)
{
    fake_forget(f);
    coordinator_world_ended(f->c, "the test killed them", f->now);
    fake_pump(f);
}

uint32_t fake_next(const uint32_t *tokens, size_t n, uint64_t seed)
{
    uint64_t state = map_hash(tokens, n * sizeof *tokens, seed);
    uint64_t draw = test_random(&state);
    if (n >= 4 && draw % 61 == 0)
        return UINT32_MAX; /* the caller's end token */
    return (uint32_t)(draw % 3000);
}

static uint32_t end_token(const struct coordinator *c)
{
    return (uint32_t)tokenizer_special(c->tokenizer, "<|return|>");
}

void fake_answer(const struct coordinator *c, const uint32_t *ids, size_t n, uint32_t max_tokens,
                 uint64_t seed, struct tokens *answer)
{
    struct tokens all = {0};
    for (size_t i = 0; i < n; i++)
        tokens_add(&all, ids[i]);
    for (uint32_t i = 0; i < max_tokens; i++) {
        uint32_t next = fake_next(all.ids, all.count, seed);
        if (next == UINT32_MAX)
            next = end_token(c);
        tokens_add(&all, next);
        tokens_add(answer, next);
        if (tokenizer_is_end(c->tokenizer, next))
            break;
    }
    tokens_free(&all);
}

/* Applies what a row says about its slot's tables and writes its tokens where they lead. */
static void write_row(struct fake *f, const Gptoss__Row *row)
{
    const Gptoss__Plan *plan = f->plan;
    uint32_t block = plan->kv_block_tokens;
    check(row->slot < plan->sequences);
    struct world_slot *s = &f->slots[row->slot];
    if (row->restart) {
        *s = (struct world_slot){0};
        /* It may begin behind whole blocks that were computed for others. */
        check(row->position % block == 0);
    }
    check(row->n_full_blocks + s->n_full <= 4096);
    for (size_t i = 0; i < row->n_full_blocks; i++) {
        check(row->full_blocks[i] < plan->kv_full_blocks);
        f->full_shared[row->full_blocks[i]] = s->n_full * block < row->position;
        s->full[s->n_full++] = row->full_blocks[i];
    }
    for (size_t i = 0; i < row->n_window_blocks; i++) {
        check(row->window_blocks[i] < plan->kv_window_blocks);
        if (s->n_window >= row->window_freed || !row->restart)
            f->window_shared[row->window_blocks[i]] = s->n_window * block < row->position;
        s->window[s->n_window++] = row->window_blocks[i];
    }
    s->freed += row->window_freed;
    uint32_t end = row->position + row->count;
    check(row->count >= 1 && end <= plan->context);
    check(s->n_full * block >= end && s->n_window * block >= end);
    check(row->n_tokens == row->count || (row->n_tokens == 0 && row->count == 1));
    uint32_t window = f->model->window;
    check(row->position + 1 <= window || s->freed * block <= row->position + 1 - window);
    /* Blocks that the window has passed are given back. */
    check((s->n_window - s->freed) * block <= window + row->count + 2 * block);
    for (uint32_t k = 0; k < row->count; k++) {
        uint32_t p = row->position + k, token = row->n_tokens ? row->tokens[k] : s->last;
        check(!f->full_shared[s->full[p / block]] && !f->window_shared[s->window[p / block]]);
        f->full_pool[s->full[p / block] * block + p % block] = token;
        f->window_pool[s->window[p / block] * block + p % block] = token;
    }
}

static uint32_t sample_row(struct fake *f, const Gptoss__Row *row, uint32_t position)
{
    const struct world_slot *s = &f->slots[row->slot];
    uint32_t block = f->plan->kv_block_tokens;
    uint32_t *tokens = base_alloc(position + 1, sizeof *tokens);
    for (uint32_t p = 0; p <= position; p++) {
        tokens[p] = f->full_pool[s->full[p / block] * block + p % block];
        /* What a sliding layer sees must still be there. */
        if (p + f->model->window > position)
            check(f->window_pool[s->window[p / block] * block + p % block] == tokens[p]);
    }
    uint32_t next = fake_next(tokens, position + 1, row->seed);
    free(tokens);
    return next == UINT32_MAX ? end_token(f->c) : next;
}

void fake_compute(struct fake *f, const Gptoss__Step *step, Gptoss__StepResult *result)
{
    check(step->n_rows >= 1 && step->n_rows <= f->plan->step_rows);
    f->steps++;
    f->rows += step->n_rows;
    f->multi_rows += step->n_rows > 1;

    static Gptoss__Sample samples[4096];
    static Gptoss__Sample *pointers[4096];
    size_t n = 0, n_tokens = 0, n_given = 0;
    for (size_t i = 0; i < step->n_rows; i++) {
        write_row(f, step->rows[i]);
        n_tokens += step->rows[i]->count;
        f->tokens += step->rows[i]->count;
        n_given += step->rows[i]->n_full_blocks + step->rows[i]->n_window_blocks;
        for (size_t k = 0; k < i; k++)
            check(step->rows[k]->slot != step->rows[i]->slot);
    }
    check(n_tokens <= f->plan->step_tokens);
    check(n_given <= KV_GIVEN_MAX || step->n_rows == 1);
    for (size_t i = 0; i < step->n_rows; i++) {
        const Gptoss__Row *row = step->rows[i];
        for (uint32_t k = row->sample_from; k < row->count; k++) {
            gptoss__sample__init(&samples[n]);
            samples[n].row = (uint32_t)i;
            samples[n].position = row->position + k;
            samples[n].token = f->slots[row->slot].last = sample_row(f, row, row->position + k);
            pointers[n] = &samples[n];
            n++;
        }
    }
    check(n <= f->plan->step_samples);
    gptoss__step_result__init(result);
    result->step = step->step;
    result->n_samples = n;
    result->samples = pointers;
}

bool fake_step(struct fake *f)
{
    if (!f->alive || f->queued == 0)
        return false;
    struct world_step s = f->queue[0];
    memmove(f->queue, f->queue + 1, --f->queued * sizeof s);
    Gptoss__Step *step = gptoss__step__unpack(NULL, s.size, s.bytes);
    free(s.bytes);
    Gptoss__StepResult result;
    fake_compute(f, step, &result);
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.epoch = f->epoch;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_RESULT;
    m.result = &result;
    rank_send(f, f->ranks - 1, &m);
    gptoss__step__free_unpacked(step, NULL);
    fake_tick(f, 100);
    return true;
}

void fake_tick(struct fake *f, uint64_t us)
{
    f->now += us;
    coordinator_tick(f->c, f->now);
    fake_pump(f);
}

void fake_run(struct fake *f)
{
    struct coordinator_counts counts;
    for (int idle = 0; idle < 3;) {
        fake_tick(f, 10);
        idle = fake_step(f) ? 0 : idle + 1;
        coordinator_counts(f->c, &counts);
        if (counts.waiting + counts.running && f->alive && idle == 3)
            fail_msg("stuck: %u running and %u waiting requests, no step", counts.running,
                     counts.waiting);
    }
}

/* ── clients ───────────────────────────────────────────────────────────────────────────────── */

static struct world_request *request_of(struct fake *f, ProtobufCBinaryData id)
{
    check(id.len == 5 && id.data[0] == 'r');
    char text[8] = {0};
    memcpy(text, id.data + 1, 4);
    return &f->requests[strtoul(text, NULL, 10)];
}

static void take_pieces(struct world_request *r, Gptoss__Piece **pieces, size_t n)
{
    for (size_t i = 0; i < n; i++)
        text_add(pieces[i]->channel == GPTOSS__PIECE__CHANNEL__ANALYSIS ? &r->reasoning : &r->text,
                 pieces[i]->text.data, pieces[i]->text.len);
}

void fake_hear(struct fake *f, const Gptoss__ServerMessage *m)
{
    switch (m->body_case) {
    case GPTOSS__SERVER_MESSAGE__BODY_ACCEPTED:
        request_of(f, m->accepted->request_id)->accepted = true;
        break;
    case GPTOSS__SERVER_MESSAGE__BODY_REFUSED: {
        if (m->refused->request_id.len != 5)
            break;
        struct world_request *r = request_of(f, m->refused->request_id);
        r->refused = true;
        r->code = m->refused->code;
        r->retry_ms = m->refused->retry_ms;
        snprintf(r->refusal, sizeof r->refusal, "%s", m->refused->text);
        break;
    }
    case GPTOSS__SERVER_MESSAGE__BODY_OUTPUT: {
        struct world_request *r = request_of(f, m->output->request_id);
        for (size_t i = 0; i < m->output->n_tokens; i++) {
            const Gptoss__Token *t = m->output->tokens[i];
            if (r->resumed && t->index < r->tokens.count) { /* asked for twice: the same again */
                check(t->id == r->tokens.ids[t->index]);
                continue;
            }
            check(!r->finished && t->index == r->tokens.count); /* never repeated, never missing */
            tokens_add(&r->tokens, t->id);
            take_pieces(r, t->pieces, t->n_pieces);
        }
        break;
    }
    case GPTOSS__SERVER_MESSAGE__BODY_FINISHED: {
        struct world_request *r = request_of(f, m->finished->request_id);
        if (r->resumed && r->finished)
            break;
        take_pieces(r, m->finished->pieces, m->finished->n_pieces);
        r->finished = true;
        r->finishes++;
        r->reason = m->finished->reason;
        r->code = m->finished->code;
        r->cached = m->finished->cached_tokens;
        check(m->finished->tokens == r->tokens.count);
        break;
    }
    case GPTOSS__SERVER_MESSAGE__BODY_PROGRESS:
        request_of(f, m->progress->request_id)->progress++;
        break;
    default: break;
    }
}

void fake_pump(struct fake *f)
{
    struct coordinator_event e;
    char err[256];
    while (coordinator_take(f->c, &e)) {
        if (e.kind == COORDINATOR_LOST)
            snprintf(f->lost, sizeof f->lost, "%s", (const char *)e.bytes);
        if (e.kind == COORDINATOR_IMPOSSIBLE)
            snprintf(f->impossible, sizeof f->impossible, "%s", (const char *)e.bytes);
        f->n_serving += e.kind == COORDINATOR_SERVING;
        if (e.kind == COORDINATOR_KEEP) {
            f->records =
                base_grow(f->records, &f->records_capacity, f->n_records + 1, sizeof *f->records);
            f->records[f->n_records] = (struct text){0};
            text_add(&f->records[f->n_records++], e.bytes, e.size);
            if (!f->disk_is_slow)
                coordinator_kept(f->c, f->n_records, f->now);
        }
        if (e.kind != COORDINATOR_SEND || (f->stranger && f->stranger(&e)))
            continue;
        unsigned long long world = 0;
        unsigned number = 0;
        char peer[64];
        snprintf(peer, sizeof peer, "%.*s", (int)e.peer_size - 1, (const char *)e.peer + 1);
        check(sscanf(peer, "%llu.%u", &world, &number) == 2);
        if (e.side == COORDINATOR_RANKS) {
            Gptoss__SupervisorMessage *m = (Gptoss__SupervisorMessage *)proto_unpack(
                &gptoss__supervisor_message__descriptor, e.bytes, e.size, err, sizeof err);
            check(m != NULL);
            if (world == f->world_id && f->alive)
                rank_receive(f, number, m);
            proto_free((ProtobufCMessage *)m);
        } else if (f->client_gone[number]) {
            struct core_peer gone = peer_of('c', 0, number);
            coordinator_gone(f->c, COORDINATOR_CLIENTS, gone.bytes, gone.size, f->now);
        } else {
            Gptoss__ServerMessage *m = (Gptoss__ServerMessage *)proto_unpack(
                &gptoss__server_message__descriptor, e.bytes, e.size, err, sizeof err);
            check(m != NULL);
            fake_hear(f, m);
            proto_free((ProtobufCMessage *)m);
        }
    }
}

void fake_sync(struct fake *f)
{
    coordinator_kept(f->c, f->n_records, f->now);
    fake_pump(f);
}

void fake_send(struct fake *f, uint32_t client, const Gptoss__ClientMessage *message)
{
    struct core_peer peer = peer_of('c', 0, client);
    uint8_t *bytes = base_alloc(gptoss__client_message__get_packed_size(message) + 1, 1);
    size_t size = gptoss__client_message__pack(message, bytes);
    coordinator_receive(f->c, COORDINATOR_CLIENTS, peer.bytes, peer.size, bytes, size, f->now);
    free(bytes);
    fake_pump(f);
}

void fake_ask(struct fake *f, uint32_t client, uint32_t request, const uint32_t *ids, size_t n,
              uint32_t max_tokens, uint64_t seed)
{
    char id[8];
    snprintf(id, sizeof id, "r%04u", request);
    Gptoss__TokenIds prompt = GPTOSS__TOKEN_IDS__INIT;
    prompt.n_ids = n;
    prompt.ids = (uint32_t *)(uintptr_t)ids;
    Gptoss__Sampling sampling = GPTOSS__SAMPLING__INIT;
    sampling.seed_given_case = GPTOSS__SAMPLING__SEED_GIVEN_SEED;
    sampling.seed = seed;
    Gptoss__Generate g = GPTOSS__GENERATE__INIT;
    g.request_id = core_binary(id, 5);
    g.prompt_case = GPTOSS__GENERATE__PROMPT_IDS;
    g.ids = &prompt;
    g.max_tokens = max_tokens;
    g.sampling = &sampling;
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    m.generate = &g;
    fake_send(f, client, &m);
}

void fake_cancel(struct fake *f, uint32_t client, uint32_t request)
{
    char id[8];
    snprintf(id, sizeof id, "r%04u", request);
    Gptoss__Cancel cancel = GPTOSS__CANCEL__INIT;
    cancel.request_id = core_binary(id, 5);
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_CANCEL;
    m.cancel = &cancel;
    fake_send(f, client, &m);
}
