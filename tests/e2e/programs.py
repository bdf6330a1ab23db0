"""The programs as a person uses them: what they print, and that they leave nothing behind."""
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from harness import BUILD, MODEL, SOURCE, Client, Server, environment, golden, program, run_tests

WEATHER = os.path.join(SOURCE, "models", "get_weather.json")


def case(name):
    return next(c for c in golden() if c["name"] == name)


def test_chat_completion_and_tool_call():
    with Server(2) as server:
        answer = server.ask("--temperature", 0, "What is the capital of Greece?")
        assert answer["tokens"] == case("nodate-greece")["greedy"][:len(answer["tokens"])], answer
        assert answer["text"] == "The capital of Greece is Athens." and answer["finish"] == "stop", answer
        assert answer["reasoning"], answer
        usage = answer["usage"]
        assert usage["prompt_tokens"] == len(case("nodate-greece")["prompt"]), usage
        assert 0 < usage["reasoning_tokens"] < usage["completion_tokens"] == len(answer["tokens"]), usage

        answer = server.ask("--raw", "--temperature", 0, "--max-tokens", 20, "In the beginning God created")
        assert answer["tokens"] == case("genesis")["greedy"][:20], answer
        assert answer["text"].startswith(" the heaven and the earth."), answer
        assert answer["finish"] == "length", answer

        answer = server.ask("--temperature", 0, "--reasoning", "low", "--tools", WEATHER,
                            "What is the weather in Paris?")
        assert answer["tokens"] == case("nodate-paris")["greedy"][:len(answer["tokens"])], answer
        assert answer["finish"] == "tool_calls" and len(answer["tool_calls"]) == 1, answer
        call = answer["tool_calls"][0]
        assert call["name"] == "get_weather" and json.loads(call["arguments"]) == {"city": "Paris"}, call

        plain = subprocess.run([program("gptoss-client"), "--connect", server.endpoint, "--temperature", "0",
                                "What is the capital of Greece?"], capture_output=True, env=environment(), timeout=60)
        assert plain.returncode == 0 and plain.stdout.decode().strip() == "The capital of Greece is Athens.", plain


def test_sampling_depends_on_the_seed_alone():
    with Server(1) as one, Server(3) as three:
        ask = ["--raw", "--max-tokens", 30, "--ignore-eos", "--top-k", 50, "--top-p", 0.95, "--min-p", 0.01, "The"]
        a = one.ask("--seed", 5, *ask)["tokens"]
        assert a == three.ask("--seed", 5, *ask)["tokens"]
        assert a != one.ask("--seed", 6, *ask)["tokens"]
        greedy = one.ask("--raw", "--temperature", 0, "--max-tokens", 12, "In the beginning God created")
        stopped = one.ask("--raw", "--temperature", 0, "--max-tokens", 12, "--stop", "heaven and",
                          "In the beginning God created")
        assert stopped["finish"] == "stop"
        assert stopped["text"] == greedy["text"].split("heaven and")[0], (stopped, greedy)


def test_a_client_written_from_the_schema_alone():
    with Server(2) as server:
        done = subprocess.run([sys.executable, os.path.join(SOURCE, "scripts", "ask.py"), "--connect",
                               server.endpoint, "--temperature", "0", "What is the capital of Greece?"],
                              capture_output=True, env=environment(), timeout=60)
        assert done.returncode == 0 and "The capital of Greece is Athens." in done.stdout.decode(), done


def test_the_plan_needs_no_rank():
    done = subprocess.run([program("gptoss-coordinator"), "--model", MODEL, "--plan-only"], capture_output=True,
                          env=environment(), timeout=30)
    assert done.returncode == 0, done
    out = done.stdout.decode()
    assert all(f"0–{n}" in out or f"0-{n}" in out for n in [23]), out
    done = subprocess.run([program("gptoss-coordinator"), "--model", MODEL, "--plan-only", "--layers", "7,7,6,4"],
                          capture_output=True, env=environment(), timeout=30)
    assert done.returncode == 0 and "20" in done.stdout.decode(), done


