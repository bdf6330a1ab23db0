/* test_proto: unpacking what nobody should have sent, and the sockets. */
#include "tests/test.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include "proto/proto.h"

static char err[512];

/* ── unpacking ─────────────────────────────────────────────────────────────────────────────── */

static const ProtobufCMessageDescriptor *const outer[] = {
    &gptoss__client_message__descriptor,
    &gptoss__server_message__descriptor,
    &gptoss__rank_message__descriptor,
    &gptoss__supervisor_message__descriptor,
};

/* A chat request with something in every kind of field. */
static void *pack_generate(size_t *size)
{
    Gptoss__Message user = GPTOSS__MESSAGE__INIT, tool = GPTOSS__MESSAGE__INIT;
    user.content = (ProtobufCBinaryData){5, (uint8_t *)"hello"};
    tool.role = GPTOSS__MESSAGE__ROLE__TOOL;
    char name[] = "functions.get_weather";
    tool.name = name;
    Gptoss__Message *messages[] = {&user, &tool};
    Gptoss__Chat chat = GPTOSS__CHAT__INIT;
    chat.messages = messages;
    chat.n_messages = 2;
    chat.reasoning = GPTOSS__CHAT__REASONING__HIGH;
    Gptoss__Sampling sampling = GPTOSS__SAMPLING__INIT;
    sampling.seed_given_case = GPTOSS__SAMPLING__SEED_GIVEN_SEED;
    sampling.seed = UINT64_MAX;
    ProtobufCBinaryData stop[] = {{1, (uint8_t *)"x"}, {2, (uint8_t *)"yz"}};
    Gptoss__Generate generate = GPTOSS__GENERATE__INIT;
    generate.request_id = (ProtobufCBinaryData){3, (uint8_t *)"a\0b"};
    generate.prompt_case = GPTOSS__GENERATE__PROMPT_CHAT;
    generate.chat = &chat;
    generate.sampling = &sampling;
    generate.stop = stop;
    generate.n_stop = 2;
    generate.deadline_ms = 1500;
    Gptoss__ClientMessage message = GPTOSS__CLIENT_MESSAGE__INIT;
    message.body_case = GPTOSS__CLIENT_MESSAGE__BODY_GENERATE;
    message.generate = &generate;
    return proto_pack(&message.base, size);
}

static void unpacks_what_was_packed(void **state)
{
    (void)state;
    size_t size;
    void *bytes = pack_generate(&size);
    Gptoss__ClientMessage *m =
        (Gptoss__ClientMessage *)proto_unpack(outer[0], bytes, size, err, sizeof err);
    assert_non_null(m);
    assert_int_equal(m->body_case, GPTOSS__CLIENT_MESSAGE__BODY_GENERATE);
    assert_int_equal(m->generate->request_id.len, 3);
    assert_memory_equal(m->generate->request_id.data, "a\0b", 3);
    assert_int_equal(m->generate->chat->n_messages, 2);
    assert_string_equal(m->generate->chat->messages[1]->name, "functions.get_weather");
    assert_true(m->generate->sampling->seed == UINT64_MAX);
    assert_int_equal(m->generate->n_stop, 2);
    proto_free(&m->base);
    proto_free(NULL);
    free(bytes);
}

static void a_message_cut_anywhere_never_crashes(void **state)
{
    (void)state;
    size_t size;
    uint8_t *bytes = pack_generate(&size);
    for (size_t cut = 0; cut < size; cut++) {
        uint8_t *part = malloc(cut > 0 ? cut : 1); /* of its own, so that ASan sees its end */
        memcpy(part, bytes, cut);
        err[0] = '\0';
        ProtobufCMessage *m = proto_unpack(outer[0], part, cut, err, sizeof err);
        assert_true(cut == 0 ? m != NULL : m == NULL); /* one field: cut, it does not parse */
        assert_true(m != NULL || strstr(err, "are not a gptoss.ClientMessage") != NULL);
        proto_free(m);
        free(part);
    }
    free(bytes);
}

static void random_and_damaged_bytes_never_crash(void **state)
{
    (void)state;
    uint64_t random = 7;
    size_t size, parsed = 0;
    uint8_t *good = pack_generate(&size), bytes[256];
    for (int i = 0; i < 200000; i++) {
        size_t n = test_random(&random) % sizeof bytes;
        for (size_t j = 0; j < n; j++)
            bytes[j] = (uint8_t)test_random(&random);
        if (i % 2 == 0 && size <= sizeof bytes) {
            memcpy(bytes, good, n = size);
            for (int j = 0; j < 3; j++)
                bytes[test_random(&random) % n] = (uint8_t)test_random(&random);
        }
        ProtobufCMessage *m = proto_unpack(outer[i / 2 % 4], bytes, n, err, sizeof err);
        parsed += m != NULL;
        proto_free(m);
    }
    assert_true(parsed > 100); /* damage inside of texts is no damage to the form */
    free(good);
}

