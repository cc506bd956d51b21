"""Models and adapters for other programs: written, read back, and compared with what was written.

    hf         a Hugging Face folder         F32 or BF16
    gguf       a file for llama.cpp          F32 F16 BF16 Q8_0 Q4_0 Q4_1
    gguf-lora  the adapter alone, likewise   F32 F16 BF16

A model with an adapter attached is merged first, except for the last. The comparison is with the
model as it was, so it holds the cost of merging, of rounding, and any mistake of writer and reader.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minift.checkpoints import gguf_model, gguf_write
from minift.checkpoints.open import load
from minift.checkpoints.save import save
from minift.errors import ConfigError
from minift.generation.decode import decode
from minift.model.transformer import Transformer
from minift.peft import gguf_lora
from minift.peft.adapters import active
from minift.peft.merge import merge
from minift.runtime import tuned
from minift.tokenizers.interface import Tokenizer

FOLDER_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
KINDS = {"hf": tuple(FOLDER_DTYPES), "gguf": gguf_write.KINDS, "gguf-lora": gguf_lora.KINDS}
DEFAULTS = {"hf": None, "gguf": "F16", "gguf-lora": "F32"}  # None: the model's own
PROBES = (
    "The capital of France is",
    "Review: the plot is thin, but the acting carries it.\nSentiment:",
    "Once upon a time, in a village by the sea, there lived",
)
NEW_TOKENS = 16  # of each greedy text


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the model that it was made of."""

    path: Path
    kind: str
    bytes: int
    logit: float  # largest difference of a logit
    kl: float  # mean KL(before ‖ read back) in nats a token
    tokens: int
    same: int  # greedy texts that are equal
    texts: int


def export(
    model: Transformer,
    tokenizer: Tokenizer,
    path: str | os.PathLike[str],
    *,
    to: str = "gguf",
    dtype: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write `path` whole or not at all, read it back and compare; the model stays as it was."""
    if to not in KINDS:
        raise ConfigError(f'to: found "{to}", allowed {", ".join(KINDS)}')
    kind = dtype or DEFAULTS[to]
    if kind is not None and kind not in KINDS[to]:
        raise ConfigError(f'dtype: found "{kind}", allowed {", ".join(KINDS[to])} for {to}')
    prompts = [tokenizer.encode(text)[: model.config.context - NEW_TOKENS] for text in PROBES]
    if to == "gguf-lora":
        assert kind is not None
        gguf_lora.write(model, path, kind, overwrite=overwrite)
        with tuned(device=model.embed.weight.device):
            before = answers(model, prompts)
            with replaced(model, gguf_lora.read_back(model, path)):
                after = answers(model, prompts)
    else:
        plain = merge(model) if active(model) is not None else model
        if to == "gguf":
            assert kind is not None
            gguf_model.write(plain, tokenizer, path, kind, overwrite=overwrite)
        else:
            wanted = FOLDER_DTYPES.get(kind or "", plain.embed.weight.dtype)
            if wanted != plain.embed.weight.dtype:
                plain = copy.deepcopy(plain).to(wanted)
            kind = str(wanted).removeprefix("torch.")
            save(plain, tokenizer, path, overwrite=overwrite)
        with tuned(device=model.embed.weight.device):
            before = answers(model, prompts)
            after = answers(load(path, dtype=model.embed.weight.dtype)[0], prompts)
    logit, kl = differences(before[0], after[0])
    return Exported(
        path=Path(path),
        kind=kind,
        bytes=sum(part.stat().st_size for part in parts(Path(path))),
        logit=logit,
        kl=kl,
        tokens=sum(map(len, prompts)),
        same=sum(a == b for a, b in zip(before[1], after[1], strict=True)),
        texts=len(prompts),
    )


def parts(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else [path]


@torch.no_grad()
def answers(model: Transformer, prompts: list[list[int]]) -> tuple[list[Tensor], list[list[int]]]:
    """Logits (T, V) at every position of every prompt, and the greedy text after it."""
    was = model.training
    model.eval()
    try:
        device = model.embed.weight.device
        logits = [model(torch.tensor([ids], device=device))[0].float().cpu() for ids in prompts]
        return logits, decode(model, prompts, max_new_tokens=NEW_TOKENS)
    finally:
        model.train(was)


def differences(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """The largest difference of a logit, and the mean KL(before ‖ after) of a position."""
    one, other = torch.cat(before), torch.cat(after)  # (positions, V)
    logp, logq = one.log_softmax(-1), other.log_softmax(-1)
    kl = (logp.exp() * (logp - logq)).sum(-1).mean()
    return float((one - other).abs().max()), max(0.0, float(kl))


@contextmanager
def replaced(model: Transformer, values: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside, the model's LoRA has these A and B."""
    found = gguf_lora.attached(model)
    own = {path: (c.A.data, c.B.data, c.A0, c.B0) for path, c in found.items()}
    try:
        for path, change in found.items():
            A, B = values[path]
            change.A.data, change.B.data = A.to(change.A), B.to(change.B)
            change.A0, change.B0 = None, None
        yield
    finally:
        for path, change in found.items():
            change.A.data, change.B.data, change.A0, change.B0 = own[path]
