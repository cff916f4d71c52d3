"""What a user gets wrong: one clear line, a non-zero exit, nothing started."""

import pathlib
import shutil
import socket
import struct
import subprocess
import tempfile
import unittest

from serving import BUILD, PACKTRAIN, PRIMARY, WORKER, Server

ONE = "workers: [{device: cpu}]"

# YAML -> what the line says besides file and line number.
BAD_TOPOLOGIES = {
    f"models: [{{name: a, path: {PRIMARY}, {ONE}, frob: 1}}]": ('"frob"', "allowed: context"),
    f"models: [{{name: a, path: {PRIMARY}, {ONE}, context: lots}}]": ("context", '"lots"', "64"),
    f"models: [{{name: a, path: {PRIMARY}, {ONE}, context: 4096}}]": ("4096", "2048"),
    f"models: [{{name: a, path: {PRIMARY}, {ONE}, kv_cache: f8}}]": ("kv_cache", '"f8"', "q4_1"),
    f"models: [{{name: a, path: {PRIMARY}, {ONE}, ubatch: 1}}]": ("ubatch", '"1"', "16"),
    f"models: [{{name: a, path: nowhere.gguf, {ONE}}}]": ('"a"', "nowhere.gguf"),
    f"models: [{{name: a, path: {PRIMARY}, workers: [{{device: tpu}}]}}]": ('"tpu"', "cuda:N"),
    f"models: [{{name: a, path: {PRIMARY}, workers: [{{device: b/cpu}}]}}]": ('"b/cpu"', "hosts"),
    f"models: [{{name: a, path: {PRIMARY}, workers: [{{device: cpu, layers: 0-4}}, "
    "{device: cpu, layers: 4-7}]}]": ("layers 4", "already"),
    f"models: [{{name: a, path: {PRIMARY}, workers: [{{device: cpu, layers: 0-2}}, "
    "{device: cpu, layers: 4-7}]}]": ("layers 3", "no stage", "0-7"),
    f"models: [{{name: a, path: {PRIMARY}, workers: [{{device: cpu, layers: 0-8}}]}}]":
        ("layers 0-8", "0-7"),
    f"models: [{{name: a, path: {PRIMARY}, workers: [{{device: cpu, role: experts}}]}}]":
        ('"a"', "stage"),
    f"models: [{{name: a, path: {PRIMARY}, workers: "
    "[{device: cpu, resident_experts: 0-3}]}]": ("4-7", "nobody"),
    f"models: [{{name: a, path: {PRIMARY}, {ONE}}}, {{name: a, role: sidecar, path: {PRIMARY}, "
    f"{ONE}}}]": ('"a"', "already"),
    f"models: [{{name: a, path: {PRIMARY}, {ONE}}}, {{name: b, path: {PRIMARY}, {ONE}}}]":
        ('"b"', '"a"', "primary"),
    f"listen: here\nmodels: [{{name: a, path: {PRIMARY}, {ONE}}}]": ("listen", '"here"', "HOST:PORT"),
    f"listen: 0.0.0.0:0\nmodels: [{{name: a, path: {PRIMARY}, {ONE}}}]": ("0.0.0.0", "API keys"),
    f"hosts: [{{name: x}}, {{name: y}}]\nmodels: [{{name: a, path: {PRIMARY}, workers: "
    "[{device: y/cpu, address: '192.0.2.1:70'}]}]": ("192.0.2.1:70", "insecure: true"),
    f"hosts: [{{name: x}}, {{name: y}}]\nmodels: [{{name: a, path: {PRIMARY}, workers: "
    "[{device: y/cpu}]}]": ('"y"', "address"),
    f"links: [{{between: [cpu, cpu], transport: warp}}]\nmodels: [{{name: a, path: {PRIMARY}, "
    f"{ONE}}}]": ("transport", '"warp"', "grpc"),
    "models: []": ("models", "at least one"),
    "": ("nothing", "models"),
    "models:\n  - name: a\n path: x\n": (),
}

MODEL = ["serve", "--model", str(PRIMARY)]
# Arguments -> what the line says.
BAD_FLAGS = {
    (): ("subcommand",),
    ("serf",): ('"serf"', "--help"),
    ("serve",): ("--model",),
    ("serve", "nowhere.yaml"): ("nowhere.yaml",),
    ("serve", "--model", "nowhere.gguf"): ("nowhere.gguf",),
    ("serve", "--model", __file__): ("GGUF",),
    ("serve", "--sidecar", str(PRIMARY)): ("--model",),
    (*MODEL, "--modle"): ("--modle",),
    (*MODEL, "--stages", "0"): ("--stages", "1"),
    (*MODEL, "--stages", "9", "--port", "0"): ("9 stages", "8"),
    (*MODEL, "--kv-cache", "f8"): ("f8", "q8_0"),
    (*MODEL, "--context", "4096", "--port", "0"): ("4096", "2048"),
    (*MODEL, "--context", "10"): ("--context", "64"),
    (*MODEL, "--threads", "two"): ("--threads", "two"),
    (*MODEL, "--port", "70000"): ("--port", "65535"),
    (*MODEL, "--host", "banana", "--port", "0"): ("banana",),
    (*MODEL, "--host", "0.0.0.0", "--port", "0"): ("0.0.0.0", "API keys"),
    (*MODEL, "topology.yaml"): ("--model",),
    ("chat", "--endpoint", "banana", "hi"): ("banana", "HOST:PORT"),
    ("chat", "--endpoint", "127.0.0.1:1", "hi"): ("127.0.0.1:1",),
    ("tokenize", "--model", "nowhere.gguf", "hi"): ("nowhere.gguf",),
}

