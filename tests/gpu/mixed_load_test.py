"""Mixed load on one card leaves memory flat: two models, prompts of all lengths, short and long
answers, clients that leave. Samples the card's memory and that of every process.

PACKTRAIN_SOAK_SECONDS (default 60; 480 for the real thing). PACKTRAIN_SOAK_PRIMARY and _SIDECAR
name models; default: tiny ones. PACKTRAIN_SOAK_RESIDENT: the primary's experts on the card, the
others are on the CPU."""

import os
import pathlib
import random
import subprocess
import threading
import time
import unittest

from one_card import DEVICE, GLM, QWEN, model, prompt_of, stage, topology
from serving import Server, descendants, in_parallel

SECONDS = float(os.environ.get("PACKTRAIN_SOAK_SECONDS", "60"))
PRIMARY = os.environ.get("PACKTRAIN_SOAK_PRIMARY", GLM)
SIDECAR = os.environ.get("PACKTRAIN_SOAK_SIDECAR", QWEN)
RESIDENT = os.environ.get("PACKTRAIN_SOAK_RESIDENT", "3")
GIB = 2 if PRIMARY == GLM else 60
CONTEXT = 2048 if PRIMARY == GLM else 16384
CLIENTS = 6
# Between a quarter of the time and the end; allocators of host memory keep some of what they free.
GPU_GROWTH_MAX = 32 << 20
HOST_GROWTH_MAX = 128 << 20


def gpu_bytes():
    out = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits",
                          "-i", DEVICE.split(":")[1]], capture_output=True, text=True, check=True)
    return int(out.stdout.split()[0]) << 20


def host_bytes(server):
    """Memory of its own that each process has; weight segments are not."""
    total = 0
    for pid in [server.pid, *descendants(server.pid)]:
        try:
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines())
        total += int(fields.get("RssAnon", "0 kB").split()[0]) << 10
    return total


class MixedLoadTest(unittest.TestCase):
    def test_memory_is_flat_under_mixed_load(self):
        text = topology([
            model("primary", PRIMARY, [stage(resident=RESIDENT, memory_gib=GIB),
                                       "{device: cpu, role: experts}"], context=CONTEXT,
                  threads=max((os.cpu_count() or 4) - 2, 1)),
            model("sidecar", SIDECAR, [stage(memory_gib=GIB)], "sidecar", context=CONTEXT)])
        with Server(text) as server:
            end = time.monotonic() + SECONDS
            counts = {"finished": 0, "left": 0, "tokens": 0}
            lock = threading.Lock()

            def client(i):
                rng = random.Random(i)
                while time.monotonic() < end:
                    longest = CONTEXT // 2 if rng.random() < 0.2 else 200
                    body = {"model": rng.choice(["primary", "sidecar"]), "ignore_eos": True,
                            "prompt": prompt_of(rng.randrange(1, longest), rng.randrange(8)),
                            "max_tokens": rng.randrange(1, 120), "seed": i}
                    leave_after = rng.randrange(20) if rng.random() < 0.25 else None
                    stream = server.stream("/v1/completions", body)
                    received = 0
                    for received, _ in enumerate(stream):
                        if received == leave_after:
                            break
                    stream.close()
                    with lock:
                        counts["left" if received == leave_after else "finished"] += 1
                        counts["tokens"] += received

            samples = []

            def watch():
                begin = time.monotonic()
                while time.monotonic() < end:
                    samples.append((time.monotonic() - begin, gpu_bytes(), host_bytes(server)))
                    time.sleep(max(SECONDS / 200, 0.5))

            in_parallel([watch] + [lambda i=i: client(i) for i in range(CLIENTS)])
            server.wait_idle()
            print("  %8s %12s %12s" % ("second", "GPU MiB", "host MiB"))
            for at, gpu, host in samples[::max(len(samples) // 12, 1)]:
                print("  %8.0f %12d %12d" % (at, gpu >> 20, host >> 20))
            print("  %(finished)d requests finished, %(left)d left early, %(tokens)d chunks" % counts,
                  flush=True)
            settled = [s for s in samples if s[0] >= SECONDS / 4]
            self.assertGreater(len(settled), 5)
            self.assertGreater(counts["finished"], 10)
            # Medians of the first and the last tenth of what is left.
            tenth = max(len(settled) // 10, 1)
            for what, index, most in (("GPU", 1, GPU_GROWTH_MAX), ("host", 2, HOST_GROWTH_MAX)):
                first = sorted(s[index] for s in settled[:tenth])[tenth // 2]
                last = sorted(s[index] for s in settled[-tenth:])[tenth // 2]
                print("  %s from second %.0f to %.0f: %d to %d MiB" %
                      (what, settled[0][0], settled[-1][0], first >> 20, last >> 20), flush=True)
                self.assertLessEqual(last - first, most, what)


if __name__ == "__main__":
    unittest.main(verbosity=2)
