"""Parts of a config.json that are no single field: windows, labels, and what one family has.

Rotary positions are in rope_parts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minift.checkpoints.mapping import Part, Values, finite
from minift.errors import ConfigError, FormatError, notice, one_line
from minift.model.config import ModelConfig

LAYERS_LIMIT = 100_000
LABELS_LIMIT = 1_000_000
WINDOW = 4096  # of a file that leaves the key out, in every family that has one


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
                allowed = f"a period in layers, or {layers} values that are true or false"
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