static void put_varint(uint8_t **p, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        *(*p)++ = (uint8_t)(value | 0x80);
    *(*p)++ = (uint8_t)value;
}

/* A SupervisorMessage whose step (5) consists of `n` times the two bytes of an empty row (2). */
static uint8_t *many_rows(size_t n, size_t *size)
{
    uint8_t *bytes = malloc(2 * n + 16), *p = bytes;
    put_varint(&p, 5 << 3 | 2);
    put_varint(&p, 2 * n);
    for (size_t i = 0; i < n; i++) {
        *p++ = 2 << 3 | 2;
        *p++ = 0;
    }
    *size = (size_t)(p - bytes);
    return bytes;
}

static void many_empty_parts_do_not_become_much_memory(void **state)
{
    (void)state;
    size_t size;
    uint8_t *bytes = many_rows(1000, &size);
    ProtobufCMessage *m = proto_unpack(outer[3], bytes, size, err, sizeof err);
    assert_non_null(m);
    assert_int_equal(((Gptoss__SupervisorMessage *)m)->step->n_rows, 1000);
    proto_free(m);
    free(bytes);
    bytes = many_rows(1 << 19, &size);
    assert_null(proto_unpack(outer[3], bytes, size, err, sizeof err));
    assert_non_null(strstr(err, "more than 32 MiB of memory"));
    free(bytes);
}

static void a_message_that_is_too_large_is_not_even_read(void **state)
{
    (void)state;
    uint8_t byte = 0; /* reading on from here would be seen by ASan */
    assert_null(proto_unpack(outer[0], &byte, PROTO_MESSAGE_MAX + 1, err, sizeof err));
    assert_non_null(strstr(err, "4194305 bytes is larger than the 4194304"));
}

/* ── sockets ───────────────────────────────────────────────────────────────────────────────── */

static void *context, *router, *dealer;
static struct proto_frame frame;

static int open_pair(void **state)
{
    (void)state;
    char endpoint[128];
    context = zmq_ctx_new();
    if (proto_bind(&router, context, "tcp://127.0.0.1:*", err, sizeof err) != 0 ||
        proto_endpoint(router, endpoint, sizeof endpoint) != 0 ||
        proto_connect(&dealer, context, endpoint, err, sizeof err) != 0)
        fail_msg("%s", err);
    return 0;
}

static int close_pair(void **state)
{
    (void)state;
    proto_frame_free(&frame);
    proto_close(dealer);
    proto_close(router);
    proto_close(NULL);
    zmq_ctx_term(context);
    return 0;
}

static int receive(void *socket)
{
    zmq_pollitem_t item = {.socket = socket, .events = ZMQ_POLLIN};
    zmq_poll(&item, 1, 3000);
    err[0] = '\0';
    return proto_receive(socket, &frame, err, sizeof err);
}

static void messages_cross_in_both_directions(void **state)
{
    (void)state;
    assert_int_equal(proto_receive(router, &frame, err, sizeof err), 0);
    size_t size;
    void *bytes = pack_generate(&size);
    assert_int_equal(proto_send_bytes(dealer, NULL, 0, bytes, size, err, sizeof err), 0);
    assert_int_equal(receive(router), 1);
    assert_int_equal(frame.size, size);
    assert_memory_equal(frame.bytes, bytes, size);
    assert_true(frame.peer_size > 0);
    free(bytes);

    unsigned char peer[PROTO_PEER_MAX];
    size_t peer_size = frame.peer_size;
    memcpy(peer, frame.peer, peer_size);
    assert_int_equal(proto_send_bytes(router, peer, peer_size, "", 0, err, sizeof err), 0);
    assert_int_equal(receive(dealer), 1);
    assert_int_equal(frame.size, 0);
    assert_int_equal(frame.peer_size, 0);

    Gptoss__ServerMessage message = GPTOSS__SERVER_MESSAGE__INIT;
    assert_int_equal(proto_send(dealer, &message.base, err, sizeof err), 0);
    assert_int_equal(receive(router), 1);
    assert_int_equal(frame.size, 0);
}

