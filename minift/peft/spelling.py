"""Our linears in a family's words, and the other way round.

    blocks.0.attn.qkv.q               Llama    model.layers.0.self_attn.q_proj
    blocks.0.attn.qkv.{q,k,v}         GPT-2    transformer.h.0.attn.c_attn, rows q | k | v

The rows are those by which checkpoints are read (checkpoints/families.py). Adapter files name a
module by its path, or by the end of it, which must begin at a dot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from minift.checkpoints.families import FAMILIES
from minift.checkpoints.mapping import HOW, pairs
from minift.errors import one_line
from minift.model.config import ModelConfig
from minift.model.norm import LayerNorm
from minift.model.transformer import Transformer

# Modules that transformers 5 renamed: checkpoints, and adapters made before it, have the old name.
OLDER = {"embed_out": "lm_head"}
# A pattern from a file is never compiled: only what is plainly a name, or an end of one.
PLAIN = re.compile(r"\^?[\w.\\-]+\$?")


@dataclass(frozen=True)
class Theirs:
    """One of the family's modules, and those of ours that it holds, in the order of its rows."""

    path: str
    ours: tuple[str, ...]
    inputs: int  # 0: a norm
    outputs: tuple[int, ...]  # of each of ours
    turned: bool  # GPT-2's Conv1D, which stores (in, out)
    how: str
    config: ModelConfig

    def split(self, rows: Tensor) -> list[Tensor]:
        """(out, ...) of theirs -> one for each of ours."""
        return HOW[self.how][0](self.config, rows)

    def join(self, rows: Sequence[Tensor]) -> Tensor:
        return HOW[self.how][1](self.config, [row.detach() for row in rows])


class Spelling:
    """The words of one model's family."""

    def __init__(self, model: Transformer):
        family, config = FAMILIES[model.config.family], model.config
        prefix = "" if config.head == "none" else family.prefix
        self.family = config.family
        self.theirs: dict[str, Theirs] = {}
        self.weights: dict[str, str] = {}  # their tensors that are one of ours: theirs -> ours
        for pair in pairs(family.folder, config, prefix):
            stored, _, leaf = pair.theirs.rpartition(".")
            path = OLDER.get(stored, stored)
            if pair.how == "=":
                self.weights[f"{path}.{leaf}"] = pair.ours[0]
            members = tuple(name.removesuffix(".weight") for name in pair.ours)
            turned = pair.how.endswith("turned")
            how = pair.how.removesuffix("turned").strip() or "="
            modules = [model.get_submodule(name) for name in members if leaf == "weight"]
            known = all(isinstance(m, nn.Linear | LayerNorm) for m in modules)
            if not modules or not (known or members == ("embed",)):
                continue
            shapes = [
                (m.out_features, m.in_features)  # whatever its weight is stored in
                if isinstance(m, nn.Linear)
                else tuple(m.get_parameter("weight").shape)
                for m in modules
            ]
            outputs, inputs = tuple(shape[0] for shape in shapes), (*shapes[0], 0)[1]
            self.theirs[path] = Theirs(path, members, inputs, outputs, turned, how, config)
        for copy, original in family.folder.copies.items():
            if ours := self.weights.get(original.replace("{p}", prefix)):
                path, _, leaf = copy.replace("{p}", prefix).rpartition(".")
                self.weights.setdefault(f"{OLDER.get(path, path)}.{leaf}", ours)
        if config.tied and config.head == "lm":
            outputs = (config.vocab,)
            head = Theirs("lm_head", ("head",), config.dim, outputs, False, "=", config)
            self.theirs[head.path] = head
        self.ends: dict[str, list[Theirs]] = {}  # a.b.c by a.b.c, b.c and c
        for path, theirs in self.theirs.items():
            parts = path.split(".")
            for k in range(len(parts)):
                self.ends.setdefault(".".join(parts[k:]), []).append(theirs)

    @property
    def by_ours(self) -> dict[str, Theirs]:
        return {path: theirs for theirs in self.theirs.values() for path in theirs.ours}

    def of(self, ours: Iterable[str]) -> list[Theirs]:
        """Those of theirs that hold any of ours, in the order of the model."""
        wanted = set(ours)
        return [theirs for theirs in self.theirs.values() if wanted & set(theirs.ours)]

    def matching(self, name: str) -> list[Theirs]:
        """What a name of a file means: that path, or the paths that end with it."""
        return self.ends.get(OLDER.get(name, name), [])

    def modules(self, ours: Iterable[str]) -> list[str]:
        """`target_modules`: the ends of their names where those mean these modules and no other,
        else whole paths."""
        wanted = [theirs.path for theirs in self.of(ours)]
        for words in (1, 2, 3):
            ends = sorted({".".join(path.split(".")[-words:]) for path in wanted})
            if {t.path for end in ends for t in self.matching(end)} == set(wanted):
                return ends
        return sorted(wanted)

    def targets(self, data: Mapping[str, Any], problems: list[str]) -> tuple[str, ...]:
        """Our paths for `target_modules`, `exclude_modules` and `layers_to_transform`."""
        wanted, excluded = data.get("target_modules"), data.get("exclude_modules") or []
        if wanted == "all-linear":
            ends = ["all-linear"]
            found = [t for t in self.theirs.values() if t.ours[0].startswith("blocks.")]
        else:
            ends = self.names(wanted, "target_modules", problems)
            found = []
            for end in ends:
                match = self.matching(end)
                if not match:
                    problems.append(f"target_modules: no module of the model is called {end}")
                found += match
        ends_out = self.names(excluded, "exclude_modules", problems)
        out = {theirs.path for end in ends_out for theirs in self.matching(end)}
        found = [t for t in found if t.path not in out]
        layers = data.get("layers_to_transform")
        if layers is not None:
            chosen = layers if isinstance(layers, list) else [layers]
            if not all(type(layer) is int for layer in chosen):
                problems.append(f"layers_to_transform is {one_line(layers)}, not layers' numbers")
            found = [t for t in found if t.ours[0].split(".")[1:2] in [[str(c)] for c in chosen]]
        paths = {path for theirs in found for path in theirs.ours}
        return tuple(path for path in self.by_ours if path in paths)

    def names(self, value: object, key: str, problems: list[str]) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            problems.append(f"{key} is {one_line(value)}, not a list of module names")
            return []
        return [str(name) for name in value]

    def pattern(
        self, table: Mapping[str, Any], kind: type, key: str, problems: list[str]
    ) -> tuple[tuple[str, Any], ...]:
        """Their names to values -> our paths to values; the first name that fits counts."""
        out: dict[str, Any] = {}
        for name, value in table.items():
            if type(value) not in (kind, int) or not PLAIN.fullmatch(name):
                problems.append(f"{key}: {one_line(name)}: {one_line(value)} is not for a name")
                continue
            plain = name.removeprefix("^").removesuffix("$").replace("\\.", ".")
            for theirs in self.matching(plain):
                for path in theirs.ours:
                    out.setdefault(path, kind(value))
        return tuple(sorted(out.items()))
