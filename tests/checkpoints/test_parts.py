"""Parts of configurations by hand; both directions are held by test_families.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minift.checkpoints import parts
from minift.checkpoints.parts import (
    GGUF_GEMMA,
    LABELS,
    ROBERTA,
    every_other,
    five_of_six,
    gguf_windows,
    upper_layers,
    windows,
)
from minift.errors import ConfigError, FormatError, Notice
from minift.model.config import ModelConfig

CONFIG = ModelConfig("llama", 50, 24, 6, 4, 4, 6, 20, 64)


def test_which_layers_have_a_window():
    values = {"layers": 6}

    def local(rule, data, switch=""):
        return windows(rule, switch).read(data, values, "f")["local"]

    assert local(every_other, {"sliding_window": 4}) == (True, False) * 3
    assert local(five_of_six, {"sliding_window": 4}) == (True,) * 5 + (False,)
    assert local(five_of_six, {"sliding_window": 4, "sliding_window_pattern": 2}) == (
        (True, False) * 3
    )
    assert local(upper_layers, {"sliding_window": 4, "max_window_layers": 4}) == (
        (False,) * 4 + (True,) * 2
    )
    assert local(every_other, {"sliding_window": None}) == ()
    assert local(every_other, {"sliding_window": 4}, "use_sliding_window") == ()
    kinds = ["full_attention"] * 5 + ["sliding_attention"]
    assert local(every_other, {"sliding_window": 4, "layer_types": kinds}) == (False,) * 5 + (True,)


@pytest.mark.parametrize(
    "data",
    [
        {"sliding_window": 0},
        {"sliding_window": "4"},
        {"sliding_window": 4, "layer_types": ["full_attention"]},
        {"sliding_window": 4, "layer_types": ["x"] * 6},
        {"sliding_window": 4, "layer_types": [["x"]] * 6},
        {"sliding_window": 4, "layer_types": "full_attention"},
    ],
)
def test_windows_that_cannot_be_are_refused(data):
    with pytest.raises(FormatError):
        windows(every_other).read(data, {"layers": 6}, "f")
    with pytest.raises(FormatError):
        windows(every_other).read({"sliding_window": 4}, {"layers": 10**9}, "f")


def test_labels_are_named_or_counted():
    read = LABELS.read
    assert read({}, {"head": "lm"}, "f") == {}
    assert read({}, {"head": "label"}, "f")["labels"] == ("LABEL_0", "LABEL_1")
    assert read({"num_labels": 1}, {"head": "label"}, "f")["labels"] == ("LABEL_0",)
    named = {"id2label": {"1": "b", "0": "a"}}
    assert read(named, {"head": "label"}, "f")["labels"] == ("a", "b")
    for bad in ({"1": "b"}, {}, [], {"0": True}, {"0": "a", "x": "b"}):
        with pytest.raises(FormatError):
            read({"id2label": bad}, {"head": "label"}, "f")
    assert read({"id2label": {"0": 0, "1": 1}}, {"head": "label"}, "f")["labels"] == ("0", "1")
    with pytest.warns(
        Notice, match="num_labels is 3, id2label has 2: the labels are called LABEL_0 to LABEL_2"
    ):
        found = read(named | {"num_labels": 3}, {"head": "label"}, "f")
    assert found["labels"] == ("LABEL_0", "LABEL_1", "LABEL_2")
    for count in (0, 10**9, "2", True):
        with pytest.raises(FormatError):
            read({"num_labels": count}, {"head": "label"}, "f")


def test_roberta_counts_from_after_its_padding():
    read = ROBERTA.read({"max_position_embeddings": 514, "pad_token_id": 1}, {}, "f")
    assert read == {"position_offset": 2, "context": 512}
    for bad in ({"pad_token_id": -1}, {"pad_token_id": 511}, {"max_position_embeddings": "x"}):
        with pytest.raises(FormatError):
            ROBERTA.read({"max_position_embeddings": 512} | bad, {}, "f")


GGUF_WINDOWS = [  # metadata; layers with a window, of 6
    ({}, "101010"),
    ({"attention.sliding_window": 8}, "101010"),
    ({"attention.sliding_window": 0}, ""),
    ({"attention.sliding_window_pattern": 3}, "110110"),
    ({"attention.sliding_window_pattern": 0}, "111111"),
    ({"attention.sliding_window_pattern": 1}, "000000"),
    ({"attention.sliding_window_pattern": [True] * 4 + [False] * 2}, "111100"),
]


@pytest.mark.parametrize(("data", "local"), GGUF_WINDOWS)
def test_gguf_windows_of_gemma_2(data, local):
    found = gguf_windows(every_other, 4096).read(data, {"layers": 6}, "f")
    assert "".join(str(int(each)) for each in found["local"]) == local
    assert found["window"] == (data.get("attention.sliding_window", 4096) or None)


@pytest.mark.parametrize("pattern", [-1, True, 2.0, "2", [True] * 5, [1] * 6, 10**9])
def test_gguf_refuses_a_pattern_of_windows_that_is_none(pattern):
    data = {"attention.sliding_window_pattern": pattern}
    with pytest.raises(FormatError, match="sliding_window_pattern") as caught:
        gguf_windows(every_other, 4096).read(data, {"layers": 6}, "f")
    assert caught.value.code == "out-of-range"


@pytest.mark.parametrize(
    ("family", "layers", "width"), [("gemma2", 46, 144), ("gemma2", 42, 128), ("gemma", 46, 128)]
)
def test_gguf_scores_of_gemma_are_scaled_by_the_size(family, layers, width):
    """Gemma 2 27B has 32 heads of 128 in a width of 4,608, and scales by 4,608 / 32."""
    values = {"family": family, "layers": layers, "dim": 4608, "heads": 32, "head_dim": 128}
    assert GGUF_GEMMA.read({}, values, "f")["attention_scale"] == pytest.approx(width**-0.5)


def test_gguf_refuses_windows_that_it_cannot_say():
    part = gguf_windows(every_other)
    fits = replace(CONFIG, window=4, local=(True, False) * 3)
    assert part.write(fits) == {"attention.sliding_window": 4}
    with pytest.raises(ConfigError, match="cannot say"):
        part.write(replace(CONFIG, window=4, local=(True,) * 6))


def test_limits_at_and_over(monkeypatch):
    monkeypatch.setattr(parts, "LABELS_LIMIT", 3)
    monkeypatch.setattr(parts, "LAYERS_LIMIT", 6)
    assert len(LABELS.read({"num_labels": 3}, {"head": "label"}, "f")["labels"]) == 3
    windowed = windows(every_other).read({"sliding_window": 4}, {"layers": 6}, "f")
    assert windowed["local"] == (True, False) * 3
    for read in (
        lambda: LABELS.read({"num_labels": 4}, {"head": "label"}, "f"),
        lambda: windows(every_other).read({"sliding_window": 4}, {"layers": 7}, "f"),
        lambda: gguf_windows(every_other).read({"attention.sliding_window": 4}, {"layers": 7}, "f"),
    ):
        with pytest.raises(FormatError) as caught:
            read()
        assert caught.value.code == "out-of-range"
