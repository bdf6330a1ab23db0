"""What the end-to-end tests share: real processes on ipc:// endpoints, and a client of the protocol.

A Server starts gptoss-coordinator --launch N and waits until its status says that it is ready; it
stops what it started, by pid. Nothing here sleeps for readiness: it asks.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from runner import run_tests  # noqa: F401: the tests' last line

SOURCE = os.environ["GPTOSS_TEST_SOURCE"]
BUILD = os.environ["GPTOSS_TEST_BUILD"]
BIN = os.path.join(BUILD, "bin")
MODEL = os.path.join(SOURCE, "models", "gptoss-tiny-mxfp4.gguf")

try:
    import zmq
    import google.protobuf  # noqa: F401
except ImportError as missing:
    print(f"skipped: {missing} (apt install python3-zmq python3-protobuf)")
    sys.exit(77)
_carried = os.path.join(BUILD, "python")  # on hosts without protoc
if not os.path.exists(f"{_carried}/gptoss_pb2.py") and not shutil.which("protoc"):
    print(f"skipped: no protoc (apt install protobuf-compiler), and no {_carried}/gptoss_pb2.py")
    sys.exit(77)

_generated = tempfile.mkdtemp(prefix="gptoss-e2e-")
if shutil.which("protoc"):
    subprocess.run(["protoc", f"--proto_path={SOURCE}/proto", f"--python_out={_generated}", "gptoss.proto"],
                   check=True)
sys.path[:0] = [_generated, _carried]
import gptoss_pb2 as pb  # noqa: E402
shutil.rmtree(_generated)


def program(name):
    return os.path.join(BIN, name)


def environment():
    env = {k: v for k, v in os.environ.items() if not k.startswith("GPTOSS_")}
    env["ASAN_OPTIONS"] = "detect_leaks=0:" + env.get("ASAN_OPTIONS", "")  # Open MPI leaks at exit
    return env


class Server:
    """A coordinator with `ranks` ranks that it launched. Use it in a with statement."""

    def __init__(self, ranks, *options, model=MODEL, wait=60, launch=True):
        self.place = tempfile.mkdtemp(prefix="gptoss-")
        self.endpoint = f"ipc://{self.place}/clients"
        self.workers = f"ipc://{self.place}/workers"
        self.log = open(os.path.join(self.place, "log"), "w+")
        launched = ["--launch", str(ranks)] if launch else []
        options = [str(o).replace("PLACE", self.place) for o in options]
        self.command = [program("gptoss-coordinator"), "--model", model, "--bind", self.endpoint,
                        "--workers-bind", self.workers, *launched, *options]
        self.process = subprocess.Popen(
            self.command, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, env=environment())
        self.wait = wait if launch else 0

    def __enter__(self):
        try:
            if self.wait:
                self.until(lambda s: s.ready, self.wait)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def said(self):
        self.log.flush()
        with open(self.log.name) as log:
            return log.read()

    def status(self, timeout=5):
        with Client(self) as client:
            client.send(pb.ClientMessage(status=pb.StatusRequest()))
            message = client.receive(timeout)
            return message.status if message else None

    def until(self, condition, timeout=30):
        """Waits until the status meets a condition; fails with what the coordinator said."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"the coordinator ended with {self.process.returncode}:\n{self.said()}")
            status = self.status(1)
            if status and condition(status):
                return status
            time.sleep(0.05)
        raise AssertionError(f"it did not come to be in {timeout} s:\n{self.said()}")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()
        shutil.rmtree(self.place, ignore_errors=True)

    def ask(self, *arguments, check=True, timeout=120):
        """gptoss-client … --json against this server, as an object."""
        done = subprocess.run([program("gptoss-client"), "--connect", self.endpoint, "--json", *map(str, arguments)],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                              timeout=timeout, env=environment())
        if check and done.returncode:
            raise AssertionError(f"gptoss-client ended with {done.returncode}: {done.stderr.decode()}\n{self.said()}")
        return json.loads(done.stdout) if check else done


_context = zmq.Context()
_serial = 0


class Client:
    """One connection that speaks proto/gptoss.proto."""

    def __init__(self, server):
        self.socket = _context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(server if isinstance(server, str) else server.endpoint)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, message):
        self.socket.send(message.SerializeToString())

    def receive(self, timeout=60):
        if not self.socket.poll(timeout * 1000):
            return None
        message = pb.ServerMessage()
        message.ParseFromString(self.socket.recv())
        return message

    def generate(self, ids, max_tokens, seed=0, temperature=0.0, top=0, ignore_eos=True):
        """Sends a request; returns its id."""
        global _serial
        _serial += 1
        g = pb.Generate(request_id=f"e2e-{os.getpid()}-{_serial}".encode(), max_tokens=max_tokens,
                        ignore_eos=ignore_eos, top_logits=top)
        g.ids.ids.extend(ids)
        g.sampling.temperature = temperature
        g.sampling.seed = seed
        self.send(pb.ClientMessage(generate=g))
        return g.request_id

    def answer(self, timeout=120):
        """Reads one request to its end: (tokens, tops, Finished). tops: for each token (id, logit)s."""
        tokens, tops = [], []
        while True:
            m = self.receive(timeout)
            assert m is not None, "no answer came in time"
            kind = m.WhichOneof("body")
            if kind == "output":
                for t in m.output.tokens:
                    assert t.index == len(tokens), (t.index, len(tokens))
                    tokens.append(t.id)
                    tops.append([(x.id, x.logit) for x in t.top])
            elif kind == "finished":
                return tokens, tops, m.finished
            elif kind == "refused":
                raise AssertionError(f"refused: {m.refused.text}")


def golden():
    with open(os.path.join(SOURCE, "models", "gptoss-tiny-mxfp4.golden.json")) as f:
        return json.load(f)
