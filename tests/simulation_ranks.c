#include "tests/test.h"

#include "tests/simulation_parts.h"

static void rank_says(struct simulation *s, uint64_t world, uint32_t rank, struct wire *wire,
                      char kind, Gptoss__RankMessage *m)
{
    uint8_t bytes[8192], *large = NULL;
    m->epoch = s->worlds[world].epoch;
    size_t size = gptoss__rank_message__get_packed_size(m);
    if (size > sizeof bytes)
        large = base_alloc(size, 1);
    gptoss__rank_message__pack(m, large ? large : bytes);
    struct sim_event e = {.kind = TO_COORDINATOR,
                          .side = COORDINATOR_RANKS,
                          .peer =
                              sim_peer(kind, world, rank, s->worlds[world].ranks[rank].connection)};
    sim_transmit(s, wire, e, large ? large : bytes, size);
    free(large);
}

void sim_start_world(struct simulation *s)
{
    check(s->world + 1 < WORLDS);
    struct sim_world *w = &s->worlds[++s->world];
    w->size = 1 + (uint32_t)sim_draw(s, RANKS);
    w->started_us = s->f->now;
    s->f->world_id = s->world;
    for (uint32_t i = 0; i < w->size; i++)
        sim_after(s, sim_draw(s, 100 * MS), RANK_HELLO, s->world, i);
}

void sim_end_world(struct simulation *s, uint64_t world)
{
    struct sim_world *w = &s->worlds[world];
    for (uint32_t i = 0; i < w->size; i++)
        w->ranks[i].dead = true;
    for (size_t i = 0; i < w->queued; i++)
        free(w->queue[i].bytes);
    w->queued = 0;
    w->ended = true;
    if (world == s->world)
        fake_forget(s->f);
}

void sim_rank_hello(struct simulation *s, uint64_t world, uint32_t rank)
{
    struct sim_world *w = &s->worlds[world];
    if (w->ranks[rank].dead || w->ranks[rank].stopped || w->ranks[rank].welcomed)
        return;
    Gptoss__Hello hello = GPTOSS__HELLO__INIT;
    hello.world = world;
    hello.rank = rank;
    hello.size = w->size;
    hello.protocol = PROTO_VERSION;
    hello.pid = (uint32_t)(world * RANKS + rank + 1);
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_HELLO;
    m.hello = &hello;
    rank_says(s, world, rank, &w->ranks[rank].out, 'r', &m);
    sim_after(s, SECOND, RANK_HELLO, world, rank);
}

void sim_rank_beat(struct simulation *s, uint64_t world, uint32_t rank)
{
    struct sim_world *w = &s->worlds[world];
    if (w->ranks[rank].dead || w->ranks[rank].stopped)
        return;
    Gptoss__RankHeartbeat beat = GPTOSS__RANK_HEARTBEAT__INIT;
    beat.rank = rank;
    beat.world = world;
    beat.computed = w->computed;
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_HEARTBEAT;
    m.heartbeat = &beat;
    rank_says(s, world, rank, &w->ranks[rank].beats, 'b', &m);
    sim_after(s, 150 * MS, RANK_BEAT, world, rank);
}

static void rank_join(struct simulation *s, uint64_t world, uint32_t rank)
{
    Gptoss__Join join = GPTOSS__JOIN__INIT;
    join.rank = rank;
    join.size = s->worlds[world].size;
    join.host = (char *)(uintptr_t) "here";
    join.device = (char *)(uintptr_t) "a fake";
    join.backend = (char *)(uintptr_t) "cpu";
    join.transports = (char *)(uintptr_t) "mpi";
    join.memory_free_bytes = (uint64_t)1 << 40;
    join.header_digest = gguf_header_digest(s->f->model->file);
    join.header_bytes = gguf_header_bytes(s->f->model->file);
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_JOIN;
    m.join = &join;
    rank_says(s, world, rank, &s->worlds[world].ranks[rank].out, 'r', &m);
}

