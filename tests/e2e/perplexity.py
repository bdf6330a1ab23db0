"""gptoss-bench perplexity: the text is foretold, and with int8 activations as well as with float ones.
The text is three books of the King James Bible (public domain), from Debian's bible-kjv-text, which the
bundled model has read.

usage: perplexity.py GPTOSS-BENCH MODEL TEXT"""

import json
import subprocess
import sys

bench, model, text = sys.argv[1:]
BOUND = 0.005  # of the difference between the two modes


def run(*options, code=0):
    done = subprocess.run([bench, "perplexity", "-m", model, *options], capture_output=True, text=True,
                          timeout=200)
    assert done.returncode == code, (options, done.returncode, done.stderr)
    return done.stdout, done.stderr


def measure(*options):
    (line,) = run("-f", text, "--device", "cpu", "-o", "jsonl", *options)[0].splitlines()
    return json.loads(line)


exact, fast = measure("--chunks", "6"), measure("--chunks", "6", "--fast")
for r in (exact, fast):
    assert r["n_windows"] == 6 and r["n_tokens"] == 6 * 255 and r["n_ctx"] == 512, r
    assert 1 < r["perplexity"] < 2 and 0 < r["error"] < r["perplexity"] / 10, r
assert (exact["activations"], fast["activations"]) == ("f32", "int8")
apart = fast["perplexity"] / exact["perplexity"] - 1
assert abs(apart) <= BOUND, f"--fast is {100 * apart:.3f} % from exact: {fast} {exact}"

# The value depends on neither threads nor how a window is cut; on the window it does.
assert measure("--chunks", "2", "-t", "1")["perplexity"] == measure("--chunks", "2", "-t", "2")["perplexity"]
short = measure("--chunks", "3", "-c", "100")
assert short["n_tokens"] == 3 * 49, short

out, _ = run("-f", text, "--chunks", "1")
assert "perplexity" in out and "±" in out, out
for options, code, word in ((["-f", "/nowhere"], 3, "/nowhere"), ([], 2, "--file"), (["-f", text, "-c", "4"], 2, "from 8"),
                            (["-f", text, "-c", "1000000"], 3, "smaller"),
                            (["-f", text, "--device", "reference", "--fast"], 6, "--fast")):
    _, err = run(*options, code=code)
    assert word in err, (options, err)
print(f"exact {exact['perplexity']:.4f}, int8 {fast['perplexity']:.4f}, {100 * apart:+.3f} %")
