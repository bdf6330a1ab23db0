"""What the programs show of themselves while they work: top, metrics, trace, the status."""
import json
import os
import re
import subprocess
import sys
import tempfile

from harness import Client, Server, environment, golden, program, run_tests

STAGES = 3


def run(server, *words, code=0):
    done = subprocess.run([program("gptoss-client"), *map(str, words), "--connect", server.endpoint],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                          timeout=60, env=environment())
    assert done.returncode == code, (words, done.returncode, done.stderr.decode())
    return done.stdout.decode()


def samples(text):
    """Prometheus text → {name{labels}: value}."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP gptoss_\w+ .+|TYPE gptoss_\w+ (counter|gauge|histogram))", line), line
            continue
        match = re.fullmatch(r"(gptoss_\w+(?:\{(?:\w+=\"(?:[^\"\\]|\\.)*\",?)*\})?) (\S+)", line)
        assert match and match[1] not in found, line
        found[match[1]] = float(match[2])
    return found


def check_trace(path):
    with open(path) as file:
        trace = json.load(file)
    work, ends, queue = {}, {}, {}
    for e in trace["traceEvents"]:
        if e["ph"] == "C" and e["name"] == "queue":
            assert e["args"]["steps"] >= 0, e
            queue[e["pid"]] = e["args"]["steps"]
        if e["ph"] != "X":
            continue
        lane = (e["pid"], e["tid"])
        assert e["ts"] >= ends.get(lane, -1 << 60), e  # slices of a thread do not overlap
        ends[lane] = e["ts"] + e["dur"]
        if e["tid"] == 1 and e["name"] not in ("wait for inputs", "head"):
            step = e["args"]["step"]
            assert (step, e["pid"]) not in work, e
            work[step, e["pid"]] = e
    steps = sorted({step for step, _ in work})
    assert steps == list(range(steps[0], steps[-1] + 1)), "steps are missing"
    for step in steps:
        times = [work[step, s + 1]["ts"] + work[step, s + 1]["dur"] for s in range(STAGES)]
        assert times == sorted(times), (step, times)  # a stage is done before the next one is
    assert all(depth == 0 for depth in queue.values()), queue
    assert trace["otherData"]["steps"] == len(steps)
    return steps


def test_a_working_pipeline_is_seen_whole():
    prompt = golden()[0]["prompt"]
    with Server(STAGES) as server, Client(server) as client, tempfile.TemporaryDirectory() as place:
        for i in range(6):
            client.generate(prompt, 800, seed=i)
        server.until(lambda s: s.sampled_tokens > 300)
        path = os.path.join(place, "trace.json")
        run(server, "trace", "--seconds", 1, "-o", path)
        steps = check_trace(path)
        assert len(steps) > 20, steps

        status = json.loads(run(server, "--status", "--json"))
        assert status["sampled_per_second"] > 10 and status["steps_per_second"] > 5, status
        assert 0 < status["window_seconds"] <= 5.01 and 0 <= status["bubble_share"] < 1, status
        assert all(0 < s["busy_share"] <= 1 for s in status["stages"]), status
        shares = [s["busy_share"] for s in status["stages"]]
        assert abs(1 - sum(shares) / STAGES - status["bubble_share"]) < 1e-6, status
        assert status["hop_seconds"] > 0 and status["stages"][0]["hop_seconds"] == 0, status
        assert 0 < status["between_tokens"]["p50"] <= status["between_tokens"]["p99"], status
        assert status["first_token"]["count"] == 6, status

        frame = run(server, "top", "--once")
        assert "6 running" in frame and "bubble" in frame and "\033" not in frame, frame
        assert len([line for line in frame.splitlines() if re.match(r"[0-2]  ", line)]) == STAGES, frame
        assert all(len(line) <= 100 for line in frame.splitlines()), frame

        before = samples(run(server, "metrics"))
        assert before["gptoss_num_requests_running"] == 6, before
        assert before["gptoss_time_to_first_token_seconds_count"] == 6, before
        assert 0 < before["gptoss_kv_cache_usage_perc"] < 1, before
        server.until(lambda s: s.requests_finished == 6, 120)
        path = os.path.join(place, "past.json")
        run(server, "trace", "--past", "--seconds", 0, "-o", path)
        past = check_trace(path)
        after = samples(run(server, "metrics"))
        assert past[-1] == after["gptoss_steps_total"], (past[-1], after)
        assert after["gptoss_num_requests_running"] == 0, after
        assert sum(v for k, v in after.items() if k.startswith("gptoss_request_success_total")) == 6, after
        assert after["gptoss_generation_tokens_total"] == server.status().sampled_tokens
        for name, value in before.items():
            counts = re.search(r"_total(\{|$)|_bucket\{|_count$", name)
            assert not counts or after[name] >= value, (name, value, after[name])
        busy = [after[f'gptoss_stage_busy_seconds_total{{rank="{s}"}}'] for s in range(STAGES)]
        assert all(b > 0 for b in busy), busy


def test_an_idle_pipeline_and_no_pipeline():
    with Server(0, launch=False) as server:
        server.until(lambda s: True)
        frame = run(server, "top", "--once")
        assert "waiting for ranks" in frame, frame
        assert samples(run(server, "metrics"))["gptoss_num_requests_running"] == 0
        with tempfile.TemporaryDirectory() as place:
            path = os.path.join(place, "trace.json")
            run(server, "trace", "--seconds", 0.2, "-o", path)
            with open(path) as file:
                assert json.load(file)["otherData"]["steps"] == 0
            run(server, "trace", "--seconds", 0, "-o", place + "/nowhere/trace.json", code=1)
        run(server, "top", "of the morning", code=2)


if __name__ == "__main__":
    run_tests(sys.modules[__name__])
