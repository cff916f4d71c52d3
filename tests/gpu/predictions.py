"""Predicted against measured on one card: memory, decode and prefill of three models in three
placements each. Prints a table; exit status 1 if memory is off by more than 3 % or a speed by more
than 10 %.

  predictions.py [FOLDER]     for the models' files, one at a time of up to 22 GB; default: /dev/shm

Needs numpy. Takes about four minutes.
"""

import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

from one_card import DEVICE
from serving import PACKTRAIN, SOURCE, Server

MEMORY_LIMIT, SPEED_LIMIT = 0.03, 0.10
CONTEXT, DEPTH, TOKENS = 20480, 2048, 96
LONG_PROMPT = 8192  # on a GPU; on CPUs the prompt of DEPTH tokens is long enough

# Name, arguments of synth_gguf.py, layers with routed experts.
MODELS = [
    ("glm", ["--arch", "glm-5.2", "--layers", "9", "--mix", "iq2_m"], (3, 8)),
    ("qwen3.6", ["--arch", "qwen3.6-35b-a3b", "--layers", "40", "--mix", "q4"], (0, 39)),
    ("qwen3", ["--arch", "qwen3-30b-a3b", "--layers", "32", "--mix", "q4"], (0, 31)),
]


def placements(first, last):
    middle = (first + last) // 2
    return [
        ("all on the GPU", [f"{{device: '{DEVICE}', resident_experts: {first}-{last}}}"]),
        ("half the experts on the CPU",
         [f"{{device: '{DEVICE}', resident_experts: {first}-{middle}}}",
          "{device: cpu, role: experts}"]),
        ("all on the CPU", ["{device: cpu}"]),
    ]


def gpu_bytes():
    """Memory in use on the card."""
    text = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits",
         "-i", DEVICE.rpartition(":")[2]], capture_output=True, text=True, check=True).stdout
    return int(text) << 20


def ram_bytes(pids):
    """Memory of processes; what several share counts once."""
    total = 0
    for pid in pids:
        rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[1]) << 10
    return total


def ask(server, length, tokens, rng):
    """Tokens/s of prefill and of decode of a prompt that nobody has seen."""
    prompt = [rng.randrange(100000) for _ in range(length)]
    timings = server.complete("m", prompt, tokens)["timings"]
    return timings["prompt_per_second"], timings.get("predicted_per_second", 0)


def measure(server, on_gpu, rng):
    """{"decode": tokens/s, ...} with prefill by length of prompt; medians."""
    ask(server, 600, 16, rng)  # warm-up
    pairs = [ask(server, DEPTH, TOKENS, rng) for _ in range(3 if on_gpu else 2)]
    found = {"decode": statistics.median(p[1] for p in pairs),
             DEPTH: statistics.median(p[0] for p in pairs)}
    if on_gpu:
        for length in (512, LONG_PROMPT):
            ask(server, length, 1, rng)
            found[length] = statistics.median(ask(server, length, 1, rng)[0] for _ in range(3))
    return found


class Table:
    def __init__(self):
        self.failed = False

    def row(self, where, what, predicted, measured, limit):
        error = predicted / measured - 1
        over = not abs(error) <= limit
        self.failed |= over
        print("%-36s %-24s %12.2f %12.2f %+7.1f %%%s"
              % (where, what, predicted, measured, 100 * error, "  <- over" if over else ""))
        sys.stdout.flush()


def check(name, placement, path, workers, table):
    on_gpu = any(DEVICE in worker for worker in workers)
    before = gpu_bytes()
    begin = time.monotonic()
    text = (f"models:\n  - {{name: m, path: {path}, context: {CONTEXT}, "
            f"workers: [{', '.join(workers)}]}}\n")
    with Server(text) as server:
        loaded = time.monotonic()
        found = measure(server, on_gpu, random.Random(1))
        used = {"gpu": gpu_bytes() - before, "ram": ram_bytes(server.workers().values())}
        steps = {key: value for key, value in server.metrics().items() if "decode_step" in key}
        plan = json.loads(server.get("/plan")[1])
    deployment = plan["deployments"][0]
    predicted = deployment["predicted"]
    where = f"{name}, {placement}"
    decode = {at["depth"]: at["tokens_per_s"] for at in predicted["decode"]}
    table.row(where, f"decode at {DEPTH}, tokens/s", decode[DEPTH], found["decode"], SPEED_LIMIT)
    for at in predicted["prefill"]:
        if at["prompt"] in found:
            table.row(where, f"prefill {at['prompt']}, tokens/s", at["tokens_per_s"],
                      found[at["prompt"]], SPEED_LIMIT)
    for device in plan["devices"]:
        kind = "ram" if device["device"].endswith("/cpu") else "gpu"
        if device["uses"]:
            table.row(where, f"{kind} GiB", device["predicted_bytes"] / 2**30,
                      used[kind] / 2**30, MEMORY_LIMIT)
    print("    started in %.0f s, measured in %.0f s; ubatch %d"
          % (loaded - begin, time.monotonic() - loaded, deployment["ubatch"]))
    for term in predicted["decode_terms"]:
        print("    predicted %8.3f ms  %s: %s" % (term["ms"], term["resource"], term["work"]))
    print("    predicted prefill bound by", predicted["prefill_bound"])
    for key, value in steps.items():
        print("    step      %8.3f ms  %s" % (value * 1e3, key))
    for device in plan["devices"]:
        for use in device["uses"]:
            print("    bill", device["device"], use["worker"],
                  {k: round(v / 2**20) for k, v in use["bill"].items()}, "MiB; loaded",
                  {k: [round(x / 2**20) for x in v.values()]
                   for k, v in use.get("loaded", {}).items()})
    sys.stdout.flush()


def main(folder):
    table = Table()
    with tempfile.TemporaryDirectory(prefix="packtrain-facts-") as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        subprocess.run([str(PACKTRAIN), "doctor"], check=True)
        sys.stdout.flush()
        print("%-36s %-24s %12s %12s %9s" % ("model, placement", "", "predicted", "measured", "error"))
        for name, arguments, experts in MODELS:
            path = pathlib.Path(folder) / f"packtrain-predictions-{name}.gguf"
            try:
                subprocess.run([sys.executable, str(SOURCE / "tests/support/synth_gguf.py"),
                                str(path), *arguments], check=True, stdout=subprocess.DEVNULL)
                for placement, workers in placements(*experts):
                    check(name, placement, path, workers, table)
            finally:
                path.unlink(missing_ok=True)
    return 1 if table.failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 2 or sys.argv[1:2] == ["--help"]:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else "/dev/shm"))
