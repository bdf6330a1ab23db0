"""Ranks are killed and stopped at random moments while sixteen clients are in mid-stream: every answer is
the undisturbed run's, byte for byte.

usage: chaos.py [--kills N] [--clients N] [--ranks N] [--seed S] [--pause SECONDS]

Prints how long each stream stood still after a kill (from the kill to the next token of that stream).
"""
import argparse
import collections
import os
import random
import signal
import sys
import threading
import time

from harness import Client, Server, pb

TOOLS = (b'[{"type":"function","function":{"name":"get_weather","description":"Weather of a city.","parameters":'
         b'{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}]')
WORDS = "the Lord is my shepherd I shall not want In beginning God created heaven and earth let there be light".split()


def request(seed):
    """A request as a Generate without its id: sampling, stop texts, channels and tool calls among them."""
    r = random.Random(seed)
    g = pb.Generate(max_tokens=r.randrange(40, 160))
    g.sampling.seed = seed
    g.sampling.temperature = r.choice([0.0, 0.0, 0.7, 1.0])
    g.sampling.top_k = r.choice([0, 0, 40])
    g.sampling.top_p = r.choice([1.0, 0.95])
    kind = r.choice(["ids", "text", "text", "chat", "tool"])
    if kind == "ids":
        g.ids.ids.extend(r.randrange(4000) for _ in range(r.choice([1, 5, 60, 200])))
        g.ignore_eos = True
        g.top_logits = r.choice([0, 3])
    elif kind == "text":
        g.text = " ".join(r.choice(WORDS) for _ in range(r.randrange(3, 40))).encode()
        g.ignore_eos = r.random() < 0.8
        if r.random() < 0.4:
            g.stop.extend([b"the L", b"And it came to"])
    else:
        question = "What is the weather in Paris?" if kind == "tool" else "What is the capital of Greece?"
        g.chat.messages.add(role=pb.Message.USER, content=question.encode())
        if kind == "tool":
            g.chat.reasoning = pb.Chat.LOW
            g.chat.tools_json = TOOLS
            g.sampling.temperature = 0
    return g


class Stream:
    """What a client saw of a request, as one comparable thing."""

    def __init__(self):
        self.tokens, self.pieces, self.tops = [], [], []
        self.end = None

    def add_pieces(self, pieces):
        for p in pieces:
            if self.pieces and self.pieces[-1][:3] == [p.channel, p.recipient, p.message]:
                self.pieces[-1][3] += p.text
            else:
                self.pieces.append([p.channel, p.recipient, p.message, p.text])

    def whole(self):
        return self.tokens, self.tops, self.pieces, self.end


def answer(client, generate, name, on_token=None):
    """Sends a request and reads it to its end; tokens must come once each, in order."""
    g = pb.Generate()
    g.CopyFrom(generate)
    g.request_id = name.encode()
    client.send(pb.ClientMessage(generate=g))
    stream = Stream()
    while True:
        m = client.receive(120)
        assert m is not None, f"{name}: nothing came for 120 s, after {len(stream.tokens)} tokens"
        kind = m.WhichOneof("body")
        if kind == "output":
            for t in m.output.tokens:
                assert t.index == len(stream.tokens), f"{name}: token {t.index} came after {len(stream.tokens) - 1}"
                stream.tokens.append(t.id)
                stream.tops.append([(x.id, x.logit) for x in t.top] + [t.logit, t.log_sum_exp])
                stream.add_pieces(t.pieces)
            if on_token:
                on_token()
        elif kind == "finished":
            stream.add_pieces(m.finished.pieces)
            stream.end = (m.finished.reason, m.finished.code, m.finished.tokens, m.finished.prompt_tokens,
                          m.finished.reasoning_tokens, m.finished.text)
            return stream.whole()
        elif kind == "refused":
            raise AssertionError(f"{name} was refused: {m.refused.text}")


def expect(server, seeds, clients):
    """The undisturbed answers."""
    expected, errors = {}, []

    def work(k):
        try:
            with Client(server) as client:
                for seed in seeds[k::clients]:
                    expected[seed] = answer(client, request(seed), f"quiet-{seed}")
        except BaseException as error:
            errors.append(error)
    run_all(work, clients)
    assert not errors, errors
    return expected


def run_all(work, n):
    threads = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


class Processes:
    """mpirun and the ranks of a server, found below the coordinator's process."""

    def __init__(self, server):
        self.coordinator = server.process.pid

    @staticmethod
    def children(pid):
        found = []
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as f:
                    found += [int(p) for p in f.read().split()]
        except OSError:
            pass
        return found

    @staticmethod
    def command(pid):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                return f.read()
        except OSError:
            return b""

    def mpirun(self):
        return [p for p in self.children(self.coordinator) if self.command(p).startswith(b"mpirun")]

    def ranks(self):
        return [r for p in self.mpirun() for r in self.children(p) if b"gptoss-worker" in self.command(r)]


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