static void a_peer_that_is_gone_is_reported(void **state)
{
    (void)state;
    assert_int_equal(proto_send_bytes(router, "nobody", 6, "x", 1, err, sizeof err), 1);
}

static void a_peer_that_does_not_read_fills_its_queue_and_no_other(void **state)
{
    (void)state;
    assert_int_equal(proto_send_bytes(dealer, NULL, 0, "x", 1, err, sizeof err), 0);
    assert_int_equal(receive(router), 1);
    static char bytes[1024];
    int status = 0, sent = 0;
    for (; status == 0 && sent < 1000000; sent++)
        status = proto_send_bytes(router, frame.peer, frame.peer_size, bytes, sizeof bytes, err,
                                  sizeof err);
    assert_int_equal(status, 2);
    assert_int_equal(receive(dealer), 1); /* whole messages, no half one */
    assert_int_equal(frame.size, sizeof bytes);
}

static void what_is_not_one_frame_is_dropped_whole(void **state)
{
    (void)state;
    assert_int_equal(zmq_send(dealer, "", 0, ZMQ_SNDMORE), 0); /* as a REQ socket does */
    assert_int_equal(zmq_send(dealer, "a", 1, 0), 1);
    for (int i = 0; i < 5; i++)
        zmq_send(dealer, "b", 1, i < 4 ? ZMQ_SNDMORE : 0);
    assert_int_equal(zmq_send(dealer, "good", 4, 0), 4);
    assert_int_equal(receive(router), 2);
    assert_non_null(strstr(err, "a message of 2 frames"));
    assert_true(frame.peer_size > 0);
    assert_int_equal(receive(router), 2);
    assert_non_null(strstr(err, "a message of 5 frames"));
    assert_int_equal(receive(router), 1);
    assert_memory_equal(frame.bytes, "good", 4);
}

static void an_oversized_frame_is_told_and_a_huge_one_is_cut_off(void **state)
{
    (void)state;
    size_t size = PROTO_MESSAGE_MAX + 1;
    char *bytes = calloc(17, PROTO_MESSAGE_MAX);
    assert_int_equal(proto_send_bytes(dealer, NULL, 0, bytes, size, err, sizeof err), -1);
    assert_non_null(strstr(err, "larger than"));
    zmq_send(dealer, bytes, size, 0);
    assert_int_equal(receive(router), 2);
    assert_non_null(strstr(err, "4194305 bytes is larger"));
    assert_true(frame.peer_size > 0);
    zmq_send(dealer, bytes, size - 1, 0);
    assert_int_equal(receive(router), 1);
    assert_int_equal(frame.size, PROTO_MESSAGE_MAX);

    /* The connection ends, and the socket connects again by itself. */
    zmq_send(dealer, bytes, 17 * PROTO_MESSAGE_MAX, 0);
    int status = 0;
    for (int i = 0; i < 100 && status != 1; i++) {
        usleep(20000);
        zmq_send(dealer, "good", 4, ZMQ_DONTWAIT);
        status = proto_receive(router, &frame, err, sizeof err);
    }
    assert_int_equal(status, 1);
    assert_int_equal(frame.size, 4);
    free(bytes);
}

/* ── endpoints ─────────────────────────────────────────────────────────────────────────────── */

static char folder[] = "/tmp/gptoss-proto-XXXXXX";

static const char *bind_says(const char *endpoint)
{
    void *socket = &socket;
    err[0] = '\0';
    assert_int_equal(proto_bind(&socket, context, endpoint, err, sizeof err), -1);
    assert_null(socket);
    return err;
}

#define assert_says(text, part)                                                                    \
    do {                                                                                           \
        const char *said = (text);                                                                 \
        if (strstr(said, part) == NULL)                                                            \
            fail_msg("\"%s\" does not say \"%s\"", said, part);                                    \
    } while (0)

