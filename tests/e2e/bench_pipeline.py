"""gptoss-bench pipeline, short: its JSON holds what llama-bench's readers look for, and the tokens are
the same for one stage and two, driven by itself and through the coordinator.

usage: bench_pipeline.py GPTOSS-BENCH MODEL"""

import glob
import json
import subprocess
import sys

bench, model = sys.argv[1:]

TEXTS = """build_commit cpu_info gpu_info backends model_filename model_type type_k type_v layers device
through test_time""".split()
NUMBERS = """build_number model_size model_n_params n_batch n_ubatch n_threads stages sequences n_prompt
n_gen n_depth avg_ns stddev_ns avg_ts stddev_ts""".split()


def run(*options):
    command = [bench, "pipeline", "-m", model, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout, done.stderr


def fail(what, stderr):
    sys.exit(f"{what}\n{stderr}")


before = set(glob.glob("/tmp/gptoss-bench-*"))
code, out, err = run("-p", "16", "-n", "8", "-d", "0,20", "-s", "1,3", "-r", "1", "--stages", "1,2",
                     "--through", "loop,coordinator", "-o", "json")
if code or not err.rstrip().endswith("# tokens equal for all stages: OK"):
    fail(f"exit code {code}", err)
results = json.loads(out)
seen = set()
for r in results:
    for key in TEXTS:
        assert isinstance(r[key], str), (key, r[key])
    for key in NUMBERS:
        assert isinstance(r[key], (int, float)) and r[key] >= 0, (key, r[key])
    assert r["avg_ts"] > 0 and r["avg_ns"] > 0, r
    assert len(r["samples_ns"]) == len(r["samples_ts"]) == 1, r
    assert sum(map(int, r["layers"].split(","))) == 24, r["layers"]
    assert len(r["layers"].split(",")) == r["stages"], r["layers"]
    seen.add((r["stages"], r["through"], r["sequences"], r["n_depth"], r["n_prompt"], r["n_gen"]))
want = {(stages, through, sequences, depth, *test)
        for stages in (1, 2) for through in ("loop", "coordinator") for sequences in (1, 3)
        for depth in (0, 20) for test in ((16, 0), (0, 8))
        if (through, depth, test) != ("coordinator", 20, (16, 0))}
assert seen == want, seen ^ want
assert len(results) == len(want)

# The other formats, and a pair.
code, out, err = run("-p", "0", "-n", "0", "-pg", "8,4", "-r", "2", "--no-warmup", "-o", "jsonl")
assert code == 0, err
(line,) = out.splitlines()
assert len(json.loads(line)["samples_ts"]) == 2
code, out, err = run("-p", "8", "-n", "4", "-r", "1", "-o", "csv")
assert code == 0, err
head, *rows = out.splitlines()
assert len(rows) == 2 and all(len(row.split('","')) == len(head.split(",")) for row in rows), out
code, out, err = run("-p", "8", "-n", "0", "-r", "1")
assert code == 0 and "| pp8" in out and "±" in out, out + err

# int8 activations: the rows say so, and the tokens are the same for any number of stages.
code, out, err = run("-p", "16", "-n", "8", "-r", "1", "--stages", "1,2", "--fast", "-o", "json",
                     "--through", "loop,coordinator", "--device", "cpu")
if code or not err.rstrip().endswith("# tokens equal for all stages: OK"):
    fail(f"--fast: exit code {code}", err)
assert all(r["activations"] == "int8" and r["device"].endswith(", fast") for r in json.loads(out)), out
assert all(r["activations"] == "f32" for r in results)

# Wrong use is told before anything is started.
for options, want_code in ((["-p", "x"], 2), (["--stages", "30"], 2), (["-d", "999999"], 2),
                           (["-p", "0", "-n", "0"], 2), (["--fast", "--device", "reference"], 2), (["-m", "/nowhere"], 3)):
    code, out, err = run(*options)
    assert code == want_code and out == "" and err, (options, code, err)

assert set(glob.glob("/tmp/gptoss-bench-*")) <= before, "a folder was left behind"
print(f"{len(results)} results, tokens equal")
