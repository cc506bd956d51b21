"""Our linears in a family's words, and the other way round.

    blocks.0.attn.qkv.q               Llama    model.layers.0.self_attn.q_proj
    blocks.0.attn.qkv.{q,k,v}         GPT-2    transformer.h.0.attn.c_attn, rows q | k | v

The rows are those by which checkpoints are read (checkpoints/families.py). Adapter files name a
module by its path, by the end of it, which must begin at a dot, or by a regular expression; the
path is that of the class that the adapter was trained on, which may be another of the family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from minift.checkpoints.families import FAMILIES
from minift.checkpoints.mapping import TRANSFORMS, Pair, pairs
from minift.errors import one_line
from minift.interop.pattern import Budget, Pattern, Unreadable
from minift.model.config import ModelConfig
from minift.model.norm import LayerNorm
from minift.model.transformer import Transformer

# Modules that transformers 5 renamed: checkpoints, and adapters made before it, have the old name.
OLDER = {"embed_out": "lm_head"}
# Where another class of a family keeps the same body: with a head or without, beside a picture's.
ELSEWHERE = ("model.language_model.model.", "language_model.model.", "model.language_model.",
             "language_model.")  # fmt: skip
PLAIN = re.compile(r"[\w.]+", re.ASCII)  # a pattern whose only sign is the dot: any letter


@dataclass(frozen=True)
class HFModule:
    """One of the family's modules, and those of ours that it holds, in the order of its rows."""

    path: str
    ours: tuple[str, ...]
    inputs: int  # 0: a norm
    outputs: tuple[int, ...]  # of each of ours
    transposed: bool  # GPT-2's Conv1D, which stores (in, out)
    transform: str
    config: ModelConfig

    @property
    def layer(self) -> str:
        """Its block's number; empty outside of the blocks."""
        words = self.ours[0].split(".")
        return words[1] if words[0] == "blocks" else ""

    def split(self, rows: Tensor) -> list[Tensor]:
        """(out, ...) of theirs -> one for each of ours."""
        return TRANSFORMS[self.transform].load(self.config, rows)

    def join(self, rows: Sequence[Tensor]) -> Tensor:
        return TRANSFORMS[self.transform].save(self.config, [row.detach() for row in rows])


