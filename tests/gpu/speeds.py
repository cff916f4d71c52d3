"""Speeds on one card that need several workers: a model over one, two and four stages, over gRPC,
a primary beside a sidecar, alone and at once, and one and four streams with experts on the CPU.
Prints tables and judges nothing.

  speeds.py stages MODEL.gguf LAYERS [GIB per stage]     all experts on the card
  speeds.py together PRIMARY.gguf RESIDENT SIDECAR.gguf  e.g. resident experts 3-4, rest on the CPU
  speeds.py streams PRIMARY.gguf RESIDENT [THREADS]      the same, alone

Models: tests/support/synth_gguf.py, in /dev/shm.
"""

import os
import re
import statistics
import sys

from one_card import links, model, prompt_of, stage, topology
from serving import Server, in_parallel

THREADS = max((os.cpu_count() or 2) - 1, 1)


def decode(server, name, seed, tokens=96):
    reply = server.complete(name, prompt_of(64, seed), tokens)
    return reply["timings"]["predicted_per_second"]


def together_in_step(server, name, seeds, tokens=128):
    """Tokens/s in sum of sequences that start in one step: one request, so that copies of a prompt
    stay side by side and pick the same experts."""
    reply = server.complete(name, [prompt_of(48, seed) for seed in seeds], tokens)
    return len(seeds) * reply["timings"]["predicted_per_second"]


def prefill(server, name, seed, length):
    reply = server.complete(name, prompt_of(length, seed), 1)
    return reply["timings"]["prompt_per_second"]


def measure(server, name, seed=0):
    """Decode and prefill of 2048, tokens/s: medians of three."""
    decode(server, name, seed + 90)
    prefill(server, name, seed + 91, 2048)
    return (statistics.median(decode(server, name, seed + i) for i in range(3)),
            statistics.median(prefill(server, name, seed + 10 + i, 2048) for i in range(3)))


def cuts(layers, stages):
    """About as many layers each; the first takes the rest, which may be dense."""
    each = layers // stages
    first = layers - each * (stages - 1)
    ends = [first + each * i for i in range(stages)]
    return [f"{(0 if i == 0 else ends[i - 1])}-{end - 1}" for i, end in enumerate(ends)]


def stages(path, layers, gib):
    base = None
    print("%-28s %12s %8s %14s" % ("form", "decode/s", "of one", "prefill 2048/s"))
    for what, count, transport in (("one stage", 1, None), ("two stages, shm", 2, "shm"),
                                   ("two stages, grpc", 2, "grpc"), ("four stages, shm", 4, "shm"),
                                   ("four stages, measured", 4, None)):
        workers = [stage(cut, cut, gib * 4 / count) for cut in cuts(layers, count)]
        text = topology([model("m", path, workers, context=8192)], transport)
        with Server(text) as server:
            speed, prompt = measure(server, "m")
            base = base or speed
            print("%-28s %12.1f %7.1f%% %14.0f" % (what, speed, 100 * speed / base, prompt))
            for link in links(server):
                print("    " + link)
        sys.stdout.flush()


def together(primary, resident, sidecar):
    text = topology([
        model("primary", primary, [stage(resident=resident, memory_gib=60),
                                   "{device: cpu, role: experts, threads: %d}" % THREADS],
              context=16384),
        model("sidecar", sidecar, [stage(memory_gib=60)], "sidecar", context=16384)])
    with Server(text) as server:
        alone = {name: measure(server, name) for name in ("primary", "sidecar")}
        print("%-10s %16s %16s" % ("", "decode/s", "prefill 2048/s"))
        for name, (speed, prompt) in alone.items():
            print("%-10s %16.1f %16.0f   alone" % (name, speed, prompt))
        busy = {name: [] for name in alone}
        stop = []

        def keep(name, run):
            i = 0
            while not stop:
                busy[name].append(run(server, name, 200 + i))
                i += 1
                if len(busy["primary"]) >= 3 and len(busy["sidecar"]) >= 3:
                    stop.append(True)

        for what, run in (("decode", decode),
                          ("prefill 2048", lambda s, n, i: prefill(s, n, i, 2048))):
            busy = {name: [] for name in alone}
            stop.clear()
            in_parallel([lambda n=n: keep(n, run) for n in alone])
            for name, values in busy.items():
                print("%-10s %16.1f   at once, %s" % (name, statistics.median(values), what))


def decode_metrics(server):
    """Medians of the last decode steps: {"experts": ms, ..., "read": experts, "operations": n}."""
    text = server.get("/metrics")[1]
    values = {part: 1e3 * float(value) for part, value in re.findall(
        r'packtrain_decode_step_seconds\{.*part="(\w+)".*\} (\S+)', text)}
    for name in ("experts_read", "gpu_operations"):
        values[name] = float(re.search(r"packtrain_decode_%s\{.*\} (\S+)" % name, text)[1])
    return values


def streams(primary, resident, threads):
    text = topology([model("m", primary, [stage(resident=resident, memory_gib=70),
                                          "{device: cpu, role: experts, threads: %d}" % threads],
                           context=8192)])
    with Server(text) as server:
        decode(server, "m", 90)
        print("%-16s %12s %10s %14s %s" % ("streams", "tokens/s sum", "of one", "experts read",
                                           "step ms by part, GPU operations"))
        one = None
        for what, seeds in (("one", [0]), ("four different", [1, 2, 3, 4]),
                            ("four copies", [7] * 4)):
            speed = statistics.median(
                together_in_step(server, "m", [s + 10 * i for s in seeds]) for i in range(3))
            one = one or speed
            step = decode_metrics(server)
            print("%-16s %12.1f %9.2fx %14.1f %s" % (
                what, speed, speed / one, step.pop("experts_read"),
                " ".join("%s %.2f" % part for part in step.items())))
            sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["stages"] and len(sys.argv) in (4, 5):
        stages(sys.argv[2], int(sys.argv[3]), float((sys.argv[4:] or ["20"])[0]))
    elif sys.argv[1:2] == ["together"] and len(sys.argv) == 5:
        together(*sys.argv[2:])
    elif sys.argv[1:2] == ["streams"] and len(sys.argv) in (4, 5):
        streams(sys.argv[2], sys.argv[3], int((sys.argv[4:] or [THREADS])[0]))
    else:
        sys.exit(__doc__)
