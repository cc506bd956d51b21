"""Rotary positions in a configuration: their base, how they are scaled, how far the context goes.

config.json      rope_theta, rope_scaling; in newer files rope_parameters holds both
GGUF             rope.freq_base, rope.scaling.*, or the divisors in the tensor rope_freqs.weight
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from minift.checkpoints.mapping import Field, Part, Values, finite, read_fields
from minift.errors import ConfigError, FormatError
from minift.model.config import ModelConfig, RopeScaling


def scaling(rope: Mapping[str, Any], context: int, path: str) -> RopeScaling | None:
    """What `rope_scaling`, or `rope_parameters` of newer files, says beyond the base."""
    where = "rope_scaling"
    kind = rope.get("rope_type", rope.get("type", "default"))
    number = {"factor": Field("factor", "factor", float)}
    whole = Field("original_max_position_embeddings", "original_context", int, context)
    match kind:
        case "default":
            return None
        case "linear":
            return made(read_fields((number["factor"],), rope, path), "linear", path)
        case "dynamic":
            values = read_fields((number["factor"],), rope, path)
            return made(values | {"original_context": context}, "dynamic", path)
        case "llama3":
            table = (
                number["factor"],
                Field("low_freq_factor", "low", float),
                Field("high_freq_factor", "high", float),
                whole,
            )
            return made(read_fields(table, rope, path), "llama3", path)
        case "yarn":
            if rope.get("truncate") is False:
                raise FormatError(path, f"{where}.truncate", False, "true", "out-of-range")
            table = (
                Field("factor", "factor", float, 0.0),
                Field("beta_slow", "low", float, 1.0),
                Field("beta_fast", "high", float, 32.0),
                whole,
            )
            values = read_fields(table, rope, path)
            original = max(1, values["original_context"])
            values["factor"] = values["factor"] or context / original
            return made(
                values | {"attention_factor": yarn_gain(rope, values["factor"], path)}, "yarn", path
            )
        case "longrope" if rope.get("short_factor") == rope.get("long_factor"):
            factors = rope.get("long_factor")
            if not isinstance(factors, list) or not factors:
                raise FormatError(path, f"{where}.long_factor", factors, "a list", "bad-type")
            numbers = tuple(finite(f, path, f"{where}.long_factor") for f in factors)
            more = (
                Field("factor", "factor", float, None),
                Field("attention_factor", "attention_factor", float, None),
            )
            values = read_fields((*more, whole), rope, path)
            original, factor = max(1, values["original_context"]), values.pop("factor")
            if values["attention_factor"] is None:
                values["attention_factor"] = longrope_gain(factor or context / original, original)
            return made(values | {"factors": numbers}, "factors", path)
    known = "default, linear, dynamic, llama3, yarn, or longrope with one list of factors"
    raise FormatError(path, f"{where}.rope_type", kind, known, "out-of-range")


def yarn_gain(rope: Mapping[str, Any], factor: float, path: str) -> float:
    """What cos and sin are multiplied by: given, or 0.1 ln(factor) + 1 (the paper's eq. 22)."""

    def share(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    given = [rope.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim")]
    gain, one, all_dim = (
        None if v is None else finite(v, path, "rope_scaling of type yarn") for v in given
    )
    if gain is not None:
        return gain
    if one and all_dim and share(all_dim) == 0:
        raise FormatError(
            path, "rope_scaling.mscale_all_dim", all_dim, "a share above 0", "overflow"
        )
    return share(one) / share(all_dim) if one and all_dim else share(1.0)


def longrope_gain(factor: float, original: int) -> float:
    """The same of longrope: sqrt(1 + ln(factor) / ln(original)) (arXiv:2402.13753, section 4.2)."""
    if factor <= 1 or original <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original))


def made(values: Values, kind: str, path: str) -> RopeScaling:
    try:
        return RopeScaling(kind, **values)
    except (ConfigError, TypeError) as error:
        text = str(error).removeprefix("rope scaling: found ")
        raise FormatError(
            path, "rope_scaling", text, "a scaling that can be", "out-of-range"
        ) from None


def written(rope: RopeScaling | None) -> Values:
    """The scaling in the words of config.json."""
    if rope is None:
        return {"rope_type": "default"}
    original = {"original_max_position_embeddings": rope.original_context}
    match rope.kind:
        case "linear" | "dynamic":
            return {"rope_type": rope.kind, "factor": rope.factor}
        case "llama3":
            return {
                "rope_type": "llama3",
                "factor": rope.factor,
                "low_freq_factor": rope.low,
                "high_freq_factor": rope.high,
                **original,
            }
        case "yarn":
            return {
                "rope_type": "yarn",
                "factor": rope.factor,
                "beta_slow": rope.low,
                "beta_fast": rope.high,
                "attention_factor": rope.attention_factor,
                **original,
            }
    factors = list(rope.factors)
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": rope.attention_factor,
        **original,
    }