static void a_failed_bind_says_what_to_do(void **state)
{
    (void)state;
    char endpoint[128], want[256];
    assert_int_equal(proto_endpoint(router, endpoint, sizeof endpoint), 0);
    assert_says(bind_says(endpoint), " is in use: is another one running? stop it, or choose "
                                     "another port");
    snprintf(want, sizeof want, "%s is in use", endpoint);
    assert_says(err, want);
    assert_says(bind_says("tcp://192.0.2.1:5555"), "this machine has no such address");
    assert_says(bind_says("nonsense"), "\"nonsense\" is not an endpoint; write tcp://HOST:PORT");
    assert_says(bind_says("tcp://127.0.0.1"), "is not an endpoint");
    assert_says(bind_says("tcp://127.0.0.1:99999"), "is not an endpoint");
    assert_says(bind_says("smtp://x:1"), "is not an endpoint");
    assert_says(bind_says("ipc://"), "is not an endpoint");
    assert_says(bind_says("ipc:///nonexistent/folder/socket"), "its folder does not exist");
    char path[400];
    snprintf(path, sizeof path, "ipc:///tmp/%0200d", 0);
    assert_says(bind_says(path), "the path is too long");
    void *socket;
    assert_int_equal(proto_connect(&socket, context, "localhost:5555", err, sizeof err), -1);
    assert_says(err, "\"localhost:5555\" is not an endpoint");
    if (geteuid() != 0)
        assert_says(bind_says("tcp://127.0.0.1:22"), "choose a port from 1024 on");
}

static void an_ipc_path_in_use_is_not_taken_over_and_a_left_one_is(void **state)
{
    (void)state;
    char endpoint[128], path[128];
    assert_non_null(mkdtemp(folder));
    snprintf(endpoint, sizeof endpoint, "ipc://%s/socket", folder);
    snprintf(path, sizeof path, "%s/socket", folder);

    void *first;
    assert_int_equal(proto_bind(&first, context, endpoint, err, sizeof err), 0);
    assert_says(bind_says(endpoint),
                "is in use: is another one running? stop it, or choose another "
                "path");
    proto_close(first);
    unlink(path);

    int file = open(path, O_CREAT | O_WRONLY, 0600); /* a file of somebody's */
    assert_int_equal(write(file, "keep", 4), 4);
    close(file);
    assert_says(bind_says(endpoint), "there is a file that is no socket");
    assert_int_equal(access(path, F_OK), 0);
    unlink(path);

    /* The socket file of a process that was killed. */
    struct sockaddr_storage address = {.ss_family = AF_UNIX};
    memcpy((char *)&address + sizeof address.ss_family, path, strlen(path));
    int left = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(left, (struct sockaddr *)&address, 110), 0);
    close(left);
    assert_int_equal(proto_bind(&first, context, endpoint, err, sizeof err), 0);
    proto_close(first);
    unlink(path);
    rmdir(folder);
}

static void knows_which_endpoints_are_local(void **state)
{
    (void)state;
    static const char *const local[] = {
        "tcp://127.0.0.1:5555", "tcp://127.9.9.9:0", "tcp://localhost:5555", "tcp://[::1]:5555",
        "ipc:///run/gptoss",    "ipc://@name",       "tcp://lo:5555"};
    static const char *const open[] = {
        "tcp://*:5555",        "tcp://0.0.0.0:5555",         "tcp://[::]:5555",
        "tcp://10.0.0.1:5555", "tcp://127.example.com:5555", "",
        "tcp://localhost",     "udp://127.0.0.1:5",          "tcp://eth0:5555"};
    for (size_t i = 0; i < sizeof local / sizeof *local; i++)
        if (!proto_endpoint_is_local(local[i]))
            fail_msg("%s is local", local[i]);
    for (size_t i = 0; i < sizeof open / sizeof *open; i++)
        if (proto_endpoint_is_local(open[i]))
            fail_msg("%s is not local", open[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unpacks_what_was_packed),
        cmocka_unit_test(a_message_cut_anywhere_never_crashes),
        cmocka_unit_test(random_and_damaged_bytes_never_crash),
        cmocka_unit_test(many_empty_parts_do_not_become_much_memory),
        cmocka_unit_test(a_message_that_is_too_large_is_not_even_read),
        cmocka_unit_test_setup_teardown(messages_cross_in_both_directions, open_pair, close_pair),
        cmocka_unit_test_setup_teardown(a_peer_that_is_gone_is_reported, open_pair, close_pair),
        cmocka_unit_test_setup_teardown(a_peer_that_does_not_read_fills_its_queue_and_no_other,
                                        open_pair, close_pair),
        cmocka_unit_test_setup_teardown(what_is_not_one_frame_is_dropped_whole, open_pair,
                                        close_pair),
        cmocka_unit_test_setup_teardown(an_oversized_frame_is_told_and_a_huge_one_is_cut_off,
                                        open_pair, close_pair),
        cmocka_unit_test_setup_teardown(a_failed_bind_says_what_to_do, open_pair, close_pair),
        cmocka_unit_test_setup_teardown(an_ipc_path_in_use_is_not_taken_over_and_a_left_one_is,
                                        open_pair, close_pair),
        cmocka_unit_test(knows_which_endpoints_are_local),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
