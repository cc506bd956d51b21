"""Make gguf_blocks.npz: raw blocks of each quantised kind, and what the gguf package makes of them.

Run in an environment that has gguf and numpy:  python tests/golden/make_gguf_blocks.py
The suite only reads the file. Three sources: weights quantised by gguf (a sine, as a model has
them), blocks of random bytes with a sane scale, and random bytes with every kind of scale: zero,
negative, subnormal, infinite, NaN. gguf quantises no K-kind, so those have no sine.
Then, the other way: `input` and the blocks that gguf quantises it to.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np

SCALES = [0.0, -0.0, 1.0, -1.5, 6e-8, -6e-5, 65504.0, np.inf, -np.inf, np.nan]
HALVES = {  # kind: the bytes of a block where float16 numbers stand
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
QUANTISED = ("Q8_0", "Q4_0", "Q4_1")


def input_rows() -> np.ndarray:
    """Blocks of 32: ordinary ones, ties of every sort, one sign only, tiny, huge, zeros."""
    random = np.random.default_rng(2)
    rows = [random.standard_normal((24, 32)) * 0.03, random.standard_normal((8, 32)) * 50]
    ties = np.tile(np.arange(-16, 16) + 0.5, (4, 1)) * np.array([[1], [-1], [0.25], [2 / 127]])
    steps = np.tile(np.arange(-15.5, 16.5), (2, 1))
    steps[:, 0] = [127, -127]  # d is 1: every other weight is a tie
    nibbles = np.tile(np.arange(-8, 8).repeat(2) + np.tile([0, 0.5], 16), (2, 1))
    nibbles[1] *= -1
    fifteen = [*np.linspace(0, 15, 31), 0.5]  # Q4_1 with a step of 1, and ties
    same = [[x] * 32 for x in (0.0, -0.0, 1.0, -0.7, 1e-7, 6e4)]
    equal = np.tile([3.0, -3.0], (2, 16)) * [[1], [-1]]  # the largest of both signs: the first
    tiny = random.standard_normal((4, 32)) * [[1e-5], [1e-6], [1e-7], [1e-9]]
    huge = random.uniform(-6e4, 6e4, (4, 32))
    signs = np.abs(random.standard_normal((4, 32))) * [[1], [-1], [1], [-1]]
    parts = [*rows, ties, steps, nibbles, [fifteen], same, equal, tiny, huge, signs]
    return np.concatenate(parts).astype(np.float32)


arrays = {"versions": np.array(f"gguf {version('gguf')}, numpy {np.__version__}")}
sine = np.sin(np.arange(5 * 96, dtype=np.float32) * 0.37).reshape(5, 96) * 0.8
random = np.random.default_rng(1)
for kind, places in HALVES.items():
    number = gguf.GGMLQuantizationType[kind]
    weights, size = gguf.GGML_QUANT_SIZES[number]
    extreme = np.stack([axis.ravel() for axis in np.meshgrid(*[SCALES] * len(places))], axis=1)
    if weights == 256 and len(places) == 2:  # a kilobyte a block: every scale, with three others
        first = np.arange(10)
        second = np.stack([(first + by) % 10 for by in (0, 2, 5)])
        extreme = extreme.reshape(10, 10, 2)[first, second]
    sane = random.uniform(-0.02, 0.02, (6, len(places)))
    raws = {}
    for name, scales in (("random", extreme.reshape(-1, len(places))), ("sane", sane)):
        raws[name] = random.integers(0, 256, (len(scales), size), dtype=np.uint8)
        for i, at in enumerate(places):
            halves = scales[:, i : i + 1].astype("<f2")
            raws[name][:, at : at + 2] = halves.view(np.uint8)
    if weights == 32:
        raws["sine"] = gguf.quants.quantize(sine, number)
    for name, raw in raws.items():
        arrays[f"{kind}.{name}.raw"] = raw
        with np.errstate(all="ignore"):
            arrays[f"{kind}.{name}.values"] = gguf.quants.dequantize(raw, number)
arrays["input"] = input_rows()
for kind in QUANTISED:
    number = gguf.GGMLQuantizationType[kind]
    arrays[f"{kind}.blocks"] = gguf.quants.quantize(arrays["input"], number)
np.savez_compressed(Path(__file__).with_name("gguf_blocks.npz"), **arrays)