def rope_object(
    data: Mapping[str, Any], path: str, keys: tuple[str, ...] = ("rope_scaling", "rope_parameters")
) -> Mapping[str, Any]:
    """The first of `keys` that says something; what stands beside it goes before its own."""
    found = {key: data.get(key) for key in keys}
    for key, value in found.items():
        if value is not None and not isinstance(value, dict):
            raise FormatError(path, key, value, "an object", "bad-type")
    first: Mapping[str, Any] = next((value for value in found.values() if value), {})
    original = data.get("original_max_position_embeddings")  # Phi's place for it
    return first if original is None else {**first, "original_max_position_embeddings": original}


def base_of(choices: Sequence[object], path: str, where: str) -> float:
    """The first number of a base that is given."""
    return finite(next(base for base in choices if base is not None), path, where)


def reach(found: Mapping[str, Any], scaled: RopeScaling | None, context: int) -> int:
    """The context after scaling: where the original one is said, or is what `dynamic` grows from.

    Without an original, files with linear scaling count it in max_position_embeddings or do not.
    """
    if scaled is None or scaled.kind not in ("linear", "dynamic", "yarn"):
        return context
    original = found.get("original_max_position_embeddings")
    original = context if scaled.kind == "dynamic" else original
    if type(original) is not int:
        return context
    return max(context, int(min(scaled.factor * original, 2.0**62)))  # an infinity has no int


def scaled_rope(found: Mapping[str, Any], base: float, values: Values, path: str) -> Values:
    scaled = scaling(found, values["context"], path)
    context = reach(found, scaled, values["context"])
    return {"rope_base": base, "rope_scaling": scaled, "context": context}


def written_context(config: ModelConfig) -> Values:
    """max_position_embeddings, which `dynamic` scaling grows from."""
    scaled = config.rope_scaling
    if scaled is None or scaled.kind != "dynamic":
        return {}
    return {"max_position_embeddings": scaled.original_context}


def rope(default_base: float) -> Part:
    """rope_theta with rope_scaling, or both inside rope_parameters."""

    def read(data: Mapping[str, Any], values: Values, path: str) -> Values:
        found = rope_object(data, path)
        bases = (found.get("rope_theta"), data.get("rope_theta"), default_base)
        return scaled_rope(found, base_of(bases, path, "rope_theta"), values, path)

    def write(config: ModelConfig) -> Values:
        found = {"rope_theta": config.rope_base, **written(config.rope_scaling)}
        # Older programs read rope_theta and rope_scaling, newer ones rope_parameters.
        more = {} if config.rope_scaling is None else {"rope_scaling": written(config.rope_scaling)}
        both = {"rope_parameters": found, "rope_theta": config.rope_base, **more}
        return both | written_context(config)

    return Part(read, write)


def _read_two_ropes(data: Mapping[str, Any], values: Values, path: str) -> Values:
    both = rope_object(data, path, ("rope_parameters",))
    whole, near = both.get("full_attention") or {}, both.get("sliding_attention") or {}
    if not isinstance(whole, dict) or not isinstance(near, dict):
        raise FormatError(path, "rope_parameters", both, "an object a kind of layer", "bad-type")
    if near.get("rope_type", "default") != "default":
        where = "rope_parameters.sliding_attention"
        raise FormatError(path, where, near["rope_type"], "default", "out-of-range")
    whole = {**whole, **rope_object(data, path, ("rope_scaling",))}
    local = (near.get("rope_theta"), data.get("rope_local_base_freq"), 1e4)
    base = base_of((whole.get("rope_theta"), data.get("rope_theta"), 1e6), path, "rope_theta")
    return {
        **scaled_rope(whole, base, values, path),
        "local_rope_base": base_of(local, path, "rope_local_base_freq"),
    }


