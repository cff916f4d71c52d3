"""Starts the real `packtrain serve` and talks to it: what the tests beside this file share.

The build folder comes from PACKTRAIN_BUILD_DIR. Nothing but the standard library is needed.
"""

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import threading
import time

SOURCE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("PACKTRAIN_BUILD_DIR", SOURCE / "build" / "release"))
PACKTRAIN = BUILD / "bin" / "packtrain"
WORKER = BUILD / "bin" / "packtrain-worker"
ONE_PROCESS = BUILD / "tests" / "packtrain_one_process"
PRIMARY = SOURCE / "deploy" / "demo" / "primary.gguf"
SIDECAR = SOURCE / "deploy" / "demo" / "sidecar.gguf"
SKIPPED = 77

# A test that hangs fails by these; none of them decides how fast anything has to be.
START_TIMEOUT = 120
REPLY_TIMEOUT = 480


def demo_prompt(model, case):
    """Token ids of a case of the demo models' goldens; the last three are prose of 700 tokens."""
    goldens = json.loads((SOURCE / "deploy" / "demo" / "goldens.json").read_text())
    return goldens[model]["cases"][case]["prompt_ids"]


def wait_until(condition, what, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout} s still not: {what}")
        time.sleep(0.02)


def descendants(pid):
    """Processes below `pid`, as {pid: command line}."""
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, IndexError):
            continue
        parents[int(entry.name)] = (parent, command)
    found = {}
    frontier = {pid}
    while frontier:
        frontier = {p for p, (parent, _) in parents.items() if parent in frontier}
        found.update({p: parents[p][1] for p in frontier})
    return found


def alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class Server:
    """`packtrain serve`, ready; ended by leaving the `with` block.

    `topology` is YAML text; its `listen` line is added here. Else `flags` follow `serve`.
    """

    def __init__(self, topology=None, flags=(), env=None, prefix=()):
        self._folder = tempfile.TemporaryDirectory(prefix="packtrain-test-")
        folder = pathlib.Path(self._folder.name)
        self.log_path = folder / "log"
        if topology is not None:
            path = folder / "topology.yaml"
            path.write_text("listen: 127.0.0.1:0\n" + topology)
            flags = [str(path)]
        else:
            flags = [*flags, "--port", "0"]
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                [*prefix, str(PACKTRAIN), "serve", *flags], stderr=log, stdout=log,
                env={**os.environ, **(env or {})})
        self.pid = self.process.pid
        self.port = None

    def log(self):
        return self.log_path.read_text()

    def __enter__(self):
        def ready():
            if self.process.poll() is not None:
                raise AssertionError(f"serve ended with {self.process.returncode}:\n{self.log()}")
            found = re.search(r"^ready: http://[^ ]+:(\d+)/v1$", self.log(), re.MULTILINE)
            if found:
                self.port = int(found[1])
            return found
        try:
            wait_until(ready, "ready", START_TIMEOUT)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"serve did not end on SIGTERM:\n{self.log()}")
            finally:
                self._folder.cleanup()
        else:
            self._folder.cleanup()

    def workers(self, model=None):
        """Worker processes as {name: pid}, e.g. {"stage0": 17}; of all models, or of the one whose
        workers have this many names is told apart by worker_groups."""
        found = {}
        for pid, command in descendants(self.pid).items():
            name = re.search(r"packtrain-worker .*?([^ /]+)/([a-z]+\d+)\.\d+ ", command)
            if name:
                found[(name[1], name[2])] = pid
        if model is None:
            return found
        return {name: pid for (group, name), pid in found.items() if group == model}

    def worker_groups(self):
        """Per deployment, {name: pid} of its workers; the largest deployment first."""
        groups = {}
        for (group, name), pid in self.workers().items():
            groups.setdefault(group, {})[name] = pid
        return sorted(groups.values(), key=len, reverse=True)

    def connect(self, timeout=REPLY_TIMEOUT):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def get(self, path):
        connection = self.connect()
        connection.request("GET", path)
        reply = connection.getresponse()
        body = reply.read().decode()
        connection.close()
        return reply.status, body

    def post(self, path, body):
        connection = self.connect()
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        text = reply.read()
        connection.close()
        return reply.status, json.loads(text)

    def complete(self, model, prompt, max_tokens=32, **more):
        """A completion of token ids, greedy unless `more` says otherwise; end-of-generation tokens
        are tokens like others."""
        status, reply = self.post("/v1/completions", {
            "model": model, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True,
            "temperature": 0, "return_token_ids": True, "logprobs": 2, **more})
        assert status == 200, (status, reply)
        return reply

    def stream(self, path, body):
        """Yields the chunks of a streamed reply; closing the generator disconnects."""
        connection = self.connect()
        try:
            connection.request("POST", path, json.dumps({**body, "stream": True}),
                               {"Content-Type": "application/json"})
            reply = connection.getresponse()
            if reply.status != 200:
                raise AssertionError(f"{reply.status}: {reply.read().decode()}")
            done = False
            for line in reply:
                if line == b"data: [DONE]\n":
                    done = True
                elif line.startswith(b"data: "):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        raise AssertionError(chunk["error"])
                    yield chunk
            if not done:
                raise AssertionError("the stream ended without [DONE]")
        finally:
            connection.close()

    def metrics(self):
        """{'name{label="value"}': number}"""
        status, text = self.get("/metrics")
        assert status == 200
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def wait_idle(self):
        """Until no request, slot or page is in use."""
        def idle():
            used = {name: value for name, value in self.metrics().items()
                    if re.match(r'packtrain_requests\{|packtrain_(slots|kv_pages)\{.*"used"', name)}
            assert len(used) >= 4, used
            return not any(used.values())
        wait_until(idle, f"idle: {self.metrics()}")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def one_process(model_path, requests, threads=1, context=2048):
    """The same requests, [{prompt, max_tokens, temperature, seed}], by the model in one process."""
    result = subprocess.run([str(ONE_PROCESS), str(model_path), str(threads), str(context)],
                            input=json.dumps(requests), capture_output=True, text=True,
                            timeout=REPLY_TIMEOUT, check=True)
    return json.loads(result.stdout)


def in_parallel(functions):
    """Runs all at once; their results in order. The first exception is raised again."""
    results = [None] * len(functions)
    errors = []

    def run(i):
        try:
            results[i] = functions[i]()
        except BaseException as error:  # also assertions; raised below in the caller's thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
