"""Every golden case through the real processes with 1, 2, 3 and 4 ranks on one GPU. Needs Python's
standard library alone, so that it runs on a bare GPU host:  gpu_golden.py BIN MODEL GOLDEN [DEVICE]

Activations are 16-bit on a GPU, which turns near ties of the router now and then: greedy tokens must be
equal while the golden margin is above 0.25, at least 90 % of the logits within 0.1, and the bits the
same for any number of ranks."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

BOUND, SHARE, MARGIN = 0.1, 0.9, 0.25


def ask(binaries, endpoint, case):
    done = subprocess.run(
        [f"{binaries}/gptoss-client", "--connect", endpoint, "--json", "--prompt-ids",
         ",".join(map(str, case["prompt"])), "--temperature", "0", "--ignore-eos",
         "--max-tokens", str(len(case["greedy"])), "--top-logits", "5"],
        stdout=subprocess.PIPE, check=True, timeout=60)
    return json.loads(done.stdout)


def run(binaries, model, cases, ranks, options, bits, device="cuda"):
    """Returns what went wrong, as sentences."""
    wrong, within, compared, tokens = [], 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        clients = f"ipc://{place}/c"
        with open(f"{place}/log", "w") as log:
            coordinator = subprocess.Popen(
                [f"{binaries}/gptoss-coordinator", "--model", model, "--device", device, "--launch", str(ranks),
                 "--bind", clients, "--workers-bind", f"ipc://{place}/w", *options], stdout=log, stderr=log)
        begin = time.monotonic()
        try:
            while "serving on" not in open(log.name).read():
                if coordinator.poll() is not None or time.monotonic() - begin > 60:
                    return [f"{ranks} ranks did not serve:\n{open(log.name).read()}"]
                time.sleep(0.05)
            ready, begin = time.monotonic() - begin, time.monotonic()
            for case in cases:
                answer = ask(binaries, clients, case)
                tokens += len(answer["tokens"])
                got = (answer["tokens"], answer["top"])
                if bits.setdefault(case["name"], got) != got:
                    wrong.append(f"{case['name']}: {ranks} ranks give other bits than one without sharing")
                for want, token, top, reference in zip(case["greedy"], answer["tokens"], answer["top"], case["top5"]):
                    logits = dict(map(tuple, reference))
                    off = [abs(logit - logits[i]) for i, logit in top if i in logits]
                    compared, within = compared + len(off), within + sum(x <= BOUND for x in off)
                    if token != want:
                        margin = reference[0][1] - reference[1][1]
                        if margin > MARGIN:
                            wrong.append(f"{case['name']}: token {token}, want {want}, margin {margin:.2f}")
                        break
        finally:
            coordinator.send_signal(signal.SIGINT)
            coordinator.wait(30)
    if within < SHARE * compared:
        wrong.append(f"only {within} of {compared} logits are within {BOUND}")
    print(f"{ranks} ranks: ready in {ready:.1f} s, {100 * within / max(compared, 1):.2f} % of {compared} logits "
          f"within {BOUND}, {tokens} tokens in {time.monotonic() - begin:.1f} s", flush=True)
    return wrong


def main():
    binaries, model, golden = sys.argv[1:4]
    device = sys.argv[4] if len(sys.argv) > 4 else "cuda"
    if device == "cuda" and (not shutil.which("nvidia-smi") or
                             subprocess.run(["nvidia-smi"], stdout=subprocess.DEVNULL).returncode):
        print("skipped: there is no NVIDIA GPU")
        sys.exit(77)
    cases, bits, wrong = json.load(open(golden)), {}, []
    # Alone, and then each case twice: its blocks, and those of cases that begin like it, are shared.
    wrong += run(binaries, model, cases, 1, ["--no-prefix-cache"], bits, device)
    for ranks in (1, 2, 3, 4):
        wrong += run(binaries, model, cases * 2, ranks, [], bits, device)
    print("\n".join(wrong) if wrong else f"golden cases on {device}: all right, the same bits for 1, 2, 3 and 4 ranks")
    sys.exit(1 if wrong else 0)


os.environ.pop("GPTOSS_LOG", None)
if __name__ == "__main__":
    main()
