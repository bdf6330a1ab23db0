"""Strangers get nothing: keys, the allow list, and what is said to whom."""
import os
import shutil
import subprocess
import sys
import tempfile

import zmq
from harness import MODEL, Client, Server, environment, pb, program, run_tests

PROMPT = ["--prompt-ids", "1,2,3", "--max-tokens", "4", "--ignore-eos", "--temperature", "0"]


def run(*arguments, timeout=60):
    done = subprocess.run(list(map(str, arguments)), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL, timeout=timeout, env=environment())
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def keygen(folder, *names):
    code, out, said = run(program("gptoss-coordinator"), "keygen", folder, *names)
    assert code == 0, said
    return out


class Keys:
    def __enter__(self):
        self.place = tempfile.mkdtemp(prefix="gptoss-")
        self.folder = os.path.join(self.place, "keys")
        keygen(self.folder)
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.place)

    def __call__(self, name):
        return os.path.join(self.folder, name)


class Locked(Server):
    """A server with keys; its harness comes in with the client's."""

    def __init__(self, keys, *arguments, **more):
        self.keys = keys
        super().__init__(*arguments, "--keys", keys.folder, **more)

    def status(self, timeout=5):
        with Admitted(self) as client:
            client.send(pb.ClientMessage(status=pb.StatusRequest()))
            message = client.receive(timeout)
            return message.status if message else None


class Admitted(Client):
    def __init__(self, server, key="client.key"):
        lines = dict(line.split()[:2] for line in open(server.keys(key)) if not line.startswith("#"))
        super().__init__("inproc://nobody")
        self.socket.disconnect("inproc://nobody")
        self.socket.curve_secretkey = lines["secret"].encode()
        self.socket.curve_publickey = lines["public"].encode()
        self.socket.curve_serverkey = lines["server"].encode()
        self.socket.connect(server.endpoint)


def test_keygen_makes_files_that_are_nobody_elses():
    with Keys() as keys:
        for name in ["coordinator.key", "worker.key", "client.key", "allow"]:
            assert os.stat(keys(name)).st_mode & 0o777 == 0o600, name
        assert os.stat(keys.folder).st_mode & 0o777 == 0o700
        before = open(keys("client.key")).read()
        code, _, said = run(program("gptoss-coordinator"), "keygen", keys.folder, "client")
        assert code == 1 and "not overwritten" in said and open(keys("client.key")).read() == before, said
        out = keygen(keys.folder, "alice", "worker-2")
        assert "--key" in out and "alice" in out, out
        roles = [line.split()[0::2] for line in open(keys("allow")) if not line.startswith("#")]
        assert roles == [["worker", "worker"], ["client", "client"], ["client", "alice"], ["worker", "worker-2"]], roles
        os.chmod(keys("client.key"), 0o644)
        code, _, said = run(program("gptoss-client"), "--key", keys("client.key"), "x")
        assert code == 2 and "chmod 600" in said, said
        code, _, said = run(program("gptoss-client"), "--key", keys("coordinator.key"), "x")
        assert code == 2 and "--server-key" in said, said
        code, _, said = run(program("gptoss-coordinator"), "keygen", keys.folder, "../mallory")
        assert code == 1 and "no name" in said, said


def test_other_addresses_need_keys():
    with Keys() as keys:
        ask = [program("gptoss-coordinator"), "--model", MODEL, "--bind", "tcp://0.0.0.0:0"]
        code, _, said = run(*ask)
        assert code == 2 and "keygen" in said and "--insecure" in said, said
        code, _, said = run(*ask, "--keys", keys.place)
        assert code == 2 and "keygen" in said, said
        code, _, said = run(*ask, "--keys", keys.folder, "--insecure")
        assert code == 2 and "--insecure" in said, said
        with open(keys("allow"), "a") as allow:
            allow.write("friend of mine\n")
        code, _, said = run(*ask, "--keys", keys.folder)
        assert code == 2 and "line 6" in said, said


def test_who_is_admitted_and_who_is_not():
    with Keys() as keys, Locked(keys, 2) as server:
        client = [program("gptoss-client"), "--connect", server.endpoint, *PROMPT]
        code, out, said = run(*client, "--key", keys("client.key"), "--json")
        assert code == 0 and '"length"' in out, said
        code, out, said = run(*client, "--key", keys("client.key"), "--server-key", keys("coordinator.pub"), "--json")
        assert code == 0, said

        code, out, said = run(program("gptoss-bench"), "serve", "--connect", server.endpoint, "--key", keys("client.key"),
                              "--vocabulary", 500, "-N", 2, "-c", 1, "-p", 5, "-n", 3, "-o", "json")
        assert code == 0 and '"completed": 2' in out, (code, out, said)
        ask = os.path.join(os.environ["GPTOSS_TEST_SOURCE"], "scripts", "ask.py")
        code, out, said = run(sys.executable, ask, "--connect", server.endpoint, "--key", keys("client.key"), "--raw", "In the",
                              "--max-tokens", 4)
        assert code == 0 and out.strip(), (code, out, said)

        # Without a key: nothing is heard, and the client says why.
        code, out, said = run(*client, timeout=20)
        assert code == 5 and not out and "--key" in said, (code, out, said)
        with Client(server) as stranger:
            stranger.send(pb.ClientMessage(status=pb.StatusRequest()))
            assert stranger.receive(1) is None

        # A key that is good, but not here; then it is admitted while the coordinator runs.
        other = os.path.join(keys.place, "other")
        keygen(other, "alice")
        lines = open(os.path.join(other, "alice.key")).read().split("\n")
        mine = [line for line in open(keys("client.key")).read().split("\n") if line.startswith("server")]
        with open(keys("alice.key"), "w") as f:
            f.write("\n".join([line for line in lines if not line.startswith("server")] + mine) + "\n")
        os.chmod(keys("alice.key"), 0o600)
        code, out, said = run(*client, "--key", keys("alice.key"), timeout=20)
        assert code == 5 and not out and "does not admit" in said, (code, said)
        assert "refused a client" in server.said(), server.said()
        with open(os.path.join(other, "allow")) as theirs, open(keys("allow"), "a") as allow:
            allow.write([line for line in theirs if line.endswith("alice\n")][0])
        code, out, said = run(*client, "--key", keys("alice.key"), "--json")
        assert code == 0 and '"length"' in out, said

        # A coordinator that is another one is not trusted.
        code, out, said = run(*client, "--key", keys("client.key"), "--server-key", os.path.join(other, "coordinator.pub"),
                              "--timeout", 2, timeout=20)
        assert code == 5 and not out, (code, said)
        # A client's key is no rank's.
        code, _, said = run(program("gptoss-worker"), "--coordinator", server.workers, "--key", keys("client.key"),
                            "--connect-timeout", 3, timeout=30)
        assert code == 5 and "does not admit" in said, (code, said)
        with Admitted(server) as admitted:
            admitted.socket.send(b"\0" * (8 << 20))  # a frame beyond the bound ends the connection
            admitted.receive(1)
        assert server.status(10).ready


assert zmq
run_tests(sys.modules[__name__])
