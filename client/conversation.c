/* conversation: the messages so far, and the Generate that asks for the next one. */
#include <stdlib.h>
#include <string.h>

#include "client/client.h"

static char *copy(const char *text)
{
    size_t size = strlen(text) + 1;
    return memcpy(base_alloc(size, 1), text, size);
}

static struct message *add(struct conversation *c, Gptoss__Message__Role role, const char *channel,
                           const char *recipient, const char *name)
{
    c->messages = base_grow(c->messages, &c->capacity, c->n + 1, sizeof *c->messages);
    struct message *m = &c->messages[c->n++];
    *m = (struct message){
        .role = role, .channel = copy(channel), .recipient = copy(recipient), .name = copy(name)};
    text_add(&m->content, "", 0);
    return m;
}

void conversation_add(struct conversation *c, Gptoss__Message__Role role, const char *name,
                      const void *bytes, size_t size)
{
    text_add(&add(c, role, "", "", name)->content, bytes, size);
}

void conversation_add_answer(struct conversation *c, const struct answer *a, const char *prefix)
{
    static const char *const channels[] = {
        [GPTOSS__PIECE__CHANNEL__RAW] = "final",
        [GPTOSS__PIECE__CHANNEL__ANALYSIS] = "analysis",
        [GPTOSS__PIECE__CHANNEL__COMMENTARY] = "commentary",
        [GPTOSS__PIECE__CHANNEL__FINAL] = "final",
    };
    for (size_t i = 0; i < a->n_parts; i++) {
        const struct answer_part *part = &a->parts[i];
        bool known = (unsigned)part->channel < sizeof channels / sizeof *channels;
        struct message *m = add(c, GPTOSS__MESSAGE__ROLE__ASSISTANT,
                                known ? channels[part->channel] : "", part->recipient, "");
        if (prefix != NULL && part->channel == GPTOSS__PIECE__CHANNEL__FINAL) {
            text_print(&m->content, "%s", prefix);
            prefix = NULL;
        }
        text_add(&m->content, part->text.bytes, part->text.size);
    }
}

void conversation_add_said(struct conversation *c, const char *channel, const char *recipient,
                           const void *bytes, size_t size)
{
    text_add(&add(c, GPTOSS__MESSAGE__ROLE__ASSISTANT, channel, recipient, "")->content, bytes,
             size);
}

void conversation_cut(struct conversation *c, size_t n)
{
    while (c->n > n) {
        struct message *m = &c->messages[--c->n];
        text_free(&m->content);
        free(m->channel);
        free(m->recipient);
        free(m->name);
    }
}

void conversation_free(struct conversation *c)
{
    conversation_cut(c, 0);
    free(c->messages);
    *c = (struct conversation){0};
}

static ProtobufCBinaryData bytes_of(const void *bytes, size_t size)
{
    return (ProtobufCBinaryData){size, (uint8_t *)bytes};
}

static void set_sampling(Gptoss__Sampling *s, const struct options *o)
{
    if (o->temperature_given) {
        s->temperature_given_case = GPTOSS__SAMPLING__TEMPERATURE_GIVEN_TEMPERATURE;
        s->temperature = (float)o->temperature;
    }
    if (o->top_p_given) {
        s->top_p_given_case = GPTOSS__SAMPLING__TOP_P_GIVEN_TOP_P;
        s->top_p = (float)o->top_p;
    }
    if (o->seed_given) {
        s->seed_given_case = GPTOSS__SAMPLING__SEED_GIVEN_SEED;
        s->seed = o->seed;
    }
    s->top_k = (uint32_t)o->top_k;
    s->min_p = (float)o->min_p;
}

void conversation_pack(const struct options *o, const struct conversation *c, const struct text *id,
                       struct text *out)
{
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    Gptoss__Generate generate = GPTOSS__GENERATE__INIT;
    Gptoss__Sampling sampling = GPTOSS__SAMPLING__INIT;
    Gptoss__TokenIds ids = GPTOSS__TOKEN_IDS__INIT;
    Gptoss__Chat chat = GPTOSS__CHAT__INIT;
    size_t n = c != NULL ? c->n : 0;
    Gptoss__Message *messages = base_alloc(n, sizeof *messages);
    Gptoss__Message **pointers = base_alloc(n, sizeof *pointers);
    ProtobufCBinaryData *stop = base_alloc(o->stop.n, sizeof *stop);

    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    message.generate = &generate;
    generate.request_id = bytes_of(id->bytes, id->size);
    generate.sampling = &sampling;
    generate.max_tokens = (uint32_t)o->max_tokens;
    generate.ignore_eos = o->ignore_eos;
    generate.top_logits = (uint32_t)o->top_logits;
    generate.deadline_ms = (uint64_t)(o->deadline_seconds * 1000);
    generate.linger_ms = (uint64_t)(o->linger_seconds * 1000);
    generate.stop = stop;
    generate.n_stop = o->stop.n;
    for (size_t i = 0; i < o->stop.n; i++)
        stop[i] = bytes_of(o->stop.items[i], strlen(o->stop.items[i]));
    set_sampling(&sampling, o);

    if (c != NULL) {
        for (size_t i = 0; i < n; i++) {
            const struct message *from = &c->messages[i];
            gptoss__message__init(&messages[i]);
            messages[i].role = from->role;
            messages[i].content = bytes_of(from->content.bytes, from->content.size);
            messages[i].channel = from->channel;
            messages[i].recipient = from->recipient;
            messages[i].name = from->name;
            pointers[i] = &messages[i];
        }
        generate.prompt_case = GPTOSS__GENERATE__PROMPT_CHAT;
        generate.chat = &chat;
        chat.messages = pointers;
        chat.n_messages = n;
        chat.reasoning = o->reasoning;
        chat.tools_json = bytes_of(o->tools.bytes, o->tools.size);
        if (o->tool_choice != NULL)
            chat.tool_choice = (char *)o->tool_choice;
        if (o->date != NULL)
            chat.date = (char *)o->date;
        if (o->prefix != NULL)
            chat.assistant_prefix = bytes_of(o->prefix, strlen(o->prefix));
    } else if (o->by_ids) {
        generate.prompt_case = GPTOSS__GENERATE__PROMPT_IDS;
        generate.ids = &ids;
        ids.ids = o->ids;
        ids.n_ids = o->n_ids;
    } else {
        generate.prompt_case = GPTOSS__GENERATE__PROMPT_TEXT;
        generate.text = bytes_of(o->prompt.bytes, o->prompt.size);
    }
    size_t size = protobuf_c_message_get_packed_size(&message.base);
    out->bytes = base_grow(out->bytes, &out->capacity, size + 1, 1);
    out->size = protobuf_c_message_pack(&message.base, (uint8_t *)out->bytes);
    free(stop);
    free(pointers);
    free(messages);
}

int conversation_send(struct session *s, const struct options *o, const struct conversation *c,
                      const struct text *id, char *err, size_t err_size)
{
    s->resuming = false;
    conversation_pack(o, c, id, &s->asked);
    int status = proto_send_bytes(s->socket, NULL, 0, s->asked.bytes, s->asked.size, err, err_size);
    s->unsent = status > 0; /* there is no connection; session_wait tries again, or says why */
    return status >= 0 ? 0 : -1;
}