def _write_two_ropes(config: ModelConfig) -> Values:
    whole = {"rope_theta": config.rope_base, **written(config.rope_scaling)}
    near = {"rope_theta": config.local_rope_base, "rope_type": "default"}
    return {
        "rope_parameters": {"full_attention": whole, "sliding_attention": near},
        "rope_theta": config.rope_base,
        "rope_local_base_freq": config.local_rope_base,
        "rope_scaling": None if config.rope_scaling is None else written(config.rope_scaling),
        **written_context(config),
    }


TWO_ROPES = Part(_read_two_ropes, _write_two_ropes)  # Gemma 3: layers with a window turn faster


def _read_partial_rope(data: Mapping[str, Any], values: Values, path: str) -> Values:
    found = rope_object(data, path)
    share = found.get("partial_rotary_factor", data.get("rotary_pct", 0.25))
    bases = (found.get("rope_theta"), data.get("rotary_emb_base"), data.get("rope_theta"), 1e4)
    share = finite(share, path, "rotary_pct")
    if not 0 < share <= 1:
        raise FormatError(path, "rotary_pct", share, "above 0, at most 1", "out-of-range")
    return {
        **scaled_rope(found, base_of(bases, path, "rotary_emb_base"), values, path),
        "rope_dims": int(values["head_dim"] * share),
    }


def _write_partial_rope(config: ModelConfig) -> Values:
    share = config.rotated / config.head_dim
    found = {"rope_theta": config.rope_base, "partial_rotary_factor": share}
    return {
        "rope_parameters": {**found, **written(config.rope_scaling)},
        "rotary_pct": share,
        "rotary_emb_base": config.rope_base,
        **written_context(config),
    }


PARTIAL_ROPE = Part(_read_partial_rope, _write_partial_rope)  # NeoX


# ---- GGUF ----------------------------------------------------------------------------------------


def _read_gguf_rope(data: Mapping[str, Any], values: Values, path: str) -> Values:
    """Scaling by name, or the divisors of a tensor of their own (data["rope_freqs.weight"]).

    The defaults are those of llama.cpp: linear, by the factor, which old files have under another
    name; 0 means none.
    """
    kind = data.get("rope.scaling.type", "linear")
    factor = data.get("rope.scaling.factor", data.get("rope.scale_linear", 0.0))
    linear = finite(factor, path, "rope.scaling.factor")
    factors = data.get("rope_freqs.weight")
    if factors is not None:
        if kind != "none" and linear not in (0.0, 1.0):
            found, allowed = f"{linear:g} beside rope_freqs.weight", "one of the two"
            raise FormatError(path, "rope.scaling.factor", found, allowed, "out-of-range")
        return {"rope_scaling": made({"factors": factors}, "factors", path)}
    if kind == "none" or (kind == "linear" and linear in (0.0, 1.0)):
        return {"rope_scaling": None}
    if kind not in ("linear", "yarn"):
        raise FormatError(path, "rope.scaling.type", kind, "none, linear, yarn", "out-of-range")
    words = {
        "rope_type": kind,
        "factor": linear,
        "original_max_position_embeddings": data.get("rope.scaling.original_context_length"),
        "beta_fast": data.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": data.get("rope.scaling.yarn_beta_slow"),
    }
    more = finite(data.get("rope.scaling.attn_factor", 1.0), path, "rope.scaling.attn_factor")
    if kind == "yarn" and more != 1.0:  # a factor on what YaRN itself asks for
        words["attention_factor"] = more * (0.1 * math.log(max(linear, 1.0)) + 1.0)
    known = {key: value for key, value in words.items() if value is not None}
    return {"rope_scaling": scaling(known, values["context"], path)}


def _write_gguf_rope(config: ModelConfig) -> Values:
    rope = config.rope_scaling
    if rope is None or rope.kind in ("factors", "llama3"):  # those stand in a tensor
        return {}
    if rope.kind == "dynamic":
        raise ConfigError("a GGUF file cannot say dynamic RoPE scaling")
    words: Values = {"rope.scaling.type": rope.kind, "rope.scaling.factor": rope.factor}
    if rope.kind == "yarn":
        words["rope.scaling.original_context_length"] = rope.original_context
    return words


GGUF_ROPE = Part(_read_gguf_rope, _write_gguf_rope)