BAD_WORKER_FLAGS = {
    (): ("--listen",),
    ("--what",): ("--listen",),
    ("--listen", "nonsense"): ("nonsense", "HOST:PORT"),
    ("--listen", "127.0.0.1:0", "--device", "tpu"): ("tpu", "cpu"),
    ("--listen", "192.0.2.1:70"): ("192.0.2.1:70", "--insecure"),
    ("--listen", "192.0.2.1:70", "--insecure"): ("192.0.2.1:70",),
    ("--listen", "unix:/nowhere/socket"): ("/nowhere/socket",),
}

# A tensor's entry in a GGUF header: name, number of dimensions, dimensions, type.
NORM = b"blk.2.attn_norm.weight" + struct.pack("<IQI", 1, 256, 0)
ROUTER = b"blk.2.ffn_gate_inp.weight" + struct.pack("<IQQI", 2, 256, 10, 0)

# What is changed in the demo model, bytes for bytes -> what the line says.
BAD_MODELS = {
    "unknown type": (NORM, NORM[:-4] + struct.pack("<I", 99), ("blk.2.attn_norm.weight", "99")),
    "missing tensor": (NORM, NORM.replace(b"norm", b"mron"),
                       ("tensor blk.2.attn_norm.weight", "missing")),
    "wrong shape": (ROUTER, ROUTER.replace(struct.pack("<QQ", 256, 10), struct.pack("<QQ", 128, 20)),
                    ("blk.2.ffn_gate_inp.weight", "{128, 20}", "{256, 10}")),
    "unsupported architecture": (b"\7\0\0\0\0\0\0\0glm-dsa", b"\7\0\0\0\0\0\0\0glm-dsb",
                                 ("general.architecture", '"glm-dsb"', "glm-dsa", "qwen3moe")),
}
SHARDS = [f"ok_split3-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


class BadInputTest(unittest.TestCase):
    def expect_one_line(self, command, said):
        # A process that was started would hold the pipe open until the timeout.
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60,
                                stdin=subprocess.DEVNULL)
        self.assertNotEqual(result.returncode, 0)
        self.assertGreater(result.returncode, 0, "died by a signal")
        self.assertEqual(result.stdout, "")
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        for text in said:
            self.assertIn(text, result.stderr)
        return result.stderr

    def test_bad_topologies_are_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "bad.yaml"
            for text, said in BAD_TOPOLOGIES.items():
                with self.subTest(text):
                    path.write_text(text)
                    line = self.expect_one_line([PACKTRAIN, "serve", path], said)
                    if "API keys" not in said:
                        self.assertRegex(line, r"bad.yaml:[123]: ")

    def test_bad_arguments_are_refused(self):
        for arguments, said in BAD_FLAGS.items():
            with self.subTest(arguments):
                self.expect_one_line([PACKTRAIN, *arguments], said)

    def test_bad_arguments_of_a_worker_are_refused(self):
        for arguments, said in BAD_WORKER_FLAGS.items():
            with self.subTest(arguments):
                self.expect_one_line([WORKER, *arguments], said)

    def test_a_port_in_use_is_named(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.expect_one_line([PACKTRAIN, *MODEL, "--port", port], (str(port), "in use"))

    def test_chat_says_what_the_endpoint_refuses(self):
        with Server(flags=["--model", PRIMARY]) as server:
            endpoint = f"127.0.0.1:{server.port}"
            self.expect_one_line([PACKTRAIN, "chat", "--endpoint", endpoint, "--model", "nobody", "hi"],
                                 ('"nobody" does not exist',))

    def test_a_cut_file_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "cut.gguf"
            for size in (0, 3, 1000, 100_000, 10_000_000):
                with self.subTest(size):
                    path.write_bytes(PRIMARY.read_bytes()[:size])
                    self.expect_one_line([PACKTRAIN, "serve", "--model", path, "--port", "0"],
                                         ("cut.gguf",))

    def test_models_that_cannot_be_run_are_refused(self):
        good = PRIMARY.read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "bad.gguf"
            for what, (old, new, said) in BAD_MODELS.items():
                with self.subTest(what):
                    self.assertEqual(good.count(old), 1)
                    path.write_bytes(good.replace(old, new))
                    for command in ("serve", "plan"):
                        self.expect_one_line([PACKTRAIN, command, "--model", path],
                                             ("bad.gguf", *said))

    def test_a_cut_shard_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in SHARDS:
                shutil.copy(BUILD / "tests" / "golden" / "gguf" / name, folder)
            command = [PACKTRAIN, "serve", "--model", pathlib.Path(folder) / SHARDS[0]]
            self.expect_one_line(command, ("general.architecture",))  # the shards themselves do
            cut = pathlib.Path(folder) / SHARDS[1]
            for size in (cut.stat().st_size - 1, cut.stat().st_size // 2, 10):
                with self.subTest(size):
                    cut.write_bytes(cut.read_bytes()[:size])
                    self.expect_one_line(command, (SHARDS[1],))
            cut.unlink()
            self.expect_one_line(command, (SHARDS[1],))


if __name__ == "__main__":
    unittest.main(verbosity=2)
