"""Every golden case through the real processes: what the file's values are compared with is what
gptoss-client prints, with 1, 2, 3 and 4 ranks. And: those logits are the same bits for each."""
import sys

from harness import Server, golden, run_tests

MARGIN = 0.05  # below it the reference itself could have said either token
BOUND = 2e-2   # on each logit


def ask(server, case):
    return server.ask("--prompt-ids", ",".join(map(str, case["prompt"])), "--temperature", 0, "--ignore-eos",
                      "--max-tokens", len(case["greedy"]), "--top-logits", 5)


def compare(case, answer):
    """(largest difference, logits within the bound, logits compared) up to the first differing token."""
    worst, within, compared = 0.0, 0, 0
    assert len(answer["tokens"]) == len(case["greedy"]), case["name"]
    for want, token, got_top, want_top in zip(case["greedy"], answer["tokens"], answer["top"], case["top5"]):
        want_logits = dict(map(tuple, want_top))
        for i, logit in got_top:
            if i in want_logits:
                off = abs(logit - want_logits[i])
                worst, within, compared = max(worst, off), within + (off <= BOUND), compared + 1
        if token != want:
            margin = want_top[0][1] - want_top[1][1]
            assert margin <= MARGIN, f"{case['name']}: token {token}, want {want} with a margin of {margin}"
            break
    assert compared > 0
    return worst, within, compared


def check(ranks, results={}):
    worst, within, compared = 0.0, 0, 0
    with Server(ranks) as server:
        for case in golden():
            answer = ask(server, case)
            off, inside, n = compare(case, answer)
            worst, within, compared = max(worst, off), within + inside, compared + n
            bits = (answer["tokens"], answer["top"])
            assert results.setdefault(case["name"], bits) == bits, f"{case['name']}: {ranks} ranks give other bits"
    print(f"{ranks} ranks: largest difference {worst:.2e}, {within} of {compared} logits within {BOUND}")
    assert within == compared, f"{compared - within} logits are off by more than {BOUND}"


def test_one_rank():
    check(1)


def test_two_ranks():
    check(2)


def test_three_ranks():
    check(3)


def test_four_ranks():
    check(4)


run_tests(sys.modules[__name__])
