"""What two GPUs and more have to show, over each transport: gpu_pair.py BIN MODEL GOLDEN [--big FILE]
[--losses N] [--transports nccl,ipc] [--one-gpu]. Needs Python's standard library alone.

 golden   every golden case with 1 rank, with 2 and with 4 (neighbours on different GPUs): the same bits
 crowd    many requests at once through 2 and 4 ranks, so that steps of several groups of sequences are
          queued behind each other: none fails, no rank is lost, the head cut over the ranks and whole
 hop      one token through two stages and through one stage: the difference is two hops, of which half is
          printed (no two clocks are compared); on --big, a file of the size to be served
 losses   a rank is killed, or stopped, in the middle of an answer, N times each: the answer has the same
          tokens as without; printed is how long until the coordinator knew

--one-gpu runs the same on one GPU, to try this program and the transports out: NCCL is told that each
rank has a host of its own, and goes through sockets. --device cpu tries the program alone, over mpi."""
import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import gpu_golden  # noqa: E402

PROMPT = [100 + 7 * i % 900 for i in range(24)]


def gpus():
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def descendants(pid):
    """Processes under pid, as {pid: name}."""
    parents, names = {}, {}
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat") as f:
                text = f.read()
        except (OSError, ValueError):
            continue
        if entry.isdigit():
            names[int(entry)] = text[text.index("(") + 1:text.rindex(")")]
            parents[int(entry)] = int(text[text.rindex(")") + 2:].split()[1])
    found, grown = {pid}, True
    while grown:
        more = {p for p, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return {p: names[p] for p in found if p in names}


class Ranks:
    """A coordinator with the ranks that it launched."""

    def __init__(self, binaries, model, ranks, device, *options):
        self.binaries, self.place = binaries, tempfile.mkdtemp(prefix="gptoss-")
        self.endpoint = f"ipc://{self.place}/c"
        self.log = f"{self.place}/log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [f"{binaries}/gptoss-coordinator", "--model", model, "--device", device, "--launch", str(ranks),
                 "--bind", self.endpoint, "--workers-bind", f"ipc://{self.place}/w", *options],
                stdout=log, stderr=log)
        self.until("serving on", 1, 90)

    def said(self):
        with open(self.log) as log:
            return log.read()

    def until(self, text, times, seconds):
        end = time.monotonic() + seconds
        while self.said().count(text) < times:
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"\"{text}\" was not said {times} times in {seconds} s:\n{self.said()}")
            time.sleep(0.01)

    def ask(self, tokens):
        return subprocess.Popen(
            [f"{self.binaries}/gptoss-client", "--connect", self.endpoint, "--json", "--prompt-ids",
             ",".join(map(str, PROMPT)), "--temperature", "1", "--seed", "7", "--ignore-eos",
             "--max-tokens", str(tokens)], stdout=subprocess.PIPE)

    def workers(self):
        return sorted(p for p, name in descendants(self.process.pid).items() if name.startswith("gptoss-worker"))

    def stop(self):
        for pid in self.workers():
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.place, ignore_errors=True)


def tokens_of(client, seconds):
    out, _ = client.communicate(timeout=seconds)
    if client.returncode:
        raise AssertionError(f"gptoss-client ended with {client.returncode}")
    return json.loads(out)["tokens"]


def golden(a, transport, options):
    bits, wrong = {}, []
    with open(a.golden) as f:
        cases = json.load(f)
    for ranks in (1, 2, 4) if not a.one_gpu else (1, 2, 3, 4):
        wrong += gpu_golden.run(a.binaries, a.model, cases, ranks, options, bits, a.device)
    return wrong


def crowd(a, transport, options):
    wrong = []
    for ranks, head in (2, "all"), (4, "all"), (4, "last"):
        begin = time.monotonic()
        try:
            done = subprocess.run(
                [f"{a.binaries}/gptoss-bench", "serve", "-m", a.model, "--device", a.device, "--launch", str(ranks), "-c", "24",
                 "-N", str(a.requests), "-p", "10-300", "-n", "40", "--temperature", "1", "-o", "json",
                 "--", "--head", head, "--step-deadline", "10", *options],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=90)
        except subprocess.TimeoutExpired as late:
            wrong.append(f"{ranks} ranks, head {head}: 90 s were not enough: {(late.stderr or b'')[-1500:]}")
            continue
        lost = [line for line in done.stderr.splitlines() if "ranks are lost" in line]
        answers = json.loads(done.stdout)[0] if done.returncode == 0 else {}
        if done.returncode or lost or answers["completed"] != a.requests:
            wrong.append(f"{ranks} ranks, head {head}: ended with {done.returncode}, {answers.get('completed')} of {a.requests} "
                         f"answered, {len(lost)} losses: {done.stderr[-1500:]}")
            continue
        print(f"{ranks} ranks, head {head}: {a.requests} requests of 24 clients in {time.monotonic() - begin:.1f} s, "
              f"{answers['output_throughput']:.0f} tokens/s", flush=True)
    return wrong


