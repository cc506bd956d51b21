"""AdaLoRA's files, read as the LoRA that they are once its training is over.

    y = x Wᵀ + alpha / R · (x (E ∘ A)ᵀ) Bᵀ        A (R, in) · E (R, 1) · B (out, R)

Zhang et al. 2023, arXiv:2303.10512, section 3.1. E holds the singular values, of which training
keeps the important ones, so R differs from matrix to matrix. Here E is multiplied into A, and what
is left is a LoRA of rank R and PEFT's alpha; the schedule that found R is over. Training goes on
from it as LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from minift.checkpoints.open import TensorFile
from minift.errors import FormatError

TYPE = "ADALORA"
# Options that say how the ranks were found.
SCHEDULE = ("target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2",
            "orth_reg_weight", "total_step", "rank_pattern")  # fmt: skip
RANK = 12  # PEFT's, where `init_r` is absent
SMALL = 1e-5  # PEFT divides by R + this


class AsLoRA:
    """An AdaLoRA's tensor file with the names and the values of a LoRA's."""

    def __init__(self, file: TensorFile):
        self._file, self.path = file, file.path
        self.metadata = getattr(file, "metadata", {})
        names = {f"{key}.weight" if is_factor(key) else key: key for key in file.tensors}
        self._names = {ours: key for ours, key in names.items() if not key.endswith(".lora_E")}
        self.tensors = {ours: file.tensors[key] for ours, key in self._names.items()}
        for key in self._names.values():
            if key.endswith(".lora_A"):
                self._check(key)

    def _check(self, key: str) -> None:
        """Beside A stands an E with a number for each of its rows."""
        values, shape = singular_values(key), tuple(self._file.tensors[key].shape)
        entry = self._file.tensors.get(values)
        if entry is None:
            allowed = "the singular values of each lora_A"
            raise FormatError(self.path, f'tensor "{values}"', "nothing", allowed, "missing-field")
        if not shape or tuple(entry.shape) != (shape[0], 1):
            allowed = f"({shape[0] if shape else 'R'}, 1), a number for each row of lora_A"
            found = tuple(entry.shape)
            raise FormatError(self.path, f'tensor "{values}"', found, allowed, "shape-mismatch")
        if entry.kind != self._file.tensors[key].kind:
            allowed = f"{self._file.tensors[key].kind}, as lora_A"
            raise FormatError(self.path, f'tensor "{values}"', entry.kind, allowed, "bad-dtype")

    def load(self, name: str) -> Tensor:
        key = self._names[name]
        tensor = self._file.load(key)
        if not key.endswith(".lora_A"):
            return tensor
        rank = len(tensor)
        return tensor * self._file.load(singular_values(key)) * (rank / (rank + SMALL))


def is_factor(key: str) -> bool:
    return key.endswith((".lora_A", ".lora_B"))


def singular_values(key: str) -> str:
    return key.removesuffix("lora_A") + "lora_E"


def options(data: Mapping[str, Any], file: TensorFile) -> dict[str, Any]:
    """adapter_config.json as a LoRA's, with the ranks that the tensors have."""
    usual = data.get("init_r", RANK)
    ranks = {
        key.removeprefix("base_model.model.").removesuffix(".lora_A"): entry.shape[0]
        for key, entry in file.tensors.items()
        if key.endswith(".lora_A") and entry.shape
    }
    kept = {key: value for key, value in data.items() if key not in SCHEDULE}
    return kept | {"r": usual, "rank_pattern": {p: r for p, r in ranks.items() if r != usual}}
