#!/usr/bin/env python3
"""Stages on several GPUs of one host, through the real coordinator. Prints tables; exit status 1 if
a check failed.

  multi_gpu.py [--devices cuda:0,cuda:1] [--layers 26] [--disturbances 5] [SECTION ...]

Sections, all by default:
  tokens    stages on a card each, over every transport: ids and log-probabilities as one stage's
  failure   SIGKILL and SIGSTOP of stages in mid-stream: served again, with the same tokens
  hops      what a hop takes over each transport, as measured when links are chosen, and in decode
  sidecar   a primary over all cards and a sidecar on the last: alone and at once
  resident  GLM-5.2's shape, experts on the cards and on the CPU, against `packtrain plan`
  streamed  the same with all experts in RAM: prompts at once, over all links and over one

PACKTRAIN_BUILD_DIR and PACKTRAIN_GOLDEN_DIR as for the tests beside this file. Models of real shapes
are made in --scratch (default /dev/shm) and removed. With --devices cpu,cpu and --tiny the script
itself can be tried where there is no GPU.
"""

import argparse
import json
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from failure_test import TOKENS, Watch, run
from one_card import GLM, QWEN, answers, links, model, prompt_of, stage, topology
from serving import Server, alive, in_parallel, wait_until
import serving

# What two cards' links must bring over one card's, of at most 2.
STREAMED_GAIN_MIN = 1.7
STREAMED_PROMPTS = 4
GLM_DENSE = 3  # layers without routed experts, the first ones


class Checks:
    def __init__(self):
        self.failed = 0

    def __call__(self, ok, what, detail=""):
        self.failed += not ok
        print("  %-6s %s%s" % ("ok" if ok else "FAILED", what, f": {detail}" if detail else ""),
              flush=True)
        return ok


class Bench:
    """The options and what the sections share."""

    def __init__(self, options):
        self.devices = options.devices.split(",")
        self.gpu = self.devices[0] != "cpu"
        self.tiny = options.tiny
        self.layers = options.layers
        self.disturbances = options.disturbances
        self.check = Checks()
        self._scratch = tempfile.TemporaryDirectory(prefix="packtrain-multi-", dir=options.scratch)
        self._models = {}
        self.host_measured = False

    def synthetic(self, arch, layers, mix):
        """A model of real shapes, made when it is first asked for."""
        key = (arch, layers, mix)
        if key not in self._models:
            path = pathlib.Path(self._scratch.name) / f"{arch}-{layers}-{mix}.gguf"
            begin = time.monotonic()
            subprocess.run(
                [os.environ.get("PACKTRAIN_NUMPY_PYTHON", sys.executable),
                 str(serving.SOURCE / "tests" / "support" / "synth_gguf.py"), str(path), "--arch",
                 arch, "--layers", str(layers), "--mix", mix, "--jobs", str(os.cpu_count()),
                 *(["--tiny"] if self.tiny else [])], check=True, stdout=subprocess.DEVNULL)
            print("  made %s, %.1f GB, in %.0f s" % (path.name, path.stat().st_size / 1e9,
                                                    time.monotonic() - begin), flush=True)
            self._models[key] = path
        return self._models[key]

    def stages(self, cuts, resident=None, memory_gib=2):
        """One per cut, on the cards in turn. resident: a range per cut."""
        resident = resident or [None] * len(cuts)
        return [stage(cut, experts, memory_gib, self.devices[i % len(self.devices)])
                for i, (cut, experts) in enumerate(zip(cuts, resident))]

    def memory(self):
        """MiB in use on each card."""
        if not self.gpu:
            return []
        out = subprocess.run(["nvidia-smi", "--query-gpu=memory.used",
                              "--format=csv,noheader,nounits"],
                             capture_output=True, text=True, check=True).stdout
        return [int(line) for line in out.split()]

    def transports(self):
        return ["nccl", "shm", "grpc"] if self.gpu else ["shm", "grpc"]

    def close(self):
        self._scratch.cleanup()


