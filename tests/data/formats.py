#!/usr/bin/env python3
"""Writes tests/data/formats.json: what a small model in each format must give.

    formats.py GPTOSS_GGUF ORACLE.py [OUT.json]

GPTOSS_GGUF makes the models (random weights, every matrix in the format). ORACLE.py MODEL --ids … --new N
--top N prints, for each greedy step, [[id, logit], …]: a forward pass in float64 on the values that the
gguf package (PyPI) reads from the file, sharing no code with this project.
"""
import json
import subprocess
import sys
import tempfile

FORMATS = "F32 F16 BF16 Q8_0 MXFP4 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
SIZES = ("--layers 2 --hidden 256 --heads 4 --kv-heads 2 --head-dim 64 --experts 4 --active 2 "
         "--expert-ffn 256 --window 8 --vocabulary 320 --context 4096 --seed 11").split()
IDS = [1, 300, 77, 5, 210, 9, 9, 131, 64, 255, 18, 2]
NEW, TOP = 6, 5


def main(tool, oracle, out="tests/data/formats.json"):
    golden = {"sizes": SIZES, "ids": IDS, "formats": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            path = f"{folder}/{name}.gguf"
            subprocess.run([tool, "synth", *SIZES, "--type-experts", name, "--type-matrices", name, path],
                           check=True, stdout=subprocess.DEVNULL)
            steps = subprocess.run([sys.executable, oracle, path, "--ids", ",".join(map(str, IDS)),
                                    "--new", str(NEW), "--top", str(TOP)],
                                   check=True, capture_output=True, text=True).stdout
            golden["formats"][name] = json.loads(steps)
    with open(out, "w") as file:
        json.dump(golden, file, separators=(",", ":"))
        file.write("\n")


main(*sys.argv[1:])
