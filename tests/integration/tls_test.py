"""Two hosts, played by two addresses of loopback, joined by TLS: a pipeline over both gives the tokens
of one process, and whoever has no certificate of the same authority is told so in one line. The
certificates are made here with the `openssl` command; skipped without it."""

import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest

from serving import PRIMARY, SKIPPED, WORKER, Server, demo_prompt, one_process

HOST = "127.0.0.2"  # loopback needs no certificates, but uses those that are given


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Authority:
    """Signs certificates; all files lie in one folder."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self._openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                      "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")

    def _openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=self.folder)

    def sign(self, name, addresses=(HOST, "127.0.0.1")):
        names = ",".join(f"IP:{address}" for address in addresses)
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={names}\n")
        self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
                      "-keyout", f"{name}.key", "-out", f"{name}.csr")
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{self.name}.pem",
                      "-CAkey", f"{self.name}.key", "-CAcreateserial", "-days", "2",
                      "-extfile", f"{name}.ext", "-out", f"{name}.pem")


class TlsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls._folder = tempfile.TemporaryDirectory(prefix="packtrain-tls-")
        cls.folder = pathlib.Path(cls._folder.name)
        ours, others = Authority(cls.folder, "ca"), Authority(cls.folder, "other-ca")
        for name in ("box1", "box2"):
            ours.sign(name)
        ours.sign("elsewhere", ["192.0.2.9"])
        others.sign("stranger")
        (cls.folder / "broken.pem").write_text("no certificate\n")

    @classmethod
    def tearDownClass(cls):
        cls._folder.cleanup()

    def flags(self, name, ca="ca"):
        folder = self.folder
        return ["--tls-ca", folder / f"{ca}.pem", "--tls-certificate", folder / f"{name}.pem",
                "--tls-key", folder / f"{name}.key"]

    def worker(self, *flags):
        """A worker on the other host, and its port; it listens."""
        port = free_port()
        process = subprocess.Popen([str(WORKER), "--listen", f"{HOST}:{port}", "--device", "cpu",
                                    *map(str, flags)])
        self.addCleanup(lambda: (process.terminate(), process.wait(30)))
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex((HOST, port)) == 0:
                    break
            time.sleep(0.02)
        return port

    def topology(self, port, certificate="box1", ca="ca"):
        folder = self.folder
        tls = (f"tls: {{ca: {folder}/{ca}.pem, certificate: {folder}/{certificate}.pem, "
               f"key: {folder}/{certificate}.key}}\n" if certificate else "")
        return (f"{tls}hosts: [{{name: here}}, {{name: there}}]\nmodels:\n  - name: model\n"
                f"    path: {PRIMARY}\n    threads: 1\n    workers:\n      - device: here/cpu\n"
                f"      - {{device: there/cpu, address: '{HOST}:{port}'}}\n"
                # Both are one host to the planner of links; bundles shall pass encrypted, too.
                "links: [{between: ['*', '*'], transport: grpc}]\n")

    def refusal(self, topology):
        server = Server(topology)
        try:
            self.assertEqual(server.process.wait(60), 1)
            return server.log()
        finally:
            server.__exit__()

    def test_a_pipeline_over_tls_gives_the_tokens_of_one_process(self):
        request = {"prompt": demo_prompt("primary", -1)[:300], "max_tokens": 24, "temperature": 1,
                   "seed": 9}
        wanted = one_process(PRIMARY, [request])[0]["token_ids"]
        with Server(self.topology(self.worker(*self.flags("box2")))) as server:
            self.assertEqual(server.complete("model", **request)["choices"][0]["token_ids"], wanted)

    def test_who_does_not_fit_together_is_told_why(self):
        for what, worker, certificate, ca, wanted in (
                ("plain worker", [], "box1", "ca", "does not use TLS"),
                ("plain coordinator", self.flags("box2"), None, "ca", "may want certificates"),
                ("stranger serves", self.flags("stranger", "other-ca"), "box1", "ca",
                 "its certificate is not accepted"),
                ("stranger asks", self.flags("box2"), "stranger", "other-ca",
                 "its certificate is not accepted"),
                ("other address", self.flags("elsewhere"), "box1", "ca",
                 "its certificate is not accepted: IP address mismatch")):
            with self.subTest(what):
                log = self.refusal(self.topology(self.worker(*worker), certificate, ca))
                self.assertIn(wanted, log)
                self.assertIn(HOST, log)

    def test_a_worker_does_not_accept_a_stranger_that_trusts_it(self):
        # The stranger knows our authority, but has no certificate of its.
        both = (self.folder / "ca.pem").read_text() + (self.folder / "other-ca.pem").read_text()
        (self.folder / "both.pem").write_text(both)
        log = self.refusal(self.topology(self.worker(*self.flags("box2")), "stranger", "both"))
        self.assertIn("it does not accept this side's certificate", log)

    def test_files_that_do_not_serve_are_refused_by_name(self):
        folder = self.folder
        for files, wanted in (
                (("ca", "missing", "box1"), f"{folder}/missing.pem cannot be read"),
                (("broken", "box1", "box1"), f"{folder}/broken.pem holds no certificate"),
                (("ca", "box1", "box2"), f"{folder}/box2.key is not the key of {folder}/box1.pem"),
                (("other-ca", "box1", "box1"),
                 f"{folder}/box1.pem is not accepted by {folder}/other-ca.pem")):
            ca, certificate, key = files
            with self.subTest(files):
                paths = (f"{folder}/{ca}.pem", f"{folder}/{certificate}.pem", f"{folder}/{key}.key")
                result = subprocess.run(
                    [str(WORKER), "--listen", "127.0.0.1:0", "--tls-ca", paths[0],
                     "--tls-certificate", paths[1], "--tls-key", paths[2]],
                    capture_output=True, text=True, timeout=60)
                self.assertEqual(result.returncode, 2)
                self.assertIn(wanted, result.stderr)
                self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
                topology = self.topology(1).split("\n", 1)[1]
                log = self.refusal("tls: {ca: %s, certificate: %s, key: %s}\n" % paths + topology)
                self.assertRegex(log, r"topology.yaml:\d+: tls: ")
                self.assertIn(wanted, log)

    def test_half_of_the_flags_and_both_kinds_are_refused(self):
        for flags in (self.flags("box1")[:2], self.flags("box1")[2:],
                      [*self.flags("box1"), "--insecure"]):
            result = subprocess.run([str(WORKER), "--listen", "192.0.2.1:70", *map(str, flags)],
                                    capture_output=True, text=True, timeout=60)
            self.assertEqual(result.returncode, 2)
            self.assertIn("--tls-", result.stderr)
        log = self.refusal("insecure: true\n" + self.topology(1))
        self.assertIn("tls and insecure: true exclude each other", log)


if __name__ == "__main__":
    if shutil.which("openssl") is None:
        print("skipped: no openssl command")
        sys.exit(SKIPPED)
    unittest.main(verbosity=2)