def even_cuts(layers, parts, before=0):
    """Inclusive ranges of about as many layers; the first takes the rest and the layers before."""
    each = layers // parts
    ends = [before + layers - each * (parts - 1 - i) for i in range(parts)]
    return ["%d-%d" % (begin, end - 1) for begin, end in zip([0, *ends], ends)]


def random_prompt(length, seed, tiny):
    rng = random.Random(seed)
    return [rng.randrange(300, 2000 if tiny else 150000) for _ in range(length)]


# --- tokens ---------------------------------------------------------------------------------------

def hidden_links(server):
    """Of the links that the coordinator tells of, those that carry activations."""
    return [link for link in links(server)
            if (ends := re.match(r"stage(\d+) - stage(\d+):", link)) and
            int(ends[2]) == int(ends[1]) + 1]


def check_links(bench, server, what, transport, count):
    """All are what was pinned, if anything was."""
    chosen = hidden_links(server)
    bench.check(len(chosen) == count and
                all(re.search(rf": {transport or ''}\b", link) for link in chosen),
                f"{what}: joined by {transport or 'the fastest'}",
                "" if transport else "; ".join(chosen))


def eight_at_once(server, name):
    """The prompts are computed one by one before, so that all that is computed at once is decode
    steps: those are exact, whatever is in them."""
    prompts = [prompt_of(129, 20 + i) for i in range(8)]
    for prompt in prompts:
        server.complete(name, prompt, 1)

    def ask(i):
        choice = server.complete(name, prompts[i], 40, temperature=i % 2, seed=i)["choices"][0]
        return choice["token_ids"], choice["logprobs"]["token_logprobs"]

    return in_parallel([lambda i=i: ask(i) for i in range(8)])


def tokens(bench):
    glm = bench.synthetic("glm-5.2", 7, "iq2_m") if bench.tiny else GLM
    wanted = {}
    count = len(bench.devices)
    # (what, cuts of GLM: 7 layers, full indexers 0 1 4; of Qwen: 8 layers, transport)
    forms = [("one stage on " + device, [(None, device)], [(None, device)], None)
             for device in dict.fromkeys(bench.devices)]

    def on_cards(*cuts):
        return [(cut, bench.devices[i % count]) for i, cut in enumerate(cuts)]

    forms += [("two stages, measured", on_cards("0-3", "4-6"), on_cards("0-3", "4-7"), None),
              ("cut inside an indexer's group, measured", on_cards("0-2", "3-6"),
               on_cards("0-4", "5-7"), None)]
    forms += [("cut inside an indexer's group, " + t, on_cards("0-4", "5-6"), on_cards("0-1", "2-7"),
               t) for t in bench.transports()]
    if count > 2:
        forms.append((f"{count} stages, measured", on_cards(*even_cuts(7, count)),
                      on_cards(*even_cuts(8, count)), None))
    for what, glm_stages, qwen_stages, transport in forms:
        text = topology(
            [model(name, path, [stage(cut, device=device) for cut, device in stages], role,
                   slots=8, ubatch=64)
             for name, path, stages, role in (("glm", glm, glm_stages, "primary"),
                                              ("qwen", QWEN, qwen_stages, "sidecar"))], transport)
        idle = bench.memory()
        with Server(text) as server:
            got = {(name, how.__name__): how(server, name)
                   for name in ("glm", "qwen") for how in (answers, eight_at_once)}
            wanted = wanted or got
            different = [" ".join(key) for key in wanted if got[key] != wanted[key]]
            bench.check(not different, what, " and ".join(different))
            if len(glm_stages) > 1:
                check_links(bench, server, what, transport, 2 * (len(glm_stages) - 1))
            elif bench.gpu:
                own = bench.devices.index(glm_stages[0][1])
                bench.check(all(used - before < 64 for i, (before, used) in
                                enumerate(zip(idle, bench.memory())) if i != own),
                            f"{what}: nothing on the other cards",
                            f"MiB {idle} -> {bench.memory()}")


# --- failure --------------------------------------------------------------------------------------

