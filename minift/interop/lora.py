"""LoRA in PEFT's files: the options of adapter_config.json, and the tensors of each linear."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minift.errors import ConfigError, one_line
from minift.interop import token_rows
from minift.interop.module_names import HFModule, ModuleNames
from minift.interop.peft_format import Format, Problems, Shapes, number, one, whole
from minift.model.transformer import Transformer
from minift.peft.lora import LoRA, LoRAEmbedding, LoRALayer, target_modules
from minift.peft.slots import WHOLE
from minift.peft.token_rows import TableRows, table_of
from minift.peft.token_rows import target_modules as table_modules

# PEFT's: those that leave the base's weights alone, and those that do not.
BASE_KEEPING = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
BASE_CHANGING = ("pissa", "corda", "olora", "loftq", "lora_ga")
LENGTHS = "lora_magnitude_vector"
LEAVES = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", LENGTHS)


def read(
    data: Mapping[str, Any], module_names: ModuleNames | None, there: Shapes, problems: Problems
) -> LoRA:
    """A LoRA from adapter_config.json; its targets as our paths, all of them by their own."""
    init = data.get("init_lora_weights", True)
    name = init if isinstance(init, str) else ""
    if name.startswith(BASE_CHANGING):
        problems.append(
            f"init_lora_weights is {one_line(name, 20)}, which changed the base: save it as a "
            "plain LoRA, with path_initial_model_for_weight_conversion of PEFT's save_pretrained"
        )
    elif data.get("kasa_config") is not None:
        problems.append(
            "kasa_config is there: KaSA takes the smallest singular values out of the base's own "
            "weights; merge it with PEFT and load the merged model"
        )
    elif init is not None and type(init) is not bool and name.lower() not in BASE_KEEPING:
        problems.append(f"init_lora_weights is {one_line(init)}, which minift does not have")
    ranks = one(data, "rank_pattern", dict, problems) or {}
    alphas = one(data, "alpha_pattern", dict, problems) or {}
    tokens, where = token_rows.read(data, module_names, problems)
    rank = whole(data, "r", problems)
    targets: tuple[str, ...] = ("all",)
    each: dict[str, int] = {}
    alpha = number(data, "lora_alpha", problems)
    of_alphas: tuple[tuple[str, float], ...] = ()
    if module_names is not None:
        low_rank = {path: leaves for path, leaves in there.items() if leaves.keys() & {*LEAVES}}
        targets = module_names.targets(data, low_rank, problems)
        # A pattern that cannot be read says nothing that the tensors do not say themselves.
        given = module_names.pattern(ranks, int, "rank_pattern", targets, problems, needed=False)
        each = {
            path: rank_in(low_rank.get(module_names.by_ours[path].path, {})) for path in targets
        }
        each = {path: r for path, r in each.items() if r} if given is None else given
        # Of alphas the tensors say nothing.
        found = module_names.pattern(alphas, float, "alpha_pattern", targets, problems, needed=True)
        of_alphas = tuple((found or {}).items())
    return LoRA(
        rank=rank,
        alpha=alpha,
        dropout=number(data, "lora_dropout", problems, 0.0),
        rslora=bool(one(data, "use_rslora", bool, problems)),
        dora=bool(one(data, "use_dora", bool, problems)),
        lora_bias=bool(one(data, "lora_bias", bool, problems)),
        targets=targets,
        ranks=tuple((path, r) for path, r in each.items() if r != rank),
        alphas=of_alphas,
        tokens=tokens,
        token_rows=where,
    )


def rank_in(leaves: Mapping[str, tuple[int, ...]]) -> int:
    """What the tensors of a module say of its rank; 0 where they say nothing."""
    shape = leaves.get("lora_A.weight") or leaves.get("lora_embedding_A") or ()
    return shape[0] if len(shape) == 2 else 0


def touched(model: Transformer, config: LoRA) -> list[str]:
    rows = table_modules(model, config.tokens, config.token_rows)
    tied = model.config.tied
    return [path for path, *_ in target_modules(model, config)] + [
        path for path, _ in rows if path == "embed" or not tied
    ]


def write(
    config: LoRA, module_names: ModuleNames, found: Mapping[str, nn.Module]
) -> dict[str, Any]:
    """adapter_config.json's part of it, as the changes are: pissa is a LoRA of twice the rank."""
    low_rank = {path: change for path, change in found.items() if not isinstance(change, TableRows)}
    sizes = {}
    for theirs in module_names.of(low_rank):
        parts = [low_rank.get(path) for path in theirs.ours]
        rank = len(parts[0].A) if isinstance(parts[0], LoRAEmbedding) else len(stacked(parts)[0])
        scale = config.scale_at(next(path for path in theirs.ours if path in low_rank))
        sizes[theirs.path] = (rank, scale * (math.sqrt(rank) if config.rslora else rank))
    usual = max(set(sizes.values()), key=lambda size: (list(sizes.values()).count(size), size))
    return {
        "r": usual[0],
        "lora_alpha": whole_if(usual[1]),
        "rank_pattern": {p: r for p, (r, _) in sizes.items() if r != usual[0]},
        "alpha_pattern": {p: whole_if(a) for p, (_, a) in sizes.items() if a != usual[1]},
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "lora_bias": config.lora_bias,
        "target_modules": module_names.modules(low_rank),
        "fan_in_fan_out": any(theirs.transposed for theirs in module_names.of(low_rank)),
        "init_lora_weights": True,
    } | token_rows.write(module_names, found)


