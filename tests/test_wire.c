/*
 * wire: the same bytes as protobuf-c, for every field that the schema has.
 */
#include "tests/test.h"

#include "coordinator/wire.h"

static uint64_t random_state;

static uint64_t draw(void)
{
    uint64_t value = test_random(&random_state);
    return value >> (test_random(&random_state) % 64); /* of any length, often 0 */
}

static ProtobufCMessage *filled(const ProtobufCMessageDescriptor *d, int depth);

static void fill_value(const ProtobufCFieldDescriptor *field, void *at, int depth)
{
    switch ((int)field->type) {
    case PROTOBUF_C_TYPE_UINT32: *(uint32_t *)at = (uint32_t)draw(); break;
    case PROTOBUF_C_TYPE_UINT64: *(uint64_t *)at = draw(); break;
    case PROTOBUF_C_TYPE_BOOL: *(protobuf_c_boolean *)at = draw() & 1; break;
    case PROTOBUF_C_TYPE_ENUM: *(int *)at = (int)(draw() % 4); break;
    case PROTOBUF_C_TYPE_FLOAT: *(float *)at = (float)(int)(draw() % 2000 - 1000) / 8; break;
    case PROTOBUF_C_TYPE_STRING: {
        char *text = calloc(300, 1);
        memset(text, 'x', draw() % 300);
        *(char **)at = text;
        break;
    }
    case PROTOBUF_C_TYPE_BYTES: {
        ProtobufCBinaryData *data = at;
        data->len = draw() % 300;
        data->data = calloc(300, 1);
        memset(data->data, 'y', data->len);
        break;
    }
    case PROTOBUF_C_TYPE_MESSAGE:
        *(ProtobufCMessage **)at = filled(field->descriptor, depth + 1);
        break;
    default:
        fail_msg("field %s is of a type that is new here: teach it to wire.c and to this test",
                 field->name);
    }
}

static size_t size_of(const ProtobufCFieldDescriptor *field)
{
    switch ((int)field->type) {
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FLOAT: return 4;
    default: return sizeof(void *);
    }
}

static ProtobufCMessage *filled(const ProtobufCMessageDescriptor *d, int depth)
{
    ProtobufCMessage *m = calloc(1, d->sizeof_message);
    protobuf_c_message_init(d, m);
    for (unsigned i = 0; i < d->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &d->fields[i];
        char *at = (char *)m + field->offset;
        if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
            continue; /* the caller chooses */
        if (field->label != PROTOBUF_C_LABEL_REPEATED) {
            fill_value(field, at, depth);
            continue;
        }
        size_t n = test_random(&random_state) % 5, size = size_of(field);
        char *list = calloc(n + 1, size);
        for (size_t k = 0; k < n; k++)
            fill_value(field, list + k * size, depth);
        *(size_t *)(void *)((char *)m + field->quantifier_offset) = n;
        *(void **)at = list;
    }
    return m;
}

static void compare(const ProtobufCMessage *m)
{
    struct text mine = {0};
    assert_true(wire_pack(m, &mine));
    size_t size = protobuf_c_message_get_packed_size(m);
    uint8_t *want = malloc(size + 1);
    protobuf_c_message_pack(m, want);
    assert_int_equal(mine.size, size);
    assert_memory_equal(mine.bytes, want, size);
    free(want);
    text_free(&mine);
}

static void tokens_and_steps_are_packed_as_the_schema_says(void **state)
{
    (void)state;
    for (random_state = 1; random_state < 400; random_state++) {
        uint64_t kept = random_state;
        Gptoss__ServerMessage *server =
            (Gptoss__ServerMessage *)filled(&gptoss__server_message__descriptor, 0);
        server->body_case = GPTOSS__SERVER_MESSAGE__BODY_OUTPUT;
        server->output = (Gptoss__Output *)filled(&gptoss__output__descriptor, 0);
        compare(&server->base);
        gptoss__server_message__free_unpacked(server, NULL);

        Gptoss__SupervisorMessage *supervisor =
            (Gptoss__SupervisorMessage *)filled(&gptoss__supervisor_message__descriptor, 0);
        supervisor->body_case = GPTOSS__SUPERVISOR_MESSAGE__BODY_STEP;
        supervisor->step = (Gptoss__Step *)filled(&gptoss__step__descriptor, 0);
        compare(&supervisor->base);
        gptoss__supervisor_message__free_unpacked(supervisor, NULL);
        random_state = kept;
    }
}

static void other_messages_are_left_to_protobuf(void **state)
{
    (void)state;
    struct text out = {0};
    Gptoss__ServerMessage server = GPTOSS__SERVER_MESSAGE__INIT;
    Gptoss__SupervisorMessage supervisor = GPTOSS__SUPERVISOR_MESSAGE__INIT;
    assert_false(wire_pack(&server.base, &out));
    assert_false(wire_pack(&supervisor.base, &out));
    text_free(&out);
}

static void assert_same(const Gptoss__RankMessage *a, const Gptoss__RankMessage *b)
{
    uint8_t *x = malloc(gptoss__rank_message__get_packed_size(a) + 1);
    uint8_t *y = malloc(gptoss__rank_message__get_packed_size(b) + 1);
    size_t n = gptoss__rank_message__pack(a, x), m = gptoss__rank_message__pack(b, y);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

/* What is unpacked by hand is what protobuf-c makes of the same bytes; what protobuf-c refuses is not
 * unpacked. Damaged bytes too. */
static void results_are_unpacked_as_protobuf_does(void **state)
{
    (void)state;
    struct wire_result out = {0};
    char err[256];
    uint64_t random = 11;
    size_t unpacked = 0, same = 0;
    for (random_state = 1; random_state < 3000; random_state++) {
        uint64_t kept = random_state;
        Gptoss__RankMessage *m =
            (Gptoss__RankMessage *)filled(&gptoss__rank_message__descriptor, 0);
        m->body_case = GPTOSS__RANK_MESSAGE__BODY_RESULT;
        m->result = (Gptoss__StepResult *)filled(&gptoss__step_result__descriptor, 0);
        if (kept % 4) { /* a plain one */
            m->result->error[0] = 0;
            for (size_t i = 0; i < m->result->n_samples; i++)
                m->result->samples[i]->n_top_ids = m->result->samples[i]->n_top_logits = 0;
        }
        size_t size;
        uint8_t *bytes = proto_pack(&m->base, &size);
        const Gptoss__RankMessage *mine = wire_unpack_result(bytes, size, &out);
        if (mine) {
            assert_same(mine, m);
            same++;
        }
        assert_true(mine || kept % 4 == 0);
        for (int i = 0; size && i < 3; i++)
            bytes[test_random(&random) % size] = (uint8_t)test_random(&random);
        size_t cut = size ? size - test_random(&random) % size % 3 : 0;
        mine = wire_unpack_result(bytes, cut, &out);
        ProtobufCMessage *want =
            proto_unpack(&gptoss__rank_message__descriptor, bytes, cut, err, sizeof err);
        if (mine) {
            assert_non_null(want);
            assert_same(mine, (Gptoss__RankMessage *)want);
            unpacked++;
        }
        proto_free(want);
        free(bytes);
        gptoss__rank_message__free_unpacked(m, NULL);
        random_state = kept;
    }
    if (same < 2000 || unpacked < 50)
        fail_msg("%zu plain ones and %zu damaged ones were unpacked", same, unpacked);
    wire_result_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_and_steps_are_packed_as_the_schema_says),
        cmocka_unit_test(results_are_unpacked_as_protobuf_does),
        cmocka_unit_test(other_messages_are_left_to_protobuf),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