def failure(bench):
    cuts = ["0-3", "4-6"]
    text = topology([model("glm", GLM, bench.stages(cuts))])
    with Server(text) as server:
        check_links(bench, server, "two stages", None, 1)
        wanted = run(server, "glm")
        bench.check(len(wanted) == TOKENS, "a stream of %d tokens" % len(wanted))
        reported, serving_again = [], []
        before = None
        for i in range(bench.disturbances):
            for number in (signal.SIGKILL, signal.SIGSTOP):
                victim_name = "stage%d" % ((i + (number == signal.SIGSTOP)) % len(cuts))
                victim = server.worker_groups()[0][victim_name]
                begun = threading.Barrier(2, timeout=60)
                watch = []

                def strike():
                    begun.wait()
                    watch.append(Watch(server))
                    os.kill(victim, number)

                try:
                    got = in_parallel([lambda: run(server, "glm", begun), strike])[0]
                    wait_until(lambda: watch[0].found is not None, "serving again")
                finally:
                    for w in watch:
                        w.end()
                reported.append(watch[0].lost)
                serving_again.append(watch[0].found)
                what = f"{number.name} of {victim_name}"
                bench.check(got == wanted and not alive(victim), what, watch[0].times())
            before = before or bench.memory()
        server.wait_idle()
        print("  %d times: reported after at most %.2f s, serving after %.2f s (median %.2f)"
              % (len(reported), max(reported), max(serving_again),
                 statistics.median(serving_again)))
        if bench.gpu:
            after = bench.memory()
            bench.check(all(b - a < 256 for a, b in zip(before, after)),
                        "the cards' memory does not grow", f"MiB {before} -> {after}")


# --- hops -----------------------------------------------------------------------------------------

def decode(server, name, seed, tokens_wanted=64, tiny=False, depth=64):
    reply = server.complete(name, random_prompt(depth, seed, tiny), tokens_wanted)
    return reply["timings"]["predicted_per_second"]


def prefill(server, name, seed, length, tiny=False):
    reply = server.complete(name, random_prompt(length, seed, tiny), 1)
    return reply["timings"]["prompt_per_second"]


def hops(bench):
    layers = 4
    path = bench.synthetic("glm-5.2", layers, "iq2_m")
    cuts = even_cuts(layers, min(len(bench.devices), layers))
    gib = 2 if bench.tiny else 40
    measured = {}
    table = []
    for what, used, transport in [("one stage", ["0-3"], None), ("measured", cuts, None)] + [
            (t, cuts, t) for t in bench.transports()]:
        text = topology([model("glm", path, bench.stages(used, used, gib), context=16384, slots=2,
                               ubatch=8192)], transport)
        with Server(text) as server:
            for link in hidden_links(server):
                for name, size, us in re.findall(r"(\w+) (\d+) bytes (\d+) us", link):
                    measured.setdefault((name, int(size)), []).append(float(us))
            if used == cuts:
                check_links(bench, server, what, transport, len(cuts) - 1)
            if used == cuts and transport is None and bench.gpu:
                bench.check(all(": nccl" in link for link in hidden_links(server)),
                            "large bundles go by nccl")
            decode(server, "glm", 90, tiny=bench.tiny)
            prefill(server, "glm", 91, 8192, bench.tiny)
            step = 1e3 / statistics.median(decode(server, "glm", i, 128, bench.tiny)
                                           for i in range(5))
            chunk = 8192e3 / statistics.median(prefill(server, "glm", 10 + i, 8192, bench.tiny)
                                               for i in range(3))
            table.append((what, step, chunk, bench.memory()))
    print("  %-10s %12s %10s %10s" % ("link", "bytes", "us", "GB/s"))
    for (name, size), times in sorted(measured.items(), key=lambda m: (m[0][1], m[0][0])):
        us = statistics.median(times)
        print("  %-10s %12d %10.0f %10.2f" % (name, size, us, size / us / 1e3))
    print("  %-10s %12s %16s %16s   %s" % ("form", "decode, ms", "a hop of it, us",
                                          "8192 tokens, ms", "cards' memory, MiB"))
    for what, step, chunk, memory in table:
        print("  %-10s %12.3f %16.0f %16.1f   %s" % (
            what, step, (step - table[0][1]) * 1e3 / max(len(cuts) - 1, 1), chunk, memory))


# --- sidecar --------------------------------------------------------------------------------------

