"""Predicted against measured on one card: memory, decode and prefill of three models in three
placements each, with what doctor measures at the start and before each placement that computes on
the CPU. Prints a table; exit status 1 if memory is off by more than 3 % or a speed by more
than 10 %, or if a placement could not be measured.

  predictions.py [--folder DIR] [--json OUT] [--seconds N] [NAME ...]

The models' files are written to DIR (default /dev/shm), 52 GB in all. OUT gets all that was seen.
After N seconds (default 600) no further placement is begun. NAMEs choose models. Needs numpy.
Takes about five minutes.
"""

import argparse
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
import traceback

from one_card import DEVICE
from serving import PACKTRAIN, SOURCE, Server, in_parallel

MEMORY_LIMIT, SPEED_LIMIT = 0.03, 0.10
CONTEXT = 20480
DEPTH = 2048
TOKENS = 100000  # prompts are of ids below; all three models have more
MEASURE_SECONDS = 18  # of one placement: then no further prompt is asked

# Name, arguments of synth_gguf.py, layers, the first one with routed experts.
MODELS = [
    ("glm", ["--arch", "glm-5.2", "--mix", "iq2_m"], 8, 3),
    ("qwen3.6", ["--arch", "qwen3.6-35b-a3b", "--mix", "q4"], 40, 0),
    ("qwen3", ["--arch", "qwen3-30b-a3b", "--mix", "q4"], 24, 0),
]


class Placement:
    def __init__(self, name, workers, prompts, tokens):
        self.name = name
        self.workers = workers
        self.prompts = prompts  # their lengths, rising
        self.tokens = tokens    # generated behind each, few enough to call that its depth


def placements(name, layers, first):
    last, middle = layers - 1, (first + layers) // 2
    gpu = [512, DEPTH, 8192]
    result = [
        Placement("all on the card", [f"{{device: '{DEVICE}', resident_experts: {first}-{last}}}"],
                  gpu, 128),
        Placement("half the experts on the CPU",
                  [f"{{device: '{DEVICE}', resident_experts: {first}-{middle - 1}}}",
                   "{device: cpu, role: experts}"], gpu, 96),
    ]
    if name == "qwen3.6":
        result.append(Placement("all on the CPU", ["{device: cpu}"], [512], 64))
    else:
        result.append(Placement(
            "two stages on the card",
            [f"{{device: '{DEVICE}', memory_gib: 40, layers: 0-{middle - 1}, "
             f"resident_experts: {first}-{middle - 1}}}",
             f"{{device: '{DEVICE}', memory_gib: 40, layers: {middle}-{last}, "
             f"resident_experts: {middle}-{last}}}"], gpu, 128))
    return result


def gpu_bytes():
    """Memory in use on the card."""
    text = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits",
         "-i", DEVICE.rpartition(":")[2]], capture_output=True, text=True, check=True).stdout
    return int(text) << 20


def ram_by_mapping(pid):
    """RAM of a process by what it maps; what several processes share counts once in all."""
    found = {}
    name = ""
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        header = re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)$", line)
        if header:
            name = header[1] or "anonymous"
        elif line.startswith("Pss:"):
            found[name] = found.get(name, 0) + (int(line.split()[1]) << 10)
    return {name: size for name, size in found.items() if size >= 1 << 20}


def system_bytes():
    """Of the whole machine: {"MemAvailable": ..., "Shmem": ...}."""
    text = pathlib.Path("/proc/meminfo").read_text()
    return {key: int(value) << 10 for key, value in
            re.findall(r"^(MemTotal|MemFree|MemAvailable|Shmem):\s+(\d+) kB", text, re.MULTILINE)}


def ask(server, length, tokens, rng):
    """The reply's timings, for a prompt that nobody has seen."""
    status, reply = server.post("/v1/completions", {
        "model": "m", "prompt": [rng.randrange(TOKENS) for _ in range(length)],
        "max_tokens": tokens, "ignore_eos": True, "temperature": 0})
    if status != 200:
        raise AssertionError(f"{status}: {reply}")
    return reply["timings"]


