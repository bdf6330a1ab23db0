"""The coordinator may die: with a journal every accepted request ends with its whole answer.

GPTOSS_TEST_KILLS: how often it is killed (default 3)."""
import os
import random
import signal
import subprocess
import sys
import time

from harness import Client, Server, environment, pb, program, run_tests

KILLS = int(os.environ.get("GPTOSS_TEST_KILLS", "3"))
TOKENS = 200


class Mortal(Server):
    """A server that can be killed, and started again at the same place."""

    def __init__(self, ranks, *options):
        super().__init__(ranks, "--journal", "PLACE/journal", *options)

    def start(self, wait=True):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log,
                                        stdin=subprocess.DEVNULL, env=environment())
        if wait:
            self.until(lambda s: s.ready, 60)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Asker:
    """Asks, and reads on over whatever happens to the coordinator."""

    def __init__(self, server, number):
        self.client = Client(server)
        ids = [random.Random(number).randrange(1, 400) for _ in range(5 + 7 * (number % 5))]
        self.id = self.client.generate(ids, TOKENS, seed=number, temperature=1.0, top=2)
        self.tokens, self.text, self.tops, self.pieces = [], b"", [], {}
        self.accepted = self.finished = False

    def take(self, message):
        kind = message.WhichOneof("body")
        assert kind != "refused", message.refused.text
        self.accepted |= kind in ("accepted", "output", "finished")
        if kind == "output":
            for token in message.output.tokens:
                if token.index < len(self.tokens):
                    continue
                assert token.index == len(self.tokens), (token.index, len(self.tokens))
                self.tokens.append(token.id)
                self.tops.append([(t.id, t.logit) for t in token.top] + [token.log_sum_exp])
                self.text += b"".join(p.text for p in token.pieces)
        if kind == "finished":
            assert message.finished.reason == pb.Finished.LENGTH, message.finished
            self.text += b"".join(p.text for p in message.finished.pieces)
            self.finished = True

    def resume(self):
        if not self.finished:
            self.client.send(pb.ClientMessage(resume=pb.Resume(request_id=self.id, from_index=len(self.tokens))))


def read(askers, until, timeout=60):
    end = time.monotonic() + timeout
    while not until():
        assert time.monotonic() < end, [(len(a.tokens), a.finished) for a in askers]
        for asker in askers:
            message = asker.client.receive(0.005)
            while message is not None:
                asker.take(message)
                message = asker.client.receive(0)


def test_killed_in_mid_stream_it_goes_on():
    with Mortal(2) as server:
        undisturbed = [Asker(server, i) for i in range(6)]
        read(undisturbed, lambda: all(a.finished for a in undisturbed))
        killed, waited = 0, 0.0
        while killed < KILLS:
            askers = [Asker(server, i) for i in range(6)]
            read(askers, lambda: all(a.accepted for a in askers))
            while killed < KILLS and not all(a.finished for a in askers):
                target = sum(len(a.tokens) for a in askers) + random.randrange(0, 300)
                read(askers, lambda: sum(len(a.tokens) for a in askers) >= target or
                     all(a.finished for a in askers))
                server.kill()
                killed += 1
                begin = time.monotonic()
                server.start()
                waited += time.monotonic() - begin
                for asker in askers:
                    asker.resume()
            read(askers, lambda: all(a.finished for a in askers))
            for a, b in zip(askers, undisturbed):
                assert a.tokens == b.tokens and a.text == b.text and a.tops == b.tops, (a.tokens, b.tokens)
                a.client.close()
        print(f"        {killed} kills; ready again after {waited / killed:.2f} s")
        assert server.status().requests_running == 0


def test_what_was_cancelled_stays_so_and_what_is_finished_can_be_had():
    with Mortal(1) as server:
        first, second = Asker(server, 1), Asker(server, 2)
        read([first, second], lambda: len(first.tokens) > 3 and len(second.tokens) > 3)
        first.client.send(pb.ClientMessage(cancel=pb.Cancel(request_id=first.id)))
        while first.client.receive().WhichOneof("body") != "finished":
            pass
        read([second], lambda: second.finished)
        time.sleep(0.3)
        server.kill()
        with open(f"{server.place}/journal", "ab") as journal:
            journal.write(b"\x40\0\0\0half a record")
        server.start()
        assert "no whole record" in server.said(), server.said()
        again = Asker.__new__(Asker)
        again.__dict__.update(second.__dict__, tokens=[], text=b"", tops=[], finished=False)
        again.resume()
        read([again], lambda: again.finished)
        assert again.tokens == second.tokens and again.text == second.text and again.tops == second.tops
        first.client.send(pb.ClientMessage(resume=pb.Resume(request_id=first.id)))
        message = first.client.receive()
        assert message.WhichOneof("body") == "refused" and message.refused.code == pb.NOT_FOUND, message


def test_files_that_are_no_journal_are_left_alone():
    with Mortal(1) as server:
        done = subprocess.run([*server.command, "--bind", f"ipc://{server.place}/other"], capture_output=True,
                              env=environment(), timeout=30)
        assert done.returncode == 1 and b"used by another coordinator" in done.stderr, done.stderr
        server.kill()
        path = f"{server.place}/notes"
        with open(path, "w") as f:
            f.write("my notes, which are longer than a header\n")
        done = subprocess.run([*server.command, "--journal", path], capture_output=True, env=environment(), timeout=30)
        assert done.returncode == 1 and b"no journal" in done.stderr, done.stderr
        assert open(path).read().startswith("my notes")
        other = f"{server.place}/other.gguf"
        subprocess.run([program("gptoss-gguf"), "synth", other, "--like", "tiny", "--layers", "2"], check=True,
                       stdout=subprocess.DEVNULL, env=environment())
        done = subprocess.run([*server.command, "--model", other], capture_output=True, env=environment(), timeout=30)
        assert done.returncode == 1 and b"another model" in done.stderr, done.stderr
        server.start()


run_tests(sys.modules[__name__])
