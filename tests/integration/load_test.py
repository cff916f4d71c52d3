"""Many clients, rude clients, long prompts: nothing leaks, nothing gets stuck, nobody is harmed.

PACKTRAIN_SOAK_SECONDS sets how long the soak takes (default: 8; 120 for the real thing).
"""

import itertools
import os
import pathlib
import random
import socket
import threading
import time
import unittest

from serving import PRIMARY, SIDECAR, Server, demo_prompt, descendants, in_parallel

SOAK_SECONDS = float(os.environ.get("PACKTRAIN_SOAK_SECONDS", "8"))
STREAMS = 64
IDLE_CONNECTIONS = 1000

DEMO = f"""
models:
  - name: primary
    path: {PRIMARY}
    threads: 1
    ubatch: 64
    workers: [{{device: cpu}}, {{device: cpu}}, {{device: cpu, role: experts}}]
  - {{name: sidecar, role: sidecar, path: {SIDECAR}, threads: 1, workers: [{{device: cpu}}]}}
"""


def usage(server):
    """{process: (descriptors, resident bytes, threads)} of the coordinator and its workers."""
    result = {}
    for pid in [server.pid, *descendants(server.pid)]:
        process = pathlib.Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        result[pid] = (len(list((process / "fd").iterdir())),
                       int(status["VmRSS"].split()[0]) << 10, int(status["Threads"]))
    return result


def soak(server, seconds):
    """STREAMS clients at once, each with one request after the other, three at least however slow
    the machine is; every third leaves early. Returns how many requests were (finished, left)."""
    end = time.monotonic() + seconds
    counts = [0, 0]
    lock = threading.Lock()

    def client(i):
        rng = random.Random(i)
        for request in itertools.count():
            if request >= 3 and time.monotonic() > end:
                return
            model = rng.choice(["primary", "sidecar"])
            start = rng.randrange(600)
            body = {"model": model, "prompt": demo_prompts[model][start:start + rng.randrange(1, 99)],
                    "max_tokens": rng.randrange(1, 60), "ignore_eos": True, "seed": i}
            leave_after = rng.randrange(0, 20) if rng.random() < 1 / 3 else None
            stream = server.stream("/v1/completions", body)
            reason = None
            for n, chunk in enumerate(stream):
                if n == leave_after:
                    break
                reason = chunk["choices"][0]["finish_reason"] if chunk["choices"] else reason
            left = reason is None
            stream.close()
            if left and leave_after is None:
                raise AssertionError("a stream ended without a reason")
            with lock:
                counts[left] += 1

    demo_prompts = {model: demo_prompt(model, -1) for model in ("primary", "sidecar")}
    in_parallel([lambda i=i: client(i) for i in range(STREAMS)])
    return counts


class LoadTest(unittest.TestCase):
    def test_streams_and_cancellations_leave_nothing_behind(self):
        # AddressSanitizer, where it is built in, would keep 256 MB of what is freed.
        with Server(DEMO, env={"ASAN_OPTIONS": "quarantine_size_mb=4"}) as server:
            # Caches, pools and allocators fill up first.
            soak(server, SOAK_SECONDS / 3)
            server.wait_idle()
            before = usage(server)
            finished, left = soak(server, SOAK_SECONDS)
            server.wait_idle()
            after = usage(server)
            print(f"{finished} requests finished, {left} left; "
                  f"{ {p: tuple(b - a for a, b in zip(before[p], after[p])) for p in before} }")
            self.assertGreater(finished, STREAMS)
            self.assertGreater(left, STREAMS / 4)
            self.assertEqual(before.keys(), after.keys())
            for pid in before:
                for what, a, b, slack in zip(("descriptors", "bytes", "threads"), before[pid],
                                             after[pid], (8, 32 << 20, 8)):
                    self.assertLessEqual(b, a + slack, f"{what} of process {pid}")
            self.assertNotIn("error", server.log())

    def test_a_thousand_idle_connections_and_a_slow_reader_harm_nobody(self):
        # As a shell starts it: with a soft limit of 1024 descriptors.
        with Server(DEMO, prefix=("prlimit", "--nofile=1024:")) as server:
            prompt = demo_prompt("primary", 3)
            wanted = server.complete("primary", prompt)["choices"][0]["token_ids"]
            idle = []
            for _ in range(IDLE_CONNECTIONS):
                connection = server.connect()
                connection.request("GET", "/health")
                self.assertEqual(connection.getresponse().read()[:1], b"{")
                idle.append(connection)
            self.assertGreaterEqual(server.metrics()["packtrain_http_connections"],
                                    IDLE_CONNECTIONS)

            slow = socket.create_connection(("127.0.0.1", server.port))
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            body = ('{"model": "primary", "prompt": "a", "max_tokens": 1500, "ignore_eos": true,'
                    ' "stream": true, "logprobs": 5}')
            slow.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}"
                         f"\r\n\r\n{body}".encode())
            slow.recv(1)

            jobs = [lambda: server.complete("primary", prompt) for _ in range(12)]
            for reply in in_parallel(jobs):
                self.assertEqual(reply["choices"][0]["token_ids"], wanted)
            # What the slow one did not read in time was kept for it, and all of it arrives.
            received = b""
            while b"[DONE]" not in received[-200:]:
                part = slow.recv(65536)
                self.assertNotEqual(part, b"", "the slow reader was cut off")
                received += part
            slow.close()
            for connection in idle:
                connection.request("GET", "/health")
                self.assertEqual(connection.getresponse().read()[:1], b"{")
                connection.close()
            server.wait_idle()

    def test_a_client_that_never_reads_is_forgotten_when_it_leaves(self):
        with Server(DEMO) as server:
            body = ('{"model": "sidecar", "prompt": "a", "max_tokens": 2000, "ignore_eos": true,'
                    ' "stream": true, "logprobs": 5, "n": 8}')
            rude = socket.create_connection(("127.0.0.1", server.port))
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            rude.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}"
                         f"\r\n\r\n{body}".encode())
            rude.recv(1)
            self.assertEqual(len(server.complete("sidecar", [5, 6, 7])["choices"][0]["token_ids"]),
                             32)
            rude.close()
            server.wait_idle()

    def test_a_long_prefill_and_a_decoding_stream_share_the_pipeline(self):
        # 1990 tokens in chunks of 64 are 32 chunks. Two of them may pass, one per stage, between
        # two tokens of the stream; what is counted is tokens, not time.
        prompt = (demo_prompt("primary", -1) * 3)[:1990]
        with Server(DEMO) as server:
            stream = server.stream("/v1/completions", {
                "model": "primary", "prompt": [5, 6, 7], "max_tokens": 1900, "ignore_eos": True,
                "logprobs": 0})
            for _ in range(5):
                next(stream)
            got_first_token = threading.Event()

            def prefill():
                server.complete("primary", prompt, max_tokens=1)
                got_first_token.set()

            thread = threading.Thread(target=prefill)
            thread.start()
            tokens = 0
            for chunk in stream:
                if got_first_token.is_set():
                    break
                tokens += sum(len(c["logprobs"]["tokens"]) for c in chunk["choices"])
            thread.join()
            stream.close()
            print(f"{tokens} tokens decoded during a prefill of 32 chunks")
            self.assertGreaterEqual(tokens, 14)


if __name__ == "__main__":
    unittest.main(verbosity=2)
