#!/usr/bin/env python3
"""Cut tokenizers and what they must produce out of models with reference outputs.

    extract.py OUT tiny MODEL_DIR NAME ...     MODEL_DIR/NAME.gguf and MODEL_DIR/golden/NAME/{tokenizer,golden}.json
    extract.py OUT demo DEMO_DIR NAME ...      DEMO_DIR/NAME.gguf and DEMO_DIR/goldens.json

Writes OUT/NAME.gguf, which holds only the metadata of the tokenizer, and OUT/NAME.json:
  cases     [text, ids, ids with special tokens parsed, the latter with BOS/EOS added]; null: not known
  rendered  [text, ids] of rendered chat templates
  pieces    [bytes in hex, attributes] of every token as the reference shows them with specials
            (1 unknown, 2 unused, 4 normal, 8 control, 16 user-defined); [] if not known
  eog       ids that end a generation; null: not known
"""
import json
import os
import struct
import sys

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


def tokenizer_only(data):
    """The metadata entries of the tokenizer, as a GGUF file without tensors."""
    pos = 24

    def take(fmt):
        nonlocal pos
        value, = struct.unpack_from(fmt, data, pos)
        pos += struct.calcsize(fmt)
        return value

    def skip(kind, count):
        nonlocal pos
        for _ in range(count if kind == STRING else 0):
            size = take("<Q")
            pos += size
        if kind != STRING:
            pos += SIZES[kind] * count

    entries = []
    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        begin = pos
        size = take("<Q")
        key = data[pos:pos + size].decode()
        pos += size
        kind, count = take("<I"), 1
        if kind == ARRAY:
            kind, count = take("<I"), take("<Q")
        skip(kind, count)
        if key.startswith("tokenizer.ggml."):
            entries.append(data[begin:pos])
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries)


def tiny_expectations(folder, name):
    def load(file):
        with open(os.path.join(folder, "golden", name, file)) as f:
            return json.load(f)
    tokenizer, golden = load("tokenizer.json"), load("golden.json")
    cases = []
    for s in tokenizer["strings"]:
        assert s["back"] == s["back_special"] == {"text": s["text"]}
        cases.append([s["text"], s["ids"], s["ids_special"], s["ids_add_special"]])
    cases += [[p["text"], None, None, p["ids"]] for p in golden["prompts"]]
    return {"cases": cases, "rendered": [[c["text"], c["ids"]] for c in tokenizer["chat"]],
            "pieces": [[p["hex"], p["attr"]] for p in tokenizer["pieces"]], "eog": golden["eog"]}


def demo_expectations(folder, name):
    with open(os.path.join(folder, "goldens.json")) as f:
        cases = json.load(f)[name]["cases"]
    return {"cases": [], "rendered": [[c["prompt"], c["prompt_ids"]] for c in cases if "prompt" in c], "pieces": [], "eog": None}


def main():
    out, kind, folder, *names = sys.argv[1:]
    expectations = {"tiny": tiny_expectations, "demo": demo_expectations}[kind]
    for name in names:
        with open(os.path.join(folder, name + ".gguf"), "rb") as f:
            data = f.read()
        with open(os.path.join(out, name + ".gguf"), "wb") as f:
            f.write(tokenizer_only(data))
        with open(os.path.join(out, name + ".json"), "w") as f:
            json.dump(expectations(folder, name), f, separators=(",", ":"))


main()
