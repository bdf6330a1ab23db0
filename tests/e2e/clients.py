"""Clients: they reconnect by themselves; one that does not read holds back nobody; too many are refused."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import zmq
from harness import Client, Server, environment, pb, program, run_tests

ASK = ["--raw", "--json", "--ignore-eos", "--seed", "7", "--temperature", "1", "The house of"]


class Restarted(Server):
    """On a tcp port that stays the same."""

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log,
                                        stdin=subprocess.DEVNULL, env=environment())


def ask(server, *options):
    return subprocess.Popen([program("gptoss-client"), "--connect", server.endpoint, *map(str, options), *ASK],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                            env=environment())


def answer(process, code=0):
    out, said = process.communicate(timeout=90)
    assert process.returncode == code, (process.returncode, said)
    return json.loads(out) if out else {}, said.decode()


def test_the_client_reconnects_and_goes_on():
    with Restarted(1, "--journal", "PLACE/journal") as server:
        want, _ = answer(ask(server, "--max-tokens", 400))
        server.until(lambda s: s.requests_running == 0)
        client = ask(server, "--max-tokens", 400)
        for _ in range(2):
            server.until(lambda s: s.requests_running == 1)
            time.sleep(0.1)
            server.kill()
            time.sleep(0.3)
            server.start()
            server.until(lambda s: s.ready)
        got, _ = answer(client)
        assert got["tokens"] == want["tokens"] and got["text"] == want["text"], (got, want)


def test_a_question_that_was_not_answered_is_asked_again():
    with Restarted(1) as server:
        want, _ = answer(ask(server, "--max-tokens", 20))
        server.process.send_signal(signal.SIGSTOP)  # connections are made by the kernel, and by no one answered
        client = ask(server, "--max-tokens", 20, "--timeout", 30)
        time.sleep(0.5)
        server.kill()
        server.start()
        got, _ = answer(client)
        assert got["tokens"] == want["tokens"], (got, want)


def test_without_a_journal_it_says_what_was_lost():
    with Restarted(1) as server:
        client = ask(server, "--max-tokens", 5000)
        server.until(lambda s: s.sampled_tokens > 20)
        server.kill()
        server.start()
        _, said = answer(client, 1)
        assert "no request of this id" in said, said
        server.until(lambda s: s.ready)
        client = ask(server, "--max-tokens", 5000, "--reconnect", 1)
        server.until(lambda s: s.sampled_tokens > 20)
        server.kill()
        _, said = answer(client, 5)
        assert "connection" in said and "broke" in said, said
        server.start()


def test_a_deadline_and_a_cancel_end_a_request():
    with Server(1) as server:
        got, said = answer(ask(server, "--max-tokens", 8000, "--deadline", 0.5), 1)
        assert got["error"]["code"] == "deadline" and got["tokens"], got
        client = ask(server, "--max-tokens", 8000)
        server.until(lambda s: s.requests_running == 1)
        client.send_signal(signal.SIGINT)
        got, said = answer(client, 130)
        assert got["finish"] == "cancelled", (got, said)
        server.until(lambda s: s.requests_running == 0)


def test_a_client_that_does_not_read_holds_back_nobody():
    with Server(1, "--client-queue", 50) as server:
        slow = Client.__new__(Client)
        slow.socket = zmq.Context.instance().socket(zmq.DEALER)
        slow.socket.linger = 0
        slow.socket.rcvhwm = 1
        slow.socket.setsockopt(zmq.RCVBUF, 1024)
        slow.socket.connect(server.endpoint)
        ids = [slow.generate([1 + i, 2, 3], 8000) for i in range(3)]
        lingering = pb.Generate(request_id=b"slow", max_tokens=600, ignore_eos=True, linger_ms=60000, top_logits=32)
        lingering.ids.ids.extend([5, 6, 7])
        lingering.sampling.temperature = 0
        slow.send(pb.ClientMessage(generate=lingering))
        server.until(lambda s: s.requests_running == 4)
        begin = time.monotonic()
        got, _ = answer(ask(server, "--max-tokens", 30))
        assert len(got["tokens"]) == 30
        print(f"        30 tokens in {time.monotonic() - begin:.2f} s beside a client that does not read")
        # Its own requests end, but for the one that lingers: that is there for whoever asks.
        server.until(lambda s: s.requests_running <= 1, 60)
        assert "does not read" in server.said()
        server.until(lambda s: s.requests_running == 0, 60)
        with Client(server) as other:
            other.send(pb.ClientMessage(resume=pb.Resume(request_id=b"slow")))
            tokens, _, finished = other.answer()
            assert len(tokens) == 600 and finished.reason == pb.Finished.LENGTH
        assert ids
        slow.close()


def test_too_many_are_refused_and_told_when_to_come_back():
    with Server(1, "--sequences", 1, "--max-queue", 3) as server:
        with Client(server) as client:
            for i in range(2):  # how long one takes is known then
                client.generate([1, 2, 3 + i], 20)
                client.answer()
            for i in range(8):
                client.generate([1, 2, 3 + i], 200)
            waits, finished = [], 0
            while finished + len(waits) < 8:
                message = client.receive()
                kind = message.WhichOneof("body")
                if kind == "refused":
                    assert message.refused.code == pb.BUSY and "wait" in message.refused.text, message
                    waits.append(message.refused.retry_ms)
                finished += kind == "finished"
            assert len(waits) >= 4 and waits == sorted(waits) and 100 <= waits[0] <= waits[-1] <= 60000, waits
            print(f"        refused {len(waits)} of 8, to be tried again after {waits} ms")


def test_draining_finishes_what_was_accepted():
    with tempfile.TemporaryDirectory(prefix="gptoss-") as place, Server(2) as server:
        with Client(server) as client:
            client.generate([1, 2, 3], 300)
            while client.receive().WhichOneof("body") != "output":
                pass
            server.process.send_signal(signal.SIGTERM)
            with Client(server) as late:
                code = None
                while code is None:
                    late.generate([1, 2, 3], 3)
                    message = late.receive(5)
                    code = message.refused.code if message.WhichOneof("body") == "refused" else None
                assert code == pb.SHUTTING_DOWN, code
            tokens = 0
            while True:
                message = client.receive()
                tokens += len(message.output.tokens)
                if message.WhichOneof("body") == "finished":
                    assert message.finished.reason == pb.Finished.LENGTH and message.finished.tokens == 300
                    break
        assert server.process.wait(20) == 0, server.said()
        assert os.path.isdir(place)
    with Server(1) as server:
        with Client(server) as client:
            client.generate([1, 2, 3], 8000)
            while client.receive().WhichOneof("body") != "output":
                pass
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert server.process.poll() is None
            begin = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(10) == 0, server.said()
            print(f"        stopped {time.monotonic() - begin:.2f} s after the second signal")


run_tests(sys.modules[__name__])
