#include "tests/test.h"

#include "tests/simulation_parts.h"

uint64_t sim_draw(struct simulation *s, uint64_t n)
{
    return test_random(&s->random) % n;
}

bool sim_chance(struct simulation *s, uint32_t percent)
{
    return sim_draw(s, 100) < percent;
}

/* ── events ────────────────────────────────────────────────────────────────────────────────── */

static bool before(const struct sim_event *a, const struct sim_event *b)
{
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->order < b->order;
}

static void add(struct simulation *s, struct sim_event e)
{
    e.order = s->order++;
    s->events = base_grow(s->events, &s->events_capacity, s->n_events + 1, sizeof *s->events);
    size_t i = s->n_events++;
    for (; i > 0 && before(&e, &s->events[(i - 1) / 2]); i = (i - 1) / 2)
        s->events[i] = s->events[(i - 1) / 2];
    s->events[i] = e;
}

void sim_after(struct simulation *s, uint64_t us, enum event_kind kind, uint64_t world,
               uint32_t who)
{
    add(s, (struct sim_event){.at_us = s->f->now + us, .kind = kind, .world = world, .who = who});
}

static struct sim_event next(struct simulation *s)
{
    struct sim_event first = s->events[0], last = s->events[--s->n_events];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < s->n_events; i = child) {
        if (child + 1 < s->n_events && before(&s->events[child + 1], &s->events[child]))
            child++;
        if (!before(&s->events[child], &last))
            break;
        s->events[i] = s->events[child];
    }
    s->events[i] = last;
    return first;
}

/* ── connections ───────────────────────────────────────────────────────────────────────────── */

struct core_peer sim_peer(char kind, uint64_t world, uint32_t who, uint32_t connection)
{
    struct core_peer peer;
    peer.size = (size_t)snprintf((char *)peer.bytes, sizeof peer.bytes, "%c%llu.%u.%u", kind,
                                 (unsigned long long)world, who, connection);
    return peer;
}

void sim_transmit(struct simulation *s, struct wire *wire, struct sim_event e, const void *bytes,
                  size_t size)
{
    uint64_t delay = sim_chance(s, 5) ? sim_draw(s, 300 * MS) : 20 + sim_draw(s, 2 * MS);
    e.at_us = s->f->now + delay;
    if (e.at_us < wire->last_us)
        e.at_us = wire->last_us;
    wire->last_us = e.at_us;
    wire->queued++;
    e.wire = wire;
    e.generation = wire->generation;
    e.bytes = base_alloc(size + 1, 1);
    e.size = size;
    memcpy(e.bytes, bytes, size);
    add(s, e);
}

/* What is under way is lost; what is sent later is not. */
void sim_cut(struct wire *wire)
{
    wire->generation++;
    wire->queued = 0;
}

/* ── what the coordinator says ─────────────────────────────────────────────────────────────── */

/* Who gained tokens: its deaths are forgotten. */
static void count_tokens(struct simulation *s)
{
    for (uint32_t i = 0; i < s->n_requests; i++) {
        const struct request *r = NULL;
        for (size_t k = 0; k < s->f->c->n_requests && !r; k++)
            if (s->f->c->requests[k]->seed == i)
                r = s->f->c->requests[k];
        if (!r || r->tokens.count == s->requests[i].tokens)
            continue;
        s->requests[i].tokens = r->tokens.count;
        s->requests[i].deaths = 0;
        s->requests[i].mourned = false;
    }
}

static void lost(struct simulation *s)
{
    count_tokens(s);
    uint64_t rows = 0;
    s->counts->losses++;
    for (size_t i = 0; i < s->n_in_flight; i++)
        rows |= s->in_flight[i].rows;
    s->n_in_flight = 0;
    for (uint32_t i = 0; i < s->n_requests; i++) {
        s->requests[i].mourned = rows >> i & 1;
        s->requests[i].deaths += s->requests[i].mourned;
    }
    if (s->launched)
        sim_after(s, sim_draw(s, 200 * MS), WORLD_ENDS, s->world, 0);
}