def measure(server, placement):
    """[(length of prompt, timings)], of at least one reply of each length; after a warm-up."""
    rng = random.Random(1)
    deadline = time.monotonic() + MEASURE_SECONDS
    for length in placement.prompts:
        ask(server, length, 16, rng)
    # Several at once use all memory that links have.
    in_parallel([lambda: ask(server, placement.prompts[-1], 16, rng)] * 4)
    found = []
    for run in range(4):
        for length in placement.prompts:
            if run == 0 or time.monotonic() < deadline:
                found.append((length, ask(server, length, placement.tokens, rng)))
    return found


def median(found, length, key):
    return statistics.median(timings[key] for at, timings in found if at == length)


class Table:
    def __init__(self):
        self.failed = False
        print("%-36s %-26s %12s %12s %9s"
              % ("model, placement", "", "predicted", "measured", "error"))

    def row(self, where, what, predicted, measured, limit):
        error = predicted / measured - 1
        over = not abs(error) <= limit
        self.failed |= over
        print("%-36s %-26s %12.2f %12.2f %+7.1f %%%s"
              % (where, what, predicted, measured, 100 * error, "  <- over" if over else ""))
        sys.stdout.flush()


def serve(placement, path):
    """Everything that is seen of one placement, as it goes to the JSON file."""
    text = (f"models:\n  - {{name: m, path: {path}, context: {CONTEXT}, "
            f"workers: [{', '.join(placement.workers)}]}}\n")
    before, system = gpu_bytes(), system_bytes()
    begin = time.monotonic()
    with Server(text) as server:
        started = time.monotonic() - begin
        found = measure(server, placement)
        return {
            "topology": text, "started_s": started, "all_s": time.monotonic() - begin,
            "timings": found, "gpu": gpu_bytes() - before,
            "ram": {name[1]: ram_by_mapping(pid) for name, pid in server.workers().items()},
            "model": str(path),
            "system_before": system, "system": system_bytes(),
            "metrics": server.metrics(), "plan": json.loads(server.get("/plan")[1]),
            "log": server.log()[-20000:],
        }


def ram_bytes(seen):
    """Of all workers. Of the model's file, where it is mapped, a GPU stage goes on reading the
    embedding table; the rest is the system's cache."""
    bills = [use["bill"] for device in seen["plan"]["devices"] for use in device["uses"]
             if device["device"].endswith("/cpu")]
    embedding = sum(bill.get("embedding", 0) for bill in bills if "attention" not in bill)
    return embedding + sum(size for worker in seen["ram"].values()
                           for name, size in worker.items() if name != seen["model"])


def compare(where, seen, table):
    plan, found = seen["plan"], seen["timings"]
    deployment = plan["deployments"][0]
    predicted = deployment["predicted"]
    lengths = sorted({length for length, _ in found})
    for at in predicted["decode"]:
        if at["depth"] in lengths:
            table.row(where, f"decode at {at['depth']}, tokens/s", at["tokens_per_s"],
                      median(found, at["depth"], "predicted_per_second"), SPEED_LIMIT)
    for at in predicted["prefill"]:
        if at["prompt"] in lengths:
            table.row(where, f"prefill of {at['prompt']}, tokens/s", at["tokens_per_s"],
                      median(found, at["prompt"], "prompt_per_second"), SPEED_LIMIT)
    for device in plan["devices"]:
        if device["uses"]:
            ram = device["device"].endswith("/cpu")
            table.row(where, "RAM, GiB" if ram else "GPU, GiB", device["predicted_bytes"] / 2**30,
                      (ram_bytes(seen) if ram else seen["gpu"]) / 2**30, MEMORY_LIMIT)