def test_ranks_that_a_person_starts_by_mpirun():
    with Server(0, launch=False) as server:
        ranks = subprocess.Popen(["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "4",
                                  program("gptoss-worker"), "--coordinator", server.workers],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                                 env=environment())
        status = server.until(lambda s: s.ready)
        assert [s.layer_count > 0 for s in status.stages] == [True] * 4
        assert sum(s.layer_count for s in status.stages) == 24
        assert server.ask("--prompt-ids", "1,2,3", "--max-tokens", 3, "--ignore-eos")["finish"] == "length"
        server.stop()
        assert ranks.wait(20) == 0  # told to leave, they leave


def test_layers_by_hand_give_the_same_tokens():
    with Server(3, "--layers", "1,2,21") as server:
        c = case("psalm23")
        answer = server.ask("--prompt-ids", ",".join(map(str, c["prompt"])), "--temperature", 0, "--ignore-eos",
                            "--max-tokens", len(c["greedy"]))
        assert answer["tokens"] == c["greedy"], answer
        assert [s.layer_count for s in server.status().stages] == [1, 2, 21]


def test_a_lost_world_loses_no_request():
    with Server(2) as server:
        with Client(server) as client:
            c = case("genesis")
            client.generate(c["prompt"], len(c["greedy"]))
            while client.receive().WhichOneof("body") != "output":
                pass
            victims = subprocess.run(["pgrep", "-f", f"gptoss-worker.*{server.workers}"], capture_output=True)
            pid = [int(p) for p in victims.stdout.split() if b"mpirun" not in
                   open(f"/proc/{int(p)}/cmdline", "rb").read()][-1]
            os.kill(pid, 9)
            begin = time.monotonic()
            tokens = []
            while True:
                m = client.receive(60)
                assert m is not None, server.said()
                if m.WhichOneof("body") == "output":
                    tokens += [t.id for t in m.output.tokens]
                if m.WhichOneof("body") == "finished":
                    break
            assert tokens == c["greedy"][1:], (tokens, c["greedy"])
            print(f"        the answer went on {time.monotonic() - begin:.1f} s after a rank was killed")


def test_a_head_in_parts_gives_the_bits_of_a_whole_one():
    wanted = [["--temperature", 0], ["--temperature", 1], ["--temperature", 1, "--top-k", 7],
              ["--temperature", 1.5, "--top-p", 0.9], ["--temperature", 1, "--min-p", 0.02],
              ["--temperature", 3, "--top-k", 2000, "--top-p", 0.99, "--min-p", 0.001]]
    results = []
    for ranks, options in [(1, []), (2, ["--head", "all"]), (2, ["--head", "last"]), (4, []),
                           (3, ["--layers", "20,2,2"])]:
        with Server(ranks, *options) as server, ThreadPoolExecutor(len(wanted)) as pool:
            answers = pool.map(lambda options: server.ask(
                "--prompt-ids", "5,700,3000,1234,99,2047,2048", "--ignore-eos", "--max-tokens", 40, "--seed", 5,
                "--top-logits", 20,
                *options), wanted)
            results.append([(a["tokens"], a["top"], a["logprobs"]) for a in answers])
            assert all(len(tokens) == 40 for tokens, _, _ in results[-1])
        assert results[-1] == results[0], (ranks, options)
    assert len({tuple(tokens) for tokens, _, _ in results[0]}) > 2


def test_synthetic_models_of_other_sizes_give_the_same_bits_for_any_stages():
    with tempfile.TemporaryDirectory(prefix="gptoss-") as place:
        path = os.path.join(place, "odd.gguf")
        subprocess.run([program("gptoss-gguf"), "synth", path, "--layers", "5", "--hidden", "320", "--heads", "10",
                        "--kv-heads", "2", "--experts", "12", "--active", "3", "--expert-ffn", "96", "--window", "37",
                        "--vocabulary", "1000"], check=True, env=environment(), stdout=subprocess.DEVNULL)
        results = []
        for ranks in [1, 2, 5]:
            with Server(ranks, model=path) as server:
                answer = server.ask("--prompt-ids", ",".join(str(i % 900) for i in range(100)), "--temperature", 0,
                                    "--ignore-eos", "--max-tokens", 30, "--top-logits", 5)
                results.append((answer["tokens"], answer["top"]))
        assert results[0] == results[1] == results[2]
        shown = subprocess.run([program("gptoss-gguf"), "show", path], capture_output=True, env=environment())
        assert shown.returncode == 0 and b"320" in shown.stdout, shown


assert BUILD
run_tests(sys.modules[__name__])
