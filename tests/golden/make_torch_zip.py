"""Make torch_zip.npz: how torch writes a file of over 4 GiB, which needs 64-bit numbers.

Run in an environment that has torch and numpy, with 5 GB of memory free:
    python tests/golden/make_torch_zip.py
The suite only reads the result: the file is `size` bytes, `head` first, `tail` last, zeros between.
"""

from __future__ import annotations

import io
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

COUNT = (1 << 30) + 16  # float32: just over 4 GiB


class Ends(io.RawIOBase):
    """Keeps what comes before and after the one long write."""

    def __init__(self) -> None:
        self.head, self.tail, self.size = b"", b"", 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self.size += len(view)
        if len(view) > 1 << 20:
            self.tail = b""
        elif self.size < 1 << 20:
            self.head += bytes(view)
        else:
            self.tail += bytes(view)
        return len(view)


ends = Ends()
b, c = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([4.5, 5.5])
torch.save({"a": torch.zeros(COUNT), "b": b, "c": c, "b.again": b}, ends)
np.savez_compressed(
    Path(__file__).with_name("torch_zip.npz"),
    versions=np.array(f"torch {version('torch')}, numpy {np.__version__}"),
    head=np.frombuffer(ends.head, np.uint8),
    tail=np.frombuffer(ends.tail, np.uint8),
    size=np.array(ends.size),
)
