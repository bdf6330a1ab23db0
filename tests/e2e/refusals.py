"""Bad input: each gives a clear error, and nothing is lost or stuck."""
import os
import shutil
import subprocess
import sys
import tempfile

from harness import MODEL, Client, Server, environment, pb, program, run_tests


def run(*arguments, timeout=60, stdin=subprocess.DEVNULL):
    done = subprocess.run(list(map(str, arguments)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=stdin,
                          timeout=timeout, env=environment())
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def refused(*arguments, code, words, **more):
    got, _, said = run(*arguments, **more)
    assert got == code, f"exit code {got}, want {code}: {said}"
    for word in [words] if isinstance(words, str) else words:
        assert word in said, f"“{word}” is not in: {said}"


class Folder:
    def __enter__(self):
        self.place = tempfile.mkdtemp(prefix="gptoss-")
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.place)

    def file(self, name, data):
        path = os.path.join(self.place, name)
        with open(path, "wb") as f:
            f.write(data)
        return path


def plan(path, words):
    refused(program("gptoss-coordinator"), "--model", path, "--plan-only", code=3, words=words)


def patched(data, old, new, nth=0):
    assert len(old) == len(new) and old in data
    at = -1
    for _ in range(nth + 1):
        at = data.index(old, at + 1)
    return data[:at] + new + data[at + len(old):]


def test_model_files_that_are_none():
    with open(MODEL, "rb") as f:
        data = f.read()
    with Folder() as folder:
        plan(folder.file("empty", b""), "")
        plan(folder.file("magic", b"GGML" + data[4:]), "magic")
        plan(folder.place, "")
        plan(os.path.join(folder.place, "absent"), "no such file")
        plan(folder.file("architecture", patched(data, b"gpt-oss", b"gpt-osz")), ["gpt-osz", "gpt-oss"])
        plan(folder.file("missing", patched(data, b"output_norm.weight", b"output_morn.weight")), "output_norm.weight")
        name = b"blk.3.attn_sinks.weight"
        at = data.index(name) + len(name)
        shape = data[:at + 4] + (9).to_bytes(8, "little") + data[at + 12:]
        plan(folder.file("shape", shape), "blk.3.attn_sinks.weight")
        typed = data[:at + 12] + (20).to_bytes(4, "little") + data[at + 16:]
        plan(folder.file("type", typed), "IQ4_NL")
        header = data.index(b"blk.23.post_attention_norm")
        for cut in list(range(0, 64)) + [1000, 50000, header, header + 10, len(data) - 1]:
            plan(folder.file("cut", data[:cut]), "")


def test_wrong_options():
    coordinator, client = program("gptoss-coordinator"), program("gptoss-client")
    refused(coordinator, code=2, words="--model")
    refused(coordinator, "--modle", MODEL, code=2, words=["--modle", "--model"])
    refused(coordinator, "--model", MODEL, "--layers", "12,x", code=2, words="--layers")
    refused(coordinator, "--model", MODEL, "--layers", "12,11", "--plan-only", code=1, words="24")
    refused(coordinator, "--model", MODEL, "--bind", "tcp://0.0.0.0:5599", code=2, words="--insecure")
    refused(coordinator, "--model", MODEL, "--transport", "pigeon", code=2, words=["pigeon", "nccl"])
    refused(client, "--temperature", "hot", "x", code=2, words="hot")
    for name in ["gptoss-coordinator", "gptoss-worker", "gptoss-client", "gptoss-gguf", "gptoss-bench"]:
        code, out, said = run(program(name), "--help")
        assert code == 0 and "usage" in out.lower() and "exit codes" in out.lower() and not said, (name, code, out, said)


def test_nobody_is_there():
    with Folder() as folder:
        nowhere = f"ipc://{folder.place}/nobody"
        refused(program("gptoss-client"), "--connect", nowhere, "--timeout", 1, "x", code=5, words="coordinator")
        refused(program("gptoss-worker"), "--coordinator", nowhere, "--connect-timeout", 1, code=5,
                words="gptoss-coordinator")