class Chaos:
    def __init__(self, server, options, expected):
        self.server, self.options, self.expected = server, options, expected
        self.random = random.Random(options.seed)
        self.processes = Processes(server)
        self.lock = threading.Lock()
        self.done = False
        self.answers = 0
        self.tokens = 0
        self.waiting = collections.defaultdict(list)  # stream → times of kills that it has not got over
        self.alive = set()                            # streams that have got a token and go on
        self.stood_still = []                         # seconds from the last kill to a stream's next token …
        self.since_first = []                         # … and from the first, where several hit one recovery
        self.errors = []

    def token(self, name):
        now = time.monotonic()
        with self.lock:
            self.tokens += 1
            self.alive.add(name)
            if name in self.waiting:
                kills = self.waiting.pop(name)
                self.stood_still.append(now - kills[-1])
                self.since_first.append(now - kills[0])

    def client(self, k):
        try:
            with Client(self.server) as client:
                seeds = list(self.expected)
                r = random.Random(self.options.seed * 1000 + k)
                n = 0
                while not self.done:
                    seed = r.choice(seeds)
                    n += 1
                    name = f"c{k}-{n}-{seed}"
                    got = answer(client, request(seed), name, lambda: self.token(name))
                    with self.lock:
                        self.alive.discard(name)
                        self.waiting.pop(name, None)
                        self.answers += 1
                    assert got == self.expected[seed], (
                        f"{name} differs from the undisturbed answer:\n{got}\n{self.expected[seed]}")
        except BaseException as error:
            self.errors.append(error)
            self.done = True

    def kill(self, n):
        """One process dies or is stopped; any rank, mpirun too, at any moment."""
        how = self.random.choice([signal.SIGKILL, signal.SIGSTOP])
        ranks, mpirun = self.processes.ranks(), self.processes.mpirun()
        victims = mpirun if self.random.random() < 0.08 else ranks
        if not victims:
            return None
        victim = self.random.choice(victims)
        with self.lock:
            now = time.monotonic()
            for name in self.alive:
                self.waiting[name].append(now)
        try:
            os.kill(victim, how)
        except ProcessLookupError:
            return None
        return f"{how.name} to {'mpirun' if victim in mpirun else 'rank'} {victim}"

    def run(self):
        threads = [threading.Thread(target=self.client, args=(k,), daemon=True) for k in range(self.options.clients)]
        for t in threads:
            t.start()
        kills, tries = 0, 0
        while kills < self.options.kills and not self.done and tries < 100 * self.options.kills + 1000:
            tries += 1
            # Half of them in mid-stream, the others while ranks are starting, loading or replaying.
            pause = self.options.pause
            time.sleep(self.random.uniform(0.5 * pause, 1.5 * pause) if self.random.random() < 0.6 or not kills
                       else self.random.uniform(0, 0.5))
            what = self.kill(kills)
            if what:
                kills += 1
                if self.options.verbose:
                    print(f"{time.monotonic() - self.begin:8.2f} s  kill {kills}: {what}", flush=True)
        self.done = True
        for t in threads:
            t.join(180)
            if t.is_alive():
                self.errors.append("a client still waits for its answer")
        return kills


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=1.5, help="between two kills in mid-stream, seconds")
    parser.add_argument("--floor", type=float, default=0, help="fail if a stream stood still for longer, seconds")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: ranks share the GPU")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    begin = time.monotonic()
    with Server(options.ranks, "--context", 1024, "--device", options.device) as server:
        expected = expect(server, list(range(1, options.requests + 1)), options.clients)
        reasons = collections.Counter(pb.Finished.Reason.Name(e[3][0]) for e in expected.values())
        quiet = time.monotonic() - begin
        chaos = Chaos(server, options, expected)
        chaos.begin = time.monotonic()
        kills = chaos.run()
        said = server.said()
        if chaos.errors:
            print(said)
            for error in chaos.errors:
                print("FAILED ", error)
            sys.exit(1)
        status = server.until(lambda s: s.ready and s.requests_running + s.requests_waiting == 0)
        assert status.kv_full_blocks_used == 0 and status.kv_window_blocks_used == 0, status
        losses = [line for line in said.splitlines() if "the ranks are lost" in line]
        took = [float(line.split("serve again, ")[1].split(" s")[0]) for line in said.splitlines()
                if "serve again" in line]
        if options.verbose:
            print(said)
    print(f"{len(expected)} kinds of requests {dict(reasons)}, {quiet:.1f} s undisturbed; {kills} kills, "
          f"{len(losses)} losses of the ranks, {chaos.answers} answers and {chaos.tokens} outputs, all as undisturbed")
    print(f"from the loss to serving again: median {percentile(took, 0.5):.2f} s, worst {percentile(took, 1):.2f} s")
    for what, s in ("last", chaos.stood_still), ("first", chaos.since_first):
        print(f"from the {what} kill to each stream's next token ({len(s)}): median {percentile(s, 0.5):.2f} s, "
              f"90 % {percentile(s, 0.9):.2f} s, worst {percentile(s, 1):.2f} s")
    assert kills == options.kills, kills
    assert not options.floor or percentile(chaos.stood_still, 1) <= options.floor, chaos.stood_still


if __name__ == "__main__":
    main()
