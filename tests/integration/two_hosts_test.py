"""Two hosts, played by two network namespaces with a veth pair between them: a pipeline that spans
both gives the tokens of one process. Needs root and network namespaces; skipped otherwise."""

import ctypes
import os
import subprocess
import sys
import unittest

from serving import (PRIMARY, SIDECAR, SKIPPED, WORKER, Server, alive, demo_prompt, one_process)

CLONE_NEWNET = 0x40000000
HERE, THERE = f"packtrain-{os.getpid()}-a", f"packtrain-{os.getpid()}-b"
ADDRESS_HERE, ADDRESS_THERE = "10.199.77.1", "10.199.77.2"
PORT = 7071


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def make_hosts():
    ip("netns", "add", HERE)
    ip("netns", "add", THERE)
    ip("link", "add", "pt-a", "netns", HERE, "type", "veth", "peer", "name", "pt-b", "netns", THERE)
    for host, link, address in ((HERE, "pt-a", ADDRESS_HERE), (THERE, "pt-b", ADDRESS_THERE)):
        ip("-n", host, "address", "add", address + "/24", "dev", link)
        ip("-n", host, "link", "set", link, "up")
        ip("-n", host, "link", "set", "lo", "up")


def remove_hosts():
    for host in (HERE, THERE):
        subprocess.run(["ip", "netns", "delete", host], capture_output=True, check=False)


def enter(host):
    """This thread, and what it starts from now on, lives in that namespace."""
    with open(f"/var/run/netns/{host}") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def topology(path, workers, insecure=True):
    return f"""
insecure: {str(insecure).lower()}
hosts: [{{name: here}}, {{name: there}}]
models:
  - name: model
    path: {path}
    threads: 1
    workers:
""" + "".join(f"      - {{{worker}}}\n" for worker in workers)


THERE_AT = f"device: there/cpu, address: '{ADDRESS_THERE}:{PORT}'"


class TwoHostsTest(unittest.TestCase):
    def setUp(self):
        self.worker = subprocess.Popen(
            ["ip", "netns", "exec", THERE, str(WORKER), "--listen", f"{ADDRESS_THERE}:{PORT}",
             "--device", "cpu", "--insecure"])

    def tearDown(self):
        self.worker.terminate()
        self.assertEqual(self.worker.wait(30), 0)

    def test_a_pipeline_over_both_gives_the_tokens_of_one_process(self):
        for path, name in ((PRIMARY, "primary"), (SIDECAR, "sidecar")):
            request = {"prompt": demo_prompt(name, -1)[:400], "max_tokens": 24, "temperature": 1,
                       "seed": 9}
            wanted = one_process(path, [request])[0]["token_ids"]
            # One worker there serves one coordinator after the other, in one role after the other.
            for workers in (["device: here/cpu", THERE_AT],
                            [f"{THERE_AT}, layers: 0-2", "device: here/cpu, layers: 3-7"],
                            ["device: here/cpu", f"{THERE_AT}, role: experts"]):
                with self.subTest(name, workers=workers):
                    with Server(topology(path, workers)) as server:
                        reply = server.complete("model", **request)
                        self.assertEqual(reply["choices"][0]["token_ids"], wanted)
                    self.assertTrue(alive(self.worker.pid))

    def test_plain_connections_must_be_allowed(self):
        server = Server(topology(PRIMARY, ["device: here/cpu", THERE_AT], insecure=False))
        self.assertEqual(server.process.wait(60), 1)
        self.assertIn("insecure: true", server.log())
        server.__exit__()

    def test_a_worker_that_is_not_there_is_named(self):
        workers = ["device: here/cpu", THERE_AT.replace(f":{PORT}", ":7072")]
        server = Server(topology(PRIMARY, workers))
        self.assertEqual(server.process.wait(60), 1)
        self.assertIn(f"{ADDRESS_THERE}:7072", server.log())
        server.__exit__()

    def test_a_worker_that_comes_back_is_taken_again(self):
        request = {"prompt": demo_prompt("primary", 3), "max_tokens": 300}
        with Server(topology(PRIMARY, ["device: here/cpu", THERE_AT])) as server:
            wanted = server.complete("model", **request)["choices"][0]["token_ids"]
            body = {"model": "model", "ignore_eos": True, "temperature": 0,
                    "return_token_ids": True, **request}
            ids, killed = [], False
            for chunk in server.stream("/v1/completions", body):
                ids += [i for choice in chunk["choices"] for i in choice.get("token_ids", [])]
                if len(ids) > 20 and not killed:
                    killed = True
                    self.worker.kill()
                    self.worker.wait()
                    self.setUp()
            self.assertEqual(ids, wanted)


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("skipped: needs root for network namespaces")
        sys.exit(SKIPPED)
    try:
        make_hosts()
        enter(HERE)
    except (OSError, subprocess.CalledProcessError) as error:
        remove_hosts()
        print(f"skipped: no network namespaces: {error}")
        sys.exit(SKIPPED)
    try:
        result = unittest.main(verbosity=2, exit=False).result
    finally:
        remove_hosts()
    sys.exit(0 if result.wasSuccessful() else 1)
