#!/usr/bin/env python3
"""Writes tests/data/gguf_blocks.bin: random blocks of each format and what the gguf package (PyPI)
makes of them, and floats and the blocks that it makes of those.

A record: u32 kind (0: blocks to floats, 1: floats to blocks), u32 type, u32 values, u32 bytes of the
blocks, the blocks, the floats. Little-endian.
"""
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType as T, quants
from gguf.constants import GGML_QUANT_SIZES

# Byte offsets of the halves of a block: these are drawn as numbers, so that none is NaN.
HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82],
          T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.MXFP4: []}


def record(out, kind, type_, blocks, values):
    blocks, values = blocks.tobytes(), values.astype("<f4").tobytes()
    out.write(struct.pack("<4I", kind, type_, len(values) // 4, len(blocks)) + blocks + values)


def main(path):
    random = np.random.default_rng(1)
    with open(path, "wb") as out:
        for type_, halves in HALVES.items():
            n = 2 if GGML_QUANT_SIZES[type_][0] == 256 else 8
            blocks = random.integers(0, 256, (n, GGML_QUANT_SIZES[type_][1]), dtype=np.uint8)
            for at in halves:
                blocks[:, at:at + 2] = random.normal(0, 1, n).astype("<f2").view(np.uint8).reshape(n, 2)
            if type_ == T.MXFP4:
                blocks[:4, 0] = [0, 1, 2, 255]
            record(out, 0, type_, blocks, quants.dequantize(blocks, type_))
        for type_ in (T.Q8_0, T.MXFP4, T.BF16, T.F16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1):
            values = (random.normal(0, 1, (16, 32)) * 10.0 ** random.integers(-4, 4, (16, 1))).astype(np.float32)
            values[0] = 0
            values[1] = np.arange(32) * 0.25 - 4  # ties of both formats
            if type_ == T.F16:
                blocks = values.astype("<f2")
            else:
                blocks = quants.quantize(values, type_)
            record(out, 1, type_, blocks, values)


main(sys.argv[1] if len(sys.argv) > 1 else "tests/data/gguf_blocks.bin")
