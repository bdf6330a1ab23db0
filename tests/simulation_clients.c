#include "tests/test.h"

#include "tests/simulation_parts.h"

static void client_says(struct simulation *s, uint32_t client, const Gptoss__ClientMessage *m)
{
    uint8_t bytes[4096];
    size_t size = gptoss__client_message__get_packed_size(m);
    check(size <= sizeof bytes);
    gptoss__client_message__pack(m, bytes);
    struct sim_client *c = &s->clients[client];
    struct sim_event e = {.kind = TO_COORDINATOR,
                          .side = COORDINATOR_CLIENTS,
                          .peer = sim_peer('c', 0, client, c->connection)};
    sim_transmit(s, &c->out, e, bytes, size);
    if (sim_chance(s, 3)) /* sent twice */
        sim_transmit(s, &c->out, e, bytes, size);
}

static ProtobufCBinaryData id_of(uint32_t request, char id[8])
{
    snprintf(id, 8, "r%04u", request);
    return core_binary(id, 5);
}

void sim_ask(struct simulation *s, uint32_t request)
{
    struct sim_request *r = &s->requests[request];
    if (!s->clients[r->client].connected) {
        sim_after(s, 100 * MS, ASK, 0, request);
        return;
    }
    char id[8];
    Gptoss__TokenIds prompt = GPTOSS__TOKEN_IDS__INIT;
    prompt.n_ids = r->n_ids;
    prompt.ids = r->ids;
    Gptoss__Sampling sampling = GPTOSS__SAMPLING__INIT;
    sampling.seed_given_case = GPTOSS__SAMPLING__SEED_GIVEN_SEED;
    sampling.seed = request;
    Gptoss__Generate g = GPTOSS__GENERATE__INIT;
    g.request_id = id_of(request, id);
    g.prompt_case = GPTOSS__GENERATE__PROMPT_IDS;
    g.ids = &prompt;
    g.max_tokens = r->max_tokens;
    g.sampling = &sampling;
    g.linger_ms = r->linger_ms;
    g.deadline_ms = r->deadline_ms;
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    m.generate = &g;
    r->asked = true;
    client_says(s, r->client, &m);
    if (sim_chance(s, 8))
        sim_after(s, sim_draw(s, 3 * SECOND), CANCEL, 0, request);
}

void sim_cancel(struct simulation *s, uint32_t request)
{
    struct sim_request *r = &s->requests[request];
    char id[8];
    if (!r->asked || !s->clients[r->client].connected)
        return;
    r->cancelled = true;
    Gptoss__Cancel c = GPTOSS__CANCEL__INIT;
    c.request_id = id_of(request, id);
    Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
    m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_CANCEL;
    m.cancel = &c;
    client_says(s, r->client, &m);
}

/* Its requests that do not linger end with it. */
void sim_vanish(struct simulation *s, uint32_t client)
{
    struct sim_client *c = &s->clients[client];
    if (!c->connected)
        return;
    c->connected = false;
    sim_cut(&c->in);
    if (sim_chance(s, 50))
        sim_cut(&c->out); /* else what it has sent arrives */
    for (uint32_t i = 0; i < s->n_requests; i++)
        if (s->requests[i].client == client && s->requests[i].asked &&
            !s->f->requests[i].finished && !s->requests[i].linger_ms)
            s->requests[i].abandoned = true;
    sim_after(s, sim_draw(s, 2 * SECOND), COME_BACK, 0, client);
}

static void resume(struct simulation *s, uint32_t client)
{
    for (uint32_t i = 0; i < s->n_requests; i++) {
        const struct sim_request *r = &s->requests[i];
        if (r->client != client || !r->asked || s->f->requests[i].finished || !r->linger_ms ||
            s->f->requests[i].refused)
            continue;
        char id[8];
        Gptoss__Resume again = GPTOSS__RESUME__INIT;
        again.request_id = id_of(i, id);
        again.from_index = (uint32_t)s->f->requests[i].tokens.count;
        Gptoss__ClientMessage m = GPTOSS__CLIENT_MESSAGE__INIT;
        m.body_case = GPTOSS__CLIENT_MESSAGE__BODY_RESUME;
        m.resume = &again;
        s->f->requests[i].resumed = true;
        s->counts->resumes++;
        client_says(s, client, &m);
    }
}

void sim_come_back(struct simulation *s, uint32_t client)
{
    struct sim_client *c = &s->clients[client];
    if (!c->connected) {
        c->connection++;
        c->connected = true;
        sim_cut(&c->in);
    }
    resume(s, client);
}

void sim_client_hears(struct simulation *s, const Gptoss__ServerMessage *m)
{
    if (m->body_case != GPTOSS__SERVER_MESSAGE__BODY_REFUSED || m->refused->request_id.len != 5) {
        fake_hear(s->f, m);
        return;
    }
    char number[5] = {0};
    memcpy(number, m->refused->request_id.data + 1, 4);
    uint32_t i = (uint32_t)strtoul(number, NULL, 10);
    check(i < s->n_requests);
    struct world_request *r = &s->f->requests[i];
    if (r->finished || m->refused->code == GPTOSS__CODE__DUPLICATE)
        return; /* a cancel that came late; a request that was sent twice, and is here */
    fake_hear(s->f, m);
    /* A Resume may have overtaken its Generate; what was accepted is found. */
    check(m->refused->code == GPTOSS__CODE__NOT_FOUND);
    check(s->requests[i].cancelled || !r->accepted);
    r->refused = !r->accepted;
}
