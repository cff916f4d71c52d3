#!/usr/bin/env python3
"""What serving costs: decode of the demo models, served as `./deploy/demo.sh` serves them, against the
same models in one process, alone and while both generate. Prints a markdown table.

    PACKTRAIN_BUILD_DIR=build/release tests/bench/bench_serving.py [--threads N] [--rounds N]

Rounds alternate between all forms, so that a machine's changing speed meets them equally; the best
round of each counts.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from serving import PRIMARY, SIDECAR, Server, demo_prompt, in_parallel, one_process  # noqa: E402

TOKENS = 300
PATHS = {"primary": PRIMARY, "sidecar": SIDECAR}
WORKERS = {
    "one stage": {"primary": ["device: cpu"], "sidecar": ["device: cpu"]},
    "as the demo": {"primary": ["device: cpu", "device: cpu", "device: cpu, role: experts"],
                    "sidecar": ["device: cpu"]},
}


def topology(workers, threads):
    return "models:\n" + "".join(
        f"  - {{name: {model}, role: {model}, path: {PATHS[model]}, threads: {threads}, "
        f"workers: [{', '.join('{%s}' % w for w in workers[model])}]}}\n" for model in PATHS)


def request(model):
    return {"prompt": demo_prompt(model, 3), "max_tokens": TOKENS, "temperature": 0, "seed": 0}


def served_speed(server, model):
    reply = server.complete(model, **request(model))
    return reply["timings"]["predicted_per_second"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    best = {}

    def note(model, form, speed):
        best[model, form] = max(speed, best.get((model, form), 0))

    servers = {form: Server(topology(workers, options.threads))
               for form, workers in WORKERS.items()}
    for server in servers.values():
        server.__enter__()
    try:
        for _ in range(options.rounds):
            for model, path in PATHS.items():
                reply = one_process(path, [request(model)], options.threads)[0]
                note(model, "one process", (TOKENS - 1) * 1000 / reply["decode_ms"])
                for form, server in servers.items():
                    note(model, form, served_speed(server, model))
            both = in_parallel([lambda m=m: served_speed(servers["as the demo"], m) for m in PATHS])
            for model, speed in zip(PATHS, both):
                note(model, "as the demo, both at once", speed)
    finally:
        for server in servers.values():
            server.__exit__()

    print(f"Decode of one sequence, {TOKENS} tokens, {options.threads} threads a worker, "
          f"{len(os.sched_getaffinity(0))} cores, best of {options.rounds}\n")
    print("| model | form | tokens/s | of one process | added to a step |")
    print("|---|---|---|---|---|")
    for (model, form), speed in sorted(best.items(), key=lambda item: item[0][0]):
        alone = best[model, "one process"]
        print(f"| {model} | {form} | {speed:.0f} | {100 * speed / alone:.0f} % "
              f"| {1000 / speed - 1000 / alone:.3f} ms |")


if __name__ == "__main__":
    main()
