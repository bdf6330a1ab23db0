"""What the gateway's tests share: a coordinator with ranks and a gptoss-gateway, as real processes, and
plain HTTP. Standard library alone."""
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from runner import run_tests  # noqa: F401: the tests' last line

SOURCE = os.environ["GPTOSS_TEST_SOURCE"]
BIN = os.path.join(os.environ["GPTOSS_TEST_BUILD"], "bin")
MODEL = os.path.join(SOURCE, "models", "gptoss-tiny-mxfp4.gguf")
QUESTION = "What is the capital of Greece?"
ANSWER = "The capital of Greece is Athens."
THOUGHT = "The user asks for the capital of Greece. It is Athens."


def tools():
    with open(os.path.join(SOURCE, "models", "get_weather.json")) as f:
        return json.load(f)


def environment(name=""):
    env = {k: v for k, v in os.environ.items() if not k.startswith("GPTOSS_")}
    if name != "gptoss-gateway":
        env["ASAN_OPTIONS"] = "detect_leaks=0:" + env.get("ASAN_OPTIONS", "")  # Open MPI leaks at exit
    return env


class Process:
    """A program of ours, its log in a file, stopped by pid."""

    def __init__(self, place, name, *arguments):
        self.path = os.path.join(place, name + ".log")
        self.log = open(self.path, "ab")
        self.process = subprocess.Popen([os.path.join(BIN, name), *map(str, arguments)], stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log, env=environment(name))
        self.pid = self.process.pid

    def said(self):
        with open(self.path) as f:
            return f.read()

    def stop(self, how=signal.SIGINT):
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()
        return self.process.returncode


class Stack:
    """A coordinator (unless ranks is None) and a gateway in front of it. Use it in a with statement."""

    def __init__(self, ranks=2, coordinator=(), gateway=(), wait=True):
        self.place = tempfile.mkdtemp(prefix="gptoss-gw-")
        self.endpoint = f"ipc://{self.place}/clients"
        self.ranks, self.coordinator_options = ranks, coordinator
        self.coordinator = self.gateway = None
        try:
            if ranks is not None:
                self.start_coordinator()
            options = [str(o).replace("PLACE", self.place) for o in gateway]
            self.gateway = Process(self.place, "gptoss-gateway", "--coordinator", self.endpoint, "--port", 0, *options)
            self.port = self.find_port()
            if wait and ranks is not None:
                self.until_ready()
        except BaseException:
            self.stop()
            raise

    def start_coordinator(self):
        launch = ["--launch", self.ranks] if self.ranks else []
        options = [str(o).replace("PLACE", self.place) for o in self.coordinator_options]
        self.coordinator = Process(self.place, "gptoss-coordinator", "--model", MODEL, "--bind", self.endpoint,
                                   "--workers-bind", f"ipc://{self.place}/workers", *launch, *options)

    def find_port(self):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for line in self.gateway.said().splitlines():
                if "listening at http://" in line:
                    return int(line.split("listening at http://")[1].split(",")[0].rsplit(":", 1)[1])
            if self.gateway.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError("the gateway did not start:\n" + self.gateway.said())

    def until_ready(self, timeout=60):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.get("/health").status == 200:
                return
            time.sleep(0.05)
        raise AssertionError("not ready:\n" + self.gateway.said() + (self.coordinator.said() if self.coordinator else ""))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        said, code = self.stop()
        assert kind or code == 0, f"the gateway ended with {code}: {said[-6000:]}"

    def stop(self):
        code = self.gateway.stop() if self.gateway else None
        said = self.gateway.said() if self.gateway else ""
        if self.coordinator:
            self.coordinator.stop()
        shutil.rmtree(self.place, ignore_errors=True)
        return said, code

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    # ── HTTP ──

    def request(self, method, path, body=None, headers=None, timeout=60):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.connection = connection  # it lives as long as the response
        return response

    def get(self, path, **more):
        response = self.request("GET", path, **more)
        if "event-stream" not in response.headers.get("Content-Type", ""):
            response.text = response.read().decode()
        return response

    def post(self, path, body, **more):
        """(status, object)"""
        response = self.request("POST", path, body, **more)
        return response.status, json.loads(response.read())

    def events(self, path, body, **more):
        """Each event's data as an object, up to [DONE]; comments as strings."""
        response = self.request("POST", path, body, **more)
        assert response.status == 200, (response.status, response.read())
        assert response.headers["Content-Type"] == "text/event-stream"
        try:
            for line in response:
                line = line.decode().rstrip("\n")
                if line.startswith(":"):
                    yield line
                elif line == "data: [DONE]":
                    assert response.read() in (b"", b"\n"), "something follows [DONE]"
                    return
                elif line.startswith("data: "):
                    yield json.loads(line[6:])
        finally:
            response.close()
            response.connection.close()

    def socket(self, timeout=20):
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    # ── the gateway's process ──

    def memory(self):
        """Resident bytes."""
        with open(f"/proc/{self.gateway.pid}/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self):
        used = 0
        for thread in os.listdir(f"/proc/{self.gateway.pid}/task"):
            with open(f"/proc/{self.gateway.pid}/task/{thread}/schedstat") as f:
                used += int(f.read().split()[0])
        return used / 1e9

    def workers(self):
        """Pids of the ranks."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    line = f.read().split(b"\0")
            except OSError:
                continue
            if line[0].endswith(b"gptoss-worker") and any(self.place.encode() in word for word in line):
                found.append(int(pid))
        return found


def chat(content=QUESTION, **more):
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, **more}