def whole_if(alpha: float) -> float | int:
    """16, not 16.0, nor 16.000000000000004."""
    near = round(alpha)
    return near if math.isclose(alpha, near, rel_tol=1e-12) else alpha


def to_file(theirs: HFModule, parts: Sequence[nn.Module | None]) -> dict[str, Tensor]:
    """The tensors of one of their linears."""
    if isinstance(parts[0], TableRows):
        return {token_rows.LEAF: parts[0].rows}
    if isinstance(parts[0], LoRAEmbedding):
        both: dict[str, Tensor]
        both = {"lora_embedding_A": parts[0].A, "lora_embedding_B": parts[0].B}
        return both if parts[0].magnitude is None else both | {LENGTHS: parts[0].magnitude}
    A, columns = stacked(parts)
    scale = next(part.scale for part in parts if isinstance(part, LoRALayer))
    blocks = []
    for size, part, first in zip(theirs.outputs, parts, columns, strict=True):
        block = A.new_zeros(size, A.shape[0])
        if isinstance(part, LoRALayer):
            B = part.factors()[1].detach()
            # One scale in the file: what another of ours has more of it goes into B.
            block[:, first : first + B.shape[1]] = B * (part.scale / scale)
        blocks.append(block)
    tensors = {"lora_A.weight": A, "lora_B.weight": theirs.join(blocks)}
    lengths = [
        part.magnitude
        for part in parts
        if isinstance(part, LoRALayer) and part.magnitude is not None
    ]
    if lengths:
        if len(lengths) < len(parts):
            raise ConfigError(f"save_adapter: DoRA on a part of {theirs.path}, allowed all of it")
        tensors[LENGTHS] = theirs.join(lengths)
    if any(isinstance(part, LoRALayer) and part.b is not None for part in parts):
        rows = []
        for size, part in zip(theirs.outputs, parts, strict=True):
            row = A.new_zeros(size)
            if isinstance(part, LoRALayer) and part.b is not None:
                row = part.b.detach() * (part.scale / scale)
            rows.append(row)
        tensors["lora_B.bias"] = theirs.join(rows)
    return tensors


def stacked(parts: Sequence[nn.Module | None]) -> tuple[Tensor, list[int]]:
    """One A for all of ours in one of theirs (q, k and v), and where each one's rows of it begin.

    The rows stand below each other, unless all have the same, as after reading such a file.
    """
    each = [part.factors()[0].detach() if isinstance(part, LoRALayer) else None for part in parts]
    there = [A for A in each if A is not None]
    if all(torch.equal(A, there[0]) for A in there):
        return there[0], [0] * len(parts)
    sizes = [0 if A is None else len(A) for A in each]
    return torch.cat(there), [sum(sizes[:i]) for i in range(len(sizes))]