def sidecar(bench):
    glm = bench.synthetic("glm-5.2", 12, "iq2_m")
    qwen = bench.synthetic("qwen3.6-35b-a3b", 40, "q4")
    cuts = even_cuts(12, len(bench.devices))
    gib = 2 if bench.tiny else 40
    text = topology([model("primary", glm, bench.stages(cuts, cuts, gib), context=8192),
                     model("sidecar", qwen, [stage(memory_gib=gib, device=bench.devices[-1])],
                           "sidecar", context=8192)])
    speeds = {"decode": lambda s, name, i: decode(s, name, i, 96, bench.tiny),
              "prefill 2048": lambda s, name, i: prefill(s, name, i, 2048, bench.tiny)}
    with Server(text) as server:
        print("  " + "; ".join(hidden_links(server)))
        print("  %-14s %-8s %12s %12s %8s" % ("", "", "alone/s", "at once/s", "kept"))
        for what, speed in speeds.items():
            alone, seed = {}, 100
            for name in ("primary", "sidecar"):
                speed(server, name, 90)
                alone[name] = statistics.median(speed(server, name, i) for i in range(3))
            together = {name: [] for name in alone}

            def keep(name):
                """Until both have been measured three times."""
                i = seed
                while min(len(values) for values in together.values()) < 3:
                    together[name].append(speed(server, name, i))
                    i += 1

            in_parallel([lambda n=name: keep(n) for name in alone])
            for name, value in alone.items():
                both = statistics.median(together[name])
                print("  %-14s %-8s %12.1f %12.1f %7.0f%%" % (what, name, value, both,
                                                            100 * both / value))
                bench.check(both > 0, f"{name} works beside the other, {what}")


# --- the large model ------------------------------------------------------------------------------

