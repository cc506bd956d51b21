"""Make gguf_blocks.npz: raw blocks of each quantised kind, and what the gguf package makes of them.

Run in an environment that has gguf and numpy:  python tests/golden/make_gguf_blocks.py
The suite only reads the file. Two sources: weights quantised by gguf (a sine, as a model has them),
and bytes at random with every kind of scale: zero, negative, subnormal, infinite, NaN.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np

KINDS = ("Q8_0", "Q4_0", "Q4_1")
SCALES = [0.0, -0.0, 1.0, -1.5, 6e-8, -6e-5, 65504.0, np.inf, -np.inf, np.nan]
BYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}  # of a block
HALVES = {"Q8_0": 1, "Q4_0": 1, "Q4_1": 2}  # float16 numbers at its beginning

arrays = {"versions": np.array(f"gguf {version('gguf')}, numpy {np.__version__}")}
sine = np.sin(np.arange(5 * 96, dtype=np.float32) * 0.37).reshape(5, 96) * 0.8
random = np.random.default_rng(1)
for kind in KINDS:
    number = gguf.GGMLQuantizationType[kind]
    blocks = random.integers(0, 256, (len(SCALES) ** HALVES[kind], BYTES[kind]), dtype=np.uint8)
    grid = np.meshgrid(*[SCALES] * HALVES[kind])
    scales = np.stack([axis.ravel() for axis in grid], axis=1).astype("<f2")
    blocks[:, : 2 * HALVES[kind]] = scales.view(np.uint8)
    for name, raw in (("sine", gguf.quants.quantize(sine, number)), ("random", blocks)):
        arrays[f"{kind}.{name}.raw"] = raw
        with np.errstate(all="ignore"):
            arrays[f"{kind}.{name}.values"] = gguf.quants.dequantize(raw, number)
np.savez_compressed(Path(__file__).with_name("gguf_blocks.npz"), **arrays)