def shapes(theirs: HFModule, config: LoRA) -> dict[str, tuple[int, ...]]:
    """What the file must hold for one of their linears."""
    rank, outputs = config.rank_at(theirs.ours[0]), sum(theirs.outputs)
    if config.tokens and table_of(theirs.ours[0]) in WHOLE:
        return {token_rows.LEAF: (len(config.tokens), theirs.inputs)}
    wanted: dict[str, tuple[int, ...]]
    if theirs.ours[0] == "embed":
        wanted = {"lora_embedding_A": (rank, outputs), "lora_embedding_B": (theirs.inputs, rank)}
        return wanted | ({LENGTHS: (theirs.inputs,)} if config.dora else {})
    wanted = {"lora_A.weight": (rank, theirs.inputs), "lora_B.weight": (outputs, rank)}
    wanted |= {"lora_B.bias": (outputs,)} if config.lora_bias else {}
    return wanted | ({LENGTHS: (outputs,)} if config.dora else {})


@torch.no_grad()
def fill(theirs: HFModule, parts: Sequence[nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Put one of their linears' tensors into our changes."""
    if isinstance(parts[0], TableRows):
        parts[0].rows.copy_(tensors[token_rows.LEAF])
        return
    if isinstance(parts[0], LoRAEmbedding):
        parts[0].A.copy_(tensors["lora_embedding_A"])
        parts[0].B.copy_(tensors["lora_embedding_B"])
        if parts[0].magnitude is not None:
            parts[0].magnitude.copy_(tensors[LENGTHS])
        return
    rows = {leaf: theirs.split(t) for leaf, t in tensors.items() if leaf != "lora_A.weight"}
    for i, part in enumerate(parts):
        assert isinstance(part, LoRALayer)
        part.A.copy_(tensors["lora_A.weight"])
        part.B.copy_(rows["lora_B.weight"][i])
        if part.magnitude is not None:
            part.magnitude.copy_(rows[LENGTHS][i])
        if part.b is not None:
            part.b.copy_(rows["lora_B.bias"][i])


def is_identity(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these tensors change nothing; of whole rows only the base could tell."""
    ends = ("lora_B.weight", "lora_B.bias", "embedding_A")
    low_rank = [t for name, t in tensors.items() if name.endswith(ends)]
    whole_rows = any(name.endswith((LENGTHS, token_rows.LEAF)) for name in tensors)
    return not whole_rows and not any(bool(t.any()) for t in low_rank)


def state_shapes(model: Transformer, config: LoRA) -> dict[str, tuple[int, ...]]:
    """What a training state must hold; pissa alone has one."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, _, inputs, outputs in target_modules(model, config):
        rank = config.rank_at(path)
        if path == "embed":
            continue  # its files are its parameters
        for start in ("", "0"):
            shapes[f"{path}.A{start}"], shapes[f"{path}.B{start}"] = (rank, inputs), (outputs, rank)
    for path, _ in table_modules(model, config.tokens, config.token_rows):
        shapes[f"{path}.rows"] = (len(config.tokens), model.config.dim)
    return shapes


FILE = Format(
    "LORA",
    read,
    touched,
    write,
    to_file,
    shapes,
    fill,
    is_identity,
    state_shapes,
    stems=("lora_A.", "lora_B.", "lora_embedding_A", "lora_embedding_B", LENGTHS, token_rows.LEAF),
    options=(
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern"),
        *("alpha_pattern", "target_modules", "init_lora_weights", "layers_to_transform"),
        *("exclude_modules", "lora_bias", "ensure_weight_tying", token_rows.OPTION),
    ),
    unsupported={
        "bias": ("none", "all", "lora_only", None),
        "fan_in_fan_out": (False, True, None),
        "enable_lora": (None,),  # PEFT 0.1 and 0.2: which parts of a joined matrix learn
        "use_qalora": (False, None),
        "use_bdlora": (None, False),
        "layer_replication": (None, []),
        "target_parameters": (None, []),
        "alora_invocation_tokens": (None, []),
        # Each does more in use than add B A: routes, samples, or cuts the base.
        "arrow_config": (None,),
        "monteclora_config": (None,),
    },
    ignored=(  # how training began, went, or is written
        *("qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("velora_config", "merge_weights", "kasa_config"),
    ),
)