def details(seen):
    """What explains a difference."""
    deployment = seen["plan"]["deployments"][0]
    print("    started in %.0f s, all in %.0f s; ubatch %d"
          % (seen["started_s"], seen["all_s"], deployment["ubatch"]))
    predicted = deployment["predicted"]
    print("    predicted step, ms:",
          "; ".join("%s %.3f" % (t["resource"], t["ms"]) for t in predicted["decode_terms"]),
          "; prefill bound by", predicted["prefill_bound"])
    print("    last step, ms:     ",
          "; ".join("%s %.3f" % (re.search(r'part="(\w+)"', key)[1], value * 1e3)
                    for key, value in seen["metrics"].items() if "decode_step" in key),
          *("; %s %g" % (key.partition("{")[0].rpartition("decode_")[2], value)
            for key, value in seen["metrics"].items()
            if re.match("packtrain_decode_(experts|gpu)", key)))
    for device in seen["plan"]["devices"]:
        for use in device["uses"]:
            print("    bill", device["device"], use["worker"],
                  {k: round(v / 2**20) for k, v in use["bill"].items()}, "MiB; loaded",
                  {k: [round(x / 2**20) for x in v.values()]
                   for k, v in use.get("loaded", {}).items()})
    for worker, mappings in seen["ram"].items():
        largest = sorted(mappings.items(), key=lambda item: -item[1])[:8]
        print("    RAM", worker, "; ".join(f"{name} {size >> 20}" for name, size in largest), "MiB")
    sys.stdout.flush()


def write_models(models, folder):
    """{name: path} of all models' files, written at once."""
    begin = time.monotonic()
    jobs = max(1, os.cpu_count() // len(models))
    paths = {name: folder / f"packtrain-predictions-{name}.gguf" for name, *_ in models}
    writers = [subprocess.Popen(
        [sys.executable, str(SOURCE / "tests/support/synth_gguf.py"), str(paths[name]), *arguments,
         "--layers", str(layers), "--jobs", str(jobs)], stdout=subprocess.DEVNULL)
        for name, arguments, layers, _ in models]
    for writer in writers:
        if writer.wait() != 0:
            raise AssertionError(f"{writer.args} ended with {writer.returncode}")
    print("%.1f GB written in %.0f s" % (sum(path.stat().st_size for path in paths.values()) / 1e9,
                                         time.monotonic() - begin))
    return paths


def doctor(cache):
    """The facts that `packtrain doctor` leaves for the planner in the folder `cache`."""
    begin = time.monotonic()
    report = subprocess.run([str(PACKTRAIN), "doctor"], check=True, capture_output=True, text=True)
    for line in report.stdout.splitlines():
        if re.search(r"DRAM read|picked experts|weights read", line):
            print("    " + line.strip())
    print("    doctor took %.0f s" % (time.monotonic() - begin))
    sys.stdout.flush()
    return json.loads((pathlib.Path(cache) / "packtrain" / "host.json").read_text())


def check(name, placements_of_model, path, deadline, table, cache):
    """Of one model; {placement: what was seen}."""
    rows = {}
    for placement in placements_of_model:
        where = f"{name}, {placement.name}"
        if time.monotonic() > deadline:
            print(f"{where}: no time left")
            table.failed = True
            continue
        try:
            # Virtual machines lose and gain a third of their CPUs' speed within minutes.
            facts = doctor(cache) if any("cpu" in worker for worker in placement.workers) else None
            seen = serve(placement, path)
            seen["facts"] = facts
            rows[where] = seen
            compare(where, seen, table)
            details(seen)
        except Exception:  # the others are worth seeing all the same
            table.failed = True
            print(f"{where}: FAILED\n{traceback.format_exc(limit=-3)[-3000:]}")
            sys.stdout.flush()
    return rows


def main(options):
    deadline = time.monotonic() + options.seconds
    models = [model for model in MODELS if not options.names or model[0] in options.names]
    with tempfile.TemporaryDirectory(prefix="packtrain-facts-") as cache, \
            tempfile.TemporaryDirectory(prefix="packtrain-models-", dir=options.folder) as folder:
        paths = write_models(models, pathlib.Path(folder))
        os.environ["XDG_CACHE_HOME"] = cache
        result = {"facts": doctor(cache), "rows": {}}
        table = Table()
        for name, _, layers, first in models:
            result["rows"].update(
                check(name, placements(name, layers, first), paths[name], deadline, table, cache))
            paths[name].unlink()
            if options.json:
                pathlib.Path(options.json).write_text(json.dumps(result))
    return 1 if table.failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--json")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("names", nargs="*", metavar="NAME")
    sys.exit(main(parser.parse_args()))
