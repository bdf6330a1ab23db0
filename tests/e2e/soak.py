"""Random clients, cancels, deadlines, vanishing and resuming clients, and kills, for a while: memory and
descriptors of the coordinator and of the ranks stay flat, no KV block is leaked, every answer is right.

usage: soak.py [--seconds N] [--clients N] [--ranks N] [--seed S] [--calm SECONDS]
"""
import argparse
import os
import random
import signal
import sys
import threading
import time

from chaos import Processes, expect, request
from harness import Client, Server, pb


def memory(pid):
    """Anonymous and shared resident memory, MiB: without the model's file, whose pages are the cache's."""
    with open(f"/proc/{pid}/status") as f:
        fields = dict(line.split(":", 1) for line in f)
    return sum(int(fields[k].split()[0]) for k in ("RssAnon", "RssShmem")) / 1024


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


class Soak:
    def __init__(self, server, options, expected):
        self.server, self.options, self.expected = server, options, expected
        self.end = time.monotonic() + options.seconds
        self.lock = threading.Lock()
        self.counts = dict.fromkeys(("answered", "cancelled", "deadlines", "vanished", "resumed"), 0)
        self.errors = []
        self.kills = 0

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def one(self, r, name):
        """One request, from its own connection, in one of five ways."""
        seed = r.choice(list(self.expected))
        want = self.expected[seed][0]
        g = pb.Generate()
        g.CopyFrom(request(seed))
        g.request_id = name.encode()
        how = r.choice(["answered"] * 5 + ["cancelled", "deadlines", "vanished", "resumed", "resumed"])
        stop_at = r.randrange(1, 40)
        if how == "deadlines":
            g.deadline_ms = r.randrange(30, 1500)
        if how == "resumed":
            g.linger_ms = 60000
        tokens = []
        client = Client(self.server)
        try:
            client.send(pb.ClientMessage(generate=g))
            while True:
                m = client.receive(120)
                assert m is not None, f"{name}: nothing came for 120 s ({how})"
                kind = m.WhichOneof("body")
                if kind == "output":
                    for t in m.output.tokens:
                        assert t.index == len(tokens), f"{name}: {t.index} after {len(tokens)} ({how})"
                        tokens.append(t.id)
                if kind == "refused":
                    assert how == "cancelled" and m.refused.code == pb.NOT_FOUND, (name, how, m)
                    break  # it had ended
                if kind == "finished":
                    f = m.finished
                    if f.reason == pb.Finished.ERROR:
                        assert how == "deadlines" and f.code == pb.DEADLINE, (name, how, m)
                    elif f.reason != pb.Finished.CANCELLED:
                        assert tokens == want, f"{name} differs from the undisturbed answer"
                    break
                if kind == "output" and len(tokens) >= stop_at:
                    stop_at = 1 << 30
                    if how == "vanished":
                        break
                    if how == "cancelled":
                        client.send(pb.ClientMessage(cancel=pb.Cancel(request_id=g.request_id)))
                    if how == "resumed":
                        client.close()
                        time.sleep(r.uniform(0, 0.3))
                        client = Client(self.server)
                        client.send(pb.ClientMessage(resume=pb.Resume(request_id=g.request_id,
                                                                      from_index=len(tokens))))
            assert tokens == want[:len(tokens)], f"{name} differs from the undisturbed answer ({how})"
            self.count(how)
        finally:
            client.close()

    def client(self, k):
        r = random.Random(self.options.seed * 1000 + k)
        n = 0
        try:
            while time.monotonic() < self.end and not self.errors:
                n += 1
                self.one(r, f"s{k}-{n}")
        except BaseException as error:
            self.errors.append(error)

    def run(self):
        """Returns samples (seconds, coordinator's MiB, {rank: MiB} of ranks that serve)."""
        threads = [threading.Thread(target=self.client, args=(k,), daemon=True) for k in range(self.options.clients)]
        for t in threads:
            t.start()
        r = random.Random(self.options.seed)
        processes = Processes(self.server)
        samples, next_kill = [], time.monotonic() + self.options.calm
        begin = time.monotonic()
        served = {}  # since when a rank is there and the pipeline is ready: before, it loads
        while time.monotonic() < self.end and not self.errors:
            time.sleep(0.5)
            ranks = {}
            for rank in processes.ranks():
                try:
                    ranks[rank] = memory(rank)
                except (OSError, KeyError):
                    pass
            status = self.server.status()
            ready = status is not None and status.ready
            served = {rank: served.get(rank, time.monotonic()) for rank in ranks if ready}
            warm = {rank: m for rank, m in ranks.items()
                    if rank in served and time.monotonic() - served[rank] > WARM_SECONDS}
            samples.append((time.monotonic() - begin, memory(self.server.process.pid), warm))
            if time.monotonic() > next_kill and ranks:
                try:
                    os.kill(r.choice(list(ranks)), r.choice([signal.SIGKILL, signal.SIGSTOP]))
                    self.kills += 1
                except ProcessLookupError:
                    pass
                next_kill = time.monotonic() + r.uniform(0.5, 1.5) * self.options.calm
        for t in threads:
            t.join(180)
            if t.is_alive():
                self.errors.append("a client still waits for its answer")
        return samples


WARM_SECONDS = 2


def growth(values):
    """From the largest of the second quarter to the largest of the last one: what warms up has its time."""
    n = len(values)
    return max(values[-max(1, n // 4):]) - max(values[n // 4:max(n // 2, n // 4 + 1)]) if n >= 8 else 0.0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calm", type=float, default=8, help="seconds between two kills, about")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: ranks share the GPU")
    options = parser.parse_args()
    # A small cache: its pages are all touched soon, and memory is flat from then on.
    with Server(options.ranks, "--context", 512, "--sequences", 6, "--device", options.device) as server:
        expected = expect(server, list(range(1, 25)), 8)
        server.until(lambda s: s.requests_running + s.requests_waiting == 0)
        time.sleep(0.5)
        pid = server.process.pid
        fds = descriptors(pid)
        soak = Soak(server, options, expected)
        samples = soak.run()
        if soak.errors:
            print(server.said())
            for error in soak.errors:
                print("FAILED ", error)
            sys.exit(1)
        status = server.until(lambda s: s.ready and s.requests_running + s.requests_waiting == 0)
        time.sleep(1)
        more = descriptors(pid) - fds
        coordinator = growth([m for _, m, _ in samples])
        by_rank = {}
        for _, _, ranks in samples:
            for rank, m in ranks.items():
                by_rank.setdefault(rank, []).append(m)
        workers = max([growth(values) for values in by_rank.values()] or [0.0])
        longest = max([len(values) for values in by_rank.values()] or [0]) / 2
        print(f"{options.seconds:.0f} s, {options.clients} clients, {soak.kills} kills: {soak.counts}")
        print(f"coordinator: {samples[0][1]:.1f} to {samples[-1][1]:.1f} MiB, grown by {coordinator:.1f} MiB in its second "
              f"half; {fds} descriptors, {more} more in the end; {len(by_rank)} ranks (of at most "
              f"{longest:.0f} s) grew by {workers:.1f} MiB at most")
        assert status.kv_full_blocks_used == 0 and status.kv_window_blocks_used == 0, status
        assert more <= 2, more
        assert coordinator < 4, coordinator
        assert workers < 8, workers
        assert all(soak.counts.values()) or options.seconds < 20, soak.counts


if __name__ == "__main__":
    main()
