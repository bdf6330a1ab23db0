"""gptoss-bench serve and kernels, and scripts/scaling, short: their records hold what readers look for.

usage: bench_load.py GPTOSS-BENCH MODEL SCALING"""

import csv
import glob
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

bench, model, scaling = sys.argv[1:]


def run(*command, code=0):
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if done.returncode != code:
        sys.exit(f"{command}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout, done.stderr


before = set(glob.glob("/tmp/gptoss-bench-*"))

# Clients: all requests end, and the figures fit together.
out, err = run(bench, "serve", "-m", model, "--launch", "2", "-t", "1", "-c", "1,4", "-N", "12", "-p", "5-40",
               "-n", "8", "--shared-prefix", "20", "-o", "json")
results = json.loads(out)
assert [r["clients"] for r in results] == [1, 4]
for r in results:
    assert (r["completed"], r["refused"], r["failed"]) == (12, 0, 0), r
    assert r["total_output_tokens"] == 12 * 8 and r["stages"] == 2
    assert 12 * 25 <= r["total_input_tokens"] <= 12 * 60
    assert abs(r["output_throughput"] - 96 / r["duration"]) < 0.01 * r["output_throughput"]
    assert r["hop_us"] > 0 and 0 <= r["bubble"] <= 1 and len(r["busy"]) == 2 and r["steps"] > 0
    for name in ("ttft", "itl", "tpot", "e2el"):
        values = [r[f"{p}_{name}_ms"] for p in ("p50", "p90", "p95", "p99", "max")]
        assert values == sorted(values) and values[0] >= 0, values
    assert r["mean_e2el_ms"] > r["mean_ttft_ms"] > 0
    assert r["load_generator_cpu"] < 0.5, r
# One client has one request under way: twelve answers, one after the other.
assert results[0]["mean_e2el_ms"] * 12 <= results[0]["duration"] * 1e3 * 1.01

# By rate; options for the coordinator; refusals are counted and said.
out, err = run(bench, "serve", "-m", model, "--launch", "1", "--rate", "500", "-N", "40", "-p", "8", "-n", "8",
               "-o", "jsonl", "--", "--max-queue", "1", "--sequences", "1")
(line,) = out.splitlines()
r = json.loads(line)
assert r["completed"] + r["refused"] == 40 and r["refused"] > 0 and r["failed"] == 0, r
assert r["request_rate"] == 500 and r["full_load_output_throughput"] is None
assert f"{r['refused']} refused" in err, err
out, err = run(bench, "serve", "--connect", "ipc:///tmp/gptoss-nobody", "-o", "json", code=5)
assert "no coordinator answers" in err and out == "", err

# Kernels.
out, err = run(bench, "kernels", "-m", model, "-t", "1", "--rows", "1,3", "-d", "16",
               "--only", "rmsnorm,qkv,attention,router,experts,head,sampling", "-o", "json", "--device", "cpu")
results = json.loads(out)
assert {r["kernel"] for r in results} == {"rmsnorm", "qkv", "attention", "attention, window", "router",
                                          "experts", "head", "sampling"}, results
for r in results:
    assert r["avg_us"] > 0 and r["limit_read"] > 1e8 and r["limit_operations"] > 1e8, r
    assert abs(r["bytes_per_second"] - r["bytes"] / r["avg_us"] * 1e6) < 1e-2 * r["bytes_per_second"], r

# A pipeline beside its replicas, weak and strong.
out, err = run(bench, "pipeline", "-m", model, "--stages", "1,2", "-t", "1", "-p", "0", "-n", "12", "-s", "1,2",
               "-r", "2", "--scaling", "strong,weak", "--replicas", "-o", "json")
results = json.loads(out)
seen = [(r["stages"], r["layout"], r["scaling"], r["sequences"]) for r in results]
want = [(1, "pipeline", "strong", 1), (1, "pipeline", "strong", 2)]
want += [(2, layout, scaling, s) for s, scaling in ((1, "strong"), (2, "weak"), (2, "strong"), (4, "weak"))
         for layout in ("pipeline", "replicas")]
assert sorted(seen) == sorted(want), seen
assert err.rstrip().endswith("# tokens equal for all stages: OK"), err
for r in results:
    assert 0 <= r["bubble"] < 1, r
    assert (r["over_replicas"] is not None) == (r["stages"] == 2 and r["layout"] == "pipeline"), r
    assert (r["hop_us"] is not None) == (r["layout"] == "pipeline" and r["sequences"] == 1), r
    assert r["experts_read"] > 0 and r["bandwidth_share"] > 0 and r["speedup"] > 0, r

# All of it by one command, with figures.
with tempfile.TemporaryDirectory() as folder:
    run(scaling, "-m", model, "--build", os.path.dirname(os.path.dirname(bench)), "--out", folder, "--stages",
        "1,2", "--sequences", "2", "--prompt", "8", "--gen", "8", "--repetitions", "1", "--requests", "4",
        "--device", "cpu")
    names = set(os.listdir(folder))
    assert names >= {"about.txt", "pipeline.json", "pipeline.csv", "serve.jsonl", "serve.csv", "scaling.svg",
                     "scaling.png", "bubble.svg", "bubble.png", "serve.svg"}, names
    with open(os.path.join(folder, "pipeline.csv")) as file:
        assert len(list(csv.DictReader(file))) == len(json.load(open(os.path.join(folder, "pipeline.json"))))
    for name in names:
        path = os.path.join(folder, name)
        if name.endswith(".svg"):
            xml.etree.ElementTree.parse(path)
        if name.endswith(".png"):
            assert open(path, "rb").read(8) == b"\x89PNG\r\n\x1a\n", name

assert set(glob.glob("/tmp/gptoss-bench-*")) <= before, "a folder was left behind"
print("serve, kernels, pipeline and scaling")