static bool runs(const struct sim_rank *r)
{
    return !r->dead && !r->stopped && !r->stuck;
}

/* The pipeline moves only if all ranks do. */
static void begin_step(struct simulation *s, uint64_t world)
{
    struct sim_world *w = &s->worlds[world];
    if (w->busy || w->queued == 0 || world != s->world)
        return;
    for (uint32_t i = 0; i < w->size; i++)
        if (!runs(&w->ranks[i]))
            return;
    w->busy = true;
    sim_after(s, 200 + sim_draw(s, 8 * MS), STEP_DONE, world, 0);
}

static void lose_rank(struct simulation *s, uint64_t world, uint32_t rank, int how);

void sim_step_done(struct simulation *s, uint64_t world)
{
    struct sim_world *w = &s->worlds[world];
    bool all = w->queued > 0;
    for (uint32_t i = 0; i < w->size; i++)
        all = all && runs(&w->ranks[i]);
    w->busy = false;
    if (!all)
        return;
    struct world_step step = w->queue[0];
    memmove(w->queue, w->queue + 1, --w->queued * sizeof step);
    Gptoss__Step *m = gptoss__step__unpack(NULL, step.size, step.bytes);
    free(step.bytes);
    bool kills = false;
    for (size_t i = 0; i < m->n_rows; i++)
        kills |= s->requests[m->rows[i]->seed].poison;
    if (kills) {
        gptoss__step__free_unpacked(m, NULL);
        w->foreign = false;
        lose_rank(s, world, (uint32_t)sim_draw(s, w->size), 0);
        return;
    }
    Gptoss__StepResult result;
    fake_compute(s->f, m, &result);
    w->computed = m->step;
    Gptoss__RankMessage reply = GPTOSS__RANK_MESSAGE__INIT;
    reply.body_case = GPTOSS__RANK_MESSAGE__BODY_RESULT;
    reply.result = &result;
    rank_says(s, world, w->size - 1, &w->ranks[w->size - 1].out, 'r', &reply);
    gptoss__step__free_unpacked(m, NULL);
    begin_step(s, world);
}

void sim_rank_hears(struct simulation *s, uint64_t world, uint32_t rank,
                    const Gptoss__SupervisorMessage *m)
{
    struct sim_world *w = &s->worlds[world];
    struct sim_rank *r = &w->ranks[rank];
    if (r->dead || r->stopped)
        return;
    switch (m->body_case) {
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_WELCOME:
        if (r->welcomed)
            break;
        r->welcomed = true;
        w->epoch = m->epoch;
        sim_rank_beat(s, world, rank);
        rank_join(s, world, rank);
        break;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_PLAN:
        if (world != s->world || m->epoch != w->epoch)
            break;
        fake_plan(s->f, m->plan);
        sim_after(s, MS + sim_draw(s, sim_chance(s, 20) ? 2 * SECOND : 100 * MS), RANK_READY, world,
                  rank);
        break;
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_STEP: {
        if (world != s->world || m->epoch != w->epoch)
            break;
        check(rank == 0 && w->queued < sizeof w->queue / sizeof w->queue[0]);
        struct world_step *step = &w->queue[w->queued++];
        step->bytes = base_alloc(gptoss__step__get_packed_size(m->step) + 1, 1);
        step->size = gptoss__step__pack(m->step, step->bytes);
        begin_step(s, world);
        break;
    }
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_REFUSED:
    case GPTOSS__SUPERVISOR_MESSAGE__BODY_SHUTDOWN:
        w->told = true; /* one that leaves takes the others with it */
        sim_after(s, sim_draw(s, 200 * MS), WORLD_ENDS, world, 0);
        break;
    default: break;
    }
}

void sim_rank_ready(struct simulation *s, uint64_t world, uint32_t rank)
{
    if (!runs(&s->worlds[world].ranks[rank]) || world != s->world)
        return;
    Gptoss__Ready ready = GPTOSS__READY__INIT;
    Gptoss__RankMessage m = GPTOSS__RANK_MESSAGE__INIT;
    m.body_case = GPTOSS__RANK_MESSAGE__BODY_READY;
    m.ready = &ready;
    rank_says(s, world, rank, &s->worlds[world].ranks[rank].out, 'r', &m);
}

