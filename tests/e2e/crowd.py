"""Many clients at once: each answer equals the answer alone, to the bit of its logits."""
import random
import sys
import threading

from harness import Client, Server, run_tests


def requests(n, seed):
    """n requests of mixed lengths: (ids, max_tokens, seed, temperature)."""
    r = random.Random(seed)
    result = []
    for i in range(n):
        length = r.choice([1, 3, 15, 16, 17, 40, 90, 130, 200])
        ids = [r.randrange(4000) for _ in range(length)]
        result.append((ids, r.choice([1, 2, 8, 20, 33]), i, r.choice([0.0, 0.7, 1.0])))
    return result


def answer(client, request):
    ids, max_tokens, seed, temperature = request
    client.generate(ids, max_tokens, seed, temperature, top=5)
    tokens, tops, finished = client.answer()
    assert len(tokens) == max_tokens and finished.code == 0, finished
    return tokens, tops


def alone(server, wanted):
    with Client(server) as client:
        return [answer(client, request) for request in wanted]


def test_sixteen_clients_and_two_hundred_requests():
    wanted = requests(200, 1)
    with Server(1) as server:
        expected = alone(server, wanted)
    got, errors = [None] * len(wanted), []
    with Server(3) as server:
        def work(k):
            try:
                with Client(server) as client:
                    for i in range(k, len(wanted), 16):
                        got[i] = answer(client, wanted[i])
            except Exception as error:
                errors.append(error)
        threads = [threading.Thread(target=work, args=(k,)) for k in range(16)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not errors, errors
        status = server.status()
        assert status.requests_finished == len(wanted), status
        assert status.kv_full_blocks_used == 0 and status.kv_window_blocks_used == 0, status
        # They were batched: far fewer steps than tokens.
        assert status.steps < status.sampled_tokens, (status.steps, status.sampled_tokens)
    for i, (a, b) in enumerate(zip(got, expected)):
        assert a == b, f"request {i} differs from its answer alone"


def test_alone_or_among_seven_others():
    wanted = requests(8, 2)
    with Server(2) as server:
        expected = alone(server, wanted)
        clients = [Client(server) for _ in wanted]
        for client, (ids, n, seed, temperature) in zip(clients, wanted):
            client.generate(ids, n, seed, temperature, top=5)
        for i, client in enumerate(clients):
            tokens, tops, _ = client.answer()
            assert (tokens, tops) == expected[i], f"request {i} differs"
            client.close()


def test_a_client_that_disconnects_frees_its_sequence():
    with Server(2) as server:
        client = Client(server)
        client.generate([1, 2, 3], 5000, ignore_eos=True)
        for _ in range(3):
            assert client.receive() is not None
        assert server.status().requests_running == 1
        client.close()
        status = server.until(lambda s: s.requests_running + s.requests_waiting == 0, 15)
        assert status.kv_full_blocks_used == 0, status
        with Client(server) as other:
            other.generate([1, 2, 3], 5)
            assert len(other.answer()[0]) == 5


def test_a_small_cache_makes_requests_wait_and_loses_none():
    wanted = requests(24, 3)
    with Server(2) as server:
        expected = alone(server, wanted)
    with Server(2, "--context", 256, "--sequences", 3) as server:
        clients = [Client(server) for _ in wanted]
        for client, (ids, n, seed, temperature) in zip(clients, wanted):
            client.generate(ids, n, seed, temperature, top=5)
        for i, client in enumerate(clients):
            tokens, tops, _ = client.answer()
            assert (tokens, tops) == expected[i], f"request {i} differs"
            client.close()


run_tests(sys.modules[__name__])
