"""KV blocks that sequences share, through the real processes: less work, the same bits.

    sharing.py                     every test
    sharing.py --runs 40 --seed 7  the random test alone, with so many random servers
    sharing.py --device cuda       on another device than the default
"""
import argparse
import random
import sys
import threading

from harness import Client, Server, golden, run_tests

LAYERS = 24
BLOCK = 16
RUNS = 3  # random servers in the test suite
SEED = 1


def serve(ranks, *more):
    return Server(ranks, "--device", given.device, *more)


def answer(client, request):
    """(tokens, tops), Finished of one request: (ids, max_tokens, seed, temperature)."""
    ids, max_tokens, seed, temperature = request
    client.generate(ids, max_tokens, seed, temperature, top=5)
    tokens, tops, finished = client.answer()
    assert len(tokens) == max_tokens and finished.code == 0, finished
    return (tokens, tops), finished


def alone(server, wanted):
    with Client(server) as client:
        return [answer(client, request)[0] for request in wanted]


def crowd(server, jobs):
    """Runs every function of jobs with a connection of its own, all at once."""
    errors = []

    def work(job):
        try:
            with Client(server) as client:
                job(client)
        except Exception as error:
            errors.append(error)
    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors


def is_idle(status):
    return status.requests_running + status.requests_waiting == 0


def test_sixteen_clients_compute_a_shared_prompt_once():
    r = random.Random(5)
    shared = [r.randrange(4000) for _ in range(20 * BLOCK)]
    wanted = [(shared + [i] + [r.randrange(4000) for _ in range(r.randrange(30))], 12, i, 0.8) for i in range(16)]
    with serve(1, "--no-prefix-cache") as server:
        expected = alone(server, wanted)
        status = server.status()
        assert status.prefix_hit_tokens == 0 and status.kv_full_blocks_cached == 0, status
    got, cached = [None] * len(wanted), []
    with serve(3) as server:
        def job(i):
            def work(client):
                got[i], finished = answer(client, wanted[i])
                cached.append(finished.cached_tokens)
            return work
        crowd(server, [job(i) for i in range(len(wanted))])
        status = server.until(is_idle)
        assert sorted(cached) == [0] + [len(shared)] * (len(wanted) - 1), cached
        assert status.prefix_hit_tokens == sum(cached), status
        assert status.kv_full_blocks_used == 0 and status.kv_window_blocks_used == 0, status
        assert status.kv_full_blocks_cached >= 20, status
    for i, (a, b) in enumerate(zip(got, expected)):
        assert a == b, f"request {i} differs from its answer without sharing"


def test_a_conversation_is_not_computed_again():
    r = random.Random(6)
    with serve(1, "--no-prefix-cache") as plain, serve(2) as server, Client(server) as client:
        ids = []
        for turn in range(4):
            before = len(ids)
            ids = ids + [r.randrange(4000) for _ in range(70)]
            got, finished = answer(client, (ids, 50, turn, 0.7))
            assert got == alone(plain, [(ids, 50, turn, 0.7)])[0], f"turn {turn} differs"
            # All but the last token's position and a broken block was there.
            assert finished.cached_tokens >= (before - 1) // BLOCK * BLOCK, (turn, before, finished)
            ids = ids + got[0]


# ── measure: the golden cases' bits, whatever the plan, the chunks, the blocks and the load ──────


def random_options(r):
    """(ranks, options) of a server; every one holds the longest golden case."""
    ranks = r.randint(1, 4)
    cuts = sorted(r.sample(range(1, LAYERS), ranks - 1))
    layers = [b - a for a, b in zip([0] + cuts, cuts + [LAYERS])]
    context = r.choice([768, 800, 1024, 4096])
    options = ["--layers", ",".join(map(str, layers)), "--context", context,
               "--sequences", r.choice([2, 3, 8, 16, 32]), "--step-tokens", r.choice([7, 16, 33, 64, 100, 128, 300]),
               "--kv-tokens", r.choice([1, 1000, 2000, 100000])]
    if r.random() < 0.3:
        options.append("--no-prefix-cache")
    if r.random() < 0.3:
        options += ["--head", "last"]
    return ranks, options


def load(r, cases):
    """A client that is there for the others' sake: prompts that begin like a golden one, some given up."""
    def work(client):
        for _ in range(r.randint(1, 3)):
            prompt = r.choice(cases)["prompt"]
            ids = prompt[:r.randint(1, len(prompt))] + [r.randrange(4000) for _ in range(r.randint(1, 40))]
            client.generate(ids, r.randint(1, 20), r.randrange(100), 0.9)
            if r.random() < 0.3:
                return  # the connection is closed, the request goes on until that is noticed
            client.answer()
    return work


def random_server(seed, cases, expected):
    r = random.Random(seed)
    ranks, options = random_options(r)
    wanted = r.sample(cases, r.randint(4, len(cases))) + r.choices(cases, k=4)
    print(f"seed {seed}: {' '.join(map(str, options))}, {len(wanted)} cases", flush=True)
    with serve(ranks, *options) as server:
        def job(case):
            def work(client):
                request = (case["prompt"], len(case["greedy"]), 0, 0.0)
                got, _ = answer(client, request)
                assert got == expected[case["name"]], f"seed {seed}: {case['name']} has other bits"
            return work
        jobs = [job(case) for case in wanted] + [load(random.Random(r.random()), cases) for _ in range(r.randint(0, 8))]
        r.shuffle(jobs)
        crowd(server, jobs)
        status = server.until(is_idle)
        assert status.kv_full_blocks_used == 0 and status.kv_window_blocks_used == 0, status
        return status.prefix_hit_tokens


def test_golden_cases_have_the_same_bits_for_every_plan_and_load():
    cases = [case for case in golden() if runs > RUNS or len(case["greedy"]) < 100]
    with serve(1, "--no-prefix-cache") as server:
        wanted = [(case["prompt"], len(case["greedy"]), 0, 0.0) for case in cases]
        expected = dict(zip((case["name"] for case in cases), alone(server, wanted)))
    for case in cases:  # golden.py compares what is said more closely
        agree = sum(a == b for a, b in zip(expected[case["name"]][0], case["greedy"]))
        assert agree > 0, case["name"]
    hits = sum(random_server(first + i, cases, expected) for i in range(runs))
    print(f"{runs} servers, {hits} tokens from the cache")


options = argparse.ArgumentParser()
options.add_argument("--runs", type=int)
options.add_argument("--seed", type=int, default=SEED)
options.add_argument("--device", default="auto")
given, rest = options.parse_known_args()
runs, first = given.runs or RUNS, given.seed
sys.argv[1:] = rest
if given.runs:
    sys.argv.append("test_golden_cases_have_the_same_bits_for_every_plan_and_load")
run_tests(sys.modules[__name__])
