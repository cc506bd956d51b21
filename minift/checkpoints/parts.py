"""Pieces of a config.json that are no single field: rotary scaling, windows, labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minift.checkpoints.mapping import Field, Part, Values, finite, read_fields
from minift.errors import ConfigError, FormatError, notice, one_line
from minift.model.config import ModelConfig, RopeScaling

LAYERS_LIMIT = 100_000
LABELS_LIMIT = 1_000_000
WINDOW = 4096  # of a file that leaves the key out, in every family that has one


# ---- rotary positions ----------------------------------------------------------------------------


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
            return made(values | {"gain": yarn_gain(rope, values["factor"], path)}, "yarn", path)
        case "longrope" if rope.get("short_factor") == rope.get("long_factor"):
            factors = rope.get("long_factor")
            if not isinstance(factors, list) or not factors:
                raise FormatError(path, f"{where}.long_factor", factors, "a list", "bad-type")
            numbers = tuple(finite(f, path, f"{where}.long_factor") for f in factors)
            more = (
                Field("factor", "factor", float, None),
                Field("attention_factor", "gain", float, None),
            )
            values = read_fields((*more, whole), rope, path)
            original, factor = max(1, values["original_context"]), values.pop("factor")
            if values["gain"] is None:
                values["gain"] = longrope_gain(factor or context / original, original)
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
                "attention_factor": rope.gain,
                **original,
            }
    factors = list(rope.factors)
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": rope.gain,
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
    share = config.turned / config.head_dim
    found = {"rope_theta": config.rope_base, "partial_rotary_factor": share}
    return {
        "rope_parameters": {**found, **written(config.rope_scaling)},
        "rotary_pct": share,
        "rotary_emb_base": config.rope_base,
        **written_context(config),
    }


PARTIAL_ROPE = Part(_read_partial_rope, _write_partial_rope)  # NeoX


# ---- windows -------------------------------------------------------------------------------------


def windows(
    is_local: Callable[[Mapping[str, Any], int], bool], switch: str = "", types: bool = True
) -> Part:
    """sliding_window, and which layers have it: `layer_types`, or the family's own rule.

    `switch` is a key without which, or false, there is no window at all. Without `types` the
    family has no `layer_types`.
    """

    def read(data: Mapping[str, Any], values: Values, path: str) -> Values:
        window = data.get("sliding_window", WINDOW)
        if window is None or (switch and data.get(switch) is not True):
            return {"window": None, "local": ()}
        if type(window) is not int or not 1 <= window <= 2**31:
            raise FormatError(path, "sliding_window", window, "a whole number from 1", "bad-type")
        layers, kinds = values["layers"], data.get("layer_types") if types else None
        if not 1 <= layers <= LAYERS_LIMIT:
            raise FormatError(path, "layers", layers, f"1 to {LAYERS_LIMIT:,}", "out-of-range")
        if kinds is None:
            local = tuple(is_local(data, i) for i in range(layers))
        else:
            known = {"sliding_attention": True, "full_attention": False}
            if (
                not isinstance(kinds, list)
                or len(kinds) != layers
                or not all(isinstance(kind, str) and kind in known for kind in kinds)
            ):
                allowed = f"{layers} of {', '.join(known)}"
                raise FormatError(path, "layer_types", kinds, allowed, "bad-type")
            local = tuple(known[kind] for kind in kinds)
        return {"window": window, "local": local if any(local) else ()}

    def write(config: ModelConfig) -> Values:
        there = config.window is not None and any(config.local)
        data: Values = {"sliding_window": config.window}
        if switch:
            data[switch] = there
        if types and (not all(config.local) or not config.local):
            words = {True: "sliding_attention", False: "full_attention"}
            data["layer_types"] = [
                words[bool(config.local) and config.local[i]] for i in range(config.layers)
            ]
        return data

    return Part(read, write)


def every_layer(data: Mapping[str, Any], layer: int) -> bool:
    return True


def upper_layers(data: Mapping[str, Any], layer: int) -> bool:
    lowest = data.get("max_window_layers", 28)
    return type(lowest) is int and layer >= lowest


def every_other(data: Mapping[str, Any], layer: int) -> bool:
    return layer % 2 == 0


def five_of_six(data: Mapping[str, Any], layer: int) -> bool:
    pattern = data.get("sliding_window_pattern", data.get("_sliding_window_pattern", 6))
    return type(pattern) is int and pattern > 0 and (layer + 1) % pattern != 0


# ---- labels --------------------------------------------------------------------------------------


def _read_labels(data: Mapping[str, Any], values: Values, path: str) -> Values:
    if values["head"] != "label":
        return {}
    named, count = data.get("id2label"), data.get("num_labels")
    if named is None:
        count = 2 if count is None else count
        if type(count) is not int or not 1 <= count <= LABELS_LIMIT:
            raise FormatError(path, "num_labels", count, f"1 to {LABELS_LIMIT:,}", "out-of-range")
        return {"labels": tuple(f"LABEL_{i}" for i in range(count))}
    if not isinstance(named, dict) or not named or set(named) != set(map(str, range(len(named)))):
        raise FormatError(path, "id2label", one_line(named), "a name for 0, 1, ...", "bad-type")
    if not all(type(name) in (str, int) for name in named.values()):  # 0 and 1 are published, too
        raise FormatError(path, "id2label", one_line(named), "texts", "bad-type")
    if type(count) is int and 1 <= count <= LABELS_LIMIT and count != len(named):
        text = f"num_labels is {count:,}, id2label has {len(named):,}"
        notice(path, f"{text}: the labels are called LABEL_0 to LABEL_{count - 1}")
        return {"labels": tuple(f"LABEL_{i}" for i in range(count))}
    return {"labels": tuple(str(named[str(i)]) for i in range(len(named)))}


def _write_labels(config: ModelConfig) -> Values:
    if config.head != "label":
        return {}
    named = {str(i): name for i, name in enumerate(config.labels)}
    return {"id2label": named, "label2id": {name: i for i, name in enumerate(config.labels)}}


LABELS = Part(_read_labels, _write_labels)


# ---- what single families have -------------------------------------------------------------------


def _read_gemma(data: Mapping[str, Any], values: Values, path: str) -> Values:
    scalar = finite(data.get("query_pre_attn_scalar", 256), path, "query_pre_attn_scalar")
    if scalar <= 0:
        raise FormatError(path, "query_pre_attn_scalar", scalar, "above 0", "out-of-range")
    return {"attention_scale": scalar**-0.5, "embed_scale": embed_scale(values, path)}


def embed_scale(values: Values, path: str) -> float:
    """The square root of the width, by which Gemma multiplies its embeddings."""
    if not 1 <= values["dim"] <= 2**31:
        raise FormatError(path, "hidden_size", values["dim"], "1 to 2^31", "out-of-range")
    return float(values["dim"] ** 0.5)


def _write_gemma(config: ModelConfig) -> Values:
    scale = config.attention_scale or config.head_dim**-0.5
    scalar = round(scale**-2, 6)
    return {"query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar}


GEMMA = Part(_read_gemma, _write_gemma)
GEMMA_1 = Part(  # whose scores know no scalar of their own
    lambda data, values, path: _read_gemma(
        {"query_pre_attn_scalar": max(1, values["head_dim"])}, values, path
    ),
    lambda config: {},
)


def _read_roberta(data: Mapping[str, Any], values: Values, path: str) -> Values:
    """The table has rows for the padding id and those before it, which no position takes."""
    padding, rows = data.get("pad_token_id", 1), data.get("max_position_embeddings", 512)
    if type(padding) is not int or type(rows) is not int or not 0 <= padding < rows - 1:
        found = f"{one_line(rows)} rows, padding id {one_line(padding)}"
        allowed = "more rows than the padding id and one"
        raise FormatError(path, "max_position_embeddings", found, allowed, "out-of-range")
    return {"position_offset": padding + 1, "context": rows - padding - 1}


def _write_roberta(config: ModelConfig) -> Values:
    rows = config.context + config.position_offset
    return {"max_position_embeddings": rows, "pad_token_id": config.position_offset - 1}


ROBERTA = Part(_read_roberta, _write_roberta)


def _read_neox(data: Mapping[str, Any], values: Values, path: str) -> Values:
    parallel = data.get("use_parallel_residual", True)
    if type(parallel) is not bool:
        raise FormatError(path, "use_parallel_residual", parallel, "true or false", "bad-type")
    return {"norm_at": "parallel" if parallel else "pre"}


NEOX = Part(_read_neox, lambda config: {"use_parallel_residual": config.norm_at == "parallel"})


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


def gguf_windows(
    is_local: Callable[[Mapping[str, Any], int], bool], usual: int | None = None
) -> Part:
    """`usual`: the window of a file that does not say it."""
    key, pattern = "attention.sliding_window", "attention.sliding_window_pattern"

    def read(data: Mapping[str, Any], values: Values, path: str) -> Values:
        window, layers = data.get(key, usual), values["layers"]
        if window is None or (window == 0 and type(window) is int):
            return {"window": None, "local": ()}
        if type(window) is not int:
            raise FormatError(path, key, window, "an integer", "bad-type")
        if not 1 <= layers <= LAYERS_LIMIT:
            raise FormatError(path, "block_count", layers, f"1 to {LAYERS_LIMIT:,}", "out-of-range")
        match data.get(pattern):
            case None:
                local = [is_local(data, i) for i in range(layers)]
            case int(every) if type(every) is int and 0 <= every <= LAYERS_LIMIT:
                local = [every == 0 or i % every < every - 1 for i in range(layers)]
            case list(each) if len(each) == layers and {*map(type, each)} == {bool}:
                local = each
            case found:
                allowed = f"every how many layers there is none, or {layers} of true and false"
                raise FormatError(path, pattern, found, allowed, "out-of-range")
        return {"window": window, "local": tuple(local)}

    def write(config: ModelConfig) -> Values:
        if config.window is None or not any(config.local):
            return {key: 0} if usual is not None else {}
        if config.local != tuple(is_local({}, i) for i in range(config.layers)):
            raise ConfigError("a GGUF file cannot say which layers of this model have a window")
        return {key: config.window}

    return Part(read, write)


# Gemma 2 and 3 of 27B scale their scores by dim / heads: llama.cpp tells them by their layers.
WIDE_SCALE = {"gemma2": 46, "gemma3_text": 62}


def _gguf_scale(values: Mapping[str, Any]) -> float:
    if WIDE_SCALE.get(values["family"]) == values["layers"]:
        return max(1, values["dim"] // max(1, values["heads"])) ** -0.5
    return max(1, values["head_dim"]) ** -0.5


def _read_gguf_gemma(data: Mapping[str, Any], values: Values, path: str) -> Values:
    # The file does not say the scale of the scores.
    return {"embed_scale": embed_scale(values, path), "attention_scale": _gguf_scale(values)}


def _write_gguf_gemma(config: ModelConfig) -> Values:
    if abs((config.attention_scale or 0) / _gguf_scale(vars(config)) - 1) > 1e-6:
        raise ConfigError("a GGUF file cannot say this model's attention scale")
    return {}


GGUF_GEMMA = Part(_read_gguf_gemma, _write_gguf_gemma)
GGUF_NEOX = Part(
    lambda data, values, path: _read_neox(
        {"use_parallel_residual": data.get("use_parallel_residual", True)}, values, path
    ),
    lambda config: {"use_parallel_residual": config.norm_at == "parallel"},
)