class ModuleNames:
    """The words of one model's family."""

    def __init__(self, model: Transformer):
        family, config = FAMILIES[model.config.family], model.config
        self.prefix = prefix = "" if config.head == "none" else family.prefix
        self.family, self.usual = config.family, family.prefix
        self.spoken = prefix  # what stands for it in the words of the class at hand; see `place`
        self.theirs: dict[str, HFModule] = {}
        self.tensors: dict[str, Pair] = {}  # all of theirs, by their names
        for pair in pairs(family.folder, config, prefix):
            stored, _, leaf = pair.theirs.rpartition(".")
            path = OLDER.get(stored, stored)
            self.tensors[f"{path}.{leaf}"] = pair
            members = tuple(name.removesuffix(".weight") for name in pair.ours)
            transposed = pair.transform.endswith("transpose")
            transform = pair.transform.removesuffix("transpose").strip() or "="
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
            self.theirs[path] = HFModule(
                path, members, inputs, outputs, transposed, transform, config
            )
        if config.tied and config.head == "lm":
            outputs = (config.vocab,)
            head = HFModule("lm_head", ("head",), config.dim, outputs, False, "=", config)
            self.theirs[head.path] = head
            self.tensors["lm_head.weight"] = Pair("lm_head.weight", ("head.weight",), "=")
        for copied, original in family.folder.tied_copies.items():
            if twin := self.tensors.get(original.replace("{p}", prefix)):
                path, _, leaf = copied.replace("{p}", prefix).rpartition(".")
                self.tensors.setdefault(f"{OLDER.get(path, path)}.{leaf}", twin)
        self.ends: dict[str, list[HFModule]] = {}  # a.b.c by a.b.c, b.c and c
        for path, theirs in self.theirs.items():
            parts = path.split(".")
            for k in range(len(parts)):
                self.ends.setdefault(".".join(parts[k:]), []).append(theirs)

    @property
    def by_ours(self) -> dict[str, HFModule]:
        return {path: theirs for theirs in self.theirs.values() for path in theirs.ours}

    def of(self, ours: Iterable[str]) -> list[HFModule]:
        """Those of theirs that hold any of ours, in the order of the model."""
        wanted = set(ours)
        return [theirs for theirs in self.theirs.values() if wanted & set(theirs.ours)]

    def matching(self, name: str) -> list[HFModule]:
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

    # ---- names of a file -------------------------------------------------------------------------

    @cached_property
    def modules_there(self) -> set[str]:
        return {name.rpartition(".")[0] for name in self.tensors} | {*self.theirs}

    def place(self, path: str) -> str | None:
        """A module's path as this model's class has it; None for what it has not."""
        for old, new in OLDER.items():
            path = new if path == old else path
        if path in self.modules_there:
            return path
        for prefix in (*ELSEWHERE, self.usual, ""):
            tail = path.removeprefix(prefix)
            if path.startswith(prefix) and self.prefix + tail in self.modules_there:
                self.spoken = prefix
                return self.prefix + tail
            if prefix in ELSEWHERE and tail != path and tail in self.modules_there:
                return tail  # a head
        return None

    def said(self, path: str) -> str:
        """A path in the words of the class that the adapter was trained on."""
        if self.spoken == self.prefix or not path.startswith(self.prefix):
            return path
        return self.spoken + path.removeprefix(self.prefix)

    def targets(
        self, data: Mapping[str, Any], there: Iterable[str], problems: list[str]
    ) -> tuple[str, ...]:
        """Our paths of what is adapted: the modules in the file, and all that the options mean.

        The tensors decide where the options leave it open: no targets, all linears, a pattern that
        is not read. A listed name that the model lacks means nothing, as in PEFT.
        """
        wanted, excluded = data.get("target_modules"), data.get("exclude_modules")
        found = set(there)
        if wanted == "all-linear":
            found |= {t.path for t in self.theirs.values() if t.layer and t.inputs}
        elif wanted is not None and (named := self.named(wanted, "target_modules", problems)):
            found = named
        elif isinstance(wanted, list) and not problems:
            names = ", ".join(map(str, wanted[:8]))
            problems.append(f"target_modules: the model has none of {one_line(names) or '[]'}")
        if excluded not in (None, [], ""):
            found -= self.named(excluded, "exclude_modules", problems) or set()
        found -= self.saved(found, data)
        layers = data.get("layers_to_transform")
        if layers is not None:
            chosen = layers if isinstance(layers, list) else [layers]
            if not all(type(layer) is int for layer in chosen):
                problems.append(f"layers_to_transform is {one_line(layers)}, not layers' numbers")
            numbers = {f"{layer}" for layer in chosen if type(layer) is int}
            inside = {t.path for t in self.theirs.values() if t.layer in numbers}
            found &= inside if numbers else found
        return tuple(p for t in self.theirs.values() if t.path in found for p in t.ours)

    def saved(self, paths: Iterable[str], data: Mapping[str, Any]) -> set[str]:
        """Those that `modules_to_save` names, or that are inside of one it names: no targets."""
        names = data.get("modules_to_save")
        whole = {n for n in names if isinstance(n, str)} if isinstance(names, list) else set()
        found = set()
        for path in paths:
            words = path.split(".")
            spans = ((i, k) for i in range(len(words)) for k in range(i + 1, len(words) + 1))
            if any(".".join(words[i:k]) in whole for i, k in spans):
                found.add(path)
        return found

    def named(self, value: object, key: str, problems: list[str]) -> set[str] | None:
        """The modules that a list of names or a pattern means; None where that cannot be said."""
        if isinstance(value, str):
            try:
                pattern = Pattern(value, self.budget)
                return {path for path in self.linear if pattern.matches(self.said(path))}
            except Unreadable:
                return None
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            problems.append(f"{key} is {one_line(value)}, not module names or a pattern")
            return set()
        found = {t.path for name in {*value} for t in self.matching(self.placed_end(name))}
        return found & self.linear

    def placed_end(self, name: str) -> str:
        """A name of a list, which may be a whole path of another class."""
        whole = name not in self.ends and name.count(".") > 1
        return (self.place(name) or name) if whole else name

    @cached_property
    def linear(self) -> set[str]:
        """Modules that a name can mean: no norms, on which no method of PEFT's hangs."""
        return {path for path, theirs in self.theirs.items() if theirs.inputs}

    @cached_property
    def budget(self) -> Budget:
        return Budget()

    def pattern(
        self,
        table: Mapping[str, Any],
        kind: type,
        key: str,
        targets: Iterable[str],
        problems: list[str],
        *,
        needed: bool,
    ) -> dict[str, Any] | None:
        """Our targets -> the value of the first pattern that fits, as PEFT matches them: the whole
        path, or its end after a dot. None where one cannot be read and is not `needed`."""
        for name, value in table.items():
            if type(value) not in (kind, int):
                problems.append(f"{key}: {one_line(name)}: {one_line(value)} is not for a pattern")
        if not table or problems:
            return {}
        out: dict[str, Any] = {}
        try:
            tables = Patterns(list(table), self.budget)
            for theirs in self.of(targets):
                first = tables.first(self.said(theirs.path))
                if first is not None:
                    out |= dict.fromkeys(theirs.ours, kind(table[first]))
        except Unreadable as error:
            if not needed:
                return None
            problems.append(f"{key}: a pattern {error}, which minift does not match")
        return out


class Patterns:
    """Patterns in their order, of which the first that fits a path counts."""

    def __init__(self, names: Sequence[str], budget: Budget):
        self.names, self.budget = names, budget
        # Plain ones by their length and where they have dots, for which any letter may stand.
        self.plain: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        self.others: list[tuple[int, Pattern]] = []
        for at, name in enumerate(names):
            budget.spend(1)
            if PLAIN.fullmatch(name):
                dots = tuple(i for i, letter in enumerate(name) if letter == ".")
                self.plain.setdefault(len(name), {}).setdefault(dots, {}).setdefault(name, at)
            else:
                self.others.append((at, Pattern(rf"(.*\.)?({name})$", budget)))

    def first(self, path: str) -> str | None:
        found = len(self.names)
        starts = [0, *(i + 1 for i, letter in enumerate(path) if letter == ".")]
        for end in (path[start:] for start in starts):
            for dots, names in self.plain.get(len(end), {}).items():
                self.budget.spend(1)
                letters = list(end)
                for i in dots:
                    letters[i] = "."
                found = min(found, names.get("".join(letters), found))
        for at, pattern in self.others:
            if at < found and pattern.matches(path, whole=False):
                found = at
        return self.names[found] if found < len(self.names) else None