static void sent_to_rank(struct simulation *s, const struct coordinator_event *e)
{
    unsigned long long world;
    unsigned rank, connection;
    char name[64], err[256];
    snprintf(name, sizeof name, "%.*s", (int)e->peer_size - 1, (const char *)e->peer + 1);
    check(sscanf(name, "%llu.%u.%u", &world, &rank, &connection) == 3);
    struct sim_world *w = &s->worlds[world];
    struct sim_rank *r = &w->ranks[rank];
    Gptoss__SupervisorMessage *m = (Gptoss__SupervisorMessage *)proto_unpack(
        &gptoss__supervisor_message__descriptor, e->bytes, e->size, err, sizeof err);
    check(m != NULL);
    if (m->body_case == GPTOSS__SUPERVISOR_MESSAGE__BODY_STEP && world == s->world) {
        check(s->n_in_flight < 64);
        s->in_flight[s->n_in_flight].number = m->step->step;
        s->in_flight[s->n_in_flight].rows = 0;
        for (size_t i = 0; i < m->step->n_rows; i++)
            s->in_flight[s->n_in_flight].rows |= (uint64_t)1 << m->step->rows[i]->seed;
        s->n_in_flight++;
    }
    proto_free(&m->base);
    struct core_peer peer = sim_peer('r', world, rank, connection);
    if (r->dead || connection != r->connection)
        coordinator_gone(s->f->c, COORDINATOR_RANKS, peer.bytes, peer.size, s->f->now);
    else
        sim_transmit(s, &r->in, (struct sim_event){.kind = TO_RANK, .world = world, .who = rank},
                     e->bytes, e->size);
}

static void sent_to_client(struct simulation *s, const struct coordinator_event *e)
{
    unsigned long long none;
    unsigned client, connection;
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)e->peer_size - 1, (const char *)e->peer + 1);
    check(sscanf(name, "%llu.%u.%u", &none, &client, &connection) == 3);
    struct sim_client *c = &s->clients[client];
    if (!c->connected || connection != c->connection || (c->slow && c->in.queued >= SLOW)) {
        struct core_peer peer = sim_peer('c', 0, client, connection);
        coordinator_gone(s->f->c, COORDINATOR_CLIENTS, peer.bytes, peer.size, s->f->now);
        if (!c->connected || connection != c->connection)
            return;
        for (uint32_t i = 0; i < s->n_requests; i++) /* it did not read: it knows, and asks again */
            if (s->requests[i].client == client && !s->requests[i].linger_ms)
                s->requests[i].abandoned = true;
        sim_after(s, 2 * SECOND, COME_BACK, 0, client);
        return;
    }
    if (c->slow)
        c->in.last_us =
            (c->in.last_us > s->f->now ? c->in.last_us : s->f->now) + sim_draw(s, 60 * MS);
    sim_transmit(s, &c->in, (struct sim_event){.kind = TO_CLIENT, .who = client}, e->bytes,
                 e->size);
}

void sim_pump(struct simulation *s)
{
    struct coordinator_event e;
    while (coordinator_take(s->f->c, &e)) {
        if (e.kind == COORDINATOR_LOST)
            lost(s);
        check(e.kind != COORDINATOR_IMPOSSIBLE);
        if (e.kind == COORDINATOR_SERVING) {
            const struct plan *plan = s->f->c->world.plan;
            if (s->crowded)
                fake_pools(s->f, plan->context / plan->block_tokens + 2, plan->window_blocks);
            s->n_in_flight = 0;
            for (uint32_t i = 0; i < s->n_requests; i++)
                s->requests[i].mourned = false;
        }
        if (e.kind == COORDINATOR_SEND && e.side == COORDINATOR_RANKS)
            sent_to_rank(s, &e);
        else if (e.kind == COORDINATOR_SEND)
            sent_to_client(s, &e);
    }
}

/* ── the schedule ──────────────────────────────────────────────────────────────────────────── */

/* Forgets the steps whose results the coordinator took. */
static void forget_steps(struct simulation *s)
{
    size_t n = 0;
    while (s->f->c->world.state == WORLD_SERVING && n < s->n_in_flight &&
           s->in_flight[n].number < s->f->c->oldest_step)
        n++;
    s->n_in_flight -= n;
    memmove(s->in_flight, s->in_flight + n, s->n_in_flight * sizeof s->in_flight[0]);
}

static void deliver(struct simulation *s, struct sim_event *e)
{
    char err[256];
    if (e->generation != e->wire->generation) {
        free(e->bytes);
        return;
    }
    e->wire->queued--;
    if (e->kind == TO_COORDINATOR) {
        coordinator_receive(s->f->c, e->side, e->peer.bytes, e->peer.size, e->bytes, e->size,
                            s->f->now);
        forget_steps(s);
        sim_pump(s);
    } else if (e->kind == TO_RANK) {
        Gptoss__SupervisorMessage *m = (Gptoss__SupervisorMessage *)proto_unpack(
            &gptoss__supervisor_message__descriptor, e->bytes, e->size, err, sizeof err);
        sim_rank_hears(s, e->world, e->who, m);
        proto_free(&m->base);
    } else {
        Gptoss__ServerMessage *m = (Gptoss__ServerMessage *)proto_unpack(
            &gptoss__server_message__descriptor, e->bytes, e->size, err, sizeof err);
        check(m != NULL);
        sim_client_hears(s, m);
        proto_free(&m->base);
    }
    free(e->bytes);
}

