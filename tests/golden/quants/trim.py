"""Reduces the full golden vector files to the sections that tests read.

Usage: trim.py FULL_DIR OUT_DIR. The 32-bit decoded rows (`deq`, `deq_wide`) become one FNV-1a hash per row
(`deq_hash`, `deq_wide_hash`), which is enough for a test of bit equality; `src` stays only where an encoder exists.
"""
import pathlib
import struct
import sys

KEEP = {"blocks", "blocks_wide", "act", "act_q", "dot_exact", "dot_actq", "abs_sum"}
HASH = {"deq", "deq_wide"}
ENCODED = {0, 1, 3, 8, 9, 12, 15, 30}


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def trim(data):
    count, tensor_type = struct.unpack_from("<II", data, 8)
    sections = []
    for i in range(count):
        name, kind, _, offset, size, rows, columns = struct.unpack_from("<16sIIQQQQ", data, 40 + 56 * i)
        name = name.rstrip(b"\0").decode()
        body = data[offset:offset + size]
        if name in HASH:
            step = size // rows
            body = b"".join(struct.pack("<Q", fnv1a(body[r * step:(r + 1) * step])) for r in range(rows))
            sections.append((name + "_hash", 0, body, rows, 8))
        elif name in KEEP or (name == "src" and tensor_type in ENCODED):
            sections.append((name, kind, body, rows, columns))
    out = bytearray(data[:8] + struct.pack("<I", len(sections)) + data[12:40])
    table = len(out)
    out += bytes(56 * len(sections))
    for i, (name, kind, body, rows, columns) in enumerate(sections):
        out += bytes(-len(out) % 64)
        struct.pack_into("<16sIIQQQQ", out, table + 56 * i, name.encode(), kind, 0, len(out), len(body), rows, columns)
        out += body
    return bytes(out)


source, target = map(pathlib.Path, sys.argv[1:3])
for path in sorted(source.glob("*.gqv")):
    (target / path.name).write_bytes(trim(path.read_bytes()))