/* 0: it dies; 1: it is stopped; 2: it hangs in a step; 3: its connection breaks, and it makes another. */
static void lose_rank(struct simulation *s, uint64_t world, uint32_t rank, int how)
{
    struct sim_world *w = &s->worlds[world];
    struct sim_rank *r = &w->ranks[rank];
    if (r->dead || w->ended)
        return;
    s->counts->kills++;
    w->faulted = true;
    if (how == 3 || (how == 0 && sim_chance(s, 50))) {
        sim_cut(&r->in);
        if (sim_chance(s, 50))
            sim_cut(&r->out);
        r->connection += how == 3;
    }
    r->dead |= how == 0;
    r->stopped |= how == 1;
    r->stuck |= how == 2;
    if (s->launched && how <= 1)
        sim_after(s, how == 0 ? sim_draw(s, 60 * MS) : 100 * MS + sim_draw(s, 100 * MS), RANK_SEEN,
                  world, rank);
    if (!s->launched && how == 0) /* mpirun ends the others */
        sim_after(s, 30 * MS + sim_draw(s, 2500 * MS), WORLD_ENDS, world, 0);
}

void sim_rank_seen(struct simulation *s, uint64_t world, uint32_t rank)
{
    struct sim_world *w = &s->worlds[world];
    if (w->ended)
        return;
    if (!coordinator_rank_ended(s->f->c, (int64_t)(world * RANKS + rank + 1), "died", s->f->now))
        sim_after(s, sim_draw(s, 300 * MS), WORLD_ENDS, world, 0);
    sim_pump(s);
}

/* mpirun has ended, and all that it started; a launcher then tells the coordinator. */
void sim_world_ends(struct simulation *s, uint64_t world)
{
    struct sim_world *w = &s->worlds[world];
    if (w->ended)
        return;
    sim_end_world(s, world);
    if (!s->launched)
        return; /* the operator looks */
    coordinator_world_ended(s->f->c, "mpirun ended", s->f->now);
    sim_pump(s);
    coordinator_verdict(s->f->c, w->foreign);
    for (uint32_t i = 0; i < s->n_requests; i++) {
        s->requests[i].deaths -= w->foreign && s->requests[i].mourned;
        s->requests[i].mourned = false;
    }
    sim_after(s, 20 * MS + sim_draw(s, 400 * MS), WORLD_START, 0, 0);
}

/* Whoever starts mpirun by hand, and a launcher's own deadline. */
void sim_operator_looks(struct simulation *s)
{
    struct sim_world *w = &s->worlds[s->world];
    uint64_t age = s->f->now - w->started_us;
    sim_after(s, 100 * MS + sim_draw(s, 900 * MS), OPERATOR, 0, 0);
    if (!w->ended && w->faulted && s->f->c->world.state != WORLD_SERVING && age > 15 * SECOND)
        sim_world_ends(s, s->world);
    else if (!s->launched && w->ended)
        sim_start_world(s);
}

void sim_fault(struct simulation *s)
{
    struct sim_world *w = &s->worlds[s->world];
    if (s->f->now > s->calm_us || s->faults == 0)
        return;
    s->faults--;
    /* Bursts, also of ranks that have just been started, and long quiet times. */
    sim_after(s, sim_chance(s, 40) ? sim_draw(s, 400 * MS) : sim_draw(s, 4 * SECOND), FAULT, 0, 0);
    if (w->ended)
        return;
    if (!w->faulted)
        w->foreign = true;
    uint32_t how = (uint32_t)sim_draw(s, 8);
    how = how < 4 ? 0 : how < 6 ? 1 : how == 6 ? 2 : 3;
    if (how >= 2)
        w->foreign = false; /* nobody can tell */
    lose_rank(s, s->world, (uint32_t)sim_draw(s, w->size), (int)how);
}
