"""scripts/compare-cpu: programs take turns, medians and ratios are printed and left in files.

usage: compare.py COMPARE-CPU GPTOSS-BENCH MODEL"""

import csv
import json
import os
import subprocess
import sys
import tempfile

script, bench, model = sys.argv[1:]


def run(*options, code=0):
    done = subprocess.run([sys.executable, script, "--bench", bench, "-m", model, *options], capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == code, (options, done.returncode, done.stderr)
    return done.stdout, done.stderr


with tempfile.TemporaryDirectory() as out:
    table, said = run("--modes", "exact", "--peer", f"same={bench} pipeline --device cpu", "--tests", "tg4, tg2@d8",
                      "-r", "2", "-t", "1", "--out", out)
    assert "| gptoss exact / same |" in " ".join(table.split()), table
    turns = [line.split(", ")[-1].split(":")[0] for line in said.splitlines() if line.startswith("# ")]
    assert turns == ["gptoss exact", "same"] * 2 + ["same", "gptoss exact"] * 2, said
    with open(os.path.join(out, "compare.json")) as file:
        speeds = json.load(file)["speeds"]
    assert set(speeds) == {"tg4", "tg2@d8"} and all(len(v) == 2 and min(v) > 0 for v in speeds["tg4"].values()), speeds
    with open(os.path.join(out, "compare.csv")) as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 2

    # A program that fails is named, the others are measured.
    table, said = run("--modes", "exact", "--peer", "none=/nowhere/llama-bench", "--tests", "tg2", "-r", "1", "-t", "1",
                      "--out", out, code=1)
    assert "none: " in said and "–" in table and "/nowhere" in said, said

for options, word in ((["--tests", "xx5"], "xx5"), (["--modes", "slow"], "slow"), (["--peer", "x"], "NAME=PROGRAM"),
                      (["--bench", "/nowhere"], "/nowhere")):
    assert word in run(*options, code=1)[1], options
print("turns, ratios and files: OK")
