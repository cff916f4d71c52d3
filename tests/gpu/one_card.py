"""What the GPU tests in Python share: deployments whose workers divide one card, or have one each."""

import os
import pathlib
import re
import shutil
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
import serving  # noqa: E402

DEVICE = os.environ.get("PACKTRAIN_GPU", "cuda:0")
GOLDEN = pathlib.Path(os.environ.get("PACKTRAIN_GOLDEN_DIR", serving.BUILD / "golden_models"))
# F32 weights: prompts and decode steps agree to rounding, so a replay gives the same tokens.
GLM = GOLDEN / "glm52-f32.gguf"    # 7 layers, experts in layers 2-6, sparse attention
QWEN = GOLDEN / "qwen35moe-f32.gguf"  # 8 layers, all with experts; recurrent state


def stage(layers=None, resident=None, memory_gib=2, device=DEVICE):
    """memory_gib: None for all of the card's."""
    text = f"device: '{device}'"
    if device != "cpu" and memory_gib:
        text += f", memory_gib: {memory_gib}"
    if layers:
        text += f", layers: {layers}"
    if resident:
        text += f", resident_experts: {resident}"
    return "{" + text + "}"


EXPERTS = "{device: cpu, role: experts, threads: 2}"


def model(name, path, workers, role="primary", **more):
    fields = {"name": name, "role": role, "path": path, "threads": 2, "slots": 4, **more}
    text = ", ".join(f"{key}: {value}" for key, value in fields.items())
    return f"  - {{{text}, workers: [{', '.join(workers)}]}}\n"


def topology(models, transport=None):
    text = "models:\n" + "".join(models)
    if transport:
        text += f'links: [{{between: ["*", "*"], transport: {transport}}}]\n'
    return text


class SeparateNcclHosts:
    """Lets NCCL join workers on one card: within the block each is started with an NCCL_HOSTID of
    its own, so NCCL takes them for different hosts and goes over the network."""

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="packtrain-nccl-")
        folder = pathlib.Path(self._folder.name)
        (folder / "bin").mkdir()
        (folder / "lib").symlink_to(serving.BUILD / "lib")
        shutil.copy(serving.BUILD / "bin" / "packtrain", folder / "bin")
        worker = folder / "bin" / "packtrain-worker"
        worker.write_text(f'#!/bin/sh\nNCCL_HOSTID=$$ exec "{serving.WORKER}" "$@"\n')
        worker.chmod(0o755)
        self._packtrain, serving.PACKTRAIN = serving.PACKTRAIN, folder / "bin" / "packtrain"
        return self

    def __exit__(self, *_):
        serving.PACKTRAIN = self._packtrain
        self._folder.cleanup()


def prompt_of(length, seed=0):
    return [(5 + 37 * i + 101 * seed) % 400 + 3 for i in range(length)]


def answers(server, name):
    """Of prompts in decode steps and in several chunks, at two temperatures."""
    result = []
    for i, length in enumerate((3, 90, 300)):
        for temperature in (0, 1):
            choice = server.complete(name, prompt_of(length, i), 40, temperature=temperature,
                                     seed=5)["choices"][0]
            result.append((choice["token_ids"], choice["logprobs"]["token_logprobs"]))
    return result


def links(server):
    """What the coordinator says of links between workers."""
    return re.findall(r"link (\S+ - \S+: .*)$", server.log(), re.MULTILINE)