def hop(a, transport, options):
    """Half of what two hops add to one token."""
    seconds, model = {}, a.big or a.model
    for stages in (1, 2):
        done = subprocess.run(
            [f"{a.binaries}/gptoss-bench", "pipeline", "-m", model, "--device", a.device, "--kv-type", "f16", "-p", "0",
             "-n", "128", "-d", "512" if a.big else "64", "-s", "1", "-r", "3", "--stages", str(stages),
             "--transport", transport, "-o", "json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=300)
        if done.returncode:
            return [f"gptoss-bench with {stages} stages ended with {done.returncode}: {done.stderr[-2000:]}"]
        seconds[stages] = 1 / max(json.loads(done.stdout)[0]["samples_ts"])
        print(f"{stages} stage{'s' * (stages > 1)}: {1e6 * seconds[stages]:.1f} us a token", flush=True)
    print(f"a hop over {transport}, with what a second stage begins and ends with: "
          f"{1e6 * (seconds[2] - seconds[1]) / 2:.1f} us", flush=True)
    return []


def losses(a, transport, options):
    wrong, found, draw = [], {"killed": [], "stopped": []}, random.Random(1)
    ranks = Ranks(a.binaries, a.model, 2, a.device, "--silence", "2", "--step-deadline", "1", *options)
    try:
        want = tokens_of(ranks.ask(400), 120)
        for i in range(2 * a.losses):
            how = "killed" if i % 2 == 0 else "stopped"
            client = ranks.ask(400)
            time.sleep(draw.uniform(0.05, 0.25))
            pids = ranks.workers()
            if len(pids) != 2:
                wrong.append(f"there are {len(pids)} ranks, not 2")
                break
            lost = ranks.said().count("the ranks are lost")
            victim, begin = draw.choice(pids), time.monotonic()
            os.kill(victim, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            try:
                ranks.until("the ranks are lost", lost + 1, 20)
                found[how].append(time.monotonic() - begin)
                got = tokens_of(client, 120)
            finally:
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if got != want:
                wrong.append(f"rank {how}: {len(got)} tokens, and not those of an answer without a loss")
            ranks.until("serving on", lost + 2, 90)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        wrong.append(str(error))
    finally:
        ranks.stop()
    for how, seconds in found.items():
        if seconds:
            print(f"rank {how}, {len(seconds)} times: known after {min(seconds):.2f} to {max(seconds):.2f} s", flush=True)
    return wrong


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("binaries")
    p.add_argument("model")
    p.add_argument("golden")
    p.add_argument("--big")
    p.add_argument("--losses", type=int, default=5)
    p.add_argument("--transports", default="nccl,ipc")
    p.add_argument("--only", default="golden,crowd,hop,losses")
    p.add_argument("--requests", type=int, default=96, help="of each crowd")
    p.add_argument("--device", default="cuda")
    p.add_argument("--one-gpu", action="store_true")
    a = p.parse_args()
    n, wrong = gpus() if a.device == "cuda" else 1, []
    if n < (1 if a.one_gpu else 2):
        print(f"skipped: two GPUs are needed, and here {'is' if n == 1 else 'are'} {n or 'none'}")
        sys.exit(77)
    print(f"{n} GPUs" if n > 1 else "one GPU for all ranks", flush=True)
    place = tempfile.mkdtemp(prefix="gptoss-pair-")
    own_host = f"{place}/gptoss-worker"
    with open(own_host, "w") as f:
        f.write(f'#!/bin/sh\nexport NCCL_HOSTID="$OMPI_COMM_WORLD_RANK"\nexec "{os.path.abspath(a.binaries)}/gptoss-worker" "$@"\n')
    os.chmod(own_host, 0o755)
    for transport in a.transports.split(","):
        options = ["--transport", transport] if a.device == "cuda" else []
        if n == 1 and transport == "nccl":
            options += ["--worker", own_host]
        for what in (golden, crowd, hop, losses):
            if what.__name__ not in a.only.split(",") or (what is hop and len(options) > 2):
                continue
            print(f"# {transport}: {what.__name__}", flush=True)
            begin = time.monotonic()
            wrong += [f"{transport}, {what.__name__}: {text}" for text in what(a, transport, options)]
            print(f"# {time.monotonic() - begin:.1f} s", flush=True)
    shutil.rmtree(place)
    print("\n".join(wrong) if wrong else "GPUs and transports: all right")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
