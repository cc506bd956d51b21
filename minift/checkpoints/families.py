"""Model families as data: how each one's files spell our configuration and our tensors.

A `Field` maps a key of config.json (or of GGUF metadata) to a field of ModelConfig, a `Row` maps
a tensor name to ours; `{i}` is the layer. `how` names an invertible transform of the tensor, so
that the same rows, read right to left, write the family's files. Nothing here is code per family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from minift.errors import ConfigError, FormatError, one_line
from minift.model.config import ModelConfig, RopeScaling


@dataclass(frozen=True)
class Field:
    theirs: str
    ours: str
    type: type
    default: object = None  # None: required. A string names the field of ours that it falls back on


@dataclass(frozen=True)
class Row:
    theirs: str
    ours: str
    how: str = "="
    when: str = ""  # only where this field of ModelConfig is true ("!tied": where it is false)


@dataclass(frozen=True)
class Family:
    name: str  # config.json's model_type, GGUF's general.architecture
    architecture: str  # the class that other programs load it with
    fields: tuple[Field, ...]
    must_be: Mapping[str, object]  # config.json keys that minift knows one value of
    weights: tuple[Row, ...]
    gguf_fields: tuple[Field, ...]
    gguf_must_be: Mapping[str, object]
    gguf_weights: tuple[Row, ...]


def unpermute(heads: int, x: Tensor) -> Tensor:
    """GGUF keeps a head's channel pairs side by side; we keep them half a head apart."""
    return x.reshape(heads, -1, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def permute(heads: int, x: Tensor) -> Tensor:
    return x.reshape(heads, 2, -1, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


HOW: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {  # name: (load, save)
    "=": (lambda config, x: x, lambda config, x: x),
    "q pairs": (
        lambda config, x: unpermute(config.heads, x),
        lambda config, x: permute(config.heads, x),
    ),
    "k pairs": (
        lambda config, x: unpermute(config.kv_heads, x),
        lambda config, x: permute(config.kv_heads, x),
    ),
}

LLAMA_BIASES = tuple(
    Row(f"model.layers.{{i}}.{theirs}.bias", f"blocks.{{i}}.{ours}.bias", when=when)
    for theirs, ours, when in (
        ("self_attn.q_proj", "attn.qkv.q", "qkv_bias"),
        ("self_attn.k_proj", "attn.qkv.k", "qkv_bias"),
        ("self_attn.v_proj", "attn.qkv.v", "qkv_bias"),
        ("self_attn.o_proj", "attn.out.o", "out_bias"),
        ("mlp.gate_proj", "mlp.hidden.gate", "mlp_bias"),
        ("mlp.up_proj", "mlp.hidden.up", "mlp_bias"),
        ("mlp.down_proj", "mlp.out.down", "mlp_bias"),
    )
)

LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    fields=(
        Field("vocab_size", "vocab", int),
        Field("hidden_size", "dim", int),
        Field("num_hidden_layers", "layers", int),
        Field("num_attention_heads", "heads", int),
        Field("num_key_value_heads", "kv_heads", int, "heads"),
        Field("head_dim", "head_dim", int, "dim / heads"),
        Field("intermediate_size", "ff", int),
        Field("max_position_embeddings", "context", int, 2048),
        Field("rms_norm_eps", "norm_eps", float, 1e-6),
        Field("rope_theta", "rope_base", float, 10_000.0),
        Field("tie_word_embeddings", "tied", bool, False),
        Field("attention_bias", "qkv_bias", bool, False),
        Field("attention_bias", "out_bias", bool, False),
        Field("mlp_bias", "mlp_bias", bool, False),
    ),
    must_be={"hidden_act": "silu", "pretraining_tp": 1, "quantization_config": None},
    weights=(
        Row("model.embed_tokens.weight", "embed.weight"),
        Row("model.layers.{i}.input_layernorm.weight", "blocks.{i}.attn.norm.weight"),
        Row("model.layers.{i}.self_attn.q_proj.weight", "blocks.{i}.attn.qkv.q.weight"),
        Row("model.layers.{i}.self_attn.k_proj.weight", "blocks.{i}.attn.qkv.k.weight"),
        Row("model.layers.{i}.self_attn.v_proj.weight", "blocks.{i}.attn.qkv.v.weight"),
        Row("model.layers.{i}.self_attn.o_proj.weight", "blocks.{i}.attn.out.o.weight"),
        Row("model.layers.{i}.post_attention_layernorm.weight", "blocks.{i}.mlp.norm.weight"),
        Row("model.layers.{i}.mlp.gate_proj.weight", "blocks.{i}.mlp.hidden.gate.weight"),
        Row("model.layers.{i}.mlp.up_proj.weight", "blocks.{i}.mlp.hidden.up.weight"),
        Row("model.layers.{i}.mlp.down_proj.weight", "blocks.{i}.mlp.out.down.weight"),
        *LLAMA_BIASES,
        Row("model.norm.weight", "norm.weight"),
        Row("lm_head.weight", "head.weight", when="!tied"),
    ),
    gguf_fields=(
        Field("vocab_size", "vocab", int),
        Field("embedding_length", "dim", int),
        Field("block_count", "layers", int),
        Field("attention.head_count", "heads", int),
        Field("attention.head_count_kv", "kv_heads", int, "heads"),
        Field("attention.key_length", "head_dim", int, "dim / heads"),
        Field("feed_forward_length", "ff", int),
        Field("context_length", "context", int),
        Field("attention.layer_norm_rms_epsilon", "norm_eps", float),
        Field("rope.freq_base", "rope_base", float, 10_000.0),
    ),
    gguf_must_be={"rope.scaling.type": "none", "expert_count": 0},
    gguf_weights=(
        Row("token_embd.weight", "embed.weight"),
        Row("blk.{i}.attn_norm.weight", "blocks.{i}.attn.norm.weight"),
        Row("blk.{i}.attn_q.weight", "blocks.{i}.attn.qkv.q.weight", "q pairs"),
        Row("blk.{i}.attn_k.weight", "blocks.{i}.attn.qkv.k.weight", "k pairs"),
        Row("blk.{i}.attn_v.weight", "blocks.{i}.attn.qkv.v.weight"),
        Row("blk.{i}.attn_output.weight", "blocks.{i}.attn.out.o.weight"),
        Row("blk.{i}.ffn_norm.weight", "blocks.{i}.mlp.norm.weight"),
        Row("blk.{i}.ffn_gate.weight", "blocks.{i}.mlp.hidden.gate.weight"),
        Row("blk.{i}.ffn_up.weight", "blocks.{i}.mlp.hidden.up.weight"),
        Row("blk.{i}.ffn_down.weight", "blocks.{i}.mlp.out.down.weight"),
        Row("output_norm.weight", "norm.weight"),
        Row("output.weight", "head.weight", when="!tied"),
    ),
)

FAMILIES = {family.name: family for family in (LLAMA,)}


def family_of(name: object, path: str, where: str) -> Family:
    """The family that a file names, or the list of those that there are."""
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise FormatError(path, where, name, f"a family that minift knows: {known}", "out-of-range")
    return FAMILIES[name]


def rows(table: tuple[Row, ...], config: ModelConfig) -> Iterator[Row]:
    """The rows of `table` that this model has, with `{i}` filled in for every layer."""
    for row in table:
        if row.when and getattr(config, row.when.lstrip("!")) == row.when.startswith("!"):
            continue
        if "{i}" not in row.theirs:
            yield row
        else:
            for i in range(config.layers):
                yield Row(row.theirs.format(i=i), row.ours.format(i=i), row.how)


def read_fields(
    table: tuple[Field, ...], found: Mapping[str, object], path: str, prefix: str = ""
) -> dict[str, object]:
    """The values of ModelConfig that `found` spells in the family's words; all problems at once."""
    values: dict[str, object] = {}
    problems = []
    for field in table:
        value = found.get(prefix + field.theirs)
        if value is None and field.default is None:
            problems.append(f"{prefix + field.theirs} is missing")
        elif value is None:
            values[field.ours] = field.default
        elif type(value) is field.type or (field.type is float and type(value) is int):
            values[field.ours] = float(value) if field.type is float else value  # type: ignore[arg-type]
        else:
            kind = {int: "a whole number", float: "a number", bool: "true or false"}[field.type]
            problems.append(f"{prefix + field.theirs} is {one_line(value)}, not {kind}")
    if problems:
        raise FormatError(
            path, "configuration", "; ".join(problems), "the fields it needs", "bad-type"
        )
    for ours, value in values.items():
        if value == "heads":
            values[ours] = values["heads"]
        elif value == "dim / heads":
            values[ours] = int(values["dim"]) // max(1, int(values["heads"]))  # type: ignore[call-overload]
    return values


def config_from_json(data: Mapping[str, object], path: str) -> ModelConfig:
    """ModelConfig from a parsed config.json."""
    family = family_of(data.get("model_type"), path, "model_type")
    check_fixed(family.must_be, data, path)
    # Newer files keep the base beside the scaling, in rope_parameters; older ones apart.
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise FormatError(path, "rope_scaling", rope, "an object", "bad-type")
    found = {"rope_theta": rope.get("rope_theta"), **data}
    values = read_fields(family.fields, found, path)
    return build(values | {"family": family.name, "rope_scaling": scaling(rope, path)}, path)


def check_fixed(must_be: Mapping[str, object], found: Mapping[str, object], path: str) -> None:
    """Refuse a value that would change the mathematics and that minift does not implement."""
    for key, value in must_be.items():
        if found.get(key, value) != value:
            raise FormatError(path, key, found[key], repr(value), "out-of-range")


def scaling(rope: Mapping[str, object], path: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise FormatError(path, "rope_scaling.rope_type", kind, "default, llama3", "out-of-range")
    table = (
        Field("factor", "factor", float),
        Field("low_freq_factor", "low", float),
        Field("high_freq_factor", "high", float),
        Field("original_max_position_embeddings", "original_context", int),
    )
    return build_scaling(read_fields(table, rope, path), path)


def build_scaling(values: dict[str, object], path: str) -> RopeScaling:
    try:
        return RopeScaling(**values)  # type: ignore[arg-type]
    except ConfigError as error:
        raise FormatError(path, "rope_scaling", error, "see config.json", "out-of-range") from None


def build(values: dict[str, object], path: str) -> ModelConfig:
    try:
        return ModelConfig(**values)  # type: ignore[arg-type]
    except ConfigError as error:
        raise FormatError(
            path, "configuration", error, "a model that can be", "out-of-range"
        ) from None


def config_to_json(config: ModelConfig, dtype: str) -> dict[str, object]:
    """config.json as the family's other readers expect it."""
    family = FAMILIES[config.family]
    data: dict[str, object] = {
        "architectures": [family.architecture],
        "model_type": family.name,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    data |= {key: value for key, value in family.must_be.items() if isinstance(value, str)}
    data |= {field.theirs: getattr(config, field.ours) for field in family.fields}
    if config.rope_scaling is not None:
        data["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low,
            "high_freq_factor": config.rope_scaling.high,
            "original_max_position_embeddings": config.rope_scaling.original_context,
        }
    return data


def config_from_gguf(
    metadata: Mapping[str, object], tensors: Mapping[str, tuple[int, ...]], path: str
) -> ModelConfig:
    """ModelConfig from GGUF metadata; what GGUF leaves unsaid is read off the tensors present."""
    family = family_of(metadata.get("general.architecture"), path, "general.architecture")
    found = dict(metadata)
    key = f"{family.name}.vocab_size"
    if key not in found and len(tensors.get("token_embd.weight", ())) == 2:
        found[key] = tensors["token_embd.weight"][0]
    prefix = f"{family.name}."
    values = read_fields(family.gguf_fields, found, path, prefix)
    fixed = {"rope.dimension_count": values["head_dim"], **family.gguf_must_be}
    check_fixed({prefix + key: value for key, value in fixed.items()}, found, path)
    return build(values | {"family": family.name, "tied": "output.weight" not in tensors}, path)