def test_a_port_in_use():
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        endpoint = f"tcp://127.0.0.1:{s.getsockname()[1]}"
        refused(program("gptoss-coordinator"), "--model", MODEL, "--bind", endpoint, code=1,
                words=[endpoint, "in use"])


def test_more_ranks_than_layers():
    with Folder() as folder:
        small = os.path.join(folder.place, "small.gguf")
        code, _, said = run(program("gptoss-gguf"), "synth", small, "--like", "tiny", "--layers", 2)
        assert code == 0, said
        refused(program("gptoss-coordinator"), "--model", small, "--launch", 3, "--bind", f"ipc://{folder.place}/c",
                "--workers-bind", f"ipc://{folder.place}/w", code=1, words="2 layers cannot be cut into 3 stages")


def test_a_transport_that_the_ranks_have_not():
    with Folder() as folder:
        refused(program("gptoss-coordinator"), "--model", MODEL, "--device", "cpu", "--launch", 2, "--transport", "nccl",
                "--bind", f"ipc://{folder.place}/c", "--workers-bind", f"ipc://{folder.place}/w", code=1,
                words=["--transport nccl", "rank 0 (cpu on ", ": mpi)", "leave --transport out"])


def test_a_second_world_is_refused_and_the_first_goes_on():
    with Server(2) as server:
        code, out, said = run(
            "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", 2,
            program("gptoss-worker"), "--coordinator", server.workers)
        assert code == 1 and "already has 2 ranks" in out + said, (code, out, said)
        assert len(server.ask("--prompt-ids", "1,2,3", "--max-tokens", 4, "--ignore-eos")["tokens"]) == 4


def test_requests_that_cannot_be():
    with Server(1, "--context", 64) as server:
        done = server.ask("--prompt-ids", ",".join(["5"] * 64), check=False)
        assert done.returncode == 1 and b"context" in done.stderr, done
        done = server.ask("--prompt-ids", "999999", check=False)
        assert done.returncode == 1 and b"999999" in done.stderr, done
        # To the last position of the context, and no further.
        answer = server.ask("--prompt-ids", ",".join(["5"] * 60), "--ignore-eos")
        assert answer["finish"] == "length" and len(answer["tokens"]) == 4, answer

        with Client(server) as client:
            def said():
                message = client.receive(10)
                assert message is not None and message.WhichOneof("body") == "refused", message
                return message.refused.text
            client.socket.send(b"\xff\xff\xff")
            assert said()
            client.socket.send_multipart([b"", b"two frames"])
            assert "one frame" in said()
            client.send(pb.ClientMessage())
            assert said()
            client.send(pb.ClientMessage(generate=pb.Generate(request_id=b"")))
            assert "request_id" in said()
            client.send(pb.ClientMessage(generate=pb.Generate(request_id=b"x")))
            assert "prompt" in said()
            g = pb.Generate(request_id=b"x", text=b"y")
            g.sampling.temperature = float("nan")
            client.send(pb.ClientMessage(generate=g))
            assert "temperature" in said()
            g = pb.Generate(request_id=b"x")
            g.chat.messages.add(content=b"hi")
            g.chat.tools_json = b"[{"
            client.send(pb.ClientMessage(generate=g))
            assert said()
        with Client(server) as client:  # larger than any message may be
            client.socket.send(b"\0" * (5 << 20))
            message = client.receive(5)  # refused, or the connection is dropped
            assert message is None or message.WhichOneof("body") == "refused", message
        assert len(server.ask("--prompt-ids", "1,2,3", "--max-tokens", 4, "--ignore-eos")["tokens"]) == 4
        status = server.status()
        assert status.requests_running == 0 and status.kv_full_blocks_used == 0, status


run_tests(sys.modules[__name__])