static void happen(struct simulation *s, struct sim_event *e)
{
    switch (e->kind) {
    case TO_COORDINATOR:
    case TO_RANK:
    case TO_CLIENT: deliver(s, e); break;
    case RANK_HELLO: sim_rank_hello(s, e->world, e->who); break;
    case RANK_BEAT: sim_rank_beat(s, e->world, e->who); break;
    case RANK_READY: sim_rank_ready(s, e->world, e->who); break;
    case STEP_DONE: sim_step_done(s, e->world); break;
    case WORLD_START: sim_start_world(s); break;
    case WORLD_ENDS: sim_world_ends(s, e->world); break;
    case RANK_SEEN: sim_rank_seen(s, e->world, e->who); break;
    case OPERATOR: sim_operator_looks(s); break;
    case FAULT: sim_fault(s); break;
    case ASK: sim_ask(s, e->who); break;
    case CANCEL: sim_cancel(s, e->who); break;
    case VANISH: sim_vanish(s, e->who); break;
    case COME_BACK: sim_come_back(s, e->who); break;
    }
}

static void plan_schedule(struct simulation *s)
{
    s->launched = sim_chance(s, 60);
    s->crowded = sim_chance(s, 30);
    s->n_clients = 1 + (uint32_t)sim_draw(s, CLIENTS);
    s->n_requests = 1 + (uint32_t)sim_draw(s, REQUESTS);
    s->faults = (uint32_t)sim_draw(s, 13);
    s->calm_us = s->f->now + 2 * SECOND + sim_draw(s, 15 * SECOND);
    bool poisoned = sim_chance(s, 15);
    for (uint32_t i = 0; i < s->n_clients; i++) {
        s->clients[i].connected = true;
        s->clients[i].slow = sim_chance(s, 10);
        if (sim_chance(s, 25))
            sim_after(s, sim_draw(s, 6 * SECOND), VANISH, 0, i);
    }
    for (uint32_t i = 0; i < s->n_requests; i++) {
        struct sim_request *r = &s->requests[i];
        r->client = (uint32_t)sim_draw(s, s->n_clients);
        r->n_ids = 1 + sim_draw(s, sim_chance(s, 20) ? PROMPT : 20);
        for (size_t k = 0; k < r->n_ids; k++)
            r->ids[k] = (uint32_t)sim_draw(s, 3000);
        if (i && sim_chance(s, 40)) /* it begins as another one does */
            memcpy(r->ids, s->requests[sim_draw(s, i)].ids, sim_draw(s, r->n_ids) * sizeof *r->ids);
        r->max_tokens = 1 + (uint32_t)sim_draw(s, 80);
        r->linger_ms = sim_chance(s, 40) ? 600000 : 0;
        r->deadline_ms = sim_chance(s, 6) ? 1 + sim_draw(s, 5000) : 0;
        r->poison = poisoned && sim_chance(s, 12);
        sim_after(s, sim_draw(s, sim_chance(s, 60) ? 500 * MS : 8 * SECOND), ASK, 0, i);
    }
    sim_after(s, sim_draw(s, 2 * SECOND), FAULT, 0, 0);
    sim_after(s, 0, WORLD_START, 0, 0);
    sim_after(s, SECOND, OPERATOR, 0, 0);
}

/* Nothing is left to do but to linger. */
static bool finished(const struct simulation *s)
{
    for (uint32_t i = 0; i < s->n_requests; i++) {
        const struct sim_request *r = &s->requests[i];
        const struct world_request *seen = &s->f->requests[i];
        if (!r->asked || (!seen->finished && !seen->refused && !r->abandoned))
            return false;
    }
    for (size_t i = 0; i < s->f->c->n_requests; i++)
        if (s->f->c->requests[i]->state != REQUEST_DONE)
            return false;
    return true;
}