def predicted(text):
    """What `packtrain plan` says of the first model of a topology."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        done = subprocess.run([str(serving.PACKTRAIN), "plan", file.name, "--json"],
                              capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("no plan: " + done.stderr)
    return json.loads(done.stdout)["deployments"][0]["predicted"]


def planned(plan, what, length):
    """Tokens/s of decode or prefill at the nearest depth or length that the plan tells of."""
    of = {"decode": "depth", "prefill": "prompt"}[what]
    return min(plan[what], key=lambda at: abs(at[of] - length))["tokens_per_s"]


def doctor(bench):
    """Leaves the facts that `predicted` goes by, once; every card has been measured."""
    if bench.host_measured:
        return
    bench.host_measured = True
    report = json.loads(subprocess.run([str(serving.PACKTRAIN), "doctor", "--json"],
                                       capture_output=True, text=True, check=True).stdout)
    rates = [gpu["bf16_tflops"] for gpu in report["facts"]["gpus"]]
    bench.check(not bench.gpu or (len(rates) >= len(bench.devices) and min(rates) > 0),
                "doctor measures every card", f"TFLOP/s {[round(rate) for rate in rates]}")


def experts_worker():
    return "{device: cpu, role: experts, threads: %d}" % max((os.cpu_count() or 2) - 2, 1)


def compare(what, got, wanted):
    print("  %-34s %10.1f %12.1f %+7.0f%%" % (what, got, wanted, 100 * (wanted / got - 1)),
          flush=True)


def resident(bench):
    """All experts on the cards but for those of the last two layers of each stage."""
    doctor(bench)
    path = bench.synthetic("glm-5.2", bench.layers, "iq2_m")
    cuts = even_cuts(bench.layers, len(bench.devices))
    own = [re.sub(r"\d+$", lambda end: str(int(end[0]) - 2), cut) for cut in cuts]
    text = topology([model("glm", path, bench.stages(cuts, own, 2 if bench.tiny else None) +
                           [experts_worker()], context=16384)])
    plan = predicted(text)
    begin = time.monotonic()
    with Server(text) as server:
        print("  serving after %.0f s; %s" % (time.monotonic() - begin, "; ".join(hidden_links(server))))
        decode(server, "glm", 90, tiny=bench.tiny)
        prefill(server, "glm", 91, 2048, bench.tiny)
        print("  %-34s %10s %12s %8s" % ("tokens/s", "measured", "planned", ""))
        compare("decode behind 512", statistics.median(
            decode(server, "glm", i, 96, bench.tiny, 512) for i in range(3)),
            planned(plan, "decode", 512))
        for length in (2048, 8192):
            compare(f"prefill {length}", statistics.median(
                prefill(server, "glm", length + i, length, bench.tiny) for i in range(3)),
                planned(plan, "prefill", length))
        streams = in_parallel([lambda i=i: decode(server, "glm", 50 + i, 96, bench.tiny)
                               for i in range(4)])
        print("  four streams at once, in sum %.1f tokens/s" % sum(streams))
        print("  binding: decode %s, prefill %s; memory in use, MiB: %s" % (
            plan["decode_bound"], plan["prefill_bound"], bench.memory()))


def all_prompts(server, length, tiny):
    """Tokens/s over all prompts, sent at once."""
    begin = time.monotonic()
    in_parallel([lambda i=i: server.complete("glm", random_prompt(length, 500 + i, tiny), 1)
                 for i in range(STREAMED_PROMPTS)])
    return STREAMED_PROMPTS * length / (time.monotonic() - begin)


def streamed(bench):
    """The same model and prompts, once with all layers on the first card and once spread over all
    cards: each card streams its own layers' experts, and chunks of the prompts follow each other
    so closely that all cards stream at once."""
    doctor(bench)
    path = bench.synthetic("glm-5.2", bench.layers, "iq2_m")
    length = 256 if bench.tiny else 8192  # what `plan` tells of
    speed = {}
    for count in (1, len(bench.devices)):
        cuts = even_cuts(bench.layers - GLM_DENSE, count, GLM_DENSE)
        text = topology([model("glm", path, bench.stages(cuts, ["none"] * count,
                                                         2 if bench.tiny else 70) +
                               [experts_worker()], context=length + 64, slots=STREAMED_PROMPTS,
                               ubatch=64 if bench.tiny else 2048)])
        plan = planned(predicted(text), "prefill", length)
        begin = time.monotonic()
        with Server(text) as server:
            print("  %d card(s): serving after %.0f s %s" % (count, time.monotonic() - begin,
                                                            "; ".join(hidden_links(server))))
            prefill(server, "glm", 90, length, bench.tiny)
            alone = prefill(server, "glm", 91, length, bench.tiny)
            speed[count] = all_prompts(server, length, bench.tiny)
            print("  %d card(s): %d prompts of %d at once %.0f tokens/s"
                  % (count, STREAMED_PROMPTS, length, speed[count]), flush=True)
            compare("one prompt, %d card(s), planned" % count, alone, plan)
    gain = speed[len(bench.devices)] / speed[1]
    bench.check(not bench.gpu or gain >= STREAMED_GAIN_MIN,
                "%d cards' links at once against one" % len(bench.devices),
                "%.2f times, at least %.1f wanted" % (gain, STREAMED_GAIN_MIN))


SECTIONS = {f.__name__: f for f in (tokens, failure, hops, sidecar, resident, streamed)}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--devices", default="cuda:0,cuda:1")
    parser.add_argument("--layers", type=int, default=26, help="of the large model")
    parser.add_argument("--disturbances", type=int, default=5, help="of each kind")
    parser.add_argument("--scratch", default="/dev/shm")
    parser.add_argument("--tiny", action="store_true", help="small models")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error("no section %s" % " ".join(unknown))
    serving.START_TIMEOUT = serving.REPLY_TIMEOUT = 400
    bench = Bench(options)
    try:
        for name in options.sections or SECTIONS:
            print(f"{name}:", flush=True)
            begin = time.monotonic()
            try:
                SECTIONS[name](bench)
            except Exception as error:  # the other sections still tell something
                bench.check(False, name, f"{type(error).__name__}: {error}"[-3000:])
            print("  (%.0f s)" % (time.monotonic() - begin), flush=True)
    finally:
        bench.close()
    print("%d checks failed" % bench.check.failed)
    sys.exit(1 if bench.check.failed else 0)


if __name__ == "__main__":
    main()
