"""Workers that die or stand still in mid-step beside a GPU: the deployment reports it, nobody
hangs, a replacement serves, streams go on with the same tokens; what does not fit is refused with
the bill, and a machine without NVIDIA's libraries is told so. Prints how long each took."""

import ctypes
import os
import pathlib
import shutil
import signal
import tempfile
import threading
import time
import unittest

from one_card import (EXPERTS, GLM, QWEN, SeparateNcclHosts, model, prompt_of, serving, stage,
                      topology)
from serving import Server, alive, in_parallel, wait_until

TOKENS = 400


class Watch:
    """Polls /ready until it has been lost and found again."""

    def __init__(self, server):
        self.begin = time.monotonic()
        self.lost = self.found = None
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._stop.is_set() and self.found is None:
            ready = self._server.get("/ready")[0] == 200
            now = time.monotonic() - self.begin
            if self.lost is None and not ready:
                self.lost = now
            elif self.lost is not None and ready:
                self.found = now
            time.sleep(0.005)

    def end(self):
        self._stop.set()
        self._thread.join()

    def times(self):
        return " ".join("%s %s" % (what, "not seen" if t is None else "after %.2f s" % t)
                        for what, t in (("reported", self.lost), ("serving", self.found)))


def run(server, name, begun=None, seed=0):
    ids = []
    body = {"model": name, "prompt": prompt_of(60, seed), "max_tokens": TOKENS, "ignore_eos": True,
            "temperature": 0, "return_token_ids": True}
    for chunk in server.stream("/v1/completions", body):
        for choice in chunk["choices"]:
            ids += choice.get("token_ids", [])
        if begun is not None and len(ids) > 30:
            begun.wait()
            begun = None
    return ids


class FailureTest(unittest.TestCase):
    def disturb(self, text, victims):
        """victims: [(worker of the primary, signal)]"""
        with Server(text) as server:
            names = ["glm", "qwen"] if "qwen" in text else ["glm"]
            wanted = [run(server, name) for name in names]
            self.assertEqual([len(ids) for ids in wanted], [TOKENS] * len(names))
            for victim_name, number in victims:
                with self.subTest(victim_name, signal=number.name):
                    victim = server.worker_groups()[0][victim_name]  # of the largest deployment
                    begun = threading.Barrier(len(names) + 1, timeout=60)
                    watch = []

                    def strike():
                        begun.wait()
                        watch.append(Watch(server))
                        os.kill(victim, number)

                    jobs = [lambda n=n: run(server, n, begun) for n in names]
                    try:
                        got = in_parallel([*jobs, strike])[:-1]
                        wait_until(lambda: watch[0].found is not None, "serving again")
                    finally:
                        for w in watch:
                            w.end()
                    print(f"  {number.name} of {victim_name}: {watch[0].times()}", flush=True)
                    self.assertEqual(got, wanted)
                    self.assertFalse(alive(victim))
            server.wait_idle()

    def test_the_experts_worker_of_a_gpu_stage_dies_or_stands_still(self):
        self.disturb(topology([model("glm", GLM, [stage(resident="3"), EXPERTS]),
                               model("qwen", QWEN, [stage()], "sidecar")]),
                     [("experts0", signal.SIGKILL), ("experts0", signal.SIGSTOP)])

    def test_the_gpu_stage_itself_dies_or_stands_still(self):
        self.disturb(topology([model("glm", GLM, [stage(resident="3"), EXPERTS]),
                               model("qwen", QWEN, [stage()], "sidecar")]),
                     [("stage0", signal.SIGKILL), ("stage0", signal.SIGSTOP)])

    def test_one_of_two_stages_joined_by_nccl_dies_or_stands_still(self):
        with SeparateNcclHosts():
            self.disturb(topology([model("glm", GLM, [stage("0-3"), stage("4-6")])], "nccl"),
                         [("stage0", signal.SIGKILL), ("stage1", signal.SIGKILL),
                          ("stage1", signal.SIGSTOP), ("stage0", signal.SIGSTOP)])

    def test_what_does_not_fit_is_refused_with_the_bill(self):
        with self.assertRaises(AssertionError) as refused:
            Server(topology([model("glm", GLM, [stage(memory_gib=0.5)])])).__enter__()
        print("  " + str(refused.exception).splitlines()[-1][:200], flush=True)
        self.assertRegex(str(refused.exception), "[GM]iB")

    def test_a_card_that_somebody_else_fills_is_no_crash(self):
        hog = fill_card(leave=300 << 20)
        try:
            with self.assertRaises(AssertionError) as refused:
                Server(topology([model("glm", GLM, [stage()])])).__enter__()
            print("  " + str(refused.exception).splitlines()[-1][:300], flush=True)
            self.assertRegex(str(refused.exception), "[GM]iB")
        finally:
            hog()
        with Server(topology([model("glm", GLM, [stage()])])) as server:
            self.assertEqual(len(run(server, "glm")), TOKENS)

    def test_without_the_cuda_library_the_gpu_is_refused_in_one_line(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "bin").mkdir()
            (folder / "lib").mkdir()
            for program in ("packtrain", "packtrain-worker"):
                shutil.copy(serving.BUILD / "bin" / program, folder / "bin")
            for library in (serving.BUILD / "lib").iterdir():
                if library.name != "libpacktrain_cuda.so":
                    (folder / "lib" / library.name).symlink_to(library)
            packtrain, serving.PACKTRAIN = serving.PACKTRAIN, folder / "bin" / "packtrain"
            try:
                with self.assertRaises(AssertionError) as refused:
                    Server(topology([model("glm", GLM, [stage()])])).__enter__()
            finally:
                serving.PACKTRAIN = packtrain
        self.assertIn("cannot use a GPU", str(refused.exception))
        self.assertIn("libpacktrain_cuda.so", str(refused.exception))


def fill_card(leave):
    """Takes the card's memory but for `leave` bytes; returns what gives it back."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    taken = ctypes.c_uint64()

    def call(name, *arguments):
        code = getattr(cuda, name)(*arguments)
        if code != 0:
            raise AssertionError(f"{name}: CUDA error {code}")

    call("cuInit", 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    call("cuCtxSetCurrent", context)
    call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    call("cuMemAlloc_v2", ctypes.byref(taken), ctypes.c_size_t(free.value - leave))

    def give_back():
        call("cuMemFree_v2", taken)
        call("cuDevicePrimaryCtxRelease_v2", 0)

    return give_back


if __name__ == "__main__":
    unittest.main(verbosity=2)
