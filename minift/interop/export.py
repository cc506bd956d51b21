"""Models and adapters for other programs: written, read back, and compared with what was written.

    hf         a Hugging Face folder         F32 or BF16
    gguf       a file for llama.cpp          F32 F16 BF16 Q8_0 Q4_0 Q4_1
    gguf-lora  the adapter alone, likewise   F32 F16 BF16

A model with an adapter attached is merged first, except for the last. The comparison is with the
model as it was, so it holds the cost of merging, of rounding, and any mistake of writer and reader:
logits and greedy texts of a language model, logits of masked words, scores and answers of a
classifier, hidden states of a model without a head.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minift.checkpoints import gguf_model
from minift.checkpoints.open import load
from minift.checkpoints.save import save, target_names
from minift.errors import ConfigError
from minift.formats import gguf_write
from minift.formats.overwrite import check_target
from minift.generation.decode import decode
from minift.interop import gguf_lora
from minift.model.finite import check_finite, is_finite
from minift.model.transformer import Transformer
from minift.peft.adapters import active
from minift.peft.merge import apart, merge
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
COMPARED = {"lm": "logits", "mlm": "logits", "label": "scores", "none": "hidden states"}


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the model that it was made of."""

    path: Path
    kind: str
    bytes: int
    what: str  # was compared: logits, scores, or hidden states
    logit: float  # largest difference of one
    kl: float | None  # mean KL(before ‖ read back) in nats; None of hidden states
    tokens: int
    same: int | None  # greedy texts, or answers of a classifier, that are equal
    texts: int


class Answers(NamedTuple):
    """What a model makes of the probes."""

    outputs: list[Tensor]  # (T, V), (T, D) or (1, C) of each
    choices: list[list[int]] | None  # ids of a text, or the label; None where there is neither


def export(
    model: Transformer,
    tokenizer: Tokenizer,
    path: str | os.PathLike[str],
    *,
    to: str = "gguf",
    dtype: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write `path`, read it back and compare; the model stays as it was.

    `to` is "hf" (a folder), "gguf" (a file for llama.cpp) or "gguf-lora" (the adapter alone);
    `dtype` one of KINDS[to], by default the model's own for "hf", F16 for "gguf" and F32 for
    "gguf-lora". An attached adapter is merged first, except for the last. The comparison is on
    three short texts: largest difference of a logit, mean KL in nats, and greedy texts.

    Raises ConfigError for a kind or a model that the format cannot hold, and where `path` holds
    what minift did not write; StorageError where the disk refuses.

    Where that fails, or gives numbers that are not finite, what was at `path` before stands there.
    """
    if to not in KINDS:
        raise ConfigError(f'to: found "{to}", allowed {", ".join(KINDS)}')
    kind = dtype or DEFAULTS[to]
    if kind is not None and kind not in KINDS[to]:
        raise ConfigError(f'dtype: found "{kind}", allowed {", ".join(KINDS[to])} for {to}')
    names = target_names(path) if to == "hf" else None
    check_target(path, overwrite, names)  # before anything is computed
    alone = to == "gguf-lora" or active(model) is None
    plain = model if alone else merge(model)
    check_finite("export", plain.named_parameters())
    prompts = probes(model, tokenizer)
    with tuned(device=model.embed.weight.device):
        before = answers(model, prompts)
    found: dict[str, Answers] = {}

    def read_back(written: str) -> None:
        with tuned(device=model.embed.weight.device):
            if to == "gguf-lora":
                with replaced(model, gguf_lora.read_back(model, written)):
                    found["after"] = answers(model, prompts)
            else:
                again = load(written, dtype=model.embed.weight.dtype)[0]
                found["after"] = answers(again, prompts)
        for outputs in (before.outputs, found["after"].outputs):
            if not all(map(is_finite, outputs)):
                raise ConfigError("export: the model gives numbers that are not finite; "
                                  "nothing was written")  # fmt: skip

    if to == "gguf-lora":
        assert kind is not None
        gguf_lora.write(model, path, kind, overwrite=overwrite, then=read_back)
    elif to == "gguf":
        assert kind is not None
        gguf_model.write(plain, tokenizer, path, kind, overwrite=overwrite, then=read_back)
    else:
        wanted = FOLDER_DTYPES.get(kind or "", plain.embed.weight.dtype)
        if wanted != plain.embed.weight.dtype:
            plain = copy.deepcopy(plain).to(wanted)
        kind = str(wanted).removeprefix("torch.")
        save(plain, tokenizer, path, overwrite=overwrite, then=read_back)
    after = found["after"]
    same = None
    if before.choices is not None and after.choices is not None:
        same = sum(a == b for a, b in zip(before.choices, after.choices, strict=True))
    one, other = (torch.cat(answer.outputs) for answer in (before, after))
    logit, kl = apart(one, other, model.config.head)
    return Exported(
        path=Path(path),
        kind=kind,
        bytes=sum(part.stat().st_size for part in parts(Path(path))),
        what=COMPARED[model.config.head],
        logit=logit,
        kl=kl,
        tokens=sum(map(len, prompts)),
        same=same,
        texts=len(prompts),
    )


def probes(model: Transformer, tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of the probes; those of a language model leave room for the text that follows."""
    context = model.config.context
    if model.config.head == "lm":
        room = max(1, context - NEW_TOKENS)
        return [tokenizer.encode(text)[:room] for text in PROBES]
    return [tokenizer.wrap(tokenizer.encode(text))[0][:context] for text in PROBES]


def parts(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else [path]


@torch.no_grad()
def answers(model: Transformer, prompts: list[list[int]]) -> Answers:
    """What the model says at every position of every prompt, and what it chooses."""
    was = model.training
    model.eval()
    try:
        device, head = model.embed.weight.device, model.config.head
        each = [model(torch.tensor([ids], device=device)).float().cpu() for ids in prompts]
        outputs = each if head == "label" else [output[0] for output in each]
        if head == "label":
            return Answers(outputs, [scores.argmax(-1).tolist() for scores in outputs])
        if head != "lm":
            return Answers(outputs, None)
        room = min(NEW_TOKENS, model.config.context - max(map(len, prompts)))
        return Answers(outputs, decode(model, prompts, max_new_tokens=room) if room > 0 else None)
    finally:
        model.train(was)


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
