#!/usr/bin/env python3
"""What serving costs while both demo models generate: decode of each, served and streamed as
`./deploy/demo.sh` serves them, against the same model in one process. Prints a markdown table.

    PACKTRAIN_BUILD_DIR=build/release tests/bench/bench_serving.py [--rounds N] [--alone]

One process means a program that holds the whole model, computes with one thread and does nothing
else; two of them generate at once, one for each model, so that they share the machine's cores,
caches and memory as the served ones do. Rounds alternate between the forms; medians count, and the
share is the median of those of the rounds. With --alone only one model generates at a time.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
from serving import PRIMARY, SIDECAR, SOURCE, Server, demo_prompt, in_parallel, one_process  # noqa: E402

MODELS = {"primary": PRIMARY, "sidecar": SIDECAR}
TOKENS = {"primary": 400, "sidecar": 480}  # so that both take about the same time
CONTEXT = 2048


def demo_topology():
    text = (SOURCE / "configs" / "topologies" / "cpu-demo.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("listen:")]
    return "\n".join(lines).replace("../../deploy", str(SOURCE / "deploy")) + "\n"


def request(model):
    return {"prompt": demo_prompt(model, 3), "max_tokens": TOKENS[model], "temperature": 0, "seed": 0}


def one_process_speed(model):
    reply = one_process(MODELS[model], [request(model)], 1, CONTEXT)[0]
    return reply["token_ids"], (TOKENS[model] - 1) * 1000 / reply["decode_ms"]


def served_speed(server, model):
    """Reads the stream as it comes and looks at it afterwards: a client that costs little."""
    body = json.dumps({"model": f"demo-{model}", "stream": True, "ignore_eos": True,
                       "return_token_ids": True, **request(model)}).encode()
    stream = b""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                           b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                           % (len(body), body))
        while piece := connection.recv(1 << 16):
            stream += piece
    chunks = [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: {")]
    tokens = [i for chunk in chunks for choice in chunk["choices"] for i in choice["token_ids"]]
    return tokens, next(chunk["timings"]["predicted_per_second"] for chunk in reversed(chunks)
                        if "timings" in chunk)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    groups = [[model] for model in MODELS] if options.alone else [list(MODELS)]
    speeds = {(model, form): [] for model in MODELS for form in ("one process", "served")}
    with Server(demo_topology()) as server:
        forms = {"one process": one_process_speed, "served": lambda m: served_speed(server, m)}
        for _ in range(options.rounds):
            for models in groups:
                tokens = {}
                for form, speed in forms.items():
                    for model, (ids, per_second) in zip(
                            models, in_parallel([lambda m=m: speed(m) for m in models])):
                        assert tokens.setdefault(model, ids) == ids, f"{model}: other tokens"
                        speeds[model, form].append(per_second)

    print(f"Decode of one sequence, {'one model' if options.alone else 'both models'} at once, "
          f"{len(os.sched_getaffinity(0))} cores, medians of {options.rounds} rounds\n")
    print("| model | one process, tokens/s | served, tokens/s | share | added to a step |")
    print("|---|---|---|---|---|")
    for model in MODELS:
        alone, served = speeds[model, "one process"], speeds[model, "served"]
        share = statistics.median(s / a for s, a in zip(served, alone))
        a, s = statistics.median(alone), statistics.median(served)
        print(f"| {model} | {a:.0f} | {s:.0f} | {100 * share:.0f} % | {1000 / s - 1000 / a:.3f} ms |")


if __name__ == "__main__":
    main()
