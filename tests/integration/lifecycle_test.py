"""Who lives and who dies: both models generate at once; nothing outlives the coordinator, however it
ends; a worker that is killed in mid-stream is replaced, and its streams go on as if nothing were."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest

from serving import (PRIMARY, SIDECAR, WORKER, Server, alive, demo_prompt, descendants,
                     in_parallel, wait_until)

DEMO = f"""
models:
  - name: primary
    path: {PRIMARY}
    threads: 1
    workers: [{{device: cpu}}, {{device: cpu}}, {{device: cpu, role: experts}}]
  - {{name: sidecar, role: sidecar, path: {SIDECAR}, threads: 1, workers: [{{device: cpu}}]}}
"""
CHAT = "/v1/chat/completions"


def chat(model, text="Tell me a story.", max_tokens=300):
    return {"model": model, "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens, "ignore_eos": True, "return_token_ids": True}


class LifecycleTest(unittest.TestCase):
    def expect_all_gone(self, pids, log):
        wait_until(lambda: not any(map(alive, pids)), f"gone: {pids}\n{log}", 30)

    def test_both_models_stream_while_both_generate(self):
        with Server(DEMO) as server:
            begun = threading.Barrier(2, timeout=60)
            unfinished = []

            def run(model):
                text = ""
                for i, chunk in enumerate(server.stream(CHAT, chat(model))):
                    text += "".join(c["delta"].get("content") or "" for c in chunk["choices"])
                    if i == 5:
                        begun.wait()  # neither goes on before the other has begun
                        unfinished.append(model)
                return text

            texts = in_parallel([lambda: run("primary"), lambda: run("sidecar")])
            self.assertEqual(sorted(unfinished), ["primary", "sidecar"])
            for text in texts:
                self.assertGreater(len(text), 300)

    def test_what_workers_hold_stands_beside_the_plan(self):
        with Server(DEMO) as server:
            status, text = server.get("/plan")
            self.assertEqual(status, 200, text)
            plan = json.loads(text)
            uses = {use["worker"]: use for device in plan["devices"] for use in device["uses"]}
            self.assertEqual(set(uses), {"primary/stage0", "primary/stage1", "primary/experts0",
                                         "sidecar/stage0"})
            metrics = server.metrics()
            for worker, use in uses.items():
                model, name = worker.split("/")
                weights = use["loaded"]["weights"]
                self.assertAlmostEqual(weights["actual_bytes"] / weights["predicted_bytes"], 1,
                                       delta=0.03, msg=worker)
                key = ('packtrain_worker_memory_bytes{item="weights",kind="actual",'
                       f'model="{model}",worker="{name}"}}')
                self.assertEqual(metrics[key], weights["actual_bytes"])

    def test_no_worker_survives_a_killed_coordinator(self):
        server = Server(DEMO)
        with server:
            pids = descendants(server.pid)
            self.assertEqual(len(server.workers()), 4, pids)
            stream = server.stream(CHAT, chat("primary", max_tokens=1500))
            next(stream)
            server.kill()
            self.expect_all_gone(pids, "")
            stream.close()

    def test_a_killed_coordinator_leaves_nobody_behind_while_loading(self):
        server = Server(DEMO)
        wait_until(lambda: descendants(server.pid), "a first child")
        pids = descendants(server.pid)
        server.kill()
        self.expect_all_gone(pids, "")
        server.__exit__()

    def test_a_signal_ends_everything_cleanly(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number), Server(DEMO) as server:
                pids = descendants(server.pid)
                stream = server.stream(CHAT, chat("primary", max_tokens=1500))
                next(stream)
                server.process.send_signal(number)
                self.assertEqual(server.process.wait(30), 0, server.log())
                self.expect_all_gone(pids, "")
                self.assertNotIn("error", server.log())
                stream.close()

    def test_a_signal_while_loading_ends_everything(self):
        server = Server(DEMO)
        wait_until(lambda: descendants(server.pid), "a first child")
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(30), 0, server.log())
        server.__exit__()

    def test_a_killed_worker_is_replaced_and_its_streams_go_on(self):
        tokens = 200
        requests = [("primary", demo_prompt("primary", -1)[:300], 0, 0),
                    ("primary", demo_prompt("primary", 3), 1, 5),
                    ("sidecar", demo_prompt("sidecar", -1)[:300], 1, 6),
                    ("sidecar", demo_prompt("sidecar", 3), 0, 0)]

        def run(server, model, prompt, temperature, seed, begun=None):
            ids = []
            body = {"model": model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True,
                    "temperature": temperature, "seed": seed, "return_token_ids": True}
            for chunk in server.stream("/v1/completions", body):
                for choice in chunk["choices"]:
                    ids += choice.get("token_ids", [])
                if begun is not None and len(ids) > 20:
                    begun.wait()
                    begun = None
            return ids

        with Server(DEMO) as server:
            wanted = [run(server, *request) for request in requests]
            self.assertEqual([len(ids) for ids in wanted], [tokens] * 4)
            primary, sidecar = server.worker_groups()
            for group, name in ((0, "stage0"), (0, "stage1"), (0, "experts0"), (1, "stage0")):
                with self.subTest(name, group=group):
                    victim = server.worker_groups()[group][name]
                    begun = threading.Barrier(len(requests) + 1, timeout=60)

                    def kill():
                        begun.wait()
                        os.kill(victim, signal.SIGKILL)

                    jobs = [lambda r=r: run(server, *r, begun) for r in requests]
                    self.assertEqual(in_parallel([*jobs, kill])[:-1], wanted)
                    self.assertNotEqual(server.worker_groups()[group][name], victim)
            # The other deployment kept its worker through all of the primary's deaths.
            self.assertEqual(len(server.workers()), 4)
            server.wait_idle()

    def test_a_model_file_that_is_cut_while_it_is_served_ends_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / "copy.gguf"
            shutil.copy(PRIMARY, copy)
            with Server(DEMO.replace(str(PRIMARY), str(copy))) as server:
                before = server.complete("primary", demo_prompt("primary", 3))
                os.truncate(copy, 10_000)
                after = server.complete("primary", demo_prompt("primary", 3))
                self.assertEqual(after["choices"], before["choices"])
                # A new worker has its weights in memory but reads the file's header again.
                os.kill(server.worker_groups()[0]["stage0"], signal.SIGKILL)
                wait_until(lambda: re.search("replacing failed: .*copy.gguf", server.log()),
                           "a worker that names the file")
                status, _ = server.post(CHAT, chat("sidecar", max_tokens=5))
                self.assertEqual(status, 200, server.log())

    def test_a_worker_that_always_dies_fails_its_model_alone(self):
        with Server(DEMO) as server:
            deaths = 0
            while "primary" not in [m for m in ("primary",) if "failed: " + m in server.log()]:
                victim = server.worker_groups()[0].get("stage0")
                if victim is not None and alive(victim):
                    os.kill(victim, signal.SIGKILL)
                    deaths += 1
                    wait_until(lambda: not alive(victim), "dead")
                self.assertLess(deaths, 200)
            status, _ = server.post(CHAT, chat("sidecar", max_tokens=5))
            self.assertEqual(status, 200)
            status, reply = server.post(CHAT, chat("primary", max_tokens=5))
            self.assertEqual(status, 503, reply)


class WorkerTest(unittest.TestCase):
    def test_wrong_flags_are_refused_in_one_line(self):
        for flags in (["--device", "tpu"], ["--listen", "nonsense"], ["--what"], []):
            with self.subTest(flags):
                result = subprocess.run([str(WORKER), *flags], capture_output=True, text=True,
                                        timeout=60)
                self.assertNotEqual(result.returncode, 0)
                self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
