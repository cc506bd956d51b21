"""Rows: transforms invert, names fill, conditions hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minift.checkpoints.mapping import (
    TRANSFORMS,
    Field,
    Layout,
    Row,
    check_fixed,
    holds,
    is_buffer,
    pairs,
    read_fields,
    spread,
    write_fields,
)
from minift.errors import FormatError
from minift.model.config import ModelConfig

CONFIG = ModelConfig("llama", 50, 24, 2, 4, 4, 6, 20, 64)


@pytest.mark.parametrize("how", sorted(TRANSFORMS))
def test_every_transform_has_its_inverse(how):
    load, save = TRANSFORMS[how]
    x = torch.arange(72 * 72, dtype=torch.float64).view(72, 72)
    assert torch.equal(save(CONFIG, load(CONFIG, x)), x)


def test_pairs_of_channels_by_hand():
    # One head of four channels: GGUF keeps pairs (0, 2) and (1, 3) side by side.
    config = ModelConfig("llama", 8, 4, 1, 1, 1, 4, 4, 8)
    stored = torch.tensor([[0], [2], [1], [3]])
    assert TRANSFORMS["q unpermute"].load(config, stored)[0].flatten().tolist() == [0, 1, 2, 3]


def test_heads_side_by_side_by_hand():
    # Two heads of two channels: q0 q0 k0 k0 v0 v0 q1 q1 k1 k1 v1 v1.
    config = ModelConfig("gpt_neox", 8, 4, 1, 2, 2, 2, 4, 8)
    q, k, v = TRANSFORMS["q|k|v per head"].load(config, torch.arange(12))
    assert [x.tolist() for x in (q, k, v)] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


def test_grouped_rows_by_hand():
    config = ModelConfig("gpt2", 8, 4, 1, 2, 1, 2, 4, 8)
    q, k, v = TRANSFORMS["q|k|v"].load(config, torch.arange(8))
    assert [x.tolist() for x in (q, k, v)] == [[0, 1, 2, 3], [4, 5], [6, 7]]


def test_names_are_filled_for_every_layer():
    layout = Layout((), (Row("{p}h.{i}.w", "blocks.{i}.{a,b}.w"), Row("x", "y", when="tied")))
    found = [(pair.theirs, pair.ours) for pair in pairs(layout, CONFIG, "t.")]
    assert found == [
        ("t.h.0.w", ("blocks.0.a.w", "blocks.0.b.w")),
        ("t.h.1.w", ("blocks.1.a.w", "blocks.1.b.w")),
    ]
    assert [p.theirs for p in pairs(layout, replace(CONFIG, tied=True), "")][-1] == "x"
    assert spread("plain") == ["plain"]


def test_conditions():
    assert holds(CONFIG, "head=lm")
    assert not holds(CONFIG, "!head=lm")
    assert not holds(CONFIG, "tied")
    assert holds(CONFIG, "!tied")


def test_fields_go_both_ways():
    words = {"silu": "silu", "swish": "silu"}
    table = (Field("d", "dim", int), Field("a", "act", str, "silu", words))
    assert read_fields(table, {"d": 3, "a": "swish"}, "f") == {"dim": 3, "act": "silu"}
    assert write_fields(table, CONFIG) == {"d": 24, "a": "silu"}
    with pytest.raises(FormatError, match=r"2 that do not fit.*\n.*d is missing\n.*not one of"):
        read_fields(table, {"a": "x"}, "f")


def test_what_is_fixed_may_be_left_out_or_null():
    check_fixed({"a": 1}, {}, "f")
    check_fixed({"a": 1}, {"a": None}, "f")
    with pytest.raises(FormatError, match="a: found 2"):
        check_fixed({"a": 1}, {"a": 2}, "f")


def test_what_is_buffer_is_matched_whole():
    layout = Layout((), (), buffers=(r".*\.inv_freq",))
    assert is_buffer(layout, "a.inv_freq")
    assert not is_buffer(layout, "a.inv_freq.weight")
