"""Ranks that die, are stopped or hang: how soon it is noticed, what is said, and what is left behind."""
import ctypes
import datetime
import glob
import os
import re
import signal
import subprocess
import sys
import time

from chaos import Processes
from harness import Client, Server, environment, golden, program, run_tests

GENESIS = next(c for c in golden() if c["name"] == "genesis")


def mpirun(server, n):
    return subprocess.Popen(["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", str(n),
                             program("gptoss-worker"), "--coordinator", server.workers],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                            env=environment())


def logged(server, words, timeout=10):
    """When the coordinator logged a line with these words, on the clock of time.time(); and the line."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        for line in server.said().splitlines():
            if words in line:
                at = datetime.datetime.strptime(line.split()[0], "%Y-%m-%dT%H:%M:%S.%fZ")
                return at.replace(tzinfo=datetime.timezone.utc).timestamp(), line
        time.sleep(0.01)
    raise AssertionError(f"nobody said \"{words}\":\n{server.said()}")


class Answer:
    """A long greedy answer that is read piece by piece."""

    def __init__(self, server):
        self.client, self.tokens, self.waited = Client(server), [], False
        # The golden answer, then on: whatever it is, it must come without a gap.
        self.client.generate(GENESIS["prompt"], 500)

    def read(self, n):
        """Until there are n tokens."""
        while len(self.tokens) < n:
            m = self.client.receive(30)
            assert m is not None, "no token came"
            kind = m.WhichOneof("body")
            if kind == "progress":
                self.waited |= not m.progress.ready
            if kind == "output":
                for t in m.output.tokens:
                    assert t.index == len(self.tokens), (t.index, len(self.tokens))
                    self.tokens.append(t.id)
            assert kind in ("accepted", "progress", "output"), m
        golden = GENESIS["greedy"]
        assert self.tokens[:len(golden)] == golden[:len(self.tokens)]


def test_ranks_of_a_person_4_then_3_then_4():
    with Server(0, launch=False) as server:
        ranks = mpirun(server, 4)
        server.until(lambda s: s.ready)
        answer = Answer(server)
        answer.read(10)
        victim = Processes.children(ranks.pid)[2]
        stopped = time.time()
        os.kill(victim, signal.SIGSTOP)
        at, line = logged(server, "the ranks are lost: ")
        print(f"        a stopped rank was noticed after {at - stopped:.2f} s")
        assert at - stopped < 2, line  # below a second, unless the machine is busy
        assert re.search(rf"rank 2 on \S+ \(pid {victim}\) has been silent for .*it was at step \d+, "
                         r"its last sign of life is \d+ ms old", line), line
        logged(server, f"waiting for ranks: mpirun -np N gptoss-worker --coordinator {server.workers}")
        assert ranks.wait(20) != 0  # and whoever started it knows
        ranks = mpirun(server, 3)
        seen = len(answer.tokens)
        answer.read(seen + 100)
        assert answer.waited  # the client was told that there are no ranks
        assert len(server.status().stages) == 3
        victim = Processes.children(ranks.pid)[0]
        before = server.said().count("the ranks are lost")
        killed = time.time()
        os.kill(victim, signal.SIGKILL)
        while server.said().count("the ranks are lost") == before:
            assert time.time() - killed < 1.1, server.said()
            time.sleep(0.01)
        print(f"        a killed rank was noticed after {time.time() - killed:.2f} s")
        ranks.wait(20)
        ranks = mpirun(server, 4)
        answer.read(500)
        answer.client.close()
        server.stop()
        assert ranks.wait(20) == 0


PTRACE_ATTACH, PTRACE_DETACH = 16, 17


def test_a_step_that_hangs_is_noticed_and_named():
    """The thread that runs steps is held, the others go on: the process is alive, and its step is stuck."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Server(3) as server:
        answer = Answer(server)
        answer.read(100)
        rank = Processes(server).ranks()[1]
        held = time.time()
        if libc.ptrace(PTRACE_ATTACH, rank, 0, 0):
            print(f"        left out: ptrace is not allowed here ({os.strerror(ctypes.get_errno())})")
            return
        at, line = logged(server, "the ranks are lost: ")
        print(f"        a stuck step was noticed after {at - held:.2f} s")
        assert re.search(rf"rank 1 on \S+ \(pid {rank}\) has not finished step \d+, which is under way", line), line
        assert at - held < 3, line  # a second beyond the prediction; the machine may be busy
        answer.read(500)


def test_nothing_is_left_behind():
    def left():
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if server.workers.encode() in Processes.command(int(pid)) and int(pid) != server.process.pid:
                found.append(int(pid))
        return found

    def folders():
        return glob.glob(f"/tmp/gptoss-mpi-{server.process.pid}-*") + \
            glob.glob(f"/dev/shm/gptoss-mpi-{server.process.pid}-*")

    with Server(3) as server:
        answer = Answer(server)
        answer.read(20)
        processes = Processes(server)
        first = set(processes.ranks()) | set(processes.mpirun())
        assert len(first) == 4 and len(folders()) == 2, (first, folders())
        os.kill(processes.mpirun()[0], signal.SIGKILL)  # its ranks would stay
        answer.read(200)
        assert not first & set(left()), (first, left())
        for rank in processes.ranks():
            os.kill(rank, signal.SIGSTOP)
        answer.read(300)
        assert len(left()) == 4, left()
        assert len(folders()) == 2, folders()
        server.process.send_signal(signal.SIGTERM)  # drains: the answer is finished first
        answer.read(500)
        assert server.process.wait(30) == 0
        assert not left() and not folders(), (left(), folders())


if __name__ == "__main__":
    run_tests(sys.modules[__name__])