static void check_answer(struct simulation *s, uint32_t i)
{
    const struct sim_request *r = &s->requests[i];
    const struct world_request *seen = &s->f->requests[i];
    struct tokens want = {0};
    fake_answer(s->f->c, r->ids, r->n_ids, r->max_tokens, i, &want);
    s->counts->requests++;
    s->counts->tokens += seen->tokens.count;
    s->counts->refused += seen->refused;
    if (seen->tokens.count > want.count)
        fail_msg("request %u has %zu tokens, alone it has %zu", i, seen->tokens.count, want.count);
    for (size_t k = 0; k < seen->tokens.count; k++)
        if (seen->tokens.ids[k] != want.ids[k])
            fail_msg("request %u: token %zu is %u, alone it is %u", i, k, seen->tokens.ids[k],
                     want.ids[k]);
    if (seen->finished) {
        check(seen->finishes == 1);
        bool error = seen->reason == GPTOSS__FINISHED__REASON__ERROR;
        if (error && seen->code == GPTOSS__CODE__DEADLINE)
            check(r->deadline_ms);
        else if (error) {
            s->counts->errors++;
            if (seen->code != GPTOSS__CODE__INTERNAL)
                fail_msg("request %u ended with code %d", i, (int)seen->code);
            if (r->deaths < CORE_DEATHS_MAX)
                fail_msg("request %u was answered with an error after %u deaths", i, r->deaths);
        } else if (seen->reason == GPTOSS__FINISHED__REASON__CANCELLED) {
            s->counts->cancelled++;
            check(r->cancelled || r->abandoned);
        } else if (seen->tokens.count != want.count)
            fail_msg("request %u ended after %zu of %zu tokens", i, seen->tokens.count, want.count);
        check(!r->poison || error || seen->reason == GPTOSS__FINISHED__REASON__CANCELLED);
    }
    tokens_free(&want);
}

void simulation_run(const struct gguf_model *model, uint64_t seed, struct simulation_counts *counts)
{
    struct simulation *s = base_alloc(1, sizeof *s);
    s->counts = counts;
    s->random = seed * 0x9e3779b97f4a7c15u + 1;
    s->worlds = base_alloc(WORLDS, sizeof *s->worlds);
    s->f = fake_create(model, 1,
                       (struct coordinator_options){.context = 256,
                                                    .sequences = 1 + (uint32_t)sim_draw(s, 8),
                                                    .step_tokens = 8 + (uint32_t)sim_draw(s, 60),
                                                    .step_deadline_us = 20 * SECOND});
    s->f->memory_free = 0;
    s->worlds[0].ended = true;
    plan_schedule(s);
    uint64_t end = s->calm_us + 400 * (uint64_t)SECOND;
    while (!finished(s)) {
        uint64_t timer = coordinator_next(s->f->c, s->f->now);
        bool ticks = timer <= s->events[0].at_us;
        uint64_t at = ticks ? timer : s->events[0].at_us;
        s->f->now = at > s->f->now ? at : s->f->now;
        if (!ticks) {
            struct sim_event e = next(s);
            happen(s, &e);
            ticks = e.kind == TO_COORDINATOR && sim_chance(s, 70);
        }
        if (ticks) {
            if (sim_chance(s, 1) && s->f->now < s->calm_us)
                s->f->now += sim_draw(s, 3 * SECOND); /* the coordinator was stopped itself */
            coordinator_tick(s->f->c, s->f->now);
            sim_pump(s);
        }
        count_tokens(s);
        for (uint32_t i = 0; s->f->now > end && i < s->n_requests; i++)
            if (s->requests[i].asked && !s->f->requests[i].finished && !s->f->requests[i].refused &&
                !s->requests[i].abandoned)
                printf("request %u of client %u (%s) is not answered: accepted %d, cancelled %d, "
                       "lingers %d, %zu tokens of %u\n",
                       i, s->requests[i].client,
                       s->clients[s->requests[i].client].slow ? "slow" : "quick",
                       s->f->requests[i].accepted, s->requests[i].cancelled,
                       s->requests[i].linger_ms > 0, s->f->requests[i].tokens.count,
                       s->requests[i].max_tokens);
        if (s->f->now > end)
            fail_msg("it has not ended in %.0f s: %u running, %u waiting, the ranks' state is %d",
                     (double)s->f->now * 1e-6, requests_count(s->f->c, REQUEST_RUNNING),
                     requests_count(s->f->c, REQUEST_WAITING), (int)s->f->c->world.state);
    }
    for (uint32_t i = 0; i < s->n_requests; i++)
        check_answer(s, i);
    check(blocks_used(&s->f->c->full) == 0 && blocks_used(&s->f->c->window) == 0);
    for (uint32_t i = 0;
         s->f->c->world.state == WORLD_SERVING && i < s->f->c->world.plan->sequences; i++)
        check(!s->f->c->slots[i]);

    for (uint64_t i = 1; i <= s->world; i++)
        sim_end_world(s, i);
    for (size_t i = 0; i < s->n_events; i++)
        free(s->events[i].bytes);
    free(s->events);
    free(s->worlds);
    fake_destroy(s->f);
    free(s);
}
